"""Supervised warm start: a policy learns to say what good reflections said, before it learns from what its own are worth.

A small model that was never shown what a reflection looks like hardly ever writes a useful one, and policy gradient learns
nothing from replies that all earn nothing. So some good (prompt, completion) pairs come first, written by a rule or a
larger model, or found in the store.

Source: Retroformer, arXiv 2308.02151, the supervised stage on pairs that were worth something. Tokens of the prompt are
masked from the loss, and pairs that gained no more than the threshold are left out, neither of which its repository does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_opt.refine.supervised import Pair, Supervised, pairs_of

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.core.adapter import Adapter
    from trace_opt.refine.batch import Batch
    from trace_opt.refine.buffer import Experience
    from trace_opt.refine.local import LocalPolicy

__all__ = ["Pair", "WarmStart", "fine_tune", "mean_loss"]


class WarmStart(Supervised):
    """Supervised training of a policy on pairs, from the value of its adapter on.

    The loss is the mean negative log probability of the completions' tokens in nats, the one that ends them included.

    Args:
        policy: Its weights that require grad are moved, in place; the value of its adapter is not written.
        pairs: What to learn from; reflections that a run's store holds (`refine.buffer.replay`) will do.
        epochs: How often each pair is taken.
        batch: Pairs of a step; the last of an epoch may be smaller.
        lr: Learning rate.
        clip: The longest a gradient may be; longer ones are shortened. None leaves them as they are.
        above: Only pairs that gained more are used; None uses all.
        optimizer: A name of the numeric registry.
        seed: Of the orders.

    Raises:
        ValueError: there is nothing to learn from, something is no pair, or a number is out of its range.
    """

    name = "warm start"

    def __init__(
        self, policy: LocalPolicy, pairs: Sequence[Pair | Experience], *, epochs: int = 2, batch: int = 8, lr: float = 2e-4,
        clip: float | None = 1.0, above: float | None = 0.0, optimizer: str = "adamw", seed: int = 0,
    ) -> None:  # fmt: skip
        weights = [weight for weight in policy.parameters() if weight.requires_grad]
        if not weights:
            raise ValueError("the warm start got a policy without weights that require grad; give it some to train")
        super().__init__(
            weights, worth_learning(pairs_of(self.name, pairs), above), epochs=epochs, batch=batch, lr=lr, clip=clip, optimizer=optimizer,
            seed=seed, about=f"{getattr(policy, 'identity', '')}, from {policy.adapter.value.hash}",
        )  # fmt: skip
        self.policy = policy
        policy.load(policy.adapter.value)

    def loss(self, chosen: Sequence[int]) -> Tensor:
        """How unlikely the policy finds these completions, in nats a token."""
        return _unlikeliness(self.policy, [self.pairs[i] for i in chosen])

    def dump(self) -> Adapter:
        """The policy's weights."""
        return self.policy.dump()

    def load(self, learned: Adapter) -> None:
        """Put the policy's weights."""
        self.policy.load(learned)


def fine_tune(
    policy: LocalPolicy,
    pairs: Sequence[Pair | Experience],
    *,
    checkpoint: str | Path | None = None,
    every: int = 8,
    **options: Any,
) -> list[float]:
    """A whole warm start; what it led to is the value of the policy's adapter then, from which a `Refiner` goes on.

    Args:
        policy: Its weights are moved, and its adapter gets a new value.
        pairs: What to learn from; reflections that a run's store holds (`refine.buffer.replay`) will do.
        checkpoint: A file from which it goes on where it is there, written every few steps; None keeps nothing.
        every: How many steps.
        **options: Those of `WarmStart`.

    Returns:
        The loss before each step, in nats a token.

    Raises:
        ValueError: there is nothing to learn from, something is no pair, `every` is no number of steps, or the checkpoint
            belongs to another warm start: other pairs or options, another policy, or one whose adapter had another value.
    """
    losses = WarmStart(policy, pairs, **options).run(checkpoint, every)
    policy.adapter.value = policy.dump()
    return losses


def mean_loss(policy: LocalPolicy, pairs: Sequence[Pair]) -> float:
    """How unlikely a policy finds given completions, in nats a token; nothing is learned."""
    import torch

    with torch.no_grad():
        return float(_unlikeliness(policy, pairs))


def worth_learning(pairs: Sequence[Pair], above: float | None) -> list[Pair]:
    """The pairs that gained more than a threshold; all of them for None.

    Raises:
        ValueError: there are pairs and none is, or one says nothing.
    """
    found = [pair for pair in pairs if above is None or pair.gain > above]
    if pairs and not found:
        best = max(pair.gain for pair in pairs)
        raise ValueError(
            f"none of the {len(pairs)} pairs gained more than {above!r}, the best {best:.6g}; give better ones, "
            "or lower above"
        )
    empty = next((pair for pair in found if not pair.completion), None)
    if empty is not None:
        raise ValueError(f"a pair has an empty completion of {empty.prompt!r:.80}; leave it out")
    return found


def supervised(policy: LocalPolicy, pairs: Sequence[Pair]) -> Batch:
    """Pairs as a batch whose mask covers the completions' tokens."""
    completions = policy.written([(pair.prompt, pair.completion) for pair in pairs])
    return policy.batch(completions, [pair.gain for pair in pairs])


def _unlikeliness(policy: LocalPolicy, pairs: Sequence[Pair]) -> Tensor:
    batch = supervised(policy, pairs)
    return -(policy.log_prob(batch) * batch.mask).sum() / batch.mask.sum()
