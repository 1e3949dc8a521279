"""A bandit of four moments, four arms each, played without looking: exact values for estimators that see returns only.

Three moments have an arm that misleads, and all four best arms together earn one more, so the best sequence is worth 4.8
and a random one 1.93. `trace-opt run` moves the four choices by a score-function estimator; `Player` and `draw` are what
policy gradients need.

    trace-opt run graphs/bandit.py
    trace-opt run graphs/bandit.py --set estimator=enumerate
"""

from __future__ import annotations

from typing import Any, Literal

import torch  # noqa: TID253 # a problem about tensors loads it anyway
from torch import Tensor, nn  # noqa: TID253

from trace_opt import Budget, Feedback, Gradient, Parameter, trace
from trace_opt.problem import Problem
from trace_opt.refine.batch import Batch

MEANS = ((0.1, 0.4, 0.9, 0.3), (0.8, 0.2, 0.1, 0.5), (0.3, 0.3, 0.2, 1.0), (0.6, 1.1, 0.5, 0.4))
"""What an arm earns on average, by moment."""
BEST = (2, 0, 3, 1)
BONUS = 1.0
NOISE = 0.5

OPTIMUM = {"first": 2, "second": 0, "third": 3, "fourth": 1}
BEST_SCORE = 4.8
"""Mean score at the optimum."""
THRESHOLD = 4.5129
"""The expected return that counts as solved: a tenth of the way from the start is left."""


def value(logits: Tensor) -> Tensor:
    """The expected return of a policy that draws every moment's arm by softmax, exactly, differentiable in its logits.

    Args:
        logits: Shape `[4, 4]`.
    """
    p = logits.softmax(1)
    means = torch.tensor(MEANS, dtype=logits.dtype)
    return (p * means).sum() + BONUS * p[range(4), list(BEST)].prod()


class Player(nn.Module):
    """A policy with logits for each moment and arm."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))

    def log_prob(self, batch: Batch) -> Tensor:
        """Log probability of each moment's arm."""
        arms = batch.actions["arm"]
        return self.logits.log_softmax(1).expand(len(arms), 4, 4).gather(2, arms[..., None])[..., 0]


def draw(policy: Player, n: int, generator: torch.Generator) -> Batch:
    """N games with noisy rewards."""
    p = policy.logits.detach().softmax(1)
    arms = p.multinomial(n, replacement=True, generator=generator).T.contiguous()
    means = torch.tensor(MEANS, dtype=torch.float64)[range(4), arms]
    rewards = means + NOISE * torch.randn(n, 4, dtype=torch.float64, generator=generator)
    rewards[:, 3] += BONUS * (arms == torch.tensor(BEST)).all(1)
    return Batch(
        actions={"arm": arms}, rewards=rewards, mask=torch.ones_like(arms, dtype=torch.bool),
        groups=torch.zeros(n, dtype=torch.long),
    )  # fmt: skip


@trace
def earn(moment: int, arm: int) -> float:
    """What an arm earns at a moment, on average."""
    return MEANS[moment][arm]


@trace
def total(earned: list[float], arms: list[int]) -> float:
    """All that was earned, and 1 more if every arm was its moment's best."""
    return sum(earned) + BONUS * (tuple(arms) == BEST)


def guide(output: float, example: dict[str, Any]) -> Feedback:  # noqa: ARG001 # one game is as any other
    """The earnings."""
    return Feedback(score=output, text=f"earned {output:.2f}")


def problem(
    *, estimator: Literal["reinforce", "loo", "enumerate"] = "loo", lr: float = 0.1, steps: int = 200
) -> Problem:
    """The problem, with a wrong arm at every moment.

    Args:
        estimator: How the logits of the choices get their gradient.
        lr: Learning rate.
        steps: Steps of the one phase.
    """
    arms = [
        Parameter(start, name=name, description=f"arm of the {name} moment", choices=(0, 1, 2, 3))
        for start, name in zip((0, 1, 0, 2), OPTIMUM, strict=True)
    ]

    def workflow() -> float:
        chosen = [arm.value for arm in arms]
        return total([earn(moment, arm) for moment, arm in enumerate(chosen)], chosen)

    return Problem(
        workflow=workflow,
        train=[{}],
        val=[{}],
        guide=guide,
        parameters=arms,
        optimizers=[Gradient(optimizer="adam", lr=lr, schedule="linear", steps=steps, estimator=estimator, samples=8)],
        budget=Budget(trials=1),
        description="four arms, one for each moment",
    )
