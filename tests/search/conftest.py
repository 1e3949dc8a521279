"""Small searches whose optimizers are plain functions, so that what the engine does is all there is to see."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Rollouts
from trace_opt.core.tracer import trace
from trace_opt.optim.base import Optimizer, Outcome, Proposal, Trial


class Listed(Optimizer):
    """Proposes values from a list, one after the other, and remembers what came of them.

    Args:
        values: What is proposed, by step; an exception is raised, an empty dict proposes nothing.
        only: Names of the parameters it handles; all by default.
    """

    def __init__(self, values: Sequence[Mapping[str, Any] | Exception], only: Sequence[str] | None = None) -> None:
        super().__init__()
        self.asked: list[Rollouts] = []
        self.observed: list[tuple[dict[str, Any], Outcome]] = []
        self._values = list(values)
        self._only = only
        self._next = 0

    def handles(self, parameter: Parameter[Any]) -> bool:
        return self._only is None or parameter.name in self._only

    async def propose(self, parameters: Any, rollouts: Rollouts, history: Sequence[Trial]) -> Proposal:
        self.asked.append(rollouts)
        if self._next >= len(self._values):
            return Proposal()
        value = self._values[self._next]
        self._next += 1
        if isinstance(value, Exception):
            raise value
        return Proposal(value, f"number {self._next} of the list")

    def observe(self, proposal: Proposal, outcome: Outcome) -> None:
        self.observed.append((dict(proposal.values), outcome))

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._next = state["next"]


class Line:
    """`y = a * x + b` to be found; the score is the distance, the feedback names it."""

    def __init__(self) -> None:
        self.a = Parameter(0, name="a")
        self.b = Parameter(0, name="b")
        self.runs: list[tuple[Any, ...]] = []
        self.workflow = self._make()

    def _make(self) -> Callable[..., Any]:
        a, b, runs = self.a, self.b, self.runs

        @trace
        def line(x: int) -> int:
            return a.value * x + b.value

        def workflow(x: int) -> int:
            runs.append((x,))
            return line(x)

        return workflow

    @staticmethod
    def guide(output: int, example: Mapping[str, int]) -> Feedback:
        error = output - example["y"]
        return Feedback(-abs(error), f"off by {error}")

    @staticmethod
    def examples(n: int) -> list[dict[str, int]]:
        return [{"x": x, "y": 3 * x + 7} for x in range(1, n + 1)]


@pytest.fixture
def line() -> Line:
    return Line()
