"""What model calls cost: reserved before a request is sent, settled after, counted for whoever is listening.

Every request sent is a call, a retry too. Where the answer is lost after sending (deadline, reset, cancellation) the
reservation stays booked, since the provider may bill it. A budget behind a `Ledger` is therefore never exceeded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, Protocol, TypeVar

from trace_opt.core.rollout import Cost
from trace_opt.llm.base import Layer, Reply, Request
from trace_opt.llm.faults import CallError

T = TypeVar("T")


class Later(Exception):  # noqa: N818 # no error: it only has to wait
    """A request may be covered once others are settled, so it is to be asked for again then.

    Nothing may be held meanwhile that others need to come to their end, such as a turn with the model.

    Args:
        until: Done when asking again makes sense.
    """

    def __init__(self, until: Future[None]) -> None:
        super().__init__("others have to be settled first")
        self._until = until

    async def over(self) -> None:
        """Wait for it, on any event loop."""
        await asyncio.wrap_future(self._until)


class Ledger(Protocol):
    """Who pays. Its methods are called from any thread and must not block for long.

    Attributes:
        role: Whose calls these are: "workflow", "optimizer", "guide".
    """

    role: str

    def reserve(self, worst: Cost) -> Any:
        """Set the most that a request can cost aside, and give a token for it.

        Raises:
            BudgetError: what is left does not cover it, or there is a limit in US dollars and `worst.usd` is None.
            Later: what others have in flight is to be settled first.
        """
        ...

    def settle(self, token: Any, actual: Cost) -> None:
        """Replace a reservation by what it came to; with the token None book a spend that was never reserved."""
        ...


LEDGER: ContextVar[Ledger | None] = ContextVar("trace_opt_ledger", default=None)
"""Who pays for the model calls made here; None is nobody, and calls are free to make."""


class charging:  # noqa: N801 # reads as a verb: `with charging(ledger)`
    """Let a ledger pay for the model calls made in a `with` block."""

    __slots__ = ("_ledger", "_token")

    def __init__(self, ledger: Ledger | None) -> None:
        self._ledger = ledger

    def __enter__(self) -> None:
        self._token = LEDGER.set(self._ledger)

    def __exit__(self, *_: object) -> None:
        LEDGER.reset(self._token)


class CostMeter:
    """Adds up what the model calls of one rollout, or of whatever a `metering` block encloses, cost."""

    __slots__ = ("_lock", "cost")

    def __init__(self) -> None:
        self.cost = Cost()
        self._lock = Lock()

    def add(self, cost: Cost) -> None:
        """Count a cost, from any thread."""
        with self._lock:
            self.cost += cost


_METERS: ContextVar[tuple[CostMeter, ...]] = ContextVar("trace_opt_meters", default=())


@contextmanager
def metering() -> Generator[CostMeter]:
    """Count what the model calls made in a `with` block cost: `.cost`. Blocks nest, and each counts all within."""
    meter = CostMeter()
    token = _METERS.set((*_METERS.get(), meter))
    try:
        yield meter
    finally:
        _METERS.reset(token)


def charge(*, tokens_in: int = 0, tokens_out: int = 0, usd: float | None = 0.0, calls: int = 1) -> None:
    """Count what a client of the user's own has spent against the budget in force.

    Args:
        tokens_in: Input tokens, at least 0.
        tokens_out: Output tokens, at least 0.
        usd: US dollars, or None where the price is unknown.
        calls: Requests sent.
    """
    cost = Cost(calls, tokens_in, tokens_out, usd)
    ledger = LEDGER.get()
    if ledger is not None:
        ledger.settle(None, cost)
    count(cost)


def count(cost: Cost) -> None:
    """Tell every meter in force of a cost."""
    for meter in _METERS.get():
        meter.add(cost)


async def patiently(send: Callable[[], Awaitable[T]]) -> T:
    """What `send` gives, which is called again as often as it has to wait for what others spend."""
    while True:
        try:
            return await send()
        except Later as later:
            await later.over()


class Meter(Layer):
    """Reserves, sends and settles one request."""

    async def asend(self, request: Request) -> Reply:
        """Reserve, send, settle.

        Raises:
            Later: others have to be settled first; `patiently` waits for that outside of all that is held here.
        """
        ledger = LEDGER.get()
        worst = self.price(request)
        token = None if ledger is None else ledger.reserve(worst)
        actual = worst
        try:
            reply = await self.inner.asend(request)
            actual = reply.cost
            return reply
        except CallError as error:
            if error.spent is None:
                error.spent = worst
            actual = error.spent
            raise
        finally:
            if ledger is not None:
                ledger.settle(token, actual)
            count(actual)
