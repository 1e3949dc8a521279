"""PPO: several steps on one sample, each probability held near what it was when the sample was drawn.

Sources: J. Schulman et al. 2017, arXiv 1707.06347, equation (7); the price of divergence adapts to a target as in D. M.
Ziegler et al. 2019, arXiv 1909.08593, section 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_opt.refine.estimators.ascent import Ascent
from trace_opt.refine.estimators.base import Sample, Update, divergence

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.refine.batch import Batch, Policy


@dataclass(frozen=True, slots=True)
class AdaptiveKL:
    """A price of divergence that is raised while the policy is farther from the reference than wanted, and lowered else.

    Attributes:
        target: Wanted divergence of a trajectory, in nats.
        horizon: Trajectories over which the price may change by a factor of about e^0.2.
    """

    target: float = 6.0
    horizon: int = 10_000

    def __post_init__(self) -> None:
        if not self.target > 0 or self.horizon < 1:
            raise ValueError(f"{self!r} makes no sense; give a target above 0 and a horizon of at least 1")

    def __call__(self, price: float, seen: float, trajectories: int) -> float:
        """The next price.

        Args:
            price: The present one.
            seen: Divergence of a trajectory in the last sample, in nats.
            trajectories: How many were in it.
        """
        error = min(max(seen / self.target - 1, -0.2), 0.2)
        return price * (1 + error * trajectories / self.horizon)


class PPO(Ascent):
    """Proximal policy optimization with the clipped surrogate, a baseline in the place of a critic.

    Args:
        policy: Its weights that require grad are moved.
        lr: Learning rate.
        epochs: Passes over each sample.
        minibatch: Trajectories a step; None takes the whole sample at once.
        epsilon: How far a probability's ratio may move before its gradient stops.
        adaptive: How the price `kl` changes; None keeps it.
        whiten: Whether the advantages of a sample are brought to mean 0 and variance 1.
        optimizer: A name of the numeric registry.
        clip: The longest a gradient may be.
        **options: Those of `Estimator`; `kl` is the first price of divergence.
    """

    def __init__(
        self, policy: Policy, *, lr: float, epochs: int = 4, minibatch: int | None = None, epsilon: float = 0.2,
        adaptive: AdaptiveKL | None = None, whiten: bool = True, optimizer: str = "adamw", clip: float | None = 1.0,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(policy, lr=lr, optimizer=optimizer, clip=clip, **options)
        if epochs < 1 or (minibatch is not None and minibatch < 1):
            raise ValueError(f"epochs={epochs!r}, minibatch={minibatch!r} make no step; give at least 1 of each")
        if not 0 < epsilon < 1:
            raise ValueError(f"epsilon is {epsilon!r}; give a number between 0 and 1")
        self.epochs, self.minibatch, self.epsilon = epochs, minibatch, epsilon
        self.adaptive, self.whiten = adaptive, whiten

    def update(self, sample: Sample) -> Update:
        """The epochs on one sample."""
        import torch

        batch = sample.batch
        advantages, returns = self._advantages(batch)
        used = advantages
        if self.whiten:
            advantages = _whitened(advantages, batch.mask)
        with torch.no_grad():
            # by the same pass as later ones: a sampler's own probabilities are rounded otherwise, and the ratio starts off 1
            before = self.policy.log_prob(batch).detach()
        norms: list[float] = []
        for epoch in range(self.epochs):
            for rows in self._minibatches(len(batch), epoch):
                gradient = self._clipped(batch.rows(rows), advantages[rows], before[rows])
                norms.append(self._climb(gradient))
        self.baseline.observe(returns, batch)
        seen = divergence(batch)
        if self.adaptive is not None and seen is not None:
            steps = float(batch.mask.sum()) / len(batch)
            self.kl = self.adaptive(self.kl, seen * steps, len(batch))
        self.updates += 1
        return self._said(batch, used, max(norms))

    def _clipped(self, batch: Batch, advantages: Tensor, before: Tensor) -> list[Tensor]:
        import torch

        ratio = (self.policy.log_prob(batch) - before).exp()
        bounded = ratio.clamp(1 - self.epsilon, 1 + self.epsilon)
        gains = torch.minimum(ratio * advantages, bounded * advantages) * batch.mask
        return self._grad(gains.sum() / len(batch))

    def _minibatches(self, n: int, epoch: int) -> list[Tensor]:
        """Indices, shuffled by the number of the update and the epoch alone."""
        import torch

        generator = torch.Generator().manual_seed(self.updates * self.epochs + epoch)
        order = torch.randperm(n, generator=generator)
        size = self.minibatch or n
        return [order[begin : begin + size] for begin in range(0, n, size)]

    def state_dict(self) -> dict[str, Any]:
        """With the price of divergence."""
        return {**super().state_dict(), "kl": self.kl}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, bit for bit."""
        super().load_state_dict(state)
        self.kl = state["kl"]


def _whitened(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages of mean 0 and variance 1 over all steps there are."""
    inside = advantages[mask]
    spread = inside.std() if len(inside) > 1 else inside.new_ones(())
    return (advantages - inside.mean()) / (spread + 1e-8) * mask
