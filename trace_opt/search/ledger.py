"""The ledger that holds a run to its budget.

A request is paid for by reserving the most it can cost before it is sent and settling after, under one lock, so the
limits hold whatever runs at once. What the test at the end will need is held back from the search.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from trace_opt.core.rollout import Cost
from trace_opt.errors import BudgetError
from trace_opt.llm.meter import Later
from trace_opt.search.account import Account, Flight
from trace_opt.search.admission import Amount, Kind, Line, Place, Seen, amount

if TYPE_CHECKING:
    from trace_opt.search.budget import Budget


class Journal(Protocol):
    """Who is told of a call before it is sent, so that one in flight at a kill can be listed."""

    def launch(self, token: int, role: str, what: str, worst: Cost) -> None:
        """Keep it."""
        ...


class Ledger:
    """Holds a run to its budget. Safe to call from any thread.

    Args:
        budget: The limits.
        spent: What earlier sessions spent, by role.
        rollouts, trials, seconds: The same of these.
        flights: The greatest number a call was given so far.
        journal: Who is told of calls before they are sent.

    Attributes:
        unsaved: Rollouts among those taken that no row of the store tells of.
    """

    def __init__(
        self, budget: Budget, *, spent: Mapping[str, Cost] | None = None, rollouts: int = 0, trials: int = 0,
        seconds: float = 0.0, flights: int = 0, journal: Journal | None = None,
    ) -> None:  # fmt: skip
        self.budget = budget
        self.spent: dict[str, Cost] = dict(spent or {})
        self.rollouts = rollouts
        self.trials = trials
        self.unsaved = 0
        self.on_first: Callable[[Cost], None] | None = None
        self._journal = journal
        self._began = time.monotonic() - seconds
        self._number = flights
        self._reserved = Cost()
        self._held = Cost()
        self._held_rollouts = 0
        self._held_seconds = 0.0
        self._open: dict[int, tuple[str, Cost, bool]] = {}  # who pays for a call, how much, and whether it is settled
        self._flying = 0
        self._waiting: list[Future[None]] = []
        self._seen: dict[Kind, Seen] = {"rollout": Seen(), "proposal": Seen()}
        self._ended = False
        self._lock = Lock()

    # -- model calls -------------------------------------------------------------------------------------------------

    def account(self, role: str, what: object, place: Place | None = None) -> Account:
        """An account for one rollout or proposal, at its place among those that run at once."""
        return Account(self, role, what, place)

    def reserve(self, worst: Cost, role: str, what: str, place: Place | None = None) -> Flight:
        """Set aside the most that a request can cost, and tell the journal.

        Raises:
            BudgetError: what is left does not cover it, dollars are limited and its price is unknown, or the run is over.
            Later: it may, once those before it, or what it sent itself, are settled.
        """
        self.check_time()
        with self._lock:
            if place is not None:
                self._let_in(place, worst)
            self._afford(worst)
            if self.on_first is not None and role == "workflow":
                self.on_first(worst)  # stays in place where it raises, for the calls beside this one
                self.on_first = None
            self._reserved += worst
            self._flying += 1
            if place is not None:
                place.reserve(worst)
            self._number += 1
            flight = Flight(self._number, role, worst)
            self._open[flight.number] = role, worst, False
        if self._journal is not None:
            try:
                self._journal.launch(flight.number, role, what, worst)
            except BaseException:
                with self._lock:
                    self._back(worst, Cost(), place)
                    del self._open[flight.number]
                self._wake()
                raise
        return flight

    def settle(self, token: Flight | None, actual: Cost, role: str, place: Place | None = None) -> str:
        """Replace a reservation by what it came to, and give the role that pays.

        Raises:
            BudgetError: dollars are limited and what was never reserved has no price.
        """
        if token is None and actual.usd is None and self.budget.usd is not None:
            raise BudgetError(
                f"charge() booked a call without its price under {self.budget}; pass usd=, or limit calls or tokens"
            )
        payer = role if token is None else token.role
        with self._lock:
            if token is None:
                if place is not None:
                    place.settle(None, actual)
            else:
                self._back(token.worst, actual, place)
                if token.number in self._open:
                    self._open[token.number] = payer, actual, True
                else:
                    actual = Cost()  # it was booked as lost, at the most that it can have cost
            self.spent[payer] = self.spent.get(payer, Cost()) + actual
        self._wake()
        return payer

    def _back(self, worst: Cost, actual: Cost, place: Place | None) -> None:
        """A reservation is no more."""
        self._reserved = _minus(self._reserved, worst)
        self._flying -= 1
        if place is not None:
            place.settle(worst, actual)

    def land(self, booked: Iterable[int]) -> None:
        """Note that what calls came to is booked, by their numbers, so that none of them can be lost any more."""
        if booked:
            with self._lock:
                for number in booked:
                    self._open.pop(number, None)

    def lose(self) -> dict[int, Cost]:
        """Book the calls whose answers nobody kept as lost, and give what each came to, by number."""
        with self._lock:
            lost, self._open = self._open, {}
            for role, cost, settled in lost.values():
                if settled:
                    self.spent[role] = _minus(self.spent.get(role, Cost()), cost)
                self.spent["lost"] = self.spent.get("lost", Cost()) + cost
            return {number: cost for number, (_, cost, _) in lost.items()}

    # -- whose turn it is --------------------------------------------------------------------------------------------

    def places(self, kind: Kind, count: int) -> list[Place] | list[None]:
        """Places for things that run at once, in their order of effect; each is to be finished.

        Args:
            kind: What they are. Rollouts need none where nothing that they might spend is limited.
            count: How many.
        """
        budget = self.budget
        if kind == "rollout" and budget.calls is None and budget.tokens is None and budget.usd is None:
            return [None] * count
        return Line.of(count, self._seen[kind]).places

    def finish(self, place: Place | None) -> None:
        """What stands at a place spends no more."""
        if place is not None:
            with self._lock:
                place.finish()
            self._wake()

    async def turn(self, place: Place) -> None:
        """Wait until everything before a place is finished."""
        while True:
            with self._lock:
                if place.first:
                    return
                later = self._later()
            await later.over()

    def end(self) -> None:
        """The run is over: whatever thread goes on sends nothing more."""
        self._ended = True
        self._wake()

    def _let_in(self, place: Place, worst: Cost) -> None:
        """Let through what has room beside all that may come before it, and what is the first; send the others away.

        Raises:
            BudgetError: one before it was refused.
            Later: it has to wait.
        """
        fits = self._short(worst) is None
        if place.line.closed:
            raise BudgetError(f"{self.budget} did not cover what comes before it; raise its limits to go on")
        if place.first:
            if fits:
                return
            if self._flying:
                raise self._later()
            place.line.closed = True
            return  # and is refused
        ahead = place.ahead(worst)
        if not fits or ahead is None or self._short(worst, ahead) is not None:
            raise self._later()

    def _later(self) -> Later:
        until: Future[None] = Future()
        self._waiting.append(until)
        return Later(until)

    def _wake(self) -> None:
        """Let those that wait look again."""
        if self._waiting:
            with self._lock:
                waiting, self._waiting = self._waiting, []
            for until in waiting:
                if until.set_running_or_notify_cancel():
                    until.set_result(None)

    def _short(self, worst: Cost, ahead: Amount = (0, 0, 0.0)) -> tuple[str, float, float] | None:
        """The first limit that something does not fit into: its name, what is spent and what is asked for."""
        budget, total = self.budget, amount(self.total + self._reserved + self._held)
        limits, asked = (budget.calls, budget.tokens, budget.usd), amount(worst)
        for name, limit, spent, more, kept in zip(("calls", "tokens", "usd"), limits, total, asked, ahead, strict=True):
            if limit is not None and spent + more + kept > limit * (1 + 1e-12):
                return name, spent, more
        return None

    def _afford(self, worst: Cost) -> None:
        budget = self.budget
        if self._ended:
            raise BudgetError("the run is over, so nothing more is sent for it")
        if budget.usd is not None and worst.usd is None:
            raise BudgetError(
                f"a model's price is unknown, so {budget} cannot be kept; give its price to connect(...), or limit "
                "calls or tokens instead of usd"
            )
        short = self._short(worst)
        if short is not None:
            name, spent, asked = short
            raise BudgetError(self._refusal(name, f"{spent:g}", f"{asked:g}"))

    def _refusal(self, name: str, spent: str, asked: str) -> str:
        kept = " (in flight and held back for the test included)" if name != "rollouts" else ""
        return (
            f"{self.budget} does not cover what comes next: {spent} {name} spent{kept}, {asked} more asked for; "
            f"raise {name} to go on"
        )

    @property
    def total(self) -> Cost:
        """What all roles have spent."""
        return sum(self.spent.values(), Cost())

    # -- rollouts, trials, time --------------------------------------------------------------------------------------

    def take_rollouts(self, count: int) -> None:
        """Pay for rollouts, all or none.

        Raises:
            BudgetError: the budget does not cover them, or time is up.
        """
        self._take(count, 0)

    def take_unsaved(self, count: int) -> None:
        """Pay for rollouts that no row of the store will tell of.

        Raises:
            BudgetError: as `take_rollouts`.
        """
        self._take(count, count)

    def _take(self, count: int, unsaved: int) -> None:
        self.check_time()
        with self._lock:
            limit = self.budget.rollouts
            if limit is not None and self.rollouts + self._held_rollouts + count > limit:
                raise BudgetError(self._refusal("rollouts", str(self.rollouts), str(count)))
            self.rollouts += count
            self.unsaved += unsaved

    def share(self, done: float = 0.0) -> float | None:
        """The largest share spent of a limit on trials, rollouts, calls, tokens or USD, in [0, 1]; None where none is set.

        What is held back for the test does not count. Time is left out, so that a run repeats.

        Args:
            done: How much of the trial under way is done, in [0, 1].
        """
        budget, total, held = self.budget, self.total, self._held
        limits = (
            (self.trials + done, 0, budget.trials), (self.rollouts, self._held_rollouts, budget.rollouts),
            (total.calls, held.calls, budget.calls), (total.tokens, held.tokens, budget.tokens),
            (total.usd or 0.0, held.usd or 0.0, budget.usd),
        )  # fmt: skip
        shares = [spent / max(limit - kept, 1e-12) for spent, kept, limit in limits if limit is not None]
        return min(1.0, max(shares)) if shares else None

    @property
    def rollouts_left(self) -> int | None:
        """Rollouts left, what is held back not counted; None without a limit."""
        limit = self.budget.rollouts
        return None if limit is None else limit - self.rollouts - self._held_rollouts

    def give_rollouts(self, count: int) -> None:
        """Take back rollouts that were paid for and never run."""
        with self._lock:
            self.rollouts -= count

    def take_trial(self) -> None:
        """Pay for a trial.

        Raises:
            BudgetError: the budget covers no other.
        """
        with self._lock:
            if not self.may_try():
                raise BudgetError(f"{self.budget} is spent: {self.trials} trials; raise trials to go on")
            self.trials += 1

    def may_try(self) -> bool:
        """Whether another trial is covered."""
        return self.budget.trials is None or self.trials < self.budget.trials

    def hold(self, cost: Cost = Cost(), *, rollouts: int = 0, seconds: float = 0.0) -> None:  # noqa: B008 # frozen
        """Keep a share from the search; `hold()` gives it free."""
        with self._lock:
            self._held, self._held_rollouts, self._held_seconds = cost, rollouts, seconds
        self._wake()

    @contextmanager
    def aside(self, cost: Cost, rollouts: int) -> Generator[None]:
        """Keep the test of what is being trained from what trains it."""
        with self._lock:
            self._held, self._held_rollouts = self._held + cost, self._held_rollouts + rollouts
        try:
            yield
        finally:
            with self._lock:
                self._held, self._held_rollouts = _minus(self._held, cost), self._held_rollouts - rollouts
            self._wake()

    @property
    def seconds(self) -> float:
        """Wall time spent."""
        return time.monotonic() - self._began

    @property
    def seconds_left(self) -> float:
        """Wall time left, what is held back not counted; infinite without a limit."""
        limit = self.budget.seconds
        return math.inf if limit is None else limit - self._held_seconds - self.seconds

    def check_time(self) -> None:
        """Raise where time is up.

        Raises:
            BudgetError: it is.
        """
        if self.budget.seconds is not None and self.seconds_left <= 0:
            raise BudgetError(f"{self.budget} is spent: {self.seconds:.1f} seconds; raise seconds to go on")


def _minus(left: Cost, right: Cost) -> Cost:
    usd = None if left.usd is None or right.usd is None else max(0.0, left.usd - right.usd)
    return Cost(left.calls - right.calls, left.tokens_in - right.tokens_in, left.tokens_out - right.tokens_out, usd)
