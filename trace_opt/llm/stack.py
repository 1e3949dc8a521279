"""A backend with everything around it that a model call goes through.

From the outside in: the seed, capture and replay, the cache, retries, the turn, the meter, the deadline, the backend.
The part from the cache inwards runs on the one loop of `trace_opt.llm.loop`; the seed is settled before, where the call
is made, so that the order of calls in a rollout decides it and not the order of their arrival.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from trace_opt.core.context import STATE
from trace_opt.core.rollout import Cost
from trace_opt.errors import LASTING_KINDS, LLMError
from trace_opt.llm import cache as caching
from trace_opt.llm import loop, replay
from trace_opt.llm.base import LLM, Reply, Request, checked, tokens_in_at_most, tokens_out_at_most
from trace_opt.llm.elsewhere import Spec, Table, the_line
from trace_opt.llm.limits import Deadline, Limit, Retry, gate_for
from trace_opt.llm.meter import Meter, metering, patiently
from trace_opt.llm.prices import Price

_SEEDS = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How a model may be asked.

    Attributes:
        timeout_s: Seconds for one request, from sending to the last byte.
        attempts: Requests sent for one call at most.
        concurrency: Requests at once.
        requests_per_minute: The pace, or None.
        deadline_s: Seconds for one call with all its attempts and waits, or None.
    """

    timeout_s: float = 60.0
    attempts: int = 4
    concurrency: int = 16
    requests_per_minute: float | None = None
    deadline_s: float | None = None


class Backend(LLM):
    """Who answers one request, and what that costs by its model's rates. Subclasses implement `asend`."""

    rates: Price | None

    async def load(self) -> None:
        """Load what answering needs, before a deadline runs; the first call of a connection does."""

    def price(self, request: Request) -> Cost:
        """By the model's rates."""
        tokens_in, tokens_out = tokens_in_at_most(request), tokens_out_at_most(request)
        return Cost(1, tokens_in, tokens_out, None if self.rates is None else self.rates.at_most(tokens_in, tokens_out))


class Connected(LLM):
    """What `connect` gives.

    Args:
        backend: Who answers.
        identity: The model and where it runs, for cache keys and limits.
        limits: How it may be asked.
        table: Where replies are kept, or None.
        defaults: Fields filled in where a caller leaves them out.

    Attributes:
        spec: How `connect` was called; None for a stack made by hand, which cannot be sent to another process.
    """

    def __init__(
        self, backend: Backend, *, identity: str, limits: Limits, table: Path | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.name = backend.name
        self.local = backend.local
        self.defaults = dict(defaults or {})
        self.identity = identity
        self.backend = backend
        self._limits = limits
        self._table = table
        self.spec: Spec | None = None
        self._built: tuple[object, LLM] | None = None

    def price(self, request: Request) -> Cost:
        """By the backend's rates."""
        return self.backend.price(request)

    async def asend(self, request: Request) -> Reply:
        """Answer through the whole stack, from any event loop."""
        request = seeded(checked(request), self.identity)
        if (tape := replay.replaying()) is not None:
            return await tape.play(caching.key_of(self.identity, request), request, self)
        if (capture := replay.capturing()) is None:
            return await loop.carried(self._answer(request))
        key = caching.key_of(self.identity, request)
        with metering() as meter:  # what failed attempts cost is in no reply
            try:
                reply = await loop.carried(self._answer(request))
            except LLMError as error:
                if error.kind not in LASTING_KINDS:
                    capture.keep(key, request, error, meter.cost)
                raise
        capture.keep(key, request, reply, meter.cost)
        return reply

    def __reduce__(self) -> str | tuple[Any, ...]:
        # a connection travels as the way to make it, without its key
        from trace_opt.llm.connect import connected

        return super().__reduce__() if self.spec is None else (connected, (self.spec,))

    async def _answer(self, request: Request) -> Reply:
        # built on the loop that it belongs to, and again should that one have ended
        here = loop.background()
        if self._built is None or self._built[0] is not here:
            await self.backend.load()
        if self._built is None or self._built[0] is not here:  # not yet by another task that waited as well
            self._built = here, self._build()
        stack = self._built[1]
        return await patiently(lambda: stack.asend(request))

    def _build(self) -> LLM:
        limits = self._limits
        gate = gate_for(self.identity, limits.concurrency, limits.requests_per_minute)
        stack: LLM = Limit(metered(self.backend, limits.timeout_s), gate)
        stack = Retry(stack, gate, limits.attempts, limits.deadline_s)
        if self._table is None:
            return stack
        line = the_line()
        table = caching.database(self._table) if line is None else Table(line, self._table)
        return caching.Cache(stack, self.identity, table)


def metered(backend: Backend, timeout_s: float) -> LLM:
    """A backend whose requests have a deadline and are paid for."""
    return Meter(Deadline(backend, timeout_s))


_outside: dict[str, int] = {}
_outside_lock = Lock()


def seeded(request: Request, identity: str) -> Request:
    """A request with its seed settled: the one asked for, else the rollout's, else 0.

    Where the model samples, the n-th identical call of a rollout gets a seed of its own, so that best-of-n draws n
    answers; outside a rollout the process counts as one.
    """
    if request.seed is not None:
        return request
    state = STATE.get()
    seed = (state.seed if state is not None else None) or 0
    if request.temperature == 0 or request.answers:
        return replace(request, seed=seed % _SEEDS)
    key = caching.key_of(identity, replace(request, seed=seed))
    calls = _outside if state is None else state.calls
    with _outside_lock:
        nth = calls.get(key, 0)
        calls[key] = nth + 1
    if nth == 0:
        return replace(request, seed=seed % _SEEDS)
    digest = hashlib.sha256(f"{seed}:{nth}".encode()).digest()
    return replace(request, seed=int.from_bytes(digest[:4], "big") % _SEEDS)
