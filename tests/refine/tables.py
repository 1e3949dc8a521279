"""Policies that choose among a few sentences: small enough that what they learn is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import RLock

import torch
from torch import Tensor, nn

from trace_opt.core.adapter import Adapter
from trace_opt.core.parameter import Parameter
from trace_opt.refine.batch import Batch
from trace_opt.refine.local import Completions, Prompt


class Table:
    """Logits for each kind of prompt and sentence; a completion is one token, its sentence.

    Args:
        sentences: What it can say.
        kinds: How many kinds of prompt there are.
        kind: Which of them a prompt is.
        start: The initial logits of every kind.
    """

    def __init__(
        self, sentences: Sequence[str], kinds: int = 1, kind: Callable[[Prompt], int] = lambda _: 0,
        start: Sequence[float] | None = None, name: str = "table",
    ) -> None:  # fmt: skip
        self.sentences, self.kind = tuple(sentences), kind
        row = torch.zeros(len(sentences)) if start is None else torch.tensor(start, dtype=torch.float32)
        self.initial = row.expand(kinds, -1).clone()
        self.logits = nn.Parameter(self.initial.clone())
        self.adapter: Parameter[Adapter] = Parameter(Adapter(), name=name)
        self.lock = RLock()
        self.sampled = self.scored = 0

    def parameters(self) -> Iterator[nn.Parameter]:
        yield self.logits

    def sample(
        self, prompts: Sequence[Prompt], n: int = 1, *, max_tokens: int = 48, temperature: float = 1.0, seed: int = 0
    ) -> Completions:
        chosen: list[int] = []
        said: list[float] = []
        for prompt in prompts:
            logits = self.logits.detach()[self.kind(prompt)]
            self.sampled += n
            if temperature == 0:
                drawn = [int(logits.argmax())] * n
            else:
                generator = torch.Generator().manual_seed(seeded(prompt, seed))
                weights = (logits / temperature).softmax(0)
                drawn = weights.multinomial(n, replacement=True, generator=generator).tolist()
            chosen += drawn
            said += [float(logits.log_softmax(0)[i]) for i in drawn]
        rows = tuple(i for i in range(len(prompts)) for _ in range(n))
        return Completions(
            tuple(prompts), rows, tuple(self.sentences[i] for i in chosen), tuple((i,) for i in chosen),
            tuple((p,) for p in said), temperature,
        )  # fmt: skip

    def batch(self, completions: Completions, returns: Sequence[float], *, old: bool = True) -> Batch:
        self.scored += len(completions)
        tokens = torch.tensor(completions.tokens)
        made = Batch(
            actions={"tokens": tokens}, rewards=torch.zeros(tokens.shape), mask=torch.ones_like(tokens, dtype=torch.bool),
            groups=torch.tensor(completions.prompt), prompts=completions.prompts,
        ).earning(torch.tensor(returns, dtype=torch.float32))  # fmt: skip
        with torch.no_grad():
            return replace(made, log_probs=self.log_prob(made), reference=self.reference(made)) if old else made

    def log_prob(self, batch: Batch) -> Tensor:
        return self._said(self.logits, batch)

    def reference(self, batch: Batch) -> Tensor:
        return self._said(self.initial, batch)

    def _said(self, logits: Tensor, batch: Batch) -> Tensor:
        kinds = torch.tensor([self.kind(prompt) for prompt in batch.prompts])[batch.groups]
        return logits.log_softmax(1)[kinds].gather(1, batch.actions["tokens"])

    def load(self, adapter: Adapter) -> None:
        with torch.no_grad():
            self.logits.copy_(adapter.tensors()["logits"] if adapter else self.initial)

    def dump(self) -> Adapter:
        return Adapter.of({"logits": self.logits})

    def chances(self, adapter: Adapter) -> Tensor:
        """How likely each sentence is, by kind."""
        return adapter.tensors()["logits"].softmax(1)


def seeded(prompt: Prompt, seed: int) -> int:
    """A seed for the draws of one prompt."""
    text = prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
    return int.from_bytes(hashlib.sha256(json.dumps([text, seed]).encode()).digest()[:7], "big")
