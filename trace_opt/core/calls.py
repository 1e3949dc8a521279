"""How an op call is recorded: arguments taken apart, the body run, the node kept.

`trace` generates a wrapper with the common case of `call` written out (core/wrapper.py); everything else comes here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from contextlib import suppress
from time import perf_counter
from types import CoroutineType, GeneratorType
from typing import Any

from trace_opt.core.arguments import AsyncStream, Stream, bare_all, check_borrowed, take
from trace_opt.core.context import FRAME
from trace_opt.core.node import SOLID, Node, Op, class_of
from trace_opt.core.result import fault, wrap
from trace_opt.core.strand import Frame, blames_candidate, child_of, failure_of, here, keep

Invoke = Callable[[tuple[Any, ...]], Any]
DEFAULT_MAX_ITEMS = 10_000


def call(frame: Frame, op: Op, given: tuple[Any, ...], invoke: Invoke | None = None) -> Any:
    """Record one op call made in the workflow and hand out its result.

    Args:
        frame: The workflow's frame, of this thread and task.
        op: The op.
        given: One argument for each of its parameters.
        invoke: Calls the function with plain arguments; `op.fn` by position where left out.
    """
    taken = [(x, x) if type(x) in SOLID else take(frame, x) for x in given]
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
    kind = class_of(value)
    if kind in SOLID:
        return value
    if kind is GeneratorType:
        return drained(graph, value, DEFAULT_MAX_ITEMS)
    if kind is CoroutineType:
        value.close()
        fault(graph, f"an op that is no async function returned the coroutine {value.__qualname__!r}; make the op an "
              "async def that awaits it")  # fmt: skip
    return bare_all(value)


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
    return op.fn(*[x if type(x) in SOLID else bare_all(x) for x in given])


def nested(frame: Frame, op: Op, given: tuple[Any, ...], invoke: Invoke) -> Any:
    """Run an op called in another op's body: the plain value, and a child of the caller."""
    plain = tuple(x if type(x) in SOLID else bare_all(x) for x in given)
    mark, start = len(frame.log), perf_counter()
    inputs = tuple(keep(x) for x in plain)
    try:
        value = invoke(plain)
        value = value if class_of(value) is GeneratorType else bare_all(value)
    except BaseException as error:
        if blames_candidate(error):
            child_of(op, failure_of(error), inputs, frame, mark, perf_counter() - start)
        else:
            frame.graph.note_fault(error)
        raise
    child_of(op, value, inputs, frame, mark, perf_counter() - start)
    return value


async def acall(frame: Frame, op: Op, given: tuple[Any, ...], invoke: Callable[[tuple[Any, ...]], Coroutine[Any, Any, Any]]) -> Any:  # fmt: skip
    """Record one call of an `async def` op, in the workflow or in a body."""
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
            _hand_over(frame, inner, op, failure_of(error), inputs, perf_counter() - start)
        else:
            frame.graph.note_fault(error)
        raise
    _leave(token)
    _hand_over(frame, inner, op, value, inputs, perf_counter() - start)
    return value


def _hand_over(frame: Frame, inner: Frame, op: Op, value: Any, inputs: tuple[Any, ...], seconds: float) -> None:
    child_of(op, value, inputs, inner, 0, seconds)
    for node in inner.log:
        frame.log.append(node)


def _leave(token: Any) -> None:
    # a coroutine that is closed by the collector unwinds in another context, where there is nothing to restore
    with suppress(ValueError):
        FRAME.reset(token)


def stream(frame: Frame, op: Op, given: tuple[Any, ...], invoke: Invoke, max_items: int) -> Any:
    """What a generator op gives: the plain generator in a body, in the workflow a stream that records when drained."""
    if frame.inside:
        return invoke(tuple(bare_all(x) for x in given))
    if not inspect.isasyncgenfunction(op.fn):
        return Stream(lambda: _drain(op, given, invoke, max_items))

    async def drain() -> Any:
        now = here()
        if now is None:
            return [item async for item in invoke(tuple(bare_all(x) for x in given))]

        async def items(plain: tuple[Any, ...]) -> list[Any]:
            return await adrained(now.graph, invoke(plain), max_items)

        return await acall(now, op, given, items)

    return AsyncStream(drain)


def _drain(op: Op, given: tuple[Any, ...], invoke: Invoke, max_items: int) -> Any:
    """All items of a stream, recorded where the code that asks for them is."""
    frame = here()
    if frame is None:
        return list(invoke(tuple(bare_all(x) for x in given)))
    run = nested if frame.inside else call
    return run(frame, op, given, lambda plain: drained(frame.graph, invoke(plain), max_items))
