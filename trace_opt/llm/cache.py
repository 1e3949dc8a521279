"""Replies by the content of their requests, in one SQLite file that many processes may share.

Identical calls in flight at the same time are sent once, and the others wait for its reply. A cache that cannot be
read or written is said once and then left alone: it never fails a call.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
import warnings
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Protocol
from weakref import WeakValueDictionary, finalize

from trace_opt.core.codec import canonical, content_hash, decode
from trace_opt.core.rollout import Cost
from trace_opt.errors import BudgetError, LLMError
from trace_opt.llm.base import LLM, Layer, Reply, Request
from trace_opt.llm.faults import CallError
from trace_opt.llm.meter import Later

DEFAULT_PATH = Path(".trace_opt/cache.db")
_SCHEMA_VERSION = 1
_BUSY_SECONDS = 5.0


def key_of(identity: str, request: Request) -> str:
    """What a call's reply depends on, as a hash: the model, the request and, where the model samples, its seed.

    Args:
        identity: The model and where it runs.
        request: With its seed resolved.
    """
    content = described(request)
    if request.temperature == 0 or request.answers:
        del content["seed"]
    return content_hash([identity, content])


def described(request: Request) -> dict[str, Any]:
    """The fields of a request as plain data."""
    return {
        "messages": [dict(message) for message in request.messages],
        "schema": None if request.schema is None else dict(request.schema),
        "max_tokens": request.max_tokens, "temperature": float(request.temperature), "seed": request.seed,
        "stop": list(request.stop), "answers": list(request.answers), "prefill": request.prefill, "raw": request.raw,
    }  # fmt: skip


def dump_reply(reply: Reply) -> str:
    """A reply as one line of JSON."""
    cost = reply.cost
    return canonical({
        "text": reply.text, "finish": reply.finish, "logprobs": list(reply.logprobs), "model": reply.model,
        "estimated": reply.estimated, "cost": [cost.calls, cost.tokens_in, cost.tokens_out, cost.usd],
    })  # fmt: skip


def load_reply(text: str) -> Reply:
    """The reply of what `dump_reply` gave, as one that costs nothing.

    Raises:
        ValueError: the text is something else.
    """
    try:
        data = decode(json.loads(text))
        return Reply(
            text=data["text"], finish=data["finish"], logprobs=tuple(data["logprobs"]), model=data["model"],
            estimated=data["estimated"], cost=Cost(), cached=True,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no reply: {text!r:.80}") from error


class Database:
    """The table of replies in one file. Safe to use from several threads and processes.

    Args:
        path: The file; it and its folder are made when the first reply is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._connection: sqlite3.Connection | None = None
        self._broken = False

    def find(self, key: str) -> Reply | None:
        """The reply to a call, or None."""
        with self._lock:
            try:
                connection = self._open(make=False)
                if connection is None:
                    return None
                row = connection.execute("SELECT reply FROM calls WHERE key = ?", (key,)).fetchone()
                return None if row is None else load_reply(row[0])
            except (sqlite3.Error, OSError, ValueError) as error:
                self._give_up(error)
                return None

    def keep(self, key: str, request: Request, reply: Reply) -> None:
        """Write a reply; the first one written for a call stays."""
        row = key, reply.model, canonical(described(request)), dump_reply(reply), time.time()
        with self._lock:
            try:
                connection = self._open(make=True)
                if connection is not None:
                    connection.execute("INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?)", row)
            except (sqlite3.Error, OSError) as error:
                self._give_up(error)

    def _open(self, *, make: bool) -> sqlite3.Connection | None:
        if self._connection is not None or self._broken:
            return self._connection
        if not make and not self.path.exists():
            return None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        finalize(self, connection.close)
        self._prepare(connection)
        self._connection = connection
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"it was written by a newer version, with schema {version}")
        set_journal(connection, "WAL")
        # a power cut may lose the last replies, never damage the file
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, model TEXT NOT NULL, request TEXT NOT NULL,"
            " reply TEXT NOT NULL, created REAL NOT NULL) WITHOUT ROWID"
        )
        connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")

    def _give_up(self, error: Exception) -> None:
        self._broken = True
        self._connection = None
        warnings.warn(
            f"the cache {str(self.path)!r} cannot be used ({error}), so model calls go uncached; delete it, or name"
            " another with cache=",
            stacklevel=2,
        )


def set_journal(connection: sqlite3.Connection, mode: str) -> None:
    """Switch the journal of a database, after others that do so at the same time.

    The switch needs the file alone, and SQLite does not wait for that by itself, whatever its time-out.

    Args:
        connection: Outside a transaction.
        mode: `WAL` or `DELETE`.

    Raises:
        sqlite3.Error: the file was in use for too long, or is no database.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute(f"PRAGMA journal_mode={mode}")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


_open: WeakValueDictionary[Path, Database] = WeakValueDictionary()
_open_lock = Lock()


def database(path: Path) -> Database:
    """The table in a file; one object for one file."""
    path = path.absolute()
    with _open_lock:
        found = _open.get(path)
        if found is None:
            found = _open[path] = Database(path)
        return found


class _Flight:
    """One call that is on its way, and how many wait for it."""

    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[Reply]) -> None:
        self.task = task
        self.waiting = 0


class Replies(Protocol):
    """Where replies are kept by the key of their call."""

    def find(self, key: str) -> Reply | None:
        """The reply to a call, or None."""
        ...

    def keep(self, key: str, request: Request, reply: Reply) -> None:
        """Write a reply; the first one written for a call stays."""
        ...


class Cache(Layer):
    """Answers from the table, and sends what it does not hold, once.

    Args:
        inner: Who answers otherwise.
        identity: The model and where it runs.
        table: The table, or None to share flights only.
    """

    def __init__(self, inner: LLM, identity: str, table: Replies) -> None:
        super().__init__(inner)
        self._identity = identity
        self._table = table
        self._flights: dict[str, _Flight] = {}

    async def asend(self, request: Request) -> Reply:
        """Answer from the table, from a flight on its way, or by sending."""
        key = key_of(self._identity, request)
        while True:
            flight = self._flights.get(key)
            if flight is None:
                found = self._table.find(key)
                return found if found is not None else await self._lead(key, request)
            try:
                reply = await self._join(key, flight)
                return replace(reply, cost=Cost(), cached=True)
            except (BudgetError, Later):
                continue  # the one who sent it could not pay, or not yet; perhaps this one can
            except CallError as error:
                raise error.again() from None
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if flight.task.cancelled() and not (task is not None and task.cancelling()):
                    continue  # the flight was dropped between two looks at it
                raise

    async def _lead(self, key: str, request: Request) -> Reply:
        flight = _Flight(asyncio.get_running_loop().create_task(self._fly(key, request)))
        self._flights[key] = flight
        return await self._join(key, flight)

    async def _join(self, key: str, flight: _Flight) -> Reply:
        """Wait for a flight. One who gives up leaves it to the others; the last one cancels it."""
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                if self._flights.get(key) is flight:
                    del self._flights[key]
                flight.task.cancel()

    async def _fly(self, key: str, request: Request) -> Reply:
        me = asyncio.current_task()
        try:
            reply = await self.inner.asend(request)
            self._table.keep(key, request, reply)
            return reply
        finally:
            flight = self._flights.get(key)
            if flight is not None and flight.task is me:
                del self._flights[key]


def checked_path(cache: Any) -> Path | None:
    """Where `cache=` says that replies are kept: True is the default place, None and False are nowhere.

    Raises:
        LLMError: it is something else.
    """
    if cache is True:
        return DEFAULT_PATH
    if cache is None or cache is False:
        return None
    if isinstance(cache, (str, Path)) and str(cache):
        return Path(cache).expanduser()
    raise LLMError(f"cache is {cache!r}; give a path, True or None", kind="request")
