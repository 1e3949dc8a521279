"""Why a loss gives a tensor no gradient: the op at which the path from one to the other ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trace_opt.core.feedback import Feedback
from trace_opt.core.node import is_a
from trace_opt.core.parameter import is_tensor
from trace_opt.core.propagate import propagate
from trace_opt.errors import GradientError

if TYPE_CHECKING:
    from trace_opt.core.node import Node
    from trace_opt.core.rollout import Rollout

_ANOTHER = "let an optimizer that needs no gradient (ZerothOrder) own it, or make it frozen=True"


def no_gradient(name: str, rollouts: Sequence[Rollout]) -> GradientError:
    """The error about a tensor that no rollout gives a gradient.

    Args:
        name: The tensor's full name.
        rollouts: Those of the minibatch that came through, with graphs.
    """
    reasons = [reason for rollout in rollouts if (reason := _reason(name, rollout))]
    reason = reasons[0] if reasons else "no rollout read it"
    return GradientError(f"no rollout of the minibatch gives {name!r} a gradient: {reason}; {_ANOTHER}")


def was_read(name: str, rollouts: Sequence[Rollout]) -> bool:
    """Whether any of these rollouts read a parameter, in the workflow or in an op."""
    return any(rollout.graph is not None and name in rollout.graph.parameters for rollout in rollouts)


def _reason(name: str, rollout: Rollout) -> str:
    """Where the path ends in one rollout; "" where the rollout did not read the tensor."""
    graph, output = rollout.graph, rollout.node
    if graph is None or output is None or name not in graph.parameters:
        return ""
    piece = propagate(graph, output, Feedback()).get(name)
    if piece is None:
        return "it does not reach the output"
    live: set[Node[Any]] = {piece.node}
    for node in piece.path:
        if node is piece.node or node.kind != "op":
            continue
        if not any(parent in live for parent, kind, _ in node.parents() if kind != "control"):
            continue
        if not _is_live(node.value):
            return f"`{node.op.name}` returns {_described(node.value)}; everything after it is constant"
        live.add(node)
    if rollout.feedback.loss is None:
        return "the guide gave no loss"
    return "the guide's loss does not depend on the output's tensors"


def _is_live(value: Any, depth: int = 10) -> bool:
    """Whether a value is, or holds, a tensor with an autograd graph."""
    if is_tensor(value):
        return bool(value.requires_grad)
    if depth <= 0:
        return False
    if is_a(value, dict):
        value = list(value.values())
    items: list[Any] = list(value) if is_a(value, (list, tuple)) else []
    return any(_is_live(item, depth - 1) for item in items)


def _described(value: Any) -> str:
    if is_tensor(value):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} cut off from autograd"
    kind = type(value).__name__
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
