"""Where runs are remembered: open one by path or URL, list and read its runs, begin one, go on with one.

Readers open, read and close, so they never hold up the one process that writes a run; that one holds a lease.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_opt.core.rollout import Cost
from trace_opt.errors import StoreError
from trace_opt.store import blobs, lease, reading
from trace_opt.store.database import Database, url_of
from trace_opt.store.records import RolloutRecord, RunInfo, RunRecord
from trace_opt.store.schema import metadata
from trace_opt.store.writer import Writer

if TYPE_CHECKING:
    import sqlalchemy as sa


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """What is known of a run when it begins.

    Attributes:
        name: The problem's name.
        seed: The run's seed.
        version: Of trace_opt.
        data: JSON-able: `config`, `fingerprint`, `model`, `budget`, `splits`.
    """

    name: str
    seed: int
    version: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a search needs to go on where it stopped; values as `dump_value` gave them.

    Attributes:
        id: The run's id.
        data: As in `NewRun`, with `parameters`.
        best: The incumbent's number.
        status: How the run stood.
        seconds: Wall time so far.
        candidates, trials, rollouts, graphs: Rows as dicts; a graph's value is its text, by (candidate, example).
        states: JSON by part.
        spend: By role.
        flights: The greatest number a call was given.
    """

    id: str
    data: Mapping[str, Any]
    best: int
    status: str
    seconds: float
    candidates: Sequence[Mapping[str, Any]]
    trials: Sequence[Mapping[str, Any]]
    rollouts: Sequence[Mapping[str, Any]]
    states: Mapping[str, Any]
    spend: Mapping[str, Cost]
    flights: int


class Store:
    """A database of runs.

    Args:
        where: A path, a URL, or None for the default (TRACE_OPT_STORE, else `.trace_opt/runs.db`).

    Raises:
        StoreError: from any method, where the database is damaged, foreign, locked or from a newer version.
    """

    def __init__(self, where: str | Path | None = None) -> None:
        self.database = Database(url_of(where))

    def __repr__(self) -> str:
        return f"Store({self.database.name!r})"

    @property
    def name(self) -> str:
        """Its path, or its URL without the password."""
        return self.database.name

    def close(self) -> None:
        """Let go of the database; a later call opens it again."""
        self.database.close()

    # -- reading -----------------------------------------------------------------------------------------------------

    def runs(self) -> list[RunInfo]:
        """All runs, the newest first; empty where the store does not exist."""
        if not self.database.exists:
            return []
        with self.database.reading() as connection:
            found = connection.execute(reading.select("runs")).mappings().all()
            return reading.infos(connection, found, self.database.now(connection))

    def load(self, run: str = "last") -> RunRecord:
        """Everything kept about one run.

        Args:
            run: Its id, a prefix of it that is unique, or "last".
        """
        with self._row(run) as (connection, row):
            return reading.record(connection, row, self._get, self.database.now(connection))

    def rollouts(self, run: str = "last") -> list[RolloutRecord]:
        """All rollouts of a run, by candidate and example."""
        with self._row(run) as (connection, row):
            return reading.rollouts(connection, row)

    def graph(self, run: str, candidate: int, example: int) -> str | None:
        """`Graph.to_json` of one rollout, where it was kept."""
        with self._row(run) as (connection, row):
            return reading.graph(connection, row["id"], candidate, example)

    def memos(self, op: str, most: int = 10_000) -> list[Mapping[str, Any]]:
        """What calls of a pure op gave in any run, the newest first.

        Args:
            op: The hash of what it is made of.
            most: How many at most.
        """
        if not self.database.exists:
            return []
        with self.database.reading() as connection:
            return reading.memos(connection, op, most)

    def _row(self, run: str) -> reading.Found:
        return reading.Found(self.database, run)

    def _get(self, name: str) -> bytes:
        with self.database.reading() as connection:
            return reading.blob(connection, name)

    # -- writing -----------------------------------------------------------------------------------------------------

    def begin(self, new: NewRun) -> Writer:
        """Begin a run and hold it."""
        now = time.time()
        # sorts by time, and its first half names a run of the last days
        run = f"{datetime.now(UTC):%y%m%d}{secrets.token_hex(3)}"
        owner = lease.owner_name()
        row = {
            "id": run, "name": new.name, "status": "running", "ended": "", "seed": new.seed, "created": now,
            "updated": now, "owner": owner, "epoch": 1, "version": new.version,
            "best": 0, "seconds": 0.0, "data": blobs.text_of(new.data), "report": None, "flights": 0,
        }  # fmt: skip
        with self.database.writing() as connection:
            until = self.database.now(connection) + lease.LEASE_S
            connection.execute(metadata().tables["runs"].insert().values({**row, "lease_until": until}))
        return Writer(self.database, run, owner, 1)

    def reopen(self, run: str) -> tuple[Writer, Saved]:
        """Take a run to go on with it.

        Args:
            run: Its id, a prefix, or "last".

        Raises:
            StoreError: another process holds it.
        """
        with self._row(run) as (_, row):
            identity = row["id"]
        owner = lease.owner_name()
        with self.database.writing() as connection:
            epoch = self._take(connection, identity, owner)
            reading.book_flights(connection, identity)
        with self.database.reading() as connection:
            saved = self._saved(connection, identity)
        return Writer(self.database, identity, owner, epoch, saved.seconds), saved

    def peek(self, run: str) -> Mapping[str, Any]:
        """The `data` a run was begun with, without taking it."""
        with self._row(run) as (_, row):
            return json.loads(row["data"])

    def _take(self, connection: sa.Connection, run: str, owner: str) -> int:
        now = self.database.now(connection)
        table = metadata().tables["runs"]
        # locked for update where beginning to write has not locked everything, as SQLite has
        row = connection.execute(table.select().where(table.c.id == run).with_for_update()).mappings().one()
        if lease.held(row["owner"], row["lease_until"], now):
            raise StoreError(
                f"run {run!r} is held by {lease.shown(row['owner'])!r}; wait until it ends, or stop that process"
            )
        epoch = int(row["epoch"]) + 1
        change = table.update().where(table.c.id == run).values(
            owner=owner, lease_until=now + lease.LEASE_S, epoch=epoch, status="running", ended=""
        )  # fmt: skip
        connection.execute(change)
        return epoch

    def _saved(self, connection: sa.Connection, run: str) -> Saved:
        rows = reading.rows
        row = rows(connection, "runs", run, key="id")[0]
        candidates = rows(connection, "candidates", run, "id")
        trials = rows(connection, "trials", run, "number")
        states = {r["part"]: reading.decoded(r["data"], self._get) for r in rows(connection, "states", run)}
        return Saved(
            id=run, data=json.loads(row["data"]), best=row["best"], status=row["status"], seconds=row["seconds"],
            candidates=[{**c, "data": reading.decoded(c["data"], self._get)} for c in candidates],
            trials=[{**t, "data": reading.decoded(t["data"], self._get)} for t in trials],
            rollouts=rows(connection, "rollouts", run), states=states, spend=reading.spend(connection, run),
            flights=int(row["flights"]),
        )  # fmt: skip


def open_store(where: str | Path | Store | None = None) -> Store:
    """The store at a path or URL, or the default one (TRACE_OPT_STORE, else `.trace_opt/runs.db`).

    Raises:
        StoreError: the URL makes no sense. That the database cannot be used shows at the first call.
    """
    return where if isinstance(where, Store) else Store(where)
