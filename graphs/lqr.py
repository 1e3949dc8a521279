"""A linear-quadratic regulator whose best gain is known: the two problems that policy gradients are compared on.

A cart is pushed towards the origin for ten moments; the push is minus a gain times position and speed, with noise that
explores. `trace-opt run` trains the gain by the gradient through the recorded moments; `Regulator` and `draw` are what
estimators need, which see returns only.

The expected cost is a sum over where motion comes from, the start in two directions and the noise of each moment, so
twelve examples with one source each, made longer by the root of twelve, have it as their mean exactly.

    trace-opt run graphs/lqr.py
    trace-opt run graphs/lqr.py --set case=noisy

Source of the exact value: the covariance recursion P <- M P M' + sigma^2 B B', M = A - B K'. The best gains are those of
Newton's method on it, for ten moments; an infinite horizon has slightly larger ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch  # noqa: TID253 # a problem about tensors loads it anyway
from torch import Tensor, nn  # noqa: TID253

from trace_opt import Budget, Feedback, Gradient, Parameter, trace
from trace_opt.problem import Problem
from trace_opt.refine.batch import Batch

MOMENTS = 10
EFFORT = 0.1
A = torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
B = torch.tensor([0.125, 0.5], dtype=torch.float64)

Name = Literal["hard", "noisy"]


@dataclass(frozen=True, slots=True)
class Case:
    """One of the two problems.

    Attributes:
        sigma: Standard deviation of the noise in each push.
        start: Gain at the start.
        best: The best gain.
        value: Its expected return.
        threshold: The expected return that counts as solved.
    """

    sigma: float
    start: tuple[float, float]
    best: tuple[float, float]
    value: float
    threshold: float


CASES: dict[str, Case] = {
    "hard": Case(0.3, (0.0, 0.0), (1.2259447439499143, 1.9886959343827584), -5.344953234947844, -6.253),
    "noisy": Case(1.0, (0.5, 0.5), (1.169094008557448, 1.9347263514718238), -10.479266477685545, -10.719470),
}
"""At the start of the hard one returns vary a hundred times as much as they matter; the noisy one explores enough."""

OPTIMUM = {"gain": CASES["hard"].best}
BEST_SCORE = CASES["hard"].value
"""Mean score at the optimum."""


def value(gain: Tensor, sigma: float) -> Tensor:
    """The expected return of a gain, exactly, differentiable in it."""
    motion = A - B[:, None] @ gain[None, :]
    spread = torch.eye(2, dtype=gain.dtype)
    total = gain.new_zeros(())
    for _ in range(MOMENTS):
        total = total - spread.trace() - EFFORT * (gain @ spread @ gain + sigma**2)
        spread = motion @ spread @ motion.T + sigma**2 * torch.outer(B, B)
    return total


class Regulator(nn.Module):
    """A policy over pushes: normal around minus the gain times the state.

    Args:
        case: Its start and its noise.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.sigma = case.sigma
        self.gain = nn.Parameter(torch.tensor(case.start, dtype=torch.float64))

    def log_prob(self, batch: Batch) -> Tensor:
        """Log density of each push."""
        off = (batch.actions["push"] + batch.actions["state"] @ self.gain) / self.sigma
        return -0.5 * off**2 - math.log(self.sigma * math.sqrt(2 * math.pi))


def draw(policy: Regulator, n: int, generator: torch.Generator) -> Batch:
    """N trajectories from standard normal starts."""
    gain = policy.gain.detach()
    state = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    noise = policy.sigma * torch.randn(n, MOMENTS, dtype=torch.float64, generator=generator)
    states, pushes, rewards = [], [], []
    for moment in range(MOMENTS):
        push = noise[:, moment] - state @ gain
        states.append(state)
        pushes.append(push)
        rewards.append(-(state**2).sum(1) - EFFORT * push**2)
        state = state @ A.T + push[:, None] * B
    mask = torch.ones(n, MOMENTS, dtype=torch.bool)
    actions = {"state": torch.stack(states, 1), "push": torch.stack(pushes, 1)}
    return Batch(actions=actions, rewards=torch.stack(rewards, 1), mask=mask, groups=torch.zeros(n, dtype=torch.long))


@trace
def push(state: Tensor, gain: Tensor, noise: float) -> Tensor:
    """The push at a moment: `noise - gain @ state`."""
    return noise - gain @ state


@trace
def move(state: Tensor, push: Tensor) -> Tensor:
    """The next state: `A @ state + B * push`."""
    return A @ state + B * push


@trace
def cost(states: list[Tensor], pushes: list[Tensor]) -> Tensor:
    """What a trajectory costs: squared states, and a tenth of the squared pushes."""
    return (torch.stack(states) ** 2).sum() + EFFORT * (torch.stack(pushes) ** 2).sum()


def guide(output: Tensor, example: dict[str, Any]) -> Feedback:
    """Minus the cost."""
    return Feedback(score=-output.item(), text=f"{example['source']}: costs {output.item():.4g}", loss=output)


def examples_of(case: Case) -> list[dict[str, Any]]:
    """One example for each source of motion."""
    count = 2 + MOMENTS
    long = math.sqrt(count)
    found: list[dict[str, Any]] = []
    for source in range(count):
        start = torch.zeros(2, dtype=torch.float64)
        noise = [0.0] * MOMENTS
        if source < 2:
            start[source] = long
            name = ("starts away from the origin", "starts in motion")[source]
        else:
            noise[source - 2] = long * case.sigma
            name = f"is shaken at moment {source - 2}"
        found.append({"state": start, "noise": noise, "source": name})
    return found


def problem(*, case: Name = "hard", optimizer: str = "adam", lr: float = 0.2, steps: int = 400) -> Problem:
    """The problem.

    Args:
        case: "hard" or "noisy".
        optimizer: Name of a rule in the registry.
        lr: Its learning rate.
        steps: Steps of the one phase.
    """
    chosen = CASES[case]
    gain = Parameter(
        torch.tensor(chosen.start, dtype=torch.float64),
        name="gain",
        description="push for each unit of position, speed",
    )

    def workflow(state: Tensor, noise: list[float]) -> Tensor:
        states: list[Tensor] = []
        pushes: list[Tensor] = []
        for shake in noise:
            states.append(state)
            pushes.append(push(state, gain.value, shake))
            state = move(state, pushes[-1])
        return cost(states, pushes)

    examples = examples_of(chosen)
    return Problem(
        workflow=workflow,
        train=examples,
        val=examples,
        guide=guide,
        parameters=[gain],
        optimizers=[Gradient(optimizer=optimizer, lr=lr, schedule="linear", steps=steps, batch=len(examples))],
        budget=Budget(trials=1),
        description="the gain of a regulator",
    )
