"""What a learning rate's schedule is worth on a noisy logistic regression: the excess loss of the last iterate.

python benchmarks/schedules.py            5 seeds
python benchmarks/schedules.py --quick    2 seeds, shorter runs

2,000 examples of 20 features on scales from 1 to 0.1, 15 % of the labels flipped, batches of 4, 2,000 steps. Every
schedule gets its best learning rate of those listed, by the mean over seeds. "refined" is refined from the gradient norms
of the linear run at the same learning rate and seed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import save
from torch.nn.functional import softplus

from trace_opt.optim.numeric.schedules import Kind, Schedule, gradient_norm, multiplier, refined

QUICK = "--quick" in sys.argv
SEEDS = [0, 1] if QUICK else [0, 1, 2, 3, 4]
STEPS = 500 if QUICK else 2000
BATCH = 4
RATES: dict[Kind, list[float]] = {"sgd": [0.03, 0.1, 0.3, 1.0, 3.0], "adam": [0.003, 0.01, 0.03, 0.1]}
MAKE: dict[Kind, Callable[[torch.Tensor, float], torch.optim.Optimizer]] = {
    "sgd": lambda w, lr: torch.optim.SGD([w], lr=lr),
    "adam": lambda w, lr: torch.optim.Adam([w], lr=lr),
}
SCHEDULES = ("constant", "linear", "cosine", "refined")


class Regression:
    """The examples of one seed, their best loss, and the order they are drawn in."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        scales = torch.linspace(1.0, 0.1, 20, dtype=torch.float64)
        self.x = torch.randn(2000, 20, dtype=torch.float64, generator=generator) * scales
        truth = torch.randn(20, dtype=torch.float64, generator=generator) / scales
        y = torch.where(self.x @ truth > 0, 1.0, -1.0).double()
        self.y = torch.where(torch.rand(2000, generator=generator) < 0.15, -y, y)
        self.batches = torch.randint(2000, (STEPS, BATCH), generator=generator)
        self.least = self._least()

    def loss(self, w: torch.Tensor) -> float:
        return float(softplus(-self.y * (self.x @ w)).mean())

    def _least(self) -> float:
        w = torch.zeros(20, dtype=torch.float64)
        for _ in range(30):  # Newton's method, to rounding
            p = torch.sigmoid(-self.y * (self.x @ w))
            w += torch.linalg.solve((self.x.T * (p * (1 - p))) @ self.x, self.x.T @ (self.y * p))
        return self.loss(w)

    def run(self, kind: Kind, lr: float, schedule: Schedule) -> tuple[float, list[float]]:
        """The excess loss of the last iterate, and the norm of every step's gradient."""
        w = torch.zeros(20, dtype=torch.float64)
        optimizer = MAKE[kind](w, lr)
        norms: list[float] = []
        for t in range(STEPS):
            x, y = self.x[self.batches[t]], self.y[self.batches[t]]
            w.grad = x.T @ (-y * torch.sigmoid(-y * (x @ w))) / BATCH
            norms.append(float(gradient_norm([w.grad], kind)))
            optimizer.param_groups[0]["lr"] = lr * multiplier(schedule, t / STEPS)
            optimizer.step()
        return self.loss(w) - self.least, norms


def excess(kind: Kind, lr: float, problems: list[Regression]) -> dict[str, float]:
    """The mean excess loss of each schedule."""
    found = dict.fromkeys(SCHEDULES, 0.0)
    for problem in problems:
        linear, norms = problem.run(kind, lr, "linear")
        runs = {
            "constant": problem.run(kind, lr, "constant")[0],
            "linear": linear,
            "cosine": problem.run(kind, lr, "cosine")[0],
            "refined": problem.run(kind, lr, refined(norms, kind))[0],
        }
        for name, value in runs.items():
            found[name] += value / len(problems)
    return found


def nanoseconds(schedule: Schedule) -> float:
    """The least time of one call of `multiplier`, the loop around it included."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter_ns()
        for t in range(20_000):
            multiplier(schedule, t / 20_000)
        best = min(best, (time.perf_counter_ns() - start) / 20_000)
    return round(best)


def main() -> None:
    torch.set_num_threads(1)
    problems = [Regression(seed) for seed in SEEDS]
    figures: dict[str, Any] = {"steps": STEPS, "batch": BATCH}
    for kind, rates in RATES.items():
        by_rate = {lr: excess(kind, lr, problems) for lr in rates}
        best = {name: min(rates, key=lambda lr, name=name: by_rate[lr][name]) for name in SCHEDULES}
        least = {name: by_rate[best[name]][name] for name in SCHEDULES}
        figures[kind] = {
            "excess_loss": {name: round(value, 6) for name, value in least.items()},
            "of_constant": {name: round(value / least["constant"], 3) for name, value in least.items()},
            "learning_rate": best,
            "by_learning_rate": {str(lr): {k: round(v, 6) for k, v in found.items()} for lr, found in by_rate.items()},
        }
    named: dict[str, Schedule] = {"linear": "linear", "cosine": "cosine", "refined": refined([1.0] * STEPS)}
    figures["nanoseconds_a_multiplier"] = {name: nanoseconds(schedule) for name, schedule in named.items()}
    save("schedules", figures, seeds=SEEDS)


if __name__ == "__main__":
    main()
