"""How often, how fast and how long a model is asked: retries, rate limits, concurrency and the deadline.

The clients' own retries are off, so that each request sent passes through here and is counted. All waiting is seeded:
a run repeated waits the same.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from weakref import WeakValueDictionary

from trace_opt.core.rollout import Cost
from trace_opt.errors import RETRIED_KINDS, LLMError
from trace_opt.llm.base import LLM, Layer, Reply, Request
from trace_opt.llm.faults import CallError, fault

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
LONGEST_TOLD_WAIT_SECONDS = 60.0
"""A server that asks for a longer wait than this is given up on."""

_ADAPTIONS_AT_MOST = 12

_WAITING: ContextVar[bool] = ContextVar("trace_opt_waiting", default=True)


@contextmanager
def no_waits() -> Generator[None]:
    """Retry at once and ignore rate limits in a `with` block: for tests."""
    token = _WAITING.set(False)
    try:
        yield
    finally:
        _WAITING.reset(token)


class Gate:
    """What all calls of one model share: how many run at once, their pace, and a pause the server asked for.

    Args:
        concurrency: Calls at once, or None for no limit.
        requests_per_minute: The pace, or None for no limit.
    """

    def __init__(self, concurrency: int | None, requests_per_minute: float | None) -> None:
        self._slots = None if concurrency is None else asyncio.Semaphore(concurrency)
        self._spacing = 0.0 if requests_per_minute is None else 60.0 / requests_per_minute
        self._next = 0.0
        self._paused_until = 0.0

    def pause(self, seconds: float) -> None:
        """Hold all calls back for a while."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """Wait for one's turn and hold it."""
        if self._slots is None:
            await self._pace()
            yield
            return
        async with self._slots:
            await self._pace()
            yield

    async def _pace(self) -> None:
        if not _WAITING.get():
            return
        while (wait := self._paused_until - time.monotonic()) > 0:  # noqa: ASYNC110 # a pause may be prolonged meanwhile
            await asyncio.sleep(wait)
        if self._spacing:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._spacing
            await asyncio.sleep(turn - now)


_gates: WeakValueDictionary[tuple[object, ...], Gate] = WeakValueDictionary()


def gate_for(identity: str, concurrency: int | None, requests_per_minute: float | None) -> Gate:
    """The gate of a model; two connections to one model with the same limits share it. Called on the loop."""
    key = (id(asyncio.get_running_loop()), identity, concurrency, requests_per_minute)
    gate = _gates.get(key)
    if gate is None:
        gate = _gates[key] = Gate(concurrency, requests_per_minute)
    return gate


class Limit(Layer):
    """Lets a request through when it is its turn."""

    def __init__(self, inner: LLM, gate: Gate) -> None:
        super().__init__(inner)
        self._gate = gate

    async def asend(self, request: Request) -> Reply:
        """Send when it is the request's turn."""
        async with self._gate.turn():
            return await self.inner.asend(request)


class Deadline(Layer):
    """Ends a request that takes too long in all, however busily its answer drips.

    Args:
        inner: Who answers.
        timeout_s: Seconds from sending to the last byte.
    """

    def __init__(self, inner: LLM, timeout_s: float) -> None:
        super().__init__(inner)
        self._timeout_s = timeout_s

    async def asend(self, request: Request) -> Reply:
        """Send, and give up in time."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self.inner.asend(request)
        except TimeoutError:
            what = f"gave no whole answer within {self._timeout_s:g} s"
            raise fault(self.name, "timeout", what, spent=None) from None


class Retry(Layer):
    """Sends a request again where that may help.

    Args:
        inner: Who answers; each call of it is one request sent.
        gate: What a 429 pauses for all calls of this model.
        attempts: Requests sent at most, at least 1.
        deadline_s: Seconds for all attempts and waits together, or None.
    """

    def __init__(self, inner: LLM, gate: Gate | None, attempts: int, deadline_s: float | None = None) -> None:
        super().__init__(inner)
        self._gate = gate
        self._attempts = attempts
        self._deadline_s = deadline_s

    async def asend(self, request: Request) -> Reply:
        """Send until answered or given up."""
        spent, failed, adapted = Cost(), 0, 0
        end = None if self._deadline_s is None else time.monotonic() + self._deadline_s
        while True:
            try:
                reply = await self.inner.asend(request)
                return replace(reply, cost=spent + reply.cost) if spent.calls else reply
            except CallError as error:
                spent += error.spent or Cost()
                if error.adapted and adapted < _ADAPTIONS_AT_MOST:
                    adapted += 1
                    continue
                failed += 1
                wait = self._wait_after(error, failed, request)
                if wait is None or (end is not None and time.monotonic() + wait > end):
                    raise self._given_up(error, failed, spent) from None
                if error.kind == "rate" and self._gate is not None:
                    self._gate.pause(wait)
            if _WAITING.get():
                await asyncio.sleep(wait)

    def _wait_after(self, error: CallError, failed: int, request: Request) -> float | None:
        """Seconds until the next attempt; None where there is to be none."""
        if error.kind not in RETRIED_KINDS or failed >= self._attempts:
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= LONGEST_TOLD_WAIT_SECONDS else None
        chance = random.Random(f"{request.seed}:{failed}:{request.messages[-1]['content']!s:.200}")  # noqa: S311 # jitter
        return chance.uniform(0, min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (failed - 1) * 2))

    def _given_up(self, error: CallError, failed: int, spent: Cost) -> LLMError:
        text = str(error)
        if error.retry_after is not None and error.retry_after > LONGEST_TOLD_WAIT_SECONDS:
            text += f"; it asks to wait {error.retry_after:.0f} s"
        elif failed > 1:
            text += f"; gave up after {failed} attempts"
        given_up = error.again(text)
        given_up.spent = spent
        return given_up
