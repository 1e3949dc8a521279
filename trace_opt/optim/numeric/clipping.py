"""Clip the gradient where it flows along one edge of a recording, position by position.

A few positions of a large intermediate value (pixels, tokens) can carry gradients that drown all others. Scaling each
position's channel vector down to a bound keeps its direction, which clamping single numbers would not, and leaves every
other position as it is, which clipping the whole gradient would not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from trace_opt.core.parameter import is_tensor
from trace_opt.core.replay import calls_of

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.core.graph import Graph

Norm = Literal["inf", "l2"]


def clip_channels(gradient: Tensor, limit: float, norm: Norm = "inf") -> Tensor:
    """Scale each position's channel vector to a norm of `limit` at most: g * min(1, limit / |g|).

    Args:
        gradient: Any shape, channels in the last axis; a single number is one channel.
        limit: The bound. Under a loss scale, the bound times the scale.
        norm: Size of a channel vector: its largest absolute entry ("inf"), or its Euclidean length ("l2").

    Returns:
        A tensor of the same shape; vectors within the bound, zero included, come back unchanged to the bit.

    Raises:
        ValueError: the limit is not above 0, or there is no such norm.

    Source: Pan et al., "Enhancing High-Resolution 3D Generation through Pixel-wise Gradient Clipping", arXiv 2310.12474.
    Its code takes the "inf" norm with a limit of 0.1.
    """
    import torch

    _check(limit, norm)
    order = math.inf if norm == "inf" else 2
    size = cast("Any", torch).linalg.vector_norm(gradient, order, dim=-1 if gradient.dim() else None, keepdim=True)
    # divided by 1 exactly where the vector is within the bound, and never by 0
    return gradient / (size / limit).clamp(min=1.0)


def hook(value: Tensor, limit: float, norm: Norm = "inf") -> Any:
    """Clip the gradient that flows back through a value, however it is asked for (`backward` or `autograd.grad`).

    Args:
        value: A tensor that requires grad; of a recorded node its `value`, which is what other ops were handed.
        limit: The bound of each position's channel vector.
        norm: As in `clip_channels`.

    Returns:
        torch's handle; its `remove()` takes the hook away.

    Raises:
        ValueError: the value takes no gradient, the limit is not above 0, or there is no such norm.
    """
    _check(limit, norm)
    if not is_tensor(value) or not value.requires_grad:
        raise ValueError(
            f"clipping got {type(value).__name__!r} that takes no gradient; give a tensor that requires grad"
        )

    def clip(gradient: Tensor) -> Tensor:
        return clip_channels(gradient, limit, norm)

    return cast("Any", value).register_hook(clip)


def clip_ops(graph: Graph, limits: Mapping[str, float], norm: Norm = "inf") -> list[Any]:
    """Clip the gradients of what named ops gave in a recording.

    Args:
        graph: The recording; its loss has not been differentiated yet.
        limits: The bound by op name.
        norm: As in `clip_channels`.

    Returns:
        The hooks' handles; values that take no gradient get none.

    Raises:
        TraceError: no op of that name was recorded.
        ValueError: as in `hook`.
    """
    handles: list[Any] = []
    for name, limit in limits.items():
        handles += [hook(node.value, limit, norm) for node in calls_of(graph, name) if takes_gradient(node.value)]
    return handles


def takes_gradient(value: Any) -> bool:
    """Whether a value is a tensor that gradients flow back through."""
    return is_tensor(value) and bool(value.requires_grad)


def _check(limit: float, norm: object) -> None:
    if not limit > 0:
        raise ValueError(f"clipping got a limit of {limit!r}; give one above 0")
    if norm not in ("inf", "l2"):
        raise ValueError(f"clipping got the norm {norm!r}; choose 'inf' or 'l2'")
