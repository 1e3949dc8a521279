"""One run of a workflow on one example, and what it cost."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Cost, Rollout, Rollouts
from trace_opt.core.tracer import record, trace

_costs = st.builds(
    Cost, st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.one_of(st.none(), st.integers(0, 9))
)


@given(_costs, _costs, _costs)
def test_costs_add_up_in_any_order(a: Cost, b: Cost, c: Cost) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert (a + b).tokens == a.tokens + b.tokens
    assert ((a + b).usd is None) is (a.usd is None or b.usd is None)


def test_a_rollout_gives_the_slices_of_its_graph() -> None:
    p = Parameter("a", name="p")
    with record() as graph:
        out = trace(lambda: p.value)()
    made = Rollout(feedback=Feedback(0.5), graph=graph, node=graph.output(out))
    assert (list(made.slices), made.score) == (["p"], 0.5)
    assert Rollout(feedback=Feedback(0.5)).slices == {}


def test_a_failed_rollout_has_no_score() -> None:
    assert Rollout(feedback=Feedback(0.5), error="ValueError: no").score is None


class Echo:
    """A runner that scores a rollout by the value it is given."""

    batches = None

    def __init__(self) -> None:
        self.saved = {"step": 3}
        self.kept: list[Any] = []

    async def run(self, points: Any, examples: Any, *, grad: bool, repeat: int, memos: Any) -> list[list[Rollout]]:
        return [[Rollout(feedback=Feedback(point["p"] + example)) for example in examples] for point in points]

    def affordable(self) -> int | None:
        return 5

    def share(self, done: float) -> float | None:
        return 0.25 + done

    async def checkpoint(self, state: Any) -> None:
        self.kept.append(state)

    def epoch(self, number: int) -> Any:
        return [number, number + 1]


def test_rollouts_are_a_sequence_that_can_ask_for_more() -> None:
    one = Rollout(feedback=Feedback(1.0))
    some = Rollouts([one], train=[1, 2], seed=3, runner=Echo())
    assert (list(some), len(some), some[0], some[:1], some.train, some.seed) == ([one], 1, one, (one,), [1, 2], 3)
    assert [rollout.score for rollout in asyncio.run(some.run({"p": 10.0}, [1, 2]))] == [11.0, 12.0]
    assert [len(found) for found in asyncio.run(some.run_all([{"p": 0.0}, {"p": 1.0}], [1]))] == [1, 1]


def test_rollouts_of_a_search_know_the_budget_the_epochs_and_where_they_stood() -> None:
    runner = Echo()
    some = Rollouts(runner=runner)
    asyncio.run(some.checkpoint({"step": 4}))
    assert (some.by_hand, some.share(0.5), some.saved, list(some.epoch(7))) == (False, 0.75, {"step": 3}, [7, 8])
    assert runner.kept == [{"step": 4}]


def test_rollouts_collected_by_hand_cannot_run_more() -> None:
    with pytest.raises(NotImplementedError, match="by hand"):
        asyncio.run(Rollouts().run({}, [1]))
    assert (Rollouts().by_hand, Rollouts().share(), Rollouts().saved) == (True, None, None)
