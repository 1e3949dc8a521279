"""How the learning rate runs from its start to zero.

A schedule is a function of the share of the run that is done, t/T, so one that was refined on a run of another length
applies as it is. Refinement reads the gradient norms of a finished run: steps where gradients are small and little is
left to do get more of the way, which brings warm-up and a fast end about by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    import torch

Kind = Literal["adam", "sgd"]
"""How a rule scales its step: by each coordinate's size (Adam, Lion and their kin), or not at all."""

NAMES = ("linear", "cosine", "constant", "refined")
"""What `schedule=` may be; "refined" stands for linear decay until the norms of a run are there to refine from."""


@dataclass(frozen=True, slots=True)
class Refined:
    """A schedule refined from the gradient norms of a run.

    Args:
        factors: Multipliers of the learning rate at evenly spaced shares of the run, from 0 on, the largest 1. They are
            all the state there is: `Refined(list(schedule.factors))` is the same schedule, read back from JSON.

    Raises:
        ValueError: there are none, or one is not a number in [0, 1].
    """

    factors: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(float(factor) for factor in self.factors))
        if not self.factors or not all(0.0 <= factor <= 1.0 for factor in self.factors):
            raise ValueError(f"a refined schedule got the factors {self.factors!r}; give numbers in [0, 1]")

    def at(self, share: float) -> float:
        """The multiplier at a share of the run, interpolated between the steps it was refined from."""
        place = share * len(self.factors)
        before = int(place)
        if before + 1 >= len(self.factors):
            return self.factors[-1]
        low, high = self.factors[before], self.factors[before + 1]
        return low + (place - before) * (high - low)


Schedule = Literal["linear", "cosine", "constant", "refined"] | Refined


def multiplier(schedule: str | Refined, share: float) -> float:
    """What the base learning rate is multiplied by.

    Args:
        schedule: A name, or a `Refined` schedule. "linear" is 1 - t/T, "cosine" is (1 + cos(pi t/T)) / 2. "refined" by
            name is linear decay, of a run whose norms refine the next one's.
        share: t/T, from 0 at the first step; past 1 the multiplier stays what it is at 1.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: there is no such schedule.

    Source: Defazio et al., "Optimal Linear Decay Learning Rate Schedules and Further Refinements", arXiv 2310.07831.
    """
    if isinstance(schedule, Refined):
        return schedule.at(share)
    if schedule in ("linear", "refined"):
        return 1.0 - share if share < 1.0 else 0.0
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * share) if share < 1.0 else 0.0
    near = get_close_matches(str(schedule), NAMES, 1)
    hint = f", such as {near[0]!r}" if near else ""
    raise ValueError(f"there is no schedule {schedule!r}; choose one of {list(NAMES)!r}{hint}, or give a Refined(...)")


def refined(norms: Iterable[float], kind: Kind = "adam", *, smoothing: float = 0.1) -> Refined:
    """Refine a schedule from the gradient norms of a finished run.

    Args:
        norms: One norm a step, as `gradient_norm` measures them, before any clipping.
        kind: What rule was stepping; it decides norm and weight.
        smoothing: Width of the median filter that norms go through first, as a share of the run.

    Returns:
        The schedule. Constant norms give linear decay that reaches zero at the last step, 1 - t/(T - 1).

    Raises:
        ValueError: there are fewer than two norms, or one is negative or not finite.

    Source: arXiv 2310.07831, Algorithm 1: weights w_t = 1/G_t (Adam, l1 norms) or 1/G_t^2 (SGD, l2 norms), and
    s_t = w_t * (w_{t+1} + ... + w_T), scaled to a maximum of 1.
    """
    import numpy as np

    given: Any = np.asarray(list(norms), dtype=np.float64)
    if len(given) < 2 or not np.isfinite(given).all() or (given < 0).any():
        raise ValueError(f"refining a schedule got {len(given)} norms; give two or more, finite and not negative")
    smooth: Any = _smoothed(given, smoothing)
    positive = smooth[smooth > 0]
    # a norm of zero would take the whole way for its step alone; products of weights have to stay what a float can hold
    floor = max(positive.min(), 1e-60 * positive.max()) if len(positive) else 1.0
    weights: Any = (floor / np.maximum(smooth, floor)) ** (1 if kind == "adam" else 2)
    after = np.append(np.cumsum(weights[::-1])[::-1][1:], 0.0)
    factors = weights * after
    return Refined((factors / factors.max()).tolist())


def _smoothed(norms: Any, smoothing: float) -> Any:
    """Norms through a running median: the end is continued by reflection, so that its trend stays, the start by repeating."""
    import numpy as np
    from scipy import ndimage

    width = 2 * int(smoothing * len(norms) / 2) + 1
    padded = np.pad(norms, (0, 2 * width), mode="reflect")
    return cast("Any", ndimage).median_filter(padded, size=width, mode="nearest")[: len(norms)]


def gradient_norm(gradients: Sequence[torch.Tensor], kind: Kind = "adam") -> torch.Tensor:
    """The norm over all coordinates of a step's gradients that refinement wants: l1 for Adam and its kin, l2 for SGD.

    Args:
        gradients: One tensor for each leaf, of any shapes.
        kind: What rule steps.

    Returns:
        A scalar tensor on the first gradient's device: reading it out can wait, a device need not be waited for.

    Raises:
        ValueError: there are no gradients.
    """
    import torch

    if not gradients:
        raise ValueError("gradient_norm got no gradients; give one tensor for each leaf")
    order = 1 if kind == "adam" else 2
    device = gradients[0].device
    norm: Any = cast("Any", torch).linalg.vector_norm
    with torch.no_grad():
        return norm(torch.stack([norm(gradient, order).to(device) for gradient in gradients]), order)
