"""A causal language model for training: from a GGUF file, converted once, or from a Hugging Face folder.

llama.cpp's files are opened by transformers, which takes ten seconds and leaves a model that it refuses to save. So the
weights are written out once, under the sha256 of the file they came from, and opened from there in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trace_opt.errors import LLMError
from trace_opt.llm import models

EXTRA = "pip install 'trace-opt-framework[refine]'"

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a block that an adapter changes."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's weights are.

    Attributes:
        path: A GGUF file, or a folder as `save_pretrained` writes it.
        identity: What the model is known by, in words; another content has another identity.
        sha256: Of the GGUF file, where it is known without reading it.
    """

    path: Path
    identity: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Base:
    """A model with its tokenizer.

    Attributes:
        model: The causal language model of transformers, in evaluation mode.
        tokenizer: Its tokenizer, which pads on the left.
    """

    model: Any
    tokenizer: Any


def source_of(model: str | Path) -> Source:
    """Where a model is, without opening it.

    Args:
        model: An embedded model's name (`"smollm2"`, also as `"embedded/smollm2"`), a GGUF file, or a folder.

    Raises:
        LLMError: there is no such model, file or folder.
    """
    text = str(model).removeprefix("embedded/")
    if text in models.MODELS:
        return Source(models.place_of(text), f"{text} {models.model_file(text).sha256}", models.model_file(text).sha256)
    path = Path(text).expanduser().absolute()
    weights = path if path.suffix == ".gguf" else path / "config.json"
    if not weights.is_file():
        raise LLMError(
            f"there is no model {str(model)!r}; give 'smollm2', the path of a GGUF file, or a folder that holds a "
            "config.json",
            kind="model",
        )
    stamps = [file.stat() for file in ([path] if path.is_file() else sorted(path.glob("*.safetensors")))]
    content = ", ".join(f"{stamp.st_size} bytes of {stamp.st_mtime_ns}" for stamp in stamps)
    return Source(path, f"{path} {content}")


def load_base(source: Source, *, dtype: str, device: str, attention: str) -> Base:
    """Open a model for training an adapter.

    Args:
        source: Where it is; a GGUF file is converted first, unless it was.
        dtype: "float32", "bfloat16" or "float16", of the frozen weights.
        device: "cpu", "cuda", "cuda:1", ...
        attention: "sdpa" or "eager"; only the latter can be differentiated twice.

    Raises:
        LLMError: the extra is missing, the file was not fetched, or the model cannot carry an adapter.
    """
    folder = converted(source) if source.path.suffix == ".gguf" else source.path
    transformers, torch = _libraries()
    try:
        with _quiet(transformers):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), attn_implementation=attention, local_files_only=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
    except (OSError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise LLMError(f"the model in {str(folder)!r} cannot be opened ({said}); give another", kind="model") from error
    _check(model, folder)
    model.to(device).eval().requires_grad_(False)  # noqa: FBT003 # torch's signature
    return Base(model, tokenizer)


def converted(source: Source) -> Path:
    """The folder with the weights of a GGUF file, converted unless another call or process did before.

    Raises:
        LLMError: the file is missing, or no model that transformers can open.
    """
    if not source.path.is_file():
        name = next((name for name in models.MODELS if models.place_of(name) == source.path), None)
        remedy = "give the path of a GGUF file" if name is None else f"fetch it with 'trace-opt models pull {name}'"
        raise LLMError(f"there is no file {str(source.path)!r}; {remedy}", kind="model")
    digest = source.sha256 or _sha256(source.path)
    folder = models.cache_folder() / "transformers" / f"{source.path.stem}-{digest[:16]}"
    if folder.is_dir():
        return folder
    models._make_folder(folder.parent)
    with models._locked(folder.with_name(folder.name + ".lock")):
        if not folder.is_dir():  # else another process was faster
            with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder.parent) as part:
                _convert(source.path, Path(part) / "whole")
                (Path(part) / "whole").rename(folder)
    return folder


def _convert(path: Path, folder: Path) -> None:
    transformers, torch = _libraries()
    free = shutil.disk_usage(folder.parent).free
    if free < 8 * path.stat().st_size:
        raise LLMError(
            f"{str(folder.parent)!r} has {free >> 20} MiB free, too few for the weights of {path.name!r}; set "
            "TRACE_OPT_HOME to a folder on a larger disk",
            kind="model",
        )
    try:
        with _quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            opened: Any = transformers.AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        said = " ".join(str(error).split())[:200]
        raise LLMError(
            f"the model {str(path)!r} cannot be converted for training ({said}); give a Hugging Face folder",
            kind="model",
        ) from error
    _check(opened, path)
    # what was opened from a GGUF file counts as quantized and is not saved; a model of the same class is
    kind: Any = opened.config.__class__
    config: Any = kind.from_dict(
        {key: value for key, value in opened.config.to_dict().items() if key != "quantization_config"}
    )
    with torch.device("meta"):
        plain = type(opened)(config)
    plain.load_state_dict(opened.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config.eos_token_id = tokenizer.eos_token_id
    plain.generation_config.pad_token_id = tokenizer.pad_token_id
    with _quiet(transformers):
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _check(model: Any, place: Path) -> None:
    """See to it that an adapter can be put into a model, and that its head is fast.

    Raises:
        LLMError: the projections of its blocks are no plain linear layers.
    """
    import torch

    found = [module for name, module in model.named_modules() if name.rpartition(".")[2] in PROJECTIONS]
    if not found:
        raise LLMError(
            f"the model in {str(place)!r} is a {type(model).__name__}, whose blocks have no {PROJECTIONS[0]}; give one "
            "of the Llama family (SmolLM, Llama, Qwen, Mistral, Gemma)",
            kind="model",
        )
    packed = [m for m in found if not (isinstance(m, torch.nn.Linear) and m.weight.is_floating_point())]
    if packed:
        raise LLMError(
            f"the model in {str(place)!r} holds packed weights ({type(packed[0]).__name__}), which carry no adapter here; "
            "give it in float32 or bfloat16",
            kind="model",
        )
    head = model.get_output_embeddings()
    if not head.weight.is_contiguous():  # a transposed head is several times slower in bfloat16
        head.weight.data = head.weight.data.contiguous()


def _libraries() -> tuple[Any, Any]:
    """The modules transformers and torch.

    Raises:
        LLMError: the extra is not installed.
    """
    try:
        import peft
        import torch
        import transformers
    except ImportError as error:
        raise LLMError(f"training a local model needs {error.name!r}; {EXTRA}", kind="model") from None
    del peft
    return transformers, torch


@contextmanager
def _quiet(transformers: Any) -> Generator[None]:
    """Without transformers' progress bars, which are shown again afterwards if they were before."""
    logs = transformers.utils.logging
    shown: bool = logs.is_progress_bar_enabled()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logs.enable_progress_bar()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
