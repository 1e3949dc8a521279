"""The weight decay of a ridge regression, chosen by gradient descent on held-out error through the fit itself.

The fit is a solver like any other inside an op: `implicit` says what it minimises, and the gradient of the held-out error in
the logarithm of the decay comes from one linear solve at its solution. Too little decay fits the noise of 16 rows in 12
columns, too much shrinks the signal.

    trace-opt run graphs/ridge.py
    trace-opt run graphs/ridge.py --set optimizer=sgd --set lr=3

Source: the gradient is that of M. Blondel et al., "Efficient and modular implicit differentiation", arXiv 2105.15183. The
optimum was found by bisection on it.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253 # a problem about tensors loads it anyway
from torch import Tensor  # noqa: TID253

from trace_opt import Budget, Feedback, Gradient, Parameter, trace
from trace_opt.optim.numeric.implicit import implicit
from trace_opt.problem import Problem

OPTIMUM = {"log_decay": 0.5696461090076441}
BEST_SCORE = -0.2540173823154576
"""Mean score at the optimum."""

COLUMNS = 12


def data(first: int, count: int) -> dict[str, Tensor]:
    """Rows `first` and following: a linear signal in four of the columns, and noise without random numbers."""
    i = torch.arange(first, first + count, dtype=torch.float64)
    j = torch.arange(1, COLUMNS + 1, dtype=torch.float64)
    rows = torch.cos(1.7 * i[:, None] * j + 0.3 * j**2)
    weights = torch.zeros(COLUMNS, dtype=torch.float64)
    weights[:4] = torch.tensor([1.0, -0.8, 0.6, -0.4], dtype=torch.float64)
    return {"rows": rows, "wanted": rows @ weights + 0.6 * torch.sin(11.0 * i**2)}


def inner(weights: Tensor, rows: Tensor, wanted: Tensor, log_decay: Tensor) -> Tensor:
    """What a fit minimises: half the squared error, and the decay times half the squared weights."""
    return 0.5 * ((rows @ weights - wanted) ** 2).sum() + 0.5 * log_decay.exp() * (weights**2).sum()


@trace
@implicit(inner)
def fit(rows: Tensor, wanted: Tensor, log_decay: Tensor) -> Tensor:
    """The weights of a ridge regression: `solve(rows.T @ rows + exp(log_decay) * I, rows.T @ wanted)`."""
    eye = torch.eye(rows.shape[1], dtype=rows.dtype)
    return torch.linalg.solve(rows.T @ rows + log_decay.exp() * eye, rows.T @ wanted)


@trace
def predict(rows: Tensor, weights: Tensor) -> Tensor:
    """What the weights give for each row: `rows @ weights`."""
    return rows @ weights


def guide(output: Tensor, example: dict[str, Any]) -> Feedback:
    """The mean square of the differences."""
    loss = ((output - example["wanted"]) ** 2).mean()
    value = loss.item()
    return Feedback(score=-value, text=f"the mean square error on held-out rows is {value:.6g}", loss=loss)


def problem(
    *, optimizer: str = "adam", lr: float = 0.2, schedule: str = "linear", steps: int = 150, start: float = -6.0
) -> Problem:
    """The problem.

    Args:
        optimizer: Name of a rule in the registry.
        lr: Its learning rate.
        schedule: How the learning rate falls.
        steps: Steps of the one phase.
        start: The logarithm of the decay at the start.
    """
    log_decay = Parameter(
        torch.tensor(start, dtype=torch.float64), name="log_decay", description="logarithm of the weight decay"
    )
    fitted = data(0, 16)

    def workflow(rows: Tensor) -> Tensor:
        return predict(rows, fit(fitted["rows"], fitted["wanted"], log_decay.value))

    held_out = [data(100, 40)]
    return Problem(
        workflow=workflow,
        train=held_out,
        val=held_out,
        guide=guide,
        parameters=[log_decay],
        optimizers=[Gradient(optimizer=optimizer, lr=lr, schedule=schedule, steps=steps, total_steps=steps)],
        budget=Budget(trials=1),
        description="the weight decay at which a ridge regression predicts held-out rows best",
    )
