"""Torch optimizers for the tensors of a workflow, by the gradients that its recordings carry.

Under `optimize` a proposal is a phase: many minibatch steps on a private copy, tested once at its end. By hand, `step` is
one torch step on the gradients that `backward` collected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from trace_opt.core.parameter import Parameter, is_tensor
from trace_opt.core.rollout import Rollouts
from trace_opt.errors import TraceError
from trace_opt.optim.base import Optimizer, Outcome, Proposal, Trial, rollouts_of
from trace_opt.optim.numeric.kept import SHRINK, PhaseStates
from trace_opt.optim.numeric.training import Options, Training

if TYPE_CHECKING:
    import torch

    from trace_opt.optim.numeric.registry import Stepper
    from trace_opt.optim.numeric.schedules import Refined


_ONCE = ("mean", "mgda", "upgrad")
"""Ways to combine losses that take no rollouts besides the minibatch's."""


class Gradient(Optimizer):
    """Moves floating tensors, and with `estimator` choices too.

    Args:
        optimizer: A name of the registry: "adamw", "sgd", "lion", "lion-k", ... (`registry.names()` lists them).
        lr: The learning rate; the optimizer's own default where left out.
        schedule: "linear", "cosine", "constant", or a `Refined` schedule.
        **options: See `training.Options`.

    A phase that is dropped leaves values and the optimizer's state as they were, and the next one from there is tried at
    half the learning rate. A candidate's phase goes on from the state of the phase that led to it.

    Raises:
        ValueError: an option is unknown or makes no sense.
    """

    wants_rollouts = False  # it draws minibatches of its own

    def __init__(
        self, optimizer: str = "adamw", lr: float | None = None, schedule: str | Refined = "linear",
        **options: Unpack[Options],
    ) -> None:  # fmt: skip
        super().__init__()
        self.training = Training.of(optimizer, lr, schedule, options)
        self._check()
        self._kept = PhaseStates()
        self._hand: tuple[dict[str, torch.Tensor], Stepper] | None = None

    def _check(self) -> None:
        from trace_opt.optim.numeric.registry import rule
        from trace_opt.optim.numeric.schedules import multiplier

        rule(self.training.optimizer)
        multiplier(self.training.schedule, 0.0)

    def handles(self, parameter: Parameter[Any]) -> bool:
        """Floating tensors; with `estimator` choices."""
        if parameter.kind == "choice":
            return self.training.estimator is not None
        value: Any = parameter.initial
        return is_tensor(value) and bool(value.is_floating_point())

    async def propose(
        self,
        parameters: Sequence[Parameter[Any]],
        rollouts: Rollouts,
        history: Sequence[Trial],  # noqa: ARG002
    ) -> Proposal:
        """A phase, or by hand one step.

        Raises:
            GradientError: no rollout of a minibatch gives a tensor that was read a gradient.
            FeedbackError: the guide gave no loss.
            BudgetError: the budget does not cover one step.
        """
        if rollouts.by_hand:
            return self._stepped(parameters)
        from trace_opt.optim.numeric.phase import Phase, Progress

        key = self._kept.key({p.name: p.value for p in parameters})
        kept = self._kept.get(key)
        progress = Progress() if kept is None else Progress.load(kept)
        phase = Phase(self.training, parameters, rollouts, progress, SHRINK ** self._kept.dropped(key))
        if phase.steps == 0:
            return Proposal(reason=f"all {self.training.total_steps} steps are done")
        await phase.run()
        values = phase.values()
        made = self._kept.key({p.name: values[p.name] for p in parameters})
        if made == key:
            return Proposal(reason="the phase changed nothing")
        notes = {**self._notes(phase), **self._kept.wait(key, made, phase.progress.dump())}
        return Proposal(values, self._said(phase), notes, phase=True)

    def rollouts_at_most(self, examples: int, minibatch: int, *, batches: int | None = None) -> int | None:  # noqa: ARG002
        """The minibatches of a phase; None where batches grow, choices are drawn or a preference is asked for too."""
        from trace_opt.optim.numeric.phase import first_batch

        training = self.training
        if (
            not isinstance(training.batch, int | None)
            or training.estimator is not None
            or training.combine not in _ONCE
        ):
            return None
        epoch = batches or examples
        size = training.batch or first_batch(epoch, batched=batches is not None)
        steps = training.steps or -(-epoch // size)
        return rollouts_of(min(steps, training.total_steps or steps), size, epoch)

    def _said(self, phase: Any) -> str:
        failed = f", {phase.failed} training rollouts failed" if phase.failed else ""
        ended = f"; {phase.ended}" if phase.ended else ""
        return f"{phase.done} steps of {self.training.optimizer}{failed}{ended}"

    def _notes(self, phase: Any) -> dict[str, Any]:
        notes: dict[str, Any] = {"steps": phase.done, "total": phase.progress.steps, "failed": phase.failed}
        if self.training.record_norms:
            notes["norms"] = phase.progress.norms[-phase.done :]
        return notes

    def observe(self, proposal: Proposal, outcome: Outcome) -> None:
        """Keep the optimizer's state of a phase that is built on; forget that of one that was dropped."""
        self._kept.observe(proposal, outcome)

    # -- by hand -----------------------------------------------------------------------------------------------------

    def _stepped(self, parameters: Sequence[Parameter[Any]]) -> Proposal:
        """One step on the gradients collected.

        Raises:
            TraceError: no tensor has a gradient.
        """
        from trace_opt.optim.numeric.phase import leaf, made_stepper
        from trace_opt.optim.numeric.schedules import multiplier

        moved = [p for p in parameters if is_tensor(p.value)]
        if all(p.grad is None for p in moved):
            raise TraceError(
                "Gradient.step() found no gradient; call backward(output, Feedback(loss=...)) with a loss made of the output"
            )
        if self._hand is None or set(self._hand[0]) != {p.name for p in moved}:
            leaves = {p.name: leaf(p.value, self.training.device, p.value) for p in moved}
            self._hand = leaves, made_stepper(self.training, leaves)
        leaves, stepper = self._hand
        for p in moved:
            tensor = leaves[p.name]
            tensor.data.copy_(p.value)
            tensor.grad = None if p.grad is None else p.grad.to(tensor.device)
        total = self.training.total_steps
        stepper.set_lr(multiplier(self.training.schedule, self._steps / total) if total else 1.0)
        stepper.step()
        return Proposal(
            {p.name: self._allowed(p, leaves[p.name]) for p in moved}, f"a step of {self.training.optimizer}"
        )

    @staticmethod
    def _allowed(parameter: Parameter[Any], tensor: torch.Tensor) -> torch.Tensor:
        value = tensor.detach().to(parameter.value.device, copy=True)
        return value if parameter.constraint is None else parameter.constraint.project(value)

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state of each phase that was built on or waits for its verdict."""
        return self._kept.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._kept.load_state_dict(state)
