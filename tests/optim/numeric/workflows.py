"""A runner without a search: training rollouts of a real workflow, recorded, with checkpoints kept in a list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from trace_opt.core.binding import bind
from trace_opt.core.codec import decode, encode
from trace_opt.core.feedback import Feedback
from trace_opt.core.reuse import Memos
from trace_opt.core.rollout import Rollout, Rollouts
from trace_opt.core.tensors import gradients_by_name
from trace_opt.core.tracer import plain, record
from trace_opt.errors import BudgetError, OpError
from trace_opt.optim.base import Optimizer, Proposal


class Recording:
    """Runs a workflow with given values; `pays` rollouts at most; `apart` as another process would send them back."""

    def __init__(
        self, workflow: Callable[..., Any], guide: Callable[..., Any], pays: int | None = None, *, apart: bool = False
    ) -> None:
        self.workflow, self.guide, self.pays, self.apart = workflow, guide, pays, apart
        self.batches: int | None = None
        self.saved: Mapping[str, Any] | None = None
        self.kept: list[Any] = []
        self.ran = 0

    async def run(
        self, points: Sequence[Mapping[str, Any]], examples: Sequence[Any], *, grad: bool, repeat: int,
        memos: Memos | None,
    ) -> list[list[Rollout]]:  # fmt: skip
        return [[self._one(values, example, grad) for example in examples] for values in points]

    def _one(self, values: Mapping[str, Any], example: Any, grad: bool) -> Rollout:
        if self.pays is not None and self.ran >= self.pays:
            raise BudgetError("the budget is spent")
        self.ran += 1
        args, keywords = bind(self.workflow, example)
        try:
            with record(values, 0, training=grad) as graph:
                output = self.workflow(*args, **keywords)
        except OpError as error:
            return Rollout(example=example, feedback=Feedback(text="failed"), error=str(error))
        feedback = self.guide(plain(output), example)
        if not self.apart:
            return Rollout(example=example, values=values, graph=graph, feedback=feedback)
        gradients = {name: gradients_by_name(loss, values) for name, loss in feedback.loss.items()}
        sent = Feedback(score=feedback.score, loss={name: loss.detach() for name, loss in feedback.loss.items()})
        return Rollout(example=example, feedback=sent, gradients=gradients)

    def epoch(self, number: int) -> Iterable[Any]:
        return []

    def share(self, done: float) -> float | None:
        return None

    async def checkpoint(self, state: Mapping[str, Any]) -> None:
        self.kept.append(encode(dict(state)))


def propose(
    optimizer: Optimizer, parameters: Sequence[Any], runner: Recording, train: Sequence[Any] = ({},), seed: int = 0
) -> Proposal:
    rollouts = Rollouts((), train=train, seed=seed, runner=runner)
    return asyncio.run(optimizer.propose(parameters, rollouts, ()))


def restored(kept: Any) -> Any:
    return decode(kept)
