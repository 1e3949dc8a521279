"""Hostile functions of every class: none gets what it wants, each ends within its limits, the host lives."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.core.sandbox.hostile import CASES, Case
from trace_opt.core.sandbox import Limits, Sandbox
from trace_opt.core.sandbox.monty import Monty
from trace_opt.core.sandbox.process import Process
from trace_opt.errors import CodeError

LIMITS = Limits(seconds=0.3, memory=64 * 2**20, recursion=200, calls=50, sleep=0.1, output=50_000, result=200_000)
PATIENT = replace(LIMITS, seconds=10)  # where another limit than the time is to be hit, however busy the machine is
SLACK = 20.0  # seconds that a busy machine may add; what has no end, or sleeps a minute, takes longer
HARMLESS = (int, str, list, dict, type(None))


@pytest.fixture(scope="module", params=["monty", "process"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if request.param == "process" and Process.refusal() is not None:
        pytest.skip(str(Process.refusal()))
    with (Monty if request.param == "monty" else Process)(LIMITS) as made:
        yield made


@pytest.fixture(scope="module")
def prey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What a hostile function is told to attack."""
    folder = tmp_path_factory.mktemp("prey")
    (folder / "secret.txt").write_text("secret", encoding="utf-8")
    (folder / "planted.py").write_text("value = 1\n", encoding="utf-8")
    os.environ["TRACE_OPT_SECRET"] = "secret"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(folder / "socket"))
        local.listen()
        yield {
            "secret": str(folder / "secret.txt"), "folder": str(folder), "port": server.getsockname()[1], "pid": os.getpid(),
        }  # fmt: skip
    del os.environ["TRACE_OPT_SECRET"]


def state_of(folder: str) -> list[tuple[str, int, int, float]]:
    return sorted((p.name, p.stat().st_mode, p.stat().st_size, p.stat().st_mtime) for p in Path(folder).iterdir())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_a_hostile_function_gets_nothing_and_ends_within_its_limits(
    sandbox: Sandbox, prey: dict[str, Any], case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = type(sandbox).__name__.lower()
    limit = case.limits[name]
    monkeypatch.setattr(sandbox, "limits", PATIENT if limit in ("recursion", "calls", "result", "sleep") else LIMITS)
    before = state_of(prey["folder"])
    start = time.monotonic()
    failed: CodeError | None = None

    try:
        value = sandbox.call(case.source, "f", (prey,), uses={"double": lambda y: 2})
        assert value != "ESCAPED"
        assert type(value) in HARMLESS
        assert limit is None, f"it returned {value!r} before the {limit} limit was hit"
    except CodeError as error:
        failed = error

    assert time.monotonic() - start < 2 * sandbox.limits.seconds + SLACK
    assert state_of(prey["folder"]) == before
    assert not Path("/dev/shm/trace_opt_escape").exists()
    if failed is not None:
        assert failed.source == case.source
        assert len(str(failed)) < 3000
        if limit == "*":
            assert failed.limit in ("time", "memory", "result")
        elif limit == "memory":
            assert failed.limit in ("memory", "time")  # on a busy machine the time may be over first
        elif limit is not None:
            assert failed.limit == limit
        if failed.limit is not None and failed.limit != "result":
            assert f"{failed.limit} limit" in str(failed)
    sandbox.limits = PATIENT
    assert sandbox.call("def f(x):\n    return x + 1\n", "f", (1,)) == 2


def test_there_are_at_least_sixty_of_them_of_every_class() -> None:
    assert len(CASES) >= 60
    assert {case.kind for case in CASES} == {
        "files", "environment", "network", "processes", "time", "memory", "recursion", "imports", "introspection", "output",
        "results", "exceptions", "host",
    }  # fmt: skip
    assert len({(case.kind, case.name) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_each_is_a_function_that_runs(case: Case) -> None:
    space: dict[str, Any] = {}
    exec(compile(case.source, "<case>", "exec"), space)
    assert callable(space["f"])


BITING = [
    "read a file", "read by pathlib", "read the passwords", "write a file", "append to a file", "delete a file", "rename a file",
    "make a link", "make a folder", "change rights", "change times", "truncate", "list a folder", "list the root", "environ",
    "getenv", "tcp", "udp", "unix socket", "bind", "subprocess", "system", "kill the host", "thread that stays", "os",
    "importlib", "by name", "subclasses", "globals", "planted path", "temporary file",
]  # fmt: skip


@pytest.mark.parametrize("name", BITING)
def test_the_same_function_gets_what_it_wants_where_nothing_confines_it(name: str, tmp_path: Path) -> None:
    """Without this the suite would pass for functions that could not harm anybody."""
    (case,) = [case for case in CASES if case.name == name]
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    (tmp_path / "planted.py").write_text("value = 1\n", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "socket"))
        local.listen()
        prey = {
            "secret": str(tmp_path / "secret.txt"), "folder": str(tmp_path), "port": server.getsockname()[1], "pid": os.getpid(),
        }  # fmt: skip
        script = f"import subprocess\n{case.source}\nprint(f({prey!r}))"
        if name in ("globals", "by name"):
            script = script.replace("['__builtins__']['open']", "['__builtins__'].open")
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "TRACE_OPT_SECRET": "s"},
        )
    assert "ESCAPED" in done.stdout, done.stderr


def test_what_one_call_changes_the_next_does_not_see(sandbox: Sandbox) -> None:
    sandbox.call("kept = []\ndef f():\n    global kept\n    kept = [1]\n    return 1\n", "f")
    with pytest.raises(CodeError, match="kept"):
        sandbox.call("def f():\n    return kept\n", "f")


def test_a_changed_module_is_whole_again_in_the_next_call(sandbox: Sandbox) -> None:
    source = "import math\ndef f(x):\n    math.sqrt = lambda y: -1.0\n    return 1\n"
    try:
        sandbox.call(source, "f", (4,))
    except CodeError as error:
        assert error.line == 3  # modules cannot be changed at all
    assert sandbox.call("import math\ndef f(x):\n    return math.sqrt(x)\n", "f", (4,), returns=float) == 2.0


def test_an_argument_that_is_changed_inside_stays_as_it_was_outside(sandbox: Sandbox) -> None:
    given = [1, {"a": [2]}]
    sandbox.call("def f(x):\n    x.append(3)\n    x[1]['a'].clear()\n    return 1\n", "f", (given,))
    assert given == [1, {"a": [2]}]
