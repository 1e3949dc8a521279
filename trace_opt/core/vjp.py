"""Ops with a gradient rule of their own: `@trace(vjp=rule)`.

The body runs inside a `torch.autograd.Function`, so torch records one step for it and asks the rule in the backward pass.
The function is wrapped before its op is made: the recording itself knows nothing of the rule, and ops without one cost
nothing more.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch  # noqa: TID253 # a class here derives from torch's, and the module is loaded only where a rule is given

from trace_opt.core.context import FRAME, STATE, RolloutState
from trace_opt.core.graph import Graph
from trace_opt.core.node import ParameterNode, class_of, is_a
from trace_opt.core.strand import Frame, here
from trace_opt.errors import TraceError

Rule = Callable[..., Any]
"""`(grad_output, output, *inputs) -> gradients of the inputs`; see `with_rule`."""


def with_rule(fn: Callable[..., Any], rule: Rule, *, inline: bool = False) -> Callable[..., Any]:
    """The function with `rule` as its gradient; the body runs without autograd.

    Args:
        fn: A plain function that returns a tensor, or tensors in tuples, lists and dicts.
        rule: Called in the backward pass as `rule(grad_output, output, *inputs)`. `grad_output` has the form of
            `output`; `inputs` are all arguments in the order of the signature, defaults filled in (`*args` is one tuple,
            `**kwargs` one dict, of a method the first is the object). It returns one gradient for each input, of the
            input's own form and shape, None where there is none; for a single input the gradient alone will do. It runs
            unrecorded with the candidate's values in force. If it is made of differentiable steps, second derivatives
            work.
        inline: What `trace` was told.

    Raises:
        TraceError: `fn` is inline, asynchronous, a generator or no function. In a call: it returned no tensor, changed
            an argument in place, or read a tensor parameter that requires grad.
    """
    label = getattr(fn, "__name__", repr(fn))
    problem = _unfit(fn, inline=inline)
    if problem:
        raise TraceError(
            f"{label!r} got a vjp rule but {problem}; give the rule to a plain function that returns a tensor"
        )
    if not callable(rule):
        raise TraceError(f"the vjp rule of {label!r} is {rule!r}; give a function (grad_output, output, *inputs)")
    signature = inspect.signature(fn)

    @functools.wraps(fn)
    def ruled(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        call = _Call(fn, rule, label, bound)
        tensors = tuple(_tensors(bound.arguments))
        returned = cast("Any", _Ruled).apply(call, *tensors)
        return _filled(call.output, iter(returned))

    return ruled


def _unfit(fn: Any, *, inline: bool) -> str:
    if inline:
        return "is inline, so its inner calls are recorded in its place"
    if inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
        return "is asynchronous"
    if inspect.isgeneratorfunction(fn):
        return "is a generator"
    if not inspect.isroutine(fn):
        return f"is a {class_of(fn).__name__}"
    try:
        inspect.signature(fn)
    except (TypeError, ValueError):
        return "tells nothing about its arguments"
    return ""


class _Call:
    """One call of a function with a rule.

    Attributes:
        arguments: By name, with None in place of each tensor once it is kept by autograd.
        output: The form of what it returned, with None in place of each tensor.
        state: The rollout it ran in.
    """

    __slots__ = ("arguments", "fn", "label", "output", "rule", "state")

    def __init__(self, fn: Callable[..., Any], rule: Rule, label: str, bound: inspect.BoundArguments) -> None:
        self.fn = fn
        self.rule = rule
        self.label = label
        self.arguments = bound
        self.output: Any = None
        self.state = STATE.get()

    def run(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The tensors that the body returns."""
        bound = self.arguments
        versions = [_version(tensor) for tensor in tensors]
        returned = _watched(lambda: self.fn(*bound.args, **bound.kwargs), self.state, self.label)
        if any(_version(tensor) != version for tensor, version in zip(tensors, versions, strict=True)):
            raise TraceError(f"{self.label!r} has a vjp rule and changed an argument in place; work on a clone")
        found = tuple(_tensors(returned))
        if not found:
            raise TraceError(
                f"{self.label!r} has a vjp rule and returned {class_of(returned).__name__!r} without a tensor; return a "
                "tensor, or tensors in a tuple, list or dict"
            )
        self.output = _emptied(returned)
        bound.arguments = _emptied(bound.arguments)  # autograd keeps them, and lets them go with its graph
        return found

    def gradients(self, grads: Any, outputs: Any, tensors: Any) -> Iterator[torch.Tensor | None]:
        """What the rule says, one gradient for each tensor among the inputs."""
        left = iter(tensors)
        inputs = [_filled(value, left) for value in self.arguments.arguments.values()]
        frame, state = FRAME.set(None), STATE.set(self.state)
        try:
            made: Any = self.rule(_filled(self.output, iter(grads)), _filled(self.output, iter(outputs)), *inputs)
        finally:
            STATE.reset(state)
            FRAME.reset(frame)
        several = is_a(made, (tuple, list))
        if len(inputs) == 1 and not (several and len(made) == 1):
            made, several = (made,), True
        if not several or len(made) != len(inputs):
            given = len(made) if several else 1
            names = ", ".join(self.arguments.arguments)
            raise TraceError(
                f"the vjp rule of {self.label!r} returned {given} gradients for the inputs ({names}); return one for each, "
                "None where there is none"
            )
        for name, value, gradient in zip(self.arguments.arguments, inputs, made, strict=True):
            yield from self._aligned(name, value, gradient)

    def _aligned(self, name: str, value: Any, gradient: Any) -> Iterator[torch.Tensor | None]:
        """The gradients for the tensors in one input, in the order of `_tensors`."""
        found = [value] if torch.is_tensor(value) else list(_tensors(value))
        if gradient is None:
            yield from [None] * len(found)
            return
        given = [gradient] if torch.is_tensor(value) else list(_leaves(gradient))
        fits = len(given) == len(found) and all(
            part is None or (torch.is_tensor(part) and part.shape == tensor.shape)
            for part, tensor in zip(given, found, strict=True)
        )
        if not fits or not found:
            wanted = [tuple(tensor.shape) for tensor in found]
            got = [tuple(part.shape) if torch.is_tensor(part) else class_of(part).__name__ for part in given]
            raise TraceError(
                f"the vjp rule of {self.label!r} returned {got!r} for its input {name!r}; return tensors of shapes "
                f"{wanted!r}, or None"
            )
        yield from given


class _Ruled(torch.autograd.Function):
    """torch's record of one call: forward is the body, backward asks the rule."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the body; torch has switched autograd off."""
        outputs = call.run(tensors)
        ctx.call, ctx.count = call, len(tensors)
        ctx.save_for_backward(*tensors, *outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Ask the rule; torch differentiates through it where `create_graph` asks for that."""
        saved = ctx.saved_tensors
        return (None, *ctx.call.gradients(grads, saved[ctx.count :], saved[: ctx.count]))


def _watched(body: Callable[[], Any], state: RolloutState | None, label: str) -> Any:
    """Run a body and refuse what it read that the rule cannot know of."""
    frame = here()
    if frame is None and state is not None and state.training:
        # unrecorded, as in a guide: a recording of no one else's notes the reads
        frame = Frame(Graph(state))
        token = FRAME.set(frame)
        try:
            return _checked(body, frame, label)
        finally:
            FRAME.reset(token)
    return body() if frame is None else _checked(body, frame, label)


def _checked(body: Callable[[], Any], frame: Frame, label: str) -> Any:
    start = len(frame.log)
    returned = body()
    for node in cast("list[Any]", frame.log[start:]):
        if _trains(node):
            raise TraceError(
                f"{label!r} has a vjp rule and read the tensor parameter {node.name!r} in its body, where it would be a "
                "constant; pass it as an argument, so that the rule can give its gradient"
            )
    return returned


def _trains(node: Any) -> bool:
    """Whether a node read in a body is a tensor that an optimizer may move."""
    if not is_a(node, ParameterNode) or not torch.is_tensor(node.value) or not node.value.requires_grad:
        return False
    return node.parameter is None or not node.parameter.frozen  # by hand frozen ones require grad as well


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # counts changes in place


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a value, in order; tuples, lists and dicts are looked into."""
    return (leaf for leaf in _leaves(value) if torch.is_tensor(leaf))


def _leaves(value: Any) -> Iterator[Any]:
    kind = class_of(value)
    if kind is dict:
        for item in value.values():
            yield from _leaves(item)
    elif kind is list or kind is tuple:
        for item in value:
            yield from _leaves(item)
    else:
        yield value


class _Gap:
    """Stands where a tensor was."""


_GAP = _Gap()


def _emptied(value: Any) -> Any:
    """The form of a value: `_GAP` in place of each tensor."""
    return _mapped(value, lambda leaf: _GAP if torch.is_tensor(leaf) else leaf)


def _filled(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """A form with tensors in its gaps."""
    return _mapped(value, lambda leaf: next(tensors) if leaf is _GAP else leaf)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    kind: Any = class_of(value)
    if kind is dict:
        return {key: _mapped(item, change) for key, item in value.items()}
    if kind is list:
        return [_mapped(item, change) for item in value]
    return tuple(_mapped(item, change) for item in value) if kind is tuple else change(value)
