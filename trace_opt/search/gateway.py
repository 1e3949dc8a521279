"""The driver's end of all workers' lines: it holds the keys, the cache, the rate limits and the ledger.

A rollout is one errand, however many workers it dies in: replies that were paid for are kept until it comes through, and
given again to the attempt that replaces a lost one. So it is paid for once, and the budget holds whoever asks.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from trace_opt.core.rollout import Cost
from trace_opt.errors import BudgetError
from trace_opt.llm import cache, loop
from trace_opt.llm.base import Reply
from trace_opt.llm.connect import connected
from trace_opt.llm.elsewhere import Find, Keep, Price, Question, Reserve, Send, Settle
from trace_opt.llm.meter import Later, charging, patiently
from trace_opt.search.shipping import packed_error

if TYPE_CHECKING:
    from trace_opt.search.account import Account, Flight

Answer = Any
"""What was asked for, or a `Fault`."""


class Errand:
    """One rollout, over all its attempts.

    Args:
        account: Pays for it.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self._lock = Lock()
        self._replies: dict[tuple[str, int], Future[Reply]] = {}
        self._asked: dict[int, dict[str, int]] = {}
        self._copies: set[int] = set()
        self._flights: dict[int, Flight] = {}
        self._own: dict[str, Cost] = {}  # calls that the worker made itself and that cost no money, by role
        self._next = 0

    def begin(self, ticket: int, *, copy: bool = False) -> None:
        """Begin an attempt: its calls are counted anew.

        Args:
            ticket: The attempt's number.
            copy: Whether another attempt is under way, so that this one may cost nothing.
        """
        self._asked[ticket] = {}
        if copy:
            self._copies.add(ticket)

    def reply(
        self, ticket: int, key: str, role: str, send: Callable[[], Future[Reply]]
    ) -> tuple[Future[Reply], bool]:  # fmt: skip
        """What an attempt's call is answered with, and whether another attempt has sent it."""
        with self._lock:
            asked = self._asked.setdefault(ticket, {})
            count = asked[key] = asked.get(key, 0) + 1
            found = self._replies.get((key, count))
            if found is not None and not _failed(found):
                return found, True
            self.account.role = role
            made = self._replies[key, count] = send()
            return made, False

    def reserve(self, ticket: int, role: str, worst: Cost) -> int:
        """Set aside the most that a call of the worker's own can cost.

        Raises:
            BudgetError: what is left does not cover it, or a copy would have to make it.
            Later: it may, once others are settled.
        """
        self._refuse_copy(ticket)
        with self._lock:
            self.account.role = role
            flight = self.account.reserve(worst)
            self._next += 1
            self._flights[self._next] = flight
            return self._next

    def settle(self, ticket: int, role: str, number: int | None, actual: Cost) -> None:
        """Book what such a call came to.

        Raises:
            BudgetError: nothing was reserved, and it is a copy that reports it.
        """
        if number is None:
            self._refuse_copy(ticket)
        with self._lock:
            self.account.role = role
            flight = None if number is None else self._flights.pop(number)
            self.account.settle(flight, actual)
            if flight is not None and flight.worst.usd == 0.0:
                self._own[flight.role] = self._own.get(flight.role, Cost()) + actual

    def cancel(self) -> None:
        """Nobody waits for it: end its calls that are on their way."""
        with self._lock:
            replies = list(self._replies.values())
        for reply in replies:
            reply.cancel()

    def _refuse_copy(self, ticket: int) -> None:
        if ticket in self._copies:
            raise BudgetError("a copy of a late rollout makes no calls of its own; the rollout itself goes on")

    def lost(self, ticket: int) -> None:
        """An attempt's worker has died. What its own models did is not charged, since the next attempt does it again."""
        if ticket in self._copies:
            return
        with self._lock:
            for flight in self._flights.values():
                self.account.settle(flight, Cost() if flight.worst.usd == 0.0 else flight.worst)
            self._flights.clear()
            for role, cost in self._own.items():
                self.account.role = role
                self.account.settle(None, Cost(-cost.calls, -cost.tokens_in, -cost.tokens_out, 0.0))
            self._own.clear()


def _ticket(question: Question) -> int:
    """The attempt that asks; none has the number that stands for no rollout."""
    return -1 if question.rollout is None else question.rollout


def _failed(future: Future[Reply]) -> bool:
    return future.cancelled() or (future.done() and future.exception() is not None)


class Gateway:
    """Answers what workers ask. Safe to call from any thread.

    Model calls are made in the context in which it was made: captures and replays in force there hold for all workers.
    """

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._errands: dict[int, Errand] = {}

    def begin(self, number: int, errand: Errand, *, copy: bool = False) -> None:
        """Know an attempt by its number; `copy` as in `Errand.begin`."""
        errand.begin(number, copy=copy)
        self._errands[number] = errand

    def end(self, number: int) -> None:
        """An attempt came through, or nobody waits for it any more."""
        self._errands.pop(number, None)

    def cancel(self, number: int) -> None:
        """Nobody waits for an attempt: end the calls it has on their way; those to come are still paid for."""
        errand = self._errands.get(number)
        if errand is not None:
            errand.cancel()

    def lost(self, number: int) -> None:
        """An attempt's worker has died."""
        errand = self._errands.pop(number, None)
        if errand is not None:
            errand.lost(number)

    def handle(self, question: Question, answer: Callable[[Answer], None]) -> None:
        """Answer a question, now or later; never raises.

        Args:
            question: From a worker.
            answer: Takes the answer, from any thread.
        """
        try:
            if isinstance(question, Send):
                self._send(question, answer)
            elif isinstance(question, Reserve):
                self._reserve(question, answer)
            else:
                answer(self._answer(question))
        except BaseException as error:  # noqa: BLE001 # raised again in the worker
            answer(packed_error(error))

    def _errand(self, question: Question) -> Errand:
        errand = self._errands.get(_ticket(question))
        if errand is None:
            raise BudgetError("a model call was made for a rollout that nobody waits for any more")
        return errand

    def _answer(self, question: Question) -> Answer:
        match question:
            case Settle():
                return self._errand(question).settle(_ticket(question), question.role, question.number, question.actual)
            case Price():
                return connected(question.spec).price(question.request)
            case Find():
                return cache.database(Path(question.path)).find(question.key)
            case Keep():
                return cache.database(Path(question.path)).keep(question.key, question.request, question.reply)
            case _:
                raise TypeError(f"a worker asked {question!r:.80}, which no gateway answers")

    def _reserve(self, question: Reserve, answer: Callable[[Answer], None]) -> None:
        async def reserved() -> None:
            try:
                answer(await patiently(once))
            except BaseException as error:  # noqa: BLE001 # raised again in the worker
                answer(packed_error(error))

        async def once() -> int:
            return self._errand(question).reserve(_ticket(question), question.role, question.worst)

        try:
            answer(self._errand(question).reserve(_ticket(question), question.role, question.worst))
        except Later:
            asyncio.run_coroutine_threadsafe(reserved(), loop.background().loop)

    def _send(self, question: Send, answer: Callable[[Answer], None]) -> None:
        if question.rollout is None:
            # outside of a rollout nobody pays, here as on one machine
            self._launch(question, None).add_done_callback(lambda done: answer(_said(done, again=False)))
            return
        errand = self._errand(question)
        key = f"{cache.key_of(repr(question.spec), question.request)} {question.request.seed}"
        future, again = errand.reply(
            question.rollout, key, question.role, lambda: self._launch(question, errand.account)
        )
        future.add_done_callback(lambda done: answer(_said(done, again=again)))

    def _launch(self, question: Send, account: Account | None) -> Future[Reply]:
        async def ask() -> Reply:
            with charging(account):
                return await connected(question.spec).asend(question.request)

        here = loop.background().loop
        return self._context.copy().run(asyncio.run_coroutine_threadsafe, ask(), here)


def _said(done: Future[Reply], *, again: bool) -> Answer:
    """What a finished call is answered with; one that an earlier attempt paid for costs nothing again."""
    if done.cancelled():
        return packed_error(BudgetError("a model call was cancelled with the run"))
    error = done.exception()
    if error is not None:
        return packed_error(error)
    reply = done.result()
    return replace(reply, cost=Cost(), cached=True) if again else reply
