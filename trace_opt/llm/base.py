"""The one protocol that every model, cache, meter and test double speaks: messages in, a reply with its cost out.

A model is a stack of `LLM`s, each around the next: cache, retry and rate limits, meter, and the backend that
answers. Whatever wraps one is one.
"""

from __future__ import annotations

import asyncio
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, Self, TypedDict, Unpack, cast, final

from trace_opt.core.numbers import is_number
from trace_opt.core.rollout import Cost
from trace_opt.core.tracer import trace
from trace_opt.errors import LLMError, meant
from trace_opt.llm import loop

Message = Mapping[str, Any]
"""`{"role": "system" | "user" | "assistant", "content": str}`; remote models also take a list of parts as content."""

ROLES = ("system", "developer", "user", "assistant")

FinishReason = Literal["stop", "length", "content_filter", "refusal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything that one model call depends on; its canonical JSON is the cache key.

    Attributes:
        messages: The conversation so far, at least one message.
        schema: JSON schema that the reply's text must follow, or None.
        max_tokens: Upper bound of the reply's length in tokens.
        temperature: 0 picks the likeliest token.
        seed: None leaves it to the rollout (or 0 outside one).
        stop: Texts that end the reply.
        answers: Where given, nothing is generated: the reply's `logprobs` holds the log-probability of each of
            these as the assistant's whole continuation.
        prefill: Text with which the assistant's answer starts; not repeated in the reply.
        raw: Continue the messages' contents, joined, as plain text without a chat template (embedded models only).
    """

    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 1024
    temperature: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    prefill: str = ""
    raw: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model answered.

    Attributes:
        text: The answer; for `answers` the likeliest of them.
        finish: Why it ended; `length` means that the text was cut.
        cost: Requests sent, tokens and US dollars; zero for a cached reply.
        logprobs: For a request with `answers`: log-probability of each, normalised over them, in their order.
        model: The model that answered, as `provider/name`.
        cached: Whether it came from the cache or a replay.
        estimated: Whether the tokens are an estimate because the server reported no usage.
    """

    text: str
    finish: FinishReason = "stop"
    cost: Cost = field(default_factory=Cost)
    logprobs: tuple[float, ...] = ()
    model: str = ""
    cached: bool = False
    estimated: bool = False


class Fields(TypedDict, total=False):
    """The fields of a `Request` that a caller may set, besides the messages."""

    schema: Mapping[str, Any] | None
    max_tokens: int
    temperature: float
    seed: int | None
    stop: tuple[str, ...]
    answers: tuple[str, ...]
    prefill: str
    raw: bool


_NO_DEFAULTS: Mapping[str, Any] = MappingProxyType({})


class LLM(ABC):
    """A language model, or a layer around one. Subclasses implement `asend`; all that is final is derived from it.

    Safe to call from several threads and event loops at once.

    Attributes:
        name: `provider/model`, as given to `connect`.
        local: Whether it runs on this machine and costs no money.
        defaults: Fields that `request` fills in where the caller leaves them out.
    """

    name: str = ""
    local: bool = False
    defaults: Mapping[str, Any] = _NO_DEFAULTS

    @abstractmethod
    async def asend(self, request: Request) -> Reply:
        """Answer one request.

        Raises:
            LLMError: with the kind of what went wrong; nothing else leaves it.
            BudgetError: the budget in force cannot pay for the call.
        """

    def price(self, request: Request) -> Cost:
        """The most that one sending of a request can cost; `usd` is None where the model's price is unknown."""
        return Cost(1, tokens_in_at_most(request), tokens_out_at_most(request), 0.0 if self.local else None)

    @final
    def send(self, request: Request) -> Reply:
        """`asend` for synchronous code; also works where an event loop is running, and gives way to Ctrl-C."""
        return loop.run(self.asend(request))

    @trace(name="llm")
    def __call__(self, prompt: str, **fields: Unpack[Fields]) -> str:
        """Ask a language model and give the text of its answer.

        Args:
            prompt: The user's message.
            **fields: Fields of `Request`: `temperature=1.0`, `max_tokens=64`, ...

        Raises:
            LLMError: the model could not be reached, or refused to answer.
        """
        return answer_of(self.send(self.request(prompt, **fields)), self.name)

    @trace(name="llm")
    def reply(self, messages: str | Sequence[Message], **fields: Unpack[Fields]) -> Reply:
        """Ask a language model and give its whole reply.

        Args:
            messages: The conversation; a text is one user message.
            **fields: Fields of `Request`.

        Raises:
            LLMError: the model could not be reached.
        """
        return self.send(self.request(messages, **fields))

    @trace(name="llm")
    async def areply(self, messages: str | Sequence[Message], **fields: Unpack[Fields]) -> Reply:
        """Ask a language model and give its whole reply, without blocking."""
        return await self.asend(self.request(messages, **fields))

    @final
    def replies(self, prompts: Iterable[str | Sequence[Message]], **fields: Unpack[Fields]) -> list[Reply]:
        """The replies to many prompts, in their order, asked as concurrently as the model allows."""
        return loop.run(self.areplies(prompts, **fields))

    @final
    async def areplies(self, prompts: Iterable[str | Sequence[Message]], **fields: Unpack[Fields]) -> list[Reply]:
        """`replies` without blocking; the first failure cancels the others."""
        requests = [self.request(messages, **fields) for messages in prompts]
        tasks = [asyncio.ensure_future(self.asend(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    @final
    def request(self, messages: str | Sequence[Message], **fields: Unpack[Fields]) -> Request:
        """The request that `reply` sends for these arguments.

        Raises:
            LLMError: a message or field is not what a request takes.
        """
        if isinstance(messages, str):
            messages = ({"role": "user", "content": messages},)
        given: dict[str, Any] = {**self.defaults, **fields}
        check_fields(given)
        for name in ("stop", "answers"):  # a list is as good, a single text would be taken apart into letters
            if name in given:
                given[name] = (given[name],) if isinstance(given[name], str) else tuple(given[name])
        return checked(Request(messages=tuple(messages), **cast("Fields", given)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    # a workflow may be copied, a connection with its limits and its meter is one
    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class Layer(LLM):
    """An `LLM` around another one; what it does not change is the inner one's."""

    def __init__(self, inner: LLM) -> None:
        self.inner = inner
        self.name = inner.name
        self.local = inner.local

    def price(self, request: Request) -> Cost:
        """The inner one's price."""
        return self.inner.price(request)


def answer_of(reply: Reply, name: str) -> str:
    """The text of a reply.

    Raises:
        LLMError: of kind refusal, where the model or its provider's filter declined.
    """
    if reply.finish == "refusal" or (reply.finish == "content_filter" and not reply.text):
        said = f" ({reply.text[:80]!r})" if reply.text else ""
        raise LLMError(f"{name!r} declined to answer{said}; rephrase the prompt", kind="refusal")
    return reply.text


def lead_after(started: str) -> str:
    """What precedes a word that goes on from a text: models write it with its space, but at the very start of an answer."""
    return " " if started and not started[-1].isspace() else ""


def normalised(scores: Sequence[float]) -> tuple[float, ...]:
    """Log-probabilities that sum to one."""
    top = max(scores)
    total = top + math.log(sum(math.exp(score - top) for score in scores))
    return tuple(score - total for score in scores)


def tokens_in_at_most(request: Request) -> int:
    """An upper bound of a request's input tokens: a byte-level tokenizer makes at most one of each byte."""
    texts = [*request.stop, *request.answers, request.prefill, json.dumps(request.schema) if request.schema else ""]
    parts = 0
    for message in request.messages:
        content = message["content"]
        if isinstance(content, str):
            texts.append(content)
        else:
            texts.append(str(content))
            parts += len(content)
    # a message's role and marks, an image in a part; a chat template's own system message, or the words for a schema
    overhead = 16 * len(request.messages) + 4096 * parts + 128
    return sum(len(text.encode("utf-8", "replace")) for text in texts) + overhead


def tokens_out_at_most(request: Request) -> int:
    """An upper bound of a request's output tokens."""
    return 1 if request.answers else request.max_tokens


_FIELDS = tuple(f.name for f in fields(Request) if f.name != "messages")


def check_fields(given: Mapping[str, Any]) -> None:
    """Check the names of a request's fields.

    Raises:
        LLMError: one is unknown.
    """
    for name in given:
        if name not in _FIELDS:
            hint = meant(name, _FIELDS, f"known: {', '.join(_FIELDS)}")
            raise LLMError(f"a request has no field {name!r}; {hint}", kind="request")


def check_temperature(given: Any) -> None:
    """Refuse a temperature that no model takes.

    Raises:
        LLMError: it is none.
    """
    if not is_number(given) or not 0 <= given <= 2:
        raise LLMError(f"temperature is {given!r:.80}; give a number between 0 and 2", kind="request")


def checked(request: Request) -> Request:
    """The same request.

    Raises:
        LLMError: a message or field is not what a request takes.
    """
    if not request.messages:
        raise LLMError("a request holds no message; give at least one", kind="request")
    for message in request.messages:
        _check_message(message)
    if type(request.max_tokens) is not int or request.max_tokens < 1:
        raise LLMError(f"max_tokens is {request.max_tokens!r}; give a whole number of at least 1", kind="request")
    check_temperature(request.temperature)
    if len(set(request.answers)) != len(request.answers) or any(not text.strip() for text in request.answers):
        raise LLMError(f"answers are {request.answers!r}; give texts that differ and are not blank", kind="request")
    return request


def _check_message(message: Any) -> None:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise LLMError(f"message {message!r:.80} has no role and content; give a mapping with both", kind="request")
    given = cast("Message", message)
    if given["role"] not in ROLES:
        raise LLMError(f"a message has the role {given['role']!r:.80}; known: {', '.join(ROLES)}", kind="request")
    if not isinstance(given["content"], (str, list)):
        raise LLMError(f"a message's content is {given['content']!r:.80}; give it as text", kind="request")
