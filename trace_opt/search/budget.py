"""How much a run may spend, and the ledger that holds it to that.

A request is paid for by reserving the most it can cost before it is sent and settling after, under one lock, so the
limits hold whatever runs at once. What the test at the end will need is held back from the search.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, Protocol

from trace_opt.core.rollout import Cost
from trace_opt.errors import BudgetError, meant

Level = Literal["light", "medium", "heavy"]

LEVELS: dict[str, int] = {"light": 10, "medium": 30, "heavy": 100}
"""How often a level pays for the whole validation set."""

SMALLEST = 24
"""A smaller validation set counts as one of this size: a proposal costs its minibatch however few examples there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a run may spend at most; None is no limit. Workflow, optimizers and guide count together.

    Args:
        calls: Requests to models, retries included, cache hits not.
        tokens: Tokens in and out.
        usd: US dollars. A model of unknown price is refused then.
        seconds: Wall time; what runs then is stopped, and threads end by themselves.
        trials: Proposals tried.
        rollouts: Rollouts, the test at the end included.

    Raises:
        BudgetError: a limit is not a number above 0.
    """

    calls: int | None = None
    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = None
    trials: int | None = None
    rollouts: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.limits.items():
            whole = name not in ("usd", "seconds")
            fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not fits or not 0 < value < math.inf:
                kind = "a whole number" if whole else "a number"
                raise BudgetError(f"Budget got {name}={value!r}; give {kind} above 0, or leave it out for no limit")

    @property
    def limits(self) -> dict[str, Any]:
        """The limits that are set, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) is not None}

    def __str__(self) -> str:
        return "Budget(" + ", ".join(f"{name}={value}" for name, value in self.limits.items()) + ")"


def resolve(budget: Budget | str, *, val: int, test: int) -> Budget:
    """A budget, or a level as the number of rollouts it stands for.

    Args:
        budget: A `Budget`, "light", "medium" or "heavy".
        val: Validation examples.
        test: Test examples; start and best are each run on them once.

    Raises:
        BudgetError: it is neither.
    """
    if isinstance(budget, Budget):
        return budget
    times = LEVELS.get(budget) if isinstance(budget, str) else None  # pyright: ignore[reportUnnecessaryIsInstance] # users pass anything
    if times is None:
        hint = meant(budget, LEVELS, "pass 'light', 'medium', 'heavy' or a Budget(...)")
        raise BudgetError(f"no budget is named {budget!r}; {hint}")
    return Budget(rollouts=times * max(val, SMALLEST) + 2 * test)


class Journal(Protocol):
    """Who is told of a call before it is sent, so that one in flight at a kill can be listed."""

    def launch(self, token: int, role: str, what: str, worst: Cost) -> None:
        """Keep it."""
        ...


@dataclass(frozen=True, slots=True)
class Flight:
    """A reservation: what `Account.reserve` gives and `settle` takes back."""

    number: int
    role: str
    worst: Cost


NOTHING = Cost()


class Account:
    """What one rollout or proposal spends; an `llm.meter.Ledger`.

    Attributes:
        role: Whose calls come next.
        spend: What its calls came to, by role.
        flights: What each call came to, by number; the most it can cost while it is in flight.
        what: What it is for; its text is asked for only when a call is made.
    """

    __slots__ = ("_ledger", "flights", "role", "spend", "what")

    def __init__(self, ledger: Ledger, role: str, what: object) -> None:
        self._ledger = ledger
        self.role: str = role
        self.what = what
        self.spend: dict[str, Cost] = {}
        self.flights: dict[int, Cost] = {}

    def reserve(self, worst: Cost) -> Flight:
        """Set aside the most that a request can cost.

        Raises:
            BudgetError: what is left does not cover it.
        """
        flight = self._ledger.reserve(worst, self.role, str(self.what))
        self.flights[flight.number] = worst
        return flight

    def settle(self, token: Flight | None, actual: Cost) -> None:
        """Replace a reservation by what it came to; with None book what was never reserved."""
        role = self._ledger.settle(token, actual, self.role)
        self.spend[role] = self.spend.get(role, Cost()) + actual
        if token is not None:
            self.flights[token.number] = actual

    def clear(self) -> None:
        """Begin anew: what it spent so far is booked."""
        self.spend.clear()
        self.flights.clear()

    @property
    def cost(self) -> Cost:
        """All of it."""
        return sum(self.spend.values(), NOTHING)


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
        self._open: dict[int, tuple[str, Cost]] = {}
        self._lock = Lock()

    # -- model calls -------------------------------------------------------------------------------------------------

    def account(self, role: str, what: object) -> Account:
        """An account for one rollout or proposal."""
        return Account(self, role, what)

    def reserve(self, worst: Cost, role: str, what: str) -> Flight:
        """Set aside the most that a request can cost, and tell the journal.

        Raises:
            BudgetError: what is left does not cover it, or dollars are limited and its price is unknown.
        """
        self.check_time()
        with self._lock:
            self._afford(worst)
            if self.on_first is not None and role == "workflow":
                self.on_first(worst)  # stays in place where it raises, for the calls beside this one
                self.on_first = None
            self._reserved += worst
            self._number += 1
            flight = Flight(self._number, role, worst)
            self._open[flight.number] = role, worst
        if self._journal is not None:
            try:
                self._journal.launch(flight.number, role, what, worst)
            except BaseException:
                with self._lock:
                    self._reserved = _minus(self._reserved, worst)
                    del self._open[flight.number]
                raise
        return flight

    def settle(self, token: Flight | None, actual: Cost, role: str) -> str:
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
            if token is not None:
                self._reserved = _minus(self._reserved, token.worst)
                if token.number in self._open:
                    self._open[token.number] = payer, actual
            self.spent[payer] = self.spent.get(payer, Cost()) + actual
        return payer

    def land(self, account: Account) -> None:
        """Note that what an account paid for is kept, so that none of its calls can be lost any more."""
        if account.flights:
            with self._lock:
                for number in account.flights:
                    self._open.pop(number, None)

    def lose(self) -> dict[int, Cost]:
        """Book the calls whose answers nobody kept as lost, and give what each came to, by number."""
        with self._lock:
            lost, self._open = self._open, {}
            for role, cost in lost.values():
                self.spent[role] = _minus(self.spent.get(role, Cost()), cost)
                self.spent["lost"] = self.spent.get("lost", Cost()) + cost
            return {number: cost for number, (_, cost) in lost.items()}

    def _afford(self, worst: Cost) -> None:
        budget = self.budget
        if budget.usd is not None and worst.usd is None:
            raise BudgetError(
                f"a model's price is unknown, so {budget} cannot be kept; give its price to connect(...), or limit "
                "calls or tokens instead of usd"
            )
        total = self.total + self._reserved + self._held
        for name, spent, asked, limit in (
            ("calls", total.calls, worst.calls, budget.calls),
            ("tokens", total.tokens, worst.tokens, budget.tokens),
            ("usd", total.usd or 0.0, worst.usd or 0.0, budget.usd),
        ):
            if limit is not None and spent + asked > limit * (1 + 1e-12):
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


def unpriced(models: Iterable[Any]) -> str | None:
    """The name of the first model that cannot tell the price of a call, or None."""
    from trace_opt.llm.base import LLM

    for model in models:
        if isinstance(model, LLM) and model.price(model.request("?")).usd is None:
            return model.name
    return None
