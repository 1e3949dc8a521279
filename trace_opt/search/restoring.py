"""What an earlier session left in the store: its rollouts, made into rollouts again, and what it had spent of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.codec import decode
from trace_opt.core.feedback import Feedback
from trace_opt.core.graph import Graph
from trace_opt.core.rollout import Rollout
from trace_opt.search.candidate import Score

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.search.rolling import Job
    from trace_opt.store.store import Saved


@dataclass(frozen=True, slots=True)
class Stored:
    """A rollout that an earlier session left in the store.

    Attributes:
        score: Its score.
        data: What `Writer.rollout` was given, as JSON text.
        graph: Gives its graph's text, or None where none was kept.
    """

    score: Score
    data: str
    graph: Callable[[], str | None]


def restored(job: Job, stored: Stored, graph: Graph, parameters: Mapping[str, Parameter[Any]]) -> Rollout:
    """A rollout from the store, with its graph tied to the parameters that exist now."""
    data: dict[str, Any] = json.loads(stored.data)
    graph.layout()
    for name, node in graph.parameters.items():
        node.parameter = parameters.get(name)
        node.value = job.values.get(name, node.value)
    graph.values = dict(job.values)
    order = graph.layout().order
    node = cast("Any", order[data["node"]]) if 0 <= data.get("node", -1) < len(order) else None
    score: Any = data.get("scores") or stored.score.value
    return Rollout(
        example=job.example, values=job.values, seed=job.seed, graph=graph, node=node, output=decode(data.get("output")),
        feedback=Feedback(score=score, text=data.get("text", "")), error=data.get("error"), cost=stored.score.cost,
        seconds=stored.score.seconds,
    )  # fmt: skip


def paid(saved: Saved) -> int:
    """How many rollouts count against the budget: not those that were taken from other runs."""
    from trace_opt.search.reusing import is_reused

    # those of no candidate are counted with what was not saved
    return sum(row["candidate"] != -1 and not is_reused(row) for row in saved.rollouts) + unsaved(saved)


def unsaved(saved: Saved) -> int:
    """How many rollouts were paid for that no row tells of."""
    return int(saved.states.get("unsaved", 0))


def decided(saved: Saved) -> int:
    """How many trials had a verdict that the state knows of."""
    search = saved.states.get("search")
    return 0 if search is None else sum(trial["step"] <= search["step"] for trial in saved.trials)
