"""What a causal language model knows of a text at its end: the features that a reward model stands on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    longest = max(map(len, texts))
    # padding on the right comes after all that is read, so it changes nothing
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    ends = torch.tensor([len(text) - 1 for text in texts], device=device)
    places = torch.arange(longest, device=device)
    said = model.base_model(
        input_ids=ids, attention_mask=(places <= ends[:, None]).long(), position_ids=places.expand(len(texts), -1),
        use_cache=False,
    )  # fmt: skip
    return said.last_hidden_state[torch.arange(len(texts), device=device), ends]
