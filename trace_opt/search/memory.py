"""What pure ops gave, kept in the store: for a run that is resumed, and for any later one over the same ops.

An op is known by the source and constants of all the user's code that it reaches and by the models in there. Only what
was paid for or took long is written, in the transaction of the rollout that ran it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.codec import content_hash, decode, encode
from trace_opt.core.columns import decode_row, encode_row, graph_from_columns, renumbered
from trace_opt.core.content import content
from trace_opt.core.memo import again
from trace_opt.core.memory import Entry, Form, Key, Memory, Pure, Saved
from trace_opt.core.node import Child, Node, Op, ParameterNode, identity
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Cost
from trace_opt.llm.meter import metering
from trace_opt.search.sources import Reach
from trace_opt.store.blobs import text_of
from trace_opt.store.rows import MemoRow

if TYPE_CHECKING:
    from trace_opt.store.store import Store
    from trace_opt.store.writer import Writer

LONG_S = 0.05
_HOLDER = Op("holder", identity, ())
_LONGEST = 2**20


def memory_of(store: Store | None, writer: Writer | None, reach: Reach) -> Memory:
    """The memory of a search.

    Args:
        store: Where earlier searches kept theirs, or None.
        writer: Who keeps, or None.
        reach: What the workflow is made of.
    """
    shelf = None if store is None or writer is None else StoreShelf(store, writer, reach)
    return Memory(meter=metering, shelf=shelf)


class StoreShelf:
    """A `core.memory.Shelf` in a store.

    Args:
        store: Read from.
        writer: Writes, with what else the run keeps.
        reach: What the workflow is made of: names parameters, and tells methods apart.
    """

    def __init__(self, store: Store, writer: Writer, reach: Reach) -> None:
        self._store = store
        self._writer = writer
        self._reach = reach
        self._made_of: dict[Pure, tuple[str, Mapping[str, Parameter[Any]]]] = {}

    def load(self, pure: Pure) -> Iterator[tuple[Key, Entry]]:
        """What any run kept of a function, as far as its parameters are found."""
        op, parameters = self._known(pure)
        for row in reversed(self._store.memos(op)):
            data = row["data"]
            if all(name in parameters for name in data["reads"]):
                yield Key(pure, bytes.fromhex(row["arguments"])), _entry(row, data, parameters)

    def keep(self, key: Key, entry: Entry) -> None:
        """Keep an entry that cost something, unless JSON cannot hold its value."""
        if not entry.cost.calls and entry.seconds < LONG_S:
            return
        value = encode(entry.value)
        if entry.size > _LONGEST or '"$":"repr"' in text_of(value):
            return
        form, cost = entry.form, entry.cost
        data = {
            "reads": [parameter.name for parameter in form.reads], "seeded": form.seeded, "value": value,
            "trail": _trail_json(entry), "made": [list(pair) for pair in zip(form.calls, entry.times, strict=True)], "size": entry.size,
        }  # fmt: skip
        row = MemoRow(
            self._known(key.pure)[0], key.arguments.hex(), entry.variant.hex(), data, cost.calls, cost.tokens_in,
            cost.tokens_out, cost.usd, entry.seconds, time.time(),
        )  # fmt: skip
        self._writer.memo(row)

    def _known(self, pure: Pure) -> tuple[str, Mapping[str, Parameter[Any]]]:
        """What a function is known by, and the parameters that it or the workflow reaches, by name."""
        found = self._made_of.get(pure)
        if found is None:
            found = self._made_of[pure] = _made_of(pure, self._reach)
        return found


def _made_of(pure: Pure, whole: Reach) -> tuple[str, Mapping[str, Parameter[Any]]]:
    from trace_opt import __version__

    own = Reach({"the op": pure.fn})
    # tables of constants, which a resumed run is not held to; one that merely collects something costs a miss at most
    tables = [held.digest.hex() for value in own.containers if (held := content(value)) is not None]
    models = [[model.name, str(getattr(model, "identity", "")), getattr(model, "defaults", {})] for model in own.models]
    scope = pure.fn.__qualname__.rpartition(".")[0]
    is_method = bool(scope) and not scope.endswith("<locals>")
    # what a method finds through its object is not to be seen from the function alone
    around: Iterable[tuple[str, str]] = sorted(whole.hashes.items()) if is_method else ()
    op = content_hash([__version__, pure.fn.__qualname__, sorted(own.hashes.items()), tables, models, list(around)])
    named = [*whole.parameters_named(), *own.parameters_named()]
    return op, {parameter.name: parameter for parameter in named}


def _trail_json(entry: Entry) -> dict[str, Any] | None:
    """What a body read and called, as JSON, where it called ops at all; None leaves its reads."""
    if not any(isinstance(part, Child) for part in entry.trail):
        return None
    # nodes of its own: those of the recording are being numbered elsewhere
    leaves = {parameter: ParameterNode[Any](None, parameter.name, "", parameter) for parameter in entry.form.reads}
    trail = [again(part, leaves.__getitem__) if isinstance(part, Child) else leaves[part] for part in entry.trail]
    found: list[Node[Any]] = [*leaves.values(), Node(_HOLDER, None, (), tuple(trail))]
    columns = renumbered(found, {id(node): place for place, node in enumerate(found)})
    return {**columns, **{part: [encode_row(row) for row in columns[part]] for part in ("nodes", "children")}}


def _trail(
    data: Mapping[str, Any], parameters: Mapping[str, Parameter[Any]]
) -> tuple[Parameter[Any] | Child[Any], ...]:
    """What `_trail_json` was given, its parameters those that exist now."""
    columns = {**data["trail"]}
    for part in ("nodes", "children"):
        columns[part] = [decode_row(row) for row in columns[part]]
    graph = graph_from_columns(columns)
    for leaf in graph.parameters.values():
        leaf.parameter = parameters[leaf.name]
    holder = graph.strands[0].nodes[-1]
    return tuple(node if isinstance(node, Child) else parameters[cast("Any", node).name] for node in holder.trail)


def _entry(row: Mapping[str, Any], data: Mapping[str, Any], parameters: Mapping[str, Parameter[Any]]) -> Entry:
    reads = tuple(parameters[name] for name in data["reads"])
    return Entry(
        form=Form(reads, bool(data["seeded"]), tuple(call for call, _ in data["made"])),
        variant=bytes.fromhex(row["variant"]), value=decode(data["value"]), size=data["size"],
        cost=Cost(row["calls"], row["tokens_in"], row["tokens_out"], row["usd"]), seconds=row["seconds"],
        times=tuple(times for _, times in data["made"]), trail=_trail(data, parameters) if data.get("trail") else reads,
    )  # fmt: skip


def saved_json(saved: Saved) -> dict[str, Any]:
    """What was not run again, JSON-able; empty where nothing was."""
    cost = saved.cost
    if not saved.ops:
        return {}
    return {
        "ops": saved.ops, "calls": cost.calls, "tokens_in": cost.tokens_in, "tokens_out": cost.tokens_out,
        "usd": cost.usd, "seconds": saved.seconds,
    }  # fmt: skip


def saved_of(data: Mapping[str, Any]) -> Saved:
    """What `saved_json` gave."""
    if not data:
        return Saved()
    return Saved(data["ops"], Cost(data["calls"], data["tokens_in"], data["tokens_out"], data["usd"]), data["seconds"])
