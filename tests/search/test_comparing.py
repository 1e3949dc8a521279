"""How a search compares candidates: in blocks, on fresh orders, by the test that is declared; what it says of that."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.search.conftest import Line, Listed
from trace_opt.core.context import rollout
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.errors import BudgetError, FeedbackError, ProblemError
from trace_opt.search.budget import Budget
from trace_opt.search.candidate import Candidate, Score, merged
from trace_opt.search.draws import Draws
from trace_opt.search.engine import optimize
from trace_opt.search.evaluate import plan
from trace_opt.search.gate import Gate, Measure
from trace_opt.search.greedy import Greedy
from trace_opt.search.measures import declared, error_rates, power_note
from trace_opt.search.report import Difference
from trace_opt.search.splits import split


def searched(workflow: Any, values: Any, guide: Any, *, val: int = 40, **options: Any) -> Any:
    """A search over listed values, with 4 training, some validation and no test examples."""
    given_: dict[str, Any] = {
        "store": None, "budget": Budget(trials=len(values)), "optimizers": [Listed(values)],
        "val": [100 + n for n in range(val)], "search": Greedy(minibatch=1), **options,
    }  # fmt: skip
    return optimize(workflow, [0, 1, 2, 3], guide, **given_)


class Threshold:
    """Right on the examples whose last digit is below a level; counts what it ran."""

    def __init__(self, start: int = 0) -> None:
        self.level = Parameter(start, name="level")
        self.runs: list[tuple[int, int]] = []

    def __call__(self, x: int) -> bool:
        self.runs.append((self.level.value, x))
        return x % 10 < self.level.value


def right(output: bool, _: Any) -> float:
    return float(output)


# -- which test --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "score_range", "kind"),
    [
        ([0.0, 1.0, None], None, "sign"),
        ([0.0, 0.0], None, "sign"),
        ([-1.0, 1.0], (-1.0, 1.0), "sign"),
        ([0.0, 1.0], (-1.0, 1.0), "betting"),
        ([0.0, 0.5], (0.0, 1.0), "betting"),
        ([0.0, 0.5], None, "flips"),
        ([None, None], None, "flips"),
    ],
)
def test_the_test_follows_from_the_starts_scores_and_the_declared_range(
    scores: list[float | None], score_range: Any, kind: str
) -> None:
    [measure] = declared([Score(score) for score in scores], score_range=score_range)
    assert Gate.search().kind_of(measure) == kind


def test_a_run_says_which_test_it_uses_and_what_its_validation_set_can_show_before_any_candidate_is_run() -> None:
    events: list[Any] = []
    searched(Threshold(), [{"level": 9}], right, on_event=events.append)
    texts = [event.text for event in events]
    small = next(i for i, text in enumerate(texts) if text.startswith("40 validation examples show a gain of 0."))
    test = next(i for i, text in enumerate(texts) if "by an exact sign test" in text)
    assert "below 100 only large gains show" in texts[small]
    assert small < next(i for i, event in enumerate(events) if event.kind == "rollouts")
    assert test < next(i for i, event in enumerate(events) if event.kind == "proposing")


def test_a_dry_run_says_the_same() -> None:
    planned = plan(Threshold(), [0, 1], right, val=list(range(30)), optimizers=[Listed([])], store=None)
    assert planned.smallest_gain == pytest.approx(0.34, abs=0.02)
    assert planned.notes[-1].startswith("30 validation examples show a gain of 0.3")
    assert planned.to_json()["smallest_gain"] == planned.smallest_gain
    free = plan(Threshold(), [0, 1], right, optimizers=[Listed([])], store=None, search=Greedy(gate=None))
    assert free.smallest_gain is None


def test_few_examples_are_warned_of_and_gains_are_in_units_of_the_range() -> None:
    assert "below 100" not in power_note(100)
    assert "a gain of 0.2 or more" in power_note(100)
    assert "a gain of 2 or more" in power_note(100, (0.0, 10.0))
    assert "show no gain at all" in power_note(3)


# -- blocks and partial scores -----------------------------------------------------------------------------------------


def test_a_candidate_is_dropped_or_built_on_after_a_few_examples_and_not_completed() -> None:
    workflow = Threshold(5)
    run = searched(workflow, [{"level": 0}, {"level": 10}, {"level": 1}], right)
    bad, good, worst = run.history
    assert (bad.accepted, good.accepted, worst.accepted) == (False, True, False)
    assert bad.n < 40
    assert good.n < 40
    assert bad.verdict.startswith(f"dropped: little hope left after {bad.n} examples, mean difference -")
    assert good.verdict.startswith(f"accepted: better than the incumbent after {good.n} examples, mean difference +")
    tried = [x for level, x in workflow.runs if level == 0 and x >= 100]
    assert len(tried) == bad.n
    assert run.best == {"level": 10}


def test_every_trial_has_an_order_of_its_own_and_what_is_known_of_the_incumbent_is_not_run_again() -> None:
    workflow = Threshold(10)
    run = searched(workflow, [{"level": 0}, {"level": 1}, {"level": 2}], right, concurrency=1)
    looked = [[x for level, x in workflow.runs if level == n and x >= 100] for n in range(3)]
    assert len({tuple(sorted(xs)) for xs in looked}) == 3
    assert [trial.n for trial in run.history] == [len(xs) for xs in looked]
    start = [x for level, x in workflow.runs if level == 10 and x >= 100]
    assert len(start) == len(set(start)) == 40


def test_an_accepted_candidate_gathers_scores_in_the_comparisons_that_it_stands() -> None:
    workflow = Threshold(5)
    run = searched(workflow, [{"level": 10}, *({"level": 4 - i} for i in range(4))], right, target=2.0)
    of_best = [x for level, x in workflow.runs if level == 10 and x >= 100]
    assert run.history[0].accepted
    assert run.history[0].n < len(of_best) <= 40
    assert len(of_best) == len(set(of_best))


@pytest.mark.parametrize("width", [1, 3])
def test_blocks_do_not_depend_on_concurrency(width: int) -> None:
    values = [{"level": level} for level in (4, 7, 5, 6, 9, 2, 8, 3, 10)]

    def told(concurrency: int) -> Any:
        search = Greedy(minibatch=1, width=width)
        run = searched(Threshold(), values, right, concurrency=concurrency, search=search)
        return [(t.before, t.after, t.n, t.verdict) for t in run.history], run.best

    assert told(1) == told(2) == told(16)


def test_the_second_that_passes_in_one_step_has_to_pass_against_the_first() -> None:
    run = searched(Threshold(2), [{"level": 9}, {"level": 5}], right, search=Greedy(minibatch=1, width=2))
    first, second = run.history
    assert first.accepted
    assert (second.accepted, second.before > second.after) == (False, True)
    assert run.best == {"level": 9}


def test_a_target_is_reached_on_all_validation_examples_only() -> None:
    workflow = Threshold(5)
    lucky = searched(workflow, [{"level": 9}, {"level": 10}], right, target=0.95)
    of_lucky = {x for level, x in workflow.runs if level == 9 and x >= 100}
    assert lucky.ended == "the target of 0.95 is reached"
    assert lucky.best == {"level": 10}
    assert len({x for level, x in workflow.runs if level == 10 and x >= 100}) == 40
    assert len(of_lucky) <= 40


def test_a_failed_rollout_loses_its_pair() -> None:
    p = Parameter(0, name="p")

    def workflow(x: int) -> float:
        if p.value == 1 and x % 2:
            raise ValueError("no")
        return 0.5 + 0.25 * (p.value == 1)

    run = searched(workflow, [{"p": 1}], lambda out, _: out)
    assert not run.history[0].accepted
    assert run.best == {"p": 0}


def test_a_budget_that_ends_in_a_comparison_leaves_the_trial_unjudged() -> None:
    with pytest.raises(BudgetError, match="before the first proposal was judged"):
        searched(Threshold(5), [{"level": 10}] * 2, right, budget=Budget(rollouts=40 + 1 + 4))
    run = searched(Threshold(5), [{"level": 0}, {"level": 10}], right, budget=Budget(rollouts=40 + 1 + 4 + 1 + 4))
    assert run.history[0].verdict.startswith("dropped")
    assert run.history[1].verdict == "the budget was spent before it was judged"
    assert run.best == {"level": 5}


def test_a_race_is_won_on_all_examples_and_the_winner_has_to_pass_the_gate() -> None:
    mode = Parameter(0, name="mode", choices=(0, 1, 2, 3))
    run = searched(
        lambda x: x % 4 < mode.value, [1, 1, 1], right, race=["mode"], optimizers=[Listed([])]
    )  # fmt: skip
    assert run.best == {"mode": 3}
    assert "won the race of 4, better than the incumbent after 40 examples" in run.history[-1].verdict
    with pytest.raises(ProblemError, match="needs a gate"):
        searched(lambda x: mode.value, [1], right, race=["mode"], search=Greedy(gate=None))


# -- several scores ----------------------------------------------------------------------------------------------------


def two(output: Mapping[str, float], _: Any) -> Feedback:
    return Feedback(dict(output))


def trading(p: Parameter[int]) -> Any:
    """Better in one score and worse in the other where p is 1."""
    return lambda x: {"right": float(p.value == 1 or x % 2), "short": 0.9 - 0.6 * (p.value == 1)}


def test_a_candidate_that_gets_worse_in_another_score_is_dropped_unless_its_margin_allows_it() -> None:
    def run(**options: Any) -> Any:
        p = Parameter(0, name="p")
        return searched(trading(p), [{"p": 1}], two, **options)

    strict = Greedy(minibatch=1, gate=Gate(alpha=0.05, gamma=0.0, block=4))
    dropped = run(search=strict)
    assert dropped.best == {"p": 0}
    assert "worse than the incumbent in 'short'" in dropped.history[0].verdict
    assert run(search=strict, margins={"short": 0.7}).best == {"p": 1}
    assert run(search=strict, margins={"short": float("inf")}).best == {"p": 1}
    with pytest.raises(ProblemError, match="margins name 'shrt', which is no score"):
        run(margins={"shrt": 0.1})
    with pytest.raises(ProblemError, match=r"margins gives 'short' -1; give a number of 0 or more"):
        run(margins={"short": -1})


def test_nothing_is_claimed_of_a_best_that_is_worse_in_a_score_that_was_not_to_get_worse() -> None:
    """The claim looks at every score that the search guards, on the held-out examples."""
    p = Parameter(0, name="p")

    def workflow(x: int) -> dict[str, float]:
        return {"right": float(p.value == 1 or x % 2), "short": 0.9 - 0.6 * (p.value == 1 and x >= 200)}

    run = searched(workflow, [{"p": 1}], two, test=list(range(200, 260)), margins={"short": 0.5})
    assert run.best == {"p": 1}
    report = run.report()
    assert (report.claim, report.difference.claim) == ("none", "better")
    assert "'short' is worse than the start's by more than its margin, so nothing is claimed" in str(report)
    assert "short: 0.900 -> 0.300" in str(report)


def test_failed_rollouts_never_count_as_good_ones() -> None:
    """Where all others score 1, the lowest score seen is no score for a failure."""
    p = Parameter("bad", name="p")

    def workflow(x: int) -> str:
        if p.value == "bad":
            raise ValueError("no")
        return "fine"

    run = searched(workflow, [{"p": "fine"}], lambda _, __: 1.0, target=0.9)
    report = run.report()
    assert (report.start.mean, report.best.mean, report.difference.mean) == (0.0, 1.0, 1.0)


def test_weights_decide_by_the_sum_everywhere() -> None:
    p = Parameter(0, name="p")
    whole: Any = {"search": Greedy(minibatch=1, gate=Gate(alpha=0.05, gamma=0.0))}
    run = searched(trading(p), [{"p": 1}], two, weights={"right": 1.0, "short": 2.0}, **whole)
    assert run.best == {"p": 0}
    run = searched(trading(p), [{"p": 1}], two, weights={"right": 2.0, "short": 1.0}, **whole)
    assert run.best == {"p": 1}
    report = run.report()
    assert report.best.mean == pytest.approx(2.3)
    assert report.best.means == pytest.approx({"weighted": 2.3, "right": 1.0, "short": 0.3})
    assert "right: 0.500 -> 1.000" in str(report)
    with pytest.raises(FeedbackError, match="weights name the score 'rigth'"):
        searched(trading(p), [{"p": 1}], two, weights={"rigth": 1.0})


# -- repeats -----------------------------------------------------------------------------------------------------------


def noisy(p: Parameter[int], seeds: list[tuple[int, int, int]]) -> Any:
    def workflow(x: int) -> float:
        drawn = rollout()
        seeds.append((p.value, x, drawn.seed or 0))
        return float(drawn.rng.random() < 0.2 + 0.6 * p.value)

    return workflow


def test_repeats_average_draws_and_an_accepted_candidate_is_drawn_anew() -> None:
    p, seeds = Parameter(0, name="p"), list[tuple[int, int, int]]()
    run = searched(noisy(p, seeds), [{"p": 1}, {"p": 2}], lambda out, _: out, val=20, repeats=3, concurrency=1)
    assert run.history[0].accepted
    start = [(x, seed) for value, x, seed in seeds if value == 0 and x >= 100]
    first = [(x, seed) for value, x, seed in seeds if value == 1 and x >= 100]
    assert len(start) == len(set(start)) == 60
    assert len(first) == len(set(first))
    chosen_by = set(first[: 3 * run.history[0].n])
    assert chosen_by <= set(start)  # paired in chance
    rest = [(x, seed) for value, x, seed in seeds if value == 2 and x >= 100][: 3 * run.history[1].n]
    assert not set(rest) & set(start)
    assert set(rest) <= set(first) - chosen_by  # what the next met were new draws of the incumbent


def test_a_run_with_repeats_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    values = [{"p": v} for v in (1, -1, 2, -2, 0)]

    def run(path: Path, **options: Any) -> Any:
        p = Parameter(0, name="p")
        return searched(
            noisy(p, []), values, lambda out, _: out, val=12, repeats=2, store=path, parameters=[p], **options
        )  # fmt: skip

    whole = run(tmp_path / "whole.db", concurrency=1)
    for stop in range(1, 4):
        path = tmp_path / f"cut{stop}.db"

        def halt(trial: Any, stop: int = stop) -> None:
            if trial.number == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(path, on_trial=halt)
        again = run(path, resume="last")
        assert [(t.before, t.after, t.n, t.verdict) for t in again.history] == [
            (t.before, t.after, t.n, t.verdict) for t in whole.history
        ]
        assert again.best == whole.best
        assert again.report().best == whole.report().best


def test_an_example_is_failed_where_one_of_its_draws_failed_and_costs_what_all_of_them_cost() -> None:
    assert merged([Score(1.0, {"a": 1.0, "b": 0.0}), Score(0.0, {"a": 0.0, "b": 1.0})]) == Score(
        0.5, {"a": 0.5, "b": 0.5}
    )  # fmt: skip
    assert merged([Score(1.0), Score(None)]).value is None


def test_draws_turn_between_rounds() -> None:
    data = split([0], [1, 2], [3], 0)
    draws, candidate = Draws(data, 2), Candidate(0, {}, "")
    val, test = data.val[0], data.test[0]
    draws.load(candidate, {(val, 0): Score(0.0), (val, 1): Score(1.0), (val, 2): Score(1.0), (test, 0): Score(1.0)})
    assert candidate.scores == {val: Score(0.5)}
    draws.turn(candidate, 1)
    assert candidate.scores == {}
    draws.put(candidate, val, 3, Score(1.0))
    draws.put(candidate, test, 1, Score(0.0))
    assert candidate.scores == {val: Score(1.0), test: Score(0.5)}
    assert sorted(score.value or 0.0 for score in draws.known(candidate)) == [0.5, 1.0]


# -- what a report may say ---------------------------------------------------------------------------------------------

outcomes = st.lists(st.sampled_from([0.0, 1.0, None]), min_size=1, max_size=40)


@given(outcomes, outcomes, st.integers(0, 3))
def test_a_claim_interval_and_p_value_agree(start: list[float | None], best: list[float | None], seed: int) -> None:
    n = min(len(start), len(best))
    found = Difference.of(start[:n], best[:n], measure=Measure(two_valued=True), seed=seed)
    if found.claim == "better":
        assert found.gate == "better"
        assert found.low > 0
        assert found.p <= 0.05
    elif found.claim == "worse":
        assert found.gate == "worse"
        assert found.high < 0
        assert found.p <= 0.05
    else:
        assert not (found.gate == "better" and found.low > 0)
    turned = Difference.of(best[:n], start[:n], measure=Measure(two_valued=True), seed=seed)
    assert {found.claim, turned.claim} in ({"better", "worse"}, {"no evidence"})


def test_a_report_gives_the_error_rates_of_the_gate_that_the_search_used() -> None:
    report = searched(Threshold(5), [{"level": 10}], right).report()
    gate = Greedy().gate
    assert gate is not None
    assert report.search_gate == error_rates(gate, 40)
    assert 0 < report.search_gate["worse"] < report.search_gate["equal"] < report.search_gate["better"] < 1
    assert "an equal candidate passes" in str(report)
    assert json.loads(json.dumps(report.to_json()))["search_gate"] == report.search_gate


def test_a_report_says_plainly_where_there_is_no_evidence(line: Line) -> None:
    run = optimize(
        line.workflow, line.examples(40), lambda out, example: float(example["x"] % 2), store=None,
        optimizers=[Listed([{"a": 1}])], budget=Budget(trials=1),
    )  # fmt: skip
    assert run.report().claim == "no evidence"
    assert "no evidence of a difference" in str(run.report())


@pytest.mark.parametrize(
    ("options", "message"), [({"repeats": 0}, "repeats is 0"), ({"weights": {}}, "weights is empty")]
)
def test_bad_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        searched(Threshold(), [{"level": 1}], right, **options)
