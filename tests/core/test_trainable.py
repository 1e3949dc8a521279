"""`@trace(trainable=True)`: whose code runs where, what it is tied to, and how it fails."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import pickle  # noqa: TID251 # how an executor would hand it on
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.core.graph import Graph
from trace_opt.core.module import Module
from trace_opt.core.node import Failure
from trace_opt.core.parameter import Parameter
from trace_opt.core.propagate import propagate
from trace_opt.core.sandbox import Limits, sandbox_of
from trace_opt.core.sandbox.monty import Monty
from trace_opt.core.sandbox.process import Process
from trace_opt.core.tracer import op_of, plain, record, trace
from trace_opt.core.trainable import code_of, parameter_of
from trace_opt.errors import BudgetError, CodeError, OpError, TraceError
from trace_opt.search.run import load_values
from trace_opt.testing import ScriptedLLM

SCALE = 10
SANDBOXES = ["monty", "trusted", *(["process"] if Process.refusal() is None else [])]


@dataclass(frozen=True)
class Price:
    amount: float
    unit: str = "euro"


@trace
def look_up(word: str) -> int:
    """The number of a word."""
    return {"two": 2, "three": 3}[word]


@trace(trainable=True, uses=[look_up])
def parse(reply: str) -> float:
    """Turn a reply into a number."""
    return float(reply) * SCALE


@trace(trainable=True)
def draw(sides: int) -> list[int]:
    import random

    return [random.randint(1, sides) for _ in range(5)]


def doubled(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return 2 * fn(*args, **kwargs)

    return wrapped


def hiding(fn: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any) -> Any:
        return fn(*args)

    return wrapped


class Reader(Module):
    def __init__(self, unit: str = "km") -> None:
        super().__init__()
        self.unit = unit
        self.llm = print
        self.prompt = Parameter("?", name=None)

    @trace(trainable=True)
    def parse(self, reply: str) -> str:
        """Read a reply."""
        return reply

    @trace
    def other(self, reply: str) -> str:
        return self.parse(reply)


class Planner(Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Reader()
        self.second = Reader("m")


def values(fn: Any, source: str) -> dict[str, Any]:
    return {parameter_of(fn).name: source}


def run(source: str, reply: str = "7", seed: int | None = None) -> tuple[Any, Graph]:
    with record(values=values(parse, source), seed=seed) as graph:
        given = plain(parse(reply))
    return given, graph


def failure(source: str, reply: str = "7") -> Failure:
    with pytest.raises(OpError) as caught, record(values=values(parse, source)):
        parse(reply)
    return caught.value.node.value


# whose code runs where


def test_the_source_is_a_parameter_named_after_the_op() -> None:
    parameter = parameter_of(parse)
    assert (parameter.name, parameter.kind) == ("parse", "code")
    assert parameter.value.startswith("def parse(reply: str) -> float:\n")
    assert "@" not in parameter.value


def test_a_name_given_to_the_op_is_the_parameter_s() -> None:
    @trace(trainable=True, name="reader")
    def read(x: int) -> int:
        return x

    assert (op_of(read).name, parameter_of(read).name) == ("reader", "reader")
    with in_force({"reader": "def read(x):\n    return x + 1\n"}):
        assert read(1) == 2


def test_the_original_runs_as_it_is_with_its_own_exceptions() -> None:
    assert parse("7") == 70.0
    with record(), pytest.raises(ValueError, match="could not convert"):
        parse("seven")


def test_a_changed_source_runs_in_the_sandbox_with_the_constants_and_imports_that_it_reads() -> None:
    given, graph = run(
        "import re\n\ndef parse(reply):\n    return float(re.sub('[^0-9]', '', reply)) * SCALE\n", "7 km"
    )
    assert given == 70.0
    assert [node.name for node in graph.parameters.values()] == ["parse"]


def test_a_call_depends_on_the_source_that_it_ran() -> None:
    with record() as graph:
        output = parse("7")
    assert set(propagate(graph, graph.output(output), Feedback(text="more"))) == {"parse"}


def test_ops_in_uses_are_called_on_the_host_and_kept_as_children() -> None:
    given, graph = run("def parse(reply):\n    return look_up(reply) * 1.0\n", "three")
    assert given == 3.0
    call = graph["parse_1"]
    assert [(child.op.name, child.value) for child in call.children] == [("look_up", 3)]


def test_an_exception_of_the_host_s_function_is_the_candidate_s_failure() -> None:
    said = failure("def parse(reply):\n    return look_up(reply) * 1.0\n", "nine")
    assert said.type == "CodeError"
    assert "KeyError" in said.message


@pytest.mark.parametrize("sandbox", SANDBOXES)
@pytest.mark.filterwarnings("ignore:sandbox='trusted'")
def test_every_sandbox_gives_what_python_gives(sandbox: str) -> None:
    @trace(trainable=True, sandbox=sandbox)
    def price(text: str, *rest: int, factor: float = 2.0, **more: int) -> Price:
        """A price."""
        return Price(float(text))

    source = "def price(text, *rest, factor=2.0, **more):\n    return Price(factor * len(text) + sum(rest) + sum(more.values()), 'pence')\n"
    assert price("1.5") == Price(1.5)
    with in_force({"price": source}):
        assert price("abc", 1, 2, factor=3.0, z=4) == Price(16.0, "pence")
        assert price("abc") == Price(6.0, "pence")


def test_values_in_force_decide_outside_a_recording_too() -> None:
    with in_force(values(parse, "def parse(reply):\n    return 1.0\n")):
        assert parse("7") == 1.0
    assert parse("7") == 70.0


def test_values_are_written_and_taken_back_like_any_parameter_s(tmp_path: Path) -> None:
    parameter = parameter_of(parse)
    before = parameter.value
    new = "def parse(reply: str) -> float:\n    return 5.0\n"
    try:
        load_values([parameter], {"parse": new})
        assert parse("7") == 5.0
        path = tmp_path / "values.json"
        path.write_text(json.dumps({"parse": parameter.value}))
        parameter.value = before
        load_values([parameter], path)
        assert (
            parameter.value
            == 'def parse(reply: str) -> float:\n    """Turn a reply into a number."""\n    return 5.0\n'
        )
    finally:
        parameter.value = before
    assert parse("7") == 70.0


def test_candidates_that_run_at_once_do_not_mix() -> None:
    def one(n: int) -> list[float]:
        with record(values=values(parse, f"def parse(reply):\n    return {n}.0\n")):
            return [plain(parse("7")) for _ in range(20)]

    async def all_of_them() -> list[list[float]]:
        return await asyncio.gather(*(asyncio.to_thread(one, n) for n in range(6)))

    assert asyncio.run(all_of_them()) == [[float(n)] * 20 for n in range(6)]


# failures


def test_a_failure_shows_the_generated_line_in_its_traceback() -> None:
    said = failure("def parse(reply):\n    half = len(reply) // 2\n    return float(reply[half:])\n", "7 km")
    assert said.type == "CodeError"
    assert "raised ValueError" in said.message
    assert re.search(
        r'File "<generated parse \w{8}>", line 4, in parse\n    return float\(reply\[half:\]\)\n', said.traceback
    )


def test_the_last_frame_of_the_exception_is_the_generated_line() -> None:
    with (
        record(values=values(parse, "def parse(reply):\n    x = 1\n\n    return 1 / (x - 1)\n")),
        pytest.raises(CodeError) as caught,
    ):
        parse("7")
    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (frame.name, frame.lineno, frame.line) == ("parse", 5, "return 1 / (x - 1)")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def parse(reply):\n    while True: pass\n", "hit the time limit"),
        ("def parse(reply):\n    return parse(reply)\n", "hit the recursion limit"),
        ("def parse(reply):\n    x = 'a'\n    while True: x += x\n", "hit the memory limit"),
        (
            "def parse(reply):\n    return look_up('two') + sum(look_up('two') for _ in range(999)) * 1.0\n",
            "calls limit",
        ),
        ("def parse(reply):\n    return 'text'\n", "returned 'text'; its annotation asks for float"),
        ("def parse(reply):\n    return None\n", "returned"),
        ("def parse(reply):\n    return True\n", "returned"),
        ("def parse(reply):\n    raise ValueError()\n", "raised ValueError at line 3"),
        ("def parse(reply):\n    return open('/etc/passwd').read()\n", "raised"),
        ("def parse(reply):\n    import os\n    return os.system('true')\n", "raised"),
        ("def other(reply):\n    return 1.0\n", "must define 'parse'"),
        ("", "must define 'parse'"),
        ("no code at all", "does not compile"),
        ("def parse(reply):\n" + "    x = 1\n" * 5000, "characters"),
        ("def parse(reply):\n    return (lambda: 1)(2)\n", "raised TypeError"),
    ],
)
def test_whatever_is_in_force_fails_as_the_candidate_s_own(source: str, says: str) -> None:
    fast = code_of(parse)
    before = fast._sandbox
    fast._sandbox = _BRIEF if "time limit" in says else _PATIENT
    fast._ready.clear()
    try:
        said = failure(source)
    finally:
        fast._sandbox = before
        fast._ready.clear()
    assert said.type == "CodeError"
    assert says in said.message


_BRIEF = Monty(Limits(seconds=0.3, memory=32 * 2**20, calls=20))
_PATIENT = Monty(Limits(seconds=20, memory=32 * 2**20, calls=20))


def test_the_workflow_s_own_except_sees_a_code_error() -> None:
    with record(values=values(parse, "def parse(reply):\n    raise KeyError('x')\n")) as graph:
        try:
            parse("7")
        except CodeError as error:
            caught = error
    assert caught.line == 3
    assert [node.kind for node in graph.nodes if node.op.name == "parse"] == ["error"]


@pytest.mark.parametrize("value", [7, None, ["def parse(reply): ..."], b"def parse(reply): ..."])
def test_a_value_that_is_no_text_fails_as_the_candidate_s_own(value: Any) -> None:
    with pytest.raises(OpError, match="give its source as text"), record(values={"parse": value}):
        parse("7")


def test_lines_of_many_candidates_are_not_kept_for_ever() -> None:
    import linecache

    for n in range(230):
        failure(f"def parse(reply):\n    raise ValueError({n})\n")
    assert sum(name.startswith("<generated parse ") for name in linecache.cache) <= 200


class Broke:
    def __call__(self, text: str) -> str:
        raise BudgetError("the budget of 1 call is spent")


def test_what_no_candidate_is_to_blame_for_passes_through_code_that_swallows_it() -> None:
    @trace(trainable=True, uses={"llm": Broke()})
    def ask(question: str) -> str:
        return question

    source = (
        "def ask(question):\n    try:\n        return llm(question)\n    except BaseException:\n        return 'fine'\n"
    )
    with pytest.raises(BudgetError, match="the budget of 1 call is spent"), record(values={"ask": source}):
        ask("why?")


@pytest.mark.parametrize("sandbox", SANDBOXES)
@pytest.mark.filterwarnings("ignore:sandbox='trusted'")
def test_a_model_may_be_asked_by_generated_code_and_the_call_is_kept(sandbox: str) -> None:
    llm = ScriptedLLM(lambda messages: str(messages[-1]["content"]).upper())

    @trace(trainable=True, sandbox=sandbox, uses={"llm": llm})
    def ask(question: str) -> str:
        return llm(question)

    with record(values={"ask": "def ask(question):\n    return llm(question + '?') + '!'\n"}) as graph:
        assert plain(ask("why")) == "WHY?!"
    assert len(graph["ask_1"].children) == 1
    assert llm.calls == 1


def test_a_pure_trainable_op_is_known_by_its_source() -> None:
    calls: list[str] = []

    @trace(trainable=True, memo=True, uses={"note": calls.append})
    def shout(text: str) -> str:
        calls.append(text)
        return text.upper()

    for values in ({}, {"shout": "def shout(text):\n    note('new')\n    return text\n"}, {}):
        with record(values=values):
            assert plain(shout("a")) == ("a" if values else "A")


# proposals


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def parse(reply):\n    return clean(reply)\n", "reads 'clean', which it will not find"),
        ("import zlib\ndef parse(reply):\n    return 1.0\n", "No module named 'zlib'"),
        (
            "import os\nos.remove('x')\ndef parse(reply):\n    return 1.0\n",
            "does something when it is defined; only defs, imports and literal constants may stand beside it at line 2",
        ),
        ("def parse(reply, more):\n    return 1.0\n", "must keep its parameters"),
        ("async def parse(reply):\n    return 1.0\n", "must stay a plain def"),
    ],
)
def test_what_cannot_run_is_refused_as_a_value_with_its_line(source: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parameter_of(parse).check(source)


def test_a_check_gives_the_text_that_is_kept_and_keeps_it_so() -> None:
    parameter = parameter_of(parse)
    kept = parameter.check("def parse(reply):\r\n\treturn 2.0")
    assert kept == 'def parse(reply: str) -> float:\n    """Turn a reply into a number."""\n    return 2.0\n'
    assert parameter.check(kept) == kept


# chance


def test_the_rollout_s_seed_decides_and_each_call_draws_anew() -> None:
    source = "import random\n\ndef draw(sides):\n    return [random.randint(1, sides) for _ in range(5)]\n"

    def twice(seed: int) -> list[list[int]]:
        with record(values=values(draw, source + "\n"), seed=seed):
            return [plain(draw(1000)), plain(draw(1000)), plain(draw(999))]

    assert twice(3) == twice(3) != twice(4)
    first, second, third = twice(3)
    assert len({tuple(first), tuple(second), tuple(third)}) == 3


# methods


def test_each_instance_has_a_parameter_of_its_own_named_by_its_path() -> None:
    planner = Planner()
    assert set(planner.named_parameters()) == {"first.parse", "first.prompt", "second.parse", "second.prompt"}
    assert parameter_of(planner.second.parse).name == "second.parse"
    new = "def parse(self, reply):\n    return reply + self.unit + self.prompt.value\n"
    with record(values={"second.parse": new}) as graph:
        assert (plain(planner.first.parse("7")), plain(planner.second.parse("7"))) == ("7", "7m?")
    assert set(graph.parameters) == {"first.parse", "second.parse", "second.prompt"}


def test_a_method_called_in_another_op_s_body_ties_that_op_to_its_source() -> None:
    planner = Planner()
    with record(values={"first.parse": "def parse(self, reply):\n    return reply + '!'\n"}) as graph:
        assert plain(planner.first.other("7")) == "7!"
    assert [read.name for read in graph["other_1"].reads] == ["first.parse"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("self.unit = reply\n    return reply", "sets 'self.unit', which would be lost"),
        ("return self.llm(reply)", "reads the attribute 'llm', which generated code cannot have"),
        ("return self.nothing", "reads the attribute 'nothing', which its object does not have"),
        ("return self.other(reply)", "reads the attribute 'other', which generated code cannot have"),
    ],
)
def test_what_a_method_cannot_have_of_its_object_is_its_own_failure(line: str, says: str) -> None:
    reader = Reader()
    source = f"def parse(self, reply):\n    {line}\n"
    with pytest.raises((OpError, ValueError), match=says):
        new = parameter_of(reader.parse).check(source)
        with record(values={"parse": new}):
            reader.parse("7")


def test_the_values_of_methods_are_saved_and_loaded_with_their_module(tmp_path: Path) -> None:
    planner, other = Planner(), Planner()
    parameter_of(planner.first.parse).value = "def parse(self, reply):\n    return 'new'\n"
    planner.save(tmp_path / "planner.json")
    assert other.first.parse("x") == "x"
    other.load(tmp_path / "planner.json")
    assert (other.first.parse("x"), other.second.parse("x")) == ("new", "x")


def test_a_copied_module_has_parameters_of_its_own() -> None:
    planner = Planner()
    made = copy.deepcopy(planner)
    parameter_of(made.first.parse).value = "def parse(self, reply):\n    return 'new'\n"
    assert (made.first.parse("x"), planner.first.parse("x")) == ("new", "x")


def test_a_code_is_pickled_by_where_it_is_defined() -> None:
    assert pickle.loads(pickle.dumps(code_of(parse))) is code_of(parse)


def test_static_and_class_methods_are_functions_of_their_own() -> None:
    class Tools:
        factor = 3

        @staticmethod
        @trace(trainable=True)
        def twice(x: int) -> int:
            return 2 * x

        @classmethod
        @trace(trainable=True)
        def thrice(cls, x: int) -> int:
            return 3 * x

    new = {
        "twice": "def twice(x):\n    return 20 * x\n",
        "thrice": "def thrice(cls, x):\n    return 10 * cls.factor * x\n",
    }
    assert (Tools.twice(1), Tools().thrice(1)) == (2, 3)
    with in_force(new):
        assert (Tools.twice(1), Tools().thrice(1)) == (20, 30)


# async


@trace
async def later(x: int) -> int:
    """One more, later."""
    await asyncio.sleep(0)
    return x + 1


@trace(trainable=True, uses=[later])
async def wait(x: int, *, y: int = 2) -> int:
    """Add."""
    return await later(x) + y


def test_an_async_function_waits_without_holding_up_the_loop() -> None:
    async def main() -> tuple[Any, Any, Graph]:
        before = plain(await wait(1))
        source = "async def wait(x, *, y=2):\n    return await later(x) * y\n"
        with record(values={"wait": source}) as graph:
            results = await asyncio.gather(*(wait(n, y=3) for n in range(3)))
            return before, [plain(result) for result in results], graph

    before, after, graph = asyncio.run(main())
    assert (before, after) == (4, [3, 6, 9])
    assert {read.name for node in graph.nodes if node.op.name == "wait" for read in node.reads} == {"wait"}


@pytest.mark.parametrize("sandbox", SANDBOXES)
@pytest.mark.filterwarnings("ignore:sandbox='trusted'")
def test_an_async_function_awaits_its_host_functions_in_every_sandbox(sandbox: str) -> None:
    @trace(trainable=True, sandbox=sandbox, uses=[later, look_up])
    async def mixed(x: int) -> int:
        return await later(x)

    async def main(source: str) -> Any:
        with record(values={"mixed": source}) as graph:
            return plain(await mixed(5)), [child.op.name for child in graph["mixed_1"].children]

    source = "async def mixed(x):\n    return await later(x) * look_up('two')\n"
    assert asyncio.run(main(source)) == (12, ["later", "look_up"])
    with pytest.raises(OpError, match="raised ZeroDivisionError: .* at line 2"):
        asyncio.run(main("async def mixed(x):\n    return await later(x) // 0\n"))


# decorating


def test_inner_decorators_stand_around_generated_code_too() -> None:
    @trace(trainable=True)
    @doubled
    @doubled
    def count(text: str) -> int:
        return len(text)

    assert count("abc") == 12
    with in_force({"count": "def count(text):\n    return 1\n"}):
        assert count("abc") == 4
    assert code_of(count).contract.decorators == ("trace(trainable=True)", "doubled", "doubled")


def test_a_decorator_above_trace_is_outside_the_op() -> None:
    @doubled
    @trace(trainable=True)
    def count(text: str) -> int:
        return len(text)

    with in_force({"count": "def count(text):\n    return 5\n"}):
        assert count("abc") == 10


def test_a_decorator_that_hides_the_function_is_refused() -> None:
    with pytest.raises(TraceError, match=r"functools\.wraps"):

        @trace(trainable=True)
        @hiding
        def count(text: str) -> int:
            return len(text)


def test_a_hiding_decorator_in_the_same_file_is_refused_wherever_it_stands() -> None:
    def near(fn: Callable[..., Any]) -> Callable[..., Any]:
        def shown(*args: Any) -> Any:
            return fn(*args)

        return shown

    with pytest.raises(TraceError, match="gave 'shown' in place of the function"):

        @trace(trainable=True)
        @near
        def count(text: str) -> int:
            return len(text)


class Socket:
    """No data."""


def with_socket(x: Socket) -> int:
    return 1


def with_callback(x: int) -> Callable[[int], int]:
    return lambda y: y


def with_default(x: Any = Socket()) -> int:
    return 1


def numbers(n: int) -> Any:
    yield from range(n)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: trace(trainable=True)(with_socket), "its argument 'x' cannot cross"),
        (lambda: trace(trainable=True)(with_callback), "its result cannot cross"),
        (lambda: trace(trainable=True)(with_default), "the default of 'x' cannot cross"),
        (lambda: trace(trainable=True)(numbers), "is a generator"),
        (lambda: trace(trainable=True)(lambda x: x), "a lambda has no def"),
        (lambda: trace(trainable=True)(len), "no Python source"),
        (lambda: trace(trainable=True, sandbox="mony")(values), "did you mean 'monty'"),
        (lambda: trace(trainable=True, uses=[later])(values), "is no async function, so it cannot use 'later'"),
        (lambda: trace(trainable=True, uses=[3])(values), "cannot be called"),  # pyright: ignore[reportArgumentType]
        (lambda: trace(trainable=True, uses=[functools.partial(len)])(values), "under the name ''"),
        (lambda: trace(trainable=True, uses=[with_callback])(values), "whose result cannot be handed"),
        (lambda: trace(trainable=True, inline=True)(values), "leave one out"),
        (lambda: trace(uses=[look_up])(values), "without trainable=True"),
        (lambda: trace(sandbox="process")(values), "trace got sandbox="),
        (lambda: trace(trainable=True)(look_up), "is an op already"),
        (lambda: parameter_of(look_up), "no trainable op"),
    ],
)
def test_what_cannot_be_trained_is_an_error_at_decoration(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(TraceError, match=re.escape(says)):
        make()


def test_what_cannot_cross_may_run_trusted_with_one_loud_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    @trace(trainable=True, sandbox="trusted")
    def kind(x: Socket) -> str:
        return "socket"

    from trace_opt.core.sandbox.trusted import Trusted

    monkeypatch.setattr(Trusted, "_warned", False)
    new = {"kind": "def kind(x):\n    return type(x).__name__ + str(isinstance(x, Socket)) + str(SCALE)\n"}
    with in_force(new), pytest.warns(RuntimeWarning, match="sandbox='trusted' runs code that a language model wrote"):
        assert kind(Socket()) == "SocketTrue10"


def test_a_function_of_the_host_may_be_given_another_name() -> None:
    @trace(trainable=True, uses={"size": len})
    def measure(text: str) -> int:
        return len(text)

    with in_force({"measure": "def measure(text):\n    return 2 * size(text)\n"}):
        assert measure("abc") == 6


def test_a_function_that_python_has_no_text_of_is_given_along() -> None:
    text = "def made(x: int) -> int:\n    return x\n"
    scope: dict[str, Any] = {}
    exec(text, scope)
    made = trace(trainable=True, source=text)(scope["made"])
    with in_force({"made": "def made(x):\n    return -x\n"}):
        assert made(3) == -3


def test_names_defined_below_the_function_are_found() -> None:
    with in_force({"late": "def late(x):\n    return [x, LATE]\n"}):
        assert late(1) == [1, "defined below"]


@trace(trainable=True)
def late(x: int) -> list[Any]:
    return [LATE, x]


LATE = "defined below"


def test_a_sandbox_with_limits_of_its_own_is_used() -> None:
    slow = Monty(Limits(seconds=0.2))

    @trace(trainable=True, sandbox=slow)
    def spin(x: int) -> int:
        return x

    assert code_of(spin).sandbox is slow
    with in_force({"spin": "def spin(x):\n    while True: pass\n"}), pytest.raises(CodeError) as caught:
        spin(1)
    assert caught.value.limit == "time"
    assert sandbox_of(slow) is slow
