"""N-PG-IGT: normalised steps along a momentum of gradients, each sampled where the momentum's own past would be true.

The gradient is taken at a point beyond the iterate, chosen so that the average of old and new gradients would be the
gradient at the iterate if the objective were quadratic; one trajectory a step suffices and no second derivative is needed.

Source: I. Fatkhullin, A. Barakat, A. Kireeva, N. He, "Stochastic policy gradient methods: improved sample complexity for
Fisher-non-degenerate policies", arXiv 2302.01734, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trace_opt.refine.estimators.base import Draw, Estimator, Sample, Update, length, move, moved
from trace_opt.refine.estimators.schedules import Schedule, checked, factor

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.refine.batch import Policy


class NPGIGT(Estimator):
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
        super().__init__(policy, **options)
        if not 0 < power <= 1:
            raise ValueError(f"power is {power!r}; give a number above 0 and at most 1")
        if reach is not None and not reach >= 0:
            raise ValueError(f"reach is {reach!r}; give 0 or more, or None")
        self.lr = lr
        self.schedule: Schedule = checked(schedule)
        self.power = power
        self.reach = reach
        self._direction: list[Tensor] | None = None
        self._last: list[Tensor] | None = None  # the step that led here

    @property
    def _momentum(self) -> float:
        return (2 / (self.updates + 2)) ** self.power

    def _ahead(self) -> list[Tensor]:
        """From the iterate to where the next trajectories come from."""
        if self._last is None:
            return [w.new_zeros(w.shape) for w in self.weights]
        eta = self._momentum
        factor_ = (1 - eta) / eta
        if self.reach is not None:
            factor_ = min(factor_, self.reach)
        return [step * factor_ for step in self._last]

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
        if self._direction is None:
            self._direction = gradient
        else:
            self._direction = [(1 - eta) * old + eta * new for old, new in zip(self._direction, gradient, strict=True)]
        norm = length(self._direction)
        step = self.lr * factor(self.schedule, self.updates)
        before = [w.detach().clone() for w in self.weights]
        if norm > 0:
            move(self.weights, self._direction, step / norm)
        self._last = [w.detach() - b for w, b in zip(self.weights, before, strict=True)]
        self.baseline.observe(returns, sample.batch)
        self.updates += 1
        return self._said(sample.batch, advantages, norm)

    def state_dict(self) -> dict[str, Any]:
        """With the averaged direction and the last step."""
        return {**super().state_dict(), "direction": self._direction, "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, bit for bit."""
        super().load_state_dict(state)
        self._direction = state["direction"]
        self._last = state["last"]
