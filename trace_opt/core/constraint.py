"""What a tensor parameter must satisfy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """Every entry between two bounds.

    Args:
        low: The least value allowed.
        high: The greatest value allowed.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"Box(low={self.low!r}, high={self.high!r}) is empty; low must not exceed high")


@dataclass(frozen=True, slots=True)
class Ball:
    """A norm bounded from above.

    Args:
        radius: The greatest norm allowed.
        p: Which norm: 1, 2 or infinity.
    """

    radius: float
    p: float = 2.0

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"Ball(radius={self.radius!r}) holds no tensor but zero; give a radius above 0")


@dataclass(frozen=True, slots=True)
class Simplex:
    """Entries of the last dimension not negative and summing to one."""


Constraint = Box | Ball | Simplex
