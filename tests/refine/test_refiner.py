"""The refiner: phases of every estimator, what it pays for, what it is held to, how it goes on after a kill."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.refine import children
from tests.refine.children import TASKS, WAYS, Agent, table, told
from tests.refine.tables import Table
from tests.refine.tiny_llama import HOME, tiny_policy
from trace_opt import Beam, Budget, Greedy, Pareto, optimize, record
from trace_opt.core.adapter import Adapter
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Rollouts
from trace_opt.errors import BudgetError, TraceError
from trace_opt.problem import Problem
from trace_opt.refine.estimators.grpo import GRPO
from trace_opt.refine.estimators.named import Recipe, names
from trace_opt.refine.guards import PolicyGuards
from trace_opt.refine.refiner import Refiner
from trace_opt.search.rolling import Roller
from trace_opt.store.store import open_store
from trace_opt.testing import OptimizerContract

LR = {"grpo": 0.3, "unbiased-grpo": 0.3, "ppo": 0.1, "reinforce": 0.3, "harpg": 10.0, "n-harpg": 0.7}


def rightness(policy: Table, adapter: Adapter) -> float:
    """How likely it says the right way, at the place where that is least likely."""
    return float(policy.chances(adapter).diagonal().min())


# -- it learns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", names())
def test_every_estimator_learns_in_a_phase(estimator: str) -> None:
    """N-PG-IGT samples at extrapolated weights and HARPG twice an update; all are driven through asynchronous rollouts."""
    agent = Agent.of(table(), completions=8, pairs=3)
    refiner = Refiner(agent.policy, estimator, lr=LR.get(estimator), updates=40, tasks=3, kl=0.0, patience=40)
    run = agent.optimize(refiner)
    assert run.history[0].accepted, run.history[0].verdict
    assert rightness(agent.policy, run.best["table"]) > 0.7
    assert not agent.policy.adapter.value, "the search writes no parameter"


@pytest.mark.parametrize("estimator", names())
def test_every_estimator_trains_a_language_model(estimator: str) -> None:
    """LoRA weights of a tiny Llama: HARPG differentiates twice through its attention."""
    agent = Agent.of(tiny_policy())
    run = agent.optimize(Refiner(agent.policy, estimator, updates=2, patience=9, tasks=3), search=Greedy(gate=None))
    assert run.history[0].notes["learned"] > 0
    assert run.best["tiny"].tensors()
    assert all(bool(weight.isfinite().all()) for weight in run.best["tiny"].tensors().values())


@pytest.mark.parametrize(("estimator", "distinct"), [("grpo", 4), ("n-pg-igt", 4), ("n-harpg", 7)])
def test_an_estimator_samples_where_it_wants_to(estimator: str, distinct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts run under the weights of each draw: the iterate, a point beyond it, or two points; none is mixed up."""
    agent = Agent.of(table(), completions=12)
    drawn: list[bytes] = []
    sample, batch = Table.sample, Table.batch

    def sampled(self: Table, prompts: Any, n: int = 1, **options: Any) -> Any:
        if n > 1:
            drawn.append(self.dump().data)
        return sample(self, prompts, n, **options)

    def batched(self: Table, *given: Any) -> Any:
        assert self.dump().data == drawn[-1], "the batch is scored elsewhere than it was drawn"
        return batch(self, *given)

    monkeypatch.setattr(Table, "sample", sampled)
    monkeypatch.setattr(Table, "batch", batched)
    agent.optimize(Refiner(agent.policy, estimator, updates=4, tasks=6, patience=9, kl=0.0), search=Greedy(gate=None))
    assert len(set(drawn)) == distinct


def test_an_async_agent_learns_the_same_whatever_runs_at_once() -> None:
    """Draws call back into the event loop, whose rollouts run beside each other."""

    async def attempt(place: int, reflection: str) -> str:
        await asyncio.sleep(0)
        return children.attempt(place, reflection)

    found = []
    for concurrency in (1, 4):
        policy = table()
        agent = Agent(policy, replace(Agent.of(policy).episodes, attempt=attempt))
        found.append(agent.optimize(Refiner(agent.policy, updates=5, lr=0.3, kl=0.0), concurrency=concurrency))
    assert told(found[0]) == told(found[1])
    assert found[0].best["table"]


def test_an_estimator_may_be_a_class_or_a_function() -> None:
    for make in (GRPO, lambda policy, *, lr, kl: GRPO(policy, lr=lr, kl=kl)):
        agent = Agent.of(table())
        run = agent.optimize(Refiner(agent.policy, make, updates=3, lr=0.3, kl=0.0))
        assert run.history[0].notes["learned"] == 3


def test_a_second_phase_goes_on_from_the_first_ones_state() -> None:
    """Two phases of five updates end where one of ten does, tasks and draws aside: the estimator's state is handed on."""
    agent = Agent.of(table())
    refiner = Refiner(agent.policy, updates=5, lr=0.3, kl=0.0, patience=9)
    run = agent.optimize(refiner, budget=Budget(trials=2))
    assert [trial.notes["total"] for trial in run.history] == [5, 10]
    states = refiner.state_dict()["states"]
    assert {state["estimator"]["updates"] for state in states.values()} == {
        run.history[0].notes["learned"], run.history[0].notes["learned"] + run.history[1].notes["learned"]
    }  # fmt: skip


# -- what earns, and what is paid for ------------------------------------------------------------------------------------


def test_groups_that_say_nothing_are_left_out_before_anything_is_computed_of_them() -> None:
    """The batch that is scored holds the completions of unequal groups alone, and the direction is the same without them."""
    agent = Agent.of(table(), completions=4)
    run = agent.optimize(Refiner(agent.policy, updates=12, lr=0.1, kl=0.0, tasks=4, patience=12))
    curve, completions = run.history[0].notes["curve"], run.history[0].notes["guards"]["completions"]
    silent = sum(round(share * 4) for share in curve["silent"] if share < 1)
    assert silent > 0
    assert agent.policy.scored < completions


def test_a_phase_ends_where_nothing_is_left_to_learn() -> None:
    """Generation would be paid for nothing: the policy always says the same."""
    agent = Agent.of(table(start=(0.0, 0.0, 0.0, 50.0)))
    run = agent.optimize(Refiner(agent.policy, updates=30, patience=4))
    assert not run.history
    assert agent.policy.scored == 0
    assert agent.policy.sampled < 30 * 2 * 6 / 2


def test_a_completion_that_is_to_be_compared_with_none_is_refused() -> None:
    agent = Agent.of(table(), completions=1)
    with pytest.raises(ValueError, match="draw at least two"):
        agent.optimize(Refiner(agent.policy, updates=3))
    agent = Agent.of(table(), completions=1, pairs=8)
    run = agent.optimize(Refiner(agent.policy, "reinforce", baseline="running", updates=3, tasks=6, lr=0.1))
    assert run.history[0].notes["learned"] > 0


def test_a_reward_of_ones_own_takes_the_place_of_the_change_of_return() -> None:
    agent = Agent.of(table())
    seen = []

    def reward(completions: Any) -> list[float]:
        seen.extend(completions.texts)
        return [float(text == "hm") for text in completions.texts]

    run = agent.optimize(Refiner(agent.policy, updates=8, lr=0.5, reward=reward), search=Greedy(gate=None))
    assert seen
    assert agent.policy.chances(run.best["table"])[:, 3].min() > 0.5


def test_with_a_reward_no_attempts_need_be_paid_for_to_tell_what_reflections_are_worth() -> None:
    """The same training and the same adapter with pairs=0, for the episodes' own attempts alone; by itself it is refused."""

    def reward(completions: Any) -> list[float]:
        return [float(text == "hm") for text in completions.texts]

    def trained(pairs: int) -> tuple[Any, int]:
        agent = Agent.of(table(), pairs=pairs)
        attempts = 0
        made = agent.episodes.attempt

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal attempts
            attempts += 1
            return made(*args, **kwargs)

        functools.update_wrapper(counted, made)
        agent = replace(agent, episodes=replace(agent.episodes, attempt=counted))
        run = agent.optimize(Refiner(agent.policy, updates=4, lr=0.5, reward=reward), search=Greedy(gate=None))
        return run.best["table"], attempts

    (paid, many), (free, few) = trained(3), trained(0)
    assert paid == free
    assert many > 2 * few
    agent = Agent.of(table(), pairs=0)
    with pytest.raises(TraceError, match=r"drawn with pairs=0.*give Episodes\(pairs=...\) of at least 1, or Refiner"):
        agent.optimize(Refiner(agent.policy, updates=1))


@pytest.mark.parametrize("given", [[float("nan")] * 8, [1.0], None, 1.0, "abcdefgh"])
def test_rewards_that_are_no_numbers_are_refused_before_any_weight_takes_them(given: Any) -> None:
    agent = Agent.of(table(), completions=8)
    with pytest.raises(TraceError, match=r"the reward of 8 completions is .*list of 8 finite numbers"):
        agent.optimize(Refiner(agent.policy, updates=2, reward=lambda _: given))


def test_a_policy_that_wrote_none_of_the_reflections_is_refused() -> None:
    """It would be trained on what another said."""
    agent, other = Agent.of(table()), Agent.of(table(name="other"))
    with pytest.raises(TraceError, match="adapter 'other' did not write"):
        optimize(
            agent.episodes, TASKS, agent.episodes.scored, parameters=[other.policy.adapter],
            optimizers=[Refiner(other.policy, updates=2)], margins=agent.episodes.margins, store=None,
            budget=Budget(trials=1),
        )  # fmt: skip


def test_why_nothing_was_proposed_is_told() -> None:
    """Every training rollout fails for want of a list of labels; the run ends with that, not with nothing."""
    agent = Agent.of(table(), labels=lambda _: "go left")
    with pytest.raises(TraceError, match="'go left', a text, whose letters are no labels"):
        agent.optimize(Refiner(agent.policy, updates=1, reward="exact"))
    agent = Agent.of(table())
    run = agent.optimize(Refiner(agent.policy, updates=4, patience=2, reward=lambda found: [1.0] * len(found.texts)))
    assert "(Refiner: 2 updates of grpo" in run.ended.lower().replace("refiner", "Refiner")
    assert "nothing changed" in run.ended


def test_labels_are_matched_exactly() -> None:
    """A reward that holds for the whole label alone: no share of its words, no longer text."""
    agent = Agent.of(table(), labels=lambda task: [f"Go {WAYS[task['place']]}!"])
    run = agent.optimize(Refiner(agent.policy, updates=20, tasks=3, lr=0.5, reward="exact", kl=0.0))
    assert rightness(agent.policy, run.best["table"]) > 0.8
    agent = Agent.of(table())
    with pytest.raises(TraceError, match="no labels"):
        agent.optimize(Refiner(agent.policy, updates=1, reward="exact"))


def test_what_was_trained_for_a_reward_of_its_own_has_to_be_found_better() -> None:
    """A phase is kept unless it is worse; one whose reward says nothing of the score is not, and comes to nothing here."""
    agent = Agent.of(table(start=(0.0, 0.0, 0.0, 3.0)))
    trial = agent.optimize(
        Refiner(agent.policy, updates=2, lr=0.01, patience=9, entropy=1.0, reward=lambda found: [1.0] * len(found))
    ).history[0]  # fmt: skip
    assert trial.changed["table"].tensors()
    assert not trial.accepted
    assert trial.before == pytest.approx(trial.after)


def test_entropy_is_earned_where_all_earn_the_same() -> None:
    """A plateau has no gradient of its own; a bonus for surprise gives it one."""
    agent = Agent.of(table(start=(2.0, 0.0, 0.0, 2.0)))
    run = agent.optimize(
        Refiner(agent.policy, updates=10, tasks=3, lr=0.3, kl=0.0, entropy=0.5, reward=lambda found: [1.0] * len(found)),
        search=Greedy(gate=None),
    )  # fmt: skip

    def entropy(p: torch.Tensor) -> float:
        return float(-(p * p.log()).sum(1).mean())

    before = agent.policy.initial.softmax(1)
    assert entropy(agent.policy.chances(run.best["table"])) > entropy(before) + 0.05


def test_a_spent_budget_ends_a_phase_with_what_it_has() -> None:
    agent = Agent.of(table())
    run = agent.optimize(
        Refiner(agent.policy, updates=1000, lr=0.3, kl=0.0, patience=1000), budget=Budget(rollouts=12 + 12 + 20)
    )  # fmt: skip
    trial = run.history[0]
    assert "the budget ended it" in trial.reason
    assert 0 < trial.notes["updates"] <= 10
    assert trial.accepted


def test_time_that_runs_out_ends_a_draw_under_way() -> None:
    """The estimator's thread waits for rollouts that were cancelled: it ends with them, and the weights are put back."""

    async def slow(place: int, reflection: str) -> str:
        await asyncio.sleep(60 if reflection else 0)
        return "nowhere"

    policy = table()
    agent = Agent(policy, replace(Agent.of(policy).episodes, attempt=slow))
    with pytest.raises(BudgetError, match="seconds"):
        agent.optimize(
            Refiner(policy, updates=3),
            val=TASKS[:1],
            budget=Budget(seconds=1.0),
            concurrency=4,
            search=Greedy(gate=None),
        )
    assert torch.equal(policy.logits, policy.initial)
    assert policy.lock.acquire(timeout=20), "the estimator's thread still holds the policy"


def test_a_workflow_without_rated_reflections_is_refused() -> None:
    policy = table()
    problem = {"parameters": [policy.adapter], "val": TASKS, "optimizers": [Refiner(policy)], "store": None}
    from trace_opt import optimize, trace

    @trace
    def said(place: int, adapter: Any) -> str:
        return "left"

    with pytest.raises(TraceError, match="Episodes"):
        optimize(lambda place, number: said(place, policy.adapter.value), TASKS, lambda out, task: 0.0, **problem)  # pyright: ignore[reportArgumentType]


# -- what it is held to ------------------------------------------------------------------------------------------------


def test_a_policy_that_drifts_too_far_is_priced_or_stopped() -> None:
    """It ends nearer to the base with a limit than without; "stop" ends the phase and says so."""
    far: dict[str, float] = {}
    for beyond in ("", "price", "stop"):
        agent = Agent.of(table())
        guards = PolicyGuards(kl=0.2, beyond=beyond) if beyond else PolicyGuards()  # pyright: ignore[reportArgumentType]
        refiner = Refiner(agent.policy, updates=60, tasks=3, lr=0.3, kl=0.0, guards=guards, patience=60)
        trial = agent.optimize(refiner).history[0]
        p = agent.policy.chances(trial.changed["table"])
        far[beyond] = float((p * (p * p.shape[1]).log()).sum(1).mean())
        assert len(trial.notes["curve"]["k3"]) == len(trial.notes["curve"]["k1"])
        if beyond == "stop":
            assert "nats a token from the base, beyond 0.20" in trial.reason
            assert any("divergence" in said for said in trial.notes["objections"])
            assert trial.notes["updates"] < 60
    assert far["price"] < 0.8 * far[""], far
    assert far["stop"] < 0.8 * far[""], far


def test_an_adapter_that_only_games_its_reward_is_rejected_and_the_guard_names_the_cause() -> None:
    """It always says the same; the gate finds it worse by the change of return, and what was tried is kept as evidence."""
    agent = Agent.of(Table(
        ("go left", "go right", "go up", "hm"), 12, lambda prompt: int(str(prompt).split()[1]),
        start=(0.0, 0.0, 0.0, 4.0),
    ), render=lambda task, *_: f"place {task['number']}")  # fmt: skip
    one_of = Refiner(
        agent.policy, updates=30, tasks=6, lr=2.0, kl=0.0, patience=30,
        reward=lambda found: [float(text == "go left") for text in found.texts],
    )  # fmt: skip
    run = agent.optimize(one_of, budget=Budget(trials=1), val=TASKS * 2)
    trial = run.history[0]
    assert not trial.accepted
    assert trial.verdict.startswith("dropped")
    assert trial.notes["guards"]["distinct"] < 0.2
    assert "guard distinct completions" in trial.reason
    assert trial.changed["table"].tensors(), "the rejected adapter is kept as evidence"
    assert run.best == run.start


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_it_steps_by_hand() -> None:
    """Training recordings, backward, step, and the adapter is written; the same as an estimator by hand would."""
    agent = Agent.of(table(), completions=16, pairs=4)
    refiner = Refiner(agent.policy, lr=0.3, kl=0.0)
    before = None
    for step in range(12):
        for place in range(3):
            with record(seed=10 * step + place, training=True):
                episode = agent.episodes(TASKS[place])
            refiner.backward(episode, agent.episodes.scored(episode))
        proposal = refiner.step()
        before = before or proposal
        refiner.zero_feedback()
    assert before is not None
    assert "an update of grpo" in before.reason
    assert rightness(agent.policy, agent.policy.adapter.value) > 0.5


def test_by_hand_it_needs_training_recordings_and_an_estimator_that_draws_where_it_steps_from() -> None:
    agent = Agent.of(table())
    refiner = Refiner(agent.policy)
    with record(seed=0):
        episode = agent.episodes(TASKS[0])
    refiner.backward(episode, 0.0)
    with pytest.raises(TraceError, match="training=True"):
        refiner.step()
    refiner = Refiner(agent.policy, "n-pg-igt")
    with record(seed=0, training=True):
        episode = agent.episodes(TASKS[0])
    refiner.backward(episode, 0.0)
    with pytest.raises(TraceError, match="draws at weights of its own"):
        refiner.step()


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"estimator": "gpro"}, "did you mean 'grpo'"),
        ({"updates": 0}, "updates=0"),
        ({"tasks": 0}, "tasks=0"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"epsilom": 0.1}, "did you mean 'epsilon'"),
        ({"entropy": -1.0}, "entropy=-1.0"),
        ({"reward": "right"}, "'exact'"),
        ({"updates": 1.5}, r"Refiner got updates=1\.5; give a whole number of at least 1"),
        ({"tasks": 2.0}, r"Refiner got tasks=2\.0; give a whole number"),
        ({"patience": "3"}, "Refiner got patience='3'; give a whole number"),
        ({"kl": -1}, "grpo got kl=-1; give a number of 0 or more"),
        ({"kl": float("nan")}, "grpo got kl=nan; give a number of 0 or more"),
        ({"guards": {}}, r"Refiner got guards=\{\}; give PolicyGuards\(\.\.\.\), or None for its defaults"),
        ({"guards": {"longest": 9}}, "Refiner got guards=.*longest.*; give PolicyGuards"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Refiner(table(), **options)


@pytest.mark.parametrize("policy", [None, "smollm2", torch.nn.Linear(1, 1)])
def test_what_has_no_adapter_is_no_policy(policy: Any) -> None:
    """It is refused when the refiner is made, and not in the first phase, whose start is paid for by then."""
    with pytest.raises(ValueError, match="Refiner got policy=.*, which has no adapter to train; give a policy such as"):
        Refiner(policy)


@pytest.mark.parametrize(("estimator", "updates", "tasks"), [("grpo", 7, 5), ("reinforce", 4, 3), ("n-harpg", 3, 4)])
def test_a_phase_runs_as_many_training_rollouts_as_a_dry_run_counts(
    estimator: str, updates: int, tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last minibatch of an epoch may be smaller; HARPG draws twice an update, but for the first."""
    agent, ran = Agent.of(table()), list[int]()
    run = Rollouts.run

    async def counted(self: Rollouts, values: Any, examples: Any, **options: Any) -> Any:
        ran.append(len(examples))
        return await run(self, values, examples, **options)

    monkeypatch.setattr(Rollouts, "run", counted)
    refiner = Refiner(agent.policy, estimator, updates=updates, tasks=tasks, lr=0.1, kl=0.0, patience=99)
    agent.optimize(refiner)
    most = refiner.rollouts_at_most(len(TASKS), 8)
    first = tasks if estimator == "n-harpg" else 0
    assert sum(ran) == most - first == {"grpo": 29, "reinforce": 12, "n-harpg": 20}[estimator]
    assert refiner.rollouts_at_most(len(TASKS), 8, batches=1) == len(ran) + (first > 0)


def test_how_often_an_estimator_of_a_function_draws_is_not_known() -> None:
    made = Refiner(table(), lambda policy, *, lr, kl: GRPO(policy, lr=lr, kl=kl))
    assert made.rollouts_at_most(12, 8) is None


def test_options_of_all_estimators_are_known_before_a_model_is_loaded() -> None:
    for name in names():
        assert Recipe.of(name, None, 0.0, {}).name == name
    assert Recipe.of("reinforce", None, 0.0, {"gamma": 0.9}).options["gamma"] == 0.9
    with pytest.raises(ValueError, match="no option 'reach'"):
        Recipe.of("ppo", None, 0.0, {"reach": 1.0})


def test_it_handles_the_adapter_of_its_policy_alone() -> None:
    policy = table()
    refiner = Refiner(policy)
    assert refiner.handles(policy.adapter)
    assert not refiner.handles(table().adapter)
    assert not refiner.handles(Parameter("text", name="text"))


class TestContract(OptimizerContract):
    """What every optimizer keeps to."""

    def optimizer(self) -> Refiner:
        return Refiner(self.policy, updates=3, lr=0.3)

    def problem(self) -> Problem:
        # optimizers are told of the problem's policy
        self.policy.load(Adapter())
        agent = Agent.of(self.policy)
        return Problem(
            workflow=agent.episodes, train=TASKS, guide=agent.episodes.scored, parameters=[self.policy.adapter]
        )

    policy = table()


# -- killed in the middle of a phase -----------------------------------------------------------------------------------


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ends the session at the n-th training rollout."""

    def at(number: int) -> None:
        monkeypatch.setattr(Roller, "run", Roller.run)

        def stop() -> None:
            raise KeyboardInterrupt

        children.count_training(number, stop)

    return at


@pytest.mark.parametrize(
    "search", [Greedy(), Greedy(width=2), Beam(beam=2, proposals=1), Pareto(parents=2, proposals=1)]
)
@pytest.mark.parametrize("stop_at", [2, 9])
def test_a_run_stopped_within_a_phase_ends_bit_identical(
    tmp_path: Path, search: Any, stop_at: int, stops: Callable[[int], None]
) -> None:
    """Adapter, estimator, price, tasks and draws go on where they were, in every search."""

    def run(store: str, resume: str | None = None) -> Any:
        agent = Agent.of(table())
        refiner = Refiner(agent.policy, "ppo", updates=4, lr=0.05, patience=9, guards=PolicyGuards(kl=0.05))
        return agent.optimize(
            refiner, store=tmp_path / store, resume=resume, search=search, seed=3, budget=Budget(trials=4)
        )  # fmt: skip

    whole = run("whole.db")
    stops(stop_at)
    with pytest.raises(KeyboardInterrupt):
        run("cut.db")
    assert told(run("cut.db", cut_id(tmp_path / "cut.db"))) == told(whole)


@pytest.mark.parametrize("estimator", ["n-pg-igt", "n-harpg", "reinforce"])
def test_other_estimators_go_on_bit_identical_too(tmp_path: Path, estimator: str, stops: Callable[[int], None]) -> None:
    """What they carry from update to update is kept: directions, last steps, random points, running means."""

    def run(store: str, resume: str | None = None) -> Any:
        agent = Agent.of(table())
        refiner = Refiner(agent.policy, estimator, updates=5, patience=9, baseline="running")
        return agent.optimize(refiner, store=tmp_path / store, resume=resume, seed=5)

    whole = run("whole.db")
    stops(8)
    with pytest.raises(KeyboardInterrupt):
        run("cut.db")
    assert told(run("cut.db", cut_id(tmp_path / "cut.db"))) == told(whole)


@pytest.mark.skipif(sys.platform == "win32", reason="the process kills itself by a signal")
@pytest.mark.parametrize(("policy", "number"), [("table", 14), ("tiny", 9)])
def test_a_process_killed_in_a_phase_leaves_what_another_ends_bit_identical(
    tmp_path: Path, policy: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table and a language model with LoRA weights, on a CPU in float32, by as many threads."""
    monkeypatch.setenv(HOME, str(tmp_path / "llama"))
    whole = children.resumed(policy, str(tmp_path / "whole.db"))
    given = [policy, str(tmp_path / "cut.db"), str(number), str(torch.get_num_threads())]
    killed = subprocess.run(
        [sys.executable, "-m", "tests.refine.children", *given], check=False, timeout=100, cwd=Path(__file__).parents[2],
        capture_output=True,
    )  # fmt: skip
    assert killed.returncode == -9, killed.stderr.decode()
    cut = children.resumed(policy, str(tmp_path / "cut.db"), cut_id(tmp_path / "cut.db"))
    assert told(cut) == told(whole)
    assert whole.history[0].notes["learned"] > 2, "nothing was trained, so nothing was put to the test"


def cut_id(path: Path) -> str:
    store = open_store(path)
    found = store.load("last").info.id
    store.close()
    return found
