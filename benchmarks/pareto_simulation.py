"""`Pareto`, `Beam` and `Greedy` themselves, through `optimize`, on workflows whose truth is known, beside GEPA's loop.

    python benchmarks/pareto_simulation.py [--quick]

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
from typing import Any

import harness
import numpy as np
from search_simulation import FAMILIES, START, N, World, gepa

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


def two_kinds(name: str, rollouts: int, seed: int) -> float:
    """The same where every part does each kind good or harm of its own."""

    def draw(value: str, draws: int) -> str:
        rng = np.random.default_rng([seed, draws])
        moved = [float(old) + rng.normal(-0.02, 0.1) for old in value.split()[:2]]
        return f"{moved[0]:.6f} {moved[1]:.6f} {draws}"

    parameters = [Parameter("0 0 0", name=f"part {i}") for i in range(PARTS)]
    best = found(parameters, of_kind, draw, SEARCHES[name](), rollouts, 0.0, seed)
    return math.fsum(share * of_kind(best, kind) for kind, share in enumerate(KINDS))


def points(truths: Sequence[float]) -> dict[str, float]:
    """The mean in points, with its standard error."""
    error = float(np.std(truths, ddof=1)) / math.sqrt(len(truths))
    return {"mean": round(100 * math.fsum(truths) / len(truths), 1), "standard error": round(100 * error, 1)}


def figures(seeds: int) -> dict[str, Any]:
    """Both parts."""
    cells: dict[str, Any] = {}
    for family in FAMILIES:
        for shared in (0.0, 0.5):
            for rollouts in (1_000, 3_000):
                cell = f"{family}; {shared:.0%} shared; {rollouts} rollouts"
                cells[cell] = {
                    name: points([one_number(name, family, shared, rollouts, seed) for seed in range(seeds)])
                    for name in SEARCHES
                    if name != "Pareto without merges"  # with one parameter there is nothing to merge
                }
                theirs = [gepa(World(family, shared, rollouts, 0, seed)).truth for seed in range(seeds)]
                cells[cell]["GEPA's loop"] = points(theirs)
                print(cell, {name: row["mean"] for name, row in cells[cell].items()}, flush=True)
    kinds: dict[str, Any] = {}
    for rollouts in (1_000, 3_000):
        kinds[f"{rollouts} rollouts"] = row = {
            name: points([two_kinds(name, rollouts, seed) for seed in range(seeds)]) for name in SEARCHES
        }
        print("two kinds", rollouts, {name: values["mean"] for name, values in row.items()}, flush=True)
    names = ["Greedy", "Beam", "Pareto", "GEPA's loop"]
    means = {name: round(math.fsum(row[name]["mean"] for row in cells.values()) / len(cells), 1) for name in names}
    return {"seeds": seeds, "one number, mean": means, "one number": cells, "two kinds": kinds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="2 seeds, not 10")
    seeds = 2 if parser.parse_args().quick else 10
    harness.save("pareto_simulation", figures(seeds), seeds=list(range(seeds)))


if __name__ == "__main__":
    main()
