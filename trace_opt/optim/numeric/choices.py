"""Choices as probabilities: logits that torch moves, and the draws that a training rollout is made of."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import is_tensor, same
from trace_opt.core.propagate import propagate
from trace_opt.optim.numeric import score

if TYPE_CHECKING:
    import torch

    from trace_opt.core.parameter import Parameter
    from trace_opt.core.rollout import Rollout
    from trace_opt.optim.numeric.training import Estimator

_MOST_LISTED = 1000


@dataclass(frozen=True, slots=True)
class Point:
    """One draw of all choices.

    Attributes:
        values: The chosen values by full parameter name.
        places: Their places among the choices.
    """

    values: Mapping[str, Any]
    places: Mapping[str, int]


class Choices:
    """The choices that a phase moves, as logits.

    Args:
        parameters: Those with choices.
        estimator: How their gradient is estimated.
        samples: Draws for each example.
    """

    def __init__(self, parameters: Sequence[Parameter[Any]], estimator: Estimator, samples: int) -> None:
        import torch

        self.estimator: Estimator = estimator
        self.listed: dict[str, tuple[Any, ...]] = {p.name: p.choices or () for p in parameters}
        self.logits: dict[str, torch.Tensor] = {
            name: torch.zeros(len(listed), dtype=torch.float64, requires_grad=True)
            for name, listed in self.listed.items()
        }
        self._samples = samples
        for name, listed in self.listed.items() if estimator == "reparam" else ():
            if not all(is_tensor(c) or (isinstance(c, (int, float)) and not isinstance(c, bool)) for c in listed):
                raise ValueError(
                    f"estimator='reparam' mixes the choices of {name!r}, which are no numbers or tensors; use 'loo'"
                )

    def points(self, generator: torch.Generator) -> list[Point]:
        """The draws for one example; all combinations for "enumerate".

        Raises:
            ValueError: there are too many combinations.
        """
        if self.estimator == "enumerate":
            return self._all()
        if self.estimator == "reparam":
            return [self._mixed(generator) for _ in range(self._samples)]
        return [self._drawn(generator) for _ in range(self._samples)]

    def _all(self) -> list[Point]:
        sizes = [range(len(listed)) for listed in self.listed.values()]
        count = 1
        for size in sizes:
            count *= len(size)
        if count > _MOST_LISTED:
            raise ValueError(f"estimator='enumerate' would run {count} combinations of choices; use 'loo'")
        return [self._point(places) for places in itertools.product(*sizes)]

    def _drawn(self, generator: torch.Generator) -> Point:
        return self._point([int(score.sample(logits, 1, generator)) for logits in self.logits.values()])

    def _point(self, places: Sequence[int]) -> Point:
        named = dict(zip(self.listed, places, strict=True))
        return Point({name: self.listed[name][place] for name, place in named.items()}, named)

    def _mixed(self, generator: torch.Generator) -> Point:
        mixed = {
            name: score.relax(self.logits[name], listed, generator=generator) for name, listed in self.listed.items()
        }
        return Point(mixed, {})

    def surrogate(self, points: Sequence[Point], rollouts: Sequence[Rollout]) -> torch.Tensor | None:
        """A number whose gradient is that of one example's expected loss; None where too few rollouts came through."""
        import torch

        pairs = [(p, r, cost) for p, r in zip(points, rollouts, strict=True) if (cost := _cost(r)) is not None]
        if not pairs or (self.estimator == "loo" and len(pairs) < 2):
            return None
        costs = torch.stack([cost.double() for _, _, cost in pairs])
        if self.estimator == "reparam":
            return costs.mean()
        return score.surrogate(costs, torch.stack([self._log_prob(p, r) for p, r, _ in pairs]), self.estimator)

    def _log_prob(self, point: Point, rollout: Rollout) -> torch.Tensor:
        """Of the choices that reached this rollout's output; the others have nothing to answer for."""
        reached = self.logits if self.estimator == "enumerate" else _reached(rollout)
        total = next(iter(self.logits.values())).new_zeros(())
        for name, place in point.places.items():
            if name in reached:
                total = total + score.log_prob(self.logits[name], place)
        return total

    def best(self) -> dict[str, Any]:
        """The likeliest choice of each."""
        return {name: self.listed[name][int(logits.argmax())] for name, logits in self.logits.items()}

    def lean(self, values: Mapping[str, Any], by: float) -> None:
        """Make values likelier at the start.

        Args:
            values: By full parameter name.
            by: How much their logits are raised.
        """
        for name, logits in self.logits.items():
            place = next(i for i, choice in enumerate(self.listed[name]) if same(choice, values[name]))
            logits.data[place] += by


def _reached(rollout: Rollout) -> Collection[str]:
    if rollout.graph is None or rollout.node is None:
        return ()
    return propagate(rollout.graph, rollout.node, Feedback())


def _cost(rollout: Rollout) -> torch.Tensor | None:
    """What a rollout costs: its loss, or where there is none the negative of its score; None where it failed."""
    import torch

    loss = rollout.feedback.loss
    if rollout.error is not None:
        return None
    if isinstance(loss, dict):
        return torch.stack(list(loss.values())).mean()
    if loss is not None:
        return loss
    value = rollout.feedback.value
    return None if value is None else torch.tensor(-value, dtype=torch.float64)
