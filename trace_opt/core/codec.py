"""Values as JSON, exactly, and the hashes made of that text.

What JSON cannot say is tagged: `{"$": "tuple", "v": [...]}`. NaN and infinities, lone surrogates and NUL characters are
tagged too, so that the text can be stored anywhere. A value of any other class is kept as its repr and class name and is
not restored. Never pickle.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trace_opt.core.adapter import Adapter
from trace_opt.core.node import class_of, is_a
from trace_opt.core.parameter import Demonstrations, Parameter, is_tensor

if TYPE_CHECKING:
    import torch

_TAG = "$"
_LONE = re.compile("[\ud800-\udfff]")

# json.dumps makes an encoder at every call that asks for anything but its defaults, and rollouts are hashed one by one
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def encode(value: Any) -> Any:
    """A JSON-able form of a value; `decode` gives it back."""
    return _encode(value, 60, _encode_large)


def encode_named(value: Any) -> Any:
    """`encode` with adapters by their hash alone, for what is kept many times over; they come back without their bytes."""
    return _encode(value, 60, lambda item: _named(item) if isinstance(item, Adapter) else _encode_tensor(item))


def _encode(value: Any, depth: int, large: Callable[[Any], Any]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if type(value) is int:
        return value if abs(value) < 2**63 else {_TAG: "int", "v": hex(value)}
    if type(value) is float:
        return value if math.isfinite(value) else {_TAG: "float", "v": str(value)}
    if type(value) is str:
        return _encode_text(value)
    if depth <= 0:
        return described(value)
    return _encode_other(value, lambda item: _encode(item, depth - 1, large), large)


def _encode_text(text: str) -> Any:
    if "\x00" in text or (not text.isascii() and _LONE.search(text)):
        return {_TAG: "text", "v": base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()}
    return text


def _encode_other(value: Any, inner: Callable[[Any], Any], large: Callable[[Any], Any]) -> Any:
    kind = class_of(value)
    if kind is list:
        return [inner(item) for item in value]
    if kind is dict:
        if all(type(key) is str and key != _TAG and _encode_text(key) == key for key in value):
            return {key: inner(item) for key, item in value.items()}
        return {_TAG: "dict", "v": [[inner(key), inner(item)] for key, item in value.items()]}
    if kind is tuple:
        return {_TAG: "tuple", "v": [inner(item) for item in value]}
    if kind in (set, frozenset):
        items = sorted((inner(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
        return {_TAG: kind.__name__, "v": items}
    if kind is bytes:
        return {_TAG: "bytes", "v": base64.b64encode(value).decode()}
    if kind is complex:
        return {_TAG: "complex", "v": [inner(value.real), inner(value.imag)]}
    if isinstance(value, Demonstrations):
        return {_TAG: "demonstrations", "k": value.k, "v": [inner(item) for item in value.examples]}
    if isinstance(value, Adapter) or is_tensor(value):
        return large(value)
    return described(value)


def described(value: Any) -> dict[str, str]:
    """What is kept of a value that JSON cannot hold: its repr, cut, and its class."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 # a hostile repr must not lose the rest
        text = f"(its repr raised {type(error).__name__})"
    return {
        _TAG: "repr",
        "repr": storable(text[:2000]),
        "type": f"{type(value).__module__}.{type(value).__qualname__}",
    }


def storable(text: str) -> str:
    """A text for people without what databases and UTF-8 refuse: lone surrogates and NULs."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\\x00")


def decode(data: Any) -> Any:
    """The value of what `encode` gave. A value kept as its repr comes back as `Unrestored`."""
    if is_a(data, list):
        return [decode(item) for item in data]
    if not is_a(data, dict):
        return data
    if _TAG not in data:
        return {key: decode(item) for key, item in data.items()}
    tag: str = data[_TAG]
    if tag not in _DECODERS:
        raise ValueError(f"{tag!r} is no kind of value this version knows; upgrade trace-opt-framework")
    return _DECODERS[tag](data)


class Unrestored:
    """A value that JSON could not hold, as it was described."""

    __slots__ = ("kind", "text")

    def __init__(self, text: str, kind: str) -> None:
        self.text = text
        self.kind = kind

    def __repr__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unrestored) and (self.text, self.kind) == (other.text, other.kind)

    def __hash__(self) -> int:
        return hash((self.text, self.kind))


def _encode_large(value: Any) -> dict[str, Any]:
    if isinstance(value, Adapter):
        return {_TAG: "adapter", "v": _base64(value.data)} if value.whole else _named(value)
    return _encode_tensor(value)


def _named(value: Adapter) -> dict[str, str]:
    return {_TAG: "adapter", "hash": value.hash}


def _encode_tensor(value: torch.Tensor, written: Callable[[Any], str] | None = None) -> dict[str, Any]:
    import torch

    if value.layout is not torch.strided or value.is_quantized or value.is_meta:  # no plain bytes to keep
        return described(value)
    data = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    raw = data.reshape(-1).view(torch.uint8).numpy() if data.numel() else b""
    return {
        _TAG: "tensor", "dtype": str(data.dtype).removeprefix("torch."), "shape": list(data.shape),
        "v": _base64(raw) if written is None else written(raw),
    }  # fmt: skip


def _base64(raw: Any) -> str:
    return base64.b64encode(raw).decode()


def _digest(value: Any) -> dict[str, Any]:
    """What stands for a tensor in a text that is only compared and hashed: a fifth of the time of its numbers."""
    if isinstance(value, Adapter):
        return _named(value)
    return _encode_tensor(value, lambda raw: hashlib.sha256(raw).hexdigest())


def _decode_tensor(data: Mapping[str, Any]) -> torch.Tensor:
    import torch

    dtype: torch.dtype = getattr(torch, data["dtype"])
    raw = bytearray(base64.b64decode(data["v"]))
    if not raw:
        return torch.empty(data["shape"], dtype=dtype)
    return torch.frombuffer(raw, dtype=torch.uint8).view(dtype).reshape(data["shape"]).clone()


def _decode_text(data: Mapping[str, Any]) -> str:
    return base64.b64decode(data["v"]).decode("utf-8", "surrogatepass")


_DECODERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "int": lambda data: int(data["v"], 16),
    "float": lambda data: float(data["v"]),
    "text": _decode_text,
    "dict": lambda data: {decode(key): decode(item) for key, item in data["v"]},
    "tuple": lambda data: tuple(decode(item) for item in data["v"]),
    "set": lambda data: {decode(item) for item in data["v"]},
    "frozenset": lambda data: frozenset(decode(item) for item in data["v"]),
    "bytes": lambda data: base64.b64decode(data["v"]),
    "complex": lambda data: complex(decode(data["v"][0]), decode(data["v"][1])),
    "adapter": lambda data: Adapter(base64.b64decode(data["v"])) if "v" in data else Adapter.named(data["hash"]),
    "demonstrations": lambda data: Demonstrations(data["k"], tuple(decode(item) for item in data["v"])),
    "tensor": _decode_tensor,
    "repr": lambda data: Unrestored(data["repr"], data["type"]),
}


def dump_value(parameter: Parameter[Any], value: Any) -> Any:
    """A parameter's value as JSON; a structured one through its type."""
    return encode(_plain(parameter, value))


def _plain(parameter: Parameter[Any], value: Any) -> Any:
    if parameter.kind != "structured" or isinstance(value, bytes):  # JSON holds only those that are UTF-8
        return value
    return parameter.adapter.dump_python(value, mode="json")


def values_hash(parameters: Mapping[str, Parameter[Any]], values: Mapping[str, Any]) -> str:
    """What values by full parameter name are known by: equal for equal values only, tensors by their numbers."""
    return content_hash({name: _plain(parameters[name], value) for name, value in values.items()})


def restore_value(parameter: Parameter[Any], data: Any) -> Any:
    """The value that `dump_value` gave, checked against the parameter.

    Raises:
        ValueError: the parameter does not allow it.
    """
    value = decode(data)
    if isinstance(value, Unrestored):  # a choice, of an enum say, is known by how it is described
        value = next((choice for choice in parameter.choices or () if encode(choice) == data), value)
    if parameter.kind == "structured" and not isinstance(value, bytes):
        value = parameter.adapter.validate_json(json.dumps(value))
    return parameter.check(value)


def canonical(value: Any) -> str:
    """One text for equal values: JSON of `encode`, keys sorted, no spaces, tensors and adapters by the hash of their bytes."""
    return _CANONICAL.encode(_encode(value, 60, _digest))


def content_hash(value: Any) -> str:
    """The sha256 of `canonical`, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
