"""`trace-opt diff` and `export` of functions: a unified diff, a module that runs, and files changed only when asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.loading import module_at
from trace_opt.core.code import diff
from trace_opt.optim.patch import patched

PROBLEM = '''
"""A parser to be mended."""
import json
import re

from trace_opt import Feedback, OptoPrime, Problem, trace
from trace_opt.testing import ScriptedLLM

FACTOR = 3
NEW = """from math import floor

def digits(text):
    return re.sub("[^0-9.]", "", text)

def parse(reply: str) -> float:
    return floor(float(digits(reply)) * FACTOR) * 1.0
"""


@trace(trainable=True)
def parse(reply: str) -> float:
    """Turn a reply into a number."""
    return float(re.sub(" ", "", reply)) * FACTOR


def problem(*, examples: int = 8) -> Problem:
    """A problem.

    Args:
        examples: How many there are.
    """
    data = [{"reply": f"{i} km", "answer": 3.0 * i} for i in range(examples)]
    llm = ScriptedLLM(lambda _: json.dumps({"reasoning": "", "values": {"parse": NEW}}))
    return Problem(
        workflow=lambda reply: parse(reply), train=data, val=data, test=data,
        guide=lambda output, example: Feedback(float(output == example["answer"])), optimizers=[OptoPrime(llm)],
        score_range=(0.0, 1.0),
    )
'''


@pytest.fixture
def mended(cli: Any, tmp_path: Path) -> Path:
    """The problem's file after a run that found the new function."""
    path = tmp_path / "mended.py"
    path.write_text(PROBLEM, encoding="utf-8")
    assert cli("run", str(path), "--budget", "trials=1", "--set", "examples=6").code == 0
    return path


def loaded(path: Path) -> Any:
    return module_at(path, f"loaded_{path.stem}")


def test_the_diff_shown_is_the_diff_applied(cli: Any, mended: Path) -> None:
    shown = cli("diff").out
    values = json.loads(cli("diff", "--json").out)
    before, after = values["a"]["parse"], values["b"]["parse"]
    assert "--- parse (start)\n+++ parse (best)\n@@ " in shown
    assert patched(before, shown) == after
    assert patched(before, diff(before, after, "parse")) == after


def test_after_a_run_of_functions_their_module_is_suggested(cli: Any, mended: Path) -> None:
    done = cli("run", str(mended), "--budget", "trials=1", "--set", "examples=6")
    for said in (done.err, cli("show").err, cli("diff").err):
        assert "--format code" in said
        assert "--format text" not in said


def test_the_exported_module_imports_and_does_the_same(cli: Any, mended: Path, tmp_path: Path) -> None:
    done = cli("export", "--format", "code", "-o", str(tmp_path / "found.py"))
    assert done.code == 0
    module = loaded(tmp_path / "found.py")
    assert [module.parse(text) for text in ("7 km", "about 2.5")] == [21.0, 7.0]
    text = (tmp_path / "found.py").read_text(encoding="utf-8")
    assert "FACTOR = 3\n" in text
    assert '@trace(trainable=True)\ndef parse(reply: str) -> float:\n    """Turn a reply into a number."""\n' in text
    assert mended.read_text(encoding="utf-8") == PROBLEM


def test_the_start_s_module_is_the_original(cli: Any, mended: Path, tmp_path: Path) -> None:
    cli("export", "--format", "code", "--candidate", "start", "-o", str(tmp_path / "start.py"))
    assert loaded(tmp_path / "start.py").parse("7") == 21.0


@pytest.mark.parametrize("format", ["text", "json", "python", "code"])
def test_no_format_touches_the_user_s_file(cli: Any, mended: Path, format: str) -> None:
    assert cli("export", "--format", format).code == 0
    assert mended.read_text(encoding="utf-8") == PROBLEM


def test_the_json_export_is_loaded_into_the_function(cli: Any, mended: Path, tmp_path: Path) -> None:
    from trace_opt import load_values
    from trace_opt.core.trainable import parameter_of

    cli("export", "--format", "json", "-o", str(tmp_path / "best.json"))
    module = loaded(mended)
    load_values([parameter_of(module.parse)], tmp_path / "best.json")
    assert module.parse("7 km") == 21.0


def test_write_puts_the_function_into_its_file_and_shows_the_change(cli: Any, mended: Path) -> None:
    done = cli("export", "--write")
    assert done.code == 0
    assert f"wrote {mended}" in done.err
    assert "-    return float(re.sub(" in done.out
    text = mended.read_text(encoding="utf-8")
    assert patched(PROBLEM, done.out) == text
    assert loaded(mended).parse("7 km") == 21.0


def test_write_leaves_a_file_alone_that_has_changed_since(cli: Any, mended: Path) -> None:
    mended.write_text(
        PROBLEM.replace('re.sub(" ", "", reply)', "reply").replace("import re\n", "import re\n", 1), encoding="utf-8"
    )
    before = mended.read_text(encoding="utf-8")
    mended.write_text(
        before.replace('def parse(reply: str) -> float:\n    """Turn', 'def parse(reply: str) -> int:\n    """Turn'),
        encoding="utf-8",
    )
    changed = mended.read_text(encoding="utf-8")
    done = cli("export", "--write")
    assert done.code == 1
    assert "must keep the type of 'return'" in done.err
    assert mended.read_text(encoding="utf-8") == changed


def test_functions_are_found_in_a_file_that_was_moved_when_it_is_named(cli: Any, mended: Path, tmp_path: Path) -> None:
    moved = mended.rename(tmp_path / "moved.py")
    done = cli("export", "--format", "code")
    assert done.code == 1
    assert "is gone; name it with --file" in done.err
    assert cli("export", "--format", "code", "--file", str(moved)).code == 0


def test_a_run_without_functions_says_so(cli: Any, choices: Path) -> None:
    cli("run", choices, "--budget", "trials=1")
    done = cli("export", "--format", "code")
    assert done.code == 1
    assert "has no functions among its parameters" in done.err
