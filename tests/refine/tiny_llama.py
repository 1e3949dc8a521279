"""A Llama of a few thousand weights with a dozen words, as a folder that transformers loads."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

WORDS = ("<end>", "<unknown>", "go", "left", "right", "up", "hm", "place", "0", "1", "2", "so")

HOME = "TINY_LLAMA"
"""Names in the environment the folder that processes share."""

_OWN = tempfile.TemporaryDirectory(prefix="tiny-llama-")


def folder() -> Path:
    """The model's folder, made once; its weights are always the same."""
    where = Path(os.environ.get(HOME, _OWN.name))
    if (where / "config.json").exists():
        return where
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unknown>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="<end>", unk_token="<unknown>", bos_token="<end>"
    )
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


def tiny_policy(**options: Any) -> Any:
    """A policy of that model which continues plain text."""
    from trace_opt.refine.policy import TrainablePolicy

    given: dict[str, Any] = {"rank": 4, "alpha": 8.0, "raw": True, "device": "cpu", "name": "tiny", **options}
    return TrainablePolicy(folder(), **given)
