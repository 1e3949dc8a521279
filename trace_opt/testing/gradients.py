"""Gradients held to central differences, each of them from recordings of its own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.parameter import is_tensor
from trace_opt.core.tracer import plain, record
from trace_opt.errors import meant

if TYPE_CHECKING:
    import torch

    from trace_opt.core.graph import Graph


def check_gradients(
    workflow: Callable[..., Any], values: Mapping[str, Any], *args: Any, eps: float = 1e-6, rtol: float = 1e-5,
    atol: float = 1e-7, most: int = 64, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Hold the gradients of a recorded workflow to central differences.

    Each run is a recording of its own, with the same seeds for the rollout and for torch. An output that is no single
    number is weighted with fixed random numbers and summed.

    Args:
        workflow: Sync or async function, made of ops or not, that returns a tensor, or tensors in containers.
        values: Values by full parameter name; gradients are checked for the floating tensors among them, in float64.
        args: Handed to the workflow.
        eps: Half the distance of the two points of a difference.
        rtol, atol: How far a gradient may be off: `atol + rtol * |difference|`.
        most: How many entries of one tensor are checked; of more, as many are drawn.
        seed: Decides all chance.

    Returns:
        The largest deviation, by full parameter name.

    Raises:
        AssertionError: a gradient is off, or the workflow takes another way at a point next to the given one.
        ValueError: nothing is to be checked, a tensor is not float64, or the workflow does not read it.
    """
    import torch

    checked = _float64_tensors(values)
    measure = partial(_measured, workflow, args, seed)
    loss, graph = measure(values)
    leaves = [_read(graph, name).value for name in checked]
    grads: Any = [None] * len(leaves)
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    way, found = _way(graph), dict.fromkeys(checked, 0.0)
    for (name, value), grad in zip(checked.items(), grads, strict=True):
        exact = torch.zeros_like(value) if grad is None else grad
        chosen: Any = torch.randperm(value.numel(), generator=torch.Generator().manual_seed(seed))[:most]
        for entry in chosen.sort().values.tolist():
            difference = _central(measure, values, name, entry, eps, way)
            given = float(exact.reshape(-1)[entry])
            found[name] = max(found[name], abs(given - difference))
            if not abs(given - difference) <= atol + rtol * abs(difference):
                reached = "" if grad is not None else " (none reaches it)"
                raise AssertionError(
                    f"the gradient of entry {entry} of {name!r} is {given:.10g}{reached}, central differences give "
                    f"{difference:.10g}"
                )
    return found


def _float64_tensors(values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    found = {name: value for name, value in values.items() if is_tensor(value) and value.is_floating_point()}
    if not found:
        raise ValueError(f"check_gradients got no floating tensor among {sorted(values)!r}; give at least one")
    for name, value in found.items():
        if str(value.dtype) != "torch.float64":
            raise ValueError(f"{name!r} is {value.dtype}; central differences need float64, so give value.double()")
    return found


def _read(graph: Graph, name: str) -> Any:
    """The node of a parameter that the workflow read."""
    read = graph.parameters
    if name not in read:
        hint = meant(name, read, f"it reads {sorted(read)!r}")
        raise ValueError(f"the workflow never reads {name!r}; {hint}")
    return read[name]


def _central(
    measure: Callable[[Mapping[str, Any]], tuple[torch.Tensor, Graph]], values: Mapping[str, Any], name: str, entry: int,
    eps: float, way: list[Any],
) -> float:  # fmt: skip
    """The central difference of one entry of one tensor."""
    ends: list[float] = []
    for step in (eps, -eps):
        moved = values[name].detach().clone().contiguous()
        moved.view(-1)[entry] += step
        there, graph = measure({**values, name: moved})
        if _way(graph) != way:
            raise AssertionError(
                f"the workflow takes another way where entry {entry} of {name!r} moves by {step:g}, so there is no "
                "gradient to compare; check at another point"
            )
        ends.append(there.item())
    return (ends[0] - ends[1]) / (2 * eps)


def _measured(
    workflow: Callable[..., Any], args: tuple[Any, ...], seed: int, values: Mapping[str, Any]
) -> tuple[torch.Tensor, Graph]:
    """One number made of what a recorded run gives, and the recording."""
    import torch

    chance = cast("Any", torch).random
    with chance.fork_rng(devices=[]):
        chance.manual_seed(seed)
        with record(dict(values), seed) as graph:
            output = workflow(*args)
            if inspect.isawaitable(output):
                output = asyncio.run(_awaited(output))
    parts = list(_floats(plain(output)))
    if not parts:
        raise ValueError(f"the workflow returned {plain(output)!r:.60}, which holds no floating tensor; return one")
    if len(parts) == 1 and parts[0].numel() == 1:
        return parts[0].reshape(()), graph
    draws = torch.Generator().manual_seed(seed)
    weighted = [(part * torch.randn(part.shape, generator=draws, dtype=part.dtype)).sum() for part in parts]
    return torch.stack(weighted).sum(), graph


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


def _floats(value: Any) -> Iterator[torch.Tensor]:
    if is_tensor(value):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple, Mapping)):
        items = cast("Any", value).values() if isinstance(value, Mapping) else cast("Any", value)
        for item in items:
            yield from _floats(item)


def _way(graph: Graph) -> list[Any]:
    """The ops of a recording and how its yes-or-no decisions went."""
    return [(node.op.name, node.value if type(node.value) is bool else None) for node in graph.nodes]
