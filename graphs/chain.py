"""A linear chain: one variable at its beginning, one at its end, and a row of fixed steps between them.

The feedback is about the last value only, so it has to be followed back through every step. The optimum is unique:
two examples with different `x` determine both variables.
"""

from __future__ import annotations

from typing import Any

from trace_opt import Feedback, OptoPrime, Parameter, trace
from trace_opt.problem import Problem

OPTIMUM = {"gain": 3, "offset": -5}
BEST_SCORE = 0.0
"""Mean score at the optimum."""


@trace
def scale(x: float, factor: float) -> float:
    """Scale a reading: `x * factor`."""
    return x * factor


@trace
def settle(x: float) -> float:
    """One step of the plant that cannot be changed: `x / 2 + 4`."""
    return x / 2 + 4


@trace
def shift(x: float, by: float) -> float:
    """Move a value: `x + by`."""
    return x + by


def target(x: float, steps: int) -> float:
    """What the chain gives at the optimum."""
    y = x * OPTIMUM["gain"]
    for _ in range(steps):
        y = y / 2 + 4
    return y + OPTIMUM["offset"]


def guide(output: float, example: dict[str, Any]) -> Feedback:
    """Compare with what is wanted."""
    error = output - example["wanted"]
    score = -abs(error)
    if abs(error) < 1e-9:
        return Feedback(score=0.0, text=f"right: got {output:g}")
    return Feedback(score=score, text=f"got {output:.6g}, expected {example['wanted']:.6g}")


def problem(steps: int = 6) -> Problem:
    """The problem with `steps` fixed steps between its two variables."""
    gain = Parameter(1, name="gain", description="factor at the beginning of the chain")
    offset = Parameter(0, name="offset", description="what the end of the chain adds")

    def workflow(x: float) -> float:
        y = scale(x, gain.value)
        for _ in range(steps):
            y = settle(y)
        return shift(y, offset.value)

    examples = [{"x": float(64 * x), "wanted": target(64.0 * x, steps)} for x in range(-10, 14)]
    return Problem(
        workflow=workflow,
        train=examples[::2],
        val=examples[1::4],
        test=examples[3::4],
        guide=guide,
        parameters=[gain, offset],
        optimizers=[OptoPrime()],
        description="two numbers at both ends of a chain of fixed steps",
    )
