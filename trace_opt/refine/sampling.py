"""Drawing tokens from a causal language model, and scoring tokens under it: each prompt is read once for all its rows.

Rows are padded on the left to the longest prompt; the mask and explicit positions keep the padding out of the numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Tokens = Sequence[int]

_ROW_TOKENS = 4096
"""Tokens scored at once without gradients; more are scored in turns, since each has a logit for every word."""


@dataclass(frozen=True, slots=True)
class Draws:
    """What was drawn, row by row.

    Attributes:
        tokens: Of each row, the one that ended it included.
        log_probs: Of each token, in nats.
        ended: Whether a row came to an end by itself.
    """

    tokens: list[list[int]]
    log_probs: list[list[float]]
    ended: list[bool]


class Stopped(Exception):  # noqa: N818 # nothing went wrong
    """Drawing was given up on."""


def draw(
    model: Any, prompts: Sequence[Tokens], rows: Sequence[int], seeds: Sequence[int], *, max_tokens: int,
    temperature: float, ends: Collection[int | None], over: Callable[[int, list[int]], bool] | None = None,
    stopped: Callable[[], bool] = bool,
) -> Draws:  # fmt: skip
    """Draw one completion for each row.

    Args:
        model: A causal language model of transformers.
        prompts: Token ids of each prompt.
        rows: Of each row, the index of its prompt.
        seeds: Of each row; its chance depends on nothing else.
        max_tokens: Length of a completion at most.
        temperature: 0 takes the likeliest token.
        ends: Tokens that end a completion.
        over: Says of a row and its tokens so far whether it is over.
        stopped: Asked before every token.

    Raises:
        Stopped: `stopped` said so.
    """
    import torch

    chances = [
        torch.rand(max_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds
    ]
    made = Draws([[] for _ in rows], [[] for _ in rows], [False] * len(rows))
    alive = list(range(len(rows)))
    with torch.no_grad():
        read = _read(model, prompts)
        index = torch.tensor(list(rows), device=read.mask.device)
        cache, mask, logits = read.cache, read.mask[index], read.logits[index]
        cache.reorder_cache(index)
        for step in range(max_tokens):
            if stopped():
                raise Stopped
            chance = torch.stack([chances[row][step] for row in alive])
            tokens, log_probs = _chosen(logits, temperature, chance)
            for row, token, log_prob in zip(alive, listed(tokens), listed(log_probs), strict=True):
                made.tokens[row].append(token)
                made.log_probs[row].append(log_prob)
                made.ended[row] = token in ends or (over is not None and over(row, made.tokens[row]))
            going = [place for place, row in enumerate(alive) if not made.ended[row]]
            if not going or step + 1 == max_tokens:
                break
            if len(going) < len(alive):
                kept = torch.tensor(going, device=mask.device)
                cache.reorder_cache(kept)
                tokens, mask, alive = tokens[kept], mask[kept], [alive[place] for place in going]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], 1)
            said = model(
                input_ids=tokens[:, None], attention_mask=mask, position_ids=mask.sum(1, keepdim=True) - 1,
                cache=cache, use_cache=True,
            )  # fmt: skip
            logits = said.logits[:, -1]
    return made


def row_seeds(seed: int, prompts: Sequence[Tokens], rows: Sequence[int]) -> list[int]:
    """A seed for each row: of its prompt's tokens, and of how many rows of the same tokens come before it.

    Args:
        seed: Of all.
        prompts: Token ids of each prompt.
        rows: Of each row, the index of its prompt.
    """
    before: dict[tuple[int, ...], int] = {}
    found: list[int] = []
    for row in rows:
        key = tuple(prompts[row])
        place = before.get(key, 0)
        before[key] = place + 1
        digest = hashlib.sha256(f"{seed}:{place}:{key}".encode()).digest()
        found.append(int.from_bytes(digest[:8], "big") >> 1)
    return found


def score(
    model: Any, prompts: Sequence[Tokens], rows: Tensor, tokens: Tensor, mask: Tensor, temperature: Tensor,
    *, shared: bool = True,
) -> Tensor:  # fmt: skip
    """The log probability of each token of each row after its prompt, differentiable.

    Args:
        model: A causal language model of transformers.
        prompts: Token ids of each prompt.
        rows: Of each row, the index of its prompt, shape `[n]`.
        tokens: Shape `[n, T]`.
        mask: Which of them there are, shape `[n, T]`.
        temperature: Of each row, shape `[n]`; 0 counts as 1.
        shared: Whether a prompt is read once for all its rows, else once for each.

    Returns:
        Nats, shape `[n, T]`; 0 where the mask is False.
    """
    import torch

    if not torch.is_grad_enabled() and tokens.numel() > _ROW_TOKENS and len(rows) > 1:
        size = max(1, _ROW_TOKENS // tokens.shape[1])
        parts = [slice(at, at + size) for at in range(0, len(rows), size)]
        return torch.cat([
            score(model, prompts, rows[p], tokens[p], mask[p], temperature[p], shared=shared) for p in parts
        ])  # fmt: skip
    asked: list[int] = listed(rows)
    used = sorted(set(asked)) if shared else asked
    read = _read(model, [prompts[i] for i in used])
    places = [used.index(i) for i in asked] if shared else range(len(asked))
    index = torch.tensor(places, device=read.mask.device)
    # not by [index]: its backward pass adds up in parallel, in whatever order
    logits = read.logits.index_select(0, index)[:, None]
    if tokens.shape[1] > 1:
        read.cache.reorder_cache(index)
        whole = torch.cat([read.mask[index], mask[:, :-1].long()], 1)
        later = model(
            input_ids=tokens[:, :-1], attention_mask=whole,
            position_ids=(whole.cumsum(1) - 1)[:, read.mask.shape[1] :].clamp(min=0),
            cache=read.cache, use_cache=True,
        )  # fmt: skip
        logits = torch.cat([logits, later.logits], 1)
    warmth = torch.where(temperature > 0, temperature, 1.0)[:, None, None].to(logits.device)
    logits = logits.float() if bool((warmth == 1).all()) else logits.float() / warmth  # spares a number for every word
    return _log_prob(logits, tokens) * mask


def padded(rows: Sequence[Tokens], device: torch.device | str, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids as one tensor, padded on the right.

    Args:
        rows: At least one, with at least one token in one of them.
        device: Where they are to be.
        pad: What stands where a row has ended.

    Returns:
        The tokens and a bool for each that there is, shape `[n, T]`.
    """
    import torch

    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=device)
    lengths = torch.tensor(list(map(len, rows)), device=device)
    return tokens, torch.arange(longest, device=device) < lengths[:, None]


def listed(tensor: Tensor) -> list[Any]:
    """The numbers of a tensor."""
    return cast("Any", tensor).tolist()


def _log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    # without a second tensor of a number for every word, which log_softmax would make
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)


def _chosen(logits: Tensor, temperature: float, chance: Tensor) -> tuple[Tensor, Tensor]:
    """A token for each row by inverting the cumulative distribution, and its log probability."""
    logits = logits.float() / (temperature or 1.0)
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        total = logits.softmax(-1).double().cumsum(-1)
        aim = chance.to(total.device)[:, None] * total[:, -1:]
        tokens = (total <= aim).sum(-1).clamp(max=logits.shape[-1] - 1)
    return tokens, _log_prob(logits, tokens)


@dataclass(slots=True)
class _Read:
    """Prompts that were read: their keys and values, which of them are no padding, and the logits of the next token."""

    cache: Any
    mask: Tensor
    logits: Tensor


def _read(model: Any, prompts: Sequence[Tokens]) -> _Read:
    import torch
    from transformers import DynamicCache

    device: torch.device = model.get_input_embeddings().weight.device
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    cache = DynamicCache(config=model.config)
    said = model(
        input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        cache=cache, use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    return _Read(cache, mask, said.logits[:, -1])
