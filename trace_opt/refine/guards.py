"""What a trained policy is held to, so that it earns its reward by being of use: repetition, length, divergence, collapse.

A small model finds whatever a reward leaves open: one word said over and over, one sentence whatever the task. The guards
take the reward from completions that are no text, price or stop what drifts far from the base model, and say what a phase
led to, so that an adapter that the search's test rejects is kept with the name of what went wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from trace_opt.core.numbers import is_whole
from trace_opt.refine.estimators.base import divergence, k3
from trace_opt.refine.local import as_json, kept

if TYPE_CHECKING:
    from trace_opt.refine.batch import Batch
    from trace_opt.refine.local import Completions, LocalPolicy, Prompt

_WORD = re.compile(r"\w+")
_BEGINNING = 10  # words by which completions are told apart: collapsed ones differ in their ends
_OPENING, _OPENING_TOKENS = 2, 8
_FREE = 0.5  # share of different openings from which on a policy writes freely, and not in a given form
_FEWEST = 4  # prompts that a word on collapse takes
_MOST = 16
_RAISED, _LOWERED = 1.5, 0.8
_CHEAPEST = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGuards:
    """The limits.

    A completion that is empty, repeats itself or is too long earns nothing good: its reward is 0 at most. A phase that ends with another guard in force has to be found better by the search's test, where one
    without need only not be found worse.

    Args:
        distinct_words: The least share of distinct words among a completion's words. Forms that repeat by their nature, such
            as one sentence for each room, want it lower; 0 allows all.
        longest: Words of a completion at most; None is no limit.
        kl: Divergence from the frozen base at most, in nats a token by k1; None is no limit.
        beyond: What happens beyond it: "price" raises the price of divergence until it is back, "stop" ends the phase.
        distinct: The least share of distinct completions over different prompts, told apart by their first ten words.
        repeated: The most of a phase's completions that may be empty, repeat themselves or be too long, as a share.

    Raises:
        ValueError: a limit is out of its range.
    """

    distinct_words: float = 0.6
    longest: int | None = None
    kl: float | None = None
    beyond: Literal["price", "stop"] = "price"
    distinct: float = 0.4
    repeated: float = 0.5

    def __post_init__(self) -> None:
        for name in ("distinct_words", "distinct", "repeated"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"PolicyGuards got {name}={value!r}; give a share from 0 to 1")
        longest = self.longest
        if longest is not None and not is_whole(longest):
            raise ValueError(f"PolicyGuards got longest={longest!r}; give a whole number of words, at least 1, or None")
        if self.kl is not None and not self.kl > 0:
            raise ValueError(f"PolicyGuards got kl={self.kl!r}; give nats above 0, or None")
        if self.beyond not in ("price", "stop"):
            raise ValueError(f"PolicyGuards got beyond={self.beyond!r}; give 'price' or 'stop'")

    def objection(self, text: str) -> str:
        """What is wrong with a completion by itself: "empty", "repetition" or "length"; "" where nothing is."""
        words = _WORD.findall(text.casefold())
        if not words:
            return "empty"
        if len(set(words)) < self.distinct_words * len(words):
            return "repetition"
        return "length" if self.longest is not None and len(words) > self.longest else ""

    def held(self, objections: Sequence[str], rewards: Sequence[float]) -> list[float]:
        """Rewards, of which completions with an objection keep only what is bad.

        Args:
            objections: Of each completion.
            rewards: Of each completion.
        """
        return [min(0.0, reward) if said else reward for said, reward in zip(objections, rewards, strict=True)]

    def price(self, price: float, seen: float | None, least: float) -> float:
        """The next price of divergence.

        Args:
            price: The present one.
            seen: k1 of the last update in nats a token, or None.
            least: What it never falls below.
        """
        if self.kl is None or self.beyond != "price" or seen is None:
            return price
        if seen > self.kl:
            return max(price, _CHEAPEST) * _RAISED
        return max(least, price * _LOWERED) if seen < self.kl / 2 else price


@dataclass(slots=True)
class Watch:
    """What guards have seen of a phase.

    Attributes:
        seen: Completions.
        objections: How many of them had each kind of objection.
        prompts: The last different prompts, as JSON texts.
        longest: Tokens of the longest completion.
        temperature: At which they were drawn.
        k1, k3: Estimates of the divergence from the base at the last update, in nats a token.
    """

    seen: int = 0
    objections: dict[str, int] = field(default_factory=dict[str, int])
    prompts: list[str] = field(default_factory=list[str])
    longest: int = 1
    temperature: float = 1.0
    k1: float | None = None
    k3: float | None = None

    def completed(self, completions: Completions, objections: Iterable[str]) -> None:
        """Take completions in, with the objection to each."""
        self.seen += len(completions)
        for said in objections:
            if said:
                self.objections[said] = self.objections.get(said, 0) + 1
        for prompt in completions.prompts:
            text = json.dumps(as_json(prompt))
            self.prompts = [*[known for known in self.prompts if known != text][1 - _MOST :], text]
        self.longest = max([self.longest, *map(len, completions.tokens)])
        self.temperature = completions.temperature

    def diverged(self, batch: Batch) -> None:
        """Measure the divergence from the base on a batch."""
        self.k1 = divergence(batch)
        if batch.log_probs is not None and batch.reference is not None:
            each = k3(batch.log_probs, batch.reference) * batch.mask
            self.k3 = float(each.sum() / batch.mask.sum().clamp(min=1))

    def dump(self) -> dict[str, Any]:
        """As data."""
        return {name: getattr(self, name) for name in self.__slots__} | {"objections": dict(self.objections)}

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Watch:
        """What `dump` gave."""
        given: dict[str, Any] = {**data, "objections": dict(data["objections"]), "prompts": list(data["prompts"])}
        return cls(**given)

    def openings(self, policy: LocalPolicy) -> float | None:
        """The share of different first two words of completions of the last prompts; None where these are few."""
        if len(self.prompts) < _FEWEST:
            return None
        given = [_prompt(text) for text in self.prompts]
        each = max(1, _MOST // len(given))
        drawn = policy.sample(given, each, max_tokens=_OPENING_TOKENS, temperature=self.temperature)
        return distinct_share(drawn.texts, _OPENING)

    def verdict(
        self, guards: PolicyGuards, policy: LocalPolicy, before: float | None = None
    ) -> tuple[dict[str, Any], list[str]]:
        """What a phase led to, and a sentence for each guard that objects.

        Args:
            guards: The limits.
            policy: As the phase leaves it; it completes the last prompts once more.
            before: What `openings` gave of the policy as it was before the phase.
        """
        share, after = None, None
        if len(self.prompts) >= _FEWEST:
            share = distinct_completions(policy, [_prompt(text) for text in self.prompts], self.longest)
            after = self.openings(policy)
        bad = sum(self.objections.values()) / max(1, self.seen)
        found: dict[str, Any] = {
            "objections": dict(self.objections), "completions": self.seen, "distinct": share,
            "openings": [before, after], "k1": self.k1, "k3": self.k3,
        }  # fmt: skip
        named: list[str] = []
        if share is not None and share < guards.distinct:
            named.append(
                f"distinct completions: a share of {share:.2f} over {len(self.prompts)} different prompts, where "
                f"{guards.distinct:.2f} is the least; it says the same whatever the task"
            )
        elif before is not None and after is not None and before >= _FREE and after < min(guards.distinct, before / 2):
            named.append(
                f"distinct completions: a share of {after:.2f} of them opens differently, where it was {before:.2f} before "
                "the phase; it begins the same way whatever the task"
            )
        if bad > guards.repeated:
            named.append(f"repetition and length: {bad:.0%} of the completions are no plain text ({self.objections})")
        if guards.kl is not None and self.k1 is not None and self.k1 > guards.kl:
            named.append(f"divergence: {self.k1:.2f} nats a token from the base, where {guards.kl:.2f} is the most")
        return found, named


def distinct_completions(policy: LocalPolicy, prompts: Sequence[Prompt], max_tokens: int = 48) -> float:
    """The share of different completions over different prompts: near 0 for a policy that always says the same.

    Args:
        policy: Completes each prompt once, by the likeliest tokens.
        prompts: Different ones.
        max_tokens: Length of a completion at most.
    """
    return distinct_share(policy.sample(prompts, max_tokens=max_tokens, temperature=0.0).texts)


def distinct_share(texts: Sequence[str], words: int = _BEGINNING) -> float:
    """The share of different texts, told apart by their first words without case and punctuation.

    Args:
        texts: The texts.
        words: How many words.
    """
    beginnings = {tuple(_WORD.findall(text.casefold())[:words]) for text in texts}
    return len(beginnings) / max(1, len(texts))


def exact(text: str, labels: Sequence[str]) -> float:
    """1 where a completion is one of the right ones, else 0; case, punctuation and blanks do not count, words do.

    Args:
        text: What was said.
        labels: Texts that would have been right.
    """
    words = _WORD.findall(text.casefold())
    return float(any(words == _WORD.findall(label.casefold()) for label in labels))


def _prompt(text: str) -> Prompt:
    return kept(json.loads(text))
