"""A candidate made of two: where only one of them has changed a parameter since their common ancestor, its change is taken.

Two candidates that got better at different things, by changes of different parameters, often combine into one that has
both; where both have changed the same parameter, the better one's value stands. A merge costs no model call. It is tried
as often as merges have paid compared with proposals, and nothing is merged twice.
Source: GEPA (arXiv 2507.19457, appendix on system-aware merge); the three-way merge of version control.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_opt.search.candidate import Candidate

_FADE = 0.95


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge worth trying.

    Attributes:
        base: The better of the two, which the merge is tested against.
        other: The other.
        ancestor: The latest candidate that both come from.
        values: Complete values.
    """

    base: Candidate
    other: Candidate
    ancestor: Candidate
    values: dict[str, Any]


def ancestors(candidates: Mapping[int, Candidate], number: int) -> set[int]:
    """All that a candidate comes from, itself included."""
    found: set[int] = set()
    todo = [number]
    while todo:
        one = todo.pop()
        if one not in found and one in candidates:
            found.add(one)
            todo.extend(candidates[one].parents)
    return found


def merged(
    base: Candidate, other: Candidate, ancestor: Candidate, key_of: Callable[[Mapping[str, Any]], str]
) -> dict[str, Any] | None:
    """The values of a merge, or None where one of the two has nothing that the other lacks.

    Args:
        base: Whose values stand where both have changed the same.
        other, ancestor: See `Merge`.
        key_of: Hashes values by name.
    """
    values: dict[str, Any] = {}
    from_base = from_other = False
    for name, start in ancestor.values.items():
        keys = [key_of({name: value}) for value in (start, base.values[name], other.values[name])]
        takes = keys[1] == keys[0] and keys[2] != keys[0]
        values[name] = other.values[name] if takes else base.values[name]
        from_other |= takes
        from_base |= keys[1] != keys[0] and keys[1] != keys[2]
    return values if from_base and from_other else None


@dataclass(slots=True)
class Merger:
    """Decides when two candidates are merged, and which.

    Attributes:
        merges, proposals: How many of each were accepted and not, the older the less they count.
        tried: Pairs merged so far, by their numbers.
    """

    merges: list[float] = field(default_factory=lambda: [0.0, 0.0])
    proposals: list[float] = field(default_factory=lambda: [0.0, 0.0])
    tried: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])

    def pays(self, rng: random.Random) -> bool:
        """Whether merges promise more than proposals: Thompson sampling of the two chances."""
        ours, theirs = (rng.betavariate(1 + won, 1 + lost) for won, lost in (self.merges, self.proposals))
        return ours >= theirs

    def observe(self, *, merge: bool, accepted: bool) -> None:
        """Learn what came of a merge or of a proposal."""
        counts = self.merges if merge else self.proposals
        counts[:] = [_FADE * count for count in counts]
        counts[0 if accepted else 1] += 1

    def find(
        self,
        candidates: Mapping[int, Candidate],
        rows: Mapping[int, Sequence[float]],
        key_of: Callable[[Mapping[str, Any]], str],
    ) -> Merge | None:
        """The merge of greatest promise that was not tried: two whose best on every example adds up to most.

        Args:
            candidates: All by number.
            rows: Worth by example, of those that may be merged; failed examples are finite here.
            key_of: Hashes values by name.
        """
        for one, other in sorted(self._open(rows), key=lambda pair: (-_promise(rows[pair[0]], rows[pair[1]]), pair)):
            lines = ancestors(candidates, one), ancestors(candidates, other)
            shared = lines[0] & lines[1]
            if not shared or one in lines[1] or other in lines[0]:
                continue
            first, second = sorted((one, other), key=lambda n: (-sum(rows[n]), n))
            base, giver, ancestor = candidates[first], candidates[second], candidates[max(shared)]
            values = merged(base, giver, ancestor, key_of)
            if values is not None and not _known(candidates, key_of(values)):
                return Merge(base, giver, ancestor, values)
        return None

    def _open(self, rows: Mapping[int, Sequence[float]]) -> list[tuple[int, int]]:
        """Pairs that were not tried and of which neither is the better one everywhere."""
        pairs = itertools.combinations(sorted(rows), 2)
        return [pair for pair in pairs if pair not in self.tried and _promise(rows[pair[0]], rows[pair[1]]) > 0]

    def state(self) -> dict[str, Any]:
        """JSON-able; `Merger.of` takes it back."""
        return {"merges": self.merges, "proposals": self.proposals, "tried": sorted(map(list, self.tried))}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Merger:
        """From what `state` gave; an empty one is new."""
        if not state:
            return cls()
        return cls(list(state["merges"]), list(state["proposals"]), {(a, b) for a, b in state["tried"]})


def _known(candidates: Mapping[int, Candidate], key: str) -> bool:
    return any(candidate.key == key for candidate in candidates.values())


def _promise(one: Sequence[float], other: Sequence[float]) -> float:
    """By how much the best of both on every example exceeds the better one."""
    return sum(map(max, one, other)) - max(sum(one), sum(other))
