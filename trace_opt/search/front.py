"""The front: for every example, and for every objective, the candidates that do best there.

A mean hides that two candidates are good at different things; what leads somewhere is worth building on even where its
mean is not the highest. Of candidates that lead nowhere alone only as many stay as are needed to keep every lead, so a
front is never larger than the number of examples and objectives, and parents are drawn by how much of it they hold.
Source: GEPA (arXiv 2507.19457, algorithm 2), with leads shared among those that tie.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Front:
    """Candidates with what they are worth in every cell; a cell is an example or an objective.

    Args:
        table: By candidate number, its worth in every cell; higher is better, rows are of one length.
        ranks: By candidate number, what decides between candidates that could replace each other; higher stays.
    """

    table: Mapping[int, Sequence[float]]
    ranks: Mapping[int, float]

    @cached_property
    def leaders(self) -> tuple[frozenset[int], ...]:
        """For every cell the candidates of the highest worth."""
        return tuple(
            frozenset(number for number, worth in zip(self.table, column, strict=True) if worth == max(column))
            for column in zip(*self.table.values(), strict=True)
        )

    @cached_property
    def alive(self) -> tuple[int, ...]:
        """Candidates without which a cell would lose its last leader, in the order of their numbers.

        Those of the lowest rank go first; of equal ones the later.
        """
        held = {number: [cell for cell, led in enumerate(self.leaders) if number in led] for number in self.table}
        left = [len(led) for led in self.leaders]
        gone: set[int] = set()
        for number in sorted(self.table, key=lambda n: (self.ranks[n], -n)):
            if len(self.table) - len(gone) > 1 and all(left[cell] > 1 for cell in held[number]):
                gone.add(number)
                for cell in held[number]:
                    left[cell] -= 1
        return tuple(sorted(set(self.table) - gone))

    @cached_property
    def coverage(self) -> dict[int, float]:
        """How many cells each living candidate holds; cells that several lead are shared among them."""
        held = dict.fromkeys(self.alive, 0.0)
        for led in self.leaders:
            living = led & held.keys()
            for number in sorted(living):
                held[number] += 1 / len(living)
        return held

    def draw(self, rng: random.Random, count: int) -> list[int]:
        """Parents by coverage: each living candidate once before any is drawn again.

        Args:
            rng: The only chance.
            count: How many.
        """
        drawn: list[int] = []
        while len(drawn) < count:
            open_ = [n for n in self.alive if n not in drawn[len(drawn) - len(drawn) % len(self.alive) :]]
            drawn += rng.choices(open_, weights=[max(self.coverage[n], 1e-12) for n in open_])
        return drawn


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is at least as good everywhere and better somewhere; higher is better."""
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def undominated(rows: Mapping[int, Sequence[float]]) -> tuple[int, ...]:
    """The candidates that no other dominates, in their order; of equal rows all stay."""
    return tuple(n for n, row in rows.items() if not any(dominates(other, row) for other in rows.values()))
