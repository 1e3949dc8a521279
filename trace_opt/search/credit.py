"""Which parameter to change: the one through which the failures went, and whose changes have paid.

The graph says which parameters reached the output of every rollout. One that stands in the slices of failures and not in
those of successes is the suspect: Ochiai's coefficient of fault localisation, with the shortfall of a score as how much
a rollout failed. Which suspect is changed is drawn by Thompson sampling, so that one whose changes keep being rejected
gives way to the next.
Source: Abreu, Zoeteweij, van Gemund, "On the accuracy of spectrum-based fault localization" (2007), equation of Ochiai.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_opt.core.rollout import Rollout

_FADE = 0.9
_LEAST = 0.05
"""What a parameter that no failure went through is still worth: a slice shows what was read, not what should have been."""


def shortfalls(rollouts: Sequence[Rollout]) -> list[float]:
    """How much each rollout failed, in [0, 1]: by how much its score is below the highest; all alike failed alike."""
    known = [score for rollout in rollouts if (score := rollout.score) is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    if high <= low:
        mixed = any(rollout.score is None for rollout in rollouts) and bool(known)
        return [0.0 if mixed and rollout.score is not None else 1.0 for rollout in rollouts]
    return [1.0 if rollout.score is None else (high - rollout.score) / (high - low) for rollout in rollouts]


def suspicion(rollouts: Sequence[Rollout], names: Sequence[str]) -> dict[str, float]:
    """How much each parameter is suspected of the failures, in [0, 1].

    Args:
        rollouts: Of one candidate, with graphs.
        names: Full names of the parameters.
    """
    lost = shortfalls(rollouts)
    whole = math.fsum(lost)
    touched = [rollout.slices.keys() for rollout in rollouts]
    found: dict[str, float] = {}
    for name in names:
        inside = [short for short, slices in zip(lost, touched, strict=True) if name in slices]
        found[name] = math.fsum(inside) / math.sqrt(whole * len(inside)) if whole and inside else 0.0
    return found


@dataclass(slots=True)
class Bandit:
    """Chooses among parameters by how much they are suspected and how often their changes were accepted.

    Attributes:
        counts: By full name, how many changes were accepted and how many not, the older the less they count.
    """

    counts: dict[str, list[float]] = field(default_factory=dict[str, "list[float]"])

    def choose(self, suspected: Mapping[str, float], rng: random.Random) -> str:
        """The parameter to change.

        Args:
            suspected: By full name, as `suspicion` gives it; at least one.
            rng: The only chance.
        """
        drawn = {
            name: max(share, _LEAST) * rng.betavariate(*(1 + count for count in self.counts.get(name, (0.0, 0.0))))
            for name, share in suspected.items()
        }
        return max(drawn, key=lambda name: drawn[name])

    def observe(self, changed: Sequence[str], *, accepted: bool) -> None:
        """Learn what came of a proposal; one that changed several parameters says as much of each, divided by their number."""
        for name in changed:
            counts = [_FADE * count for count in self.counts.get(name, (0.0, 0.0))]
            counts[0 if accepted else 1] += 1 / len(changed)
            self.counts[name] = counts

    def state(self) -> dict[str, Any]:
        """JSON-able; `Bandit.of` takes it back."""
        return {name: list(counts) for name, counts in self.counts.items()}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Bandit:
        """From what `state` gave; an empty one is new."""
        return cls({name: list(counts) for name, counts in state.items()})
