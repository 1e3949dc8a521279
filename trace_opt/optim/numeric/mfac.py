"""M-FAC: natural gradients from the last few gradients, exactly and without a matrix of the parameters' size.

The Fisher matrix of the window is damping * I + G^T G / n for the n gradients seen, so by Woodbury its inverse needs only
the n x n matrix of their inner products. One row of it changes with a step: O(d m) for that, O(m^3) for the solve.

Source: E. Frantar, E. Kurtic, D. Alistarh, "M-FAC: efficient matrix-free approximations of second-order information",
arXiv 2107.03356, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch  # noqa: TID253 # the class derives from one of torch's

from trace_opt.optim.numeric.stepper import evaluated

if TYPE_CHECKING:
    from torch import Tensor


class MFAC(torch.optim.Optimizer):
    """M-FAC over all leaves taken as one vector, for few parameters: the window holds `window` gradients.

    Args:
        params: Leaves, or groups of them, of one dtype on one device; a group may have an lr and a weight_decay of its own.
        lr: Learning rate.
        window: Gradients kept.
        damping: Added to the diagonal. The smaller, the more of the curvature is trusted, and the more is lost to
            rounding (relative error about 3e-11 at 1e-5 in float64).
        momentum: Of the preconditioned gradient.
        weight_decay: Added to the gradient, times the leaf.

    Raises:
        ValueError: an option makes no sense, or the leaves are of several dtypes or devices.

    The official code divides by `window` from the start although its buffer is filled with zeros, which takes the early
    curvature for `window` times smaller than it is; here the divisor is the number of gradients seen.
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, window: int = 32, damping: float = 1.0, momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        if not (lr >= 0 and window >= 1 and damping > 0 and 0 <= momentum < 1 and weight_decay >= 0):
            raise ValueError(
                f"m-fac got lr={lr!r}, window={window!r}, damping={damping!r}, momentum={momentum!r}, "
                f"weight_decay={weight_decay!r}; give a window of at least 1, a damping above 0 and a momentum in [0, 1)"
            )
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.window, self.damping, self.momentum = window, damping, momentum
        self._leaves: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        if len({(p.dtype, p.device) for p in self._leaves}) > 1:
            raise ValueError(
                "m-fac got leaves of several dtypes or devices; give it those of one, and the others to another"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients that the leaves hold; where none has one, nothing happens."""
        loss = evaluated(closure)
        if all(p.grad is None for p in self._leaves):
            return loss
        gradient = self._flat()
        state = self._state()
        remember(state, gradient)
        update = solve(state, gradient, self.damping)
        if self.momentum:
            update = state.setdefault("momentum", torch.zeros_like(update)).mul_(self.momentum).add_(update)
        self._spread(update)
        return loss

    def _flat(self) -> Tensor:
        """All gradients as one vector, decay included."""
        parts: list[Tensor] = []
        for group in self.param_groups:
            for p in group["params"]:
                part = torch.zeros_like(p) if p.grad is None else p.grad
                parts.append((part.add(p, alpha=group["weight_decay"]) if group["weight_decay"] else part).reshape(-1))
        return torch.cat(parts)

    def _state(self) -> dict[str, Any]:
        """The window; it is kept with the first leaf."""
        state = self.state[self._leaves[0]]
        if not state:
            state.update(empty(self.window, sum(p.numel() for p in self._leaves), self._leaves[0]))
        return state

    def _spread(self, update: Tensor) -> None:
        pieces: Any = iter(cast("Any", update).split([p.numel() for p in self._leaves]))
        for group in self.param_groups:
            for p in group["params"]:
                piece = next(pieces)
                if p.grad is not None:
                    p.add_(piece.reshape(p.shape), alpha=-group["lr"])


def empty(window: int, size: int, like: Tensor) -> dict[str, Any]:
    """A window without gradients.

    Args:
        window: Gradients kept.
        size: Entries of a gradient.
        like: Has the dtype and device of a gradient.

    Returns:
        "gradients" [window, size], "gram" [window, window] of their inner products, and "seen", how many there were.
    """
    wide = torch.float32 if like.device.type == "mps" else torch.float64
    return {
        "gradients": torch.zeros(window, size, dtype=like.dtype, device=like.device),
        "gram": torch.zeros(window, window, dtype=wide, device=like.device),
        "seen": 0,
    }


def remember(state: dict[str, Any], gradient: Tensor) -> None:
    """Put a gradient [size] in place of the oldest one."""
    gradients, gram = state["gradients"], state["gram"]
    place = state["seen"] % len(gradients)
    gradients[place] = gradient
    products = (gradients @ gradient).to(gram.dtype)
    gram[place] = products
    gram[:, place] = products
    state["seen"] += 1


def solve(state: dict[str, Any], vector: Tensor, damping: float) -> Tensor:
    """The inverse of damping * I + G^T G / n times a vector [size], for the n gradients in the window.

    Source: arXiv 2107.03356, equation (3), written with the matrix of inner products.
    """
    n = min(state["seen"], len(state["gradients"]))
    if n == 0:
        return vector / damping
    gradients, gram = state["gradients"][:n], state["gram"][:n, :n]
    shifted = gram + n * damping * torch.eye(n, dtype=gram.dtype, device=gram.device)
    weights: Any = cast("Any", torch).linalg.solve(shifted, (gradients @ vector).to(gram.dtype))
    return (vector - gradients.T @ weights.to(vector.dtype)) / damping
