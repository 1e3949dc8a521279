"""What a store gives back about runs: plain data, values decoded, nothing that needs the problem that was run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trace_opt.core.rollout import Cost

Status = Literal["running", "finished", "interrupted", "failed"]
"""`running` without a living owner is a run that was killed; all but `finished` can be resumed, and so can that one
with a larger budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """One line of `trace-opt list`.

    Attributes:
        id: The run's id; any prefix of it that is unique names the run too.
        name: The problem's name.
        status: How it stands.
        ended: Why it ended, in words; empty while it runs.
        seed: The run's seed.
        created: When it began, ISO 8601, UTC.
        updated: When it last wrote.
        owner: `host:pid` of the process that holds it, or "" where none does.
        model: The optimizers' model and why it is this one; "" where none is asked.
        budget: The limits, as `Budget` has them, those that are set only.
        version: The version of trace_opt that began it.
        trials: How many proposals were tried.
        accepted: How many of them were accepted.
        start_mean: The starting values' mean score on the validation examples, or None.
        best_mean: The same of the best values.
        seconds: Wall time spent so far, all sessions together.
    """

    id: str
    name: str
    status: Status
    ended: str = ""
    seed: int = 0
    created: str = ""
    updated: str = ""
    owner: str = ""
    model: str = ""
    budget: Mapping[str, Any] = field(default_factory=dict[str, Any])
    version: str = ""
    trials: int = 0
    accepted: int = 0
    start_mean: float | None = None
    best_mean: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterRecord:
    """One parameter as the run found it.

    Attributes:
        name: The full name.
        kind: `Parameter.kind`.
        start: Its value at the start.
        description: What it is for.
        optimizer: The class name of the optimizer that owned it; "" for none.
    """

    name: str
    kind: str
    start: Any
    description: str = ""
    optimizer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRecord:
    """One complete set of values.

    Attributes:
        id: Its number in the run; 0 is the start.
        parents: The candidates it was made from.
        values: By full parameter name; a structured value as JSON.
        mean: Mean score over the validation examples it was tried on, or None.
        n: How many those were.
        failed: How many of them failed.
        accepted: Whether the search built on it (the start counts).
        step: The step that made it.
        optimizer: The class name of the optimizer that proposed it; "" for the start.
    """

    id: int
    parents: tuple[int, ...]
    values: Mapping[str, Any]
    mean: float | None = None
    n: int = 0
    failed: int = 0
    accepted: bool = False
    step: int = 0
    optimizer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One proposal and what came of it.

    Attributes:
        number: Its place in the run, from 1.
        step: The step it belongs to.
        optimizer: The class name of the optimizer that proposed.
        base: The candidate it was made from.
        candidate: The candidate it proposed, or None where nothing came of it.
        changed: The values it changed, by full parameter name.
        reason: Why, in the optimizer's words.
        notes: What else the optimizer kept.
        before: Mean score of the incumbent on the examples that both were tried on.
        after: Mean score of the candidate on the same.
        n: How many those were.
        accepted: Whether the search built on it.
        verdict: What decided, in words; "" while it is being tried.
    """

    number: int
    step: int
    optimizer: str
    base: int
    candidate: int | None
    changed: Mapping[str, Any]
    reason: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    before: float | None = None
    after: float | None = None
    n: int = 0
    accepted: bool = False
    verdict: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRecord:
    """One rollout as it was kept.

    Attributes:
        candidate: Whose values; -1 for a training rollout of values that became no candidate, less for a control.
        example: The number of the example: training, validation and test examples counted on.
        split: "train", "val" or "test".
        score: The score that decides; None where the workflow failed.
        scores: All scores by name.
        text: What the guide said; for a failed one the failure.
        error: `"ValueError: ..."`, or None.
        cost: What its model calls cost.
        seconds: Wall time.
        repeat: Which time the example was run.
        output: What the workflow gave, where that was kept; else None.
    """

    candidate: int
    example: int
    split: str
    score: float | None
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    text: str = ""
    error: str | None = None
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    repeat: int = 0
    output: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LostCall:
    """A model call that was in flight when the run was killed.

    Attributes:
        role: Whose call.
        what: What it was for.
        cost: The most it may have cost.
    """

    role: str
    what: str
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """Everything kept about one run.

    Attributes:
        info: Its line in the list.
        config: The settings it ran under, JSON: search, splits' sizes, optimizers, score range.
        parameters: What it could change.
        candidates: In the order they were made; the first is the start.
        trials: In order.
        spend: What model calls cost, by role ("workflow", "optimizer", "guide"), and "lost": calls in flight when the run
            was killed, which may have been billed.
        best: The best values found so far, by full parameter name.
        best_candidate: The candidate they are.
        report: What `Report.to_json` gave at the end, or None.
        graph: `Graph.to_json` of the best candidate's first validation rollout, or None.
        lost: The calls in flight when it was killed, each one.
    """

    info: RunInfo
    config: Mapping[str, Any]
    parameters: tuple[ParameterRecord, ...]
    candidates: tuple[CandidateRecord, ...]
    trials: tuple[TrialRecord, ...]
    spend: Mapping[str, Cost]
    best: Mapping[str, Any]
    best_candidate: int
    report: Mapping[str, Any] | None = None
    graph: str | None = None
    lost: tuple[LostCall, ...] = ()

    @property
    def start(self) -> dict[str, Any]:
        """The starting values by full parameter name."""
        return {parameter.name: parameter.start for parameter in self.parameters}

    def candidate(self, number: int) -> CandidateRecord:
        """The candidate of a number.

        Raises:
            KeyError: there is none.
        """
        for candidate in self.candidates:
            if candidate.id == number:
                return candidate
        raise KeyError(number)
