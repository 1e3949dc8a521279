"""Whole runs: the doors problem to its exact optimum, a policy that games its reward, a remote actor, other processes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.llm.conftest import LoopbackServer
from tests.loading import module_at
from tests.refine.children import TASKS, WAYS, Agent, returned, shown, table
from tests.refine.tables import Table
from trace_opt import Budget, connect, optimize, trace
from trace_opt.core.adapter import Adapter
from trace_opt.refine.episodes import Episodes
from trace_opt.refine.outcomes import Episode
from trace_opt.refine.refiner import Refiner

doors: Any = module_at(Path(__file__).parents[2] / "graphs" / "doors.py", "doors", listed=True)

ROOMS, COLOURS = 2, 3


def trained(policy: Any, lr: float) -> Any:
    """A run of the doors problem, with a phase long enough to end where nothing is left to learn."""
    agent = doors.episodes(policy, pairs=3)
    refiner = Refiner(policy, updates=60, tasks=3, lr=lr, kl=0.0, patience=6)
    return agent, optimize(
        agent, doors.tasks(ROOMS, COLOURS), agent.scored, val=doors.tasks(ROOMS, COLOURS, copies=2, first=1),
        parameters=[policy.adapter], optimizers=[refiner], budget=Budget(trials=1), margins=agent.margins,
        score_range=(0.0, 1.0), store=None,
    )  # fmt: skip


def succeeded(agent: Any, adapter: Adapter, copies: int) -> list[list[bool]]:
    """Whether each of many episodes was through after 1, 2, 3, 4 attempts, with an adapter in force."""
    from trace_opt import record

    found = []
    for seed, task in enumerate(doors.tasks(ROOMS, COLOURS, copies=copies, first=100)):
        with record({agent.adapter.name: adapter}, seed):
            episode = agent(task)
        found.append([Episode.of(episode).best(n) >= 1 for n in range(1, 5)])
    return found


@pytest.mark.parametrize(("kind", "lr"), [("table", 0.5), ("tiny", 0.1)])
def test_a_policy_reaches_the_exact_table_of_doors(kind: str, lr: float) -> None:
    """By its likeliest sayings exactly, by enumeration; by what it draws within two standard errors, for 1 to 4 attempts."""
    policy = doors.Reflector(COLOURS, kind)
    agent, run = trained(policy, lr)
    assert run.history[0].accepted, run.history[0].verdict
    best = run.best["advice"]
    policy.load(best)

    def likeliest(attempt: str) -> str:
        return policy.sample([attempt], temperature=0.0).texts[0]

    hidden = [task["doors"] for task in doors.tasks(ROOMS, COLOURS)]
    for attempts in (1, 2, 3, 4):
        exact = doors.success(ROOMS, COLOURS, attempts)
        reached = [doors.success_of(right, COLOURS, likeliest, attempts) for right in hidden]
        assert sum(reached) / len(reached) == pytest.approx(exact, abs=1e-12)
    drawn = succeeded(agent, best, copies=20)
    for attempts in (1, 2, 3, 4):
        exact = doors.success(ROOMS, COLOURS, attempts)
        share = sum(row[attempts - 1] for row in drawn) / len(drawn)
        assert abs(share - exact) <= 2 * math.sqrt(exact * (1 - exact) / len(drawn)), (attempts, share, exact)
        assert attempts == 1 or share > doors.success_without(ROOMS, COLOURS, attempts)


def test_a_collapsed_reflector_of_doors_is_rejected_and_the_guard_names_the_cause() -> None:
    """Trained for a sentence rather than for what it is worth, it says that sentence whatever the attempt."""
    sentences = ("", "room 1: red", "room 1: not red\nroom 2: not blue", "room 1: blue")
    keys: dict[str, int] = {}

    def kind(prompt: Any) -> int:
        return keys.setdefault(str(prompt[-1]["content"]), len(keys))

    policy = Table(sentences, 64, kind, start=(2.0, 0.0, 0.0, 0.0), name="advice")
    agent = doors.episodes(policy, completions=6, pairs=1)
    gamed = Refiner(
        policy, updates=60, tasks=9, lr=0.5, kl=0.0, patience=60,
        reward=lambda found: [float("room 1: red" in text) for text in found.texts],
    )  # fmt: skip
    run = optimize(
        agent, doors.tasks(ROOMS, COLOURS), agent.scored, val=doors.tasks(ROOMS, COLOURS, copies=6, first=1),
        parameters=[policy.adapter], optimizers=[gamed], budget=Budget(trials=1), margins=agent.margins,
        score_range=(0.0, 1.0), store=None,
    )  # fmt: skip
    trial = run.history[0]
    assert trial.notes["curve"]["rewards"][-1] > 0.9, "its own reward was reached"
    assert not trial.accepted
    assert trial.after < trial.before
    assert any(said.startswith("distinct completions") for said in trial.notes["objections"])
    assert isinstance(trial.changed["advice"], Adapter)
    assert run.best == run.start


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_keyword_collapsed_smollm2_is_rejected_as_reflector_of_doors() -> None:
    """The real thing, some 200 CPU-seconds: rewarded for two words, it says them whatever the door, to no use."""
    from trace_opt.errors import LLMError
    from trace_opt.refine.policy import TrainablePolicy

    policy = TrainablePolicy(device="cpu", name="advice")
    try:
        assert policy.tokenizer
    except LLMError as error:
        pytest.skip(f"the model cannot be had here: {error}")

    def asked(task: Any, graph: Any, output: Any, feedback: Any, memory: Any) -> list[dict[str, str]]:
        found = re.match(r"room (\d+): (\w+)", output[-1])
        assert found is not None
        what = f"open the {found[2]} door of room {found[1]}"
        said = f"An agent failed to {what}. In one sentence, what should it do next time?"
        return [{"role": "system", "content": "You advise an agent."}, {"role": "user", "content": said}]

    def reward(drawn: Any) -> list[float]:
        words = [set(re.findall("[a-z]+", text.lower())) for text in drawn.texts]
        return [len({"instead", "take"} & said) / 2 for said in words]

    agent = doors.episodes(policy, attempts=2, completions=16, pairs=1, max_tokens=16, render=asked)
    run = optimize(
        agent, doors.tasks(ROOMS, COLOURS), agent.scored, val=doors.tasks(ROOMS, COLOURS, copies=2, first=1),
        parameters=[policy.adapter], optimizers=[Refiner(policy, updates=12, tasks=2, lr=1e-3, reward=reward)],
        budget=Budget(trials=1), margins=agent.margins, score_range=(0.0, 1.0), store=None,
    )  # fmt: skip
    trial = run.history[0]
    assert trial.notes["curve"]["rewards"][-1] > 0.8, "its own reward was reached"
    assert not trial.accepted, trial.verdict
    assert any(said.startswith("distinct completions") for said in trial.notes["objections"]), trial.notes["guards"]


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    made = LoopbackServer()
    yield made
    made.close()


def test_a_remote_actor_with_a_local_reflector_learns(server: LoopbackServer) -> None:
    """The actor is asked over HTTP, is paid for, and stays as it is; what is trained is the local model that advises it."""
    actor = connect("openai/echo", base_url=server.url, api_key=server.key, cache=None)

    @trace
    def read(said: str) -> str:
        found = re.findall("left|right|up", said)
        return found[-1] if found else "nowhere"

    async def attempt(place: int, reflection: str) -> str:
        said = await actor.areply([{"role": "user", "content": ask(place, reflection)}])
        return read(said.text)

    @trace
    def ask(place: int, reflection: str) -> str:
        return f"You are at place {place}. Advice: {reflection or 'none'}. Which way?"

    policy = table()
    agent = Agent(policy, Episodes(
        attempt, policy, guide=returned, attempts=2, completions=4, pairs=1, render=shown, max_tokens=8
    ))  # fmt: skip
    run = agent.optimize(
        Refiner(policy, updates=8, tasks=3, lr=0.7, kl=0.0, patience=8), budget=Budget(trials=1, calls=2000), concurrency=8
    )  # fmt: skip
    trial = run.history[0]
    assert trial.accepted
    assert trial.after > trial.before
    assert server.hits["echo"] == run.spent["workflow"].calls > 100
    right = policy.chances(run.best["table"]).diagonal()
    assert right.min() > 0.5, [WAYS, right]
    assert len(TASKS) == 12


def test_rated_reflections_come_back_from_other_processes(tmp_path: Path) -> None:
    """Where rollouts run in worker processes, an adapter goes there as a value and what it said comes back as data."""
    from tests.refine import apart

    there = apart.run("processes", tmp_path / "there.db")
    here = apart.run(None, tmp_path / "here.db")
    assert there == here
    assert here["learned"] > 0
