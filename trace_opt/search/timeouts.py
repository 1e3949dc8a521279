"""Rollouts that are held to a time: what takes longer has failed, and what it does afterwards counts for nothing.

A task is cancelled. A thread cannot be: it is left to end by itself, its recording ends where it was, it may make no further
call, and calls that it has on their way are booked as lost once they are settled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextvars import copy_context
from threading import Event, Lock, Thread
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar, cast

from trace_opt.core.rollout import Cost
from trace_opt.errors import BudgetError

if TYPE_CHECKING:
    from trace_opt.core.graph import Graph
    from trace_opt.search.account import Account

T = TypeVar("T")

TIMEOUT = "Timeout"
"""What stands for the class of the error."""


def said(timeout: float) -> str:
    """What a rollout did that was given up."""
    return f"took longer than {timeout:g} s (timeout={timeout:g})"


class Purse:
    """An account of a rollout that may be given up; an `llm.meter.Ledger`.

    Args:
        account: Pays until then.
        late: Told of what is reported to have been spent afterwards, by role.

    Attributes:
        over: Whether it was given up.
    """

    def __init__(self, account: Account, late: Callable[[Mapping[str, Cost]], None] | None = None) -> None:
        self.account = account
        self.over = False
        self._late = late
        self._lock = Lock()

    @property
    def role(self) -> str:
        """Whose calls come next."""
        return self.account.role

    @role.setter
    def role(self, role: str) -> None:
        self.account.role = role

    @property
    def cost(self) -> Cost:
        """What its calls came to."""
        return self.account.cost

    def reserve(self, worst: Cost) -> Any:
        """Set aside the most that a request can cost.

        Raises:
            BudgetError: what is left does not cover it, or the rollout was given up.
        """
        if self.over:
            raise BudgetError("a model call was made for a rollout that was given up, since it took too long")
        return self.account.reserve(worst)

    def settle(self, token: Any, actual: Cost) -> None:
        """Replace a reservation by what it came to; with None book what was never reserved."""
        with self._lock:
            over = self.over
        self.account.settle(token, actual)
        if over and token is None and self._late is not None:
            self._late({self.account.role: actual})

    def close(self, kept: Account) -> Account:
        """Give the rollout up.

        Args:
            kept: A new account; it takes what was settled until now. Calls on their way are nobody's from now on, so that
                they are booked as lost in the end.

        Returns:
            The same.
        """
        with self._lock:
            self.over = True
            take = getattr(self.account, "take", None)
            if take is not None:  # in a worker the driver keeps the books
                kept.spend, kept.flights = take()
        return kept


class Watch:
    """Holds one rollout to its time.

    Args:
        account: Pays for it.
        timeout: Seconds.
        late: As for `Purse`.

    Attributes:
        account: Pays for it.
        purse: What it pays from.
        graph: Its recording, once it has begun one.
        seconds: What it took.
    """

    def __init__(
        self, account: Account, timeout: float, late: Callable[[Mapping[str, Cost]], None] | None = None
    ) -> None:  # fmt: skip
        self.account = account
        self.purse = cast("Account", Purse(account, late))
        self.graph: Graph | None = None
        self.seconds = 0.0
        self._timeout = timeout
        self._began = perf_counter()

    @property
    def over(self) -> bool:
        """Whether it was given up."""
        return cast("Purse", self.purse).over

    @property
    def said(self) -> str:
        """What it did."""
        return said(self._timeout)

    def is_said(self, error: str | None) -> bool:
        """Whether a rollout's error says that it took too long."""
        return error == f"{TIMEOUT}: {self.said}"

    def wait(self, work: Callable[[], T]) -> T | None:
        """What a function gives in a thread of its own, or None where that takes too long.

        Raises:
            BaseException: what it raised in time.
        """
        found: list[T] = []
        errors: list[BaseException] = []
        ended = Event()

        def whole() -> None:
            try:
                found.append(work())
            except BaseException as error:  # noqa: BLE001 # raised again by whoever waits
                errors.append(error)
            ended.set()

        Thread(target=copy_context().run, args=(whole,), name="trace_opt-rollout", daemon=True).start()
        if not ended.wait(self._timeout):
            return None
        if errors:
            raise errors[0]
        return None if self.too_long else found[0]

    async def await_(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What a coroutine gives, or None where that takes too long; it is cancelled then.

        Raises:
            BaseException: what it raised in time.
        """
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                found = await work
        except TimeoutError:
            if not limit.expired():
                raise
            return None
        # one that blocked the loop, or would not be cancelled, was late all the same
        return None if self.too_long else found

    @property
    def too_long(self) -> bool:
        """Whether its time is over."""
        return perf_counter() - self._began > self._timeout

    def settled(self, kept: Account) -> Account:
        """Give the rollout up; gives the account of what was spent until then (see `Purse.close`)."""
        self.seconds = perf_counter() - self._began
        return cast("Purse", self.purse).close(kept)
