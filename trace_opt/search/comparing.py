"""Comparisons under way: candidates with the incumbent on the validation examples, several abreast, block by block.

Both are run on an example when a comparison comes to it, and never before: most candidates are dropped after a few
examples, and an incumbent gathers its scores from the comparisons that it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trace_opt.search.gate import Comparison, Gate, Verdict, trial_order
from trace_opt.search.measures import result
from trace_opt.search.splits import rollout_seed

if TYPE_CHECKING:
    from trace_opt.search.candidate import Attempt, Candidate
    from trace_opt.search.session import Session


@dataclass(slots=True, eq=False)
class _Duel:
    attempt: Attempt
    candidate: Candidate
    block: int
    order: list[int]
    comparison: Comparison


async def compared(
    session: Session, tests: Sequence[tuple[Attempt, Gate]], *, again: bool = False
) -> list[Verdict]:  # fmt: skip
    """Compare attempts with the incumbent, each in an order of its own, and note the means that each comparison saw.

    Args:
        session: Runs candidates.
        tests: Attempts that have candidates, each with the gate it has to pass.
        again: Whether an order is wanted that the attempts were not compared in before.

    Raises:
        BudgetError: the budget does not cover a block.
    """
    incumbent = session.incumbent
    session.bring(incumbent)
    seed = rollout_seed(session.bench.seed, "again") if again else session.bench.seed
    duels: list[_Duel] = []
    for attempt, gate in tests:
        if attempt.candidate is not None:
            session.bring(attempt.candidate)
            order = trial_order(session.order, seed, attempt.number)
            comparison = gate.begin(len(order), session.measures, seed=rollout_seed(seed, f"signs/{attempt.number}"))
            duels.append(_Duel(attempt, attempt.candidate, gate.block, order, comparison))
    while running := [duel for duel in duels if duel.comparison.verdict is None]:
        blocks = [(duel, duel.order[duel.comparison.n :][: duel.block]) for duel in running]
        await session.bench.score(
            [(candidate, block) for duel, block in blocks for candidate in (duel.candidate, incumbent)], "trials"
        )
        for duel, block in blocks:
            before = [result(incumbent.scores[n], session.measures) for n in block]
            duel.comparison.extend(before, [result(duel.candidate.scores[n], session.measures) for n in block])
    for duel in duels:
        session.compare(duel.attempt, duel.order[: duel.comparison.n], incumbent)
    return [duel.comparison.verdict for duel in duels if duel.comparison.verdict is not None]
