"""A low-rank adapter in a frozen model: its weights by name, and the model without it.

Source: Hu et al., arXiv 2106.09685: a layer W becomes W + (alpha / rank) B A with B = 0 at the start.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trace_opt.core.adapter import Adapter
from trace_opt.errors import LLMError
from trace_opt.refine.loading import PROJECTIONS, Base

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Lora:
    """The adapter of one model.

    What was learned at one alpha says something else at another. So an adapter carries its alpha, and one of another alpha
    is refused: scaling B would give the same words but other weights than were asked for, and steps of another length.
    Files that name no alpha are taken at this one.

    Args:
        base: The model, which is changed in place.
        rank: Rank of B A.
        alpha: Scale of B A, times the rank.
        layers: Which blocks get one, counted from 0, or from the end where negative; None is all.
        seed: Of the initial A.

    Attributes:
        model: The model with the adapter in it, called as before.
        weights: A and B of each layer by the names that peft gives them in a file.
    """

    def __init__(self, base: Base, *, rank: int, alpha: float, layers: Sequence[int] | None, seed: int) -> None:
        import peft

        count: int = base.model.config.num_hidden_layers
        config = peft.LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(PROJECTIONS),  # pyright: ignore[reportArgumentType] # a float is as good
            layers_to_transform=None if layers is None else _places(layers, count),
            init_lora_weights=False, task_type="CAUSAL_LM",
        )  # fmt: skip
        with warnings.catch_warnings():  # peft asks transformers by a name that this is about to drop
            warnings.simplefilter("ignore", FutureWarning)
            self._peft: Any = peft.get_peft_model(base.model, config)
        self._peft.eval()
        self.model: Any = base.model
        self.rank = rank
        self.alpha = alpha
        self.weights: dict[str, torch.nn.Parameter] = {
            name.replace(".default.", "."): weight
            for name, weight in self._peft.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }
        self._seed = seed
        self._put(self._initial(), Adapter())

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """A and B of each layer."""
        return iter(self.weights.values())

    def load(self, adapter: Adapter) -> None:
        """Take an adapter's weights, unless they stand there already; those of the empty one are the initial ones.

        Raises:
            ValueError: it was made by a policy of another model, rank, alpha or choice of layers.
        """
        if self.dump() != adapter:
            self._put(self.tensors(adapter), adapter)

    def dump(self) -> Adapter:
        """The weights as they stand; the initial ones are the empty adapter."""
        if not all(_same_bits(weight, self._copy[name]) for name, weight in self.weights.items()):
            initial = self._initial()
            untouched = all(_same_bits(weight.cpu(), initial[name]) for name, weight in self.weights.items())
            self._keep(Adapter() if untouched else Adapter.of(self.weights, {"alpha": float(self.alpha)}))
        return self._standing

    @contextmanager
    def instead(self, adapter: Adapter) -> Generator[None]:
        """Another adapter within the block, and afterwards the very tensors that stood here before.

        Optimizer states and autograd graphs made before do not notice.
        """
        if self.dump() == adapter:
            yield
            return
        tensors = self.tensors(adapter)
        kept = {name: weight.data for name, weight in self.weights.items()}
        try:
            for name, weight in self.weights.items():
                weight.data = tensors[name].to(weight, copy=True)  # where a tensor lies decides its last bits
            yield
        finally:
            for name, weight in self.weights.items():
                weight.data = kept[name]

    @contextmanager
    def off(self) -> Generator[None]:
        """The model without its adapter within the block."""
        with self._peft.disable_adapter():
            yield

    def _initial(self) -> dict[str, Tensor]:
        import torch

        generator = torch.Generator().manual_seed(self._seed)
        found: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            if ".lora_B." in name:
                found[name] = torch.zeros(weight.shape, dtype=weight.dtype)
                continue
            bound = 1 / math.sqrt(weight.shape[1])
            drawn = torch.rand(weight.shape, generator=generator, dtype=torch.float32)
            found[name] = (drawn * 2 - 1).mul_(bound).to(weight.dtype)
        return found

    def tensors(self, adapter: Adapter) -> dict[str, Tensor]:
        """An adapter's tensors by name.

        Raises:
            ValueError: it was made by a policy of another model, rank, alpha or choice of layers.
        """
        if not adapter:
            return self._initial()
        tensors = adapter.tensors()
        fits = tensors.keys() == self.weights.keys()
        odd = next((name for name in tensors if not fits or tensors[name].shape != self.weights[name].shape), "")
        if not fits or odd:
            raise ValueError(
                f"{adapter!r} does not fit this policy, which has rank {self.rank} in {len(self.weights) // 2} layers (see "
                f"its tensor {odd!r}); load it into one of the model, rank and layers that it was trained with"
            )
        trained = adapter.settings.get("alpha", self.alpha)
        if trained != self.alpha:
            raise ValueError(
                f"{adapter!r} was trained at alpha {trained!r}, and this policy has alpha {self.alpha!r}, at which it says "
                f"something else; make the policy with alpha={trained!r}"
            )
        return tensors

    def _put(self, tensors: Mapping[str, Tensor], adapter: Adapter) -> None:
        import torch

        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(tensors[name])
        self._keep(adapter)

    def _keep(self, adapter: Adapter) -> None:
        """Remember what the weights are, so that it shows when they were moved: not all optimizers count it as a write."""
        self._standing = adapter
        self._copy = {name: weight.detach().clone() for name, weight in self.weights.items()}


def _same_bits(left: Tensor, right: Tensor) -> bool:
    import torch

    return torch.equal(left.detach().view(torch.uint8), right.view(torch.uint8))


def _places(layers: Sequence[int], count: int) -> list[int]:
    if not layers or any(not -count <= layer < count for layer in layers):
        raise LLMError(
            f"layers is {list(layers)!r}, but the model has the blocks 0 to {count - 1}; name some of them",
            kind="request",
        )
    return sorted({layer % count for layer in layers})
