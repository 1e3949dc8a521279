"""A recording as data: names, edges, output nodes, NetworkX, memory."""

# the forms these rules object to are what is tested

import dataclasses
import gc
import tracemalloc
import weakref
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings

from tests.strategies import recordings
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import node_of, record, trace
from trace_opt.errors import TraceError


@trace
def ident(x: Any) -> Any:
    return x


@trace
def join(a: Any, b: Any) -> Any:
    return [a, b]


@dataclasses.dataclass
class Answer:
    text: Any
    score: Any


def edges(graph: Any, node: Any) -> list[tuple[str, str, str]]:
    return [(graph.names[parent], kind, key) for parent, kind, key in graph.parents(node)]


def test_nodes_are_named_by_op_in_order_and_found_by_name() -> None:
    p = Parameter("a", name="ask_1")
    with record() as graph:
        ident(p.value)
        trace(name="ask")(lambda: 1)()
    assert list(graph.names.values()) == ["ask_1", "ident_1", "ask_2"]
    assert graph["ask_2"].value == 1
    with pytest.raises(KeyError):
        _ = graph["nothing"]


def test_both_edges_of_one_value_passed_twice_are_kept() -> None:
    p = Parameter(2, name="p")
    with record() as graph:
        value = p.value
        out = join(value, value)
    assert edges(graph, node_of(out)) == [("p", "argument", "a"), ("p", "argument", "b")]
    assert sorted(graph.networkx["p"]["join_1"]) == ["a", "b"]


def test_edges_are_keyed_by_where_the_value_went_in() -> None:
    with record() as graph:
        x = ident(1)
        out = trace(lambda d, *args, **kw: 0)({"x": [x]}, (x,), k=Answer(x, 1), m={"z": {x}})
    # the set asked for a hash, which is a decision
    assert [key for _, _, key in edges(graph, node_of(out))] == [
        "d['x'][0]",
        "args[0][0]",
        "kw['k'].text",
        "kw['m']['z'][0]",
        "control",
    ]


def test_arguments_show_containers_with_nodes_in_place() -> None:
    with record() as graph:
        x = ident(1)
        join([x, 2], {"k": x})
    node = graph["join_1"]
    assert node.arguments == {"a": [node_of(x), 2], "b": {"k": node_of(x)}}


def test_inputs_that_are_lists_dicts_or_sets_are_kept_as_they_were() -> None:
    given_list, given_dict, given_set = [1], {"a": 1}, {1}
    with record() as graph:
        for value in (given_list, given_dict, given_set):
            ident(value)
        given_list.append(2)
        given_dict["b"] = 2
        given_set.add(2)
    assert [node.inputs[0] for node in graph.nodes] == [[1], {"a": 1}, {1}]


@settings(max_examples=40, deadline=None)
@given(recordings())
def test_every_recording_keeps_the_invariants(made: Any) -> None:
    graph, _ = made
    place = {node: i for i, node in enumerate(graph.nodes)}
    assert len(place) == len(set(graph.names.values())) == len(graph)
    for node, i in place.items():
        assert node.index == i
        assert all(place[parent] < i for parent, _, _ in graph.parents(node))
        assert set(node.arguments) == set(node.op.parameters)


@settings(max_examples=40, deadline=None)
@given(recordings())
def test_networkx_shows_the_same_nodes_and_edges(made: Any) -> None:
    graph, _ = made
    shown = graph.networkx
    assert list(shown.nodes) == list(graph.names.values())
    expected = {
        (graph.names[p], name, key, kind) for node, name in graph.names.items() for p, kind, key in graph.parents(node)
    }
    assert {(u, v, key, data["kind"]) for u, v, key, data in shown.edges(keys=True, data=True)} == expected
    assert nx.is_directed_acyclic_graph(shown)
    assert all(
        shown.nodes[name] == {"kind": n.kind, "op": n.op.name, "value": n.value} for n, name in graph.names.items()
    )


def test_networkx_is_frozen_and_cached() -> None:
    with record() as graph:
        ident(1)
    assert graph.networkx is graph.networkx
    with pytest.raises(nx.NetworkXError):
        graph.networkx.add_node("x")


# -- output ------------------------------------------------------------------------------------------------------------


def test_the_output_of_a_result_is_its_own_node() -> None:
    with record() as graph:
        out = ident(1)
    assert graph.output(out) is node_of(out)


def test_a_result_that_later_decisions_led_to_gets_an_output_node_tied_to_them() -> None:
    with record() as graph:
        out = ident(1)
        if ident(2):
            chosen = out
    node = graph.output(chosen)
    assert edges(graph, node) == [("ident_1", "argument", "value"), ("bool_1", "control", "control")]
    assert graph.output(chosen) is node


@pytest.mark.parametrize(
    "wrap", [lambda x, y: [x, {"k": y}], lambda x, y: Answer(x, y), lambda x, y: (x, y)], ids=range(3)
)
def test_a_container_of_results_becomes_one_output_node(wrap: Any) -> None:
    with record() as graph:
        out = wrap(ident(1), ident(2))
    node = graph.output(out)
    assert node.kind == "output"
    assert node.value == wrap(1, 2)
    assert [name for name, kind, _ in edges(graph, node) if kind == "argument"] == ["ident_1", "ident_2"]


def test_a_plain_output_is_tied_to_every_leaf_and_says_so() -> None:
    with record() as graph:
        ident(ident(1))
        ident(3)
    node = graph.output("plain")
    assert [name for name, _, _ in edges(graph, node)] == ["ident_2", "ident_3"]
    assert graph.loose_ends(node) == ("ident_2", "ident_3")
    assert graph.loose_ends(graph["ident_1"]) == ()


def test_a_parameter_returned_by_the_workflow_is_an_output() -> None:
    p, q = Parameter("a", name="p"), Parameter("b", name="q")
    with record() as graph:
        out, _ = p.value, q.value
    assert set(propagate(graph, graph.output(out), Feedback(1.0))) == {"p"}
    assert list(graph.parameters) == ["p", "q"]


def test_a_parameter_itself_is_an_output_too() -> None:
    p = Parameter("a", name="p")
    with record() as graph:
        pass
    node = graph.output([p])
    assert node.value == ["a"]
    assert set(propagate(graph, node, Feedback(1.0))) == {"p"}


def test_an_output_with_another_recordings_result_is_refused() -> None:
    with record():
        other = ident(1)
    with record() as graph:
        ident(2)
    with pytest.raises(TraceError, match="another recording"):
        graph.output([other])


def test_an_output_asked_for_while_recording_goes_on_disturbs_nothing() -> None:
    with record() as graph:
        first = ident(1)
        early = graph.output([first])
        assert list(graph.names.values()) == ["ident_1", "output_1"]
        second = ident(first)
        assert list(graph.names.values()) == ["ident_1", "ident_2", "output_1"]
    late = graph.output([second])
    assert [graph.names[node] for node in (early, late)] == ["output_1", "output_2"]
    assert len(graph) == 4


def test_an_empty_recording_has_an_output() -> None:
    with record() as graph:
        pass
    assert graph.output(None).kind == "output"
    assert propagate(graph, graph.output(None), Feedback(1.0)) == {}


def test_two_parameters_of_one_name_are_refused() -> None:
    p, q = Parameter(1, name="same"), Parameter(2, name="same")
    with pytest.raises(TraceError, match="'same'"), record():
        ident(p.value)
        ident(q.value)


# -- memory ------------------------------------------------------------------------------------------------------------


def build() -> Any:
    p = Parameter("a", name="p")

    @trace
    def fail(x: Any) -> None:
        raise ValueError(x)

    with record() as graph:
        x = p.value
        memory = [x]
        for _ in range(20):
            x = ident(x) + "b"
            bool(x)
        try:
            fail([x])
        except ValueError:
            ident(memory)
        list(trace(lambda: (i for i in range(3)))())
    return graph, graph.output([x])


def test_a_dropped_graph_is_freed_without_the_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        graph, output = build()
        slices = propagate(graph, output, Feedback(1.0))
        assert slices["p"].path
        assert len(graph.to_text()) > 9
        gone = weakref.ref(graph)
        del graph, output, slices
        assert gone() is None
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()  # threads of other tests may leave garbage meanwhile, but none of a graph
        assert [kept for kept in gc.garbage if type(kept).__module__.startswith("trace_opt.core")] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_a_node_costs_at_most_250_bytes_and_dropping_gives_the_memory_back() -> None:
    def chain(size: int) -> Any:
        with record() as graph:
            y = ident(1.5)
            for i in range(size):
                y = join2(y, float(i))
        return graph

    join2 = trace(lambda y, x: y + x)
    chain(10)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        graph = chain(20_000)
        per_node = (tracemalloc.get_traced_memory()[0] - before) / 20_000
        del graph
        gc.collect()
        left = (tracemalloc.get_traced_memory()[0] - before) / 20_000
    finally:
        tracemalloc.stop()
    assert per_node <= 250
    assert left < 2
