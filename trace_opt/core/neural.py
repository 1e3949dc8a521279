"""A `torch.nn.Module` as part of a workflow: its tensors are Parameters, a call of it is one op call.

`torch.func.functional_call` puts the values in force into a module for the length of a call, so two threads must not share
that module. Calls therefore run on skeletons: copies that have the structure but no tensors (they are on torch's meta
device, so that a tensor which was forgotten fails loudly). A skeleton is taken from a pool for each call.
"""

from __future__ import annotations

import copy
import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING, Any

from trace_opt.core.context import STATE, RolloutState
from trace_opt.core.module import Module
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import trace_function
from trace_opt.errors import TraceError

if TYPE_CHECKING:
    import torch

_OWN = "_trace_opt_own"  # marks a copy of a buffer that belongs to a phase

CHANCE = RLock()
"""Torch's global generator is one for the process: whoever seeds it, or draws from it under a seed, must be alone with it."""


class TorchModule(Module):
    """A `torch.nn.Module` whose parameters and buffers are Parameters of the workflow.

    Call it as the module itself, in the workflow or in an op's body: it is one op call, named by the module's class,
    that reads all of its tensors with the values in force. A Parameter is named by its path in the module, below the
    name of this Module: `net.layers.0.weight`. A tensor that stands in two places (tied weights) is one Parameter.

    Buffers, and parameters that did not require grad, are frozen. What a call writes into a buffer (the running
    statistics of a batch norm) is dropped, except in training rollouts that were given copies of a phase's own
    (`phase_copies`).

    By hand each part of the module is in the mode, training or evaluation, that `module` is in. In a search, training
    rollouts run in training mode with chance (dropout) that the rollout's seed and repeat decide, all others in evaluation mode.

    Args:
        module: What to call. It is never written to; copies of its tensors are the start values.
        name: Leads the names of all its parameters; by default the path to this Module (see `Module`).

    Attributes:
        module: The module as it was given; `to_torch` gives one with the values in force.

    Raises:
        TraceError: the module has parameters without a shape (a lazy module that never ran).

    What recomputes parts of a call in the backward pass (activation checkpointing) does not work in it.
    """

    def __init__(self, module: torch.nn.Module, name: str | None = None) -> None:
        super().__init__(name)
        from torch.nn.parameter import is_lazy

        lazy = [path for path, tensor in module.named_parameters() if is_lazy(tensor)]
        if lazy:
            raise TraceError(
                f"parameter {lazy[0]!r} of {type(module).__name__!r} has no shape yet; call the module once"
            )
        self.module = module
        self.weights = {
            path: Parameter(tensor.detach().clone(), name=path, frozen=not tensor.requires_grad)
            for path, tensor in module.named_parameters()
        }
        self.buffers = {
            path: Parameter(tensor.detach().clone(), name=path, frozen=True) for path, tensor in module.named_buffers()
        }
        self._prepare()

    def _prepare(self) -> None:
        """Make what is no state: the pool, and the op."""
        # with the `training` of the call before; a deque's pop and append are atomic
        self._pool: deque[tuple[torch.nn.Module, bool | None]] = deque([(_skeleton(self.module), None)])
        self._op = trace_function(self._run, name=type(self.module).__name__, inline=False, max_items=1)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives for these arguments."""
        return self._op(*args, **kwargs)

    def to_torch(self) -> torch.nn.Module:
        """A copy of the module that holds the values in force, for use without trace_opt."""
        import torch

        made = copy.deepcopy(self.module)
        tensors = dict(made.named_parameters()) | dict(made.named_buffers())
        with torch.no_grad():
            for path, parameter in (self.weights | self.buffers).items():
                tensors[path].data = parameter.value.detach().clone()
        return made

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        from torch.func import functional_call

        state = STATE.get()
        training = None if state is None else state.training
        owned = {
            path: own for path, parameter in self.buffers.items() if (own := _of_phase(parameter, state)) is not None
        }
        given: dict[str, Any] = {path: parameter.value for path, parameter in self.weights.items()}
        for path, parameter in self.buffers.items():
            value = parameter.value  # read in any case, so that the recording knows
            given[path] = owned[path] if path in owned else value.detach().clone()
        try:
            skeleton, mode = self._pool.pop()
        except IndexError:
            skeleton, mode = _skeleton(self.module), None
        try:
            if training is None:
                for mine, theirs in zip(skeleton.modules(), self.module.modules(), strict=True):
                    mine.training = theirs.training
            elif mode is not training:
                skeleton.train(training)
            with _chance_of(state if training else None, self._key(), given.values()):
                returned = functional_call(skeleton, given, args, kwargs)
        finally:
            self._pool.append((skeleton, training))
        for path, own in owned.items():
            # functional_call puts what stands there in `given`: another tensor where it was replaced, not written into
            if given[path] is not own:
                own.copy_(given[path].detach())
        return returned

    def _key(self) -> str:
        return ".".join([*self._prefix(), type(self.module).__name__])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_pool", "_op")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def __repr__(self) -> str:
        return f"TorchModule({type(self.module).__name__}, {len(self.weights)} weights, {len(self.buffers)} buffers)"


def phase_copies(
    parameters: Iterable[Parameter[Any]], device: torch.device | None = None,
    saved: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Copies of the buffers that training the parameters writes, for a phase to own.

    Given among the values of its training rollouts they are written in place; where the phase ends, they are the
    buffers that go with the trained weights.

    Args:
        parameters: What is trained; those that belong to no `TorchModule` have no buffers.
        device: Where the copies are made; None follows each buffer.
        saved: What was kept of an earlier session's copies, to go on from.

    Returns:
        One copy of each buffer's saved value, else of that in force, by full parameter name.
    """
    known: Mapping[str, Any] = saved or {}
    return {
        buffer.name: _marked(known.get(buffer.name, buffer.value).detach().to(device, copy=True))
        for buffer in buffers_of(parameters)
    }


def buffers_of(parameters: Iterable[Parameter[Any]]) -> list[Parameter[Any]]:
    """The buffers of the modules that parameters belong to."""
    owners = {id(owner): owner for parameter in parameters if isinstance(owner := parameter.owner, TorchModule)}
    return [buffer for owner in owners.values() for buffer in owner.buffers.values()]


def trained_with(parameter: Parameter[Any]) -> list[Parameter[Any]]:
    """The weights whose training also writes a buffer; none for any other parameter."""
    owner = parameter.owner
    if not isinstance(owner, TorchModule) or all(buffer is not parameter for buffer in owner.buffers.values()):
        return []
    return list(owner.weights.values())


def _marked(tensor: torch.Tensor) -> torch.Tensor:
    setattr(tensor, _OWN, True)
    return tensor


def _of_phase(buffer: Parameter[Any], state: RolloutState | None) -> torch.Tensor | None:
    """The copy of a buffer that the running training rollout may write, or None."""
    if state is None or not state.training:
        return None
    value = state.values.get(buffer.name)
    return value if getattr(value, _OWN, False) else None


def _skeleton(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of a module whose parameters and buffers have no memory."""
    import torch

    bare: dict[int, Any] = {}
    for tensor in module.parameters():
        bare[id(tensor)] = torch.nn.Parameter(tensor.detach().to("meta"), requires_grad=tensor.requires_grad)
    for buffer in module.buffers():
        bare[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(module, bare)


@contextmanager
def _chance_of(state: RolloutState | None, key: str, tensors: Iterable[torch.Tensor]) -> Generator[None]:
    """Seed torch's global generators for one call from a rollout's seed, and put them back; None leaves them alone."""
    if state is None or state.seed is None:
        yield
        return
    import torch

    number = state.calls[key] = state.calls.get(key, 0) + 1
    digest = hashlib.sha256(f"{state.seed} {state.repeat} {key} {number}".encode()).digest()
    seed = int.from_bytes(digest[:8], "big") >> 1
    devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    generators: list[Any] = [torch.default_generator]
    generators += [torch.cuda.default_generators[device.index or 0] for device in devices]
    with CHANCE:
        before = [generator.get_state() for generator in generators]
        for generator in generators:
            generator.manual_seed(seed)
        try:
            yield
        finally:
            for generator, state_before in zip(generators, before, strict=True):
                generator.set_state(state_before)
