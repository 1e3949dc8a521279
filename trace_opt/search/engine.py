"""`optimize`: begin a run or go on with one, search, test once, report.

The order is fixed: everything that can be refused is refused before anything is run, the start is scored first, the test
examples are touched last and once. A run that is stopped, by Ctrl-C, an error or a kill, keeps all it had.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from trace_opt.core.feedback import Guide
from trace_opt.core.memory import remembering
from trace_opt.core.rollout import Cost
from trace_opt.errors import BudgetError
from trace_opt.search.candidate import Candidate, record_of
from trace_opt.search.controls import run_controls
from trace_opt.search.ending import finished, report_of, run_test
from trace_opt.search.ledger import Ledger
from trace_opt.search.opening import Opening
from trace_opt.search.options import Options
from trace_opt.search.rollers import executor_of
from trace_opt.search.session import UNJUDGED, Session
from trace_opt.search.settings import Settings, announce, settle

if TYPE_CHECKING:
    from trace_opt.search.run import Run
    from trace_opt.store.writer import Writer

T = TypeVar("T")


def optimize(workflow: Callable[..., Any], train: Sequence[Any], guide: Guide, **options: Unpack[Options]) -> Run:
    """Improve the parameters of a workflow.

    Works where an event loop runs too (a notebook), by a thread of its own; `aoptimize` is for asynchronous code. Never
    writes to a Parameter: `run.apply()` does.

    Args:
        workflow: Function of an example, sync or async; a mapping is bound by name.
        train: Examples to learn from.
        guide: `(output, example) -> Feedback`, a number, or a dict of numbers; greater is better.
        **options: See `Options`.

    Returns:
        The finished run.

    Raises:
        ProblemError: what was given makes no sense.
        BudgetError: the budget cannot pay for one proposal.
        StoreError: the store cannot be used, or the run to resume is held, or its problem has changed.
        FeedbackError: the guide returned no finite score.
        LLMError: a model is not there, or refuses for good.
        TraceError: tracing was misused.
    """
    return blocking(lambda: aoptimize(workflow, train, guide, **options))


async def aoptimize(
    workflow: Callable[..., Any], train: Sequence[Any], guide: Guide, **options: Unpack[Options]
) -> Run:
    """`optimize` for asynchronous code."""
    return await _Engine(settle(workflow, train, guide, options)).run()


def blocking(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end: on an event loop here, or where one runs already, in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    return _in_thread(work)


def _in_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    results: list[T] = []
    errors: list[BaseException] = []
    held: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def watched() -> T:
        held.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await work()

    def whole() -> None:
        try:
            results.append(asyncio.run(watched()))
        except BaseException as error:  # noqa: BLE001 # raised again in the caller's thread
            errors.append(error)

    thread = Thread(target=whole, name="trace_opt-optimize", daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        for loop, task in held:
            if task is not None:
                loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]


class _Engine:
    """One call of `optimize`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.executor = executor_of(settings.executor, settings.address, settings.concurrency)
        self.opening = Opening(settings, self.executor)
        self.writer: Writer | None = None
        self.session: Session | None = None

    async def run(self) -> Run:
        """All of it; whatever ends it, what is known is kept and said in the store."""
        try:
            self.opening.open()
            self.writer = self.opening.writer
            with remembering(self.opening.memory), self.opening.strays:
                result = await self._whole()
        except (KeyboardInterrupt, asyncio.CancelledError):
            self._close("interrupted", "interrupted; everything up to then is kept")
            raise
        except BaseException as error:
            self._close("failed", f"{type(error).__name__}: {error}")
            if self.writer is not None:
                error.add_note(f"what came before is kept; `trace-opt resume {self.writer.run}` goes on from there")
            raise
        finally:
            self.executor.close()
        return result

    async def _whole(self) -> Run:
        session = self.session = await self._begun()
        ended = await self._searched(session)
        best = session.best()
        announce(self.settings, "test", f"{ended}; testing on {len(self.settings.judged)} examples")
        self.opening.ledger.hold()
        notes = [*self.opening.notes, *await run_test(self.settings, session, best)]
        controls = await run_controls(self.settings, session, best, self.opening, self.executor)
        if fresh := self.opening.stray(fresh=True):
            announce(self.settings, "note", fresh)
        notes += [note for note in (*controls.notes, self.opening.stray()) if note]
        report = report_of(self.settings, session, best, self.opening.ledger, notes, controls.rows)
        self._lose()
        if self.writer is not None:
            finished(self.writer, session, best, report)
        self._close("finished", ended)
        return self._result(session, best, ended, report)

    async def _begun(self) -> Session:
        """The start scored, the parameters known, every one of them owned."""
        try:
            async with self._limited():
                session = await self.opening.begin()
        except BudgetError as error:
            raise BudgetError(f"the budget was spent before the first proposal; {error}") from error
        self._hold_for_test(session.start)
        return session

    async def _searched(self, session: Session) -> str:
        """Search, and say why it ended.

        Raises:
            BudgetError: it ended before a single proposal was judged.
        """
        try:
            async with self._limited():
                return await self.settings.search.run(session, self.opening.raced)
        except BudgetError as error:
            session.abandon(UNJUDGED)
            if not any(attempt.verdict != UNJUDGED for attempt in session.attempts):
                if self.writer is not None:
                    self.writer.commit()
                raise BudgetError(f"the budget was spent before the first proposal was judged; {error}") from error
            return f"the budget is spent ({error})"

    def _limited(self) -> _TimeLimit:
        return _TimeLimit(self.opening.ledger)

    def _hold_for_test(self, start: Candidate) -> None:
        """Keep what the test will cost, by what the start cost, from the search."""
        numbers = self.settings.judged
        # the start's may be known from an earlier session, a new best's never are
        test = len(numbers) + sum(number not in start.scores for number in numbers)
        test += len(self.settings.controls) * len(self.settings.compared)
        costs = [score.cost for score in start.scores.values() if score.cost.calls]
        if not test:
            return
        mean = Cost()
        for cost in costs:
            mean += cost
        share = 1.1 * test / max(1, len(costs))
        even = len({cost.calls for cost in costs}) <= 1
        calls = (costs[0].calls * test if costs else 0) if even else math.ceil(mean.calls * share)
        usd = None if mean.usd is None else mean.usd * share
        seconds = sum(s.seconds for s in start.scores.values()) / max(1, len(start.scores)) * 1.1 * test
        self.opening.ledger.hold(
            Cost(calls, math.ceil(mean.tokens_in * share), math.ceil(mean.tokens_out * share), usd),
            rollouts=test * self.settings.repeats,
            seconds=seconds / self.settings.concurrency,
        )  # fmt: skip

    def _lose(self) -> None:
        """Book what was paid for and never came to anything; threads that are still at it send nothing more."""
        self.opening.ledger.end()
        lost = self.opening.ledger.lose()
        if lost and self.writer is not None and not self.writer.closed:
            self.writer.lose(lost)

    def _close(self, status: str, ended: str) -> None:
        if self.writer is None or self.writer.closed:
            return
        try:
            self._lose()
        finally:
            self.writer.close(status, ended)
        announce(self.settings, "end", f"{status}: {ended}", run=self.writer.run, status=status, ended=ended)

    def _result(self, session: Session, best: Candidate, ended: str, report: Any) -> Run:
        from trace_opt.search.run import Run

        graph: Any = best.graph
        if graph is None and self.writer is not None and self.settings.store is not None:
            graph = self.settings.store.graph(self.writer.run, best.id, session.order[0])
        return Run(
            id="" if self.writer is None else self.writer.run, parameters=session.parameters, best=dict(best.values),
            start=dict(session.start.values), history=[record_of(attempt) for attempt in session.attempts],
            spent=self.opening.ledger.spent, ended=ended, report=report, graph=graph,
        )  # fmt: skip


class _TimeLimit:
    """Stops what runs in an `async with` block when the budget's seconds are over, as a `BudgetError`."""

    def __init__(self, ledger: Ledger) -> None:
        left = ledger.seconds_left
        self._ledger = ledger
        self._timeout = asyncio.timeout(None if left == math.inf else max(0.0, left))

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            if not self._timeout.expired():
                raise
            self._ledger.check_time()
            raise BudgetError(f"{self._ledger.budget} is spent: {self._ledger.seconds:.1f} seconds") from None
