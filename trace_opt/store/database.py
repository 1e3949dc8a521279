"""Connections to a store's database, and every way in which one can be unusable as one clear `StoreError`.

Write transactions on SQLite begin IMMEDIATE: one that reads first and writes later would fail at once where another
writer got in between, instead of waiting for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

from trace_opt.errors import StoreError
from trace_opt.llm.cache import set_journal
from trace_opt.store import lease
from trace_opt.store.migrations import migrate
from trace_opt.store.schema import VERSION, metadata

if TYPE_CHECKING:
    import sqlalchemy as sa

DEFAULT = Path(".trace_opt") / "runs.db"
VARIABLE = "TRACE_OPT_STORE"

_WAIT_MS = 5_000  # for another process's transaction
_LOCK = 8_442_619_277  # any number, the same in every process that makes tables
_NETWORK = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "afs", "lustre", "ceph", "glusterfs", "fuse.glusterfs")


def url_of(where: str | Path | None) -> str:
    """The URL of a store: a path, a URL as it stands, or the default."""
    named = str(where) if where is not None else os.environ.get(VARIABLE) or str(DEFAULT)
    if named == ":memory:":
        raise StoreError("a store in memory keeps nothing; pass store=None for that, or a path")
    return named if "://" in named else f"sqlite:///{Path(named).expanduser()}"


class Database:
    """One database, opened when first used.

    Args:
        url: As SQLAlchemy takes it; `?synchronous=full` makes every commit survive a power cut on SQLite.
    """

    def __init__(self, url: str) -> None:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise StoreError(f"store {url!r:.80} is no path and no URL; pass a path, or sqlite:///FILE") from error
        self.synchronous = str(parsed.query.get("synchronous", "normal"))
        if self.synchronous not in ("normal", "full"):
            raise StoreError(f"synchronous is {self.synchronous!r:.40}; use normal or full")
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(
                drivername="postgresql+psycopg"
            )  # the driver that the extra brings, not SQLAlchemy's choice
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            shown = parsed.render_as_string(hide_password=True)
            raise StoreError(
                f"store {shown!r:.80} is of a database that trace_opt does not know; use SQLite or PostgreSQL"
            )
        self.url = parsed.difference_update_query(["synchronous"])
        self.file = Path(self.url.database) if self.is_sqlite and self.url.database else None
        self._engine: sa.Engine | None = None
        self._ready = False
        self._lock = Lock()

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file of SQLite."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def name(self) -> str:
        """What messages call it: the file, or the URL without its password."""
        return str(self.file) if self.file is not None else self.url.render_as_string(hide_password=True)

    @property
    def exists(self) -> bool:
        """Whether there is anything to read: tables, for a process may have been killed before it had made them.

        Raises:
            StoreError: the database cannot be used.
        """
        if self.file is not None and not self.file.exists():
            return False
        with self._clear():
            self._opened(create=False)
        return self._ready

    @property
    def mark(self) -> str:
        """The driver's placeholder in plain SQL."""
        return "?" if self.is_sqlite else "%s"

    def now(self, connection: sa.Connection) -> float:
        """The seconds since 1970 by the clock that leases go by: a server's own, since its clients may disagree."""
        if self.is_sqlite:
            return time.time()
        return float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())

    @contextmanager
    def reading(self) -> Generator[sa.Connection]:
        """A connection for one consistent look.

        Raises:
            StoreError: the database cannot be used.
        """
        with self._clear():
            engine = self._opened(create=False)
            if not self.is_sqlite:  # which gives a reader one snapshot anyway
                engine = engine.execution_options(isolation_level="REPEATABLE READ")
            with engine.connect() as connection:
                yield connection

    @contextmanager
    def writing(self) -> Generator[sa.Connection]:
        """A connection for one transaction, committed on leaving.

        Raises:
            StoreError: the database cannot be used.
        """
        with self._clear():
            engine = self._opened(create=True).execution_options(trace_opt_write=True)
            with engine.begin() as connection:
                yield connection

    def connect(self) -> sa.Connection:
        """A connection for many write transactions; its caller closes it."""
        with self._clear():
            return self._opened(create=True).connect().execution_options(trace_opt_write=True)

    def close(self) -> None:
        """Let go of the file."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    @contextmanager
    def _clear(self) -> Generator[None]:
        """Database errors as `StoreError`s."""
        from sqlalchemy import exc

        try:
            yield
        except (exc.DBAPIError, exc.NoSuchModuleError) as error:
            raise StoreError(self._sentence(error)) from error

    def translated(self) -> Any:
        """The same for whoever holds a connection of `connect`."""
        return self._clear()

    def _sentence(self, error: Exception) -> str:
        text = str(getattr(error, "orig", None) or error).splitlines()[0][:120]
        if "locked" in text or "lock timeout" in text:
            return f"store {self.name!r} is locked by another process ({text}); try again, or stop that process"
        if "readonly" in text or "unable to open" in text:
            return f"store {self.name!r} cannot be opened or written ({text}); check the path and its permissions"
        if self.is_sqlite:
            return f"store {self.name!r} is damaged or no trace_opt store ({text}); move it away, or pass another store"
        return f"store {self.name!r} cannot be used ({text}); check the URL and that the server runs"

    def _opened(self, *, create: bool) -> sa.Engine:
        with self._lock:
            if self._engine is None:
                self._engine = self._make()
            if not self._ready:
                self._ready = self._prepared(self._engine, create=create)
            return self._engine

    def _make(self) -> sa.Engine:
        import sqlalchemy as sa

        if self.file is not None:
            self._make_folder(self.file)
        try:
            # a server counts connections, so none is kept open that nobody uses; the writer of a run has one of its own
            options: dict[str, Any] = {} if self.is_sqlite else {"poolclass": sa.NullPool}
            engine = sa.create_engine(self.url, **options)
        except ModuleNotFoundError as error:
            raise StoreError(
                f"store {self.name!r} needs the module {error.name!r}; install trace-opt-framework[postgres]"
            ) from error
        self._tune(engine)
        return engine

    def _make_folder(self, file: Path) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the folder of store {self.name!r} cannot be made ({error.strerror}); pass another store"
            ) from error

    def _tune(self, engine: sa.Engine) -> None:
        from sqlalchemy import event

        def on_connect(connection: Any, _: object) -> None:
            connection.isolation_level = None  # the driver must not begin transactions by itself
            connection.execute(f"PRAGMA busy_timeout={_WAIT_MS}")
            connection.execute(f"PRAGMA synchronous={self.synchronous}")

        def on_connect_to_server(connection: Any, _: object) -> None:
            # a process that is stopped or cut off within a transaction must not keep its locks beyond its lease
            connection.execute(f"SET idle_in_transaction_session_timeout = {round(1000 * lease.LEASE_S)}")
            connection.execute(f"SET lock_timeout = {_WAIT_MS}")
            connection.commit()

        def on_begin(connection: sa.Connection) -> None:
            write = connection.get_execution_options().get("trace_opt_write")
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        if not self.is_sqlite:
            event.listen(engine, "connect", on_connect_to_server)
            return
        event.listen(engine, "connect", on_connect)
        event.listen(engine, "begin", on_begin)

    def _prepared(self, engine: sa.Engine, *, create: bool) -> bool:
        """Check the version, bring an older store up to date, make the tables of a new one; gives whether there are any.

        Raises:
            StoreError: another program's database, or a newer version's; nothing is touched.
        """
        import sqlalchemy as sa

        with self._clear():
            with engine.connect() as connection:
                version = self._version(connection)
            if version is None and create:
                if self.is_sqlite:
                    self._set_journal(engine)
                with engine.execution_options(trace_opt_write=True).begin() as connection:
                    if not self.is_sqlite:  # where a transaction takes no lock by beginning
                        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
                    if self._version(connection) is None:  # another process may have been faster
                        metadata().create_all(connection)
                        connection.execute(sa.insert(metadata().tables["meta"]).values(name="schema", value=VERSION))
                version = VERSION
        if version is not None and version > VERSION:
            raise StoreError(
                f"store {self.name!r} holds schema {version}, this version knows {VERSION}; upgrade "
                "trace-opt-framework, or pass another store"
            )
        if version is not None and version < VERSION:
            with self._clear():
                migrate(engine.execution_options(trace_opt_write=True), version, VERSION, self)
        return version is not None

    def _version(self, connection: sa.Connection) -> int | None:
        """The schema's version; None where the database is empty."""
        import sqlalchemy as sa

        names = sa.inspect(connection).get_table_names()
        if not names:
            return None
        found = None
        if "meta" in names and {c["name"] for c in sa.inspect(connection).get_columns("meta")} == {"name", "value"}:
            table = metadata().tables["meta"]
            found = connection.execute(sa.select(table.c.value).where(table.c.name == "schema")).scalar()
        if found is None:
            raise StoreError(f"{self.name!r} is a database of another program; pass another store")
        return int(found)

    def _set_journal(self, engine: sa.Engine) -> None:
        # WAL needs memory that all processes share, which a network file system has not
        mode = "DELETE" if self.file is not None and on_network(self.file) else "WAL"
        raw = engine.raw_connection()
        try:
            set_journal(cast("Any", raw.driver_connection), mode)
        finally:
            raw.close()


def on_network(file: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether a file lies on a network file system, as far as this system tells."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return False
    folder = str(file.resolve().parent)
    inside = [line for line in lines if len(line) > 2 and (folder + "/").startswith(line[1].rstrip("/") + "/")]
    return bool(inside) and max(inside, key=lambda line: len(line[1]))[2].startswith(_NETWORK)
