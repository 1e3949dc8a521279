"""What a candidate is worth in each objective: the scores that the guide gives, and what the search itself measures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from trace_opt.core.codec import canonical, dump_value
from trace_opt.search import statistics
from trace_opt.search.front import undominated

if TYPE_CHECKING:
    from collections.abc import Callable

    from trace_opt.core.parameter import Parameter
    from trace_opt.search.candidate import Candidate, Score

Measured = Literal["usd", "tokens", "calls", "seconds", "length"]
"""What rollouts cost on average, and the characters of texts and demonstrations; less is better."""

_COSTS: dict[str, Callable[[Score], float | None]] = {
    "usd": lambda score: score.cost.usd,
    "tokens": lambda score: float(score.cost.tokens),
    "calls": lambda score: float(score.cost.calls),
    "seconds": lambda score: score.seconds,
}

MEASURED: tuple[str, ...] = (*_COSTS, "length")


def means(candidate: Candidate, numbers: Sequence[int], floors: Mapping[str, float]) -> dict[str, float]:
    """The mean of every score by name, where a guide gives several.

    Args:
        candidate: Run on all of `numbers`.
        numbers: Examples.
        floors: By name, what a failed rollout counts as; the names decide what is summed up.
    """
    rows = [candidate.scores[n].several or {} for n in numbers]
    return {name: math.fsum(row.get(name, floor) for row in rows) / len(rows) for name, floor in floors.items()}


def floors(candidates: Iterable[Candidate], numbers: Sequence[int]) -> dict[str, float]:
    """By name of a score the lowest that some candidates had; empty where there is only one score."""
    lowest: dict[str, float] = {}
    for candidate in candidates:
        for number in numbers:
            score = candidate.scores.get(number)
            for name, value in ((score.several or {}) if score is not None else {}).items():
                lowest[name] = min(value, lowest.get(name, math.inf))
    return lowest


def measured(
    names: Iterable[str], candidate: Candidate, numbers: Sequence[int], parameters: Mapping[str, Parameter[Any]]
) -> dict[str, float | None]:
    """What the search measures of a candidate, by name of `Measured`; None where a price is unknown.

    Args:
        names: Which.
        candidate: Run on all of `numbers`.
        numbers: Examples.
        parameters: By full name.
    """
    found: dict[str, float | None] = {}
    for name in names:
        if name == "length":
            found[name] = float(length(candidate, parameters))
            continue
        costs = [cost for n in numbers if (cost := _COSTS[name](candidate.scores[n])) is not None]
        found[name] = math.fsum(costs) / len(costs) if len(costs) == len(numbers) else None
    return found


def front_rows(
    candidates: Iterable[Candidate], numbers: Sequence[int], parameters: Mapping[str, Parameter[Any]],
    names: Sequence[str],
) -> list[dict[str, Any]]:  # fmt: skip
    """The candidates that no other beats in everything, by their means on the same examples.

    Args:
        candidates: Those not run on all of `numbers` are left out.
        numbers: Examples.
        parameters: By full name.
        names: What the search measures besides the scores.

    Returns:
        By candidate: `candidate` (its number), `score` (the mean of what decides), `scores` (means by name, where there
        are several), what was measured by name, and over how many examples: `n`. A failed rollout counts as the lowest.
    """
    whole = [c for c in candidates if numbers and all(n in c.scores for n in numbers)]
    lowest = floors(whole, numbers)
    values = [score for c in whole for score in c.on(numbers) if score is not None]
    floor = min(values, default=0.0)
    rows: dict[int, dict[str, Any]] = {}
    for c in whole:
        rows[c.id] = {
            "candidate": c.id, "score": statistics.mean(c.on(numbers), floor), "scores": means(c, numbers, lowest),
            **measured(names, c, numbers, parameters), "n": len(numbers),
        }  # fmt: skip
    worths = {
        number: [row["score"], *row["scores"].values(), *(-math.inf if row[n] is None else -row[n] for n in names)]
        for number, row in rows.items()
    }
    return [rows[number] for number in undominated(worths)]


def length(candidate: Candidate, parameters: Mapping[str, Parameter[Any]]) -> int:
    """How many characters the texts and demonstrations of a candidate have together."""
    total = 0
    for name, value in candidate.values.items():
        if isinstance(value, str):
            total += len(value)
        elif parameters[name].kind == "demonstrations":
            total += len(canonical(dump_value(parameters[name], value)))
    return total
