"""The combinations of a set of options, and what trials say about them.

A combination is a tuple of positions. Which of them were tried, what each was worth and which values do well is read
from the history alone.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_opt.core.codec import canonical
from trace_opt.core.parameter import Demonstrations, same, short
from trace_opt.optim.base import Proposal, Trial

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter

Point = tuple[int, ...]
"""A combination: for each parameter the position of its value among its options."""

Place = tuple[int, int]
"""One parameter at one of its options."""

Pair = tuple[Place, Place]

_DRAWS = 300
_LISTED = 10_000
_SWEEPS = 3
_CHANGE_COST = 0.05
_CURIOSITY = 6.0


class Options:
    """The values one parameter may take, in a fixed order, found by value."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values: list[Any] = []
        self._by_key: dict[str, int] = {}
        for value in values:
            if self._find(value) is None:
                self._by_key.setdefault(self._key(value), len(self.values))
                self.values.append(value)

    def __len__(self) -> int:
        return len(self.values)

    def position(self, value: Any) -> int:
        """Where an equal value stands.

        Raises:
            ValueError: there is none.
        """
        found = self._find(value)
        if found is None:
            raise ValueError(f"{short(value)} is none of the {len(self.values)} options; search over it from the start")
        return found

    def _find(self, value: Any) -> int | None:
        if isinstance(value, (str, Demonstrations)):
            return self._by_key.get(self._key(value))
        return next((i for i, option in enumerate(self.values) if same(option, value)), None)

    @staticmethod
    def _key(value: Any) -> str:
        # a demonstration may hold an array, whose == is no truth value
        return canonical(value)


@dataclass(frozen=True, slots=True)
class Space:
    """The options of every parameter. They only ever grow, by values that the history shows.

    Attributes:
        names: Full parameter names.
        options: For each the values that may be tried.
        current: The values in force.
    """

    names: tuple[str, ...]
    options: tuple[Options, ...]
    current: tuple[Any, ...]

    @classmethod
    def of(
        cls, parameters: Sequence[Parameter[Any]], found: Mapping[str, Sequence[Any]], history: Sequence[Trial]
    ) -> Space:
        """The options of these parameters: start, choices, suggestions, what sources found, what was tried."""
        columns: list[Options] = []
        for parameter in parameters:
            name = parameter.name
            start = history[0].base.get(name, parameter.value) if history else parameter.value
            listed = parameter.choices or (start, *(parameter.suggestions or ()), *found.get(name, ()))
            held = [v[name] for t in history for v in (t.base, t.proposal.values) if name in v]
            columns.append(Options([*listed, *held, parameter.value]))
        return cls(tuple(p.name for p in parameters), tuple(columns), tuple(p.value for p in parameters))

    @property
    def size(self) -> int:
        """How many combinations there are."""
        return math.prod(len(options) for options in self.options)

    def locate(self, values: Mapping[str, Any]) -> Point:
        """The combination that these values are; a name left out has the value in force."""
        wanted = [values.get(name, now) for name, now in zip(self.names, self.current, strict=True)]
        return tuple(options.position(value) for options, value in zip(self.options, wanted, strict=True))

    def values(self, point: Point) -> dict[str, Any]:
        """The values of a combination, by name."""
        return {name: self.options[i].values[point[i]] for i, name in enumerate(self.names)}

    def near(self, point: Point, changes: int) -> list[Point]:
        """Combinations that differ from one in exactly this many values; none where those are very many."""
        counts = [len(options) - 1 for options in self.options]
        if sum(math.prod(chosen) for chosen in itertools.combinations(counts, changes)) > _LISTED:
            return []
        near: list[Point] = []
        for places in itertools.combinations(range(len(point)), changes):
            others = [[v for v in range(len(self.options[i])) if v != point[i]] for i in places]
            for values in itertools.product(*others):
                changed = dict(zip(places, values, strict=True))
                near.append(tuple(changed.get(i, v) for i, v in enumerate(point)))
        return near

    def proposal(self, incumbent: Point, point: Point, why: str, notes: Mapping[str, Any]) -> Proposal:
        """The values in which a combination differs from the incumbent."""
        changed = {
            name: self.options[i].values[point[i]] for i, name in enumerate(self.names) if point[i] != incumbent[i]
        }
        shown = ", ".join(f"{name} = {_brief(value)}" for name, value in changed.items())
        return Proposal(changed, f"{why}: {shown}", notes)


@dataclass(frozen=True, slots=True)
class Known:
    """What the history says about combinations.

    Trials are tested on different examples against different incumbents, so a combination's worth is that of the
    incumbent it was tested against plus the difference of their means on the same examples.

    Attributes:
        incumbent: The combination in force.
        best: The one worth most of the start and those accepted: the incumbent, unless steps by hand accept all.
        values: Worth by combination; the start is 0.
        tried: Every combination that had a trial, failed ones included.
    """

    incumbent: Point
    best: Point
    values: Mapping[Point, float]
    tried: frozenset[Point]

    @classmethod
    def of(cls, space: Space, history: Sequence[Trial]) -> Known:
        """Read the history; trials of other optimizers that changed none of these parameters say nothing here."""
        worth: dict[Point, float] = {}
        tried: set[Point] = set()
        kept: set[Point] = set()
        for trial in history:
            base = space.locate(trial.base)
            point = space.locate({**trial.base, **trial.proposal.values})
            level = worth.setdefault(base, 0.0)
            if point == base:
                continue
            tried |= {base, point}
            before, after = trial.outcome.before, trial.outcome.after
            if before is not None and after is not None:
                worth[point] = level + after - before
                kept |= {point} if trial.outcome.accepted else set()
        incumbent = space.locate({})
        worth.setdefault(incumbent, 0.0)
        best = max([*(kept & set(worth)), incumbent], key=lambda point: (worth[point], point == incumbent, point))
        return cls(incumbent, best, worth, frozenset(tried))


class Effects:
    """What each value, and each pair of values, adds to a combination's worth on average.

    Args:
        worth: Worth by combination, at least one.
        opened: Combinations being tried.
    """

    def __init__(self, worth: Mapping[Point, float], opened: Sequence[Point] = ()) -> None:
        self._spread = statistics.pstdev(worth.values()) or 1.0
        self._single = _fitted(worth)
        mean = statistics.fmean(worth.values())
        left: dict[Pair, float] = {}
        for point, value in worth.items():
            for pair in _pairs(point):
                left[pair] = left.get(pair, 0.0) + value - mean - self._added(point)
        counts = Counter(pair for point in worth for pair in _pairs(point))
        self._double = {pair: left[pair] / (count + 1) for pair, count in counts.items()}
        self._seen = counts + Counter(pair for point in opened for pair in _pairs(point))

    def predicted(self, point: Point) -> float:
        """The worth that the values and their pairs add up to, 0 on average."""
        return self._added(point) + sum(self._double.get(pair, 0.0) for pair in _pairs(point))

    def worth_a_look(self, point: Point) -> float:
        """The predicted worth in units of its spread, plus what it would tell of values hardly tried together."""
        news = [1 / (1 + self._seen[pair]) for pair in _pairs(point)]
        return self.predicted(point) / self._spread + _CURIOSITY * sum(news) / (len(news) or 1)

    def of_change(self, point: Point, other: Point) -> float:
        """The predicted worth of a changed combination; of two that promise the same, that of fewer changes is higher."""
        changes = sum(a != b for a, b in zip(point, other, strict=True))
        return self.predicted(other) - _CHANGE_COST * self._spread * changes

    def _added(self, point: Point) -> float:
        return sum(self._single.get(place, 0.0) for place in enumerate(point))


def _fitted(worth: Mapping[Point, float]) -> dict[Place, float]:
    """Effects of values, each shrunk as if one more trial of it had shown none; fitted in turns to what others leave."""
    mean = statistics.fmean(worth.values())
    effects: dict[Place, float] = {}
    for _ in range(_SWEEPS):
        for i in range(len(next(iter(worth)))):
            left: dict[int, list[float]] = {}
            for point, value in worth.items():
                others = sum(effects.get(place, 0.0) for place in enumerate(point) if place[0] != i)
                left.setdefault(point[i], []).append(value - mean - others)
            for position, values in left.items():
                effects[i, position] = sum(values) / (len(values) + 1)
    return effects


def _pairs(point: Point) -> Iterator[Pair]:
    return itertools.combinations(enumerate(point), 2)


class Untried:
    """The combinations that are neither tried nor being tried."""

    def __init__(self, space: Space, taken: frozenset[Point]) -> None:
        self._sizes = [len(options) for options in space.options]
        self._taken = taken
        self.left = space.size - len(taken)

    def __contains__(self, point: object) -> bool:
        return point not in self._taken

    def draw(self, rng: random.Random) -> Point:
        """One of them at random."""
        if self.left <= len(self._taken):
            return rng.choice(self._all())
        while True:  # most draws hit one
            point = tuple(rng.randrange(size) for size in self._sizes)
            if point in self:
                return point

    def drawn(self, rng: random.Random) -> list[Point]:
        """Some of them at random, in random order; all where they are few."""
        if self.left <= max(_DRAWS, len(self._taken)) and self.left + len(self._taken) <= _LISTED:
            every = self._all()
            return rng.sample(every, len(every))
        return [self.draw(rng) for _ in range(_DRAWS)]

    def _all(self) -> list[Point]:
        return [point for point in itertools.product(*map(range, self._sizes)) if point in self]


def _brief(value: Any) -> str:
    return f"{len(value)} examples" if isinstance(value, Demonstrations) else short(value, 40)
