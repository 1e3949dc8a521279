"""FRUGAL: Adam on a part of every matrix, signSGD on the rest, so that only the part has a state.

The part is chosen anew every `gap` steps, at random or from the gradient, and its state starts from zero; what is left
over still moves, which is what sets the method apart from those that train a subspace alone.

Source: P. Zmushko et al., "FRUGAL: memory-efficient optimization by reducing state overhead for scalable training",
arXiv 2411.07837, Algorithms 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch  # noqa: TID253 # the class derives from one of torch's

from trace_opt.core.tensors import generator_of
from trace_opt.errors import meant
from trace_opt.optim.numeric.stepper import evaluated

if TYPE_CHECKING:
    from torch import Tensor

PROJECTIONS = (
    "columns", "rows", "entries", "blocks", "blocks-ascending", "blocks-descending", "blocks-mirror", "svd", "random",
)  # fmt: skip


class Frugal(torch.optim.Optimizer):
    """AdamW on a share `rho` of every matrix, signSGD on the rest.

    Only tensors of two dimensions are split; others, and whole groups with rho=1 (embeddings, heads), are plain AdamW.

    Args:
        params: Leaves, or groups of them.
        lr: Learning rate of both.
        betas: Decays of AdamW's moments.
        eps: Added to AdamW's denominator.
        weight_decay: Shrinks a leaf by lr times this before each step.
        rho: Share of the matrices that has a state.
        gap: Steps after which the part is chosen anew.
        projection: What a part is: "columns", "rows" or "entries" of each matrix, "blocks" (whole matrices of a group,
            drawn, or in turn as "blocks-ascending", "blocks-descending" or "blocks-mirror", there and back), the first
            singular vectors of the current gradient ("svd") or "random" orthonormal ones. The state is 8 * rho bytes a
            parameter in float32; the last two keep their vectors too. "entries" are drawn again at each step.
        residual: What lr is multiplied by for signSGD; 0 leaves the rest where it is.
        seed: Of what is drawn.

    Raises:
        ValueError: an option makes no sense.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.01, rho: float = 0.25, gap: int = 200, projection: str = "columns",
        residual: float = 1.0, seed: int = 0,
    ) -> None:  # fmt: skip
        options = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rho": rho, "gap": gap,
            "projection": projection, "residual": residual, "seed": seed,
        }  # fmt: skip
        super().__init__(params, options)
        for group in self.param_groups:
            _check(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients that the leaves hold."""
        loss = evaluated(closure)
        for i, group in enumerate(self.param_groups):
            taken = group.get("step", 0)
            group["step"] = taken + 1
            self._move(group, i, taken // group["gap"])
        return loss

    def _move(self, group: dict[str, Any], i: int, epoch: int) -> None:
        """One step of a group, in the given epoch of its parts."""
        split = [p for p in group["params"] if is_split(p, group)]
        active = _blocks(group, i, epoch, len(split)) if group["projection"].startswith("blocks") else None
        places = {id(p): j for j, p in enumerate(split)}
        for p in group["params"]:
            grad = p.grad
            if grad is None:
                continue
            p.mul_(1 - group["lr"] * group["weight_decay"])
            place = places.get(id(p))
            if place is None:
                self._adam_alone(p, grad, group)
            elif active is not None:
                self._in_turn(p, grad, group, epoch, active=place in active)
            else:
                self._both(p, grad, group, epoch, f"{group['seed']}/{i}/{place}/{epoch}")

    def _adam_alone(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        p.add_(_adam(self.state[p], grad, group), alpha=-group["lr"])

    def _in_turn(self, p: Tensor, grad: Tensor, group: dict[str, Any], epoch: int, *, active: bool) -> None:
        """A whole matrix: AdamW where it is its turn, else signSGD without a state."""
        state: dict[str, Any] = self.state[p]
        if not active:
            state.clear()
            p.add_(grad.sign(), alpha=-group["lr"] * group["residual"])
            return
        _renew(state, epoch)
        self._adam_alone(p, grad, group)

    def _both(self, p: Tensor, grad: Tensor, group: dict[str, Any], epoch: int, seed: str) -> None:
        """AdamW on a part of a matrix, signSGD on the rest of it."""
        state: dict[str, Any] = self.state[p]
        kind, rho = group["projection"], group["rho"]
        if _renew(state, epoch):
            state.update(_part(kind, rho, grad, seed))
        in_basis = kind in ("svd", "random")
        update = _projected(state, grad, group) if in_basis else _chosen(state, grad, group, seed)
        p.add_(update, alpha=-group["lr"])


def is_split(p: Tensor, group: dict[str, Any]) -> bool:
    """Whether a leaf is divided between AdamW and signSGD."""
    return p.ndim == 2 and group["rho"] < 1


def _renew(state: dict[str, Any], epoch: int) -> bool:
    """Forget the state of an earlier epoch; whether there is none now."""
    if state.get("epoch") == epoch:
        return False
    state.clear()
    state["epoch"] = epoch
    return True


def _part(kind: str, rho: float, grad: Tensor, seed: str) -> dict[str, Any]:
    """What is kept of a part that is chosen anew."""
    rows, columns = grad.shape
    if kind in ("columns", "rows"):
        count = columns if kind == "columns" else rows
        # a draw on the CPU is the same on every device
        index = torch.randperm(count, generator=generator_of(seed))[: int(count * rho)]
        return {"index": index.sort().values.to(grad.device)}
    if kind == "entries":
        return {}
    directions = round(min(rows, columns) * rho)
    return {"basis": _basis(kind, grad if rows <= columns else grad.T, directions, seed)}


def _basis(kind: str, grad: Tensor, directions: int, seed: str) -> Tensor:
    """Orthonormal columns [n, directions] in the space of a gradient's rows [n, m], n <= m."""
    linalg: Any = cast("Any", torch).linalg
    if kind == "svd":
        return linalg.svd(grad, full_matrices=False)[0][:, :directions].contiguous()
    normal = torch.randn(len(grad), directions, generator=generator_of(seed), dtype=torch.float64)
    basis: Any = linalg.qr(normal)[0] if directions else normal
    return basis.to(grad.device, grad.dtype)


def _projected(state: dict[str, Any], grad: Tensor, group: dict[str, Any]) -> Tensor:
    """Adam on the coordinates in a basis, the sign of what the basis leaves over."""
    basis: Tensor = state["basis"]
    wide = grad if grad.shape[0] <= grad.shape[1] else grad.T
    inside = basis.T @ wide
    rest = (wide - basis @ inside).sign_().mul_(group["residual"])
    update = rest + basis @ _adam(state, inside, group)
    return update if wide is grad else update.T


def _chosen(state: dict[str, Any], grad: Tensor, group: dict[str, Any], seed: str) -> Tensor:
    """Adam on chosen columns, rows or entries, the sign of the others."""
    update = grad.sign().mul_(group["residual"])
    kind = group["projection"]
    if kind == "columns":
        update[:, state["index"]] = _adam(state, grad[:, state["index"]], group)
    elif kind == "rows":
        update[state["index"]] = _adam(state, grad[state["index"]], group)
    else:
        index = torch.randperm(grad.numel(), generator=generator_of(seed))[: int(grad.numel() * group["rho"])]
        index = index.to(grad.device)
        update.view(-1)[index] = _adam(state, grad.reshape(-1)[index], group)
    return update


def _adam(state: dict[str, Any], grad: Tensor, group: dict[str, Any]) -> Tensor:
    """Adam's direction for a gradient, its moments kept in `state`."""
    if "mean" not in state:
        state.update(count=0, mean=torch.zeros_like(grad), square=torch.zeros_like(grad))
    beta1, beta2 = group["betas"]
    state["count"] += 1
    mean = state["mean"].lerp_(grad, 1 - beta1)
    square = state["square"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (square.sqrt() / math.sqrt(1 - beta2 ** state["count"])).add_(group["eps"])
    return mean.div(1 - beta1 ** state["count"]).div_(denominator)


def _blocks(group: dict[str, Any], i: int, epoch: int, count: int) -> set[int]:
    """Which of a group's matrices have a state in an epoch."""
    size = round(count * group["rho"])
    order = group["projection"].removeprefix("blocks").removeprefix("-")
    if not order:
        drawn: Any = torch.randperm(count, generator=generator_of(f"{group['seed']}/{i}/{epoch}"))
        return set(drawn[:size].tolist())
    places: list[int] = list(range(count))
    if order == "descending":
        places.reverse()
    elif order == "mirror":
        places = [*places, *reversed(places)]
    found: set[int] = set()
    turn: int = epoch * size
    while len(found) < size:  # where the order turns back, a block comes up twice in a row
        found.add(places[turn % len(places)])
        turn += 1
    return found


def _check(group: dict[str, Any]) -> None:
    """Refuse options that make no sense.

    Raises:
        ValueError: one does not.
    """
    projection = group["projection"]
    if projection not in PROJECTIONS:
        hint = meant(projection, PROJECTIONS)
        hint = f"; {hint}" if hint else ""
        raise ValueError(f"frugal knows no projection {projection!r}{hint}; choose one of {list(PROJECTIONS)!r}")
    if not (0 <= group["rho"] <= 1 and group["gap"] >= 1):
        raise ValueError(
            f"frugal got rho={group['rho']!r} and gap={group['gap']!r}; give a rho in [0, 1] and a gap of at least 1"
        )
    for option in ("lr", "eps", "weight_decay", "residual"):
        if not group[option] >= 0:
            raise ValueError(f"frugal got {option}={group[option]!r}; give a number not below 0")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"frugal got betas={group['betas']!r}; give two numbers in [0, 1)")
