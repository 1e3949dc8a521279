"""The program that the README leads with: text, code and tensor improve in one run, and each of them counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.loading import module_at
from trace_opt.core.trainable import parameter_of
from trace_opt.search.evaluate import evaluate

PATH = Path(__file__).parents[1] / "examples" / "text_code_tensor.py"


@pytest.fixture(scope="module")
def example() -> Any:
    """The example, run once."""
    return module_at(PATH, "text_code_tensor")


def test_style_code_and_scale_are_each_better_than_at_the_start(example: Any) -> None:
    """The best text asks for digits, the best code reads commas and units, and the best scale makes feet metres."""
    best = example.run.best

    assert "digits" in best["style"]
    assert "replace" in best["parse"]
    assert best["scale"].item() == pytest.approx(0.3048, abs=0.003)
    assert example.run.report().claim == "better"


@pytest.mark.parametrize("name", ["style", "parse", "scale"])
def test_taking_one_of_the_three_back_makes_the_result_worse(example: Any, name: str) -> None:
    """None of the three improvements is idle: with the start's value in one place, mountains fail or heights are off."""
    found = evaluate(
        example.workflow, example.train, example.guide,
        values={key: value for key, value in example.run.best.items() if key != name},
    ).best  # fmt: skip

    assert found.failed > 0 or found.mean < -0.5


def test_the_run_wrote_to_no_parameter(example: Any) -> None:
    """What the user's program holds is as it was, until `run.apply()`."""
    assert example.style.initial == "Reply briefly."
    assert parameter_of(example.parse).initial.endswith("    return float(reply)\n")
    assert example.scale.initial.item() == 1.0
