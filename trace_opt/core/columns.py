"""A graph as flat columns, for JSON, pickle and copies: ops once, nodes as rows that name each other by number.

Rows instead of nested objects, so the depth of a graph is no limit.
"""

from __future__ import annotations

import copy
import json
import sys
from typing import Any, cast

from trace_opt.core.codec import decode, encode, encode_named
from trace_opt.core.graph import ERROR, OUTPUT_OF_LEAVES, Graph
from trace_opt.core.layout import sorted_by_dependency
from trace_opt.core.node import (
    ATOMIC,
    PARAMETER,
    Child,
    Failure,
    Nested,
    Node,
    Op,
    ParameterNode,
    class_of,
    identity,
    is_a,
    walk,
)
from trace_opt.core.operators import BINARY, COPY, DECISIONS, DEEPCOPY, GETATTR, GETITEM, ITEM, OUTPUT, UNARY
from trace_opt.core.strand import JOIN, NONE, RAISED, Strand
from trace_opt.errors import TraceError

FORMAT = 1
PARAMETER_ROW = -1

_OWN_OPS: dict[tuple[str, tuple[str, ...], str], Op] = {
    (op.name, op.parameters, op.kind): op
    for op in (
        *BINARY.values(), *UNARY.values(), *DECISIONS.values(), GETITEM, GETATTR, ITEM, COPY, DEEPCOPY, OUTPUT,
        OUTPUT_OF_LEAVES, ERROR, JOIN, NONE, RAISED, PARAMETER,
    )
}  # fmt: skip


NODE, CONSTANT, CONTAINER = "n", "c", "x"
"""What an input of a row is, one letter each: a node's number, a constant, or a container with `Ref`s in it."""


class Ref:
    """The number of a node within a container."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def columns_of(graph: Graph) -> dict[str, Any]:
    """The columns of a graph, values as they are."""
    return _data_of(graph, _Columns(graph.layout().order))


def deep_copy(graph: Graph, memo: dict[int, Any]) -> Graph:
    """A copy of a graph whose values are copied too; ops and Parameters are the same."""
    columns = _Columns(graph.layout().order)
    data = _data_of(graph, columns)
    data["nodes"] = [_copied(row, memo) for row in columns.rows]
    data["children"] = [_copied(row, memo) for row in columns.children]
    made = graph_from_columns(data, list(columns.op_numbers))
    for node, copied in zip(graph.layout().order, made.layout().order, strict=True):
        if isinstance(node, ParameterNode) and isinstance(copied, ParameterNode):
            copied.parameter = node.parameter
    memo[id(graph)] = made
    return made


def _copied(row: tuple[Any, ...], memo: dict[int, Any]) -> tuple[Any, ...]:
    head, value, *rest = row
    if type(value) not in ATOMIC:
        value = copy.deepcopy(value, memo)
    if head != PARAMETER_ROW and not ATOMIC.issuperset(map(type, rest[0])):
        rest[0] = copy.deepcopy(rest[0], memo)
    return (head, value, *rest)


def _data_of(graph: Graph, columns: _Columns) -> dict[str, Any]:
    return {
        "format": FORMAT, "seed": graph.seed, "ops": columns.ops, "nodes": columns.rows, "children": columns.children,
        "tip": -1 if graph._tip is None else graph._tip.index, "outputs": len(graph._outputs),
        "values": dict(graph.values),
    }  # fmt: skip


class _Columns:
    """Rows of nodes whose `index` is their place in the list, and of the calls made inside them."""

    def __init__(self, nodes: list[Node[Any]]) -> None:
        self.ops: list[tuple[Any, ...]] = []
        self.children: list[tuple[Any, ...]] = []
        self.op_numbers: dict[Op, int] = {}
        self._waiting: list[Node[Any]] = []
        self._child_numbers: dict[Node[Any], int] = {}
        self.rows = [self._row(node) for node in nodes]
        for child in self._waiting:  # grows meanwhile: an inner call may have inner calls
            self.children.append(self._row(child))

    def _row(self, node: Node[Any]) -> tuple[Any, ...]:
        if is_a(node, ParameterNode):
            parameter = cast("ParameterNode[Any]", node)
            return (PARAMETER_ROW, parameter.value, parameter.name, parameter.description)
        kinds: list[str] = []
        inputs = tuple([self._input(given, kinds) for given in node.inputs])
        trail = (
            tuple([-1 - self._child(n) if class_of(n) is Child else n.index for n in node.trail]) if node.trail else ()
        )
        control = -1 if node.control is None else node.control.index
        # interned, so that pickle writes each pattern once
        return (self._op(node.op), node.value, inputs, sys.intern("".join(kinds)), trail, control, node.seconds)

    def _child(self, child: Node[Any]) -> int:
        number = self._child_numbers.get(child)
        if number is None:
            number = self._child_numbers[child] = len(self._waiting)
            self._waiting.append(child)
        return number

    def _op(self, op: Op) -> int:
        number = self.op_numbers.get(op)
        if number is None:
            number = self.op_numbers[op] = len(self.ops)
            self.ops.append(
                (op.name, op.parameters, op.doc, op.signature, op.symbol, op.kind, tuple(sorted(op.variadic)))
            )
        return number

    def _input(self, given: Any, kinds: list[str]) -> Any:
        kind = class_of(given)
        if kind is Node or kind is ParameterNode:
            kinds.append(NODE)
            return given.index
        if kind is Nested:
            kinds.append(CONTAINER)
            return _refer(given.items)
        kinds.append(CONSTANT)
        return given


def _refer(items: Any) -> Any:
    """A container of nodes with their numbers in place; named tuples and dataclasses become dicts of their fields."""
    if is_a(items, Node):
        return Ref(items.index)
    if is_a(items, dict):
        return {key: _refer(value) for key, value in items.items()}
    if next(walk(items, ""), None) is None:
        return items
    if is_a(items, tuple) and hasattr(items, "_fields"):
        return {name: _refer(value) for name, value in zip(items._fields, items, strict=True)}
    if is_a(items, (list, tuple)):
        return type(items)(_refer(item) for item in items)
    if hasattr(items, "__dataclass_fields__"):
        return {name: _refer(getattr(items, name, None)) for name in items.__dataclass_fields__}
    return items


def graph_from_columns(columns: dict[str, Any], ops: list[Op] | None = None) -> Graph:
    """The graph of `columns_of`; without `ops`, its ops can no longer be called."""
    graph = Graph()
    graph.seed = columns["seed"]
    graph.values = dict(columns["values"])
    op_at = ([_op_from(row) for row in columns["ops"]] if ops is None else ops).__getitem__
    children: list[Child[Any]] = [Child(cast("Op", op_at(row[0])), row[1]) for row in columns["children"]]
    nodes: list[Node[Any]] = []
    for row in columns["nodes"]:
        if row[0] == PARAMETER_ROW:
            parameter: ParameterNode[Any] = ParameterNode(row[1], row[2], row[3])
            graph._parameters[parameter] = parameter
            nodes.append(parameter)
        else:
            node: Node[Any] = Node(cast("Op", op_at(row[0])), row[1])
            _fill(node, row, nodes, children)
            nodes.append(node)
    for child, row in zip(children, columns["children"], strict=True):
        _fill(child, row, nodes, children)
    recorded = [node for node in nodes if not is_a(node, ParameterNode)]
    cut = len(recorded) - columns["outputs"]
    strand = Strand()
    strand.nodes.extend(recorded[:cut])
    graph.strands.append(strand)
    graph._outputs.extend(recorded[cut:])
    graph.close()
    graph._tip = None if columns["tip"] < 0 else nodes[columns["tip"]]
    return graph


def _op_from(row: Any) -> Op:
    name, parameters, doc, signature, symbol, kind, variadic = row
    known = _OWN_OPS.get((name, tuple(parameters), kind))
    if known is not None and known.symbol == symbol:
        return known
    return Op(
        name, _Gone(name), tuple(parameters), doc=doc, signature=signature, symbol=symbol, kind=kind,
        variadic=frozenset(variadic),
    )  # fmt: skip


class _Gone:
    """Stands for the function of an op whose graph was loaded."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TraceError(
            f"op {self._name!r} comes from a loaded graph, which holds no code; record it again to call it"
        )


def _fill(node: Node[Any], row: tuple[Any, ...], nodes: list[Node[Any]], children: list[Child[Any]]) -> None:
    _, _, inputs, kinds, trail, control, seconds = row
    given: list[Any] = [
        nodes[item] if kind == NODE else item if kind == CONSTANT else _container(item, nodes)
        for item, kind in zip(inputs, kinds, strict=True)
    ]
    made: list[Node[Any]] = [children[-1 - n] if n < 0 else nodes[n] for n in trail]
    node.inputs, node.trail = tuple(given), tuple(made)
    node.control = None if control < 0 else nodes[control]
    node.seconds = seconds


def _container(items: Any, nodes: list[Node[Any]]) -> Nested:
    found: list[Node[Any]] = []
    resolved = _resolve(items, nodes, found)
    return Nested(resolved, tuple(found))


def _resolve(items: Any, nodes: list[Node[Any]], found: list[Node[Any]]) -> Any:
    if type(items) is Ref:
        found.append(nodes[items.index])
        return found[-1]
    if is_a(items, dict):
        return {key: _resolve(value, nodes, found) for key, value in items.items()}
    if is_a(items, (list, tuple)):
        return type(items)(_resolve(item, nodes, found) for item in items)
    return items


def reduce_node(node: Node[Any]) -> tuple[Any, ...]:
    """A lone node for pickle and copy: the graph of its ancestors, and its place in it."""
    seen: set[int] = {id(node)}
    todo, found = [node], list[Node[Any]]()
    while todo:
        here = todo.pop()
        found.append(here)
        for parent, _, _ in here.parents():
            if id(parent) not in seen:
                seen.add(id(parent))
                todo.append(parent)
    if all(n.index >= 0 for n in found):
        found.sort(key=lambda n: n.index)
    else:  # its graph has not been laid out yet
        found = sorted_by_dependency(found[::-1])
    places = {id(n): i for i, n in enumerate(found)}
    return _node_at, (renumbered(found, places), places[id(node)])


def renumbered(nodes: list[Node[Any]], places: dict[int, int]) -> dict[str, Any]:
    """Columns of some nodes whose parents are all among them."""
    before = [node.index for node in nodes]
    try:
        for node in nodes:
            node.index = places[id(node)]
        columns = _Columns(nodes)
    finally:
        for node, index in zip(nodes, before, strict=True):
            node.index = index
    return {
        "format": FORMAT, "seed": None, "ops": columns.ops, "nodes": columns.rows, "children": columns.children,
        "tip": -1, "outputs": 0, "values": {},
    }  # fmt: skip


def _node_at(columns: dict[str, Any], place: int) -> Node[Any]:
    return graph_from_columns(columns).layout().order[place]


def to_json(graph: Graph) -> str:
    """A graph as JSON text."""
    columns = columns_of(graph)
    columns["values"] = encode_named(columns["values"])
    columns["nodes"] = [encode_row(row) for row in columns["nodes"]]
    columns["children"] = [encode_row(row) for row in columns["children"]]
    return json.dumps(columns, allow_nan=False, separators=(",", ":"))


def encode_row(row: tuple[Any, ...]) -> list[Any]:
    """A row of columns, JSON-able."""
    if row[0] == PARAMETER_ROW:
        return [PARAMETER_ROW, encode_named(row[1]), encode(row[2]), encode(row[3])]
    number, value, inputs, kinds, trail, control, seconds = row
    encoded = (
        {"error": encode([value.type, value.message, value.traceback])} if type(value) is Failure else [encode(value)]
    )
    given = [_ENCODED[kind](item) for item, kind in zip(inputs, kinds, strict=True)]
    return [number, encoded, given, kinds, trail, control, seconds]


def _encode_nested(items: Any) -> Any:
    if type(items) is Ref:
        return items.index
    if is_a(items, dict):
        pairs = items.items()
        return {"dict": [[encode(key), _encode_nested(value)] for key, value in pairs]}
    if is_a(items, (list, tuple)):
        kind = "list" if is_a(items, list) else "tuple"
        return {kind: [_encode_nested(item) for item in items]}
    return [encode(items)]


_ENCODED = {NODE: identity, CONSTANT: encode, CONTAINER: _encode_nested}


def from_json(text: str) -> Graph:
    """The graph of JSON text.

    Raises:
        TraceError: the text is no graph, or one of a newer version.
    """
    try:
        columns: dict[str, Any] = json.loads(text)
        newer = columns["format"] > FORMAT
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TraceError("the text holds no graph; give what Graph.to_json returned") from error
    if newer:
        raise TraceError(
            f"the graph has format {columns['format']!r}, newer than {FORMAT}; upgrade trace-opt-framework"
        )
    try:
        columns["values"] = decode(columns["values"])
        columns["nodes"] = [decode_row(row) for row in columns["nodes"]]
        columns["children"] = [decode_row(row) for row in columns["children"]]
        return graph_from_columns(columns)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        raise TraceError(f"the graph is damaged ({error}); give what Graph.to_json returned") from error


def decode_row(row: list[Any]) -> tuple[Any, ...]:
    """The row that `encode_row` was given."""
    if row[0] == PARAMETER_ROW:
        return (PARAMETER_ROW, *[decode(item) for item in row[1:4]])
    number, value, inputs, kinds, trail, control, seconds = row
    decoded = Failure(*decode(value["error"])) if isinstance(value, dict) else decode(value[0])
    given = tuple([_DECODED[kind](item) for item, kind in zip(inputs, kinds, strict=True)])
    return (number, decoded, given, kinds, tuple(trail), control, seconds)


def _decode_nested(items: Any) -> Any:
    if is_a(items, int):
        return Ref(items)
    if is_a(items, list):
        return decode(items[0])
    kind, held = next(iter(items.items()))
    if kind == "dict":
        return {decode(key): _decode_nested(value) for key, value in held}
    decoded = [_decode_nested(item) for item in held]
    return decoded if kind == "list" else tuple(decoded)


_DECODED = {NODE: identity, CONSTANT: decode, CONTAINER: _decode_nested}
