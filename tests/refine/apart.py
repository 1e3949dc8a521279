"""An agent with a trained reflector that worker processes load by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.refine.children import TASKS, Agent, table
from trace_opt import Budget, Feedback, optimize
from trace_opt.refine.refiner import Refiner

agent = Agent.of(table())


def workflow(place: int, number: int) -> Any:
    return agent.episodes({"place": place, "number": number})


def guide(output: Any, task: Any) -> Feedback:
    return agent.episodes.scored(output)


def run(executor: Any, store: Path) -> dict[str, Any]:
    """What came of a short phase."""
    refiner = Refiner(agent.policy, updates=3, lr=0.3, kl=0.0, patience=3)
    found = optimize(
        workflow, TASKS, guide, parameters=[agent.policy.adapter], val=TASKS[:4], optimizers=[refiner], store=store,
        margins=agent.episodes.margins, score_range=(0.0, 1.0), budget=Budget(trials=1), executor=executor, seed=2,
    )  # fmt: skip
    trial = found.history[0]
    return {
        "best": found.best["table"].hash,
        "learned": trial.notes["learned"],
        "rewards": trial.notes["curve"]["rewards"],
    }
