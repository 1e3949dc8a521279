"""Values as JSON text between this process and a confined one. The confined process runs this file's own text.

It knows the types it names and no others, compares them by identity and calls nothing that a value's class defines, so
a hostile instance is refused before any of its methods could run. What JSON lacks is tagged: `{"$": "tuple", "v": []}`.
Only the standard library is used: where the file runs, nothing else can be imported.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
import sys
from typing import Any, cast

TAG = "$"
DEPTH = 100
_INT = 2**14000  # longer ones have more digits than Python converts to text by default
_TEXT = {str, bool, type(None)}
_PLAIN = (dt.datetime, dt.date, dt.time, decimal.Decimal)


class Refused(Exception):  # noqa: N818 # not an error of its own: the caller says what it means
    """A value that cannot cross; `.limit` says whether it was too large rather than of the wrong kind."""

    def __init__(self, message: str, *, limit: bool = False) -> None:
        super().__init__(message)
        self.limit = limit


class Instance:
    """What an instance of a dataclass or pydantic model is while it crosses: the name of its class and its fields."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: dict[str, Any]) -> None:
        self.name = name
        self.fields = fields


def dump(value: Any, room: int, classes: dict[type, tuple[str, ...]] | None = None) -> str:
    """The JSON text of a value.

    Args:
        value: What crosses.
        room: The greatest number of characters.
        classes: Classes whose instances may cross, with the names of their fields.

    Raises:
        Refused: something in it cannot cross, or it is too large or too deeply nested.
    """
    left = [room]
    text = json.dumps(_encode(value, left, classes or {}, 0), separators=(",", ":"))
    if len(text) > room:
        raise Refused(f"it takes {len(text)} characters", limit=True)
    return text


def _spend(left: list[int], amount: int) -> None:
    left[0] -= amount
    if left[0] < 0:
        raise Refused("it is too large", limit=True)


def _encode(value: Any, left: list[int], classes: dict[type, tuple[str, ...]], depth: int) -> Any:
    kind = cast("Any", type(value))
    if kind in _TEXT:
        _spend(left, len(value) if kind is str else 4)
        return _text(value) if kind is str else value
    if kind is int:
        if not -_INT < value < _INT:
            raise Refused("it holds an int of more than 4,000 digits", limit=True)
        _spend(left, value.bit_length() // 3 + 1)
        return value
    if kind is float:
        _spend(left, 8)
        return value if value - value == 0 else {TAG: "float", "v": float.__repr__(value)}
    if depth >= DEPTH:
        raise Refused(f"it is nested more than {DEPTH} deep", limit=True)
    _spend(left, 2)
    return _encode_other(kind, value, left, classes, depth + 1)


def _encode_other(kind: type, value: Any, left: list[int], classes: dict[type, tuple[str, ...]], depth: int) -> Any:
    if kind is list:
        return [_encode(item, left, classes, depth) for item in value]
    if kind in (tuple, set, frozenset):
        return {TAG: kind.__name__, "v": [_encode(item, left, classes, depth) for item in value]}
    if kind is dict:
        if all(type(key) is str and key != TAG and key.isascii() for key in value):
            _spend(left, sum(map(len, value)))
            return {key: _encode(item, left, classes, depth) for key, item in value.items()}
        pairs = [[_encode(k, left, classes, depth), _encode(v, left, classes, depth)] for k, v in value.items()]
        return {TAG: "dict", "v": pairs}
    if kind is bytes:
        _spend(left, len(value) * 4 // 3)
        return {TAG: "bytes", "v": base64.b64encode(value).decode()}
    if kind is complex:
        return {TAG: "complex", "v": [repr(value.real), repr(value.imag)]}
    if kind is dt.timedelta:
        return {TAG: "timedelta", "v": [value.days, value.seconds, value.microseconds]}
    if kind in _PLAIN:
        return {TAG: kind.__name__, "v": str(value) if kind is decimal.Decimal else value.isoformat()}
    if kind is Instance:
        return {TAG: "instance", "c": value.name, "v": _encode(value.fields, left, classes, depth)}
    if kind in classes:
        fields = {name: object.__getattribute__(value, name) for name in classes[kind]}
        return {TAG: "instance", "c": kind.__name__, "v": _encode(fields, left, classes, depth)}
    return _encode_array(kind, value, left)


def _encode_array(kind: type, value: Any, left: list[int]) -> Any:
    numpy = sys.modules.get("numpy")
    if (
        numpy is None
        or not (kind is numpy.ndarray or issubclass(kind, numpy.generic))
        or value.dtype.kind not in "biufc"
    ):
        raise Refused(f"it holds a {kind.__name__!r}")
    _spend(left, int(value.nbytes) * 4 // 3)
    data = base64.b64encode(numpy.ascontiguousarray(value).tobytes()).decode()
    tag = "array" if kind is numpy.ndarray else "scalar"
    return {TAG: tag, "dtype": value.dtype.str, "shape": list(value.shape), "v": data}


def _text(text: str) -> Any:
    try:
        text.encode()
    except UnicodeEncodeError:
        return {TAG: "text", "v": base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()}
    return text


def load(text: str, classes: dict[str, type] | None = None) -> Any:
    """The value that `dump` gave; an instance of a class that is not in `classes` comes back as an `Instance`.

    Raises:
        ValueError: the text was not made by `dump`.
    """
    try:
        return _decode(json.loads(text), classes or {})
    except (RecursionError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"what came back is no value: {type(error).__name__}") from None


def _decode(data: Any, classes: dict[str, type]) -> Any:
    kind = cast("Any", type(data))
    if kind is list:
        return [_decode(item, classes) for item in data]
    if kind is not dict:
        return data
    tag = data.get(TAG)
    if tag is None:
        return {key: _decode(item, classes) for key, item in data.items()}
    return _decode_tagged(tag, data["v"], data, classes)


def _decode_tagged(tag: Any, inner: Any, data: dict[str, Any], classes: dict[str, type]) -> Any:
    sequences: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}
    if tag in sequences:
        return sequences[tag]([_decode(item, classes) for item in inner])
    if tag == "dict":
        return {_decode(key, classes): _decode(item, classes) for key, item in inner}
    if tag == "instance":
        fields = _decode(inner, classes)
        made = classes.get(data["c"])
        return Instance(data["c"], fields) if made is None else made(**fields)
    if tag in ("array", "scalar"):
        return _decode_array(data)
    if tag == "bytes":
        return base64.b64decode(inner)
    if tag == "text":
        return base64.b64decode(inner).decode("utf-8", "surrogatepass")
    if tag == "timedelta":
        return dt.timedelta(*inner)
    if tag == "complex":
        return complex(float(inner[0]), float(inner[1]))
    if tag == "float":
        return float(inner)
    if tag == "Decimal":
        return decimal.Decimal(inner)
    return {"datetime": dt.datetime, "date": dt.date, "time": dt.time}[tag].fromisoformat(inner)


def _decode_array(data: dict[str, Any]) -> Any:
    import numpy as np

    dtype: Any = np.dtype(data["dtype"])
    if dtype.kind not in "biufc":
        raise ValueError(f"an array of dtype {data['dtype']!r} cannot cross")
    array = np.frombuffer(base64.b64decode(data["v"]), dtype=dtype).reshape(data["shape"]).copy()
    return array[()] if data[TAG] == "scalar" else array
