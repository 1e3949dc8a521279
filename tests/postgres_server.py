"""A PostgreSQL server of the tests' own, where its programs and the driver are installed."""

from __future__ import annotations

import getpass
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest


def _programs() -> Path | None:
    """The folder of initdb and postgres."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def _user() -> str | None:
    """Whom the server runs as: it refuses root."""
    return None if getpass.getuser() != "root" and os.getuid() != 0 else "nobody"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Gives the URL of a new empty database, on a server that listens on a socket in a folder of its own."""
    programs = _programs()
    if programs is None or not (programs / "initdb").exists():
        pytest.skip("no PostgreSQL server is installed here (on Debian: apt-get install postgresql)")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed (the extra 'postgres')")
    folder = Path(tempfile.mkdtemp(prefix="trace-opt-pg"))  # a socket's path must be short
    user = _user()
    if user is not None:
        shutil.chown(folder, user)
    options: dict[str, Any] = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    data, quick = str(folder / "data"), ("fsync=off", "listen_addresses=", f"unix_socket_directories={folder}")
    try:
        made = [programs / "initdb", "-D", data, "-A", "trust", "-U", "tests", "--no-sync", "-E", "UTF8"]
        subprocess.run(made, check=True, **options)
        command = [programs / "postgres", "-D", data, *[part for option in quick for part in ("-c", option)]]
        server = subprocess.Popen(command, **options)
        try:
            _wait_for(folder / ".s.PGSQL.5432", server)
            numbers = count()
            yield lambda: _new_database(folder, next(numbers))
        finally:
            server.send_signal(signal.SIGINT)  # which waits for no session, as SIGTERM does
            server.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(socket: Path, server: subprocess.Popen[bytes]) -> None:
    import time

    import psycopg

    for _ in range(1000):
        assert server.poll() is None, "the PostgreSQL server ended at once"
        try:
            psycopg.connect(host=str(socket.parent), user="tests", dbname="postgres").close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the PostgreSQL server does not answer")


def _new_database(folder: Path, number: int) -> str:
    import psycopg

    with psycopg.connect(host=str(folder), user="tests", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE runs_{number}".encode())
    return f"postgresql://tests@/runs_{number}?host={folder}"
