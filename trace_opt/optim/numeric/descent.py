"""What one minibatch says: from training rollouts to the gradient of every tensor that moves.

Losses are averaged in the order of the examples, and one backward runs for each micro-batch, so that no more recordings
live at once than asked for. Failed rollouts are left out and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.node import is_a
from trace_opt.core.reuse import Memos
from trace_opt.core.rollout import Rollout, Rollouts
from trace_opt.errors import FeedbackError, GradientError
from trace_opt.optim.numeric import clipping, several
from trace_opt.optim.numeric.paths import no_gradient, was_read

if TYPE_CHECKING:
    import torch

    from trace_opt.optim.numeric.choices import Choices
    from trace_opt.optim.numeric.stepper import Curvature
    from trace_opt.optim.numeric.surrogate import Expansion
    from trace_opt.optim.numeric.training import SampledLoss, Training


@dataclass(slots=True)
class Found:
    """What a minibatch gave.

    Attributes:
        ran, failed: Losses it is the mean of, and rollouts that failed.
        rows: The gradient of each rollout, flat, shape `(ran, d)`; where it was asked for.
        curvature: An estimate of the Hessian's diagonal for each leaf; where it was asked for.
    """

    ran: int = 0
    failed: int = 0
    rows: torch.Tensor | None = None
    curvature: list[torch.Tensor] | None = None


class Descent:
    """Sets `grad` of the tensors that move, from training rollouts.

    Args:
        training: The options.
        leaves: The tensors that move, by full parameter name; the rollouts hand them to the workflow.
        rollouts: Runs the workflow.
        choices: The choices that move as logits, or None.
        preference: Examples set aside for a `ParetoDA`.
        buffers: What training rollouts write beside (running statistics), by full parameter name.
    """

    def __init__(
        self, training: Training, leaves: Mapping[str, torch.Tensor], rollouts: Rollouts,
        choices: Choices | None = None, preference: Sequence[Any] = (), buffers: Mapping[str, torch.Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.training = training
        self.leaves = dict(leaves)
        self.values: dict[str, Any] = {**leaves, **(buffers or {})}
        self.moving = [*self.leaves.values(), *(() if choices is None else choices.logits.values())]
        self._rollouts = rollouts
        self._choices = choices
        self._preference = preference
        self._memos = Memos() if training.reuse else None
        self._seen: set[str] = set()
        self._sums: dict[str, torch.Tensor] = {}

    async def minibatch(
        self, examples: Sequence[Any], repeat: int, generator: torch.Generator | None = None, *, rows: bool = False,
        curvature: Curvature = "none",
    ) -> Found:  # fmt: skip
        """Run training rollouts and set `grad` of everything that moves.

        Args:
            examples: The minibatch.
            repeat: The number of the step: the chance of examples that are not listed, and of what is drawn.
            generator: Draws choices, probes and labels, where there are any to draw.
            rows: Whether the gradient of each rollout is wanted.
            curvature: "hessian" or "gauss-newton", where an estimate is wanted.

        Raises:
            GradientError: no rollout gives a tensor that was read a gradient.
            BudgetError: the budget does not cover it.
        """
        found = Found()
        for tensor in self.moving:
            tensor.grad = None
        self._sums.clear()
        size = self.training.micro_batch or len(examples)
        kept: list[Rollout] = []
        for i in range(0, len(examples), size):
            part = examples[i : i + size]
            if self._choices is None or generator is None:
                rollouts = await self._rollouts.run(self.values, part, grad=True, repeat=repeat, memos=self._memos)
                good = [rollout for rollout in rollouts if rollout.error is None]
                losses = [self._loss(rollout) for rollout in good]
            else:
                losses, rollouts = await self._expected(self._choices, part, repeat, generator)
                good = [rollout for rollout in rollouts if rollout.error is None]
            found.failed += len(rollouts) - len(good)
            if losses:
                if self.training.clip_channels:
                    self._clip_channels(good)
                if curvature != "none" and generator is not None and found.curvature is None:
                    found.curvature = self._curvature(curvature, losses, good, generator)
                self._back(losses, good, found, rows=rows)
                kept = good
        if found.ran:
            await self._finish(found, repeat)
            self._check(kept)
        return found

    async def expansion(self, examples: Sequence[Any], repeat: int) -> tuple[Expansion | None, Found]:
        """Run training rollouts and take the one gradient of what lies behind the surrogate's target.

        Args:
            examples: The minibatch.
            repeat: The number of the step.

        Returns:
            What is known around the targets, None where every rollout failed.

        Raises:
            GradientError, TraceError: as `Surrogate.expand`.
        """
        rollouts = await self._rollouts.run(self.values, examples, grad=True, repeat=repeat, memos=self._memos)
        good = [rollout for rollout in rollouts if rollout.error is None]
        found = Found(ran=len(good), failed=len(rollouts) - len(good))
        surrogate = self.training.surrogate
        if not good or surrogate is None:
            return None, found
        graphs = [rollout.graph for rollout in good if rollout.graph is not None]
        if self.training.clip_channels:
            self._clip_channels(good)
        loss = _total([loss_of(rollout) for rollout in good]) / len(good)
        self._seen.update(name for name in self.leaves if was_read(name, good))
        return surrogate.expand(loss, graphs, self.leaves, self.moving), found

    # -- losses ------------------------------------------------------------------------------------------------------

    def _loss(self, rollout: Rollout) -> Any:
        if rollout.gradients is not None:
            return rollout.gradients
        return loss_of(rollout) if self.training.combine == "mean" else losses_of(rollout)

    async def _expected(
        self, choices: Choices, examples: Sequence[Any], repeat: int, generator: torch.Generator
    ) -> tuple[list[Any], list[Rollout]]:
        """A loss for each example that came through, in expectation over the choices, and the rollouts."""
        losses: list[Any] = []
        everything: list[Rollout] = []
        for example in examples:
            points = choices.points(generator)
            values = [{**self.values, **point.values} for point in points]
            found = await self._rollouts.run_all(values, [example], grad=True, repeat=repeat, memos=self._memos)
            rollouts = [one for (one,) in found]
            everything += rollouts
            surrogate = choices.surrogate(points, rollouts)
            if surrogate is not None:
                losses.append(surrogate)
        return losses, everything

    # -- gradients ---------------------------------------------------------------------------------------------------

    def _back(self, losses: Sequence[Any], rollouts: Sequence[Rollout], found: Found, *, rows: bool) -> None:
        """Add the gradients of the sum of these losses, which these rollouts gave."""
        found.ran += len(losses)
        if rows:
            import torch

            each = [self._row(_one(loss)) for loss in losses]
            together = torch.stack(each)
            found.rows = together if found.rows is None else torch.cat([found.rows, together])
        elif isinstance(losses[0], Mapping):
            self._add_sums(losses, rollouts)
        else:
            live = [loss for loss in losses if loss.requires_grad]
            if len(live) == len(rollouts) == 1:
                backward(live[0], self.moving)
            elif live:
                for tensor, grad in zip(self.moving, self._gradients(summed(live), rollouts, keep=False), strict=True):
                    if grad is not None:
                        tensor.grad = grad if tensor.grad is None else tensor.grad + grad

    def _gradients(self, loss: torch.Tensor, rollouts: Sequence[Rollout], *, keep: bool) -> list[Any]:
        """One backward for several rollouts: their parts of each gradient, added up in their order.

        Left to itself, autograd adds up in the order in which operations were called, which is chance where rollouts ran
        at once. Each of several rollouts was handed aliases of its own, so its part is there to be had.
        """
        if any(rollout.values[name] is leaf for rollout in rollouts for name, leaf in self.leaves.items()):
            return _autograd().grad([loss], self.moving, retain_graph=keep, allow_unused=True)  # each ran by itself
        names = list(self.leaves)
        handed = [rollout.values[name] for rollout in rollouts for name in names]
        fixed = self.moving[len(names) :]
        found = _autograd().grad([loss], [*handed, *fixed], retain_graph=keep, allow_unused=True)
        sums: list[Any] = [None] * len(names)
        for place, grad in enumerate(found[: len(handed)]):
            if grad is not None:
                before = sums[place % len(names)]
                sums[place % len(names)] = grad if before is None else before + grad
        return [*sums, *found[len(handed) :]]

    def _add_sums(self, losses: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout]) -> None:
        """Add the gradient of each loss by name; live ones are taken together, those of other processes arrive as such."""
        for name in losses[0]:
            parts = [loss[name] for loss in losses]
            travelled = isinstance(parts[0], Mapping)
            row: Any = sum(map(self._travelled, parts)) if travelled else self._row(sum(parts), rollouts)
            self._sums[name] = self._sums[name] + row if name in self._sums else row

    def _row(self, loss: Any, rollouts: Sequence[Rollout] = ()) -> torch.Tensor:
        """The flat gradient of a loss, which these rollouts gave; their recordings stay alive for the other losses."""
        if is_a(loss, Mapping):
            return self._travelled(loss)
        nothing: list[Any] = [None] * len(self.moving)
        grads: Sequence[Any] = nothing
        if loss.requires_grad:
            if len(rollouts) > 1:
                grads = self._gradients(loss, rollouts, keep=True)
            else:
                grads = _autograd().grad([loss], self.moving, retain_graph=True, allow_unused=True)
        self._see(grads)
        return flat(grads, self.moving)

    def _travelled(self, by_name: Mapping[str, torch.Tensor]) -> torch.Tensor:
        grads = [by_name.get(name) for name in self.leaves]
        grads += [None] * (len(self.moving) - len(grads))
        self._see(grads)
        return flat(grads, self.moving)

    def _see(self, grads: Sequence[Any]) -> None:
        self._seen.update(name for name, grad in zip(self.leaves, grads, strict=False) if grad is not None)

    async def _finish(self, found: Found, repeat: int) -> None:
        """From sums to the mean, and from several losses to one step."""
        if found.rows is not None:
            spread(found.rows.mean(0), self.moving)
        elif self._sums:
            import torch

            rows = torch.stack(list(self._sums.values())) / found.ran
            spread(await self._weights(rows, repeat) @ rows, self.moving)
        elif found.ran > 1:
            for tensor in self.moving:
                if tensor.grad is not None:
                    tensor.grad /= found.ran

    async def _weights(self, rows: torch.Tensor, repeat: int) -> torch.Tensor:
        if not self._preference:
            return several.weights(self.training.combine, rows)
        rollouts = await self._rollouts.run(self.values, self._preference, grad=True, repeat=repeat, memos=self._memos)
        name = self.training.combine.loss
        good = [rollout for rollout in rollouts if rollout.error is None]
        losses = [loss_of(rollout) if name is None else losses_of(rollout)[name] for rollout in good]
        if not losses:
            return several.weights("mean", rows)
        loss: Any = sum(losses) / len(losses)
        return several.weights(
            self.training.combine, rows, preference=self._row(loss), preference_loss=float(loss.detach())
        )

    def _check(self, rollouts: Sequence[Rollout]) -> None:
        """Raise where a tensor was read and no rollout gives it a gradient."""
        for name, leaf in self.leaves.items():
            if name in self._seen or leaf.grad is not None:
                self._seen.add(name)
            elif was_read(name, rollouts):
                raise no_gradient(name, rollouts)

    def unseen(self) -> GradientError | None:
        """The error about a tensor that no rollout so far has read."""
        missing = [name for name in self.leaves if name not in self._seen]
        return no_gradient(missing[0], []) if missing else None

    # -- around the gradient -----------------------------------------------------------------------------------------

    def _clip_channels(self, rollouts: Sequence[Rollout]) -> None:
        """Bound what flows back through the values of the ops named."""
        for graph in (rollout.graph for rollout in rollouts if rollout.graph is not None):
            for name, given in self.training.clip_channels.items():
                limit, norm = cast("tuple[float, Any]", given if is_a(given, tuple) else (given, "inf"))
                clipping.clip_ops(graph, {name: limit}, norm)

    def _curvature(
        self, kind: str, losses: Sequence[Any], rollouts: Sequence[Rollout], generator: torch.Generator
    ) -> list[torch.Tensor]:
        from trace_opt.optim.numeric import sophia

        if kind == "hessian":
            return sophia.hutchinson(_total(losses) / len(losses), self.moving, generator)
        sampled = cast("SampledLoss", self.training.sampled_loss)  # Training refuses sophia-g without it
        drawn = [sampled(rollout.output, rollout.example, generator) for rollout in rollouts]
        return sophia.gauss_newton(_total(drawn) / len(drawn), self.moving, len(drawn))


def losses_of(rollout: Rollout) -> dict[str, Any]:
    """The losses of a rollout by name; the only one is called "loss".

    Raises:
        FeedbackError: there is none, or one is no single number.
    """
    loss = rollout.feedback.loss
    if loss is None:
        raise FeedbackError(
            "the guide gave a training rollout no loss; return Feedback(score=..., loss=...) with a scalar tensor that "
            "comes from the output, or let an optimizer that needs no gradient (ZerothOrder) own the tensors"
        )
    named = loss if isinstance(loss, dict) else {"loss": loss}
    for name, part in named.items():
        if part.numel() != 1:
            raise FeedbackError(f"{name!r} has shape {tuple(part.shape)!r}; reduce it to one number, as with .mean()")
    return {name: part if part.ndim == 0 else part.reshape(()) for name, part in named.items()}


def loss_of(rollout: Rollout) -> Any:
    """The loss of a rollout, the mean of several.

    Raises:
        FeedbackError: there is none, or one is no single number.
    """
    loss = rollout.feedback.loss
    if loss is not None and not isinstance(loss, dict) and loss.ndim == 0:
        return loss
    return _mean(losses_of(rollout))


def flat(grads: Sequence[Any], like: Sequence[torch.Tensor]) -> torch.Tensor:
    """Gradients of several tensors as one vector, zero where there is none."""
    import torch

    parts = [x.new_zeros(x.numel()) if grad is None else grad.reshape(-1) for grad, x in zip(grads, like, strict=True)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def spread(vector: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Set `grad` of several tensors from one vector."""
    for part, tensor in zip(several.unflatten(vector, tensors), tensors, strict=True):
        tensor.grad = part.to(tensor.dtype)


@cache
def _autograd() -> Any:
    import torch

    return torch.autograd


def backward(loss: torch.Tensor, leaves: Sequence[torch.Tensor]) -> None:
    """Add a loss's gradient to `grad` of the leaves, and to nothing else that it was made from."""
    _autograd().backward([loss], inputs=leaves)


def summed(losses: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of scalars, in their order."""
    import torch

    return torch.stack(list(losses)).sum()


def _total(losses: Sequence[Any]) -> Any:
    return sum(_one(loss) for loss in losses)


def _one(loss: Any) -> Any:
    """The mean of several losses by name, of their gradients where these came from another process."""
    if not isinstance(loss, Mapping):
        return loss
    parts = cast("Mapping[str, Any]", loss)
    return _mean_of(parts) if isinstance(next(iter(parts.values())), Mapping) else _mean(parts)


def _mean(losses: Mapping[str, Any]) -> Any:
    return sum(losses.values()) / len(losses)


def _mean_of(gradients: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean gradient of several losses, by full parameter name."""
    total: dict[str, torch.Tensor] = {}
    for by_name in gradients.values():
        for name, grad in by_name.items():
            total[name] = total[name] + grad if name in total else grad
    return {name: grad / len(gradients) for name, grad in total.items()}
