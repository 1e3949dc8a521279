"""A diamond with a reused parameter: one variable goes into both arms, and twice into one call (`f(p, p)`).

Every edge counts: whoever loses one of the two edges of `square(a=side, b=side)` computes another value. The optimum is
unique: `2 * x * side + side ** 2` for two values of `x` determines `side`.
"""

from __future__ import annotations

from typing import Any

from trace_opt import Feedback, OptoPrime, Parameter, trace
from trace_opt.problem import Problem

OPTIMUM = {"side": 4}
BEST_SCORE = 0.0
"""Mean score at the optimum."""


@trace
def border(x: float, side: float) -> float:
    """The left arm: `2 * x * side`."""
    return 2 * x * side


@trace
def square(a: float, b: float) -> float:
    """The right arm, which gets the variable twice: `a * b`."""
    return a * b


@trace
def join(left: float, right: float) -> float:
    """Both arms together: `left + right`."""
    return left + right


def guide(output: float, example: dict[str, Any]) -> Feedback:
    """Compare with what is wanted."""
    error = output - example["wanted"]
    if error == 0:
        return Feedback(score=0.0, text=f"right: got {output:g}")
    return Feedback(score=-abs(error), text=f"got {output:.6g}, expected {example['wanted']:.6g}")


def problem() -> Problem:
    """The problem, its variable at the start far from the optimum."""
    side = Parameter(1, name="side", description="length of a side")

    def workflow(x: float) -> float:
        return join(border(x, side.value), square(side.value, side.value))

    best = OPTIMUM["side"]
    examples = [{"x": x, "wanted": 2 * x * best + best * best} for x in range(1, 25)]
    return Problem(
        workflow=workflow,
        train=examples[::2],
        val=examples[1::4],
        test=examples[3::4],
        guide=guide,
        parameters=[side],
        optimizers=[OptoPrime()],
        description="one number that reaches the output along three edges",
    )
