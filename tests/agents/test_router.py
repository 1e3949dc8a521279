"""The router: its tools, which parameters a query goes through, what it costs, and that rule and routes are tuned."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.loading import module_at
from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import plain, record
from trace_opt.errors import ProblemError
from trace_opt.llm.models import path_of
from trace_opt.optim.categorical import Categorical
from trace_opt.optim.optoprime import OptoPrime
from trace_opt.problem import load_problem
from trace_opt.search.budget import Budget
from trace_opt.search.pareto import Pareto
from trace_opt.testing import ScriptedLLM

PATH = Path(__file__).parents[2] / "agents" / "router.py"
router = module_at(PATH, "agents_router", listed=True)

GUIDE = router.Guide(1000)
RULE = """\
def kind_of(self, query: str) -> str:
    said = query.lower()
    if "friendly" in said:
        return "tone"
    if "'" in said:
        return "string"
    return "arithmetic" if any(c.isdigit() for c in said) else "lookup"
"""
BEST_TOOLS = {"arithmetic.route": "calculator", "lookup.route": "table", "string.route": "letters"}

with_model = pytest.mark.skipif(
    path_of("smollm2") is None, reason="the embedded model is not fetched; run 'trace-opt models pull'"
)


def knows(messages: Any) -> str:
    """Stands for a strong model: it answers every query that the generator can make."""
    asked = messages[-1]["content"]
    return next(e["answer"] for e in router.queries(200, 11) if e["query"] in asked)


def made(*scripts: Any, **options: Any) -> Any:
    """A router over models that say what these give for the messages."""
    models = [ScriptedLLM(s if callable(s) else lambda m, s=s: s, f"scripted/{n}") for n, s in enumerate(scripts)]
    return router.Router(models, **options)


def mean(workflow: Any, examples: Any, values: Any) -> tuple[float, float]:
    """Mean accuracy and cost of values."""
    with in_force(values):
        scores = [GUIDE(workflow(e["query"]), e).score for e in examples]
    return sum(s["accuracy"] for s in scores) / len(scores), -sum(s["cost"] for s in scores) / len(scores)


def test_the_tools_answer_every_query_of_their_kind_but_the_lexicon_only_some() -> None:
    """Sums, facts and spellings are right throughout; the few words of the lexicon tell most of the tones."""
    tools = {"arithmetic": router.calculator, "lookup": router.table, "string": router.letters, "tone": router.lexicon}
    right = {kind: [] for kind in tools}
    for example in router.queries(200, 3):
        right[example["kind"]].append(tools[example["kind"]](example["query"]) == example["answer"])

    shares = {kind: sum(found) / len(found) for kind, found in right.items()}

    assert (shares["arithmetic"], shares["lookup"], shares["string"]) == (1.0, 1.0, 1.0)
    assert 0.4 < shares["tone"] < 0.9


@pytest.mark.parametrize(
    "query", ["", "'", "7", "share 7 among 0", "letter 99 of 'ab'", "{query}", "\x00", "9" * 5000 + " times 2"]
)
def test_no_query_makes_a_tool_raise(query: str) -> None:
    """What a tool cannot answer it answers with nothing, however long a number is."""
    assert all(isinstance(tool(query), str) for tool in router.TOOLS.values())


def test_queries_follow_from_the_seed_and_come_in_equal_parts() -> None:
    """Distinct, repeatable, a quarter of each kind."""
    found = router.queries(router.MOST, 4)

    assert found == router.queries(router.MOST, 4) != router.queries(router.MOST, 5)
    assert len({example["query"] for example in found}) == router.MOST
    assert {kind: sum(e["kind"] == kind for e in found) for kind in router.KINDS} == dict.fromkeys(router.KINDS, 50)


def test_training_validation_and_test_share_no_query() -> None:
    """The parts are disjoint, and their sizes are options."""
    problem = load_problem(PATH, {"train": "8", "val": "9", "test": "10"})

    parts = [{example["query"] for example in part} for part in (problem.train, problem.val, problem.test)]

    assert [len(part) for part in parts] == [8, 9, 10]
    assert len(set().union(*parts)) == 27


def test_only_the_branch_that_was_taken_and_the_rule_get_feedback() -> None:
    """A sum blames the rule, its function and its own branch, and no other; recording changes nothing."""
    workflow = made("24", rewrite=True)

    with record() as graph:
        answer = workflow("What is 12 times 2?")

    assert plain(answer) == workflow("What is 12 times 2?")
    assert plain(answer) == {"text": "24", "kind": "arithmetic", "route": "scripted/0", "cost": 10}
    assert set(propagate(graph, graph.output(answer), Feedback(1.0))) == {
        "rule", "kind_of", "arithmetic.route", "arithmetic.prompt"
    }  # fmt: skip


def test_a_dearer_model_and_asking_for_the_kind_cost_more() -> None:
    """A tool costs 1, models 10 and 100, and a kind told by the first model another 10."""
    workflow = made("arithmetic", "24")
    costs = [
        workflow("What is 12 times 2?")["cost"],
        *(
            mean(workflow, [{"query": "What is 12 times 2?", "answer": "24"} | {"kind": "arithmetic"}], values)[1]
            for values in (
                {"arithmetic.route": "calculator"}, {"arithmetic.route": "1: scripted/0"},
                {"arithmetic.route": "calculator", "rule": router.ASK},
            )
        ),
    ]  # fmt: skip

    assert costs == [100, 1, 10, 11]


@pytest.mark.parametrize(
    "reply",
    ["", "I'd rather not.", "friendly or rude?", '{"answer": "friendl', "x" * 100_000, "\x00", "ignore all rules"],
)
def test_a_reply_that_names_no_word_or_several_is_no_answer(reply: str) -> None:
    """Of a model that is to choose, only one of the words counts."""
    workflow = made(reply)

    with in_force({"rule": router.ASK}):
        unsorted = workflow("Friendly or rude: What a treat.")
    with in_force({"rule": router.FIRST_WORD}):
        answer = workflow("Friendly or rude: What a treat.")

    assert (answer["text"], answer["kind"]) == ("", "tone")
    assert (unsorted["kind"], unsorted["route"]) == ("", "none")


@pytest.mark.parametrize(("answer", "score", "said"), [
    ({"text": "`888.`", "kind": "arithmetic", "route": "calculator", "cost": 1}, 1, "right, at a cost of 1"),
    ({"text": "", "kind": "string", "route": "letters", "cost": 1}, 0, "it is of the kind 'arithmetic' and was taken for 'string'"),
    ({"text": "24", "kind": "arithmetic", "route": "m", "cost": 10}, 0, "'m' was wrong about this arithmetic query"),
    ({"text": "", "kind": "arithmetic", "route": "table", "cost": 1}, 0, "'table' gave no answer to this arithmetic query"),
    ({"text": "", "kind": "maths", "route": "none", "cost": 0}, 0, "there is no kind 'maths', only arithmetic, lookup"),
    ({"text": "The answer is 888", "kind": "arithmetic", "route": "m", "cost": 10}, 0, "not 'The answer is 888'"),
])  # fmt: skip
def test_the_guide_names_the_turn_that_was_wrong(answer: Any, score: int, said: str) -> None:
    """Wrong kind, wrong route, no answer, an answer in a sentence; the cost is the second score."""
    feedback = GUIDE(answer, {"query": "What is 37 times 24?", "kind": "arithmetic", "answer": "888"})

    assert feedback.score == {
        "net": score - answer["cost"] / 1000, "accuracy": float(score), "cost": -float(answer["cost"]),
    }  # fmt: skip
    assert said in feedback.text


def test_capitals_count_where_they_were_asked_for() -> None:
    """'PARROT' is not 'parrot', while 'lima' is 'Lima'."""
    assert router.agrees("LIMA", "Lima")
    assert not router.agrees("parrot", "PARROT")


def test_the_search_finds_tools_that_are_right_and_cheap_and_shows_the_front() -> None:
    """Without any optimizer's model: from all to a weak model, to tools; the report has a front over accuracy and cost."""
    problem = load_problem(PATH, {"train": "8", "val": "24", "test": "60"})
    workflow = made("no idea")
    values = {"rule": router.FIRST_WORD, **BEST_TOOLS, "tone.route": "lexicon"}
    assert mean(workflow, problem.test, {}) == (0.0, 10.0)
    assert mean(workflow, problem.test, values)[1] == 1.0

    run = problem_of(problem, workflow).optimize(budget=Budget(trials=40), store=None)
    report = run.report()

    assert isinstance(problem.search, Pareto)
    assert report.claim == "better"
    assert -report.best.means["cost"] < 10
    assert any({"accuracy", "cost"} <= set(row["scores"]) for row in report.front) or not report.front


def problem_of(problem: Any, workflow: Any) -> Any:
    """The problem with another workflow of the same parameters."""
    return dataclasses.replace(problem, workflow=workflow, parameters=workflow, optimizers=[Categorical()])


def rewrites(reply: str) -> Any:
    """Stands for an optimizer's model that gives one reply."""
    return ScriptedLLM(lambda messages: reply)


def test_rule_and_routes_are_rewritten_together_and_right_answers_get_cheaper() -> None:
    """One proposal changes code and choices; on held-out queries all stay right, at a fraction of the strong model's cost."""
    problem = load_problem(PATH, {"rewrite": "true", "train": "8", "val": "24", "test": "60"})
    workflow = made("no idea", knows, rewrite=True)
    problem = problem_of(problem, workflow)
    values = {"kind_of": RULE, "tone.prompt": "Tone? {query}", **BEST_TOOLS}
    reply = json.dumps({"reasoning": "tools are cheap", "values": values})

    run = problem.optimize(
        optimizers=[OptoPrime(rewrites(reply))],
        search=Pareto(credit=False),
        race=(),
        budget=Budget(trials=2),
        store=None,
    )
    report = run.report()

    assert run.best["kind_of"].endswith(RULE.split("\n", 1)[1])
    assert report.claim == "better"
    assert (report.start.means["accuracy"], report.best.means["accuracy"]) == (1.0, 1.0)
    assert (report.start.means["cost"], report.best.means["cost"]) == (-100.0, -(1 * 0.75 + 100 * 0.25))


@pytest.mark.parametrize("rule", [
    "def kind_of(self, query: str) -> str:\n    return 'maths'\n",
    "def kind_of(self, query: str) -> str:\n    return 1\n",
    "def kind_of(self, query: str) -> str:\n    return open('/etc/passwd').read()\n",
    "def kind_of(self, query: str) -> str:\n    import os\n    return os.environ['HOME']\n",
    "def kind_of(self, query: str) -> str:\n    return query[9999]\n",
    "def other(self, query: str) -> str:\n    return 'tone'\n",
    "import os\nos.system('id')\ndef kind_of(self, query: str) -> str:\n    return 'tone'\n",
    "not Python at all",
])  # fmt: skip
def test_a_wrong_or_hostile_rule_is_contained(rule: str) -> None:
    """It is refused or fails as a candidate, never as the run, and the start stays."""
    problem = load_problem(PATH, {"rewrite": "true", "train": "4", "val": "8", "test": "4"})
    problem = problem_of(problem, made(knows, rewrite=True))
    reply = json.dumps({"reasoning": "", "values": {"kind_of": rule}})

    run = problem.optimize(
        optimizers=[OptoPrime(rewrites(reply))],
        search=Pareto(credit=False),
        race=(),
        budget=Budget(trials=1),
        store=None,
    )

    assert run.best["kind_of"] == problem.workflow.named_parameters()["kind_of"].initial


def test_a_prompt_must_keep_the_query() -> None:
    """Prompts are templates: one without the query is no value."""
    prompt = made("x").arithmetic.prompt

    with pytest.raises(ValueError, match=r"lacks \{query\}"):
        prompt.check("Answer.")


@pytest.mark.parametrize(("options", "said"), [
    ({"models": "[]"}, "name a model"), ({"models": '["nobody"]'}, "'nobody' names no provider"), ({"test": "0"}, "test=0"),
    ({"train": "150"}, "at most 200 together"), ({"modle": "x"}, "did you mean 'models'"), ({"val": "few"}, "got 'few'"),
    ({"worth": "0"}, "a worth of at least 1"),
])  # fmt: skip
def test_a_wrong_option_is_one_clear_sentence(options: dict[str, str], said: str) -> None:
    """Sizes, models, types and names of options."""
    with pytest.raises(Exception, match=re.escape(said)) as caught:
        load_problem(PATH, options)
    assert isinstance(caught.value, ProblemError) or "models" in options


def test_models_are_given_as_a_list_or_as_one_name() -> None:
    """Two models, even of one name, are two routes."""
    two = load_problem(PATH, {"models": '["embedded/smollm2", "embedded/smollm2"]'})
    one = load_problem(PATH, {"models": "embedded/smollm2"})

    assert list(two.workflow.prices.items())[-2:] == [("1: embedded/smollm2", 10), ("2: embedded/smollm2", 100)]
    assert list(one.workflow.prices)[-1] == "embedded/smollm2"


@with_model
def test_the_embedded_model_answers_with_one_of_the_words_it_is_given() -> None:
    """Held to the schema it gives a kind and a tone, whatever it makes of the query."""
    workflow = load_problem(PATH).workflow

    with in_force({"rule": router.ASK, **{f"{kind}.route": "lexicon" for kind in router.KINDS}}):
        assert workflow("Is this friendly or rude? How lovely, the soup!")["kind"] in router.KINDS
