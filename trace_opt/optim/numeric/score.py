"""Gradients through a choice that has none: estimators for the logits behind a categorical choice.

The mean loss under a random choice is smooth in its logits even where each loss is not. Multiplying a sampled loss by a
factor that is 1, but whose derivative is that of the log probability (the DiCE box), lets torch's own backward find the
estimate, in any order and together with the gradients of tensors inside the losses.

Sources: REINFORCE (Williams 1992); leave-one-out baseline (Kool et al. 2019); DiCE (Foerster et al. 2018, equation 5, arXiv
1802.05098); Gumbel-softmax (arXiv 1611.01144, arXiv 1611.00712); straight-through (arXiv 1308.3432).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from trace_opt.errors import meant

if TYPE_CHECKING:
    import torch

Estimator = Literal["reinforce", "loo", "enumerate"]
"""How `surrogate` estimates; "reparam" is another way altogether, see `relax`."""


def log_prob(logits: torch.Tensor, index: torch.Tensor | int) -> torch.Tensor:
    """The log probability of a choice under softmax of its logits.

    Args:
        logits: Unnormalized log probabilities, shape `[..., k]`.
        index: Which of the k was chosen: one number, or integers of a shape that goes with `[...]` by broadcasting
            (shape `[n]` for n choices from the same `[k]` logits).

    Returns:
        Log probabilities of the shape of `index`, in nats; differentiable in the logits.
    """
    import torch

    chosen = torch.as_tensor(index, device=logits.device)
    log_p: Any = logits.log_softmax(-1)
    shape: Any = cast("Any", torch).broadcast_shapes(chosen.shape, log_p.shape[:-1])
    return log_p.expand(*shape, log_p.shape[-1]).gather(-1, chosen.expand(shape)[..., None])[..., 0]


def sample(logits: torch.Tensor, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw n choices from softmax of the logits, independent of each other.

    Args:
        logits: Shape `[k]`.
        n: How many.
        generator: The only chance there is; torch's global one by default.

    Returns:
        Integers in `[0, k)` of shape `[n]`.
    """
    return logits.detach().softmax(-1).multinomial(n, replacement=True, generator=generator)


def box(log_probs: torch.Tensor) -> torch.Tensor:
    """DiCE's magic box: 1 everywhere, with the derivatives of a ratio of probabilities (equation 5).

    Args:
        log_probs: The summed log probability of the choices that a cost depends on; a choice made later, which cannot
            have caused the cost, adds only variance.
    """
    return (log_probs - log_probs.detach()).exp()


def surrogate(losses: torch.Tensor, log_probs: torch.Tensor, estimator: Estimator = "loo") -> torch.Tensor:
    """A scalar whose value estimates the expected loss and whose derivatives estimate its derivatives.

    All are unbiased in every order, for the logits behind `log_probs` and for tensors inside `losses` alike.

    Args:
        losses: One loss for each of n independent samples, shape `[n]`; for "enumerate" one for each possible choice.
        log_probs: The log probability of each sample (the sum of those of all its choices), shape `[n]`.
        estimator: "reinforce" takes each loss as it is. "loo" takes from each loss the mean of the *other* ones, which
            leaves the mean gradient and has far less variance (n of 2 at least). "enumerate" sums over all choices: no
            variance, and as many losses as there are choices. There is no baseline with a sample's own loss in it: it
            shrinks the gradient by (n - 1) / n.

    Returns:
        A scalar to differentiate.

    Raises:
        ValueError: shapes do not fit, there are too few samples, or "enumerate" was not given every choice.
    """
    if estimator not in get_args(Estimator):
        raise ValueError(_unknown(str(estimator)))
    if losses.ndim != 1 or losses.shape != log_probs.shape or not len(losses):
        raise ValueError(
            f"losses have shape {tuple(losses.shape)!r} and log_probs {tuple(log_probs.shape)!r}; give one number of "
            "each for every sample"
        )
    if estimator == "enumerate":
        return _enumerated(losses, log_probs)
    weight = box(log_probs)
    if estimator == "reinforce":
        return (losses * weight).mean()
    n = len(losses)
    if n < 2:
        raise ValueError("estimator 'loo' got one sample, whose baseline is the loss of the others; draw 2 at least")
    fixed = losses.detach()
    others = (fixed.sum() - fixed) / (n - 1)
    return (losses * weight + (1 - weight) * others).mean()


def _unknown(estimator: str) -> str:
    near = meant(estimator, get_args(Estimator))
    hint = " (relax makes the choice itself differentiable)" if estimator == "reparam" else ""
    hint = f"; {near}" if near else hint
    return f"estimator is {estimator!r}; give one of {list(get_args(Estimator))!r}{hint}"


def _enumerated(losses: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    total = float(log_probs.detach().exp().sum())
    if abs(total - 1) > 1e-4:
        raise ValueError(
            f"estimator 'enumerate' got choices whose probabilities sum to {total:.6g}; give the loss of every choice once"
        )
    return (log_probs.exp() * losses).sum()


def relax(
    logits: torch.Tensor,
    choices: torch.Tensor | Sequence[Any],
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    *,
    hard: bool = False,
) -> torch.Tensor:
    """A random choice among numbers or tensors as a differentiable mixture of them (`estimator="reparam"`).

    One sample has little variance, but its gradient is **biased**: it is that of the mixture. The bias falls with the
    temperature while the variance grows. What cannot be mixed (texts, tools, models) takes `surrogate`.

    Args:
        logits: Shape `[k]`.
        choices: The k values: numbers, tensors of one shape, or a tensor of shape `[k, ...]`.
        generator: The only chance there is; torch's global one by default.
        temperature: Above 0; the nearer to it, the closer the mixture is to one of the choices.
        hard: Give exactly one of the choices, with the mixture's gradient (straight-through).

    Returns:
        A value of the shape of one choice, in the logits' dtype.

    Raises:
        ValueError: the choices cannot be mixed, are not k, or the temperature is not above 0.
    """
    import torch

    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}; give a number above 0")
    values = _stacked(choices, logits)
    if logits.ndim != 1 or len(values) != len(logits):
        raise ValueError(
            f"{len(values)} choices came with logits of shape {tuple(logits.shape)!r}; give one logit for each choice"
        )
    # the log of an exponential variate is a Gumbel variate with its sign turned
    gumbel = -torch.empty_like(logits.detach()).exponential_(generator=generator).log()
    weights = ((logits + gumbel) / temperature).softmax(-1)
    if hard:
        one = torch.zeros_like(weights).scatter_(-1, weights.argmax(-1, keepdim=True), 1.0)
        # in this order the value is exact: 1 - w + w need not be 1
        weights = one + (weights - weights.detach())
    return cast("Any", torch).tensordot(weights, values, dims=1)


def _stacked(choices: Any, logits: torch.Tensor) -> torch.Tensor:
    import torch

    if torch.is_tensor(choices):
        return choices.to(logits)
    try:
        return torch.stack([torch.as_tensor(choice).to(logits) for choice in choices])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the choices {list(choices)!r:.80} cannot be mixed; give numbers or tensors of one shape, or take "
            "estimator 'loo', which needs only their losses"
        ) from error
