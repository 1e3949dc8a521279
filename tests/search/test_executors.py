"""Any order of arrival, one order of effect; the first error in order is the one that is raised."""

import asyncio
import threading
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.context import rollout
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Cost
from trace_opt.core.tracer import trace
from trace_opt.llm.meter import charge
from trace_opt.search.budget import Budget
from trace_opt.search.executors import LocalExecutor
from trace_opt.search.ledger import Ledger
from trace_opt.search.rolling import Job, Roller


def run(executor: LocalExecutor, jobs: Any, work: Any) -> Any:
    async def whole() -> Any:
        return await executor.run(jobs, work)

    try:
        return asyncio.run(whole())
    finally:
        executor.close()


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 5), st.booleans())
def test_results_stand_in_the_order_of_their_jobs(delays: list[int], concurrency: int, in_tasks: bool) -> None:
    async def asleep(job: tuple[int, int]) -> int:
        await asyncio.sleep(job[1] / 10_000)
        return job[0]

    def sleeps(job: tuple[int, int]) -> int:
        time.sleep(job[1] / 10_000)
        return job[0]

    jobs = list(enumerate(delays))
    assert run(LocalExecutor(concurrency), jobs, asleep if in_tasks else sleeps) == list(range(len(jobs)))


@pytest.mark.parametrize("in_tasks", [True, False])
def test_no_more_jobs_run_at_once_than_allowed_over_all_sets(in_tasks: bool) -> None:
    running: list[int] = []
    peaks: list[int] = []

    def enter() -> None:
        running.append(1)
        peaks.append(len(running))

    async def asleep(_: int) -> None:
        enter()
        await asyncio.sleep(0.01)
        running.pop()

    def sleeps(_: int) -> None:
        enter()
        time.sleep(0.01)
        running.pop()

    executor = LocalExecutor(3)

    async def two_sets() -> None:
        work = asleep if in_tasks else sleeps
        await asyncio.gather(executor.run(range(8), work), executor.run(range(8), work))

    asyncio.run(two_sets())
    executor.close()
    assert max(peaks) == 3


@pytest.mark.parametrize("in_tasks", [True, False])
def test_the_first_error_in_order_is_raised_and_no_further_job_is_begun(in_tasks: bool) -> None:
    """Job 3 fails first and job 2 after it; meanwhile the other two at once take further ones, of which there are many."""
    begun: list[int] = []

    def fails(job: int) -> int:
        begun.append(job)
        if job in (2, 3):
            time.sleep(0.02 if job == 2 else 0)
            raise ValueError(f"job {job}")
        time.sleep(0.005)
        return job

    async def afails(job: int) -> int:
        begun.append(job)
        if job in (2, 3):
            await asyncio.sleep(0.02 if job == 2 else 0)
            raise ValueError(f"job {job}")
        await asyncio.sleep(0.005)
        return job

    with pytest.raises(ValueError, match="job 2"):
        run(LocalExecutor(4), range(10_000), afails if in_tasks else fails)
    assert len(begun) < (20 if in_tasks else 2_000)  # a thread that fails may be held up for seconds by a busy machine


def test_threads_see_the_callers_context() -> None:
    import contextvars

    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")

    executor = LocalExecutor(2)

    async def whole() -> Any:
        who.set("caller")
        return await executor.run(range(3), lambda _: who.get())

    assert asyncio.run(whole()) == ["caller"] * 3
    executor.close()


def test_work_that_returns_at_once_stays_on_one_thread_and_work_that_waits_spreads() -> None:
    together = threading.Barrier(8, timeout=20)

    def slow(_: int) -> int:
        together.wait()
        return threading.get_ident()

    def threads_of_fast_work() -> int:
        return len(set(run(LocalExecutor(8), range(500), lambda _: threading.get_ident())))

    # a thread that a busy machine holds up looks like one that waits
    assert any(threads_of_fast_work() <= 2 for _ in range(5))
    assert len(set(run(LocalExecutor(8), range(40), slow))) == 8


def test_a_cancelled_set_begins_no_further_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs then is waited for, so nothing is begun after that."""
    monkeypatch.setattr("trace_opt.search.executors.GRACE_S", 20.0)
    begun: list[int] = []
    cancelled = threading.Event()

    def slow(job: int) -> None:
        begun.append(job)
        assert len(begun) < 4 or cancelled.wait(20)

    async def whole() -> None:
        executor = LocalExecutor(2)
        running = asyncio.ensure_future(executor.run(range(1000), slow))
        while len(begun) < 4:
            await asyncio.sleep(0.001)
        running.cancel()
        asyncio.get_running_loop().call_later(0.05, cancelled.set)
        with pytest.raises(asyncio.CancelledError):
            await running
        executor.close()

    asyncio.run(whole())
    count = len(begun)
    time.sleep(0.05)
    assert len(begun) == count <= 5


def test_threads_are_used_again_and_let_go() -> None:
    earlier = set(threading.enumerate())
    executor = LocalExecutor(2)

    async def often() -> set[int]:
        found: set[int] = set()
        for _ in range(20):
            found |= set(await executor.run(range(2), lambda _: threading.get_ident()))
        return found

    assert len(asyncio.run(often())) <= 2
    own = {t for t in threading.enumerate() if t.name.startswith("trace_opt-rollouts")} - earlier
    assert own
    executor.close()
    for thread in own:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.slow
def test_ten_thousand_rollouts_at_once_on_one_loop_do_not_cross() -> None:
    count = 10_000
    added = Parameter(0, name="added")
    inside: list[int] = []
    everybody = asyncio.Event()

    @trace
    async def add(x: int) -> tuple[int, int, float]:
        inside.append(x)
        if len(inside) == count:
            everybody.set()
        await everybody.wait()
        charge(calls=1, tokens_in=x)
        return x + added.value, rollout().seed or 0, rollout().rng.random()

    async def workflow(x: int) -> tuple[int, int, float]:
        return await add(x)

    def guide(output: tuple[int, int, float], example: dict[str, int]) -> Feedback:
        return Feedback(float(output[0] - example["x"] - added.value == 0), f"{output[0]} {output[1]} {output[2]}")

    executor = LocalExecutor(count)
    ledger = Ledger(Budget(calls=count))
    roller = Roller(workflow, guide, ledger, executor)

    def job(n: int) -> Job:
        return Job(n, {"added": 3 * n}, n, {"x": n}, bound=((n,), {}), seed=7 * n + 1, keep=True)

    found = run(executor, [job(n) for n in range(count)], roller.arun)

    assert len(inside) == count
    for n, (made, account) in enumerate(found):
        output = made.graph.layout().order[1].value
        assert (made.score, output[:2], made.cost) == (1.0, (4 * n, 7 * n + 1), Cost(1, n, 0, 0.0))
        assert made.feedback.text == f"{4 * n} {7 * n + 1} {output[2]}"
        assert account.cost == made.cost
    assert len({made.feedback.text.split()[2] for made, _ in found}) == count
    assert ledger.total == Cost(count, count * (count - 1) // 2, 0, 0.0)


@pytest.mark.parametrize("in_tasks", [True, False])
def test_what_is_queued_takes_no_memory_and_no_task(in_tasks: bool) -> None:
    concurrency = 50
    most: list[int] = [0]
    earlier: set[threading.Thread] = set()

    async def awork(job: int) -> None:
        if job % 500 == 0:
            most[0] = max(most[0], len(asyncio.all_tasks()))
        await asyncio.sleep(0)

    def work(job: int) -> None:
        if job % 500 == 0:
            # threads of other executors may still be on their way out
            fresh = set(threading.enumerate()) - earlier
            most[0] = max(most[0], sum(thread.name.startswith("trace_opt-rollouts") for thread in fresh))

    def peak(jobs: int) -> int:
        earlier.update(threading.enumerate())
        tracemalloc.start()
        run(LocalExecutor(concurrency), range(jobs), awork if in_tasks else work)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1_000)  # warm
    few, many = peak(1_000), peak(21_000)
    assert most[0] <= concurrency + 2
    assert (many - few) / 20_000 < 24  # a place for the result and its number; 820 bytes for a task of its own
