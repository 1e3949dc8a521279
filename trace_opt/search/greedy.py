"""Greedy search: build on the best values so far; a proposal replaces them once the search gate finds it better.

Candidate and incumbent are compared on the validation examples in an order that is fresh for each trial, a block at a
time, until the gate has seen enough. An accepted candidate is not completed on the others: it gathers them in the
comparisons that it stands as the incumbent, and what is saved buys further candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from trace_opt.errors import BudgetError, ProblemError
from trace_opt.search.candidate import Attempt, Candidate
from trace_opt.search.comparing import BLOCK, compared
from trace_opt.search.gate import Gate
from trace_opt.search.racing import RUNGS, race

if TYPE_CHECKING:
    from trace_opt.search.gate import Verdict
    from trace_opt.search.session import Session


class Search(Protocol):
    """How a run goes about it."""

    @property
    def width(self) -> int:
        """Proposals at once."""
        ...

    @property
    def minibatch(self) -> int:
        """Training rollouts that a proposal is made from."""
        ...

    @property
    def gate(self) -> Gate | None:
        """What decides whether to build on a candidate, or None where every proposal is built on."""
        ...

    @property
    def tests(self) -> bool:
        """Whether candidates are run on the validation examples."""
        ...

    def boundaries(self, total: int) -> list[int]:
        """After how many validation examples a candidate may be dropped; the last is all of them."""
        ...

    async def run(self, session: Session, raced: Mapping[str, Sequence[Any]]) -> str:
        """Search until there is a reason to stop, and give that reason.

        Args:
            session: Proposes, runs, keeps.
            raced: Values by parameter name whose combinations are all to be tried first.

        Raises:
            BudgetError: the budget is spent; attempts may be left open.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """See the module.

    Args:
        width: Proposals asked for and tried at once, each against the same incumbent.
        minibatch: Training rollouts that a proposal is made from.
        rungs: After how many validation examples a race drops three quarters of its combinations; None is all of them.
        gate: The test between a candidate and the incumbent; what a training phase ends at is kept unless it is found
            worse. None tests nothing and builds on every proposal, as an ordinary training loop does.

    Raises:
        ProblemError: a number is below 1, or the rungs do not rise.
    """

    width: int = 1
    minibatch: int = 8
    rungs: tuple[int | None, ...] = RUNGS
    gate: Gate | None = field(default_factory=lambda: Gate.search(block=BLOCK))

    def __post_init__(self) -> None:
        if self.width < 1 or self.minibatch < 1:
            raise ProblemError(f"{self!r} has a number below 1; give at least 1")
        if self.gate is not None and not isinstance(self.gate, Gate):  # pyright: ignore[reportUnnecessaryIsInstance] # users pass anything
            raise ProblemError(f"the gate is {self.gate!r}; give a Gate, as in Gate.search(), or None to test nothing")
        given = [s for s in self.rungs if s is not None]
        if any(s < 1 for s in given) or given != sorted(set(given)):
            raise ProblemError(f"the rungs {self.rungs!r} do not rise; give numbers of examples, as in (24, 96, None)")

    @property
    def tests(self) -> bool:
        """Whether there is a gate."""
        return self.gate is not None

    def boundaries(self, total: int) -> list[int]:
        """The blocks of the gate; one example without a gate, to see what the workflow reads."""
        if self.gate is None:
            return [1]
        return sorted({*range(self.gate.block, total, self.gate.block), total})

    async def run(self, session: Session, raced: Mapping[str, Sequence[Any]]) -> str:
        """See `Search.run`."""
        if session.step < 0:
            await race(session, raced, gate=self.gate, rungs=self.rungs)
        await session.confirm_target()
        while (why := session.why_stop()) is None:
            attempts = await session.propose(self.width)
            await self._judge(session, [attempt for attempt in attempts if attempt.open])
            session.conclude(attempts)
            await session.confirm_target()
        return why

    async def _judge(self, session: Session, attempts: Sequence[Attempt]) -> None:
        """Give every attempt a verdict."""
        fresh = [attempt for attempt in attempts if attempt.is_new]
        for attempt in attempts:
            if attempt not in fresh:
                self._repeat(session, attempt)
        if self.gate is None:
            for attempt in fresh:
                if await session.approving.allows(attempt, "not tested"):
                    session.accept(attempt, "accepted: not tested")
            return
        met, phase_gate = session.incumbent, Gate.phase(block=self.gate.block)
        tests = [(attempt, phase_gate if attempt.proposal.phase else self.gate) for attempt in fresh]
        for (attempt, gate), verdict in zip(tests, await compared(session, tests), strict=True):
            await self._decide(session, attempt, verdict, gate, met)

    @staticmethod
    async def _decide(session: Session, attempt: Attempt, verdict: Verdict, gate: Gate, met: Candidate) -> None:
        """Build on an attempt, or drop it."""
        phase = attempt.proposal.phase
        if _passes(verdict, phase=phase) and met is not session.incumbent:
            # one accepted before it in this step has moved the incumbent
            try:
                [verdict] = await compared(session, [(attempt, gate)], again=True)
            except BudgetError:
                attempt.verdict = "dropped: the budget was spent before it met the one accepted before it"
                return
        if not _passes(verdict, phase=phase):
            attempt.verdict = f"dropped: {verdict}"
            return
        found = f"not found worse after {verdict.n} examples" if phase else str(verdict)
        if not await session.approving.allows(attempt, found):
            return
        session.accept(attempt, f"accepted: {found}")
        await session.show()

    @staticmethod
    def _repeat(session: Session, attempt: Attempt) -> None:
        """The verdict on values that were tried before."""
        known = attempt.candidate
        if known is None:
            return
        numbers = [number for number in known.known(session.order) if number in session.incumbent.scores]
        if numbers:
            session.compare(attempt, numbers)
        attempt.verdict = f"dropped: the same values as candidate {known.id}"


def _passes(verdict: Verdict, *, phase: bool) -> bool:
    """Whether the search builds on it: what training ended at is kept unless it is worse."""
    return verdict.outcome != "worse" if phase else verdict.accepted
