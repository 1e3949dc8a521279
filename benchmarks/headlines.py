"""What tuning agents/headlines.py is worth on held-out headlines, seed by seed.

    python benchmarks/headlines.py                    seeds 11 to 15, about 4 minutes of CPU time each
    python benchmarks/headlines.py --seeds 11 --budget medium

A seed decides the split and the run. Results are kept after each seed, and seeds that have one for the same budget are
not run again; delete results/headlines.json to start anew. Model calls are cached for one seed only, so that the times
are those of a first run.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import RESULTS, save

from trace_opt.core.codec import encode
from trace_opt.problem import load_problem

AGENT = Path(__file__).parents[1] / "agents" / "headlines.py"
START_AT_MOST, BEST_AT_LEAST = 0.30, 0.50


def measure(seed: int, budget: str) -> dict[str, Any]:
    """One run from the split to the test."""
    started, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRACE_OPT_CACHE"] = str(Path(folder) / "cache.db")
        run = load_problem(AGENT, {"seed": str(seed)}).optimize(seed=seed, budget=budget, store=None)
        report = run.report().to_json()
    kept = ("best", "start", "difference", "claim", "trials", "accepted", "spend")
    return {
        "budget": budget,
        **{name: report[name] for name in kept},
        "values": {name: encode(value) for name, value in run.best.items()},
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }


def earlier() -> dict[str, Any]:
    """Results of earlier calls, by seed."""
    path = RESULTS / "headlines.json"
    return json.loads(path.read_text(encoding="utf-8"))["figures"]["seeds"] if path.exists() else {}


def main() -> None:
    """Measure the seeds that have no result yet, and say how many reached the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15])
    parser.add_argument("--budget", default="light")
    options = parser.parse_args()
    results = earlier()
    for seed in options.seeds:
        if results.get(str(seed), {}).get("budget") == options.budget:
            continue
        results[str(seed)] = measure(seed, options.budget)
        reached = sum(
            r["start"]["mean"] <= START_AT_MOST and r["best"]["mean"] >= BEST_AT_LEAST for r in results.values()
        )
        figures = {"bar": {"start at most": START_AT_MOST, "best at least": BEST_AT_LEAST}, "reached": reached}
        save("headlines", {**figures, "of": len(results), "seeds": results}, seeds=sorted(map(int, results)))


if __name__ == "__main__":
    main()
