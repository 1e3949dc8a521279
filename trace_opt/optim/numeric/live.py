"""Losses of training rollouts as functions of one flat vector, for methods that need more than their mean's gradient.

A method written on vectors asks for points by yielding them and is sent what holds there, so it does not know whether
plain functions answer or rollouts of a workflow do, and there is one text of it for both.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from trace_opt.core.reuse import Memos
from trace_opt.errors import FeedbackError, GradientError, meant

if TYPE_CHECKING:
    import torch

    from trace_opt.core.parameter import Parameter
    from trace_opt.core.rollout import Rollout, Rollouts

S = TypeVar("S")
Values = Mapping[str, "torch.Tensor"]


class Flat:
    """Tensors by name as one vector, and back.

    Args:
        tensors: What they are now, in order: shapes, dtypes and devices are theirs. The vector takes the first one's
            device and the widest dtype.
        constraints: What each must satisfy, where anything.
    """

    def __init__(self, tensors: Values, constraints: Mapping[str, Any] | None = None) -> None:
        self.tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self._constraints = {name: c for name, c in (constraints or {}).items() if c is not None}

    @property
    def free(self) -> bool:
        """Whether nothing is asked of them."""
        return not self._constraints

    def start(self) -> torch.Tensor:
        """What they are at the start."""
        return self.join(self.tensors)

    def join(self, tensors: Mapping[str, Any]) -> torch.Tensor:
        """Named tensors as a vector; None counts as zeros."""
        import torch

        first = next(iter(self.tensors.values()))
        dtype = first.dtype
        for tensor in self.tensors.values():
            dtype = torch.promote_types(dtype, tensor.dtype)
        parts: list[torch.Tensor] = []
        for name, like in self.tensors.items():
            found = tensors.get(name)
            part = torch.zeros_like(like) if found is None else cast("torch.Tensor", found)
            parts.append(part.reshape(-1).to(first.device, dtype))
        return torch.cat(parts)

    def split(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """A vector as named tensors of their own memory, where and as wide as the first ones were."""
        import torch

        pieces = torch.split(vector, [tensor.numel() for tensor in self.tensors.values()])
        pairs = zip(self.tensors.items(), pieces, strict=True)
        return {n: piece.reshape(t.shape).to(t.device, t.dtype, copy=True) for (n, t), piece in pairs}

    def project(self, vector: torch.Tensor) -> torch.Tensor:
        """The nearest vector whose tensors satisfy their constraints."""
        if self.free:
            return vector
        tensors = self.split(vector)
        for name, constraint in self._constraints.items():
            tensors[name] = constraint.project(tensors[name])
        return self.join(tensors)


class Point:
    """What losses are at one point: values, first and second derivatives, each taken when it is asked for.

    Args:
        losses: Live losses by name, of any shape, for each rollout; their mean over rollouts counts.
        leaves: What they were computed from, all requiring grad.
        flat: How those are a vector.
    """

    def __init__(self, losses: Sequence[Mapping[str, torch.Tensor]], leaves: Values, flat: Flat) -> None:
        self._losses, self._leaves, self._flat = losses, leaves, flat

    def value(self, names: Sequence[str]) -> torch.Tensor:
        """The named losses one after another, of shape (m,), live."""
        import torch

        if len(self._losses) == 1:
            parts = [self._losses[0][name].reshape(-1) for name in names]
        else:  # in the order of the examples, so that the sum is the same bit for bit
            parts = [sum(loss[name].reshape(-1) for loss in self._losses) / len(self._losses) for name in names]
        return torch.cat(cast("Any", parts)) if parts else self._flat.start()[:0]

    def rows(self, names: Sequence[str]) -> torch.Tensor:
        """Their derivatives, of shape (m, n)."""
        import torch

        found = [self.gradient(part) for part in self.value(names)]
        return torch.stack(found) if found else self._flat.start().new_zeros(0, self._flat.start().numel())

    def weighted(self, weights: Mapping[str, torch.Tensor | float]) -> torch.Tensor:
        """The derivative of the weighted sum of the named losses, of shape (n,), by one backward pass."""
        import torch

        total = sum(torch.sum(self.value([name]) * weight) for name, weight in weights.items())
        return self.gradient(cast("torch.Tensor", total))

    def gradient(self, scalar: torch.Tensor, *, again: bool = False) -> torch.Tensor:
        """The derivative of a live number, of shape (n,); itself live where `again`."""
        import torch

        if not scalar.requires_grad:
            return self._flat.start() * 0
        leaves = list(self._leaves.values())
        found = torch.autograd.grad(scalar, leaves, retain_graph=True, create_graph=again, allow_unused=True)
        return self._flat.join(dict(zip(self._leaves, found, strict=True)))


class Travelled(Point):
    """A point whose rollouts ran in another process: values and gradients came, without what leads to them."""

    def __init__(self, rollouts: Sequence[Rollout], leaves: Values, flat: Flat) -> None:
        losses = [loss_by_name(rollout) for rollout in rollouts]
        super().__init__(losses, leaves, flat)
        self._gradients = [cast("Any", rollout.gradients) for rollout in rollouts]

    def rows(self, names: Sequence[str]) -> torch.Tensor:
        """See `Point.rows`; each loss is one number here."""
        import torch

        found = [
            sum(self._flat.join(g.get(name, {})) for g in self._gradients) / len(self._gradients) for name in names
        ]
        return torch.stack(cast("Any", found)) if found else super().rows(names)

    def weighted(self, weights: Mapping[str, torch.Tensor | float]) -> torch.Tensor:
        """See `Point.weighted`."""
        return cast("torch.Tensor", sum(self.rows([name])[0] * weight for name, weight in weights.items()))

    def gradient(self, scalar: torch.Tensor, *, again: bool = False) -> torch.Tensor:  # noqa: ARG002
        """Not to be had.

        Raises:
            GradientError: always.
        """
        raise GradientError(
            "a method that needs second derivatives got rollouts of another process, which carry first ones only; run it "
            "with the executor of this process"
        )


def loss_by_name(rollout: Rollout) -> Mapping[str, torch.Tensor]:
    """The losses of a rollout; a single one is called "loss"."""
    loss = rollout.feedback.loss
    if loss is None:
        raise FeedbackError("the guide gave no loss; return Feedback(score=..., loss={...}) with the losses by name")
    return cast("Mapping[str, torch.Tensor]", loss) if isinstance(loss, Mapping) else {"loss": loss}


def checked(losses: Mapping[str, torch.Tensor], names: Sequence[str], asks: str) -> None:
    """Refuse feedback without a loss that a method is to use.

    Raises:
        FeedbackError: one is missing.
    """
    for name in names:
        if name not in losses:
            hint = meant(name, losses, f"it gave {list(losses)!r}")
            raise FeedbackError(f"{asks} needs the loss {name!r}, which the guide did not give; {hint}")


class Workflow:
    """Answers for points by training rollouts.

    Args:
        rollouts: Runs them.
        flat: The tensors that move.
        names: The losses needed.
        asks: Who needs them, for messages.

    Attributes:
        ran, failed: Rollouts so far.
    """

    def __init__(self, rollouts: Rollouts, flat: Flat, names: Sequence[str], asks: str) -> None:
        self._rollouts, self._flat, self._names, self._asks = rollouts, flat, names, asks
        self._memos = Memos()
        self.ran = 0
        self.failed = 0

    async def at(self, vector: torch.Tensor, examples: Sequence[Any], repeat: int = 0) -> Point:
        """What the losses are at a vector, as their mean over examples.

        Raises:
            GradientError: every rollout failed, or nothing that moves reaches any of the losses.
            FeedbackError: a loss is missing.
        """
        leaves = {name: tensor.requires_grad_() for name, tensor in self._flat.split(vector).items()}
        found = await self._rollouts.run(leaves, examples, grad=True, repeat=repeat, memos=self._memos)
        good = [rollout for rollout in found if rollout.error is None]
        self.ran += len(found)
        self.failed += len(found) - len(good)
        if not good:
            raise GradientError(
                f"{self._asks} got no loss: all {len(found)} training rollouts failed, {found[0].error}"
            )
        if any(rollout.gradients is not None and rollout.feedback.loss is None for rollout in good):
            raise GradientError(
                f"{self._asks} got rollouts of another process without the values of their losses; run it with the executor "
                "of this process"
            )
        for rollout in good:
            checked(loss_by_name(rollout), self._names, self._asks)
        if good[0].gradients is not None:
            return Travelled(good, leaves, self._flat)
        losses = [loss_by_name(rollout) for rollout in good]
        if not any(loss[name].requires_grad for loss in losses for name in self._names):
            raise GradientError(
                f"{self._asks} got losses {list(self._names)!r} that do not depend on {list(leaves)!r}; make them of the "
                "workflow's output, in torch"
            )
        return Point(losses, leaves, self._flat)


def answers(
    functions: Mapping[str, Callable[..., torch.Tensor]], arguments: Callable[[torch.Tensor], Sequence[torch.Tensor]]
) -> Callable[[Generator[torch.Tensor, Point, S]], S]:
    """What runs a method to its end on plain functions.

    Args:
        functions: By name.
        arguments: `vector -> arguments` of each of them.
    """

    def at(vector: torch.Tensor) -> Point:
        leaf = vector.detach().clone().requires_grad_()
        given = arguments(leaf)
        return Point([{name: f(*given) for name, f in functions.items()}], {"": leaf}, Flat({"": vector}))

    def answered(asks: Generator[torch.Tensor, Point, S]) -> S:
        try:
            wanted = next(asks)
            while True:
                wanted = asks.send(at(wanted))
        except StopIteration as end:
            return end.value

    return answered


def flat_of(parameters: Sequence[Parameter[Any]]) -> Flat:
    """The values of tensor parameters as a vector that knows their constraints."""
    return Flat({p.name: p.value for p in parameters}, {p.name: p.constraint for p in parameters})
