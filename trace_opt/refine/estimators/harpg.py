"""HARPG and N-HARPG: momentum whose past is carried along by curvature measured between the last two iterates.

The change of the gradient from one iterate to the next is the mean Hessian along the step, times the step. A second
trajectory, from a random point between them, gives an unbiased estimate of it by one Hessian-vector product.

Source: I. Fatkhullin, A. Barakat, A. Kireeva, N. He, arXiv 2302.01734, algorithm 2.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trace_opt.refine.estimators.base import Draw, Sample, Update, moved
from trace_opt.refine.estimators.momentum import Momentum
from trace_opt.refine.estimators.schedules import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.refine.batch import Batch, Policy


class HARPG(Momentum):
    """Hessian-aided recursive policy gradient.

    It differentiates twice, which fused attention kernels cannot: load a language model with eager attention.

    Args:
        policy: Its weights that require grad are moved.
        lr: Learning rate; where steps are normalised (N-HARPG) the length of the first.
        normalised: Whether steps have the learning rate's length whatever the gradient's.
        schedule: How the learning rate falls; left out, the paper's: "inverse" normalised, "sqrt-inverse" else.
        seed: Of the points between iterates.
        **options: Those of `Estimator`; a leave-one-out baseline is within each of the two samples.
    """

    draws = 2

    def __init__(
        self, policy: Policy, *, lr: float, normalised: bool = True, schedule: Schedule | None = None, seed: int = 0,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(policy, lr=lr, schedule=schedule or ("inverse" if normalised else "sqrt-inverse"), **options)
        self.normalised = normalised
        self._rng = random.Random(seed)  # noqa: S311 # no secret

    def sample(self, draw: Draw) -> Sample:
        """Draw at the iterate and, but for the first time, at a random point between it and the one before."""
        if self._last is None:
            return Sample(draw())
        share = self._rng.random()
        with moved(self.weights, [step * (share - 1) for step in self._last]):
            between = draw()
        return Sample(draw(), between, share)

    def update(self, sample: Sample) -> Update:
        """Carry the direction along, average the gradient in, and step."""
        advantages, returns = self._advantages(sample.batch)
        gradient = self._gradient(sample.batch, advantages)
        if self._direction is not None and self._last is not None and sample.between is not None:
            eta = 2 / (self.updates + 2)
            with moved(self.weights, [step * (sample.share - 1) for step in self._last]):
                change = self.hessian_vector(sample.between, self._last)
            gradient = [
                (1 - eta) * (old + bent) + eta * new
                for old, bent, new in zip(self._direction, change, gradient, strict=True)
            ]
        norm = self._advance(gradient, normalised=self.normalised)
        if sample.between is not None:
            self.baseline.observe(self._advantages(sample.between)[1], sample.between)
        self.baseline.observe(returns, sample.batch)
        return self._said(sample.batch, advantages, norm)

    def hessian_vector(self, batch: Batch, vector: list[Tensor]) -> list[Tensor]:
        """An unbiased estimate of the Hessian of the expected return at the present weights, times a vector.

        For each trajectory grad Phi (grad log p . u) + grad(grad Phi . u): sampling depends on the weights too, which is
        what the first term says; leaving it out gives an estimate that is wrong in sign and depends on the baseline.

        Args:
            batch: Sampled at the present weights.
            vector: u, one tensor for each of the weights.

        Returns:
            One tensor for each of the weights, the mean over the batch.
        """
        import torch

        advantages, _ = self._advantages(batch)
        # a trajectory's log probability enters scaled by 1; differentiating by that scale gives grad log p . u of each
        scale = advantages.new_ones(len(batch), requires_grad=True)
        log_probs = self.policy.log_prob(batch) * batch.mask
        phi = (advantages * log_probs).sum(1)
        score = self._grad((scale * log_probs.sum(1)).sum(), create_graph=True)
        along: Any = torch.autograd.grad(
            _dot(score, vector), scale, retain_graph=True, materialize_grads=True, allow_unused=True
        )[0]
        gradient = self._grad(phi.mean(), create_graph=True)
        whole = (phi * along.detach()).mean() + _dot(gradient, vector)
        return [found.detach() for found in self._grad(whole)]

    def state_dict(self) -> dict[str, Any]:
        """With the random points' state."""
        version, words, gauss = self._rng.getstate()
        return {**super().state_dict(), "rng": [version, list(words), gauss]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, bit for bit."""
        super().load_state_dict(state)
        version, words, gauss = state["rng"]
        self._rng.setstate((version, tuple(words), gauss))


def _dot(left: list[Tensor], right: list[Tensor]) -> Tensor:
    total = (left[0] * right[0]).sum()
    for a, b in zip(left[1:], right[1:], strict=True):
        total = total + (a * b).sum()
    return total
