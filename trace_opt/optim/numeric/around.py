"""How a search by surrogate asks around its iterate, and what settings it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trace_opt.errors import meant
from trace_opt.optim.numeric.gaussian import LENGTHSCALES, VARIANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """How the surrogate asks and what it makes of the answers. Lengths are in half widths of the bounds.

    Args:
        start: Queries before the first gradient.
        within: They lie within this distance of the start in every coordinate.
        spread: Standard deviation of a query around the iterate, in units of the current learning rate. Less ends nearer
            to the optimum of a smooth function; on rugged ones it gets stuck.
        nearest: The surrogate is fitted to this many queries nearest to the iterate.
        lengthscales: Among which the likelihood chooses.
        variance: The noise's share of the variance of values, where they are taken for exact.

    Raises:
        ValueError: a number is too small to mean anything.
    """

    start: int = 10
    within: float = 0.1
    spread: float = 1.0
    nearest: int = 100
    lengthscales: Sequence[float] = LENGTHSCALES
    variance: float = VARIANCE

    def __post_init__(self) -> None:
        refuse_small(
            "Around", start=(self.start, 2), nearest=(self.nearest, 1), lengthscales=(len(self.lengthscales), 1)
        )
        refuse_not_positive("Around", within=self.within, spread=self.spread, variance=self.variance)


def refuse_unknown(who: str, what: str, given: str, known: Sequence[str]) -> None:
    """Refuse a name that is not known, with the nearest one that is.

    Raises:
        ValueError: it is not among them.
    """
    if given not in known:
        hint = meant(given, known, f"choose one of {', '.join(map(repr, known))}")
        raise ValueError(f"{who} got {what}={given!r}; {hint}")


def refuse_small(who: str, **numbers: tuple[int, int]) -> None:
    """Refuse numbers, by name, that are below the least they may be.

    Raises:
        ValueError: one is.
    """
    for name, (number, least) in numbers.items():
        if number < least:
            raise ValueError(f"{who} got {name}={number!r}; give at least {least}")


def refuse_not_positive(who: str, **numbers: float) -> None:
    """Refuse numbers, by name, that are not above 0, nan among them.

    Raises:
        ValueError: one is not.
    """
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{who} got {name}={number!r}; give a number above 0")
