"""What every optimizer is: it proposes values; by hand it also writes them, in a search the search decides.

The class is the loop by hand as well, in PyTorch's words: `backward`, `step`, `zero_feedback`.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast, final

from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.core.graph import Graph
from trace_opt.core.parameter import short
from trace_opt.core.propagate import propagate
from trace_opt.core.result import Result
from trace_opt.core.rollout import Rollout, Rollouts
from trace_opt.errors import OpError, TraceError

if TYPE_CHECKING:
    from trace_opt.core.node import Node
    from trace_opt.core.parameter import Parameter
    from trace_opt.llm.base import LLM


@dataclass(frozen=True, slots=True)
class Proposal:
    """New values for some parameters, and why.

    Attributes:
        values: Values by full parameter name, each allowed by its parameter; empty where there is nothing to try.
        reason: Why, in words.
        notes: What else is worth keeping, JSON-able (problems in a reply, tries, the model asked).
        phase: Whether it is where many steps of training ended: the search keeps it unless the test finds it worse.
    """

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reason: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    phase: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a proposal.

    Attributes:
        before: Mean score of the values it was made from, on the examples both were tried on; None where unknown.
        after: Mean score of the proposed values on the same examples; None where unknown.
        accepted: Whether the search builds on it.
    """

    before: float | None
    after: float | None
    accepted: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """One proposal put to the test. The history that optimizers see is a sequence of these, oldest first.

    Attributes:
        optimizer: The class name of the optimizer that proposed.
        base: The complete values that the proposal was made from, by full parameter name.
    """

    optimizer: str
    base: Mapping[str, Any]
    proposal: Proposal
    outcome: Outcome


class Optimizer(ABC):
    """Improves the parameters it handles. Subclasses implement `handles` and `propose`, and state where they have any.

    `propose` may be called for several candidates at once on one event loop, never from two threads. It must be a
    function of its arguments, of `rollouts.seed` and of the state, so that a resumed run proposes the same.

    By hand: `backward` after each run of the workflow, then `step` writes what is proposed, then `zero_feedback`.

    Attributes:
        needs_model: Whether it asks a language model and has not been given one; `use` gives it the run's.
    """

    needs_model: bool = False

    def __init__(self) -> None:
        self._collected: list[Rollout] = []
        self._handled: dict[str, Parameter[Any]] = {}
        self._history: list[Trial] = []
        self._steps = 0
        self._pending: _Pending | None = None

    @abstractmethod
    def handles(self, parameter: Parameter[Any]) -> bool:
        """Whether it can change this parameter; frozen ones are never asked about."""

    @abstractmethod
    async def propose(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
    ) -> Proposal:
        """Suggest values; never write them.

        Args:
            parameters: Those it owns, in the graph's order. The values it starts from are in force, so
                `parameter.value` reads the incumbent's.
            rollouts: The incumbent's rollouts on a minibatch, with graphs; `rollouts.seed` is the only chance.
            history: Earlier trials, rejected ones included, oldest first.

        Raises:
            ReplyError: a model gave no usable proposal; the search books a trial without effect.
            LLMError, BudgetError: as the model call raised them.
        """

    def observe(self, proposal: Proposal, outcome: Outcome) -> None:  # noqa: B027 # most learn from the history alone
        """Learn what came of a proposal of its own. Called once for each, in the order of the trials."""

    def use(self, llm: LLM) -> None:  # noqa: B027 # most ask no model
        """Take the run's model, where this optimizer needs one and was made without."""

    def rollouts_at_most(self, examples: int, minibatch: int, *, batches: int | None = None) -> int | None:  # noqa: ARG002
        """How many rollouts of its own one proposal runs at most, so that a dry run can count them before any is run.

        Neither the rollouts that it is given nor those that test the proposal are among them.

        Args:
            examples: How many training examples there are.
            minibatch: How many rollouts it is given, where it reads any.
            batches: How many batches an epoch has, where the training examples are those of a DataLoader; else None.

        Returns:
            0 of one that reads what it is given and runs nothing, as most do; None where it cannot be told.
        """
        return 0

    def state_dict(self) -> dict[str, Any]:
        """What it has learned, JSON-able but for tensors; enough to go on bit-identically."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 # most have no state
        """Take back what `state_dict` gave."""

    # -- the loop by hand --------------------------------------------------------------------------------------------

    @final
    def backward(self, output: Any, feedback: Feedback | float | str | Mapping[str, float]) -> None:
        """Collect what was said about one output, for the next step.

        Args:
            output: A result, a container of results, an OpError, or the Graph where the output is a plain value.
            feedback: A sentence, a score (greater is better), or a `Feedback` of both; one with a `loss` also fills
                `grad` of the tensor parameters, once however many optimizers take it.

        Raises:
            TraceError: the output comes from no recording.
        """
        graph, node, error = located(output)
        said = Feedback.of(feedback)
        reached = [piece.parameter for piece in propagate(graph, node, said).values()]
        handled = {parameter.name: parameter for parameter in reached if self._owns(parameter)}
        self._handled |= handled
        values = {name: parameter.value for name, parameter in graph.parameters.items()}
        output_value = None if node.kind == "error" else node.value
        self._collected.append(
            Rollout(values=values, seed=graph.seed or 0, graph=graph, node=node, output=output_value,
                    feedback=said, error=error)
        )  # fmt: skip

    @final
    def step(self) -> Proposal:
        """Propose from what was collected and write the values to the Parameters.

        Raises:
            TraceError: nothing was collected, no parameter handled here reached it, or an event loop runs here (await
                `astep` instead).
            ReplyError, LLMError, BudgetError: as proposing raised them; nothing is written then.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self.astep())
        raise TraceError(
            f"{type(self).__name__}.step() was called where an event loop runs; write `await optimizer.astep()` there"
        )

    @final
    async def astep(self) -> Proposal:
        """`step` for asynchronous code."""
        if not self._collected:
            raise TraceError(
                f"{type(self).__name__} has no feedback to step from; call backward(output, feedback) first"
            )
        self._settle()
        rollouts = Rollouts(self._collected, seed=self._steps)
        owned = {name: parameter for name, parameter in self._handled.items() if self._owns(parameter)}
        if not owned:
            raise TraceError(
                f"{type(self).__name__} handles no parameter that reached the outputs it was given; read one of its kind "
                "in the workflow or in an op, or step another optimizer"
            )
        with in_force():
            proposal = await self.propose(list(owned.values()), rollouts, tuple(self._history))
            base = {name: parameter.value for name, parameter in owned.items()}
        for name, value in proposal.values.items():
            owned[name].check(value)  # all or none
        for name, value in proposal.values.items():
            owned[name].value = value
        self._pending = _Pending(base, proposal, _mean(self._collected), len(self._collected))
        self._steps += 1
        return proposal

    @final
    def zero_feedback(self) -> None:
        """Forget what was collected, the gradients of the tensor parameters included; what was learned stays."""
        self._settle()
        self._collected.clear()
        if self._pending is not None:
            self._pending = replace(self._pending, seen=0)
        for parameter in self._handled.values():
            parameter.grad = None

    def _owns(self, parameter: Parameter[Any]) -> bool:
        return not parameter.frozen and self.handles(parameter)

    def _settle(self) -> None:
        """Take the scores collected since the last step as its outcome."""
        pending = self._pending
        if pending is None or len(self._collected) <= pending.seen:
            return
        self._pending = None
        outcome = Outcome(pending.before, _mean(self._collected[pending.seen :]), accepted=True)
        self._history.append(Trial(type(self).__name__, pending.base, pending.proposal, outcome))
        self.observe(pending.proposal, outcome)


@dataclass(frozen=True, slots=True)
class _Pending:
    """A step by hand whose outcome is still to be seen.

    Attributes:
        base: The values it was made from.
        before: Their mean score.
        seen: How many of the collected rollouts are older than it.
    """

    base: Mapping[str, Any]
    proposal: Proposal
    before: float | None
    seen: int


def rollouts_of(minibatches: int, size: int, examples: int) -> int:
    """How many rollouts minibatches take at most, drawn from one epoch after another, whose last one may be smaller.

    Args:
        minibatches: How many.
        size: Examples of each.
        examples: Examples of an epoch.
    """
    epochs, left = divmod(minibatches, -(-examples // size))
    return epochs * examples + min(left * size, examples)


def located(output: Any) -> tuple[Graph, Node[Any], str | None]:
    """The recording an output comes from, the node that feedback on it is about, and the error's text if it failed.

    Raises:
        TraceError: the output comes from no recording.
    """
    if isinstance(output, OpError):
        failed = cast("Any", output).node
        return output.graph, failed, str(failed.value)
    if type(output) is Graph:
        return output, output.output_of_leaves(None), None
    result = _first_result(output, _MAX_NESTING)
    if result is None:
        raise TraceError(
            f"{short(output)} is a plain value, so nothing tells which recording it comes from; pass the graph: "
            "backward(graph, feedback)"
        )
    graph: Graph = result._trace_graph
    return graph, graph.output(output), None


_MAX_NESTING = 50


def _first_result(value: Any, depth: int) -> Any:
    """The first result in a value or in the containers that it is made of."""
    kind = cast("Any", type(value))
    if issubclass(kind, Result):
        return value
    if depth <= 0:
        return None
    if isinstance(value, Mapping):
        items: Iterable[Any] = cast("Mapping[Any, Any]", value).values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        items = cast("Iterable[Any]", value)
    elif hasattr(kind, "__dataclass_fields__"):
        items = [getattr(value, name, None) for name in kind.__dataclass_fields__]
    else:
        return None
    return next((found for item in items if (found := _first_result(item, depth - 1)) is not None), None)


def _mean(rollouts: Sequence[Rollout]) -> float | None:
    scores = [rollout.feedback.value for rollout in rollouts]
    known = [score for score in scores if score is not None]
    return math.fsum(known) / len(known) if known else None
