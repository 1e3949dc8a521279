"""AdaGrad-Norm: one step size for all parameters, from the norms of all gradients so far.

Nothing about the problem has to be known: the step shrinks by what has been met, lr / sqrt(b0^2 + sum of |g|^2).

Source: R. Ward, X. Wu, L. Bottou, "AdaGrad stepsizes", arXiv 1806.01811, Algorithm 1; as used for growing batches in
arXiv 2402.11215, whose official class keeps a sum for each output row instead of the one number of the rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch  # noqa: TID253 # the class derives from one of torch's

from trace_opt.optim.numeric.stepper import evaluated

if TYPE_CHECKING:
    from torch import Tensor


class AdaGradNorm(torch.optim.Optimizer):
    """AdaGrad with one number for all leaves of all groups.

    Args:
        params: Leaves, or groups of them; a group may have an lr and a weight_decay of its own.
        lr: Learning rate.
        b0: Where the norm starts, so that the first step is not lr whatever the gradient.
        weight_decay: Shrinks a leaf by lr times this before each step.

    Raises:
        ValueError: an option makes no sense.
    """

    def __init__(self, params: Any, lr: float = 1.0, b0: float = 0.01, weight_decay: float = 0.0) -> None:
        if not (lr >= 0 and b0 >= 0 and weight_decay >= 0):
            raise ValueError(
                f"adagrad-norm got lr={lr!r}, b0={b0!r}, weight_decay={weight_decay!r}; give numbers not below 0"
            )
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._b0 = b0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on the gradients that the leaves hold."""
        loss = evaluated(closure)
        moved = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if moved:
            norm = self._norm([p.grad for _, p in moved])
            for group, p in moved:
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                rate = torch.where(norm > 0, group["lr"] / norm, 0.0).to(p.device, p.dtype)
                p.addcmul_(p.grad, rate, value=-1)
        return loss

    def _norm(self, grads: list[Tensor]) -> Tensor:
        """The norm of all gradients so far, these included; it is kept with the first leaf."""
        first = self.param_groups[0]["params"][0]
        state: dict[str, Any] = self.state[first]
        if not state:
            state["sum"] = torch.full((), self._b0**2, dtype=_wide(first), device=first.device)
        vector_norm: Any = cast("Any", torch).linalg.vector_norm
        norms = torch.stack([vector_norm(grad, dtype=_wide(grad)).to(first.device) for grad in grads])
        state["sum"] += (norms**2).sum()
        return state["sum"].sqrt()


def _wide(tensor: Tensor) -> torch.dtype:
    """Sums over a long training lose what is small in float32; float64 where the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
