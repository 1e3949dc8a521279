"""The tables of a store, as SQLAlchemy Core makes them on SQLite and PostgreSQL alike.

Free text and values live in columns that hold ASCII JSON, so that NaN, NUL characters and lone surrogates, all of which
models write, survive in any database. Nothing here grows with the number of steps but rows: a state is one row that is
overwritten.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlalchemy as sa

VERSION = 1
"""Raised by every change of the tables; `Store` refuses a store of a greater one."""

FLIGHTS = ("run", "token", "role", "what", "calls", "tokens_in", "tokens_out", "usd", "lost")


@lru_cache(maxsize=1)
def metadata() -> sa.MetaData:
    """All tables."""
    import sqlalchemy as sa

    meta = sa.MetaData()
    key = sa.String(32)

    def cost() -> list[sa.Column[object]]:
        return [
            sa.Column("calls", sa.Integer, nullable=False),
            sa.Column("tokens_in", sa.BigInteger, nullable=False),
            sa.Column("tokens_out", sa.BigInteger, nullable=False),
            sa.Column("usd", sa.Double),  # NULL: a price is unknown
        ]

    sa.Table("meta", meta, sa.Column("name", sa.String(32), primary_key=True), sa.Column("value", sa.Integer))
    sa.Table(
        "runs", meta,
        sa.Column("id", key, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("ended", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("updated", sa.Double, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("lease_until", sa.Double, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("version", sa.String(32), nullable=False),
        sa.Column("best", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("data", sa.Text, nullable=False),  # config, fingerprint, parameters, model, budget
        sa.Column("report", sa.Text),
        sa.Column("flights", sa.BigInteger, nullable=False),  # the greatest number a call was given
    )  # fmt: skip
    sa.Table(
        "candidates", meta,
        sa.Column("run", key, primary_key=True),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("optimizer", sa.Text, nullable=False),
        sa.Column("parents", sa.Text, nullable=False),
        sa.Column("data", sa.Text, nullable=False),  # values
        sa.Column("values_hash", sa.String(64), nullable=False),
        sa.Column("mean", sa.Double),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("failed", sa.Integer, nullable=False),
        sa.Column("accepted", sa.Integer, nullable=False),
        sa.UniqueConstraint("run", "values_hash"),
        sqlite_with_rowid=False,
    )  # fmt: skip
    sa.Table(
        "rollouts", meta,
        sa.Column("run", key, primary_key=True),
        sa.Column("candidate", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("example", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("repeat", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("score", sa.Double),  # NULL: the workflow failed
        sa.Column("data", sa.Text, nullable=False),  # scores, text, error, output
        *cost(),
        sa.Column("seconds", sa.Double, nullable=False),
        sqlite_with_rowid=False,
    )  # fmt: skip
    sa.Table(
        "graphs", meta,
        sa.Column("run", key, primary_key=True),
        sa.Column("candidate", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("example", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("blob", sa.String(64), nullable=False),
        sqlite_with_rowid=False,
    )  # fmt: skip
    sa.Table(
        "trials", meta,
        sa.Column("run", key, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("slot", sa.Integer, nullable=False),
        sa.Column("optimizer", sa.Text, nullable=False),
        sa.Column("base", sa.Integer, nullable=False),
        sa.Column("candidate", sa.Integer),
        sa.Column("data", sa.Text, nullable=False),  # changed values, reason, notes
        sa.Column("before", sa.Double),
        sa.Column("after", sa.Double),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("accepted", sa.Integer, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )  # fmt: skip
    sa.Table(
        "states", meta,
        sa.Column("run", key, primary_key=True),
        sa.Column("part", sa.String(32), primary_key=True),
        sa.Column("data", sa.Text, nullable=False),
    )  # fmt: skip
    sa.Table(
        "spend", meta, sa.Column("run", key, primary_key=True), sa.Column("role", sa.String(32), primary_key=True), *cost()
    )  # fmt: skip
    sa.Table(
        "flights", meta,
        sa.Column("run", key, primary_key=True),
        sa.Column("token", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        *cost(),
        sa.Column("lost", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )  # fmt: skip
    sa.Table(
        "blobs", meta, sa.Column("hash", sa.String(64), primary_key=True), sa.Column("data", sa.LargeBinary, nullable=False)
    )  # fmt: skip
    return meta


def insert(table: str, columns: tuple[str, ...], mark: str, *, ignore: bool = False) -> str:
    """An INSERT for rows as tuples.

    Plain SQL: SQLAlchemy's own costs 12 us a row where the driver needs 3.

    Args:
        table: The table.
        columns: Its columns, in the order of the tuples.
        mark: The driver's placeholder, "?" or "%s".
        ignore: Whether a row whose key is there already is left out.
    """
    places = ", ".join([mark] * len(columns))
    tail = " ON CONFLICT DO NOTHING" if ignore else ""
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places}){tail}"  # noqa: S608 # names of our own


def upsert(table: str, keys: tuple[str, ...], columns: tuple[str, ...], mark: str, *, add: bool = False) -> str:
    """An INSERT that overwrites, or with `add` adds to, the columns of a row whose key is there already."""
    if add:
        changes = ", ".join(f"{c} = {table}.{c} + excluded.{c}" for c in columns)
    else:
        changes = ", ".join(f"{c} = excluded.{c}" for c in columns)
    return f"{insert(table, (*keys, *columns), mark)} ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {changes}"
