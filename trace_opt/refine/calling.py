"""Calls between an event loop and a thread that works for it, under a policy's lock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def released(lock: Any) -> Generator[None]:
    """Give back a lock that this thread holds once, for the block."""
    lock.__exit__(None, None, None)
    try:
        yield
    finally:
        lock.__enter__()


class Calls:
    """Calls from an event loop into a thread, and from there back into the loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: Future[Any] | None = None

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What `work` gives, in a thread; whatever ends the wait, the thread has ended too."""
        self._loop = asyncio.get_running_loop()

        def caught() -> tuple[T | None, BaseException | None]:
            try:
                return work(), None
            except BaseException as error:  # noqa: BLE001 # raised again by whoever waits
                return None, error

        task = asyncio.ensure_future(asyncio.to_thread(caught))
        try:
            found, error = await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._pending is not None:
                self._pending.cancel()
            await asyncio.wait([task])
            raise
        if error is not None:
            raise error
        return found  # pyright: ignore[reportReturnType] # there was no error

    def from_thread(self, call: Callable[[], Any]) -> Any:
        """What a coroutine gives that runs in the loop; called in the thread."""
        assert self._loop is not None  # noqa: S101 # in_thread has set it
        self._pending = asyncio.run_coroutine_threadsafe(call(), self._loop)
        try:
            return self._pending.result()
        finally:
            self._pending = None
