"""Pure ops: `@trace(memo=True)`. The same arguments under the same parameters are not run again within a search.

A call is known by the content of its arguments, and what it gave by the parameters that its body read then, so a proposal
that changes one parameter pays only for what depends on it. The function is wrapped before its op is made: the recording
itself knows nothing of it, a call that is not run is recorded with the same reads, and other ops cost nothing more.
A call that is found costs about 15 us (benchmarks/memo.py). `core.reuse` does the like for the training rollouts of one
proposal, unasked and by identity.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import Any

from trace_opt.core.content import Content, content
from trace_opt.core.context import STATE, RolloutState
from trace_opt.core.flight import Flight
from trace_opt.core.memory import MEMORY, Entry, Form, Key, Memory, Pure
from trace_opt.core.node import ATOMIC, Child, Node, ParameterNode, class_of
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Cost
from trace_opt.core.strand import Frame, here, running_loop
from trace_opt.errors import TraceError

_UNKNOWN_BYTES = 1000


def memoized(fn: Callable[..., Any], *, inline: bool = False) -> Callable[..., Any]:
    """The function, not run again in a recording for what a memory in force knows.

    Args:
        fn: A function whose value depends on its arguments, the parameters that it reads and the rollout's seed only.
        inline: What `trace` was told.

    Raises:
        TraceError: `fn` is inline, a generator or no function.
    """
    problem = _unfit(fn, inline=inline)
    if problem:
        label = getattr(fn, "__name__", repr(fn))
        raise TraceError(f"{label!r} got memo=True but {problem}; give it to a function or coroutine function")
    pure = Pure(fn)
    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def aremembered(*args: Any, **kwargs: Any) -> Any:
            call = _Call.of(pure, args, kwargs)
            return await fn(*args, **kwargs) if call is None else await call.aresult()

        return aremembered

    @functools.wraps(fn)
    def remembered(*args: Any, **kwargs: Any) -> Any:
        call = _Call.of(pure, args, kwargs)
        return fn(*args, **kwargs) if call is None else call.result()

    return remembered


def _unfit(fn: Any, *, inline: bool) -> str:
    if inline:
        return "is inline, so its inner calls are recorded in its place"
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        return "is a generator"
    return "" if inspect.isroutine(fn) else f"is a {class_of(fn).__name__}"


class _Call:
    """One call of a pure function in a recording, by a search that remembers."""

    __slots__ = ("_args", "_frame", "_key", "_kwargs", "_memory", "_state")

    def __init__(self, memory: Memory, frame: Frame, state: RolloutState, key: Key, args: Any, kwargs: Any) -> None:
        self._memory = memory
        self._frame = frame
        self._state = state
        self._key = key
        self._args = args
        self._kwargs = kwargs

    @classmethod
    def of(cls, pure: Pure, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
        """The call, or None where nothing is remembered here or no hash can stand for an argument."""
        memory = MEMORY.get()
        frame, state = (None, None) if memory is None else (here(), STATE.get())
        if memory is None or frame is None or state is None:
            return None
        given = content((args, kwargs))
        return None if given is None else cls(memory, frame, state, Key(pure, given.digest), args, kwargs)

    def result(self) -> Any:
        """What the call gives, run or not."""
        entry, flight, leads = self._begun()
        # the thread of an event loop must not wait: whoever runs the call may need that loop
        if flight is not None and not leads and running_loop() is None:
            flight.wait()
            entry = self._find()
        if entry is not None:
            return self._served(entry)
        try:
            with self._watched() as watch:
                value: Any = self._key.pure.fn(*self._args, **self._kwargs)
                watch.ended()
            self._keep(watch, value)
            return value
        finally:
            if flight is not None and leads:
                flight.land()

    async def aresult(self) -> Any:
        """`result` for a coroutine function."""
        entry, flight, leads = self._begun()
        if flight is not None and not leads:
            await flight.awaited()
            entry = self._find()
        if entry is not None:
            return self._served(entry)
        try:
            with self._watched() as watch:
                value: Any = await self._key.pure.fn(*self._args, **self._kwargs)
                watch.ended()
            self._keep(watch, value)
            return value
        finally:
            if flight is not None and leads:
                flight.land()

    def _find(self) -> Entry | None:
        return self._memory.find(self._key, self._frame, self._state)

    def _begun(self) -> tuple[Entry | None, Flight | None, bool]:
        entry = self._find()
        if entry is not None:
            return entry, None, False
        flight, leads = self._memory.board(self._key, self._frame, self._state)
        if leads:
            entry = self._find()  # the flight before this one may have landed meanwhile
            if entry is not None:
                flight.land()
                return entry, None, False
        return None, flight, leads

    def _served(self, entry: Entry) -> Any:
        """The value kept, with all that the body would have left in the recording and in the rollout."""
        for part in entry.trail:
            if isinstance(part, Child):
                self._frame.log.append(again(part, self._frame.graph.parameter_node))
            else:
                self._frame.read(part)
        if entry.form.seeded:
            self._state.noticed()
        for call, times in zip(entry.form.calls, entry.times, strict=True):
            self._state.calls[call] = self._state.calls.get(call, 0) + times
        return entry.value if class_of(entry.value) in ATOMIC else copy.deepcopy(entry.value)

    @contextmanager
    def _watched(self) -> Generator[_Watch]:
        """Run the body with an eye on what it reads, draws and costs."""
        watch = _Watch(self._state, self._frame)
        token = STATE.set(watch)
        try:
            with self._memory.meter() as meter:
                yield watch
                watch.cost = meter.cost
        finally:
            with suppress(ValueError):  # a coroutine that the collector closes unwinds in another context
                STATE.reset(token)

    def _keep(self, watch: _Watch, value: Any) -> None:
        """Keep what the body gave, unless it drew from the rollout's stream or read what is no parameter."""
        held: Content | None = content(value)
        trail = watch.trail()
        if held is None or trail is None or watch.drawn:
            return
        reads = tuple(part for part in trail if not isinstance(part, Child))
        form = Form(reads, watch.asked or bool(watch.made), tuple(watch.made))
        variant = form.variant(self._frame.graph.values, self._state.seed, watch.before)
        if variant is None:
            return
        try:
            own = value if class_of(value) in ATOMIC else copy.deepcopy(value)
        except Exception:  # noqa: BLE001 # a value that cannot be copied is only not kept
            return
        entry = Entry(
            form=form, variant=variant, value=own, cost=watch.cost, seconds=watch.seconds,
            size=held.size + sum(_size(part) for part in trail if isinstance(part, Child)),
            times=tuple(watch.made.values()), trail=trail,
        )  # fmt: skip
        self._memory.keep(self._key, entry)


class _Watch(RolloutState):
    """The rollout's state as a pure op's body sees it: the same, with a note of what was used.

    Attributes:
        asked: Whether the body asked for the rollout (its seed).
        drawn: Whether it drew from the rollout's stream; then the next call has to draw as well.
        made: How often it made each sampled model call.
        before: How often each of them was made before.
        cost, seconds: What the body came to.
    """

    __slots__ = ("_base", "_began", "_frame", "_log", "_mark", "asked", "before", "cost", "drawn", "made", "seconds")

    def __init__(self, base: RolloutState, frame: Frame) -> None:
        super().__init__(None, base.seed, training=base.training, memo=base.memo, repeat=base.repeat)
        self.values = base.values
        self.made: dict[str, int] = {}
        self.before: dict[str, int] = {}
        self.calls = _Calls(base.calls, self)
        self.asked = self.drawn = False
        self.cost = Cost()
        self.seconds = 0.0
        self._base = base
        self._frame = frame
        self._mark = len(frame.log)
        self._log: list[Node[Any]] = []
        self._began = perf_counter()

    def ended(self) -> None:
        """Note what the body read and took."""
        self._log = self._frame.log[self._mark :]
        self.seconds = perf_counter() - self._began

    def trail(self) -> tuple[Parameter[Any] | Child[Any], ...] | None:
        """The parameters read and the op calls made, in order; None where something else was read."""
        found: dict[Parameter[Any] | Child[Any], None] = {}
        for node in self._log:
            part = node if isinstance(node, Child) else node.parameter if isinstance(node, ParameterNode) else None
            if part is None:
                return None
            found[part] = None
        return tuple(found)

    def noticed(self) -> RolloutState:
        """Note that the body asked for the rollout."""
        self.asked = True
        self._base.noticed()
        return self

    @property
    def drew(self) -> bool:
        """As the rollout's own."""
        return self._base.drew

    @property
    def rng(self) -> Any:
        """The rollout's own stream."""
        self.drawn = True
        return self._base.rng


class _Calls(dict[str, int]):
    """The rollout's counts of sampled model calls, which the watch takes note of."""

    __slots__ = ("_base", "_watch")

    def __init__(self, base: dict[str, int], watch: _Watch) -> None:
        super().__init__()
        self._base = base
        self._watch = watch

    def get(self, key: str, default: Any = None) -> Any:
        """The rollout's count."""
        return self._base.get(key, default)

    def __setitem__(self, key: str, count: int) -> None:
        before = self._base.get(key, 0)
        self._watch.before.setdefault(key, before)
        self._watch.made[key] = self._watch.made.get(key, 0) + count - before
        self._base[key] = count


def again(child: Child[Any], node_of: Callable[[Parameter[Any]], Node[Any]]) -> Child[Any]:
    """An inner op call as another recording holds it.

    Args:
        child: The call.
        node_of: That recording's node of a parameter.
    """
    if not child.trail:
        return child
    trail: list[Node[Any]] = []
    for node in child.trail:
        if isinstance(node, Child):
            trail.append(again(node, node_of))
        else:
            parameter = node.parameter if isinstance(node, ParameterNode) else None
            trail.append(node if parameter is None else node_of(parameter))
    return Child(child.op, child.value, child.inputs, tuple(trail), None, child.seconds)


def _size(child: Child[Any]) -> int:
    """About how many bytes an inner call takes."""
    held = content((child.value, child.inputs))
    own = _UNKNOWN_BYTES if held is None else held.size
    return own + sum(_size(inner) for inner in child.trail if isinstance(inner, Child))
