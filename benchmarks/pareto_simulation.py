"""`Pareto`, `Beam` and `Greedy` themselves, through `optimize`, on workflows whose truth is known, beside GEPA.

    python benchmarks/pareto_simulation.py --gepa PEER/bin/python    beside GEPA's own engine; see gepa_engine.py
    python benchmarks/pareto_simulation.py [--quick]    beside its loop as search_simulation.py has it

First the families of benchmarks/search_simulation.py, half of the outcomes shared or none, where a candidate is one
number, its true accuracy, and there is nothing that a front could find: what diversity costs. Then a workflow of four
parameters and two kinds of examples, where every change helps or hurts each kind by its own: what diversity and merges
bring. A proposal is made from three rollouts of its parent on training examples; the budget is in rollouts.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import harness
import numpy as np
from gepa_engine import Engine, Texts
from search_simulation import FAMILIES, START, N, World, gepa, peer

from trace_opt import Beam, Budget, Greedy, Parameter, Pareto, optimize, trace
from trace_opt.optim.base import Optimizer, Proposal

PARTS = 4
KINDS = (0.7, 0.3)
"""How often each kind of example is met."""

SEARCHES: dict[str, Callable[[], Any]] = {
    "Greedy": lambda: Greedy(minibatch=3),
    "Beam": lambda: Beam(minibatch=3),
    "Pareto": lambda: Pareto(minibatch=3),
    "Pareto without merges": lambda: Pareto(minibatch=3, merge=False),
}


def chance(*parts: object) -> float:
    """A number in [0, 1) that looks like chance and is a function of its parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest(), "big") / 2**48


class Drawn(Optimizer):
    """Draws the next value of one of its parameters around the one in force."""

    def __init__(self, draw: Callable[[str, int], str]) -> None:
        super().__init__()
        self._draw = draw

    def handles(self, parameter: Parameter[Any]) -> bool:
        return True

    async def propose(self, parameters: Any, rollouts: Any, history: Sequence[Any]) -> Proposal:
        chosen = parameters[random.Random(rollouts.seed).randrange(len(parameters))]
        return Proposal({chosen.name: self._draw(chosen.value, rollouts.seed)}, "drawn")


def found(
    parameters: Sequence[Parameter[str]], truth: Callable[[Mapping[str, str], int], float], draw: Callable[[str, int], str],
    search: Any, rollouts: int, shared: float, seed: int,
) -> Mapping[str, str]:  # fmt: skip
    """The values that a search ends with.

    Args:
        parameters: Of the workflow.
        truth: How often values are right on a kind of example.
        draw: The next value of a parameter, from the one in force and a seed.
        search: How it goes about it.
        rollouts: The budget.
        shared: The share of examples whose chance is the same for every candidate.
        seed: Of everything.
    """

    @trace
    def right(number: int, kind: int) -> bool:
        values = {parameter.name: parameter.value for parameter in parameters}
        who = () if number % 100 < 100 * shared else tuple(values.values())
        return chance(seed, number, who) < truth(values, kind)

    def workflow(number: int, kind: int) -> bool:
        return right(number, kind)

    def examples(first: int) -> list[dict[str, int]]:
        return [{"number": first + i, "kind": int(i % 10 >= 10 * KINDS[0])} for i in range(N)]

    run = optimize(
        workflow, examples(0), lambda output, _: bool(output), val=examples(N), parameters=list(parameters),
        optimizers=[Drawn(draw)], search=search, budget=Budget(rollouts=rollouts), store=None, seed=seed,
    )  # fmt: skip
    return run.best


def one_number(name: str, family: str, shared: float, rollouts: int, seed: int) -> float:
    """The true accuracy that a search ends with, where a candidate is its true accuracy."""

    def draw(value: str, draws: int) -> str:
        truth = FAMILIES[family](float(value.split(maxsplit=1)[0]), np.random.default_rng([seed, draws]))
        return f"{min(max(truth, 0.0), 1.0):.6f} {draws}"

    parameter = Parameter(f"{START:.6f} 0", name="truth")
    best = found(
        [parameter], lambda values, _: float(values["truth"].split()[0]), draw, SEARCHES[name](), rollouts, shared, seed
    )
    return float(best["truth"].split()[0])


def of_kind(values: Mapping[str, str], kind: int) -> float:
    """How often the four parts are right on a kind of example."""
    return min(max(START + math.fsum(float(value.split()[kind]) for value in values.values()), 0.0), 1.0)


def moved(value: str, seed: int, draws: int) -> str:
    """The next value of a part."""
    rng = np.random.default_rng([seed, draws])
    old = [float(number) + rng.normal(-0.02, 0.1) for number in value.split()[:2]]
    return f"{old[0]:.6f} {old[1]:.6f} {draws}"


def worth(values: Mapping[str, str]) -> float:
    """How often the four parts are right."""
    return math.fsum(share * of_kind(values, kind) for kind, share in enumerate(KINDS))


def two_kinds(name: str, rollouts: int, seed: int) -> float:
    """The same where every part does each kind good or harm of its own."""
    parameters = [Parameter("0 0 0", name=f"part {i}") for i in range(PARTS)]
    return worth(
        found(
            parameters, of_kind, lambda value, draws: moved(value, seed, draws), SEARCHES[name](), rollouts, 0.0, seed
        )
    )


def two_kinds_of_the_engine(engine: Engine, rollouts: int, seed: int, *, merge: bool) -> float:
    """The same by GEPA's engine; its components take turns, as they do by default."""
    drawn = random.Random(f"{seed} engine")

    def answers(texts: Texts) -> str:
        numbers = (*range(N, 2 * N), *range(N))
        kinds = [int(number % 10 >= 10 * KINDS[0]) for number in numbers]
        right = [
            chance(seed, n, tuple(texts.values())) < of_kind(texts, k) for n, k in zip(numbers, kinds, strict=True)
        ]
        return "".join(f"{one:d}" for one in right)

    def propose(texts: Texts, components: list[str]) -> Texts:
        return {name: moved(texts[name], seed, drawn.randrange(2**31)) for name in components}

    start = {f"part {i}": "0 0 0" for i in range(PARTS)}
    done = engine.run(
        start, answers=answers, propose=propose, train=N, val=N, budget=rollouts, seed=seed, merge=merge
    )  # fmt: skip
    return worth(done["chosen"])


def points(truths: Sequence[float]) -> dict[str, float]:
    """The mean in points, with its standard error."""
    error = float(np.std(truths, ddof=1)) / math.sqrt(len(truths))
    return {"mean": round(100 * math.fsum(truths) / len(truths), 1), "standard error": round(100 * error, 1)}


def figures(seeds: int, engine: Engine | None) -> dict[str, Any]:
    """Both parts."""
    theirs = "GEPA's loop" if engine is None else "GEPA's engine"
    names = ["Greedy", "Beam", "Pareto"]  # with one parameter there is nothing to merge
    cells: dict[str, Any] = {}
    gains: dict[str, list[list[float]]] = {name: [] for name in names}
    for family in FAMILIES:
        for shared in (0.0, 0.5):
            for rollouts in (1_000, 3_000):
                cell = f"{family}; {shared:.0%} shared; {rollouts} rollouts"
                truths = {
                    name: [one_number(name, family, shared, rollouts, seed) for seed in range(seeds)] for name in names
                }
                worlds = [World(family, shared, rollouts, 0, seed) for seed in range(seeds)]
                truths[theirs] = [
                    (gepa(world) if engine is None else peer(world, engine, seed)[0]).truth
                    for seed, world in enumerate(worlds)
                ]
                for name in names:
                    gains[name].append([a - b for a, b in zip(truths[name], truths[theirs], strict=True)])
                cells[cell] = {name: points(values) for name, values in truths.items()}
                print(cell, {name: row["mean"] for name, row in cells[cell].items()}, flush=True)
    kinds: dict[str, Any] = {}
    for rollouts in (1_000, 3_000):
        row = {name: [two_kinds(name, rollouts, seed) for seed in range(seeds)] for name in SEARCHES}
        if engine is not None:
            for merge, name in ((False, theirs), (True, f"{theirs} with merges")):
                row[name] = [two_kinds_of_the_engine(engine, rollouts, seed, merge=merge) for seed in range(seeds)]
        kinds[f"{rollouts} rollouts"] = {name: points(values) for name, values in row.items()}
        print("two kinds", rollouts, {name: points(values)["mean"] for name, values in row.items()}, flush=True)
    return {
        "seeds": seeds, "peer": theirs if engine is None else f"gepa {engine.version}, its own engine",
        "one number, mean": {
            name: round(math.fsum(row[name]["mean"] for row in cells.values()) / len(cells), 1)
            for name in (*names, theirs)
        },
        "one number, above GEPA": {name: above(rows) for name, rows in gains.items()},
        "one number": cells, "two kinds": kinds,
    }  # fmt: skip


def above(rows: Sequence[Sequence[float]]) -> dict[str, float]:
    """What differences by cell and seed come to: the mean over all, with its standard error, and the least cell."""
    by_seed = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
    least = min(rows, key=math.fsum)
    return {
        **points(by_seed),
        "least cell": points(least)["mean"],
        "its standard error": points(least)["standard error"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="2 seeds, not 15")
    parser.add_argument("--gepa", metavar="PYTHON", help="the interpreter of an environment that has gepa")
    args = parser.parse_args()
    seeds = 2 if args.quick else 15
    with Engine(args.gepa) if args.gepa else nullcontext() as engine:
        harness.save("pareto_simulation", figures(seeds, engine), seeds=list(range(seeds)))


if __name__ == "__main__":
    main()
