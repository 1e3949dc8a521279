"""What a run, or one evaluation, comes to: scores with intervals, and a claim only where held-out examples carry it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

from trace_opt.core.codec import decode
from trace_opt.core.node import is_a
from trace_opt.core.parameter import short
from trace_opt.core.rollout import Cost
from trace_opt.search import statistics
from trace_opt.search.statistics import Scores

Claim = Literal["better", "worse", "no evidence", "none"]

ALPHA = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The scores of one set of values.

    Attributes:
        mean: Mean score, failed rollouts taken at the lower end of the score range (else at the lowest score seen).
        low, high: Its 95 % interval; Wilson's where every score is 0 or 1.
        n: How many examples.
        failed: How many of them failed.
        means: The mean of every score by name, where the guide gives several.
    """

    mean: float
    low: float
    high: float
    n: int
    failed: int = 0
    means: Mapping[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def of(
        cls, scores: Scores, floor: float, *, binary: bool | None = None, means: Mapping[str, float] | None = None
    ) -> Summary:
        """Sum scores up.

        Args:
            scores: At least one; None where the workflow failed.
            floor: What a failed rollout counts as.
            binary: Whether scores are 0 or 1 by nature; by default whether these are.
            means: The mean of every score by name, where there are several.
        """
        values = [floor if score is None else score for score in scores]
        counts = binary is not False and statistics.is_binary(values)
        low, high = statistics.mean_interval(values, binary=counts)
        failures = sum(score is None for score in scores)
        return cls(
            mean=statistics.mean(scores, floor), low=low, high=high, n=len(scores), failed=failures, means=means or {}
        )

    def __str__(self) -> str:
        text = f"{self.mean:.3f}  [{self.low:.3f}, {self.high:.3f}]"
        return f"{text}  {self.failed} of {self.n} failed" if self.failed else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The best values against the start, paired by example and seed.

    Attributes:
        mean: Mean difference; above 0 the best is better.
        low, high: Its 95 % interval.
        wins, losses: On how many examples the best, or the start, has the higher score.
        p: Two-sided p value of the exact sign test (binary scores) or of sign flips.
    """

    mean: float
    low: float
    high: float
    wins: int
    losses: int
    p: float

    @classmethod
    def of(cls, start: Scores, best: Scores) -> Difference:
        """Compare scores on the same examples in the same order."""
        pairs = statistics.paired(start, best)
        low, high = statistics.difference_interval(pairs)
        exact = pairs.signs_only
        p = statistics.sign_test(pairs.wins, pairs.losses) if exact else statistics.sign_flips(pairs.differences)
        return cls(mean=pairs.mean, low=low, high=high, wins=pairs.wins, losses=pairs.losses, p=p)

    @property
    def claim(self) -> Claim:
        """What the examples carry: interval and test must agree."""
        if self.p <= ALPHA and (self.low > 0 or self.high < 0):
            return "better" if self.mean > 0 else "worse"
        return "no evidence"

    def __str__(self) -> str:
        return f"{self.mean:+.3f}  [{self.low:+.3f}, {self.high:+.3f}]  {self.wins} won, {self.losses} lost, p = {self.p:.2g}"


_SAYS: dict[str, str] = {
    "better": "the best values are better than the start",
    "worse": "the best values are worse than the start",
    "no evidence": "no evidence of a difference",
    "none": "nothing is claimed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came out; `print` it, or take `to_json`.

    Attributes:
        examples: Which examples the scores are of: "test", "val", "train", or "given" for `evaluate`.
        held_out: Whether nothing was chosen by these examples; a claim needs that.
        best: The scores of the best values (of the only ones, for `evaluate`).
        start: The scores of the starting values, or None.
        difference: Their difference, or None.
        claim: "better", "worse", "no evidence", or "none" where nothing is held out.
        trials, accepted: How many proposals were tried and accepted.
        changed: The best values that differ from the start, by name: (start, best), as JSON.
        spend: What model calls cost, by role: calls, tokens_in, tokens_out, usd.
        seconds: Wall time.
        notes: What else a reader must know, in sentences.
    """

    examples: str
    held_out: bool
    best: Summary
    start: Summary | None = None
    difference: Difference | None = None
    claim: Claim = "none"
    trials: int = 0
    accepted: int = 0
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict[str, "tuple[Any, Any]"])
    spend: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, "Mapping[str, Any]"])
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; `from_json` takes it back."""
        data = asdict(self)
        data["changed"] = {name: list(pair) for name, pair in self.changed.items()}
        data["notes"] = list(self.notes)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """The report that `to_json` gave; fields of a newer version are left out."""
        known: dict[str, Any] = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        for name in ("best", "start"):
            known[name] = Summary(**known[name]) if known.get(name) else None
        known["difference"] = Difference(**known["difference"]) if known.get("difference") else None
        changed = cast("Mapping[str, Sequence[Any]]", known.get("changed", {}))
        known["changed"] = {name: (pair[0], pair[1]) for name, pair in changed.items()}
        known["notes"] = tuple(known.get("notes", ()))
        return cls(**known)

    def __str__(self) -> str:
        where = f"{self.best.n} {self.examples} examples" if self.examples != "given" else f"{self.best.n} examples"
        held = "held out" if self.held_out else "not held out"
        lines = [
            f"{where} ({held}), mean score with 95 % interval"
            if self.examples != "given"
            else f"{where}, mean score with 95 % interval"
        ]
        if self.start is not None:
            lines.append(f"  start       {self.start}")
        lines.append(f"  {'best ' if self.start is not None else 'score'}       {self.best}")
        for name, value in list(self.best.means.items())[1:]:
            lines.append(f"    {name}: {value:.3f}")
        if self.difference is not None:
            lines.append(f"  difference  {self.difference}")
        if self.examples != "given":
            lines.append(f"  {_SAYS[self.claim]}; {self.trials} trials, {self.accepted} accepted")
        lines += [f"  {name}: {_shown(before)} -> {_shown(after)}" for name, (before, after) in self.changed.items()]
        lines += [f"  {role}: {_spent(cost)}" for role, cost in self.spend.items()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def _shown(value: Any) -> str:
    """A value as people read it: a tensor by its numbers."""
    tagged = is_a(value, dict) and "$" in value
    return " ".join(short(decode(value) if tagged else value).split())


def _spent(cost: Mapping[str, Any]) -> str:
    usd = cost.get("usd")
    price = "price unknown" if usd is None else f"${usd:.4f}"
    return f"{cost['calls']} calls, {cost['tokens_in']} tokens in, {cost['tokens_out']} out, {price}"


def spend_json(spend: Mapping[str, Cost]) -> dict[str, dict[str, Any]]:
    """Costs by role as JSON-able dicts."""
    return {role: asdict(cost) for role, cost in spend.items()}
