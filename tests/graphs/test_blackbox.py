"""The black boxes hide their gradient, their optimum is known, and the surrogate at one setting beats differences at their best."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from tests.loading import module_at
from trace_opt.core.context import in_force
from trace_opt.core.tracer import plain, record
from trace_opt.problem import Problem, load_problem

FILE = Path(__file__).parents[2] / "graphs" / "blackbox.py"
NAMES = ["steep", "valley", "waves", "rugged"]
D = torch.float64


@lru_cache(maxsize=1)
def module() -> Any:
    return module_at(FILE, "blackbox_file")


def problem(name: str, **options: Any) -> Problem:
    return load_problem(FILE, {"function": name} | {key: str(value) for key, value in options.items()})


def value(given: Problem, values: Mapping[str, Any]) -> float:
    with in_force(values):
        return given.workflow(**given.train[0])


def optimum() -> dict[str, Any]:
    return {"point": torch.tensor(module().OPTIMUM["point"], dtype=D)}


@pytest.mark.parametrize("name", NAMES)
def test_the_optimum_has_the_best_score_and_nothing_near_or_far_is_better(name: str) -> None:
    given = problem(name)
    best = module().BEST_SCORE
    assert value(given, optimum()) == pytest.approx(-best, abs=1e-12)
    chance = torch.Generator().manual_seed(0)
    for radius in (0.01, 0.1, 1.0):
        for _ in range(30):
            move = radius * torch.randn(10, dtype=D, generator=chance)
            assert value(given, {"point": (optimum()["point"] + move).clamp(-1, 1)}) > -best
    assert value(given, {}) > 0.3


def test_the_functions_are_those_of_their_formulas() -> None:
    x = torch.linspace(-0.9, 0.8, 10, dtype=D)
    away = x - optimum()["point"]
    z = 1 + away
    index = torch.arange(1, 13, dtype=D)
    rows = torch.cos(0.7 * torch.outer(index, index[:10])) @ away
    expected = {
        "steep": 0.5 * (10 ** torch.linspace(-1, 1, 10, dtype=D) * away**2).sum(),
        "valley": (5 * (z[1:] - z[:-1] ** 2) ** 2 + (1 - z[:-1]) ** 2).sum(),
        "waves": (1 - torch.exp(-0.5 * rows**2)).mean() + 0.02 * (away**2).sum(),
        "rugged": 3 * (1 - torch.exp(-(away**2).mean())) + 0.05 * (1 - torch.cos(6 * torch.pi * away)).sum()
        + 0.5 * (away**2).mean(),
    }  # fmt: skip
    for name, function in module().FUNCTIONS.items():
        assert function(x.tolist()) == pytest.approx(float(expected[name]), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_the_same_recorded_and_plain(name: str) -> None:
    given = problem(name)
    with record() as graph:
        output = given.workflow(**given.train[0])
    assert plain(output) == value(given, {})
    assert [node.op.name for node in graph.nodes] == ["parameter", "write", "simulate"]


def test_no_gradient_gets_through_the_text() -> None:
    given = problem("steep")
    with in_force({"point": torch.zeros(10, dtype=D, requires_grad=True)}):
        assert type(given.workflow(**given.train[0])) is float


def final(name: str, start: int, **options: Any) -> float:
    given = problem(name, start=start, **options)
    return value(given, given.optimize(store=None, seed=start).best)


@pytest.mark.parametrize("name", NAMES)
def test_the_surrogate_at_one_setting_beats_differences_at_their_better_learning_rate(name: str) -> None:
    surrogate = median(final(name, start) for start in range(2))
    for method in ("central", "two-point", "spsa"):
        best = min(median(final(name, start, method=method, lr=lr) for start in range(2)) for lr in (0.1, 0.3))
        assert surrogate < best / 2


def test_four_points_at_once_do_as_well() -> None:
    assert final("steep", 0, batch=4) < 1e-3
