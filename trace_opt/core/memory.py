"""What the pure ops of a search gave: kept by the content of their arguments and the parameters that they read, bounded.

What a call depended on besides its arguments is known only once it has run, so a call is looked up in two steps: which
forms of dependence were seen for these arguments, and which value each of them gives under the values now in force.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import Any, NamedTuple, Protocol

from trace_opt.core.codec import dump_value
from trace_opt.core.content import content
from trace_opt.core.context import RolloutState
from trace_opt.core.flight import Flight
from trace_opt.core.node import Child
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Cost
from trace_opt.core.strand import Frame

MOST_BYTES = 256 * 2**20
"""How much the values of one memory may take; those not asked for the longest go first."""


class Pure:
    """A function declared pure.

    Attributes:
        fn: The function.
        names: The parameters that its calls have read so far, by name.
        seeded: Whether one of its calls depended on the rollout's seed.
    """

    __slots__ = ("fn", "names", "seeded")

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.names: dict[str, Parameter[Any]] = {}
        self.seeded = False


@dataclass(frozen=True, slots=True)
class Form:
    """What else than its arguments the value of a call depended on.

    Attributes:
        reads: The parameters read.
        seeded: Whether the rollout's seed was asked for, or a model sampled.
        calls: The sampled model calls made, by the hash of their requests.
    """

    reads: tuple[Parameter[Any], ...] = ()
    seeded: bool = False
    calls: tuple[str, ...] = ()

    def variant(self, values: Mapping[str, Any], seed: int | None, calls: Mapping[str, int]) -> bytes | None:
        """Which value of the call these circumstances lead to; None where that cannot be told.

        Args:
            values: The candidate's, by full parameter name.
            seed: The rollout's.
            calls: How often each sampled model call was made before.
        """
        held = [_parameter_content(parameter, values) for parameter in self.reads]
        if None in held:
            return None
        places = tuple(calls.get(call, 0) for call in self.calls)
        names = tuple(parameter.name for parameter in self.reads)
        whole = content((names, tuple(held), seed if self.seeded else None, self.calls, places))
        return None if whole is None else whole.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a call gave.

    Attributes:
        form: What it depended on.
        variant: Under which circumstances.
        value: What it returned; a copy that nobody else holds.
        size: About how many bytes that takes.
        cost: What its model calls cost.
        seconds: What it took.
        times: How often it made each sampled model call.
        trail: What its body read and called, in order: parameters, and inner op calls.
    """

    form: Form
    variant: bytes
    value: Any
    size: int
    cost: Cost = Cost()
    seconds: float = 0.0
    times: tuple[int, ...] = ()
    trail: tuple[Parameter[Any] | Child[Any], ...] = ()


class Key(NamedTuple):
    """A call: the function, and the content of its arguments."""

    pure: Pure
    arguments: bytes


class Shelf(Protocol):
    """Where entries outlive the process."""

    def load(self, pure: Pure) -> Iterable[tuple[Key, Entry]]:
        """What earlier sessions kept of a function; asked once for each."""
        ...

    def keep(self, key: Key, entry: Entry) -> None:
        """Keep an entry, from any thread."""
        ...


@dataclass(slots=True)
class Saved:
    """What was not run again: how many op calls, and what running them had cost."""

    ops: int = 0
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0

    def join(self, other: Saved) -> None:
        """Count in what was counted elsewhere."""
        self.ops += other.ops
        self.cost += other.cost
        self.seconds += other.seconds


class Memory:
    """What the pure ops of a search gave. Safe to use from any thread.

    Args:
        most_bytes: As `MOST_BYTES`.
        meter: Measures what the model calls within a block cost, as `.cost`.
        shelf: Where entries outlive the process, or None.

    Attributes:
        saved: What was not run again.
    """

    def __init__(
        self, *, most_bytes: int = MOST_BYTES, meter: Callable[[], AbstractContextManager[Any]] | None = None,
        shelf: Shelf | None = None,
    ) -> None:  # fmt: skip
        self.saved = Saved()
        self.meter = meter or _no_meter
        self._most = most_bytes
        self._shelf = shelf
        self._lock = Lock()
        self._loading = RLock()
        self._loaded: set[Pure] = set()
        self._entries: OrderedDict[tuple[Key, bytes], Entry] = OrderedDict()
        self._forms: dict[Key, dict[Form, int]] = {}
        self._flights: dict[Any, Flight] = {}
        self._size = 0

    def report(self, saved: Saved) -> None:
        """Count in what was saved in another process."""
        with self._lock:
            self.saved.join(saved)

    def reported(self) -> Saved:
        """What was saved since this was last asked."""
        with self._lock:
            saved, self.saved = self.saved, Saved()
            return saved

    @property
    def size(self) -> int:
        """About how many bytes the values take."""
        return self._size

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Key, frame: Frame, state: RolloutState) -> Entry | None:
        """What a call gave under the circumstances in force; counted as saved."""
        self._load(key.pure)
        with self._lock:
            forms = tuple(self._forms.get(key, ()))
        for form in forms:
            variant = form.variant(frame.graph.values, state.seed, state.calls)
            with self._lock:
                entry = None if variant is None else self._entries.get((key, variant))
                if entry is not None and variant is not None:
                    self._entries.move_to_end((key, variant))
                    self.saved.join(Saved(1, entry.cost, entry.seconds))
                    return entry
        return None

    def keep(self, key: Key, entry: Entry) -> None:
        """Keep what a call gave, on the shelf too."""
        self._put(key, entry)
        if self._shelf is not None:
            self._shelf.keep(key, entry)

    def _put(self, key: Key, entry: Entry) -> None:
        place = key, entry.variant
        with self._lock:
            # a new dict, for others may be looking through the old one
            key.pure.names = {**key.pure.names, **{parameter.name: parameter for parameter in entry.form.reads}}
            key.pure.seeded |= entry.form.seeded
            if place in self._entries or entry.size > self._most:
                return
            self._entries[place] = entry
            forms = self._forms.setdefault(key, {})
            forms[entry.form] = forms.get(entry.form, 0) + 1
            self._size += entry.size
            while self._size > self._most:
                self._forget()

    def _forget(self) -> None:
        """Drop the value that was not asked for the longest."""
        (key, _), entry = self._entries.popitem(last=False)
        self._size -= entry.size
        forms = self._forms[key]
        forms[entry.form] -= 1
        if not forms[entry.form]:
            del forms[entry.form]
        if not forms:
            del self._forms[key]

    def _load(self, pure: Pure) -> None:
        if self._shelf is None or pure in self._loaded:
            return
        with self._loading:
            if pure not in self._loaded:
                for key, entry in self._shelf.load(pure):
                    self._put(key, entry)
                self._loaded.add(pure)

    def board(self, key: Key, frame: Frame, state: RolloutState) -> tuple[Flight, bool]:
        """The flight of a call, and whether the caller is the one who runs it.

        Calls are the same that have the same arguments and the same values, by identity, of the parameters that the
        function is known to read; of all, before its first call has ended.
        """
        values = frame.graph.values
        names = key.pure.names or values
        scope = tuple((name, id(values.get(name))) for name in names), state.seed if key.pure.seeded else None
        with self._lock:
            flight = self._flights.get((key, scope))
            if flight is not None:
                return flight, False
            flight = self._flights[key, scope] = Flight()
            flight.landing = lambda: self._flights.pop((key, scope), None)
            return flight, True


@contextmanager
def _no_meter() -> Generator[Any]:
    yield _Free()


class _Free:
    """A meter that measures nothing."""

    cost = Cost()


MEMORY: ContextVar[Memory | None] = ContextVar("trace_opt_memory", default=None)


@contextmanager
def remembering(memory: Memory) -> Generator[Memory]:
    """Let pure ops recorded in a `with` block keep to what a memory holds."""
    token = MEMORY.set(memory)
    try:
        yield memory
    finally:
        MEMORY.reset(token)


def _parameter_content(parameter: Parameter[Any], values: Mapping[str, Any]) -> bytes | None:
    value = values.get(parameter.name, parameter.initial)
    held = content(dump_value(parameter, value) if parameter.kind == "structured" else value)
    return None if held is None else held.digest
