"""A graph as flat columns, for JSON, pickle and copies: ops once, nodes as rows that name each other by number.

Rows instead of nested objects, so the depth of a graph is no limit.
"""

from __future__ import annotations

import json
from typing import Any, cast

from trace_opt.core.codec import decode, encode
from trace_opt.core.graph import ERROR, OUTPUT_OF_LEAVES, Graph
from trace_opt.core.node import ATOMIC, PARAMETER, Child, Failure, Nested, Node, Op, ParameterNode
from trace_opt.core.operators import BINARY, COPY, DECISIONS, DEEPCOPY, GETATTR, GETITEM, ITEM, OUTPUT, UNARY
from trace_opt.core.strand import JOIN, NONE, RAISED, Strand
from trace_opt.errors import TraceError

FORMAT = 1

_OWN_OPS: dict[tuple[str, tuple[str, ...], str], Op] = {
    (op.name, op.parameters, op.kind): op
    for op in (
        *BINARY.values(), *UNARY.values(), *DECISIONS.values(), GETITEM, GETATTR, ITEM, COPY, DEEPCOPY, OUTPUT,
        OUTPUT_OF_LEAVES, ERROR, JOIN, NONE, RAISED, PARAMETER,
    )
}  # fmt: skip


class Ref:
    """The number of a node, where a constant could stand as well."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def columns_of(graph: Graph) -> dict[str, Any]:
    """The columns of a graph, values as they are."""
    layout = graph.layout()
    columns = _Columns()
    for node in layout.order:
        columns.add(node)
    columns.finish()
    return {
        "format": FORMAT, "seed": graph.seed, "ops": columns.ops, "nodes": columns.rows, "children": columns.children,
        "tip": -1 if graph._tip is None else graph._tip.index, "outputs": len(graph._outputs),
        "values": dict(graph.values),
    }  # fmt: skip


class _Columns:
    def __init__(self) -> None:
        self.ops: list[tuple[Any, ...]] = []
        self.rows: list[tuple[Any, ...]] = []
        self.children: list[tuple[Any, ...]] = []
        self._op_numbers: dict[Op, int] = {}
        self._waiting: list[Child[Any]] = []
        self._child_numbers: dict[Child[Any], int] = {}

    def add(self, node: Node[Any]) -> None:
        if isinstance(node, ParameterNode):
            self.rows.append((-1, node.value, node.name, node.description))
        else:
            self.rows.append(self._row(node))

    def finish(self) -> None:
        """Write the rows of inner calls; each may add more."""
        done = 0
        while done < len(self._waiting):
            self.children.append(self._row(self._waiting[done]))
            done += 1

    def _row(self, node: Node[Any]) -> tuple[Any, ...]:
        inputs = tuple(self._input(given) for given in node.inputs)
        trail = tuple(-1 - self._child(n) if isinstance(n, Child) else n.index for n in node.trail)
        control = -1 if node.control is None else node.control.index
        return (self._op(node.op), node.value, inputs, trail, control, node.seconds)

    def _child(self, child: Child[Any]) -> int:
        number = self._child_numbers.get(child)
        if number is None:
            number = self._child_numbers[child] = len(self._waiting)
            self._waiting.append(child)
        return number

    def _op(self, op: Op) -> int:
        number = self._op_numbers.get(op)
        if number is None:
            number = self._op_numbers[op] = len(self.ops)
            self.ops.append(
                (op.name, op.parameters, op.doc, op.signature, op.symbol, op.kind, tuple(sorted(op.variadic)))
            )
        return number

    def _input(self, given: Any) -> Any:
        if type(given) in ATOMIC:
            return given
        if isinstance(given, Node):
            return Ref(cast("Node[Any]", given).index)
        if type(given) is Nested:
            return Nested(_refer(given.items), ())
        return given


def _refer(items: Any) -> Any:
    """A container of nodes with their numbers in place; named tuples and dataclasses become dicts of their fields."""
    if isinstance(items, Node):
        return Ref(cast("Node[Any]", items).index)
    if isinstance(items, dict):
        return {key: _refer(value) for key, value in cast("dict[Any, Any]", items).items()}
    if isinstance(items, tuple) and hasattr(items, "_fields"):
        return {name: _refer(value) for name, value in zip(items._fields, items, strict=True)}  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType, reportUnknownArgumentType, reportAttributeAccessIssue]
    if isinstance(items, (list, tuple)):
        return type(items)(_refer(item) for item in items)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(items, (set, frozenset)):
        return tuple(_refer(item) for item in items)  # pyright: ignore[reportUnknownVariableType]
    if hasattr(items, "__dataclass_fields__"):
        return {name: _refer(getattr(items, name, None)) for name in items.__dataclass_fields__}
    return items


def graph_from_columns(columns: dict[str, Any]) -> Graph:
    """The graph of `columns_of`; its ops can no longer be called."""
    graph = Graph()
    graph.seed = columns["seed"]
    graph.values = dict(columns["values"])
    ops = [_op_from(row) for row in columns["ops"]]
    children: list[Child[Any]] = [Child(ops[row[0]], row[1]) for row in columns["children"]]
    nodes: list[Node[Any]] = []
    for row in columns["nodes"]:
        if row[0] == -1:
            node: Node[Any] = ParameterNode(row[1], row[2], row[3])
            graph._parameters[node] = cast("ParameterNode[Any]", node)
        else:
            node = Node(ops[row[0]], row[1])
            _fill(node, row, nodes, children)
        nodes.append(node)
    for child, row in zip(children, columns["children"], strict=True):
        _fill(child, row, nodes, children)
    recorded = [node for node in nodes if not isinstance(node, ParameterNode)]
    cut = len(recorded) - columns["outputs"]
    strand = Strand()
    strand.nodes.extend(recorded[:cut])
    graph.strands.append(strand)
    graph._outputs.extend(recorded[cut:])
    graph.close(None if columns["tip"] < 0 else nodes[columns["tip"]])
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


def _fill(node: Node[Any], row: Any, nodes: list[Node[Any]], children: list[Child[Any]]) -> None:
    _, _, inputs, trail, control, seconds = row
    node.inputs = tuple(_input_from(given, nodes) for given in inputs)
    node.trail = tuple(children[-1 - n] if n < 0 else nodes[n] for n in trail)
    node.control = None if control < 0 else nodes[control]
    node.seconds = seconds


def _input_from(given: Any, nodes: list[Node[Any]]) -> Any:
    if type(given) is Ref:
        return nodes[given.index]
    if type(given) is not Nested:
        return given
    found: list[Node[Any]] = []
    return Nested(_resolve(given.items, nodes, found), tuple(found))


def _resolve(items: Any, nodes: list[Node[Any]], found: list[Node[Any]]) -> Any:
    if type(items) is Ref:
        found.append(nodes[items.index])
        return found[-1]
    if isinstance(items, dict):
        return {key: _resolve(value, nodes, found) for key, value in cast("dict[Any, Any]", items).items()}
    if isinstance(items, (list, tuple)):
        return type(items)(_resolve(item, nodes, found) for item in items)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return items


def reduce_node(node: Node[Any]) -> tuple[Any, ...]:
    """A lone node for pickle and copy: the graph of its ancestors, and its place in it."""
    strand, parameters = Strand(), list[ParameterNode[Any]]()
    seen: set[int] = {id(node)}
    todo, found = [node], list[Node[Any]]()
    while todo:
        here = todo.pop()
        found.append(here)
        for parent, _, _ in here.parents():
            if id(parent) not in seen:
                seen.add(id(parent))
                todo.append(parent)
    if any(n.index < 0 for n in found):
        raise TraceError(f"{node!r} belongs to no graph that was laid out; pickle the graph instead")
    found.sort(key=lambda n: n.index)
    graph = Graph()
    for n in found:
        if isinstance(n, ParameterNode):
            parameters.append(n)
        else:
            strand.nodes.append(n)
    places = {id(n): i for i, n in enumerate(found)}
    return _node_at, (_renumbered(found, places), places[id(node)], graph.seed)


def _renumbered(nodes: list[Node[Any]], places: dict[int, int]) -> dict[str, Any]:
    """Columns of some nodes whose parents are all among them."""
    before = [node.index for node in nodes]
    columns = _Columns()
    try:
        for node in nodes:
            node.index = places[id(node)]
        for node in nodes:
            columns.add(node)
        columns.finish()
    finally:
        for node, index in zip(nodes, before, strict=True):
            node.index = index
    return {
        "format": FORMAT, "seed": None, "ops": columns.ops, "nodes": columns.rows, "children": columns.children,
        "tip": -1, "outputs": 0, "values": {},
    }  # fmt: skip


def _node_at(columns: dict[str, Any], place: int, seed: int | None) -> Node[Any]:
    columns["seed"] = seed
    return graph_from_columns(columns).layout().order[place]


def to_json(graph: Graph) -> str:
    """A graph as JSON text."""
    columns = columns_of(graph)
    columns["values"] = encode(columns["values"])
    columns["nodes"] = [_encode_row(row) for row in columns["nodes"]]
    columns["children"] = [_encode_row(row) for row in columns["children"]]
    return json.dumps(columns, allow_nan=False, separators=(",", ":"))


def _encode_row(row: tuple[Any, ...]) -> list[Any]:
    if row[0] == -1:
        return [-1, encode(row[1]), row[2], row[3]]
    number, value, inputs, trail, control, seconds = row
    encoded = {"error": [value.type, value.message, value.traceback]} if type(value) is Failure else [encode(value)]
    return [number, encoded, [_encode_input(given) for given in inputs], list(trail), control, seconds]


def _encode_input(given: Any) -> Any:
    """A node by its number, a constant in a list of its own, a container of nodes in a dict."""
    if type(given) is Ref:
        return given.index
    if type(given) is Nested:
        return {"nested": _encode_nested(given.items)}
    return [encode(given)]


def _encode_nested(items: Any) -> Any:
    if type(items) is Ref:
        return items.index
    if isinstance(items, dict):
        pairs = cast("dict[Any, Any]", items).items()
        return {"dict": [[encode(key), _encode_nested(value)] for key, value in pairs]}
    if isinstance(items, (list, tuple)):
        kind = "list" if isinstance(items, list) else "tuple"
        return {kind: [_encode_nested(item) for item in items]}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return [encode(items)]


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
        columns["nodes"] = [_decode_row(row) for row in columns["nodes"]]
        columns["children"] = [_decode_row(row) for row in columns["children"]]
        return graph_from_columns(columns)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise TraceError(f"the graph is damaged ({error}); give what Graph.to_json returned") from error


def _decode_row(row: list[Any]) -> tuple[Any, ...]:
    if row[0] == -1:
        return (-1, decode(row[1]), row[2], row[3])
    number, value, inputs, trail, control, seconds = row
    decoded = Failure(*value["error"]) if isinstance(value, dict) else decode(value[0])
    return (number, decoded, tuple(_decode_input(given) for given in inputs), tuple(trail), control, seconds)


def _decode_input(given: Any) -> Any:
    if isinstance(given, dict):
        return Nested(_decode_nested(given["nested"]), ())
    return Ref(given) if isinstance(given, int) else decode(given[0])


def _decode_nested(items: Any) -> Any:
    if isinstance(items, int):
        return Ref(items)
    if isinstance(items, list):
        return decode(items[0])
    kind, held = next(iter(items.items()))
    if kind == "dict":
        return {decode(key): _decode_nested(value) for key, value in held}
    decoded = [_decode_nested(item) for item in held]
    return decoded if kind == "list" else tuple(decoded)
