"""Comparisons under way: candidates with the incumbent on the validation examples, several abreast, block by block.

Both are run on an example when a comparison comes to it, and never before: most candidates are dropped after a few
examples, and an incumbent gathers its scores from the comparisons that it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from trace_opt.search import statistics
from trace_opt.search.gate import Comparison, Gate, Verdict, trial_order
from trace_opt.search.measures import result
from trace_opt.search.splits import rollout_seed

if TYPE_CHECKING:
    from trace_opt.search.candidate import Attempt, Candidate
    from trace_opt.search.session import Session


BLOCK = 4
"""Validation examples between two looks of the gate; run on both sides at once, they keep the default concurrency busy."""


@dataclass(slots=True, eq=False)
class Duel:
    """A candidate under test.

    Attributes:
        candidate: The candidate.
        base: What it is compared with.
        block: Examples that both are run on at a time.
        order: The examples, in this test's own order.
        comparison: How it stands.
    """

    candidate: Candidate
    base: Candidate
    block: int
    order: list[int]
    comparison: Comparison

    @property
    def seen(self) -> list[int]:
        """The examples that the comparison used."""
        return self.order[: self.comparison.n]

    @property
    def verdict(self) -> Verdict:
        """How it ended."""
        return cast("Verdict", self.comparison.verdict)


async def fought(session: Session, duels: Sequence[Duel]) -> None:
    """Run duels to their verdicts, all of them abreast.

    Args:
        session: Runs candidates.
        duels: They are changed.

    Raises:
        BudgetError: the budget does not cover a block.
    """
    while running := [duel for duel in duels if duel.comparison.verdict is None]:
        blocks = [(duel, duel.order[duel.comparison.n :][: duel.block]) for duel in running]
        wanted = [pair for duel, block in blocks for pair in ((duel.candidate, block), (duel.base, block))]
        await session.bench.score(wanted, "trials")
        for duel, block in blocks:
            before = [result(duel.base.scores[n], session.measures) for n in block]
            duel.comparison.extend(before, [result(duel.candidate.scores[n], session.measures) for n in block])


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
    duels: list[tuple[Attempt, Duel]] = []
    for attempt, gate in tests:
        if attempt.candidate is not None:
            session.bring(attempt.candidate)
            order = trial_order(session.order, seed, attempt.number)
            comparison = gate.begin(len(order), session.measures, seed=rollout_seed(seed, f"signs/{attempt.number}"))
            duels.append((attempt, Duel(attempt.candidate, incumbent, gate.block, order, comparison)))
    await fought(session, [duel for _, duel in duels])
    for attempt, duel in duels:
        session.compare(attempt, duel.seen, incumbent)
    return [duel.verdict for _, duel in duels]


def mean_on(session: Session, candidate: Candidate, numbers: Sequence[int]) -> float:
    """A candidate's mean score on examples that it was run on."""
    return statistics.mean(candidate.on(numbers), session.bench.floor)
