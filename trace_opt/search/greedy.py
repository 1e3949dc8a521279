"""Greedy search: build on the best values so far; a proposal replaces them once it is better on all validation examples.

A candidate is run on the validation examples in one seeded order, in stages, and dropped at the end of the first stage at
which its paired mean is not above the incumbent's.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from trace_opt.errors import ProblemError
from trace_opt.optim.base import Proposal
from trace_opt.search import statistics
from trace_opt.search.candidate import Attempt, Candidate

if TYPE_CHECKING:
    from trace_opt.search.session import Session

_MOST_RACED = 1000

WORSE = 0.05
"""The p-value at which a phase is found worse than the incumbent."""


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
    def tests(self) -> bool:
        """Whether candidates are run on the validation examples; else every proposal is built on."""
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
        stages: After how many validation examples a candidate may be dropped; None is all of them.
        gate: What a proposal must show: "mean", a higher mean than the incumbent's; a phase is kept unless it is found
            worse. None tests nothing and builds on every proposal, as an ordinary training loop does.

    Raises:
        ProblemError: a number is below 1, or the stages do not rise.
    """

    width: int = 1
    minibatch: int = 8
    stages: tuple[int | None, ...] = (24, 96, None)
    gate: Literal["mean"] | None = "mean"

    def __post_init__(self) -> None:
        if self.width < 1 or self.minibatch < 1:
            raise ProblemError(f"{self!r} has a number below 1; give at least 1")
        given = [s for s in self.stages if s is not None]
        if any(s < 1 for s in given) or given != sorted(set(given)):
            raise ProblemError(
                f"the stages {self.stages!r} do not rise; give numbers of examples, as in (24, 96, None)"
            )

    @property
    def tests(self) -> bool:
        """Whether there is a gate."""
        return self.gate is not None

    def boundaries(self, total: int) -> list[int]:
        """The stages for this many validation examples; one example without a gate, to see what the workflow reads."""
        if self.gate is None:
            return [1]
        return sorted({min(total, s) for s in self.stages if s is not None} | {total})

    async def run(self, session: Session, raced: Mapping[str, Sequence[Any]]) -> str:
        """See `Search.run`."""
        if session.step < 0:
            await self._race(session, raced)
        while (why := session.why_stop()) is None:
            attempts = await session.propose(self.width)
            await self._judge(session, [attempt for attempt in attempts if attempt.open])
            session.conclude(attempts)
        return why

    async def _judge(self, session: Session, attempts: Sequence[Attempt]) -> None:
        """Give every attempt a verdict."""
        fresh = [attempt for attempt in attempts if attempt.is_new]
        for attempt in attempts:
            if attempt not in fresh:
                self._repeat(session, attempt)
        if self.gate is None:
            for attempt in fresh:
                session.accept(attempt, "accepted: not tested")
            return
        await self._judge_phases(session, [attempt for attempt in fresh if attempt.proposal.phase])
        alive = [attempt for attempt in fresh if not attempt.proposal.phase]
        for stop in self.boundaries(len(session.order)):
            numbers = session.order[:stop]
            await session.bench.score([(c, numbers) for a in alive if (c := a.candidate) is not None], "trials")
            alive = [attempt for attempt in alive if self._above(session, attempt, numbers)]
        for attempt in alive:
            # one accepted before it in this step may have moved the incumbent
            if self._above(session, attempt, session.order):
                session.accept(attempt, f"accepted: above the incumbent on all {len(session.order)} examples")

    @staticmethod
    async def _judge_phases(session: Session, attempts: Sequence[Attempt]) -> None:
        """Keep what training ended at, unless it is found worse on all validation examples."""
        numbers = session.order
        await session.bench.score([(c, numbers) for a in attempts if (c := a.candidate) is not None], "trials")
        for attempt in attempts:
            pairs = session.compare(attempt, numbers)
            if pairs.mean < 0 and statistics.p_value(pairs) <= WORSE:
                attempt.verdict = f"dropped: worse than the incumbent on {len(numbers)} examples"
            else:
                session.accept(attempt, f"accepted: not found worse on {len(numbers)} examples")

    @staticmethod
    def _above(session: Session, attempt: Attempt, numbers: Sequence[int]) -> bool:
        if session.compare(attempt, numbers).mean > 0:
            return True
        attempt.verdict = f"dropped: not above the incumbent after {len(numbers)} examples"
        return False

    @staticmethod
    def _repeat(session: Session, attempt: Attempt) -> None:
        """The verdict on values that were tried before."""
        known = attempt.candidate
        if known is None:
            return
        numbers = known.known(session.order)
        if numbers:
            session.compare(attempt, numbers)
        attempt.verdict = f"dropped: the same values as candidate {known.id}"

    async def _race(self, session: Session, raced: Mapping[str, Sequence[Any]]) -> None:
        """Try all combinations of some values at the first stage, and the best quarter of them at each later one."""
        attempts = self._combinations(session, raced)
        session.step = 0
        if not attempts:
            return
        for _ in attempts:
            session.bench.ledger.take_trial()
        session.attempts.extend(attempts)
        racing = [session.start, *(c for attempt in attempts if (c := attempt.candidate) is not None)]
        for stop in self.boundaries(len(session.order)):
            numbers = session.order[:stop]
            await session.bench.score([(candidate, numbers) for candidate in racing], "race")
            ranked = sorted(racing, key=lambda c, on=numbers: -_mean(session, c, on))
            self._note(session, attempts, ranked, numbers)
            racing = ranked[: -(-len(ranked) // 4)]
        winner = next((a for a in attempts if a.candidate is racing[0]), None)
        if winner is not None and self._above(session, winner, session.order):
            session.accept(winner, f"accepted: won the race of {len(attempts) + 1}")
        session.conclude(attempts)

    @staticmethod
    def _note(
        session: Session, attempts: Sequence[Attempt], ranked: Sequence[Candidate], numbers: Sequence[int]
    ) -> None:
        places = {candidate.id: place for place, candidate in enumerate(ranked, 1)}
        for attempt in attempts:
            if attempt.candidate is not None and attempt.candidate.id in places:
                session.compare(attempt, numbers, session.start)
                place = places[attempt.candidate.id]
                attempt.verdict = f"raced: place {place} of {len(ranked)} after {len(numbers)} examples"

    @staticmethod
    def _combinations(session: Session, raced: Mapping[str, Sequence[Any]]) -> list[Attempt]:
        """An attempt for every combination but the start's.

        Raises:
            ProblemError: there are too many.
        """
        count = 1
        for values in raced.values():
            count *= len(values)
        if count > _MOST_RACED:
            raise ProblemError(f"race has {count} combinations; name fewer parameters, at most {_MOST_RACED} are tried")
        start = session.start
        attempts: list[Attempt] = []
        for chosen in itertools.product(*raced.values()) if raced else ():
            values = {**start.values, **dict(zip(raced, chosen, strict=True))}
            if session.key_of(values) == start.key:
                continue
            changed = {
                n: v for n, v in values.items() if session.key_of({n: v}) != session.key_of({n: start.values[n]})
            }
            number = len(attempts) + 1
            attempt = Attempt(number, 0, number - 1, None, "race", start, Proposal(changed, "a combination raced"))
            session.put(attempt, values)
            attempts.append(attempt)
        return attempts


def _mean(session: Session, candidate: Candidate, numbers: Sequence[int]) -> float:
    return statistics.mean(candidate.on(numbers), session.bench.floor)
