"""Two functions that must be mended together: neither change alone makes a line of an order come out right.

`fields` takes a line apart and `cents` works out what it costs. At the start both are wrong in a way that fits together, so
that nothing fails: with one of them mended every line does. Their docstrings say what they are to do.
"""

from __future__ import annotations

from typing import Any

from trace_opt import Feedback, OptoPrime, trace
from trace_opt.core.trainable import parameter_of
from trace_opt.problem import Problem

OPTIMUM = {
    "fields": '''\
def fields(line: str) -> list[str]:
    """The parts of one line of an order: `[part.strip() for part in line.split(';')]`."""
    return [part.strip() for part in line.split(';')]
''',
    "cents": '''\
def cents(parts: list[str]) -> int:
    """What a line costs, in cents: `int(parts[1]) * round(100 * float(parts[2].replace(',', '.')))`."""
    return int(parts[1]) * round(100 * float(parts[2].replace(',', '.')))
''',
}
BEST_SCORE = 1.0
"""Mean score at the optimum."""

GOODS = ("pen", "ink, blue", "paper", "glue", "tape, wide", "pins", "chalk", "ruler", "map", "string", "clips", "card")


@trace(trainable=True)
def fields(line: str) -> list[str]:
    """The parts of one line of an order: `[part.strip() for part in line.split(';')]`."""
    return line.split(",")


@trace(trainable=True)
def cents(parts: list[str]) -> int:
    """What a line costs, in cents: `int(parts[1]) * round(100 * float(parts[2].replace(',', '.')))`."""
    return int(parts[-1])


def workflow(line: str) -> int:
    """What one line of an order costs."""
    return cents(fields(line))


def guide(output: int, example: dict[str, Any]) -> Feedback:
    """Whether the price is right."""
    if output == example["cents"]:
        return Feedback(score=1.0, text="right")
    return Feedback(score=0.0, text=f"got {output}, expected {example['cents']}")


def problem() -> Problem:
    """The problem, with both functions wrong at the start."""
    examples: list[dict[str, Any]] = []
    for i, goods in enumerate(GOODS):
        count, price = i % 4 + 2, 105 + 37 * i
        line = f"{goods}; {count}; {price // 100},{price % 100:02}"
        examples.append({"line": line, "cents": count * price})
    return Problem(
        workflow=workflow,
        train=examples[:6],
        val=examples[6:9],
        test=examples[9:],
        guide=guide,
        parameters=[parameter_of(fields), parameter_of(cents)],
        optimizers=[OptoPrime()],
        description="two functions that must be mended together",
        score_range=(0.0, 1.0),
    )
