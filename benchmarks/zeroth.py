"""Four black boxes of ten settings passed as text: the surrogate at one setting, differences each at its best of five.

    python benchmarks/zeroth.py            # about a minute
    python benchmarks/zeroth.py --quick    # two starts, two learning rates

Each method has 300 queries in one phase, through `optimize`; a figure is the median over starts of the value of what the run
returns (0 is the lowest possible). What each method of differences is given is the learning rate that is best for it on that
very function, by hindsight. The last part is federated: four clients with quadratics of their own in five dimensions.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from harness import save

from trace_opt.core.context import in_force
from trace_opt.optim.numeric.federated import Federation, federate
from trace_opt.problem import Problem, load_problem

if TYPE_CHECKING:
    from torch import Tensor

FILE = Path(__file__).parents[1] / "graphs" / "blackbox.py"
FUNCTIONS = ("steep", "valley", "waves", "rugged")
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
QUERIES = 300


def final(function: str, start: int, **options: Any) -> tuple[float, float]:
    """The value at the start and that of what the run returns."""
    given = {"function": function, "start": str(start), "queries": str(QUERIES)}
    problem = load_problem(FILE, given | {name: str(value) for name, value in options.items()})
    run = problem.optimize(store=None, seed=start)
    return value_of(problem, run.start), value_of(problem, run.best)


def value_of(problem: Problem, values: Mapping[str, Any]) -> float:
    example = problem.train[0]
    with in_force(values):
        return problem.workflow(**example)


def medians(function: str, seeds: list[int], **options: Any) -> float:
    return median(final(function, seed, **options)[1] for seed in seeds)


def by_differences(function: str, method: str, seeds: list[int], rates: tuple[float, ...]) -> dict[str, float]:
    found = {rate: medians(function, seeds, method=method, lr=rate) for rate in rates}
    best = min(found, key=lambda rate: found[rate])
    return {"value": found[best], "lr": best}


def clients(seed: int) -> tuple[list[Any], float]:
    """Four quadratics in five dimensions, with curvatures from 0.1 to 10 and minima of their own, and the mean's minimum."""
    import torch

    chance = torch.Generator().manual_seed(seed)
    curvatures = 10 ** (torch.rand(4, 5, dtype=torch.float64, generator=chance) * 2 - 1)
    centres = (torch.rand(4, 5, dtype=torch.float64, generator=chance) - 0.5) * 1.6
    lowest = (curvatures * centres).sum(0) / curvatures.sum(0)
    functions = [partial(quadratic, a, c) for a, c in zip(curvatures, centres, strict=True)]
    return functions, math.fsum(float(function(lowest[None])) for function in functions) / 4


def quadratic(curvatures: Tensor, centre: Tensor, points: Tensor) -> Tensor:
    return 0.5 * (curvatures * (points - centre) ** 2).sum(-1)


def federated(seeds: list[int]) -> list[dict[str, float]]:
    import torch

    found: list[dict[str, float]] = []
    for seed in seeds:
        functions, lowest = clients(seed)
        start = torch.full((5,), -0.5, dtype=torch.float64)
        gaps = {
            name: federate(
                functions, start, settings=Federation(correction=on), project=lambda x: x.clamp(-1, 1), seed=seed
            ).value - lowest
            for name, on in (("without", False), ("with", True))
        }  # fmt: skip
        found.append(gaps)
    return found


def main() -> None:
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    seeds, rates = (list(range(2)), RATES[1:4:2]) if quick else (list(range(5)), RATES)
    figures: dict[str, Any] = {}
    seconds = time.process_time()
    for function in FUNCTIONS:
        figures[function] = {
            "start": median(final(function, seed, method="spsa")[0] for seed in seeds),
            "surrogate": medians(function, seeds),
        }
    seconds = time.process_time() - seconds
    for function in FUNCTIONS:
        for method in ("central", "two-point", "spsa"):
            figures[function][method] = by_differences(function, method, seeds, rates)
        figures[function]["surrogate, four at once"] = medians(function, seeds, batch=4)
        rivals = [figures[function][method]["value"] for method in ("central", "two-point", "spsa")]
        figures[function]["best of the others over surrogate"] = min(rivals) / figures[function]["surrogate"]
    save(
        "zeroth_quick" if quick else "zeroth",
        {
            "median final value": figures,
            "milliseconds of CPU a query, the workflow's included": 1000
            * seconds
            / (len(FUNCTIONS) * len(seeds) * QUERIES),
            "federated: gap to the optimum": federated(list(range(3))),
        },
        seeds=seeds,
    )


if __name__ == "__main__":
    main()
