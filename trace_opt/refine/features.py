"""What a causal language model knows of a text at its end: the features that a reward model stands on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trace_opt.refine.sampling import padded

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def last_states(model: Any, texts: Sequence[Sequence[int]]) -> Tensor:
    """The final hidden state at the last token of each text, differentiable.

    Args:
        model: A causal language model of transformers.
        texts: Token ids, at least one in each.

    Returns:
        Shape `[n, width]`.
    """
    import torch

    device: torch.device = model.get_input_embeddings().weight.device
    # padding on the right comes after all that is read, so it changes nothing
    ids, mask = padded(texts, device)
    said = model.base_model(
        input_ids=ids, attention_mask=mask.long(),
        position_ids=torch.arange(ids.shape[1], device=device).expand(len(texts), -1), use_cache=False,
    )  # fmt: skip
    return said.last_hidden_state[torch.arange(len(texts), device=device), mask.sum(1) - 1]
