"""A whole search: what is accepted, told, kept, refused; and what bad input says."""

import asyncio
import hashlib
import json
import math
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.search.conftest import Line, Listed
from trace_opt.core.feedback import Feedback
from trace_opt.core.module import Module
from trace_opt.core.parameter import Demonstrations, Parameter
from trace_opt.core.tracer import trace
from trace_opt.errors import (
    BudgetError,
    FeedbackError,
    LLMError,
    ProblemError,
    ReplyError,
    StoreError,
    TraceError,
)
from trace_opt.optim.base import Proposal
from trace_opt.optim.categorical import Categorical
from trace_opt.optim.optoprime import OptoPrime
from trace_opt.search.budget import Budget
from trace_opt.search.engine import aoptimize, optimize
from trace_opt.search.greedy import Greedy
from trace_opt.search.pareto import Pareto
from trace_opt.search.run import load_values
from trace_opt.store.store import Store
from trace_opt.testing import ScriptedLLM


def run_line(line: Line, values: Any, n: int = 40, **options: Any) -> Any:
    given = {"store": None, "budget": Budget(trials=len(values) or 1), "optimizers": [Listed(values)], **options}
    return optimize(line.workflow, line.examples(n), line.guide, **given)


# -- the search --------------------------------------------------------------------------------------------------------


def test_a_better_proposal_is_built_on_and_a_worse_one_is_dropped(line: Line) -> None:
    run = run_line(line, [{"a": 3}, {"a": 9}, {"b": 7}])
    assert [(t.accepted, dict(t.changed)) for t in run.history] == [
        (True, {"a": 3}),
        (False, {"a": 9}),
        (True, {"b": 7}),
    ]
    assert run.best == {"a": 3, "b": 7}
    assert run.start == {"a": 0, "b": 0}
    assert run.history[1].verdict.startswith("dropped: little hope left after 4 examples")


def test_a_search_writes_to_no_parameter_until_apply_does(line: Line) -> None:
    run = run_line(line, [{"a": 3}])
    assert (line.a.value, line.b.value) == (0, 0)
    run.apply()
    assert (line.a.value, line.b.value) == (3, 0)


def test_the_report_compares_first_and_best_on_held_out_examples(line: Line) -> None:
    report = run_line(line, [{"a": 3, "b": 7}]).report()
    assert (report.examples, report.held_out, report.claim) == ("test", True, "better")
    assert report.start is not None
    assert report.start.mean < report.best.mean == 0
    assert report.changed == {"a": (0, 3), "b": (0, 7)}
    assert "better than the start" in str(report)
    assert json.loads(json.dumps(report.to_json())) == report.to_json()


def test_without_a_test_set_nothing_is_claimed(line: Line) -> None:
    report = run_line(line, [{"a": 3, "b": 7}], n=10).report()
    assert (report.examples, report.held_out, report.claim) == ("train", False, "none")
    assert "nothing is claimed" in str(report)


def test_the_test_examples_are_run_last_and_once_each(line: Line) -> None:
    train, val, test = line.examples(4), [{"x": 50, "y": 157}], [{"x": 60, "y": 187}, {"x": 61, "y": 190}]
    optimize(
        line.workflow, train, line.guide, val=val, test=test, optimizers=[Listed([{"a": 3}, {"a": 1}])], store=None,
        budget=Budget(trials=2), concurrency=1,
    )  # fmt: skip
    xs = [x for (x,) in line.runs]
    assert sorted(xs[-4:]) == [60, 60, 61, 61]
    assert not {60, 61} & set(xs[:-4])


def test_candidates_meet_the_validation_examples_in_fresh_orders_and_are_dropped_after_a_few(line: Line) -> None:
    examples = [{"x": x, "y": 0} for x in range(100, 140)]
    optimize(
        line.workflow, line.examples(2), lambda out, example: float(out == 0), val=examples, store=None, concurrency=1,
        optimizers=[Listed([{"a": 1}, {"a": 2}])], budget=Budget(trials=2), search=Greedy(minibatch=1),
    )  # fmt: skip
    xs = [x for (x,) in line.runs if x >= 100]
    assert len(xs) == 40 + 4 + 4
    assert len({tuple(xs[:4]), tuple(xs[40:44]), tuple(xs[44:])}) == 3


def test_optimizers_are_shown_rollouts_with_graphs_slices_and_the_incumbents_values(line: Line) -> None:
    optimizer = Listed([{"a": 3}, {"a": 1}])
    run_line(line, [1, 2], optimizers=[optimizer], search=Greedy(minibatch=3))
    first, second = optimizer.asked
    assert [len(first), len(second)] == [3, 3]
    assert set(first[0].slices) == {"a", "b"}
    assert first[0].values == {"a": 0, "b": 0}
    assert second[0].values == {"a": 3, "b": 0}
    assert first[0].feedback.text.startswith("off by")
    assert len(first.train) == 24


def test_an_optimizer_may_run_values_itself_and_they_are_charged(line: Line) -> None:
    class Asking(Listed):
        async def propose(self, parameters: Any, rollouts: Any, history: Any) -> Proposal:
            tried = await rollouts.run({"b": 7}, rollouts.train[:2])
            return Proposal({"b": 7}, f"{[r.score for r in tried]}")

    run = run_line(line, [1], optimizers=[Asking([])], concurrency=1)
    xs = {x: -abs(3 * x) for (x,) in line.runs}
    assert [float(s) in [float(v) for v in xs.values()] for s in json.loads(run.history[0].reason)] == [True, True]


def test_values_in_force_while_proposing_are_the_incumbents(line: Line) -> None:
    seen: list[Any] = []

    class Looking(Listed):
        async def propose(self, parameters: Any, rollouts: Any, history: Any) -> Proposal:
            seen.append([p.value for p in parameters])
            return await super().propose(parameters, rollouts, history)

    run_line(line, [1, 2], optimizers=[Looking([{"a": 3}, {"b": 1}])])
    assert seen == [[0, 0], [3, 0]]


def test_optimizers_take_turns_and_each_observes_what_came_of_its_own(line: Line) -> None:
    mine, yours = Listed([{"a": 3}, {"a": 2}], only=["a"]), Listed([{"b": 7}, {"b": 1}], only=["b"])
    run = run_line(line, [1] * 4, optimizers=[mine, yours])
    assert [list(t.changed) for t in run.history] == [["a"], ["b"], ["a"], ["b"]]
    assert [(values, outcome.accepted) for values, outcome in mine.observed] == [({"a": 3}, True), ({"a": 2}, False)]
    assert [(values, outcome.accepted) for values, outcome in yours.observed] == [({"b": 7}, True), ({"b": 1}, False)]


def test_one_with_nothing_to_propose_passes_its_turn_and_the_search_ends_when_all_do(line: Line) -> None:
    run = run_line(line, [1] * 9, optimizers=[Listed([], only=["a"]), Listed([{"b": 7}, {"b": 8}], only=["b"])])
    assert [dict(t.changed) for t in run.history] == [{"b": 7}, {"b": 8}]
    assert run.ended == "no optimizer has anything left to propose"


def test_the_first_optimizer_that_handles_a_parameter_owns_it(line: Line) -> None:
    first, second = Listed([{"a": 3}], only=["a"]), Listed([{"b": 7}])
    run = run_line(line, [1, 2], optimizers=[first, second])
    assert run.best == {"a": 3, "b": 7}
    refused = run_line(line, [1, 2], optimizers=[first, Listed([{"a": 1}])])
    assert refused.history[-1].verdict.startswith("not allowed: Listed does not own a parameter 'a'")


def test_values_tried_before_are_not_run_again(line: Line) -> None:
    run = run_line(line, [{"a": 9}, {"a": 9}, {"a": 0}])
    assert run.history[1].verdict == "dropped: the same values as candidate 1"
    assert run.history[2].verdict == "dropped: the same values as candidate 0"
    assert run.history[1].after == run.history[0].after


def test_a_reply_that_holds_nothing_is_a_trial_without_effect(line: Line) -> None:
    run = run_line(line, [ReplyError("gibberish"), {"a": 3}])
    assert run.history[0].verdict == "no usable proposal: gibberish"
    assert run.history[0].candidate is None
    assert run.best["a"] == 3


def test_a_model_that_fails_three_times_in_a_row_ends_the_run(line: Line) -> None:
    with pytest.raises(LLMError, match="down"):
        run_line(line, [LLMError("down", kind="server") for _ in range(5)])


def test_a_wrong_key_ends_the_run_at_once(line: Line) -> None:
    with pytest.raises(LLMError, match="wrong key"):
        run_line(line, [LLMError("wrong key", kind="key"), {"a": 3}])


def test_a_proposal_outside_its_parameters_type_is_not_run(line: Line) -> None:
    run = run_line(line, [{"a": "three"}, {"a": 3}])
    assert run.history[0].verdict.startswith("not allowed: parameter 'a' got 'three'")
    assert run.best["a"] == 3


def test_target_and_patience_end_a_search(line: Line) -> None:
    reached = run_line(line, [{"a": 3}, {"b": 7}, {"a": 4}], target=0.0)
    assert (len(reached.history), reached.ended) == (2, "the target of 0 is reached")
    tired = run_line(line, [{"a": -1}, {"a": -2}, {"a": -3}], patience=2)
    assert (len(tired.history), tired.ended) == (2, "no trial was accepted among the last 2")


def test_trials_and_events_are_told_as_they_happen(line: Line) -> None:
    trials: list[Any] = []
    events: list[Any] = []
    run_line(line, [{"a": 3}, {"a": 1}], on_trial=trials.append, on_event=events.append)
    assert [(t.number, t.accepted) for t in trials] == [(1, True), (2, False)]
    kinds = [event.kind for event in events]
    assert kinds[0] == "start"
    assert kinds.count("trial") == 2
    assert {"rollouts", "proposing", "test"} <= set(kinds)


def test_the_graph_of_a_run_is_the_best_candidates_first_validation_rollout(line: Line, tmp_path: Path) -> None:
    run = run_line(line, [{"a": 3}])
    kept = run_line(line, [{"a": 3}], store=tmp_path / "runs.db")
    assert run.graph.values == {"a": 3, "b": 0}
    assert "line_1" in run.graph.names.values()
    text = Store(tmp_path / "runs.db").load(kept.id).graph
    assert text is not None
    assert "line" in text


def test_a_run_without_graphs_kept_repeats_itself_at_any_concurrency(line: Line) -> None:
    values = [{"a": i, "b": 7 - i} for i in range(8)]
    told = [
        [
            (t.before, t.after, t.accepted, t.verdict)
            for t in run_line(line, values, concurrency=c, search=Greedy(width=w)).history
        ]
        for c, w in ((1, 1), (8, 1), (3, 1))
    ]
    assert told[0] == told[1] == told[2]


def test_frozen_parameters_stay_as_they_are(line: Line) -> None:
    line.b.frozen = True
    run = run_line(line, [{"a": 3}])
    assert run.best == {"a": 3, "b": 0}
    line.a.frozen = True
    assert run_line(line, [{"a": 3}]).ended == "every parameter is frozen"


# -- failures ----------------------------------------------------------------------------------------------------------


def test_what_a_workflow_raises_is_feedback_with_the_users_own_lines() -> None:
    mode = Parameter("strict", name="mode", choices=("strict", "loose"))

    @trace
    def parse(text: str) -> int:
        if mode.value == "strict" and not text.isdigit():
            raise ValueError(f"no number: {text!r}")
        return int(text) if text.isdigit() else -1

    optimizer = Listed([{"mode": "loose"}])
    run = optimize(
        lambda text: parse(text), [{"text": "12"}, {"text": "x"}, {"text": "7"}], lambda out, example: 1.0, store=None,
        optimizers=[optimizer], budget=Budget(trials=1),
    )  # fmt: skip
    failed = next(r for r in optimizer.asked[0] if r.error)
    assert failed.error == "ValueError: no number: 'x'"
    assert failed.score is None
    assert "raise ValueError" in failed.feedback.text
    assert "trace_opt/core" not in failed.feedback.text
    assert set(failed.slices) == {"mode"}
    assert run.best == {"mode": "loose"}
    assert run.report().start.failed == 1
    assert "1 of 3 failed" in str(run.report())


def test_a_failure_counts_as_the_lower_end_of_the_score_range_in_means() -> None:
    p = Parameter(0, name="p")

    def workflow(x: int) -> int:
        if x == 1 and p.value == 0:
            raise RuntimeError("no")
        return x

    run = optimize(
        workflow, [0, 1, 2, 3], lambda out, _: 0.5, store=None, optimizers=[Listed([{"p": 1}])], budget=Budget(trials=1),
        score_range=(-1.0, 1.0), parameters=[p],
    )  # fmt: skip
    assert run.report().start.mean == pytest.approx((3 * 0.5 - 1) / 4)


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (lambda out, example: float("nan"), "score is nan; .*on val example"),
        (lambda out, example: "too long", "'too long' on val example .* holds no score"),
        (lambda out, example: None, "returned 'NoneType'"),
        (lambda out, example: {}, "empty dict"),
        (lambda out, example: Feedback(text="no score"), "holds no score"),
    ],
)
def test_a_guide_without_a_finite_score_stops_the_run(line: Line, guide: Any, message: str) -> None:
    with pytest.raises(FeedbackError, match=message):
        optimize(line.workflow, line.examples(30), guide, optimizers=[Listed([])], store=None)


def test_what_a_guide_raises_goes_up_unchanged_and_names_the_example(line: Line) -> None:
    def guide(out: Any, example: Any) -> float:
        return example["label"]

    with pytest.raises(KeyError, match="label") as caught:
        optimize(line.workflow, line.examples(30), guide, optimizers=[Listed([])], store=None)
    assert any("raised by the guide on val example" in note for note in caught.value.__notes__)


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_an_empty_training_set_is_refused(line: Line) -> None:
    with pytest.raises(ProblemError, match="train is empty"):
        optimize(line.workflow, [], line.guide, store=None)


def test_two_parameters_of_one_name_are_refused(line: Line) -> None:
    with pytest.raises(TraceError, match="two parameters are named 'a'"):
        run_line(line, [{}], parameters=[line.a, Parameter(1, name="a")])

    other = Parameter(1, name="a")
    with pytest.raises(TraceError, match="two parameters named 'a'"):
        optimize(lambda x: [line.a.value, other.value], [1, 2], lambda o, e: 1.0, optimizers=[Listed([])], store=None)


def test_a_parameter_created_inside_the_workflow_is_refused() -> None:
    def workflow(x: int) -> int:
        return x + Parameter(1, name="inner").value

    with pytest.raises(TraceError, match="'inner' is created inside a workflow"):
        optimize(workflow, [1, 2], lambda out, _: 1.0, optimizers=[Listed([])], store=None)


def test_a_parameter_that_no_optimizer_handles_is_refused_before_anything_runs(line: Line) -> None:
    with pytest.raises(
        ProblemError, match=r"no optimizer handles parameter 'b', which holds a number \(optimizers: Listed\)"
    ):
        run_line(line, [{}], optimizers=[Listed([], only=["a"])], parameters=[line.a, line.b])
    assert line.runs == []
    with pytest.raises(ProblemError, match="no optimizer handles parameter 'b'"):
        run_line(line, [{}], optimizers=[Listed([], only=["a"])])
    assert len(line.runs) == 1


def test_a_workflow_that_reads_no_parameter_is_refused() -> None:
    with pytest.raises(ProblemError, match="read no Parameter"):
        optimize(lambda x: x, [1, 2], lambda out, _: 1.0, optimizers=[Listed([])], store=None)


def test_an_example_without_what_the_workflow_needs_is_refused(line: Line) -> None:
    with pytest.raises(TraceError, match="the workflow needs 'question'"):
        optimize(lambda question, x: x, [{"x": 1}], lambda o, e: 1.0, optimizers=[Listed([])], store=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimisers": []}, "no option 'optimisers'; did you mean 'optimizers'"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"seed": "1"}, "seed is '1'"),
        ({"parameters": []}, "parameters is empty"),
        ({"parameters": ["a"]}, "'a', which is no Parameter"),
        ({"score_range": (1, 0)}, r"score_range is \(1, 0\)"),
        ({"race": ["c"]}, "race names 'c', which is no parameter"),
        ({"race": ["a"]}, "race names 'a', a number whose values cannot be listed"),
        ({"resume": "last", "store": None}, "needs a store"),
        ({"patience": 0}, "patience is 0"),
        ({"search": "pareto"}, r"search is 'pareto', .* pass search=Pareto\(\)"),
        ({"search": Pareto}, r"pass search=Pareto\(\)"),
        ({"optimizers": Categorical()}, "give a list of optimizers"),
        ({"optimizers": [Categorical]}, r"which is no optimizer; give one, as in \[Categorical\(\)\]"),
        ({"optimizers": ["optoprime"]}, "optimizers holds 'optoprime'"),
        ({"score_range": 5}, "score_range is 5"),
        ({"score_range": (0, 1, 2)}, r"score_range is \(0, 1, 2\)"),
        ({"weights": {"a": "x"}}, "weights gives 'a' 'x'; give a number"),
        ({"target": "x"}, "target is 'x'"),
        ({"target": math.nan}, "target is nan"),
        ({"controls": [len]}, r"controls is \[.*; give workflows by name"),
        ({"origin": {"a": object()}}, "which JSON cannot hold"),
        ({"store": 5}, "store is 5; give a path"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(line: Line, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        optimize(line.workflow, line.examples(30), line.guide, **{"optimizers": [Listed([])], "store": None, **options})


@pytest.mark.parametrize(
    "search", [{"width": 0}, {"minibatch": 0}, {"rungs": (9, 3)}, {"rungs": (0,)}, {"gate": "mean"}]
)
def test_a_search_that_makes_no_sense_is_refused(search: dict[str, Any]) -> None:
    with pytest.raises(ProblemError):
        Greedy(**search)


def test_a_workflow_or_guide_that_cannot_be_called_is_refused(line: Line) -> None:
    with pytest.raises(ProblemError, match="the workflow is 3"):
        optimize(3, [1], line.guide, store=None)
    with pytest.raises(ProblemError, match="the guide is None"):
        optimize(line.workflow, [1], None, store=None)


def test_text_without_suggestions_needs_a_model_and_says_so() -> None:
    style = Parameter("brief", name="style")
    with pytest.raises(
        LLMError, match="OptoPrime needs a model to improve 'style', and there is no model: pass --model"
    ):
        optimize(lambda x: [style.value, x], [1, 2], lambda o, e: 1.0, parameters=[style], store=None)


def test_a_tensor_without_an_optimizer_for_it_is_refused() -> None:
    torch = pytest.importorskip("torch")
    scale = Parameter(torch.tensor(1), name="scale")
    with pytest.raises(ProblemError, match="no optimizer handles parameter 'scale', which holds a tensor"):
        optimize(lambda x: scale.value * x, [1.0], lambda o, e: 1.0, parameters=[scale], store=None)


# -- defaults ----------------------------------------------------------------------------------------------------------


def test_optimizers_and_parameters_have_sensible_defaults() -> None:
    cue = Parameter("x", name="cue", choices=("x", "y"))
    word = Parameter("no", name="word", suggestions=("maybe", "yes"))
    shown = Parameter(Demonstrations(k=1), name="shown")
    unused = Parameter("idle", name="unused")

    @trace
    def answer(q: str) -> str:
        return f"{cue.value}{word.value}{len(shown.value)}{q}"

    run = optimize(
        answer, [{"q": str(i)} for i in range(40)], lambda out, _: float(out[0] == "y") + float("yes" in out), store=None,
        budget=Budget(trials=12),
    )  # fmt: skip
    assert set(run.best) == {"cue", "word", "shown"}
    assert {t.optimizer for t in run.history} == {"Categorical"}
    assert (run.best["cue"], run.best["word"]) == ("y", "yes")
    del unused


def test_the_model_given_is_asked_and_named(line: Line) -> None:
    events: list[Any] = []
    llm = ScriptedLLM(lambda messages: '{"reasoning": "r", "values": {"a": 3, "b": 7}}', name="scripted/oracle")
    run = optimize(
        line.workflow, line.examples(40), line.guide, model=llm, budget=Budget(trials=1), parameters=[line.a, line.b],
        store=None, on_event=events.append,
    )  # fmt: skip
    assert run.best == {"a": 3, "b": 7}
    assert run.spent["optimizer"].calls == 1
    assert events[0].data["model"] == "scripted/oracle (given as model=)"


def test_a_module_may_be_the_workflow_and_name_its_parameters() -> None:
    class Agent(Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = Parameter(1)

        def __call__(self, x: int) -> int:
            return self.gain.value * x

    agent = Agent()
    run = optimize(
        agent, [1, 2, 3], lambda out, x: -abs(out - 2 * x), optimizers=[Listed([{"gain": 2}])], budget=Budget(trials=1),
        store=None, parameters=agent.parameters(),
    )  # fmt: skip
    assert run.best == {"gain": 2}


# -- races -------------------------------------------------------------------------------------------------------------


def raced(store: Any = None, **options: Any) -> Any:
    one = Parameter("a", name="one", choices=("a", "b", "c"))
    two = Parameter("x", name="two", choices=("x", "y"))

    @trace
    def answer(q: int) -> str:
        return one.value + two.value

    def guide(out: str, example: Any) -> float:
        return {"ax": 0.0, "ay": 0.1, "bx": 0.2, "by": 0.9, "cx": 0.3, "cy": 0.4}[out] + example["q"] / 1000

    options = {"budget": Budget(trials=5), "optimizers": [Listed([])], "race": ["one", "two"], **options}
    return optimize(answer, [{"q": i} for i in range(100)], guide, store=store, parameters=[one, two], **options)


def test_a_race_tries_every_combination_and_its_winner_is_the_incumbent() -> None:
    run = raced()
    assert run.best == {"one": "b", "two": "y"}
    assert [t.optimizer for t in run.history] == ["race"] * 5
    assert [t.accepted for t in run.history].count(True) == 1
    assert run.history[-1].verdict.startswith("raced: place 2 of 6") or "place" in run.history[-1].verdict


def test_a_race_that_the_budget_cannot_pay_for_is_refused() -> None:
    with pytest.raises(BudgetError, match="cannot pay for the race of 6 combinations; set trials to 5"):
        raced(budget=Budget(trials=4))


def test_a_race_cut_short_by_the_budget_goes_on_where_it_stopped(tmp_path: Path) -> None:
    rungs = Greedy(rungs=(5, None))
    whole = raced(tmp_path / "whole.db", search=rungs)
    cut = raced(tmp_path / "cut.db", budget=Budget(trials=5, rollouts=20 + 40 + 5 * 5 + 10), search=rungs)
    assert cut.ended.startswith("the budget is spent")
    assert {trial.verdict.split(" after ")[1] for trial in cut.history} == {"5 examples"}
    run = raced(tmp_path / "cut.db", resume="last", budget=Budget(trials=5), search=rungs)
    assert run.best == whole.best
    assert [t.verdict for t in run.history] == [t.verdict for t in whole.history]


def test_a_race_that_the_budget_cannot_begin_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"40 for the test and 100 to begin the race; set rollouts to 160 or more"):
        raced(tmp_path / "cut.db", budget=Budget(trials=5, rollouts=159))
    assert not (tmp_path / "cut.db").exists()
    assert raced(tmp_path / "whole.db", budget=Budget(trials=5, rollouts=160)).best == {"one": "b", "two": "y"}


# -- budgets -----------------------------------------------------------------------------------------------------------


def asking(llm: Any, **options: Any) -> Any:
    style = Parameter("plain", name="style")

    @trace
    def ask(q: int) -> str:
        return llm(f"{style.value} {q}")

    optimizer = OptoPrime(ScriptedLLM(lambda m: json.dumps({"reasoning": "r", "values": {"style": f"s{len(str(m))}"}})))
    given = {"optimizers": [optimizer], "store": None, "parameters": [style], **options}
    return optimize(ask, [{"q": i} for i in range(40)], lambda out, _: float(len(out)), **given)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            Budget(rollouts=20),
            r"Budget\(rollouts=20\) cannot pay for one proposal: 8 to score the start, 8 to propose from, ",
        ),
        (Budget(calls=10), "to propose; set calls to 37 or more"),
    ],
)
def test_a_budget_too_small_for_one_proposal_is_refused_before_a_call_is_paid(budget: Budget, message: str) -> None:
    llm = ScriptedLLM(lambda messages: "x")
    with pytest.raises(BudgetError, match=message):
        asking(llm, budget=budget)
    assert llm.calls == 0


def test_a_budget_spent_on_the_start_is_an_error_and_says_so() -> None:
    llm = ScriptedLLM(lambda messages: "x")
    with pytest.raises(BudgetError, match="spent before the first proposal"):
        asking(llm, budget=Budget(tokens=4000))
    assert llm.calls > 0


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("calls", [45, 60, 77])
def test_calls_are_never_exceeded_and_the_test_is_still_paid_for(calls: int, concurrency: int) -> None:
    llm = ScriptedLLM(lambda messages: "x" * (len(messages[-1]["content"]) % 7))
    run = asking(llm, budget=Budget(calls=calls), concurrency=concurrency)
    assert sum(cost.calls for cost in run.spent.values()) <= calls
    assert run.report().held_out
    assert run.report().best.n == 8


def test_dollars_are_never_exceeded_and_an_unpriced_model_is_refused_at_the_start() -> None:
    llm = ScriptedLLM(lambda messages: "x" * 9, price=(1e-4, 1e-3))
    run = asking(llm, budget=Budget(usd=60.0, trials=20))
    assert (sum((cost.usd or 0.0) for cost in run.spent.values())) <= 60.0
    unpriced = ScriptedLLM(lambda messages: "x", price=None, name="some/model")
    with pytest.raises(BudgetError, match="the price of 'some/model' is unknown"):
        asking(unpriced, budget=Budget(usd=1.0))
    assert unpriced.calls == 0


def test_time_that_is_up_ends_the_search_with_what_it_has(line: Line) -> None:
    def slow(x: int) -> int:
        time.sleep(0.005)
        return line.workflow(x)

    began = time.monotonic()
    run = optimize(
        slow, line.examples(40), line.guide, optimizers=[Listed([{"a": i} for i in range(999)])], store=None,
        budget=Budget(seconds=2.5), parameters=[line.a, line.b], concurrency=4,
    )  # fmt: skip
    assert 0.3 < time.monotonic() - began < 10  # all candidates would take longer
    assert "spent" in run.ended
    assert len(run.history) < 999


# -- concurrency -------------------------------------------------------------------------------------------------------


def test_eight_candidates_run_at_once_and_nothing_crosses() -> None:
    p = Parameter(0, name="p")
    barrier = threading.Barrier(8, timeout=20)
    together: list[int] = []

    @trace
    def first(x: int) -> tuple[int, int]:
        seen = p.value
        if seen:
            together.append(barrier.wait())
        return (x, seen)

    @trace
    def second(pair: tuple[int, int]) -> tuple[int, int, int]:
        return (*pair, p.value)

    def workflow(x: int) -> Any:
        return second(first(x))

    def guide(out: tuple[int, int, int], x: int) -> float:
        assert out[0] == x
        assert out[1] == out[2] == p.value
        return -abs(out[1] - 5)

    values = [{"p": i} for i in range(1, 9)]
    run = optimize(
        workflow, [1, 2, 3, 4], guide, optimizers=[Listed(values)], store=None, parameters=[p], concurrency=8,
        search=Greedy(width=8, rungs=(1, None), minibatch=1), budget=Budget(trials=8),
    )  # fmt: skip
    assert sorted(set(together)) == list(range(8))
    assert [t.after for t in run.history] == [-abs(i - 5) for i in range(1, 9)]
    assert run.best == {"p": 5}


def test_eight_candidates_run_at_once_in_tasks_and_nothing_crosses() -> None:
    p = Parameter(0, name="p")

    @trace
    async def ask(x: int) -> tuple[int, int]:
        before = p.value
        await asyncio.sleep(0.001 * (before % 3))
        return (before, p.value)

    async def workflow(x: int) -> Any:
        return await ask(x)

    async def guide(out: tuple[int, int], x: int) -> float:
        assert out[0] == out[1] == p.value
        return -abs(out[0] - 5)

    run = optimize(
        workflow, [1, 2, 3, 4], guide, optimizers=[Listed([{"p": i} for i in range(1, 9)])], store=None, parameters=[p],
        search=Greedy(width=8), budget=Budget(trials=8),
    )  # fmt: skip
    assert [t.after for t in run.history] == [-abs(i - 5) for i in range(1, 9)]
    assert [t.accepted for t in run.history] == [True] * 5 + [False] * 3


def test_a_search_works_where_an_event_loop_runs_and_can_be_awaited(line: Line) -> None:
    options: dict[str, Any] = {"optimizers": [Listed([{"a": 3}])], "store": None, "budget": Budget(trials=1)}

    async def inside() -> tuple[Any, Any]:
        blocked = optimize(line.workflow, line.examples(30), line.guide, **options)
        options["optimizers"] = [Listed([{"a": 3}])]
        return blocked, await aoptimize(line.workflow, line.examples(30), line.guide, **options)

    blocked, awaited = asyncio.run(inside())
    assert blocked.best == awaited.best == {"a": 3, "b": 0}


def test_concurrency_does_not_change_a_run_of_several_proposals_at_once() -> None:
    def told(concurrency: int) -> Any:
        llm = ScriptedLLM(lambda messages: "x" * (hash_of(messages[-1]["content"]) % 9), seconds=0.0005)
        run = asking(
            llm, concurrency=concurrency, budget=Budget(trials=24), search=Greedy(width=3, rungs=(2, None)),
            optimizers=[Listed([{"style": f"s{i}"} for i in range(24)])],
        )  # fmt: skip
        return [(t.number, dict(t.changed), t.before, t.after, t.accepted, t.verdict) for t in run.history], run.best

    history, best = told(8)
    assert told(1) == (history, best)
    assert any(trial[4] for trial in history)


def hash_of(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


# -- values ------------------------------------------------------------------------------------------------------------


def test_values_load_from_a_file_all_or_none(line: Line, tmp_path: Path) -> None:
    file = tmp_path / "values.json"
    file.write_text(json.dumps({"a": 4, "b": 5}))
    load_values([line.a, line.b], file)
    assert (line.a.value, line.b.value) == (4, 5)
    with pytest.raises(ProblemError, match="there is no parameter 'aa'; did you mean 'a'"):
        load_values([line.a], {"aa": 1})
    with pytest.raises(ProblemError, match="parameter 'b' got 'x'"):
        load_values([line.a, line.b], {"a": 9, "b": "x"})
    assert line.a.value == 4
    with pytest.raises(ProblemError, match="cannot be read"):
        load_values([line.a], tmp_path / "gone.json")
    file.write_text("nothing")
    with pytest.raises(ProblemError, match="holds no JSON"):
        load_values([line.a], file)


def test_plain_data_becomes_a_value_only_where_it_is_the_value_s_own_form() -> None:
    """What pydantic would read leniently is refused: a number is no date and a text no number."""
    day, count = Parameter(date(2020, 1, 2), name="day"), Parameter(1, name="count", type=int | None)
    load_values([day, count], {"day": "2021-03-04", "count": 2})
    assert (day.value, count.value) == (date(2021, 3, 4), 2)
    for name, value in (("day", 5), ("day", "2021-03-04T00:00:00"), ("count", "5")):
        with pytest.raises(ProblemError, match=f"parameter '{name}' got {value!r}"):
            load_values([day, count], {name: value})


# -- resuming ----------------------------------------------------------------------------------------------------------


def test_a_run_in_another_process_or_thread_is_refused(line: Line, tmp_path: Path) -> None:
    def inner(_: Any) -> None:
        with pytest.raises(StoreError, match="is held by"):
            run_line(line, [{"a": 1}], resume="last", store=tmp_path / "runs.db")

    run_line(line, [{"a": 1}], store=tmp_path / "runs.db", on_trial=inner)


def test_a_finished_run_goes_on_with_a_larger_budget_as_if_it_had_had_it_from_the_start(
    line: Line, tmp_path: Path
) -> None:
    values = [{"a": 1}, {"a": 5}, {"a": 3}, {"b": 7}]
    whole = run_line(line, values, store=tmp_path / "whole.db")
    first = run_line(line, values, store=tmp_path / "runs.db", budget=Budget(trials=2))
    before = len(line.runs)
    again = run_line(line, values, store=tmp_path / "runs.db", resume=first.id)
    assert again.id == first.id
    assert [(t.number, t.before, t.after, t.verdict) for t in again.history] == [
        (t.number, t.before, t.after, t.verdict) for t in whole.history
    ]
    assert again.best == whole.best
    assert again.report().best == whole.report().best
    del before


def test_a_second_look_at_the_test_examples_is_reported(line: Line, tmp_path: Path) -> None:
    values = [{"a": 2}, {"a": 3}]
    first = run_line(line, values, store=tmp_path / "runs.db", budget=Budget(trials=1))
    again = run_line(line, values, store=tmp_path / "runs.db", resume=first.id)
    assert not any("judged" in note for note in first.report().notes)
    assert any("judged 1 earlier best" in note for note in again.report().notes)


@pytest.mark.parametrize("declared", [True, False])
def test_a_run_that_failed_while_the_start_was_scored_goes_on(tmp_path: Path, declared: bool) -> None:
    llm = ScriptedLLM(lambda messages: "x")
    style, unread = Parameter("plain", name="style"), Parameter("idle", name="unread")
    broken = {"on": True}

    @trace
    def ask(q: int) -> str:
        return llm(f"{style.value} {q}") if q >= 0 else unread.value

    def guide(out: str, example: Any) -> float:
        if broken["on"] and llm.calls > 4:
            raise RuntimeError("guide broke")
        return 1.0

    options: dict[str, Any] = {
        "store": tmp_path / "runs.db", "budget": Budget(trials=1), "optimizers": [Listed([{"style": "s"}])], "concurrency": 1,
        **({"parameters": [style]} if declared else {}),
    }  # fmt: skip
    examples = [{"q": i} for i in range(40)]
    with pytest.raises(RuntimeError, match="guide broke"):
        optimize(ask, examples, guide, **options)
    kept = len(Store(tmp_path / "runs.db").rollouts("last"))
    broken["on"] = False
    run = optimize(ask, examples, guide, resume="last", **options)
    assert kept == 4
    assert set(run.start) == {"style"}
    # 8 to score the start, 8 to propose from, 4 to try, 8 for the test, and the one that the failure lost
    assert llm.calls == 8 + 8 + 4 + 8 + 1
    assert run.spent["lost"].calls == 1


def test_a_plain_output_is_said_once_to_tie_feedback_to_every_leaf(line: Line) -> None:
    events: list[Any] = []

    def workflow(x: int) -> int:
        line.workflow(x)
        return x

    optimize(
        workflow, line.examples(30), line.guide, optimizers=[Listed([{"a": 3}, {"a": 2}])], store=None, budget=Budget(trials=2),
        on_event=events.append,
    )  # fmt: skip
    notes = [event for event in events if event.kind == "note" and "plain value" in event.text]
    assert [note.data["leaves"] for note in notes] == [["line_1"]]


def test_what_was_kept_is_not_run_again(tmp_path: Path) -> None:
    llm = ScriptedLLM(lambda messages: "x" * (len(messages[-1]["content"]) % 7))
    first = asking(llm, budget=Budget(trials=2), store=tmp_path / "runs.db")
    sent = llm.calls
    again = asking(llm, budget=Budget(trials=2), store=tmp_path / "runs.db", resume=first.id)
    assert llm.calls == sent
    assert again.report().to_json() | {"seconds": 0} == first.report().to_json() | {"seconds": 0}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n": 41}, "the test examples, the train examples"),
        ({"seed": 1}, "the setting 'seed'"),
        ({"search": Greedy(minibatch=2)}, "the setting 'search'"),
        ({"score_range": (-999.0, 0.0)}, "the setting 'score_range'"),
        ({"optimizers": [Listed([]), Listed([])]}, "the setting 'optimizers'"),
    ],
)
def test_a_changed_problem_is_refused_and_what_changed_is_named(
    line: Line, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    run_line(line, [{"a": 1}], store=tmp_path / "runs.db")
    with pytest.raises(StoreError, match=f"the problem has changed since: {named}"):
        run_line(line, [{"a": 1}], store=tmp_path / "runs.db", resume="last", **change)
    assert Store(tmp_path / "runs.db").load("last").info.status == "finished"


def test_a_changed_starting_value_is_refused(line: Line, tmp_path: Path) -> None:
    run_line(line, [{"a": 1}], store=tmp_path / "runs.db")
    line.b.value = 2
    with pytest.raises(StoreError, match="the starting value or the choices of 'b'"):
        run_line(line, [{"a": 1}], store=tmp_path / "runs.db", resume="last")


def test_a_changed_source_is_refused(line: Line, tmp_path: Path) -> None:
    run_line(line, [{"a": 1}], store=tmp_path / "runs.db")
    other = lambda out, example: -abs(out - example["y"]) / 2
    with pytest.raises(StoreError, match="the source or value of"):
        optimize(
            line.workflow, line.examples(40), other, store=tmp_path / "runs.db", resume="last", optimizers=[Listed([{"a": 1}])],
        )  # fmt: skip


def test_concurrency_and_budget_may_change(line: Line, tmp_path: Path) -> None:
    run_line(line, [{"a": 1}], store=tmp_path / "runs.db")
    run = run_line(line, [{"a": 1}, {"a": 2}], store=tmp_path / "runs.db", resume="last", concurrency=2)
    assert len(run.history) == 2


def test_a_run_that_failed_keeps_what_it_had_and_goes_on(line: Line, tmp_path: Path) -> None:
    broken = {"on": True}

    def guide(out: int, example: Any) -> Feedback:
        if broken["on"] and line.a.value == 3:
            raise RuntimeError("guide broke")
        return line.guide(out, example)

    options: dict[str, Any] = {"store": tmp_path / "runs.db", "budget": Budget(trials=3)}
    values = [{"a": 1}, {"a": 3}, {"b": 7}]
    with pytest.raises(RuntimeError, match="guide broke") as caught:
        optimize(line.workflow, line.examples(40), guide, optimizers=[Listed(values)], **options)
    assert any("trace-opt resume" in note for note in caught.value.__notes__)
    record = Store(tmp_path / "runs.db").load("last")
    assert (record.info.status, record.info.trials) == ("failed", 1)
    broken["on"] = False
    run = optimize(line.workflow, line.examples(40), guide, optimizers=[Listed(values)], resume="last", **options)
    assert run.best == {"a": 3, "b": 7}
    assert math.isclose(run.report().best.mean, 0)


def test_a_free_step_is_on_disk_soon_though_nothing_follows(line: Line, tmp_path: Path) -> None:
    """What waits for others to be written with is written by itself where the next proposal takes its time."""
    seen: list[int] = []

    class Slow(Listed):
        async def propose(self, *args: Any) -> Proposal:
            end = time.monotonic() + (20 if seen else 0)
            while not (kept := len(Store(tmp_path / "runs.db").load("last").trials)) and time.monotonic() < end:
                await asyncio.sleep(0.05)
            seen.append(kept)
            return await super().propose(*args)

    run_line(line, [], optimizers=[Slow([{"a": 9}, {"a": 8}])], budget=Budget(trials=2), store=tmp_path / "runs.db")
    assert seen[:2] == [0, 1]
