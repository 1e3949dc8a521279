"""Batches that grow as gradients get small against their noise.

Far from an optimum a few examples tell the direction; near it their gradients disagree more than they agree. A test on
the gradients of the single examples of a batch says how many would be needed for the mean to be trusted, so early steps
stay cheap and no batch size has to be tuned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class BatchGrowth:
    """How large the next batch is to be (AdAdaGrad).

    Args:
        start: Size of the first batch; at least 2, since one gradient has no variance.
        most: Size that is never exceeded.
        test: "norm": the variance of the gradients against the squared norm of their mean. "inner": the variance of
            their inner products with it only. "orthogonal": that, and the variance across it; the larger counts.
        eta: How large the noise may be against the mean; smaller means larger batches.
        every: Test at every so many steps.

    Raises:
        ValueError: a number makes no sense.

    Source: Lau, Liu and Kolar, "AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods", arXiv 2402.11215;
    tests of Bollapragada, Byrd and Nocedal, arXiv 1710.11258. Inner products are taken over the whole gradient: taken
    tensor by tensor, as published code does, their variances lose the terms between tensors.
    """

    start: int
    most: int
    test: Literal["norm", "inner", "orthogonal"] = "norm"
    eta: float = 0.1
    every: int = 1

    def __post_init__(self) -> None:
        if not 2 <= self.start <= self.most:
            raise ValueError(f"BatchGrowth got start={self.start!r}, most={self.most!r}; give 2 <= start <= most")
        if self.test not in ("norm", "inner", "orthogonal"):
            raise ValueError(f"BatchGrowth got test={self.test!r}; choose 'norm', 'inner' or 'orthogonal'")
        if not (0 < self.eta < math.inf and self.every >= 1):
            raise ValueError(f"BatchGrowth got eta={self.eta!r}, every={self.every!r}; give eta > 0 and every >= 1")

    def tests(self, step: int, batch: int) -> bool:
        """Whether step number `step` (from 0) on a batch of this size is one to test; at the cap none is."""
        return batch < self.most and step % self.every == 0

    def next(self, batch: int, gradients: Tensor, *, affordable: int | None = None) -> int:
        """The size of the next batch.

        Args:
            batch: The size now.
            gradients: Gradients of single examples [b, d], of the batch or of b >= 2 of its examples.
            affordable: What the budget can pay for, where that is less than `most`.

        Returns:
            A size from `batch` to the cap; `batch` where fewer than two gradients, or ones that are not finite, tell
            nothing.
        """
        cap = self.most if affordable is None else min(self.most, affordable)
        if batch >= cap or len(gradients) < 2:
            return batch
        wanted = self.wanted(gradients)
        if math.isnan(wanted):
            return batch
        # not ceil of an infinity, which a mean of zero gives
        return cap if wanted >= cap else max(batch, math.ceil(wanted))

    def wanted(self, gradients: Tensor) -> float:
        """How many examples the test asks for, as a real number; infinite where the mean is zero, NaN where unknown."""
        import torch

        with torch.no_grad():
            rows = gradients.detach()
            mean = rows.mean(0)
            square = mean @ mean
            spread = rows - mean
            if self.test == "norm":
                return _ratio(_summed_variance(spread), self.eta**2 * square)
            along = spread @ mean
            inner = _ratio(_summed_variance(along), self.eta**2 * square * square)
            if self.test == "inner" or not 0 < square < math.inf:
                return inner
            across = spread - torch.outer(along / square, mean)
            return max(inner, _ratio(_summed_variance(across), self.eta**2 * square))


def _summed_variance(spread: Tensor) -> Tensor:
    """Sum of the coordinates' sample variances, of rows that have had their mean taken off."""
    return spread.square().sum() / (len(spread) - 1)


def _ratio(noise: Tensor, signal: Tensor) -> float:
    above, below = float(noise), float(signal)
    if below == 0.0:
        return math.inf if above > 0.0 else math.nan
    return above / below
