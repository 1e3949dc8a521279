"""What holds for every test: no keys, no network but loopback, a home and a store of its own."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.postgres_server import postgres  # noqa: F401 # a fixture for all

settings.load_profile("ci")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell's background jobs ignore Ctrl-C and so would the commands that tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)

_KEYS = (
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "GEMINI_API_KEY",
    "TRACE_OPT_MODEL",
    "TRACE_OPT_STORE",
    "TRACE_OPT_CACHE",
)
_LOCAL = ("127.", "::1", "localhost")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slow` runs what takes more than ten seconds too."""
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the slow tests unless they are asked for."""
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes more than ten seconds; run it with --slow"))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No key of the person who runs the tests is used, and nothing is written into the project."""
    for key in _KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("TRACE_OPT_CACHE", "off")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    yield


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for another host fails at once."""
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def checked_connect(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX and not str(address[0]).startswith(_LOCAL):
            raise AssertionError(f"a test connected to {address!r}; tests stay on this machine")
        return connect(self, address)

    def checked_resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host is not None and not str(host).startswith(_LOCAL):
            raise AssertionError(f"a test looked up {host!r}; tests stay on this machine")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", checked_connect)
    monkeypatch.setattr(socket, "getaddrinfo", checked_resolve)


@pytest.fixture
def project() -> Path:
    """The project's root."""
    return Path(__file__).parents[1]
