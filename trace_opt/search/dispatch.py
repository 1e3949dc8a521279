"""How a block of rollouts is run: here and now where each takes next to nothing, else by an executor, in one line to spend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from trace_opt.search.options import Event

if TYPE_CHECKING:
    from trace_opt.core.rollout import Rollout
    from trace_opt.search.account import Account
    from trace_opt.search.executors import Executor
    from trace_opt.search.ledger import Ledger
    from trace_opt.search.rolling import Job, Roller

T = TypeVar("T")

_INLINE_S = 0.02
_YIELD_S = 0.05
_TELL_S = 0.25


class Dispatch:
    """Has jobs run.

    Args:
        roller: Runs one rollout.
        executor: Runs many.
        ledger: Who pays.
    """

    def __init__(self, roller: Roller, executor: Executor, ledger: Ledger) -> None:
        self._roller = roller
        self._executor = executor
        self._ledger = ledger
        self._yielded = 0.0
        self._draws: bool | None = None  # whether training rollouts draw from torch's own stream

    def quick(self, seconds: float) -> bool:
        """Whether handing work to threads would take longer than such work itself."""
        return seconds < _INLINE_S and not self._roller.is_async and not self._executor.apart

    async def inline(self, jobs: Sequence[Job], work: Callable[[Job], T]) -> list[T]:
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

    async def run(self, jobs: Sequence[Job], finish: Callable[[Job, Rollout, Account], None]) -> None:
        """Run jobs at once by the executor.

        Args:
            jobs: In their order of effect.
            finish: Told of each rollout as it ends, where it ran.
        """
        self._line_up(jobs)

        def work(job: Job) -> None:
            finish(job, *self._roll(job))

        async def awork(job: Job) -> None:
            try:
                finish(job, *await self._aroll(job))
            except asyncio.CancelledError:
                if job.ended is not None:
                    finish(job, *job.ended)
                raise

        await self._executor.run(jobs, awork if self._roller.is_async else work)

    async def training(self, jobs: Sequence[Job]) -> list[tuple[Rollout, Account]]:
        """Run jobs by the executor; those that draw from torch's own stream one by one, for the process has only one."""
        self._line_up(jobs)
        if self._roller.is_async:
            return await self._executor.run(jobs, self._aroll)
        if self._draws is False or self._executor.apart or not all(job.training for job in jobs):
            return await self._executor.run(jobs, self._roll)
        found: list[tuple[Rollout, Account]] = []
        for job in jobs:
            job.draws = False
            found += await self._executor.run([job], self._roll)
        self._draws = bool(self._draws) or any(job.draws for job in jobs)
        return found

    def _line_up(self, jobs: Sequence[Job]) -> None:
        """Have jobs that will run at once spend as if they ran one after the other."""
        for job, place in zip(jobs, self._ledger.places("rollout", len(jobs)), strict=True):
            job.place = place

    def _roll(self, job: Job) -> tuple[Rollout, Account]:
        try:
            return self._roller.run(job)
        finally:
            self._ledger.finish(job.place)

    async def _aroll(self, job: Job) -> tuple[Rollout, Account]:
        try:
            return await self._roller.arun(job)
        finally:
            self._ledger.finish(job.place)


@asynccontextmanager
async def telling(
    tell: Callable[[Event], object], phase: str, total: int, done: Callable[[], int]
) -> AsyncGenerator[None]:
    """Tell how far a block is, a few times a second.

    Args:
        tell: Takes events.
        phase: What is being run.
        total: How many rollouts there are.
        done: Gives how many of them have ended.
    """

    def report() -> None:
        data = {"phase": phase, "done": done(), "total": total}
        tell(Event("rollouts", f"{phase}: {data['done']} of {total}", data))

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
