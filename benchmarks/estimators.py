"""How many trajectories each estimator needs on problems whose expected return is known: graphs/lqr.py and graphs/bandit.py.

    python benchmarks/estimators.py                        # about an hour, resumable
    python benchmarks/estimators.py --problems noisy       # one of hard, noisy, bandit
    python benchmarks/estimators.py --quick                # 3 seeds of the noisy regulator, a minute

One trajectory an update (two for N-HARPG and HARPG), returns to go, a running baseline. A run has arrived when the exact
return is above the threshold at five checks in a row, one every 20 trajectories; the count of the first of these is its
figure. Every estimator gets four settings and shows its best: the least median over 20 seeds, where runs that never arrive
count as more than the budget. Normalised REINFORCE is there because it has the ingredient that earns most of what separates
N-PG-IGT from REINFORCE.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

from trace_opt.problem import load_problem
from trace_opt.refine.estimators.base import Estimator
from trace_opt.refine.estimators.harpg import HARPG
from trace_opt.refine.estimators.igt import NPGIGT
from trace_opt.refine.estimators.reinforce import Reinforce

GRAPHS = Path(__file__).parents[1] / "graphs"
SEEDS = 20
EVERY, IN_A_ROW = 20, 5
LIMIT = 10.0  # of a regulator's gains: beyond it a trajectory overflows

Make = Callable[[Any], Estimator]


def plain(lr: float, schedule: Any) -> Make:
    return lambda policy: Reinforce(policy, lr=lr, schedule=schedule)


def normalised(lr: float, schedule: Any) -> Make:
    return lambda policy: Reinforce(policy, lr=lr, schedule=schedule, normalised=True)


def igt(lr: float, schedule: Any) -> Make:
    return lambda policy: NPGIGT(policy, lr=lr, schedule=schedule)


def harpg(lr: float, schedule: Any, *, unit: bool) -> Make:
    return lambda policy: HARPG(policy, lr=lr, schedule=schedule, normalised=unit)


def settings(rates: dict[str, list[tuple[float, str]]]) -> dict[str, dict[str, Make]]:
    """Estimators by name, each with its settings by name."""
    makers: dict[str, Callable[..., Make]] = {
        "REINFORCE": plain, "normalised REINFORCE": normalised, "N-PG-IGT": igt,
        "N-HARPG": lambda lr, schedule: harpg(lr, schedule, unit=True),
        "HARPG": lambda lr, schedule: harpg(lr, schedule, unit=False),
    }  # fmt: skip
    return {
        name: {f"{lr:g} {schedule}": makers[name](lr, schedule) for lr, schedule in given}
        for name, given in rates.items()
    }


PROBLEMS: dict[str, tuple[int, dict[str, dict[str, Make]]]] = {
    "noisy": (10_000, settings({
        "REINFORCE": [(3e-5, "constant"), (1e-4, "constant"), (3e-4, "constant"), (1e-3, "inverse-sqrt")],
        "normalised REINFORCE": [(0.3, "inverse"), (1.0, "inverse"), (0.03, "inverse-sqrt"), (0.09, "inverse-sqrt")],
        "N-PG-IGT": [(0.3, "inverse"), (1.0, "inverse"), (0.03, "inverse-sqrt"), (0.09, "inverse-sqrt")],
        "N-HARPG": [(0.1, "inverse"), (0.3, "inverse"), (1.0, "inverse"), (0.03, "inverse-sqrt")],
        "HARPG": [(1e-5, "constant"), (1e-4, "constant"), (3e-4, "constant"), (1e-4, "inverse-sqrt")],
    })),
    "bandit": (10_000, settings({
        "REINFORCE": [(0.03, "constant"), (0.1, "constant"), (0.3, "constant"), (0.3, "inverse-sqrt")],
        "normalised REINFORCE": [(0.1, "constant"), (0.3, "inverse-sqrt"), (0.09, "inverse-sqrt"), (1.0, "inverse")],
        "N-PG-IGT": [(0.09, "inverse-sqrt"), (0.3, "inverse-sqrt"), (0.03, "inverse-sqrt"), (1.0, "inverse")],
        "N-HARPG": [(0.09, "inverse-sqrt"), (0.3, "inverse-sqrt"), (0.03, "inverse-sqrt"), (1.0, "inverse")],
        "HARPG": [(0.03, "constant"), (0.1, "constant"), (0.3, "constant"), (0.3, "inverse-sqrt")],
    })),
    "hard": (20_000, settings({
        "REINFORCE": [(1e-5, "constant"), (3e-5, "constant"), (1e-4, "constant"), (3e-4, "inverse-sqrt")],
        "normalised REINFORCE": [(0.3, "inverse"), (1.0, "inverse"), (0.03, "inverse-sqrt"), (0.09, "inverse-sqrt")],
        "N-PG-IGT": [(0.3, "inverse"), (1.0, "inverse"), (0.03, "inverse-sqrt"), (0.09, "inverse-sqrt")],
        "N-HARPG": [(0.1, "inverse"), (0.3, "inverse"), (1.0, "inverse"), (0.009, "inverse-sqrt")],
        "HARPG": [(1e-5, "constant"), (3e-5, "constant"), (1e-4, "constant"), (1e-4, "inverse-sqrt")],
    })),
}  # fmt: skip


def module(name: str) -> Any:
    """The file of a problem, as its loaded `problem` knows it."""
    import sys

    load_problem(GRAPHS / f"{name}.py", {})
    return sys.modules[f"trace_opt_problem_{name}"]


def arrival(problem: str, make: Make, seed: int, budget: int) -> float:
    """Trajectories until the exact return stays above the threshold; infinite where it never does."""
    generator = torch.Generator().manual_seed(seed)
    if problem == "bandit":
        bandit = module("bandit")
        policy: Any = bandit.Player()
        threshold, weights, draw = bandit.THRESHOLD, policy.logits, bandit.draw
        exact = lambda: float(bandit.value(policy.logits.detach()))  # noqa: E731
    else:
        lqr = module("lqr")
        case = lqr.CASES[problem]
        policy = lqr.Regulator(case)
        threshold, weights, draw = case.threshold, policy.gain, lqr.draw
        exact = lambda: float(lqr.value(policy.gain.detach(), case.sigma))  # noqa: E731
    estimator = make(policy)
    used, check, above = 0, EVERY, 0
    while used < budget:
        sample = estimator.sample(lambda: draw(policy, 1, generator))
        used += sample.trajectories
        estimator.update(sample)
        if problem != "bandit":
            weights.data.clamp_(-LIMIT, LIMIT)
        if not bool(torch.isfinite(weights).all()):
            return math.inf
        if used >= check:
            check += EVERY
            above = above + 1 if exact() >= threshold else 0
            if above == IN_A_ROW:
                return float(check - EVERY - (IN_A_ROW - 1) * EVERY)
    return math.inf


def summary(counts: list[float]) -> dict[str, Any]:
    """Quartiles and how many arrived."""
    low, median, high = np.quantile(np.array(counts), (0.25, 0.5, 0.75), method="inverted_cdf").tolist()
    told = {"median": median, "quartiles": [low, high]}
    return {name: json.loads(json.dumps(value).replace("Infinity", '"never"')) for name, value in told.items()} | {
        "arrived": sum(math.isfinite(c) for c in counts), "of": len(counts),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--quick", action="store_true", help="3 seeds of the noisy regulator, nothing written")
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "trace_opt-estimators.jsonl",
                        help="what has been run so far")  # fmt: skip
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = 3 if args.quick else SEEDS
    known: dict[str, float] = {}
    if args.state.exists() and not args.quick:
        known = dict(json.loads(line) for line in args.state.read_text().splitlines())
    figures: dict[str, Any] = {}
    for problem in ["noisy"] if args.quick else args.problems:
        budget, estimators = PROBLEMS[problem]
        figures[problem] = {"budget": budget}
        for name, options in estimators.items():
            rows: dict[str, Any] = {}
            for option, make in options.items():
                counts: list[float] = []
                for seed in range(seeds):
                    key = f"{problem}/{name}/{option}/{seed}"
                    if key not in known:
                        known[key] = arrival(problem, make, seed, budget)
                        if not args.quick:
                            with args.state.open("a") as file:
                                file.write(json.dumps([key, known[key]]) + "\n")
                    counts.append(known[key])
                rows[option] = summary(counts)
            best = min(rows, key=lambda option: float(str(rows[option]["median"]).replace("never", "inf")))
            figures[problem][name] = {"best": best, **rows[best], "settings": rows}
            print(problem, name, best, rows[best], flush=True)
    if not args.quick:
        harness.save("estimators", figures, seeds=list(range(seeds)))


if __name__ == "__main__":
    main()
