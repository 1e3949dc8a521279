"""What is declared of the scores: how many there are, whether they take two values, and which of them decides.

Which test a gate uses follows from this, so it is settled from the start's scores and the options alone, before any
candidate has been run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

from trace_opt.errors import FeedbackError, ProblemError
from trace_opt.search.candidate import Score
from trace_opt.search.gate import Gate, Measure, Result
from trace_opt.search.sign_test import pair_chances

FEW = 100
"""Below so many validation examples a run should warn: only large gains show."""

_TESTS = {
    "sign": "an exact sign test, for the start's scores take two values",
    "betting": "a betting test within the score_range",
    "flips": "sign flips, for nothing is declared of the scores",
}


def declared(
    scores: Sequence[Score], *, score_range: tuple[float, float] | None = None,
    weights: Mapping[str, float] | None = None, margins: Mapping[str, float] | None = None,
) -> tuple[Measure, ...]:  # fmt: skip
    """The score that decides, and after it the others that must not get worse.

    Args:
        scores: The start's.
        score_range: Of the score that decides.
        weights: Of the scores whose sum decides; None for the first.
        margins: By how much each of the others may be worse; where it is infinite it is not looked at.

    Raises:
        ProblemError: a margin is of no score.
    """
    known = [score for score in scores if score.value is not None]
    several = next((score.several for score in known if score.several), None)
    names = list(several or ())
    unknown = sorted(set(margins or ()) - set(names)) if known else []
    if unknown:
        raise ProblemError(f"margins name {unknown[0]!r}, which is no score of the guide's; its scores are {names!r}")
    tested = list(weights or names[:1])
    values = [score.value for score in known if score.value is not None]
    first = Measure(
        name=" + ".join(tested) or "score", two_valued=_two(values, score_range), score_range=score_range
    )  # fmt: skip
    found = [first]
    for name in names:
        margin = (margins or {}).get(name, 0.0)
        if name not in tested and math.isfinite(margin):
            column = [score.several[name] for score in known if score.several is not None and name in score.several]
            found.append(Measure(name=name, two_valued=_two(column, None), margin=margin))
    return tuple(found)


def _two(values: Sequence[float], score_range: tuple[float, float] | None) -> bool:
    """Whether all values are ends of the range, 0 and 1 by default."""
    return bool(values) and all(value in (score_range or (0.0, 1.0)) for value in values)


def weighted(score: float | Mapping[str, float] | None, weights: Mapping[str, float]) -> float | None:
    """The weighted sum of several scores.

    Raises:
        FeedbackError: a score that has a weight is missing.
    """
    if score is None:
        return None
    given: Mapping[str, float] = score if isinstance(score, Mapping) else {}
    missing = sorted(set(weights) - set(given))
    if missing:
        raise FeedbackError(
            f"weights name the score {missing[0]!r}, which the guide did not give among {sorted(given)!r}; give every "
            "score each time"
        )
    return math.fsum(weight * given[name] for name, weight in weights.items())


def result(score: Score, measures: Sequence[Measure]) -> Result:
    """A score as a gate takes it."""
    if score.value is None or len(measures) == 1:
        return score.value
    return {**(score.several or {}), measures[0].name: score.value}


def says(gate: Gate, measures: Sequence[Measure]) -> str:
    """How candidates are compared, in words."""
    others = ", ".join(repr(measure.name) for measure in measures[1:])
    guarded = f"; none of {others} may get worse" if others else ""
    return f"candidates are compared with the incumbent by {_TESTS[gate.kind_of(measures[0])]}{guarded}"


@functools.lru_cache(maxsize=64)
def error_rates(gate: Gate, count: int) -> dict[str, float]:
    """What a gate does on so many examples, exactly for independent scores of 0 and 1 with a mean of one half.

    Above 100 examples the rates of 100 stand for it: futility and bounds are settled by shares of the examples.

    Returns:
        The chances of building on a candidate that is as good as the incumbent ("equal"), 10 points "worse", and 20 points
        "better"; and how many "examples" an equal one takes on average.
    """
    rates = [gate.characteristics(*pair_chances(0.5, after), min(count, FEW)) for after in (0.5, 0.4, 0.7)]
    equal, worse, better = rates
    return {"equal": equal.better, "worse": worse.better, "better": better.better, "examples": equal.examples}


@functools.lru_cache(maxsize=64)
def smallest_gain(n: int, power: float = 0.8, *, before: float = 0.5, gate: Gate | None = None) -> float | None:
    """The smallest gain in mean score that a gate finds on n examples with this chance.

    Exact for independent scores of 0 and 1, which vary the most of all scores in [0, 1]; above 100 examples it shrinks
    with their square root. For another `score_range`, multiply by its length.

    Args:
        n: How many examples.
        power: The chance.
        before: The incumbent's mean score; .5 is the hardest.
        gate: By default `Gate.claim()`.

    Returns:
        The gain, or None where none is found as often: not even a candidate that is always right.
    """
    gate = Gate.claim() if gate is None else gate
    if n > FEW:
        gain = smallest_gain(FEW, power, before=before, gate=gate)
        return None if gain is None else gain * math.sqrt(FEW / n)
    low, high = 0.0, 1 - before

    def found(gain: float) -> float:
        return gate.characteristics(*pair_chances(before, before + gain), n).better

    if found(high) < power:
        return None
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) < power else (low, middle)
    return high


def power_note(count: int, score_range: tuple[float, float] | None = None, what: str = "validation") -> str:
    """The smallest gain that examples can show, in words, with a warning where they are few.

    Args:
        count: How many examples there are, at least 1.
        score_range: Of the score that decides.
        what: Which examples they are.
    """
    gain = smallest_gain(count)
    span = 1.0 if score_range is None else score_range[1] - score_range[0]
    shown = "no gain at all" if gain is None else f"a gain of {gain * span:.2g} or more"
    unit = "" if score_range is not None else " for scores of 0 and 1"
    few = f"; below {FEW} only large gains show" if count < FEW else ""
    return f"{count} {what} examples show {shown} with 80 % power at alpha .05{unit}{few}"
