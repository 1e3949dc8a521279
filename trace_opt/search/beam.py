"""Beam search: build on the few best candidates at once, so that one lucky step does not decide the way.

Every step asks for proposals from each candidate of the beam; what passes the gate against its parent is run on all
validation examples, and the best means of beam and newcomers are the next beam.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trace_opt.errors import ProblemError
from trace_opt.search.comparing import BLOCK, mean_on
from trace_opt.search.gate import Gate
from trace_opt.search.guards import Guards, Recited
from trace_opt.search.judging import Judge, Tested, prepare, refuse
from trace_opt.search.racing import race

if TYPE_CHECKING:
    from trace_opt.search.candidate import Candidate
    from trace_opt.search.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Beam:
    """See the module.

    Args:
        beam: Candidates that a step builds on.
        proposals: Proposals asked for from each of them, all at once.
        minibatch: Training rollouts of the parent that a proposal is made from.
        gate: What a proposal must show against its parent, and the winner of a race against the start.
        guards: What proposed texts are held to; None lets all through.

    Raises:
        ProblemError: a number is below 1.
    """

    beam: int = 4
    proposals: int = 1
    minibatch: int = 4
    gate: Gate = field(default_factory=lambda: Gate.search(block=BLOCK))
    guards: Guards | None = field(default_factory=Guards)

    def __post_init__(self) -> None:
        if min(self.beam, self.proposals, self.minibatch) < 1:
            raise ProblemError(f"{self!r} has a number below 1; give at least 1")

    @property
    def width(self) -> int:
        """Proposals at once, once the beam is full."""
        return self.beam * self.proposals

    @property
    def tests(self) -> bool:
        """Candidates are run on the validation examples."""
        return True

    def boundaries(self, total: int) -> list[int]:
        """After how many validation examples a candidate may be dropped; the last is all of them."""
        return sorted({*range(min(self.gate.block, total), total, self.gate.block), total})

    async def run(self, session: Session, raced: Mapping[str, Sequence[Any]]) -> str:
        """See `Search.run`."""
        if session.step < 0:
            await race(session, raced, gate=self.gate)
        data = session.bench.data
        known = None if self.guards is None else self.guards.phrases([data.examples[n] for n in data.train])
        await prepare(session, session.order)
        judge = Judge(gate=self.gate, numbers=session.order)
        while (why := session.why_stop()) is None:
            await self._step(session, judge, known)
        return why

    async def _step(self, session: Session, judge: Judge, known: Recited | None) -> None:
        members = self._members(session)
        # the first gives as many more as the beam has free places
        parents = [*members, *members[:1] * (self.beam - len(members))]
        asked = [parent for parent in parents for _ in range(self.proposals)]
        attempts = await session.propose(len(asked), parents=asked)
        refuse(session, attempts, self.guards, known)
        tests = await judge.test(session, attempts)
        going = [test for test in tests if test.passes]
        await session.bench.score([(test.candidate, session.order) for test in going], "trials")
        beam = await self._beam(session, members, going)
        for test in tests:
            self._judged(session, test, beam)
        for gone in members:
            if gone not in beam:
                gone.kept.clear()
        session.incumbent = beam[0]
        session.strategy = {"beam": [candidate.id for candidate in beam]}
        session.conclude(attempts)

    async def _beam(self, session: Session, members: Sequence[Candidate], going: list[Tested]) -> list[Candidate]:
        """The best of members and newcomers; who is refused makes place for the next."""
        agreed: list[Tested] = []
        while True:
            beam = self._best(session, [*members, *(test.candidate for test in going)])
            asked = [test for test in going if test.candidate in beam and test not in agreed]
            if not asked:
                return beam
            for test in asked:
                if await session.approving.allows(test.attempt, f"{test.said}, place {_place(test, beam)} of the beam"):
                    agreed.append(test)
                else:
                    going.remove(test)

    @staticmethod
    def _judged(session: Session, test: Tested, beam: Sequence[Candidate]) -> None:
        if not test.attempt.open:
            return
        if test.candidate in beam:
            session.admit(test.attempt, f"accepted: {test.said}, place {_place(test, beam)} of the beam")
        else:
            test.attempt.verdict = f"dropped: {test.said}{', but not in the beam' if test.passes else ''}"

    def _members(self, session: Session) -> list[Candidate]:
        """The beam, the best first; after a race, what was accepted in it."""
        kept: list[int] | None = session.strategy.get("beam")
        if kept is not None:
            return [session.candidates[number] for number in kept]
        whole = [c for c in session.candidates.values() if c.accepted and all(n in c.scores for n in session.order)]
        return self._best(session, whole)

    def _best(self, session: Session, candidates: Sequence[Candidate]) -> list[Candidate]:
        ranked = sorted(candidates, key=lambda c: (-mean_on(session, c, session.order), c.id))
        return ranked[: self.beam]


def _place(test: Tested, beam: Sequence[Candidate]) -> int:
    return beam.index(test.candidate) + 1
