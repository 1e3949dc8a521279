"""The adapter to TRL: what TRL is handed, what it calls, and what comes back; TRL itself where it is installed."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.refine.tiny_llama import tiny_policy
from trace_opt.errors import ProblemError
from trace_opt.refine.episodes import Episodes
from trace_opt.refine.local import Completions
from trace_opt.refine.trl import adapter_of, grpo_trainer, hindsight, reward_function, rows, settings

PROMPTS = ["go place 0", [{"role": "user", "content": "go place 1"}]]


def lefts(completions: Completions) -> list[float]:
    """How often a completion says left."""
    return [float(text.split().count("left")) for text in completions.texts]


def called(function: Any, **given: Any) -> Any:
    """Call a reward function as TRL does: with more keywords than it needs."""
    return function(
        prompts=["as TRL has them"] * len(given["completions"]), completion_ids=[[3, 0]] * len(given["completions"]),
        trainer_state=None, log_extra=None, log_metric=None, **given,
    )  # fmt: skip


def test_without_trl_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One sentence, before anything is loaded."""
    monkeypatch.setitem(sys.modules, "trl", None)

    with pytest.raises(
        ProblemError, match=r"needs 'trl', which is not installed; pip install 'trace-opt-framework\[trl\]'"
    ):
        grpo_trainer(tiny_policy(), PROMPTS, lefts, output=tmp_path)


def test_a_reward_gets_completions_whichever_way_trl_writes_them() -> None:
    """Texts, or conversations of which the last message counts; each with its prompt by the column `index`."""
    seen: list[Completions] = []

    def reward(completions: Completions) -> list[float]:
        seen.append(completions)
        return lefts(completions)

    function = reward_function(PROMPTS, reward)
    plain = called(function, completions=["left left", "hm", "left"], index=[1, 1, 0])
    talk = called(function, completions=[[{"role": "assistant", "content": "so left"}]], index=[0])

    assert (plain, talk) == ([2.0, 0.0, 1.0], [1.0])
    assert seen[0].prompt == (1, 1, 0)
    assert seen[0].prompts == tuple(PROMPTS)
    assert seen[0].tokens == ((3, 0),) * 3
    assert seen[1].texts == ("so left",)


def test_an_async_reward_stays_async() -> None:
    """So that TRL runs it beside others."""

    async def reward(completions: Completions) -> list[float]:
        await asyncio.sleep(0)
        return lefts(completions)

    work = called(reward_function(PROMPTS, reward), completions=["left"], index=[0])

    assert asyncio.run(work) == [1.0]


@pytest.mark.parametrize("rewards", [[1.0], [1.0, float("nan")], [1.0, float("inf")], []])
def test_rewards_that_are_no_number_for_each_completion_are_refused(rewards: list[float]) -> None:
    """TRL would take the one for missing and train on the others."""
    function = reward_function(PROMPTS, lambda _: rewards)

    with pytest.raises(ValueError, match="for 2 completions; give a finite number for each"):
        called(function, completions=["a", "b"], index=[0, 1])


def test_prompts_become_what_the_policy_itself_would_read() -> None:
    """Its own system message in conversations without one; joined text where it continues plain text."""
    own = [{"role": "system", "content": "S"}, {"role": "user", "content": "x"}]

    assert [row["prompt"] for row in rows([*PROMPTS, own], raw=False, system="Be brief.")] == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "go place 0"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "go place 1"}],
        own,
    ]
    assert rows(PROMPTS, raw=True, system="S") == [
        {"prompt": "go place 0", "index": 0},
        {"prompt": "go place 1", "index": 1},
    ]
    with pytest.raises(ValueError, match="there is no prompt"):
        rows([], raw=True, system="")
    with pytest.raises(ValueError, match="prompt 0 ends with words of the assistant"):
        rows([[*own, {"role": "assistant", "content": "Well,"}]], raw=False, system="")


def test_settings_differ_from_trls_defaults_where_those_train_something_else() -> None:
    """A price of divergence, no bfloat16 on a CPU, whole groups in a batch; floats follow the policy's."""
    given = settings(tiny_policy(), output="x", group=4, tasks=3, updates=5, lr=0.1, kl=0.02)
    half = settings(tiny_policy(dtype="bfloat16"), output="x", group=4, tasks=3, updates=5, lr=0.1, kl=0.0)

    assert (given["beta"], given["bf16"], given["fp16"], given["use_cpu"]) == (0.02, False, False, True)
    assert (given["per_device_train_batch_size"], given["num_generations"], given["max_steps"]) == (12, 4, 5)
    assert (half["beta"], half["bf16"]) == (0.0, True)
    with pytest.raises(ValueError, match="group=1"):
        settings(tiny_policy(), output="x", group=1, tasks=3, updates=5, lr=0.1, kl=0.02)


# -- rewards of the environment ----------------------------------------------------------------------------------------


def attempt(place: str, reflection: str) -> int:
    """Gives what it is told to, else 0."""
    return int(reflection) if reflection.isdigit() else 0


async def later(place: str, reflection: str) -> int:
    """The same, async."""
    await asyncio.sleep(0)
    return attempt(place, reflection)


def right(output: int, task: dict[str, Any]) -> float:
    """1 for the place's own number, half of it for the one before."""
    return {task["number"]: 1.0, task["number"] - 1: 0.5}.get(output, 0.0)


TASKS = [{"place": "mill", "number": 7}, {"place": "yard", "number": 0}, {"place": "barn", "number": 1}]


@pytest.mark.parametrize("how", [attempt, later])
def test_hindsight_rewards_a_reflection_by_the_change_of_return(how: Any) -> None:
    """Of the task that its prompt is about; a task that is solved at once has none."""
    episodes = Episodes(how, lambda _: "", guide=right, pairs=2)
    prompts, reward = hindsight(episodes, TASKS)

    assert [[word in prompt[-1]["content"] for word in ("mill", "yard", "barn")] for prompt in prompts] == [
        [True, False, False],
        [False, False, True],
    ]
    completions = Completions(tuple(prompts), (1, 0, 0, 1), ("1", "7", " 6 ", "7"), ((), (), (), ()), ((), (), (), ()))
    gains = reward(completions)
    # without a reflection the barn is worth one half
    assert (asyncio.run(gains) if how is later else gains) == [0.5, 1.0, 0.5, -0.5]


def test_tasks_that_are_all_solved_at_once_leave_nothing_to_learn() -> None:
    """Said before a trainer is made."""
    episodes = Episodes(attempt, lambda _: "", guide=right)

    with pytest.raises(ProblemError, match="all of the 2 tasks are solved at the first attempt"):
        hindsight(episodes, [TASKS[1]] * 2)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.filterwarnings("ignore")
def test_trl_trains_the_policys_adapter(tmp_path: Path) -> None:
    """It starts from the policy's weights, is held to the model without them, and gives an adapter that the policy loads."""
    policy = tiny_policy()
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.01)
    start = policy.dump()
    seen: list[Sequence[int]] = []

    def reward(completions: Completions) -> list[float]:
        seen.append(completions.prompt)
        return lefts(completions)

    trainer = grpo_trainer(
        policy,
        ["go place 0", "go place 1"],
        reward,
        output=tmp_path,
        group=4,
        updates=2,
        lr=0.1,
        max_completion_length=6,
    )
    assert adapter_of(trainer) == start
    assert trainer.args.beta == 0.02
    trainer.train()
    learned = adapter_of(trainer)

    assert [sorted(rows) for rows in seen] == [[0] * 4 + [1] * 4] * 2
    assert learned != start
    policy.load(learned)
    assert policy.dump() == learned
    with pytest.raises(ProblemError, match="has no field 'max_length_of'"):
        grpo_trainer(policy, ["go"], reward, output=tmp_path, max_length_of=3)
