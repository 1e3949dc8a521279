"""GRPO: completions of one prompt are judged against each other.

Sources: Z. Shao et al. 2024, "DeepSeekMath", arXiv 2402.03300, section 4.1; its biases and their remedy, Z. Liu et al. 2025,
arXiv 2503.20783. Dividing by a group's standard deviation weighs hard and easy prompts up, and the mean over a sequence
punishes a long wrong answer less than a short one; the unbiased form does neither, and leaves a trajectory out of its own
baseline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trace_opt.refine.advantages import BaselineName, check_shared
from trace_opt.refine.batch import all_equal, group_totals
from trace_opt.refine.estimators.ascent import Ascent
from trace_opt.refine.estimators.base import Sample, Update, k3

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.refine.batch import Batch, Policy

_SMALL = 1e-4  # added to a group's standard deviation


class GRPO(Ascent):
    """Group-relative policy optimization.

    A group whose returns are all equal says nothing: it is left out before anything is computed of it.

    Args:
        policy: Its weights that require grad are moved.
        lr: Learning rate.
        unbiased: The form whose gradient is that of the expected return.
        iterations: Steps on each sample; from the second on ratios are clipped.
        epsilon: How far a probability's ratio may move before its gradient stops.
        kl: Price of divergence from the reference: `k3` of each step, in the loss.
        optimizer: A name of the numeric registry.
        clip: The longest a gradient may be.
    """

    def __init__(
        self, policy: Policy, *, lr: float, unbiased: bool = False, iterations: int = 1, epsilon: float = 0.2, kl: float = 0.0,
        optimizer: str = "adamw", clip: float | None = 1.0,
    ) -> None:  # fmt: skip
        baseline: BaselineName = "leave-one-out" if unbiased else "none"
        super().__init__(policy, lr=lr, optimizer=optimizer, clip=clip, baseline=baseline, kl=kl)
        if iterations < 1:
            raise ValueError(f"iterations is {iterations!r}; give at least 1")
        if not 0 < epsilon < 1:
            raise ValueError(f"epsilon is {epsilon!r}; give a number between 0 and 1")
        self.unbiased, self.iterations, self.epsilon = unbiased, iterations, epsilon

    def update(self, sample: Sample) -> Update:
        """The steps on one sample."""
        import torch

        batch = sample.batch
        if self.kl and batch.reference is None:
            raise ValueError("kl is set, but the batch has no reference; give Batch(reference=...), or kl=0")
        advantages = self.advantages(batch)
        active = advantages != 0
        said = self._said(batch, advantages[:, None], 0.0)
        if not bool(active.any()):
            self.updates += 1
            return said
        chosen, advantages = batch.rows(active), advantages[active]
        before: Tensor | None = None
        if self.iterations > 1:
            with torch.no_grad():
                before = self.policy.log_prob(chosen).detach()
        norms: list[float] = []
        for _ in range(self.iterations):
            gradient = self._gradient_of(chosen, advantages, before, len(batch))
            norms.append(self._climb(gradient))
        self.updates += 1
        return Update(said.mean, max(norms), said.used, said.kl)

    def advantages(self, batch: Batch) -> Tensor:
        """The advantage of each trajectory, shape `[n]`; exactly 0 in groups whose returns are all equal.

        Raises:
            ValueError: a group holds one trajectory.
        """
        returns = batch.returns
        if self.unbiased:
            return returns - self.baseline(returns[:, None], batch)[:, 0]
        sums, sizes = group_totals(returns, batch.groups)
        check_shared(sizes, batch.groups)
        centred = returns - sums / sizes
        squares, _ = group_totals(centred**2, batch.groups)
        scaled = centred / ((squares / (sizes - 1)).sqrt() + _SMALL)
        return scaled.masked_fill(all_equal(returns, batch.groups), 0.0)

    def _gradient_of(self, batch: Batch, advantages: Tensor, before: Tensor | None, n: int) -> list[Tensor]:
        import torch

        said = self.policy.log_prob(batch)
        ratio = (said - (said.detach() if before is None else before)).exp()
        bounded = ratio.clamp(1 - self.epsilon, 1 + self.epsilon)
        gains = torch.minimum(ratio * advantages[:, None], bounded * advantages[:, None])
        if self.kl and batch.reference is not None:
            gains = gains - self.kl * k3(said, batch.reference)
        gains = gains * batch.mask
        if self.unbiased:
            return self._grad(gains.sum() / (n * batch.mask.shape[1]))
        return self._grad((gains.sum(1) / batch.mask.sum(1).clamp(min=1)).sum() / n)
