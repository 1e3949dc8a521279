"""The betting test, for scores in a known range: it assumes nothing else, and may stop or go on at any time.

One plays against the claim that the candidate is no better: before each block of examples a stake is set, and the capital
grows by the stake times the differences. If the claim is true the capital is not expected to grow, so it reaches
1 / alpha with a chance of at most alpha, however often one looks (Ville's inequality).
"""

from __future__ import annotations

import math

PRIOR_MEAN, PRIOR_SQUARE, PRIOR_WEIGHT = 0.1, 0.1, 5.0
"""What differences are taken for before any is seen, and how many examples that is worth."""

BOLDEST = 0.75
"""The largest stake: one lost bet costs at most three quarters of the capital."""


MOST_LENIENT = 0.4
"""The largest alpha used while examples are left: for a capital of less than 1 / .4 a single bet could win the test."""


EVEN = 0.5
"""What a large alpha has left for the last look: if nothing changed, a mean above 0 is as likely as one below."""


class Wealth:
    """The capital of one who bets that the mean is above 0.

    Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (arXiv 2010.09686); the stake is
    their approximate GRAPA, mean over mean square of what was seen before, drawn towards a prior.
    """

    def __init__(self) -> None:
        self.log = 0.0
        self._sum = PRIOR_WEIGHT * PRIOR_MEAN
        self._squares = PRIOR_WEIGHT * PRIOR_SQUARE

    def bet(self, differences: list[float]) -> None:
        """Bet on a block; its stake rests on earlier blocks alone.

        Args:
            differences: Each in [-1, 1].
        """
        stake = min(max(self._sum / self._squares, 0.0), BOLDEST)
        self.log += math.fsum(math.log1p(stake * d) for d in differences)
        self._sum += math.fsum(differences)
        self._squares += math.fsum(d * d for d in differences)


class BettingTest:
    """A betting test in progress.

    Args:
        alpha, worse_alpha: The chances of finding a candidate better, or worse, that is not.
        span: The largest possible difference.
        horizon: How many examples there are; the last look is at all of them.
    """

    def __init__(self, alpha: float, worse_alpha: float, span: float, horizon: int) -> None:
        self._limits = -math.log(min(alpha, MOST_LENIENT)), -math.log(min(worse_alpha, MOST_LENIENT))
        self._coin = alpha >= MOST_LENIENT + EVEN
        self._horizon = horizon
        self._span = span
        self._up, self._down = Wealth(), Wealth()
        self._seen = 0
        self._sums = 0.0, 0.0

    def look(self, differences: list[float], *, last: bool = False) -> int:  # noqa: ARG002 # a bet is worth the same whenever
        """1 where better is found, -1 where worse is, else 0.

        Args:
            differences: Of all examples so far; those that are new are one block.
            last: Whether no other look will follow.
        """
        # a failed rollout may lose by more than the range, and one bet must not ruin
        block = [min(max(d / self._span, -1.0), 1.0) for d in differences[self._seen :]]
        self._up.bet(block)
        self._down.bet([-d for d in block])
        self._seen = len(differences)
        self._sums = self._sums[0] + math.fsum(block), self._sums[1] + math.fsum(d * d for d in block)
        better, worse = self._up.log >= self._limits[0], self._down.log >= self._limits[1]
        better = better or (self._coin and self._seen == self._horizon and self._sums[0] > 0)
        return better - worse

    def moments(self) -> tuple[float, float]:
        """The sums of the differences and of their squares, in units in which the mean square is one half."""
        return scaled(*self._sums, self._seen)


def scaled(total: float, squares: float, n: int) -> tuple[float, float]:
    """Sums of differences and of their squares, as if half of the examples differed by one.

    What counts for a test is the gain against the spread; in these units futility's hope means the same for scores that
    move by hundredths and for those that move by one.
    """
    if squares <= 0:
        return 0.0, 0.0
    return total / math.sqrt(2 * squares / n), n / 2
