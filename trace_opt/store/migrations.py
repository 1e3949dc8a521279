"""Stores of older versions, brought up to this one: a numbered step for each version, each in one transaction.

A step is written once and never changed, so it speaks plain SQL of its time and not of the tables as they are now. One
that is cut short is rolled back whole, and the next open begins it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trace_opt.errors import StoreError
from trace_opt.store import lease

if TYPE_CHECKING:
    import sqlalchemy as sa

    from trace_opt.store.database import Database

Step = Callable[["sa.Connection"], None]


def _to_2(connection: sa.Connection) -> None:
    """Trials say whether they are phases, and pure ops have a table for what their calls gave."""
    import sqlalchemy as sa

    double = "DOUBLE PRECISION"  # both databases know it
    connection.exec_driver_sql(
        "CREATE TABLE memos (op TEXT NOT NULL, arguments TEXT NOT NULL, variant TEXT NOT NULL, data TEXT NOT NULL, "
        f"calls INTEGER NOT NULL, tokens_in BIGINT NOT NULL, tokens_out BIGINT NOT NULL, usd {double}, "
        f"seconds {double} NOT NULL, created {double} NOT NULL, PRIMARY KEY (op, arguments, variant))"
    )
    trials = sa.table("trials", sa.column("run"), sa.column("number"), sa.column("data"))
    for run, number, text in connection.execute(sa.select(trials.c.run, trials.c.number, trials.c.data)).all():
        data: dict[str, Any] = json.loads(text)
        if "phase" not in data:  # before there were phases every trial was of a single proposal
            changed = sa.update(trials).where(trials.c.run == run, trials.c.number == number)
            connection.execute(changed.values(data=json.dumps({**data, "phase": False})))


def _to_3(connection: sa.Connection) -> None:
    """Values may be adapters, and rows of negative candidates are training rollouts and controls; old rows read as before."""
    del connection


STEPS: Mapping[int, Step] = {2: _to_2, 3: _to_3}
"""By the version that each leads to."""


def migrate(engine: sa.Engine, version: int, target: int, database: Database) -> None:
    """Bring a store up to date.

    Args:
        engine: Begins write transactions.
        version: Where the store stands.
        target: Where it is to stand.
        database: The store's; tells its name and the time.

    Raises:
        StoreError: there is no way from there, an older version's process is at work in it, or what it holds is damaged;
            the steps before have been kept.
    """
    import sqlalchemy as sa

    meta = sa.table("meta", sa.column("name"), sa.column("value"))
    for number in range(version + 1, target + 1):
        step = STEPS.get(number)
        if step is None:
            raise StoreError(
                f"store {database.name!r} holds schema {version}, which this version cannot read; pass another store"
            )
        with engine.begin() as connection:
            # another process may have been faster; the update takes the row's lock before anything is read
            mine = sa.update(meta).where(meta.c.name == "schema", meta.c.value == number - 1).values(value=number)
            if connection.execute(mine).rowcount == 1:
                _check_idle(connection, database)
                _run(step, connection, database.name)


def _check_idle(connection: sa.Connection, database: Database) -> None:
    """Refuse while a run is held: its process writes as the older version does.

    Raises:
        StoreError: one is.
    """
    now = database.now(connection)
    for run, owner, until in connection.exec_driver_sql("SELECT id, owner, lease_until FROM runs").all():
        if lease.held(owner, until, now):
            raise StoreError(
                f"store {database.name!r} is of an older version and {lease.shown(owner)!r} is at work in it (run {run!r}); "
                "wait until that ends"
            )


def _run(step: Step, connection: sa.Connection, name: str) -> None:
    try:
        step(connection)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"store {name!r} is damaged ({error}); restore it from a copy") from error
