"""How an op call is recorded: arguments taken apart into plain values and inputs, the body run, the node kept.

`trace` generates a wrapper with the common case of `call` written out (core/tracer.py); everything else comes here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Coroutine
from contextlib import suppress
from time import perf_counter
from types import GeneratorType
from typing import Any, cast

from trace_opt.core.context import FRAME
from trace_opt.core.node import ATOMIC, Nested, Node, Op
from trace_opt.core.parameter import Parameter
from trace_opt.core.result import Result, bare, fault, wrap
from trace_opt.core.strand import Frame, blames_candidate, child_of, failure_of, keep
from trace_opt.errors import TraceError

_MAX_NESTING = 50  # containers nested deeper, or in themselves, are taken as they are

Invoke = Callable[[tuple[Any, ...]], Any]


def take(frame: Frame, given: Any) -> tuple[Any, Any]:
    """Split an argument into the plain value that the body gets and the input that the recording keeps.

    Results and Parameters are unwrapped, also within lists, tuples, sets, dicts and dataclasses; a container that
    holds none is passed on as it is.
    """
    kind = type(given)
    if kind in ATOMIC:
        return given, given
    if issubclass(kind, Result):
        return _split(frame, given)
    if kind is Parameter:
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
    kind = type(given)
    if kind in ATOMIC:
        return given
    if issubclass(kind, Result):
        return bare(given)
    if kind is Parameter:
        return given.value
    if kind is Stream:
        return bare_all(given.drained())
    return _unpack(given, lambda item: (plain := bare_all(item), plain), [], _MAX_NESTING)[0]


def holds_results(given: Any) -> bool:
    """Whether a value is a result, or a container with one in it."""
    kind = type(given)
    if kind in ATOMIC:
        return False
    if issubclass(kind, Result) or kind is Stream:
        return True
    found: list[bool] = []

    def look(item: Any) -> tuple[Any, Any]:
        if type(item) not in ATOMIC and holds_results(item):
            found.append(True)
        return item, item

    _unpack(given, look, [], _MAX_NESTING)
    return bool(found)


def _unpack(given: Any, split: Callable[[Any], tuple[Any, Any]], nodes: list[Node[Any]], depth: int) -> tuple[Any, Any]:
    """A container's items, split each; the container itself twice over where none changed."""
    kind = type(given)
    if kind is dict:
        items = list(given.values())
    elif kind in (list, tuple, set, frozenset) or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        items = list(given)
    elif hasattr(kind, "__dataclass_fields__"):
        items = [getattr(given, name, None) for name in kind.__dataclass_fields__]
    else:
        return given, given
    if depth <= 0 or ATOMIC.issuperset(map(type, items)):
        return given, given
    pairs = [_split_item(item, split, nodes, depth) for item in items]
    if all(plain is item for (plain, _), item in zip(pairs, items, strict=True)):
        return given, given
    return _rebuilt(given, [plain for plain, _ in pairs]), _rebuilt(given, [recorded for _, recorded in pairs])


def _split_item(
    item: Any, split: Callable[[Any], tuple[Any, Any]], nodes: list[Node[Any]], depth: int
) -> tuple[Any, Any]:
    kind = type(item)
    if kind in ATOMIC:
        return item, item
    if issubclass(kind, Result) or kind is Parameter or kind is Stream:
        plain, recorded = split(item)
        if isinstance(recorded, Node):
            nodes.append(cast("Node[Any]", recorded))
        return plain, recorded
    return _unpack(item, split, nodes, depth - 1)


def _rebuilt(given: Any, items: list[Any]) -> Any:
    """A container like `given` with other items."""
    kind = type(given)
    if kind is dict:
        return dict(zip(given, items, strict=True))
    if kind in (list, tuple, set, frozenset):
        try:
            return kind(items)
        except TypeError:  # nodes of unhashable values cannot stand in a set
            return tuple(items)
    if issubclass(kind, tuple):
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
    if type(given) is dict:
        return all(key in before and before[key] is value for key, value in given.items())
    if type(given) is set:
        return given == before
    return all(a is b for a, b in zip(given, before, strict=True))


def call(frame: Frame, op: Op, given: tuple[Any, ...], invoke: Invoke | None = None) -> Any:
    """Record one op call made in the workflow and hand out its result.

    Args:
        frame: The workflow's frame, of this thread and task.
        op: The op.
        given: One argument for each of its parameters.
        invoke: Calls the function with plain arguments; `op.fn` by position where left out.
    """
    taken = [(x, x) if type(x) in ATOMIC else take(frame, x) for x in given]
    inputs = tuple(recorded for _, recorded in taken)
    plain = tuple(value for value, _ in taken)
    start = perf_counter()
    frame.inside = True
    try:
        value = op.fn(*plain) if invoke is None else invoke(plain)
        value = settled(frame.graph, value)
        if frame.borrowed:
            check_borrowed(frame, op)
    except BaseException as error:
        frame.inside = False
        frame.borrowed.clear()
        frame.fail(scoped(frame, op), inputs, frame.settle(0), error)
        raise
    frame.inside = False
    trail = frame.settle(0) if frame.log else ()
    return finish(frame, op, value, inputs, trail, frame.control(), perf_counter() - start)


def finish(
    frame: Frame,
    op: Op,
    value: Any,
    inputs: tuple[Any, ...],
    trail: tuple[Node[Any], ...],
    control: Node[Any] | None,
    seconds: float,
) -> Any:
    """Add the node of a call that returned, and hand out its result."""
    node = Node(scoped(frame, op), value, inputs, trail, control, seconds)
    frame.add(node)
    return wrap(frame, node)


def scoped(frame: Frame, op: Op) -> Op:
    """The op under the inline ops around it."""
    return op if frame.scope is None else op.within(frame.scope)


def settled(graph: Any, value: Any) -> Any:
    """What an op's body returned, without results in it and with a generator drained. Called in the body's frame."""
    kind = type(value)
    if kind in ATOMIC:
        return value
    if kind is GeneratorType:
        return drained(graph, cast("Any", value), DEFAULT_MAX_ITEMS)
    return bare_all(value)


DEFAULT_MAX_ITEMS = 10_000


def drained(graph: Any, items: Any, max_items: int) -> list[Any]:
    """All items of a generator.

    Raises:
        TraceError: there are more than `max_items`.
    """
    kept: list[Any] = []
    for item in items:
        if len(kept) >= max_items:
            _too_many(graph, max_items)
        kept.append(bare_all(item))
    return kept


async def adrained(graph: Any, items: Any, max_items: int) -> list[Any]:
    """All items of an async generator, as `drained`."""
    kept: list[Any] = []
    async for item in items:
        if len(kept) >= max_items:
            _too_many(graph, max_items)
        kept.append(bare_all(item))
    return kept


def _too_many(graph: Any, max_items: int) -> None:
    fault(graph, f"a generator gave more than {max_items} items while it was recorded; raise the limit with "
          "@trace(max_items=...) or let the op return fewer")  # fmt: skip


def loose(op: Op, given: tuple[Any, ...]) -> Any:
    """Run an operator outside the workflow it would be recorded in: on plain values, the reads logged in a body."""
    return op.fn(*[x if type(x) in ATOMIC else bare_all(x) for x in given])


def nested(frame: Frame, op: Op, given: tuple[Any, ...], invoke: Invoke) -> Any:
    """Run an op called in another op's body: the plain value, and a child of the caller."""
    frame = frame.mine()
    plain = tuple(x if type(x) in ATOMIC else bare_all(x) for x in given)
    mark, start = len(frame.log), perf_counter()
    inputs = tuple(keep(x) for x in plain)
    try:
        value = invoke(plain)
        value = value if type(value) is GeneratorType else bare_all(value)
    except BaseException as error:
        if blames_candidate(error):
            child_of(op, failure_of(error), inputs, frame, mark, perf_counter() - start)
        raise
    child_of(op, value, inputs, frame, mark, perf_counter() - start)
    return value


async def acall(frame: Frame, op: Op, given: tuple[Any, ...], invoke: Callable[[tuple[Any, ...]], Coroutine[Any, Any, Any]]) -> Any:  # fmt: skip
    """Record one call of an `async def` op, in the workflow or in a body."""
    frame = frame.mine()
    if frame.inside:
        return await _anested(frame, op, given, invoke)
    taken = [take(frame, x) for x in given]
    inputs = tuple(recorded for _, recorded in taken)
    borrowed, frame.borrowed = frame.borrowed, []
    control, start = frame.control(), perf_counter()
    body = Frame(frame.graph)  # a frame of its own: other calls of this task may run while it waits
    body.borrowed = borrowed
    token = FRAME.set(body)
    try:
        value = settled(frame.graph, await invoke(tuple(value for value, _ in taken)))
        if body.borrowed:
            check_borrowed(body, op)
    except BaseException as error:
        _leave(token)
        frame.fail(scoped(frame, op), inputs, body.settle(0), error)
        raise
    _leave(token)
    return finish(frame, op, value, inputs, body.settle(0), control, perf_counter() - start)


async def _anested(frame: Frame, op: Op, given: tuple[Any, ...], invoke: Callable[[tuple[Any, ...]], Any]) -> Any:
    plain = tuple(bare_all(x) for x in given)
    inputs = tuple(keep(x) for x in plain)
    inner, start = Frame(frame.graph, parent=frame), perf_counter()
    token = FRAME.set(inner)
    try:
        value: Any = bare_all(await invoke(plain))
    except BaseException as error:
        _leave(token)
        if blames_candidate(error):
            value = failure_of(error)
            _hand_over(frame, inner, op, value, inputs, perf_counter() - start)
        raise
    _leave(token)
    _hand_over(frame, inner, op, value, inputs, perf_counter() - start)
    return value


def _hand_over(frame: Frame, inner: Frame, op: Op, value: Any, inputs: tuple[Any, ...], seconds: float) -> None:
    mark = len(inner.log)
    child_of(op, value, inputs, inner, 0, seconds)
    del mark
    for node in inner.log:
        frame.log.append(node)


def _leave(token: Any) -> None:
    # a coroutine that is closed by the collector unwinds in another context, where there is nothing to restore
    with suppress(ValueError):
        FRAME.reset(token)


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
    kind = type(value)
    if kind in ATOMIC:
        return value, None
    if kind is Stream:
        value = value.drained()
        kind = type(value)

    def split(item: Any) -> tuple[Any, Any]:
        if type(item) is Parameter:
            node = graph.parameter_node(item)
            return node.value, node
        if type(item) is Stream:
            item = item.drained()
        if item._trace_graph is not graph:
            name = item._trace_node.op.name
            raise TraceError(f"the output holds a result of {name!r} from another recording; give feedback to its own")
        return item._trace_node.value, item._trace_node

    if issubclass(kind, Result) or kind is Parameter:
        return split(value)
    nodes: list[Node[Any]] = []
    plain, recorded = _unpack(value, split, nodes, _MAX_NESTING)
    return plain, (Nested(recorded, tuple(nodes)) if nodes else None)
