"""What a running search writes: each batch is one transaction, and none goes through once the lease is lost.

A batch waits in memory until something in it was paid for or took long; everything waiting goes along with that. So what
costs money is safe as soon as it is known, and free, fast rollouts and the steps made of them, which a resumed run makes
again as they were, cost next to nothing to keep: they are written in groups.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, RLock, Thread
from typing import TYPE_CHECKING, Any

from trace_opt.core.codec import storable
from trace_opt.core.rollout import Cost
from trace_opt.errors import StoreError
from trace_opt.store import blobs, lease
from trace_opt.store.rows import CandidateRow, MemoRow, RolloutRow, TrialRow
from trace_opt.store.schema import FLIGHTS, insert, upsert

if TYPE_CHECKING:
    import sqlalchemy as sa

    from trace_opt.store.database import Database

GROUP_S = 0.05
"""How long free, fast rollouts and steps may wait for others to be written with."""

_GROUP_ROWS = 100
_DATA = RolloutRow._fields.index("data")


@dataclass(slots=True)
class Batch:
    """Rows to be written together; of a candidate, a trial or a state what was said last."""

    rollouts: list[tuple[Any, ...]] = field(default_factory=list[tuple[Any, ...]])
    graphs: list[tuple[int, int, str]] = field(default_factory=list[tuple[int, int, str]])
    candidates: dict[int, CandidateRow] = field(default_factory=dict[int, CandidateRow])
    trials: dict[int, TrialRow] = field(default_factory=dict[int, TrialRow])
    states: dict[str, str] = field(default_factory=dict[str, str])
    spend: dict[str, Cost] = field(default_factory=dict[str, Cost])
    landed: list[int] = field(default_factory=list[int])
    run: dict[str, Any] = field(default_factory=dict[str, Any])
    memos: list[MemoRow] = field(default_factory=list[MemoRow])


class Writer:
    """The pen of one running search. Safe to call from any thread.

    Args:
        database: Where.
        run: The run's id.
        owner: This process's name, as it stands in the run's row.
        epoch: The lease's epoch.
        seconds: Wall time of earlier sessions.
    """

    def __init__(self, database: Database, run: str, owner: str, epoch: int, seconds: float = 0.0) -> None:
        self.run = run
        self._database = database
        self._owner = owner
        self._epoch = epoch
        self._lock = RLock()
        self._waiting = Batch()
        self._known_blobs: set[str] = set()
        self._connection: sa.Connection | None = database.connect()
        self._began = time.monotonic() - seconds
        self._written = -GROUP_S
        self._stop = Event()
        self._sql = _Statements(database.mark)
        self._renewer = Thread(target=self._renew, name="trace_opt-lease", daemon=True)
        self._renewer.start()

    @property
    def seconds(self) -> float:
        """Wall time of all sessions."""
        return time.monotonic() - self._began

    # -- what is written ---------------------------------------------------------------------------------------------

    def rollout(
        self, row: RolloutRow, *, spend: Mapping[str, Cost], landed: Iterable[int], graph: str | None = None,
        now: bool = False,
    ) -> None:  # fmt: skip
        """Keep a finished rollout.

        Args:
            row: What is kept of it.
            spend: Its cost by role.
            landed: Tokens of its calls, which are in flight no more.
            graph: `Graph.to_json`, where it will be wanted again.
            now: Whether to commit at once.
        """
        text = blobs.text_of(row.data) if row.data else "{}"
        kept = (self.run, *row[:_DATA], text, *row[_DATA + 1 :])
        with self._lock:
            self._waiting.rollouts.append(kept)
            if graph is not None:
                self._waiting.graphs.append((row.candidate, row.example, graph))
            if spend or landed:
                self._spend(spend, landed)
            if now or len(self._waiting.rollouts) >= _GROUP_ROWS:
                self.commit()

    def graph(self, candidate: int, example: int, graph: str) -> None:
        """Keep a graph, with the next commit."""
        with self._lock:
            self._waiting.graphs.append((candidate, example, graph))

    def candidate(self, row: CandidateRow) -> None:
        """Keep a candidate, or what has become of it, with the next commit."""
        with self._lock:
            data = blobs.text_of(blobs.store_tensors(row.data, self._put))
            self._waiting.candidates[row.id] = row._replace(data=data, parents=blobs.text_of(row.parents))

    def trial(self, row: TrialRow) -> None:
        """Keep a trial, or what has become of it, with the next commit."""
        with self._lock:
            data = blobs.text_of(blobs.store_tensors(row.data, self._put))
            self._waiting.trials[row.number] = row._replace(data=data, verdict=storable(row.verdict))

    def state(self, part: str, data: Any) -> None:
        """Keep a state in place of the one before, with the next commit.

        Its tensors stay in the row: as blobs of their own they would outlive the state that replaces them.
        """
        with self._lock:
            self._waiting.states[part] = blobs.text_of(data)

    def memo(self, row: MemoRow) -> None:
        """Keep what a call of a pure op gave, for all runs, with the next commit; nothing where the run is closed."""
        with self._lock:
            if self._connection is not None:
                self._waiting.memos.append(row._replace(data=blobs.text_of(row.data)))

    def spend(self, spend: Mapping[str, Cost], landed: Iterable[int]) -> None:
        """Keep what was spent outside rollouts, with the next commit."""
        with self._lock:
            self._spend(spend, landed)

    def set(self, **columns: Any) -> None:
        """Change columns of the run's row, with the next commit."""
        with self._lock:
            self._waiting.run |= columns

    def launch(self, token: int, role: str, what: str, worst: Cost) -> None:
        """Note that a call is about to be sent; commits, so that a kill cannot hide it.

        Args:
            token: A number of its own.
            role: "workflow", "optimizer" or "guide".
            what: What it is for, in words.
            worst: The most it can cost.
        """
        with self._lock, self._transaction() as connection:
            row = (self.run, token, role, what, worst.calls, worst.tokens_in, worst.tokens_out, worst.usd, 0)
            connection.exec_driver_sql(self._sql.flight, row)
            connection.exec_driver_sql(self._sql.number, (token, self.run, token))

    def lose(self, lost: Mapping[int, Cost], role: str = "lost") -> None:
        """Book calls whose answers nobody kept, and commit.

        Args:
            lost: What each came to, by token.
            role: The role they are booked under.
        """
        with self._lock:
            total = Cost()
            with self._transaction() as connection:
                for token, cost in lost.items():
                    total += cost
                    row = (cost.calls, cost.tokens_in, cost.tokens_out, cost.usd, self.run, token)
                    connection.exec_driver_sql(self._sql.lose, row)
                self._add_spend(connection, {role: total} if lost else {})

    # -- commits -----------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Write everything that waits in one transaction.

        Raises:
            StoreError: the lease was lost, or the database cannot be written.
        """
        with self._lock:
            batch, self._waiting = self._waiting, Batch()
            with self._transaction() as connection:
                self._write(connection, batch)
            self._written = time.monotonic()

    def commit_soon(self) -> bool:
        """Write what waits, or let it wait for more where it is free, little and young; gives whether it waits.

        Raises:
            StoreError: as `commit`.
        """
        with self._lock:
            waiting = self._waiting
            due = len(waiting.rollouts) >= _GROUP_ROWS or time.monotonic() - self._written >= GROUP_S
            if due or waiting.spend or waiting.landed:
                self.commit()
                return False
            return True

    def close(self, status: str, ended: str) -> None:
        """Write what waits, say how the run stands, and give the lease back."""
        with self._lock:
            if self._connection is None:
                return
            try:
                self.set(status=status, ended=storable(ended), owner="", lease_until=0.0)
                self.commit()
            finally:
                self._stop.set()
                self._connection.close()
                self._connection = None
        self._renewer.join(1.0)

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._connection is None

    def _live(self) -> sa.Connection:
        if self._connection is None:
            raise StoreError(f"run {self.run!r} is closed; resume it to go on")
        return self._connection

    @contextmanager
    def _transaction(self) -> Generator[sa.Connection]:
        """One transaction that goes through only while the lease is ours.

        Raises:
            StoreError: it was lost, or the database cannot be written.
        """
        connection = self._live()
        with self._database.translated(), self._begun(connection):
            yield connection

    def _begun(self, connection: sa.Connection) -> sa.Transaction:
        """A transaction with the fence passed, on a new connection where the server has dropped the old one.

        Only here it is known that nothing was done yet, so that beginning again cannot count a cost twice.
        """
        from sqlalchemy.exc import DBAPIError

        for again in (True, False):
            transaction = connection.begin()
            try:
                self._fence(connection)
                break
            except BaseException as error:
                transaction.rollback()
                if not (again and isinstance(error, DBAPIError) and error.connection_invalidated):
                    raise
        return transaction

    def _fence(self, connection: sa.Connection) -> None:
        row = (time.time(), self.seconds, self.run, self._owner, self._epoch)
        if connection.exec_driver_sql(self._sql.fence, row).rowcount != 1:
            raise StoreError(
                f"run {self.run!r} was taken over by another process; let that one finish, or resume it afterwards"
            )

    def _write(self, connection: sa.Connection, batch: Batch) -> None:
        run, sql = self.run, self._sql
        run_sql = connection.exec_driver_sql
        if batch.candidates:
            run_sql(sql.candidate, [(run, *row) for row in batch.candidates.values()])
        if batch.rollouts:
            run_sql(sql.rollout, batch.rollouts)
        for candidate, example, text in batch.graphs:
            name = self._put(blobs.packed(text), connection)
            run_sql(sql.graph, (run, candidate, example, name))
        if batch.trials:
            run_sql(sql.trial, [(run, *row) for row in batch.trials.values()])
        if batch.states:
            run_sql(sql.state, [(run, part, data) for part, data in batch.states.items()])
        if batch.memos:
            run_sql(sql.memo, batch.memos)
        if batch.landed:
            run_sql(sql.land, [(run, token) for token in batch.landed])
        self._add_spend(connection, batch.spend)
        if batch.run:
            names = ", ".join(f"{name} = {self._database.mark}" for name in batch.run)
            run_sql(f"UPDATE runs SET {names} WHERE id = {self._database.mark}", (*batch.run.values(), run))  # noqa: S608 # names of our own

    def _add_spend(self, connection: sa.Connection, spend: Mapping[str, Cost]) -> None:
        rows = [(self.run, role, c.calls, c.tokens_in, c.tokens_out, c.usd) for role, c in spend.items()]
        if rows:
            connection.exec_driver_sql(self._sql.spend, rows)

    def _spend(self, spend: Mapping[str, Cost], landed: Iterable[int]) -> None:
        for role, cost in spend.items():
            self._waiting.spend[role] = self._waiting.spend.get(role, Cost()) + cost
        self._waiting.landed.extend(landed)

    def _put(self, data: bytes, connection: sa.Connection | None = None) -> str:
        """Keep a blob; one that no row refers to yet does no harm, so it may be written ahead."""
        name = blobs.hash_of(data)
        if name not in self._known_blobs:
            if connection is not None:
                connection.exec_driver_sql(self._sql.blob, (name, data))
            else:
                with self._database.writing() as own:
                    own.exec_driver_sql(self._sql.blob, (name, data))
            self._known_blobs.add(name)
        return name

    def _renew(self) -> None:
        """Keep the lease, from a thread of its own: a workflow that blocks the loop must not lose the run."""
        while not self._stop.wait(lease.RENEW_S):
            try:
                with self._database.writing() as connection:
                    until = self._database.now(connection) + lease.LEASE_S
                    row = (until, self.run, self._owner, self._epoch)
                    connection.exec_driver_sql(self._sql.renew, row)
            except StoreError:
                continue  # busy for now; a lease that is really lost is noticed by the next write


class _Statements:
    """Plain SQL for one driver's placeholder."""

    def __init__(self, mark: str) -> None:
        who = f"id = {mark} AND owner = {mark} AND epoch = {mark}"
        self.fence = f"UPDATE runs SET updated = {mark}, seconds = {mark} WHERE {who}"  # noqa: S608 # names of our own
        self.renew = f"UPDATE runs SET lease_until = {mark} WHERE {who}"  # noqa: S608
        self.rollout = insert("rollouts", ("run", *RolloutRow._fields), mark, ignore=True)
        self.candidate = upsert("candidates", ("run", "id"), CandidateRow._fields[1:], mark)
        self.trial = upsert("trials", ("run", "number"), TrialRow._fields[1:], mark)
        self.graph = insert("graphs", ("run", "candidate", "example", "blob"), mark, ignore=True)
        self.state = upsert("states", ("run", "part"), ("data",), mark)
        self.memo = insert("memos", MemoRow._fields, mark, ignore=True)
        self.spend = upsert("spend", ("run", "role"), ("calls", "tokens_in", "tokens_out", "usd"), mark, add=True)
        self.flight = insert("flights", FLIGHTS, mark)
        self.number = f"UPDATE runs SET flights = {mark} WHERE id = {mark} AND flights < {mark}"  # noqa: S608
        self.land = f"DELETE FROM flights WHERE run = {mark} AND token = {mark}"  # noqa: S608
        self.lose = (
            f"UPDATE flights SET calls = {mark}, tokens_in = {mark}, tokens_out = {mark}, usd = {mark}, lost = 1 "  # noqa: S608
            f"WHERE run = {mark} AND token = {mark}"
        )
        self.blob = insert("blobs", ("hash", "data"), mark, ignore=True)
