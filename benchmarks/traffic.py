"""Gradient-free methods side by side on graphs/traffic.py, at equal calls of the simulator.

    python benchmarks/traffic.py            5 starts, each method at its best of 3 learning rates, about 6 minutes
    python benchmarks/traffic.py --quick    2 starts, one learning rate, about a minute

Every method sees the same four days and may run the simulator on them as often as the others. What is compared is the
mean delay at the best green times that it found on these days, on them and on twelve days that none of them saw.
Methods with a learning rate are shown at their best one, which favours them a little over those without.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import module_at, save

from trace_opt import Budget, Categorical, ZerothOrder, evaluate, optimize
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Rollouts
from trace_opt.optim.base import Optimizer, Proposal, Trial

FILE = Path(__file__).parents[1] / "graphs" / "traffic.py"
DAYS, TESTS = [{"day": day} for day in range(4)], [{"day": day} for day in range(8, 20)]
RATES = (0.1, 0.2, 0.4)
DIFFERENCES = ("central", "two-point", "spsa")


class RandomSearch(Optimizer):
    """Draws every number within its bounds, without learning anything."""

    wants_rollouts = False

    def handles(self, parameter: Parameter[Any]) -> bool:
        return parameter.name in ("east_west", "north_south")

    async def propose(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
    ) -> Proposal:
        rng = random.Random(f"{rollouts.seed}/{len(history)}")
        return Proposal({p.name: rng.uniform(traffic.SHORTEST, traffic.LONGEST) for p in parameters})


traffic = module_at(FILE)  # its simulator is counted


class Counted:
    """The simulator, counting its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self._run = traffic.simulated

    def __call__(self, east_west: float, north_south: float, day: int) -> dict[str, float]:
        self.calls += 1
        return self._run(east_west, north_south, day)


def measure(method: str, lr: float, seed: int, points: int) -> dict[str, Any]:
    """One run of one method from a random start.

    Args:
        method: Of `ZerothOrder`, "categorical" or "random".
        lr: The learning rate, for those that have one.
        seed: Decides the start and all chance.
        points: Pairs of green times asked, each on all days.
    """
    rng = random.Random(seed)
    grid = method == "categorical"
    problem = traffic.problem(optimizer="categorical" if grid else "surrogate", days=len(DAYS))
    start = {p.name: rng.choice(p.choices) if grid else 5.0 * rng.randrange(1, 13) for p in problem.parameters}
    for parameter in problem.parameters:
        parameter.value = start[parameter.name]
    searched: Optimizer | None = Categorical() if grid else RandomSearch() if method == "random" else None
    optimizer = searched or ZerothOrder(method, lr=lr, queries=points, difference=0.1)
    counted = traffic.simulated = Counted()
    began = time.process_time()
    try:
        run = optimize(
            problem.workflow, DAYS, problem.guide, val=DAYS, parameters=problem.parameters, seed=seed,
            optimizers=[optimizer], budget=Budget(trials=points if searched else 1), store=None, concurrency=1,
        )  # fmt: skip
    finally:
        traffic.simulated = counted._run
    scores = {
        name: -evaluate(problem.workflow, days, problem.guide, values=values).best.mean
        for name, days, values in (
            ("start", DAYS, {}), ("found", DAYS, run.best), ("start, unseen days", TESTS, {}),
            ("found, unseen days", TESTS, run.best),
        )
    }  # fmt: skip
    return {
        "lr": None if searched else lr, "seed": seed, **{name: round(value, 3) for name, value in scores.items()},
        "best": dict(run.best), "calls": counted.calls, "cpu_seconds": round(time.process_time() - began, 2),
    }  # fmt: skip


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the seeds."""
    names = ("start", "found", "start, unseen days", "found, unseen days", "calls", "cpu_seconds")
    middle = {name: round(statistics.median(row[name] for row in rows), 3) for name in names}
    return {"lr": rows[0]["lr"], **middle, "worst found": max(row["found"] for row in rows)}


def main() -> None:
    """Measure all methods and say how each does at its best learning rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 starts and one learning rate, about a minute")
    parser.add_argument("--points", type=int, default=40, help="pairs of green times asked, each on all four days")
    options = parser.parse_args()
    seeds = list(range(2 if options.quick else 5))
    figures: dict[str, Any] = {
        "points": options.points, "days": len(DAYS), "unseen days": len(TESTS), "lowest possible": -traffic.BEST_SCORE,
    }  # fmt: skip
    for method in ("surrogate", *DIFFERENCES, "categorical", "random"):
        rates = RATES if method == "surrogate" or method in DIFFERENCES else RATES[:1]
        each = [
            [measure(method, lr, seed, options.points) for seed in seeds]
            for lr in ((0.2,) if options.quick and len(rates) > 1 else rates)
        ]
        best = min(each, key=lambda rows: statistics.median(row["found"] for row in rows))
        by_rate = {str(rows[0]["lr"]): summary(rows)["found"] for rows in each}
        figures[method] = {**summary(best), "found by lr": by_rate, "runs": best}
        print(method, summary(best), flush=True)
    save("traffic", figures, seeds=seeds)


if __name__ == "__main__":
    main()
