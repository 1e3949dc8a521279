"""Two gates, one test: may the search build on a candidate, and may the report say that it is better?

Candidate and incumbent are compared on the same examples, in a fresh seeded order each time, and the comparison stops as
soon as it has found better, found worse, or has little hope left. Which test it is follows from what was declared about
the scores before any was seen: the exact sign test for scores of two values, a betting test where `score_range` is known,
sign flips otherwise. The gates differ in their settings alone: the search gate is tuned for the quality of what a search
ends with, the claim gate keeps the chance of a false claim at 5 %.

A comparison is a function of its pairs: to resume one, add them again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from trace_opt.errors import ProblemError
from trace_opt.search.betting import BettingTest
from trace_opt.search.futility import Futility
from trace_opt.search.sign_flip import SignFlipTest
from trace_opt.search.sign_test import Characteristics, SignRule, SignTest, operating_characteristics

Kind = Literal["sign", "betting", "flips"]
Outcome = Literal["better", "worse", "futile", "undecided"]
Result = float | Mapping[str, float] | None
"""The score of a rollout, or several by name; None where it failed."""

GUARDED = 8
"""How many examples a score that looks worse gets to be found worse, before another is found better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What is declared of one score, before any is seen; higher is better.

    Attributes:
        name: Its key where there are several.
        two_valued: Whether it takes two values only, as right or wrong does; 0 and 1 where no range is given.
        score_range: Its least and greatest value, where known.
        margin: By how much it may be worse without anyone minding, where another score is the one tested.
    """

    name: str = "score"
    two_valued: bool = False
    score_range: tuple[float, float] | None = None
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise ProblemError(
                f"the margin {self.margin!r} of {self.name!r} is below 0; give by how much it may be worse"
            )
        if self.score_range is not None and not self.score_range[0] < self.score_range[1]:
            raise ProblemError(
                f"the score_range {self.score_range!r} of {self.name!r} is empty; give (lowest, highest)"
            )

    @property
    def span(self) -> float | None:
        """The largest possible difference, where known."""
        return None if self.score_range is None else self.score_range[1] - self.score_range[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a comparison ended.

    Attributes:
        outcome: "better" and "worse" are found; "futile" gave up early, "undecided" found nothing on all examples.
        n: After how many examples.
        mean: The mean difference on them, of what was tested.
        measure: Which score decided.
    """

    outcome: Outcome
    n: int
    mean: float
    measure: str

    @property
    def accepted(self) -> bool:
        """Whether the candidate was found better."""
        return self.outcome == "better"

    def __str__(self) -> str:
        says = {
            "better": "better than the incumbent",
            "worse": f"worse than the incumbent in {self.measure!r}",
            "futile": "little hope left",
            "undecided": "not found better",
        }
        return f"{says[self.outcome]} after {self.n} examples, mean difference {self.mean:+.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The settings of a comparison; made by `Gate.search()`, `Gate.claim()` and `Gate.phase()`.

    Args:
        alpha: The chance, at most, of finding a candidate better that is not.
        worse_alpha: The same for worse, of each score.
        gamma: Give up when the chance of still finding better falls below this; 0 never does.
        delta: The gain hoped for, times the root of the number of examples, as a share of the largest difference; 2 is
            about the smallest gain that they show.
        prior: How firm that hope is, as a share of the examples.
        reach: How many standard deviations it has to show in the end, for the hope to be fulfilled.
        planned: By which share of the examples differing alpha is spent, but for a tenth that is kept for the last.
        block: A look after every so many examples; within a block, order makes no difference.
        kind: The test, where it is not to follow from what is declared of the scores.

    Raises:
        ProblemError: a number is out of its range.
    """

    alpha: float = 0.05
    worse_alpha: float = 0.05
    gamma: float = 0.15
    delta: float = 2.0
    prior: float = 0.3
    reach: float = 1.7
    planned: float = 0.5
    block: int = 1
    kind: Kind | None = None

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 1 and 0 < self.worse_alpha < 1 and 0 <= self.gamma < 1):
            raise ProblemError(f"{self!r} has a chance outside (0, 1); give alpha, worse_alpha and gamma as chances")
        if self.block < 1 or self.prior <= 0 or self.planned <= 0:
            raise ProblemError(
                f"{self!r} has a number below its least; give a block of 1 or more, prior and planned above 0"
            )

    @classmethod
    def search(cls, *, block: int = 1) -> Gate:
        """What to build on: lenient to what shines early, and quick to drop the rest.

        A strict gate starves a search, because most steps forward are smaller than it can see, and what is saved by
        dropping early buys further candidates. Tuned for the true accuracy of the final choice in
        benchmarks/search_simulation.py, which also has the settings that were not taken. Alpha is what would be spent if
        hopeless candidates were not dropped; `characteristics` gives the true rates.
        """
        return cls(alpha=0.9, gamma=0.5, delta=0.75, reach=0.5, planned=0.2, block=block)

    @classmethod
    def claim(cls, *, alpha: float = 0.05, block: int = 1) -> Gate:
        """Whether a report may say "better": on 100 pairs of right or wrong it finds 20 points 82 times of 100."""
        return cls(alpha=alpha, block=block)

    @classmethod
    def phase(cls, *, block: int = 1) -> Gate:
        """What becomes of a training phase: it is kept unless the outcome is "worse", so nothing is given up early."""
        return cls(gamma=0.0, block=block)

    def begin(
        self,
        horizon: int,
        measures: Sequence[Measure] = (Measure(two_valued=True),),
        *,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> Comparison:
        """Start a comparison.

        Args:
            horizon: How many examples there are; no more can be added.
            measures: The scores, as declared. The first is tested; none of the others may be found worse by more than
                its margin.
            weights: Test this weighted sum instead of the first; scores without a weight are the others then.
            seed: Of the signs that sign flips draw.

        Raises:
            ProblemError: there are no examples or scores, or a weight is of no score.
        """
        if horizon < 1 or not measures:
            raise ProblemError(f"a comparison of {len(measures)} scores on {horizon} examples is empty; give both")
        tested, others = _split(list(measures), weights)
        return Comparison(self, horizon, tested, others, dict(weights or {measures[0].name: 1.0}), seed)

    def kind_of(self, measure: Measure) -> Kind:
        """Which test a score gets; a margin moves the fair point away from 0, where signs are not fair coins."""
        if self.kind is not None:
            return self.kind
        if measure.two_valued and not measure.margin:
            return "sign"
        return "flips" if measure.span is None else "betting"

    def futility(self, horizon: int) -> Futility:
        """When a comparison of so many examples gives up."""
        return Futility(
            horizon=horizon, gamma=self.gamma, delta=self.delta / math.sqrt(horizon), prior=self.prior * horizon,
            reach=self.reach,
        )  # fmt: skip

    def sign_rule(self, horizon: int) -> SignRule:
        """The sign test with these settings."""
        return SignRule(
            futility=self.futility(horizon), alpha=self.alpha, worse_alpha=self.worse_alpha, planned=self.planned,
            block=self.block,
        )  # fmt: skip

    def characteristics(self, p_better: float, p_worse: float, horizon: int) -> Characteristics:
        """What the gate does with scores of two values, exactly; see `operating_characteristics`."""
        return operating_characteristics(p_better, p_worse, self.sign_rule(horizon))


def _split(measures: list[Measure], weights: Mapping[str, float] | None) -> tuple[Measure, list[Measure]]:
    """The score that is tested, and the others."""
    if weights is None:
        return replace(measures[0], margin=0.0), measures[1:]
    named = {measure.name: measure for measure in measures}
    unknown = sorted(set(weights) - set(named))
    if unknown or not weights:
        raise ProblemError(f"weights of {unknown!r} weigh no score; the scores are {sorted(named)!r}")
    parts = [(named[name], weight) for name, weight in weights.items()]
    spans = [abs(weight) * span for measure, weight in parts if (span := measure.span or measure.two_valued or None)]
    span = math.fsum(spans) if len(spans) == len(parts) else None
    total = Measure(
        name=" + ".join(weights), two_valued=len(parts) == 1 and parts[0][0].two_valued,
        score_range=(0.0, span) if span else None,
    )  # fmt: skip
    return total, [measure for measure in measures if measure.name not in weights]


class _Test(Protocol):
    def look(self, differences: list[float], *, last: bool = False) -> int: ...
    def moments(self) -> tuple[float, float]: ...


class _Track:
    """The differences of one score, and the test on them."""

    def __init__(self, gate: Gate, horizon: int, measure: Measure, weights: Mapping[str, float], seed: int) -> None:
        self.measure = measure
        self._gate, self._horizon, self._seed = gate, horizon, seed
        self._weights = weights
        self._most = 0.0
        self._size = 0.0
        self._graded = False
        self._differences: list[float] = []
        self._failed: dict[int, int] = {}
        self.test = _test_of(gate, horizon, measure, seed)

    def add(self, before: Result, after: Result) -> None:
        if before is not None and after is not None:
            difference = math.fsum(w * (_of(after, n) - _of(before, n)) for n, w in self._weights.items())
            size = abs(difference)
            self._most = max(self._most, size)
            self._size = self._size or size
            self._graded = self._graded or (size > 0 and not math.isclose(size, self._size, rel_tol=1e-9))
        else:
            difference = 0.0
            self._failed[len(self._differences)] = (before is None) - (after is None)
        self._differences.append(difference)

    @property
    def differences(self) -> list[float]:
        """Candidate minus incumbent; a failed side loses by the largest difference seen, 1 where there is none."""
        for index, sign in self._failed.items():
            self._differences[index] = sign * (self._most or 1.0)
        return self._differences

    @property
    def is_behind(self) -> bool:
        """Whether the mean is worse by more than the margin, found so or not."""
        return math.fsum(self.differences) / max(1, len(self._differences)) < -self.measure.margin

    def look(self, *, last: bool = False) -> int:
        if self._graded and isinstance(self.test, SignTest):
            # a start that scored 0 throughout told nothing of values between; that there are some says nothing of which
            # side is better, and what signs may have spent of alpha is not spent again
            left = self.test.left(self._gate.alpha, self._gate.planned), self.test.left(self._gate.worse_alpha)
            self.test = SignFlipTest(self._horizon, *left, seed=self._seed, planned=self._gate.planned)
        margin = self.measure.margin
        return self.test.look([d + margin for d in self.differences] if margin else self.differences, last=last)


def _of(result: float | Mapping[str, float], name: str) -> float:
    if not isinstance(result, Mapping):
        return result
    if name not in result:
        raise ProblemError(f"a rollout has no score {name!r} among {sorted(result)!r}; give every score each time")
    return result[name]


def _test_of(gate: Gate, horizon: int, measure: Measure, seed: int) -> _Test:
    kind = gate.kind_of(measure)
    if kind == "sign":
        return SignTest(gate.sign_rule(horizon))
    if kind == "flips":
        return SignFlipTest(horizon, gate.alpha, gate.worse_alpha, seed=seed, planned=gate.planned)
    return BettingTest(gate.alpha, gate.worse_alpha, (measure.span or 1.0) + measure.margin, horizon)


class Comparison:
    """A candidate against the incumbent, pair by pair; made by `Gate.begin`.

    Attributes:
        n: How many pairs were added.
        verdict: How it ended, or None while it is open.
    """

    def __init__(
        self, gate: Gate, horizon: int, tested: Measure, others: Sequence[Measure], weights: Mapping[str, float],
        seed: int,
    ) -> None:  # fmt: skip
        self.n = 0
        self.verdict: Verdict | None = None
        self._gate, self._horizon = gate, horizon
        self._tested = _Track(gate, horizon, tested, weights, seed)
        self._others = [_Track(gate, horizon, measure, {measure.name: 1.0}, seed) for measure in others]
        self._futility = gate.futility(horizon)

    def add(self, before: Result, after: Result) -> Verdict | None:
        """Add the results of one example.

        Args:
            before, after: Of incumbent and candidate, with the same rollout seed; None where the rollout failed.

        Returns:
            The verdict, where this example ends a block and decides; the last example always does.

        Raises:
            ProblemError: the comparison has ended, or a score is missing.
        """
        if self.verdict is not None:
            raise ProblemError(f"the comparison ended: {self.verdict}; begin another for further examples")
        for track in (self._tested, *self._others):
            track.add(before, after)
        self.n += 1
        if self.n % self._gate.block == 0 or self.n == self._horizon:
            self.verdict = self._look()
        return self.verdict

    def extend(self, before: Sequence[Result], after: Sequence[Result]) -> Verdict | None:
        """Add the results of several examples, up to the one that decides; see `add`."""
        for one, other in zip(before, after, strict=True):
            if self.add(one, other) is not None:
                break
        return self.verdict

    def _look(self) -> Verdict | None:
        found = self._tested.look()
        # what is found better early leaves no later looks to find another score worse
        worse = [track.measure.name for track in self._others if track.look(last=found > 0) < 0]
        if found < 0 or worse:
            return self._ended("worse", self._tested.measure.name if found < 0 else worse[0])
        few = self.n < min(GUARDED, self._horizon)
        if found > 0 and not (few and any(track.is_behind for track in self._others)):
            return self._ended("better", self._tested.measure.name)
        if self.n == self._horizon:
            return self._ended("undecided", self._tested.measure.name)
        if self._futility.hopeless(*self._tested.test.moments(), self.n):
            return self._ended("futile", self._tested.measure.name)
        return None

    def _ended(self, outcome: Outcome, measure: str) -> Verdict:
        mean = math.fsum(self._tested.differences) / self.n
        return Verdict(outcome=outcome, n=self.n, mean=mean, measure=measure)


def trial_order(numbers: Sequence[int], seed: int, trial: int) -> list[int]:
    """The order in which one trial goes through the examples.

    A fresh one each time: in one fixed order the first examples would decide about every candidate.

    Args:
        numbers: The examples.
        seed: The run's.
        trial: The trial's number.
    """
    order = sorted(numbers)
    random.Random(f"gate {seed} {trial}").shuffle(order)  # noqa: S311 # an order, not a secret
    return order
