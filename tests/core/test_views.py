"""A graph for people: text, Mermaid, Graphviz, SVG; well-formed whatever a workflow put into it."""

import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.strategies import recordings, texts
from trace_opt.core.node import Failure
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import record, trace
from trace_opt.core.views import brief


@trace
def ident(x: Any) -> Any:
    return x


def svg(graph: Any) -> str:
    return graph._repr_mimebundle_()["image/svg+xml"]


def hostile(text: str) -> Any:
    p = Parameter(text, name=text or "p", description=text)
    with record() as graph:
        out = trace(name=text or "op")(lambda x: x)({text: p.value})
        bool(out[text])
    return graph


@settings(max_examples=60, deadline=None)
@given(texts)
def test_every_view_is_well_formed_under_hostile_text(text: str) -> None:
    graph = hostile(text)
    ET.fromstring(svg(graph).encode())
    dot = graph.to_dot()
    dot.encode()
    assert all(line.count('"') - line.count('\\"') + line.count('\\\\"') * 0 >= 0 for line in dot.splitlines())
    string = r'"(?:[^"\\\n]|\\.)*"'
    for line in dot.splitlines()[2:-1]:
        assert re.fullmatch(rf"  {string}( -> {string})? \[label={string}(, (shape|style)=\w+)?\];", line), line
    for line in graph.to_mermaid().splitlines()[1:]:
        assert re.fullmatch(
            r'  n\d+(\(\[|\{|\[\[|\[/|\[)"[^"<>`\n]*"(\]\)|\}|\]\]|/\]|\])|  n\d+ -\.?->\|"[^"<>|\n]*"\| n\d+', line
        ), line


@settings(max_examples=30, deadline=None)
@given(recordings())
def test_every_recording_can_be_shown(made: Any) -> None:
    graph, _ = made
    ET.fromstring(svg(graph).encode())
    assert len(graph.to_text().splitlines()) == len(graph)
    assert graph.to_mermaid().count("-->") + graph.to_mermaid().count("-.->") == sum(
        len(graph.parents(n)) for n in graph.nodes
    )
    assert graph.to_dot().count(" -> ") >= graph.to_mermaid().count("-->")


def test_text_reads_like_code() -> None:
    p = Parameter("go", name="p")

    @trace
    def ask(q: str) -> str:
        return p.value + q

    with record() as graph:
        if ask("x") == "gox":
            ident([ask("y")])
    assert graph.to_text().splitlines() == [
        "p: 'go'",
        "ask_1 = ask(q='x')  # reads p: 'gox'",
        "eq_1 = eq(a=ask_1, b='gox'): True",
        "bool_1 = bool(value=eq_1): True",
        "ask_2 = ask(q='y')  # reads p: 'goy'  [after bool_1]",
        "ident_1 = ident(x=[ask_2]): ['goy']  [after bool_1]",
    ]


class Loud:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\nb", "'a\\nb'"),
        ("x" * 100, "'" + "x" * 26 + " ... " + "x" * 26 + "'"),
        (b"x" * 100, "bytes of 100 bytes"),
        (torch.ones(2, 3), "tensor(2, 3) float32"),
        ([{"role": "user", "content": "hello"}], "1 messages of 5 characters"),
        (Failure("ValueError", "no"), "ValueError: no"),
        (Loud(), "(Loud: its repr raised RuntimeError)"),
        (np.ones(2), "array([1., 1.])"),
    ],
    ids=range(8),
)
def test_a_value_on_one_line(value: Any, expected: str) -> None:
    assert brief(value) == expected


def test_message_lists_render_as_type_and_size_everywhere() -> None:
    with record() as graph:
        ident([{"role": "user", "content": "secret " * 50}])
    for view in (graph.to_text(), graph.to_mermaid(), graph.to_dot(), svg(graph)):
        assert "secret" not in view
        assert "350 characters" in view


def test_a_large_graph_is_drawn_in_part_and_says_so() -> None:
    with record() as graph:
        for i in range(500):
            ident(i)
    for view in (graph.to_mermaid(), graph.to_dot(), svg(graph)):
        assert "300 of 500 nodes are left out" in view
    assert len(graph.to_text().splitlines()) == 500


def test_the_notebook_gets_text_too() -> None:
    with record() as graph:
        ident(1)
    assert graph._repr_mimebundle_(include=["image/svg+xml"])["text/plain"] == repr(graph) == "<graph of 1 nodes>"
