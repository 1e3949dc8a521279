"""Policies so small that every trajectory can be listed: whatever an estimator expects can be summed exactly."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from trace_opt.refine.batch import Batch

START = (0.3, -0.2, 0.5)
VECTOR = (1.0, -2.0, 0.5)
GAMMA = 0.9
VALUE = 0.8154222240443
GRADIENT = (0.1745946694, 0.0947992768, -0.3644895345)
HESSIAN_VECTOR = (0.0053633126, -0.0733536426, -0.1104761043)
SECOND = ((0.0, 1.0), (2.0, -1.0))


class Tree(nn.Module):
    """Two choices of two, the second with a logit for each outcome of the first; the first earns 1, the second by a table."""

    def __init__(self, logits: Sequence[float] = START) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def log_prob(self, batch: Batch) -> Tensor:
        choices = batch.actions["choices"]
        first, second = choices[:, 0], choices[:, 1]
        logits = torch.stack([self.logits[0].expand(len(first)), self.logits[1 + first]], 1)
        signs = 2 * torch.stack([first, second], 1) - 1
        return nn.functional.logsigmoid(signs * logits)

    def batch(self, trajectories: Iterable[tuple[int, int]]) -> Batch:
        choices = torch.tensor(list(trajectories))
        second = torch.tensor(SECOND, dtype=torch.float64)[choices[:, 0], choices[:, 1]]
        rewards = torch.stack([choices[:, 0].double(), second], 1)
        return with_log_probs(
            self, Batch(actions={"choices": choices}, rewards=rewards, mask=torch.ones_like(choices, dtype=torch.bool),
                        groups=torch.zeros(len(choices), dtype=torch.long)),
        )  # fmt: skip

    def every(self) -> list[tuple[float, Batch]]:
        """Each trajectory with its probability."""
        found = []
        for pair in itertools.product((0, 1), repeat=2):
            one = self.batch([pair])
            found.append((float(self.log_prob(one).detach().sum().exp()), one))
        return found

    def value(self) -> Tensor:
        """The expected discounted return, differentiable."""
        p = self.logits.sigmoid()
        later = [
            (1 - p[1 + a]) * SECOND[a][0] + p[1 + a] * SECOND[a][1] for a in (0, 1)
        ]  # fmt: skip
        return p[0] + GAMMA * ((1 - p[0]) * later[0] + p[0] * later[1])


class Arms(nn.Module):
    """One choice among k, by softmax."""

    def __init__(self, logits: Sequence[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def log_prob(self, batch: Batch) -> Tensor:
        return self.logits.log_softmax(0)[batch.actions["arm"]]

    def batch(self, arms: Sequence[int], rewards: Sequence[float], groups: Sequence[int] | None = None) -> Batch:
        chosen = torch.tensor(arms)[:, None]
        return with_log_probs(
            self, Batch(actions={"arm": chosen}, rewards=torch.tensor(rewards, dtype=torch.float64)[:, None],
                        mask=torch.ones_like(chosen, dtype=torch.bool),
                        groups=torch.tensor(groups or [0] * len(arms))),
        )  # fmt: skip

    def draws(self, n: int, generator: torch.Generator, worth: Sequence[float]) -> Callable[[], Batch]:
        """What samples n arms at once, worth what the list says."""

        def draw() -> Batch:
            arms = self.logits.detach().softmax(0).multinomial(n, replacement=True, generator=generator).tolist()
            return self.batch(arms, [worth[a] for a in arms])

        return draw

    def every(self, n: int) -> Iterator[tuple[float, tuple[int, ...]]]:
        """All samples of n arms with their probabilities."""
        p = self.logits.detach().softmax(0).tolist()
        for arms in itertools.product(range(len(p)), repeat=n):
            weight = 1.0
            for a in arms:
                weight *= p[a]
            yield weight, arms


def with_log_probs(policy: Tree | Arms, batch: Batch) -> Batch:
    from dataclasses import replace

    with torch.no_grad():
        return replace(batch, log_probs=policy.log_prob(batch))
