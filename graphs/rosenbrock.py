"""Rosenbrock's valley: a curved, nearly flat floor between steep walls, the oldest test of a numeric optimizer.

Its gradient nearly always points across the valley and hardly along it, so plain gradient descent zigzags. The optimum
is unique in two dimensions. The workflow has no datum, so there is one example and one step is one rollout of it.

    trace-opt run graphs/rosenbrock.py
    trace-opt run graphs/rosenbrock.py --set optimizer=lion --set lr=0.01

Source: H. H. Rosenbrock, "An automatic method for finding the greatest or least value of a function", The Computer
Journal 3(3), 1960; the sum over neighbours is the usual extension to more dimensions.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253 # a problem about tensors loads it anyway
from torch import Tensor  # noqa: TID253

from trace_opt import Budget, Feedback, Gradient, Parameter, trace
from trace_opt.problem import Problem

OPTIMUM: dict[str, Any] = {"point": (1.0, 1.0)}
BEST_SCORE = 0.0
"""Mean score at the optimum."""


@trace
def distance(point: Tensor) -> Tensor:
    """How far each coordinate is from 1, along the valley: `1 - point[:-1]`."""
    return 1 - point[:-1]


@trace
def height(point: Tensor) -> Tensor:
    """How far up the wall each coordinate is: `point[1:] - point[:-1] ** 2`."""
    return point[1:] - point[:-1] ** 2


@trace
def total(along: Tensor, up: Tensor, steepness: float) -> Tensor:
    """The valley's height: `sum(along ** 2 + steepness * up ** 2)`."""
    return (along**2 + steepness * up**2).sum()


def guide(output: Tensor, example: dict[str, Any]) -> Feedback:  # noqa: ARG001 # there is no datum to compare with
    """The height is the loss."""
    value = output.item()
    return Feedback(score=-value, text=f"the height is {value:.6g}, the lowest possible is 0", loss=output)


def problem(
    *, optimizer: str = "adam", lr: float = 1.0, schedule: str = "linear", steps: int = 1000, size: int = 2,
    steepness: float = 100.0,
) -> Problem:  # fmt: skip
    """The problem, started at (-1.2, 1, -1.2, ...).

    Args:
        optimizer: Name of a rule in the registry.
        lr: Its learning rate.
        schedule: How the learning rate falls.
        steps: Steps of the one phase.
        size: Number of coordinates, at least 2; from 4 on there is a second, local optimum.
        steepness: How steep the walls are.
    """
    start = torch.tensor([(-1.2, 1.0)[i % 2] for i in range(size)], dtype=torch.float64)
    point = Parameter(start, name="point", description="where in the valley")

    def workflow() -> Tensor:
        return total(distance(point.value), height(point.value), steepness)

    return Problem(
        workflow=workflow,
        train=[{}],
        val=[{}],
        guide=guide,
        parameters=[point],
        optimizers=[Gradient(optimizer=optimizer, lr=lr, schedule=schedule, steps=steps)],
        budget=Budget(trials=1),
        description="the lowest point of Rosenbrock's curved valley",
    )
