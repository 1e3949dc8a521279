"""What a search ends with when the truth is known: greedy search behind the search gate against GEPA's own engine.

    python benchmarks/search_simulation.py --gepa PEER/bin/python    48 cells, 100 seeds each; see gepa_engine.py
    python benchmarks/search_simulation.py [--quick]    against GEPA's loop as written down here alone
    python benchmarks/search_simulation.py --tune       the greedy loop alone, with other settings of its gate

A candidate is a number, its true accuracy; its answers on the validation examples are drawn once and are right that
often. All get the same families of proposals, score the start on all validation examples first, pay one evaluation
for every answer they look at for the first time (GEPA also for the minibatches that it evaluates again), and three for
the feedback a proposal is made from. As in `Greedy`, candidate and incumbent are run on the examples that a block comes to,
and an accepted candidate is not completed; `--tune` also has what completing it, or confirming it on all, would cost.
GEPA's loop written from its definition (parents by coverage of the per-example front, three examples and the greater sum,
then all validation examples; the best mean on those is its choice) needs no other environment; the result says how far the
engine is from it. Cells are kept with `--partial FILE`, and those that are there already are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import numpy as np
from gepa_engine import Engine, Texts

from trace_opt.search.gate import Gate, trial_order
from trace_opt.search.greedy import Greedy
from trace_opt.search.sign_test import pair_chances
from trace_opt.search.statistics import shrunken

N = 100
MINIBATCH = 3
START = 0.4

Rng = np.random.Generator
Family = Callable[[float, Rng], float]
FAMILIES: dict[str, Family] = {
    "N(0, .05)": lambda parent, rng: parent + rng.normal(0.0, 0.05),
    "N(-.03, .08)": lambda parent, rng: parent + rng.normal(-0.03, 0.08),
    "+.10 at .2, else -.05": lambda parent, rng: parent + (0.10 if rng.random() < 0.2 else -0.05),
    "+-.03": lambda parent, rng: parent + (0.03 if rng.random() < 0.5 else -0.03),
    "+.20 at .1, else -.10": lambda parent, rng: parent + (0.20 if rng.random() < 0.1 else -0.10),
    "N(.5, .1) absolute": lambda _, rng: rng.normal(0.5, 0.1),
}


class Spent(Exception):  # noqa: N818 # an end, not an error
    """The budget is spent."""


@dataclass(eq=False)
class Candidate:
    truth: float
    right: np.ndarray[Any, Any]
    train: np.ndarray[Any, Any]
    known: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(N, dtype=bool))

    @property
    def answers(self) -> str:
        """A digit for every validation example, then for every training example."""
        return "".join(f"{right:.0f}" for right in (*self.right, *self.train))

    @property
    def mean(self) -> float:
        return float(self.right[self.known].mean()) if self.known.any() else 0.0


class World:
    """Proposals and answers of one seed, and what was paid."""

    def __init__(self, family: str, shared: float, budget: int, charge: int, seed: int) -> None:
        self.rng = np.random.default_rng([seed, list(FAMILIES).index(family), round(100 * shared)])
        self._family, self.budget, self.charge = FAMILIES[family], budget, charge
        self._hard = self.rng.random(2 * N)
        self._common = np.arange(2 * N) % 100 < 100 * shared
        self.rng.shuffle(self._common)
        self.spent = 0
        self.start = self._made(START)

    def child(self, parent: Candidate) -> Candidate:
        """The next proposal, for nothing."""
        return self._made(self._family(parent.truth, self.rng))

    def _made(self, truth: float) -> Candidate:
        truth = min(max(truth, 0.0), 1.0)
        draws = np.where(self._common, self._hard, self.rng.random(2 * N))
        right = (draws < truth).astype(float)
        return Candidate(truth, right[:N], right[N:])

    def pay(self, evaluations: int) -> None:
        if self.spent + evaluations > self.budget:
            raise Spent
        self.spent += evaluations

    def propose(self, parent: Candidate) -> Candidate:
        self.pay(self.charge)
        return self.child(parent)

    def answer(self, candidate: Candidate, example: int) -> float:
        if not candidate.known[example]:
            self.pay(1)
            candidate.known[example] = True
        return float(candidate.right[example])

    def answers(self, candidate: Candidate) -> None:
        self.pay(N - int(candidate.known.sum()))
        candidate.known[:] = True


def gepa(world: World) -> Candidate:
    """GEPA's acceptance loop."""
    pool = [world.start]
    epoch: list[int] = []
    try:
        world.answers(world.start)
        while True:
            parent = pool[_parent(pool, world.rng)]
            if len(epoch) < MINIBATCH:
                epoch = [*epoch, *world.rng.permutation(N).tolist()]
            batch, epoch = epoch[:MINIBATCH], epoch[MINIBATCH:]
            world.pay(MINIBATCH)
            before = parent.train[batch].sum()
            if before == MINIBATCH:
                continue
            child = world.propose(parent)
            world.pay(MINIBATCH)
            if child.train[batch].sum() > before:
                world.answers(child)
                pool.append(child)
    except Spent:
        return max(pool, key=lambda candidate: candidate.mean)


def peer(world: World, engine: Engine, seed: int) -> tuple[Candidate, Candidate, int]:
    """GEPA's engine: what it has chosen when the budget is spent, what it returns, and the evaluations it made."""
    made: dict[str, Candidate] = {}

    def text(candidate: Candidate) -> Texts:
        name = f"{candidate.truth:.6f} {len(made)}"
        made[name] = candidate
        return {"truth": name}

    done = engine.run(
        text(world.start), train=N, val=N, budget=world.budget, charge=world.charge, seed=seed,
        answers=lambda texts: made[texts["truth"]].answers,
        propose=lambda texts, _: text(world.child(made[texts["truth"]])),
    )  # fmt: skip
    return made[done["chosen"]["truth"]], made[done["late"]["truth"]], done["spent"]


def _parent(pool: Sequence[Candidate], rng: Rng) -> int:
    """A candidate by how many examples it leads on, those left out that others cover."""
    scores = np.array([candidate.right for candidate in pool])
    leads = scores == scores.max(axis=0)
    alive = np.ones(len(pool), dtype=bool)
    for index in np.argsort(scores.mean(axis=1), kind="stable"):
        alive[index] = False
        if not leads[alive][:, leads[index]].any(axis=0).all():
            alive[index] = True
    weights = leads.sum(axis=1) * alive
    return int(rng.choice(len(pool), p=weights / weights.sum()))


def greedy(world: World, gate: Gate, seed: int, *, final: str = "shrunken", then: str = "") -> Candidate:
    """Greedy search: one incumbent, and the gate between it and every proposal.

    Args:
        world: Proposes and answers.
        gate: The search gate.
        seed: Of the orders.
        final: The choice among all that were accepted: by "shrunken" means, or the "last".
        then: What else an accepted candidate goes through: "complete" runs it on all examples, "confirm" runs both on all
            and keeps it if its mean is higher.
    """
    incumbent = world.start
    chain = [incumbent]
    try:
        world.answers(incumbent)
        for trial in itertools.count():
            world.pay(MINIBATCH)
            child = world.propose(incumbent)
            if not _passes(world, gate, incumbent, child, trial_order(range(N), seed, trial)):
                continue
            if then:
                world.answers(child)
            if then == "confirm":
                world.answers(incumbent)
                if child.mean <= incumbent.mean:
                    continue
            incumbent = child
            chain.append(child)
    except Spent:
        pass
    if final == "last":
        return incumbent
    judged = [candidate for candidate in chain if candidate.known.any()]
    means = shrunken([c.mean for c in judged], [int(c.known.sum()) for c in judged])
    return judged[max(range(len(judged)), key=lambda i: (means[i], i))] if judged else incumbent


def _passes(world: World, gate: Gate, incumbent: Candidate, child: Candidate, order: Sequence[int]) -> bool:
    """The gate's verdict; the answers of a whole block are paid for before its first is seen."""
    comparison = gate.begin(N)
    for begin in range(0, N, gate.block):
        block = order[begin : begin + gate.block]
        sides = [(world.answer(incumbent, example), world.answer(child, example)) for example in block]
        for before, after in sides:
            comparison.add(before, after)
        if comparison.verdict is not None:
            break
    return comparison.verdict is not None and comparison.verdict.accepted


CELLS = list(itertools.product(FAMILIES, (0.0, 0.5), (1_000, 3_000), (0, 5)))


def truths(loop: Callable[[World, int], Candidate], cell: tuple[str, float, int, int], seeds: int) -> list[float]:
    return [loop(World(*cell, seed), seed).truth for seed in range(seeds)]


def named(cell: tuple[str, float, int, int]) -> str:
    family, shared, budget, charge = cell
    return f"{family}; {shared:.0%} shared; {budget} evaluations; a proposal costs {charge}"


def compared(gate: Gate, seeds: int, engine: Engine | None, kept: Path | None) -> dict[str, Any]:
    """All in every cell: mean true accuracy of what they choose, in points.

    Args:
        gate: Of the greedy search.
        seeds: How many.
        engine: GEPA's own, or None for the loop alone.
        kept: A file of cells done before, a JSON object a line; those done now are added.
    """
    lines = kept.read_text(encoding="utf-8").splitlines() if kept is not None and kept.exists() else []
    done = {row["cell"]: row for row in map(json.loads, lines) if row["seeds"] == seeds and row["gate"] == str(gate)}
    rows: list[dict[str, Any]] = []
    for cell in CELLS:
        row = done.get(named(cell))
        if row is None or ("engine" in row) != (engine is not None):
            row = {"cell": named(cell), "seeds": seeds, "gate": str(gate), **drawn(cell, gate, seeds, engine)}
            if kept is not None:
                with kept.open("a", encoding="utf-8") as file:
                    print(json.dumps(row), file=file)
        rows.append(row)
        against = "engine" if engine is not None else "loop"
        gain, error = points([a - b for a, b in zip(row["greedy"], row[against], strict=True)])
        print(f"{row['cell']}: {gain:+.1f} +- {error:.1f}", flush=True)
    return summary(rows, seeds, engine)


def drawn(cell: tuple[str, float, int, int], gate: Gate, seeds: int, engine: Engine | None) -> dict[str, list[float]]:
    """By who searched, the true accuracy found by seed; of the engine also what it returns and what it spent."""
    found = {
        "greedy": truths(lambda world, seed: greedy(world, gate, seed), cell, seeds),
        "loop": truths(lambda world, _: gepa(world), cell, seeds),
    }
    if engine is not None:
        runs = [peer(World(*cell, seed), engine, seed) for seed in range(seeds)]
        found["engine"] = [chosen.truth for chosen, _, _ in runs]
        found["late"] = [late.truth for _, late, _ in runs]
        found["over"] = [float(spent - cell[2]) for _, _, spent in runs]
    return found


def points(values: Sequence[float]) -> tuple[float, float]:
    """The mean of shares in points, and its standard error."""
    return 100 * math.fsum(values) / len(values), 100 * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def summary(rows: Sequence[dict[str, Any]], seeds: int, engine: Engine | None) -> dict[str, Any]:
    """Every cell and what they come to, with standard errors beside."""
    who = "loop" if engine is None else "engine"
    cells: dict[str, Any] = {}
    for row in rows:
        gain, error = points([a - b for a, b in zip(row["greedy"], row[who], strict=True)])
        cells[row["cell"]] = {
            **{name: round(points(row[key])[0], 1) for key, name in NAMES.items() if key in row},
            "gain": round(gain, 1), "standard error": round(error, 1),
        }  # fmt: skip
    by_seed = {
        key: [math.fsum(row[key][seed] for row in rows) / len(rows) for seed in range(seeds)]
        for key in (*NAMES, "over")
        if key in rows[0]
    }
    gain, error = points([a - b for a, b in zip(by_seed["greedy"], by_seed[who], strict=True)])
    found: dict[str, Any] = {
        "seeds": seeds,
        "peer": "GEPA's loop, written from its definition" if engine is None else f"gepa {engine.version}, its own engine",
        "mean gain": round(gain, 2), "standard error": round(error, 2),
        "least gain": min(cell["gain"] for cell in cells.values()),
    }  # fmt: skip
    if engine is not None:
        apart, off = points([a - b for a, b in zip(by_seed["engine"], by_seed["loop"], strict=True)])
        found["the engine above the loop"] = {
            "mean": round(apart, 2), "standard error": round(off, 2),
            "least": round(min(c[NAMES["engine"]] - c[NAMES["loop"]] for c in cells.values()), 1),
            "most": round(max(c[NAMES["engine"]] - c[NAMES["loop"]] for c in cells.values()), 1),
        }  # fmt: skip
        over = [spent for row in rows for spent in row["over"]]
        late, _ = points([a - b for a, b in zip(by_seed["late"], by_seed["engine"], strict=True)])
        found["the engine's overshoot"] = {
            "evaluations, mean": round(math.fsum(over) / len(over), 1), "evaluations, most": max(over),
            "points it gains by that": round(late, 2),
        }  # fmt: skip
    return {**found, "cells": cells}


NAMES = {
    "greedy": "greedy",
    "engine": "GEPA's engine",
    "late": "GEPA's engine, overshoot counted",
    "loop": "GEPA's loop",
}


CHOSEN = {"alpha": 0.9, "gamma": 0.5, "delta": 0.75, "reach": 0.5, "planned": 0.2, "block": 4}
STRICT = {"gamma": 0.15, "delta": 2.0, "reach": 1.7, "planned": 0.5}
TUNED: list[dict[str, Any]] = [
    {"alpha": 0.05, **STRICT},
    {"alpha": 0.3, **STRICT, "gamma": 0.3, "delta": 1.0},
    {"alpha": 0.4, **STRICT, "gamma": 0.3, "delta": 1.0},
    {"alpha": 0.5, **STRICT, "gamma": 0.3, "delta": 1.0},
    {"alpha": 0.4, "gamma": 0.3, "delta": 1.0, "reach": 0.5, "planned": 0.5},
    {"alpha": 0.5, "gamma": 0.5, "delta": 1.0, "reach": 0.5, "planned": 0.5},
    {"alpha": 0.7, "gamma": 0.5, "delta": 1.0, "reach": 0.5, "planned": 0.3},
    {"alpha": 0.9, "gamma": 0.5, "delta": 1.0, "reach": 0.5, "planned": 0.2},
    {"alpha": 0.9, "gamma": 0.5, "delta": 0.5, "reach": 0.5, "planned": 0.2},
    {"alpha": 0.9, "gamma": 0.5, "delta": 0.75, "reach": 0.5, "planned": 0.2},
    {"alpha": 0.9, "gamma": 0.5, "delta": 0.75, "reach": 0.5, "planned": 0.2, "block": 4},
    {"alpha": 0.9, "gamma": 0.5, "delta": 0.75, "reach": 0.5, "planned": 0.2, "block": 8},
    {**CHOSEN, "then": "complete"},
    {**CHOSEN, "then": "confirm"},
    {**CHOSEN, "final": "last"},
]


def tuned(seeds: int) -> list[dict[str, Any]]:
    """Mean true accuracy over all cells by the settings of the gate."""
    rows: list[dict[str, Any]] = []
    for settings in TUNED:
        loop = {name: settings[name] for name in ("then", "final") if name in settings}
        gate = Gate(**{name: value for name, value in settings.items() if name not in loop})
        means = [
            100 * math.fsum(truths(lambda w, seed, g=gate, o=loop: greedy(w, g, seed, **o), cell, seeds)) / seeds
            for cell in CELLS
        ]
        equal = gate.characteristics(*pair_chances(0.5, 0.5), N)
        rows.append({
            **settings, "mean": round(math.fsum(means) / len(means), 2),
            "equal accepted %": round(100 * equal.better, 1), "examples": round(equal.examples, 1),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="10 seeds, not 100")
    parser.add_argument("--tune", action="store_true", help="other settings of the gate instead, 20 seeds each")
    parser.add_argument("--gepa", metavar="PYTHON", help="the interpreter of an environment that has gepa")
    parser.add_argument("--partial", metavar="FILE", type=Path, help="where cells that are done are kept")
    args = parser.parse_args()
    seeds = 10 if args.quick else 20 if args.tune else 100
    if args.tune:
        harness.save("search_gate_settings", {"settings": tuned(seeds)}, seeds=list(range(seeds)))
        return
    gate = Greedy().gate
    assert gate is not None
    with Engine(args.gepa) if args.gepa else nullcontext() as engine:
        figures = {"gate": str(gate), **compared(gate, seeds, engine, args.partial)}
    harness.save("search_simulation", figures, seeds=list(range(seeds)))


if __name__ == "__main__":
    main()
