"""The tables of a store, as SQLAlchemy Core makes them on SQLite and PostgreSQL alike.

Free text and values live in columns that hold ASCII JSON, so that NaN, NUL characters and lone surrogates, all of which
models write, survive in any database. Nothing here grows with the number of steps but rows: a state is one row that is
overwritten.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlalchemy as sa

VERSION = 3
"""Raised by every change of the tables or of what their JSON holds, with a step in `migrations`; `Store` refuses a store of
a greater one."""

FLIGHTS = ("run", "token", "role", "what", "calls", "tokens_in", "tokens_out", "usd", "lost")


_COST = "calls integer, tokens_in big, tokens_out big, usd double?"  # no usd: a price is unknown

_TABLES = {
    "meta": "name* text, value integer",
    # data: config, fingerprint, parameters, model, budget; flights: the greatest number a call was given
    "runs": (
        "id* text, name text, status text, ended text, seed big, created double, updated double, owner text, "
        "lease_until double, epoch integer, version text, best integer, seconds double, data text, report text?, "
        "flights big"
    ),
    # data holds the values by parameter name
    "candidates": (
        "run* text, id* integer, step integer, optimizer text, parents text, data text, values_hash text, mean double?, "
        "n integer, failed integer, accepted integer"
    ),
    # no score: the workflow failed; data: scores, text, error, output
    "rollouts": (
        f"run* text, candidate* integer, example* integer, repeat* integer, score double?, data text, {_COST}, "
        "seconds double"
    ),
    "graphs": "run* text, candidate* integer, example* integer, blob text",
    # data: changed values, reason, notes
    "trials": (
        "run* text, number* integer, step integer, slot integer, optimizer text, base integer, candidate integer?, "
        "data text, before double?, after double?, n integer, accepted integer, verdict text"
    ),
    "states": "run* text, part* text, data text",
    "spend": f"run* text, role* text, {_COST}",
    "flights": f"run* text, token* big, role text, what text, {_COST}, lost integer",
    "blobs": "hash* text, data bytes",
    # what calls of pure ops gave, for all runs; data: reads, seeded, made, value, size
    "memos": f"op* text, arguments* text, variant* text, data text, {_COST}, seconds double, created double",
}
"""Columns as `name type`; a star marks the key, a question mark what may be empty."""


@lru_cache(maxsize=1)
def metadata() -> sa.MetaData:
    """All tables."""
    import sqlalchemy as sa

    types: dict[str, Any] = {
        "text": sa.Text, "integer": sa.Integer, "big": sa.BigInteger, "double": sa.Double, "bytes": sa.LargeBinary,
    }  # fmt: skip
    meta = sa.MetaData()
    for table, columns in _TABLES.items():
        made: list[Any] = []
        for column in columns.split(", "):
            name, kind = column.split()
            options: dict[str, Any] = {"primary_key": True, "autoincrement": False} if name.endswith("*") else {}
            options["nullable"] = kind.endswith("?")
            made.append(sa.Column(name.rstrip("*"), types[kind.rstrip("?")], **options))
        if table == "candidates":
            made.append(sa.UniqueConstraint("run", "values_hash"))
        sa.Table(table, meta, *made, sqlite_with_rowid=table in ("meta", "runs", "blobs", "states", "memos"))
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
