"""Arguments taken apart: the plain values that a body sees, and the inputs that the recording keeps.

Containers are entered by exact class only, and one that holds no result is handed on as the very object it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Coroutine
from typing import Any, cast

from trace_opt.core.node import SOLID, Nested, Node, Op, class_of, is_a, is_kind
from trace_opt.core.parameter import Parameter
from trace_opt.core.result import Result, bare, fault
from trace_opt.core.strand import Frame, keep
from trace_opt.errors import TraceError

_MAX_NESTING = 50  # containers nested deeper, or in themselves, are taken as they are


def take(frame: Frame, given: Any) -> tuple[Any, Any]:
    """Split an argument into the plain value that the body gets and the input that the recording keeps.

    Results and Parameters are unwrapped, also within lists, tuples, sets, dicts and dataclasses; a container that
    holds none is passed on as it is.
    """
    kind = class_of(given)
    if kind in SOLID:
        return given, given
    if is_kind(kind, Result):
        return _split(frame, given)
    if is_kind(kind, Parameter):
        node = frame.graph.parameter_node(given)
        return node.value, node
    if kind is Stream:
        return _split(frame, given.drained())
    nodes: list[Node[Any]] = []
    plain, recorded = _unpack(given, lambda item: take(frame, item), nodes, _MAX_NESTING)
    if plain is given:
        return given, keep(given)
    frame.borrowed.append((plain, copy.copy(plain)))
    return plain, Nested(recorded, tuple(nodes))


def _split(frame: Frame, result: Any) -> tuple[Any, Any]:
    if not issubclass(type(result), Result):
        return result, result
    node = result._trace_node
    return (node.value, node) if result._trace_graph is frame.graph else (node.value, node.value)


def bare_all(given: Any) -> Any:
    """The plain value of anything, also within containers; what holds no result comes back as the same object."""
    kind = class_of(given)
    if kind in SOLID:
        return given
    if is_kind(kind, Result):
        return bare(given)
    if is_kind(kind, Parameter):
        return given.value
    if kind is Stream:
        return bare_all(given.drained())
    return _unpack(given, lambda item: (plain := bare_all(item), plain), [], _MAX_NESTING)[0]


def _unpack(given: Any, split: Callable[[Any], tuple[Any, Any]], nodes: list[Node[Any]], depth: int) -> tuple[Any, Any]:
    """A container's items, split each; the container itself twice over where none changed."""
    kind = class_of(given)
    if kind is dict:
        items = list(given.values())
    elif kind in (list, tuple, set, frozenset) or (is_kind(kind, tuple) and hasattr(kind, "_fields")):
        items = list(given)
    elif hasattr(kind, "__dataclass_fields__"):
        items = [getattr(given, name, None) for name in kind.__dataclass_fields__]
    else:
        return given, given
    if depth <= 0 or SOLID.issuperset(map(type, items)):
        return given, given
    pairs = [_split_item(item, split, nodes, depth) for item in items]
    if all(plain is item for (plain, _), item in zip(pairs, items, strict=True)):
        return given, given
    recorded = [recorded for _, recorded in pairs]
    # nodes have no order or hash of their own that a set could keep
    kept = tuple(recorded) if kind in (set, frozenset) else _rebuilt(given, recorded)
    return _rebuilt(given, [plain for plain, _ in pairs]), kept


def _split_item(
    item: Any, split: Callable[[Any], tuple[Any, Any]], nodes: list[Node[Any]], depth: int
) -> tuple[Any, Any]:
    kind = class_of(item)
    if kind in SOLID:
        return item, item
    if kind is Stream or is_kind(kind, (Result, Parameter)):
        plain, recorded = split(item)
        if is_a(recorded, Node):
            nodes.append(recorded)
        return plain, recorded
    return _unpack(item, split, nodes, depth - 1)


def _rebuilt(given: Any, items: list[Any]) -> Any:
    """A container like `given` with other items."""
    kind: Any = class_of(given)
    if kind is dict:
        return dict(zip(given, items, strict=True))
    if kind in (list, tuple, set, frozenset):
        return cast("Any", kind)(items)
    if is_kind(kind, tuple):
        return kind._make(items)
    made = copy.copy(given)
    for name, item in zip(kind.__dataclass_fields__, items, strict=True):
        object.__setattr__(made, name, item)  # frozen dataclasses too, and __post_init__ is not run again
    return made


def check_borrowed(frame: Frame, op: Op) -> None:
    """Refuse a body that changed a plain copy it was handed: the change would be lost in the caller's container.

    Raises:
        TraceError: it did.
    """
    borrowed, frame.borrowed = frame.borrowed, []
    for given, before in borrowed:
        if type(given) in (list, dict, set) and not _unchanged(given, before):
            fault(frame.graph, f"op {op.name!r} changed an argument in place that holds recorded results; return the "
                  "changed value instead")  # fmt: skip


def _unchanged(given: Any, before: Any) -> bool:
    if len(given) != len(before):
        return False
    if class_of(given) is dict:
        return all(key in before and before[key] is value for key, value in given.items())
    if type(given) is set:
        return given == before
    return all(a is b for a, b in zip(given, before, strict=True))


class Stream:
    """What a generator op hands to the workflow: drained and recorded as one list when it is first iterated."""

    __slots__ = ("_drain", "_items", "_result")

    def __init__(self, drain: Callable[[], Any]) -> None:
        self._drain: Callable[[], Any] | None = drain
        self._result: Any = None
        self._items: Any = None

    def drained(self) -> Any:
        """The recorded list."""
        if self._drain is not None:
            drain, self._drain = self._drain, None
            self._result = drain()
        return self._result

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        if self._items is None:
            self._items = iter(self.drained())
        return next(self._items)


class AsyncStream:
    """What an async generator op hands to the workflow, as `Stream`."""

    __slots__ = ("_drain", "_items")

    def __init__(self, drain: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._drain = drain
        self._items: Any = None

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Any:
        if self._items is None:
            self._items = iter(await self._drain())
        try:
            return next(self._items)
        except StopIteration:
            raise StopAsyncIteration from None


def output_parts(graph: Any, value: Any) -> tuple[Any, Any]:
    """An output's plain value, and its node, the nodes in it, or None where it holds none.

    Raises:
        TraceError: it holds a result of another recording.
    """
    kind = class_of(value)
    if kind in SOLID:
        return value, None
    if kind is Stream:
        value = value.drained()
        kind = class_of(value)

    def split(item: Any) -> tuple[Any, Any]:
        if isinstance(item, Parameter):
            node = graph.parameter_node(item)
            return node.value, node
        if type(item) is Stream:
            item = item.drained()
        if item._trace_graph is not graph:
            name = item._trace_node.op.name
            raise TraceError(f"the output holds a result of {name!r} from another recording; give feedback to its own")
        return item._trace_node.value, item._trace_node

    if is_kind(kind, (Result, Parameter)):
        return split(value)
    nodes: list[Node[Any]] = []
    plain, recorded = _unpack(value, split, nodes, _MAX_NESTING)
    return plain, (Nested(recorded, tuple(nodes)) if nodes else None)
