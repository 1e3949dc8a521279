"""One complete set of values with what is known of it, and one proposal on its way to a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trace_opt.core.rollout import Cost, Rollout
from trace_opt.store.records import TrialRecord

if TYPE_CHECKING:
    from trace_opt.core.graph import Graph
    from trace_opt.optim.base import Optimizer, Proposal


@dataclass(frozen=True, slots=True)
class Score:
    """What is remembered of one rollout.

    Attributes:
        value: The score that decides; None where the workflow failed.
        several: All scores by name, where there are several.
        cost: What its model calls cost.
        seconds: Wall time.
    """

    value: float | None
    several: Mapping[str, float] | None = None
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0


def merged(scores: Sequence[Score]) -> Score:
    """One example's draws as one score: their means, what they cost together; failed where one of them failed."""
    values = [score.value for score in scores if score.value is not None]
    several = [score.several for score in scores if score.several is not None]
    names = list(several[0]) if several and len(several) == len(scores) else []
    return Score(
        math.fsum(values) / len(values) if len(values) == len(scores) else None,
        {name: math.fsum(given[name] for given in several) / len(several) for name in names} or None,
        sum((score.cost for score in scores), Cost()), math.fsum(score.seconds for score in scores),
    )  # fmt: skip


@dataclass(slots=True, eq=False)
class Candidate:
    """One complete set of values.

    Attributes:
        id: Its number; 0 is the start.
        values: By full parameter name.
        key: The hash of the values.
        parents: The candidates it was made from.
        step, optimizer: Who made it when.
        scores: By example number.
        draws: By example number and repeat, where examples are run several times; `scores` holds those of one round.
        round: Which round of draws that is.
        kept: Rollouts with graphs, by example number, while they may be wanted.
        graph: The graph of its rollout on the first validation example.
        accepted: Whether the search built on it.
    """

    id: int
    values: dict[str, Any]
    key: str
    parents: tuple[int, ...] = ()
    step: int = 0
    optimizer: str = ""
    scores: dict[int, Score] = field(default_factory=dict[int, Score])
    kept: dict[int, Rollout] = field(default_factory=dict[int, Rollout])
    graph: Graph | None = None
    accepted: bool = False
    draws: dict[tuple[int, int], Score] = field(default_factory=dict[tuple[int, int], Score])
    round: int = 0

    def on(self, numbers: Sequence[int]) -> list[float | None]:
        """Its scores on examples; all must have been run."""
        return [self.scores[n].value for n in numbers]

    def known(self, order: Sequence[int]) -> list[int]:
        """Those examples of an order that were run."""
        return [number for number in order if number in self.scores]


@dataclass(slots=True, eq=False)
class Attempt:
    """One proposal put to the test.

    Attributes:
        number: Its number in the run, from 1.
        step, slot: Its place.
        by: The optimizer that proposed, or None for the race and for a resumed one that is gone.
        optimizer: Its class name.
        base: The candidate it was made from.
        proposal: What was proposed.
        candidate: The proposed values as a candidate; None where nothing came of it.
        before, after, n: Paired means, and over how many examples.
        accepted: Whether the search builds on it.
        verdict: What decided, in words; "" while it is open.
    """

    number: int
    step: int
    slot: int
    by: Optimizer | None
    optimizer: str
    base: Candidate
    proposal: Proposal
    candidate: Candidate | None = None
    before: float | None = None
    after: float | None = None
    n: int = 0
    accepted: bool = False
    verdict: str = ""

    @property
    def is_new(self) -> bool:
        """Whether its values were not tried before."""
        return self.candidate is not None and self.candidate.id == self.number

    @property
    def open(self) -> bool:
        """Whether it has no verdict yet."""
        return not self.verdict


def record_of(attempt: Attempt) -> TrialRecord:
    """An attempt as data."""
    return TrialRecord(
        number=attempt.number, step=attempt.step, optimizer=attempt.optimizer, base=attempt.base.id,
        candidate=None if attempt.candidate is None else attempt.candidate.id, changed=dict(attempt.proposal.values),
        reason=attempt.proposal.reason, notes=dict(attempt.proposal.notes), before=attempt.before, after=attempt.after,
        n=attempt.n, accepted=attempt.accepted, verdict=attempt.verdict,
    )  # fmt: skip
