"""Decorated functions check as undecorated ones, for pyright and for mypy."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "typing"
ROOT = Path(__file__).parents[1]
CHECKERS = {
    "pyright": ["-m", "pyright", "--pythonpath", sys.executable],
    "mypy": ["-m", "mypy", "--config-file", str(HERE / "mypy.ini")],
}


@functools.cache
def complaints(checker: str) -> str:
    """What a checker prints about both files: one start of it is slow enough."""
    command = [sys.executable, *CHECKERS[checker], str(HERE / "ops.py"), str(HERE / "misuse.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout, done.stderr
    return done.stdout


def lines_with_errors(checker: str, file: Path) -> set[int]:
    """Numbers of the lines of `file` that the checker complains about."""
    pattern = rf"{re.escape(file.name)}:(\d+)(?::\d+)?(?: -)?:? error"
    return {int(number) for number in re.findall(pattern, complaints(checker))}


@pytest.mark.parametrize("checker", CHECKERS)
def test_ops_and_parameters_have_the_types_of_what_they_wrap(checker: str) -> None:
    assert lines_with_errors(checker, HERE / "ops.py") == set()


@pytest.mark.parametrize("checker", CHECKERS)
def test_wrong_arguments_of_an_op_are_found(checker: str) -> None:
    file = HERE / "misuse.py"
    marked = {i for i, line in enumerate(file.read_text().splitlines(), 1) if line.endswith("# error")}
    assert lines_with_errors(checker, file) == marked
