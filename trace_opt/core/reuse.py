"""Op calls that need not run again: those of an example that depend on nothing a phase moves.

A phase runs the same example many times while only its tensors move. What comes before the first of them (model calls,
above all) gives the same again as long as its inputs are the same, so it is kept from rollout to rollout. Inputs are
compared by content where that is cheap and by identity where the object is known to be the same; anything else runs.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.arguments import take
from trace_opt.core.calls import acall, call, finish
from trace_opt.core.context import rollout
from trace_opt.core.node import ATOMIC, Child, Nested, Node, Op, ParameterNode, class_of
from trace_opt.core.parameter import Parameter, is_tensor, same
from trace_opt.core.result import Result

if TYPE_CHECKING:
    from trace_opt.core.graph import Graph
    from trace_opt.core.strand import Frame

_MAX_NESTING = 50


class _Given:
    """What a call gave: its value and the parameters that its body read, with the places of those that are choices."""

    __slots__ = ("reads", "value")

    def __init__(self, value: Any, reads: dict[Parameter[Any], int | None]) -> None:
        self.value = value
        self.reads = reads


class Memo:
    """What the op calls on one example gave, for one rollout at a time.

    Args:
        arguments: What the example becomes as arguments: objects known to stay the same.
    """

    __slots__ = ("_found", "_graph", "_known", "_moving", "_seen")

    def __init__(self, arguments: Iterable[Any] = ()) -> None:
        self._found: dict[Any, list[_Given]] = {}
        self._known: dict[int, Any] = {}
        self._seen: dict[Any, int] = {}
        self._moving: dict[Node[Any], bool] = {}
        self._graph: Graph | None = None
        for argument in arguments:
            self._know(argument, _MAX_NESTING)

    @property
    def idle(self) -> bool:
        """Whether a rollout has come by and nothing was kept: looking again would cost more than it saves."""
        return self._graph is not None and not self._found

    def key(self, frame: Frame, op: Op, inputs: tuple[Any, ...], owner: Any) -> Any:
        """What a call is known by, the how-manyth such call in its rollout included; None where it has to run."""
        if self._graph is not frame.graph:
            self._graph = frame.graph
            self._seen.clear()
            self._moving.clear()
        if any(self._moves(node) for node in _nodes(inputs)):
            return None
        key = self._content(inputs, _MAX_NESTING)
        if key is None:
            return None
        whole = op.fn, op.name, id(owner), key
        count = self._seen[whole] = self._seen.get(whole, 0) + 1
        return whole, count

    def get(self, frame: Frame, key: Any) -> _Given | None:
        """What the call gave under the choices that it reads now, or None where it was not kept."""
        values = frame.graph.values
        for kept in self._found.get(key, ()):
            if all(_place(p, values.get(p.name, p.initial)) == place for p, place in kept.reads.items()):
                return kept
        return None

    def put(self, key: Any, result: Any, owner: Any) -> None:
        """Keep what a call gave, unless it has no key, or its body read what may have changed by the next rollout."""
        if key is None or not issubclass(type(result), Result) or rollout().drew:
            return  # what draws from the rollout's stream must draw again
        node: Node[Any] = result._trace_node
        reads = [read for read in node.trail if type(read) is not Child]
        if all(isinstance(read, ParameterNode) and not self._moves(read) for read in reads):
            parameters = {
                read.parameter: _place(read.parameter, read.value)
                for read in reads
                if isinstance(read, ParameterNode) and read.parameter is not None
            }
            self._found.setdefault(key, []).append(_Given(node.value, parameters))
            self._know(node.value, _MAX_NESTING)
            self._know(owner, 0)

    def _know(self, value: Any, depth: int) -> None:
        """Note that an object stays the same from rollout to rollout, and keep it alive."""
        if class_of(value) in ATOMIC:
            return
        self._known[id(value)] = value
        if depth > 0:
            for item in _items(value):
                self._know(item, depth - 1)

    def _content(self, given: Any, depth: int) -> Any:
        """Something hashable that is equal only for equal inputs; None where that cannot be told."""
        if isinstance(given, ParameterNode):
            leaf = cast("ParameterNode[Any]", given)
            return ParameterNode, leaf.name, _place(leaf.parameter, leaf.value)
        if isinstance(given, Node):
            given = cast("Any", given).value
        elif type(given) is Nested:
            given = given.items
        kind = class_of(given)
        if kind in ATOMIC:
            return kind, given
        if kind in (tuple, list, dict, set, frozenset) and depth > 0:
            # a list is compared item by item, for its owner may change it
            keys = [self._content(item, depth - 1) for item in _items(given)]
            return None if None in keys else (kind, tuple(keys))
        return (id, id(given)) if id(given) in self._known else None

    def _moves(self, node: Node[Any]) -> bool:
        """Whether a node comes from a tensor that moves."""
        todo = [node]
        while todo:
            top = todo[-1]
            if top in self._moving:
                todo.pop()
                continue
            if isinstance(top, ParameterNode):
                self._moving[top] = is_tensor(top.value) and bool(top.value.requires_grad)
                continue
            parents = [*_nodes(top.inputs), *top.reads]
            unknown = [parent for parent in parents if parent not in self._moving]
            if unknown:
                todo.extend(unknown)
            else:
                self._moving[top] = any(self._moving[parent] for parent in parents)
        return self._moving[node]


class Memos:
    """A memo for each example of a proposal, and one more where the same example runs several times at once."""

    __slots__ = ("_memos",)

    def __init__(self) -> None:
        self._memos: dict[tuple[Any, int], Memo] = {}

    def of(self, example: Any, place: int, arguments: Iterable[Any]) -> Memo | None:
        """The memo of an example; None once a rollout on it has shown that it has nothing to keep.

        Args:
            example: What it is known by.
            place: The how-manyth rollout on it that runs at once.
            arguments: What it becomes as arguments.
        """
        found = self._memos.get((example, place))
        if found is None:
            found = self._memos[example, place] = Memo(arguments)
        return None if found.idle else found


def _place(parameter: Parameter[Any] | None, value: Any) -> int | None:
    """Which of its choices a parameter has: an estimator draws it anew, while all others keep their value for a phase."""
    choices: tuple[Any, ...] = () if parameter is None else parameter.choices or ()
    for place, choice in enumerate(choices):
        if choice is value or (not is_tensor(value) and same(choice, value)):
            return place
    return None


def _items(value: Any) -> list[Any]:
    kind = class_of(value)
    if kind is dict:
        return [*value, *value.values()]
    return list(value) if kind in (tuple, list, set, frozenset) else []


def _nodes(inputs: tuple[Any, ...]) -> list[Node[Any]]:
    found: list[Node[Any]] = []
    for given in inputs:
        if isinstance(given, Node):
            found.append(cast("Any", given))
        elif type(given) is Nested:
            found.extend(given.nodes)
    return found


def _again(frame: Frame, op: Op, inputs: tuple[Any, ...], kept: _Given) -> Any:
    """Record a call that was not run: the value of the earlier one, and what its body read then."""
    frame.borrowed.clear()
    trail = tuple(frame.graph.parameter_node(parameter) for parameter in kept.reads)
    return finish(frame, op, kept.value, inputs, trail, frame.control(), 0.0)


def _looked_up(memo: Memo, frame: Frame, op: Op, given: tuple[Any, ...], owner: Any) -> tuple[Any, Any]:
    """What a call is known by (None where it has to run), and the result that stands for it (None where it runs)."""
    inputs = tuple(take(frame, x)[1] for x in given)
    frame.borrowed.clear()
    key = memo.key(frame, op, inputs, owner)
    kept = None if key is None else memo.get(frame, key)
    return key, None if kept is None else _again(frame, op, inputs, kept)


def reused(frame: Frame, op: Op, given: tuple[Any, ...], invoke: Callable[[tuple[Any, ...]], Any], owner: Any) -> Any:
    """`calls.call` in a rollout with a memo: gives what the same call gave before, else runs it and keeps that."""
    memo = cast("Memo", frame.memo)
    key, result = _looked_up(memo, frame, op, given, owner)
    if result is None:
        result = call(frame, op, given, invoke)
        memo.put(key, result, owner)
    return result


async def areused(
    frame: Frame, op: Op, given: tuple[Any, ...], invoke: Callable[[tuple[Any, ...]], Coroutine[Any, Any, Any]], owner: Any
) -> Any:  # fmt: skip
    """`calls.acall` in a rollout with a memo."""
    memo = cast("Memo", frame.memo)
    key, result = _looked_up(memo, frame, op, given, owner)
    if result is None:
        result = await acall(frame, op, given, invoke)
        memo.put(key, result, owner)
    return result
