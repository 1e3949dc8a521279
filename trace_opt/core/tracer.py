"""`@trace` makes a function an op; `record` opens a recording.

Outside a recording an op is the plain function. A recording lives in a ContextVar and owns its graph: there is no global
registry, and dropping the graph frees it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from trace_opt.core import arguments
from trace_opt.core.calls import DEFAULT_MAX_ITEMS
from trace_opt.core.context import FRAME, STATE, Process, RolloutState
from trace_opt.core.graph import Graph
from trace_opt.core.node import Nested, Node, Op, class_of, is_a
from trace_opt.core.operators import DECISIONS
from trace_opt.core.result import Result
from trace_opt.core.strand import NO_TRACE, Frame, Strand, blames_candidate, failure_of, here
from trace_opt.core.wrapper import Wrapper
from trace_opt.errors import OpError, TraceError

if TYPE_CHECKING:
    from trace_opt.core.decoration import Uses
    from trace_opt.core.reuse import Memo
    from trace_opt.core.sandbox import Sandbox

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@overload
def trace(fn: F, /) -> F: ...
@overload
def trace(
    *, name: str | None = None, inline: bool = False, max_items: int = ..., vjp: Callable[..., Any] | None = None,
    memo: bool = False, trainable: bool = False, sandbox: str | Sandbox = "monty", uses: Uses = (), source: str | None = None,
) -> Callable[[F], F]: ...  # fmt: skip
def trace(
    fn: Any = None, /, *, name: str | None = None, inline: bool = False, max_items: int = DEFAULT_MAX_ITEMS,
    vjp: Callable[..., Any] | None = None, memo: bool = False, trainable: bool = False, sandbox: str | Sandbox = "monty",
    uses: Uses = (), source: str | None = None,
) -> Any:  # fmt: skip
    """Make a function an op: outside a recording it is the plain function, in one its calls are recorded.

    Works on functions, `async def`, generators, methods, class and static methods, lambdas, partials, builtins and
    classes; as `@trace`, `@trace(...)` or `trace(json.dumps)`.

    Args:
        fn: The function.
        name: Name of the op; the function's own by default.
        inline: Hand results through to the body and record its inner calls in its place, under its name as scope.
        max_items: How many items a generator may give while it is recorded.
        vjp: The gradient rule of a plain function on tensors, in place of torch's own gradients (a vector-Jacobian
            product): `vjp(grad_output, output, *inputs)` returns a gradient for each input, None where there is none
            (see `core.vjp.with_rule`).
        memo: Declares that the function's value depends on its arguments, the parameters that it reads and the rollout's
            seed only, and that it does nothing else: within a search, and with a store in later ones, it is not run again
            for the same (see `core.memo`). Arguments that have no stable content (see `core.content`) are run.
        trainable: Make the source of a function or method a Parameter (see `core.trainable`): optimizers may rewrite
            it. The original runs in process; what others wrote runs in a sandbox.
        sandbox: Of a trainable op: `"monty"` (a small Python that can touch nothing), `"process"` (full Python, confined
            by the kernel), `"trusted"` (in this process, with all your rights), or a Sandbox with limits of its own.
        uses: Of a trainable op: functions and ops that generated code may call, by their names or by those given.
        source: Of a trainable op: its text, where Python does not know it.

    Returns:
        A function of the same signature.

    Raises:
        TraceError: `fn` cannot be called, or is none that can have a `vjp` or a `memo`, or be trained.
    """
    code = {"sandbox": sandbox, "uses": uses, "source": source} if trainable else None
    if code is None and (uses or source is not None or sandbox != "monty"):
        raise TraceError("trace got sandbox=, uses= or source= without trainable=True; add it, or leave them out")
    given: dict[str, Any] = {
        "name": name,
        "inline": inline,
        "max_items": max_items,
        "vjp": vjp,
        "memo": memo,
        "code": code,
    }
    return functools.partial(trace_function, **given) if fn is None else trace_function(fn, **given)


def trace_function(
    fn: Any, *, name: str | None, inline: bool, max_items: int, vjp: Callable[..., Any] | None = None,
    memo: bool = False, code: dict[str, Any] | None = None,
) -> Any:  # fmt: skip
    """`trace` with its options spelled out; `code` holds those of a trainable op."""
    if is_a(fn, (classmethod, staticmethod)):
        inner = trace_function(
            fn.__func__, name=name, inline=inline, max_items=max_items, vjp=vjp, memo=memo, code=code
        )
        return class_of(fn)(inner)
    if not callable(fn):
        raise TraceError(f"trace got {fn!r}, which cannot be called; decorate a function")
    if getattr(fn, "__trace_op__", None) is not None:
        if vjp is not None:
            raise TraceError(f"{fn!r} is an op already, without this vjp rule; give vjp= where it is made one")
        if memo:
            raise TraceError(f"{fn!r} is an op already, without a memo; give memo= where it is made one")
        if code is not None and getattr(fn, "__trace_code__", None) is None:
            raise TraceError(f"{fn!r} is an op already; give trainable=True where it is made one")
        return fn
    if vjp is not None:
        from trace_opt.core.vjp import with_rule

        fn = with_rule(fn, vjp, inline=inline)
    if code is not None:
        if inline or vjp is not None:
            raise TraceError(f"{fn!r} got trainable=True with {'inline=True' if inline else 'vjp='}; leave one out")
        from trace_opt.core.trainable import trainable

        fn = trainable(fn, name=name, **code)
    if memo:
        from trace_opt.core.memo import memoized

        fn = memoized(fn, inline=inline)
    return Wrapper(fn, name, inline=inline, max_items=max_items).build()


class record:  # noqa: N801 # reads as a verb: `with record() as graph`
    """Record the op calls made in a `with` block.

    Args:
        values: A candidate's values by full parameter name; others keep their own.
        seed: The rollout's seed, for `rollout().seed` and `.rng`.
        training: By hand, None: tensor parameters are handed out requiring grad. True, in a search's training rollouts:
            those of `values` that require grad are handed out as they are. False: none is.
        memo: What op calls gave in an earlier rollout on the same example, to be reused.
        repeat: Which time an example is run with this seed (see `RolloutState`).

    Entering gives the `Graph`. Recordings are independent of each other, nested ones too.

    Raises:
        OpError: on leaving, where an Exception leaves the block; the user's exception is its cause.
        TraceError, BudgetError, LLMError: on leaving, unchanged, also where the workflow swallowed one that no
            candidate is to blame for.
    """

    def __init__(
        self, values: dict[str, Any] | None = None, seed: int | None = None, *, training: bool | None = None,
        memo: Memo | None = None, repeat: int = 0,
    ) -> None:  # fmt: skip
        self._given = values, seed, training, memo, repeat

    def __enter__(self) -> Graph:
        Process.unwraps = True
        values, seed, training, memo, repeat = self._given
        state = RolloutState(values, seed, training=training, memo=memo, repeat=repeat)
        self._graph = graph = Graph(state)
        self._frame = Frame(graph, strand=Strand())
        graph.frame = self._frame
        self._tokens = STATE.set(state), FRAME.set(self._frame), NO_TRACE.set(False)
        return graph

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        graph, frame = self._graph, self._frame
        state_token, frame_token, no_trace_token = self._tokens
        STATE.reset(state_token)
        FRAME.reset(frame_token)
        NO_TRACE.reset(no_trace_token)
        del self._frame, self._graph, self._tokens
        fault = graph.close(frame)
        if fault is not None and fault is not error and (error is None or isinstance(error, Exception)):
            raise fault
        if isinstance(error, Exception) and blames_candidate(error):
            raise _op_error(graph, error) from error


def _op_error(graph: Graph, error: Exception) -> OpError:
    """What an exception becomes as it leaves a recording."""
    node = getattr(error, "__trace_node__", None)
    if node is None or not graph.holds(node):
        node = graph.output_of_leaves(failure_of(error))
    made = OpError(f"{node.value} (in {node.op.name!r})", node=node, graph=graph)
    if "Result[" in node.value.message:
        made.add_note(
            "A recorded result met code that insists on its exact type: call that code through an op, as in "
            "trace(json.dumps)(x), or give it plain(x)."
        )
    return made


@contextmanager
def no_trace() -> Generator[None]:
    """Switch recording off within a block, re-entrantly; the candidate's values stay in force."""
    frame_token, flag_token = FRAME.set(None), NO_TRACE.set(True)
    try:
        yield
    finally:
        NO_TRACE.reset(flag_token)
        FRAME.reset(frame_token)


def carry(fn: F) -> F:
    """A function that takes the recording along into a thread: `pool.map(carry(ask), items)`."""
    home = here()
    if home is None:
        return fn
    context = copy_context()
    inside = home.inside
    start = 0 if home.strand is None else len(home.strand.nodes)  # when a thread gets to run is chance

    def forked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        FRAME.set(home.fork(inside=inside, start=start) if home.graph.open else None)
        return fn(*args, **kwargs)

    @functools.wraps(fn)
    def carried(*args: Any, **kwargs: Any) -> Any:
        # a context may run in one thread at a time, so each call gets a copy
        return context.copy().run(forked, args, kwargs)

    return cast("F", carried)


def node_of(result: T) -> Node[T]:
    """The node of a result.

    Raises:
        TraceError: a plain value was passed.
    """
    if is_a(result, arguments.Stream):
        return node_of(cast("Any", result).drained())
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
    frame = here()
    if frame is None or frame.inside:
        return arguments.bare_all(value)
    bare, recorded = arguments.take(frame, value)
    frame.borrowed.clear()
    if is_a(recorded, (Node, Nested)):
        frame.decide(DECISIONS["plain"], (recorded,), bare)
    return bare
