"""What a tensor parameter must satisfy, and the nearest tensor that does.

Projections are Euclidean and computed in float64, whatever the tensor's type, so that what they return holds to the
precision of that type; a tensor that holds already is returned as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-6
"""How far a value may lie outside, relative to `scale`: what rounding in float32 leaves behind."""


@dataclass(frozen=True, slots=True)
class Box:
    """Every entry between two bounds.

    Args:
        low: The least value allowed; may be -inf.
        high: The greatest value allowed; may be inf.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"Box(low={self.low!r}, high={self.high!r}) is empty; low must not exceed high")

    @property
    def scale(self) -> float:
        """What a violation is small or large against: the larger finite bound."""
        return max((abs(bound) for bound in (self.low, self.high) if math.isfinite(bound)), default=0.0) or 1.0

    def project(self, tensor: Tensor) -> Tensor:
        """The nearest tensor in the box: every entry clipped."""
        return tensor.detach().clamp(self.low, self.high)

    def violation(self, tensor: Tensor) -> float:
        """By how much the worst entry is out of bounds; 0 where all are within."""
        if tensor.numel() == 0:
            return 0.0
        low, high = tensor.detach().aminmax()
        return max(self.low - float(low), float(high) - self.high, 0.0)


@dataclass(frozen=True, slots=True)
class Ball:
    """A norm of the whole tensor, taken as one vector, bounded from above.

    Args:
        radius: The greatest norm allowed.
        p: Which norm: 1, 2 or infinity.
    """

    radius: float
    p: float = 2.0

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"Ball(radius={self.radius!r}) holds no tensor but zero; give a radius above 0")
        if self.p not in (1, 2, math.inf):
            raise ValueError(f"Ball got p={self.p!r}; give 1, 2 or math.inf")

    @property
    def scale(self) -> float:
        """What a violation is small or large against: the radius."""
        return self.radius

    def project(self, tensor: Tensor) -> Tensor:
        """The nearest tensor in the ball.

        Source: for p = 1, Duchi et al., "Efficient projections onto the l1-ball", ICML 2008, Figure 1 (by sorting).
        """
        tensor = tensor.detach()
        if self.p == math.inf:
            return tensor.clamp(-self.radius, self.radius)
        excess = self.violation(tensor)
        if not excess:
            return tensor
        x = _wide(tensor)
        if self.p == 2:
            return (x * (self.radius / (self.radius + excess))).to(tensor.dtype)
        sizes = _onto_simplex(x.abs().reshape(-1), self.radius).reshape(x.shape)
        return (sizes * x.sign()).to(tensor.dtype)

    def violation(self, tensor: Tensor) -> float:
        """By how much the norm exceeds the radius; 0 where it does not."""
        import torch

        if tensor.numel() == 0:
            return 0.0
        norm: Any = cast("Any", torch).linalg.vector_norm(_wide(tensor.detach()), self.p)
        excess = float(norm) - self.radius
        return excess if not excess <= 0 else 0.0  # so that nan counts as a violation


@dataclass(frozen=True, slots=True)
class Simplex:
    """Entries of the last dimension not negative and summing to one."""

    @property
    def scale(self) -> float:
        """What a violation is small or large against: the sum."""
        return 1.0

    def project(self, tensor: Tensor) -> Tensor:
        """The nearest tensor of which every row along the last dimension is a distribution.

        Source: Duchi et al., "Efficient projections onto the l1-ball", ICML 2008, Figure 1 (by sorting).
        """
        tensor = tensor.detach()
        return _onto_simplex(_wide(tensor), 1.0).to(tensor.dtype) if self.violation(tensor) else tensor

    def violation(self, tensor: Tensor) -> float:
        """The most negative entry, or the sum furthest from one, whichever is worse; 0 where all rows hold."""
        if tensor.ndim == 0 or tensor.shape[-1] == 0:
            return math.inf
        if tensor.numel() == 0:
            return 0.0
        x = _wide(tensor.detach())
        return max(float(-x.min()), float((x.sum(-1) - 1).abs().max()), 0.0)


Constraint = Box | Ball | Simplex


def fault_of(value: Tensor, like: Tensor, constraint: Constraint | None) -> str | None:
    """What is wrong with a tensor as the value of a parameter, in words; None where nothing is.

    Args:
        value: The tensor proposed.
        like: The one in its place now: shape and dtype have to be its.
        constraint: What it must satisfy.
    """
    import torch

    if value.shape != like.shape:
        return f"give a tensor of shape {tuple(like.shape)!r}"
    if value.dtype != like.dtype:
        return f"its dtype is {value.dtype}; give a tensor of {like.dtype}"
    if value.layout is torch.strided and not bool(torch.isfinite(value.detach()).all()):
        return "not every entry is finite; give finite numbers"
    if constraint is None:
        return None
    away = constraint.violation(value)
    slack = max(TOLERANCE, torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0)
    if away <= slack * constraint.scale:
        return None
    return f"it violates {constraint!r} by {away:.3g}; give a tensor inside, as {constraint!r}.project(tensor) is"


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, in float32 on devices that have none."""
    import torch

    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def _onto_simplex(x: Tensor, total: float) -> Tensor:
    """The nearest rows of non-negative entries that sum to `total`.

    Args:
        x: Shape [..., n].
        total: The sum of each row, above 0.
    """
    import torch

    # the threshold does not change when a row is shifted, and small numbers lose less in the sums
    x = x - x.amax(-1, keepdim=True)
    falling: Any = x.sort(-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    excess = falling.cumsum(-1) - total
    kept = (falling * count > excess).sum(-1, keepdim=True).clamp_min(1)
    threshold: Any = excess.gather(-1, kept - 1) / kept
    return (x - threshold).clamp_min(0)
