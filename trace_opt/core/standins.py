"""The stand-in class for each class of value, made when a value of that class is first handed out.

It has the operators always, and of the structural methods (`__len__`, `__iter__`, `__call__`, ...) exactly those that the
value's class has.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, ItemsView, Mapping, Sequence, ValuesView
from typing import Any, cast
from weakref import WeakKeyDictionary

from trace_opt.core.node import ATOMIC, Op, class_of, identity, is_a, is_kind
from trace_opt.core.operators import (
    BINARY,
    CALL,
    COMPARISONS,
    CONTAINS,
    DECISIONS,
    GETITEM,
    ITEM,
    OPTIONAL_UNARY,
    ROUND,
    UNARY,
    method_op,
)
from trace_opt.core.result import STAND_INS, Result, StandIn, apply, bare, decision, record_value, working
from trace_opt.core.strand import Frame


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
    from trace_opt.core.arguments import take

    plain, recorded = take(frame, item)
    found = plain in self._trace_node.value
    frame.decide(CONTAINS, (self._trace_node, recorded), found)
    return found


def _iterate(self: Any) -> Any:
    frame = working(self)
    if frame is None:
        yield from bare(self)
        return
    value = _begin(frame, self)
    if is_a(value, Mapping):
        yield from value
        return
    op = GETITEM if is_a(value, Sequence) else ITEM
    for i, item in enumerate(value):
        # a body that goes on iterating where the workflow began meets plain items
        frame = working(self)
        yield item if frame is None else record_value(frame, op, (self._trace_node, i), item)


async def _aiterate(self: Any) -> Any:
    i = -1
    async for item in bare(self) if working(self) is None else _begin(cast("Frame", working(self)), self):
        i, frame = i + 1, working(self)
        yield item if frame is None else record_value(frame, ITEM, (self._trace_node, i), item)


def _begin(frame: Frame, result: Result) -> Any:
    """The value to iterate, with the decision that how many items it has steers the workflow."""
    node = result._trace_node
    size = len(node.value) if _has(class_of(node.value), "__len__") else None
    frame.decide(DECISIONS["iter"], (node,), size)
    return node.value


def _reversed(self: Any) -> Any:
    if working(self) is None:
        return reversed(bare(self))
    return (self[i] for i in range(decision(self, "len", len) - 1, -1, -1))


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    return apply(CALL, (self, args, kwargs))


def _round(self: Any, ndigits: Any = None) -> Any:
    return apply(ROUND, (self, ndigits))


def _array(self: Any, *args: Any, **kwargs: Any) -> Any:
    from numpy import asarray

    return decision(self, "array", lambda value: asarray(value, *args, **kwargs))


def _await(self: Any) -> Generator[Any, Any, Any]:
    waiting: Generator[Any, Any, Any] = self._trace_node.value.__await__()
    value = yield from waiting
    frame = working(self)
    return value if frame is None else record_value(frame, _AWAIT, (self._trace_node,), value)


def _enter(self: Any) -> Any:
    return apply(method_op("__enter__"), (self, (), {}))


async def _aenter(self: Any) -> Any:
    entered = await self._trace_node.value.__aenter__()
    frame = working(self)
    return (
        entered if frame is None else record_value(frame, method_op("__aenter__"), (self._trace_node, (), {}), entered)
    )


def _leaver(name: str) -> Callable[..., Any]:
    # what a context manager makes of an exception is no value that the workflow goes on with
    def leave(self: Any, *error: Any) -> Any:
        return getattr(self._trace_node.value, name)(*error)

    return leave


def _next(self: Any) -> Any:
    return apply(_NEXT, (self,))


_NEXT = Op("next", next, ("a",))
_AWAIT = Op("await", identity, ("a",))


def _get(self: Any, key: Any, default: Any = None) -> Any:
    # a default comes back as the very object that was passed, as `match` relies on
    return self[key] if key in self else default  # noqa: SIM401 # this is `get`


def _items(self: Any) -> Any:
    return bare(self).items() if working(self) is None else ItemsView(self)


def _values(self: Any) -> Any:
    return bare(self).values() if working(self) is None else ValuesView(self)


def _keys(self: Any) -> Any:
    frame = working(self)
    return bare(self).keys() if frame is None else _begin(frame, self).keys()


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
    "__await__": _await,
    "__aiter__": _aiterate,
    "__enter__": _enter,
    "__exit__": _leaver("__exit__"),
    "__aenter__": _aenter,
    "__aexit__": _leaver("__aexit__"),
} | {f"__{name}__": _unary(op) for name, op in OPTIONAL_UNARY.items()}

_COMMON: dict[str, Callable[..., Any]] = (
    {f"__{name}__": _binary(op) for name, op in BINARY.items()}
    | {f"__r{name}__": _reflected(op) for name, op in BINARY.items() if name not in COMPARISONS}
    | {f"__{name}__": _unary(op) for name, op in UNARY.items()}
    | {"__pow__": _power, "__array__": _array}
)
"""What every stand-in has: Python asks the class, and reports an operand that will not do by itself."""


def _has(kind: type, name: str) -> bool:
    """Whether a class has a special method for its instances; hasattr would find its metaclass's too."""
    return any(base.__dict__.get(name) is not None for base in kind.__mro__)


_local_stand_ins: WeakKeyDictionary[type, type[StandIn]] = WeakKeyDictionary()


def stand_in(kind: type) -> type[StandIn]:
    """The stand-in class for values of a class; made once for each."""
    known = STAND_INS.get(kind) or _local_stand_ins.get(kind)
    if known is not None:
        return known
    body: dict[str, Any] = {"__slots__": (), "__module__": __name__, **_COMMON}
    body.update({name: method for name, method in _STRUCTURAL.items() if _has(kind, name)})
    if kind in (str, bytes):  # int("7") parses real text only, so a stand-in for text converts itself
        body.update({name: _STRUCTURAL[name] for name in ("__int__", "__float__", "__complex__")})
    body["__hash__"] = None if kind.__hash__ is None else _reader("hash", hash)
    if is_kind(kind, Mapping):
        body.update(get=_get, items=_items, values=_values, keys=_keys)
    if hasattr(kind, "__dataclass_fields__"):
        body["__dataclass_fields__"] = cast("Any", kind).__dataclass_fields__
    made = type(f"Result[{kind.__name__}]", (StandIn,), body)
    if is_kind(kind, Mapping):
        cast("Any", Mapping).register(made)
    elif is_kind(kind, Sequence) and not is_kind(kind, (str, bytes, bytearray)):
        cast("Any", Sequence).register(made)
    # a class made inside a function may be one of many: its stand-in goes when it goes
    table = _local_stand_ins if "<locals>" in kind.__qualname__ else STAND_INS
    table[kind] = made
    return made


PLAIN_STAND_INS: set[type] = {
    stand_in(_kind)
    for _kind in (*sorted(ATOMIC - {type(None)}, key=lambda kind: kind.__name__), list, dict, tuple, set)
}
"""Results of the commonest classes, known to the wrappers that `trace` generates; tensors join once there is one."""
