"""What an op call hands to the workflow: a stand-in for its value that knows its node.

There is one stand-in class for each class of value, made when first met. It has the operators always, and of the
structural methods (`__len__`, `__iter__`, `__call__`, ...) exactly those that the value's class has, so `isinstance`,
`hasattr` and `collections.abc` answer as for the value. In the workflow its operators record ops and its conversions
record decisions; in an op's body it gives plain values and the read is logged; once its recording has closed it is its
value. Text conversion in the workflow would lose the edge and raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, cast
from weakref import WeakKeyDictionary

from trace_opt.core.context import FRAME
from trace_opt.core.node import ATOMIC, Node, Op, ParameterNode
from trace_opt.core.operators import (
    BINARY,
    CALL,
    COMPARISONS,
    CONTAINS,
    COPY,
    DECISIONS,
    DEEPCOPY,
    GETATTR,
    GETITEM,
    ITEM,
    OPTIONAL_UNARY,
    ROUND,
    UNARY,
    function_op,
    method_op,
    mutates,
)
from trace_opt.core.strand import NO_TRACE, NONE, Frame
from trace_opt.errors import TraceError

_get_frame = FRAME.get
_NODE_ATTRIBUTES = frozenset({"value", "name", "op", "inputs"})


class Result:
    """A recorded value as the workflow holds it. Made by op calls only."""

    __slots__ = ()
    _trace_node: Node[Any]
    _trace_graph: Any


class Blank(Result):
    """A result before it is given its class: with no `__setattr__` of its own, filling it costs half as much."""

    __slots__ = ("_trace_graph", "_trace_node")


class StandIn(Blank):
    """A result whose value is no torch tensor (for those see core/tensors.py)."""

    __slots__ = ()

    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride] # isinstance is to see the value's class
        return type(self._trace_node.value)

    def __getattr__(self, name: str) -> Any:
        node, graph = self._trace_node, self._trace_graph
        if name.startswith("__") and name.endswith("__"):
            return getattr(node.value, name)
        frame = working(self)
        if frame is None:
            value = bare(self)
            if not graph.open and name in _NODE_ATTRIBUTES and not hasattr(value, name):
                return graph.names[node] if name == "name" else getattr(node, name)
            return getattr(value, name)
        attribute = getattr(node.value, name)
        if callable(attribute) and getattr(attribute, "__self__", None) is node.value:
            return Method(self, name)
        return record_value(frame.mine(), GETATTR, (node, name), attribute)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(changeable(self, f"setting attribute {name!r}"), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(changeable(self, f"deleting attribute {name!r}"), name)

    def __setitem__(self, key: Any, value: Any) -> None:
        changeable(self, "assigning an item")[bare(key)] = value

    def __delitem__(self, key: Any) -> None:
        del changeable(self, "deleting an item")[bare(key)]

    def __dir__(self) -> list[str]:
        return dir(self._trace_node.value)

    def __bool__(self) -> bool:
        return decision(self, "bool", bool)

    def __repr__(self) -> str:
        # debuggers, logs and the standard library ask for it at any time, so it neither raises nor records
        return repr(self._trace_node.value)

    def __str__(self) -> str:
        return str(textual(self))

    def __format__(self, spec: str) -> str:
        return format(textual(self), spec)

    def __copy__(self) -> Any:
        return apply(COPY, (self,))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return apply(DEEPCOPY, (self,))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return restore_result, (self._trace_graph, self._trace_graph.layout().order.index(self._trace_node))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        fn = getattr(ufunc, method)
        return apply(function_op(ufunc.__name__, fn), (inputs, kwargs))

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return apply(function_op(func.__name__, func), (args, kwargs))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return apply(function_op(func.__name__, func), (tuple(args), dict(kwargs or {})))


class Method:
    """A method of a result's value, recorded when it is called."""

    __slots__ = ("__name__", "__self__")

    def __init__(self, owner: Any, name: str) -> None:
        self.__self__ = owner
        self.__name__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        value = self.__self__._trace_node.value
        if mutates(type(value), self.__name__):
            changeable(self.__self__, f"calling .{self.__name__}()")
        return apply(method_op(self.__name__), (self.__self__, args, kwargs))

    def __repr__(self) -> str:
        return f"<recorded method {self.__name__!r}>"


def working(result: Result) -> Frame | None:
    """The frame of the workflow that is recording `result`, or None where it counts as its plain value."""
    frame = _get_frame()
    if frame is None or frame.inside or frame.graph is not result._trace_graph:
        return None
    return frame


def bare(value: Any) -> Any:
    """The plain value of a result met outside its own workflow; a body that meets one has the read logged.

    Raises:
        TraceError: its recording is still open and nothing was carried here.
    """
    if not issubclass(type(value), Result):
        return value
    graph, node = value._trace_graph, value._trace_node
    frame = _get_frame()
    if frame is None:
        if graph.open and not NO_TRACE.get():
            fault(graph, f"a result of {node.op.name!r} left its recording, into a thread or callback that does not "
                  "record; pass the function through carry(...) where the thread is started")  # fmt: skip
    elif frame.inside and frame.graph is graph:
        frame.mine().log.append(node)
    return node.value


def fault(graph: Any, message: str) -> NoReturn:
    """Raise a TraceError that is raised again on leaving the recording if the workflow swallows it."""
    error = TraceError(message)
    graph.note_fault(error)
    raise error


def textual(result: Result) -> Any:
    """The value for text conversion, which only code outside the workflow may ask for."""
    if working(result) is not None:
        name = result._trace_node.op.name
        fault(result._trace_graph, f"text made from a result of {name!r} in the workflow would lose the edge from it; "
              "make the text in a function decorated with @trace and pass the result to it")  # fmt: skip
    return bare(result)


def changeable(result: Result, what: str) -> Any:
    """The value for a change in place, which a recording in progress refuses."""
    graph, node = result._trace_graph, result._trace_node
    if graph.open:
        fault(graph, f"{what} would change the recorded value of {node.op.name!r}; make a new value in a function "
              "decorated with @trace instead")  # fmt: skip
    return node.value


def decision(result: Result, name: str, read: Callable[[Any], Any]) -> Any:
    """Read a concrete value; in the workflow that is recorded."""
    frame = working(result)
    if frame is None:
        return read(bare(result))
    node = result._trace_node
    value = read(node.value)
    # a hash differs between processes and a view between reads: the value itself is what steered the workflow
    frame.mine().decide(DECISIONS[name], (node,), node.value if name in ("hash", "plain", "array") else value)
    return value


def wrap(frame: Frame, node: Node[Any]) -> Any:
    """The stand-in for a node's value. None is handed out itself, and that it was None is a decision."""
    value = node.value
    kind = type(value)
    made = STAND_INS.get(kind)
    if made is None:
        if value is None:
            frame.decide(NONE, (node,), None)
            return None
        if _is_tensor_class(kind):
            from trace_opt.core.tensors import wrap_tensor

            return wrap_tensor(frame, node)
        made = stand_in(kind)
    return fill(made, node, frame.graph)


def fill(made: type[StandIn], node: Node[Any], graph: Any) -> Any:
    """A result of the given stand-in class."""
    result: Any = Blank()
    result._trace_node = node
    result._trace_graph = graph
    result.__class__ = made
    return result


def restore_result(graph: Any, index: int) -> Any:
    """Rebuild a result from its graph, for pickle."""
    node = graph.layout().order[index]
    return fill(stand_in(type(node.value)), node, graph)


def record_value(frame: Frame, op: Op, inputs: tuple[Any, ...], value: Any) -> Any:
    """Record an op whose value is known already."""
    node = Node(op if frame.scope is None else op.within(frame.scope), value, inputs, (), frame.control())
    frame.add(node)
    return wrap(frame, node)


def apply(op: Op, given: tuple[Any, ...]) -> Any:
    """Run an op on results: recorded in the workflow, plain elsewhere."""
    from trace_opt.core.calls import call, loose

    frame = _get_frame()
    if frame is None or frame.inside:
        return loose(op, given)
    return call(frame.mine(), op, given)


def _is_tensor_class(kind: type) -> bool:
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in kind.__mro__)


def _binary(op: Op) -> Callable[[Any, Any], Any]:
    return lambda self, other: apply(op, (self, other))


def _reflected(op: Op) -> Callable[[Any, Any], Any]:
    return lambda self, other: apply(op, (other, self))


def _unary(op: Op) -> Callable[[Any], Any]:
    return lambda self: apply(op, (self,))


def _power(self: Any, other: Any, modulo: Any = None) -> Any:
    if modulo is None:
        return apply(BINARY["pow"], (self, other))
    return apply(_POW3, (self, other, modulo))


_POW3 = Op("pow", pow, ("base", "exp", "mod"))


def _reader(name: str, read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda self: decision(self, name, read)


def _contains(self: Any, item: Any) -> bool:
    frame = working(self)
    if frame is None:
        return bare(item) in bare(self)
    from trace_opt.core.calls import take

    frame = frame.mine()
    plain, recorded = take(frame, item)
    found = plain in self._trace_node.value
    frame.decide(CONTAINS, (self._trace_node, recorded), found)
    return found


def _iterate(self: Any) -> Any:
    value = self._trace_node.value
    if working(self) is None:
        yield from bare(self)
        return
    sized = hasattr(type(value), "__len__")
    _frame_of(self).decide(DECISIONS["iter"], (self._trace_node,), len(value) if sized else None)
    if isinstance(value, Mapping):
        yield from cast("Mapping[Any, Any]", value)
        return
    op = GETITEM if sized and hasattr(type(value), "__getitem__") else ITEM
    for i, item in enumerate(value):
        # a body that goes on iterating where the workflow began meets plain items
        yield item if working(self) is None else record_value(_frame_of(self), op, (self._trace_node, i), item)


def _frame_of(result: Result) -> Frame:
    return cast("Frame", working(result)).mine()


def _reversed(self: Any) -> Any:
    if working(self) is None:
        return reversed(bare(self))
    return (self[i] for i in range(decision(self, "len", len) - 1, -1, -1))


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    return apply(CALL, (self, args, kwargs))


def _round(self: Any, ndigits: Any = None) -> Any:
    return apply(ROUND, (self, ndigits))


def _array(self: Any, *args: Any, **kwargs: Any) -> Any:
    return decision(self, "array", lambda value: value.__array__(*args, **kwargs))


def _await(self: Any) -> Any:
    return bare(self).__await__() if working(self) is None else self._trace_node.value.__await__()


def _next(self: Any) -> Any:
    return apply(_NEXT, (self,))


_NEXT = Op("next", next, ("a",))


def _get(self: Any, key: Any, default: Any = None) -> Any:
    # a default comes back as the very object that was passed, as `match` relies on
    return self[key] if key in self else default


def _items(self: Any) -> Any:
    return [(key, self[key]) for key in self]


def _values(self: Any) -> Any:
    return [self[key] for key in self]


_STRUCTURAL: dict[str, Callable[..., Any]] = {
    "__len__": _reader("len", len),
    "__iter__": _iterate,
    "__contains__": _contains,
    "__getitem__": _binary(GETITEM),
    "__reversed__": _reversed,
    "__next__": _next,
    "__call__": _call,
    "__int__": _reader("int", int),
    "__float__": _reader("float", float),
    "__complex__": _reader("complex", complex),
    "__index__": _reader("index", lambda value: value.__index__()),
    "__fspath__": _reader("path", lambda value: value.__fspath__()),
    "__round__": _round,
    "__array__": _array,
    "__await__": _await,
} | {f"__{name}__": _unary(op) for name, op in OPTIONAL_UNARY.items()}

_COMMON: dict[str, Callable[..., Any]] = (
    {f"__{name}__": _binary(op) for name, op in BINARY.items()}
    | {f"__r{name}__": _reflected(op) for name, op in BINARY.items() if name not in COMPARISONS}
    | {f"__{name}__": _unary(op) for name, op in UNARY.items()}
    | {"__pow__": _power}
)


def stand_in(kind: type) -> type[StandIn]:
    """The stand-in class for values of a class; made once for each."""
    known = STAND_INS.get(kind) or _local_stand_ins.get(kind)
    if known is not None:
        return known
    body: dict[str, Any] = {"__slots__": (), "__module__": __name__, **_COMMON}
    body.update({name: method for name, method in _STRUCTURAL.items() if hasattr(kind, name)})
    if kind in (str, bytes):  # int("7") parses real text only, so a stand-in for text converts itself
        body.update({name: _STRUCTURAL[name] for name in ("__int__", "__float__", "__complex__")})
    body["__hash__"] = None if kind.__hash__ is None else _reader("hash", hash)  # pyright: ignore[reportUnnecessaryComparison]
    if issubclass(kind, Mapping):
        body.update(get=_get, items=_items, values=_values, keys=_reader("iter", lambda value: value.keys()))
    made = type(f"Result[{kind.__name__}]", (StandIn,), body)
    if issubclass(kind, Mapping):
        Mapping.register(made)
    elif issubclass(kind, Sequence) and not issubclass(kind, (str, bytes, bytearray)):
        Sequence.register(made)
    # a class made inside a function may be one of many: its stand-in goes when it goes
    table = _local_stand_ins if "<locals>" in kind.__qualname__ else STAND_INS
    table[kind] = made
    return made


STAND_INS: dict[type, type[StandIn]] = {}
_local_stand_ins: WeakKeyDictionary[type, type[StandIn]] = WeakKeyDictionary()
PLAIN_STAND_INS: frozenset[type] = frozenset(
    stand_in(_kind)
    for _kind in (*sorted(ATOMIC - {type(None)}, key=lambda kind: kind.__name__), list, dict, tuple, set)
)
"""Stand-ins for the commonest classes, known to the wrappers that `trace` generates."""


def node_in(frame: Frame, result: Any) -> Node[Any] | None:
    """The node of a result in this frame's recording, or None where it counts as its plain value."""
    return result._trace_node if result._trace_graph is frame.graph else None


def parameter_of(node: Node[Any]) -> ParameterNode[Any] | None:
    """The node as a parameter's, or None."""
    return node if isinstance(node, ParameterNode) else None
