"""Arguments taken apart: bodies see plain values, containers keep their nodes, what would be lost is refused."""

# the forms these rules object to are what is tested

import asyncio
import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import node_of, plain, record, trace
from trace_opt.errors import TraceError


@trace
def ident(x: Any) -> Any:
    return x


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Any
    b: Any = dataclasses.field(default=0, init=False)

    def __post_init__(self) -> None:
        if type(self.a) not in (int, str) and not isinstance(self.a, int):
            raise ValueError("post init saw", type(self.a))


Pair = namedtuple("Pair", "a b")


def kinds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: kinds(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [kinds(item) for item in value]
    if dataclasses.is_dataclass(value):
        return [kinds(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return type(value)


CONTAINERS: dict[str, Any] = {
    "list": lambda x: [x, 1],
    "tuple": lambda x: (x,),
    "dict": lambda x: {"a": x},
    "set": lambda x: {x},
    "frozenset": lambda x: frozenset({x}),
    "data class": lambda x: Frozen(x),
    "named tuple": lambda x: Pair(x, 1),
    "nested": lambda x: {"a": [({"b": Pair(x, (x,))}, 2)]},
    "deep": lambda x: [[[[[[[[x]]]]]]]],
}


@pytest.mark.parametrize("where", ["sync", "async", "nested"])
@pytest.mark.parametrize("case", CONTAINERS)
def test_results_within_containers_reach_a_body_plain(case: str, where: str) -> None:
    def look(given: Any) -> Any:
        assert kinds(given) == kinds(CONTAINERS[case](3))
        assert given == CONTAINERS[case](3)
        return given

    async def alook(given: Any) -> Any:
        await asyncio.sleep(0)
        return look(given)

    with record() as graph:
        x = ident(3)
        if where == "sync":
            out = trace(look)(CONTAINERS[case](x))
        elif where == "async":
            out = asyncio.run(trace(alook)(CONTAINERS[case](x)))
        else:
            out = trace(lambda: trace(look)(CONTAINERS[case](x)))()
    assert plain(out) == CONTAINERS[case](3)
    assert node_of(x) in [parent for parent, _, _ in graph.parents(node_of(out))]


def test_a_container_without_results_is_the_callers_own_object() -> None:
    given = [1, {"a": (2,)}]
    with record():
        out = trace(lambda x: [x])(given)
        trace(lambda x: x.append(3))(given)
    assert plain(out)[0] is given
    assert given[-1] == 3


@pytest.mark.parametrize("kind", [OrderedDict, np.array, lambda x: iter([x])], ids=range(3))
def test_other_classes_go_in_by_reference(kind: Any) -> None:
    given = kind([("a", 1)])
    seen: list[Any] = []
    with record():
        trace(lambda x: seen.append(x))(given)
    assert seen[0] is given


CHANGES: dict[str, tuple[Any, Any]] = {
    "append": (lambda x: [x], lambda given: given.append(1)),
    "replace": (lambda x: [x], lambda given: given.__setitem__(0, 9)),
    "clear": (lambda x: {"a": x}, lambda given: given.clear()),
    "new key": (lambda x: {"a": x}, lambda given: given.update(b=1)),
    "add": (lambda x: {x}, lambda given: given.add(9)),
}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("case", CHANGES)
def test_a_body_that_changes_a_copy_that_held_results_is_refused(case: str, is_async: bool) -> None:
    make, change = CHANGES[case]

    async def achange(given: Any) -> None:
        await asyncio.sleep(0)
        change(given)

    with pytest.raises(TraceError, match="changed an argument in place"), record():
        if is_async:
            asyncio.run(trace(achange)(make(ident(3))))
        else:
            trace(lambda given: change(given))(make(ident(3)))


def test_a_container_in_itself_is_taken_as_it_is() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    with record():
        out = trace(lambda x: x[1][1][0])(loop)
    assert plain(out) == 1


def test_a_body_may_return_results_it_met() -> None:
    with record() as graph:
        memory = [ident("a")]
        out = trace(lambda: {"all": memory})()
    assert node_of(out).value == {"all": ["a"]}
    assert type(node_of(out).value["all"][0]) is str
    assert graph.parents(node_of(out)) == [(graph["ident_1"], "read", "read")]


def test_a_parameter_within_a_container_is_an_input() -> None:
    p = Parameter("a", name="p")
    with record() as graph:
        out = trace(lambda d: d["k"] + "b")({"k": p})
    assert plain(out) == "ab"
    assert [(key, kind) for _, kind, key in graph.parents(node_of(out))] == [("d['k']", "argument")]


def test_reads_are_logged_once_and_in_order() -> None:
    p, q = Parameter("a", name="p"), Parameter("b", name="q")
    with record() as graph:
        out = trace(lambda: q.value + p.value + q.value)()
    assert node_of(out).reads == (graph["q"], graph["p"])


def test_the_time_of_a_call_is_kept() -> None:
    import time

    with record():
        out = trace(lambda: time.sleep(0.02) or 1)()
    assert 0.015 < node_of(out).seconds < 15


_given = st.recursive(
    st.one_of(st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner), st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(_given, st.data())
def test_whatever_is_wrapped_where_the_body_sees_the_plain_value(value: Any, data: Any) -> None:
    def wrap(item: Any) -> Any:
        if data.draw(st.booleans()):
            return ident(item)
        if isinstance(item, dict):
            return {key: wrap(inner) for key, inner in item.items()}
        return type(item)(map(wrap, item)) if isinstance(item, (list, tuple)) else item

    seen: list[Any] = []
    with record() as graph:
        out = trace(lambda given: seen.append(given) or given)(wrap(value))
    assert (repr(seen[0]), repr(plain(out))) == (repr(value), repr(value))
    assert kinds(seen[0]) == kinds(value)
    assert len(graph.parents(node_of(out))) == len([n for n in graph.nodes if n.op.name == "ident"])


def test_an_op_outside_a_recording_unwraps_results_too() -> None:
    with record():
        x = ident("a")
    seen: list[Any] = []
    assert trace(lambda d: seen.append(d) or d)({"k": [x]}) == {"k": ["a"]}
    assert type(seen[0]["k"][0]) is str
