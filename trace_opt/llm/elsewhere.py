"""Model calls of a worker process, asked of the driver over one line: one cache, one ledger, one rate limit, one holder of keys.

In a worker, `connect` gives a model that sends its requests to the driver; a model that runs in the worker itself
reserves its costs with the driver and keeps its replies in the driver's cache. What goes over the line is how a
connection was made, never a key.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from trace_opt.core.rollout import Cost
from trace_opt.errors import LLMError
from trace_opt.llm.base import LLM, Reply, Request, checked
from trace_opt.llm.meter import LEDGER, count


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """How a connection was made: the arguments of `connect`, and in place of a key whether one was given."""

    model: str
    base_url: str | None = None
    keyed: bool = False
    cache: str | bool | None = True
    timeout_s: float = 60.0
    attempts: int = 4
    concurrency: int = 16
    requests_per_minute: float | None = None
    price: tuple[float, float] | None = None
    deadline_s: float | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Question:
    """What a worker asks.

    Attributes:
        rollout: The number of the rollout it is asked for; None where it is asked outside of one.
        role: Whose calls these are: "workflow", "guide".
    """

    rollout: int | None
    role: str


@dataclass(frozen=True, slots=True)
class Send(Question):
    """Answer a request. Answered with a `Reply`."""

    spec: Spec
    request: Request


@dataclass(frozen=True, slots=True)
class Price(Question):
    """The most that a request can cost. Answered with a `Cost`."""

    spec: Spec
    request: Request


@dataclass(frozen=True, slots=True)
class Reserve(Question):
    """Set aside the most that a call of the worker's own can cost. Answered with the reservation's number."""

    worst: Cost


@dataclass(frozen=True, slots=True)
class Settle(Question):
    """Replace a reservation by what it came to; with None book what was never reserved."""

    number: int | None
    actual: Cost


@dataclass(frozen=True, slots=True)
class Find(Question):
    """Look into the cache. Answered with a `Reply` or None."""

    path: str
    key: str


@dataclass(frozen=True, slots=True)
class Keep(Question):
    """Write a reply into the cache."""

    path: str
    key: str
    request: Request
    reply: Reply


class Line(Protocol):
    """The way from a worker to its driver. Safe to use from any thread and any loop."""

    def ask(self, question: Question) -> Any:
        """The driver's answer, waited for.

        Raises:
            TraceOptError: what the driver raised.
        """
        ...

    async def aask(self, question: Question) -> Any:
        """`ask` without blocking."""
        ...


class Tab:
    """What a worker's rollout spends, booked by the driver; an `llm.meter.Ledger`.

    Args:
        line: To the driver.
        number: The rollout's.
        role: Whose calls come first.
    """

    __slots__ = ("_line", "cost", "number", "role")

    def __init__(self, line: Line, number: int, role: str) -> None:
        self._line = line
        self.number = number
        self.role: str = role
        self.cost = Cost()  # the driver knows

    def reserve(self, worst: Cost) -> int:
        """Set aside the most that a request can cost.

        Raises:
            BudgetError: what is left does not cover it.
        """
        return self._line.ask(Reserve(self.number, self.role, worst))

    def settle(self, token: int | None, actual: Cost) -> None:
        """Replace a reservation by what it came to; with None book what was never reserved."""
        self._line.ask(Settle(self.number, self.role, token, actual))


class Table:
    """The driver's cache as a worker sees it; stands in for `cache.Database`.

    Args:
        line: To the driver.
        path: Where the driver's cache is, as the driver understands it.
    """

    def __init__(self, line: Line, path: Path) -> None:
        self._line = line
        self.path = path

    def find(self, key: str) -> Reply | None:
        """The reply to a call, or None."""
        return self._line.ask(Find(*_who(), str(self.path), key))

    def keep(self, key: str, request: Request, reply: Reply) -> None:
        """Write a reply; the first one written for a call stays."""
        self._line.ask(Keep(*_who(), str(self.path), key, request, reply))


class Through(LLM):
    """A model that the driver asks on the worker's behalf.

    Args:
        line: To the driver.
        spec: How the connection was made.
    """

    def __init__(self, line: Line, spec: Spec) -> None:
        self._line = line
        self.spec = spec
        self.name = spec.model
        self.local = spec.model.startswith("embedded/")
        self.defaults = dict(spec.defaults)

    def price(self, request: Request) -> Cost:
        """The driver's price."""
        return self._line.ask(Price(*_who(), self.spec, request))

    async def asend(self, request: Request) -> Reply:
        """Have the driver answer; the seed is settled here, where the rollout's calls are counted."""
        from trace_opt.llm.stack import seeded

        request = seeded(checked(request), f"{self.spec.model} at {self.spec.base_url}")
        try:
            reply: Reply = await self._line.aask(Send(*_who(), self.spec, request))
        except LLMError as error:
            count(getattr(error, "spent", None) or Cost())
            raise
        count(reply.cost)
        return reply

    def __reduce__(self) -> tuple[Any, ...]:
        from trace_opt.llm.connect import connected

        return connected, (self.spec,)


def _who() -> tuple[int | None, str]:
    """The rollout under way and the role in it."""
    ledger = LEDGER.get()
    return (ledger.number, ledger.role) if isinstance(ledger, Tab) else (None, "workflow")


class _Here:
    """What this process is."""

    line: Line | None = None
    taped: bool = False
    loading: bool = False


def become_worker(line: Line, *, taped: bool) -> None:
    """Have every later `connect` of this process go over a line.

    Args:
        line: To the driver.
        taped: Whether the driver writes replies to a file or answers from one: then it answers for embedded models too.
    """
    _Here.line, _Here.taped = line, taped


def the_line() -> Line | None:
    """To the driver; None in a process that is no worker."""
    return _Here.line


def through(spec: Spec) -> LLM | None:
    """What `connect` gives in a worker; None where the model is to run in this process."""
    if _Here.line is None or (spec.model.startswith("embedded/") and not _Here.taped):
        return None
    return Through(_Here.line, spec)


@contextmanager
def loading() -> Generator[None]:
    """Load the problem in a `with` block."""
    _Here.loading = True
    try:
        yield
    finally:
        _Here.loading = False


def is_loading() -> bool:
    """Whether this process is a worker that is loading its problem, so that nothing may be run."""
    return _Here.loading
