"""Large values and graphs, kept once each under the hash of their content.

A tensor above a few kilobytes is written as safetensors, an adapter as the bytes that it is, a graph as compressed JSON;
what refers to them holds the hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from trace_opt.core.adapter import Adapter
from trace_opt.core.codec import decode, encode

INLINE = 4096
"""Base64 characters of a tensor or an adapter that stay in the JSON itself."""

# json.dumps makes an encoder at every call that asks for anything but its defaults
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)

Put = Callable[[bytes], str]
Get = Callable[[str], bytes]


def hash_of(data: bytes) -> str:
    """The name of a blob."""
    return hashlib.sha256(data).hexdigest()


def packed(text: str) -> bytes:
    """A text as a blob; level 1 takes a tenth of the time of the best one and a fifth more room."""
    return zlib.compress(text.encode("utf-8", "surrogatepass"), 1)


def unpacked(data: bytes) -> str:
    """The text of `packed`."""
    return zlib.decompress(data).decode("utf-8", "surrogatepass")


def store_tensors(data: Any, put: Put) -> Any:
    """JSON of `encode` or `dump_value` with its large tensors and adapters moved into blobs."""

    def moved(tensor: dict[str, Any]) -> dict[str, Any]:
        return {"$": "blob", "v": put(_tensor_bytes(tensor))} if len(tensor["v"]) > INLINE else tensor

    def moved_adapter(adapter: dict[str, Any]) -> dict[str, Any]:
        if len(adapter.get("v", "")) <= INLINE:
            return adapter
        return {"$": "adapter", "blob": put(base64.b64decode(adapter["v"]))}

    return _tagged(data, {"tensor": moved, "adapter": moved_adapter})


def fetch_tensors(data: Any, get: Get) -> Any:
    """The JSON that `store_tensors` was given."""

    def fetched(adapter: dict[str, Any]) -> dict[str, Any]:
        return encode(Adapter(get(adapter["blob"]))) if "blob" in adapter else adapter

    return _tagged(data, {"blob": lambda blob: encode(_tensor(get(blob["v"]))), "adapter": fetched})


def _tagged(data: Any, changes: Mapping[str, Callable[[dict[str, Any]], Any]]) -> Any:
    """JSON with every object of some tags changed."""
    if isinstance(data, list):
        return [_tagged(item, changes) for item in cast("list[Any]", data)]
    if not isinstance(data, dict):
        return data
    found = cast("dict[str, Any]", data)
    change = changes.get(found.get("$", ""))
    if change is not None:
        return change(found)
    return {key: _tagged(item, changes) for key, item in found.items()}


def _tensor_bytes(data: Mapping[str, Any]) -> bytes:
    from safetensors.torch import save

    return save({"value": decode(data)})


def _tensor(data: bytes) -> Any:
    from safetensors.torch import load

    return load(data)["value"]


def text_of(data: Any) -> str:
    """ASCII JSON of JSON-able data."""
    return _ENCODER.encode(data)
