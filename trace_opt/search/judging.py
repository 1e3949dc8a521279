"""How a strategy has several proposals tested at once: each against what it was made from, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trace_opt.search.comparing import Duel, fought
from trace_opt.search.gate import Comparison, Gate, Verdict, trial_order
from trace_opt.search.splits import rollout_seed

if TYPE_CHECKING:
    from trace_opt.search.candidate import Attempt, Candidate
    from trace_opt.search.guards import Guards, Recited
    from trace_opt.search.session import Session


@dataclass(slots=True, eq=False)
class Tested(Duel):
    """A proposal under test.

    Attributes:
        attempt: The proposal.
    """

    attempt: Attempt

    @property
    def said(self) -> str:
        """How it ended, in words."""
        return str(self.verdict).replace("the incumbent", "its parent")

    @property
    def passes(self) -> bool:
        """Whether the gate lets it through; what training ended at passes unless it is found worse."""
        return self.verdict.accepted or (self.attempt.proposal.phase and self.verdict.outcome != "worse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Tests proposals.

    Args:
        gate: The settings of the test.
        numbers: The examples.
    """

    gate: Gate
    numbers: Sequence[int]

    async def test(self, session: Session, attempts: Sequence[Attempt]) -> list[Tested]:
        """Test those that are open and new, all at once; the others get their verdict here.

        Raises:
            BudgetError: the budget does not cover a block.
        """
        tests: list[Tested] = []
        for attempt in attempts:
            if not attempt.open or attempt.candidate is None:
                continue
            if attempt.is_new:
                tests.append(self._begun(session, attempt, attempt.candidate))
            else:
                attempt.verdict = f"dropped: the same values as candidate {attempt.candidate.id}"
        await fought(session, tests)
        for test in tests:
            session.compare(test.attempt, test.seen, test.base)
        return tests

    async def duel(self, session: Session, candidate: Candidate, base: Candidate) -> Verdict:
        """Compare two candidates.

        Raises:
            BudgetError: the budget does not cover a block.
        """
        bring(session, [candidate, base])
        order, comparison = self._comparison(session, candidate.id, self.gate)
        duel = Duel(candidate, base, self.gate.block, order, comparison)
        await fought(session, [duel])
        return duel.verdict

    def _begun(self, session: Session, attempt: Attempt, candidate: Candidate) -> Tested:
        # what training ended at is kept unless it is found worse, so nothing of it is given up early
        gate = Gate.phase(block=self.gate.block) if attempt.proposal.phase else self.gate
        bring(session, [candidate, attempt.base])
        order, comparison = self._comparison(session, attempt.number, gate)
        return Tested(candidate, attempt.base, gate.block, order, comparison, attempt)

    def _comparison(self, session: Session, number: int, gate: Gate) -> tuple[list[int], Comparison]:
        seed = session.bench.seed
        signs = rollout_seed(seed, f"signs/{number}")
        return trial_order(self.numbers, seed, number), gate.begin(len(self.numbers), session.measures, seed=signs)


def bring(session: Session, candidates: Iterable[Candidate]) -> None:
    """Let candidates be compared by the same draws, where examples are run several times."""
    for candidate in candidates:
        session.bring(candidate)


async def prepare(session: Session, numbers: Sequence[int]) -> None:
    """Run the start, and what won a race, on the examples that later candidates are compared on.

    Raises:
        BudgetError: the budget does not cover them.
    """
    bring(session, (candidate for candidate in session.candidates.values() if candidate.accepted))
    if not session.strategy:
        await session.bench.score([(c, numbers) for c in dict.fromkeys((session.start, session.incumbent))], "start")


def refuse(session: Session, attempts: Sequence[Attempt], guards: Guards | None, known: Recited | None) -> None:
    """Give the attempts that guards object to their verdict, before anything is paid for them.

    Args:
        session: Holds the starting values.
        attempts: As they were proposed.
        guards: What they are held to, or None.
        known: What `Guards.phrases` gave for the training examples.
    """
    for attempt in attempts:
        if guards is None or not attempt.open:
            continue
        for name, value in attempt.proposal.values.items():
            why = guards.objection(name, session.start.values[name], value, known)
            if why:
                # the note is shown to the proposer with the history
                attempt.proposal = replace(attempt.proposal, notes={**attempt.proposal.notes, "refused": why})
                attempt.verdict = f"not allowed: {why}"
                break
