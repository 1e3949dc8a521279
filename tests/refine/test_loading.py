"""Models for training: opened from a folder, or converted once from a GGUF file whoever asks first."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.refine import tiny_llama
from trace_opt.errors import LLMError
from trace_opt.llm.models import MODELS
from trace_opt.refine import loading
from trace_opt.refine.loading import Source, converted, load_base, source_of


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRACE_OPT_HOME", str(tmp_path / "home"))


def test_a_model_is_known_by_its_content_before_it_is_opened(tmp_path: Path) -> None:
    """The embedded model goes by its pinned hash, files by size and time; what is missing is said at once."""
    known = source_of("smollm2")
    assert known == source_of("embedded/smollm2")
    assert known.sha256 == MODELS["smollm2"].sha256 in known.identity
    file = tmp_path / "a.gguf"
    file.write_bytes(b"one")
    first = source_of(file)
    file.write_bytes(b"other")
    assert source_of(str(file)).identity != first.identity
    assert "bytes" in source_of(tiny_llama.folder()).identity
    for missing in ("nowhere", tmp_path / "b.gguf", tmp_path):
        with pytest.raises(
            LLMError, match="there is no model .*; give 'smollm2', the path of a GGUF file, or a folder"
        ):
            source_of(missing)
    with pytest.raises(LLMError, match="fetch it with 'trace-opt models pull smollm2'"):
        converted(known)


def test_a_file_is_converted_once_by_its_hash_and_appears_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads that ask at once convert once; a conversion that fails leaves nothing behind and is tried again."""
    file = tmp_path / "m.gguf"
    file.write_bytes(b"weights")
    calls: list[Path] = []
    ready = threading.Event()

    def failing(path: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise RuntimeError

    monkeypatch.setattr(loading, "_convert", failing)
    with pytest.raises(RuntimeError):
        converted(source_of(file))
    cache = tmp_path / "home" / "transformers"
    assert [found.name for found in cache.iterdir() if found.is_dir()] == []

    def convert(path: Path, folder: Path) -> None:
        calls.append(path)
        folder.mkdir()
        ready.wait(5)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(loading, "_convert", convert)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(converted, source_of(file)) for _ in range(8)]
        ready.set()
        folders = {future.result() for future in asked}
    assert calls == [file]
    assert [folder.name for folder in folders] == [f"m-{hashlib.sha256(b'weights').hexdigest()[:16]}"]
    assert all((folder / "config.json").is_file() for folder in folders)


def test_what_cannot_carry_an_adapter_is_refused(tmp_path: Path) -> None:
    """Files that are no model, models of another family and packed weights each get one sentence."""
    file = tmp_path / "m.gguf"
    file.write_bytes(b"no model")
    with pytest.raises(LLMError, match="cannot be converted for training .*; give a Hugging Face folder"):
        load_base(source_of(file), dtype="float32", device="cpu", attention="eager")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LLMError, match="cannot be opened"):
        load_base(source_of(tmp_path), dtype="float32", device="cpu", attention="eager")

    class Other(torch.nn.Module):
        def __init__(self, **layers: Any) -> None:
            super().__init__()
            for name, layer in layers.items():
                self.add_module(name, layer)

    with pytest.raises(LLMError, match="is a Other, whose blocks have no q_proj; give one of the Llama family"):
        loading._check(Other(dense=torch.nn.Linear(2, 2)), tmp_path)
    packed = torch.nn.Linear(2, 2).requires_grad_(False)
    packed.weight.data = packed.weight.data.to(torch.int8)
    with pytest.raises(LLMError, match=r"holds packed weights \(Linear\)"):
        loading._check(Other(q_proj=packed), tmp_path)


def test_a_transposed_head_is_laid_out_afresh(tmp_path: Path) -> None:
    """A head whose rows are not contiguous is several times slower in bfloat16, so it is copied once."""
    base = load_base(Source(tiny_llama.folder(), ""), dtype="float32", device="cpu", attention="eager")
    head = base.model.get_output_embeddings()
    head.weight.data = head.weight.data.t().contiguous().t()
    before = head.weight.clone()
    loading._check(base.model, tmp_path)
    assert head.weight.is_contiguous()
    assert torch.equal(head.weight, before)
    assert not base.model.training
    assert base.tokenizer.padding_side == "left"
