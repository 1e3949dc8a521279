"""One run of a workflow on one example, and the set of them that an optimizer learns from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, overload

if TYPE_CHECKING:
    import torch

    from trace_opt.core.feedback import Feedback
    from trace_opt.core.graph import Graph
    from trace_opt.core.node import Node
    from trace_opt.core.propagate import Slice
    from trace_opt.core.reuse import Memos


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


@dataclass(slots=True, kw_only=True, eq=False)
class Rollout:
    """One run of a workflow on one example under one candidate's values. Never written to once it is made.

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
        gradients: Of a training rollout in another process, from where its autograd graph cannot come: the gradient of
            each loss (the only one is called "loss") for each tensor, by full parameter name.
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
    gradients: Mapping[str, Mapping[str, torch.Tensor]] | None = None

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


class Runner(Protocol):
    """What lets an optimizer find out more while it proposes; the search provides it.

    Attributes:
        saved: What the last `checkpoint` of this very proposal kept, when a run was resumed; else None.
        batches: How many batches an epoch has, where the training examples are those of a DataLoader; else None.
    """

    batches: int | None
    saved: Mapping[str, Any] | None

    async def run(
        self, points: Sequence[Mapping[str, Any]], examples: Sequence[Any], *, grad: bool, repeat: int,
        memos: Memos | None,
    ) -> list[list[Rollout]]:  # fmt: skip
        """Rollouts of every point on all examples, in their order; arguments as in `Rollouts.run`."""
        ...

    def epoch(self, number: int) -> Iterable[Any]:
        """All training examples once, in an order of that epoch."""
        ...

    def share(self, done: float) -> float | None:
        """As `Rollouts.share`."""
        ...

    def affordable(self) -> int | None:
        """As `Rollouts.affordable`."""
        ...

    async def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Commit a state to go on from."""
        ...


class Rollouts(Sequence[Rollout]):
    """The rollouts a proposal is made from, with a way to ask for more.

    Args:
        items: Rollouts of the incumbent on a minibatch of training examples.
        train: All training examples, labels included, in the run's fixed order.
        seed: The seed of this proposal; an optimizer draws all its chance from it.
        runner: Runs values on examples, charged to the budget; None by hand.
    """

    __slots__ = ("_items", "_runner", "seed", "train")

    def __init__(
        self, items: Sequence[Rollout] = (), *, train: Sequence[Any] = (), seed: int = 0, runner: Runner | None = None
    ) -> None:
        self._items = tuple(items)
        self.train = train
        self.seed = seed
        self._runner = runner

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

    @property
    def by_hand(self) -> bool:
        """Whether they were collected by `backward`, so that no more can be run."""
        return self._runner is None

    @property
    def saved(self) -> Mapping[str, Any] | None:
        """What the last `checkpoint` of this very proposal kept, when a run was resumed; else None."""
        return None if self._runner is None else self._runner.saved

    @property
    def batches(self) -> int | None:
        """How many batches an epoch has, where the training examples are those of a DataLoader; else None."""
        return None if self._runner is None else self._runner.batches

    def share(self, done: float = 0.0) -> float | None:
        """The share of the budget spent in trials, rollouts, calls, tokens or USD, in [0, 1]; None without such a limit.

        Args:
            done: How much of this proposal is done, in [0, 1].
        """
        return None if self._runner is None else self._runner.share(done)

    def affordable(self) -> int | None:
        """How many more rollouts the budget covers, what testing this proposal takes set aside; None without a limit."""
        return None if self._runner is None else self._runner.affordable()

    def epoch(self, number: int) -> Iterable[Any]:
        """All training examples once, in an order that the run's seed and the epoch's number decide.

        The batches of a DataLoader are examples; they are drawn from it as they are asked for.
        """
        return self._needed().epoch(number)

    async def run(
        self, values: Mapping[str, Any], examples: Sequence[Any], *, grad: bool = False, repeat: int = 0,
        memos: Memos | None = None,
    ) -> list[Rollout]:  # fmt: skip
        """Run the workflow with `values` on `examples`, charged to the budget.

        Args:
            values: Values by full parameter name; the others are the incumbent's.
            examples: Items of `train`, or what `epoch` gave.
            repeat: Which time they run: decides torch's own chance (dropout), and the rollouts' where `memos` is None.
            memos: What op calls gave in earlier rollouts of this proposal; those that depend on nothing that moves are
                not run again.
            grad: Whether these are training rollouts: tensors in `values` that require grad are then handed to the
                workflow as they are, so that `feedback.loss` leads back to them. Otherwise all are detached.

        Returns:
            Rollouts with graphs, in the order of the examples; failed ones have an `error`.

        Raises:
            BudgetError: the budget cannot pay for them.
        """
        return (await self._needed().run([values], examples, grad=grad, repeat=repeat, memos=memos))[0]

    async def run_all(
        self, points: Sequence[Mapping[str, Any]], examples: Sequence[Any], *, grad: bool = False, repeat: int = 0,
        memos: Memos | None = None,
    ) -> list[list[Rollout]]:  # fmt: skip
        """`run` for several points at once, all of them through the executor together."""
        return await self._needed().run(points, examples, grad=grad, repeat=repeat, memos=memos)

    async def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Commit where a long proposal stands, so that a resumed run goes on from there by `saved`.

        Args:
            state: JSON-able, tensors allowed.
        """
        await self._needed().checkpoint(state)

    def _needed(self) -> Runner:
        if self._runner is None:
            raise NotImplementedError("these rollouts were collected by hand; an optimizer cannot run more of them")
        return self._runner
