"""A policy that writes letters, small enough to train in milliseconds: the next letter depends on the last one and the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from trace_opt.core.adapter import Adapter
from trace_opt.core.parameter import Parameter
from trace_opt.refine.batch import Batch
from trace_opt.refine.local import Completions, Prompt

LETTERS = "\nabcdefghijklmnopqrstuvwxyz "  # the first one ends a completion
WIDTH = len(LETTERS)


class TinyWriter:
    """Logits of the next letter: a row for the last letter, plus a linear map of which letters the prompt holds."""

    def __init__(self, name: str = "writer") -> None:
        generator = torch.Generator().manual_seed(0)
        self.last = nn.Parameter(0.1 * torch.randn(WIDTH, WIDTH, generator=generator))
        self.prompt = nn.Parameter(0.1 * torch.randn(WIDTH, WIDTH, generator=generator))
        self.adapter: Parameter[Adapter] = Parameter(Adapter(), name=name)
        self._initial = (self.last.detach().clone(), self.prompt.detach().clone())

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from (self.last, self.prompt)

    def written(self, pairs: Sequence[tuple[Prompt, str]]) -> Completions:
        prompts, texts = zip(*pairs, strict=True)
        tokens = tuple((*(LETTERS.index(letter) for letter in text), 0) for text in texts)
        return Completions(prompts, tuple(range(len(texts))), texts, tokens, ((),) * len(texts))

    def batch(self, completions: Completions, returns: Sequence[float]) -> Batch:
        longest = max(map(len, completions.tokens))
        tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in completions.tokens])
        mask = torch.tensor([[i < len(row) for i in range(longest)] for row in completions.tokens])
        return Batch(
            actions={"tokens": tokens}, rewards=torch.zeros(tokens.shape), mask=mask,
            groups=torch.tensor(completions.prompt), prompts=completions.prompts,
        ).earning(torch.tensor(returns))  # fmt: skip

    def log_prob(self, batch: Batch) -> Tensor:
        tokens = batch.actions["tokens"]
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)
        bags = torch.stack([bag(prompt) for prompt in batch.prompts])[batch.groups]
        logits = self.last[before] + (bags @ self.prompt)[:, None]
        return logits.log_softmax(2).gather(2, tokens[..., None])[..., 0]

    def features(self, completions: Completions, *, base: bool = True) -> Tensor:
        """The mean of the rows of a completion's letters, beside the bag of its prompt."""
        table = self._initial[0] if base else self.last
        rows = torch.stack([table[list(tokens)].mean(0) for tokens in completions.tokens])
        return torch.cat([rows, torch.stack([bag(completions.prompts[i]) for i in completions.prompt])], 1)

    def says(self, prompt: Prompt, longest: int = 20) -> str:
        """The likeliest completion."""
        said, last = "", 0
        for _ in range(longest):
            last = int((self.last[last] + bag(prompt) @ self.prompt).argmax())
            if last == 0:
                break
            said += LETTERS[last]
        return said

    def load(self, adapter: Adapter) -> None:
        values = adapter.tensors() or {"last": self._initial[0], "prompt": self._initial[1]}
        with torch.no_grad():
            self.last.copy_(values["last"])
            self.prompt.copy_(values["prompt"])

    def dump(self) -> Adapter:
        return Adapter.of({"last": self.last, "prompt": self.prompt})


def bag(prompt: Prompt) -> Tensor:
    """Which letters a prompt holds."""
    assert isinstance(prompt, str)
    return torch.tensor([float(letter in prompt) for letter in LETTERS])
