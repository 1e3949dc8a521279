"""What the two supervised stages share: pairs in seeded batches, a clipped step each, and a state that goes on bit for bit."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from trace_opt.core.codec import content_hash
from trace_opt.core.numbers import is_whole
from trace_opt.refine import checkpoint as files
from trace_opt.refine.estimators.base import length, stepped
from trace_opt.refine.local import as_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trace_opt.core.adapter import Adapter
    from trace_opt.optim.numeric.stepper import Stepper
    from trace_opt.refine.buffer import Experience
    from trace_opt.refine.local import Prompt


@dataclass(frozen=True, slots=True)
class Pair:
    """A completion of a prompt and what it was worth.

    Attributes:
        prompt: What was asked.
        completion: What was answered.
        gain: What it was worth: the change of return it made, as a rule.
    """

    prompt: Prompt
    completion: str
    gain: float = 1.0

    def to_json(self) -> list[Any]:
        """Plain data that is equal for equal pairs only."""
        return [as_json(self.prompt), self.completion, self.gain]


def pairs_of(name: str, given: Sequence[Pair | Experience]) -> list[Pair]:
    """Pairs, of what may be reflections from the store (`refine.buffer.replay`).

    Args:
        name: What learns from them.
        given: Pairs or reflections.

    Raises:
        ValueError: one is neither.
    """
    found: list[Pair] = []
    for one in given:
        if not all(hasattr(one, part) for part in Pair.__slots__):
            raise ValueError(
                f"the {name} got {one!r:.80} for a pair; give Pair(prompt, completion, gain), or reflections from the store"
            )
        found.append(Pair(one.prompt, one.completion, one.gain))
    return found


class Supervised(ABC):
    """Training on pairs, one batch a step; each epoch takes them in another seeded order.

    Args:
        weights: What is moved, in place.
        pairs: What to learn from.
        epochs: How often each pair is taken.
        batch: Pairs of a step; the last of an epoch may be smaller.
        lr: Learning rate.
        clip: The longest a gradient may be; longer ones are shortened. None leaves them as they are.
        optimizer: A name of the numeric registry.
        seed: Of the orders.
        about: What else the loss depends on, in words; a state goes on only where it is the same.

    Attributes:
        name: What it is called in messages.
        pairs: Those that are used.
        steps: How many there are in all.
        losses: Of each step so far, before it.
    """

    name: ClassVar[str]

    def __init__(
        self, weights: Sequence[torch.nn.Parameter], pairs: Sequence[Pair], *, epochs: int, batch: int, lr: float,
        clip: float | None, optimizer: str, seed: int, about: str = "",
    ) -> None:  # fmt: skip
        from trace_opt.optim.numeric import registry

        for name, count in (("epochs", epochs), ("batch", batch)):
            if count < 1:
                raise ValueError(f"{name} is {count!r}; give at least 1")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip is {clip!r}; give a length above 0, or None")
        if not pairs:
            raise ValueError(f"there are no pairs for the {self.name} to learn from; give at least one")
        self.pairs = tuple(pairs)
        self.batch = batch
        self.clip = clip
        self.seed = seed
        self.losses: list[float] = []
        self._weights = list(weights)
        self._stepper: Stepper = registry.build(optimizer, self._weights, lr=lr)
        self._per_epoch = math.ceil(len(self.pairs) / batch)
        self.steps = epochs * self._per_epoch
        options = {"batch": batch, "lr": lr, "clip": clip, "optimizer": optimizer, "seed": seed}
        self._identity = content_hash([self.name, about, options, [pair.to_json() for pair in self.pairs]])

    @abstractmethod
    def loss(self, chosen: Sequence[int]) -> Tensor:
        """The loss of some pairs, differentiable in the weights.

        Args:
            chosen: Their indices in `pairs`.
        """

    @abstractmethod
    def dump(self) -> Adapter:
        """All that is learned, as it stands."""

    @abstractmethod
    def load(self, learned: Adapter) -> None:
        """Take back what `dump` gave."""

    @property
    @final
    def done(self) -> bool:
        """Whether every step was made."""
        return len(self.losses) >= self.steps

    @final
    def step(self) -> float:
        """Learn from the next batch.

        Returns:
            Its loss before the step.

        Raises:
            ValueError: every step was made.
        """
        import torch

        if self.done:
            raise ValueError(f"all {self.steps} steps of the {self.name} were made; make another for more epochs")
        loss = self.loss(self.chosen(len(self.losses)))
        found = torch.autograd.grad(loss, self._weights, materialize_grads=True, allow_unused=True)
        norm = length(found)
        shrink = 1.0 if self.clip is None or norm <= self.clip else self.clip / norm
        stepped(self._stepper, self._weights, found, shrink)
        self.losses.append(float(loss.detach()))
        return self.losses[-1]

    @final
    def chosen(self, step: int) -> list[int]:
        """The indices of a step's pairs; steps count from 0."""
        epoch, place = divmod(step, self._per_epoch)
        order = list(range(len(self.pairs)))
        random.Random(f"{self.seed}/{epoch}").shuffle(order)  # noqa: S311 # an order, not a secret
        return order[place * self.batch : (place + 1) * self.batch]

    @final
    def run(self, checkpoint: str | Path | None = None, every: int = 8) -> list[float]:
        """Make all steps that are left.

        Args:
            checkpoint: A file from which it goes on where it is there, written every few steps; None keeps nothing.
            every: How many steps.

        Returns:
            The loss before each step.

        Raises:
            ValueError: the checkpoint belongs to other training, or `every` is no number of steps.
        """
        if not is_whole(every):
            raise ValueError(f"the {self.name} got every={every!r}; give a whole number of steps of at least 1")
        kept = files.load(checkpoint) if checkpoint is not None else None
        if kept is not None:
            self.load_state_dict(kept)
        while not self.done:
            self.step()
            if checkpoint is not None and (self.done or len(self.losses) % every == 0):
                files.save(checkpoint, self.state_dict())
        return self.losses

    @final
    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on besides pairs and options, the learned weights included."""
        return {
            "identity": self._identity, "losses": list(self.losses), "stepper": self._stepper.state_dict(),
            "learned": self.dump(),
        }  # fmt: skip

    @final
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, bit for bit.

        Raises:
            ValueError: it comes from other pairs or other options.
        """
        if state["identity"] != self._identity:
            raise ValueError(
                f"the state of the {self.name} comes from other pairs, other options or another start; give the same, or "
                "begin anew with another file"
            )
        self.load(state["learned"])
        self.losses = list(state["losses"])
        self._stepper.load_state_dict(state["stepper"])
