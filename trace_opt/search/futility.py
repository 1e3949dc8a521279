"""When a comparison has so little hope left that its remaining examples are better spent elsewhere.

Futility stops only for "no". A test that never accepts what it would have rejected keeps its error rate, so the rule here
may be as rough, and as impatient, as it likes: it changes power and cost alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Futility:
    """Predictive power: the chance, given what was seen and a hopeful prior, that all examples together will convince.

    The gain per example is believed to be `delta`, as firmly as `prior` examples would make one believe it; the sum of
    the examples to come is then normal, and has to end above what a test at the last example asks for.
    Source: predictive power in sequential trials (Spiegelhalter, Freedman and Blackburn 1986); with the drift taken
    from a prior it stays impatient where pairs are correlated and few of them differ, which conditional power does not.

    Attributes:
        horizon: How many examples there are.
        gamma: Stop below this chance; 0 never stops.
        delta: The gain hoped for, as a share of the largest possible difference.
        prior: How many examples that hope is worth.
        reach: How many standard deviations above 0 the sum must end.
    """

    horizon: int
    gamma: float
    delta: float
    prior: float
    reach: float = 1.7
    _quantile: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        quantile = NormalDist().inv_cdf(self.gamma) if self.gamma > 0 else float("-inf")
        object.__setattr__(self, "_quantile", quantile)

    def hopeless(self, total: Any, squares: Any, n: int) -> Any:
        """Whether to stop.

        Args:
            total: The sum of the differences, in units of their largest size; a number or an array of them.
            squares: The sum of their squares (for signs: how many examples differ).
            n: How many examples were seen.

        Returns:
            A bool, or an array of them.
        """
        rest = self.horizon - n
        if rest <= 0 or self.gamma <= 0:
            return total != total  # noqa: PLR0124 # False, in the shape of the argument
        drift = (total + self.prior * self.delta) / (n + self.prior)
        square = (squares + 1) / (n + 2)
        needed = self.reach * (squares + square * rest) ** 0.5
        spread = _at_least(square - drift * drift, 0.02) * rest * (1 + rest / (n + self.prior))
        return total + drift * rest - needed < self._quantile * spread**0.5


def _at_least(value: Any, low: float) -> Any:
    """The greater of both, for numbers and arrays alike."""
    return (value + low + abs(value - low)) / 2
