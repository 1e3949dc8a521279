"""Episodes that can be sent to another process: everything they are made of stands at the top of a file."""

from __future__ import annotations

from typing import Any

from trace_opt.core.context import rollout
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import trace
from trace_opt.optim.base import Optimizer, Proposal
from trace_opt.refine.episodes import Episodes

WAYS = ("up", "down", "left", "right")
instruction = Parameter("say it", name="instruction")


@trace
def move(reflection: str) -> str:
    """Go where one was told, else by chance."""
    known = [word for word in reflection.split() if word in WAYS]
    return known[-1] if known else rollout().rng.choice(WAYS)


def attempt(task: str, reflection: str) -> str:
    if not reflection and rollout().rng.random() < 0.2:
        raise ValueError("stumbled")
    return move(reflection)


def guide(output: str, task: str) -> Feedback:
    return Feedback(score=float(task.startswith(output)), text=f"went {output}")


def reflector(messages: Any) -> str:
    """As good as it is told to be."""
    said = messages[0]["content"]
    return f"{said} down" if said == "say it better" else said


class Better(Optimizer):
    """Proposes a better instruction."""

    needs_model = False

    def handles(self, parameter: Parameter[Any]) -> bool:
        return True

    async def propose(self, parameters: Any, rollouts: Any, history: Any) -> Proposal:
        return Proposal({"instruction": "say it better"})


def episodes() -> Episodes:
    return Episodes(attempt, reflector, guide=guide, attempts=3, instruction=instruction)
