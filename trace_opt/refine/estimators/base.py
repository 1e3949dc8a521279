"""What every estimator is: it says where to sample, and makes an update of what was sampled.

A trajectory's surrogate is Phi = sum over its steps of A_t log pi(a_t | s_t), with the advantages A_t held constant; its
gradient estimates that of the expected return.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trace_opt.refine.advantages import Baseline, BaselineName, Running, baseline_of, returns_to_go

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trace_opt.optim.numeric.stepper import Stepper
    from trace_opt.refine.batch import Batch, Policy

Draw = Callable[[], "Batch"]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one update is made of.

    Attributes:
        batch: Sampled where the gradient is taken.
        between: Sampled between the last two iterates, for estimators that correct by curvature.
        share: Where between them: 1 is the present iterate.
    """

    batch: Batch
    between: Batch | None = None
    share: float = 1.0

    @property
    def trajectories(self) -> int:
        """How many trajectories it took."""
        return len(self.batch) + (0 if self.between is None else len(self.between))


@dataclass(frozen=True, slots=True)
class Update:
    """What one update did.

    Attributes:
        mean: Mean return of the sample.
        norm: Length of the direction before it became a step.
        used: Share of the trajectories that had anything to say: an advantage other than 0.
        kl: Estimated KL divergence from the reference per step, in nats; None without a reference.
    """

    mean: float
    norm: float
    used: float
    kl: float | None = None


class Estimator(ABC):
    """Improves a policy from sampled trajectories.

    Args:
        policy: Its weights that require grad are moved, in place.
        gamma: Discount of a step.
        baseline: "running", "leave-one-out" (within a group) or "none", or a `Running` with a decay of its own.
        to_go: Whether a step is credited with what came after it only; else with the whole return.
        kl: Price of a nat of divergence from the reference, taken off the rewards step by step.
        entropy: What a nat of entropy earns: minus the log probability of what was sampled is added to each reward.

    Attributes:
        draws: How often an update draws at most.
        updates: How many were made.
    """

    draws: ClassVar[int] = 1
    updates: int

    def __init__(
        self, policy: Policy, *, gamma: float = 1.0, baseline: BaselineName | Running = "running", to_go: bool = True,
        kl: float = 0.0, entropy: float = 0.0,
    ) -> None:  # fmt: skip
        self.policy = policy
        self.weights: list[torch.nn.Parameter] = [w for w in policy.parameters() if w.requires_grad]
        if not self.weights:
            raise ValueError(
                f"{type(self).__name__} got a policy without weights that require grad; give it some to train"
            )
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma is {gamma!r}; give a discount above 0 and at most 1")
        for name, value in (("kl", kl), ("entropy", entropy)):
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value!r}; give a number of 0 or more")
        self.gamma = gamma
        self.baseline: Baseline = baseline_of(baseline)
        self.to_go = to_go
        self.kl = kl
        self.entropy = entropy
        self.updates = 0

    def sample(self, draw: Draw) -> Sample:
        """Draw what the next update needs.

        Args:
            draw: Samples trajectories from the policy as it stands when it is called; estimators that want them from
                elsewhere move the weights meanwhile.
        """
        return Sample(draw())

    @abstractmethod
    def update(self, sample: Sample) -> Update:
        """Move the policy's weights.

        Args:
            sample: What `sample` gave since the last update.
        """

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on besides weights and options: numbers and tensors, JSON-able but for these."""
        return {"updates": self.updates, "baseline": self.baseline.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, bit for bit."""
        self.updates = state["updates"]
        self.baseline.load_state_dict(state["baseline"])

    # -- for subclasses ----------------------------------------------------------------------------------------------

    def _advantages(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The advantage of each step of shape `[n, T]`, and the returns to go that the baseline is to observe."""
        rewards = self._shaped(batch)
        if self.to_go:
            returns = returns_to_go(rewards, self.gamma)
        else:
            returns = returns_to_go(rewards, self.gamma)[:, :1].expand_as(rewards)
        return (returns - self.baseline(returns, batch)) * batch.mask, returns

    def _shaped(self, batch: Batch) -> Tensor:
        """The rewards with what divergence costs and entropy earns."""
        rewards = batch.rewards
        if self.kl:
            said, reference = _needed(batch.log_probs, "kl"), _needed(batch.reference, "kl")
            rewards = rewards - self.kl * (said - reference) * batch.mask
        if self.entropy:
            rewards = rewards - self.entropy * _needed(batch.log_probs, "entropy") * batch.mask
        return rewards

    def _gradient(self, batch: Batch, advantages: Tensor) -> list[Tensor]:
        """The mean gradient of the surrogate over the batch; trajectories with nothing to say are not run again."""
        active = advantages.abs().amax(1) > 0
        if not bool(active.any()):
            return [w.new_zeros(w.shape) for w in self.weights]
        chosen = batch if bool(active.all()) else batch.rows(active)
        surrogate = (advantages[active] * self.policy.log_prob(chosen) * chosen.mask).sum() / len(batch)
        return self._grad(surrogate)

    def _grad(self, value: Tensor, *, create_graph: bool = False) -> list[Tensor]:
        import torch

        found = torch.autograd.grad(
            value, self.weights, create_graph=create_graph, materialize_grads=True, allow_unused=True
        )
        return list(found)

    def _said(self, batch: Batch, advantages: Tensor, norm: float) -> Update:
        return Update(
            float(batch.returns.mean()), norm, float((advantages.abs().amax(1) > 0).double().mean()), divergence(batch)
        )


def divergence(batch: Batch) -> float | None:
    """The mean of k1 = log pi - log reference over the steps of a batch, in nats a step; None without a reference."""
    if batch.log_probs is None or batch.reference is None:
        return None
    return float(((batch.log_probs - batch.reference) * batch.mask).sum() / batch.mask.sum().clamp(min=1))


def k3(said: Tensor, reference: Tensor) -> Tensor:
    """An estimate of KL(policy, reference) at each sampled step that is never negative and has little variance.

    exp(d) - d - 1 with d = log reference - log pi: unbiased as a value; as a loss its gradient is that of the divergence
    only near the reference.
    """
    gap = reference - said
    return gap.exp() - gap - 1


def length(direction: Sequence[Tensor]) -> float:
    """The Euclidean length of a direction over all tensors."""
    return math.sqrt(math.fsum(float((d.double() ** 2).sum()) for d in direction))


def stepped(stepper: Stepper, weights: Sequence[Tensor], slopes: Sequence[Tensor], scale: float) -> None:
    """Let an optimizer make one step down slopes; no gradient is left behind.

    Args:
        stepper: Over these weights.
        weights: What it moves, in place.
        slopes: One for each.
        scale: What they are multiplied by; negative climbs.
    """
    for weight, slope in zip(weights, slopes, strict=True):
        weight.grad = slope * scale
    stepper.step()
    for weight in weights:
        weight.grad = None


@contextmanager
def moved(weights: Sequence[Tensor], by: Sequence[Tensor]) -> Generator[None]:
    """Weights that are elsewhere within the block, and exactly where they were after it."""
    kept = [w.detach().clone() for w in weights]
    move(weights, by)
    try:
        yield
    finally:
        put(weights, kept)


def move(weights: Sequence[Tensor], by: Sequence[Tensor], share: float = 1.0) -> None:
    """Add to weights in place, outside autograd."""
    import torch

    with torch.no_grad():
        for weight, step in zip(weights, by, strict=True):
            weight.add_(step, alpha=share)


def put(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Overwrite weights in place, outside autograd."""
    import torch

    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)


def _needed(values: Tensor | None, what: str) -> Tensor:
    if values is None:
        raise ValueError(
            f"{what} is set, but the batch says nothing of the probabilities it was sampled with; give Batch(log_probs=..."
            + (", reference=...)" if what == "kl" else ")")
        )
    return values
