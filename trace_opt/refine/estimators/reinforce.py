"""REINFORCE: step along the sampled gradient, as it is or normalised.

Source: R. J. Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning".
A normalised step takes most of what separates N-PG-IGT from REINFORCE, so it is here as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trace_opt.refine.estimators.base import Estimator, Sample, Update, length
from trace_opt.refine.estimators.schedules import Schedule, checked, factor

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.optim.numeric.stepper import Stepper
    from trace_opt.refine.batch import Policy


class Ascent:
    """Turns a direction into a step by an optimizer of the numeric registry.

    Args:
        policy: Its weights that require grad are moved.
        lr: Learning rate; where steps are normalised the length of the first.
        optimizer: A name of the registry: "sgd", "adamw", ...
        schedule: How the learning rate falls.
        normalised: Whether a direction is brought to length 1 first.
        clip: The longest a direction may be; longer ones are shortened.
    """

    def __init__(
        self, policy: Policy, *, lr: float, optimizer: str, schedule: Schedule, normalised: bool, clip: float | None
    ) -> None:
        from trace_opt.optim.numeric import registry

        if clip is not None and not clip > 0:
            raise ValueError(f"clip is {clip!r}; give a length above 0, or None")
        self._normalised = normalised
        self._clip = clip
        self._schedule: Schedule = checked(schedule)
        self._stepper: Stepper = registry.build(optimizer, (w for w in policy.parameters() if w.requires_grad), lr=lr)

    def step(self, direction: list[Tensor], t: int) -> float:
        """Make a step uphill; gives the direction's length before it was cut or normalised."""
        norm = length(direction)
        shrink = 1.0
        if self._normalised and norm > 0:
            shrink = 1 / norm
        elif self._clip is not None and norm > self._clip:
            shrink = self._clip / norm
        self._stepper.set_lr(factor(self._schedule, t))
        for leaf, up in zip(self._stepper.leaves, direction, strict=True):
            leaf.grad = up * -shrink
        self._stepper.step()
        for leaf in self._stepper.leaves:
            leaf.grad = None
        return norm

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state."""
        return self._stepper.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._stepper.load_state_dict(state)


class Reinforce(Estimator):
    """REINFORCE with a baseline.

    Args:
        policy: Its weights that require grad are moved.
        lr: Learning rate; of a normalised step its length.
        optimizer: What makes a step of the gradient: a name of the numeric registry.
        schedule: How the learning rate falls.
        normalised: Whether every step is as long as the learning rate, whatever the gradient's length.
        clip: The longest a gradient may be.
        **options: Those of `Estimator`.
    """

    def __init__(
        self, policy: Policy, *, lr: float, optimizer: str = "sgd", schedule: Schedule = "constant",
        normalised: bool = False, clip: float | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(policy, **options)
        self._ascent = Ascent(policy, lr=lr, optimizer=optimizer, schedule=schedule, normalised=normalised, clip=clip)

    def update(self, sample: Sample) -> Update:
        """One step along the sample's gradient."""
        advantages, returns = self._advantages(sample.batch)
        norm = self._ascent.step(self._gradient(sample.batch, advantages), self.updates)
        self.baseline.observe(returns, sample.batch)
        self.updates += 1
        return self._said(sample.batch, advantages, norm)

    def state_dict(self) -> dict[str, Any]:
        """With the optimizer's state."""
        return {**super().state_dict(), "ascent": self._ascent.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, bit for bit."""
        super().load_state_dict(state)
        self._ascent.load_state_dict(state["ascent"])
