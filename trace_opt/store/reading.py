"""Rows as records."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.codec import decode
from trace_opt.core.rollout import Cost
from trace_opt.errors import StoreError
from trace_opt.store import blobs, lease
from trace_opt.store.records import (
    CandidateRecord,
    LostCall,
    ParameterRecord,
    RolloutRecord,
    RunInfo,
    RunRecord,
    TrialRecord,
)
from trace_opt.store.schema import metadata

if TYPE_CHECKING:
    import sqlalchemy as sa

    from trace_opt.store.database import Database

Row = Mapping[str, Any]


def select(table: str, run: str | None = None, *order: str, key: str = "run") -> sa.Select[Any]:
    """All columns of a table's rows, of one run or of all."""
    found = metadata().tables[table]
    query = found.select() if run is None else found.select().where(found.c[key] == run)
    return query.order_by(*(found.c[name] for name in order)) if order else query


def rows(connection: sa.Connection, table: str, run: str, *order: str, key: str = "run") -> list[dict[str, Any]]:
    """The rows of one run as dicts."""
    result = connection.execute(select(table, run, *order, key=key))
    return [dict(cast("Mapping[str, Any]", row)) for row in result.mappings()]


class Found(AbstractContextManager["tuple[sa.Connection, Row]"]):
    """One look at a run that is named by its id, a prefix of it, or "last"."""

    def __init__(self, database: Database, run: str) -> None:
        self._database = database
        self._run = run
        self._stack = ExitStack()

    def __enter__(self) -> tuple[sa.Connection, Row]:
        if not self._database.exists:
            raise StoreError(f"there is no store at {self._database.name!r}; begin a run first, or pass another store")
        connection = self._stack.enter_context(self._database.reading())
        try:
            return connection, self._find(connection)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
        if isinstance(error, (ValueError, KeyError, TypeError, zlib.error)):
            raise StoreError(
                f"store {self._database.name!r} is damaged (run {self._run!r}: {error}); restore it from a copy"
            ) from error

    def _find(self, connection: sa.Connection) -> Row:
        table = metadata().tables["runs"]
        query = table.select().order_by(table.c.created.desc(), table.c.id).limit(2)
        if self._run != "last":
            query = query.where(table.c.id.startswith(self._run, autoescape=True))
        found = [cast("Row", row) for row in connection.execute(query).mappings().all()]
        exact = [row for row in found if row["id"] == self._run]
        if not found or not self._run:
            raise StoreError(f"store {self._database.name!r} has no run {self._run!r}; `trace-opt list` names them")
        if len(found) > 1 and self._run != "last" and not exact:
            raise StoreError(
                f"{self._run!r} is the beginning of several runs, {found[0]['id']!r} and {found[1]['id']!r} among "
                "them; give more of it"
            )
        return (exact or found)[0]


def decoded(text: str, get: blobs.Get) -> Any:
    """JSON of a column with its blobs fetched; still as `dump_value` gave it."""
    return blobs.fetch_tensors(json.loads(text), get)


def blob(connection: sa.Connection, name: str) -> bytes:
    """A blob by its hash.

    Raises:
        StoreError: it is missing or is not what its name says.
    """
    table = metadata().tables["blobs"]
    data = connection.execute(table.select().where(table.c.hash == name)).mappings().first()
    found = None if data is None else bytes(data["data"])
    if found is None or blobs.hash_of(found) != name:
        raise StoreError(f"the store lacks the blob {name[:12]!r}, or holds it damaged; restore the store from a copy")
    return found


def graph(connection: sa.Connection, run: str, candidate: int, example: int | None = None) -> str | None:
    """The text of a candidate's graph on one example, or on the first it was kept for."""
    table = metadata().tables["graphs"]
    query = table.select().where(table.c.run == run, table.c.candidate == candidate)
    if example is not None:
        query = query.where(table.c.example == example)
    row = connection.execute(query.order_by(table.c.example).limit(1)).mappings().first()
    return None if row is None else blobs.unpacked(blob(connection, row["blob"]))


def spend(connection: sa.Connection, run: str) -> dict[str, Cost]:
    """What was spent by role."""
    return {row["role"]: cost_of(row) for row in rows(connection, "spend", run, "role")}


def cost_of(row: Row) -> Cost:
    """The cost columns of a row."""
    return Cost(row["calls"], row["tokens_in"], row["tokens_out"], row["usd"])


def memos(connection: sa.Connection, op: str, most: int) -> list[Row]:
    """What calls of a pure op gave, the newest first; `data` as JSON."""
    table = metadata().tables["memos"]
    query = table.select().where(table.c.op == op).order_by(table.c.created.desc()).limit(most)
    return [{**row, "data": json.loads(row["data"])} for row in connection.execute(query).mappings()]


def book_flights(connection: sa.Connection, run: str) -> None:
    """Book the calls that were in flight when a run was killed as lost: they may have been billed."""
    from trace_opt.store.schema import upsert

    table = metadata().tables["flights"]
    open_flights = [row for row in rows(connection, "flights", run) if not row["lost"]]
    if not open_flights:
        return
    total = Cost()
    for row in open_flights:
        total += cost_of(row)
    mark = "?" if connection.dialect.paramstyle == "qmark" else "%s"
    sql = upsert("spend", ("run", "role"), ("calls", "tokens_in", "tokens_out", "usd"), mark, add=True)
    connection.exec_driver_sql(sql, (run, "lost", total.calls, total.tokens_in, total.tokens_out, total.usd))
    connection.execute(table.update().where(table.c.run == run).values(lost=1))


def infos(connection: sa.Connection, found: Sequence[Any], now: float) -> list[RunInfo]:
    """Lines of the list, the newest first.

    Args:
        connection: For what else they need.
        found: Rows of `runs`.
        now: The time that leases go by.
    """
    import sqlalchemy as sa

    trials = metadata().tables["trials"]
    counts: dict[str, tuple[int, int]] = {}
    query = sa.select(trials.c.run, sa.func.count(), sa.func.sum(trials.c.accepted)).where(trials.c.verdict != "")
    for run, count, accepted in connection.execute(query.group_by(trials.c.run)):
        counts[run] = (int(count), int(accepted or 0))
    candidates = metadata().tables["candidates"]
    means = {
        (row.run, row.id): row.mean
        for row in connection.execute(sa.select(candidates.c.run, candidates.c.id, candidates.c.mean))
    }
    ordered = sorted(found, key=lambda row: (-row["created"], row["id"]))
    return [_info(row, *counts.get(row["id"], (0, 0)), means, now) for row in ordered]


def _info(
    row: Row, trials: int, accepted: int, means: Mapping[tuple[str, int], float | None], now: float
) -> RunInfo:  # fmt: skip
    data = json.loads(row["data"])
    holder = row["owner"] if lease.held(row["owner"], row["lease_until"], now) else ""
    status = "interrupted" if row["status"] == "running" and not holder else row["status"]
    ended = "it was killed" if status != row["status"] else row["ended"]
    return RunInfo(
        id=row["id"], name=row["name"], status=status, ended=ended, seed=row["seed"], created=_iso(row["created"]),
        updated=_iso(row["updated"]), owner=lease.shown(holder), model=data.get("model", ""),
        budget=data.get("budget", {}), version=row["version"], trials=trials, accepted=accepted,
        start_mean=means.get((row["id"], 0)), best_mean=means.get((row["id"], row["best"])), seconds=row["seconds"],
    )  # fmt: skip


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def record(connection: sa.Connection, row: Row, get: blobs.Get, now: float) -> RunRecord:
    """Everything about a run."""
    run = row["id"]
    info = infos(connection, [row], now)[0]
    data = json.loads(row["data"])
    candidates = tuple(_candidate(c, get) for c in rows(connection, "candidates", run, "id"))
    best = next((c for c in candidates if c.id == row["best"]), None)
    lost = [f for f in rows(connection, "flights", run, "token") if f["lost"] or not info.owner]
    return RunRecord(
        info=info, config=data.get("config", {}),
        parameters=tuple(_parameter(p, get) for p in data.get("parameters", ())), candidates=candidates,
        trials=tuple(_trial(t, get) for t in rows(connection, "trials", run, "number")),
        spend=spend(connection, run), best={} if best is None else best.values, best_candidate=row["best"],
        report=None if row["report"] is None else json.loads(row["report"]),
        graph=graph(connection, run, row["best"], data.get("first")),
        lost=tuple(LostCall(role=f["role"], what=f["what"], cost=cost_of(f)) for f in lost),
    )  # fmt: skip


def _parameter(data: Mapping[str, Any], get: blobs.Get) -> ParameterRecord:
    return ParameterRecord(
        name=data["name"], kind=data["kind"], start=decode(blobs.fetch_tensors(data["start"], get)),
        description=data["description"], optimizer=data["optimizer"],
    )  # fmt: skip


def _values(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: decode(value) for name, value in data.items()}


def _candidate(row: Row, get: blobs.Get) -> CandidateRecord:
    return CandidateRecord(
        id=row["id"], parents=tuple(json.loads(row["parents"])), values=_values(decoded(row["data"], get)),
        mean=row["mean"], n=row["n"], failed=row["failed"], accepted=bool(row["accepted"]), step=row["step"],
        optimizer=row["optimizer"],
    )  # fmt: skip


def _trial(row: Row, get: blobs.Get) -> TrialRecord:
    data = decoded(row["data"], get)
    return TrialRecord(
        number=row["number"], step=row["step"], optimizer=row["optimizer"], base=row["base"],
        candidate=row["candidate"], changed=_values(data["changed"]), reason=data["reason"], notes=decode(data["notes"]),
        before=row["before"], after=row["after"], n=row["n"], accepted=bool(row["accepted"]), verdict=row["verdict"],
    )  # fmt: skip


def rollouts(connection: sa.Connection, row: Row) -> list[RolloutRecord]:
    """All rollouts of a run."""
    splits = json.loads(row["data"]).get("splits", {})
    return [_rollout(r, splits) for r in rows(connection, "rollouts", row["id"], "candidate", "example")]


def _rollout(row: Row, splits: Mapping[str, int]) -> RolloutRecord:
    data = json.loads(row["data"])
    score = row["score"]
    number, split = row["example"], "test"
    for name in ("train", "val"):
        if number < splits.get(name, 0):
            split = name
            break
        number -= splits.get(name, 0)
    return RolloutRecord(
        candidate=row["candidate"], example=row["example"], split=split, score=score,
        scores=data.get("scores", {} if score is None else {"score": score}), text=data.get("text", ""),
        error=data.get("error"), cost=cost_of(row), seconds=row["seconds"], repeat=row["repeat"],
        output=decode(data.get("output")),
    )  # fmt: skip
