"""What a budget buys: by every limit, before anything is run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.search.conftest import Line, Listed
from trace_opt.core.rollout import Cost
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
