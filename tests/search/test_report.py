"""Reports: what they claim, how they print, that they survive JSON."""

import json

from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.rollout import Cost
from trace_opt.search.report import Difference, Report, Summary, spend_json

scores = st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=12)


@given(scores, scores, st.booleans())
def test_a_report_survives_json(start: list[float | None], best: list[float | None], held_out: bool) -> None:
    n = min(len(start), len(best))
    difference = Difference.of(start[:n], best[:n])
    report = Report(
        examples="test", held_out=held_out, best=Summary.of(best[:n], -5.0, means={"x": 1.0}), start=Summary.of(start[:n], -5.0),
        difference=difference, claim=difference.claim, trials=3, accepted=1, changed={"p": (1, [2])},
        spend=spend_json({"workflow": Cost(1, 2, 3, None)}), seconds=1.5, notes=("one", "two"),
    )  # fmt: skip
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert str(report)


@given(scores)
def test_an_interval_holds_its_mean(given_scores: list[float | None]) -> None:
    summary = Summary.of(given_scores, -5.0)
    assert summary.low - 1e-9 <= summary.mean <= summary.high + 1e-9
    assert summary.failed == sum(s is None for s in given_scores)


def test_a_clear_gain_is_claimed_and_a_doubtful_one_is_not() -> None:
    start, best = [0.0] * 40, [1.0] * 30 + [0.0] * 10
    assert Difference.of(start, best).claim == "better"
    assert Difference.of(best, start).claim == "worse"
    assert Difference.of(start[:4], best[:4]).claim == "no evidence"
    assert Difference.of([0.0, 1.0] * 20, [1.0, 0.0] * 20).claim == "no evidence"


def test_scores_of_several_names_and_unknown_prices_are_printed() -> None:
    report = Report(
        examples="given", held_out=False, best=Summary.of([1.0, 0.0], 0.0, means={"right": 0.5, "short": 0.25}),
        spend=spend_json({"workflow": Cost(3, 20, 5, None)}),
    )  # fmt: skip
    text = str(report)
    assert "short: 0.250" in text
    assert "3 calls, 20 tokens in, 5 out, price unknown" in text
    assert "claimed" not in text


def test_a_report_of_a_newer_version_is_read_as_far_as_it_is_known() -> None:
    data = Report(examples="val", held_out=False, best=Summary.of([1.0], 0.0)).to_json()
    assert Report.from_json({**data, "unknown": 1}).examples == "val"


def test_a_report_on_values_that_no_rollout_was_left_for_says_so() -> None:
    """A budget can end, by faults that cost calls, before start and best have an example in common."""
    nothing = Summary.of([], 0.0)
    report = Report(examples="train", held_out=False, best=nothing, start=nothing, notes=("the budget was spent",))
    assert str(report).count("not run") == 2
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
