"""Work that several wait for."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from trace_opt.core.flight import Flight


def test_threads_and_tasks_of_several_loops_go_on_when_it_lands() -> None:
    flight, waiting = Flight(), threading.Barrier(6)

    async def task() -> str:
        await flight.awaited()
        return "task"

    async def tasks() -> list[str]:
        found = [asyncio.create_task(task()) for _ in range(3)]
        await asyncio.sleep(0)  # all of them wait now
        waiting.wait(10)
        return await asyncio.gather(*found)

    def thread() -> list[str]:
        waiting.wait(10)
        flight.wait()
        return ["thread"]

    with ThreadPoolExecutor(5) as pool:
        futures = [pool.submit(thread) for _ in range(3)] + [pool.submit(asyncio.run, tasks()) for _ in range(2)]
        waiting.wait(10)
        flight.land()
        assert [future.result(10) for future in futures] == [["thread"]] * 3 + [["task"] * 3] * 2


def test_whoever_comes_after_it_landed_does_not_wait() -> None:
    flight = Flight()
    flight.land()
    flight.wait()
    asyncio.run(asyncio.wait_for(flight.awaited(), 5))


def test_landing_happens_before_anybody_goes_on() -> None:
    flight, order = Flight(), list[str]()
    flight.landing = lambda: order.append("landed")
    thread = threading.Thread(target=lambda: (flight.wait(), order.append("went on")))
    thread.start()
    flight.land()
    thread.join(10)
    assert order == ["landed", "went on"]


def test_a_loop_that_has_closed_and_a_task_that_was_cancelled_hold_nobody_up() -> None:
    flight = Flight()

    async def cancelled() -> None:
        task = asyncio.create_task(flight.awaited())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    flight.land()

    async def both() -> None:
        fresh = Flight()
        tasks = [asyncio.create_task(fresh.awaited()) for _ in range(2)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        fresh.land()
        await asyncio.wait_for(tasks[1], 5)

    asyncio.run(both())
