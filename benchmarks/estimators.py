"""How many trajectories each estimator needs on problems whose expected return is known: graphs/lqr.py and graphs/bandit.py.

    python benchmarks/estimators.py                        # half an hour, resumable
    python benchmarks/estimators.py --problems noisy       # some of noisy, bandit, hard
    python benchmarks/estimators.py --plot                 # draws results/estimators.svg from the results, three minutes
    python benchmarks/estimators.py --quick                # 3 seeds of two settings on the noisy regulator, a minute

One trajectory an update (two for N-HARPG and HARPG), returns to go, a running baseline. A run has arrived when the exact
return is above the threshold at five checks in a row, one every 20 trajectories; the count of the first of these is its
figure. Every estimator gets eight settings, four step sizes under each of two schedules, and shows its best: the least median
over 20 seeds, where runs that never arrive count as more than the budget. A setting stops as soon as it cannot be the best:
its runs are first given no more trajectories than the best median so far.

Two of the estimators are there to tell which ingredient earns what. Normalised REINFORCE steps equally far whatever the
gradient's length; normalised momentum also averages the gradients as N-PG-IGT does, but samples at the iterate; N-PG-IGT
samples at the extrapolated point.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
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

MAKERS: dict[str, Callable[..., Estimator]] = {
    "REINFORCE": Reinforce,
    "normalised REINFORCE": lambda policy, **o: Reinforce(policy, normalised=True, **o),
    "normalised momentum": lambda policy, **o: NPGIGT(policy, reach=0.0, **o),
    "N-PG-IGT": NPGIGT,
    "N-HARPG": HARPG,
    "HARPG": lambda policy, **o: HARPG(policy, normalised=False, **o),
}

Setting = tuple[str, float]
CONSTANT, SQRT, INVERSE = "constant", "inverse-sqrt", "inverse"


def grid(first: Setting, *rates: tuple[str, tuple[float, ...]]) -> list[Setting]:
    """All settings, the likely best first, for it is what the others are held to."""
    found = [(schedule, lr) for schedule, given in rates for lr in given]
    return [first, *(setting for setting in found if setting != first)]


def normalised_grid(first: Setting) -> list[Setting]:
    return grid(first, (INVERSE, (0.1, 0.3, 1.0, 3.0)), (SQRT, (0.009, 0.03, 0.09, 0.3)))


def plain_grid(first: Setting, *rates: float) -> list[Setting]:
    return grid(first, (CONSTANT, rates), (SQRT, rates))


PROBLEMS: dict[str, tuple[int, dict[str, list[Setting]]]] = {
    "noisy": (10_000, {
        "REINFORCE": plain_grid((SQRT, 3e-3), 3e-4, 1e-3, 3e-3, 1e-2),
        "normalised REINFORCE": normalised_grid((SQRT, 0.09)),
        "normalised momentum": normalised_grid((INVERSE, 0.3)),
        "N-PG-IGT": normalised_grid((INVERSE, 0.3)),
        "N-HARPG": normalised_grid((INVERSE, 0.3)),
        "HARPG": plain_grid((CONSTANT, 1e-3), 1e-4, 3e-4, 1e-3, 3e-3),
    }),
    "bandit": (10_000, {
        "REINFORCE": plain_grid((CONSTANT, 0.3), 0.03, 0.1, 0.3, 1.0),
        "normalised REINFORCE": normalised_grid((SQRT, 0.3)),
        "normalised momentum": normalised_grid((SQRT, 0.3)),
        "N-PG-IGT": normalised_grid((SQRT, 0.09)),
        "N-HARPG": normalised_grid((SQRT, 0.09)),
        "HARPG": plain_grid((CONSTANT, 0.3), 0.03, 0.1, 0.3, 1.0),
    }),
    "hard": (20_000, {
        "REINFORCE": plain_grid((CONSTANT, 1e-4), 1e-5, 3e-5, 1e-4, 3e-4),
        "normalised REINFORCE": normalised_grid((SQRT, 0.09)),
        "normalised momentum": normalised_grid((SQRT, 0.09)),
        "N-PG-IGT": normalised_grid((SQRT, 0.03)),
        "N-HARPG": normalised_grid((INVERSE, 0.3)),  # HARPG itself arrives too seldom here to wait for
    }),
}  # fmt: skip

EXPECTED = {
    "noisy": {"REINFORCE": 1010, "normalised REINFORCE": 190, "N-PG-IGT": 160, "N-HARPG": 340},
    "bandit": {"REINFORCE": 180, "normalised REINFORCE": 180, "N-PG-IGT": 220, "N-HARPG": 400},
    "hard": {"REINFORCE": 1980, "normalised REINFORCE": 270, "N-PG-IGT": 240, "N-HARPG": 1830},
}
"""Medians of a separate implementation of the same problems and estimators, at its best of four to eight settings."""

SHOWN = {"noisy": 600, "bandit": 300, "hard": 1200}
"""Trajectories up to which the return is drawn."""


class Play:
    """One run: a policy, the estimator that moves it, and what the policy is worth exactly.

    Args:
        problem: One of PROBLEMS.
        name: Of the estimator.
        setting: Its schedule and step size.
        seed: Of the trajectories.
    """

    def __init__(self, problem: str, name: str, setting: Setting, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.bounded = problem != "bandit"
        if self.bounded:
            lqr = module("lqr")
            case = lqr.CASES[problem]
            policy: Any = lqr.Regulator(case)
            self.threshold, self.optimum, self.weights = case.threshold, case.value, policy.gain
            self.exact: Callable[[], float] = lambda: float(lqr.value(policy.gain.detach(), case.sigma))
            self.draw: Callable[[], Any] = lambda: lqr.draw(policy, 1, generator)
        else:
            bandit = module("bandit")
            policy = bandit.Player()
            self.threshold, self.optimum, self.weights = bandit.THRESHOLD, bandit.BEST_SCORE, policy.logits
            self.exact = lambda: float(bandit.value(policy.logits.detach()))
            self.draw = lambda: bandit.draw(policy, 1, generator)
        schedule, lr = setting
        self.estimator = MAKERS[name](policy, lr=lr, schedule=schedule)
        self.used = 0

    def update(self) -> bool:
        """One update; False where the weights are no numbers any more."""
        sample = self.estimator.sample(self.draw)
        self.used += sample.trajectories
        self.estimator.update(sample)
        if self.bounded:
            self.weights.data.clamp_(-LIMIT, LIMIT)
        return bool(torch.isfinite(self.weights).all())


def module(name: str) -> Any:
    """The file of a problem, as its loaded `problem` knows it."""
    known = f"trace_opt_problem_{name}"
    if known not in sys.modules:
        load_problem(GRAPHS / f"{name}.py", {})
    return sys.modules[known]


def arrival(problem: str, name: str, setting: Setting, seed: int, limit: int) -> float:
    """Trajectories until the exact return stays above the threshold; infinite where that is not within the limit."""
    play = Play(problem, name, setting, seed)
    check, above = EVERY, 0
    while play.used < limit + EVERY * IN_A_ROW:
        if not play.update():
            return math.inf
        if play.used >= check:
            check += EVERY
            above = above + 1 if play.exact() >= play.threshold else 0
            if above == IN_A_ROW:
                return float(check - EVERY - (IN_A_ROW - 1) * EVERY)
            if not above and check > limit + EVERY:
                return math.inf
    return math.inf


def curve(problem: str, name: str, setting: Setting, seed: int, limit: int) -> list[float]:
    """The share of the way to the best return that is left, at every check."""
    play = Play(problem, name, setting, seed)
    start = play.optimum - play.exact()
    left = [1.0]
    while len(left) <= limit // EVERY:
        if not play.update():
            return left + [math.inf] * (limit // EVERY + 1 - len(left))
        if play.used >= EVERY * len(left):
            left.append((play.optimum - play.exact()) / start)
    return left


class State:
    """What has been run so far, on disk.

    Args:
        path: A file of JSON lines; None forgets.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, Any] = {}
        if path is not None and path.exists():
            self.known = dict(json.loads(line) for line in path.read_text().splitlines())

    def of(self, make: Callable[..., Any], *key: Any) -> Any:
        """What a function gives for these arguments."""
        name = json.dumps([make.__name__, *key])
        if name not in self.known:
            self.known[name] = make(*key)
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps([name, self.known[name]]) + "\n")
        return self.known[name]


def quantiles(counts: list[float]) -> list[Any]:
    found = np.quantile(np.array(counts), (0.25, 0.5, 0.75), method="inverted_cdf").tolist()
    return [value if math.isfinite(value) else "never" for value in found]


def summary(counts: list[float]) -> dict[str, Any]:
    """Quartiles and how many arrived."""
    low, median, high = quantiles(counts)
    return {
        "median": median, "quartiles": [low, high], "arrived": sum(map(math.isfinite, counts)), "of": len(counts),
    }  # fmt: skip


def best_of(
    problem: str, name: str, settings: list[Setting], budget: int, state: State, seeds: int = SEEDS
) -> dict[str, Any]:
    """An estimator's figures at its best setting, and of the others how far they came."""
    best: tuple[float, str] = (math.inf, "")
    rows: dict[str, Any] = {}
    for setting in settings:
        option = f"{setting[1]:g} {setting[0]}"
        # more than this and it cannot be the best
        limit = int(min(best[0], budget))
        counts: list[float] = []
        for seed in range(seeds):
            counts.append(state.of(arrival, problem, name, setting, seed, limit))
            if sum(map(math.isinf, counts)) > seeds // 2:
                break
        if sum(map(math.isinf, counts)) > seeds // 2:
            rows[option] = {"above": limit, "arrived by then": sum(map(math.isfinite, counts)), "of": len(counts)}
            continue
        if limit < budget:
            counts = [
                count if math.isfinite(count) else state.of(arrival, problem, name, setting, seed, budget)
                for seed, count in enumerate(counts)
            ]
        rows[option] = summary(counts)
        best = min(best, (float(rows[option]["median"]), option))
    return {"best": best[1] or None, **(rows[best[1]] if best[1] else {"median": "never"}), "settings": rows}


def reading(problem: str, found: dict[str, Any]) -> dict[str, Any]:
    """How much each ingredient divides the trajectories by, and the medians beside those of a separate implementation."""
    medians = {
        name: float(row["median"]) for name, row in found.items() if isinstance(row, dict) and row["median"] != "never"
    }

    def ratio(before: str, after: str) -> float | None:
        return round(medians[before] / medians[after], 2) if before in medians and after in medians else None

    ratios = {
        "normalisation divides them by": ratio("REINFORCE", "normalised REINFORCE"),
        "then momentum divides them by": ratio("normalised REINFORCE", "normalised momentum"),
        "then extrapolation divides them by": ratio("normalised momentum", "N-PG-IGT"),
        "momentum and extrapolation together by": ratio("normalised REINFORCE", "N-PG-IGT"),
        "curvature instead of both by": ratio("normalised REINFORCE", "N-HARPG"),
    }
    share, most = max((ratio or 0.0, name) for name, ratio in list(ratios.items())[:3])
    return {
        **ratios,
        "text": f"REINFORCE takes {found['REINFORCE']['median']:g} trajectories, N-PG-IGT {found['N-PG-IGT']['median']:g}; of its "
        f"three ingredients the one that counts most is {most.removeprefix('then ').replace(' divides', ', which divides')} {share:g}.",
        "over a separate implementation's median": {
            name: round(medians[name] / value, 2) for name, value in EXPECTED[problem].items() if name in medians
        },
    }


def solved(problem: str) -> float:
    """The share of the way that is left at the threshold."""
    play = Play(problem, "REINFORCE", (CONSTANT, 1.0), 0)
    return (play.optimum - play.threshold) / (play.optimum - play.exact())


def plot(figures: dict[str, Any], state: State, path: Path) -> None:
    """What is left of the way to the best return, by trajectories: medians and quartiles of all seeds at the best settings."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    colors = dict(zip(MAKERS, ("C0", "C1", "C4", "C2", "C3", "C7"), strict=True))
    problems = [problem for problem in PROBLEMS if problem in figures]
    with mpl.rc_context({"svg.hashsalt": "trace_opt", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = plt.subplots(1, len(problems), figsize=(4.2 * len(problems), 4.4), squeeze=False)
        for axis, problem in zip(axes[0], problems, strict=True):
            limit = SHOWN[problem]
            for name, color in colors.items():
                best = figures[problem].get(name, {}).get("best")
                if best is None:
                    continue
                lr, schedule = best.split()
                left = np.array(
                    [state.of(curve, problem, name, (schedule, float(lr)), seed, limit) for seed in range(SEEDS)]
                )
                low, middle, high = np.quantile(left, (0.25, 0.5, 0.75), axis=0, method="inverted_cdf")
                steps = np.arange(len(middle)) * EVERY
                shown = np.unique(np.linspace(0, len(steps) - 1, 50).astype(int))
                axis.plot(steps[shown], middle[shown], color=color, label=f"{name}, {best}", linewidth=1.3)
                axis.fill_between(steps[shown], low[shown], high[shown], color=color, alpha=0.12, linewidth=0)
            axis.set_yscale("log")
            axis.set_ylim(5e-4, 2)
            axis.axhline(solved(problem), color="black", linewidth=0.8, linestyle=":", label="solved")
            axis.set_title(problem)
            axis.set_xlabel("trajectories")
            axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
        axes[0][0].set_ylabel("share of the way to the best that is left")
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--quick", action="store_true", help="3 seeds of the noisy regulator, nothing written")
    parser.add_argument("--plot", action="store_true", help="draw the curves at the best settings of the results")
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "trace_opt-estimators.jsonl",
                        help="what has been run so far")  # fmt: skip
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = harness.RESULTS / "estimators.json"
    earlier = json.loads(result.read_text())["figures"] if result.exists() else {}
    if args.quick:
        for name, settings in PROBLEMS["noisy"][1].items():
            print(name, best_of("noisy", name, settings[:2], 3000, State(None), seeds=3))
        return
    state = State(args.state)
    if args.plot:
        plot(earlier, state, harness.RESULTS / "estimators.svg")
        return
    figures: dict[str, Any] = {}
    for problem, (budget, estimators) in PROBLEMS.items():
        if problem not in args.problems:
            if problem in earlier:
                figures[problem] = earlier[problem]
            continue
        figures[problem] = {"budget": budget}
        for name, settings in estimators.items():
            figures[problem][name] = best_of(problem, name, settings, budget, state)
            print(problem, name, figures[problem][name], flush=True)
        figures[problem]["reading"] = reading(problem, figures[problem])
        harness.save("estimators", figures, seeds=list(range(SEEDS)))


if __name__ == "__main__":
    main()
