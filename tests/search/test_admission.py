"""Whose turn it is to spend: which of several things run does not depend on how many run at once, or on who is first."""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Cost
from trace_opt.core.tracer import trace
from trace_opt.errors import BudgetError
from trace_opt.llm.meter import Later, patiently
from trace_opt.optim.optoprime import OptoPrime
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.executors import LocalExecutor
from trace_opt.search.greedy import Greedy
from trace_opt.search.ledger import Ledger
from trace_opt.search.pareto import Pareto
from trace_opt.testing import ScriptedLLM

Item = tuple[int, int]
"""The worst case of a call in tokens, and what it comes to."""


def spent_by(items: Sequence[Item], calls: int, budget: Budget, concurrency: int, order: int) -> tuple[list[bool], int]:
    """Which of some items came through that make so many calls each, and what all came to; `order` draws who is first."""
    ledger = Ledger(budget)
    chance = random.Random(order)
    through = [False] * len(items)

    async def item(number: int) -> None:
        worst, actual = items[number]
        account = ledger.account("workflow", f"item {number}", places[number])
        try:
            for _ in range(calls):

                async def call() -> None:
                    flight = account.reserve(Cost(1, worst, 0, 0.0))
                    for _ in range(chance.randrange(4)):
                        await asyncio.sleep(0)
                    account.settle(flight, Cost(1, actual, 0, 0.0))

                await patiently(call)
            through[number] = True
        finally:
            ledger.finish(places[number])

    first, *places = ledger.places("rollout", len(items) + 1)

    async def all_of_them() -> None:
        warm = ledger.account("workflow", "one that is run alone", first)  # as the start's first rollout is
        for _ in range(calls if budget.calls is None or budget.calls >= calls else 0):
            warm.settle(warm.reserve(Cost(1)), Cost())
        ledger.finish(first)
        await LocalExecutor(concurrency).run(range(len(items)), item)

    with contextlib.suppress(BudgetError):
        asyncio.run(all_of_them())
    return through, ledger.total.tokens


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60).flatmap(
        lambda worst: st.lists(st.integers(0, worst).map(lambda actual: (worst, actual)), min_size=1, max_size=12)
    ),
    st.integers(1, 400), st.integers(1, 16), st.integers(0, 10**6),
)  # fmt: skip
def test_the_same_items_are_admitted_in_every_order_of_completion_and_at_every_concurrency(
    items: list[Item], tokens: int, concurrency: int, order: int
) -> None:
    """Against one after the other: the settled cost of all before it and its own worst case decide."""
    expected, total = [], 0
    for worst, actual in items:
        fits = all(expected) and total + worst <= tokens
        expected.append(fits)
        total += actual if fits else 0
    assert spent_by(items, 1, Budget(tokens=tokens), concurrency, order) == (expected, total)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(2, 16), st.integers(0, 10**6), st.integers(1, 3))
def test_items_of_several_calls_are_admitted_as_one_after_the_other(
    most: int, concurrency: int, order: int, calls: int
) -> None:
    """A limit on calls, met in the middle of an item, is met in the same one whatever runs beside it."""
    items = [(7, 3)] * 12
    alone = spent_by(items, calls, Budget(calls=most), 1, 0)
    assert spent_by(items, calls, Budget(calls=most), concurrency, order) == alone
    assert sum(alone[0]) == min(12, most // calls)


def test_what_fits_beside_all_worst_cases_starts_at_once_and_else_waits() -> None:
    """Room for both is used; without it the second is told to wait, and asks again once the first is settled."""
    ledger = Ledger(Budget(tokens=20))
    warm, first, second = ledger.places("rollout", 3)
    ledger.finish(warm)
    one, two = ledger.account("workflow", "one", first), ledger.account("workflow", "two", second)
    small = two.reserve(Cost(1, 5))
    two.settle(small, Cost(1, 1))
    flight = one.reserve(Cost(1, 12))
    with pytest.raises(Later) as told:
        two.reserve(Cost(1, 12))
    one.settle(flight, Cost(1, 2))
    ledger.finish(first)
    asyncio.run(asyncio.wait_for(told.value.over(), 20))
    two.reserve(Cost(1, 12))


def test_one_that_is_refused_is_the_last_of_its_line() -> None:
    """A smaller one behind it does not slip through, for alone it would not have been asked for."""
    ledger = Ledger(Budget(tokens=10))
    big, small = (ledger.account("workflow", "x", place) for place in ledger.places("rollout", 2))
    with pytest.raises(BudgetError, match="does not cover what comes next"):
        big.reserve(Cost(1, 11))
    with pytest.raises(BudgetError, match="did not cover what comes before it"):
        small.reserve(Cost(1, 1))


def test_nothing_is_sent_once_the_run_is_over() -> None:
    """Threads cannot be stopped, but what they ask for is refused."""
    ledger = Ledger(Budget())
    ledger.end()
    with pytest.raises(BudgetError, match="the run is over"):
        ledger.account("workflow", "x").reserve(Cost(1))


def searched(search: Any, budget: Budget, concurrency: int, *, sync: bool = False, seed: int = 5) -> Any:
    """What a run came to whose answers take their time in an order of chance."""
    chance = random.Random(f"{concurrency}/{seed}")

    async def answers(messages: Sequence[Any]) -> str:
        await asyncio.sleep(chance.random() * 0.002)
        return "abc"[sum(map(ord, str(messages[-1]["content"]))) % 3] * (1 + len(str(messages[-1]["content"])) % 5)

    async def proposes(messages: Sequence[Any]) -> str:
        await asyncio.sleep(chance.random() * 0.002)
        return f'{{"reasoning": "try", "values": {{"style": "style {len(str(messages[-1]["content"])) % 97}"}}}}'

    llm = ScriptedLLM(answers)
    style = Parameter("plain", name="style")

    @trace
    async def ask(question: str) -> str:
        first = await llm.areply(f"{style.value} {question}", max_tokens=20)
        return first.text + (await llm.areply(f"{style.value} {first.text}", max_tokens=20)).text

    async def aworkflow(question: str) -> str:
        return await ask(question)

    @trace
    def told(question: str) -> str:
        return llm(f"{style.value} {question}", max_tokens=20)

    def workflow(question: str) -> str:
        return told(question)

    def guide(output: str, example: dict[str, str]) -> Feedback:
        return Feedback(len(output) * sum(map(ord, example["question"])) % 11 / 10, "so it is")

    try:
        run = optimize(
            workflow if sync else aworkflow, [{"question": f"q{n}" * (1 + n % 4)} for n in range(20)], guide,
            parameters=[style], optimizers=[OptoPrime(ScriptedLLM(proposes), max_tokens=50)], search=search, store=None,
            budget=budget, concurrency=concurrency, seed=seed,
        )  # fmt: skip
    except BudgetError as error:
        return str(error)
    trials = [(t.candidate, dict(t.changed), t.before, t.after, t.n, t.accepted, t.verdict) for t in run.history]
    report = run.report()
    return trials, run.best, run.spent, report.best, report.start, report.difference


@pytest.mark.parametrize("search", [Greedy(minibatch=3), Greedy(width=3, minibatch=3), Pareto(parents=2, minibatch=2)])
@pytest.mark.parametrize("budget", [Budget(calls=130), Budget(tokens=14_000)], ids=str)
def test_a_run_that_its_budget_ends_is_the_same_at_every_concurrency(search: Any, budget: Budget) -> None:
    """Candidates, scores, verdicts and what was spent: up to the last trial that fits."""
    found = [searched(search, budget, concurrency) for concurrency in (1, 4, 16)]
    assert len(found[0][0]) >= 2
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_a_sync_run_that_its_budget_ends_is_the_same_at_every_concurrency() -> None:
    """Threads wait for their turn as tasks do."""
    found = [searched(Greedy(width=2, minibatch=3), Budget(calls=90), n, sync=True) for n in (1, 4, 16)]
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_seconds_stop_dispatch_and_cancel_calls_that_are_on_their_way() -> None:
    """A call that would take a minute ends with the budget's time, and no further one is sent."""
    sent: list[str] = []
    ended: list[str] = []

    async def answers(messages: Sequence[Any]) -> str:
        sent.append(str(messages))
        if len(sent) > 12:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append(str(messages))
                raise
        return "a"

    llm = ScriptedLLM(answers)
    style = Parameter("plain", name="style")

    @trace
    async def ask(question: str) -> str:
        return (await llm.areply(f"{style.value} {question}")).text

    async def workflow(question: str) -> str:
        return await ask(question)

    began = time.monotonic()
    with pytest.raises(BudgetError, match="seconds"):
        optimize(
            workflow, [{"question": f"q{n}"} for n in range(40)], lambda output, example: 0.5, parameters=[style],
            optimizers=[OptoPrime(llm)], budget=Budget(seconds=2.5, trials=5), store=None, concurrency=4,
        )  # fmt: skip
    assert time.monotonic() - began < 20
    assert len(ended) == 4
    assert len(sent) == 12 + 4
