"""Recorded values as they would be under other parameter values, without running the workflow.

A recording holds each op's function and what went into each call, so the part between a changed parameter and a wanted
value can be run again by itself: model calls and whatever else lies beside or behind it are left alone. That is right
only as long as the workflow would go the same way, so decisions that depend on what changed are taken again too.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from types import CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.arguments import _rebuilt, bare_all
from trace_opt.core.context import in_force
from trace_opt.core.module import Module, _members
from trace_opt.core.node import Child, Nested, Node, Op, ParameterNode, class_of, is_a
from trace_opt.core.parameter import is_tensor
from trace_opt.core.strand import JOIN
from trace_opt.errors import TraceError

if TYPE_CHECKING:
    from trace_opt.core.graph import Graph

_TAKEN: dict[str, Callable[[Any], Any]] = {
    "bool": bool, "len": len, "int": int, "float": float, "complex": complex, "index": operator.index, "iter": len,
    "none": lambda value: None if value is None else value,
}  # fmt: skip
"""How decisions read a value; those that keep the whole value differ whenever it does."""


def recompute(graph: Graph, nodes: Sequence[Node[Any]], values: Mapping[str, Any]) -> list[Any]:
    """What recorded nodes would hold under other parameter values.

    Only op calls between a changed parameter and a wanted node run, each as it was recorded: in order, unrecorded, with
    `values` in force for what bodies read. They have to be pure; tensors given in `values` stay connected to the results,
    so that gradients flow.

    Args:
        graph: The recording.
        nodes: Nodes of it.
        values: Parameter values by full name; others keep what was recorded, and names it never read are ignored.

    Returns:
        One value for each node.

    Raises:
        TraceError: a call cannot be run again as it was, or the workflow would have gone another way.
    """
    return Replay(graph, nodes, values)(values)


class Replay:
    """`recompute`, planned once for many sets of values.

    Args:
        graph: The recording.
        nodes: The nodes wanted.
        names: Full names of the parameters that will change.

    Raises:
        TraceError: a call in between cannot be run again as it was.

    Attributes:
        calls: How many op calls run each time.
    """

    def __init__(self, graph: Graph, nodes: Sequence[Node[Any]], names: Iterable[str]) -> None:
        self._graph = graph
        self._wanted = tuple(nodes)
        self._names = frozenset(names)
        for node in nodes:
            if not graph.holds(node):
                raise TraceError(f"{node!r} belongs to another recording; replay it with its own graph")
        changed = self._downstream()
        needed = _upstream(graph, nodes)
        self._plan = [
            (node, self._runner(node, changed))
            for node in graph.layout().order
            if needed[node.index] and node in changed and not isinstance(node, ParameterNode) and node.op is not JOIN
        ]
        self.calls = sum(node.op.kind != "decision" for node, _ in self._plan)
        self._read = graph.parameters
        known = {**graph.values, **{name: node.value for name, node in self._read.items()}}
        self._known = {name: _readable(value) for name, value in known.items()}

    def __call__(self, values: Mapping[str, Any]) -> list[Any]:
        """One value for each wanted node, under these parameter values.

        Args:
            values: By full name, of parameters that were named as changing.

        Raises:
            TraceError: the workflow would have gone another way.
        """
        made: dict[Node[Any], Any] = {
            node: values.get(name, node.value) for name, node in self._read.items() if name in self._names
        }
        graph = self._graph
        with in_force({**self._known, **values}, graph.seed, training=graph._training):
            for node, run in self._plan:
                made[node] = run(made)
        return [made.get(node, node.value) for node in self._wanted]

    def _downstream(self) -> set[Node[Any]]:
        """Nodes whose values follow from a parameter that changes."""
        changed: set[Node[Any]] = set()
        for node in self._graph.layout().order:
            if isinstance(node, ParameterNode):
                if node.name in self._names:
                    changed.add(node)
            elif any(source in changed for source in _sources(node)):
                changed.add(node)
        return changed

    def _runner(self, node: Node[Any], changed: set[Node[Any]]) -> Callable[[dict[Node[Any], Any]], Any]:
        """What makes a node's value from those made before it."""
        if node.kind == "error":
            raise TraceError(f"op {node.op.name!r} failed in this recording; only calls that returned can be replayed")
        for read in node.reads:
            if read in changed and not isinstance(read, ParameterNode):
                raise TraceError(
                    f"the body of {node.op.name!r} read a result of {read.op.name!r} that was not passed to it; make it an "
                    "argument, so that the call can be replayed"
                )
        if node.kind == "decision":
            return lambda made: _decide(node, _given(node, made))
        invoke = _invoker(node.op.fn, node.op.parameters, node.op.variadic)
        owner = self._owner(node) if _is_method(node.op) else None
        first = () if owner is None else (owner,)
        return lambda made: _settled(node.op, invoke(first, _given(node, made)))

    def _owner(self, node: Node[Any]) -> Module:
        """The object that a method was called on: a recording keeps its arguments only.

        Raises:
            TraceError: no Module, or more than one, can have been it.
        """
        read = [n.parameter.owner for n in node.reads if isinstance(n, ParameterNode) and n.parameter is not None]
        lines = {id(m): m for owner in read if owner is not None for m in cast("Module", owner)._line()}
        near = [module for module in lines.values() if _has_method(module, node.op)]
        found = near if len(near) == 1 else [m for m in _modules(self._graph) if _has_method(m, node.op)]
        if len(found) == 1:
            return found[0]
        many = f"{len(found)} objects" if found else "no Module"
        raise TraceError(
            f"op {node.op.name!r} is a method, and {many} of this workflow can have been called; make it a function, or "
            "let its body read a parameter of its own Module, so that the call can be replayed"
        )


def calls_of(graph: Graph, name: str) -> list[Node[Any]]:
    """The nodes of the calls of a named op that returned, in order.

    Args:
        graph: The recording.
        name: The op's name, with the inline ops it was called under: `planner/ask`.

    Raises:
        TraceError: there is none; a near name is offered.
    """
    order = graph.layout().order
    found = [node for node in order if node.op.name == name and node.kind == "op"]
    if not found:
        known = sorted({node.op.name for node in order if node.kind == "op"})
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}" if near else f"choose one of {known!r}"
        raise TraceError(f"no call of an op {name!r} was recorded; {hint}")
    return found


def _readable(value: Any) -> Any:
    """A value that a body may read but not take for one that it is to write, as a training phase's buffers are."""
    return value.detach() if is_tensor(value) and not value.requires_grad else value


def _sources(node: Node[Any]) -> Iterator[Node[Any]]:
    """What a node's value was made from."""
    for given in node.inputs:
        if is_a(given, Node):
            yield given
        elif type(given) is Nested:
            yield from given.nodes
    for read in node.trail:
        if type(read) is not Child:
            yield read


def _upstream(graph: Graph, nodes: Sequence[Node[Any]]) -> bytearray:
    """By index, whether a node leads to one of `nodes`, decisions included."""
    layout = graph.layout()
    needed = bytearray(len(layout.order))
    for node in nodes:
        needed[node.index] = 1
    for i in range(len(layout.order) - 1, -1, -1):
        if needed[i]:
            for parent in layout.parents[layout.offsets[i] : layout.offsets[i + 1]]:
                needed[parent] = 1
    return needed


def _given(node: Node[Any], made: dict[Node[Any], Any]) -> list[Any]:
    """A call's arguments."""
    return [_filled(given.items if type(given) is Nested else given, made) for given in node.inputs]


def _filled(items: Any, made: dict[Node[Any], Any]) -> Any:
    """A container with values in place of its nodes."""
    if is_a(items, Node):
        return made.get(items, items.value)
    kind = class_of(items)
    if kind is dict:
        inner = list(items.values())
    elif kind in (list, tuple) or (is_a(items, tuple) and hasattr(items, "_fields")):
        inner = list(items)
    elif hasattr(kind, "__dataclass_fields__"):
        inner = [getattr(items, name, None) for name in kind.__dataclass_fields__]
    else:
        return items
    filled = [_filled(item, made) for item in inner]
    if all(a is b for a, b in zip(filled, inner, strict=True)):
        return items.copy() if kind in (dict, list) else items
    return _rebuilt(items, filled)


def _decide(node: Node[Any], given: list[Any]) -> Any:
    """Take a recorded decision again.

    Raises:
        TraceError: it comes out otherwise, or nothing can tell.
    """
    name = node.op.name
    read = _TAKEN.get(name)
    if name == "contains":
        taken = node.op.fn(*given)
    elif read is not None:
        taken = read(given[0])
    else:
        raise TraceError(
            f"the workflow read a value that depends on what changes as a whole ({name!r}); read it in an op, so that "
            "what follows can be replayed"
        )
    if taken != node.value:
        raise TraceError(
            f"the decision {name!r} comes out as {taken!r} where the recording has {node.value!r}: what follows would not "
            "be the same workflow; move what depends on it into an op"
        )
    return taken


def _settled(op: Op, value: Any) -> Any:
    """What a body returned, as a recording would hold it."""
    kind = class_of(value)
    if kind is CoroutineType:
        value = _driven(op, value)
    elif inspect.isasyncgen(value):
        value = _driven(op, _listed(value))
    elif kind is GeneratorType:
        value = list(value)
    return bare_all(value)


async def _listed(items: Any) -> list[Any]:
    return [item async for item in items]


def _driven(op: Op, coroutine: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise TraceError(f"op {op.name!r} waits for something outside; only calls that compute can be replayed")


@lru_cache(maxsize=1024)
def _signature(fn: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(fn)
    except (ValueError, TypeError):  # some builtins tell nothing about theirs
        return None


def _is_method(op: Op) -> bool:
    """Whether a function has one argument more than its op: the object that it is called on."""
    signature = _signature(op.fn)
    return signature is not None and len(signature.parameters) == len(op.parameters) + 1


def _invoker(
    fn: Callable[..., Any], names: tuple[str, ...], variadic: frozenset[str]
) -> Callable[[tuple[Any, ...], list[Any]], Any]:
    """What calls a function with the object it is called on, if any, and one argument for each of its op's parameters."""
    signature = _signature(fn)
    if signature is None:
        kinds = {"args": inspect.Parameter.VAR_POSITIONAL, "kwargs": inspect.Parameter.VAR_KEYWORD} if variadic else {}
    else:
        kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}

    def invoke(first: tuple[Any, ...], given: list[Any]) -> Any:
        args, kwargs = list(first), dict[str, Any]()
        for name, value in zip(names, given, strict=True):
            kind = kinds.get(name)
            if kind is inspect.Parameter.VAR_POSITIONAL:
                args += value
            elif kind is inspect.Parameter.VAR_KEYWORD:
                kwargs |= value
            elif kind is inspect.Parameter.KEYWORD_ONLY:
                kwargs[name] = value
            else:
                args.append(value)
        return fn(*args, **kwargs)

    return invoke


def _has_method(module: Module, op: Op) -> bool:
    """Whether an object's class has a method that is this op."""
    for kind in type(module).__mro__:
        for member in vars(kind).values():
            known = getattr(member, "__trace_op__", None)
            if known is not None and known.fn is op.fn:
                return True
    return False


def _modules(graph: Graph) -> list[Module]:
    """Every Module of the trees that the recording's parameters belong to."""
    owners = [node.parameter.owner for node in graph.parameters.values() if node.parameter is not None]
    todo = [list(cast("Module", owner)._line())[-1] for owner in owners if owner is not None]
    seen: dict[int, Module] = {}
    while todo:
        module = todo.pop()
        if id(module) not in seen:
            seen[id(module)] = module
            held = [value for attribute, value in module.__dict__.items() if attribute != "_owner"]
            todo += [item for value in held for _, item in _members("", value) if isinstance(item, Module)]
    return list(seen.values())
