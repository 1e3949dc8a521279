"""A race: all combinations of a few values, tried on more and more examples while fewer and fewer are left."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trace_opt.errors import ProblemError
from trace_opt.optim.base import Proposal
from trace_opt.search.candidate import Attempt, Candidate
from trace_opt.search.comparing import compared, mean_on

if TYPE_CHECKING:
    from trace_opt.search.gate import Gate
    from trace_opt.search.session import Session

RUNGS: tuple[int | None, ...] = (24, 96, None)

_MOST_RACED = 1000


async def race(
    session: Session, raced: Mapping[str, Sequence[Any]], *, gate: Gate | None, rungs: Sequence[int | None] = RUNGS
) -> None:
    """Try all combinations of some values at the first rung, and the best quarter of them at each later one.

    Args:
        session: Runs candidates; it is at step 0 afterwards.
        raced: Values by parameter name.
        gate: What the winner must show against the start; None builds on no winner.
        rungs: After how many validation examples three quarters are dropped; None is all of them.

    Raises:
        ProblemError: there are too many combinations.
        BudgetError: the budget does not cover a rung.
    """
    attempts = _combinations(session, raced)
    session.step = 0
    if not attempts:
        return
    for _ in attempts:
        session.bench.ledger.take_trial()
    session.attempts.extend(attempts)
    for attempt in attempts:
        if attempt.candidate is not None:  # so that its rollouts tell something where the race is cut short
            session.keeper.candidate(attempt.candidate)
    racing = [session.start, *(c for attempt in attempts if (c := attempt.candidate) is not None)]
    total = len(session.order)
    for stop in sorted({min(total, rung) for rung in rungs if rung is not None} | {total}):
        numbers = session.order[:stop]
        await session.bench.score([(candidate, numbers) for candidate in racing], "race")
        ranked = sorted(racing, key=lambda c, on=numbers: -mean_on(session, c, on))
        _note(session, attempts, ranked, numbers)
        racing = ranked[: -(-len(ranked) // 4)]
    winner = next((a for a in attempts if a.candidate is racing[0]), None)
    if winner is not None and gate is not None:
        # it was run on all examples to win, so one look at all of them costs nothing and shows the most
        [verdict] = await compared(session, [(winner, replace(gate, gamma=0.0, block=total))])
        won = f"won the race of {len(attempts) + 1}"
        if not verdict.accepted:
            winner.verdict = f"dropped: {won}, but {verdict}"
        elif await session.approving.allows(winner, f"{won}, {verdict}"):
            session.accept(winner, f"accepted: {won}, {verdict}")
            await session.show()
    session.conclude(attempts)


def _note(session: Session, attempts: Sequence[Attempt], ranked: Sequence[Candidate], numbers: Sequence[int]) -> None:
    places = {candidate.id: place for place, candidate in enumerate(ranked, 1)}
    for attempt in attempts:
        if attempt.candidate is not None and attempt.candidate.id in places:
            session.compare(attempt, numbers, session.start)
            place = places[attempt.candidate.id]
            attempt.verdict = f"raced: place {place} of {len(ranked)} after {len(numbers)} examples"


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
        changed = {n: v for n, v in values.items() if session.key_of({n: v}) != session.key_of({n: start.values[n]})}
        number = len(attempts) + 1
        attempt = Attempt(number, 0, number - 1, None, "race", start, Proposal(changed, "a combination raced"))
        session.put(attempt, values)
        attempts.append(attempt)
    return attempts
