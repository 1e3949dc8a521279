"""Where candidates are run: blocks of rollouts in a fixed order of effect, each kept as it finishes.

A block is paid for whole before it begins. What the store already holds is not run again, and what a rollout is does not
depend on when it runs: its seed comes from the run's seed and its example.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from trace_opt.core.binding import bind
from trace_opt.core.codec import content_hash, encode
from trace_opt.core.graph import Graph
from trace_opt.core.rollout import Rollout
from trace_opt.errors import BudgetError
from trace_opt.search.candidate import Candidate, Score
from trace_opt.search.draws import Draws
from trace_opt.search.options import Event
from trace_opt.search.restoring import Stored, restored
from trace_opt.search.rolling import Bound, Job, Roller, aliased
from trace_opt.search.splits import Data, rollout_seed
from trace_opt.store.rows import RolloutRow

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trace_opt.core.parameter import Parameter
    from trace_opt.core.reuse import Memos
    from trace_opt.search.budget import Account, Ledger
    from trace_opt.search.executors import Executor
    from trace_opt.store.writer import Writer

T = TypeVar("T")

LONG_S = 0.05
"""A rollout that took this long is committed at once, as one that paid is."""

_MOST_KEPT = 64
_UNLISTED = -1
_INLINE_S = 0.02
_YIELD_S = 0.05
_TELL_S = 0.25


class Bench:
    """Runs candidates on examples.

    Args:
        roller: Runs one rollout.
        executor: Runs many.
        data: The examples.
        seed: The run's seed.
        ledger: Who pays.
        writer: Who keeps, or None.
        floor: The lower end of the score range, or None for the lowest score seen.
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
        self._roller = roller
        self._executor = executor
        self._range_floor = floor
        self._tell = tell
        self._seeds = [rollout_seed(seed, key) for key in data.keys]
        self._bound: dict[int, Bound] = {}
        self._keep_graphs = keep_graphs
        self._keep_all = data.shared and len(data.train) <= _MOST_KEPT
        self._finished = 0
        self._numbers = {id(data.examples[n]): n for n in data.train}
        self._quick_s = math.inf  # what the slowest of the last unsaved rollouts took
        self._scored_s = math.inf  # what the slowest of the last others took, none of which asked a model
        self._yielded = 0.0
        self._draws: bool | None = None  # whether training rollouts draw from torch's own stream
        self._warned = False

    @property
    def floor(self) -> float:
        """What a failed rollout counts as in a mean."""
        if self._range_floor is not None:
            return self._range_floor
        return self.lowest if math.isfinite(self.lowest) else 0.0

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
        for candidate, numbers in wanted:
            self._saw(candidate.scores[n] for n in numbers)

    def _keeps(self, number: int) -> bool:
        """Whether the graph of a rollout on an example is wanted: of the first, and of all where train is val too."""
        return self._keep_graphs and (number == self.order[0] or (self._keep_all and number in self.data.train))

    def _saw(self, scores: Iterable[Score]) -> None:
        values = [score.value for score in scores if score.value is not None]
        self.lowest = min(values, default=self.lowest) if self.lowest == math.inf else min([self.lowest, *values])

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
            bound, seed = bind(self._roller.workflow, example), rollout_seed(self.seed, "batch", repeat)
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
        """Run jobs for an optimizer that wants to know; charged, but not kept.

        Args:
            jobs: From `free_jobs`.
            accounts: Takes what they cost, to be booked with the proposal.

        Raises:
            BudgetError: the budget does not cover all of them.
        """
        self.ledger.take_unsaved(len(jobs))
        if self._quick(self._quick_s * len(jobs)):
            found = await self._inline(jobs, self._roller.run)
        else:
            found = await self._through(jobs)
        slowest = 0.0
        rollouts: list[Rollout] = []
        for rollout, account in found:
            slowest = max(slowest, rollout.seconds)
            rollouts.append(rollout)
            if account.spend:
                accounts.append(account)
        self._quick_s = slowest if found else self._quick_s
        return rollouts

    async def _through(self, jobs: Sequence[Job]) -> list[tuple[Rollout, Account]]:
        """Run jobs by the executor; those that draw from torch's own stream one by one, for the process has only one."""
        if self._roller.is_async:
            return await self._executor.run(jobs, self._roller.arun)
        if self._draws is False or self._executor.apart or not all(job.training for job in jobs):
            return await self._executor.run(jobs, self._roller.run)
        found: list[tuple[Rollout, Account]] = []
        for job in jobs:
            job.draws = False
            found += await self._executor.run([job], self._roller.run)
        self._draws = bool(self._draws) or any(job.draws for job in jobs)
        return found

    def _quick(self, seconds: float) -> bool:
        """Whether handing work to threads would take longer than such work itself."""
        return seconds < _INLINE_S and not self._roller.is_async and not self._executor.apart

    async def _inline(self, jobs: Sequence[Job], work: Callable[[Job], T]) -> list[T]:
        """Run jobs here and now, as a thread of their own would: no event loop is running for their code."""
        loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            found = [work(job) for job in jobs]
        finally:
            asyncio._set_running_loop(loop)
        if perf_counter() - self._yielded > _YIELD_S:
            self._yielded = perf_counter()
            await asyncio.sleep(0)
        return found

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
            bound = self._bound[number] = bind(self._roller.workflow, example)
        return Job(
            candidate, values, number, example, bound=bound, seed=self._seeds[number], name=self.data.name, keep=keep
        )

    async def _run(self, todo: list[tuple[Candidate, Job]], phase: str) -> None:
        """Run jobs and put what came of each to its candidate."""
        if not todo:
            return
        fresh = sum(self._is_new(candidate, job) for candidate, job in todo)
        self.ledger.take_rollouts(fresh)
        finished: dict[Job, tuple[Candidate, Rollout]] = {}
        owners = {job: candidate for candidate, job in todo}

        def work(job: Job) -> None:
            rollout, account = self._roller.run(job)
            self._finish(job, rollout, account)
            finished[job] = owners[job], rollout

        async def awork(job: Job) -> None:
            rollout, account = await self._roller.arun(job)
            self._finish(job, rollout, account)
            finished[job] = owners[job], rollout

        jobs = [job for _, job in todo]
        try:
            async with self._telling(phase, len(jobs)):
                # those who try several candidates at once want them to run at once
                few = len({candidate.id for candidate, _ in todo}) <= 2
                quick = few and self._quick(self._scored_s * len(jobs))
                await self._all(jobs, awork if self._roller.is_async else work, finished, inline=quick)
        finally:
            for job in jobs:
                if job in finished:
                    self._apply(job, *finished[job])
            took = [math.inf if rollout.cost.calls else rollout.seconds for _, rollout in finished.values()]
            self._scored_s = max(took, default=math.inf)
            self.ledger.give_rollouts(sum(self._is_new(c, job) for c, job in todo if job not in finished))

    async def _all(self, jobs: list[Job], work: Any, finished: Mapping[Job, Any], *, inline: bool) -> None:
        """Run jobs at once; where reservations in flight use the budget up, the rest one by one."""
        try:
            if inline:
                await self._inline(jobs, work)
            else:
                await self._executor.run(jobs, work)
        except BudgetError:
            if not finished and self.ledger.on_first is not None:
                raise
            for job in jobs:
                if job not in finished:
                    await self._executor.run([job], work)

    def _is_new(self, candidate: Candidate, job: Job) -> bool:
        """Whether a rollout was never paid for; a graph that was not kept is made again for nothing."""
        return job.number not in candidate.scores and (job.number, job.repeat) not in candidate.draws

    def _finish(self, job: Job, rollout: Rollout, account: Account) -> None:
        """Keep a rollout as soon as it is known; called where it ran."""
        self._finished += 1
        if self.writer is not None and not self.writer.closed:
            now = rollout.cost.calls > 0 or rollout.seconds >= LONG_S
            graph = rollout.graph.to_json() if now and rollout.graph is not None else None
            cost = rollout.cost
            row = RolloutRow(
                job.candidate, job.number, job.repeat, self.draws.value(rollout), self._data(job, rollout), cost.calls,
                cost.tokens_in, cost.tokens_out, cost.usd, rollout.seconds,
            )  # fmt: skip
            self.writer.rollout(row, spend=account.spend, landed=account.flights, graph=graph, now=now)
        self.ledger.land(account)

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
            data["output"] = encode(rollout.output)
            data["node"] = rollout.node.index if rollout.node is not None else -1
        if job.number in self.reached:
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

    @asynccontextmanager
    async def _telling(self, phase: str, total: int) -> AsyncGenerator[None]:
        """Tell how far a block is, a few times a second."""
        tell = self._tell
        if tell is None:
            yield
            return
        before = self._finished

        def report() -> None:
            done = self._finished - before
            tell(Event("rollouts", f"{phase}: {done} of {total}", {"phase": phase, "done": done, "total": total}))

        async def tick() -> None:
            while True:
                await asyncio.sleep(_TELL_S)
                report()

        report()
        ticker = asyncio.create_task(tick())
        try:
            yield
        finally:
            ticker.cancel()
            report()

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
