"""Logistic regression on noisy labels, trained by small batches: what learning-rate schedules are for.

One label in seven is wrong, so the gradient of a batch never vanishes and a constant learning rate hovers above the
optimum. An example is a batch of rows, not a row: a step is then one rollout, and the whole batch one matrix product.
The optimum of the mean loss on all rows is what Newton's method finds (`optimum`).

    trace-opt run graphs/logistic.py
    trace-opt run graphs/logistic.py --set schedule=constant
    trace-opt run graphs/logistic.py --set batch=2000 --set steps=500
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch  # noqa: TID253 # a problem about tensors loads it anyway
from torch import Tensor  # noqa: TID253

from trace_opt import Budget, Feedback, Gradient, Parameter, trace
from trace_opt.problem import Problem

ROWS, SIZE, FLIPPED = 2000, 20, 0.15


@lru_cache(maxsize=8)
def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    """All rows and their labels, 0 or 1; the columns' scales fall from 1 to 0.1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = normal(ROWS, SIZE) * torch.logspace(0, -1, SIZE, dtype=torch.float64)
    labels = rows @ (2 * normal(SIZE)) > 0
    flipped = torch.rand(ROWS, generator=generator, dtype=torch.float64) < FLIPPED
    return rows, (labels ^ flipped).to(torch.float64)


@lru_cache(maxsize=8)
def optimum(seed: int = 0) -> tuple[Tensor, float]:
    """The best weights for all rows, and their mean loss."""
    rows, labels = data(seed)
    weights = torch.zeros(SIZE, dtype=torch.float64)
    for _ in range(30):
        chance = torch.sigmoid(rows @ weights)
        curvature = rows.T @ (rows * (chance * (1 - chance))[:, None])
        weights = weights - torch.linalg.solve(curvature, rows.T @ (chance - labels))
    return weights, mean_loss(rows @ weights, labels).item()


@trace
def logits(rows: Tensor, weights: Tensor) -> Tensor:
    """The log-odds of label 1 for each row: `rows @ weights`."""
    return rows @ weights


def mean_loss(odds: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of labels under log-odds."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    return binary_cross_entropy_with_logits(odds, labels)


def guide(output: Tensor, example: dict[str, Any]) -> Feedback:
    """The mean negative log-likelihood, and how many labels are right."""
    loss = mean_loss(output, example["labels"])
    value = loss.item()
    right = ((output > 0) == (example["labels"] > 0.5)).double().mean().item()
    return Feedback(
        score=-value, text=f"{right:.0%} of the labels are right, the negative log-likelihood is {value:.4g}", loss=loss
    )


def problem(
    *, optimizer: str = "adam", lr: float = 0.03, schedule: str = "linear", steps: int = 2000, batch: int = 4,
    seed: int = 0,
) -> Problem:  # fmt: skip
    """The problem, started at 0, where every label has a chance of one half.

    Args:
        optimizer: Name of a rule in the registry.
        lr: Its learning rate.
        schedule: How the learning rate falls.
        steps: Steps of the one phase; 500 are an epoch of batches of 4.
        batch: Rows in an example; 2000 is all of them.
        seed: Decides the data.
    """
    rows, labels = data(seed)
    parts = zip(rows.split(batch), labels.split(batch), strict=True)
    weights = Parameter(torch.zeros(SIZE, dtype=torch.float64), name="weights", description="weight of each column")

    def workflow(rows: Tensor) -> Tensor:
        return logits(rows, weights.value)

    return Problem(
        workflow=workflow,
        train=[{"rows": some, "labels": theirs} for some, theirs in parts],
        val=[{"rows": rows, "labels": labels}],  # the loss that is to be low is that on all rows
        guide=guide,
        parameters=[weights],
        optimizers=[Gradient(optimizer=optimizer, lr=lr, schedule=schedule, steps=steps, batch=1)],
        budget=Budget(trials=1),
        seed=seed,
        description="logistic regression where one label in seven is wrong",
    )
