"""Ten numbers behind a text: a black box reads its settings from a line of text, so no gradient gets through.

The settings are written as text of six significant digits, and the box parses them again, as a simulator with an input
file would. The four functions are a quadratic that is a hundred times as steep one way, a curved valley, flat-bottomed
waves, and a rugged bowl. The lowest value of all of them is 0, at `CENTRE`.

    trace-opt run graphs/blackbox.py
    trace-opt run graphs/blackbox.py --set function=rugged --set method=spsa --set lr=.3
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from trace_opt import Budget, Feedback, Parameter, trace
from trace_opt.core.constraint import Box
from trace_opt.optim.numeric.zeroth import Method, ZerothOrder
from trace_opt.problem import Problem

CENTRE = (0.5, -0.4, 0.3, -0.2, 0.1, 0.45, -0.35, 0.25, -0.15, 0.05)
OPTIMUM = {"point": CENTRE}
BEST_SCORE = 0.0
"""Mean score at the optimum."""


def steep(x: Sequence[float]) -> float:
    """A quadratic with curvatures from 0.1 to 10."""
    return 0.5 * math.fsum(
        10 ** (-1 + 2 * i / 9) * (a - c) ** 2 for i, (a, c) in enumerate(zip(x, CENTRE, strict=True))
    )


def valley(x: Sequence[float]) -> float:
    """Rosenbrock's valley with its lowest point at the centre."""
    z = [1 + a - c for a, c in zip(x, CENTRE, strict=True)]
    return math.fsum(5 * (b - a**2) ** 2 + (1 - a) ** 2 for a, b in pairwise(z))


def waves(x: Sequence[float]) -> float:
    """Twelve wells along different directions: flat far away."""
    z = [a - c for a, c in zip(x, CENTRE, strict=True)]
    rows = [math.fsum(math.cos(0.7 * (i + 1) * (j + 1)) * a for j, a in enumerate(z)) for i in range(12)]
    return math.fsum(1 - math.exp(-0.5 * row**2) for row in rows) / 12 + 0.02 * math.fsum(a**2 for a in z)


def rugged(x: Sequence[float]) -> float:
    """A bowl with a ripple in every coordinate: thousands of local minima."""
    z = [a - c for a, c in zip(x, CENTRE, strict=True)]
    mean = math.fsum(a**2 for a in z) / len(z)
    return 3 * (1 - math.exp(-mean)) + 0.05 * math.fsum(1 - math.cos(6 * math.pi * a) for a in z) + 0.5 * mean


FUNCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "steep": steep, "valley": valley, "waves": waves, "rugged": rugged
}  # fmt: skip


@trace
def write(point: Any) -> str:
    """The settings as a line of text: six significant digits each, separated by blanks."""
    return " ".join(f"{number:.6g}" for number in point.tolist())


@trace
def simulate(line: str, function: str) -> float:
    """Read the settings from the line and run the black box called `function`."""
    return FUNCTIONS[function]([float(word) for word in line.split()])


def guide(output: float, example: dict[str, Any]) -> Feedback:  # noqa: ARG001 # there is no datum to compare with
    """The lower the better, 0 at best."""
    return Feedback(score=-output, text=f"the value is {output:.6g}, the lowest possible is 0")


def problem(
    *, function: str = "steep", method: Method = "surrogate", lr: float = 0.2, queries: int = 300, batch: int = 1,
    start: int = 0,
) -> Problem:  # fmt: skip
    """The problem, started at a point that chance picks in [-1, 1]^10.

    Args:
        function: "steep", "valley", "waves" or "rugged".
        method: How a gradient is estimated.
        lr: The learning rate.
        queries: Points asked in the one phase.
        batch: Points asked at once.
        start: Seed of the starting point.
    """
    import torch

    chance = random.Random(start)  # noqa: S311 # reproducible, not a secret
    numbers = torch.tensor([chance.uniform(-1, 1) for _ in CENTRE], dtype=torch.float64)
    point = Parameter(numbers, name="point", description="settings of the black box", constraint=Box(-1.0, 1.0))

    def workflow(function: str) -> float:
        return simulate(write(point.value), function)

    examples = [{"function": function}]
    return Problem(
        workflow=workflow,
        train=examples,
        val=examples,
        guide=guide,
        parameters=[point],
        optimizers=[ZerothOrder(method, lr=lr, queries=queries, batch=batch)],
        budget=Budget(trials=1),
        description=f"the lowest point of the black box {function!r}, ten settings passed as text",
    )
