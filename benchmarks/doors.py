"""Who gets through the doors: trained policies and SmolLM2 as reflectors, beside the exact success of the best one.

    python benchmarks/doors.py              # about five CPU minutes
    python benchmarks/doors.py --quick      # the table alone, and nothing written

Two rooms of three doors, four attempts, every task of graphs/doors.py several times. "table" and "tiny" are trained as
`trace-opt run graphs/doors.py` does it; "smollm2" is asked as it is, "smollm2, warm" after supervised training on what the
best reflector says, served by llama.cpp from its exported adapter. A figure is the share of tasks solved by the first n
attempts, with the 95 % interval.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import module_at, save

from trace_opt import Budget, TrainablePolicy, connect, evaluate, export_adapter, fine_tune
from trace_opt.problem import load_problem
from trace_opt.refine.supervised import Pair

FILE = Path(__file__).parents[1] / "graphs" / "doors.py"
ROOMS, COLOURS, ATTEMPTS = 2, 3, 4
PAIRS, EPOCHS, SEED = 96, 2, 0


def told(summary: Any) -> dict[str, list[float]]:
    """The share solved by each attempt, its lower and its upper bound."""
    return {
        name: [round(share, 3), *(round(bound, 3) for bound in summary.intervals[name])]
        for name, share in summary.means.items()
        if name != "return"
    }


def trained(policy: str) -> dict[str, Any]:
    """A policy of the problem after its phase, with the problem's controls."""
    run = load_problem(FILE, {"policy": policy}).optimize(store=None, budget=Budget(trials=1))
    report = run.report()
    return {policy: told(report.best), **{f"{policy}: {c.name}": told(c.scores) for c in report.controls}}


def asked(module: Any, reflector: Any, copies: int) -> dict[str, list[float]]:
    """A language model as the reflector."""
    agent = module.episodes(reflector, attempts=ATTEMPTS, temperature=0.0, max_tokens=32)
    tasks = module.tasks(ROOMS, COLOURS, copies=copies, first=10)
    return told(evaluate(agent, tasks, agent.scored, seed=SEED).best)


def pairs(module: Any) -> list[Pair]:
    """What attempts without a reflection saw, and what the best reflector says of it."""
    rng = random.Random(SEED)
    found: list[Pair] = []
    names = module.COLOURS[:COLOURS]
    while len(found) < PAIRS:
        house = module.House([rng.choice(names) for _ in range(ROOMS)])
        lines: list[str] = []
        for room in range(1, ROOMS + 1):
            door = rng.choice(names)
            said = house.enter(room, door)
            lines.append(f"room {room}: {door} {said}")
            if said != "opens":
                break
        shown = module.prompt(None, None, lines, None, ())
        found.append(Pair(tuple(shown), module.best(shown)))
    return found


def main() -> None:
    """All reflectors in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    module = module_at(FILE)
    exact = [round(module.success(ROOMS, COLOURS, n), 4) for n in range(1, ATTEMPTS + 1)]
    alone = [round(module.success_without(ROOMS, COLOURS, n), 4) for n in range(1, ATTEMPTS + 1)]
    figures: dict[str, Any] = {"exact, best reflections": exact, "exact, none": alone, **trained("table")}
    if args.quick:
        print(figures)
        return
    figures |= trained("tiny")
    figures["smollm2"] = asked(module, connect("embedded/smollm2"), 8)
    began = time.process_time()
    policy = TrainablePolicy(layers=range(-16, 0), attention="sdpa")
    losses = fine_tune(policy, pairs(module), epochs=EPOCHS, seed=SEED)
    figures["warm start"] = {
        "pairs": PAIRS, "epochs": EPOCHS, "loss, first and last": [round(losses[0], 3), round(losses[-1], 3)],
        "CPU seconds": round(time.process_time() - began),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = export_adapter(policy, Path(folder) / "doors.gguf")
        figures["smollm2, warm"] = asked(module, connect(f"embedded/smollm2+{path}", cache=None), 8)
    save("doors", figures, seeds=[SEED])


if __name__ == "__main__":
    main()
