"""What one rollout or proposal spends, paid for by the run's ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trace_opt.core.rollout import Cost

if TYPE_CHECKING:
    from trace_opt.search.admission import Place
    from trace_opt.search.ledger import Ledger


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
        place: Its place among those that run at once; None where it is alone.
    """

    __slots__ = ("_ledger", "flights", "place", "role", "spend", "what")

    def __init__(self, ledger: Ledger, role: str, what: object, place: Place | None = None) -> None:
        self._ledger = ledger
        self.role: str = role
        self.what = what
        self.place = place
        self.spend: dict[str, Cost] = {}
        self.flights: dict[int, Cost] = {}

    def reserve(self, worst: Cost) -> Flight:
        """Set aside the most that a request can cost.

        Raises:
            BudgetError: what is left does not cover it.
            Later: it may, once those before it are settled.
        """
        flight = self._ledger.reserve(worst, self.role, str(self.what), self.place)
        self.flights[flight.number] = worst
        return flight

    def settle(self, token: Flight | None, actual: Cost) -> None:
        """Replace a reservation by what it came to; with None book what was never reserved."""
        role = self._ledger.settle(token, actual, self.role, self.place)
        self.spend[role] = self.spend.get(role, Cost()) + actual
        if token is not None:
            self.flights[token.number] = actual

    async def turn(self) -> None:
        """Wait until all before it are finished."""
        if self.place is not None:
            await self._ledger.turn(self.place)

    def clear(self) -> None:
        """Begin anew: what it spent so far is booked."""
        self.spend.clear()
        self.flights.clear()

    @property
    def cost(self) -> Cost:
        """All of it."""
        return sum(self.spend.values(), NOTHING)
