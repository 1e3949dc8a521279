"""A budget is never exceeded, whatever runs at once, and refusals say what to raise."""

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.rollout import Cost
from trace_opt.errors import BudgetError
from trace_opt.search.budget import Budget, resolve
from trace_opt.search.ledger import Ledger


@pytest.mark.parametrize(
    "limits", [{"calls": 0}, {"calls": 1.5}, {"usd": -1}, {"trials": True}, {"seconds": float("nan")}]
)
def test_a_limit_that_is_none_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match=f"Budget got {next(iter(limits))}="):
        Budget(**limits)


def test_levels_are_multiples_of_the_validation_set_with_the_test_on_top() -> None:
    assert resolve("light", val=300, test=200).rollouts == 10 * 300 + 400
    assert resolve("heavy", val=300, test=0).rollouts == 100 * 300
    assert resolve("light", val=4, test=4).rollouts == 10 * 24 + 8
    with pytest.raises(BudgetError, match="no budget is named 'lihgt'; did you mean 'light'"):
        resolve("lihgt", val=1, test=1)


costs = st.builds(Cost, st.integers(1, 3), st.integers(0, 50), st.integers(0, 50), st.floats(0, 1))


@given(st.lists(st.tuples(costs, st.floats(0, 1), st.booleans()), max_size=40), st.integers(1, 20), st.integers(1, 500))
def test_no_order_of_reserving_and_settling_exceeds_a_budget(
    calls: list[tuple[Cost, float, bool]], most_calls: int, most_tokens: int
) -> None:
    budget = Budget(calls=most_calls, tokens=most_tokens, usd=3.0)
    ledger = Ledger(budget)
    account = ledger.account("workflow", "test")
    flying: list[tuple[Any, Cost]] = []
    for worst, share, settle in calls:
        try:
            token = account.reserve(worst)
        except BudgetError:
            continue
        flying.append((token, Cost(worst.calls, int(worst.tokens_in * share), 0, (worst.usd or 0) * share)))
        if settle:
            account.settle(*flying.pop(0))
        total = ledger.total
        assert total.calls <= most_calls
        assert total.tokens <= most_tokens
        assert (total.usd or 0) <= 3.0 + 1e-9
    for token, actual in flying:
        account.settle(token, actual)
    assert ledger.total == account.cost


def test_sixteen_threads_do_not_exceed_a_budget() -> None:
    ledger = Ledger(Budget(calls=100))
    made: list[int] = []

    def spend() -> None:
        account = ledger.account("workflow", "thread")
        for _ in range(50):
            try:
                token = account.reserve(Cost(2, 0, 0, 0.0))
            except BudgetError:
                return
            account.settle(token, Cost(1, 0, 0, 0.0))
            made.append(1)

    threads = [threading.Thread(target=spend) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == ledger.total.calls <= 100
    assert len(made) >= 100 - 2 * 16


def test_spend_is_split_by_role() -> None:
    ledger = Ledger(Budget())
    account = ledger.account("workflow", "rollout")
    account.settle(account.reserve(Cost(1, 5, 5, 0.1)), Cost(1, 4, 1, 0.05))
    account.role = "guide"
    account.settle(account.reserve(Cost(1, 5, 5, 0.1)), Cost(1, 3, 1, 0.01))
    account.settle(None, Cost(1, 7, 0, 0.0))
    assert ledger.spent == {"workflow": Cost(1, 4, 1, 0.05), "guide": Cost(2, 10, 1, 0.01)}


def test_a_call_of_unknown_price_is_refused_under_a_limit_in_dollars() -> None:
    account = Ledger(Budget(usd=1.0)).account("workflow", "rollout")
    with pytest.raises(BudgetError, match="price is unknown"):
        account.reserve(Cost(1, 1, 1, None))
    with pytest.raises(BudgetError, match="without its price"):
        account.settle(None, Cost(1, 1, 1, None))
    free = Ledger(Budget(calls=1)).account("workflow", "rollout")
    free.settle(free.reserve(Cost(1, 1, 1, None)), Cost(1, 1, 1, None))
    assert free.cost.usd is None


def test_what_is_held_back_is_for_the_test_alone() -> None:
    ledger = Ledger(Budget(calls=10, rollouts=10))
    ledger.hold(Cost(4, 0, 0, 0.0), rollouts=4)
    account = ledger.account("workflow", "rollout")
    for _ in range(6):
        account.settle(account.reserve(Cost(1)), Cost(1))
        ledger.take_rollouts(1)
    with pytest.raises(BudgetError, match="does not cover what comes next: 10 calls spent .* raise calls"):
        account.reserve(Cost(1))
    with pytest.raises(BudgetError, match="6 rollouts spent, 1 more asked for; raise rollouts"):
        ledger.take_rollouts(1)
    ledger.hold()
    account.reserve(Cost(4))
    ledger.take_rollouts(4)


def test_rollouts_are_paid_all_or_none_and_can_be_given_back() -> None:
    ledger = Ledger(Budget(rollouts=5))
    with pytest.raises(BudgetError):
        ledger.take_rollouts(6)
    ledger.take_rollouts(5)
    ledger.give_rollouts(2)
    ledger.take_rollouts(2)


def test_time_that_is_up_stops_dispatch() -> None:
    ledger = Ledger(Budget(seconds=10), seconds=11)
    with pytest.raises(BudgetError, match=r"is spent: \d\d\.\d seconds; raise seconds"):
        ledger.take_rollouts(1)
    with pytest.raises(BudgetError):
        ledger.account("guide", "x").reserve(Cost(1))


def test_a_journal_that_fails_leaves_nothing_reserved() -> None:
    class Broken:
        def launch(self, token: int, role: str, what: str, worst: Cost) -> None:
            raise OSError("disk full")

    ledger = Ledger(Budget(calls=1), journal=Broken())
    for _ in range(3):
        with pytest.raises(OSError, match="disk full"):
            ledger.account("workflow", "x").reserve(Cost(1))
    assert ledger.lose() == {}


def test_calls_that_landed_nowhere_are_booked_as_lost() -> None:
    ledger = Ledger(Budget())
    kept, gone = ledger.account("workflow", "kept"), ledger.account("optimizer", "gone")
    kept.settle(kept.reserve(Cost(1, 9)), Cost(1, 5))
    gone.settle(gone.reserve(Cost(1, 9)), Cost(1, 7))
    gone.reserve(Cost(1, 3))
    kept.reserve(Cost(1, 4))  # outlives what it was sent for
    ledger.land(kept.take()[1])
    assert list(ledger.lose().values()) == [Cost(1, 7), Cost(1, 3), Cost(1, 4)]
    assert ledger.spent["lost"].calls == 3
    assert ledger.spent["workflow"] == Cost(1, 5)
