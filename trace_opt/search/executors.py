"""Who runs rollouts: here asyncio tasks and threads of one process.

Work is pulled from one shared iterator, so what waits costs nothing, and results go to the place of their job: whatever
the order of arrival, there is one order of effect. `search/distant.py` has rollouts run by other processes.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, Generic, Protocol, TypeVar, cast

J = TypeVar("J")
R = TypeVar("R")

Work = Callable[[Any], Any]

_PROBE_S = 0.005
_FAST_JOBS = 10
GRACE_S = 1.0
"""Seconds that a cancelled run waits for what its threads are at."""


class Executor(Protocol):
    """Runs jobs. `run` may be called for several sets of jobs at once.

    Attributes:
        apart: Whether jobs run in other processes, so that no autograd graph comes back.
    """

    apart: bool

    async def run(self, jobs: Sequence[Any], work: Work) -> list[Any]:
        """The result of `work(job)` for each job, in their order.

        Args:
            jobs: Any values.
            work: A function, or a coroutine function.

        Raises:
            BaseException: that of the first job in order that failed; those not begun by then are left out.
        """
        ...

    async def in_thread(self, call: Callable[[], R]) -> R:
        """What a function returns that may block."""
        ...

    def close(self) -> None:
        """Let go of threads and processes."""
        ...


class LocalExecutor:
    """Tasks for a coroutine function, threads for any other.

    A function that returns at once is run by one thread, since more would only take turns; the others join in as soon
    as it is seen to wait. Threads cannot be stopped: after an error or a cancellation the jobs they are at run to their end.

    Args:
        concurrency: Jobs at once, over all calls of `run`.
    """

    apart = False

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self._threads = _Threads(concurrency)
        self._gates: dict[Any, asyncio.Semaphore] = {}

    async def run(self, jobs: Sequence[Any], work: Work) -> list[Any]:
        """See `Executor.run`."""
        todo = _Todo(jobs, work)
        if inspect.iscoroutinefunction(work):
            await self._in_tasks(todo)
        else:
            await self._in_threads(todo)
        return todo.finished()

    async def in_thread(self, call: Callable[[], R]) -> R:
        """What a function returns that may block; run in one of the threads."""
        todo = _Todo([None], lambda _: call())
        await self._threads.submit(todo.pull)
        return todo.finished()[0]

    def close(self) -> None:
        """End the threads that are idle; the others end with what they run."""
        self._threads.close()

    async def _in_tasks(self, todo: _Todo[Any, Any]) -> None:
        # a semaphore belongs to the loop it is first waited for under
        loop = asyncio.get_running_loop()
        gate = self._gates.setdefault(loop, asyncio.Semaphore(self.concurrency))

        async def pull() -> None:
            for place, job in todo:
                async with gate:
                    await todo.adone(place, job)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.concurrency, len(todo.jobs))):
                group.create_task(pull())

    async def _in_threads(self, todo: _Todo[Any, Any]) -> None:
        pullers = [self._threads.submit(todo.pull)]
        try:
            while not pullers[0].done():
                before = todo.count
                await asyncio.wait(pullers, timeout=_PROBE_S)
                if todo.count - before < _FAST_JOBS and len(pullers) < min(self.concurrency, len(todo.jobs)):
                    more = min(self.concurrency, len(todo.jobs)) - len(pullers)
                    pullers += [self._threads.submit(todo.pull) for _ in range(more)]
            await asyncio.wait(pullers)
        except BaseException:
            todo.stop()
            # what is being paid for is worth a moment's wait
            await asyncio.wait(pullers, timeout=GRACE_S)
            raise


class _Todo(Generic[J, R]):
    """Jobs, and a place for the result of each."""

    def __init__(self, jobs: Sequence[J], work: Callable[[J], R]) -> None:
        self.jobs = jobs
        self.count = 0
        self._work = work
        self._results: list[Any] = [None] * len(jobs)
        self._errors: dict[int, BaseException] = {}
        self._stopped = Event()
        self._next = enumerate(jobs)
        self._lock = Lock()

    def __iter__(self) -> Iterator[tuple[int, J]]:
        """The jobs not yet taken, until one has failed."""
        while not self._stopped.is_set():
            with self._lock:
                taken = next(self._next, None)
            if taken is None:
                return
            yield taken

    def pull(self) -> None:
        """Run jobs in this thread until none is left."""
        for place, job in self:
            try:
                self._results[place] = self._work(job)
            except BaseException as error:  # noqa: BLE001 # raised again by finished()
                self._fail(place, error)
            self.count += 1

    async def adone(self, place: int, job: J) -> None:
        """Run one job in this task."""
        try:
            self._results[place] = await cast("Awaitable[R]", self._work(job))
        except Exception as error:  # noqa: BLE001 # raised again by finished()
            self._fail(place, error)

    def _fail(self, place: int, error: BaseException) -> None:
        self._errors[place] = error
        self._stopped.set()

    def stop(self) -> None:
        """Begin no further job."""
        self._stopped.set()

    def finished(self) -> list[R]:
        """All results.

        Raises:
            BaseException: of the first job in order that failed.
        """
        if self._errors:
            raise self._errors[min(self._errors)]
        return self._results


class _Threads:
    """Daemon threads, begun as needed: a workflow that hangs must not hold up the end of the program."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = 0
        self._lock = Lock()
        self._numbers = itertools.count(1)
        self._begun = 0

    def submit(self, run: Callable[[], None]) -> asyncio.Future[None]:
        """Run a function in a thread and in a copy of the caller's context."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        context = contextvars.copy_context()

        def whole() -> None:
            try:
                context.run(run)
            finally:
                _tell(loop, future)

        with self._lock:
            if self._idle == 0 and self._begun < self._most:
                self._begun += 1
                Thread(target=self._serve, name=f"trace_opt-rollouts-{next(self._numbers)}", daemon=True).start()
            else:
                self._idle -= 1
        self._queue.put(whole)
        return future

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
            del work  # it holds a context, and with it a run
            with self._lock:
                self._idle += 1

    def close(self) -> None:
        with self._lock:
            begun, self._begun, self._idle = self._begun, 0, 0
        for _ in range(begun):
            self._queue.put(None)


def _tell(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    def done() -> None:
        if not future.done():
            future.set_result(None)

    try:
        loop.call_soon_threadsafe(done)
    except RuntimeError:
        return  # the loop has closed: nobody waits any more
