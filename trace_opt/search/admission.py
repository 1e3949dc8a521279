"""Whose turn it is to spend: things that run at once are admitted as if they ran one after the other.

What is in a line is admitted if what everything before it came to and its own worst case fit. While something before it
is under way, that may still ask for more, so a later one goes ahead only where the worst cases of both fit, and waits
else. Only the first that is not finished is ever refused, and with it all behind it. So which of them run does not depend
on how many run at once, or on who is answered first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from trace_opt.core.rollout import Cost

Kind = Literal["rollout", "proposal"]

Amount = tuple[int, int, float]
"""Calls, tokens and US dollars."""

_SPARE = 2
"""How many times the most that was seen so far something may ask for; more is served as far as the budget goes."""


def amount(cost: Cost) -> Amount:
    """What of a cost is limited."""
    return cost.calls, cost.tokens, cost.usd or 0.0


class Place:
    """One of those in a line. All its methods are called under the ledger's lock.

    Args:
        line: The line.
        number: Where in it.

    Attributes:
        done: Whether it is finished.
    """

    __slots__ = ("_asked", "_used", "done", "line", "number")

    def __init__(self, line: Line, number: int) -> None:
        self.line = line
        self.number = number
        self.done = False
        self._used: Amount = (0, 0, 0.0)  # what is in flight counts with its worst case
        self._asked: Amount = (0, 0, 0.0)  # the worst cases of all that it sent

    @property
    def first(self) -> bool:
        """Whether everything before it is finished."""
        return self.line.first >= self.number

    def reserve(self, worst: Cost) -> None:
        """It sends something."""
        self._used = _sum(self._used, amount(worst))
        self._asked = _sum(self._asked, amount(worst))

    def settle(self, worst: Cost | None, actual: Cost) -> None:
        """What it sent came to something; with None it spent what was never reserved."""
        if worst is not None:
            self._used = _less(self._used, amount(worst))
        self._used = _sum(self._used, amount(actual))

    def finish(self) -> None:
        """It will spend no more."""
        if not self.done:
            self.done = True
            self.line.seen.add(self._asked)
            self.line.advance()

    def ahead(self, worst: Cost) -> Amount | None:
        """The most that those before it may still ask for; None where nothing like them is known.

        Args:
            worst: What it wants to send itself; those before it are taken to send that too.
        """
        bound = self.line.seen.bound(amount(worst))
        if bound is None:
            return None
        total: Amount = (0, 0, 0.0)
        for other in self.line.before(self.number):
            total = _sum(total, _less(bound, other._used))
        return total


@dataclass(slots=True)
class Seen:
    """What those of one kind asked for so far."""

    most: Amount | None = None
    fewest_calls: int = 0

    def add(self, asked: Amount) -> None:
        """One is finished."""
        if self.most is None:
            self.most, self.fewest_calls = asked, asked[0]
        else:
            self.most = max(self.most[0], asked[0]), max(self.most[1], asked[1]), max(self.most[2], asked[2])
            self.fewest_calls = min(self.fewest_calls, asked[0])

    def bound(self, least: Amount) -> Amount | None:
        """The most that another will ask for; None before one is known."""
        if self.most is None:
            return None
        calls, tokens, usd = (max(seen, one) for seen, one in zip(self.most, least, strict=True))
        # texts grow while a search goes on; the number of calls mostly stays what it is
        return int(calls if self.fewest_calls == calls else _SPARE * calls), int(_SPARE * tokens), _SPARE * usd


@dataclass(slots=True)
class Line:
    """Things in one order of effect.

    Attributes:
        seen: What those of their kind asked for so far.
        places: One for each of them.
        first: The number of the first that is not finished.
        closed: Whether one was refused, so that none behind it may go on.
    """

    seen: Seen
    places: list[Place] = field(default_factory=list[Place])
    first: int = 0
    closed: bool = False

    @classmethod
    def of(cls, count: int, seen: Seen) -> Line:
        """A line of so many."""
        line = cls(seen)
        line.places = [Place(line, number) for number in range(count)]
        return line

    def before(self, number: int) -> Iterator[Place]:
        """Those before one that are not finished."""
        return (place for place in self.places[self.first : number] if not place.done)

    def advance(self) -> None:
        """Find the first that is not finished."""
        while self.first < len(self.places) and self.places[self.first].done:
            self.first += 1


def _sum(one: Amount, other: Amount) -> Amount:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _less(one: Amount, other: Amount) -> Amount:
    return max(0, one[0] - other[0]), max(0, one[1] - other[1]), max(0.0, one[2] - other[2])
