"""What was sampled from a policy and what it earned: the one thing that policies and estimators hand each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """n trajectories of at most T steps each, padded. For a language model a step is a token.

    Attributes:
        actions: What the policy needs to score them again, by name; the first dimension of each is n.
        rewards: What each step earned, shape `[n, T]`; 0 where there is no step.
        mask: Which steps there are, bool of shape `[n, T]`.
        groups: Which trajectories share a start (a prompt), integers of shape `[n]`; they index `prompts`, if any.
        prompts: What the policy needs to know of each start.
        log_probs: What the policy said of each step when it was sampled, in nats, shape `[n, T]`; None where unknown.
        reference: The same of the frozen policy that this one is held to, or None.
    """

    actions: Mapping[str, Tensor]
    rewards: Tensor
    mask: Tensor
    groups: Tensor
    prompts: tuple[Any, ...] = ()
    log_probs: Tensor | None = None
    reference: Tensor | None = None

    def __len__(self) -> int:
        return len(self.groups)

    def rows(self, chosen: Tensor) -> Batch:
        """Some of the trajectories.

        Args:
            chosen: Their indices, or a bool for each.
        """

        def of(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor[chosen]

        return replace(
            self, actions={name: of(value) for name, value in self.actions.items()}, rewards=of(self.rewards),
            mask=of(self.mask), groups=of(self.groups), log_probs=of(self.log_probs), reference=of(self.reference),
        )  # fmt: skip

    def earning(self, returns: Tensor) -> Batch:
        """The same trajectories with one reward each, paid at their last step.

        Args:
            returns: Shape `[n]`.
        """
        import torch

        rewards = torch.zeros_like(self.mask, dtype=returns.dtype)
        last = self.mask.long().sum(1) - 1
        if bool((last < 0).any()):
            raise ValueError("a trajectory without a step cannot earn anything; leave it out of the batch")
        rewards[torch.arange(len(self), device=last.device), last] = returns.to(rewards)
        return replace(self, rewards=rewards)

    @property
    def returns(self) -> Tensor:
        """The undiscounted return of each trajectory, shape `[n]`."""
        return self.rewards.sum(1)


class Policy(Protocol):
    """What estimators ask of a policy: any `torch.nn.Module` with a differentiable `log_prob` is one."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Its weights; those that require grad are trained."""
        ...

    def log_prob(self, batch: Batch) -> Tensor:
        """The log probability of each step of a batch under the present weights.

        Returns:
            Nats, shape `[n, T]`, differentiable in the weights; anything finite where the mask is False.
        """
        ...


def group_totals(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over each trajectory's group, and the group's size, both handed back to every member.

    Args:
        values: Shape `[n, ...]`.
        groups: Integers, shape `[n]`.

    Returns:
        Sums of the shape of `values`, sizes of shape `[n]`.
    """
    import torch

    index, count = _numbered(groups)
    sums = values.new_zeros(count, *values.shape[1:]).index_add_(0, index, values)
    return sums[index], torch.bincount(index, minlength=count)[index]


def all_equal(values: Tensor, groups: Tensor) -> Tensor:
    """Whether all of a trajectory's group have the same value, which no difference of rounded means tells.

    Args:
        values: Shape `[n, ...]`.
        groups: Integers, shape `[n]`.

    Returns:
        Bools of the shape of `values`.
    """
    import torch

    index, count = _numbered(groups)
    first = (index == torch.arange(count, device=index.device)[:, None]).long().argmax(1)
    others, _ = group_totals((values != values[first][index]).long(), groups)
    return others == 0


def _numbered(groups: Tensor) -> tuple[Tensor, int]:
    """Each trajectory's group as a number from 0 on, and how many there are."""
    import torch

    found: Any = cast("Any", torch).unique(groups, return_inverse=True)
    return found[1], len(found[0])
