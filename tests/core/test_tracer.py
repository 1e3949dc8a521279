"""`@trace` in all its forms, and what opens, carries and leaves a recording."""

# ruff: noqa: TID251, SIM105 # the forms these rules object to are what is tested

import asyncio
import functools
import inspect
import json
import pickle
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from trace_opt.core.context import FRAME, STATE, in_force, rollout
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import carry, no_trace, node_of, op_of, plain, record, trace
from trace_opt.errors import BudgetError, LLMError, OpError, TraceError


@trace
def ident(x: Any) -> Any:
    """Give it back.

    More.
    """
    return x


@trace
def upper(text: str, mark: str = "!", *more: str, loud: bool = True, **rest: str) -> str:
    return (text.upper() if loud else text) + mark + "".join(more) + "".join(rest.values())


def named(graph: Any) -> list[str]:
    return list(graph.names.values())


def module_level(self: str) -> str:
    return self + "?"


class Agent:
    factor = 2

    def __init__(self) -> None:
        self.history: list[Any] = []

    @trace
    def act(self, x: int) -> str:
        return f"{x}:{[str(h) for h in self.history]}"

    @classmethod
    @trace
    def inside_class(cls, x: int) -> int:
        return x * cls.factor

    @trace
    @classmethod
    def outside_class(cls, x: int) -> int:
        return x * cls.factor

    @staticmethod
    @trace
    def inside_static(x: int) -> int:
        return x + 1

    @trace
    @staticmethod
    def outside_static(x: int) -> int:
        return x + 1


class Caller:
    def __call__(self, x: int) -> int:
        return x + 1


class AsyncCaller:
    async def __call__(self, x: int) -> int:
        return x + 1


FORMS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = {
    "function": (upper, ("a",), {}, "A!"),
    "all kinds of arguments": (upper, ("a", "b", "c", "d"), {"loud": False, "z": "e"}, "abcde"),
    "keyword": (upper, (), {"mark": ".", "text": "a"}, "A."),
    "positional only": (trace(lambda a, /, b=2: a - b), (5,), {"b": 3}, 2),
    "keyword only": (trace(lambda *, b: b), (), {"b": 3}, 3),
    "lambda": (trace(lambda x: x + 1), (1,), {}, 2),
    "partial": (trace(functools.partial(max, 3)), (5,), {}, 5),
    "builtin": (trace(len), ([1, 2],), {}, 2),
    "builtin without a signature": (trace(max), (1, 2), {}, 2),
    "C function": (trace(json.dumps), ({"a": 1},), {"sort_keys": True}, '{"a": 1}'),
    "class": (trace(dict), (), {"a": 1}, {"a": 1}),
    "callable object": (trace(Caller()), (1,), {}, 2),
    "bound method": (trace("a,b".split), (",",), {}, ["a", "b"]),
    "class method, trace inside": (Agent.inside_class, (2,), {}, 4),
    "class method, trace outside": (Agent.outside_class, (2,), {}, 4),
    "static method, trace inside": (Agent.inside_static, (2,), {}, 3),
    "static method, trace outside": (Agent.outside_static, (2,), {}, 3),
    "self at module level": (trace(module_level), ("a",), {}, "a?"),
    "with options": (trace(name="other")(module_level), ("a",), {}, "a?"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_callable_gives_the_same_value_recorded_and_plain(form: str) -> None:
    fn, args, kwargs, expected = FORMS[form]
    with record() as graph:
        result = fn(*args, **kwargs)
    assert fn(*args, **kwargs) == expected
    assert plain(result) == expected
    assert [node.value for node in graph.nodes] == [expected]


def test_an_async_callable_object_is_an_async_op() -> None:
    fn = trace(AsyncCaller())
    with record() as graph:
        result = asyncio.run(fn(1))
    assert (plain(result), asyncio.run(fn(1)), named(graph)) == (2, 2, ["AsyncCaller_1"])


def test_an_op_looks_like_its_function() -> None:
    assert (ident.__name__, ident.__module__, inspect.signature(ident).parameters.keys()) == ("ident", __name__, {"x"})
    op = op_of(ident)
    assert (op.name, op.doc, op.parameters, op.signature) == ("ident", "Give it back.", ("x",), "(x: Any) -> Any")
    assert op.source.startswith(__file__)
    assert pickle.loads(pickle.dumps(ident)) is ident


def test_op_of_an_undecorated_function_says_what_to_do() -> None:
    with pytest.raises(TraceError, match="decorate it with @trace"):
        op_of(len)


def test_node_of_a_plain_value_says_what_to_do() -> None:
    with pytest.raises(TraceError, match="plain value 3"):
        node_of(3)


def test_node_of_a_generators_stream_is_the_node_of_its_list() -> None:
    with record():
        assert node_of(trace(lambda n: iter_up(n))(2)).value == [0, 1]


def iter_up(n: int) -> Any:
    yield from range(n)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TraceError, match="cannot be called"):
        trace(3)


def test_tracing_twice_is_tracing_once() -> None:
    assert trace(ident) is ident


def test_self_is_no_input_and_defaults_are_bound() -> None:
    with record() as graph:
        Agent().act(1)
        upper("a", z="b")
    assert [node.arguments for node in graph.nodes] == [
        {"x": 1},
        {"text": "a", "mark": "!", "more": (), "loud": True, "rest": {"z": "b"}},
    ]


def test_a_function_argument_called_self_is_an_input() -> None:
    with record() as graph:
        trace(module_level)("a")
    assert graph.nodes[0].arguments == {"self": "a"}


@pytest.mark.parametrize("name", ["class", "None", "µ", "a b", "_t_f", "", "\x00", "\ud800", "x" * 1000])
def test_an_op_may_have_any_name(name: str) -> None:
    with record() as graph:
        trace(name=name)(lambda _t: _t)(1)
    assert graph.nodes[0].op.name == (name or "function")


def test_mutable_defaults_stay_the_functions_own() -> None:
    def collect(x: int, seen: list[int] = []) -> int:
        seen.append(x)
        return len(seen)

    op = trace(collect)
    with record():
        op(1)
        assert op(2) == 2
    assert collect.__defaults__ == ([1, 2],)


def test_the_wrappers_source_is_in_tracebacks() -> None:
    try:
        trace(lambda x: 1 / x)(0)
    except ZeroDivisionError:
        text = traceback.format_exc()
    assert "<trace function>" in text
    assert "return _t_fn(x)" in text


def test_a_parameter_read_in_a_body_is_an_input_of_the_op() -> None:
    style = Parameter("brief", name="style")

    @trace
    def ask(q: str) -> str:
        return style.value + q

    with record() as graph:
        out = ask("?")
    assert graph.parents(node_of(out)) == [(graph["style"], "read", "read")]


def test_a_parameter_read_in_the_workflow_is_a_recorded_result() -> None:
    style = Parameter("brief", name="style")
    with record() as graph:
        out = ident(style.value)
    assert graph.parents(node_of(out)) == [(graph["style"], "argument", "x")]
    assert style.value == "brief"
    assert type(style.value) is str


@pytest.mark.parametrize("inline", [False, True])
def test_a_parameter_may_be_passed_itself_or_be_a_default(inline: bool) -> None:
    style = Parameter("brief", name="style")

    @trace(inline=inline)
    def join(q: str, style: Any = style, *more: Any) -> Any:
        return q + style + "".join(map(ident, more)) if not inline else q + style

    assert join("?") == join("?", style) == "?brief"
    with record() as graph:
        out = join("?", style)
        default = join("?")
    assert (plain(out), plain(default)) == ("?brief", "?brief")
    assert graph.parents(node_of(out))[0][:2] == (graph["style"], "argument")


def test_a_parameter_is_unwrapped_before_anything_was_recorded_in_the_process() -> None:
    code = (
        "from trace_opt.core.parameter import Parameter; from trace_opt.core.tracer import trace\n"
        "p = Parameter('a', name='p'); print(trace(lambda x: x + 'b')(p))"
    )
    import subprocess
    import sys

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "ab\n"


def test_a_nested_op_gives_its_plain_value_and_is_a_child() -> None:
    @trace
    def outer(q: str) -> str:
        inner = ident(q)
        assert type(inner) is str
        return inner + "."

    with record() as graph:
        out = outer("a")
    (child,) = node_of(out).children
    assert (child.op.name, child.value, child.arguments) == ("ident", "a", {"x": "a"})
    assert named(graph) == ["outer_1"]


def test_reads_of_a_nested_op_count_for_the_outer_one_too() -> None:
    style = Parameter("brief", name="style")
    read = trace(lambda: style.value)
    with record() as graph:
        out = trace(lambda: read())()
    assert node_of(out).reads == (graph["style"],)
    assert node_of(out).children[0].reads == (graph["style"],)


def test_inline_records_the_inner_calls_in_place_under_its_name() -> None:
    @trace(inline=True)
    def plan(q: str) -> str:
        return upper(ident(q) + "b")

    with record() as graph:
        out = plan("a")
    assert named(graph) == ["plan/ident_1", "plan/add_1", "plan/upper_1"]
    assert plain(out) == plan("a") == "AB!"


def test_inline_async_ops_keep_their_scope_across_tasks() -> None:
    @trace(inline=True)
    async def plan(q: str) -> Any:
        a, b = await asyncio.gather(aident(q), aident(q + "b"))
        return a + b

    with record() as graph:
        out = asyncio.run(plan("a"))
        ident(1)
    assert named(graph) == ["plan/aident_1", "plan/aident_2", "plan/add_1", "ident_1"]
    assert plain(out) == "aab"


@trace
async def aident(x: Any) -> Any:
    await asyncio.sleep(0)
    return x


def test_an_op_that_returns_a_coroutine_is_told_to_be_async() -> None:
    with pytest.raises(TraceError, match="async def"), record():
        trace(lambda x: aident(x))(1)


def test_generators_are_drained_when_iterated_and_recorded_as_a_list() -> None:
    @trace
    def count(n: int) -> Any:
        yield from range(n)

    def workflow() -> int:
        total = 0
        for x in count(3):
            total = total + x
        return total

    with record() as graph:
        out = workflow()
    assert plain(out) == workflow() == 3
    assert graph["count_1"].value == [0, 1, 2]
    assert (graph["count_1"], "argument", "a") in graph.parents(graph["getitem_1"])


def test_async_generators_are_recorded_as_a_list() -> None:
    @trace
    async def count(n: int) -> Any:
        for i in range(n):
            yield i

    async def workflow() -> list[Any]:
        return [x async for x in count(3)]

    with record() as graph:
        out = asyncio.run(workflow())
    assert plain(out) == asyncio.run(workflow()) == [0, 1, 2]
    assert graph["count_1"].value == [0, 1, 2]


def test_a_generator_passed_to_an_op_goes_in_as_its_list() -> None:
    count = trace(iter_up)
    with record() as graph:
        out = trace(sum)(count(4))
    assert plain(out) == 6
    assert graph.parents(node_of(out)) == [(graph["iter_up_1"], "argument", "iterable")]


def test_a_generator_first_met_in_a_body_leaves_recording_as_it_was() -> None:
    count = trace(iter_up)
    with record() as graph:
        items = count(3)
        out = trace(lambda: sum(items))()
        ident(out)
    assert named(graph) == ["function_1", "ident_1"]
    assert node_of(out).children[0].value == [0, 1, 2]


def test_a_generator_iterated_after_the_recording_is_a_plain_one() -> None:
    with record() as graph:
        items = trace(iter_up)(3)
    assert list(items) == [0, 1, 2]
    assert named(graph) == []


def test_a_generator_with_more_than_max_items_is_refused() -> None:
    count = trace(max_items=5)(iter_up)
    with pytest.raises(TraceError, match="max_items"), record():
        list(count(6))
    with record():
        assert len(list(count(5))) == 5
    assert len(list(count(6))) == 6


def test_an_endless_generator_returned_by_a_function_is_refused() -> None:
    import itertools

    with pytest.raises(TraceError, match="max_items"), record():
        trace(lambda: (i for i in itertools.count()))()


def test_no_trace_switches_off_and_nests() -> None:
    p = Parameter("a", name="p")
    with record(values={"p": "b"}) as graph:
        with no_trace():
            with no_trace():
                ident(1)
            assert ident(p.value) == "b"
            assert type(ident(1)) is int
        ident(2)
    assert [node.value for node in graph.nodes] == [2]


def test_under_no_trace_a_result_counts_as_its_plain_value() -> None:
    with record() as graph:
        a = ident("x")
        with no_trace():
            assert f"{a}" == "x"
            assert type(ident(a)) is str
    assert named(graph) == ["ident_1"]


def test_a_recording_within_a_recording_is_independent() -> None:
    with record(seed=1) as outer:
        a = ident("a")
        with record(seed=2) as inner:
            b = ident(a)
            assert rollout().seed == 2
        c = ident(plain(b))
        assert rollout().seed == 1
    assert named(outer) == ["ident_1", "ident_2"]
    assert inner.nodes[0].arguments == {"x": "a"}
    assert graph_parents(outer, c) == []


def graph_parents(graph: Any, result: Any) -> list[str]:
    return [graph.names[parent] for parent, _, _ in graph.parents(node_of(result))]


def test_a_result_of_a_closed_recording_counts_as_its_plain_value_in_a_new_one() -> None:
    with record():
        old = ident([1, 2])
    with record() as graph:
        out = ident({"a": old})
        assert plain(old) == [1, 2]
        assert [x for x in old] == [1, 2]
    assert graph.nodes[0].value == {"a": [1, 2]}
    assert len(graph) == 1
    assert plain(out) == {"a": [1, 2]}


def test_one_record_object_may_be_entered_again() -> None:
    recording = record(seed=3)
    draws: list[float] = []
    for _ in range(2):
        with recording:
            draws.append(rollout().rng.random())
    assert draws[0] == draws[1]


def test_values_in_force_are_read_first_and_nothing_is_written() -> None:
    p = Parameter("mine", name="p")
    with record(values={"p": "candidate"}, seed=7) as graph:
        seen = plain(p.value)
    assert (seen, p.value, p.initial, graph.values, graph.seed) == ("candidate", "mine", "mine", {"p": "candidate"}, 7)


def test_in_force_gives_values_unrecorded() -> None:
    p = Parameter("mine", name="p")
    with record() as graph:
        with in_force({"p": "other"}, seed=4) as state:
            assert (p.value, rollout().seed, rollout() is state) == ("other", 4, True)
            assert type(ident(p.value)) is str
        assert plain(p.value) == "mine"
    assert "ident_1" not in named(graph)


def test_outside_a_rollout_there_is_no_seed() -> None:
    assert rollout().seed is None
    assert 0 <= rollout().rng.random() < 1


def test_a_parameter_made_inside_a_recording_is_refused() -> None:
    with pytest.raises(TraceError, match="outside the workflow"), record():
        Parameter("a", name="p")


# -- errors ------------------------------------------------------------------------------------------------------------


@trace
def fail(error: BaseException) -> None:
    raise error


def test_a_failing_op_reraises_the_users_exception_unchanged() -> None:
    error = KeyError("k")
    with record() as graph:
        with pytest.raises(KeyError) as caught:
            fail(error)
        assert caught.value is error
    node = graph["fail_1"]
    assert (node.kind, node.value.type, node.value.message) == ("error", "KeyError", "'k'")
    assert "raise error" in node.value.traceback


def test_a_workflows_own_except_takes_the_same_path() -> None:
    def workflow() -> Any:
        try:
            fail(ValueError("no"))
        except ValueError:
            return ident("caught")

    with record() as graph:
        out = workflow()
    assert plain(out) == workflow() == "caught"
    assert graph_parents(graph, out) == ["raised_1"]
    assert graph.parents(graph["raised_1"])[0][0] is graph["fail_1"]


def test_an_exception_that_leaves_becomes_an_op_error() -> None:
    error = ValueError("no")
    with pytest.raises(OpError, match=r"ValueError: no \(in 'fail'\)") as caught, record() as graph:
        fail(error)
    assert (caught.value.node, caught.value.graph, caught.value.__cause__) == (graph["fail_1"], graph, error)


def test_an_exception_raised_between_ops_is_tied_to_every_leaf() -> None:
    with pytest.raises(OpError) as caught, record() as graph:
        ident(1)
        ident(2)
        raise RuntimeError("late")
    node = caught.value.node
    assert node.kind == "error"
    assert [graph.names[parent] for parent, _, _ in graph.parents(node)] == ["ident_1", "ident_2"]


def test_an_exception_raised_from_another_is_the_one_that_leaves() -> None:
    with pytest.raises(OpError) as caught, record() as graph:
        try:
            fail(ValueError("inner"))
        except ValueError as error:
            raise LookupError("outer") from error
    assert caught.value.node.value.type == "LookupError"
    assert "raised_1" in [graph.names[parent] for parent, _, _ in graph.parents(caught.value.node)]


def test_an_exception_of_an_earlier_recording_gets_a_node_of_this_one() -> None:
    error = ValueError("again")
    for _ in range(2):
        with pytest.raises(OpError) as caught, record() as graph:
            raise error
        assert graph.holds(caught.value.node)


class Hostile(Exception):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __setattr__(self, name: str, value: Any) -> None:
        raise RuntimeError("no attributes")


@pytest.mark.parametrize(
    "error", [Hostile(), ValueError(), StopIteration(), ValueError("\ud800"), ExceptionGroup("g", [ValueError()])]
)
def test_hostile_and_empty_exceptions_leave_as_op_errors(error: Exception) -> None:
    with pytest.raises(OpError) as caught, record() as graph:
        fail(error)
    assert caught.value.node is graph["fail_1"]
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [TraceError("t"), BudgetError("b"), LLMError("key", kind="key"), LLMError("quota", kind="quota")]
)
@pytest.mark.parametrize("nested", [False, True])
def test_what_no_candidate_is_to_blame_for_leaves_unchanged_even_if_swallowed(error: Exception, nested: bool) -> None:
    def careless(error: Exception) -> None:
        try:
            fail(error)
        except Exception:
            pass

    with pytest.raises(type(error)) as caught, record() as graph:
        (trace(careless) if nested else careless)(error)
        ident(1)
    assert caught.value is error
    assert not [node for node in graph.nodes if node.kind == "error"]


def test_a_passing_llm_error_is_the_candidates_failure() -> None:
    with pytest.raises(OpError), record():
        fail(LLMError("slow", kind="timeout"))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
def test_interrupts_pass_untouched_and_tracing_is_as_before(kind: type[BaseException]) -> None:
    with pytest.raises(kind), record() as graph:
        fail(kind())
    assert (FRAME.get(), STATE.get(), graph.open, len(graph)) == (None, None, False, 0)


def test_a_cancelled_async_op_passes_untouched() -> None:
    @trace
    async def wait() -> None:
        await asyncio.sleep(9)

    async def workflow() -> str:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return "cancelled"
        return "ended"

    with record() as graph:
        assert asyncio.run(workflow()) == "cancelled"
    assert len(graph) == 0


@pytest.mark.parametrize("where", ["op", "nested", "async", "generator", "inline", "workflow", "take"])
def test_an_exception_anywhere_leaves_tracing_as_it_was(where: str) -> None:
    p, q = Parameter("a", name="same"), Parameter("b", name="same")

    def generate() -> Any:
        yield 1
        raise ValueError("g")

    async def wait() -> None:
        await asyncio.sleep(0)
        raise ValueError("a")

    def workflow() -> None:
        if where == "op":
            fail(ValueError())
        elif where == "nested":
            trace(lambda: fail(ValueError()))()
        elif where == "async":
            asyncio.run(trace(wait)())
        elif where == "generator":
            list(trace(generate)())
        elif where == "inline":
            trace(inline=True)(lambda: fail(ValueError()))()
        elif where == "take":
            ident([p, q])
        raise ValueError

    with pytest.raises((OpError, TraceError)), record() as graph:
        frame = FRAME.get()
        try:
            workflow()
        except ValueError:
            assert FRAME.get() is frame
            assert frame is not None
            assert (frame.inside, frame.scope, frame.borrowed) == (False, None, [])
            assert node_of(ident("still")).value == "still"
            raise
    assert (FRAME.get(), STATE.get(), graph.open) == (None, None, False)


def test_exact_types_fail_with_pythons_error_and_a_note_on_the_remedy() -> None:
    with pytest.raises(OpError) as caught, record():
        "".join([ident("a")])
    assert isinstance(caught.value.__cause__, TypeError)
    assert "trace(json.dumps)(x)" in caught.value.__notes__[0]


def test_the_remedies_for_exact_types_work() -> None:
    with record() as graph:
        out = trace(json.dumps)({"a": ident("x"), "b": [ident("y")]})
        assert json.dumps(plain([ident("z")])) == '["z"]'
    assert plain(out) == '{"a": "x", "b": ["y"]}'
    assert [key for _, _, key in graph.parents(node_of(out))] == ["obj['a']", "obj['b'][0]"]
    assert [node.op.name for node in graph.nodes if node.kind == "decision"] == ["plain"]


def test_plain_is_no_decision_in_a_body_or_after_the_recording() -> None:
    with record() as graph:
        a = ident("x")
        trace(lambda: plain(a))()
        assert plain("no result") == "no result"
    assert plain({"a": [a, (a,)]}) == {"a": ["x", ("x",)]}
    assert [node.kind for node in graph.nodes] == ["op", "op"]


def test_carry_takes_the_recording_into_a_pool() -> None:
    def workflow() -> list[Any]:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(carry(upper), ["a", "b", "c"]))

    with record() as graph:
        out = workflow()
    assert plain(out) == workflow() == ["A!", "B!", "C!"]
    assert named(graph) == ["upper_1", "upper_2", "upper_3"]


def test_an_uncarried_result_in_a_thread_names_carry() -> None:
    with pytest.raises(TraceError, match="carry"), record(), ThreadPoolExecutor(1) as pool:
        pool.submit(upper, ident("a")).result()


def test_a_carried_function_that_runs_late_runs_plain() -> None:
    with record() as graph:
        late = carry(ident)
        kept = ident("a")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(late, kept).result() == "a"
    assert len(graph) == 1


def test_carry_outside_a_recording_is_the_function() -> None:
    assert carry(ident) is ident


def test_a_task_that_outlives_the_recording_runs_plain() -> None:
    p = Parameter("own", name="p")

    async def late(gate: asyncio.Event) -> Any:
        ident(0)
        await gate.wait()
        return [ident(1), ident(p.value), await aident(2), list(trace(iter_up)(2))]

    async def main() -> tuple[Any, Any]:
        gate = asyncio.Event()
        with record() as graph:
            task = asyncio.create_task(late(gate))
            await asyncio.sleep(0)
        gate.set()
        return await task, graph

    out, graph = asyncio.run(main())
    assert out == [1, "own", 2, [0, 1]]
    assert type(out[0]) is int
    assert named(graph) == ["ident_1"]
