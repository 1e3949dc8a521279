"""What a budget buys: by every limit, before anything is run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.search.conftest import Line, Listed
from trace_opt.core.rollout import Cost
from trace_opt.optim.base import rollouts_of
from trace_opt.optim.numeric.gradient import Gradient
from trace_opt.optim.numeric.growth import BatchGrowth
from trace_opt.optim.numeric.several import ParetoDA
from trace_opt.optim.numeric.zeroth import ZerothOrder
from trace_opt.search.beam import Beam
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.evaluate import plan
from trace_opt.search.forecast import Bought, Proposing, bought
from trace_opt.search.greedy import Greedy
from trace_opt.search.pareto import Pareto

NEEDED = {"to score the start": 10, "to propose from": 4, "to try a proposal": 4, "for the test": 20}
PER = Proposing(rollouts=14, most_rollouts=24, asked=1.0, call=Cost(1, 100, 50, 0.5), race=0)
ONE = Cost(2, 30, 10, 0.1)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"rollouts": 30 + 14 * 5 + 13}, Bought(about=5, least=3, limit="rollouts", unknown=())),
        ({"calls": 60 + 29 * 4}, Bought(about=4, least=2, limit="calls", unknown=())),
        ({"tokens": 1200 + 710 * 3}, Bought(about=3, least=1, limit="tokens", unknown=())),
        ({"usd": 3.0 + 1.9 * 7}, Bought(about=7, least=3, limit="usd", unknown=())),
        ({"trials": 2, "rollouts": 1000}, Bought(about=2, least=2, limit="trials", unknown=())),
        ({"rollouts": 10}, Bought(about=0, least=0, limit="rollouts", unknown=())),
        ({"seconds": 60.0}, Bought(about=None, least=None, limit="", unknown=("seconds",))),
        ({}, Bought(about=None, least=None, limit="", unknown=())),
    ],
)
def test_the_limit_that_ends_first_decides(budget: Any, expected: Bought) -> None:
    """Start and test are paid for first; at worst a proposal is run on everything and asked for twice."""
    assert bought(budget, NEEDED, PER, ONE, None) == expected


@given(
    st.dictionaries(st.sampled_from(["rollouts", "calls", "tokens", "usd", "trials"]), st.integers(1, 5000)),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_more_of_a_limit_never_buys_less(budget: dict[str, int], rollouts: int, more: int) -> None:
    """And the worst case never buys more than the ordinary one."""
    per = Proposing(rollouts=rollouts, most_rollouts=rollouts + more, asked=0.5, call=Cost(1, 9, 9, 0.01), race=0)
    found = bought(budget, NEEDED, per, ONE, None)
    richer = bought({name: 2 * limit for name, limit in budget.items()}, NEEDED, per, ONE, None)
    if found.about is not None:
        assert found.least is not None
        assert richer.about is not None
        assert found.least <= found.about <= richer.about


@pytest.mark.parametrize("search", [Greedy(), Pareto(parents=1), Beam(beam=1)], ids=["greedy", "pareto", "beam"])
def test_no_run_is_judged_on_more_than_was_forecast(search: Any) -> None:
    """A budget that buys some proposals at worst tries at least as many."""
    line, values = Line(), [{"a": value} for value in range(1, 40)]
    options: dict[str, Any] = {
        "optimizers": [Listed(values)],
        "budget": Budget(rollouts=200),
        "search": search,
        "store": None,
    }
    forecast = plan(line.workflow, line.examples(60), line.guide, **options)
    assert forecast.proposal is not None
    buys = bought(forecast.budget, forecast.rollouts, forecast.proposal, Cost(), None)
    run = optimize(line.workflow, line.examples(60), line.guide, **options)
    judged = [trial for trial in run.history if "before it was judged" not in trial.verdict]
    assert buys.least is not None
    assert len(judged) >= buys.least > 0


class Training(Listed):
    """Says that it trains on so many rollouts."""

    def __init__(self, values: Any, most: int | None) -> None:
        super().__init__(values)
        self.most = most

    def rollouts_at_most(self, examples: int, minibatch: int, *, batches: int | None = None) -> int | None:
        assert (examples, minibatch, batches) == (12, 8, None)  # the others are validation examples
        return self.most


def test_what_optimizers_train_on_counts() -> None:
    """Of one that says how much it is part of each proposal; one that does not know is named."""
    line, values = Line(), [{"a": 1}]

    def forecast(most: int | None) -> Any:
        options: Any = {"optimizers": [Training(values, most)], "budget": Budget(rollouts=400), "store": None}
        return plan(line.workflow, line.examples(20), line.guide, **options)

    none, some, unknown = (forecast(most).proposal for most in (0, 60, None))
    assert (some.training, some.trained) == (60, ())
    assert (some.rollouts, some.most_rollouts) == (none.rollouts + 60, none.most_rollouts + 60)
    assert (unknown.training, unknown.trained, unknown.rollouts) == (0, ("Training",), none.rollouts)
    buys = bought({"rollouts": 400}, forecast(60).rollouts, some, Cost(), None)
    assert buys.about is not None
    assert 0 < buys.about < 7


@given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 11))
def test_minibatches_are_counted_over_epochs(count: int, size: int, examples: int, start: int) -> None:
    """From wherever in an epoch they begin, they take no more than that, and from its start just as many."""
    epoch = [min(size, examples - at) for at in range(0, examples, size)]
    taken = [sum(epoch[i % len(epoch)] for i in range(at, at + count)) for at in (0, start)]
    assert taken[0] == rollouts_of(count, size, examples) >= taken[1]


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 20), ({"steps": 3}, 20), ({"steps": 4, "batch": 5}, 20), ({"steps": 7, "batch": 3}, 20),
        ({"steps": 9, "total_steps": 2}, 16), ({"batch": BatchGrowth(start=2, most=4)}, None),
        ({"estimator": "loo"}, None), ({"combine": ParetoDA()}, None),
    ],
)  # fmt: skip
def test_a_gradient_says_what_a_phase_takes(options: Any, most: int | None) -> None:
    """Its minibatches, where their number does not depend on what it finds; of a DataLoader one batch a step."""
    assert Gradient(**options).rollouts_at_most(20, 8) == most
    if most is not None:
        steps = min(options.get("steps", 6), options.get("total_steps", 9))
        assert Gradient(**{**options, "batch": None}).rollouts_at_most(8, 8, batches=6) == steps


def test_queries_run_on_the_minibatch() -> None:
    assert ZerothOrder(queries=30).rollouts_at_most(20, 8) == 240
    assert ZerothOrder().rollouts_at_most(20, 8) is None
