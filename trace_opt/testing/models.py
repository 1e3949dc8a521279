"""A model double: a function answers, all else is as with a real model, without a network, a key or a wait."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from threading import Lock

from trace_opt.core.rollout import Cost
from trace_opt.errors import LLMError
from trace_opt.llm.base import LLM, Message, Reply, Request, checked
from trace_opt.llm.faults import ANSWERED, UNSENT, CallError
from trace_opt.llm.limits import Retry, no_waits
from trace_opt.llm.meter import patiently
from trace_opt.llm.prices import Price
from trace_opt.llm.stack import Backend, metered, seeded

Answer = str | Reply | Exception
Script = Callable[[Sequence[Message]], "Answer | Awaitable[Answer]"]


class ScriptedLLM(LLM):
    """A language model that answers what a function says; all else is as with a real one.

    Its calls are reserved, settled and counted, its faults are retried without waiting, and nothing is cached. The
    function runs on the caller's event loop (for synchronous callers on the loop of all model calls), so it must not
    block for long; it may be `async`.

    Args:
        script: From the messages to a text, a whole `Reply`, or an exception, raised as if the model had failed.
            A `Reply` whose cost has no calls gets an estimate of its tokens.
        name: The model's name.
        price: US dollars for an input and an output token; None is an unknown price.
        attempts: Requests sent for one call at most.
        seconds: How long a call takes.
        timeout_s: Seconds after which a call counts as failed.

    Attributes:
        requests: Every request sent, retries too, in the order of sending.
    """

    def __init__(
        self, script: Script, name: str = "scripted/test", *, price: tuple[float, float] | None = (0.0, 0.0),
        attempts: int = 4, seconds: float = 0.0, timeout_s: float = 60.0,
    ) -> None:  # fmt: skip
        self.name = name
        self.requests: list[Request] = []
        rates = None if price is None else Price((price[0], price[0], price[1]))
        self.local = rates is not None and rates.at_most(1, 1) == 0
        self._backend = _Script(script, name, rates, seconds, self.requests)
        self._stack = Retry(metered(self._backend, timeout_s), None, attempts)

    @property
    def calls(self) -> int:
        """Requests sent so far, retries too."""
        return len(self.requests)

    def price(self, request: Request) -> Cost:
        """By the rates given."""
        return self._backend.price(request)

    async def asend(self, request: Request) -> Reply:
        """Answer as the script says."""
        with no_waits():
            settled = seeded(checked(request), self.name)
            return await patiently(lambda: self._stack.asend(settled))


class _Script(Backend):
    def __init__(self, script: Script, name: str, rates: Price | None, seconds: float, requests: list[Request]) -> None:
        self.name = name
        self.rates = rates
        self._script = script
        self._seconds = seconds
        self._requests = requests
        self._lock = Lock()

    async def asend(self, request: Request) -> Reply:
        """One request of the script."""
        with self._lock:
            self._requests.append(request)
        if self._seconds:
            await asyncio.sleep(self._seconds)
        answer = self._script(request.messages)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, LLMError):
            raise _sent(answer)
        if isinstance(answer, Exception):
            raise answer
        reply = answer if isinstance(answer, Reply) else self._reply(answer, request)
        return reply if reply.cost.calls else replace(reply, cost=self._cost(request, reply.text), model=self.name)

    def _reply(self, text: str, request: Request) -> Reply:
        if not request.answers:
            return Reply(text=text)
        if text not in request.answers:
            raise CallError(
                f"the script said {text!r:.80}, which is none of the answers {request.answers!r:.80}; give one of them",
                kind="request",
                spent=UNSENT,
            )
        rest = 0.1 / max(1, len(request.answers) - 1)
        shares = [0.9 if answer == text else rest for answer in request.answers]
        return Reply(text=text, logprobs=tuple(math.log(share / sum(shares)) for share in shares))

    def _cost(self, request: Request, text: str) -> Cost:
        asked = sum(len(str(message["content"])) for message in request.messages)
        tokens_in, tokens_out = math.ceil(asked / 4), math.ceil(len(text) / 4)
        tokens_out = min(tokens_out, self.price(request).tokens_out)
        usd = None if self.rates is None else self.rates.usd(tokens_in, tokens_out)
        return Cost(1, tokens_in, tokens_out, usd)


def _sent(error: LLMError) -> CallError:
    """A fresh error with a cost: what was answered with an error costs a call, what was lost may cost all."""
    lost = error.kind in ("timeout", "connection", "malformed")
    spent = error.spent if isinstance(error, CallError) else None if lost else ANSWERED
    return CallError(str(error), kind=error.kind, retry_after=error.retry_after, spent=spent)
