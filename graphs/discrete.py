"""Choices that only count together: four settings of a small reader of address lines.

Which column is right shows only once the separator is right, and the marks to strip and the case only once the column
is. The score says how much of the wanted text is there, so a part of the way is visible. One combination of 240 is best.
"""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Any

from trace_opt import Categorical, Feedback, Parameter, trace
from trace_opt.problem import Problem

OPTIMUM = {"separator": ";", "column": 2, "marks": " *", "case": "title"}
BEST_SCORE = 1.0
"""Mean score at the optimum."""

CITIES = (
    "berlin", "new york", "rio de janeiro", "oslo", "cape town", "tokyo", "san josé", "quito", "port louis", "lima",
    "addis ababa", "bern", "kuala lumpur", "cairo", "wellington", "hanoi",
)  # fmt: skip


@trace
def split(line: str, separator: str) -> list[str]:
    """Take a line apart: `line.split(separator)`."""
    return line.split(separator)


@trace
def pick(fields: list[str], column: int) -> str:
    """One field, the last where there are too few: `fields[min(column, len(fields) - 1)]`."""
    return fields[min(column, len(fields) - 1)]


@trace
def clean(text: str, marks: str) -> str:
    """Strip marks from both ends: `text.strip(marks)`."""
    return text.strip(marks)


@trace
def write(text: str, case: str) -> str:
    """Set capitals: `text.upper() if case == 'upper' else text.lower() if case == 'lower' else text.title()`."""
    return text.upper() if case == "upper" else text.lower() if case == "lower" else text.title()


def line_of(i: int, city: str) -> str:
    """One address line: commas and bars are there too, as parts of fields."""
    return f"No. {i + 1}, {i % 7 + 1}|{i * 3 + 2} Main St;{10_000 + i * 137}; *{city.upper()}* ;Unit {i % 4}, rear|{i}"


def guide(output: str, example: dict[str, Any]) -> Feedback:
    """How much of the wanted text is there."""
    if output == example["wanted"]:
        return Feedback(score=1.0, text="right")
    score = SequenceMatcher(None, output, example["wanted"], autojunk=False).ratio()
    return Feedback(score=0.9 * score, text=f"got {output!r}, expected {example['wanted']!r}")


def problem() -> Problem:
    """The problem, with four wrong settings at the start."""
    separator = Parameter(",", name="separator", description="what stands between fields", choices=(",", ";", "|", " "))
    column = Parameter(0, name="column", description="number of the field, from 0", choices=(0, 1, 2, 3, 4))
    marks = Parameter("_", name="marks", description="marks to strip from both ends", choices=("_", " ", "*", " *"))
    case = Parameter("upper", name="case", description="how capitals are set", choices=("upper", "lower", "title"))

    def workflow(line: str) -> str:
        field = pick(split(line, separator.value), column.value)
        return write(clean(field, marks.value), case.value)

    examples = [{"line": line_of(i, city), "wanted": city.title()} for i, city in enumerate(CITIES)]
    return Problem(
        workflow=workflow,
        train=examples[:8],
        val=examples[8:12],
        test=examples[12:],
        guide=guide,
        parameters=[separator, column, marks, case],
        optimizers=[Categorical()],
        description="four choices that only count together",
        score_range=(0.0, 1.0),
    )
