"""Training the model that an optimizer asks: replies are rated, the best is proposed, and all are learned from."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.refine import children
from tests.refine.tables import Table
from trace_opt import Beam, Budget, Feedback, Greedy, OptoPrime, Parameter, Pareto, optimize, trace
from trace_opt.core.adapter import Adapter
from trace_opt.core.codec import decode, encode
from trace_opt.errors import BudgetError, TraceError
from trace_opt.optim.base import Optimizer, Outcome, Proposal
from trace_opt.problem import Problem
from trace_opt.refine.over import Over, standing
from trace_opt.refine.refiner import Refiner
from trace_opt.search.rolling import Roller
from trace_opt.store.store import open_store
from trace_opt.testing import OptimizerContract, ScriptedLLM

UP, DOWN, SAME, WORDS = '{"values": {"x": 3.0}}', '{"values": {"x": -8.0}}', '{"values": {"x": 1.0}}', "I cannot say."
TRAIN = [{"wanted": 2.0 + i / 8} for i in range(8)]


def knob() -> Parameter[float]:
    return Parameter(1.0, name="x")


def writer(**options: Any) -> Table:
    return Table((UP, DOWN, SAME, WORDS), **options)


def over(policy: Any, **options: Any) -> Over:
    return Refiner.over(OptoPrime(policy, tokens=2000), **{"lr": 0.3, "kl": 0.0, **options})


@trace
def turn(x: float) -> float:
    return x


def distance(output: float, example: dict[str, float]) -> Feedback:
    return Feedback(-abs(output - example["wanted"]), "come nearer")


def run(optimizer: Optimizer, **options: Any) -> Any:
    x = knob()
    given: dict[str, Any] = {"parameters": [x], "val": TRAIN, "store": None, "budget": Budget(trials=12), **options}
    return optimize(lambda wanted: turn(x.value), TRAIN, distance, optimizers=[optimizer], **given)


def fixed(optimizer: Optimizer, trials: int = 12, **options: Any) -> Any:
    """A run whose incumbent never moves, so that every problem is the first one."""
    from trace_opt.search.gate import Gate

    never = Gate(alpha=1e-9, gamma=0.0, kind="flips")
    return run(optimizer, search=Greedy(gate=never), budget=Budget(trials=trials), **options)


# -- what replies are worth --------------------------------------------------------------------------------------------


def test_a_standing_has_no_scale_and_an_unusable_reply_the_lowest() -> None:
    assert standing([4.0, 2.0, 0.0, -1.0, -4.0, None]) == [2.0, 1.5, 0.0, -0.25, -1.0, -2.0]
    assert standing([None, 0.0]) == [-2.0, 0.0]
    assert standing([0.001]) == [2.0]


@given(st.lists(st.one_of(st.none(), st.integers(-999, 999)), min_size=1), st.floats(1e-3, 1e3))
def test_standings_keep_the_order_of_gains_and_ignore_their_unit(gains: list[int | None], unit: float) -> None:
    found = standing(gains)
    order = sorted(range(len(gains)), key=lambda i: -2e6 if (g := gains[i]) is None else g)
    assert [found[i] for i in order] == sorted(found)
    scaled = standing([None if gain is None else gain * unit for gain in gains])
    assert scaled == pytest.approx(found)


# -- it learns ---------------------------------------------------------------------------------------------------------


def test_the_model_learns_to_give_the_reply_that_helps() -> None:
    """From one reply in four the right one becomes the likeliest by far; the adapter is no value of the workflow."""
    policy = writer()
    optimizer = over(policy)
    found = fixed(optimizer, 15)
    chances = policy.chances(optimizer.adapter)[0]
    assert chances[0] > 0.8, chances
    assert optimizer.updates >= 10
    assert optimizer.curve[0]["usable"] < 1
    assert set(found.start) == {"x"}
    assert not policy.adapter.value


def test_the_best_of_the_replies_is_proposed() -> None:
    found = run(over(writer(), completions=12), budget=Budget(trials=1))
    assert found.history[0].changed == {"x": 3.0}
    notes = found.history[0].notes
    assert notes["replies"] == 12
    assert 0 < notes["better"] < notes["usable"] < 12
    assert notes["gain"] > 0


def test_equal_replies_are_run_once() -> None:
    """Twelve replies, of which two change the value: two points of eight rollouts, whatever the number of replies."""
    x, runs = knob(), [0]

    def workflow(wanted: float) -> float:
        runs[0] += 1
        return turn(x.value)

    optimize(
        workflow, TRAIN, distance, parameters=[x], val=TRAIN, store=None, optimizers=[over(writer(), completions=12)],
        budget=Budget(trials=1), search=Greedy(gate=None),
    )  # fmt: skip
    assert runs[0] == 8 + 2 * 8 + 8  # the minibatch, the two values, the end


def test_unusable_replies_alone_are_a_reply_error_and_teach_nothing() -> None:
    optimizer = over(writer(start=(0.0, 0.0, 0.0, 40.0)))
    found = run(optimizer, budget=Budget(trials=2))
    assert (
        "none of 8 replies changes a value; of the last that could not be used it was said: "
        in found.history[0].verdict
    )
    assert optimizer.updates == 0


def test_usable_replies_that_change_nothing_still_teach_the_form() -> None:
    """Where no value helps yet, a reply that can be read is better than one that cannot."""
    optimizer = over(writer(start=(-40.0, -40.0, 1.0, 1.0)))
    run(optimizer, budget=Budget(trials=6))
    assert optimizer.updates > 0
    chances = optimizer.policy.chances(optimizer.adapter)[0]  # pyright: ignore[reportAttributeAccessIssue]
    assert chances[2] > 0.6 > 0.4 > chances[3]


def test_with_one_reply_it_learns_from_what_the_search_finds_out() -> None:
    policy = writer()
    optimizer = over(policy, completions=1, tasks=4, estimator="reinforce", baseline="running")
    fixed(optimizer, 80)
    assert optimizer.updates >= 15
    assert policy.chances(optimizer.adapter)[0, 0] > 0.5


def test_it_starts_from_what_the_policy_was_warmed_to_after_it_was_made() -> None:
    policy = writer()
    optimizer = over(policy)
    with policy.lock:
        policy.logits.data[:, 0] += 5.0
        policy.adapter.value = policy.dump()
        policy.load(Adapter())
    assert optimizer.adapter == policy.adapter.value
    run(optimizer, budget=Budget(trials=1))
    assert optimizer.curve[0]["better"] > 0.8


def test_several_problem_texts_make_one_update() -> None:
    optimizer = over(writer(), tasks=3)
    fixed(optimizer, 9)
    assert 1 <= optimizer.updates <= 3


def test_a_budget_that_does_not_cover_the_replies_ends_the_search() -> None:
    """Replies of a local model are free, so a search that could run none of them would go on for ever."""
    found = run(over(writer(), completions=12), budget=Budget(rollouts=8 + 8 + 16 + 16 + 10))
    assert "the budget is spent" in found.ended
    with pytest.raises(BudgetError):
        run(over(writer(), completions=12), budget=Budget(rollouts=8 + 8 + 8))


# -- asking ------------------------------------------------------------------------------------------------------------


def test_the_optimizer_asks_once_for_each_reply_and_every_reply_begins_with_the_prefill() -> None:
    """What would be asked about a wrong value is not: a reply stands by itself. One draw makes all replies."""
    policy = Table(('"3.0"}}', "3.0}}"))
    seen: list[Any] = []
    sample = policy.sample

    def watched(prompts: Any, n: int = 1, **options: Any) -> Any:
        seen.append((prompts, n, options["max_tokens"], options["temperature"]))
        return sample(prompts, n, **options)

    policy.sample = watched  # pyright: ignore[reportAttributeAccessIssue]
    optimizer = over(policy, prefill='{"values": {"x": ', max_tokens=30, temperature=0.7)
    found = run(optimizer, budget=Budget(trials=1))
    assert found.history[0].changed == {"x": 3.0}
    [(prompts, n, max_tokens, temperature)] = seen
    assert (n, max_tokens, temperature) == (8, 30, 0.7)
    assert prompts[0][-1] == {"role": "assistant", "content": '{"values": {"x": '}
    assert [message["role"] for message in prompts[0]] == ["system", "user", "assistant"]


def test_only_an_optimizer_that_asks_a_trainable_model_can_be_trained() -> None:
    with pytest.raises(ValueError, match="no trainable model"):
        Refiner.over(OptoPrime(ScriptedLLM(lambda _: "")))
    with pytest.raises(ValueError, match="no trainable model"):
        Refiner.over(Refiner(writer()))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"completions": 0}, "completions=0"),
        ({"completions": 1}, "completions=1 draws one"),
        ({"estimator": "gpro"}, "did you mean 'grpo'"),
        ({"clipp": 2.0}, "did you mean 'clip'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        over(writer(), **options)


def test_an_estimator_that_draws_elsewhere_is_refused() -> None:
    with pytest.raises(TraceError, match="draws at weights of its own"):
        run(over(writer(), estimator="n-pg-igt"))


def test_by_hand_one_reply_is_drawn_and_several_are_refused() -> None:
    from trace_opt import record

    x = knob()

    def stepped(optimizer: Over, steps: int) -> None:
        for seed in range(steps):
            x.value = 1.0
            with record(seed=seed) as graph:
                output = turn(x.value)
            optimizer.backward(output, distance(1.0, TRAIN[0]))
            assert graph is not None
            try:
                optimizer.step()
            finally:
                optimizer.zero_feedback()
            with record(seed=seed):
                output = turn(x.value)
            optimizer.backward(output, distance(x.value, TRAIN[0]))

    with pytest.raises(TraceError, match="completions=1"):
        stepped(over(writer()), 1)
    only = over(writer(start=(0.0, 0.0, 0.0, -40.0)), completions=1, estimator="reinforce", baseline="running")
    stepped(only, 6)
    assert only.updates > 0


# -- state -------------------------------------------------------------------------------------------------------------


def test_its_state_is_data_and_another_goes_on_from_it_bit_for_bit() -> None:
    first = over(writer(), tasks=2)
    fixed(first, 5)
    state = json.loads(json.dumps(encode(first.state_dict())))
    second = over(writer(), tasks=2)
    second.load_state_dict(decode(state))
    assert second.adapter == first.adapter
    for optimizer in (first, second):
        fixed(optimizer, 4, seed=7)
    assert second.adapter == first.adapter
    assert second.updates == first.updates
    assert json.dumps(encode(second.state_dict())) == json.dumps(encode(first.state_dict()))


class TestContract(OptimizerContract):
    """What every optimizer keeps to."""

    def optimizer(self) -> Over:
        return over(writer(start=(0.0, 0.0, 0.0, -9.0)), completions=4)

    def problem(self) -> Problem:
        x = knob()
        return Problem(workflow=lambda wanted: turn(x.value), train=TRAIN, guide=distance, parameters=[x])


@pytest.mark.parametrize(
    "search", [Greedy(), Greedy(width=3), Beam(beam=2, proposals=1), Pareto(parents=2, proposals=1)]
)
@pytest.mark.parametrize("completions", [4, 1])
def test_a_run_that_is_stopped_ends_bit_identical(
    tmp_path: Path, search: Any, completions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, estimator and replies that wait to be learned from are kept with the proposals they led to."""

    def made(store: str, resume: str | None = None) -> Any:
        options = {} if completions > 1 else {"estimator": "reinforce", "baseline": "running"}
        optimizer = over(writer(), completions=completions, tasks=2, **options)
        found = run(
            optimizer, store=tmp_path / store, resume=resume, search=search, seed=1, budget=Budget(trials=12)
        )  # fmt: skip
        return children.told(found), optimizer.adapter, optimizer.updates, optimizer.curve

    whole = made("whole.db")
    assert whole[2] > 0
    roll, seen = Roller.run, [0]

    def stop(self: Roller, job: Any) -> Any:
        seen[0] += 1
        if seen[0] == (60 if completions > 1 else 20):
            raise KeyboardInterrupt
        return roll(self, job)

    monkeypatch.setattr(Roller, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        made("cut.db")
    store = open_store(tmp_path / "cut.db")
    cut = store.load("last").info.id
    store.close()
    assert made("cut.db", cut) == whole


def test_what_comes_of_a_proposal_is_handed_on() -> None:
    """The optimizer that is trained hears of outcomes as if it were alone."""
    optimizer = over(writer())
    heard: list[Any] = []
    optimizer.optimizer.observe = lambda *given: heard.append(given)  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.observe(Proposal({"x": 3.0}), Outcome(0.0, 1.0, accepted=True))
    assert len(heard) == 1


def test_the_model_is_not_asked_beside_its_training() -> None:
    from trace_opt.errors import LLMError

    optimizer = over(writer())
    llm: Any = optimizer.optimizer._llm
    with pytest.raises(LLMError, match="being trained"):
        asyncio.run(llm.asend(llm.request("hi")))
