"""What a recording is made of: ops, and the values that their calls gave.

A `Node` points at the nodes it was made from and at nothing that points back at it, so a recording is freed when it is
dropped and its depth has no limit. Nodes are made by the hundred thousand: they are plain slotted classes that nobody
writes to by convention.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter

T = TypeVar("T")

NodeKind = Literal["op", "parameter", "decision", "error", "output"]

# Python's own functions, typed so that a value of unknown class stays Any whatever is asked about it
class_of: Callable[[Any], type[Any]] = type
is_a: Callable[[Any, Any], bool] = isinstance
is_kind: Callable[[Any, Any], bool] = issubclass

ATOMIC: frozenset[type] = frozenset({int, float, str, bytes, bool, complex, type(None)})
"""Classes whose values hold no other value: they are never looked into."""

TENSORS: dict[type, Any] = {}
"""torch's tensor classes, once one of their values is recorded, and the class of the results that stand for them."""

SOLID: set[type] = set(ATOMIC)
"""Those and torch's own tensors, once there is one: no result can be inside their values."""


class Op:
    """A function whose calls are recorded.

    Attributes:
        name: The function's name, with the scopes it was called under: `planner/ask`.
        fn: The undecorated function.
        parameters: Its argument names, in the order of `Node.inputs`.
        doc: First paragraph of its docstring, on one line.
        signature: Its signature as text, or "".
        symbol: The infix symbol of an operator (`+`), or "".
        kind: `op`, `decision` or `output`.
        inline: Whether its inner calls are recorded in its place.
        variadic: Names of its `*args` and `**kwargs` arguments.
    """

    __slots__ = ("_scoped", "doc", "fn", "inline", "kind", "name", "parameters", "signature", "symbol", "variadic")

    def __init__(
        self,
        name: str,
        fn: Callable[..., Any],
        parameters: tuple[str, ...],
        *,
        doc: str = "",
        signature: str = "",
        symbol: str = "",
        kind: Literal["op", "decision", "output"] = "op",
        inline: bool = False,
        variadic: frozenset[str] = frozenset(),
    ) -> None:
        self.name = name
        self.fn = fn
        self.parameters = parameters
        self.doc = doc
        self.signature = signature
        self.symbol = symbol
        self.kind: Literal["op", "decision", "output"] = kind
        self.inline = inline
        self.variadic = variadic
        self._scoped: dict[str, Op] = {}

    def within(self, scope: str) -> Op:
        """This op as called under an inline op: the same function, its name led by the scope."""
        found = self._scoped.get(scope)
        if found is None:
            found = Op(
                f"{scope}/{self.name}", self.fn, self.parameters, doc=self.doc, signature=self.signature,
                symbol=self.symbol, kind=self.kind, variadic=self.variadic,
            )  # fmt: skip
            self._scoped[scope] = found
        return found

    @property
    def source(self) -> str:
        """`file:line` of the function, or "" for one that is not written in Python."""
        code = getattr(inspect.unwrap(self.fn), "__code__", None)
        return "" if code is None else f"{code.co_filename}:{code.co_firstlineno}"

    def __repr__(self) -> str:
        return f"<op {self.name}{self.signature}>"


@dataclass(frozen=True, slots=True)
class Failure:
    """What an op call that raised left behind: text only, since a live exception would keep the recording alive.

    Attributes:
        type: The exception's class name.
        message: Its text.
        traceback: The formatted traceback.
    """

    type: str
    message: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class Nested:
    """An input that is a container holding nodes: the container with the nodes in place, and the nodes flat."""

    __slots__ = ("items", "nodes")

    def __init__(self, items: Any, nodes: tuple[Node[Any], ...]) -> None:
        self.items = items
        self.nodes = nodes


class Node(Generic[T]):
    """A recorded value.

    Attributes:
        op: The op whose call gave it.
        value: The plain value; a `Failure` where the call raised.
        inputs: One entry for each of the op's parameters: a constant, a Node, or a `Nested` container.
        trail: Parameters and results that the body read, and the op calls made inside it, in order.
        control: The latest decision before the call, or None.
        seconds: Wall time of the call.
        index: Its place in the graph's canonical order, or -1 until the graph has been laid out.
    """

    __slots__ = ("control", "index", "inputs", "op", "seconds", "trail", "value")

    def __init__(
        self,
        op: Op,
        value: T,
        inputs: tuple[Any, ...] = (),
        trail: tuple[Node[Any], ...] = (),
        control: Node[Any] | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.op = op
        self.value = value
        self.inputs = inputs
        self.trail = trail
        self.control = control
        self.seconds = seconds
        self.index = -1

    @property
    def kind(self) -> NodeKind:
        """`op`, `parameter`, `decision`, `error` or `output`."""
        return "error" if type(self.value) is Failure else self.op.kind

    @property
    def arguments(self) -> dict[str, Any]:
        """The inputs by argument name: constants, Nodes, or containers with Nodes in place."""
        return {
            name: given.items if type(given) is Nested else given
            for name, given in zip(self.op.parameters, self.inputs, strict=True)
        }

    @property
    def reads(self) -> tuple[Node[Any], ...]:
        """Parameters and results that the body read although they were not arguments."""
        return tuple(node for node in self.trail if type(node) is not Child)

    @property
    def children(self) -> tuple[Node[Any], ...]:
        """Op calls made in the body: values and timing, no part of the graph."""
        return tuple(node for node in self.trail if class_of(node) is Child)

    def parents(self) -> Iterator[tuple[Node[Any], str, str]]:
        """What it was made from: `(node, kind of edge, where the value went in)`."""
        for name, given in zip(self.op.parameters, self.inputs, strict=True):
            if isinstance(given, Node):
                yield given, "argument", name
            elif type(given) is Nested:
                # what *args and **kwargs hold is known by its own place, like any other argument
                for node, path in walk(given.items, name):
                    yield node, "argument", path
        for node in self.reads:
            yield node, "read", "read"
        if self.control is not None:
            yield self.control, "control", "control"

    def __repr__(self) -> str:
        from trace_opt.core.parameter import short

        value = str(self.value) if type(self.value) is Failure else short(self.value)
        return f"<{self.kind} {self.op.name} = {value}>"

    def __reduce__(self) -> tuple[Any, ...]:
        from trace_opt.core.columns import reduce_node

        return reduce_node(self)


class Child(Node[T]):
    """An op call made in another op's body; kept with its caller, no part of the graph."""

    __slots__ = ()


class ParameterNode(Node[T]):
    """A parameter as one recording read it.

    Attributes:
        parameter: The Parameter, or None in a graph that was loaded from JSON or pickle.
        name: Its full name.
        description: What it is for.
    """

    __slots__ = ("description", "name", "parameter")

    def __init__(self, value: T, name: str, description: str = "", parameter: Parameter[T] | None = None) -> None:
        # one for each parameter of each rollout: written out instead of calling Node's
        self.op = PARAMETER
        self.value = value
        self.inputs = self.trail = ()
        self.control = None
        self.seconds = 0.0
        self.index = -1
        self.name = name
        self.description = description
        self.parameter = parameter

    @property
    def kind(self) -> NodeKind:
        """Always `parameter`."""
        return "parameter"


def identity(value: Any) -> Any:
    """Give back what was given."""
    return value


PARAMETER = Op("parameter", identity, ())


def walk(items: Any, path: str) -> Iterator[tuple[Node[Any], str]]:
    """Every node in a container with the path that leads to it: `d['x'][0]`. Depth is bounded by `take`."""
    if isinstance(items, Node):
        yield items, path
    elif is_a(items, dict):
        for key, value in items.items():
            yield from walk(value, f"{path}[{key!r}]")
    elif is_a(items, (list, tuple, set, frozenset)):
        names = getattr(items, "_fields", None)
        for i, value in enumerate(items):
            yield from walk(value, f"{path}.{names[i]}" if names else f"{path}[{i}]")
    elif hasattr(items, "__dataclass_fields__"):
        for name in items.__dataclass_fields__:
            yield from walk(getattr(items, name, None), f"{path}.{name}")
