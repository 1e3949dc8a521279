"""What one rollout or proposal spends, paid for by the run's ledger."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
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

_SETTLING = Lock()  # what is settled while an account is booked belongs to the next time


class Account:
    """What one rollout or proposal spends; an `llm.meter.Ledger`.

    Attributes:
        role: Whose calls come next.
        spend: What its calls came to that is not booked yet, by role.
        flights: The same by the numbers of the calls. One that is still on its way is not among them, whatever became of
            the rollout that sent it: it is lost, unless it is settled and booked after all.
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
        return self._ledger.reserve(worst, self.role, str(self.what), self.place)

    def settle(self, token: Flight | None, actual: Cost) -> None:
        """Replace a reservation by what it came to; with None book what was never reserved."""
        role = self._ledger.settle(token, actual, self.role, self.place)
        with _SETTLING:
            self.spend[role] = self.spend.get(role, Cost()) + actual
            if token is not None:
                self.flights[token.number] = actual

    async def turn(self) -> None:
        """Wait until all before it are finished."""
        if self.place is not None:
            await self._ledger.turn(self.place)

    def take(self) -> tuple[dict[str, Cost], dict[int, Cost]]:
        """What is not booked yet, to be booked now: `spend` and `flights`, which begin anew."""
        with _SETTLING:
            taken = self.spend, self.flights
            self.spend, self.flights = {}, {}
        return taken

    @property
    def cost(self) -> Cost:
        """All that is not booked yet."""
        return sum(self.spend.values(), NOTHING)
