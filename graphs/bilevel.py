"""Two levels, the lower one with a constraint: the toy of LV-HBA, whose optimum is known in closed form.

For given x the lower level minimises `1/2 y1^2 - x y1 + y2` subject to `x + y1 + y2 = 0` (summed over the coordinates). It
answers with y1 = x + 1 and y2 = -2x - 1, so the upper level's `1/2 (x - y2)^2 + 1/2 (y1 - 1)^2` is
`1/2 (3x + 1)^2 + 1/2 x^2`, least at x = -0.3 with y = (0.7, -0.4). Neither level's loss alone leads there.

    trace-opt run graphs/bilevel.py
    trace-opt run graphs/bilevel.py --set size=10

Source: W. Yao et al., "Constrained bi-level optimization: proximal Lagrangian value function approach and Hessian-free
algorithm", ICLR 2024, arXiv 2401.16164, section 5.1. The constraint is divided by the root of the number of coordinates, so
that one step size fits any number of them.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253 # a problem about tensors loads it anyway
from torch import Tensor  # noqa: TID253

from trace_opt import Budget, Feedback, Parameter, trace
from trace_opt.optim.numeric.lv_hba import LVHBA
from trace_opt.problem import Problem

OPTIMUM = {"x": (-0.3,), "y": ((0.7,), (-0.4,))}
BEST_SCORE = -0.05
"""Mean score at the optimum."""


@trace
def cost(x: Tensor, y: Tensor) -> Tensor:
    """What the upper level minimises: `sum(0.5 * (x - y[1]) ** 2 + 0.5 * (y[0] - 1) ** 2)`."""
    return (0.5 * (x - y[1]) ** 2 + 0.5 * (y[0] - 1) ** 2).sum()


@trace
def energy(x: Tensor, y: Tensor) -> Tensor:
    """What the lower level minimises: `sum(0.5 * y[0] ** 2 - x * y[0] + y[1])`."""
    return (0.5 * y[0] ** 2 - x * y[0] + y[1]).sum()


@trace
def imbalance(x: Tensor, y: Tensor) -> Tensor:
    """What the lower level has to keep at zero: `sum(x + y[0] + y[1]) / sqrt(size)`."""
    return (x + y[0] + y[1]).sum() / x.numel() ** 0.5


@trace
def regret(x: Tensor, y: Tensor) -> float:
    """The upper level's mean cost once the lower level has answered x, and how far y is from that answer.

    The answer is y[0] = x + 1 and the y[1] nearest to the given one that keeps the balance.
    """
    first = x + 1
    answer = torch.stack([first, y[1] - (x + first + y[1]).mean()])
    away = torch.linalg.vector_norm(y - answer) / x.numel() ** 0.5
    mean = (0.5 * (x - answer[1]) ** 2 + 0.5 * (answer[0] - 1) ** 2).mean()
    return (mean + away).item()


def guide(output: dict[str, Any], example: dict[str, Any]) -> Feedback:  # noqa: ARG001 # there is no datum to compare with
    """The losses of both levels and the constraint; the score counts what x is worth, and y as its answer."""
    losses = {name: output[name] for name in ("upper", "lower", "imbalance")}
    return Feedback(
        score=-output["regret"], text=f"the cost of x with its answer is {output['regret']:.6g}", loss=losses
    )


def problem(*, size: int = 1, steps: int = 1000, phases: int = 1) -> Problem:
    """The problem, started at 10 everywhere.

    Args:
        size: Number of coordinates; each has the same optimum.
        steps: Steps of a phase.
        phases: Phases at most; each goes on where the one before ended.
    """
    x = Parameter(torch.full((size,), 10.0, dtype=torch.float64), name="x", description="what the upper level sets")
    y = Parameter(
        torch.full((2, size), 10.0, dtype=torch.float64), name="y", description="what the lower level answers"
    )

    def workflow() -> dict[str, Any]:
        at = x.value, y.value
        return {"upper": cost(*at), "lower": energy(*at), "imbalance": imbalance(*at), "regret": regret(*at)}

    return Problem(
        workflow=workflow,
        train=[{}],
        val=[{}],
        guide=guide,
        parameters=[x, y],
        optimizers=[LVHBA(["x"], ["y"], equalities=["imbalance"], steps=steps)],
        budget=Budget(trials=phases),
        description="an upper level whose cost depends on how a constrained lower level answers",
    )
