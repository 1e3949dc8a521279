"""What N-PG-IGT and (N-)HARPG share: a direction carried from update to update, and the step that led to the iterate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trace_opt.refine.estimators.base import Estimator, length, move
from trace_opt.refine.estimators.schedules import Schedule, checked, factor

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.refine.batch import Policy


class Momentum(Estimator):
    """An estimator that steps along a direction averaged over updates.

    Args:
        policy: Its weights that require grad are moved.
        lr: Learning rate; where steps are normalised the length of the first.
        schedule: How it falls.
        **options: Those of `Estimator`.
    """

    def __init__(self, policy: Policy, *, lr: float, schedule: Schedule, **options: Any) -> None:
        super().__init__(policy, **options)
        self.lr = lr
        self.schedule: Schedule = checked(schedule)
        self._direction: list[Tensor] | None = None
        self._last: list[Tensor] | None = None  # the step that led here

    def _advance(self, direction: list[Tensor], *, normalised: bool) -> float:
        """Step along a direction and keep it; gives its length."""
        self._direction = direction
        norm = length(direction)
        step = self.lr * factor(self.schedule, self.updates)
        before = [w.detach().clone() for w in self.weights]
        if norm > 0:
            move(self.weights, direction, step / norm if normalised else step)
        self._last = [w.detach() - b for w, b in zip(self.weights, before, strict=True)]
        self.updates += 1
        return norm

    def state_dict(self) -> dict[str, Any]:
        """With the direction and the last step."""
        return {**super().state_dict(), "direction": self._direction, "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, bit for bit."""
        super().load_state_dict(state)
        self._direction = self._placed(state["direction"])
        self._last = self._placed(state["last"])

    def _placed(self, kept: list[Tensor] | None) -> list[Tensor] | None:
        """Copies of tensors where the weights are; a state that was kept comes back on the CPU."""
        if kept is None:
            return None
        return [x.to(w.device, copy=True) for x, w in zip(kept, self.weights, strict=True)]
