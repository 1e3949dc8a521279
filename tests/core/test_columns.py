"""A graph through JSON, pickle and copies."""

# ruff: noqa: TID251, SIM105 # the forms these rules object to are what is tested

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import recordings
from trace_opt.core.feedback import Feedback
from trace_opt.core.graph import Graph
from trace_opt.core.parameter import Parameter
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import node_of, plain, record, trace
from trace_opt.errors import TraceError


@trace
def ident(x: Any) -> Any:
    return x


def same(left: Graph, right: Graph) -> bool:
    return shape(left) == shape(right) and left.same_as(right)


def shape(graph: Graph) -> list[Any]:
    return [
        (name, node.kind, [(graph.names[p], kind, key) for p, kind, key in graph.parents(node)])
        for node, name in graph.names.items()
    ]


@settings(max_examples=50, deadline=None)
@given(recordings())
def test_json_round_trips(made: Any) -> None:
    graph, _ = made
    text = graph.to_json()
    text.encode()
    assert same(Graph.from_json(text), graph)


@settings(max_examples=50, deadline=None)
@given(recordings())
def test_pickle_round_trips(made: Any) -> None:
    graph, _ = made
    assert same(pickle.loads(pickle.dumps(graph)), graph)


@settings(max_examples=50, deadline=None)
@given(recordings())
def test_deepcopy_is_equal_and_apart(made: Any) -> None:
    graph, _ = made
    made_copy = copy.deepcopy(graph)
    assert same(made_copy, graph)
    assert not set(made_copy.nodes) & set(graph.nodes)


@settings(max_examples=30, deadline=None)
@given(recordings())
def test_a_lone_node_takes_its_ancestors_along(made: Any) -> None:
    graph, out = made
    node = graph.output(out)
    again = pickle.loads(pickle.dumps(node))
    assert (again.kind, again.op.name, repr(again.value)) == (node.kind, node.op.name, repr(node.value))
    assert [(p.op.name, kind, key) for p, kind, key in again.parents()] == [
        (p.op.name, kind, key) for p, kind, key in node.parents()
    ]


@settings(max_examples=30, deadline=None)
@given(recordings())
def test_slices_of_a_loaded_graph_are_the_same(made: Any) -> None:
    graph, out = made
    output = graph.output(out)
    loaded = Graph.from_json(graph.to_json())
    mine, its = (propagate(g, n, Feedback(1.0)) for g, n in ((graph, output), (loaded, loaded.nodes[output.index])))
    assert [(name, [n.index for n in piece.path]) for name, piece in mine.items()] == [
        (name, [n.index for n in piece.path]) for name, piece in its.items()
    ]


def test_seed_values_errors_and_children_survive() -> None:
    @trace
    def fail() -> None:
        ident(1)
        raise ValueError("no")

    with record(values={"p": 1}, seed=5) as graph:
        try:
            fail()
        except ValueError:
            pass
    for made in (Graph.from_json(graph.to_json()), pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph)):
        assert (made.seed, made.values, made.open) == (5, {"p": 1}, False)
        node = made["fail_1"]
        assert (node.kind, str(node.value), "raise ValueError" in node.value.traceback) == (
            "error",
            "ValueError: no",
            True,
        )
        assert [child.value for child in node.children] == [1]


def test_the_output_chosen_after_loading_is_steered_as_before() -> None:
    with record() as graph:
        bool(ident(1))
    loaded = Graph.from_json(graph.to_json())
    assert loaded.output("x").control is loaded["bool_1"]


def test_a_deepcopy_copies_values_and_keeps_parameters_and_ops() -> None:
    p = Parameter([1], name="p", type=list[int])
    with record() as graph:
        out = ident(p.value)
    made = copy.deepcopy(graph)
    assert made["p"].value == [1]
    assert made["p"].value is not graph["p"].value
    assert propagate(made, made["ident_1"], Feedback(1.0))["p"].parameter is p
    assert made["ident_1"].op is node_of(out).op


def test_values_that_are_no_json_are_described() -> None:
    with record() as graph:
        ident(len)
    loaded = Graph.from_json(graph.to_json())
    assert repr(loaded["ident_1"].value) == "<built-in function len>"


def test_a_loaded_op_holds_no_code() -> None:
    with record() as graph:
        ident(1)
    with pytest.raises(TraceError, match="holds no code"):
        Graph.from_json(graph.to_json())["ident_1"].op.fn(1)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "3", '{"format": "x"}', "[" * 5000])
def test_text_that_is_no_graph_is_refused(text: str) -> None:
    with pytest.raises(TraceError, match="no graph"):
        Graph.from_json(text)


def test_a_graph_of_a_newer_version_is_refused() -> None:
    with pytest.raises(TraceError, match="upgrade"):
        Graph.from_json('{"format": 99}')


def _damaged(data: Any, draw: Any) -> Any:
    """The same JSON with one place replaced."""
    if isinstance(data, dict) and data and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(data)))
        return {**data, key: _damaged(data[key], draw)}
    if isinstance(data, list) and data and draw(st.integers(0, 9)):
        i = draw(st.integers(0, len(data) - 1))
        return [*data[:i], _damaged(data[i], draw), *data[i + 1 :]]
    return draw(st.sampled_from([None, 99, -1, "x", [], {}, [1], {"$": "int", "v": "z"}, {"$": "tensor"}, 1.5]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_graph_is_refused_or_loads(data: Any) -> None:
    p = Parameter("a", name="p")
    with record() as graph:
        x = ident([p.value, {"k": 1}])
        bool(x)
        trace(lambda: ident(x))()
    damaged = _damaged(json.loads(graph.to_json()), data.draw)
    try:
        loaded = Graph.from_json(json.dumps(damaged))
    except TraceError:
        return
    assert isinstance(loaded, Graph)


def test_a_chain_of_100000_op_calls_records_propagates_and_goes_through_everything() -> None:
    step = trace(lambda y, x: y + x)
    p = Parameter(0.0, name="p")
    with record() as graph:
        y: Any = p.value
        for _ in range(100_000):
            y = step(y, 1.0)
    assert plain(y) == 100_000
    assert len(propagate(graph, graph.output(y), Feedback(1.0))["p"].path) == 100_001
    for made in (pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph), Graph.from_json(graph.to_json())):
        assert made.nodes[-1].value == 100_000
        assert len(made) == 100_001
    assert pickle.loads(pickle.dumps(node_of(y))).value == 100_000
    assert copy.deepcopy(node_of(y)).value == 100_000
    assert graph.networkx.number_of_edges() == 100_000
