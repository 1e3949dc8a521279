"""OpenAI's chat protocol: a request as its parameters, and the body of an answer as a reply.

Servers differ in what they take. What one refuses is remembered for its (address, model) and not sent again: first the
JSON schema gives way to plain JSON mode and then to words in the prompt; other options are left out.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Literal, cast

from trace_opt.core.rollout import Cost
from trace_opt.llm.base import FinishReason, Reply, Request, normalised
from trace_opt.llm.faults import CallError, fault, kind_of
from trace_opt.llm.prices import Price

_log = logging.getLogger("trace_opt.llm")

Body = dict[str, Any]

Format = Literal["json_schema", "json_object", "plain"]
_NEXT_FORMAT: Mapping[Format, Format] = {"json_schema": "json_object", "json_object": "plain"}
_OPTIONAL = ("temperature", "seed", "stop")
_LENGTHS = ("max_tokens", "max_completion_tokens")
_TOP = 20  # as many of a token's likeliest alternatives as OpenAI tells
_REFUSES_FORMAT = re.compile(r"response_format|json_schema|json_object|schema|structured output", re.IGNORECASE)
_REFUSES = re.compile(r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|extra|not permitted", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one server's model takes.

    Attributes:
        format: How a schema is asked for.
        length: The name of the limit of the answer's length.
        left_out: Options that it refuses.
    """

    format: Format = "json_schema"
    length: str = "max_tokens"
    left_out: frozenset[str] = field(default_factory=frozenset[str])
    lengths_tried: int = 1


_dialects: dict[tuple[str | None, str], Dialect] = {}
_dialects_lock = Lock()


def dialect_of(base_url: str | None, model: str, first: Dialect) -> Dialect:
    """What is known of a server's model; `first` at the start."""
    with _dialects_lock:
        return _dialects.setdefault((base_url, model), first)


def adapt(base_url: str | None, model: str, sent: Body, spoken: Dialect, said: str, param: str | None) -> bool:
    """Learn from a server's 400 what it does not take.

    Args:
        base_url: Its address.
        model: Its model.
        sent: The parameters that it refused.
        spoken: The dialect that they were written in.
        said: Its words.
        param: The parameter that it names, if it does.

    Returns:
        Whether sending the request again is worth it.
    """
    with _dialects_lock:
        now = _dialects[base_url, model]
        if now != spoken:  # another task has learned it meanwhile
            return True
        learned = _learned(sent, spoken, said, param)
        if learned is None:
            return False
        _dialects[base_url, model] = learned
    changed = sorted(learned.left_out - spoken.left_out)
    what = f"without {changed[0]}" if changed else f"with {learned.format}, {learned.length}"
    _log.warning("%s refused a request (%.200s); from now on it is asked %s", model, said, what)
    return True


def _learned(sent: Body, spoken: Dialect, said: str, param: str | None) -> Dialect | None:
    for name in _OPTIONAL:
        named = re.search(rf"\b{name}\b", said) is not None and _REFUSES.search(said) is not None
        if name in sent and (param == name or named):
            return replace(spoken, left_out=spoken.left_out | {name})
    if (param in _LENGTHS or "max_completion_tokens" in said) and spoken.lengths_tried < len(_LENGTHS):
        other = _LENGTHS[1 - _LENGTHS.index(spoken.length)]
        return replace(spoken, length=other, lengths_tried=2)
    if "response_format" in sent and (param == "response_format" or _REFUSES_FORMAT.search(said)):
        return replace(spoken, format=_NEXT_FORMAT[spoken.format])
    return None


def parameters_of(request: Request, dialect: Dialect) -> Body:
    """A request as the parameters of a chat completion, without the model's name.

    Raises:
        CallError: it asks what the protocol cannot say.
    """
    messages = [dict(message) for message in request.messages]
    body: Body = {"messages": messages, "temperature": request.temperature, "seed": request.seed}
    body[dialect.length] = request.max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    if request.schema is not None:
        _ask_for_schema(body, request.schema, dialect.format)
    if request.answers:
        body |= {"logprobs": True, "top_logprobs": _TOP, dialect.length: 1}
    if request.prefill:
        # servers that can go on with a started answer do, the others answer anew: `reply_of` takes the start off
        messages.append({"role": "assistant", "content": request.prefill})
    return {name: value for name, value in body.items() if name not in dialect.left_out and value is not None}


def _ask_for_schema(body: Body, schema: Mapping[str, Any], how: Format) -> None:
    if how == "json_schema":
        described = {"name": "answer", "schema": dict(schema), "strict": _is_strict(schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": described}
        return
    if how == "json_object":
        body["response_format"] = {"type": "json_object"}
    text = f"Answer with one JSON object that follows this JSON schema:\n{json.dumps(schema, ensure_ascii=False)}"
    body["messages"].insert(0, {"role": "system", "content": text})


def _is_strict(schema: Any) -> bool:
    """Whether every object of a schema is closed and requires all it names, as strict mode demands."""
    if isinstance(schema, Mapping):
        given = cast("Mapping[str, Any]", schema)
        if given.get("type") == "object" or "properties" in given:
            names = set(given.get("properties", {}))
            if given.get("additionalProperties") is not False or names != set(given.get("required", ())):
                return False
        return all(_is_strict(part) for part in given.values())
    if isinstance(schema, list):
        return all(_is_strict(part) for part in cast("list[Any]", schema))
    return True


def reply_of(body: Any, request: Request, name: str, rates: Price | None) -> Reply:
    """The reply that a body of an answered request holds.

    Args:
        body: The JSON of the answer, as it came.
        request: What was asked.
        name: The model, as `provider/name`.
        rates: Its price, or None.

    Raises:
        CallError: it holds none; of kind malformed, or what an error in the body says.
    """
    if not isinstance(body, dict):
        raise fault(name, "malformed", "answered with something else than a chat completion", spent=None)
    given = cast("Body", body)
    if given.get("error"):
        raise _told_error(name, given["error"])
    choices = given.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise fault(name, "malformed", "answered without a choice", spent=None)
    choice = cast("Body", choices[0])
    message: Any = choice.get("message")
    if not isinstance(message, dict):
        raise fault(name, "malformed", "answered without a message", spent=None)
    text, finish = _text_of(cast("Body", message), choice)
    cost, estimated = _cost_of(given.get("usage"), request, text, rates)
    if request.answers:
        scores = _scores_of(choice, request, name, cost)
        best = max(range(len(scores)), key=scores.__getitem__)
        return Reply(text=request.answers[best], cost=cost, logprobs=scores, model=name, estimated=estimated)
    text = text.removeprefix(request.prefill)
    return Reply(text=text, finish=finish, cost=cost, model=name, estimated=estimated)


def _told_error(name: str, error: Any) -> CallError:
    told: Mapping[str, Any] = cast("Body", error) if isinstance(error, dict) else {"message": error}
    code = told.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    said = str(told.get("message", error))
    return fault(name, kind_of(status, f"{code} {said}"), "answered with an error", said=said)


def _text_of(message: Body, choice: Body) -> tuple[str, FinishReason]:
    extra = message.get("provider_specific_fields")
    refusal = message.get("refusal") or (cast("Body", extra).get("refusal") if isinstance(extra, dict) else None)
    if refusal:
        return str(refusal), "refusal"
    content = message.get("content")
    if isinstance(content, list):  # some servers answer in parts
        parts = [cast("Body", part) for part in cast("list[Any]", content) if isinstance(part, dict)]
        content = "".join(str(part.get("text", "")) for part in parts)
    finish: FinishReason = "stop"
    if choice.get("finish_reason") in ("length", "max_tokens"):
        finish = "length"
    elif choice.get("finish_reason") == "content_filter":
        finish = "content_filter"
    return str(content) if content is not None else "", finish


def _cost_of(usage: Any, request: Request, text: str, rates: Price | None) -> tuple[Cost, bool]:
    """What the answer cost, and whether that is an estimate because the server did not say."""
    told = cast("Body", usage) if isinstance(usage, dict) else {}
    tokens_in, tokens_out = _count(told.get("prompt_tokens")), _count(told.get("completion_tokens"))
    cached = told.get("prompt_tokens_details")
    kept = (_count(cast("Body", cached).get("cached_tokens")) if isinstance(cached, dict) else 0) or 0
    estimated = not tokens_in or tokens_out is None
    if estimated:
        asked = sum(len(str(message["content"])) for message in request.messages)
        tokens_in, tokens_out, kept = math.ceil(asked / 4), math.ceil(len(text) / 4), 0
    usd = None if rates is None else rates.usd(tokens_in or 0, tokens_out or 0, cached=kept)
    return Cost(1, tokens_in or 0, tokens_out or 0, usd), estimated


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _scores_of(choice: Body, request: Request, name: str, cost: Cost) -> tuple[float, ...]:
    """Log-probabilities of the answers from those told of the first token.

    A token counts for the answer that starts with it. An answer that none of the told tokens starts is at most as
    likely as the least of them, and counts as that.
    """
    try:
        tops: Sequence[Body] = choice["logprobs"]["content"][0]["top_logprobs"]
        told = [(str(top["token"]).strip(), float(top["logprob"])) for top in tops]
    except (KeyError, TypeError, IndexError, ValueError):
        told = []
    finite = [(token, score) for token, score in told if token and math.isfinite(score)]
    shares: list[list[float]] = [[] for _ in request.answers]
    for token, score in finite:
        fits = [i for i, answer in enumerate(request.answers) if answer.casefold().startswith(token.casefold())]
        if len(fits) == 1:
            shares[fits[0]].append(score)
    if not any(shares):
        what = f"told no probability of any of the answers {list(request.answers)!r:.120}"
        raise fault(name, "request", what, spent=cost)
    least = min(score for _, score in finite)
    return normalised([_log_sum(share) if share else least for share in shares])


def _log_sum(scores: Sequence[float]) -> float:
    top = max(scores)
    return top + math.log(sum(math.exp(score - top) for score in scores))
