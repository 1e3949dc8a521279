"""Two quadratics in conflict: what is good for one is bad for the other on the segment between their optima.

No point is best for both. Every point of the segment is Pareto-optimal, and which one is reached is the work of the
rule that combines the two gradients: MGDA follows the shorter one and stops where the segment is first met, UPGrad
projects conflicts away, the mean ends in the middle.

    trace-opt run graphs/pareto.py
    trace-opt run graphs/pareto.py --set combine=upgrad

Sources: J.-A. Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization", Comptes Rendus
Mathématique 350, 2012; P. Quinton and V. Rey, "Jacobian descent for multi-objective optimization", arXiv 2406.16232.
"""

from __future__ import annotations

from typing import Any, Literal

import torch  # noqa: TID253 # a problem about tensors loads it anyway
from torch import Tensor  # noqa: TID253

from trace_opt import Budget, Feedback, Gradient, Parameter, trace
from trace_opt.problem import Problem

FIRST, SECOND = (1.0, 0.0), (-1.0, 0.5)
"""Where each of the two losses is zero."""

OPTIMUM: dict[str, Any] = {"point": (0.0, 0.25)}
BEST_SCORE = -1.0625
"""Best mean of both scores; only `combine=mean` seeks it, the others end elsewhere on the segment."""


def place(point: tuple[float, float]) -> tuple[float, float]:
    """Where a point is seen from the segment: its share of the way from the first optimum, and its distance."""
    x, y = point[0] - FIRST[0], point[1] - FIRST[1]
    along, across = SECOND[0] - FIRST[0], SECOND[1] - FIRST[1]
    share = min(1.0, max(0.0, (x * along + y * across) / (along**2 + across**2)))
    return share, ((x - share * along) ** 2 + (y - share * across) ** 2) ** 0.5


@trace
def squared_distance(point: Tensor, centre: Tensor) -> Tensor:
    """Square of the distance from one optimum: `sum((point - centre) ** 2)`."""
    return ((point - centre) ** 2).sum()


def guide(output: tuple[Tensor, Tensor], example: dict[str, Any]) -> Feedback:  # noqa: ARG001 # there is no datum
    """Both distances are losses; the score that decides is their mean."""
    first, second = output
    one, two = first.item(), second.item()
    return Feedback(
        score={"mean": -(one + two) / 2, "first": -one, "second": -two},
        text=f"the squared distances are {one:.6g} from the first optimum and {two:.6g} from the second",
        loss={"first": first, "second": second},
    )


def problem(
    *, combine: Literal["mgda", "upgrad", "mean"] = "mgda", optimizer: str = "sgd", lr: float = 0.1,
    schedule: str = "constant", steps: int = 500,
) -> Problem:  # fmt: skip
    """The problem, started at (2, 3), off the segment.

    Args:
        combine: How the two gradients become one step.
        optimizer: Name of a rule in the registry.
        lr: Its learning rate.
        schedule: How the learning rate falls.
        steps: Steps of the one phase.
    """
    point = Parameter(
        torch.tensor([2.0, 3.0], dtype=torch.float64), name="point", description="what both want elsewhere"
    )
    first, second = torch.tensor(FIRST, dtype=torch.float64), torch.tensor(SECOND, dtype=torch.float64)

    def workflow() -> tuple[Tensor, Tensor]:
        return squared_distance(point.value, first), squared_distance(point.value, second)

    return Problem(
        workflow=workflow,
        train=[{}],
        val=[{}],
        guide=guide,
        parameters=[point],
        optimizers=[Gradient(optimizer=optimizer, lr=lr, schedule=schedule, steps=steps, combine=combine)],
        budget=Budget(trials=1),
        description=f"a point between two optima, the two gradients combined by {combine}",
    )
