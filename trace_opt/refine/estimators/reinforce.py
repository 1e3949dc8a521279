"""REINFORCE: step along the sampled gradient, as it is or normalised.

Source: R. J. Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning".
A normalised step takes most of what separates N-PG-IGT from REINFORCE, so it is here as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_opt.refine.estimators.ascent import Ascent
from trace_opt.refine.estimators.base import Sample, Update
from trace_opt.refine.estimators.schedules import Schedule

if TYPE_CHECKING:
    from trace_opt.refine.batch import Policy


class Reinforce(Ascent):
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
        super().__init__(
            policy, lr=lr, optimizer=optimizer, schedule=schedule, normalised=normalised, clip=clip, **options
        )

    def update(self, sample: Sample) -> Update:
        """One step along the sample's gradient."""
        advantages, returns = self._advantages(sample.batch)
        norm = self._climb(self._gradient(sample.batch, advantages))
        self.baseline.observe(returns, sample.batch)
        self.updates += 1
        return self._said(sample.batch, advantages, norm)
