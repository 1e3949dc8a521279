"""One numeric trial: many minibatch steps on a private copy of the tensors.

The copy is made once and nothing else is written, so a phase that is dropped leaves no trace. Where a phase stands can be
committed at any step, and a resumed one goes on from there bit for bit: minibatches, draws and probes come from seeds.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from trace_opt.core.neural import buffers_of, phase_copies
from trace_opt.core.rollout import Rollouts
from trace_opt.core.tensors import generator_of
from trace_opt.errors import BudgetError
from trace_opt.optim.numeric import registry
from trace_opt.optim.numeric.choices import Choices
from trace_opt.optim.numeric.descent import Descent, Found
from trace_opt.optim.numeric.growth import BatchGrowth
from trace_opt.optim.numeric.schedules import gradient_norm, multiplier
from trace_opt.optim.numeric.several import ParetoDA

if TYPE_CHECKING:
    import torch

    from trace_opt.core.parameter import Parameter
    from trace_opt.optim.numeric.registry import Stepper
    from trace_opt.optim.numeric.surrogate import Surrogate
    from trace_opt.optim.numeric.training import Training

_BATCH = 8
_LEAN = 1.0  # how much likelier the value in force is than another choice, as a logit


@dataclass(slots=True)
class Progress:
    """How far a candidate has been trained, over all phases that led to it.

    Attributes:
        steps: Steps taken.
        epoch, position: The epoch under way, and the examples of it that have been seen.
        batch: Training rollouts of the next step.
        stepper: The state of the optimizer, or None before the first step.
        logits: Of the choices, by full parameter name.
        norms: The gradient norm of each step, where they are recorded.
    """

    steps: int = 0
    epoch: int = 0
    position: int = 0
    batch: int = 0
    stepper: dict[str, Any] | None = None
    logits: dict[str, torch.Tensor] = field(default_factory=dict[str, "torch.Tensor"])
    norms: list[float] = field(default_factory=list[float])

    def dump(self) -> dict[str, Any]:
        """As data, tensors included."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Progress:
        """What `dump` gave."""
        given: dict[str, Any] = {**data, "norms": list(data["norms"]), "logits": dict(data["logits"])}
        return cls(**given)


class Phase:
    """A phase under way.

    Args:
        training: The options.
        parameters: The tensors and choices that move; their values are in force.
        rollouts: Runs the workflow, keeps checkpoints.
        progress: Where the candidate it starts from stands.
        scale: What the learning rate is multiplied by.

    Attributes:
        progress: Where it stands now.
        done: Steps of this phase that are done.
        failed: Training rollouts that failed.
        ended: Why it ended before all its steps were done, in words; "" else.
    """

    def __init__(
        self, training: Training, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, progress: Progress,
        scale: float = 1.0,
    ) -> None:  # fmt: skip
        saved = rollouts.saved
        self.training = training
        self.progress = progress if saved is None else Progress.load(saved["progress"])
        self.done: int = 0 if saved is None else saved["done"]
        self.failed: int = 0 if saved is None else saved["failed"]
        self.ended = ""
        self.tensors = {p.name: p for p in parameters if p.kind == "tensor"}
        self._rollouts = rollouts
        self._scale = scale
        self.choices = self._made_choices([p for p in parameters if p.kind == "choice"])
        self.leaves = {
            name: leaf(p.value if saved is None else saved["values"][name], training.device, p.value)
            for name, p in self.tensors.items()
        }
        self._homes = {buffer.name: buffer.initial.device for buffer in buffers_of(self.tensors.values())}
        self._bounded = [
            (p.constraint, self.leaves[name]) for name, p in self.tensors.items() if p.constraint is not None
        ]
        self.buffers = phase_copies(
            self.tensors.values(), placed(training.device), None if saved is None else saved["buffers"]
        )
        self._growth = training.batch if isinstance(training.batch, BatchGrowth) else None
        self._set_aside = self._preference()
        self._size = max(1, len(rollouts.train) - len(self._set_aside))
        if not self.progress.batch:
            self.progress.batch = self._first_batch()
        self.steps = self._planned()
        logits = {} if self.choices is None else self.choices.logits
        self.stepper: Stepper = made_stepper(training, {**self.leaves, **logits})
        if self.progress.stepper is not None:
            self.stepper.load_state_dict(self.progress.stepper)
        self._descent = Descent(training, self.leaves, rollouts, self.choices, self._set_aside, self.buffers)

    def _made_choices(self, parameters: Sequence[Parameter[Any]]) -> Choices | None:
        if not parameters or self.training.estimator is None:
            return None
        choices = Choices(parameters, self.training.estimator, self.training.samples)
        if self.progress.logits:
            for name, logits in choices.logits.items():
                logits.data.copy_(self.progress.logits[name])
        else:
            choices.lean({p.name: p.value for p in parameters}, _LEAN)
        return choices

    def _first_batch(self) -> int:
        given = self.training.batch
        if isinstance(given, BatchGrowth):
            return given.start
        return given if given is not None else first_batch(self._size, batched=self._rollouts.batches is not None)

    def _planned(self) -> int:
        """Steps that this phase is to take: an epoch, what was asked for, or what is left of the training."""
        steps = self.training.steps
        if steps is None:
            steps = -(-(self._rollouts.batches or self._size) // self.progress.batch)
        total = self.training.total_steps
        return steps if total is None else max(0, min(steps, total - (self.progress.steps - self.done)))

    def _preference(self) -> list[Any]:
        """Training examples set aside for a preference."""
        combine = self.training.combine
        if not isinstance(combine, ParetoDA):
            return []
        train = self._rollouts.train
        return list(train[len(train) - min(combine.set_aside, len(train) // 2) :])

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take all steps.

        Raises:
            GradientError: a tensor gets no gradient, or no rollout reads it.
            BudgetError: the budget does not cover a single step.
        """
        minibatches = self._minibatches()
        every = self.training.checkpoint_every
        stepped = 0
        while self.done < self.steps:
            try:
                found = await self._step(next(minibatches))
            except BudgetError as error:
                if not stepped and not self.done:
                    raise
                self.ended = f"the budget ended it ({error})"
                break
            stepped += found.ran > 0
            if self.done % every == 0 and self.done < self.steps:
                await self._rollouts.checkpoint(self._state())
        missing = self._descent.unseen()
        if missing is not None and stepped:
            raise missing

    async def _step(self, examples: list[Any]) -> Found:
        """The gradients of a minibatch, then one step; or with a surrogate one gradient, then many."""
        progress, stepper = self.progress, self.stepper
        stepper.set_lr(multiplier(self.training.schedule, self._share()) * self._scale)
        if self.training.surrogate is not None:
            found = await self._many(examples, self.training.surrogate)
        else:
            rows = self._growth is not None and self._growth.tests(progress.steps, progress.batch)
            curvature = stepper.curvature if stepper.wants_curvature(progress.steps) else "none"
            generator = (
                generator_of(f"{self._rollouts.seed}/{progress.steps}")
                if self.choices is not None or curvature != "none"
                else None
            )
            found = await self._descent.minibatch(examples, progress.steps, generator, rows=rows, curvature=curvature)
            if found.ran:
                self._clip()
                stepper.step(None if found.curvature is None else self._ordered(found.curvature))
                self._project()
            if self._growth is not None and found.rows is not None:
                progress.batch = self._growth.next(progress.batch, found.rows, affordable=self._rollouts.affordable())
        progress.steps += 1
        progress.position += len(examples)
        self.failed += found.failed
        self.done += 1
        return found

    async def _many(self, examples: list[Any], surrogate: Surrogate) -> Found:
        """One gradient of the expensive part, then many steps on what it tells."""
        expansion, found = await self._descent.expansion(examples, self.progress.steps)
        if expansion is not None:
            # without a learning rate to go by, each inner step searches its own
            step = None if self.training.lr is None else self.stepper.step
            surrogate.minimise(
                expansion, self._descent.moving, lambda: self.leaves, step=step, t=self.progress.steps
            )  # fmt: skip
            self._project()
        return found

    def _ordered(self, estimates: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Estimates in the order of the optimizer's leaves, which its groups decide."""
        known = {id(x): estimate for x, estimate in zip(self._descent.moving, estimates, strict=True)}
        return [known[id(x)] for x in self.stepper.leaves]

    def _share(self) -> float:
        """t/T of the schedule."""
        total = self.training.total_steps
        if total is not None:
            return self.progress.steps / total
        share = self._rollouts.share(self.done / self.steps)
        if share is None:
            if self.training.schedule == "constant":
                return 0.0
            raise ValueError(
                f"schedule={self.training.schedule!r} has to know how long training lasts; pass total_steps=, or a budget "
                "in trials, rollouts, calls, tokens or usd, or schedule='constant'"
            )
        return share

    def _clip(self) -> None:
        """Bound the norm of all gradients together, and note it."""
        training = self.training
        if training.clip is None and not training.record_norms:
            return
        import torch

        grads = [tensor.grad for tensor in self._descent.moving if tensor.grad is not None]
        if training.record_norms:
            self.progress.norms.append(float(gradient_norm(grads, registry.rule(training.optimizer).norm)))
        if training.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._descent.moving, training.clip)

    def _project(self) -> None:
        """Bring constrained tensors back to where they are allowed."""
        for constraint, tensor in self._bounded:
            tensor.data.copy_(constraint.project(tensor.detach()))

    # -- minibatches -------------------------------------------------------------------------------------------------

    def _minibatches(self) -> Iterator[list[Any]]:
        """Minibatches from where the candidate's last epoch stands, one epoch after another."""
        progress = self.progress
        aside = {id(example) for example in self._set_aside}
        while True:
            examples: Iterable[Any] = self._rollouts.epoch(progress.epoch)
            if aside:
                examples = (example for example in examples if id(example) not in aside)
            fresh = islice(examples, progress.position, None)
            while batch := list(islice(fresh, progress.batch)):
                yield batch
            progress.epoch += 1
            progress.position = 0

    # -- its end -----------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        self._note()
        values = {name: tensor.detach().clone() for name, tensor in self.leaves.items()}
        buffers = {name: tensor.detach().clone() for name, tensor in self.buffers.items()}
        return {
            "done": self.done, "failed": self.failed, "values": values, "buffers": buffers, "progress": self.progress.dump()
        }  # fmt: skip

    def _note(self) -> None:
        self.progress.stepper = self.stepper.state_dict()
        if self.choices is not None:
            self.progress.logits = {name: x.detach().clone() for name, x in self.choices.logits.items()}

    def values(self) -> dict[str, Any]:
        """What the phase ended at, each tensor where its parameter is; running statistics included."""
        self._note()
        found: dict[str, Any] = {}
        for name, tensor in self.leaves.items():
            found[name] = tensor.detach().to(self.tensors[name].initial.device, copy=True)
        found |= {name: tensor.detach().to(self._homes[name], copy=True) for name, tensor in self.buffers.items()}
        return found if self.choices is None else {**found, **self.choices.best()}


def first_batch(examples: int, *, batched: bool) -> int:
    """Training rollouts of a step where nothing is said of them.

    Args:
        examples: How many there are to train on.
        batched: Whether they are the batches of a DataLoader.
    """
    return 1 if batched else min(_BATCH, examples)


def leaf(value: torch.Tensor, device: str | None, like: torch.Tensor) -> torch.Tensor:
    """A copy to train.

    Args:
        value: What it starts from.
        device: Where it is to be; None where the parameter is, "auto" on the GPU where there is one.
        like: The parameter's value.
    """
    where = placed(device)
    return value.detach().to(like.device if where is None else where, copy=True).requires_grad_()


def placed(device: str | None) -> torch.device | None:
    """The device that a name stands for; None is wherever each tensor is."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else None
    return None if device is None else torch.device(device)


def made_stepper(training: Training, tensors: Mapping[str, torch.Tensor]) -> Stepper:
    """The optimizer over these tensors.

    Raises:
        ValueError: there is no such optimizer or option, or a pattern of `groups` matches no name.
    """
    groups: list[dict[str, Any]] = []
    left = dict(tensors)
    for pattern, options in training.groups.items():
        names = [name for name in left if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(f"groups has {pattern!r}, which matches none of {list(tensors)!r}")
        groups.append({"params": [left.pop(name) for name in names], **options})
    if left:
        groups.insert(0, {"params": list(left.values())})
    lr = {} if training.lr is None else {"lr": training.lr}
    stepper = registry.build(training.optimizer, groups, **lr, **training.options)
    if training.compile:
        stepper.compile()
    return stepper
