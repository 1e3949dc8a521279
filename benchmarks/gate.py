"""What the gates find, and what they mistake: right or wrong answers exactly, other scores and real ones by drawing.

    python benchmarks/gate.py [--quick] [--recorded gepa_pupa_llm_cache.json]

Beside them stands the gate of GEPA (three examples, the greater sum, then a pass over all), computed by its definition.
The recorded file holds model answers and a judge's scores of them: a real candidate x example matrix.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import harness

from trace_opt.search.gate import Gate, Measure
from trace_opt.search.measures import smallest_gain
from trace_opt.search.sign_test import pair_chances

N = 100
SEED = 20_260_101
GAINS = (0.0, -0.1, 0.1, 0.2)
GATES = {"claim": Gate.claim(), "search": Gate.search()}
MEASURES = {"betting": Measure(score_range=(0.0, 1.0)), "sign flips": Measure()}

Pair = tuple[float, float]


def figure(accepted: float, examples: float) -> dict[str, float]:
    return {"accepted %": round(100 * accepted, 2), "examples": round(examples, 1)}


def gepa_exact(wins: float, losses: float) -> dict[str, float]:
    """Three examples and the greater sum; what passes is run on all."""
    steps = {1: wins, 0: 1 - wins - losses, -1: losses}
    passed = sum(math.prod(steps[s] for s in three) for three in itertools.product(steps, repeat=3) if sum(three) > 0)
    return figure(passed, 3 + N * passed)


def binary() -> dict[str, Any]:
    """Right or wrong answers, the incumbent right half of the time; exact."""
    found: dict[str, Any] = {}
    for shared, gain in itertools.product((0.0, 0.5), GAINS):
        chances = pair_chances(0.5, 0.5 + gain, shared)
        row: dict[str, Any] = {}
        for name, gate in GATES.items():
            rates = gate.characteristics(*chances, N)
            row[name] = figure(rates.better, rates.examples)
        row["GEPA"] = gepa_exact(*chances)
        found[f"gain {gain:+.2f}, {shared:.0%} shared"] = row
    return found


def drawn(gate: Gate, measure: Measure, draw: Callable[[random.Random], Pair], draws: int) -> dict[str, float]:
    """Many comparisons on pairs drawn afresh."""
    rng = random.Random(SEED)
    accepted = examples = 0
    for seed in range(draws):
        comparison = gate.begin(N, [measure], seed=seed)
        while comparison.verdict is None:
            comparison.add(*draw(rng))
        accepted += comparison.verdict.accepted
        examples += comparison.n
    return figure(accepted / draws, examples / draws)


def gepa_drawn(draw: Callable[[random.Random], Pair], draws: int) -> dict[str, float]:
    rng = random.Random(SEED)
    passed = 0
    for _ in range(draws):
        three = [draw(rng) for _ in range(3)]
        passed += sum(after for _, after in three) > sum(before for before, _ in three)
    return figure(passed / draws, 3 + N * passed / draws)


def bounded(draws: int) -> dict[str, Any]:
    """Scores in [0, 1] whose differences are normal, cut to the range."""
    found: dict[str, Any] = {}
    for sd, gain in itertools.product((0.2, 0.4), (0.0, 0.05, 0.1)):

        def draw(rng: random.Random, sd: float = sd, gain: float = gain) -> Pair:
            return 0.0, min(max(rng.gauss(gain, sd), -1.0), 1.0)

        row = {name: drawn(Gate.claim(), measure, draw, draws) for name, measure in MEASURES.items()}
        found[f"gain {gain:+.2f}, sd {sd}"] = {**row, "GEPA": gepa_drawn(draw, draws)}
    return found


def matrix(path: Path) -> dict[str, dict[str, float]]:
    """The judge's score of every recorded answer: by system prompt, then by question."""
    replies = {ast.literal_eval(key): reply for key, reply in json.loads(path.read_text(encoding="utf-8")).items()}
    scores = {text.split("\nRESPONSE:\n", 1)[1]: reply for (who, text), reply in replies.items() if _judged(who, text)}
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (who, text), reply in replies.items():
        if who != "task_lm":
            continue
        system, user = (message["content"] for message in json.loads(text))
        score = scores.get(f"{reply}\n\nReturn only a number between 0 and 1.")
        if score is not None:
            found[system][user] = float(score)
    return dict(found)


def _judged(who: str, text: str) -> bool:
    return who == "reflection_lm" and "\nRESPONSE:\n" in text


def oriented(sizes: Sequence[float], gain: float) -> Callable[[random.Random], Pair]:
    """Real sizes of differences, turned so often in favour that their mean is the gain."""
    favour = (1 + gain * len(sizes) / math.fsum(sizes)) / 2

    def draw(rng: random.Random) -> Pair:
        return 0.0, rng.choice(sizes) * (1 if rng.random() < favour else -1)

    return draw


def real(path: Path, draws: int) -> dict[str, Any]:
    """Resampled from the recorded matrix: chosen gains over its differences, and its candidates as they are."""
    table = matrix(path)
    names = list(table)
    pairs = {
        (a, b): [(table[names[a]][q], table[names[b]][q]) for q in table[names[a]] if q in table[names[b]]]
        for a, b in itertools.combinations(range(len(names)), 2)
    }
    pairs = {key: common for key, common in pairs.items() if len(common) >= 10}
    differences = [after - before for common in pairs.values() for before, after in common]
    sizes = {
        "scores as judged": [abs(d) for d in differences],
        "right is .8 or more": [
            float((after >= 0.8) != (before >= 0.8)) for common in pairs.values() for before, after in common
        ],
    }
    found: dict[str, Any] = {
        "candidates x examples": [[len(scores), round(math.fsum(scores.values()) / len(scores), 3)] for scores in table.values()],
        "pairs of candidates": len(pairs), "differences": len(differences),
        "mean size": round(math.fsum(sizes["scores as judged"]) / len(differences), 3),
        "share that differs at .8": round(math.fsum(sizes["right is .8 or more"]) / len(differences), 3),
    }  # fmt: skip
    for gain in GAINS:
        right = oriented(sizes["right is .8 or more"], gain)
        judged = oriented(sizes["scores as judged"], gain)
        row: dict[str, Any] = {
            f"right or wrong, {name}": drawn(gate, Measure(two_valued=True), right, draws)
            for name, gate in GATES.items()
        }
        row["right or wrong, GEPA"] = gepa_drawn(right, draws)
        row |= {
            f"as judged, {kind}, {name}": drawn(gate, measure, judged, draws // 4)
            for (name, gate), (kind, measure) in itertools.product(GATES.items(), MEASURES.items())
        }
        row["as judged, GEPA"] = gepa_drawn(judged, draws)
        found[f"gain {gain:+.2f}"] = row
    found["as they are"] = [_as_they_are(key, common, draws // 10) for key, common in pairs.items()]
    return found


def _as_they_are(key: tuple[int, int], common: list[Pair], draws: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "candidates": list(key), "common examples": len(common),
        "mean difference": round(math.fsum(b - a for a, b in common) / len(common), 3),
    }  # fmt: skip
    for name, gate in GATES.items():
        row |= {
            f"{kind}, {name}": drawn(gate, m, lambda rng: rng.choice(common), draws) for kind, m in MEASURES.items()
        }
    return row | {"GEPA": gepa_drawn(lambda rng: rng.choice(common), draws)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws")
    parser.add_argument("--recorded", type=Path, help="the recorded PUPA answers and judge scores")
    args = parser.parse_args()
    draws = 2_000 if args.quick else 20_000
    figures: dict[str, Any] = {
        "examples": N,
        "right or wrong, exact": binary(),
        "smallest gain shown with 80 %": {str(n): smallest_gain(n) for n in (20, 30, 50, 100, 200, 400)},
        "bounded scores": {"draws": draws // 4, **bounded(draws // 4)},
    }
    if args.recorded is None:
        print("recorded scores: skipped, no --recorded given")
    else:
        figures["recorded scores"] = {"draws": draws, "draws as judged": draws // 4, **real(args.recorded, draws)}
    harness.save("gate", figures, seeds=[SEED])


if __name__ == "__main__":
    main()
