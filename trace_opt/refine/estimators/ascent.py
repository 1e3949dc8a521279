"""Estimators whose directions an optimizer of the numeric registry makes into steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trace_opt.refine.estimators.base import Estimator, length, stepped
from trace_opt.refine.estimators.schedules import Schedule, checked, factor

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.optim.numeric.stepper import Stepper
    from trace_opt.refine.batch import Policy


class Ascent(Estimator):
    """An estimator that climbs by an optimizer.

    Args:
        policy: Its weights that require grad are moved.
        lr: Learning rate; where steps are normalised the length of the first.
        optimizer: A name of the registry: "sgd", "adamw", ...
        schedule: How the learning rate falls.
        normalised: Whether a direction is brought to length 1 first.
        clip: The longest a direction may be; longer ones are shortened.
        **options: Those of `Estimator`.
    """

    def __init__(
        self, policy: Policy, *, lr: float, optimizer: str, schedule: Schedule = "constant", normalised: bool = False,
        clip: float | None = None, **options: Any,
    ) -> None:  # fmt: skip
        from trace_opt.optim.numeric import registry

        super().__init__(policy, **options)
        if clip is not None and not clip > 0:
            raise ValueError(f"clip is {clip!r}; give a length above 0, or None")
        self.normalised = normalised
        self.clip = clip
        self.schedule: Schedule = checked(schedule)
        self._stepper: Stepper = registry.build(optimizer, self.weights, lr=lr)

    def _climb(self, direction: list[Tensor]) -> float:
        """Make a step uphill; gives the direction's length before it was cut or normalised."""
        norm = length(direction)
        shrink = 1.0
        if self.normalised and norm > 0:
            shrink = 1 / norm
        elif self.clip is not None and norm > self.clip:
            shrink = self.clip / norm
        self._stepper.set_lr(factor(self.schedule, self.updates))
        stepped(self._stepper, self.weights, direction, -shrink)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """With the optimizer's state."""
        return {**super().state_dict(), "ascent": self._stepper.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, bit for bit."""
        super().load_state_dict(state)
        self._stepper.load_state_dict(state["ascent"])
