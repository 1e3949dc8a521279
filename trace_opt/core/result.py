"""What an op call hands to the workflow: a stand-in for its value that knows its node.

There is one stand-in class for each class of value (core/standins.py), so `isinstance`, `hasattr` and
`collections.abc` answer as for the value. In the workflow its operators record ops and its conversions
record decisions; in an op's body it gives plain values and the read is logged; once its recording has closed it is its
value. Text conversion in the workflow would lose the edge and raises.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

from trace_opt.core.context import FRAME
from trace_opt.core.node import TENSORS, Node, Op, class_of
from trace_opt.core.operators import (
    COPY,
    DECISIONS,
    DEEPCOPY,
    GETATTR,
    function_op,
    method_op,
    mutates,
)
from trace_opt.core.strand import NO_TRACE, NONE, Frame, here
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
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride] # isinstance is to see the value's class
        return class_of(self._trace_node.value)

    def __getattr__(self, name: str) -> Any:
        node, graph = self._trace_node, self._trace_graph
        if name.startswith("__") and name.endswith("__"):
            # issubclass asks what is no class for its bases
            return (node.value,) if name == "__bases__" else getattr(node.value, name)
        frame = working(self)
        if frame is None:
            value = bare(self)
            if not graph.open and name in _NODE_ATTRIBUTES and not hasattr(value, name):
                return graph.names[node] if name == "name" else getattr(node, name)
            return getattr(value, name)
        attribute = getattr(node.value, name)
        if callable(attribute) and getattr(attribute, "__self__", None) is node.value:
            return Method(self, name)
        return record_value(frame, GETATTR, (node, name), attribute)

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
        self._trace_graph.layout()  # numbers the nodes
        return restore_result, (self._trace_graph, self._trace_node.index)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        fn = getattr(ufunc, method)
        return apply(function_op(ufunc.__name__, fn), (inputs, kwargs))

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return apply(function_op(func.__name__, func), (args, kwargs))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return apply(function_op(func.__name__, func), (tuple(args), dict(kwargs or {})))


STAND_INS: dict[type, type[StandIn]] = {}
"""The stand-in class for each class of value met so far; filled by core/standins.py."""


class Method:
    """A method of a result's value, recorded when it is called."""

    __slots__ = ("__name__", "__self__")

    def __init__(self, owner: Any, name: str) -> None:
        self.__self__ = owner
        self.__name__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 # described by its class
        value = self.__self__._trace_node.value
        if mutates(class_of(value), self.__name__):
            changeable(self.__self__, f"calling .{self.__name__}()")
        return apply(method_op(self.__name__), (self.__self__, args, kwargs))

    def __repr__(self) -> str:
        return f"<recorded method {self.__name__!r}>"


def working(result: Result) -> Frame | None:
    """The frame of the workflow that is recording `result`, or None where it counts as its plain value."""
    frame = _get_frame()
    if frame is None or frame.inside or frame.graph is not result._trace_graph:
        return None
    return frame.mine()


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
        (frame.mine() or frame).log.append(node)
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
    # a hash differs between processes, a copy tells nothing new: the value itself is what steered the workflow
    frame.decide(DECISIONS[name], (node,), node.value if name in ("hash", "plain", "array") else value)
    return value


def wrap(frame: Frame, node: Node[Any]) -> Any:
    """The stand-in for a node's value. None is handed out itself, and that it was None is a decision."""
    value = node.value
    kind = class_of(value)
    made = STAND_INS.get(kind)
    if made is None:
        tensor = TENSORS.get(kind)
        if tensor is not None:
            result: Any = value.as_subclass(tensor)
            result._trace_node = node
            result._trace_graph = frame.graph
            return result
        if value is None:
            frame.decide(NONE, (node,), None)
            return None
        if _is_tensor_class(kind):
            return _tensors().wrap_tensor(frame, node)
        from trace_opt.core.standins import stand_in

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
    from trace_opt.core.standins import stand_in

    node = graph.layout().order[index]
    return fill(stand_in(class_of(node.value)), node, graph)


def record_value(frame: Frame, op: Op, inputs: tuple[Any, ...], value: Any) -> Any:
    """Record an op whose value is known already."""
    node = Node(op if frame.scope is None else op.within(frame.scope), value, inputs, (), frame.control())
    frame.add(node)
    return wrap(frame, node)


def apply(op: Op, given: tuple[Any, ...]) -> Any:
    """Run an op on results: recorded in the workflow, plain elsewhere."""
    frame = here()
    if frame is None or frame.inside:
        return _calls().loose(op, given)
    return _calls().call(frame, op, given)


@cache
def _calls() -> Any:
    # it imports this module; an import statement in `apply` would cost a fifth of each operator
    from trace_opt.core import calls

    return calls


@cache
def _tensors() -> Any:
    from trace_opt.core import tensors

    return tensors


def _is_tensor_class(kind: type) -> bool:
    return any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in kind.__mro__)
