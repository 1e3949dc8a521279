"""The agent with tools: its calls, its guide, what hostile replies come to, and that its texts can be tuned."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.loading import module_at
from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import plain, record
from trace_opt.errors import ProblemError
from trace_opt.optim.optoprime import OptoPrime
from trace_opt.problem import load_problem
from trace_opt.search.budget import Budget
from trace_opt.testing import ScriptedLLM

PATH = Path(__file__).parents[2] / "agents" / "tools.py"
tools = module_at(PATH, "agents_tools")

AGENT = tools.Agent(ScriptedLLM(lambda messages: ""))
BY_NAME = "Gives the article of one name. Input: that name alone."
QUESTION = {
    "question": "How old did its builder turn in the year in which Marrow Point was built?", "answer": "31",
    "articles": ["Marrow Point", "Ada Krell"], "sum": True,
}  # fmt: skip


def call(tool: str, given: str) -> str:
    """A reply that calls a tool."""
    return json.dumps({"tool": tool, "input": given})


def names_in(text: str) -> list[str]:
    """The titles in a text, in their order."""
    found = [(text.index(title), title) for title in tools.ARTICLES if title in text]
    return [title for _, title in sorted(found)]


def diligent(messages: Any) -> str:
    """Stands for a model that can reason, and that searches by name and calculates only if it is told to."""
    told, question, *turns = (message["content"] for message in messages)
    if BY_NAME not in told:
        return call("search", "lighthouses") if not turns else call("answer", "I do not know")
    seen = [turn for turn in turns[1::2] if turn in tools.ARTICLES.values()]
    looked = {title for title, text in tools.ARTICLES.items() if text in seen}
    known = "\n".join(seen)
    wanted = [title for title in names_in(question) if title not in looked]
    if "builder" in question or "island" in question:
        kinds = tools.PEOPLE if "builder" in question else tools.ISLANDS
        wanted += [title for title in names_in(known) if title in kinds and title not in looked]
    if wanted:
        return call("search", wanted[0])
    if "Where was" in question:
        return call("answer", re.search(r"born in \d+ in (\w+(?: \w+)?) and", known)[1])
    if "Who" in question:
        return call("answer", re.search(r"by (.+)\.$", known)[1])
    figure = {"metres": r"(\d+) metres", "people": r"(\d+) inhab", "old": r"(?:built|born) in (\d+)"}
    numbers = re.findall(next(form for word, form in figure.items() if word in question), known)
    if "together" in question and len(numbers) > 1:
        numbers = [numbers[0], "+", numbers[1]]
    elif len(numbers) > 1:
        numbers = [numbers[0], "-", numbers[1]]
    if len(numbers) == 1:
        return call("answer", numbers[0])
    return call("calculator", " ".join(numbers)) if turns[-1] in seen else call("answer", turns[-1])


def test_every_article_is_found_by_its_name() -> None:
    """The corpus answers a name with the article of that name."""
    assert {title: tools.search(title) for title in tools.ARTICLES} == tools.ARTICLES
    assert tools.search("qwertz !!") == "nothing found"


@pytest.mark.parametrize(("expression", "value"), [
    ("1871 - 1840", "31"), ("(1+2)*-3", "-9"), ("7/2", "3.5"), ("1240+5310", "6550"), ("0.1+0.2", "0.3"),
])  # fmt: skip
def test_the_calculator_works_out_sums(expression: str, value: str) -> None:
    """Numbers, four operations and parentheses."""
    assert tools.calculate(expression) == value


@pytest.mark.parametrize("expression", [
    "__import__('os').system('id')", "2**99999", "1/0", "1e308*10", "-" * 190 + "1", "9" * 300, "'a'*9", "the age", "", "1 if 1 else 2",
    "(" * 150, "().__class__", "\x00", "[1]*9", "True+1", "1j*1j",
])  # fmt: skip
def test_the_calculator_refuses_all_else_in_words(expression: str) -> None:
    """Names, powers, texts, overflow, nesting: an error as its result, never an exception."""
    assert tools.calculate(expression).startswith("error: ")


@given(st.text(max_size=300))
def test_no_reply_can_make_a_call_raise(reply: str) -> None:
    """Whatever a model says becomes a call with a result."""
    for said in (reply, call("search", reply), call("calculator", reply), call("answer", reply)):
        made = AGENT.use(said)
        assert made["tool"] in (*tools.TOOLS, tools.NONE)
        assert all(isinstance(text, str) and len(text) < 1000 for text in made.values())


@pytest.mark.parametrize("reply", [
    "", "Sure! I will search for it.", "{" * 5000, "[" * 3000 + "]" * 3000, '{"tool": "rm", "input": "-rf /"}',
    '{"tool": "search"}', '{"tool": ["search"], "input": "x"}', '{"tool": "search", "input": {"a": 1}}', "null",
    '{"tool": "search", "input": "Tarn"', '{"tool": {"a": []}, "input": ""}',
])  # fmt: skip
def test_a_malformed_reply_is_told_what_a_call_looks_like(reply: str) -> None:
    """It costs a step and ends in no answer, with the reply quoted in the feedback."""
    agent = tools.Agent(ScriptedLLM(lambda messages: reply), steps=3)

    work = agent(QUESTION["question"])

    assert work["answer"] is None
    assert [c["tool"] for c in work["calls"]] == ["none", "none"]
    assert work["calls"][0]["result"].startswith("error: reply")
    assert "calls no tool" in tools.guide(work, QUESTION).text


def work_of(*calls: tuple[str, str, str]) -> Any:
    """What the workflow gives for these calls."""
    made = [dict(zip(("tool", "input", "result"), c, strict=True)) for c in calls]
    return {"answer": made[-1]["input"] if made[-1]["tool"] == "answer" else None, "calls": made}


FOUND = [("search", title, tools.ARTICLES[title]) for title in QUESTION["articles"]]


@pytest.mark.parametrize(("calls", "right", "found", "said"), [
    ([*FOUND, ("calculator", "1871-1840", "31"), ("answer", "31", "")], 1, 1, "right, in 4 calls"),
    ([*FOUND, ("answer", "31 years.", "")], 1, 1, "right, in 3 calls"),
    ([*FOUND, ("answer", "30", "")], 0, 1, "expected '31', got '30'; it had all facts and did the sum without the calculator"),
    ([*FOUND, ("calculator", "1871-1840", "31"), ("answer", "13", "")], 0, 1, "drew the wrong conclusion"),
    ([FOUND[0], ("answer", "31 or 32", "")], 0, 0.5, "never found the article on 'Ada Krell'; it searched for ['Marrow Point']"),
    ([("search", "?", "nothing found"), ("answer", "x", "")], 0, 0, "a search for '?' found nothing"),
    ([("calculator", "the age", "error: ..."), ("answer", "x", "")], 0, 0, "was given 'the age', which is no sum of numbers"),
    ([FOUND[0], FOUND[0]], 0, 0.5, "no answer in 2 calls; it made the call search with 'Marrow Point' twice"),
])  # fmt: skip
def test_the_guide_names_the_turn_that_was_wrong(calls: Any, right: int, found: float, said: str) -> None:
    """A fact not found, a sum in the head, a wrong argument, a repeated call, no answer: each in words, with scores."""
    feedback = tools.guide(work_of(*calls), QUESTION)

    assert (feedback.score["right"], feedback.score["found"]) == (right, found)
    assert said in feedback.text


def test_questions_follow_from_the_seed_and_their_answers_from_the_articles() -> None:
    """Distinct, repeatable, and solvable: a model that can reason gets all of them right once it is told what to do."""
    made = tools.questions(tools.MOST, 5)
    agent = tools.Agent(ScriptedLLM(diligent))

    assert made == tools.questions(tools.MOST, 5) != tools.questions(tools.MOST, 6)
    assert len({example["question"] for example in made}) == tools.MOST
    with in_force({"tools.search": BY_NAME}):
        assert [e["question"] for e in made[:40] if tools.guide(agent(e["question"]), e).value != 1.0] == []


def test_training_validation_and_test_share_no_question() -> None:
    """The parts are disjoint, and their sizes are options."""
    problem = load_problem(PATH, {"train": "8", "val": "9", "test": "10"})

    parts = [{example["question"] for example in part} for part in (problem.train, problem.val, problem.test)]

    assert [len(part) for part in parts] == [8, 9, 10]
    assert len(set().union(*parts)) == 27


def test_system_text_and_every_description_reach_the_answer_recorded_as_plain() -> None:
    """All four texts are inputs of the answer, and recording changes nothing."""
    agent = tools.Agent(ScriptedLLM(diligent))
    told = {"tools.search": BY_NAME}
    with in_force(told):
        expected = agent(QUESTION["question"])
    with record(values=told) as graph:
        work = agent(QUESTION["question"])
    reached = propagate(graph, graph.output(work), Feedback(1.0))

    assert plain(work) == expected
    assert set(reached) == {"system", "tools.search", "tools.calculator", "tools.answer"}


def proposes(messages: Any) -> str:
    """Stands for an optimizer's model that acts on what the guide says."""
    seen = messages[-1]["content"]
    found = "never found the article" in seen
    return json.dumps({"reasoning": "", "values": {"tools.search": BY_NAME if found else None, "system": None}})


def test_a_rewriting_model_tunes_the_descriptions_from_the_feedback() -> None:
    """From a description that says nothing to one that the model can act on, found better on held-out questions."""
    problem = load_problem(PATH, {"rewrite": "true", "train": "8", "val": "12", "test": "14"})
    problem.workflow.llm = ScriptedLLM(diligent)

    run = problem.optimize(optimizers=[OptoPrime(ScriptedLLM(proposes))], budget=Budget(trials=2), store=None)

    assert run.best["tools.search"] == BY_NAME
    assert (run.report().start.mean, run.report().best.mean, run.report().claim) == (0.0, 1.0, "better")


def loses_the_placeholder(messages: Any) -> str:
    """Stands for an optimizer's model whose prompt has no room for the tools, and names a variable that there is not."""
    return json.dumps({"reasoning": "", "values": {"system": "Just answer {question}.", "os.system": "rm -rf /"}})


def test_a_system_text_without_the_tools_is_no_candidate() -> None:
    """Proposals that break the template are refused and told why; the run goes on and ends with the start."""
    problem = load_problem(PATH, {"rewrite": "true", "train": "8", "val": "12", "test": "2"})
    problem.workflow.llm = ScriptedLLM(diligent)
    proposer = ScriptedLLM(loses_the_placeholder)

    run = problem.optimize(optimizers=[OptoPrime(proposer)], budget=Budget(trials=2), store=None)

    assert run.best["system"] == tools.SYSTEMS[0]
    assert any("{tools}" in str(message) and "lacks" in str(message) for message in proposer.requests[1].messages)


@pytest.mark.parametrize(("options", "said"), [
    ({"steps": "0"}, "steps=0 cannot be"),
    ({"test": "0"}, "test=0, steps=6 cannot be"),
    ({"train": "100"}, "at most 120 questions together"),
    ({"rewrite": "perhaps"}, "option 'rewrite' got 'perhaps'"),
    ({"step": "3"}, "did you mean 'steps'"),
])  # fmt: skip
def test_a_wrong_option_is_one_clear_sentence(options: dict[str, str], said: str) -> None:
    """Sizes, steps, types and names of options."""
    with pytest.raises(ProblemError, match=re.escape(said)):
        load_problem(PATH, options)
