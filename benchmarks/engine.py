"""What the engine itself costs: CPU milliseconds a step where workflow, guide and proposer take none.

    python benchmarks/engine.py                          # five minutes
    python benchmarks/engine.py --quick                  # up to step 1,000
    python benchmarks/engine.py --gepa PEER/bin/python   # beside GEPA's iterations, in an environment that has it

A step asks for one proposal and tests it on up to 50 validation examples; no prompt is better than another, so scores are
coins. "default" is `Greedy()`, whose gate drops most candidates early; "all 50" runs every candidate on all of them. A
window is 100 steps, commits and collections included, and its figure the mean of its steps; of several runs the least is
taken. The renewal of the lease, a thread, is in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import save
from instant import score, text

import trace_opt
from trace_opt.optim.base import Optimizer, Proposal
from trace_opt.search.gate import Gate

VAL = 50
WINDOW = 100
TRAIN = tuple(range(1000, 1020))
SEARCHES = {
    "default": trace_opt.Greedy(),
    "all 50": trace_opt.Greedy(gate=Gate(alpha=1e-9, worse_alpha=1e-9, gamma=0.0, block=4)),
    "pareto": trace_opt.Pareto(),
}


class Instant(Optimizer):
    """Proposes the next text."""

    def __init__(self) -> None:
        super().__init__()
        self.proposed = 0

    def handles(self, parameter: Any) -> bool:
        return parameter.kind == "text"

    async def propose(self, parameters: Sequence[Any], rollouts: Any, history: Sequence[Any]) -> Proposal:
        self.proposed += 1
        return Proposal({parameter.name: text(self.proposed) for parameter in parameters}, "the next one")

    def state_dict(self) -> dict[str, Any]:
        return {"proposed": self.proposed}

    def load_state_dict(self, state: Any) -> None:
        self.proposed = state["proposed"]


def marks_of(search: Any, steps: int, store: Path | None) -> list[tuple[float, int]]:
    """CPU time and evaluations at the end of each step."""
    prompt = trace_opt.Parameter(text(0), name="prompt")
    evaluations = 0
    marks: list[tuple[float, int]] = []

    @trace_opt.trace
    def answer(prompt: str, example: int) -> str:
        return f"{prompt}/{example}"

    def workflow(example: int) -> Any:
        return answer(prompt, example)

    def guide(output: str, example: int) -> float:
        nonlocal evaluations
        evaluations += 1
        return score(output)

    trace_opt.optimize(
        workflow, TRAIN, guide, val=tuple(range(VAL)), test=(2000,), parameters=[prompt], optimizers=[Instant()],
        search=search, budget=trace_opt.Budget(trials=steps), store=store, seed=0,
        on_trial=lambda _: marks.append((time.process_time(), evaluations)),
    )  # fmt: skip
    return marks


def windows(marks: Sequence[Sequence[float]], steps: Sequence[int]) -> dict[str, Any]:
    """Milliseconds and evaluations of a step, by the step in the middle or at the end of a window."""
    found: dict[str, Any] = {}
    for step in steps:
        last = min(step + WINDOW // 2, len(marks)) - 1
        first = last - WINDOW
        if first >= 0 and last >= step - 1:
            (began, before), (ended, after) = marks[first], marks[last]
            found[str(step)] = {
                "milliseconds": round(1e3 * (ended - began) / WINDOW, 3),
                "evaluations": round((after - before) / WINDOW, 1),
            }
    return found


def least(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each window the run that took the least."""
    return {
        step: min((run[step] for run in runs), key=lambda row: row["milliseconds"])
        for step in runs[0]
        if step in runs[-1]
    }


def of_gepa(python: str, steps: int, seconds: float, at: Sequence[int], *, kept: bool) -> dict[str, Any]:
    """The same of GEPA's iterations."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(__file__).with_name("gepa_steps.py")
        command = [python, str(script), str(steps), str(VAL), str(seconds), *([folder] if kept else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    return {"version": told["version"], "iterations": len(told["marks"]), "steps": windows(told["marks"], at)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--gepa", metavar="PYTHON", help="the interpreter of an environment that has gepa")
    parser.add_argument("--only", choices=SEARCHES, help="this search alone, nothing written")
    args = parser.parse_args()
    steps, rounds = (1000, 2) if args.quick else (10_050, 2)
    at = (100, 300, 1000) if args.quick else (100, 300, 1000, 10_000)
    found: dict[str, Any] = {}
    for name, search in SEARCHES.items():
        if args.only in (None, name):
            for kept in (True, False):
                runs: list[dict[str, Any]] = []
                for _ in range(rounds):
                    with tempfile.TemporaryDirectory() as folder:
                        marks = marks_of(search, steps, Path(folder) / "runs.db" if kept else None)
                    runs.append(windows(marks, at))
                found.setdefault(name, {})["store" if kept else "no store"] = least(runs)
                print(
                    name, "store" if kept else "no store", found[name]["store" if kept else "no store"], file=sys.stderr
                )
    if args.only:
        return
    figures: dict[str, Any] = {"validation_examples": VAL, "window": WINDOW, "steps": found}
    if args.gepa:
        seconds = 25
        figures["gepa"] = {
            "folder" if kept else "no folder": of_gepa(args.gepa, steps, seconds, at, kept=kept)
            for kept in (True, False)
        }
    save("engine", figures, seeds=[0])


if __name__ == "__main__":
    main()
