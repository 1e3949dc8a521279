"""Who is asked for the next proposal, with what, and what becomes of the answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trace_opt.core.context import in_force
from trace_opt.core.neural import trained_with
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Cost, Rollout, Rollouts
from trace_opt.errors import LLMError, ReplyError
from trace_opt.llm.meter import charging
from trace_opt.optim.base import Optimizer, Proposal
from trace_opt.search.bench import LONG_S
from trace_opt.search.candidate import Attempt, Candidate
from trace_opt.search.more import More
from trace_opt.search.splits import rollout_seed

if TYPE_CHECKING:
    from trace_opt.search.admission import Place
    from trace_opt.search.session import Session

Focus = Callable[[int, Optimizer, list[Parameter[Any]], Sequence[Rollout]], list[Parameter[Any]]]
"""Which of an optimizer's parameters to ask it about: of a slot, with the rollouts it will see."""

_MOST_FAILURES = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """A proposal to be asked for.

    Attributes:
        step, slot: Its place.
        number: Its number in the run, from 1.
        base: The candidate that it is to be made from.
        place: Its place among those of its step.
    """

    step: int
    slot: int
    number: int
    base: Candidate
    place: Place | None = None


class Asking:
    """Asks a session's optimizers, which take turns.

    Args:
        session: Whose optimizers, parameters, candidates and books these are.
        minibatch: Training rollouts that a proposal is made from.
        tests: Whether candidates are run on the validation examples.

    Attributes:
        turn_of: Places of the optimizers that own a parameter.
        failures: How many models failed in a row.
        silent: Why an optimizer that proposed nothing did so, the last time, by its class name.
        saved: Where proposals stood that an earlier session had under way, by name.
    """

    def __init__(self, session: Session, minibatch: int, *, tests: bool) -> None:
        self.turn_of = sorted(set(session.owned.values()))
        self.failures = 0
        self.silent: dict[str, str] = {}
        self.saved: Mapping[str, Any] = {}
        self._session = session
        self._bench = session.bench
        self._minibatch = minibatch
        self._tests = tests
        self._train = tuple(session.bench.data.examples[n] for n in session.bench.data.train)

    async def minibatches(self, wanted: Sequence[Asked]) -> None:
        """Run the rollouts that proposals will be made from, all at once.

        Raises:
            BudgetError: the budget does not cover them.
        """
        todo = [(asked.base, self._numbers(asked)) for asked in wanted if _wants_rollouts(self._turns(asked)[0])]
        if todo:
            await self._bench.rollouts(todo, "minibatch")

    async def attempt(self, asked: Asked, focus: Focus | None) -> Attempt | None:
        """One proposal as an attempt: of the first optimizer in turn that has something to propose.

        Raises:
            LLMError: a model refuses for good, or several calls in a row failed.
            BudgetError: the budget does not cover it.
        """
        try:
            for optimizer in self._turns(asked):
                attempt = await self._ask(optimizer, asked, focus)
                if attempt is not None:
                    return attempt
            return None
        finally:
            self._bench.ledger.finish(asked.place)

    def _numbers(self, asked: Asked) -> tuple[int, ...]:
        return self._bench.data.minibatch(self._bench.seed, asked.step, asked.slot, self._minibatch)

    def _turns(self, asked: Asked) -> list[Optimizer]:
        """The optimizers in the order in which they are asked."""
        shift = (asked.step - 1 + asked.slot) % len(self.turn_of)
        return [self._session.optimizers[i] for i in self.turn_of[shift:] + self.turn_of[:shift]]

    async def _ask(self, optimizer: Optimizer, asked: Asked, focus: Focus | None) -> Attempt | None:
        session, bench, base, name = self._session, self._bench, asked.base, type(optimizer).__name__
        place = f"{asked.step}/{asked.slot}"
        seed = rollout_seed(bench.seed, f"proposal/{place}")
        session.tell("proposing", f"step {asked.step}: asking {name}", step=asked.step, optimizer=name)
        account = bench.ledger.account("optimizer", f"proposal {asked.number} by {name}", asked.place)
        items: list[Rollout] = []
        if not getattr(optimizer, "reflects", False):
            await account.turn()  # what it will run, and what it learns by that, is not known beforehand
        if _wants_rollouts(optimizer):
            numbers = self._numbers(asked)
            if any(n not in base.kept for n in numbers):
                await account.turn()
            await bench.rollouts([(base, numbers)], "minibatch")
            items = [base.kept[n] for n in numbers]
        part = f"proposal {place}/{self.turn_of.index(session.optimizers.index(optimizer))}"
        more = More(bench, session.keeper, base.values, account, part, self.saved.get(part), seed, self._test)
        rollouts = Rollouts(items, train=self._train, seed=seed, runner=more)
        mine = [p for p in session.parameters.values() if self._owner(p) is optimizer]
        mine = focus(asked.slot, optimizer, mine, items) if focus is not None else mine
        began = time.monotonic()
        verdict = ""
        try:
            with charging(account), in_force(base.values, seed):
                proposal = await optimizer.propose(mine, rollouts, tuple(session.history))
            self.failures = 0
        except (ReplyError, LLMError) as error:
            proposal, verdict = Proposal(reason=str(error)), self._failure(error)
        finally:
            more.end()
        attempt = self._made(optimizer, asked, proposal, verdict)
        more.forget()
        session.keeper.book(attempt, optimizer, more.accounts, now=time.monotonic() - began >= LONG_S)
        return attempt

    def _test(self) -> tuple[Cost, int]:
        """What testing one proposal takes, by what the start cost: its cost and rollouts."""
        if not self._tests:
            return Cost(), 0
        total = sum((score.cost for score in self._session.start.scores.values()), Cost())
        # of the incumbent only what it was not run on yet
        count = 2 * len(self._bench.order) - len(self._session.incumbent.known(self._bench.order))
        share = count / max(1, len(self._session.start.scores))
        usd = None if total.usd is None else total.usd * share
        calls, tokens_in, tokens_out = (math.ceil(n * share) for n in (total.calls, total.tokens_in, total.tokens_out))
        return Cost(calls, tokens_in, tokens_out, usd), count * self._bench.draws.repeats

    def _owner(self, parameter: Parameter[Any]) -> Optimizer | None:
        place = self._session.owned.get(parameter.name)
        return None if place is None else self._session.optimizers[place]

    def _failure(self, error: ReplyError | LLMError) -> str:
        """The verdict on a proposal that could not be had.

        Raises:
            LLMError: no later one will fare better, or several failed in a row.
        """
        if isinstance(error, LLMError):
            self.failures += 1
            if error.lasting or self.failures >= _MOST_FAILURES:
                raise error
        return f"no usable proposal: {error}"

    def _made(self, optimizer: Optimizer, asked: Asked, proposal: Proposal, verdict: str) -> Attempt | None:
        """A proposal as an attempt; None where it proposes nothing."""
        if not proposal.values and not verdict:
            if proposal.reason:
                self.silent[type(optimizer).__name__] = proposal.reason
            return None
        attempt = Attempt(
            asked.number, asked.step, asked.slot, optimizer, type(optimizer).__name__, asked.base, proposal,
            verdict=verdict,
        )  # fmt: skip
        objection = self._objection(proposal, optimizer)
        if objection:
            attempt.verdict, attempt.proposal = objection, replace(proposal, values={})
        elif attempt.open:
            self._session.put(attempt, {**asked.base.values, **proposal.values})
        return attempt

    def _objection(self, proposal: Proposal, optimizer: Optimizer) -> str:
        """What is wrong with the values proposed; "" where nothing is."""
        for name, value in proposal.values.items():
            parameter = self._session.parameters.get(name)
            if parameter is None or not self._may_write(parameter, optimizer):
                return f"not allowed: {type(optimizer).__name__} does not own a parameter {name!r}"
            try:
                parameter.check(value)
            except ValueError as error:
                return f"not allowed: {error}"
        return ""

    def _may_write(self, parameter: Parameter[Any], optimizer: Optimizer) -> bool:
        """Whether an optimizer owns a parameter, or weights whose training writes that buffer."""
        return any(self._owner(one) is optimizer for one in (parameter, *trained_with(parameter)))


def _wants_rollouts(optimizer: Optimizer) -> bool:
    """Whether an optimizer would read rollouts now; one that only searches says no with `wants_rollouts = False`."""
    return bool(getattr(optimizer, "wants_rollouts", True))
