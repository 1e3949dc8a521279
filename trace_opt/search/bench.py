"""Where candidates are run: blocks of rollouts in a fixed order of effect, each kept as it finishes.

A block is paid for whole before it begins. What the store already holds is not run again, and what a rollout is does not
depend on when it runs: its seed comes from the run's seed and its example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trace_opt.core.binding import Binding, Bound
from trace_opt.core.codec import content_hash, encode
from trace_opt.core.graph import Graph
from trace_opt.core.rollout import Rollout
from trace_opt.search.candidate import Candidate, Score
from trace_opt.search.dispatch import Dispatch, telling
from trace_opt.search.draws import Draws
from trace_opt.search.options import Event
from trace_opt.search.restoring import Stored, restored
from trace_opt.search.rolling import Job, Roller, aliased
from trace_opt.search.splits import Data, rollout_seed
from trace_opt.store.rows import RolloutRow

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.core.reuse import Memos
    from trace_opt.core.rollout import Cost
    from trace_opt.search.account import Account
    from trace_opt.search.executors import Executor
    from trace_opt.search.ledger import Ledger
    from trace_opt.search.reusing import Reuse
    from trace_opt.store.writer import Writer

LONG_S = 0.05
"""A rollout that took this long is committed at once, as one that paid is."""

_MOST_KEPT = 64
_UNLISTED = -1


class Bench:
    """Runs candidates on examples.

    Args:
        roller: Runs one rollout.
        executor: Runs many.
        data: The examples.
        seed: The run's seed.
        ledger: Who pays.
        writer: Who keeps, or None.
        floor: The lower end of the score range, or None for the lowest score seen, 0 at most.
        tell: Takes events, or None.
        keep_graphs: Whether graphs that may be wanted later are kept.
        draws: How often examples are run, and what their score is; once by default.

    Attributes:
        order: The validation examples in one order for all; of the first a graph is kept.
        draws: How often examples are run, and what their score is.
        lowest: The lowest score seen.
        stored: What earlier sessions left, by candidate and example.
        parameters: By full name, for graphs from the store; set once they are known.
        reached: The parameters that the rollouts on each example read, while `watch` is on.
        reuse: Finds rollouts of other runs, or None.
        failed: Told of every rollout that failed, with its error, or None.
    """

    def __init__(
        self, roller: Roller, executor: Executor, data: Data, *, seed: int, ledger: Ledger, writer: Writer | None = None,
        floor: float | None = None, tell: Callable[[Event], object] | None = None, keep_graphs: bool = True,
        draws: Draws | None = None,
    ) -> None:  # fmt: skip
        self.data = data
        self.draws = Draws(data) if draws is None else draws
        self.order = data.order(seed)
        self.seed = seed
        self.ledger = ledger
        self.writer = writer
        self.lowest = math.inf
        self.stored: dict[tuple[int, int], Stored] = {}
        self.parameters: Mapping[str, Parameter[Any]] = {}
        self.reached: dict[int, list[Parameter[Any]]] = {}
        self.reuse: Reuse | None = None
        self.failed: Callable[[Job, str], None] | None = None
        self._roller = roller
        self._executor = executor
        self._dispatch = Dispatch(roller, executor, ledger)
        self._range_floor = floor
        self._tell = tell
        self._seeds = [rollout_seed(seed, key) for key in data.keys]
        self._bind = Binding(roller.workflow)
        self._bound: dict[int, Bound] = {}
        self._keep_graphs = keep_graphs
        self._keep_all = data.shared and len(data.train) <= _MOST_KEPT
        self._numbers = {id(data.examples[n]): n for n in data.train}
        self._quick_s = math.inf  # what the slowest of the last unsaved rollouts took
        self._scored_s = math.inf  # what the slowest of the last others took, none of which asked a model
        self._warned = False

    @property
    def executor(self) -> Executor:
        """Runs many rollouts, and lends threads."""
        return self._executor

    @property
    def floor(self) -> float:
        """What a failed rollout counts as in a mean."""
        if self._range_floor is not None:
            return self._range_floor
        return min(0.0, self.lowest) if math.isfinite(self.lowest) else 0.0

    async def score(self, wanted: Sequence[tuple[Candidate, Sequence[int]]], phase: str) -> None:
        """Have candidates run on examples, those that they were not run on yet.

        Args:
            wanted: Candidates with the numbers of examples.
            phase: What this is, for progress: "start", "race", "trials", "test".

        Raises:
            BudgetError: the budget does not cover all of it; what was run is kept.
        """
        todo: dict[tuple[int, int, int], tuple[Candidate, Job]] = {}
        for candidate, numbers in wanted:
            for number in numbers:
                if number in candidate.scores:
                    continue
                keep = self._keeps(number)
                for repeat in self.draws.of(candidate, number):
                    if (number, repeat) not in candidate.draws:
                        job = self._job(candidate, number, keep=keep, repeat=repeat)
                        todo[candidate.id, number, repeat], keep = (candidate, job), False
        await self._run(list(todo.values()), phase)
        self._see(wanted)

    def _keeps(self, number: int) -> bool:
        """Whether the graph of a rollout on an example is wanted: of the first, and of all where train is val too."""
        return self._keep_graphs and (number == self.order[0] or (self._keep_all and number in self.data.train))

    def _see(self, wanted: Sequence[tuple[Candidate, Sequence[int]]]) -> None:
        """Note the lowest score."""
        for candidate, numbers in wanted:
            for number in numbers:
                value = candidate.scores[number].value
                if value is not None and value < self.lowest:
                    self.lowest = value

    async def rollouts(self, wanted: Sequence[tuple[Candidate, Sequence[int]]], phase: str) -> None:
        """Have candidates run on examples with graphs, into `Candidate.kept`.

        Raises:
            BudgetError: the budget does not cover all of it; what was run is kept.
        """
        todo: dict[tuple[int, int], tuple[Candidate, Job]] = {}
        for candidate, numbers in wanted:
            for number in numbers:
                if number not in candidate.kept and not self._restored(candidate, number):
                    repeat = self.draws.of(candidate, number)[0]
                    todo[candidate.id, number] = candidate, self._job(candidate, number, keep=True, repeat=repeat)
        await self._run(list(todo.values()), phase)

    def free_jobs(
        self, points: Sequence[dict[str, Any]], examples: Sequence[Any], *, training: bool, repeat: int,
        memos: Memos | None,
    ) -> list[Job]:  # fmt: skip
        """Jobs of values that are no candidate, point by point.

        Args:
            points: Values by full parameter name.
            examples: Training examples, or batches of a DataLoader.
            training: Whether tensors that require grad are handed out as they are.
            repeat: Goes into the seeds of torch's own chance, and of the rollouts where nothing is to be reused.
            memos: What op calls gave before, or None.
        """
        jobs: list[Job] = []
        places: dict[Any, int] = {}
        several = len(points) * len(examples) > 1
        for values in points:
            for example in examples:
                number = self._numbers.get(id(example), _UNLISTED)
                if number == _UNLISTED:
                    number = self._number_of(example)
                job = self._free_job(values, number, example, repeat, redraw=repeat > 0 and memos is None)
                job.training = training
                job.apart = training and self._executor.apart
                if training and several and not job.apart:
                    job.values = aliased(values)
                if memos is not None and number != _UNLISTED:
                    place = places[number] = places.get(number, -1) + 1
                    job.memo = memos.of(number, place, (*job.bound[0], *job.bound[1].values()))
                jobs.append(job)
        return jobs

    def _free_job(self, values: dict[str, Any], number: int, example: Any, repeat: int, *, redraw: bool) -> Job:
        if number == _UNLISTED:  # a batch just drawn: nothing is known of it from before
            bound, seed = self._bind(example), rollout_seed(self.seed, "batch", repeat)
            return Job(-1, values, number, example, bound=bound, seed=seed, name=self.data.name, keep=True)
        job = self._job_of(-1, values, number, keep=True)
        job.repeat = repeat
        if redraw:
            job.seed = rollout_seed(self.seed, self.data.keys[number], repeat)
        return job

    def _number_of(self, example: Any) -> int:
        """The number of a training example that is another object than the one listed, by its content."""
        if self.data.loader is not None:
            return _UNLISTED
        key = content_hash(example)
        return next((n for n in self.data.train if self.data.keys[n] == key), _UNLISTED)

    async def unsaved(self, jobs: Sequence[Job], accounts: list[Account]) -> list[Rollout]:
        """Run jobs for an optimizer that wants to know; charged, but kept only where they train by what was drawn.

        Args:
            jobs: From `free_jobs`.
            accounts: Takes what they cost, to be booked with the proposal.

        Raises:
            BudgetError: the budget does not cover all of them.
        """
        self.ledger.take_unsaved(len(jobs))
        if self._dispatch.quick(self._quick_s * len(jobs)):
            found = await self._dispatch.inline(jobs, self._roller.run)
        else:
            found = await self._dispatch.training(jobs)
        slowest = 0.0
        rollouts: list[Rollout] = []
        for job, (rollout, account) in zip(jobs, found, strict=True):
            slowest = max(slowest, rollout.seconds)
            if job.training and job.number != _UNLISTED and rollout.feedback.loss is None:
                # what a policy said and what it earned is wanted again, and cannot be had from tensors
                self._keep(job, rollout, self._data(job, rollout), graph=None)
            rollouts.append(rollout)
            if account.spend:
                accounts.append(account)
        self._quick_s = slowest if found else self._quick_s
        return rollouts

    # -- running -----------------------------------------------------------------------------------------------------

    def _job(self, candidate: Candidate, number: int, *, keep: bool, repeat: int = 0) -> Job:
        job = self._job_of(candidate.id, candidate.values, number, keep=keep)
        if repeat:
            job.repeat, job.seed = repeat, rollout_seed(self.seed, self.data.keys[number], repeat)
        return job

    def _job_of(self, candidate: int, values: dict[str, Any], number: int, *, keep: bool) -> Job:
        bound = self._bound.get(number)
        example = self.data.examples[number]
        if bound is None:
            bound = self._bound[number] = self._bind(example)
        return Job(
            candidate, values, number, example, bound=bound, seed=self._seeds[number], name=self.data.name, keep=keep
        )

    async def _run(self, todo: Sequence[tuple[Candidate, Job]], phase: str) -> None:
        """Run jobs and put what came of each to its candidate."""
        if self.reuse is not None:
            todo = [(candidate, job) for candidate, job in todo if not self._reused(self.reuse, candidate, job)]
        if not todo:
            return
        self.ledger.take_rollouts(sum(self._is_new(candidate, job) for candidate, job in todo))
        finished: dict[Job, Rollout] = {}

        def finish(job: Job, rollout: Rollout, account: Account) -> None:
            self._finish(job, rollout, account)
            finished[job] = rollout

        try:
            if self._tell is None:
                await self._dispatched(todo, finish)
            else:
                async with telling(self._tell, phase, len(todo), lambda: len(finished)):
                    await self._dispatched(todo, finish)
        finally:
            slowest = 0.0 if finished else math.inf
            for candidate, job in todo:
                rollout = finished.get(job)
                if rollout is None:
                    break  # what came after one that was refused was run by chance, and counts for nothing
                self._apply(job, candidate, rollout)
            for rollout in finished.values():
                slowest = max(slowest, math.inf if rollout.cost.calls else rollout.seconds)
            self._scored_s = slowest
            if len(finished) < len(todo):
                self.ledger.give_rollouts(sum(self._is_new(c, job) for c, job in todo if job not in finished))

    async def _dispatched(
        self, todo: Sequence[tuple[Candidate, Job]], finish: Callable[[Job, Rollout, Account], None]
    ) -> None:
        jobs = [job for _, job in todo]
        # those who try several candidates at once want them to run at once
        if self._dispatch.quick(self._scored_s * len(jobs)) and len({job.candidate for job in jobs}) <= 2:
            await self._dispatch.inline(jobs, lambda job: finish(job, *self._roller.run(job)))
        else:
            await self._dispatch.run(jobs, finish)

    def _reused(self, reuse: Reuse, candidate: Candidate, job: Job) -> bool:
        """Take a rollout from another run, where there is one like it; it becomes one of this run."""
        found = reuse.find(job) if self._is_new(candidate, job) else None
        if found is None:
            return False
        if self._roller.seen is not None:
            self.reached[job.number] = found.reached
        self._keep(job, found.rollout, {**self._data(job, found.rollout), "reused": True}, graph=found.graph)
        self._apply(job, candidate, found.rollout)
        reuse.count(found.rollout.cost, found.rollout.seconds)
        return True

    def _is_new(self, candidate: Candidate, job: Job) -> bool:
        """Whether a rollout was never paid for; a graph that was not kept is made again for nothing."""
        return job.number not in candidate.scores and (job.number, job.repeat) not in candidate.draws

    def _finish(self, job: Job, rollout: Rollout, account: Account) -> None:
        """Keep a rollout as soon as it is known; called where it ran."""
        if self.failed is not None and rollout.error is not None:
            self.failed(job, rollout.error)
        now = rollout.cost.calls > 0 or rollout.seconds >= LONG_S
        graph = rollout.graph.to_json() if now and rollout.graph is not None and self.writer is not None else None
        booked = account.take()
        self._keep(job, rollout, self._data(job, rollout), graph=graph, booked=booked, now=now)
        self.ledger.land(booked[1])

    def _keep(
        self, job: Job, rollout: Rollout, data: Mapping[str, Any], *, graph: str | None,
        booked: tuple[Mapping[str, Cost], Mapping[int, Cost]] = ({}, {}), now: bool = False,
    ) -> None:  # fmt: skip
        if self.writer is None or self.writer.closed:
            return
        cost = rollout.cost
        row = RolloutRow(
            job.candidate, job.number, job.repeat, self.draws.value(rollout), data, cost.calls, cost.tokens_in,
            cost.tokens_out, cost.usd, rollout.seconds,
        )  # fmt: skip
        self.writer.rollout(row, spend=booked[0], landed=booked[1], graph=graph, now=now)

    def _data(self, job: Job, rollout: Rollout) -> dict[str, Any]:
        """What is kept of a rollout besides its numbers."""
        data: dict[str, Any] = {}
        feedback = rollout.feedback
        if feedback.text:
            data["text"] = feedback.text
        if isinstance(feedback.score, dict):
            data["scores"] = feedback.score
        if rollout.error is not None:
            data["error"] = rollout.error
        if job.keep:
            if job.number == self.order[0] and rollout.graph is not None:
                rollout.graph.layout()  # nodes have no index before, and this graph may be kept later
            data["output"] = encode(rollout.output)
            data["node"] = rollout.node.index if rollout.node is not None else -1
        if self._roller.seen is not None and job.number in self.reached:
            data["reached"] = [parameter.name for parameter in self.reached[job.number]]
        return data

    def watch(self, *, on: bool) -> None:
        """Note the parameters that rollouts read, or stop noting them."""
        self._roller.seen = self._note_reached if on else None

    def _note_reached(self, job: Job, graph: Graph) -> None:
        found = [node.parameter for node in graph.parameters.values()]
        self.reached[job.number] = [parameter for parameter in found if parameter is not None]

    def _apply(self, job: Job, candidate: Candidate, rollout: Rollout) -> None:
        """Put a finished rollout to its candidate; called in the order of the block."""
        score = rollout.feedback.score
        several = score if isinstance(score, dict) and rollout.error is None else None
        found = Score(self.draws.value(rollout), several, rollout.cost, rollout.seconds)
        self.draws.put(candidate, job.number, job.repeat, found)
        if job.number == self.order[0] and rollout.graph is not None:
            candidate.graph = rollout.graph
            self._warn(rollout)
        if job.keep and job.number in self.data.train:
            candidate.kept[job.number] = rollout

    def _warn(self, rollout: Rollout) -> None:
        """Say once where an output is a plain value, so that feedback on it reaches everything the workflow did."""
        if self._warned or self._tell is None or rollout.graph is None or rollout.node is None:
            return
        ends = rollout.graph.loose_ends(rollout.node)
        if ends:
            self._warned = True
            shown = ", ".join(ends[:5]) + (", ..." if len(ends) > 5 else "")
            text = f"the workflow returns a plain value, so feedback is tied to all that it left open: {shown}"
            self._tell(Event("note", text, {"leaves": list(ends)}))

    # -- what an earlier session left --------------------------------------------------------------------------------

    def _restored(self, candidate: Candidate, number: int) -> bool:
        """Take a rollout with its graph from the store, where it is there."""
        stored = self.stored.get((candidate.id, number))
        text = None if stored is None else stored.graph()
        if stored is None or text is None:
            return False
        job = self._job(candidate, number, keep=True)
        candidate.kept[number] = restored(job, stored, Graph.from_json(text), self.parameters)
        return True
