"""What goes wrong between a request and its reply, in one vocabulary, with no secret in the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

from trace_opt.core.rollout import Cost
from trace_opt.errors import LLMError, LLMErrorKind

UNSENT = Cost()
ANSWERED = Cost(calls=1)
"""A request that the server answered with an error: a call, and no tokens."""

# what keys look like, what follows "Bearer" or "key=", and the credentials of an address
_SECRETS = re.compile(
    r"\b(?:sk-|pk-|rk-|gsk_|xai-|hf_|r8_|pplx-|nvapi-|csk-|tgp_|fw_|AIza|AKIA|ya29\.)[-_A-Za-z0-9*.]{6,}"
    r"|(?i:(?<=bearer )[^\s'\",}]+)"
    r"|(?i:(?<=api[-_]key=)|(?<=api[-_]key:)|(?<=apikey=)|(?<=\?key=)|(?<=&key=))\s?[^&\s'\",}]+"
    r"|(?<=://)[^/\s@]+(?=@)"
)
_MAX_CHARACTERS = 300


class CallError(LLMError):
    """An `LLMError` that still knows what the failed request cost.

    Attributes:
        spent: What it cost; None where the answer was lost and the provider may bill it.
        adapted: Whether the next sending differs (a refused option is left out), so that it is worth one at once.
    """

    def __init__(
        self, message: str, *, kind: LLMErrorKind, retry_after: float | None = None, spent: Cost | None = ANSWERED,
        adapted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(message, kind=kind, retry_after=retry_after)
        self.spent = spent
        self.adapted = adapted

    def again(self, message: str | None = None) -> Self:
        """A fresh error that says the same: one exception raised in two rollouts would tie them together."""
        text = str(self) if message is None else message
        return type(self)(text, kind=self.kind, retry_after=self.retry_after, spent=self.spent, adapted=self.adapted)


def scrub(text: str, *secrets: str | None) -> str:
    """A text on one line, cut to 300 characters, with everything that is or looks like a key replaced by `***`."""
    for secret in secrets:
        if secret and len(secret) > 3:
            text = text.replace(secret, "***")
    text = _SECRETS.sub("***", " ".join(text.split()))
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"


_TOO_LONG = re.compile(
    r"context[_ ]length|maximum context|context window|context size|exceed_context|prompt is too long|too many tokens"
    r"|input is too long|string_above_max_length",
    re.IGNORECASE,
)
_QUOTA = re.compile(
    r"insufficient_quota|exceeded your current quota|credit balance|billing|payment required", re.IGNORECASE
)
_KEY = re.compile(r"api[_ ]key|invalid[_ ]x-api-key|unauthori[sz]ed|authentication", re.IGNORECASE)
_MODEL = re.compile(r"model_not_found|model .*(?:not (?:found|exist)|does not exist)", re.IGNORECASE)


def kind_of(status: int, said: str) -> LLMErrorKind:
    """What an HTTP status and the server's text mean.

    Args:
        status: The HTTP status.
        said: The error's code, type and message, in any order.
    """
    if status in (402, 429):
        return "quota" if status == 402 or _QUOTA.search(said) else "rate"
    if status in (401, 403):
        return "key"
    if status == 404:
        return "model"
    if status == 408:
        return "timeout"
    if status == 409 or status >= 500:
        return "server"
    if status == 413 or _TOO_LONG.search(said):
        return "too_long"
    if status == 400 and _KEY.search(said):
        return "key"
    return "model" if _MODEL.search(said) else "request"


_REMEDIES: Mapping[LLMErrorKind, str] = {
    "rate": "lower concurrency or set requests_per_minute",
    "quota": "check the account's plan and balance",
    "server": "try again later",
    "key": "check the key in the environment, or pass api_key",
    "model": "check the model's name and base_url",
    "too_long": "shorten the prompt or max_tokens",
    "request": "change what was asked",
    "timeout": "raise timeout_s",
    "connection": "check the network and base_url",
    "malformed": "check that base_url speaks OpenAI's protocol",
    "refusal": "rephrase the prompt",
}


def fault(  # keyword-only, one place that words them
    name: str, kind: LLMErrorKind, what: str, *, said: str = "", retry_after: float | None = None,
    spent: Cost | None = ANSWERED, adapted: bool = False, secrets: tuple[str | None, ...] = (),
) -> CallError:  # fmt: skip
    """A `CallError` in the project's words: the model, what happened, what it said, what to do.

    Args:
        name: The model, as `provider/name`.
        kind: What went wrong.
        what: What happened: "answered 503", "gave no answer within 60 s".
        said: The server's own words.
        retry_after: Seconds it asked to wait.
        spent: What the request cost, None where that is unknown.
        adapted: Whether the next sending will differ.
        secrets: Keys that the text may hold.
    """
    quoted = scrub(said, *secrets)
    told = f" ({quoted})" if quoted else ""
    message = f"{name!r} {what}{told}; {_REMEDIES[kind]}"
    return CallError(message, kind=kind, retry_after=retry_after, spent=spent, adapted=adapted)


def retry_after_of(headers: Mapping[str, Any], *, now: float) -> float | None:
    """Seconds to wait as the server's headers ask, never below 0; None where they ask nothing that can be read.

    Args:
        headers: The response's headers, names in lower case or case-insensitive.
        now: The time, in seconds since the epoch.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    asked = headers.get("retry-after")
    seconds = _number(asked)
    if seconds is not None:
        return max(0.0, seconds)
    if not isinstance(asked, str):
        return None
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - now)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 1e9 else None  # NaN and infinities are no times to wait
