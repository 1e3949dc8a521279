"""Means, intervals and paired tests over scores; None stands for a failed rollout.

Binary scores get exact and Wilson statistics; others a bootstrap and sign flips with a fixed seed, which assume nothing
about the distribution and repeat exactly.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

Scores = Sequence[float | None]

Z95 = 1.959963984540054
_RESAMPLES = 2000
_MANY = 500
_SEED = 20_260_101


@dataclass(frozen=True, slots=True)
class Paired:
    """Two sets of scores on the same examples.

    Attributes:
        differences: Second minus first; a failed side loses by the largest difference seen (1 where there is none).
    """

    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean difference; 0 where there are none."""
        return math.fsum(self.differences) / len(self.differences) if self.differences else 0.0

    @property
    def wins(self) -> int:
        """How often the second is higher."""
        return sum(d > 0 for d in self.differences)

    @property
    def losses(self) -> int:
        """How often the first is higher."""
        return sum(d < 0 for d in self.differences)

    @property
    def signs_only(self) -> bool:
        """Whether the differences are all of one size, so that only their signs say anything."""
        return len({abs(d) for d in self.differences if d}) <= 1


def paired(before: Scores, after: Scores) -> Paired:
    """Pair two sets of scores.

    Args:
        before, after: Scores on the same examples in the same order; None where the workflow failed.
    """
    known = [b - a for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    most = max((abs(d) for d in known), default=0.0) or 1.0
    return Paired(tuple(_difference(a, b, most) for a, b in zip(before, after, strict=True)))


def _difference(before: float | None, after: float | None, most: float) -> float:
    if before is not None and after is not None:
        return after - before
    return most * ((before is None) - (after is None))


def mean(scores: Scores, floor: float) -> float:
    """Mean score.

    Args:
        scores: At least one.
        floor: What a failed rollout counts as.
    """
    return math.fsum(floor if score is None else score for score in scores) / len(scores)


def is_binary(scores: Scores) -> bool:
    """Whether every score is 0 or 1."""
    return all(score in (0.0, 1.0) for score in scores if score is not None)


def wilson(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's interval of a proportion.

    Args:
        successes: How many of `n`; at least 1 example.
        n: How many examples.
        z: The normal quantile; 95 % two-sided by default.
    """
    p = successes / n
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((p + z * z / (2 * n) + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    return (0.0 if successes == 0 else max(0.0, low)), (1.0 if successes == n else min(1.0, high))


def mean_interval(values: Sequence[float], *, binary: bool) -> tuple[float, float]:
    """A 95 % interval of a mean.

    Args:
        values: At least one.
        binary: Whether they are zeros and ones by nature; Wilson's interval then, else a bootstrap.
    """
    return wilson(math.fsum(values), len(values)) if binary else bootstrap(values)


def bootstrap(values: Sequence[float], alpha: float = 0.05) -> tuple[float, float]:
    """A percentile interval of the mean, from resamples with a fixed seed; the normal one for many values.

    Args:
        values: At least one.
        alpha: How likely it is to miss, both sides together.
    """
    if len(set(values)) <= 1:
        return values[0], values[0]
    if len(values) > _MANY:
        middle = math.fsum(values) / len(values)
        variance = math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1)
        spread = NormalDist().inv_cdf(1 - alpha / 2) * math.sqrt(variance / len(values))
        return middle - spread, middle + spread
    rng = random.Random(_SEED)  # noqa: S311 # statistics, not a secret
    n = len(values)
    means = sorted(math.fsum(rng.choices(values, k=n)) / n for _ in range(_RESAMPLES))
    cut = round(alpha / 2 * _RESAMPLES)
    return means[cut], means[-1 - cut]


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p value of the exact sign test: how likely fair coins differ this much."""
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


def sign_flips(differences: Sequence[float]) -> float:
    """Two-sided p value of a mean difference under random signs, with a fixed seed."""
    moved = [abs(d) for d in differences if d]
    if not moved:
        return 1.0
    seen = abs(math.fsum(differences)) - 1e-12
    rng = random.Random(_SEED)  # noqa: S311 # statistics, not a secret
    count = 1
    for _ in range(_RESAMPLES):
        bits = rng.getrandbits(len(moved))
        count += abs(math.fsum(d if bits >> i & 1 else -d for i, d in enumerate(moved))) >= seen
    return count / (_RESAMPLES + 1)


def p_value(pairs: Paired) -> float:
    """How likely differences as large, either way, are by chance: a sign test where only signs count, else sign flips."""
    return sign_test(pairs.wins, pairs.losses) if pairs.signs_only else sign_flips(pairs.differences)


def difference_interval(pairs: Paired, alpha: float = 0.05) -> tuple[float, float]:
    """An interval of the mean difference.

    Where only signs count it is Tango's, by the score test, wide enough to hold 0 wherever the exact two-sided sign test is
    not below alpha; else a bootstrap. Source: Tango, Statistics in Medicine 17 (1998), 891-908.
    """
    if not pairs.signs_only:
        return bootstrap(pairs.differences, alpha)
    n, wins, losses = len(pairs.differences), pairs.wins, pairs.losses
    size = max((abs(d) for d in pairs.differences), default=0.0) or 1.0
    z = NormalDist().inv_cdf(1 - alpha / 2)
    low = -_bound(n, losses, wins, z)
    high = _bound(n, wins, losses, z)
    if sign_test(wins, losses) >= alpha:
        low, high = min(low, 0.0), max(high, 0.0)
    return size * low, size * high


def _bound(n: int, wins: int, losses: int, z: float) -> float:
    """The greatest difference of two shares that a score test of its size does not refuse."""

    def excess(delta: float) -> float:
        # the likeliest share of losses where the difference is delta
        b = (2 * n - wins + losses) * delta - wins - losses
        lost = (math.sqrt(max(0.0, b * b + 8 * n * losses * delta * (1 - delta))) - b) / (4 * n)
        spread = math.sqrt(max(0.0, n * (2 * lost + delta * (1 - delta))))
        distance = n * delta - (wins - losses)
        return distance / spread if spread > 0 else math.copysign(math.inf, distance or 1.0)

    low, high = (wins - losses) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if excess(middle) < z:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def shrunken(means: Sequence[float], counts: Sequence[int]) -> list[float]:
    """Means drawn towards their common one, the more the fewer examples they rest on.

    Choosing by raw means picks the luckiest; empirical Bayes with a beta prior for scores in [0, 1], and the same
    weights for others. Scores outside are shifted and scaled first.

    Args:
        means: Mean score of each candidate.
        counts: Over how many examples, at least 1 each.
    """
    low, high = min(means), max(means)
    if high <= low:
        return list(means)
    scale = 1.0 if low >= 0 and high <= 1 else high - low
    shift = 0.0 if scale == 1.0 else low
    unit = [(m - shift) / scale for m in means]
    total = sum(counts)
    pooled = math.fsum(m * n for m, n in zip(unit, counts, strict=True)) / total
    variance = pooled * (1 - pooled)
    between = math.fsum(n * (m - pooled) ** 2 for m, n in zip(unit, counts, strict=True)) / total
    between = max(between - variance * len(means) / total, 1e-9)
    strength = max(variance / between - 1, 1.0)
    return [shift + scale * (m * n + strength * pooled) / (n + strength) for m, n in zip(unit, counts, strict=True)]
