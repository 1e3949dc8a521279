"""A wide fan-in: many calls side by side, all of whose results one call takes in.

Each of a few weights is used by every fourth call. The output is linear in them, so four examples determine them; the
problem is that every one of the `width` edges into the last call counts.
"""

from __future__ import annotations

import random
from typing import Any

from trace_opt import Feedback, OptoPrime, Parameter, trace
from trace_opt.problem import Problem

OPTIMUM = {"north": 2, "east": -1, "south": 0, "west": 5}
BEST_SCORE = 0.0
"""Mean score at the optimum."""


@trace
def weigh(reading: int, weight: float) -> float:
    """What one sensor adds: `reading * weight`."""
    return reading * weight


@trace
def total(parts: list[float]) -> float:
    """All sensors together: `sum(parts)`."""
    return sum(parts)


def guide(output: float, example: dict[str, Any]) -> Feedback:
    """Compare with what is wanted."""
    error = output - example["wanted"]
    if error == 0:
        return Feedback(score=0.0, text=f"right: got {output:g}")
    return Feedback(score=-abs(error), text=f"got {output:.6g}, expected {example['wanted']:.6g}")


def problem(width: int = 16) -> Problem:
    """The problem with `width` sensors."""
    weights = [Parameter(1, name=name, description=f"weight of the sensors in the {name}") for name in OPTIMUM]

    def workflow(readings: list[int]) -> float:
        return total([weigh(reading, weights[i % len(weights)].value) for i, reading in enumerate(readings)])

    rng = random.Random(5)  # noqa: S311 # the same examples every time
    best = list(OPTIMUM.values())
    examples: list[dict[str, Any]] = []
    for _ in range(24):
        readings = [rng.randint(-9, 9) for _ in range(width)]
        wanted = sum(reading * best[i % len(best)] for i, reading in enumerate(readings))
        examples.append({"readings": readings, "wanted": wanted})
    return Problem(
        workflow=workflow,
        train=examples[:12],
        val=examples[12:18],
        test=examples[18:],
        guide=guide,
        parameters=weights,
        optimizers=[OptoPrime()],
        description=f"{len(weights)} weights of {width} sensors that one call adds up",
    )
