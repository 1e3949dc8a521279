"""A reward model: a head on the policy's own backbone that tells from a prompt and a reflection what it will be worth.

An attempt costs calls and is noisy, a forward pass costs none; so what is known of reflections that were tried can stand in
for trying others. What it says is a guess that a policy trained on it learns to exploit: keep the guards and the test on
held-out tasks.

Source: Retroformer, arXiv 2308.02151, the second stage: a sequence classifier on (prompt, reflection) trained on its rating,
the change of return. Its repository means to label ratings above 0.25 and never does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from trace_opt.core.adapter import Adapter
from trace_opt.refine.local import Completions, check_prompts
from trace_opt.refine.supervised import Pair, Supervised, pairs_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trace_opt.refine.buffer import Experience
    from trace_opt.refine.local import Prompt

_KIND = "trace_opt reward model"
_OWN = ("weight", "bias", "mean", "spread")
_ADAPTER = "adapter."
_ROWS = 8  # read at once; always the same, since sums in another order would give other bits
_SMALL = 1e-6  # a feature that hardly differs says nothing


class Backbone(Protocol):
    """What a reward model asks of the policy that it stands on; `TrainablePolicy` is one."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Its weights; those that require grad are trained, where that is asked for."""
        ...

    def written(self, pairs: Sequence[tuple[Prompt, str]]) -> Completions:
        """Texts from elsewhere as completions of their prompts."""
        ...

    def features(self, completions: Completions, *, base: bool = True) -> Tensor:
        """What is known where a completion ends.

        Args:
            completions: What to read.
            base: Whether the frozen base reads it, without gradient; else the base with its adapter.

        Returns:
            The final hidden state at each completion's last token, shape `[n, width]`.
        """
        ...

    def load(self, adapter: Adapter) -> None:
        """Take an adapter's weights."""
        ...

    def dump(self) -> Adapter:
        """The weights as they stand."""
        ...


class RewardModel:
    """Rates completions: how likely one is to be worth more than a threshold, or what it is worth.

    Args:
        backbone: A policy, whose frozen base reads prompts and completions; training it afterwards changes nothing here.
        threshold: A gain above it is a good one, and scores are probabilities of that. None learns the gains themselves,
            and scores are in their unit.
        tune: Whether the backbone's adapter is trained with the head. Give a policy of its own then: one that is also
            rated by it would move what it is rated by.
    """

    def __init__(self, backbone: Backbone, *, threshold: float | None = 0.0, tune: bool = False) -> None:
        self.backbone = backbone
        self.threshold = threshold
        self.tune = tune
        self._head: dict[str, Tensor] = {}

    def fit(
        self, pairs: Sequence[Pair | Experience], *, epochs: int = 20, batch: int = 16, lr: float = 1e-2,
        clip: float | None = 1.0, seed: int = 0, checkpoint: str | Path | None = None, every: int = 50,
    ) -> list[float]:  # fmt: skip
        """Train it from nothing on pairs, bad ones too.

        Args:
            pairs: Completions with what they gained; reflections that a run's store holds (`refine.buffer.replay`) will do.
            epochs: How often each is taken.
            batch: Pairs of a step.
            lr: Learning rate of head and adapter; with `tune` give one for adapters, such as 2e-4.
            clip: The longest a gradient may be; None leaves them as they are.
            seed: Of the orders.
            checkpoint: A file from which it goes on where it is there, written every few steps; None keeps nothing.
            every: How many steps.

        Returns:
            The loss before each step: cross-entropy in nats, or the squared error.

        Raises:
            ValueError: there are no pairs, or all are good, or none is; something is no pair, or `every` is no number of
                steps.
        """
        training = RewardTraining(
            self, pairs_of(RewardTraining.name, pairs), epochs=epochs, batch=batch, lr=lr, clip=clip, seed=seed
        )
        return training.run(checkpoint, every)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Rate completions, several at once.

        Args:
            prompts: What was asked, one for each completion.
            completions: What was answered.

        Returns:
            Probabilities of a gain above the threshold, or gains.

        Raises:
            ValueError: it was not trained yet, the numbers of prompts and completions differ, or one of them is a text and
                no list.
        """
        check_prompts("RewardModel.score", prompts)
        if isinstance(completions, str):
            raise ValueError(  # noqa: TRY004 # a value refused, like any other
                f"RewardModel.score got the single completion {completions!r:.80}; give a list: [completion]"
            )
        if len(prompts) != len(completions):
            raise ValueError(
                f"there are {len(prompts)} prompts and {len(completions)} completions; give a prompt for each completion"
            )
        return self(self.backbone.written(list(zip(prompts, completions, strict=True)))) if prompts else []

    def __call__(self, completions: Completions) -> list[float]:
        """`score` of what a policy said."""
        import torch

        if not self._head:
            raise ValueError("the reward model was not trained yet; call fit(pairs), or load one that was")
        found: list[float] = []
        with torch.no_grad():
            for rows in _chunks(completions):
                said = self.logits(self.backbone.features(rows, base=not self.tune))
                found += cast("Any", said if self.threshold is None else said.sigmoid()).tolist()
        return found

    def logits(self, features: Tensor) -> Tensor:
        """What the head makes of features of shape `[n, width]`: log odds of a good one, or gains; shape `[n]`."""
        head = self._head
        return ((features.to(head["weight"]) - head["mean"]) / head["spread"]) @ head["weight"] + head["bias"]

    def begin(self, features: Tensor) -> list[torch.nn.Parameter]:
        """Start the head anew, for features like these.

        Args:
            features: Of all pairs, shape `[n, width]`; the head sees how far one is from their mean, in spreads.

        Returns:
            What is to be trained.
        """
        import torch

        mean = features.mean(0)
        spread = (features - mean).square().mean(0).sqrt()
        weight = torch.nn.Parameter(torch.zeros_like(mean))
        bias = torch.nn.Parameter(mean.new_zeros(()))
        self._head = {"weight": weight, "bias": bias, "mean": mean, "spread": spread.clamp(min=_SMALL)}
        own = [weight for weight in self.backbone.parameters() if weight.requires_grad] if self.tune else []
        return [weight, bias, *own]

    def dump(self) -> Adapter:
        """All that it learned: the head, and the backbone's adapter where that was trained."""
        own = self.backbone.dump() if self.tune else Adapter()
        learned = {f"{_ADAPTER}{name}": value for name, value in own.tensors().items()}
        return Adapter.of({**self._head, **learned}, own.settings)

    def take(self, learned: Adapter) -> None:
        """What `dump` gave, into a head of the same width."""
        import torch

        tensors = learned.tensors()
        with torch.no_grad():
            for name in _OWN:
                if name in self._head:
                    self._head[name].copy_(tensors[name])  # in place: it may be in training
                else:
                    self._head[name] = tensors[name]
        if self.tune:
            own = {name.removeprefix(_ADAPTER): t for name, t in tensors.items() if name.startswith(_ADAPTER)}
            self.backbone.load(Adapter.of(own, learned.settings))

    def save(self, path: str | Path) -> None:
        """Write it as a safetensors file.

        Raises:
            ValueError: it was not trained yet.
        """
        from safetensors import torch as safetensors

        write: Any = cast("Any", safetensors).save_file
        if not self._head:
            raise ValueError("the reward model was not trained yet; call fit(pairs) before save")
        learned = self.dump()
        settings = json.dumps({"threshold": self.threshold, "tune": self.tune, "adapter": learned.settings})
        file = Path(path)
        part = file.with_name(f"{file.name}.part")
        write(learned.tensors(), part, metadata={"kind": _KIND, "settings": settings})
        part.replace(file)

    @classmethod
    def load(cls, path: str | Path, backbone: Backbone) -> Self:
        """The reward model that `save` wrote.

        Args:
            path: The file.
            backbone: A policy with the base model that it was trained on.

        Raises:
            ValueError: the file holds no reward model, or one of another base model.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with cast("Any", safe_open)(str(path), framework="pt") as file:
                said: Mapping[str, str] = file.metadata() or {}
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{str(path)!r} is no safetensors file ({error}); give what save wrote") from None
        if said.get("kind") != _KIND:
            raise ValueError(f"{str(path)!r} holds no reward model; give what save wrote")
        settings = json.loads(said["settings"])
        made = cls(backbone, threshold=settings["threshold"], tune=settings["tune"])
        width = backbone.features(backbone.written([("a", "a")])).shape[1]
        if len(tensors["weight"]) != width:
            raise ValueError(
                f"{str(path)!r} reads features of width {len(tensors['weight'])}, and the backbone's have {width}; give the "
                "base model that it was trained on"
            )
        made.take(Adapter.of(tensors, settings.get("adapter")))
        return made


class RewardTraining(Supervised):
    """The training of a reward model, a batch a step (see `RewardModel.fit`)."""

    name = "reward model"

    def __init__(
        self, model: RewardModel, pairs: Sequence[Pair], *, epochs: int = 20, batch: int = 16, lr: float = 1e-2,
        clip: float | None = 1.0, optimizer: str = "adamw", seed: int = 0,
    ) -> None:  # fmt: skip
        import torch

        self.model = model
        targets = [pair.gain for pair in pairs]
        if model.threshold is not None:
            good = [gain > model.threshold for gain in targets]
            if pairs and (all(good) or not any(good)):
                which = "all" if all(good) else "none"
                raise ValueError(
                    f"{which} of the {len(pairs)} pairs gained more than {model.threshold!r}, so there is nothing to tell "
                    "apart; give pairs of both kinds, or another threshold"
                )
            targets = [float(one) for one in good]
        self._features = self._read(pairs) if pairs else torch.zeros(0, 1)
        self._targets = torch.tensor(targets, dtype=self._features.dtype, device=self._features.device)
        super().__init__(
            model.begin(self._features), pairs, epochs=epochs, batch=batch, lr=lr, clip=clip, optimizer=optimizer,
            seed=seed, about=f"threshold {model.threshold!r}, tune {model.tune!r}",
        )  # fmt: skip

    def loss(self, chosen: Sequence[int]) -> Tensor:
        """Cross-entropy of good and bad in nats, or the squared error, over these pairs."""
        import torch

        index = torch.tensor(list(chosen), device=self._features.device)
        features = self._features[index]
        if self.model.tune:
            features = self.model.backbone.features(self._completions([self.pairs[i] for i in chosen]), base=False)
        said, targets = self.model.logits(features), self._targets[index]
        if self.model.threshold is None:
            return (said - targets).square().mean()
        return torch.nn.functional.binary_cross_entropy_with_logits(said, targets)

    def dump(self) -> Adapter:
        """The head, and the adapter where it is trained."""
        return self.model.dump()

    def load(self, learned: Adapter) -> None:
        """Take back what `dump` gave."""
        self.model.take(learned)

    def _read(self, pairs: Sequence[Pair]) -> Tensor:
        """The features of all pairs, of the base or with the adapter as it stands."""
        import torch

        with torch.no_grad():
            rows = _chunks(self._completions(pairs))
            return torch.cat([self.model.backbone.features(r, base=not self.model.tune).float() for r in rows])

    def _completions(self, pairs: Sequence[Pair]) -> Completions:
        return self.model.backbone.written([(pair.prompt, pair.completion) for pair in pairs])


def auc(scores: Sequence[float], good: Sequence[bool]) -> float:
    """How often a good one scores above a bad one, ties counting half: the area under the ROC curve.

    Args:
        scores: What the model said.
        good: Which ones are good.

    Raises:
        ValueError: there is no good one, or no bad one.
    """
    high = [score for score, is_good in zip(scores, good, strict=True) if is_good]
    low = [score for score, is_good in zip(scores, good, strict=True) if not is_good]
    if not high or not low:
        raise ValueError("an area under the curve takes good and bad ones; give at least one of each")
    above: Callable[[float, float], float] = lambda a, b: 1.0 if a > b else 0.5 if a == b else 0.0  # noqa: E731
    return sum(above(a, b) for a in high for b in low) / (len(high) * len(low))


def _chunks(completions: Completions) -> Iterator[Completions]:
    for start in range(0, len(completions), _ROWS):
        yield completions.rows(range(start, min(start + _ROWS, len(completions))))
