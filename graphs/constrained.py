"""Least squares inside a set: every entry at most 1 (`box`), or the l2 or the l1 norm at most 1.

The unconstrained optimum lies outside each of the sets. Lion-K keeps the iterate in a set without ever projecting, by
weight decay and the choice of one convex function; that holds only while the learning rate falls to zero, and cosine
decay, which ends quadratically, leaves the smallest error. With another rule, `Gradient` projects after each step.

    trace-opt run graphs/constrained.py --set constraint=l1
    trace-opt run graphs/constrained.py --set constraint=l2 --set optimizer=sgd --set lr=1

Source: L. Chen et al., "Lion secretly solves constrained optimization: as Lyapunov predicts", arXiv 2310.05898.
The optima are those of 40,000 steps of projected gradient descent.
"""

from __future__ import annotations

from typing import Any, Literal

import torch  # noqa: TID253 # a problem about tensors loads it anyway
from torch import Tensor  # noqa: TID253

from trace_opt import Ball, Box, Budget, Feedback, Gradient, Parameter, trace
from trace_opt.core.constraint import Constraint
from trace_opt.problem import Problem

OPTIMA = {
    "box": (1, -1, 0.9771563277, 0.4758807598, -0.4157411961, 0.3068343678, 0.0709190597, -0.0373587919),
    "l2": (
        0.7014593376, -0.564362305, 0.3594583975, 0.1518602286, -0.1557468979, 0.100758577, 0.029526657, -0.0435535003,
    ),
    "l1": (0.6859001718, -0.3140998282, 0, 0, 0, 0, 0, 0),
}  # fmt: skip
BEST_SCORES = {"box": -0.316470381913235, "l2": -0.8052070972581039, "l1": -1.1778180427734257}
OPTIMUM: dict[str, Any] = {"weights": OPTIMA["box"]}
BEST_SCORE = BEST_SCORES["box"]
"""Mean score at the optimum."""

SETS: dict[str, Constraint] = {"box": Box(-1.0, 1.0), "l2": Ball(1.0, 2), "l1": Ball(1.0, 1)}


@trace
def predict(rows: Tensor, weights: Tensor) -> Tensor:
    """What the weights give for each row: `rows @ weights`."""
    return rows @ weights


def guide(output: Tensor, example: dict[str, Any]) -> Feedback:
    """Half the mean square of the differences."""
    loss = 0.5 * ((output - example["wanted"]) ** 2).mean()
    value = loss.item()
    return Feedback(score=-value, text=f"half the mean square error is {value:.6g}", loss=loss)


def problem(
    *, constraint: Literal["box", "l2", "l1"] = "box", optimizer: str = "lion-k", lr: float = 0.1,
    schedule: str = "cosine", steps: int = 4000,
) -> Problem:  # fmt: skip
    """The problem, started at 0, which every set holds.

    Args:
        constraint: Which set.
        optimizer: Name of a rule in the registry.
        lr: Its learning rate.
        schedule: How the learning rate falls.
        steps: Steps of the one phase.
    """
    i = torch.arange(1, 31, dtype=torch.float64)[:, None]
    j = torch.arange(1, 9, dtype=torch.float64)[None]
    rows = torch.cos(i * j)
    wanted = rows @ torch.tensor([2, -1.5, 1, 0.5, -0.5, 0.3, 0, 0], dtype=torch.float64)
    weights = Parameter(
        torch.zeros(8, dtype=torch.float64), name="weights", description="weight of each column",
        constraint=SETS[constraint],
    )  # fmt: skip

    def workflow(rows: Tensor) -> Tensor:
        return predict(rows, weights.value)

    options: dict[str, Any] = {"constraint": constraint, "weight_decay": 1.0} if optimizer == "lion-k" else {}
    return Problem(
        workflow=workflow,
        train=[{"rows": rows, "wanted": wanted}],
        val=[{"rows": rows, "wanted": wanted}],
        guide=guide,
        parameters=[weights],
        optimizers=[Gradient(optimizer=optimizer, lr=lr, schedule=schedule, steps=steps, options=options)],
        budget=Budget(trials=1),
        description=f"least squares with weights in the {constraint} set",
    )
