"""An ill-conditioned quadratic: one direction is a thousand times as steep as another, and none lies along an axis.

Rules that scale each coordinate by itself (Adam and its kin) gain nothing from the axes here, as the eigenvectors are
turned by a reflection without random numbers. The optimum is the origin.

    trace-opt run graphs/quadratic.py
    trace-opt run graphs/quadratic.py --set optimizer=lion --set lr=0.03
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253 # a problem about tensors loads it anyway
from torch import Tensor  # noqa: TID253

from trace_opt import Budget, Feedback, Gradient, Parameter, trace
from trace_opt.problem import Problem

OPTIMUM: dict[str, Any] = {"point": (0.0,) * 20}
BEST_SCORE = 0.0
"""Mean score at the optimum."""


@trace
def reflect(point: Tensor) -> Tensor:
    """The point in the coordinates of the eigenvectors: `point - 2 * point.mean()`, a Householder reflection."""
    return point - 2 * point.mean()


@trace
def energy(point: Tensor, curvatures: Tensor) -> Tensor:
    """The quadratic in these coordinates: `0.5 * sum(curvatures * point ** 2)`."""
    return 0.5 * (curvatures * point**2).sum()


def guide(output: Tensor, example: dict[str, Any]) -> Feedback:  # noqa: ARG001 # there is no datum to compare with
    """The energy is the loss."""
    value = output.item()
    return Feedback(score=-value, text=f"the energy is {value:.6g}, the lowest possible is 0", loss=output)


def problem(
    *, optimizer: str = "adam", lr: float = 1.0, schedule: str = "linear", steps: int = 1000, size: int = 20,
    decades: float = 3.0,
) -> Problem:  # fmt: skip
    """The problem, started at (1, ..., 1).

    Args:
        optimizer: Name of a rule in the registry.
        lr: Its learning rate.
        schedule: How the learning rate falls.
        steps: Steps of the one phase.
        size: Number of coordinates.
        decades: Powers of ten between the flattest and the steepest direction.
    """
    curvatures = torch.logspace(-decades, 0, size, dtype=torch.float64)
    point = Parameter(torch.ones(size, dtype=torch.float64), name="point", description="where the energy is taken")

    def workflow() -> Tensor:
        return energy(reflect(point.value), curvatures)

    return Problem(
        workflow=workflow,
        train=[{}],
        val=[{}],
        guide=guide,
        parameters=[point],
        optimizers=[Gradient(optimizer=optimizer, lr=lr, schedule=schedule, steps=steps)],
        budget=Budget(trials=1),
        description=f"the lowest point of a quadratic in {size} dimensions, {10**decades:g} times as steep one way",
    )
