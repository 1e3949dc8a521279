"""What a search without gradients has asked so far, and what of it still counts in its next phase."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.codec import content_hash
from trace_opt.errors import FeedbackError
from trace_opt.optim.numeric.gaussian import nearest

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.core.rollout import Rollout


_ROUNDING = 1e-14
_MOST = 2000


@dataclass(slots=True, eq=False)
class Queries:
    """Points and what they gave on one set of examples; smaller is better.

    Attributes:
        points: [n, d].
        values: [n]; nan where every rollout failed before one had succeeded.
        worst: The greatest value of a single rollout so far; None before there is one.
        failed: Rollouts that failed.
    """

    points: Tensor
    values: Tensor
    worst: float | None = None
    failed: int = 0

    @classmethod
    def none(cls, size: int) -> Queries:
        """Without a point, in `size` dimensions."""
        import torch

        return cls(torch.empty(0, size, dtype=torch.float64), torch.empty(0, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.points)

    def add(self, points: Tensor, values: Tensor) -> None:
        """Take in points [m, d] and what they gave, [m]."""
        import torch

        self.points = torch.cat([self.points, points])
        self.values = torch.cat([self.values, values])

    def filled(self, values: Tensor | None = None) -> Tensor:
        """Values in which those unknown count as the worst known; zeros where none is known."""
        import torch

        values = self.values if values is None else values
        known = torch.cat([self.values, values])
        known = known[~known.isnan()]
        return torch.nan_to_num(values, nan=float(known.max()) if len(known) else 0.0)

    def means(self, found: Sequence[Sequence[Rollout]], objective: str) -> Tensor:
        """The objective of points by their rollouts, [m]; a failed rollout counts as the worst one seen."""
        import torch

        losses = [[loss_of(rollout, objective) for rollout in rollouts] for rollouts in found]
        known = [loss for row in losses for loss in row if loss is not None]
        self.failed += sum(loss is None for row in losses for loss in row)
        self.worst = max([*known, *([] if self.worst is None else [self.worst])], default=None)
        worst = math.nan if self.worst is None else self.worst
        means = [math.fsum(worst if loss is None else loss for loss in row) / max(1, len(row)) for row in losses]
        return torch.tensor(means, dtype=torch.float64)

    def place_of(self, point: Tensor) -> int | None:
        """Where a point [d] stands, or None; rounding may have moved it by a few units in the last place."""
        same = ((self.points - point).abs() <= _ROUNDING * point.abs().clamp_min(1)).all(-1).nonzero()
        return int(same[0]) if len(same) else None

    def to_state(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {"points": self.points, "values": self.values, "worst": self.worst, "failed": self.failed}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Queries:
        """What `to_state` gave."""
        return cls(state["points"].clone(), state["values"].clone(), state["worst"], state["failed"])


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The queries of a finished phase.

    Attributes:
        queries: All that the phase knew, older ones included.
        context: What the objective depends on besides the point; see `context_of`.
        examples: The hash of the examples.
        age: How many trials there were when the phase began.
    """

    queries: Queries
    context: str
    examples: str
    age: int

    def to_state(self) -> dict[str, Any]:
        """JSON-able but for tensors."""
        return {
            "queries": self.queries.to_state(), "context": self.context, "examples": self.examples, "age": self.age
        }  # fmt: skip

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Kept:
        """What `to_state` gave."""
        return cls(Queries.of_state(state["queries"]), state["context"], state["examples"], state["age"])


def carried(
    kept: Sequence[Kept], context: str, examples: str, start: Tensor, value: Tensor, worst: float | None = None
) -> Queries:
    """The queries that still count for a phase about to begin, the incumbent among them.

    Other examples shift all values by about the same: by as much as the incumbent's, which both phases know.

    Args:
        kept: From earlier phases.
        context: Of the new phase.
        examples: The hash of its examples.
        start: The incumbent, [d].
        value: What it gives on these examples, [].
        worst: The greatest value of a single rollout of it.
    """
    found = Queries.none(len(start))
    found.add(start[None], value[None])
    found.worst = worst
    seen: set[tuple[float, ...]] = set()
    for phase in kept:
        queries, place = phase.queries, phase.queries.place_of(start)
        if phase.context != context or (phase.examples != examples and place is None):
            continue
        shift = 0.0 if phase.examples == examples or place is None else float(value - queries.values[place])
        numbers: list[list[float]] = cast("Any", queries.points).tolist()
        rows = [tuple(row) for row in numbers]
        fresh = [i for i, row in enumerate(rows) if i != place and row not in seen]
        seen.update(rows)
        found.add(queries.points[fresh], queries.values[fresh] + (shift if math.isfinite(shift) else 0.0))
        found.worst = max((one for one in (found.worst, queries.worst) if one is not None), default=None)
    near = nearest(found.points, start, _MOST)
    return Queries(found.points[near], found.values[near], found.worst)


def context_of(others: Mapping[str, Any], axes: Sequence[Any]) -> str:
    """The hash of what a phase's objective depends on besides the point.

    Args:
        others: Values of the parameters that it does not move, by name.
        axes: What the coordinates stand for.
    """
    return content_hash([dict(others), list(axes)])


def loss_of(rollout: Rollout, objective: str) -> float | None:
    """What is minimised, of one rollout: minus the score, or the loss, the mean where there are several.

    Returns:
        None where the rollout failed or the loss is not finite.

    Raises:
        FeedbackError: the loss is asked for and there is none.
    """
    if rollout.error is not None:
        return None
    if objective == "score":
        return None if rollout.score is None else -rollout.score
    loss: Any = rollout.feedback.loss
    if loss is None:
        raise FeedbackError(
            f"ZerothOrder(objective='loss') got {rollout.feedback!r} without a loss; return Feedback(loss=...) from the guide, "
            "or leave objective= out to go by the score"
        )
    parts: list[Any] = list(cast("Any", loss).values()) if isinstance(loss, Mapping) else [loss]
    losses: list[float] = [part.detach().item() for part in parts]
    mean = math.fsum(losses) / len(losses)
    return mean if math.isfinite(mean) else None
