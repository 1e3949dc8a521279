"""Sophia's curvature: two unbiased estimates of a Hessian's diagonal, and the step of Sophia-G.

Hutchinson's estimate costs a second backward on the live graph. Gauss-Newton-Bartlett costs one more backward of a loss
whose labels are drawn from the model's own output; with observed labels it would be the empirical Fisher, which is biased.

Source: H. Liu et al., "Sophia: a scalable stochastic second-order optimizer for language model pre-training",
arXiv 2305.14342, Algorithms 1 to 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch  # noqa: TID253 # the class derives from one of torch's

from trace_opt.optim.numeric.stepper import evaluated

if TYPE_CHECKING:
    from torch import Tensor


def hutchinson(
    loss: Tensor, leaves: Sequence[Tensor], generator: torch.Generator, distribution: str = "rademacher"
) -> list[Tensor]:
    """An unbiased estimate of the diagonal of a loss's Hessian: z * (H z) for one random z (Algorithm 1).

    Args:
        loss: A scalar whose graph is alive; it stays alive.
        leaves: What to differentiate by.
        generator: Draws z, on its own device.
        distribution: "rademacher" (entries of +1 and -1: the least variance) or "gaussian".

    Returns:
        One tensor for each leaf, of its shape; zeros where the loss is linear in it or does not depend on it.

    Raises:
        ValueError: the distribution is another one.
    """
    nothing = [torch.zeros_like(leaf) for leaf in leaves]
    if not loss.requires_grad:
        return nothing
    grads = _grad(loss, leaves, create_graph=True)
    draws = [_draw(leaf, generator, distribution) for leaf in leaves]
    products = [(g * z).sum() for g, z in zip(grads, draws, strict=True) if g is not None and g.requires_grad]
    if not products:
        return nothing
    total: Any = sum(products)
    seconds = _grad(total, leaves)
    return [
        zero if second is None else z * second.detach() for z, second, zero in zip(draws, seconds, nothing, strict=True)
    ]


def gauss_newton(sampled_loss: Tensor, leaves: Sequence[Tensor], batch: int) -> list[Tensor]:
    """An unbiased estimate of the diagonal of the Gauss-Newton matrix: batch * g * g (Algorithm 2).

    Args:
        sampled_loss: The mean loss of a batch on labels drawn from the model's own output; its graph stays alive.
        leaves: What to differentiate by.
        batch: Losses that `sampled_loss` is the mean of.

    Returns:
        One tensor for each leaf, of its shape; zeros where the loss does not depend on it.
    """
    if not sampled_loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    grads = _grad(sampled_loss, leaves)
    return [
        torch.zeros_like(leaf) if g is None else batch * g.detach() ** 2 for leaf, g in zip(leaves, grads, strict=True)
    ]


class SophiaG(torch.optim.Optimizer):
    """Sophia's step, x - lr * clip(m / max(gamma * h, eps), -1, 1), on estimates handed to `step` (Algorithm 3).

    Args:
        params: Leaves, or groups of them.
        lr: Learning rate, and the most an entry moves in a step.
        betas: Decay of the momentum m, and of the curvature h.
        gamma: Share of the curvature to divide by: the smaller, the more entries are clipped.
        eps: The least to divide by.
        weight_decay: Shrinks a leaf by lr times this before each step.

    Raises:
        ValueError: an option makes no sense.
    """

    def __init__(
        self, params: Any, lr: float = 1e-4, betas: tuple[float, float] = (0.965, 0.99), gamma: float = 0.05,
        eps: float = 1e-12, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        if not (lr >= 0 and gamma >= 0 and eps > 0 and weight_decay >= 0 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(
                f"sophia-g got lr={lr!r}, betas={betas!r}, gamma={gamma!r}, eps={eps!r}, weight_decay={weight_decay!r}; "
                "give betas in [0, 1), eps above 0 and the others not below 0"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, hessian: Sequence[Tensor] | None = None) -> Any:
        """One step on the gradients that the leaves hold.

        Args:
            closure: Computes the loss again; not needed.
            hessian: An estimate for each leaf in the order of the groups, on steps that renew the curvature.
        """
        loss = evaluated(closure)
        estimates = None if hessian is None else iter(hessian)
        for group in self.param_groups:
            for p in group["params"]:
                estimate = None if estimates is None else next(estimates)
                if p.grad is not None:
                    self._move(p, p.grad, group, estimate)
        return loss

    def _move(self, p: Tensor, grad: Tensor, group: dict[str, Any], estimate: Tensor | None) -> None:
        state: dict[str, Any] = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
            state["curvature"] = torch.zeros_like(p)
        beta1, beta2 = group["betas"]
        momentum: Tensor = state["momentum"]
        curvature: Tensor = state["curvature"]
        if estimate is not None:
            curvature.lerp_(estimate, 1 - beta2)
        momentum.lerp_(grad, 1 - beta1)
        if group["weight_decay"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        update = momentum / (curvature * group["gamma"]).clamp_min_(group["eps"])
        p.add_(update.clamp_(-1, 1), alpha=-group["lr"])


def _grad(loss: Tensor, leaves: Sequence[Tensor], *, create_graph: bool = False) -> Sequence[Tensor | None]:
    """Gradients, None where the loss does not depend on a leaf; the graph stays alive."""
    return cast("Any", torch).autograd.grad(
        [loss], leaves, retain_graph=True, create_graph=create_graph, allow_unused=True
    )


def _draw(leaf: Tensor, generator: torch.Generator, distribution: str) -> Tensor:
    """A random tensor of mean 0 and variance 1 like a leaf."""
    where: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": leaf.dtype}
    if distribution == "gaussian":
        return torch.randn(leaf.shape, **where).to(leaf.device)
    if distribution == "rademacher":
        return torch.randint(0, 2, leaf.shape, **where).mul_(2).sub_(1).to(leaf.device)
    raise ValueError(f"hutchinson got distribution={distribution!r}; give 'rademacher' or 'gaussian'")
