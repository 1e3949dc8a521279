"""Seconds for 200 summed gradients on 32 workers under bursty stragglers, for every scheme of `trace_opt.search.codes`.

    python benchmarks/gradient_codes.py [--quick]

A simulation: Markov stragglers (enter .03, stay .5, 8 times slower, 10 % jitter), a round takes `fixed + per load * load`
seconds. Each scheme with the best of its parameters, and a round of each ends (1 + patience) times the fastest worker's
time after its start where the scheme allows it; `eager` codes end a round as soon as the sum is known. The decoders are
checked on random gradients beside it. The order of the paper (M-SGC before gradient codes, whose rounds it ends by the same
rule) is that of every setting whose round time grows with the load; with a long patience an eager gradient code comes
before it. Groups of two, the control that no code has to be computed for, come before both in most.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import harness
import numpy as np

from trace_opt.search.code_timing import Cluster, time_code, time_sequential
from trace_opt.search.codes import Code, GradientCode, Repetition, Sequential, Uncoded, code_of

N, JOBS, SEEDS = 32, 200, (0, 1, 2)
SETTINGS = {
    "0.5 + 60 load, patience 1": Cluster(n=N),
    "2 + 60 load, patience 1": Cluster(n=N, fixed=2.0),
    "10 + 0 load, patience 1": Cluster(n=N, fixed=10.0, per_load=0.0),
    "0.5 + 60 load, patience 3": Cluster(n=N, patience=3.0),
    "0.5 + 60 load, patience 1, stragglers of one round": Cluster(n=N, stay=0.0, enter=0.06),
}
GRID = [
    (b, w, late)
    for b, w in ((1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (3, 5), (4, 5), (4, 6), (5, 7))
    for late in (4, 6, 8, 10, 12, 16)
]


def mean_seconds(run: Callable[[int], float], seeds: tuple[int, ...]) -> float:
    return sum(run(seed) for seed in seeds) / len(seeds)


def best(options: dict[str, Callable[[int], float]], seeds: tuple[int, ...]) -> dict[str, Any]:
    found = {name: mean_seconds(run, seeds) for name, run in options.items()}
    name = min(found, key=found.__getitem__)
    return {"seconds": round(found[name]), "with": name}


def coded(code: Code, cluster: Cluster, jobs: int, *, eager: bool = False) -> Callable[[int], float]:
    return lambda seed: time_code(code, cluster, jobs, seed, eager=eager)


def one_setting(
    cluster: Cluster, jobs: int, grid: list[tuple[int, int, int]], seeds: tuple[int, ...]
) -> dict[str, Any]:
    groups = [2, 4, 8]
    return {
        "waiting": best({"": coded(Uncoded(N), cluster, jobs)}, seeds),
        "groups": best({f"of {g}": coded(Repetition(N, g), cluster, jobs) for g in groups}, seeds),
        "groups, eager": best({f"of {g}": coded(Repetition(N, g), cluster, jobs, eager=True) for g in groups}, seeds),
        "GC": best({f"s {s}": coded(code_of(N, s), cluster, jobs) for s in range(1, 9)}, seeds),
        "GC, eager": best({f"s {s}": coded(code_of(N, s), cluster, jobs, eager=True) for s in range(1, 9)}, seeds),
        "M-SGC": best(
            {
                f"B {b}, W {w}, l {late}": lambda seed, b=b, w=w, late=late: time_sequential(
                    Sequential(N, b, w, late), cluster, jobs, seed
                )
                for b, w, late in grid
            },
            seeds,
        ),
    }


def decoding_error(code: Code, rng: np.random.Generator, drop: int) -> float:
    """The largest error of a decoded sum, relative to the largest partial gradient, over random sets of stragglers."""
    worst = 0.0
    for _ in range(50):
        gradients = rng.standard_normal((code.chunks, 100))
        late = set(rng.choice(code.n, drop, replace=False).tolist())
        answers = {
            worker: sum(factor * gradients[chunk] for chunk, factor in code.weights(worker).items())
            for worker in range(code.n)
            if worker not in late
        }
        if code.enough(frozenset(answers)):
            worst = max(worst, float(np.abs(code.decode(answers) - gradients.sum(axis=0)).max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer jobs and parameters")
    quick = parser.parse_args().quick
    jobs, seeds = (60, SEEDS[:1]) if quick else (JOBS, SEEDS)
    grid = GRID[::3] if quick else GRID
    rng = np.random.default_rng(0)
    figures: dict[str, Any] = {
        "seconds": {name: one_setting(cluster, jobs, grid, seeds) for name, cluster in SETTINGS.items()},
        "decoding error": {
            **{f"GC s {s}": decoding_error(GradientCode(N, s), rng, s) for s in (1, 3, 6, 10)},
            **{f"groups of {g}": decoding_error(Repetition(N, g), rng, g - 1) for g in (2, 4)},
        },
        "load of a worker": {
            "none": 1 / N,
            "GC s 3": code_of(N, 3).load,
            "groups of 2": Repetition(N, 2).load,
            "M-SGC B 4, W 5, l 10": Sequential(N, 4, 5, 10).load,
            "paper, n 256: GC s 15": 16 / 256,
            "paper, n 256: M-SGC B 1, W 2, l 27": Sequential(256, 1, 2, 27).load,
        },
    }
    orders = {
        name: sorted(row, key=lambda scheme, row=row: row[scheme]["seconds"])
        for name, row in figures["seconds"].items()
    }
    figures["order"] = orders
    harness.save("gradient_codes", figures, seeds=list(seeds))


if __name__ == "__main__":
    main()
