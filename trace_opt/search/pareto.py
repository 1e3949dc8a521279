"""Reflective evolution: build on the best so far, and on whatever is best somewhere.

The front holds candidates that were run on all of its examples and lead on some of them. Proposals are made from the
incumbent and, one in ten, from a parent drawn by how much of the front it holds. Each meets the gate against its parent,
and one that passes is the next incumbent unless a better one is there. The front takes in incumbents, and candidates that
do better than everyone on a tenth of the examples however they do on average: two that are good at different things may
combine. They are merged through their common ancestor, behind the same gate, while that pays. As everyone who joins raises
what the next has to beat, chance lets in few, and the front's runs are held to a share of all, for in
benchmarks/pareto_simulation.py they are what diversity costs.
Source: GEPA (arXiv 2507.19457), which runs whatever wins a minibatch on all examples and draws every parent by coverage.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trace_opt.errors import ProblemError
from trace_opt.optim.base import Optimizer, Proposal
from trace_opt.search.comparing import BLOCK, mean_on
from trace_opt.search.credit import Bandit, suspicion
from trace_opt.search.front import Front
from trace_opt.search.gate import Gate
from trace_opt.search.guards import Guards
from trace_opt.search.judging import Judge, Tested, prepare, refuse
from trace_opt.search.merge import Merge, Merger
from trace_opt.search.objectives import MEASURED, Measured, floors, means, measured
from trace_opt.search.racing import race

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.core.rollout import Rollout
    from trace_opt.search.candidate import Attempt, Candidate
    from trace_opt.search.session import Session

MERGE = "Merge"
"""What stands for the optimizer where two candidates were merged."""

_SHARE_ALONE = 0.1
_LEAST_ALONE = 2
_SHARE_BEST = 0.9
_SHARE_LOOKS = 0.1
_SHARE_FRONT = 0.05
_FREE_RUNS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pareto:
    """See the module.

    Args:
        parents: Candidates that a step builds on.
        proposals: Proposals asked for from each of them, all at once.
        minibatch: Training rollouts of the parent that a proposal is made from.
        front: Validation examples that the front is over; all, at most 64, by default.
        gate: What a proposal must show against its parent, and the winner of a race against the start.
        merge: Whether candidates are merged.
        credit: Whether an optimizer that asks a model is asked about one parameter, the one that failures went through;
            else about all of its own.
        objectives: What the search measures and the front holds too: "usd", "tokens", "calls", "seconds" (a run that
            goes by it cannot be resumed bit for bit), "length".
        guards: What proposed texts are held to; None lets all through.

    Raises:
        ProblemError: a number is below 1, or an objective is unknown.
    """

    parents: int = 2
    proposals: int = 1
    minibatch: int = 4
    front: int | None = None
    gate: Gate = field(default_factory=lambda: Gate.search(block=BLOCK))
    merge: bool = True
    credit: bool = True
    objectives: tuple[Measured, ...] = ()
    guards: Guards | None = field(default_factory=Guards)

    def __post_init__(self) -> None:
        if min(self.parents, self.proposals, self.minibatch, 1 if self.front is None else self.front) < 1:
            raise ProblemError(f"{self!r} has a number below 1; give at least 1")
        unknown = [name for name in self.objectives if name not in MEASURED]
        if unknown:
            raise ProblemError(f"objectives holds {unknown[0]!r}, which is not measured; known: {', '.join(MEASURED)}")

    @property
    def width(self) -> int:
        """Proposals at once."""
        return self.parents * self.proposals

    @property
    def tests(self) -> bool:
        """Candidates are run on the validation examples."""
        return True

    def size(self, total: int) -> int:
        """How many of so many validation examples the front is over."""
        return min(total, _MOST_CELLS if self.front is None else self.front)

    def boundaries(self, total: int) -> list[int]:
        """After how many validation examples a candidate may be dropped; the last is all of them."""
        size = self.size(total)
        return sorted({*range(min(self.gate.block, size), size, self.gate.block), size, total})

    async def run(self, session: Session, raced: Mapping[str, Sequence[Any]]) -> str:
        """See `Search.run`."""
        if session.step < 0:
            await race(session, raced, gate=self.gate)
        await prepare(session, session.order[: self.size(len(session.order))])
        evolution = Evolution(self, session)
        await session.confirm_target()
        while (why := session.why_stop()) is None:
            await evolution.step()
            await session.confirm_target()
        return why


_MOST_CELLS = 64


class Evolution:
    """One run of `Pareto`. All of its chance comes from the run's seed and the step, all it knows is in the session.

    Args:
        plan: The settings.
        session: Proposes, runs, keeps.

    Attributes:
        numbers: The examples of the front.
        members: The candidates that may be built on.
    """

    def __init__(self, plan: Pareto, session: Session) -> None:
        self.numbers = session.order[: plan.size(len(session.order))]
        self._plan = plan
        self._session = session
        self._cells = frozenset(self.numbers)
        self._judge = Judge(gate=plan.gate, numbers=session.order)
        self._known = (
            None
            if plan.guards is None
            else plan.guards.phrases([session.bench.data.examples[n] for n in session.bench.data.train])
        )
        state = session.strategy
        whole = [c for c in session.candidates.values() if c.accepted and all(n in c.scores for n in self.numbers)]
        self.members = [session.candidates[n] for n in state["front"]] if state else whole
        # rollouts of tests, and of runs on the whole front
        self._spent: list[int] = list(state.get("spent", (0, 0)))
        self._asked: int = state.get("asked", -1)  # the last incumbent that was run on the whole front
        self._bandit = Bandit.of(state.get("credit", {}))
        self._merger = Merger.of(state.get("merge", {}))
        self._fronts: dict[tuple[object, ...], Front] = {}
        self._barren: list[Candidate] = []  # members of which no two can be merged
        self.members = self._kept(self.members)

    # -- one step ----------------------------------------------------------------------------------------------------

    async def step(self) -> None:
        """Proposals from several parents, perhaps a merge, their tests, and who joins."""
        session = self._session
        rng = random.Random(f"pareto/{session.bench.seed}/{session.step + 1}")  # noqa: S311 # an order, not a secret
        merge = self._due(rng)
        parents = [parent for parent in self._parents(rng) for _ in range(self._plan.proposals)]
        attempts = await session.propose(
            len(parents), parents=parents, focus=self._focus if self._plan.credit else None
        )  # fmt: skip
        if merge is not None and session.bench.ledger.may_try():
            attempts.append(self._offered(merge))
        refuse(session, attempts, self._plan.guards, self._known)
        tests = await self._judge.test(session, attempts)
        await self._admit(tests)
        self._learn(attempts)
        session.conclude(attempts)

    def _parents(self, rng: random.Random) -> list[Candidate]:
        """Who is built on: mostly the best one, for coverage alone spends much on what leads by chance."""
        session, drawn = self._session, self._front(self.members).draw(rng, self._plan.parents)
        return [session.incumbent if rng.random() < _SHARE_BEST else session.candidates[number] for number in drawn]

    def _focus(
        self, slot: int, optimizer: Optimizer, mine: list[Parameter[Any]], rollouts: Sequence[Rollout]
    ) -> list[Parameter[Any]]:
        """The one parameter that an optimizer which reflects on rollouts is asked about."""
        if len(mine) < 2 or not rollouts or not getattr(optimizer, "reflects", False):
            return mine
        session = self._session
        rng = random.Random(f"credit/{session.bench.seed}/{session.step + 1}/{slot}")  # noqa: S311 # not a secret
        chosen = self._bandit.choose(suspicion(rollouts, [parameter.name for parameter in mine]), rng)
        return [parameter for parameter in mine if parameter.name == chosen]

    # -- merges ------------------------------------------------------------------------------------------------------

    def _due(self, rng: random.Random) -> Merge | None:
        """A merge, where there is one and merges pay."""
        if not self._plan.merge or len(self.members) < 2 or not self._merger.pays(rng):
            return None
        if self.members == self._barren:
            return None
        rows = {c.id: list(map(self._finite, self._worths(c))) for c in self.members}
        merge = self._merger.find(self._session.candidates, rows, self._session.key_of)
        self._barren = self.members if merge is None else []
        return merge

    def _offered(self, merge: Merge) -> Attempt:
        key_of, base = self._session.key_of, merge.base
        changed = {n: v for n, v in merge.values.items() if key_of({n: v}) != key_of({n: base.values[n]})}
        reason = f"{', '.join(changed)} of candidate {merge.other.id} in candidate {base.id}, since candidate {merge.ancestor.id}"
        notes = {"merged": sorted((base.id, merge.other.id))}
        return self._session.offer(base, Proposal(changed, reason, notes), MERGE, (merge.other,))

    # -- who joins ---------------------------------------------------------------------------------------------------

    async def _admit(self, tests: Sequence[Tested]) -> None:
        """Build on what passed the gate, and let join the front what the front needs, within its share of the rollouts."""
        session, before = self._session, self._session.incumbent
        looks = {test.candidate.id: self._look(test) for test in tests if not test.passes}
        await session.bench.score([(test.candidate, looks.get(test.candidate.id, ())) for test in tests], "trials")
        self._spent[0] += sum(2 * len(test.seen) for test in tests)
        for test in tests:
            test.attempt.verdict = f"dropped: {test.said}"
            if (
                test.passes
                and await self._leads(test, before)
                and await session.approving.allows(test.attempt, test.said)
            ):
                self._accept(test)
        await self._join(session.incumbent)
        for test in tests:
            seen = [n for n in (*test.seen, *looks.get(test.candidate.id, ())) if n in self._cells]
            if test.attempt.verdict.startswith("dropped") and self._shines(test, seen):
                await self._join(test.candidate, test)

    async def _leads(self, test: Tested, before: Candidate) -> bool:
        """Whether a candidate that passed the gate is to be the incumbent: at once where that is its parent still."""
        incumbent = self._session.incumbent
        if test.base is before is incumbent:
            return True
        return (await self._judge.duel(self._session, test.candidate, incumbent)).accepted

    def _accept(self, test: Tested) -> None:
        session = self._session
        session.admit(test.attempt, f"accepted: {test.said}")
        before, session.incumbent = session.incumbent, test.candidate
        if before not in self.members:
            before.kept.clear()

    async def _join(self, candidate: Candidate, test: Tested | None = None) -> None:
        """Run a candidate on the whole front and take it in, where it is needed and there are rollouts for it."""
        session = self._session
        cost = len(self.numbers) - (0 if test is None else len(test.seen))
        if test is None and candidate.id == self._asked:
            return
        if (
            candidate in self.members
            or self._spent[1] + cost > _FREE_RUNS * len(self.numbers) + _SHARE_FRONT * self._spent[0]
        ):
            return
        self._spent[1] += cost
        self._asked = candidate.id if test is None else self._asked
        await session.bench.score([(candidate, self.numbers)], "trials")
        members = self._kept([*self.members, candidate])
        if candidate in members and (test is None or await self._welcome(test)):
            self._retire(members)

    async def _welcome(self, test: Tested) -> bool:
        """Whether a candidate that the gate dropped joins the front, where it was run on all of it."""
        if not self._shines(test, self.numbers):
            return False
        alone = self._alone(test.candidate, self.numbers)
        how = f"alone ahead on {alone} of {len(self.numbers)}" if alone else "best in another objective"
        if not await self._session.approving.allows(test.attempt, f"{test.said}, but {how}"):
            return False
        self._session.admit(test.attempt, f"accepted: {test.said}, but {how}")
        return True

    def _look(self, test: Tested) -> list[int]:
        """Where to look once more before a candidate is dropped: where the front does worst; now and then, for it costs."""
        session = self._session
        rng = random.Random(f"look/{session.bench.seed}/{test.attempt.number}")  # noqa: S311 # not a secret
        if rng.random() >= _SHARE_LOOKS:
            return []
        best = {n: max(_led(member.scores[n].value) for member in self.members) for n in self.numbers}
        left = [n for n in test.order[len(test.seen) :] if n in best and best[n] < max(best.values())]
        return sorted(left, key=lambda n: best[n])[: self._plan.gate.block]

    def _shines(self, test: Tested, numbers: Sequence[int]) -> bool:
        """Whether it belongs on the front, as far as some examples tell.

        It does better than everyone on a tenth of them, or it is better than everyone in another objective and no worse
        than its parent in the first.
        """
        alone = self._alone(test.candidate, numbers)
        return alone >= max(_LEAST_ALONE, _SHARE_ALONE * len(numbers)) or self._leads_another(test, numbers)

    def _leads_another(self, test: Tested, numbers: Sequence[int]) -> bool:
        session, everyone = self._session, (*self.members, test.candidate)
        if not numbers or mean_on(session, test.candidate, test.seen) < mean_on(session, test.base, test.seen):
            return False
        lowest = floors(everyone, numbers)
        lowest.pop(session.measures[0].name, None)
        rows = [self._others(candidate, numbers, lowest) for candidate in everyone]
        return any(own > max(others) for *others, own in zip(*rows, strict=True))

    def _retire(self, members: list[Candidate]) -> None:
        """Let the front be these; an incumbent that it needs no longer hands over to the best of them."""
        session = self._session
        if session.incumbent in self.members and session.incumbent not in members:
            session.incumbent = self._best(members)
        for candidate in self.members:
            if candidate not in members:
                candidate.kept.clear()
        self.members = members

    def _learn(self, attempts: Sequence[Attempt]) -> None:
        """Take in what came of attempts, and put into the session what is to be saved."""
        for attempt in attempts:
            merged = attempt.optimizer == MERGE
            self._merger.observe(merge=merged, accepted=attempt.accepted)
            if merged:
                one, other = attempt.proposal.notes["merged"]
                self._merger.tried.add((one, other))
            else:
                self._bandit.observe(list(attempt.proposal.values), accepted=attempt.accepted)
        self._session.strategy = {
            "front": [candidate.id for candidate in self.members], "credit": self._bandit.state(),
            "merge": self._merger.state(), "spent": list(self._spent), "asked": self._asked,
        }  # fmt: skip

    # -- the front ---------------------------------------------------------------------------------------------------

    def _best(self, members: Sequence[Candidate]) -> Candidate:
        """The highest worth on the front; of equal ones the earliest."""
        return max(members, key=lambda candidate: (self._rank(candidate), -candidate.id))

    def _rank(self, candidate: Candidate) -> float:
        return math.fsum(map(self._finite, self._worths(candidate))) / len(self.numbers)

    def _worths(self, candidate: Candidate) -> list[float | None]:
        return candidate.on(self.numbers)

    def _finite(self, value: float | None) -> float:
        return self._session.bench.floor if value is None else value

    def _alone(self, candidate: Candidate, numbers: Sequence[int]) -> int:
        """On how many examples it does better than every member."""
        rows = [list(map(_led, c.on(numbers))) for c in (*self.members, candidate)]
        return sum(own > max(others) for *others, own in zip(*rows, strict=True))

    def _kept(self, members: Sequence[Candidate]) -> list[Candidate]:
        """Those that the front needs, in the order of their numbers."""
        alive = self._front(members).alive
        return [self._session.candidates[number] for number in alive]

    def _front(self, members: Sequence[Candidate]) -> Front:
        """Cells: the examples, the mean worth, every score's mean where there are several, what is measured."""
        key = (self._session.bench.floor, *(candidate.id for candidate in members))
        if key not in self._fronts:
            lowest = floors(members, self.numbers)
            table = {
                c.id: (*map(_led, self._worths(c)), self._rank(c), *self._others(c, self.numbers, lowest))
                for c in members
            }
            # only the last is asked for again
            self._fronts = {key: Front(table, {c.id: self._rank(c) for c in members})}
        return self._fronts[key]

    def _others(self, candidate: Candidate, numbers: Sequence[int], lowest: Mapping[str, float]) -> list[float]:
        """What it is worth in every objective; higher is better."""
        costs = measured(self._plan.objectives, candidate, numbers, self._session.parameters)
        less = [-math.inf if cost is None else -cost for cost in costs.values()]
        return [*means(candidate, numbers, lowest).values(), *less]


def _led(value: float | None) -> float:
    """A worth as the front compares it: a failed rollout leads nowhere but where all failed."""
    return -math.inf if value is None else value
