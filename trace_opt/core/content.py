"""What a value holds, as a hash that is equal for equal content only, in this process and in any later one.

Unlike `codec.content_hash` it never falls back to a repr: a value of a class that it does not know has no stable content,
and a container that holds one has none either. Dicts are compared in their order, since a function may depend on it.
"""

from __future__ import annotations

import datetime as dt
import enum
import hashlib
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any, NamedTuple, cast
from uuid import UUID

from trace_opt.core.adapter import Adapter
from trace_opt.core.codec import encode
from trace_opt.core.module import Module
from trace_opt.core.node import ATOMIC, class_of, is_a, is_kind
from trace_opt.core.parameter import Demonstrations, Parameter, is_tensor

_MAX_NESTING = 60
_BY_REPR: frozenset[type] = frozenset(
    {range, slice, Decimal, Fraction, UUID, dt.date, dt.time, dt.datetime, dt.timedelta}
)
"""Classes whose repr says all that they hold."""

Feed = Callable[[bytes], None]


class Content(NamedTuple):
    """What a value holds.

    Attributes:
        digest: Its sha256.
        size: About how many bytes it takes.
    """

    digest: bytes
    size: int


class _UnstableError(Exception):
    """A value holds something that no hash stands for."""


class _Sink:
    """Takes the pieces of a value and counts their bytes; each with its length, so that pieces never run together."""

    __slots__ = ("hash", "size")

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.size = 0

    def add(self, tag: str, data: bytes = b"") -> None:
        self.size += len(data) + 16
        self.hash.update(f"{tag}:{len(data)}:".encode() + data)


def content(value: object) -> Content | None:
    """What a value holds, or None where no hash can stand for it.

    Stable are numbers, texts, bytes, None, tuples, lists, dicts, sets, dataclasses, named tuples, pydantic models, enums,
    dates, paths, Demonstrations, adapters, numpy arrays, tensors outside autograd, and Modules (their parameters by name).
    Classes made within a function are told apart by nothing, so their instances are not.
    """
    sink = _Sink()
    try:
        _feed(sink, value, _MAX_NESTING)
    except _UnstableError:
        return None
    return Content(sink.hash.digest(), sink.size)


def _feed(sink: _Sink, value: Any, depth: int) -> None:
    kind = class_of(value)
    if kind is str:
        sink.add("str", value.encode("utf-8", "surrogatepass"))
    elif kind is bytes:
        sink.add("bytes", value)
    elif kind in ATOMIC or kind in _BY_REPR:
        sink.add(kind.__name__, repr(value).encode())
    elif depth <= 0:
        raise _UnstableError
    elif kind in (list, tuple):
        _feed_all(sink, kind.__name__, value, depth)
    elif kind is dict:
        _feed_all(sink, "dict", [part for pair in value.items() for part in pair], depth)
    elif kind in (set, frozenset):
        _feed_set(sink, kind.__name__, value, depth)
    else:
        _feed_other(sink, kind, value, depth)


def _feed_all(sink: _Sink, tag: str, items: Any, depth: int) -> None:
    sink.add(tag, str(len(items)).encode())
    for item in items:
        _feed(sink, item, depth - 1)


def _feed_set(sink: _Sink, tag: str, items: Any, depth: int) -> None:
    inner: list[bytes] = []
    for item in items:
        one = _Sink()
        _feed(one, item, depth - 1)
        sink.size += one.size
        inner.append(one.hash.digest())
    sink.add(tag, b"".join(sorted(inner)))


def _feed_other(sink: _Sink, kind: type[Any], value: Any, depth: int) -> None:
    if is_a(value, Parameter):
        sink.add("parameter", value.name.encode())
    elif is_tensor(value):
        _feed_tensor(sink, value)
    elif _is_array(value):
        if value.dtype.hasobject:
            raise _UnstableError
        sink.add("array", f"{value.dtype.str}{value.shape}".encode() + cast("bytes", value.tobytes()))
    elif is_kind(kind, PurePath):
        sink.add(kind.__name__, str(value).encode("utf-8", "surrogateescape"))
    elif is_kind(kind, enum.Enum):
        sink.add("enum", f"{_path_of(kind)}.{value.name}".encode())
    elif kind is Adapter:
        sink.add("adapter", value.hash.encode())
    elif kind is Demonstrations:
        _feed_all(sink, "demonstrations", (value.k, value.examples), depth)
    else:
        _feed_all(sink, _path_of(kind), _held(kind, value), depth)


def _feed_tensor(sink: _Sink, value: Any) -> None:
    # what leads back to a leaf is more than its numbers
    data: dict[str, Any] = {} if value.requires_grad else encode(value)
    if data.get("$") != "tensor":
        raise _UnstableError
    sink.add("tensor", f"{data['dtype']}{data['shape']}{value.device}".encode() + data["v"].encode())


def _held(kind: type[Any], value: Any) -> list[Any]:
    """The parts of an object that are all it holds.

    Raises:
        _UnstableError: who knows.
    """
    if is_kind(kind, tuple) and hasattr(kind, "_fields"):
        return list(value)
    if is_kind(kind, Module):
        attributes = cast("dict[str, Any]", vars(value))
        return [part for name, held in attributes.items() if name != "_owner" for part in (name, held)]
    if hasattr(kind, "__dataclass_fields__"):
        names: dict[str, None] = dict.fromkeys([*kind.__dataclass_fields__, *getattr(value, "__dict__", ())])
        return [part for name in names for part in (name, getattr(value, name, None))]
    if hasattr(kind, "__pydantic_fields__"):
        extra = getattr(value, "__pydantic_extra__", None), getattr(value, "__pydantic_private__", None)
        return [dict(cast("dict[str, Any]", vars(value))), *extra]
    raise _UnstableError


def _path_of(kind: type[Any]) -> str:
    path = f"{kind.__module__}.{kind.__qualname__}"
    if "<locals>" in path:
        raise _UnstableError
    return path


def _is_array(value: object) -> bool:
    """Whether `value` is numpy's, without importing it: where it is not loaded, nothing is."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))
