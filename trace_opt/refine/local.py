"""What a policy must offer to learn from reflections, and what it said when it was asked: tokens with their probabilities.

`TrainablePolicy` (policy.py) is the language model that offers it; a table over a few sentences can too, so that what a
refiner does is tested where the best policy is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Any, Protocol, cast

from trace_opt.core.numbers import is_whole
from trace_opt.llm.base import Message
from trace_opt.refine.batch import Policy

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.core.adapter import Adapter
    from trace_opt.core.parameter import Parameter
    from trace_opt.refine.batch import Batch

Prompt = str | Sequence[Message]
"""What a policy answers: a text, which is one user message, or a conversation."""


def messages_of(prompt: Prompt) -> list[dict[str, Any]]:
    """A prompt as messages that may be changed."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]


def with_system(messages: Sequence[Message], system: str) -> list[Message]:
    """Messages with a system message before them, unless they have one or it is ""."""
    has_one = bool(messages) and messages[0]["role"] in ("system", "developer")
    return list(messages) if has_one or not system else [{"role": "system", "content": system}, *messages]


def kept(prompt: Prompt) -> Prompt:
    """A prompt that no caller's list can change."""
    return prompt if isinstance(prompt, str) else tuple(prompt)


def check_sampled(prompts: Sequence[Prompt], n: int, max_tokens: int, temperature: float) -> None:
    """Refuse arguments of `LocalPolicy.sample` that make no sense.

    Raises:
        ValueError: prompts are a single one, or there are none; a number is out of its range.
    """
    check_prompts("sample", prompts)
    if not prompts or n < 1:
        raise ValueError(f"sample got {len(prompts)} prompts and n={n!r}; give at least one of each")
    for name, value in (("n", n), ("max_tokens", max_tokens)):
        if not is_whole(value):
            raise ValueError(f"sample got {name}={value!r}; give a whole number of at least 1")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"sample got temperature={temperature!r}; give a number of 0 or more")


def check_prompts(what: str, prompts: Sequence[Any]) -> None:
    """Refuse one text, or the messages of one conversation, in the place of a list: each part would count as a prompt.

    Args:
        what: What got them.
        prompts: What it got.

    Raises:
        ValueError: they are one.
    """
    if isinstance(prompts, str) or any(isinstance(prompt, Mapping) for prompt in prompts):
        raise ValueError(f"{what} got the single prompt {prompts!r:.80}; give a list of prompts: [prompt]")


def as_json(prompt: Prompt) -> str | list[dict[str, Any]]:
    """A prompt as plain data; `kept` gives it back."""
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


@dataclass(frozen=True, slots=True)
class Completions:
    """What a policy said to some prompts, each row one completion.

    Attributes:
        prompts: The prompts, each once.
        prompt: Of each row, the index of its prompt.
        texts: Of each row, what was said.
        tokens: Of each row, the token ids; the one that ends a completion is among them where it was said.
        log_probs: Of each row, the log probability of each token in nats, at `temperature`.
        temperature: At which they were drawn; 0 took the likeliest token, whose log probability is that at 1.
    """

    prompts: tuple[Prompt, ...]
    prompt: tuple[int, ...]
    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    log_probs: tuple[tuple[float, ...], ...]
    temperature: float = 1.0

    def __post_init__(self) -> None:
        rows = {len(self.prompt), len(self.texts), len(self.tokens), len(self.log_probs)}
        if len(rows) > 1:
            raise ValueError(f"completions hold {sorted(rows)} rows in their columns; give each column as many")
        if any(not 0 <= index < len(self.prompts) for index in self.prompt):
            raise ValueError(f"completions name a prompt beyond their {len(self.prompts)}; give indices of prompts")

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, chosen: Sequence[int]) -> Completions:
        """Some of the rows, with all the prompts.

        Args:
            chosen: Their indices, in the order wanted.
        """
        return Completions(
            self.prompts, tuple(self.prompt[i] for i in chosen), tuple(self.texts[i] for i in chosen),
            tuple(self.tokens[i] for i in chosen), tuple(self.log_probs[i] for i in chosen), self.temperature,
        )  # fmt: skip

    @staticmethod
    def joined(parts: Sequence[Completions]) -> Completions:
        """Several as one, whose groups stay apart even where prompts are equal.

        Raises:
            ValueError: there is none, or they were drawn at different temperatures.
        """
        temperatures = {part.temperature for part in parts}
        if len(temperatures) != 1:
            raise ValueError(f"completions at temperatures {sorted(temperatures)} cannot be joined; draw all at one")
        prompts: list[Prompt] = []
        prompt: list[int] = []
        for part in parts:
            prompt += [len(prompts) + index for index in part.prompt]
            prompts += part.prompts
        return Completions(
            tuple(prompts), tuple(prompt), tuple(text for part in parts for text in part.texts),
            tuple(row for part in parts for row in part.tokens),
            tuple(row for part in parts for row in part.log_probs), temperatures.pop(),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; `of_json` gives the completions back exactly."""
        return {
            "prompts": [as_json(prompt) for prompt in self.prompts],
            "prompt": list(self.prompt), "texts": list(self.texts), "tokens": [list(row) for row in self.tokens],
            "log_probs": [list(row) for row in self.log_probs], "temperature": self.temperature,
        }  # fmt: skip

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Completions:
        """The completions of `to_json`."""
        prompts = cast("list[str | list[Message]]", data["prompts"])
        return cls(
            tuple(map(kept, prompts)), tuple(data["prompt"]), tuple(data["texts"]),
            tuple(tuple(row) for row in data["tokens"]), tuple(tuple(row) for row in data["log_probs"]),
            data["temperature"],
        )  # fmt: skip


class LocalPolicy(Policy, Protocol):
    """A policy that writes, whose weights are the value of a parameter.

    Attributes:
        adapter: The parameter; its initial value is the empty `Adapter()`.
        lock: Re-entrant; held while weights are used, so that nobody loads another adapter in the middle.
    """

    adapter: Parameter[Adapter]
    lock: RLock

    def sample(
        self, prompts: Sequence[Prompt], n: int = 1, *, max_tokens: int = 48, temperature: float = 1.0, seed: int = 0
    ) -> Completions:
        """Draw completions with the weights as they stand.

        What a row says depends on its prompt, its place among that prompt's rows and the seed, not on the other prompts.

        Args:
            prompts: What to answer.
            n: Completions of each prompt; those of one prompt are neighbours.
            max_tokens: Length of a completion at most.
            temperature: 0 takes the likeliest token.
            seed: Of the draws.

        Raises:
            ValueError: an argument makes no sense, such as a single text for the list of prompts.
        """
        ...

    def written(self, pairs: Sequence[tuple[Prompt, str]]) -> Completions:
        """Texts from elsewhere as completions, each ended; of their log probabilities nothing is said.

        Args:
            pairs: Prompts, each with what would have been a good answer.
        """
        ...

    def batch(self, completions: Completions, returns: Sequence[float]) -> Batch:
        """What estimators learn from: tokens, and log probabilities under the present weights and the frozen base.

        Args:
            completions: What `sample` gave, or texts from elsewhere with their tokens.
            returns: What each row earned.

        Returns:
            Groups are prompts; `log_probs` and `reference` are set, but for texts that were `written`.
        """
        ...

    def reference(self, batch: Batch) -> Tensor:
        """The log probability of each step of a batch under the frozen base, shape `[n, T]`, without gradient."""
        ...

    def load(self, adapter: Adapter) -> None:
        """Take an adapter's weights; those of the empty one are the initial weights."""
        ...

    def dump(self) -> Adapter:
        """The weights as they stand; `load` of it gives them back bit for bit."""
        ...
