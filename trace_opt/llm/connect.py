"""`connect("provider/model")`: a language model by its name, with the limits, cache and price that its calls obey.

Nothing is loaded, checked with a server or paid for here; the first call does that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack, cast
from weakref import WeakKeyDictionary

from trace_opt.core.numbers import is_number, is_whole
from trace_opt.errors import LLMError
from trace_opt.llm import models, prices
from trace_opt.llm.base import LLM, Fields, check_fields, check_temperature
from trace_opt.llm.cache import checked_path
from trace_opt.llm.elsewhere import Spec, through
from trace_opt.llm.stack import Backend, Connected, Limits

_EMBEDDED = "embedded"


def connect(
    model: str, *, base_url: str | None = None, api_key: str | None = None, cache: str | Path | bool | None = True,
    timeout_s: float = 60.0, attempts: int = 4, concurrency: int = 16, requests_per_minute: float | None = None,
    price: tuple[float, float] | None = None, deadline_s: float | None = None, **defaults: Unpack[Fields],
) -> LLM:  # fmt: skip
    """A language model.

    Args:
        model: `"embedded/smollm2"`, `"embedded/PATH.gguf"`, `"openai/gpt-4.1-mini"`, or any `"provider/model"` that
            litellm knows. With `base_url` also the server's own name of a model. An embedded model is followed by `+` and
            the path of a LoRA adapter in GGUF, if it has one: `"embedded/smollm2+reflector.gguf"`.
        base_url: An OpenAI-compatible server: `"http://localhost:11434/v1"`.
        api_key: The key; by default the provider's variable in the environment. A key in the environment is never sent
            to a `base_url` given here.
        cache: Where replies are kept: True is `.trace_opt/cache.db`, or what TRACE_OPT_CACHE names (a path, or "off");
            a path; None keeps none.
        timeout_s: Seconds for one request, from sending to the last byte.
        attempts: Requests sent for one call at most, the first included.
        concurrency: Requests at once; an embedded model always answers one at a time.
        requests_per_minute: The pace, or None for none.
        price: US dollars for an input and an output token; by default from litellm's list. `(0, 0)` is a model that
            costs nothing.
        deadline_s: Seconds for one call with all its attempts and waits, or None.
        **defaults: Fields of `Request` that calls leave out: `temperature=1.0`, `max_tokens=200`, ...

    Raises:
        LLMError: the name or an option makes no sense.
    """
    if not isinstance(model, str):  # pyright: ignore[reportUnnecessaryIsInstance] # users pass anything
        raise LLMError(f"the model is {model!r:.80}; name one, as in 'openai/gpt-4.1-mini'", kind="model")
    check_fields(defaults)
    _check_numbers(
        timeout_s=timeout_s, attempts=attempts, concurrency=concurrency, requests_per_minute=requests_per_minute,
        deadline_s=deadline_s, price=price, temperature=defaults.get("temperature"),
    )  # fmt: skip
    spec = Spec(
        model=model, base_url=base_url, keyed=api_key is not None, cache=str(cache) if isinstance(cache, Path) else cache,
        timeout_s=timeout_s, attempts=attempts, concurrency=concurrency, requests_per_minute=requests_per_minute,
        price=price, deadline_s=deadline_s, defaults=dict(defaults),
    )  # fmt: skip
    return through(spec) or _connected(spec, api_key)


def _check_numbers(*, price: Any, temperature: Any, **above_0: Any) -> None:
    """Refuse options that a call would stumble over, or that would count money wrongly.

    Raises:
        LLMError: one is no such number.
    """
    optional = ("requests_per_minute", "deadline_s")
    given: dict[str, Any] = {
        name: value for name, value in above_0.items() if value is not None or name not in optional
    }
    for name, value in given.items():
        whole = name in ("attempts", "concurrency")
        if not (is_whole(value) if whole else is_number(value) and value > 0):
            raise LLMError(f"{name} is {value!r:.80}; give a {'whole ' * whole}number above 0", kind="request")
    pair: list[Any] = [] if not isinstance(price, (tuple, list)) else list(cast("Any", price))
    if price is not None and (len(pair) != 2 or not all(is_number(item) and 0 <= item < math.inf for item in pair)):
        raise LLMError(
            f"price is {price!r:.80}; give US dollars for an input and an output token, 0 or more, as in (2e-6, 8e-6)",
            kind="request",
        )
    if temperature is not None:
        check_temperature(temperature)


def connected(spec: Spec) -> LLM:
    """A connection made as another one was: the one that is there already, else a new one with a key of the environment.

    Raises:
        LLMError: it was made with a key given in code, and none such is here, or several that differ.
    """
    there = through(spec)
    if there is not None:
        return there
    keys = {key: model for model, key in _made.items() if model.spec == spec}
    if len(keys) > 1:
        raise LLMError(
            f"{spec.model!r} is connected with {len(keys)} different keys, so a worker cannot say which it means; give "
            "the connections different options (timeout_s, say), or run with executor='local'",
            kind="key",
        )
    if not keys and spec.keyed:
        raise LLMError(
            f"{spec.model!r} was connected with api_key= in a worker and never here, where the keys are; connect it when "
            "the problem is loaded, or put the key into the environment",
            kind="key",
        )
    return next(iter(keys.values())) if keys else _connected(spec, None)


def _connected(spec: Spec, api_key: str | None) -> Connected:
    table = checked_path(_cache_of_environment() if spec.cache is True else spec.cache)
    made = _model(spec, api_key, table)
    made.spec = spec
    _made[made] = api_key
    return made


_made: WeakKeyDictionary[Connected, str | None] = WeakKeyDictionary()


def _model(spec: Spec, api_key: str | None, table: Path | None) -> Connected:
    model, base_url, timeout_s = spec.model, spec.base_url, spec.timeout_s
    provider, _, name = model.partition("/")
    if provider == _EMBEDDED:
        return _embedded(model, name, timeout_s, table, spec.defaults)
    limits = Limits(
        timeout_s=timeout_s, attempts=spec.attempts, concurrency=spec.concurrency,
        requests_per_minute=spec.requests_per_minute, deadline_s=spec.deadline_s,
    )  # fmt: skip
    rates = None if spec.price is None else prices.Price((spec.price[0], spec.price[0], spec.price[1]))
    base_url = base_url or (os.environ.get("OPENAI_BASE_URL") if provider == "openai" and api_key is None else None)
    backend = _remote(model, base_url, api_key, rates, timeout_s)
    return Connected(
        backend, identity=f"{model} at {base_url or 'its provider'}", limits=limits, table=table,
        defaults=spec.defaults,
    )  # fmt: skip


def _cache_of_environment() -> str | bool | None:
    named = os.environ.get("TRACE_OPT_CACHE", "")
    return None if named.casefold() in ("off", "none", "0") else named or True


def _embedded(
    model: str, name: str, timeout_s: float, table: Path | None, defaults: Mapping[str, Any]
) -> Connected:  # fmt: skip
    from trace_opt.llm.embedded import Embedded
    from trace_opt.llm.runtime import runtime_version

    name, adapter = _with_adapter(name)
    if name.endswith(".gguf"):
        path = _file(name)
        content = _content(path)
    else:
        known = models.model_file(name)
        path = models.place_of(name)
        content = known.sha256
    if adapter is not None:
        content += f" with {_content(adapter)}"
    limits = Limits(timeout_s=timeout_s, attempts=1, concurrency=1)
    identity = f"{model} {content} under xllamacpp {runtime_version()}"
    return Connected(Embedded(model, path, adapter), identity=identity, limits=limits, table=table, defaults=defaults)


def _with_adapter(name: str) -> tuple[str, Path | None]:
    """A model's name or file, and the file of its adapter; a path may hold a plus itself."""
    base, _, adapter = name.partition(".gguf+")
    if adapter:
        return f"{base}.gguf", _file(adapter)
    base, _, adapter = name.partition("+")
    return (base, _file(adapter)) if base in models.MODELS and adapter else (name, None)


def _file(name: str) -> Path:
    return Path(name).expanduser().absolute()


def _content(path: Path) -> str:
    stamp = path.stat() if path.exists() else None
    return str(path) if stamp is None else f"{path} of {stamp.st_size} bytes, {stamp.st_mtime_ns}"


def _remote(
    model: str, base_url: str | None, api_key: str | None, rates: prices.Price | None, timeout_s: float
) -> Backend:
    from trace_opt.llm import remote

    provider, slash, name = model.partition("/")
    if provider == "openai" and name:
        return remote.OpenAI(model, name, base_url, api_key, rates or _listed(provider, name, base_url), timeout_s)
    if base_url is not None and (not slash or provider not in prices.known_providers()):
        return remote.OpenAI(f"openai/{model}", model, base_url, api_key, rates, timeout_s)
    if not slash or not name:
        offered = prices.providers_of(model)
        hint = (
            f"write {offered[0] + '/' + model!r}" if offered else "write 'provider/model', as in 'openai/gpt-4.1-mini'"
        )
        raise LLMError(f"the model {model!r} names no provider; {hint}", kind="model")
    return remote.LiteLLM(model, base_url, api_key, rates or _listed(provider, name, base_url), timeout_s)


def _listed(provider: str, name: str, base_url: str | None) -> prices.Price | None:
    if provider in ("ollama", "ollama_chat", "llamafile", "lm_studio"):
        return prices.FREE
    # what a server at another address asks is not on the list
    return prices.price_of(provider, name) if base_url is None else None
