"""Joint search over choices, suggestions and demonstration sets."""

import asyncio
import itertools
import json
import logging
import math
import random
import subprocess
import sys

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_opt.core.codec import decode, encode
from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Demonstrations, Parameter
from trace_opt.core.rollout import Rollout, Rollouts
from trace_opt.core.tracer import plain, record, trace
from trace_opt.errors import LLMError, ReplyError
from trace_opt.optim.base import Optimizer, Outcome, Proposal, Trial
from trace_opt.optim.categorical import Categorical
from trace_opt.optim.combinations import Known, Space
from trace_opt.optim.demos import Demos
from trace_opt.optim.optoprime import OptoPrime
from trace_opt.testing import ScriptedLLM


class Fixed(Optimizer):
    """A source that gives fixed values and counts how often it was asked."""

    def __init__(self, kind, answer):
        super().__init__()
        self.kind = kind
        self.answer = answer
        self.asked = 0

    def handles(self, parameter):
        return parameter.kind == self.kind

    async def propose(self, parameters, rollouts, history):
        self.asked += 1
        # lets the other proposals run while this one waits
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return Proposal(dict(self.answer))

    def state_dict(self):
        return {"asked": self.asked}

    def load_state_dict(self, state):
        self.asked = state["asked"]


def choices(*sizes):
    return [Parameter(0, name=f"p{i}", choices=list(range(size))) for i, size in enumerate(sizes)]


def rugged(sizes):
    """A sum of terms that alternate along each choice, plus a pair that pays only together; and its best."""

    def score(values):
        x = [values[f"p{i}"] for i in range(len(sizes))]
        own = sum(((3 * v + 1) % size) / size for v, size in zip(x, sizes, strict=True))
        return own + 0.6 * (x[0] == 3 and x[1] == 4)

    points = ({f"p{i}": v for i, v in enumerate(point)} for point in itertools.product(*map(range, sizes)))
    return score, max(map(score, points))


def propose(optimizer, parameters, incumbent, history, seed):
    with in_force(incumbent):
        return asyncio.run(optimizer.propose(parameters, Rollouts(seed=seed), history))


def search(optimizer, parameters, score, trials, *, seed=0, history=(), failing=lambda _: False):
    """The search of a greedy engine: one proposal at a time, accepted where its score is above the incumbent's."""
    history = list(history)
    incumbent = {p.name: p.initial for p in parameters}
    for trial in history:
        incumbent = {**trial.base, **trial.proposal.values} if trial.outcome.accepted else incumbent
    for i in range(len(history), trials):
        proposal = propose(optimizer, parameters, incumbent, history, 1000 * seed + i)
        if not proposal.values:
            break
        values = {**incumbent, **proposal.values}
        before, after = score(incumbent), None if failing(values) else score(values)
        outcome = Outcome(before, after, after is not None and after > before)
        history.append(Trial("Categorical", incumbent, proposal, outcome))
        optimizer.observe(proposal, outcome)
        incumbent = values if outcome.accepted else incumbent
    return history


def reached(history):
    return [tuple({**trial.base, **trial.proposal.values}.values()) for trial in history]


def total(values):
    return float(sum(values.values()))


@pytest.mark.parametrize("seed", range(5))
def test_five_choices_that_interact_are_solved_within_sixty_trials(seed):
    sizes = (4, 5, 4, 3, 6)
    score, best = rugged(sizes)

    history = search(Categorical(), choices(*sizes), score, 60, seed=seed)

    assert max(trial.outcome.after for trial in history) == best


def test_it_finds_more_than_as_many_random_draws_do():
    sizes = (4, 5, 4, 3, 6)
    score, _ = rugged(sizes)
    draws = random.Random(0)

    found = [max(t.outcome.after for t in search(Categorical(), choices(*sizes), score, 40, seed=s)) for s in range(5)]
    drawn = [
        max(score({f"p{i}": draws.randrange(size) for i, size in enumerate(sizes)}) for _ in range(40))
        for _ in range(5)
    ]

    assert sum(found) > sum(drawn)


def test_choices_suggested_texts_and_what_sources_handle_are_handled():
    optimizer = Categorical(sources=[Demos(), Fixed("text", {})])
    parameters = [
        Parameter("a", name="choice", choices=["a", "b"]),
        Parameter("a", name="suggested", suggestions=["b"]),
        Parameter("a", name="text"),
        Parameter(Demonstrations(), name="shown"),
        Parameter(1.0, name="number"),
        Parameter([1], name="structured"),
    ]

    assert [optimizer.handles(p) for p in parameters] == [True, True, True, True, False, False]
    assert [Categorical().handles(p) for p in parameters] == [True, True, False, False, False, False]


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_every_combination_is_tried_once_before_it_says_that_all_were(sizes, seed):
    parameters = choices(*sizes)

    history = search(Categorical(), parameters, total, 100, seed=seed)

    assert len(history) == math.prod(sizes) - 1
    assert len({(0,) * len(sizes), *reached(history)}) == math.prod(sizes)
    last = propose(Categorical(), parameters, {}, history, seed)
    assert not last.values
    assert "have been tried" in last.reason or math.prod(sizes) == 1


@given(count=st.integers(1, 11), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_proposals_made_at_once_are_distinct(count, seed):
    optimizer, parameters = Categorical(), choices(3, 4)

    async def at_once():
        return await asyncio.gather(*(optimizer.propose(parameters, Rollouts(seed=seed), []) for _ in range(count)))

    proposals = asyncio.run(at_once())

    assert len({(p.values.get("p0", 0), p.values.get("p1", 0)) for p in proposals} - {(0, 0)}) == count


def test_more_proposals_at_once_than_combinations_are_left_empty():
    optimizer, parameters = Categorical(), choices(3)

    proposals = [propose(optimizer, parameters, {}, [], seed) for seed in range(3)]

    assert [bool(p.values) for p in proposals] == [True, True, False]


@given(cut=st.integers(0, 24), seed=st.integers(0, 20))
@settings(max_examples=15, deadline=None)
def test_a_resumed_search_goes_on_as_an_uninterrupted_one(cut, seed):
    sizes = (3, 4, 5, 2)
    score, _ = rugged(sizes)
    whole = search(Categorical(), choices(*sizes), score, 25, seed=seed)
    before = Categorical()
    half = search(before, choices(*sizes), score, cut, seed=seed)
    state = json.loads(json.dumps(before.state_dict()))

    after = Categorical()
    after.load_state_dict(state)
    resumed = search(after, choices(*sizes), score, 25, seed=seed, history=half)

    assert reached(resumed) == reached(whole)


def test_proposals_in_flight_survive_in_the_state():
    first, second, parameters = Categorical(), Categorical(), choices(5)
    opened = [propose(first, parameters, {}, [], seed).values for seed in range(3)]

    second.load_state_dict(json.loads(json.dumps(first.state_dict())))

    proposal = propose(second, parameters, {}, [], 9)
    assert proposal.values not in opened
    assert proposal == propose(first, parameters, {}, [], 9)


def test_a_failed_trial_is_not_repeated():
    history = search(Categorical(), choices(3, 3), total, 20, failing=lambda values: values["p0"] == 2)

    assert len(reached(history)) == len(set(reached(history))) == 8
    assert any(trial.outcome.after is None for trial in history)


def test_trials_of_other_optimizers_that_leave_its_parameters_alone_are_not_counted_as_tried():
    base = {"p0": 0, "text": "a"}
    other = Trial("OptoPrime", base, Proposal({"text": "b"}), Outcome(0.1, 0.9, True))

    known = Known.of(Space.of(choices(2), {}, [other]), [other])

    assert known.values == {(0,): 0.0}
    assert not known.tried


@given(
    steps=st.lists(st.tuples(st.integers(1, 4), st.integers(-9, 9)), min_size=1, max_size=6, unique_by=lambda s: s[0])
)
def test_worth_adds_up_along_accepted_trials_whatever_examples_each_was_tested_on(steps):
    offset, base, history, worth = 0, 0, [], {0: 0}
    for value, gain in steps:
        offset += 100  # each trial is tested on examples of another difficulty
        trial = Trial("x", {"p0": base}, Proposal({"p0": value}), Outcome(offset, offset + gain, gain > 0))
        history.append(trial)
        worth[value] = worth[base] + gain
        base = value if gain > 0 else base

    with in_force({"p0": base}):
        known = Known.of(Space.of(choices(5), {}, history), history)

    assert known.values == {(value,): expected for value, expected in worth.items()}
    assert known.incumbent == (base,)


def test_texts_and_demonstrations_of_its_sources_are_searched_with_the_choices():
    text = Parameter("a", name="text", suggestions=["b"])
    shown = Parameter(Demonstrations(2), name="shown")
    choice = Parameter("x", name="choice", choices=["x", "y"])
    train = [{"q": str(i), "answer": "ab"[i % 2]} for i in range(10)]
    optimizer = Categorical(sources=[Fixed("text", {"text": "c"}), Demos(sets=2)])
    parameters, history = [text, shown, choice], []

    for i in range(17):
        with in_force({}):
            proposal = asyncio.run(optimizer.propose(parameters, Rollouts(train=train, seed=i), history))
        history.append(Trial("Categorical", {p.name: p.initial for p in parameters}, proposal, Outcome(0, 0, False)))
        optimizer.observe(proposal, history[-1].outcome)

    assert len({str(trial.proposal.values) for trial in history}) == 17
    assert {trial.proposal.values.get("text", "a") for trial in history} == {"a", "b", "c"}
    assert {len(trial.proposal.values.get("shown", ())) for trial in history} == {0, 2}


def asked_for_texts(replies: list[str], alternatives: int = 4) -> tuple[list[str], ScriptedLLM]:
    """What a search over one text is given by OptoPrime, and the model that it asked."""
    left = iter(replies)
    model = ScriptedLLM(lambda _: next(left))
    text = Parameter("a", name="text")
    op = trace(lambda: text.value, name="read")
    with record() as graph:
        output = op()
    rollout = Rollout(
        values={"text": "a"}, seed=0, graph=graph, node=graph.output(output), output="a", feedback=Feedback(0.0, "no")
    )
    optimizer = Categorical(sources=[OptoPrime(model, alternatives=alternatives)])
    with in_force({}):
        asyncio.run(optimizer.propose([text], Rollouts([rollout], seed=0), []))
    return (optimizer._found or {})["text"], model


def reply_of(text: str) -> str:
    return json.dumps({"reasoning": "", "values": {"text": text}})


def test_a_language_model_as_a_source_gives_several_texts_each_asked_for_with_the_earlier_ones_shown():
    found, model = asked_for_texts([reply_of(text) for text in ("b", "c", "d", "e")])
    assert found == ["b", "c", "d", "e"]
    prompts = [request.messages[-1]["content"] for request in model.requests]
    assert ["Suggested already" in prompt for prompt in prompts] == [False, True, True, True]
    assert all(f'text = "{text}"' in prompts[3] for text in "bcd")


def test_a_bad_reply_costs_one_text_and_two_without_news_end_the_asking():
    found, model = asked_for_texts([reply_of("b"), "no", reply_of("c"), reply_of("b"), reply_of("c"), reply_of("x")], 8)
    assert found == ["b", "c"]
    assert len({request.seed for request in model.requests}) == len(model.requests) == 5


def test_sources_are_asked_once_even_by_proposals_made_at_once():
    source = Fixed("text", {"text": "c"})
    optimizer, parameters = Categorical(sources=[source]), [Parameter("a", name="text", suggestions=["b", "d"])]

    async def twice():
        for _ in range(2):
            await asyncio.gather(*(optimizer.propose(parameters, Rollouts(seed=i), []) for i in range(2)))

    asyncio.run(twice())

    assert source.asked == 1


def test_rollouts_are_wanted_for_the_sources_only_and_only_once():
    optimizer = Categorical(sources=[Fixed("text", {"text": "c"})])
    before = optimizer.wants_rollouts
    propose(optimizer, [Parameter("a", name="text")], {}, [], 0)

    assert (before, optimizer.wants_rollouts, Categorical().wants_rollouts) == (True, False, False)


def test_what_sources_gave_is_kept_in_the_state():
    parameters = [Parameter("a", name="text")]
    first, second = (Categorical(sources=[Fixed("text", {"text": "c\x00\ud800"})]) for _ in range(2))
    propose(first, parameters, {}, [], 0)

    second.load_state_dict(json.loads(json.dumps(first.state_dict())))

    assert second.sources[0].asked == 1
    assert second.state_dict() == first.state_dict()


def test_an_empty_state_forgets_what_another_run_left():
    optimizer = Categorical()
    fresh = optimizer.state_dict()
    propose(optimizer, choices(3), {}, [], 0)

    optimizer.load_state_dict({})

    assert optimizer.state_dict() == fresh


def test_a_source_that_gives_no_usable_reply_is_noted_and_the_search_goes_on():
    optimizer = Categorical(sources=[Fixed("text", ReplyError("the reply holds no JSON"))])

    proposal = propose(optimizer, [Parameter("a", name="text", suggestions=["b"])], {}, [], 0)

    assert proposal.values == {"text": "b"}
    assert proposal.notes["problems"] == ["Fixed: the reply holds no JSON"]


def test_a_value_that_its_parameter_does_not_allow_is_left_out_and_noted():
    optimizer = Categorical(sources=[Fixed("text", {"text": 3})])

    proposal = propose(optimizer, [Parameter("a", name="text", suggestions=["b"])], {}, [], 0)

    assert proposal.values == {"text": "b"}
    assert "'text' got 3" in proposal.notes["problems"][0]


def test_a_source_whose_model_cannot_be_reached_is_asked_again_the_next_time():
    source = Fixed("text", LLMError("no connection", kind="connection"))
    optimizer, parameters = Categorical(sources=[source]), [Parameter("a", name="text")]

    with pytest.raises(LLMError, match="no connection"):
        propose(optimizer, parameters, {}, [], 0)
    source.answer = {"text": "c"}

    assert propose(optimizer, parameters, {}, [], 1).values == {"text": "c"}


def test_the_first_source_that_handles_a_parameter_is_the_only_one_asked_about_it():
    first, second = Fixed("text", {"text": "c"}), Fixed("text", {"text": "d"})

    propose(Categorical(sources=[first, second]), [Parameter("a", name="text")], {}, [], 0)

    assert (first.asked, second.asked) == (1, 0)


def test_a_source_that_needs_a_model_gets_the_runs():
    source = Fixed("text", {})
    source.needs_model, source.use = True, lambda llm: setattr(source, "needs_model", llm is None)
    optimizer = Categorical(sources=[source, Demos()])
    needed = optimizer.needs_model

    optimizer.use("the run's model")

    assert (needed, optimizer.needs_model) == (True, False)


def test_a_value_written_by_hand_becomes_one_of_the_options():
    parameter = Parameter("a", name="text", suggestions=["b"])
    history = [Trial("Categorical", {"text": "a"}, Proposal({"text": "b"}), Outcome(0, 1, True))]

    proposal = propose(Categorical(), [parameter], {"text": "mine"}, history, 0)

    assert not proposal.values
    assert proposal.reason == "all 3 combinations have been tried"


@pytest.mark.parametrize("options", [[True, 1, 1.0], [{"a": 1}, {"a": [2]}, {}], [None, "None", ()], [[1], [1, 2], []]])
def test_options_may_be_values_that_optuna_cannot_tell_apart_or_hash(options):
    parameter = Parameter(options[0], name="choice", choices=options)

    history = search(Categorical(), [parameter], lambda values: float(values["choice"] == options[2]), 10)

    assert [repr(trial.proposal.values["choice"]) for trial in history] in (
        [repr(options[i]) for i in order] for order in ((1, 2), (2, 1), (2, 1, 0))
    )


def test_values_that_went_through_the_store_are_recognised():
    parameter = Parameter(Demonstrations(1), name="shown")
    train = [{"q": "x"}, {"q": "y"}, {"q": "z"}]
    optimizer, history = Categorical(sources=[Demos(sets=3)]), []

    for seed in range(4):
        proposal = asyncio.run(optimizer.propose([parameter], Rollouts(train=train, seed=seed), history))
        stored = {name: decode(json.loads(json.dumps(encode(v)))) for name, v in proposal.values.items()}
        history.append(Trial("Categorical", {"shown": Demonstrations(1)}, Proposal(stored), Outcome(0, 0, False)))
        optimizer.observe(Proposal(stored), history[-1].outcome)

    assert [len(trial.proposal.values.get("shown", ())) for trial in history] == [1, 1, 1, 0]


def test_by_hand_every_combination_is_seen_and_the_values_are_written():
    tone = Parameter("dull", name="tone", choices=["dull", "warm", "rude"])
    word = Parameter("hi", name="word", suggestions=["hello"])

    @trace
    def greet(name):
        return f"{tone.value} {word.value} {name}"

    optimizer, seen = Categorical(), []
    for _ in range(6):
        with record() as graph:
            output = greet("Ada")
        seen.append(plain(output))
        optimizer.backward(output, float("warm hello" in plain(output)))
        optimizer.step()
        optimizer.zero_feedback()

    assert len(set(seen)) == 6
    assert graph.output(output).value == seen[-1]


def test_the_reason_says_what_changes_and_how_it_was_found():
    proposal = propose(Categorical(), [Parameter("a", name="tone", choices=["a", "b"])], {}, [], 0)

    assert proposal.reason == "a look around after 0 trials: tone = 'b'"
    assert proposal.notes == {"how": "a look around"}


def test_optunas_own_logging_is_left_as_it_was(capfd):
    optuna.logging.set_verbosity(logging.WARNING)

    search(Categorical(), choices(3, 3), total, 8)

    assert optuna.logging.get_verbosity() == logging.WARNING
    assert capfd.readouterr() == ("", "")


def test_optuna_is_not_imported_before_it_is_needed():
    code = "import sys, trace_opt.optim.categorical; print('optuna' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def test_a_start_of_no_trials_is_refused():
    with pytest.raises(ValueError, match="startup=0; give at least 1"):
        Categorical(startup=0)
