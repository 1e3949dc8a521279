"""Rollouts that an earlier session left in the store, made into rollouts again."""

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
