"""Gradients from differences of values: central differences, two-point random directions, SPSA.

Each asks for pairs of points around one point and reads a gradient off what they gave. All points of a stencil are known
before any is run, so that they can run at once. A point that would leave the bounds is moved to the nearest one allowed,
and the difference is divided by the distance that is really there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Generator, Tensor

Difference = Literal["central", "two-point", "spsa"]
Project = Callable[["Tensor"], "Tensor"]
"""Nearest allowed points of points [m, d]."""

_FIXED = 1e-3  # a coordinate that moves by less than this share of h is taken for one that cannot move


@dataclass(frozen=True, slots=True, eq=False)
class Stencil:
    """Pairs of points, and how a gradient is read off their values.

    Attributes:
        points: First the points of plus, then those of minus, [2q, d].
        weights: What each pair's difference f(plus) - f(minus) adds to the gradient, [q, d].
    """

    points: Tensor
    weights: Tensor

    def gradient(self, values: Tensor) -> Tensor:
        """The gradient's estimate, [d], from what the points gave in their order, [2q]."""
        plus, minus = values.chunk(2)
        return (plus - minus) @ self.weights


def central(at: Tensor, step: float, project: Project) -> Stencil:
    """Central differences, (f(x + h e_i) - f(x - h e_i)) / 2h: error O(h^2) + (error of a value) / h.

    Values handed on as text of s significant digits want h near 10^(-s/3): 0.01 for six. Where points were moved, the
    gradient is the one of least norm that explains all differences.

    Args:
        at: Where, [d].
        step: h, in the coordinates' units.
        project: Nearest allowed points.
    """
    import torch

    points, apart = _pairs(at, step * torch.eye(len(at), dtype=at.dtype), project)
    linalg: Any = torch.linalg
    return Stencil(points, linalg.pinv(apart).T)


def two_point(at: Tensor, step: float, project: Project, generator: Generator, pairs: int = 1) -> Stencil:
    """Two-point estimates along u ~ N(0, I), (f(x + h u) - f(x - h u)) / 2h u: unbiased for f smoothed by h N(0, I).

    Source: Nesterov and Spokoiny, "Random gradient-free minimization of convex functions" (2017). Where points were
    moved, u is the direction between them.

    Args:
        at: Where, [d].
        step: h.
        project: Nearest allowed points.
        generator: Draws u.
        pairs: How many u are averaged.
    """
    import torch

    directions = torch.randn(pairs, len(at), dtype=at.dtype, generator=generator)
    points, apart = _pairs(at, step * directions, project)
    return Stencil(points, apart / (4 * step**2 * pairs))


def spsa(at: Tensor, step: float, project: Project, generator: Generator, pairs: int = 1) -> Stencil:
    """Simultaneous perturbation: all coordinates move at once by +-h, and the difference is divided by each one's move.

    Source: Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient approximation"
    (1992).

    Args:
        at: Where, [d].
        step: h.
        project: Nearest allowed points.
        generator: Draws the signs.
        pairs: How many are averaged.
    """
    import torch

    signs = torch.randint(0, 2, (pairs, len(at)), generator=generator).to(at.dtype) * 2 - 1
    points, apart = _pairs(at, step * signs, project)
    moves = apart.abs() > _FIXED * step
    return Stencil(points, torch.where(moves, 1 / torch.where(moves, apart, 1.0), 0.0) / pairs)


def stencil(kind: Difference, at: Tensor, step: float, project: Project, generator: Generator, pairs: int) -> Stencil:
    """The stencil of a kind by its name; `pairs` means nothing to central differences, which take one a coordinate."""
    if kind == "central":
        return central(at, step, project)
    return (two_point if kind == "two-point" else spsa)(at, step, project, generator, pairs)


def queries_of(kind: Difference, size: int, pairs: int) -> int:
    """How many points a stencil has."""
    return 2 * (size if kind == "central" else pairs)


def _pairs(at: Tensor, moves: Tensor, project: Project) -> tuple[Tensor, Tensor]:
    """The allowed points on both sides of a point, and how far they are apart."""
    import torch

    points = project(torch.cat([at + moves, at - moves]))
    plus, minus = points.chunk(2)
    return points, plus - minus
