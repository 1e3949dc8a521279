"""N-PG-IGT: normalised steps along a momentum of gradients, each sampled where the momentum's own past would be true.

The gradient is taken at a point beyond the iterate, chosen so that the average of old and new gradients would be the
gradient at the iterate if the objective were quadratic; one trajectory a step suffices and no second derivative is needed.

Source: I. Fatkhullin, A. Barakat, A. Kireeva, N. He, "Stochastic policy gradient methods: improved sample complexity for
Fisher-non-degenerate policies", arXiv 2302.01734, algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trace_opt.refine.estimators.base import Draw, Sample, Update, moved
from trace_opt.refine.estimators.momentum import Momentum
from trace_opt.refine.estimators.schedules import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.refine.batch import Policy


class NPGIGT(Momentum):
    """Normalised policy gradient with implicit gradient transport.

    Args:
        policy: Its weights that require grad are moved.
        lr: Length of the first step.
        schedule: How the steps' length falls; the paper's is "inverse".
        power: The momentum's weight of a new gradient is (2/(t+2))^power; the paper's is 4/5.
        reach: The farthest the sampling point may lie from the iterate, in steps' lengths; None as far as the paper's.
            Late extrapolations are long ones, which a language model does not survive.
        **options: Those of `Estimator`.
    """

    def __init__(
        self, policy: Policy, *, lr: float, schedule: Schedule = "inverse", power: float = 0.8, reach: float | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(policy, lr=lr, schedule=schedule, **options)
        if not 0 < power <= 1:
            raise ValueError(f"power is {power!r}; give a number above 0 and at most 1")
        if reach is not None and not reach >= 0:
            raise ValueError(f"reach is {reach!r}; give 0 or more, or None")
        self.power = power
        self.reach = reach

    @property
    def _momentum(self) -> float:
        return (2 / (self.updates + 2)) ** self.power

    def _ahead(self) -> list[Tensor]:
        """From the iterate to where the next trajectories come from."""
        if self._last is None:
            return [w.new_zeros(w.shape) for w in self.weights]
        eta = self._momentum
        steps = (1 - eta) / eta
        if self.reach is not None:
            steps = min(steps, self.reach)
        return [step * steps for step in self._last]

    def sample(self, draw: Draw) -> Sample:
        """Draw at the extrapolated point."""
        with moved(self.weights, self._ahead()):
            return Sample(draw())

    def update(self, sample: Sample) -> Update:
        """Average the gradient in, and step along the average."""
        eta = self._momentum
        advantages, returns = self._advantages(sample.batch)
        with moved(self.weights, self._ahead()):
            gradient = self._gradient(sample.batch, advantages)
        if self._direction is not None:
            gradient = [(1 - eta) * old + eta * new for old, new in zip(self._direction, gradient, strict=True)]
        norm = self._advance(gradient, normalised=True)
        self.baseline.observe(returns, sample.batch)
        return self._said(sample.batch, advantages, norm)
