"""A piece of work that several wait for: threads, and tasks of any event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Lock


class Flight:
    """Work under way, done by the one who made this.

    Attributes:
        landing: Called once as it lands, before anybody who waits goes on.
    """

    __slots__ = ("_event", "_lock", "_waiting", "landing")

    def __init__(self) -> None:
        self.landing: Callable[[], object] | None = None
        self._event = Event()
        self._lock = Lock()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def land(self) -> None:
        """Let all who wait go on; whether there is something for them they find out themselves."""
        if self.landing is not None:
            self.landing()
        with self._lock:
            self._event.set()
            waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            with suppress(RuntimeError):  # a loop that has closed has nobody who waits
                loop.call_soon_threadsafe(_done, future)

    def wait(self) -> None:
        """Wait in this thread."""
        self._event.wait()

    async def awaited(self) -> None:
        """Wait in this task."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._event.is_set():
                return
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, future))
        await future


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
