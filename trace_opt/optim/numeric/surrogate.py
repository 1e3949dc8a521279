"""Many steps on one expensive output gradient.

Where what follows a value z(x) is expensive (a simulator, a large frozen model) and what comes before it is cheap, one
gradient of the loss with respect to z tells enough for many steps on x: the loss behind z is replaced by its tangent plus
a proximity term, <dz, z(x) - z_t> + |z(x) - z_t|^2 / (2 eta), which lies above the loss wherever that is 1/eta-smooth in
z. The part before z is run again for each inner step (core/replay.py); the part behind it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from trace_opt.core.parameter import is_tensor
from trace_opt.core.replay import Replay, calls_of
from trace_opt.errors import GradientError, TraceError

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.core.graph import Graph
    from trace_opt.core.node import Node

_ARMIJO_START = 10.0
_ARMIJO_SHARE = 0.5  # of the promised decrease; a quadratic gives it for every step up to 1/L
_MOST_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Inner:
    """How an inner minimisation went.

    Attributes:
        steps: Steps taken on the leaves; fewer than asked where the model's gradient vanished.
        evaluations: How often the part before the target ran.
        value: The model where it was last evaluated; 0 at the start, below it the model has fallen.
    """

    steps: int
    evaluations: int
    value: float


@dataclass(frozen=True, slots=True, eq=False)
class Expansion:
    """What one expensive gradient tells about a loss.

    Attributes:
        targets: The target's values z_t, detached; one for each of its calls, over all recordings.
        gradients: The loss's gradient with respect to each.
        around: The loss's gradient with respect to the leaves by all paths, to tell whether some lead around the target;
            None where that is not asked.
        replays: What gives the target's values again, one for each recording.
    """

    targets: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    around: tuple[Tensor | None, ...] | None
    replays: tuple[Replay, ...]

    def again(self, values: Mapping[str, Any]) -> list[Tensor]:
        """The target's values under other parameter values, connected to them."""
        return [value for replay in self.replays for value in replay(values)]


@dataclass(frozen=True, slots=True)
class Surrogate:
    """Target-based surrogate optimization (SSO).

    Args:
        target: Name of the op whose value is the target: the last cheap one. All paths from the parameters to the loss
            have to lead through it, and what comes before it has to be pure and differentiable.
        inner_steps: Steps on each expensive gradient. One is a plain gradient step; many approach a projected
            gradient step in the space of the target.
        eta: Step size in the space of the target: 1/L for a loss that is L-smooth in all its targets together. A loss
            that is the mean over n examples is n times smoother than their sum, so eta is n times larger.
        decay: "sqrt" shrinks eta as 1/sqrt(t), for stochastic losses.
        inner_lr: Step size of plain gradient descent inside; None searches it by Armijo backtracking at every step.
            Neither counts where another optimizer takes the steps.
        tolerance: Norm of the model's gradient at which the inner steps stop.

    Raises:
        ValueError: a number makes no sense.

    Source: Lavington et al., "Target-based Surrogates for Stochastic Optimization", ICML 2023, arXiv 2302.02607,
    Algorithm 1. Its code leaves out the 1/2 of the proximity term and takes means, so its eta differs by constants.
    """

    target: str
    inner_steps: int = 10
    eta: float = 1.0
    decay: Literal["constant", "sqrt"] = "constant"
    inner_lr: float | None = None
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if self.inner_steps < 1 or not 0 < self.eta < math.inf:
            raise ValueError(
                f"Surrogate got inner_steps={self.inner_steps!r}, eta={self.eta!r}; give inner_steps >= 1 and eta > 0"
            )
        if self.decay not in ("constant", "sqrt"):
            raise ValueError(f"Surrogate got decay={self.decay!r}; choose 'constant' or 'sqrt'")
        if self.inner_lr is not None and not 0 < self.inner_lr < math.inf:
            raise ValueError(f"Surrogate got inner_lr={self.inner_lr!r}; give a number above 0, or None to search it")

    def eta_at(self, t: int) -> float:
        """The eta of outer step t, from 0."""
        return self.eta if self.decay == "constant" else self.eta / math.sqrt(t + 1)

    def expand(
        self, loss: Tensor, graphs: Iterable[Graph], names: Iterable[str], leaves: Sequence[Tensor] | None = None
    ) -> Expansion:
        """Take the one expensive gradient of an outer step.

        Args:
            loss: A scalar over the recordings, with live autograd graphs. They are freed.
            graphs: The recordings of the rollouts in it.
            names: Full names of the parameters that move.
            leaves: The tensors that will be stepped; with them, a loss that they reach around the target is refused.

        Raises:
            TraceError: a recording has no call of the target, one of its calls feeds another, or the part before it
                cannot be run again.
            GradientError: no gradient leads from the loss to the target.
        """
        import torch

        recordings, moving = list(graphs), tuple(names)
        nodes = [self._targets(graph) for graph in recordings]
        values: list[Tensor] = [node.value for found in nodes for node in found]
        asked = [*values, *(leaves or ())]
        found = cast("tuple[Tensor | None, ...]", torch.autograd.grad([loss], asked, allow_unused=True))
        if all(gradient is None for gradient in found[: len(values)]):
            raise GradientError(
                f"no gradient leads from the loss to the target {self.target!r}; name an op it depends on"
            )
        gradients = [
            torch.zeros_like(value) if gradient is None else gradient.detach()
            for value, gradient in zip(values, found, strict=False)
        ]
        return Expansion(
            targets=tuple(value.detach().clone() for value in values),  # it may share memory with a leaf
            gradients=tuple(gradients),
            around=None if leaves is None else tuple(found[len(values) :]),
            replays=tuple(Replay(graph, ends, moving) for graph, ends in zip(recordings, nodes, strict=True)),
        )

    def _targets(self, graph: Graph) -> list[Node[Any]]:
        nodes = calls_of(graph, self.target)
        for node in nodes:
            value = node.value
            if not is_tensor(value) or not value.requires_grad:
                raise GradientError(
                    f"the target {self.target!r} gave {type(value).__name__!r} that no gradient leads to; name an op "
                    "that returns a tensor made from the parameters"
                )
        if _linked(graph, nodes):
            raise TraceError(
                f"one call of the target {self.target!r} feeds another, so its gradient would count twice; name an op "
                "whose calls stand side by side"
            )
        return nodes

    def minimise(
        self,
        expansion: Expansion,
        leaves: Sequence[Tensor],
        values: Callable[[], Mapping[str, Any]],
        *,
        step: Callable[[], Any] | None = None,
        t: int = 0,
    ) -> Inner:
        """Take the inner steps of an outer step: the leaves are moved in place.

        Args:
            expansion: What `expand` gave, with the leaves where they were then.
            leaves: The tensors to move, requiring grad.
            values: Gives the parameters' values by full name from the leaves as they are; differentiable.
            step: Moves the leaves along their `.grad`, as the `step` of a torch optimizer does; gradient descent if None.
            t: Number of the outer step, from 0.

        Raises:
            TraceError: the part before the target gives something else when it is run again.
            GradientError: the loss reaches the leaves around the target.
        """
        return minimise(
            self, expansion.targets, expansion.gradients, lambda: expansion.again(values()), leaves, step=step,
            eta=self.eta_at(t), expected=expansion.around,
        )  # fmt: skip


def minimise(
    surrogate: Surrogate,
    targets: Sequence[Tensor],
    gradients: Sequence[Tensor],
    again: Callable[[], Sequence[Tensor]],
    leaves: Sequence[Tensor],
    *,
    step: Callable[[], Any] | None = None,
    eta: float | None = None,
    expected: Sequence[Tensor | None] | None = None,
) -> Inner:
    """Minimise the model of a loss around given targets.

    Args:
        surrogate: How many steps, and how large.
        targets: z_t.
        gradients: The loss's gradients with respect to them.
        again: Gives z for the leaves as they are.
        leaves: The tensors to move in place.
        step: As in `Surrogate.minimise`.
        eta: In place of the surrogate's.
        expected: The loss's whole gradient with respect to the leaves, which the model's has to equal at the start.

    Raises:
        TraceError: `again` gives other values than `targets` at the start.
        GradientError: the model's first gradient is not the expected one.
    """
    model = _Model(surrogate, targets, gradients, again, leaves, eta or surrogate.eta)
    value, slope = model.at()
    model.check(expected, slope)
    rate, steps = _ARMIJO_START, 0
    while steps < surrogate.inner_steps and _norm(slope) > surrogate.tolerance:
        if step is not None:
            _stepped(leaves, slope, step)
        elif surrogate.inner_lr is not None:
            _descend(leaves, slope, surrogate.inner_lr)
        else:
            rate = model.search(value, slope, min(2 * rate, _ARMIJO_START))
            if rate == 0.0:
                break
        steps += 1
        if steps < surrogate.inner_steps:
            value, slope = model.at()
    return Inner(steps, model.evaluations, model.last)


class _Model:
    """The tangent of a loss at the targets plus the proximity term, as a function of the leaves."""

    def __init__(
        self,
        surrogate: Surrogate,
        targets: Sequence[Tensor],
        gradients: Sequence[Tensor],
        again: Callable[[], Sequence[Tensor]],
        leaves: Sequence[Tensor],
        eta: float,
    ) -> None:
        self.name = surrogate.target
        self.targets, self.gradients, self.again, self.leaves = targets, gradients, again, leaves
        self.eta = eta
        self.evaluations = 0
        self.last = 0.0

    def value(self) -> Tensor:
        """The model at the leaves as they are."""
        reached = self.again()
        if self.evaluations == 0:
            self._check_pure(reached)
        self.evaluations += 1
        total: Any = 0.0
        for z, before, gradient in zip(reached, self.targets, self.gradients, strict=True):
            moved = z - before
            total = total + (gradient * moved).sum() + moved.square().sum() / (2 * self.eta)
        self.last = float(total.detach())
        return total

    def at(self) -> tuple[float, list[Tensor]]:
        """The model and its gradient with respect to the leaves."""
        import torch

        with torch.enable_grad():
            total = self.value()
            found = cast("Any", torch.autograd.grad([total], list(self.leaves), allow_unused=True))
        pairs = zip(self.leaves, found, strict=True)
        return self.last, [torch.zeros_like(leaf) if slope is None else slope for leaf, slope in pairs]

    def search(self, value: float, slope: Sequence[Tensor], start: float) -> float:
        """Move along the negative gradient by the first of start, start/2, ... that the model falls enough for.

        Returns:
            The step size; 0 where only such are left whose effect rounding swallows.
        """
        import torch

        before = [leaf.detach().clone() for leaf in self.leaves]
        promised = _ARMIJO_SHARE * _norm(slope) ** 2
        rate, felt = start, torch.finfo(self.leaves[0].dtype).eps * abs(value)
        for _ in range(_MOST_HALVINGS):
            if rate * promised <= felt:
                break
            _descend(self.leaves, slope, rate)
            with torch.no_grad():
                reached = float(self.value())
                if reached <= value - rate * promised:
                    return rate
                for leaf, old in zip(self.leaves, before, strict=True):
                    leaf.copy_(old)
            rate /= 2
        self.last = value
        return 0.0

    def _check_pure(self, reached: Sequence[Tensor]) -> None:
        for z, before in zip(reached, self.targets, strict=True):
            if z.shape != before.shape or not _close(z, before, 1.0):
                raise TraceError(
                    f"what comes before the target {self.name!r} gives another value when it is run again; take chance and "
                    "state out of it, or name an op in front of them"
                )

    def check(self, expected: Sequence[Tensor | None] | None, slope: Sequence[Tensor]) -> None:
        """Refuse a loss that reaches the leaves by other ways than the target.

        Raises:
            GradientError: it does.
        """
        import torch

        if expected is None:
            return
        scale = _norm(self.gradients)  # near an optimum the sum over a large gradient is rounding alone
        for wanted, found in zip(expected, slope, strict=True):
            if not _close(found, torch.zeros_like(found) if wanted is None else wanted, scale):
                raise GradientError(
                    f"the loss also depends on the parameters by ways around the target {self.name!r}; name an op that all "
                    "of them lead through, or take that part out of the loss"
                )


def _linked(graph: Graph, nodes: Sequence[Node[Any]]) -> bool:
    """Whether one of the nodes was made from another."""
    layout = graph.layout()
    below = bytearray(len(layout.order))
    wanted = {node.index for node in nodes}
    for i in range(len(layout.order)):
        parents = layout.parents[layout.offsets[i] : layout.offsets[i + 1]]
        after = any(below[parent] or parent in wanted for parent in parents)
        if after and i in wanted:
            return True
        below[i] = after
    return False


def _close(found: Tensor, wanted: Tensor, scale: float) -> bool:
    """Equal but for rounding, which a second run may do in another order; what is not finite is for others to find."""
    import torch

    digits = torch.finfo(found.dtype).eps ** 0.5
    return not _norm([found - wanted]) > digits * (_norm([wanted]) + 1e-6 * scale)


def _norm(slope: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(part.detach().square().sum()) for part in slope))


def _descend(leaves: Sequence[Tensor], slope: Sequence[Tensor], rate: float) -> None:
    import torch

    with torch.no_grad():
        for leaf, part in zip(leaves, slope, strict=True):
            leaf.sub_(part, alpha=rate)


def _stepped(leaves: Sequence[Tensor], slope: Sequence[Tensor], step: Callable[[], Any]) -> None:
    for leaf, part in zip(leaves, slope, strict=True):
        leaf.grad = part
    step()
