"""A graph for people: text, Mermaid, Graphviz and a notebook's SVG. Everything a workflow put into it is escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from trace_opt.core.node import Failure, Nested, Node, is_a
from trace_opt.core.parameter import is_tensor

if TYPE_CHECKING:
    from trace_opt.core.graph import Graph

_MAX_DRAWN = 200  # more boxes than that no one can read, and layouts get slow
_WIDTH = 60


def brief(value: Any, width: int = _WIDTH) -> str:
    """A value on one line: long ones cut in the middle, images, message lists and tensors as type and size."""
    if isinstance(value, Nested):
        return f"{type(value.items).__name__} of {len(value.nodes)} nodes"
    if is_tensor(value):
        return f"tensor{tuple(value.shape)!r} {str(value.dtype).removeprefix('torch.')}"
    if is_a(value, (bytes, bytearray)) and len(value) > width:
        return f"{type(value).__name__} of {len(value)} bytes"
    if type(value).__module__.startswith("PIL."):
        return f"image {getattr(value, 'size', '')}"
    if is_a(value, (list, tuple)) and value and all(_is_message(item) for item in value):
        characters = sum(len(str(item["content"])) for item in value)
        return f"{len(value)} messages of {characters} characters"
    try:
        text = " ".join((str(value) if is_a(value, Failure) else repr(value)).split())
    except Exception as error:  # noqa: BLE001 # a hostile repr must not break the picture
        text = f"({type(value).__name__}: its repr raised {type(error).__name__})"
    if len(text) <= width:
        return text
    half = (width - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and "role" in item and "content" in item


def call_text(node: Node[Any], names: Any) -> str:
    """How a node came about, as a line of code: `ask_1 = ask(question='...')`."""
    parts = [f"{name}={_argument(given, names)}" for name, given in node.arguments.items()]
    reads = [names[read] for read in node.reads if read in names]
    return f"{node.op.name}({', '.join(parts)})" + (f"  # reads {', '.join(reads)}" if reads else "")


def _argument(given: Any, names: Any) -> str:
    if isinstance(given, Node):
        return names.get(given, "?")
    if is_a(given, dict):
        return "{" + ", ".join(f"{key!r}: {_argument(item, names)}" for key, item in given.items()) + "}"
    if is_a(given, (list, tuple)) and any(isinstance(item, Node) for item in given):
        inner = ", ".join(_argument(item, names) for item in given)
        return f"[{inner}]" if is_a(given, list) else f"({inner})"
    return brief(given, 40)


def to_text(graph: Graph) -> str:
    """One line a node: what made it, its value, and the decision that led to it."""
    names = graph.names
    lines: list[str] = []
    for node, name in names.items():
        made = "" if node.kind == "parameter" else f" = {call_text(node, names)}"
        steered = f"  [after {names[node.control]}]" if node.control is not None else ""
        lines.append(f"{name}{made}: {brief(node.value)}{steered}")
    return "\n".join(lines)


def _drawn(graph: Graph) -> tuple[list[Node[Any]], str]:
    """The nodes a picture shows, and a word on those it leaves out."""
    nodes = graph.nodes
    if len(nodes) <= _MAX_DRAWN:
        return list(nodes), ""
    half = _MAX_DRAWN // 2
    return [*nodes[:half], *nodes[-half:]], f"{len(nodes) - _MAX_DRAWN} of {len(nodes)} nodes are left out"


def _edges(nodes: Sequence[Node[Any]]) -> list[tuple[Node[Any], Node[Any], str, str]]:
    shown = set(nodes)
    return [(parent, node, kind, key) for node in nodes for parent, kind, key in node.parents() if parent in shown]


def to_mermaid(graph: Graph) -> str:
    """A Mermaid flowchart; parameters are rounded, decisions diamonds, dotted edges are reads and decisions."""
    names = graph.names
    nodes, left_out = _drawn(graph)
    number = {node: f"n{i}" for i, node in enumerate(nodes)}
    shapes = {"parameter": ("([", "])"), "decision": ("{", "}"), "error": ("[[", "]]"), "output": ("[/", "/]")}
    lines = ["flowchart TD"]
    for node in nodes:
        left, right = shapes.get(node.kind, ("[", "]"))
        text = _mermaid(f"{names[node]}: {brief(node.value)}")
        lines.append(f'  {number[node]}{left}"{text}"{right}')
    for parent, node, kind, key in _edges(nodes):
        arrow = f'-->|"{_mermaid(key)}"|' if kind == "argument" else f'-.->|"{kind}"|'
        lines.append(f"  {number[parent]} {arrow} {number[node]}")
    if left_out:
        lines.append(f'  rest["{left_out}"]')
    return "\n".join(lines)


def _mermaid(text: str) -> str:
    # Mermaid reads HTML and its own #code; entities in labels
    return "".join(c if c.isalnum() or c in " _.,:=()-'+/" else f"#{ord(c)};" for c in text)


def to_dot(graph: Graph) -> str:
    """A Graphviz digraph."""
    names = graph.names
    nodes, left_out = _drawn(graph)
    shapes = {"parameter": "ellipse", "decision": "diamond", "error": "octagon", "output": "note"}
    lines = ["digraph workflow {", "  node [shape=box];"]
    for node in nodes:
        label = _dot(f"{names[node]}\n{brief(node.value)}")
        lines.append(f"  {_dot(names[node])} [label={label}, shape={shapes.get(node.kind, 'box')}];")
    for parent, node, kind, key in _edges(nodes):
        style = "" if kind == "argument" else ", style=dashed"
        lines.append(f"  {_dot(names[parent])} -> {_dot(names[node])} [label={_dot(key)}{style}];")
    if left_out:
        lines.append(f"  rest [label={_dot(left_out)}, shape=plaintext];")
    return "\n".join([*lines, "}"])


def _dot(text: str) -> str:
    lines = [_visible(line).replace("\\", "\\\\").replace('"', '\\"') for line in text.split("\n")]
    return '"' + "\\n".join(lines) + '"'


def mimebundle(graph: Graph) -> dict[str, str]:
    """What a notebook shows."""
    nodes, left_out = _drawn(graph)
    return {"text/plain": repr(graph), "image/svg+xml": _svg(nodes, graph.names, left_out)}


_BOX, _ROW, _COLUMN = 30, 54, 230  # height of a box, distance of rows and of columns, in pixels


def _svg(nodes: Sequence[Node[Any]], names: Any, left_out: str) -> str:
    """Boxes in rows by depth, with straight edges; no script, all text escaped."""
    depth: dict[Node[Any], int] = {}
    column: dict[Node[Any], int] = {}
    widths: dict[int, int] = {}
    edges = _edges(nodes)
    above: dict[Node[Any], list[Node[Any]]] = {}
    for parent, node, _, _ in edges:
        above.setdefault(node, []).append(parent)
    for node in nodes:
        row = depth[node] = 1 + max((depth[parent] for parent in above.get(node, ())), default=-1)
        column[node] = widths.get(row, 0)
        widths[row] = column[node] + 1
    place = _placer(depth, column)
    width = max(widths.values(), default=1) * _COLUMN + 20
    height = (max(depth.values(), default=0) + 1) * _ROW + 40
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="monospace" font-size="11">'
    ]
    for parent, node, kind, _ in edges:
        (x1, y1), (x2, y2) = place(parent), place(node)
        dash = "" if kind == "argument" else ' stroke-dasharray="4 3"'
        lines.append(f'<line x1="{x1}" y1="{y1 + _BOX // 2}" x2="{x2}" y2="{y2 - _BOX // 2}" stroke="#888"{dash}/>')
    fills = {"parameter": "#dcebff", "decision": "#fff2cc", "error": "#ffd9d9", "output": "#e2f5e2"}
    for node in nodes:
        x, y = place(node)
        fill = fills.get(node.kind, "#f4f4f4")
        lines.append(
            f'<rect x="{x - 105}" y="{y - _BOX // 2}" width="210" height="{_BOX}" rx="4" fill="{fill}" stroke="#666"/>'
            f'<text x="{x}" y="{y - 2}" text-anchor="middle" fill="#111">{_text(names[node][:30])}</text>'
            f'<text x="{x}" y="{y + 10}" text-anchor="middle" fill="#555">{_text(brief(node.value, 32))}</text>'
        )
    if left_out:
        lines.append(f'<text x="10" y="{height - 10}" fill="#555">{_text(left_out)}</text>')
    return "".join([*lines, "</svg>"])


def _placer(depth: dict[Node[Any], int], column: dict[Node[Any], int]) -> Callable[[Node[Any]], tuple[int, int]]:
    return lambda node: (column[node] * _COLUMN + 115, depth[node] * _ROW + 24)


def _text(text: str) -> str:
    return escape(_visible(text))


def _visible(text: str) -> str:
    # control characters are no XML, escaped or not, and lone surrogates no UTF-8
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
