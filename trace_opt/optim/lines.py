"""One call or decision of a recording as a line of code, its constants left open.

An operator stands between its operands, a method behind its value, everything else is called by name with its arguments.
What a container holds of results is named, the first and last of many. Nothing here looks at other nodes than its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from trace_opt.core.node import Nested, Node
from trace_opt.optim.text import cut, literal, one_line, size

_NESTED_SHOWN = 24  # nodes of one container that a line names


class Hole(NamedTuple):
    """A constant in a line: where it stands (`ask_1`, `question`) and its value."""

    node: str
    place: str
    value: Any


Part = str | Hole


@dataclass(frozen=True, slots=True)
class Line:
    """One call, or one decision of the workflow.

    Attributes:
        name: What the line defines, or "" for a decision.
        parts: The line as text with holes.
        outcome: What a decision came to, where that is no part of the line; else "".
    """

    node: Node[Any]
    name: str
    parts: tuple[Part, ...]
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class Gap:
    """Calls that are not written out.

    Attributes:
        count: How many.
        period: The number of lines above that go on in the same way, or 0 for calls left out for want of room.
        ops: What was called, with counts, for calls left out.
    """

    count: int
    period: int = 0
    ops: tuple[tuple[str, int], ...] = ()

    @property
    def text(self) -> str:
        """The gap as a line of its own."""
        if self.period:
            lines = "line above goes" if self.period == 1 else f"{self.period} lines above go"
            return f"... the {lines} on in the same way {self.count // self.period:,} times more ..."
        told = ", ".join(f"{name} {count:,} times" for name, count in self.ops[:4])
        return f"... {self.count:,} calls are left out here: {told}{', ...' if len(self.ops) > 4 else ''} ..."


def line_size(line: Line | Gap) -> int:
    """About how many bytes a line takes."""
    if isinstance(line, Gap):
        return len(line.text)
    return sum(size(part) if isinstance(part, str) else min(44, size(literal(part.value, 40))) for part in line.parts)


def safe_name(name: str) -> str:
    """A name as it is, or without what could end a line or run on."""
    return name if name.isprintable() and len(name) <= 200 else cut(one_line(ascii(name)[1:-1]), 200)


class Writer:
    """Writes one node's line.

    Args:
        name: Gives a node's name.
        inlined: Comparisons that are written into the decision that reads them.
    """

    def __init__(self, name: Callable[[Node[Any]], str], inlined: Container[Node[Any]]) -> None:
        self.name = name
        self.inlined = inlined

    def line(self, node: Node[Any]) -> Line:
        """The line of a call, an output or a decision."""
        if node.kind == "decision":
            return self._decision(node)
        name = self.name(node)
        parts: list[Part] = [f"{name} = ", *self.call(node)]
        reads = [self.name(read) for read in node.reads]
        if reads:
            parts.append(f"  # reads {', '.join(reads)}")
        return Line(node, name, _joined(parts))

    def call(self, node: Node[Any]) -> list[Part]:
        """The right side: an operator infix, a method behind its value, anything else by name."""
        op = node.op
        given = dict(zip(op.parameters, node.inputs, strict=True))
        if node.kind == "output" or (op.name in ("output", "error") and not op.signature):
            return self._value(node, op.parameters[0], node.inputs[0])
        if op.symbol == ".":
            return [*self._value(node, "a", given["a"]), f".{safe_name(str(given['name']))}"]
        if op.symbol == "[]":
            return [*self._value(node, "a", given["a"]), "[", *self._index(node, given["b"]), "]"]
        if op.symbol and len(op.parameters) == 1:
            return [op.symbol, *self._value(node, "a", given["a"])]
        if op.symbol:
            return [*self._value(node, "a", given["a"]), f" {op.symbol} ", *self._value(node, "b", given["b"])]
        if not op.signature and op.parameters[-2:] == ("args", "kwargs"):
            return self._method(node, given)
        parts: list[Part] = [f"{safe_name(op.name)}("]
        for i, (place, value) in enumerate(given.items()):
            parts += [", " if i else "", f"{place}=" if op.signature else "", *self._value(node, place, value)]
        return [*parts, ")"]

    def _method(self, node: Node[Any], given: dict[str, Any]) -> list[Part]:
        parts: list[Part] = []
        if "a" in given:
            parts = self._value(node, "a", given["a"])
        if node.op.name != "call" or "a" not in given:
            parts.append(f"{'.' if parts else ''}{safe_name(node.op.name)}")
        args, kwargs = (x.items if type(x) is Nested else x for x in (given["args"], given["kwargs"]))
        parts.append("(")
        for i, item in enumerate(cast("Sequence[Any]", args)):
            parts += [", " if i else "", *self._value(node, f"args[{i}]", item)]
        for i, (key, item) in enumerate(cast("dict[str, Any]", kwargs).items()):
            parts += [", " if i or args else "", f"{key}=", *self._value(node, f"kwargs[{key!r}]", item)]
        return [*parts, ")"]

    def _decision(self, node: Node[Any]) -> Line:
        kind = node.op.name
        given = node.inputs[0]
        subject = self._inlined(node, given)
        if kind == "bool":
            return Line(node, "", _joined(["if ", *subject, f": {node.value}"]))
        if kind == "contains":
            item = self._value(node, "b", node.inputs[1])
            return Line(node, "", _joined(["if ", *item, " in ", *subject, f": {node.value}"]))
        if kind == "none":
            return Line(node, "", _joined(["if ", *subject, " is None: True"]))
        if kind == "raised":
            return Line(node, "", _joined(["except what ", *subject, " raised"]), literal(str(node.value), 120))
        if kind == "iter":
            return Line(node, "", _joined(["for each of ", *subject]), f"{node.value} items")
        return Line(node, "", _joined([f"{kind}(", *subject, ")"]), literal(node.value, 80))

    def _inlined(self, node: Node[Any], given: Any) -> list[Part]:
        is_inlined = isinstance(given, Node) and given in self.inlined
        return self.call(cast("Node[Any]", given)) if is_inlined else self._value(node, "value", given)

    def _index(self, node: Node[Any], given: Any) -> list[Part]:
        if isinstance(given, slice):
            ends = cast("slice[Any, Any, Any]", given)
            return [":".join("" if end is None else str(end) for end in (ends.start, ends.stop))]
        return self._value(node, "b", given)

    def _value(self, node: Node[Any], place: str, given: Any) -> list[Part]:
        if isinstance(given, Node):
            return [self.name(cast("Node[Any]", given))]
        if type(given) is Nested:
            return self._nested(node, place, given.items)
        return [Hole(self.name(node), place, given)]

    def _nested(self, node: Node[Any], place: str, items: Any) -> list[Part]:
        """A container with nodes in it: the first and last of many, constants as holes."""
        if isinstance(items, Node):
            return [self.name(cast("Node[Any]", items))]
        if isinstance(items, dict):
            entries = [
                (f"{literal(key, 60)}: ", f"{place}[{key!r}]", x) for key, x in cast("dict[Any, Any]", items).items()
            ]
            left, right = "{", "}"
        elif isinstance(items, (list, tuple, set, frozenset)):
            left, right = {list: ("[", "]"), tuple: ("(", ")")}.get(cast("Any", type(cast("Any", items))), ("{", "}"))
            entries = [("", f"{place}[{i}]", x) for i, x in enumerate(cast("Sequence[Any]", items))]
        elif hasattr(items, "__dataclass_fields__"):
            fields = cast("dict[str, Any]", items.__dataclass_fields__)
            entries = [(f"{key}=", f"{place}.{key}", getattr(items, key, None)) for key in fields]
            left, right = f"{type(items).__name__}(", ")"
        else:
            return [Hole(self.name(node), place, items)]
        half = _NESTED_SHOWN // 2
        hidden = len(entries) - _NESTED_SHOWN if len(entries) > _NESTED_SHOWN + 1 else 0
        parts: list[Part] = [left]
        for i, (label, inner, item) in enumerate(entries if not hidden else [*entries[:half], *entries[-half:]]):
            parts += [", " if i else "", f"... {hidden:,} more ..., " if hidden and i == half else "", label]
            parts += self._nested(node, inner, item)
        return [*parts, right]


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Parts with neighbouring texts put together."""
    made: list[Part] = []
    for part in parts:
        if isinstance(part, str) and made and isinstance(made[-1], str):
            made[-1] += part
        else:
            made.append(part)
    return tuple(made)
