"""What every sandbox keeps: values cross as data, failures are one error with the line, nothing outlives a call."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import decimal
import gc
import os
import pickle  # noqa: TID251
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from trace_opt.core.sandbox import NAMES, Limits, Sandbox, sandbox_of
from trace_opt.core.sandbox.monty import Monty
from trace_opt.core.sandbox.process import Process
from trace_opt.core.sandbox.trusted import Trusted
from trace_opt.core.tracer import record, trace
from trace_opt.errors import BudgetError, CodeError, LLMError, TraceError

LIMITS = Limits(seconds=10, memory=64 * 2**20, recursion=200, calls=20, sleep=0.1)
BRIEF = replace(LIMITS, seconds=1)  # where the time is to be over
needs_process = pytest.mark.skipif(Process.refusal() is not None, reason=str(Process.refusal()))


@pytest.fixture(scope="module", params=["monty", pytest.param("process", marks=needs_process)])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with (Monty if request.param == "monty" else Process)(LIMITS) as made:
        yield made


@dataclass
class Point:
    x: int
    y: str = "a"
    tags: list[str] = field(default_factory=list)


class Order(BaseModel):
    name: str
    where: Point
    many: int = 1


def failure(sandbox: Sandbox, source: str, *args: Any, **more: Any) -> CodeError:
    with pytest.raises(CodeError) as caught:
        sandbox.call(source, "f", args, **more)
    return caught.value


# values


@pytest.mark.parametrize(
    "value",
    [
        None, True, 7, -(10**3000), 1.5, "text", "", "ä\u2028\x00", b"bytes\x00", 2 - 3j, [1, [2, []]], (1, (2,)), {1, "a"},
        frozenset({(1, 2)}), {"a": 1, 2: (3,), None: [4], "$": "tuple"}, dt.date(2026, 1, 2),
        dt.datetime(2026, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001 # one without a zone
        dt.timedelta(days=-1, seconds=3), decimal.Decimal("1.10"),
        [dt.date(2026, 1, 2)],
    ],
    ids=repr,
)  # fmt: skip
def test_a_value_comes_back_as_it_went(sandbox: Sandbox, value: Any) -> None:
    source = "def f(x):\n    return x\n"
    if "ecimal" in repr(value):
        source = "import decimal\n" + source
    found = sandbox.call(source, "f", (value,))
    assert found == value
    assert type(found) is type(value)


def test_dataclasses_and_models_cross_by_their_fields(sandbox: Sandbox) -> None:
    source = "def f(order, p):\n    return Order(order.name + p.y, Point(order.where.x + p.x, tags=['new']), order.many + 1)\n"
    found = sandbox.call(source, "f", (Order(name="n", where=Point(1)), Point(2, "b")), returns=Order)
    assert found == Order(name="nb", where=Point(3, "a", ["new"]), many=2)
    assert type(found.where) is Point


def test_a_model_is_made_anew_so_that_its_own_checks_hold(sandbox: Sandbox) -> None:
    error = failure(sandbox, "def f():\n    return Point('one')\n", returns=Point)
    assert "field 'x' of its 'Point'" in str(error)
    assert "asks for int" in str(error)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "7.9"), (int, "True"), (int, "'7'"), (bool, "'False'"), (bool, "1"), (float, "'1'"), (str, "1"), (str, "None"),
        (list[int], "[1, 'a']"), (list[int], "(1, 2)"), (tuple[int, str], "(1, 2)"), (dict[str, int], "{'a': 'b'}"),
        (Literal["a", "b"], "'c'"), (int | None, "1.5"), (type(None), "0"), (Point, "{'x': 1}"), (set[int], "[1]"),
    ],
    ids=str,
)  # fmt: skip
def test_a_result_of_another_type_is_the_candidates_failure(sandbox: Sandbox, annotation: Any, text: str) -> None:
    error = failure(sandbox, f"def f():\n    return {text}\n", returns=annotation)
    assert "its annotation asks for" in str(error)
    assert error.source == f"def f():\n    return {text}\n"


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (float, "7", 7), (int | None, "None", None), (list[int], "[1, 2]", [1, 2]), (Literal["a"], "'a'", "a"), (Any, "{1}", {1}),
        (dict[str, tuple[int, ...]], "{'a': (1, 2)}", {"a": (1, 2)}), (object, "[1]", [1]), (type(None), "None", None),
        (list[Point], "[Point(1)]", [Point(1)]),
    ],
    ids=str,
)  # fmt: skip
def test_a_result_of_the_type_is_handed_on_unchanged(sandbox: Sandbox, annotation: Any, text: str, value: Any) -> None:
    found = sandbox.call(f"def f():\n    return {text}\n", "f", returns=annotation)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "value", [object(), print, [lambda: 1], {"a": Path("x")}, range(3)], ids=lambda v: type(v).__name__
)
def test_an_argument_that_is_no_data_is_the_users_mistake(sandbox: Sandbox, value: Any) -> None:
    with pytest.raises(TraceError, match="cannot be handed to generated code"):
        sandbox.call("def f(x):\n    return 1\n", "f", (value,))


def test_an_argument_that_holds_itself_is_refused(sandbox: Sandbox) -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(TraceError, match="holds itself"):
        sandbox.call("def f(x):\n    return 1\n", "f", (value,))


def test_keywords_defaults_and_the_preamble_reach_the_function(sandbox: Sandbox) -> None:
    source = "def f(a, b=2, *rest, c, **more):\n    return [a, b, rest, c, more, math.floor(LIMIT)]\n"
    found = sandbox.call(source, "f", (1, 5, 6), {"c": 3, "d": 4}, preamble="import math\nLIMIT = 2.5\n")
    assert found == [1, 5, (6,), 3, {"d": 4}, 2]


def test_async_functions_run(sandbox: Sandbox) -> None:
    source = "async def g(x):\n    return x + 1\nasync def f(x):\n    return await g(x) * 2\n"
    assert sandbox.call(source, "f", (1,), returns=int) == 4


def test_the_same_seed_draws_the_same_numbers(sandbox: Sandbox) -> None:
    source = "import random\ndef f():\n    return [random.random() for _ in range(3)]\n"
    assert sandbox.call(source, "f", seed=1) == sandbox.call(source, "f", seed=1)
    assert sandbox.call(source, "f", seed=1) != sandbox.call(source, "f", seed=2)
    assert sandbox.call(source, "f") != sandbox.call(source, "f")


def test_the_order_of_a_set_of_texts_is_the_same_in_every_worker() -> None:
    source = "def f():\n    return [w for w in {'one', 'two', 'three', 'four', 'five', 'six'}]\n"
    for make in (Monty, Process):
        if make is Process and Process.refusal():
            continue
        with make(LIMITS) as one, make(LIMITS) as two:
            assert one.call(source, "f") == two.call(source, "f")


# failures


def test_an_exception_names_its_line_and_its_type(sandbox: Sandbox) -> None:
    error = failure(sandbox, "def g(x):\n    return 1 / x\n\ndef f(x):\n    y = x - x\n    return g(y)\n", 3)
    assert error.line == 2
    assert error.limit is None
    assert str(error).startswith("generated 'f' raised ZeroDivisionError: division by zero")
    assert str(error).endswith("at line 2 (`return 1 / x`)")


def test_an_exception_without_arguments_is_told(sandbox: Sandbox) -> None:
    error = failure(sandbox, "def f():\n    raise ValueError()\n")
    assert str(error) == "generated 'f' raised ValueError at line 2 (`raise ValueError()`)"


def test_lines_are_those_of_the_source_whatever_stands_before_it(sandbox: Sandbox) -> None:
    source = "def f(p):\n    x = p.x\n    return x + double(None)\n"
    error = failure(sandbox, source, Point(1), uses={"double": lambda y: y * 2}, preamble="import math\nimport re\n")
    assert error.line == 3


def test_what_does_not_compile_fails_with_its_line(sandbox: Sandbox) -> None:
    assert failure(sandbox, "def f():\n    x = 1\n    return (\n").line == 3
    assert "does not compile" in str(failure(sandbox, "return 1\n")) or "SyntaxError" in str(
        failure(sandbox, "return 1\n")
    )


def test_the_error_survives_pickling(sandbox: Sandbox) -> None:
    error = failure(sandbox, "def f():\n    return f()\n")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.source, copy.line, copy.limit) == (str(error), error.source, error.line, "recursion")


def test_an_unsupported_construct_is_found_by_the_definition_alone() -> None:
    with Monty(LIMITS) as sandbox:
        sandbox.check("def f(x):\n    return x / 0\n", "f")
        with pytest.raises(CodeError, match="yield") as caught:
            sandbox.check("def g():\n    a = 1\n    yield a\ndef f(x):\n    return list(g())\n", "f")
        assert caught.value.line == 3
        assert "no yield" in sandbox.language


@needs_process
def test_full_python_is_there_in_the_process() -> None:
    source = textwrap.dedent("""
        import csv, enum, io, statistics, xml.etree.ElementTree
        class Colour(enum.Enum):
            RED = 1
        class Mine(ValueError):
            pass
        def gen():
            yield from [1, 2, 6]
        def f():
            try:
                raise Mine(Colour.RED.name)
            except Mine as e:
                return [str(e), statistics.mean(gen()), list(csv.reader(io.StringIO("a,b")))]
    """)
    with Process(LIMITS) as sandbox:
        assert sandbox.call(source, "f") == ["RED", 3, [["a", "b"]]]


@needs_process
def test_arrays_and_tensors_cross_where_they_are_asked_for() -> None:
    np, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    source = "import numpy as np\ndef f(x):\n    return np.sort(x)[::-1]\n"
    with Process(Limits(seconds=5), arrays=True) as sandbox:
        found = sandbox.call(source, "f", (np.array([1.0, 3.0, 2.0]),), returns=np.ndarray)
        assert found.tolist() == [3.0, 2.0, 1.0]
        tensor = sandbox.call(source, "f", (torch.tensor([1.0, 3.0]),), returns=torch.Tensor)
        assert torch.equal(tensor, torch.tensor([3.0, 1.0]))
        with pytest.raises(CodeError, match="asks for Tensor"):
            sandbox.call("def f(x):\n    return 1\n", "f", (torch.ones(1),), returns=torch.Tensor)
        with pytest.raises(CodeError, match="ndarray"):
            sandbox.call("import numpy as np\ndef f():\n    return np.array([print])\n", "f")
    with Process(LIMITS) as plain, pytest.raises(TraceError, match=r"Process\(arrays=True\)"):
        plain.call(source, "f", (np.ones(2),))


# functions of the host


def test_functions_of_the_host_get_and_give_data(sandbox: Sandbox) -> None:
    seen: list[Any] = []

    def look(a: Any, *, b: Any = None) -> Any:
        seen.append((a, b))
        return {"a": (1, {2})}

    source = "def f():\n    return [look([1, (2,)], b={'c': None}), look(3)]\n"
    assert sandbox.call(source, "f", uses={"look": look}) == [{"a": (1, {2})}] * 2
    assert seen == [([1, (2,)], {"c": None}), (3, None)]


def test_only_functions_that_are_named_can_be_called(sandbox: Sandbox) -> None:
    error = failure(sandbox, "def f():\n    return other()\n", uses={"look": print})
    assert "NameError" in str(error)


def test_an_error_of_a_host_function_can_be_caught_inside_or_fails_the_call(sandbox: Sandbox) -> None:
    def picky(x: int) -> int:
        raise ValueError(f"not {x}")

    source = "def f(x):\n    try:\n        return picky(x)\n    except ValueError as e:\n        return str(e)\n"
    assert sandbox.call(source, "f", (3,), uses={"picky": picky}) == "not 3"
    error = failure(sandbox, "def f(x):\n    return picky(x)\n", 3, uses={"picky": picky})
    assert "ValueError: not 3" in str(error)
    assert error.line == 2
    assert isinstance(error.__cause__, ValueError)


@pytest.mark.parametrize(
    "fault", [TraceError("mine"), BudgetError("spent"), LLMError("no key", kind="key"), KeyboardInterrupt()], ids=repr
)
def test_what_no_candidate_is_to_blame_for_leaves_unchanged_even_if_it_is_swallowed(
    sandbox: Sandbox, fault: BaseException
) -> None:
    def broke() -> None:
        raise fault

    source = "def f():\n    for _ in range(3):\n        try:\n            broke()\n        except BaseException:\n            pass\n    return 1\n"
    with pytest.raises(type(fault)) as caught:
        sandbox.call(source, "f", uses={"broke": broke})
    assert caught.value is fault


def test_a_host_function_that_gives_no_data_is_the_users_mistake(sandbox: Sandbox) -> None:
    with pytest.raises(TraceError, match="'give' returned"):
        sandbox.call("def f():\n    return give()\n", "f", uses={"give": object})


def test_time_in_host_functions_is_not_the_candidates(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "limits", BRIEF)
    assert sandbox.call("def f():\n    return slow()\n", "f", uses={"slow": lambda: time.sleep(1.2) or 5}) == 5


def test_a_host_function_may_call_the_sandbox_again(sandbox: Sandbox) -> None:
    def deeper(n: int) -> int:
        source = "def f(n):\n    return 0 if n == 0 else 1 + deeper(n - 1)\n"
        return sandbox.call(source, "f", (n,), uses={"deeper": deeper}, returns=int)

    assert deeper(4) == 4


def test_traced_ops_are_recorded_as_children_of_the_op_that_runs_the_code(sandbox: Sandbox) -> None:
    @trace
    def half(x: int) -> float:
        return x / 2

    @trace
    def run(x: int) -> float:
        return sandbox.call("def f(x):\n    return half(x) + half(x)\n", "f", (x,), uses={"half": half}, returns=float)

    with record() as graph:
        output = run(3)
    node = next(n for n in graph.nodes if n.op is not None and n.op.name == "run")
    assert output == 3.0
    assert [child.op.name for child in node.children] == ["half", "half"]


def test_traced_ops_are_recorded_from_an_awaited_call_too(sandbox: Sandbox) -> None:
    @trace
    async def half(x: int) -> float:
        await asyncio.sleep(0)
        return x / 2

    @trace
    async def run(x: int) -> float:
        source = "def f(x):\n    return half(x) + half(x)\n"
        return await sandbox.acall(source, "f", (x,), uses={"half": half}, returns=float)

    async def main() -> Any:
        with record() as graph:
            await run(3)
        return graph

    node = next(n for n in asyncio.run(main()).nodes if n.op is not None and n.op.name == "run")
    assert node.value == 3.0
    assert [child.op.name for child in node.children] == ["half", "half"]


# many at once


def test_threads_share_a_sandbox(sandbox: Sandbox) -> None:
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        for j in range(10):
            found[i * 10 + j] = sandbox.call("def f(x):\n    return x * 2\n", "f", (i * 10 + j,), returns=int)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert found == {i: 2 * i for i in range(60)}


def test_tasks_share_a_sandbox_and_the_loop_goes_on(sandbox: Sandbox) -> None:
    async def main() -> tuple[list[Any], int]:
        ticks, enough = 0, asyncio.Event()

        async def look(x: int) -> int:
            await enough.wait()
            return x + 1

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                if ticks == 3:
                    enough.set()
                await asyncio.sleep(0.005)

        ticking = asyncio.create_task(tick())
        source = "def f(x):\n    return look(x) + look(x)\n"
        calls = [sandbox.acall(source, "f", (i,), uses={"look": look}, returns=int) for i in range(8)]
        found = await asyncio.gather(*calls)
        ticking.cancel()
        return found, ticks

    found, ticks = asyncio.run(main())
    assert found == [2 * (i + 1) for i in range(8)]
    assert ticks > 2


def test_an_awaited_call_raises_what_the_blocking_one_does(sandbox: Sandbox) -> None:
    with pytest.raises(CodeError, match="ZeroDivisionError"):
        asyncio.run(sandbox.acall("def f():\n    return 1 / 0\n", "f"))


def test_a_cancelled_call_ends_by_its_limits_and_the_next_works(sandbox: Sandbox) -> None:
    async def main(own: Sandbox) -> Any:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(own.acall("def f():\n    while True:\n        pass\n", "f"), 0.2)
        own.limits = LIMITS
        return await own.acall("def f():\n    return 1\n", "f")

    with type(sandbox)(BRIEF) as own:
        assert asyncio.run(main(own)) == 1


# nothing stays


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="counts files and processes in /proc")
def test_a_thousand_calls_leak_nothing(sandbox: Sandbox) -> None:
    good, bad = "def f(x):\n    return [x, {'a': x}]\n", "def f(x):\n    raise ValueError(x)\n"

    def calls(n: int) -> None:
        for i in range(n):
            sandbox.call(good, "f", (i,), uses={"g": print})
            if i % 10 == 0:
                failure(sandbox, bad, i)

    calls(300)  # allocators and caches fill up first
    gc.collect()
    before = open_files(), children(), resident()
    calls(1000)
    gc.collect()
    assert open_files() <= before[0]
    assert children() <= before[1]
    assert resident() - before[2] < 4 * 2**20


@pytest.mark.parametrize("name", ["monty", pytest.param("process", marks=needs_process)])
@pytest.mark.parametrize("ending", ["", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_workers_end_with_the_process_that_started_them(name: str, ending: str, project: Path) -> None:
    script = f"""
from trace_opt.core.sandbox import sandbox_of
from pathlib import Path
sandbox_of({name!r}).call("def f():\\n    return 1\\n", "f")
print(*[c for t in Path("/proc/self/task").iterdir() for c in (t / "children").read_text().split()], flush=True)
{ending}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=project, timeout=60)
    workers = [int(pid) for pid in done.stdout.split()]
    assert done.returncode == (-signal.SIGKILL if ending else 0), done.stderr
    assert done.stderr == ""
    assert workers
    assert all(ends(pid) for pid in workers)


def ends(pid: int) -> bool:
    """Whether a process ends before long."""
    deadline = time.monotonic() + 30
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not running(pid)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_sandbox_that_is_dropped_ends_its_workers() -> None:
    for make in (Monty, Process):
        if make is Process and Process.refusal():
            continue
        before = children()
        sandbox = make(LIMITS)
        sandbox.call("def f():\n    return 1\n", "f")
        (worker,) = children() - before
        del sandbox
        gc.collect()
        assert ends(worker)


def test_a_closed_sandbox_starts_again(sandbox: Sandbox) -> None:
    sandbox.close()
    assert sandbox.call("def f():\n    return 1\n", "f") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_is_told_rather_than_left_waiting(project: Path) -> None:
    script = """
import os
from trace_opt.core.sandbox import sandbox_of
from trace_opt.errors import TraceError
sandbox_of("monty").call("def f():\\n    return 1\\n", "f")
pid = os.fork()
if pid == 0:
    try:
        sandbox_of("monty").call("def f():\\n    return 1\\n", "f")
    except TraceError as error:
        os._exit(7 if "spawn" in str(error) else 1)
    os._exit(2)
os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=project, timeout=60)
    assert done.returncode == 7, done.stderr


@needs_process
def test_a_forked_process_gets_confined_workers_of_its_own(project: Path) -> None:
    script = """
import os
from trace_opt.core.sandbox import sandbox_of
sandbox = sandbox_of("process")
call = lambda: sandbox.call("import os\\ndef f():\\n    return os.getppid()\\n", "f")
before = call()
pid = os.fork()
if pid == 0:
    os._exit(7 if call() != before else 1)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
raise SystemExit(code if call() == before else 2)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=project, timeout=60)
    assert done.returncode == 7, done.stderr


@needs_process
def test_a_worker_that_was_killed_is_replaced() -> None:
    with Process(LIMITS) as sandbox:
        sandbox.call("def f():\n    return 1\n", "f")
        for worker in sandbox._idle:
            os.kill(worker.pid, signal.SIGKILL)
            assert ends(worker.pid)
        assert sandbox.call("def f():\n    return 2\n", "f") == 2


@needs_process
def test_a_worker_sees_neither_the_project_nor_its_packages(project: Path) -> None:
    source = "def f(path):\n    return open(path).read()\n"
    for path in (project / "pyproject.toml", Path(pytest.__file__), Path(__file__)):
        with Process(LIMITS) as sandbox, pytest.raises(CodeError, match="PermissionError"):
            sandbox.call(source, "f", (str(path),))


# choosing


def test_a_sandbox_is_found_by_name_and_shared() -> None:
    assert sandbox_of("monty") is sandbox_of("monty")
    assert isinstance(sandbox_of("trusted"), Trusted)
    own = Monty(LIMITS)
    assert sandbox_of(own) is own
    assert NAMES == ("monty", "process", "trusted")
    with pytest.raises(TraceError, match="did you mean 'process'"):
        sandbox_of("proces")


def no_landlock() -> int:
    return 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.setattr(sys, "platform", "darwin"), "needs Linux"),
        (lambda m: m.setitem(sys.modules, "sandlock", None), "needs the package sandlock"),
        (lambda m: m.setattr("sandlock.landlock_abi_version", no_landlock), "Landlock ABI"),
    ],
    ids=["another system", "no sandlock", "an old kernel"],
)
def test_where_the_kernel_cannot_confine_it_refuses_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None], words: str
) -> None:
    if "Landlock" in words:
        pytest.importorskip("sandlock")
    change(monkeypatch)
    with pytest.raises(TraceError, match=words) as caught:
        Process(LIMITS).call("def f():\n    return 1\n", "f")
    monkeypatch.undo()
    assert "." not in str(caught.value).replace("6.7", "")


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"memory": -1}, {"calls": 0}])
def test_no_limit_can_be_switched_off(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Limits(**wrong)


def test_a_host_function_of_a_seeded_call_does_not_change_how_a_call_is_hashed(sandbox: Sandbox) -> None:
    source = "import random\ndef f():\n    look()\n    return random.random()\n"
    uses = {"look": lambda: None}
    assert sandbox.call(source, "f", uses=uses, seed=4) == sandbox.call(source, "f", uses=uses, seed=4)
