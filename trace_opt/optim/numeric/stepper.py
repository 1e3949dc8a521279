"""One optimizer over leaf tensors, with what `Gradient` needs of any of them.

torch's own `load_state_dict` casts states to the parameter's dtype and replaces learning rates; here every state comes
back as it was, to the bit, and learning rates stay those that the optimizer was made with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    import torch

Curvature = Literal["none", "hessian", "gauss-newton"]
_ON_CPU = ("step", "mu_product")  # counters that torch keeps on the CPU unless a kernel on the device reads them


class Stepper:
    """An optimizer made by the registry.

    Args:
        name: The registry's name of it.
        optimizer: Its leaves are those that move.
        curvature: The estimate of the Hessian's diagonal that it works with.
        every: Steps from one estimate to the next.
        growing: Whether the learning rate of step t is multiplied by ln(sqrt(2) * sqrt(t + 1)).
        copies: Whether it writes into gradients, so that it has to be given copies.

    Attributes:
        leaves: In the order of the groups; estimates of the curvature come in this order.
    """

    def __init__(
        self, name: str, optimizer: torch.optim.Optimizer, *, curvature: Curvature = "none", every: int = 0,
        growing: bool = False, copies: bool = False,
    ) -> None:  # fmt: skip
        self.name = name
        self.optimizer = optimizer
        self.curvature: Curvature = curvature
        self.every = every
        self.leaves: list[torch.Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self._growing = growing
        self._copies = copies
        self._steps = 0
        self._multiplier = 1.0
        self._plain_step = _unprofiled(optimizer)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]

    def step(self, curvature: Sequence[torch.Tensor] | None = None) -> None:
        """One step on the gradients that the leaves hold; a leaf without one stays where it is.

        Args:
            curvature: An estimate for each of `leaves`, on steps that renew it.

        Raises:
            ValueError: the optimizer works without curvature, or the number of estimates is wrong.
        """
        self._steps += 1
        if self._growing:
            self._apply_lr()
        if self._copies:
            for leaf in self.leaves:
                leaf.grad = None if leaf.grad is None else leaf.grad.clone()
        if self.curvature == "none" and curvature is None:
            self._plain_step()
        else:
            self._curved(curvature)

    def compile(self) -> None:
        """Compile the step by `torch.compile`; the first steps take the time that compiling takes."""
        import torch

        self._plain_step = cast("Any", torch).compile(self._plain_step)

    def _curved(self, curvature: Sequence[torch.Tensor] | None) -> None:
        if self.curvature == "none":
            raise ValueError(f"{self.name} works without curvature; call step() without it")
        if curvature is not None and len(curvature) != len(self.leaves):
            raise ValueError(
                f"{self.name} has {len(self.leaves)} leaves but got {len(curvature)} estimates; give one for each leaf"
            )
        step: Any = self.optimizer.step
        if curvature is None and self._steps == 1 and self.curvature == "hessian":
            # without any, the library would take a second backward of its own on its first step
            curvature = [leaf.new_zeros(leaf.shape) for leaf in self.leaves]
        step(hessian=None if curvature is None else list(curvature))
        for leaf in self.leaves if self.curvature == "hessian" else ():
            self.optimizer.state[leaf].pop("hessian", None)  # it has gone into the average

    def wants_curvature(self, step: int) -> bool:
        """Whether an estimate is due at a step, counted from 0."""
        return self.every > 0 and step % self.every == 0

    def set_lr(self, multiplier: float) -> None:
        """Make the learning rate of every group its initial one times this."""
        if multiplier != self._multiplier:
            self._multiplier = multiplier
            self._apply_lr()

    def _apply_lr(self) -> None:
        factor = self._multiplier
        if self._growing:
            factor *= math.log(math.sqrt(2 * (self._steps + 1)))
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next step depends on besides leaves and options: numbers, texts and tensors by name."""
        return {
            "optimizer": self.name,
            "steps": self._steps,
            "multiplier": self._multiplier,
            "leaves": [_copied(self.optimizer.state.get(leaf, {})) for leaf in self.leaves],
            "groups": [self._counters(group) for group in self.optimizer.param_groups],
        }

    def _counters(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """What the optimizer itself has put into a group."""
        given = {"params", "initial_lr", *self.optimizer.defaults}
        return {key: value for key, value in group.items() if key not in given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, bit for bit.

        Raises:
            ValueError: it is the state of another optimizer, or of other leaves.
        """
        if state["optimizer"] != self.name:
            raise ValueError(f"{self.name} got the state of {state['optimizer']!r}; make the optimizer it comes from")
        groups = self.optimizer.param_groups
        if len(state["leaves"]) != len(self.leaves) or len(state["groups"]) != len(groups):
            raise ValueError(
                f"{self.name} with {len(self.leaves)} leaves in {len(groups)} groups got the state of "
                f"{len(state['leaves'])} in {len(state['groups'])}; make it over the same leaves and groups"
            )
        on_device = {id(p) for g in groups if g.get("fused") or g.get("capturable") for p in g["params"]}
        self.optimizer.state.clear()
        for leaf, kept in zip(self.leaves, state["leaves"], strict=True):
            if kept:
                self.optimizer.state[leaf] = {
                    key: _placed(value, "cpu" if key in _ON_CPU and id(leaf) not in on_device else leaf.device)
                    for key, value in kept.items()
                }
        for group, kept in zip(groups, state["groups"], strict=True):
            group.update(kept)
        self._steps = state["steps"]
        self.set_lr(state["multiplier"])

    def state_bytes(self) -> int:
        """Bytes of all tensors in the state, each counted once."""
        found: dict[int, int] = {}
        for kept in self.optimizer.state.values():
            for tensor in _tensors(kept):
                found[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return sum(found.values())


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """What torch's optimizers do with a closure: the loss that it computes again, under grad; None without one."""
    if closure is None:
        return None
    import torch

    with torch.enable_grad():
        return closure()


def _unprofiled(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
    """An optimizer's step without the wrapper by which torch tells its profiler: a tenth of a small training step."""
    step: Any = type(optimizer).step
    inner = getattr(step, "__wrapped__", None)
    if inner is None or not getattr(step, "hooked", False) or "step" in vars(optimizer):
        return optimizer.step
    return partial(inner, optimizer)


def _copied(kept: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.detach().clone() if hasattr(value, "detach") else value for key, value in kept.items()}


def _placed(value: Any, device: Any) -> Any:
    return value.detach().to(device, copy=True) if hasattr(value, "detach") else value


def _tensors(kept: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    return (value for value in kept.values() if hasattr(value, "detach"))
