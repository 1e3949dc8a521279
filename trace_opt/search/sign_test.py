"""The exact sequential sign test, for scores of two values.

If nothing changed, the examples on which candidate and incumbent differ fall either way like fair coins, however much
their outcomes have in common. The walk S = wins - losses is therefore known exactly after every example that differs, and
the chance alpha of a false alarm can be spent over the looks to the last digit. It is spent by the number m of examples
that differ, not by that of examples seen: the bounds are then a table over m, whose rates dynamic programming gives.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_opt.search.futility import Futility

if TYPE_CHECKING:
    from numpy.typing import NDArray

EARLY = 0.9
"""The share of alpha that may be spent before the last example."""

PLANNED = 0.5
"""By which share of the examples differing it is spent, by default; independent outcomes at even odds differ as often."""


def planned_alpha(alpha: float, share: float) -> float:
    """How much of alpha may be spent while examples are left; share grows to 1 at the time by which it is spent."""
    return EARLY * alpha * min(1.0, share) ** 2


@dataclass(frozen=True, slots=True)
class Bounds:
    """What wins - losses must reach, by how many examples differ.

    Attributes:
        early: While examples are left; above m itself where no walk can reach it.
        last: At the last example, where all of alpha that is left is spent.
    """

    early: tuple[int, ...]
    last: tuple[int, ...]


@functools.lru_cache(maxsize=64)
def bounds(horizon: int, alpha: float, planned: float = PLANNED) -> Bounds:
    """The one-sided bounds of the test.

    Alpha-spending (Lan and DeMets 1983) by .9 alpha min(1, m / (planned horizon))^2 on the walk's exact distribution without the
    paths that have crossed. Looking at fewer m than all only lowers the rate.

    Args:
        horizon: How many examples there are, at least 1; the bounds hold for no more.
        alpha: The chance of crossing, at most, when wins and losses are equally likely.
        planned: By which share of the examples differing alpha is spent, but for what the last look keeps.
    """
    import numpy as np

    alive = np.zeros(horizon + 1)
    alive[0] = 1.0
    early, last, spent = [2], [2], 0.0
    for m in range(1, horizon + 1):
        alive[1 : m + 1] = (alive[1 : m + 1] + alive[:m]) / 2
        alive[0] /= 2
        tails = np.cumsum(alive[m::-1])
        last.append(_bound(tails, alpha - spent))
        early.append(_bound(tails, planned_alpha(alpha, m / (planned * horizon)) - spent))
        crossed = alive[(m + early[m]) // 2 : m + 1]
        spent += float(crossed.sum())
        crossed[:] = 0.0
    return Bounds(tuple(early), tuple(last))


def _bound(tails: NDArray[Any], room: float) -> int:
    """The least wins - losses that is likelier than `room` at no point above, at least 1."""
    m = len(tails) - 1
    affordable = int(tails.searchsorted(room + 1e-15, side="right"))
    difference = 2 * (m - affordable + 1) - m
    return difference if difference > 0 else 2 - m % 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SignRule:
    """A two-sided sequential sign test with futility; `operating_characteristics` gives its rates.

    Attributes:
        futility: When to give up, and how many examples there are.
        alpha: The chance of finding an equal candidate better.
        worse_alpha: The chance of finding an equal candidate worse.
        planned: See `bounds`; of better alone.
        block: A look after every so many examples.
    """

    futility: Futility
    alpha: float
    worse_alpha: float
    planned: float = PLANNED
    block: int = 1

    @property
    def better(self) -> Bounds:
        """The bounds of wins - losses."""
        return bounds(self.futility.horizon, self.alpha, self.planned)

    @property
    def worse(self) -> Bounds:
        """The bounds of losses - wins."""
        return bounds(self.futility.horizon, self.worse_alpha)


class SignTest:
    """A sign test in progress.

    Args:
        rule: Its settings.
    """

    def __init__(self, rule: SignRule) -> None:
        self._better, self._worse = rule.better, rule.worse
        self._horizon = rule.futility.horizon
        self._seen = self._walk = self._moved = 0

    def look(self, differences: list[float], *, last: bool = False) -> int:
        """1 where better is found, -1 where worse is, else 0.

        Args:
            differences: Of all examples so far, in their order.
            last: Whether no other look will follow, so that all of alpha is spent.
        """
        for difference in differences[self._seen :]:
            self._walk += (difference > 0) - (difference < 0)
            self._moved += difference != 0
        self._seen = len(differences)
        last = last or self._seen == self._horizon
        return self._crossed(self._better, self._walk, last=last) - self._crossed(self._worse, -self._walk, last=last)

    def left(self, alpha: float, planned: float = PLANNED) -> float:
        """How much of a chance the looks so far cannot have spent."""
        return alpha - planned_alpha(alpha, self._moved / (planned * self._horizon))

    def _crossed(self, limits: Bounds, walk: int, *, last: bool) -> bool:
        at_end = last and walk >= limits.last[self._moved]
        return walk >= limits.early[self._moved] or at_end

    def moments(self) -> tuple[float, float]:
        """The sums of the signs and of their squares."""
        return self._walk, self._moved


@dataclass(frozen=True, slots=True)
class Characteristics:
    """What a test does with candidates of one kind.

    Attributes:
        better: The chance that it finds the candidate better.
        worse: The chance that it finds it worse.
        futile: The chance that it gives up early.
        examples: How many examples it uses, on average.
    """

    better: float
    worse: float
    futile: float
    examples: float


def pair_chances(before: float, after: float, shared: float = 0.0) -> tuple[float, float]:
    """How often a candidate wins and loses an example, for scores of 0 and 1.

    Args:
        before, after: The chances of incumbent and candidate to be right on an example.
        shared: On which share of the examples one draw decides for both, so that only their difference shows.
    """
    wins = (1 - shared) * after * (1 - before) + shared * max(after - before, 0.0)
    losses = (1 - shared) * before * (1 - after) + shared * max(before - after, 0.0)
    return wins, losses


def operating_characteristics(p_better: float, p_worse: float, rule: SignRule) -> Characteristics:
    """The exact rates of a sign test, by dynamic programming over (examples that differ, wins).

    Args:
        p_better, p_worse: How often the candidate wins and loses an example; the rest are ties.
        rule: The test. Time and memory grow with the cube and the square of its horizon: .1 s for 100 examples.
    """
    import numpy as np

    horizon = rule.futility.horizon
    better, worse = rule.better, rule.worse
    chance = np.zeros((horizon + 1, horizon + 1))
    chance[0, 0] = 1.0
    moved, wins = np.arange(horizon + 1)[:, None], np.arange(horizon + 1)[None, :]
    walk = 2 * wins - moved
    found = {"better": 0.0, "worse": 0.0, "futile": 0.0}
    examples = 0.0
    for n in range(1, horizon + 1):
        now = chance[: n + 1, : n + 1]
        # the right side is complete before the first cell is written
        now[1:, 1:], now[1:, :1], now[0, 0] = (
            now[1:, 1:] * (1 - p_better - p_worse) + now[:-1, :-1] * p_better + now[:-1, 1:] * p_worse,
            now[1:, :1] * (1 - p_better - p_worse) + now[:-1, :1] * p_worse,
            now[0, 0] * (1 - p_better - p_worse),
        )
        if n % rule.block and n != horizon:
            continue
        s, m = walk[: n + 1, : n + 1], moved[: n + 1]
        stops = {
            "better": s >= _column(better, n, at_end=n == horizon),
            "worse": -s >= _column(worse, n, at_end=n == horizon),
            "futile": rule.futility.hopeless(s, m, n),
        }
        for name, stop in stops.items():
            mass = float(now[stop].sum())
            found[name] += mass
            examples += n * mass
            now[stop] = 0.0
    return Characteristics(**found, examples=examples + horizon * float(chance.sum()))


def _column(limits: Bounds, n: int, *, at_end: bool) -> NDArray[Any]:
    import numpy as np

    early = np.array(limits.early[: n + 1])
    return (np.minimum(early, np.array(limits.last[: n + 1])) if at_end else early)[:, None]
