"""What tokens cost, read from the price list that litellm ships, without importing litellm.

An unknown price is None and never zero: a limit in US dollars is only worth something when every call has a price.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE = "model_prices_and_context_window_backup.json"
# long prompts cost more a token from one of these lengths on; the list names the length in the key
_STEPS = (100_000, 128_000, 200_000, 272_000, 512_000)

Rates = tuple[float, float, float]
"""US dollars a token: of input, of cached input, of output."""


@dataclass(frozen=True, slots=True)
class Price:
    """What one model's tokens cost.

    Attributes:
        base: The rates of a prompt of ordinary length.
        steps: The rates above a number of input tokens, by that number, ascending.
    """

    base: Rates
    steps: tuple[tuple[int, Rates], ...] = ()

    def usd(self, tokens_in: int, tokens_out: int, *, cached: int = 0) -> float:
        """US dollars for one call.

        Args:
            tokens_in: Input tokens, the cached ones included.
            tokens_out: Output tokens.
            cached: Input tokens that the provider had cached.
        """
        rates = self.base
        for above, stepped in self.steps:
            if tokens_in > above:
                rates = stepped
        cached = min(cached, tokens_in)
        return (tokens_in - cached) * rates[0] + cached * rates[1] + tokens_out * rates[2]

    def at_most(self, tokens_in: int, tokens_out: int) -> float:
        """The most that a call of at most so many tokens can cost."""
        reached = [self.base, *(rates for above, rates in self.steps if tokens_in > above)]
        return max(tokens_in * max(rates[0], rates[1]) + tokens_out * rates[2] for rates in reached)


FREE = Price((0.0, 0.0, 0.0))


def price_of(provider: str, model: str) -> Price | None:
    """The price of a provider's model, or None where it is not on the list.

    Args:
        provider: As in `provider/model`.
        model: The provider's own name of the model.
    """
    entry = entry_of(provider, model)
    if entry is None:
        return None
    base = _rates(entry, "")
    if base is None:
        return None
    steps = [(above, _rates(entry, f"_above_{above // 1000}k_tokens", base)) for above in _STEPS]
    return Price(base, tuple((above, rates) for above, rates in steps if rates is not None and rates != base))


def entry_of(provider: str, model: str) -> Mapping[str, Any] | None:
    """What the list says of a provider's model, or None."""
    listed = _price_list()
    entry = listed.get(f"{provider}/{model}")
    if entry is not None:
        return entry
    entry = listed.get(model)
    return entry if entry is not None and _same_provider(str(entry.get("litellm_provider", "")), provider) else None


def providers_of(model: str) -> list[str]:
    """The providers that offer a model of this very name."""
    entry = _price_list().get(model)
    return [] if entry is None else [str(entry.get("litellm_provider", ""))]


@functools.lru_cache(maxsize=1)
def known_providers() -> frozenset[str]:
    """The names that may stand before the slash in `provider/model`."""
    listed = {str(entry.get("litellm_provider", "")) for entry in _price_list().values()}
    extra = {"hosted_vllm", "lm_studio", "llamafile", "ollama_chat", "litellm_proxy", "openrouter", "huggingface"}
    return frozenset(name for name in listed | extra if name and " " not in name)


def _same_provider(listed: str, provider: str) -> bool:
    # "vertex_ai-anthropic_models" is listed for vertex_ai, "bedrock_converse" for bedrock, "cohere_chat" for cohere
    return listed == provider or listed.startswith((f"{provider}-", f"{provider}_"))


def _rates(entry: Mapping[str, Any], suffix: str, base: Rates | None = None) -> Rates | None:
    given = entry.get(f"input_cost_per_token{suffix}"), entry.get(f"output_cost_per_token{suffix}")
    if base is None and not all(isinstance(rate, (int, float)) for rate in given):
        return None
    if all(rate is None for rate in given):
        return None
    into = given[0] if given[0] is not None else (base or FREE.base)[0]
    out = given[1] if given[1] is not None else (base or FREE.base)[2]
    cached = entry.get(f"cache_read_input_token_cost{suffix}")
    return float(into), float(into if cached is None else cached), float(out)


@functools.lru_cache(maxsize=1)
def _price_list() -> Mapping[str, Mapping[str, Any]]:
    # finding a package does not import it
    spec = importlib.util.find_spec("litellm")
    places = (spec.submodule_search_locations if spec is not None else None) or ()
    for place in places:
        path = Path(place) / _FILE
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    return {}
