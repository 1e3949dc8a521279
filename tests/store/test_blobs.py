"""Large values kept under the hash of their content."""

import json
from typing import Any

import pytest
from hypothesis import given

from tests.strategies import tensors, texts, values
from trace_opt.core.codec import canonical, decode, encode
from trace_opt.store import blobs


def shelf() -> tuple[dict[str, bytes], blobs.Put, blobs.Get]:
    held: dict[str, bytes] = {}

    def put(data: bytes) -> str:
        name = blobs.hash_of(data)
        held[name] = data
        return name

    return held, put, held.__getitem__


@given(values)
def test_values_without_large_tensors_pass_unchanged(value: Any) -> None:
    held, put, get = shelf()
    stored = json.loads(blobs.text_of(blobs.store_tensors(encode(value), put)))
    assert held == {}
    assert canonical(decode(blobs.fetch_tensors(stored, get))) == canonical(value)


@given(tensors())
def test_a_tensor_comes_back_bit_for_bit_from_a_blob(tensor: Any) -> None:
    held, put, get = shelf()
    whole = tensor.repeat(40, *([1] * max(0, tensor.dim() - 1))) if tensor.dim() and tensor.numel() else tensor
    encoded = {"weights": [encode(whole)]}
    stored = blobs.store_tensors(encoded, put)
    assert blobs.fetch_tensors(stored, get) == encoded
    assert bool(held) == (len(encode(whole)["v"]) > blobs.INLINE)


@given(texts)
def test_any_text_survives_packing(text: str) -> None:
    assert blobs.unpacked(blobs.packed(text)) == text


def test_a_large_tensor_leaves_the_row_small() -> None:
    torch = pytest.importorskip("torch")
    held, put, _ = shelf()
    stored = blobs.text_of(blobs.store_tensors({"w": encode(torch.zeros(10_000))}, put))
    assert len(stored) < 200
    assert len(held) == 1
