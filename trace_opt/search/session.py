"""One search under way: its candidates, its trials, whose turn it is, and what of all that is on disk.

A search strategy asks a session for proposals, has them scored, and gives each a verdict; the session does the rest in
one order of effect, so that a run repeats, and goes on after a kill, bit for bit.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_opt.core.codec import decode, encode, values_hash
from trace_opt.core.parameter import Parameter
from trace_opt.errors import BudgetError
from trace_opt.optim.base import Optimizer, Outcome, Proposal, Trial
from trace_opt.search import statistics
from trace_opt.search.approving import Approve, Approving
from trace_opt.search.asking import Asked, Asking, Focus
from trace_opt.search.bench import Bench
from trace_opt.search.candidate import Attempt, Candidate, Score, record_of
from trace_opt.search.gate import Measure
from trace_opt.search.keeping import Keeper
from trace_opt.search.options import Event
from trace_opt.search.statistics import Paired
from trace_opt.store.records import TrialRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from trace_opt.store.store import Saved
    from trace_opt.store.writer import Writer

UNJUDGED = "the budget was spent before it was judged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """When to stop before the budget does, and whom to tell.

    Attributes:
        target: Stop at this validation mean.
        patience: Stop after this many trials in a row without one accepted.
        approve: Asked before an acceptance takes effect.
        on_trial: Called with every finished trial.
        on_event: Called with every event.
    """

    target: float | None = None
    patience: int | None = None
    approve: Approve | None = None
    on_trial: Callable[[TrialRecord], object] | None = None
    on_event: Callable[[Event], object] | None = None


class Session:
    """A search under way.

    Args:
        bench: Runs candidates.
        parameters: What may change, by full name, frozen ones included.
        optimizers: Who proposes.
        owned: The place of each parameter's optimizer in `optimizers`.
        start: The candidate of the starting values, already scored.
        minibatch: Training rollouts that a proposal is made from.
        goals: When to stop, whom to tell.
        writer: Who keeps, or None.
        tests: Whether candidates are run on the validation examples; the last one built on counts as the best else.
        measures: What is declared of the scores; the first decides.

    Attributes:
        keeper: Writes and reads what is kept.
        approving: Asks before an acceptance takes effect.
        candidates: By number.
        incumbent: The candidate that the search builds on.
        attempts: All proposals so far, in order.
        step: Steps done; the race is step 0.
        strategy: What the strategy keeps to go on from, JSON-able; saved with every step.
    """

    def __init__(
        self, bench: Bench, *, parameters: Mapping[str, Parameter[Any]], optimizers: Sequence[Optimizer],
        owned: Mapping[str, int], start: Candidate, minibatch: int, goals: Goals, writer: Writer | None = None,
        tests: bool = True, measures: Sequence[Measure] = (Measure(),),
    ) -> None:  # fmt: skip
        self.bench = bench
        self.measures = tuple(measures)
        self.parameters = dict(parameters)
        self.optimizers = list(optimizers)
        self.owned = dict(owned)
        self.start = self.incumbent = start
        self.candidates: dict[int, Candidate] = {start.id: start}
        self.attempts: list[Attempt] = []
        self.history: list[Trial] = []
        self.step = -1
        self.strategy: dict[str, Any] = {}
        self._by_key = {start.key: start}
        self._tests = tests
        self._goals = goals
        self.keeper = Keeper(bench, self.parameters, self.optimizers, writer)
        self.approving = Approving(goals.approve, self.keeper, bench.executor)
        self._idle = 0
        self._since = 0
        self._resumed: dict[tuple[int, int], Attempt] = {}
        self._asking = Asking(self, minibatch, tests=tests)
        self._left: Mapping[int, Mapping[tuple[int, int], Score]] = {}
        self._round = 0
        self._settled: tuple[Candidate, tuple[int, ...]] | None = (
            None  # what the incumbent had seen after the last step
        )

    @property
    def order(self) -> tuple[int, ...]:
        """The validation examples in the one order in which every candidate meets them."""
        return self.bench.order

    # -- stopping ----------------------------------------------------------------------------------------------------

    def why_stop(self) -> str | None:
        """Why the search should go no further, or None."""
        target, patience = self._goals.target, self._goals.patience
        if target is not None and (self._whole(self.incumbent) or not self._tests) and self._is_at(target):
            return f"the target of {target:g} is reached"
        if patience is not None and self._since >= patience:
            return f"no trial was accepted among the last {self._since}"
        if self._idle >= max(3, len(self._asking.turn_of)):
            why = "; ".join(f"{name}: {reason:.300}" for name, reason in self._asking.silent.items())
            return f"no optimizer has anything left to propose{f' ({why})' if why else ''}"
        if not self.bench.ledger.may_try():
            return f"the budget of {self.bench.ledger.budget.trials} trials is spent"
        if not self._asking.turn_of:
            return "every parameter is frozen"
        return None

    async def confirm_target(self) -> None:
        """Run the incumbent on all validation examples where those it was run on say that the target is reached.

        Raises:
            BudgetError: the budget does not cover them.
        """
        target = self._goals.target
        if target is not None and self._tests and self.mean_of(self.incumbent) >= target:
            self.bring(self.incumbent)
            await self.bench.score([(self.incumbent, self.order)], "target")
            self._settled = None

    def _is_at(self, target: float) -> bool:
        scores = self.incumbent.on(self.incumbent.known(self.order))
        return bool(scores) and statistics.mean(scores, self.bench.floor) >= target

    def _whole(self, candidate: Candidate) -> bool:
        return all(n in candidate.scores for n in self.order)

    def best(self) -> Candidate:
        """The candidate of the greatest shrunken mean among those accepted, each on the examples it was tried on."""
        if not self._tests:
            return self.incumbent
        tried = [c for c in self.candidates.values() if c.accepted and self._known(c)]
        shrunk = statistics.shrunken([self.mean_of(c) for c in tried], [len(self._known(c)) for c in tried])
        top = max(shrunk)
        return next(c for c, mean in zip(reversed(tried), reversed(shrunk), strict=True) if mean >= top - 1e-12)

    def mean_of(self, candidate: Candidate) -> float:
        """A candidate's mean score over the validation examples it was tried on; NaN where it was tried on none."""
        scores = [score.value for score in self._known(candidate)]
        return statistics.mean(scores, self.bench.floor) if scores else math.nan

    def _known(self, candidate: Candidate) -> list[Score]:
        """What is known of a candidate; of the incumbent not what a comparison brought that was never finished."""
        if self._settled is not None and self._settled[0] is candidate:
            return [candidate.scores[n] for n in self._settled[1]]
        return self.bench.draws.known(candidate)

    def bring(self, candidate: Candidate) -> None:
        """Let a candidate's scores be those of the round of draws in which candidates are compared now."""
        self.bench.draws.turn(candidate, self._round)

    async def show(self) -> None:
        """Run the incumbent on the first validation example, whose graph a run shows, where the budget allows."""
        self.bring(self.incumbent)
        try:
            await self.bench.score([(self.incumbent, self.order[:1])], "trials")
        except BudgetError:
            return

    # -- proposing ---------------------------------------------------------------------------------------------------

    async def propose(
        self, width: int, *, parents: Sequence[Candidate] = (), focus: Focus | None = None
    ) -> list[Attempt]:
        """Ask for proposals at once; they come back in order of their slots, fewer where there is nothing to propose.

        Args:
            width: How many.
            parents: What each is made from, by slot; the incumbent by default.
            focus: Chooses the parameters that an optimizer is asked about; all of its own by default.

        Raises:
            BudgetError: the budget does not cover the rollouts or calls that proposing takes.
        """
        step = self.step + 1
        trials = self.bench.ledger.budget.trials
        left = width if trials is None else min(width, trials - self.bench.ledger.trials)
        slots = range(max(0, left))
        first = self.attempts[-1].number + 1 if self.attempts else 1
        bases = [parents[slot] if parents else self.incumbent for slot in slots]
        places = self.bench.ledger.places("proposal", len(slots))
        asked = [Asked(step, slot, first + slot, bases[slot], places[slot]) for slot in slots]
        fresh = [one for one in asked if (step, one.slot) not in self._resumed]
        await self._asking.minibatches(fresh)
        results = await asyncio.gather(*(self._attempt(one, focus) for one in asked), return_exceptions=True)
        attempts = [result for result in results if isinstance(result, Attempt)]
        self.attempts.extend(attempts)
        for result in results:
            if isinstance(result, BaseException):
                self.abandon(UNJUDGED)
                raise result
        for _ in attempts:
            self.bench.ledger.take_trial()
        self.step = step
        self._resumed.clear()
        self._idle = 0 if attempts else self._idle + 1
        return attempts

    def offer(self, base: Candidate, proposal: Proposal, optimizer: str, parents: Sequence[Candidate] = ()) -> Attempt:
        """An attempt that the strategy itself makes, after `propose` and in the same step.

        Args:
            base: The candidate that it is made from, and the first of its parents.
            proposal: What is to be tried.
            optimizer: What stands for who proposed it.
            parents: Further candidates that it comes from.
        """
        last = self.attempts[-1] if self.attempts else None
        slot = last.slot + 1 if last is not None and last.step == self.step else 0
        attempt = Attempt(0 if last is None else last.number, self.step, slot, None, optimizer, base, proposal)
        attempt.number += 1
        self.put(attempt, {**base.values, **proposal.values}, parents)
        self.attempts.append(attempt)
        self.bench.ledger.take_trial()
        self._idle = 0
        return attempt

    async def _attempt(self, asked: Asked, focus: Focus | None) -> Attempt | None:
        resumed = self._resumed.get((asked.step, asked.slot))
        if resumed is None:
            return await self._asking.attempt(asked, focus)
        self.bench.ledger.finish(asked.place)
        return resumed

    def put(self, attempt: Attempt, values: dict[str, Any], parents: Sequence[Candidate] = ()) -> None:
        """Make the candidate of an attempt, or find the one that has its values already."""
        key = self.key_of(values)
        known = self._by_key.get(key)
        if known is not None:
            attempt.candidate = known
            return
        made = Candidate(
            attempt.number, values, key, (attempt.base.id, *(p.id for p in parents)), attempt.step, attempt.optimizer
        )  # fmt: skip
        self.bench.draws.load(made, self._left.get(attempt.number, {}))
        attempt.candidate = self.candidates[made.id] = self._by_key[key] = made

    def key_of(self, values: Mapping[str, Any]) -> str:
        """The hash of complete values."""
        return values_hash(self.parameters, values)

    # -- verdicts ----------------------------------------------------------------------------------------------------

    def compare(self, attempt: Attempt, numbers: Sequence[int], against: Candidate | None = None) -> Paired:
        """Compare an attempt's candidate with the incumbent on examples both were run on, and note the means."""
        before = (against or self.incumbent).on(numbers)
        candidate = attempt.candidate
        after = candidate.on(numbers) if candidate is not None else before
        floor = self.bench.floor
        attempt.before, attempt.after = statistics.mean(before, floor), statistics.mean(after, floor)
        attempt.n = len(numbers)
        return statistics.paired(before, after)

    def accept(self, attempt: Attempt, verdict: str) -> None:
        """Build on an attempt's candidate from now on."""
        attempt.accepted, attempt.verdict = True, verdict
        if attempt.candidate is not None:
            self.incumbent.kept.clear()
            self.incumbent = attempt.candidate
            self.incumbent.accepted = True
            self._round += self.bench.draws.repeats > 1

    @staticmethod
    def admit(attempt: Attempt, verdict: str) -> None:
        """Keep an attempt's candidate among those that may be built on, beside the incumbent."""
        attempt.accepted, attempt.verdict = True, verdict
        if attempt.candidate is not None:
            attempt.candidate.accepted = True

    def conclude(self, attempts: Sequence[Attempt]) -> None:
        """Tell optimizers, history and store what came of attempts, in their order, in one transaction."""
        for attempt in attempts:
            outcome = Outcome(attempt.before, attempt.after, attempt.accepted)
            self.history.append(Trial(attempt.optimizer, attempt.base.values, attempt.proposal, outcome))
            if attempt.by is not None:
                attempt.by.observe(attempt.proposal, outcome)
            self._since = 0 if attempt.accepted else self._since + 1
            self.keeper.attempt(attempt)
        self.save()
        for attempt in attempts:
            if attempt.candidate is not None and not attempt.candidate.accepted:
                attempt.candidate.kept.clear()
            self._announce(attempt)

    def abandon(self, why: str) -> None:
        """Give the attempts that are open a verdict here; in the store they stay open, for a resumed run to judge."""
        for attempt in self.attempts:
            if attempt.open:
                attempt.verdict = why

    def _announce(self, attempt: Attempt) -> None:
        record = record_of(attempt)
        after = "-" if attempt.after is None else f"{attempt.after:.3f}"
        before = "-" if attempt.before is None else f"{attempt.before:.3f}"
        text = f"trial {attempt.number} ({attempt.optimizer}): {before} -> {after} on {attempt.n}, {attempt.verdict}"
        self.tell("trial", text, trial=record, best=self.mean_of(self.incumbent))
        if self._goals.on_trial is not None:
            self._goals.on_trial(record)

    def tell(self, kind: Any, text: str, **data: Any) -> None:
        """Tell an event to whoever listens."""
        if self._goals.on_event is not None:
            self._goals.on_event(Event(kind, text, data))

    # -- keeping -----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Commit what happened since the last time, with the state to go on from."""
        state = {
            "step": self.step, "incumbent": self.incumbent.id, "idle": self._idle, "failures": self._asking.failures,
            "since": self._since, "lowest": encode(self.bench.lowest), "round": self._round, "settled": self._settle(),
            "strategy": self.strategy,
        }  # fmt: skip
        self.keeper.save(state, self.incumbent)

    def _settle(self) -> list[int] | None:
        """The examples that the incumbent was run on by now; None for all of them, and where draws are repeated."""
        numbers = self.incumbent.known(self.order)
        whole = len(numbers) == len(self.order) or self.bench.draws.repeats > 1 or not self._tests
        self._settled = None if whole else (self.incumbent, tuple(numbers))
        return None if whole else numbers

    def restore(self, saved: Saved, scores: Mapping[int, Mapping[tuple[int, int], Score]]) -> None:
        """Go back to where an earlier session stopped.

        Args:
            saved: What it left.
            scores: By candidate, then by example and repeat.
        """
        search = saved.states.get("search")
        self._asking.saved = {
            part: decode(state) for part, state in saved.states.items() if part.startswith("proposal ")
        }
        self._left = scores
        for row in saved.candidates:
            # a race that was cut short makes its candidates again, the same
            if row["id"] != self.start.id and (search is not None or row["step"] > 0):
                made = self.keeper.restored_candidate(row, scores.get(row["id"], {}))
                self.candidates[made.id] = self._by_key[made.key] = made
        if search is not None:
            self.step, self._idle, self._since = search["step"], search["idle"], search["since"]
            self._asking.failures, self.bench.lowest = search["failures"], decode(search["lowest"])
            self.incumbent = self.candidates[search["incumbent"]]
            self._round, settled = search["round"], search["settled"]
            self._settled = None if settled is None else (self.incumbent, tuple(settled))
            self.strategy = search.get("strategy", {})
        for row in saved.trials:
            # proposals of a step that was cut short were paid for, even of the first one, before there is a state
            if row["step"] > max(self.step, 0):
                self._resumed[row["step"], row["slot"]] = self.keeper.restored_attempt(row, self.candidates)
            elif search is not None:
                attempt = self.keeper.restored_attempt(row, self.candidates)
                self.attempts.append(attempt)
                outcome = Outcome(attempt.before, attempt.after, attempt.accepted)
                self.history.append(Trial(attempt.optimizer, attempt.base.values, attempt.proposal, outcome))
        self.keeper.load_states(saved.states)
        self.approving.load(saved.states)
