"""OptoPrime and OPRO: what they ask, what they take, and what they remember."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Demonstrations, Parameter
from trace_opt.core.rollout import Rollout, Rollouts
from trace_opt.core.tracer import record, trace
from trace_opt.errors import LLMError, ReplyError
from trace_opt.optim.base import Outcome, Proposal, Trial
from trace_opt.optim.memory import attempts, solutions
from trace_opt.optim.opro import OPRO
from trace_opt.optim.optoprime import OptoPrime
from trace_opt.optim.proposer import Proposer
from trace_opt.optim.text import tokens_in
from trace_opt.testing import ScriptedLLM

KINDS: list[type[Any]] = [OptoPrime, OPRO]


class Plan(BaseModel):
    steps: list[str]


@trace
def ask(question: str, style: str, k: int = 1) -> str:
    """Ask the model."""
    return f"{style} {question}" * k


def answer(**values: Any) -> str:
    return json.dumps({"reasoning": "because", "values": values})


def rollouts_of(style: Parameter[str], k: Parameter[int], scores: Sequence[float] = (0.2,), seed: int = 3) -> Rollouts:
    made: list[Rollout] = []
    for i, score in enumerate(scores):
        with record() as graph:
            output = ask(f"q{i}", style.value, k.value)
        node = graph.output(output)
        made.append(
            Rollout(example={"question": f"q{i}"}, graph=graph, node=node, output=node.value,
                    feedback=Feedback(score, f"too long, example {i}"))
        )  # fmt: skip
    return Rollouts(made, seed=seed)


def proposed(
    optimizer: Proposer, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial] = ()
) -> Proposal:
    return asyncio.run(optimizer.propose(parameters, rollouts, history))


def pair() -> tuple[Parameter[str], Parameter[int]]:
    return Parameter("Be kind.", name="style", description="tone"), Parameter(2, name="k")


def trial(values: dict[str, Any], after: float | None, *, accepted: bool, before: float | None = 0.5) -> Trial:
    base = {"style": "Be kind.", "k": 2}
    return Trial("OptoPrime", base, Proposal(values), Outcome(before, after, accepted))


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_proposes_for_all_parameters(kind: type[Proposer]) -> None:
    style, k = pair()
    llm = ScriptedLLM(lambda messages: answer(style="Be brief.", k=1))
    proposal = proposed(kind(llm), [style, k], rollouts_of(style, k))
    assert llm.calls == 1
    assert proposal.values == {"style": "Be brief.", "k": 1}
    assert proposal.reason == "because"
    assert proposal.notes == {"model": "scripted/test", "calls": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_proposing_writes_nothing(kind: type[Proposer]) -> None:
    style, k = pair()
    proposed(kind(ScriptedLLM(lambda messages: answer(style="Be brief."))), [style, k], rollouts_of(style, k))
    assert (style.value, k.value) == ("Be kind.", 2)


@pytest.mark.parametrize("kind", KINDS)
def test_values_left_as_they_are_are_no_proposal(kind: type[Proposer]) -> None:
    style, k = pair()
    llm = ScriptedLLM(lambda messages: answer(style="Be kind.", k=None))
    assert proposed(kind(llm), [style, k], rollouts_of(style, k)).values == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_value_costs_one_more_call_and_the_good_one_stays(kind: type[Proposer]) -> None:
    style, k = pair()
    llm = ScriptedLLM(lambda messages: answer(style="Be brief.", k="1"))
    proposal = proposed(kind(llm), [style, k], rollouts_of(style, k))
    assert llm.calls == 2
    assert proposal.values == {"style": "Be brief."}
    assert list(proposal.notes["problems"]) == ["k"]
    json.dumps(proposal.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_two_replies_without_a_usable_value_are_a_reply_error(kind: type[Proposer]) -> None:
    style, k = pair()
    with pytest.raises(ReplyError, match="no usable value") as caught:
        proposed(kind(ScriptedLLM(lambda messages: answer(k="1"))), [style, k], rollouts_of(style, k))
    assert caught.value.problems[0].startswith("k: ")


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_model_it_says_how_to_give_one(kind: type[Proposer]) -> None:
    style, k = pair()
    optimizer = kind(None)  # pyright: ignore[reportCallIssue]
    assert optimizer.needs_model
    with pytest.raises(LLMError, match=rf"{kind.__name__}\('openai/"):
        proposed(optimizer, [style, k], rollouts_of(style, k))


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_s_model_is_used_only_where_none_was_given(kind: type[Proposer]) -> None:
    style, k = pair()
    own, other = (ScriptedLLM(lambda messages: answer(k=1)) for _ in range(2))
    optimizer = kind(own)  # pyright: ignore[reportCallIssue]
    optimizer.use(other)
    proposed(optimizer, [style, k], rollouts_of(style, k))
    assert (own.calls, other.calls) == (1, 0)
    optimizer = kind(None)  # pyright: ignore[reportCallIssue]
    optimizer.use(other)
    assert not optimizer.needs_model
    proposed(optimizer, [style, k], rollouts_of(style, k))
    assert other.calls == 1


@pytest.mark.parametrize("kind", KINDS)
def test_it_handles_text_numbers_booleans_choices_and_structured_values_only(kind: type[Proposer]) -> None:
    optimizer = kind(None)  # pyright: ignore[reportCallIssue]
    yes: list[Any] = ["a", 1, 0.5, True, ["a"], {"a": 1}, Plan(steps=[])]
    no: list[Any] = [torch.zeros(2), Demonstrations(2)]
    assert all(optimizer.handles(Parameter(value, name="p")) for value in yes)
    assert optimizer.handles(Parameter("a", name="p", choices=["a", "b"]))
    assert not any(optimizer.handles(Parameter(value, name="p")) for value in no)


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_carries_schema_seed_and_bounds(kind: type[Proposer]) -> None:
    style, k = pair()
    llm = ScriptedLLM(lambda messages: answer(k=1))
    optimizer = kind(llm, max_tokens=99, temperature=0.5)  # pyright: ignore[reportCallIssue]
    proposed(optimizer, [style, k], rollouts_of(style, k, seed=2**40 + 5))
    request = llm.requests[0]
    assert request.schema is not None
    assert (request.seed, request.max_tokens, request.temperature) == (5, 99, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_question_keeps_within_its_budget(kind: type[Proposer]) -> None:
    style, k = Parameter("word " * 100, name="style"), Parameter(2, name="k")
    llm = ScriptedLLM(lambda messages: answer(k=1))
    history = [trial({"style": f"try {i} " * 500}, 0.1, accepted=False) for i in range(30)]
    optimizer = kind(llm, tokens=1500)  # pyright: ignore[reportCallIssue]
    proposed(optimizer, [style, k], rollouts_of(style, k, [0.1] * 20), history)
    question = str(llm.requests[0].messages[-1]["content"])
    assert 700 <= tokens_in(question) <= 1500
    assert "word " * 100 in question


@pytest.mark.parametrize("kind", KINDS)
def test_variables_that_do_not_fit_cost_no_call(kind: type[Proposer]) -> None:
    style, k = Parameter("word " * 3000, name="style"), Parameter(2, name="k")
    llm = ScriptedLLM(lambda messages: answer(k=1))
    with pytest.raises(ValueError, match="raise tokens"):
        proposed(kind(llm, tokens=1000), [style, k], rollouts_of(style, k))  # pyright: ignore[reportCallIssue]
    assert llm.calls == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rollouts_and_history_ask_the_same_question(kind: type[Proposer]) -> None:
    style, k = pair()
    questions: list[Any] = []
    for _ in range(2):
        llm = ScriptedLLM(lambda messages: answer(k=1))
        proposed(kind(llm), [style, k], rollouts_of(style, k), [trial({"k": 3}, 0.4, accepted=False)])  # pyright: ignore[reportCallIssue]
        questions.append(llm.requests[0])
    assert questions[0] == questions[1]


def test_optoprime_remembers_what_was_tried_rejected_attempts_included() -> None:
    style, k = pair()
    llm = ScriptedLLM(lambda messages: answer(k=1))
    history = [trial({"k": 9}, 0.1, accepted=False), trial({"style": "Be bold."}, 0.7, accepted=True)]
    proposed(OptoPrime(llm), [style, k], rollouts_of(style, k), history)
    assert (
        "# Tried before (oldest first)\n"
        "1. score 0.1, was 0.5 before, rejected\n"
        "  k = 9\n"
        "2. score 0.7, was 0.5 before, kept\n"
        '  style = "Be bold."'
    ) in str(llm.requests[0].messages[-1]["content"])


def test_memory_holds_the_latest_attempts_each_once_and_only_of_its_own_parameters() -> None:
    style, k = pair()
    history = [
        trial({"k": 3}, 0.1, accepted=False), trial({"k": 4}, 0.2, accepted=False), trial({"other": 1}, 0.9, accepted=True),
        trial({"k": 3}, 0.3, accepted=False), trial({"k": 5}, 0.4, accepted=False),
    ]  # fmt: skip
    found = attempts([style, k], history, 2)
    assert [(attempt.values, attempt.score) for attempt in found] == [({"k": 3}, 0.3), ({"k": 5}, 0.4)]


def test_optoprime_s_text_starts_with_the_objective_it_was_given() -> None:
    style, k = pair()
    llm = ScriptedLLM(lambda messages: answer(k=1))
    proposed(OptoPrime(llm, objective="Make it rhyme."), [style, k], rollouts_of(style, k))
    assert str(llm.requests[0].messages[-1]["content"]).startswith("# Instruction\nMake it rhyme.\n\n# Code\n")


def test_the_system_text_explains_every_heading_of_a_problem_and_shows_valid_json() -> None:
    style, k = pair()
    llm = ScriptedLLM(lambda messages: answer(k=1))
    proposed(OptoPrime(llm), [style, k], rollouts_of(style, k), [trial({"k": 9}, 0.1, accepted=False)])
    system, question = (str(message["content"]) for message in llm.requests[0].messages)
    titles = {line.split()[1] for line in re.findall(r"(?m)^# .*", question)} - {"Instruction", "Answer"}
    assert all(f"# {title}" in system for title in titles)
    shape = re.search(r"(?m)^\{.*\}$", system)
    assert shape is not None
    shown = json.loads(shape[0].replace("<value or null>", "null"))
    assert list(shown) == ["reasoning", "values"]


def test_opro_lists_complete_solutions_the_best_last_with_the_values_now_among_them() -> None:
    style, k = pair()
    llm = ScriptedLLM(lambda messages: answer(k=1))
    history = [trial({"k": 9}, 0.1, accepted=False), trial({"k": 4}, 0.9, accepted=True)]
    proposed(OPRO(llm), [style, k], rollouts_of(style, k, [0.4, 0.6]), history)
    question = str(llm.requests[0].messages[-1]["content"])
    ranked = re.findall(r"(?m)^\d\. score ([\d.]+)(?:, (.*))?\n  style = .*\n  k = (\d)", question)
    assert ranked == [("0.1", "", "9"), ("0.5", "the values now", "2"), ("0.9", "", "4")]


def test_opro_shows_worst_examples_without_any_graph() -> None:
    style, k = pair()
    llm = ScriptedLLM(lambda messages: answer(k=1))
    proposed(OPRO(llm, examples=1), [style, k], rollouts_of(style, k, [0.9, 0.1]))
    question = str(llm.requests[0].messages[-1]["content"])
    assert "# Example 1 (score 0.1)\nInput: {'question': 'q1'}" in question
    assert "q0" not in question
    assert "# Code" not in question


def test_solutions_are_the_best_complete_sets_and_the_latest_score_of_each() -> None:
    style, k = pair()
    history = [
        trial({"k": 9}, 0.9, accepted=True), trial({"k": 9}, 0.2, accepted=False), trial({"k": 4}, 0.6, accepted=True),
        trial({"k": 5}, None, accepted=False),
    ]  # fmt: skip
    found = solutions([style, k], history, 2)
    assert [(attempt.values["k"], attempt.score) for attempt in found] == [(2, 0.5), (4, 0.6)]


def test_the_loop_by_hand_learns_and_remembers() -> None:
    style, k = pair()
    replies = [answer(style="Be bold."), answer(style="Be brief.", k=1)]
    llm = ScriptedLLM(lambda messages: replies.pop(0))
    optimizer = OptoPrime(llm)
    for score in (0.2, 0.4):
        with record():
            output = ask("q", style.value, k.value)
        optimizer.backward(output, Feedback(score, "too long"))
        optimizer.step()
        optimizer.zero_feedback()
    assert (style.value, k.value) == ("Be brief.", 1)
    assert "1. score 0.4, was 0.2 before, kept" in str(llm.requests[1].messages[-1]["content"])
