"""One run of a workflow on one example, and the set of them that an optimizer learns from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from trace_opt.core.feedback import Feedback
    from trace_opt.core.graph import Graph
    from trace_opt.core.node import Node
    from trace_opt.core.propagate import Slice


@dataclass(frozen=True, slots=True)
class Cost:
    """What model calls cost: requests sent, tokens and US dollars (None where a price is unknown)."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float | None = 0.0

    @property
    def tokens(self) -> int:
        """Tokens in and out together."""
        return self.tokens_in + self.tokens_out

    def __add__(self, other: Cost) -> Cost:
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Cost(self.calls + other.calls, self.tokens_in + other.tokens_in, self.tokens_out + other.tokens_out, usd)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollout:
    """One run of a workflow on one example under one candidate's values.

    Attributes:
        example: The datum it ran on (None by hand).
        values: The candidate's values by full parameter name.
        seed: The rollout's seed.
        graph: The recording, or None where only the score was kept.
        node: The node of `graph` that the feedback is about; the error node of a failed run.
        output: The plain output, or None where it failed.
        feedback: What the guide said; for a failed run the error's text without a score.
        error: `"ValueError: ..."` where the workflow failed, else None.
        cost: What its model calls cost.
        seconds: Wall time.
    """

    example: Any = None
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 0
    graph: Graph | None = None
    node: Node[Any] | None = None
    output: Any = None
    feedback: Feedback
    error: str | None = None
    cost: Cost = Cost()
    seconds: float = 0.0

    @property
    def score(self) -> float | None:
        """The score that decides, or None where there is none."""
        return None if self.error is not None else self.feedback.value

    @property
    def slices(self) -> dict[str, Slice]:
        """The slice of every parameter that reached the output, by name; empty where no graph was kept."""
        from trace_opt.core.propagate import propagate

        if self.graph is None or self.node is None:
            return {}
        return propagate(self.graph, self.node, self.feedback)


Runner = Callable[[Mapping[str, Any], Sequence[Any]], Awaitable[list[Rollout]]]


class Rollouts(Sequence[Rollout]):
    """The rollouts a proposal is made from, with a way to ask for more.

    Args:
        items: Rollouts of the incumbent on a minibatch of training examples.
        train: All training examples, labels included, in the run's fixed order.
        seed: The seed of this proposal; an optimizer draws all its chance from it.
        run: Runs values on examples, charged to the budget; None by hand.
    """

    __slots__ = ("_items", "_run", "seed", "train")

    def __init__(
        self, items: Sequence[Rollout] = (), *, train: Sequence[Any] = (), seed: int = 0, run: Runner | None = None
    ) -> None:
        self._items = tuple(items)
        self.train = tuple(train)
        self.seed = seed
        self._run = run

    @overload
    def __getitem__(self, index: int) -> Rollout: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Rollout]: ...
    def __getitem__(self, index: int | slice) -> Rollout | Sequence[Rollout]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Rollout]:
        return iter(self._items)

    async def run(self, values: Mapping[str, Any], examples: Sequence[Any]) -> list[Rollout]:
        """Run the workflow with `values` on `examples`, charged to the budget.

        Args:
            values: Values by full parameter name; the others are the incumbent's.
            examples: Items of `train`.

        Raises:
            BudgetError: the budget cannot pay for them.
        """
        if self._run is None:
            raise NotImplementedError("these rollouts were collected by hand; an optimizer cannot run more of them")
        return await self._run(values, examples)
