"""Adam's step for searches that make their own gradients: a value, not an optimizer that holds tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BETAS = (0.9, 0.99)
"""For both moments: the second forgets ten times faster than Adam's own default, as there are few steps."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Adam's averages of gradients and of their squares (arXiv 1412.6980, algorithm 1).

    Attributes:
        mean: [d].
        square: [d].
        steps: Steps so far.
        betas: How slowly both averages forget.
    """

    mean: Tensor
    square: Tensor
    steps: int = 0
    betas: tuple[float, float] = BETAS

    @classmethod
    def none(cls, like: Tensor, betas: tuple[float, float] = BETAS) -> Moments:
        """Before the first step, for points like this one."""
        return cls(like.new_zeros(like.shape), like.new_zeros(like.shape), betas=betas)

    def after(self, gradient: Tensor, square: Tensor | None = None) -> Moments:
        """With one more gradient.

        Args:
            gradient: [d].
            square: What counts as its square, [d]; that of each coordinate by default.
        """
        first, second = self.betas
        mean = first * self.mean + (1 - first) * gradient
        square = gradient**2 if square is None else square
        return Moments(mean, second * self.square + (1 - second) * square, self.steps + 1, self.betas)

    @property
    def direction(self) -> Tensor:
        """Where a step goes at learning rate 1, [d]."""
        mean = self.mean / (1 - self.betas[0] ** self.steps)
        square = self.square / (1 - self.betas[1] ** self.steps)
        return -mean / (square.sqrt() + 1e-12)

    def to_state(self) -> dict[str, Any]:
        """Tensors and a number."""
        return {"mean": self.mean, "square": self.square, "steps": self.steps}

    @classmethod
    def of_state(cls, state: Mapping[str, Any], betas: tuple[float, float] = BETAS) -> Moments:
        """What `to_state` gave."""
        return cls(state["mean"].clone(), state["square"].clone(), state["steps"], betas)
