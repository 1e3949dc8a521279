"""A search reduced to what an optimizer sees of it: points are run, states are kept, a budget of rollouts runs out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from trace_opt.core.codec import decode, encode
from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Rollout, Rollouts
from trace_opt.errors import BudgetError
from trace_opt.optim.base import Optimizer, Proposal

Score = Callable[[Mapping[str, Any], Any], "Feedback | float"]


class Memory:
    """A `Runner` in memory.

    Args:
        score: What the guide says of values on an example; what it raises is the rollout's failure.
        saved: What an earlier session kept.
        budget: Rollouts that may be made.

    Attributes:
        asked: The values of every point, in order.
        batches: How many points were asked at once.
        kept: Every checkpoint, as it comes back from a store, with the number of points asked before.
    """

    def __init__(self, score: Score, saved: Mapping[str, Any] | None = None, budget: int | None = None) -> None:
        self.saved = saved
        self.asked: list[dict[str, Any]] = []
        self.batches: list[int] = []
        self.kept: list[tuple[int, dict[str, Any]]] = []
        self._score = score
        self._budget = budget
        self._rollouts = 0

    async def run(
        self, points: Sequence[Mapping[str, Any]], examples: Sequence[Any], *, grad: bool, repeat: int, memos: Any
    ) -> list[list[Rollout]]:
        await asyncio.sleep(0)
        self._rollouts += len(points) * len(examples)
        if self._budget is not None and self._rollouts > self._budget:
            raise BudgetError("the budget of rollouts is spent")
        self.batches.append(len(points))
        self.asked += [dict(point) for point in points]
        return [[rolled(self._score, point, example) for example in examples] for point in points]

    def share(self, done: float) -> float | None:
        return None if self._budget is None else min(1.0, self._rollouts / self._budget)

    def epoch(self, number: int) -> Iterable[Any]:
        raise NotImplementedError

    async def checkpoint(self, state: Mapping[str, Any]) -> None:
        self.kept.append((len(self.asked), decode(encode(dict(state)))))


def rolled(score: Score, values: Mapping[str, Any], example: Any) -> Rollout:
    try:
        return Rollout(example=example, values=values, feedback=Feedback.of(score(values, example)))
    except ArithmeticError as error:
        text = f"{type(error).__name__}: {error}"
        return Rollout(example=example, values=values, feedback=Feedback(text=text), error=text)


def propose(
    optimizer: Optimizer, parameters: Sequence[Parameter[Any]], runner: Memory, *, seed: int = 0,
    examples: Sequence[Any] = (None,), values: Mapping[str, Any] | None = None, history: Sequence[Any] = (),
) -> Proposal:  # fmt: skip
    """What an optimizer proposes from an incumbent, the parameters' own values by default."""
    incumbent = {parameter.name: parameter.initial for parameter in parameters} | dict(values or {})
    items = [rolled(runner._score, incumbent, example) for example in examples]
    rollouts = Rollouts(items, train=examples, seed=seed, runner=runner)

    async def asked() -> Proposal:
        with in_force(incumbent):
            return await optimizer.propose(parameters, rollouts, history)

    return asyncio.run(asked())
