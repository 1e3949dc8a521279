"""Agents whose reflector is trained, and a run of them for tests that kill it: `children POLICY STORE KILL_AT THREADS`."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.refine.tables import Table
from tests.refine.tiny_llama import tiny_policy
from trace_opt import Budget, optimize, rollout, trace
from trace_opt.core.codec import content_hash
from trace_opt.refine.episodes import Episodes
from trace_opt.refine.refiner import Refiner
from trace_opt.search.rolling import Roller

WAYS = ("left", "right", "up")


@trace
def walk(place: int, reflection: str) -> str:
    """The way taken: the one advised, else any."""
    found = re.findall("left|right|up", reflection)
    return found[-1] if found else rollout().rng.choice(WAYS)


def attempt(place: int, reflection: str) -> str:
    return walk(place, reflection)


def returned(output: str, task: dict[str, Any]) -> float:
    return float(output == WAYS[task["place"]])


def shown(task: Any, graph: Any, output: Any, feedback: Any, memory: Any) -> str:
    return f"place {task['place']}"


TASKS = [{"place": i % 3, "number": i} for i in range(12)]


@dataclass(frozen=True)
class Agent:
    """A problem whose reflector has to say the way at each of three places."""

    policy: Any
    episodes: Episodes

    @classmethod
    def of(cls, policy: Any, **options: Any) -> Agent:
        given: dict[str, Any] = {
            "attempts": 2,
            "completions": 6,
            "pairs": 2,
            "render": shown,
            "max_tokens": 8,
            **options,
        }
        return cls(policy, Episodes(attempt, policy, guide=returned, **given))

    def optimize(self, refiner: Any, **options: Any) -> Any:
        given: dict[str, Any] = {
            "parameters": [self.policy.adapter], "val": TASKS, "optimizers": [refiner], "store": None,
            "margins": self.episodes.margins, "budget": Budget(trials=1), "score_range": (0.0, 1.0), **options,
        }  # fmt: skip
        return optimize(self.episodes, TASKS, self.episodes.scored, **given)


def table(**options: Any) -> Table:
    """A policy that knows the place and says a way, or something else."""
    return Table(("go left", "go right", "go up", "hm"), 3, lambda prompt: int(str(prompt)[-1]), **options)


POLICIES: dict[str, Callable[[], Any]] = {"table": table, "tiny": tiny_policy}


def count_training(at: int, then: Callable[[], None]) -> None:
    """Let something happen as the n-th training rollout begins."""
    run, seen = Roller.run, [0]

    def counted(self: Roller, job: Any) -> Any:
        seen[0] += job.training
        if job.training and seen[0] == at:
            then()
        return run(self, job)

    Roller.run = counted  # pyright: ignore[reportAttributeAccessIssue]


def told(run: Any) -> list[Any]:
    """All that two runs must have in common."""
    trials = [[t.number, t.verdict, t.before, t.after, t.reason, t.notes] for t in run.history]
    return [content_hash(dict(run.best)), trials]


def resumed(policy: str, store: str, run: str | None = None) -> Any:
    """A run of two phases, or what an earlier session left of one, to its end."""
    agent = Agent.of(POLICIES[policy]())
    refiner = Refiner(agent.policy, updates=6, lr=0.05, entropy=0.01, patience=6)
    return agent.optimize(refiner, store=store, resume=run, seed=4, budget=Budget(trials=2))


def main(policy: str, store: str, number: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    count_training(int(number), lambda: os.kill(os.getpid(), signal.SIGKILL))
    resumed(policy, store)


if __name__ == "__main__":
    main(*sys.argv[1:])
