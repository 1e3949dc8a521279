"""Results whose value is a torch tensor: real tensors that share the value's memory and autograd graph.

torch looks at a tensor's memory, not at its class, so a stand-in would not do. Functions and methods on them record
ops; what only describes a tensor (shape, dtype, device) is handed out plain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.context import FRAME
from trace_opt.core.node import SOLID, TENSORS, Node, Op, is_a
from trace_opt.core.operators import BINARY, DEEPCOPY, GETATTR, function_op
from trace_opt.core.result import Result, apply, bare, changeable, decision, record_value, textual, working
from trace_opt.core.standins import PLAIN_STAND_INS
from trace_opt.errors import FeedbackError

if TYPE_CHECKING:
    import torch

    from trace_opt.core.graph import Graph
    from trace_opt.core.strand import Frame

_DESCRIBES = frozenset({
    "shape", "dtype", "device", "requires_grad", "grad", "grad_fn", "is_leaf", "layout", "ndim", "is_cuda",
    "size", "dim", "numel", "is_floating_point", "is_contiguous", "stride", "element_size", "nelement", "data_ptr",
    "is_complex", "backward", "retain_grad", "register_hook", "is_sparse", "names", "itemsize", "nbytes", "output_nr",
    "is_quantized", "is_meta", "is_nested", "get_device", "is_same_size", "is_inference", "storage_offset",
})  # fmt: skip
_CHANGES = frozenset({"__setitem__", "__delitem__", "data", "set_", "requires_grad_"})
_READS = {"__bool__": "bool", "__len__": "len", "__int__": "int", "__float__": "float", "__index__": "index", "__complex__": "complex"}  # fmt: skip


def wrap_tensor(frame: Frame, node: Node[Any]) -> Any:
    """The result for a tensor node."""
    made = node.value.as_subclass(_tensor_class())
    made._trace_node = node
    made._trace_graph = frame.graph
    return made


@lru_cache(maxsize=1)
def _tensor_class() -> Any:
    import torch

    class TensorResult(Result, torch.Tensor):
        """A tensor that records what is done with it."""

        _trace_node: Any
        _trace_graph: Any

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return _dispatch(func, tuple(args), dict(kwargs or {}))

        def __repr__(self, **_: Any) -> str:
            return repr(self._trace_node.value)

        def __str__(self) -> str:
            return str(textual(self))

        def __format__(self, spec: str) -> str:
            return format(textual(self), spec)

        def __iter__(self) -> Any:
            size = decision(self, "len", len)
            return (self[i] for i in range(size))

        def __contains__(self, item: Any) -> bool:
            return decision(self, "plain", lambda value: bare(item) in value)

        def __hash__(self) -> int:
            return id(self._trace_node.value)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return self._trace_node.value.__reduce_ex__(protocol)

        def __deepcopy__(self, memo: Any) -> Any:
            return apply(DEEPCOPY, (self,))

        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            return decision(self, "array", lambda value: value.__array__(*args, **kwargs))

    SOLID.update((torch.Tensor, torch.nn.Parameter))
    TENSORS.update({torch.Tensor: TensorResult, torch.nn.Parameter: TensorResult})
    PLAIN_STAND_INS.add(TensorResult)
    for name, op in BINARY.items():  # x += 1 makes a new value, as it does for a number
        setattr(TensorResult, f"__i{name}__", _binary(op))
    return TensorResult


def _binary(op: Op) -> Callable[[Any, Any], Any]:
    return lambda self, other: apply(op, (self, other))


def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A torch function on results: recorded, a decision, a plain description, or refused."""
    name: str = getattr(func, "__name__", str(func))
    owner = next((x for x in args if isinstance(x, Result)), None)
    if name in ("__get__", "__set__", "__delete__"):
        prop: str = getattr(func.__self__, "__name__", "")
        return _attribute(func, prop, name, args)
    changed = _changed(name, args, kwargs)
    if changed is not None:
        changeable(changed, f"calling {name}() in place")
        return func(*_bare_all(args), **_bare_all(kwargs))
    if owner is not None and name in _READS:
        return decision(owner, _READS[name], func)
    if name in _DESCRIBES:
        return func(*_bare_all(args), **_bare_all(kwargs))
    return apply(function_op(name.strip("_"), func), (args, kwargs))


def _changed(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result that a torch function would change in place, or None."""
    in_place = name in _CHANGES or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace") is True
    target: Any = args[0] if in_place and args else kwargs.get("out")
    return target if isinstance(target, Result) else None


def _attribute(func: Any, prop: str, access: str, args: tuple[Any, ...]) -> Any:
    owner: Any = args[0]
    if access != "__get__":
        changeable(owner, f"setting attribute {prop!r}")
        return func(*_bare_all(args))
    value: Any = func(*_bare_all(args))
    frame = working(owner)
    if frame is None:
        bare(owner)  # logs the read
    if frame is None or prop in _DESCRIBES:
        return value
    return record_value(frame, GETATTR, (owner._trace_node, prop), value)


def _bare_all(value: Any) -> Any:
    from trace_opt.core.arguments import bare_all

    if FRAME.get() is None:
        return bare_all(value)
    return _values(value)


def _values(value: Any) -> Any:
    if isinstance(value, Result):
        return cast("Any", value)._trace_node.value
    if is_a(value, (list, tuple)):
        return type(value)(_values(item) for item in value)
    if is_a(value, dict):
        return {key: _values(item) for key, item in value.items()}
    return value


def generator_of(text: str) -> torch.Generator:
    """Chance that follows from a text, so that nothing of it has to be kept."""
    import torch

    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))


def gradients_by_name(loss: torch.Tensor, values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The gradient of a loss for every tensor that requires grad and that it reaches.

    Args:
        loss: A scalar.
        values: Parameter values by full name.
    """
    import torch

    moving = {name: value for name, value in values.items() if torch.is_tensor(value) and value.requires_grad}
    if not moving or not loss.requires_grad:
        return {}
    found = torch.autograd.grad([loss], list(moving.values()), retain_graph=True, allow_unused=True)
    pairs = zip(moving, cast("tuple[torch.Tensor | None, ...]", found), strict=True)
    return {name: grad.detach() for name, grad in pairs if grad is not None}


def backward_loss(graph: Graph, loss: torch.Tensor | dict[str, torch.Tensor]) -> None:
    """Add the gradient of a loss to `grad` of every tensor parameter of a recording that it reaches.

    Args:
        graph: The recording whose parameter leaves take the gradient.
        loss: A scalar, or several by name, of which the mean is taken.

    Raises:
        FeedbackError: a loss is no single number.
    """
    import torch

    total: Any = sum(loss.values()) / len(loss) if isinstance(loss, dict) else loss
    if isinstance(total, Result):
        total = cast("Any", total)._trace_node.value
    if torch.is_tensor(total) and total.numel() != 1:
        raise FeedbackError(f"a loss has shape {tuple(total.shape)!r}; reduce it to one number, as with .mean()")
    leaves = [node for node in graph.parameters.values() if torch.is_tensor(node.value) and node.value.requires_grad]
    if not leaves or not isinstance(total, torch.Tensor) or not total.requires_grad:
        return
    # kept, so that feedback on another output of the same recording can follow
    grads = torch.autograd.grad([total], [node.value for node in leaves], retain_graph=True, allow_unused=True)
    for node, found in zip(leaves, grads, strict=True):
        parameter, grad = node.parameter, cast("torch.Tensor | None", found)  # None where unused, torch's types forget
        if parameter is not None and grad is not None:
            parameter.grad = grad.clone() if parameter.grad is None else parameter.grad + grad
