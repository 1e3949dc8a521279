"""A Gaussian process over queries of a function, for the gradient that the function itself does not give.

The surrogate's gradient is a closed form: with weights a = (K + s I)^-1 y it is the sum of a_i times the gradient of the
kernel. Every query of the trajectory goes on informing every later gradient, so that one query buys one step, where a
difference quotient pays two queries a direction and forgets them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LENGTHSCALES: tuple[float, ...] = tuple(10.0 ** (-1 + i / 4) for i in range(9))
"""Nine from 0.1 to 10, evenly spaced in the logarithm."""

VARIANCE = 1e-8
"""The noise's share of the amplitude: next to none, enough to keep K well conditioned."""

NOISY_VARIANCES = (1e-8, 1e-3, 1e-2, 1e-1, 1.0)
"""Among which the noise's share is chosen where there is noise."""


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """A Gaussian process with kernel c k(x, z), k(x, z) = exp(-|x - z|^2 / (2 l^2)), on standardised values.

    Attributes:
        points: The queries, [n, d].
        weights: a = (K + s I)^-1 y of the standardised values, [n].
        lengthscale: l, in units of the points.
        variance: s, the noise's share of the amplitude.
        centre: Mean of the values.
        scale: Standard deviation of the values, 1 where they are all equal.
        likelihood: Log marginal likelihood of the standardised values at the most likely c, without its constant.
    """

    points: Tensor
    weights: Tensor
    lengthscale: float
    variance: float
    centre: float
    scale: float
    likelihood: float

    def value(self, at: Tensor) -> Tensor:
        """Posterior mean at points [m, d], in the units of the values, [m]."""
        return self.centre + self.scale * (self._kernel(at) @ self.weights)

    def gradient(self, at: Tensor) -> Tensor:
        """Gradient of the posterior mean at one point [d], [d]: FZooS (arXiv 2308.04077), equation 5."""
        away = at - self.points
        pull = self._kernel(at[None])[0] * self.weights
        return -self.scale * (pull @ away) / self.lengthscale**2

    def _kernel(self, at: Tensor) -> Tensor:
        return (squared_distances(at, self.points) / (-2 * self.lengthscale**2)).exp()


def fit(
    points: Tensor, values: Tensor, *, lengthscales: Sequence[float] = LENGTHSCALES,
    variances: Sequence[float] = (VARIANCE,),
) -> Gaussian:  # fmt: skip
    """The Gaussian process of the greatest marginal likelihood.

    The amplitude is not held at the values' own variance but at its most likely value, a closed form. Held, it rules out
    the long lengthscales under which a smooth function is well extrapolated (measured: 300 times as far from the optimum
    of a quadratic after 300 queries).

    Args:
        points: Queries, [n, d], float64.
        values: What they gave, [n].
        lengthscales: Among which one is chosen, in units of the points.
        variances: Among which the variance of the noise is chosen, as a share of the amplitude.

    Raises:
        ValueError: there is no query.
    """
    import torch

    if not len(points):
        raise ValueError(f"a Gaussian process was given no query (values {values!r}); give at least one")
    centre = float(values.mean())
    spread = float(values.std(correction=0))
    scale = spread if spread > 0 else 1.0
    standard = (values - centre) / scale
    factors, grid = _factors(squared_distances(points, points), lengthscales, variances)
    linalg: Any = torch.linalg
    half = linalg.solve_triangular(factors, standard[None, :, None], upper=False)[..., 0]
    amplitudes = (half * half).mean(-1).clamp_min(1e-300)
    likelihoods = -0.5 * len(points) * amplitudes.log() - factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    best = int(torch.nan_to_num(likelihoods, nan=-torch.inf).argmax())
    weights = linalg.solve_triangular(factors[best].T, half[best][:, None], upper=True)[:, 0]
    return Gaussian(points, weights, *grid[best], centre, scale, float(likelihoods[best]))


def nearest(points: Tensor, at: Tensor, count: int) -> Tensor:
    """Places of the `count` points nearest to one point, in the order in which they were queried."""
    import torch

    if len(points) <= count:
        return torch.arange(len(points))
    order: Any = torch.argsort(squared_distances(at[None], points)[0], stable=True)
    return order[:count].sort().values


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """|x - z|^2 for every x of left [m, d] and z of right [n, d], [m, n]; differences first, so that near ones are exact."""
    return (left[:, None, :] - right[None, :, :]).square().sum(-1)


def _factors(
    squares: Tensor, lengthscales: Sequence[float], variances: Sequence[float]
) -> tuple[Tensor, list[tuple[float, float]]]:
    """Cholesky factors for every pair of lengthscale and variance; one that is not positive definite becomes nan."""
    import torch

    grid = [(float(length), float(variance)) for length in lengthscales for variance in variances]
    lengths, noise = torch.tensor(grid, dtype=squares.dtype).T
    eye = torch.eye(len(squares), dtype=squares.dtype)
    covariance = (squares / (-2 * lengths[:, None, None] ** 2)).exp() + noise[:, None, None] * eye
    linalg: Any = torch.linalg
    factors, failed = linalg.cholesky_ex(covariance)
    return torch.where(failed[:, None, None] > 0, torch.nan, factors), grid
