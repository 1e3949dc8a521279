"""What a run, or one evaluation, comes to: scores with intervals, and a claim only where held-out examples carry it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast

from trace_opt.core.codec import decode
from trace_opt.core.node import is_a
from trace_opt.core.parameter import short
from trace_opt.core.rollout import Cost
from trace_opt.search import statistics
from trace_opt.search.gate import Gate, Measure, Outcome, trial_order
from trace_opt.search.statistics import Scores

Claim = Literal["better", "worse", "no evidence", "none"]

ALPHA = 0.05
"""The chance, at most, that a report says "better" of values that are not; so it is of "worse"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The scores of one set of values.

    Attributes:
        mean: Mean score, failed rollouts taken at the lower end of the score range (else at the lowest score seen, at 0 at most).
        low, high: Its 95 % interval; Wilson's where every score is 0 or 1.
        n: How many examples.
        failed: How many of them failed.
        means: The mean of every score by name, where the guide gives several.
        intervals: The 95 % interval of each of these.
    """

    mean: float
    low: float
    high: float
    n: int
    failed: int = 0
    means: Mapping[str, float] = field(default_factory=dict[str, float])
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    @classmethod
    def of(
        cls, scores: Scores, floor: float, *, binary: bool | None = None, means: Mapping[str, float] | None = None,
        intervals: Mapping[str, tuple[float, float]] | None = None,
    ) -> Summary:  # fmt: skip
        """Sum scores up.

        Args:
            scores: None where the workflow failed; of none at all all figures are 0.
            floor: What a failed rollout counts as.
            binary: Whether scores are 0 or 1 by nature; by default whether these are.
            means: The mean of every score by name, where there are several.
            intervals: The interval of each of these.
        """
        if not scores:
            return cls(mean=0.0, low=0.0, high=0.0, n=0)
        values = [floor if score is None else score for score in scores]
        counts = binary is not False and statistics.is_binary(values)
        low, high = statistics.mean_interval(values, binary=counts)
        failures = sum(score is None for score in scores)
        return cls(
            mean=statistics.mean(scores, floor), low=low, high=high, n=len(scores), failed=failures, means=means or {},
            intervals=intervals or {},
        )  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Summary:
        """What `asdict` gave, through JSON."""
        known: dict[str, Any] = dict(data)
        found: Mapping[str, Sequence[float]] = known.get("intervals", {})
        known["intervals"] = {name: (pair[0], pair[1]) for name, pair in found.items()}
        return cls(**known)

    def __str__(self) -> str:
        if not self.n:
            return "not run"
        text = f"{self.mean:.3f}  [{self.low:.3f}, {self.high:.3f}]"
        return f"{text}  {self.failed} of {self.n} failed" if self.failed else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The best values against the start, paired by example and seed.

    Attributes:
        mean: Mean difference; above 0 the best is better.
        low, high: Its bounds, each of which holds in 95 of 100 cases: where the one below is above 0, so is the one-sided
            test of "better" at .05.
        wins, losses: On how many examples the best, or the start, has the higher score.
        p: One-sided p value, in the direction of the mean, of the exact sign test (scores of two values) or of sign flips.
        gate: How the claim gate ended.
        decided: After how many examples it did.
    """

    mean: float
    low: float
    high: float
    wins: int
    losses: int
    p: float
    gate: Outcome = "undecided"
    decided: int = 0

    @classmethod
    def of(cls, start: Scores, best: Scores, *, measure: Measure | None = None, seed: int = 0) -> Difference:
        """Compare scores on the same examples in the same order.

        Args:
            start, best: The scores.
            measure: What is declared of them; by default whether their differences are all of one size.
            seed: Of the order in which the claim gate goes through the examples.
        """
        pairs = statistics.paired(start, best)
        low, high = statistics.difference_interval(pairs, 2 * ALPHA)
        # the examples are run whatever the gate says of the first of them, so giving up early would save nothing
        claim = replace(Gate.claim(alpha=ALPHA), gamma=0.0)
        comparison = claim.begin(len(start), [measure or Measure(two_valued=pairs.signs_only)], seed=seed)
        order = trial_order(range(len(start)), seed, 0)
        verdict = comparison.extend([start[n] for n in order], [best[n] for n in order])
        return cls(
            mean=pairs.mean, low=low, high=high, wins=pairs.wins, losses=pairs.losses, p=statistics.p_value(pairs) / 2,
            gate="undecided" if verdict is None else verdict.outcome, decided=comparison.n,
        )  # fmt: skip

    @property
    def claim(self) -> Claim:
        """What the examples carry: what the claim gate found, where the bounds on all of the examples bear it out."""
        if self.gate == "better" and self.low > 0:
            return "better"
        return "worse" if self.gate == "worse" and self.high < 0 else "no evidence"

    def __str__(self) -> str:
        test = f"{self.wins} won, {self.losses} lost, one-sided p = {self.p:.2g}"
        return f"{self.mean:+.3f}  [{self.low:+.3f}, {self.high:+.3f}]  {test}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """Another workflow that the best is compared with.

    Attributes:
        name: What it is called.
        scores: Its scores.
        difference: The best values against it, paired by example and seed.
    """

    name: str
    scores: Summary
    difference: Difference

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Control:
        """What `asdict` gave, through JSON."""
        return cls(
            name=data["name"], scores=Summary.from_json(data["scores"]), difference=Difference(**data["difference"])
        )


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
        search_gate: How often the search gate keeps a candidate that is as good as the incumbent ("equal"), one that is 10
            points "worse" and one that is 20 points "better", and the "examples" an equal one takes; exact for scores of
            0 and 1. Empty where there was none.
        changed: The best values that differ from the start, by name: (start, best), as JSON.
        spend: What model calls cost, by role: calls, tokens_in, tokens_out, usd.
        seconds: Wall time.
        saved: What pure ops were not run again for: `ops` (their calls), and what running them had cost: calls, tokens_in,
            tokens_out, usd, seconds. Empty where nothing was.
        reused: What was taken from other runs: `rollouts`, and what they had cost: calls, tokens_in, tokens_out, usd,
            seconds. Empty where nothing was.
        notes: What else a reader must know, in sentences.
        front: Accepted values that no other beats in everything, on the same validation examples: `candidate`, `score`,
            `scores` by name, what was measured (`length` in characters), `n`. Empty where there is only one.
        controls: Other workflows on the same examples and seeds.
    """

    examples: str
    held_out: bool
    best: Summary
    start: Summary | None = None
    difference: Difference | None = None
    claim: Claim = "none"
    trials: int = 0
    accepted: int = 0
    search_gate: Mapping[str, float] = field(default_factory=dict[str, float])
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict[str, "tuple[Any, Any]"])
    spend: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, "Mapping[str, Any]"])
    seconds: float = 0.0
    saved: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reused: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()
    front: tuple[Mapping[str, Any], ...] = ()
    controls: tuple[Control, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; `from_json` takes it back."""
        data = asdict(self)
        data["changed"] = {name: list(pair) for name, pair in self.changed.items()}
        data["notes"] = list(self.notes)
        data["front"] = [dict(row) for row in self.front]
        data["controls"] = list(data["controls"])
        for summary in (data["best"], data["start"], *(row["scores"] for row in data["controls"])):
            if summary is not None:
                summary["intervals"] = {name: list(pair) for name, pair in summary["intervals"].items()}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """The report that `to_json` gave; fields of a newer version are left out."""
        known: dict[str, Any] = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        for name in ("best", "start"):
            known[name] = Summary.from_json(known[name]) if known.get(name) else None
        known["difference"] = Difference(**known["difference"]) if known.get("difference") else None
        changed = cast("Mapping[str, Sequence[Any]]", known.get("changed", {}))
        known["changed"] = {name: (pair[0], pair[1]) for name, pair in changed.items()}
        known["notes"] = tuple(known.get("notes", ()))
        known["front"] = tuple(known.get("front", ()))
        known["controls"] = tuple(map(Control.from_json, known.get("controls", ())))
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
        for name, value in [] if self.controls else list(self.best.means.items())[1:]:
            before = None if self.start is None else self.start.means.get(name)
            lines.append(f"    {name}: {'' if before is None else f'{before:.3f} -> '}{value:.3f}")
        if self.difference is not None:
            lines.append(f"  difference  {self.difference} (bounds of 95 % each)")
        if self.examples != "given":
            lines.append(f"  {_SAYS[self.claim]}; {self.trials} trials, {self.accepted} accepted")
        lines += [f"  {line}" for line in _control_lines(self)]
        if self.search_gate and self.trials:
            lines.append(f"  {_rates(self.search_gate)}")
        lines += [f"  {name}: {_shown(before)} -> {_shown(after)}" for name, (before, after) in self.changed.items()]
        lines += [f"  {role}: {_spent(cost)}" for role, cost in self.spend.items()]
        if self.saved:
            ops, seconds = self.saved["ops"], self.saved["seconds"]
            lines.append(f"  not run again: {ops} pure op calls, saving {seconds:.1f} s, {_spent(self.saved)}")
        if self.reused:
            count, seconds = self.reused["rollouts"], self.reused["seconds"]
            lines.append(f"  taken from other runs: {count} rollouts, saving {seconds:.1f} s, {_spent(self.reused)}")
        lines += [f"  {line}" for line in _front_lines(self.front)]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def _control_lines(report: Report) -> list[str]:
    """Start, best and controls as a table, and what the best is ahead of each control by."""
    if not report.controls:
        return []
    known = {"start": report.start, "best": report.best} | {row.name: row.scores for row in report.controls}
    shown = {name: summary for name, summary in known.items() if summary is not None}
    names = list(report.best.means)[:_MOST_SHOWN] or ["score"]
    rows = [["controls", *names]]
    for name, summary in shown.items():
        cells = [summary.intervals.get(score) for score in names]
        means = [summary.means.get(score) for score in names]
        plain = f"{summary.mean:.3f} [{summary.low:.3f}, {summary.high:.3f}]"
        rows.append([name] + [
            plain if mean is None or cell is None else f"{mean:.3f} [{cell[0]:.3f}, {cell[1]:.3f}]"
            for mean, cell in zip(means, cells, strict=True)
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    wide = max(len(row.name) for row in report.controls)
    ahead = [f"best against {row.name.ljust(wide)}  {row.difference}" for row in report.controls]
    return [*lines, *ahead]


def _rates(gate: Mapping[str, float]) -> str:
    """The error rates of the search gate, in words."""
    return (
        f"the search builds on what looks better: an equal candidate passes {gate['equal']:.0%} of the time, one 10 points "
        f"worse {gate['worse']:.0%}, one 20 points better {gate['better']:.0%}"
    )


def _shown(value: Any) -> str:
    """A value as people read it: a tensor by its numbers."""
    tagged = is_a(value, dict) and "$" in value
    return " ".join(short(decode(value) if tagged else value).split())


def _front_lines(front: Sequence[Mapping[str, Any]]) -> list[str]:
    """The best few of the front as a table in words."""
    if not front:
        return []
    ranked = sorted(front, key=lambda row: -row["score"])[:_MOST_SHOWN]
    lines = [
        f"front: {len(front)} candidates that no other beats in everything, on {front[0]['n']} validation examples"
    ]
    for row in ranked:
        named = row["scores"] or {"score": row["score"]}
        rest = {name: value for name, value in row.items() if name not in ("candidate", "score", "scores", "n")}
        shown = [f"{name} {value:.4g}" for name, value in {**named, **rest}.items() if value is not None]
        lines.append(f"  candidate {row['candidate']}: {', '.join(shown)}")
    return lines


_MOST_SHOWN = 8


def _spent(cost: Mapping[str, Any]) -> str:
    usd = cost.get("usd")
    price = "price unknown" if usd is None else f"${usd:.4f}"
    return f"{cost['calls']} calls, {cost['tokens_in']} tokens in, {cost['tokens_out']} out, {price}"


def spend_json(spend: Mapping[str, Cost]) -> dict[str, dict[str, Any]]:
    """Costs by role as JSON-able dicts."""
    return {role: asdict(cost) for role, cost in spend.items()}
