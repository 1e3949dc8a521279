"""What a step was worth beyond what was to be expected of it: returns to go, and baselines that leave a gradient unbiased.

Sources: REINFORCE with a baseline (Williams 1992, "Simple statistical gradient-following algorithms"); leave-one-out
baseline (Kool, van Hoof, Welling 2019, "Buy 4 REINFORCE samples, get a baseline for free!").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from trace_opt.errors import meant
from trace_opt.refine.batch import all_equal, group_totals

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.refine.batch import Batch

BaselineName = Literal["running", "leave-one-out", "none"]


def returns_to_go(rewards: Tensor, gamma: float = 1.0) -> Tensor:
    """What a trajectory earned from each step on, discounted from its first step on: G_t = sum over h >= t of gamma^h r_h.

    Args:
        rewards: Shape `[n, T]`.
        gamma: Discount of a step.

    Returns:
        Shape `[n, T]`.
    """
    import torch

    if gamma != 1.0:
        rewards = rewards * gamma ** torch.arange(rewards.shape[1], dtype=rewards.dtype, device=rewards.device)
    return rewards.flip(1).cumsum(1).flip(1)


class Baseline:
    """None at all, and what every baseline can be asked."""

    def __call__(self, returns: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002 # others look at groups
        """What was to be expected of each step, shape `[n, T]` or broadcastable to it."""
        return returns.new_zeros(1, 1)

    def observe(self, returns: Tensor, batch: Batch) -> None:
        """Take a batch's returns in, for later ones."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


class Running(Baseline):
    """The mean return to go of each step over earlier batches, older ones weighing less.

    A batch's own returns come in only after it was used: a baseline with its own returns in it would bias the gradient.

    Args:
        decay: Weight of the old mean at each batch.
    """

    def __init__(self, decay: float = 0.95) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay!r}; give a number from 0 up to, but not including, 1")
        self.decay = decay
        self._mean: Tensor | None = None

    def __call__(self, returns: Tensor, _: Batch) -> Tensor:
        """The baseline of each step, shape `[n, T]` or broadcastable to it."""
        if self._mean is None:
            return returns.new_zeros(1, returns.shape[1])
        return _fitted(self._mean.to(returns.device), returns.shape[1])[None, :]

    def observe(self, returns: Tensor, batch: Batch) -> None:
        """Take a batch's returns in, for later ones."""
        seen = batch.mask.sum(0)
        mean = (returns * batch.mask).sum(0) / seen.clamp(min=1)
        if self._mean is None:
            self._mean = mean.detach().clone()
            return
        self._mean = self._mean.to(mean.device)  # a state that was kept comes back on the CPU
        steps = max(len(self._mean), len(mean))
        weight = self._mean.new_full((steps,), self.decay)
        weight[len(self._mean) :] = 0.0
        weight[: len(seen)][seen == 0] = 1.0  # nothing is said of a step that no trajectory had
        weight[len(seen) :] = 1.0
        self._mean = weight * _fitted(self._mean, steps) + (1 - weight) * _fitted(mean.detach(), steps)

    def state_dict(self) -> dict[str, Any]:
        """The mean so far."""
        return {"mean": self._mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._mean = state["mean"]


class LeaveOneOut(Baseline):
    """The mean return to go of the other trajectories of the same group."""

    def __call__(self, returns: Tensor, batch: Batch) -> Tensor:
        """The baseline of each step, shape `[n, T]`.

        Raises:
            ValueError: a group holds one trajectory only, so there is no other.
        """
        sums, sizes = group_totals(returns, batch.groups)
        check_shared(sizes, batch.groups)
        others = (sums - returns) / (sizes[:, None] - 1)
        # a rounding error that is left of equal returns would be a whole step once normalised
        return others.where(~all_equal(returns, batch.groups), returns)


def check_shared(sizes: Tensor, groups: Tensor) -> None:
    """Refuse a trajectory that has no other to be compared with.

    Args:
        sizes: Of each trajectory's group, shape `[n]`.
        groups: Integers, shape `[n]`.

    Raises:
        ValueError: a group holds one trajectory only.
    """
    if bool((sizes < 2).any()):
        alone = int(groups[int((sizes < 2).nonzero()[0])])
        raise ValueError(
            f"group {alone} holds one trajectory, which leaves none to compare it with; sample at least two of each prompt"
        )


def baseline_of(given: BaselineName | Running) -> Baseline:
    """A baseline by name.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(given, Running):
        return given
    if given == "running":
        return Running()
    if given == "leave-one-out":
        return LeaveOneOut()
    if given == "none":
        return Baseline()
    known = get_args(BaselineName)
    hint = meant(given, known, f"known: {', '.join(known)}")
    raise ValueError(f"there is no baseline {given!r}; {hint}")


def _fitted(values: Tensor, steps: int) -> Tensor:
    """One value for each step, zeros where there are none."""
    if len(values) >= steps:
        return values[:steps]
    longer = values.new_zeros(steps)
    longer[: len(values)] = values
    return longer
