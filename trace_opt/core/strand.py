"""Who records where: one frame for each line of execution of a recording, and one for the bodies of its ops.

A task or thread that meets a frame of another one forks a frame of its own, so nothing interleaves. Decisions are a
chain along each line; the line that started others takes up their decisions in its own next step. While an op's body
runs, its frame is `inside`: reads are logged and inner calls become children. A sync body cannot be interleaved on its
own thread, so that is a flag and not a ContextVar (which would cost a fifth of an op call); an `async def` body gets a
frame of its own.
"""

from __future__ import annotations

import asyncio
import math
import sys
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from threading import get_ident
from typing import TYPE_CHECKING, Any, cast
from weakref import ref

from trace_opt.core.context import FRAME
from trace_opt.core.node import ATOMIC, Child, Failure, Nested, Node, Op, class_of, identity
from trace_opt.errors import BudgetError, LLMError, TraceError

if TYPE_CHECKING:
    from trace_opt.core.graph import Graph
    from trace_opt.core.parameter import Parameter

if sys.version_info >= (3, 12):
    _current_task: Callable[[], asyncio.Task[Any] | None] = asyncio.current_task
else:
    # asyncio's own current_task is a Python function before 3.12
    from asyncio import tasks

    _current_tasks: dict[Any, asyncio.Task[Any]] = cast("Any", tasks)._current_tasks

    def _current_task() -> asyncio.Task[Any] | None:
        return _current_tasks.get(running_loop())


running_loop: Callable[[], Any] = asyncio._get_running_loop

NO_TRACE: ContextVar[bool] = ContextVar("trace_opt_no_trace", default=False)

JOIN = Op("join", identity, ("decisions",), kind="decision")
RAISED = Op("raised", identity, ("error",), kind="decision")
NONE = Op("none", identity, ("value",), kind="decision")


class Strand:
    """The nodes that one line of execution recorded, and where in its parent's nodes it was started."""

    __slots__ = ("nodes", "parent", "start")

    def __init__(self, parent: Strand | None = None, start: int = 0) -> None:
        self.nodes: list[Node[Any]] = []
        self.parent = parent
        self.start = start


class Log(list[Node[Any]]):
    """Reads and inner calls of an op's body; what is appended is handed on to the body that started this one."""

    __slots__ = ("outer",)

    def __init__(self, outer: list[Node[Any]]) -> None:
        super().__init__()
        self.outer = outer

    def append(self, node: Node[Any]) -> None:
        """Log a node here and in the outer body."""
        super().append(node)
        self.outer.append(node)


class Frame:
    """Where one line of execution records.

    Attributes:
        graph: The recording.
        strand: Its nodes; `add` appends to them.
        inside: Whether an op's body is running; always true of a frame made for one.
        log: What the body that is running read and called.
        last: The latest decision.
        main: Of a line that was made where no event loop ran, the main task of the loop that it waits for.
        memo: What op calls gave in an earlier rollout on the same example, or None.
        pending: Frames started from here with decisions not yet taken up.
        origin: The latest decision of the frame it was forked from, at that time.
        borrowed: Plain copies handed to a body in place of containers that hold results, with what they held.
        scope: Names of the inline ops around, joined by "/", or None.
    """

    __slots__ = (
        "add", "borrowed", "graph", "inside", "last", "log", "main", "memo", "origin", "parent", "pending", "scope", "strand", "task",
        "thread",
    )  # fmt: skip

    def __init__(
        self,
        graph: Graph,
        *,
        strand: Strand | None = None,
        parent: Frame | None = None,
        log: list[Node[Any]] | None = None,
    ) -> None:
        self.graph = graph
        self.thread = get_ident()
        task = _current_task() if running_loop() is not None else None
        # weakly: a task's context holds this frame
        self.task = None if task is None else ref(task)
        self.main: ref[asyncio.Task[Any]] | None = None
        self.parent = parent
        self.last: Node[Any] | None = None
        self.origin: Node[Any] | None = None
        self.pending: dict[Frame, None] = {}
        self.borrowed: list[tuple[Any, Any]] = []
        self.scope: str | None = None
        self.log: list[Node[Any]] = [] if log is None else log
        self.inside = strand is None
        self.memo = graph.memo
        self.strand = strand
        if strand is not None:
            self.add = strand.nodes.append
            graph.strands.append(strand)

    def foreign(self) -> bool:
        """Whether the running task is another than this frame's; asked only where an event loop runs."""
        task = _current_task()
        if self.task is not None:
            return task is not self.task()
        main = None if self.main is None else self.main()
        if task is not None and (main is None or main.done()):
            # the line was made where no loop ran, waits for the loop meanwhile, and goes on in its main task
            main = _oldest_task()
            self.main = ref(main)
        return task is not main

    def mine(self) -> Frame | None:
        """This frame, or a fork of it that is put in force where another thread or task is running.

        None once the recording has closed: what a task or thread does after that is not recorded.
        """
        if not self.graph.open:
            return None
        if self.thread == get_ident() and (running_loop() is None or not self.foreign()):
            return self
        # a thread that a task started was started by the workflow: the task's own sync bodies cannot wait for threads
        elsewhere = self.task is not None and self.thread != get_ident()
        forked = self.fork(inside=self.strand is None or (self.inside and not elsewhere))
        FRAME.set(forked)
        return forked

    def fork(self, *, inside: bool, start: int | None = None) -> Frame:
        """A frame for a line of execution that starts here, inside the running body or in the workflow.

        Args:
            inside: Whether it runs for an op's body.
            start: How many nodes of this line stand before it in canonical order; all there are by default.
        """
        if inside or self.strand is None:
            return Frame(self.graph, parent=self, log=Log(self.log))
        start = len(self.strand.nodes) if start is None else start
        forked = Frame(self.graph, strand=Strand(self.strand, start), parent=self)
        forked.last = forked.origin = self.last
        forked.scope = self.scope
        return forked

    def control(self) -> Node[Any] | None:
        """The latest decision, those of finished or running forks included."""
        if self.pending:
            self.last = self._join()
        return self.last

    def _join(self) -> Node[Any] | None:
        """One decision that stands for this line's latest and those of the forks that decided since."""
        forks: list[Frame] = []
        while self.pending:  # popitem is atomic, so a fork that decides meanwhile is not lost
            forks.append(self.pending.popitem()[0])
        tips = [tip for fork in reversed(forks) if (tip := fork.control()) is not None]
        if self.last is not None and not any(fork.origin is self.last for fork in forks):
            tips.insert(0, self.last)
        joined = tuple(tips)
        if len(joined) == 1:
            return joined[0]
        node = Node(JOIN, None, (Nested(joined, joined),))
        self.add(node)
        return node

    def decide(self, op: Op, inputs: tuple[Any, ...], value: Any) -> None:
        """Record that the workflow read a concrete value.

        Args:
            op: What read it (`bool`, `len`, `hash`, ...).
            inputs: What was read, as for any op.
            value: What it read.
        """
        node = Node(op, value, inputs, (), self.control())
        self.add(node)
        self.last = node
        fork, parent = self, self.parent
        while parent is not None:
            parent.pending[fork] = None
            fork, parent = parent, parent.parent

    def read(self, parameter: Parameter[Any]) -> Any:
        """A parameter's value as code here is to see it: plain in a body, a recorded result in the workflow."""
        frame = self
        if self.thread != get_ident() or running_loop() is not None:
            frame = self.mine() or self
        node = frame.graph.parameter_node(parameter)
        if frame.inside:
            frame.log.append(node)
            return node.value
        return _wrap()(frame, node)

    def settle(self, start: int) -> tuple[Node[Any], ...]:
        """Take the log from `start` on: reads once each, inner calls in order."""
        trail = tuple(dict.fromkeys(self.log[start:]))
        del self.log[start:]
        return trail

    def fail(self, op: Op, inputs: tuple[Any, ...], trail: tuple[Node[Any], ...], error: BaseException) -> None:
        """Record that an op call raised; the caller raises the exception again, unchanged."""
        if not blames_candidate(error):
            self.graph.note_fault(error)
            return
        node = Node(op, failure_of(error), inputs, trail, self.control())
        self.add(node)
        mark_error(error, node)
        self.decide(RAISED, (node,), str(node.value))


@cache
def _wrap() -> Callable[[Frame, Node[Any]], Any]:
    # it imports this module; an import statement in `read` would cost a third of it
    from trace_opt.core.result import wrap

    return wrap


def _oldest_task() -> asyncio.Task[Any]:
    """The task that the running loop was started for: asyncio numbers tasks that are given no name."""

    def number(task: asyncio.Task[Any]) -> float:
        _, _, digits = task.get_name().rpartition("Task-")
        return int(digits) if digits.isdecimal() else math.inf

    return min(asyncio.all_tasks(), key=number)


def here() -> Frame | None:
    """Where the code that is running records, or None where it does not."""
    frame = FRAME.get()
    return None if frame is None else frame.mine()


def blames_candidate(error: BaseException) -> bool:
    """Whether an exception is a workflow's own failure, not the framework's, the budget's, a key's or an interrupt."""
    if not isinstance(error, Exception) or isinstance(error, (TraceError, BudgetError)):
        return False
    return not (isinstance(error, LLMError) and error.lasting)


def failure_of(error: BaseException) -> Failure:
    """The text of an exception."""
    try:
        message = str(error)
    except Exception as hostile:  # noqa: BLE001 # an exception whose own text fails must not hide the failure
        message = f"(its text raised {type(hostile).__name__})"
    try:
        lines = traceback.format_exception(error)
    except Exception:  # noqa: BLE001 # as above
        lines = traceback.format_tb(error.__traceback__)
    return Failure(type(error).__name__, message, "".join(lines))


def mark_error(error: BaseException, node: Node[Any]) -> None:
    """Tie an exception to its error node: the exception points at the node, never back."""
    # past any __setattr__ of its own: every exception has a __dict__
    BaseException.__setattr__(error, "__trace_node__", node)


def child_of(op: Op, value: Any, inputs: tuple[Any, ...], frame: Frame, start: int, seconds: float) -> Child[Any]:
    """Close an op call made in another op's body: its reads stay in the log, its inner calls move below it."""
    trail = frame.settle(start)
    child = Child(op, value, inputs, trail, None, seconds)
    frame.log[start:] = [node for node in trail if type(node) is not Child]
    frame.log.append(child)
    return child


def keep(value: Any) -> Any:
    """An input as a recording keeps it: exact lists, dicts and sets as a shallow copy, all else by reference."""
    kind = class_of(value)
    if kind in ATOMIC:
        return value
    return value.copy() if kind is list or kind is dict or kind is set else value
