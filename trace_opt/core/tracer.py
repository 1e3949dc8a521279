"""`@trace` makes a function an op; `record` opens a recording.

The wrapper of an op is generated with the op's own signature, so the interpreter binds the arguments and fills the
defaults; outside a recording it costs one ContextVar read. Its source is real to tracebacks (`<trace ask>`).
"""

from __future__ import annotations

import functools
import inspect
import linecache
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from threading import get_ident
from time import perf_counter
from typing import Any, TypeVar, cast, overload

from trace_opt.core import calls
from trace_opt.core.context import FRAME, STATE, RolloutState
from trace_opt.core.graph import Graph
from trace_opt.core.node import ATOMIC, Node, Op
from trace_opt.core.operators import DECISIONS
from trace_opt.core.result import PLAIN_STAND_INS, STAND_INS, Blank, Result, wrap
from trace_opt.core.strand import NO_TRACE, Frame, Strand, blames_candidate, failure_of, running_loop
from trace_opt.errors import OpError, TraceError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class _Process:
    """Whether a recording was ever opened here: until then no result exists that an op could be handed."""

    recorded = False


@overload
def trace(fn: F, /) -> F: ...
@overload
def trace(*, name: str | None = None, inline: bool = False, max_items: int = ...) -> Callable[[F], F]: ...
def trace(
    fn: Any = None, /, *, name: str | None = None, inline: bool = False, max_items: int = calls.DEFAULT_MAX_ITEMS
) -> Any:
    """Make a function an op: outside a recording it is the plain function, in one its calls are recorded.

    Works on functions, `async def`, generators, methods, class and static methods, lambdas, partials, builtins and
    classes; as `@trace`, `@trace(...)` or `trace(json.dumps)`.

    Args:
        fn: The function.
        name: Name of the op; the function's own by default.
        inline: Hand results through to the body and record its inner calls in its place, under its name as scope.
        max_items: How many items a generator may give while it is recorded.

    Returns:
        A function of the same signature.

    Raises:
        TraceError: `fn` cannot be called.
    """
    if fn is None:
        return lambda given: trace_function(given, name, inline, max_items)
    return trace_function(fn, name, inline, max_items)


def trace_function(fn: Any, name: str | None, inline: bool, max_items: int) -> Any:  # noqa: FBT001 # internal
    """`trace` with its options spelled out."""
    if isinstance(fn, (classmethod, staticmethod)):
        inner: Any = fn.__func__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return type(fn)(trace_function(inner, name, inline, max_items))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if not callable(fn):
        raise TraceError(f"trace got {fn!r}, which cannot be called; decorate a function")
    if getattr(fn, "__trace_op__", None) is not None:
        return fn
    return _Wrapper(fn, name, inline=inline, max_items=max_items).build()


class _Wrapper:
    """Writes and compiles the wrapper of one op."""

    def __init__(self, fn: Any, name: str | None, *, inline: bool, max_items: int) -> None:
        self.fn = fn
        self.inline = inline
        self.max_items = max_items
        target = fn.func if isinstance(fn, functools.partial) else fn  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        own = getattr(target, "__name__", None) or type(target).__name__  # pyright: ignore[reportUnknownArgumentType]
        self.name = name or (own if own != "<lambda>" else "function")
        try:
            self.signature = inspect.signature(fn)
        except (ValueError, TypeError):  # some builtins tell nothing about theirs
            self.signature = inspect.signature(lambda *args, **kwargs: None)  # pyright: ignore[reportUnknownLambdaType] # noqa: ARG005
        self.parameters = list(self.signature.parameters.values())
        self.is_method = _is_method(fn, self.parameters)
        self.taken = [p.name for p in self.parameters[1 if self.is_method else 0 :]]
        self.op = Op(
            self.name, fn, tuple(self.taken), doc=_first_paragraph(fn), signature=str(self.signature), inline=inline,
            variadic=frozenset(p.name for p in self.parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)),
        )  # fmt: skip

    def build(self) -> Any:
        is_async = inspect.iscoroutinefunction(self.fn)
        if inspect.isgeneratorfunction(self.fn) or inspect.isasyncgenfunction(self.fn):
            body = self._stream_body()
        elif self.inline:
            body = self._inline_body(is_async=is_async)
        elif is_async:
            body = self._async_body()
        else:
            body = self._sync_body()
        safe = self.name if self.name.isidentifier() and not self.name.startswith("_t_") else "op"
        head = f"{'async ' if is_async else ''}def {safe}({self._declaration()}):\n"
        names = self._names()
        source = head + body
        filename = f"<trace {self.name}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        exec(compile(source, filename, "exec"), names)  # noqa: S102 # built from the signature alone, no user text runs
        made = names[safe]
        functools.update_wrapper(made, self.fn)
        for attribute, default in (("__name__", self.name), ("__qualname__", self.name), ("__doc__", None)):
            if not hasattr(self.fn, attribute):
                setattr(made, attribute, default)
        made.__signature__ = self.signature
        made.__trace_op__ = self.op
        return made

    def _names(self) -> dict[str, Any]:
        defaults = {
            f"_t_d{i}": p.default for i, p in enumerate(self.parameters) if p.default is not inspect.Parameter.empty
        }
        return {
            "_t_fn": self.fn, "_t_op": self.op, "_t_get": FRAME.get, 
            "_t_ident": get_ident, "_t_loop": running_loop, "_t_process": _Process, "_t_atomic": ATOMIC,
            "_t_bare": calls.bare_all, "_t_take": calls.take, "_t_nested": calls.nested, "_t_settled": calls.settled,
            "_t_check": calls.check_borrowed, "_t_clock": perf_counter, "_t_node": Node, "_t_wrap": wrap,
            "_t_stand_in": STAND_INS.get, "_t_plain": PLAIN_STAND_INS, "_t_new": object.__new__, "_t_acall": calls.acall, "_t_stream": _stream,
            "_t_inline": _inline, "_t_max_items": self.max_items, "_t_scoped": calls.scoped,
            "_t_blank": Blank,
            **defaults,
        }  # fmt: skip

    def _declaration(self) -> str:
        """The argument list, defaults by reference."""
        parts: list[str] = []
        slash = star = False
        for i, p in enumerate(self.parameters):
            if slash and p.kind is not p.POSITIONAL_ONLY:
                parts.append("/")
            slash = p.kind is p.POSITIONAL_ONLY
            if p.kind is p.KEYWORD_ONLY and not star:
                parts.append("*")
                star = True
            star = star or p.kind is p.VAR_POSITIONAL
            default = "" if p.default is p.empty else f"=_t_d{i}"
            mark = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
            parts.append(f"{mark}{p.name}{default}")
        if slash:
            parts.append("/")
        return ", ".join(parts)

    def _call(self, names: dict[str, str] | None = None) -> str:
        """The argument list that calls the function with the wrapper's own arguments (or those in `names`)."""
        parts: list[str] = []
        for p in self.parameters:
            value = (names or {}).get(p.name, p.name)
            if p.kind is p.KEYWORD_ONLY:
                parts.append(f"{p.name}={value}")
            else:
                parts.append({p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + value)
        return ", ".join(parts)

    def _given(self) -> str:
        return "(" + "".join(f"{name}, " for name in self.taken) + ")"

    def _invoke(self) -> str:
        names = {name: f"_t_v[{i}]" for i, name in enumerate(self.taken)}
        return f"lambda _t_v: _t_fn({self._call(names)})"

    def _outside(self, returned: str) -> list[str]:
        unwrap = [f"            if type({name}) not in _t_atomic: {name} = _t_bare({name})" for name in self.taken]
        check = ["        if _t_process.recorded:", *unwrap] if unwrap else []
        return ["    _t_f = _t_get()", "    if _t_f is None:", *check, f"        return {returned}"]

    def _sync_body(self) -> str:
        takes: list[str] = []
        for i, name in enumerate(self.taken):
            takes += [
                f"    _t_k = type({name})",
                f"    if _t_k in _t_atomic: _t_n{i} = {name}",
                f"    elif _t_k in _t_plain and {name}._trace_graph is _t_g:",
                f"        _t_n{i} = {name}._trace_node; {name} = _t_n{i}.value",
                f"    else: {name}, _t_n{i} = _t_take(_t_f, {name})",
            ]
        inputs = "(" + "".join(f"_t_n{i}, " for i in range(len(self.taken))) + ")"
        # written out instead of calling calls.call and Node(): each function call is a tenth of an op call's cost
        lines = [
            *self._outside(f"_t_fn({self._call()})"),
            "    if _t_f.thread != _t_ident() or _t_loop() is not None: _t_f = _t_f.mine()",
            f"    if _t_f.inside: return _t_nested(_t_f, _t_op, {self._given()}, {self._invoke()})",
            "    _t_g = _t_f.graph",
            *takes,
            "    _t_f.inside = True",
            "    _t_start = _t_clock()",
            "    try:",
            f"        _t_value = _t_fn({self._call()})",
            "        if type(_t_value) not in _t_atomic: _t_value = _t_settled(_t_g, _t_value)",
            "        if _t_f.borrowed: _t_check(_t_f, _t_op)",
            "    except BaseException as _t_error:",
            "        _t_f.inside = False",
            "        _t_f.borrowed.clear()",
            f"        _t_f.fail(_t_scoped(_t_f, _t_op), {inputs}, _t_f.settle(0), _t_error)",
            "        raise",
            "    _t_f.inside = False",
            "    _t_made = _t_new(_t_node)",
            "    _t_made.seconds = _t_clock() - _t_start",
            "    _t_made.op = _t_op if _t_f.scope is None else _t_op.within(_t_f.scope)",
            "    _t_made.value = _t_value",
            f"    _t_made.inputs = {inputs}",
            "    _t_made.trail = _t_f.settle(0) if _t_f.log else ()",
            "    _t_made.control = _t_f.control() if _t_f.pending else _t_f.last",
            "    _t_made.index = -1",
            "    _t_f.add(_t_made)",
            "    _t_class = _t_stand_in(type(_t_value))",
            "    if _t_class is None: return _t_wrap(_t_f, _t_made)",
            "    _t_result = _t_blank()",
            "    _t_result._trace_node = _t_made",
            "    _t_result._trace_graph = _t_g",
            "    _t_result.__class__ = _t_class",
            "    return _t_result",
        ]
        return "\n".join(lines) + "\n"

    def _async_body(self) -> str:
        lines = [
            *self._outside(f"await _t_fn({self._call()})"),
            f"    return await _t_acall(_t_f, _t_op, {self._given()}, {self._invoke()})",
        ]
        return "\n".join(lines) + "\n"

    def _stream_body(self) -> str:
        lines = [
            *self._outside(f"_t_fn({self._call()})"),
            f"    return _t_stream(_t_f.mine(), _t_op, {self._given()}, {self._invoke()}, _t_max_items)",
        ]
        return "\n".join(lines) + "\n"

    def _inline_body(self, *, is_async: bool) -> str:
        wait = "await " if is_async else ""
        nested = "_t_acall" if is_async else "_t_nested"
        lines = [
            *self._outside(f"{wait}_t_fn({self._call()})"),
            "    _t_f = _t_f.mine()",
            "    if _t_f.inside:",
            f"        return {wait}{nested}(_t_f, _t_op, {self._given()}, {self._invoke()})",
            "    with _t_inline(_t_f, _t_op.name):",
            f"        return {wait}_t_fn({self._call()})",
        ]
        return "\n".join(lines) + "\n"


def _is_method(fn: Any, parameters: list[inspect.Parameter]) -> bool:
    """Whether the first argument is the instance or class that a method is called on."""
    scope = getattr(fn, "__qualname__", "").rpartition(".")[0]
    return bool(scope and not scope.endswith("<locals>") and parameters and parameters[0].name in ("self", "cls"))


def _first_paragraph(fn: Any) -> str:
    if isinstance(fn, (functools.partial, type)) or not getattr(fn, "__name__", ""):
        return ""
    return " ".join((inspect.getdoc(fn) or "").split("\n\n")[0].split())


@contextmanager
def _inline(frame: Frame, name: str) -> Iterator[None]:
    before = frame.scope
    frame.scope = name if before is None else f"{before}/{name}"
    try:
        yield
    finally:
        frame.scope = before


def _stream(frame: Frame, op: Op, given: tuple[Any, ...], invoke: calls.Invoke, max_items: int) -> Any:
    """What a generator op gives: the plain generator in a body, in the workflow a stream that records when drained."""
    is_async = inspect.isasyncgenfunction(op.fn)
    if frame.inside:
        return invoke(tuple(calls.bare_all(x) for x in given))
    if is_async:

        async def adrain(plain: tuple[Any, ...]) -> list[Any]:
            return await calls.adrained(frame.graph, invoke(plain), max_items)

        return calls.AsyncStream(lambda: calls.acall(frame.mine(), op, given, adrain))
    return calls.Stream(
        lambda: calls.call(frame.mine(), op, given, lambda plain: calls.drained(frame.graph, invoke(plain), max_items))
    )


class record:  # noqa: N801 # reads as a verb: `with record() as graph`
    """Record the op calls made in a `with` block.

    Args:
        values: A candidate's values by full parameter name; others keep their own.
        seed: The rollout's seed, for `rollout().seed` and `.rng`.
        grad: Whether tensor parameters are handed out requiring grad.

    Entering gives the `Graph`. Recordings are independent of each other, nested ones too.

    Raises:
        OpError: on leaving, where an Exception leaves the block; the user's exception is its cause.
        TraceError, BudgetError, LLMError: on leaving, unchanged, also where the workflow swallowed one that no
            candidate is to blame for.
    """

    def __init__(self, values: dict[str, Any] | None = None, seed: int | None = None, *, grad: bool = True) -> None:
        self._state = RolloutState(values, seed, grad=grad)

    def __enter__(self) -> Graph:
        _Process.recorded = True
        self._graph = graph = Graph(self._state)
        self._frame = Frame(graph, strand=Strand())
        graph.frame = self._frame
        self._tokens = STATE.set(self._state), FRAME.set(self._frame), NO_TRACE.set(False)
        return graph

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        graph, frame = self._graph, self._frame
        state_token, frame_token, no_trace_token = self._tokens
        STATE.reset(state_token)
        FRAME.reset(frame_token)
        NO_TRACE.reset(no_trace_token)
        failed = self._failed_node(error) if isinstance(error, Exception) and blames_candidate(error) else None
        fault = graph.close(frame.control())
        del self._frame, self._graph, self._tokens
        if fault is not None and fault is not error and (error is None or isinstance(error, Exception)):
            raise fault
        if failed is not None and error is not None:
            raise OpError(f"{failed.value} (in {failed.op.name!r})", node=failed, graph=graph) from error

    def _failed_node(self, error: Exception) -> Node[Any]:
        """The error node of an exception that leaves: its op call's, or a new one tied to every leaf."""
        node = getattr(error, "__trace_node__", None)
        if node is not None and self._graph.holds(node):
            return node
        return self._graph.output_of_leaves(failure_of(error))


@contextmanager
def no_trace() -> Iterator[None]:
    """Switch recording off within a block, re-entrantly; the candidate's values stay in force."""
    frame_token, flag_token = FRAME.set(None), NO_TRACE.set(True)
    try:
        yield
    finally:
        NO_TRACE.reset(flag_token)
        FRAME.reset(frame_token)


def carry(fn: F) -> F:
    """A function that takes the recording along into a thread: `pool.map(carry(ask), items)`."""
    frame = FRAME.get()
    if frame is None:
        return fn
    context = copy_context()
    home = frame.mine()
    inside = home.inside

    @functools.wraps(fn)
    def carried(*args: Any, **kwargs: Any) -> Any:
        # a context may run in one thread at a time, so each call gets a copy
        return context.copy().run(_run_forked, home, inside, fn, args, kwargs)

    return cast("F", carried)


def _run_forked(home: Frame, inside: bool, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: FBT001 # internal
    FRAME.set(home.fork(inside=inside) if home.graph.open else None)
    return fn(*args, **kwargs)


def node_of(result: T) -> Node[T]:
    """The node of a result.

    Raises:
        TraceError: a plain value was passed.
    """
    if not issubclass(type(result), Result):
        raise TraceError(f"node_of got the plain value {result!r}; pass what an op call handed out in a recording")
    return cast("Any", result)._trace_node


def op_of(fn: Callable[..., Any]) -> Op:
    """The op of a decorated function.

    Raises:
        TraceError: the function is not decorated.
    """
    op = getattr(fn, "__trace_op__", None)
    if op is None:
        raise TraceError(f"{fn!r} is no op; decorate it with @trace")
    return op


def plain(value: T) -> T:
    """The bare value of a result, also within containers; in the workflow that is a decision."""
    frame = FRAME.get()
    if frame is not None and not frame.inside:
        frame = frame.mine()
        bare, recorded = calls.take(frame, value)
        frame.borrowed.clear()
        if bare is not value:
            frame.decide(DECISIONS["plain"], (recorded,), bare)
        return bare
    return calls.bare_all(value)
