"""The one event loop on which model calls run, in a daemon thread of its own.

An HTTP client, a semaphore or a flight of identical calls belongs to one event loop. Here they all live on this one, so
a model may be called from synchronous code, from any number of loops and after any of them has closed. A call sees the
caller's context variables; cancelling it, or Ctrl-C, cancels it here.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

Closer = Callable[[], Awaitable[None]]

# on Windows a thread that waits without an end does not see Ctrl-C
_POLL_SECONDS = 0.5 if sys.platform == "win32" else None
_CLOSE_SECONDS = 2.0
# a transport that was told to close does so in the loop's next rounds
_ROUNDS_TO_CLOSE = 3


async def stoppable(start: Callable[[threading.Event], Future[T]]) -> T:
    """What a job in another thread gives, which is told to stop where the wait for it is cancelled.

    Args:
        start: Starts the job, which looks at the event now and then.
    """
    stop = threading.Event()
    job = start(stop)
    try:
        return await asyncio.wrap_future(job)
    except asyncio.CancelledError:
        stop.set()
        raise


class _Background:
    """The loop, its thread, and what to close before it ends."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.closers: dict[int, Closer] = {}
        self.thread = threading.Thread(target=self._serve, name="trace_opt-llm", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def end(self) -> None:
        """Close what was opened here, then the loop."""
        try:
            asyncio.run_coroutine_threadsafe(self._close(), self.loop).result(_CLOSE_SECONDS)
        except TimeoutError:
            return  # it is a daemon thread: a peer that does not let go must not hold up the exit
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(_CLOSE_SECONDS)
        if not self.thread.is_alive():
            self.loop.close()

    async def _close(self) -> None:
        me = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not me]
        for task in tasks:
            task.cancel()
        closing = [closer() for closer in self.closers.values()]
        self.closers.clear()
        await asyncio.gather(*tasks, *closing, return_exceptions=True)
        for _ in range(_ROUNDS_TO_CLOSE):
            await asyncio.sleep(0)


_lock = threading.Lock()
_current: list[_Background] = []


def background() -> _Background:
    """The process's loop, started when it is first needed."""
    with _lock:
        if not _current:
            _current.append(_Background())
        return _current[0]


@atexit.register
def shutdown() -> None:
    """End the loop; a later call starts a fresh one."""
    with _lock:
        ending = _current.pop() if _current else None
    if ending is not None:
        ending.end()


def shut_down_first() -> None:
    """End the loop before the libraries loaded so far clean up at exit: they would do it from outside the loop."""
    atexit.unregister(shutdown)
    atexit.register(shutdown)


def _forget_in_child() -> None:
    # a forked child has the loop's memory but not its thread
    global _lock
    _lock = threading.Lock()
    _current.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop and wait for it, in the caller's context.

    Raises:
        RuntimeError: called on the loop's own thread, which would wait for itself.
    """
    here = background()
    if threading.current_thread() is here.thread:
        work.close()
        raise RuntimeError("a synchronous model call was made where model calls run; await its asynchronous form")
    future = asyncio.run_coroutine_threadsafe(work, here.loop)
    try:
        while True:
            try:
                return future.result(_POLL_SECONDS)
            except TimeoutError:
                if future.done():
                    raise
    except BaseException:
        future.cancel()
        raise


async def carried(work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine that runs on the loop, from whatever loop this one is."""
    here = background()
    if asyncio.get_running_loop() is here.loop:
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, here.loop))


def close_with_loop(owner: object, closer: Closer) -> None:
    """Run `closer` on the loop before it ends. Called on the loop."""
    background().closers[id(owner)] = closer


def close_soon(owner_id: int) -> None:
    """Run the closer of an owner that is going away, from any thread; it may have run already."""
    with _lock:
        here = _current[0] if _current else None
    closer = here.closers.pop(owner_id, None) if here is not None else None
    if here is None or closer is None:
        return

    async def close() -> None:
        await closer()

    here.loop.call_soon_threadsafe(lambda: _kept(here.loop.create_task(close())))


_closing: set[asyncio.Task[None]] = set()


def _kept(task: asyncio.Task[None]) -> None:
    # a loop holds its tasks weakly
    _closing.add(task)
    task.add_done_callback(_closing.discard)
