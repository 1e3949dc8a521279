"""Lion-K: momentum under a convex function K, which with weight decay keeps the iterate in a set of its own.

The step is along a subgradient of K at the interpolated momentum, so every step moves towards a point of the set
{x : K*(weight_decay x) is finite}, and what is minimised in the end is f(x) + K*(weight_decay x) / weight_decay. An
iterate that starts inside stays inside without a projection; one that starts outside shrinks into it.

Source: L. Chen, B. Liu, K. Liang, Q. Liu, "Lion secretly solves constrained optimization: as Lyapunov predicts",
arXiv 2310.05898, equation (3) and Table 2; with the box it is Lion, arXiv 2302.06675.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch  # noqa: TID253 # the class derives from one of torch's

from trace_opt.errors import meant
from trace_opt.optim.numeric.stepper import evaluated

if TYPE_CHECKING:
    from torch import Tensor

_Direction = Callable[["Tensor", dict[str, Any]], "Tensor"]


class LionK(torch.optim.Optimizer):
    """Lion-K, named by the constraint it keeps on each tensor; the bound is 1 / weight_decay.

    Args:
        params: Leaves, or groups of them.
        lr: Learning rate; `lr * weight_decay` has to stay at or below 1. The constrained optimum is reached only while it
            falls to zero, best quadratically: at a constant rate the iterate hovers around it at about that distance.
        betas: Weight of the old momentum in the direction, and in the momentum.
        weight_decay: The inverse of the bound; 0 keeps no constraint.
        constraint: What is kept. "box": every entry in absolute value. "l2", "l1": that norm of the tensor. "huber": the
            box, and a ridge of `delta`. "group": the l2 norm of every group. "spectral": the largest singular value.
            "nuclear": the sum of singular values. Tensors of more than two dimensions are matrices of one row for each
            entry of the first.
        delta: Of "huber": where its quadratic part ends.
        group_size: Of "group": entries of a group, in a row; None makes each row along the last dimension one.

    Raises:
        ValueError: an option makes no sense, or a matrix constraint meets a vector.
    """

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0,
        constraint: str = "box", delta: float = 1.0, group_size: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            params,
            {
                "lr": lr, "betas": betas, "weight_decay": weight_decay, "constraint": constraint, "delta": delta,
                "group_size": group_size,
            },
        )  # fmt: skip
        for group in self.param_groups:
            _check(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients that the leaves hold."""
        loss = evaluated(closure)
        for group in self.param_groups:
            direction = _DIRECTIONS[group["constraint"]]
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, group, direction)
        return loss

    def _move(self, p: Tensor, grad: Tensor, group: dict[str, Any], direction: _Direction) -> None:
        state: dict[str, Any] = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum: Tensor = state["momentum"]
        lr, (beta1, beta2) = group["lr"], group["betas"]
        update = momentum.lerp(grad, 1 - beta1)
        momentum.lerp_(grad, 1 - beta2)
        if group["weight_decay"]:
            p.mul_(1 - lr * group["weight_decay"])
        p.add_(direction(update, group), alpha=-lr)


def box(u: Tensor, _group: dict[str, Any]) -> Tensor:
    """K = the l1 norm; `u` is overwritten."""
    return u.sign_()


def l2(u: Tensor, _group: dict[str, Any]) -> Tensor:
    """K = the l2 norm."""
    return u / _norm(u).clamp_min(_tiny(u))


def l1(u: Tensor, _group: dict[str, Any]) -> Tensor:
    """K = the largest entry in absolute value; of several the first."""
    flat = u.reshape(-1)
    update = torch.zeros_like(flat)
    if len(flat):
        largest = flat.abs().argmax()
        update[largest] = flat[largest].sign()
    return update.reshape(u.shape)


def huber(u: Tensor, group: dict[str, Any]) -> Tensor:
    """K = sum of u^2 / (2 delta), linear beyond delta; `u` is overwritten."""
    return u.div_(group["delta"]).clamp_(-1, 1)


def groups(u: Tensor, group: dict[str, Any]) -> Tensor:
    """K = the sum of the l2 norms of the groups."""
    size = group["group_size"]
    rows = u.reshape(-1, size) if size is not None else u.reshape(-1, u.shape[-1] if u.ndim else 1)
    return (rows / _norm(rows, -1).clamp_min(_tiny(u))).reshape(u.shape)


def spectral(u: Tensor, _group: dict[str, Any]) -> Tensor:
    """K = the nuclear norm: the polar factor, zero where `u` has no rank."""
    left, sizes, right = _svd(u)
    floor = sizes[:1] * torch.finfo(u.dtype).eps * max(left.shape[0], right.shape[1])
    kept: Any = sizes > floor
    return (left * kept @ right).reshape(u.shape)


def nuclear(u: Tensor, _group: dict[str, Any]) -> Tensor:
    """K = the largest singular value: the outer product of its two vectors, zero at zero."""
    left, sizes, right = _svd(u)
    return (torch.outer(left[:, 0], right[0]) * (sizes[0] > 0)).reshape(u.shape)


_DIRECTIONS: dict[str, _Direction] = {
    "box": box, "l2": l2, "l1": l1, "huber": huber, "group": groups, "spectral": spectral, "nuclear": nuclear,
}  # fmt: skip


def _check(group: dict[str, Any]) -> None:
    """Refuse options that make no sense.

    Raises:
        ValueError: one does not.
    """
    name = group["constraint"]
    if name not in _DIRECTIONS:
        hint = meant(name, _DIRECTIONS)
        hint = f"; {hint}" if hint else ""
        raise ValueError(f"lion-k knows no constraint {name!r}{hint}; choose one of {list(_DIRECTIONS)!r}")
    if not (group["lr"] >= 0 and group["weight_decay"] >= 0):
        raise ValueError(
            f"lion-k got lr={group['lr']!r} and weight_decay={group['weight_decay']!r}; give numbers not below 0"
        )
    if group["lr"] * group["weight_decay"] > 1:
        raise ValueError(
            f"lion-k got lr={group['lr']!r} and weight_decay={group['weight_decay']!r}, whose product exceeds 1, so that "
            "its steps overshoot the set; give a smaller lr"
        )
    if not all(0 <= beta < 1 for beta in group["betas"]) or not group["delta"] > 0:
        raise ValueError(
            f"lion-k got betas={group['betas']!r} and delta={group['delta']!r}; give betas in [0, 1) and a delta above 0"
        )
    for p in group["params"]:
        _check_shape(name, group["group_size"], p)


def _check_shape(name: str, size: int | None, p: Tensor) -> None:
    if name in ("spectral", "nuclear") and p.ndim < 2:
        raise ValueError(
            f"lion-k with constraint={name!r} got a tensor of shape {tuple(p.shape)!r}; give matrices, or move this one in a "
            "group with another constraint"
        )
    if name == "group" and size is not None and (size < 1 or p.numel() % size):
        raise ValueError(
            f"lion-k got group_size={size!r} for a tensor of shape {tuple(p.shape)!r}; give a divisor of its size"
        )


def _norm(u: Tensor, dim: int | None = None) -> Tensor:
    return cast("Any", torch).linalg.vector_norm(u, dim=dim, keepdim=dim is not None)


def _tiny(u: Tensor) -> float:
    """The least number to divide by."""
    return torch.finfo(u.dtype).tiny


def _svd(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return cast("Any", torch).linalg.svd(u.reshape(u.shape[0], -1), full_matrices=False)
