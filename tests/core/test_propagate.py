"""Slices: what carried a parameter to an output, in linear time."""

# ruff: noqa: TID251, SIM105 # the forms these rules object to are what is tested

import time
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cpu_time import least
from tests.strategies import recordings
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.propagate import propagate, union
from trace_opt.core.tracer import record, trace
from trace_opt.errors import TraceError

GOOD = Feedback(1.0)


@trace
def ident(x: Any) -> Any:
    return x


@trace
def join(*parts: Any) -> int:
    return len(parts)


def names(graph: Any, nodes: Any) -> list[str]:
    return [graph.names[node] for node in nodes]


def test_a_slice_is_the_path_and_its_direct_inputs() -> None:
    p, q = Parameter("p", name="p"), Parameter("q", name="q")
    with record() as graph:
        side = ident(q.value)
        main = ident(p.value)
        out = join(main, side)
        ident("unrelated")
    slices = propagate(graph, graph.output(out), GOOD)
    assert list(slices) == ["q", "p"]
    assert names(graph, slices["p"].path) == ["p", "ident_2", "join_1"]
    assert names(graph, slices["p"].context) == ["ident_1"]
    assert (slices["p"].parameter, slices["p"].feedback, slices["p"].graph) == (p, GOOD, graph)
    assert slices["p"].output is slices["p"].path[-1]


def test_parameters_with_no_way_to_the_output_are_left_out() -> None:
    p, q = Parameter("p", name="p"), Parameter("q", name="q")
    with record() as graph:
        ident(p.value)
        out = ident(q.value)
    assert list(propagate(graph, graph.output(out), GOOD)) == ["q"]


def test_different_outputs_may_carry_different_feedback() -> None:
    p = Parameter("p", name="p")
    with record() as graph:
        shared = ident(p.value)
        one, two = ident(shared), ident(shared)
    bad = Feedback(0.0, "worse")
    assert propagate(graph, graph.output(one), GOOD)["p"].feedback is GOOD
    assert propagate(graph, graph.output(two), bad)["p"].feedback is bad
    assert names(graph, propagate(graph, graph.output(one), GOOD)["p"].path) == ["p", "ident_1", "ident_2"]


def test_feedback_on_an_error_node() -> None:
    p = Parameter("x", name="p")

    @trace
    def parse(text: str) -> int:
        return int(text)

    with record() as graph:
        try:
            parse(p.value)
        except ValueError:
            pass
    piece = propagate(graph, graph["parse_1"], Feedback(text="traceback"))["p"]
    assert names(graph, piece.path) == ["p", "parse_1"]


def test_an_output_of_another_recording_is_refused() -> None:
    with record():
        pass
    with record() as one:
        a = ident(1)
    with record() as two:
        ident(1)
    with pytest.raises(TraceError, match="another recording"):
        propagate(two, one.output(a), GOOD)


def test_a_loaded_slice_has_no_parameter_but_a_name() -> None:
    import copy
    import pickle

    p = Parameter("p", name="p")
    with record() as graph:
        ident(p.value)
    loaded = pickle.loads(pickle.dumps(copy.copy(graph)))
    piece = propagate(loaded, loaded["ident_1"], GOOD)["p"]
    assert (piece.name, piece.node.value) == ("p", "p")
    with pytest.raises(TraceError, match="loaded"):
        _ = piece.parameter


def test_union_wants_slices_of_one_output() -> None:
    p = Parameter("p", name="p")
    with record() as graph:
        out = ident(p.value)
    one, two = (propagate(graph, graph.output(out), GOOD)["p"] for _ in range(2))
    with pytest.raises(ValueError, match="one output"):
        union([one, two])
    with pytest.raises(ValueError, match="one output"):
        union([])


@settings(max_examples=80, deadline=None)
@given(recordings())
def test_slices_are_descendants_that_are_ancestors_of_the_output(made: Any) -> None:
    graph, out = made
    output = graph.output(out)
    slices = propagate(graph, output, GOOD)
    shown = graph.networkx
    target = graph.names[output]
    before = nx.ancestors(shown, target) | {target}
    reaching = [name for name, node in graph.parameters.items() if name in before]
    assert list(slices) == reaching
    order = list(shown.nodes)
    everything: set[str] = set()
    for name in reaching:
        path = (nx.descendants(shown, name) | {name}) & before
        everything |= path
        assert names(graph, slices[name].path) == sorted(path, key=order.index)
        inputs = {parent for node in path for parent in shown.predecessors(node)} - path
        assert names(graph, slices[name].context) == sorted(inputs, key=order.index)
    if reaching:
        both = union(list(slices.values()))
        assert names(graph, both.path) == sorted(everything, key=order.index)
        assert not set(both.path) & set(both.context)


def chain(size: int) -> Any:
    p = Parameter(1, name="p")
    with record() as graph:
        x: Any = p.value
        for _ in range(size):
            x = ident(x)
    return graph, x, size + 1


def reused(size: int) -> Any:
    p = Parameter(1, name="p")
    with record() as graph:
        x: Any = 0
        for _ in range(size):
            x = join(x, p.value)
    return graph, x, size + 1


def fan_in(size: int) -> Any:
    ps = [Parameter(i, name=f"p{i}") for i in range(10)]
    with record() as graph:
        x = join(*[ident(ps[i % 10].value) for i in range(size - 1)])
    return graph, x, None


def diamond(size: int) -> Any:
    p = Parameter(1, name="p")
    with record() as graph:
        x: Any = p.value
        for _ in range(size // 3):
            x = join(ident(x), ident(x))
    return graph, x, size // 3 * 3 + 1


def decisions(size: int) -> Any:
    p = Parameter(1, name="p")
    with record() as graph:
        x: Any = p.value
        for _ in range(size // 2):
            if x:
                x = ident(1)
    return graph, x, size // 2 * 2 + 1


SHAPES = [chain, reused, fan_in, diamond, decisions]


def seconds(shape: Any, size: int) -> float:
    graph, out, expected = shape(size)
    output = graph.output(out)
    start = time.process_time()
    slices = propagate(graph, output, GOOD)
    both = union(list(slices.values()))
    taken = time.process_time() - start
    assert expected is None or len(both.path) == expected
    return taken


@pytest.mark.parametrize("shape", SHAPES)
def test_100000_op_calls_propagate_in_at_most_0_3_seconds(shape: Any) -> None:
    assert least(lambda: seconds(shape, 100_000), 0.3) <= 0.3


def test_the_slice_of_one_of_many_parameters_is_small() -> None:
    ps = [Parameter(i, name=f"p{i}") for i in range(1000)]
    with record() as graph:
        out = join(*[ident(ps[i % 1000].value) for i in range(20_000)])
    slices = propagate(graph, graph.output(out), GOOD)
    assert len(slices) == 1000
    assert {len(piece.path) for piece in slices.values()} == {22}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40))
def test_a_chain_of_n_calls_is_a_slice_of_n_plus_1(size: int) -> None:
    graph, out, expected = chain(size)
    assert len(propagate(graph, graph.output(out), GOOD)["p"].path) == expected
