"""What a plausible model's rewrites of a Battleship policy come to, through `optimize` and its real machinery.

    python benchmarks/battleship.py            200 boards to judge by
    python benchmarks/battleship.py --quick    40

A script stands for the model and answers what one would: a policy that is wrong, a reply that is cut, a hostile function,
parity alone, targets around hits with parity, probability density. All go through reply, contract, sandbox and gate. Then
the policies play the same held-out boards, with the shots of the problem, and with as many as it takes.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

from harness import module_at, save

from trace_opt import Budget
from trace_opt.core.context import in_force
from trace_opt.problem import load_problem
from trace_opt.testing import ScriptedLLM

FILE = Path(__file__).parents[1] / "agents" / "battleship.py"

DENSITY = """
def reason(board: list[str], afloat: list[int]) -> list[list[float]]:
    n = len(board)
    lines = [[(r, c) for c in range(n)] for r in range(n)] + [[(r, c) for r in range(n)] for c in range(n)]
    promise = [[0.0] * n for _ in range(n)]
    for line in lines:
        marks = ''.join(board[r][c] for r, c in line)
        for length in afloat:
            for i in range(n - length + 1):
                part = marks[i:i + length]
                if 'o' in part or '#' in part:
                    continue
                weight = 1.0 * 50 ** part.count('x')
                for r, c in line[i:i + length]:
                    promise[r][c] += weight
    return promise
"""
ARGMAX = """
def act(promise: list[list[float]], board: list[str], luck: int) -> tuple[int, int]:
    free = [(r, c) for r, row in enumerate(board) for c, mark in enumerate(row) if mark == '.']
    best = max(promise[r][c] for r, c in free)
    top = [(r, c) for r, c in free if promise[r][c] == best]
    return top[luck % len(top)]
"""
HUNT = """
def reason(board: list[str], afloat: list[int]) -> list[list[float]]:
    n = len(board)
    promise = [[1.0 if (r + c) % 2 == 0 else 0.0 for c in range(n)] for r in range(n)]
    for r in range(n):
        for c in range(n):
            if board[r][c] == 'x':
                for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                    if 0 <= r + dr < n and 0 <= c + dc < n:
                        behind = 0 <= r - dr < n and 0 <= c - dc < n and board[r - dr][c - dc] == 'x'
                        promise[r + dr][c + dc] += 20.0 if behind else 10.0
    return promise
"""
PARITY = """
def reason(board: list[str], afloat: list[int]) -> list[list[float]]:
    return [[1.0 if (r + c) % 2 == 0 else 0.0 for c in range(len(board))] for r in range(len(board))]
"""

WRONG = (
    "def act(promise: list[list[float]], board: list[str], luck: int) -> tuple[int, int]:\n    return 0, len(board)\n"
)
HOSTILE = "import os\ndef act(promise, board, luck):\n    os.system('touch harmed')\n    return 0, 0\n"
SCRIPT: tuple[Any, ...] = (
    {"act": WRONG}, None, {"act": HOSTILE}, {"reason": PARITY, "act": ARGMAX},
    {"reason": HUNT, "act": ARGMAX}, {"reason": DENSITY, "act": ARGMAX},
)  # fmt: skip


def scripted() -> ScriptedLLM:
    """Gives the replies in order; a reply that is asked for again comes again."""
    asked = 0

    def answer(messages: Any) -> str:
        nonlocal asked
        if len(messages) <= 2:  # no repair of the reply before
            asked += 1
        values = SCRIPT[min(asked, len(SCRIPT)) - 1]
        return '{"values": {"act": "def act(' if values is None else json.dumps({"reasoning": "", "values": values})

    return ScriptedLLM(answer)


def bounds(values: list[float], seed: int = 0) -> list[float]:
    """Mean with a 95 % bootstrap interval."""
    rng = random.Random(seed)
    means = sorted(statistics.mean(rng.choices(values, k=len(values))) for _ in range(2000))
    return [round(x, 4) for x in (statistics.mean(values), means[50], means[1949])]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    boards = 80 if quick else 400
    problem = load_problem(FILE, {"boards": str(boards)})
    llm = scripted()
    run = problem.optimize(model=llm, budget=Budget(trials=len(SCRIPT)), store=None)
    game = module_at(FILE)
    policies = {
        "start (random, may repeat)": {}, "random, never repeats": {"act": ARGMAX}, "parity": {"reason": PARITY, "act": ARGMAX},
        "parity and targets": {"reason": HUNT, "act": ARGMAX}, "found": run.best,
    }  # fmt: skip
    tests = [example["seed"] for example in problem.test or ()]
    figures: dict[str, Any] = {
        "boards": len(tests),
        "shots": 28,
        "requests": llm.calls,
        "harmed": Path("harmed").exists(),
    }
    figures["trials"] = [[t.before, t.after, t.accepted] for t in run.history]
    rates: dict[str, list[float]] = {}
    for name, values in policies.items():
        player = game.Player(8, (4, 3, 3, 2), 28, "monty")
        longer = game.Player(8, (4, 3, 3, 2), 640, "monty")
        with in_force(values):
            rates[name] = [game.hit_rate(player(seed)) for seed in tests]
            clear = [float(len(longer(seed).log)) for seed in tests]
        figures[name] = {"hit rate": bounds(rates[name]), "shots to sink all": bounds(clear)}
    for name in list(policies)[:-1]:
        pairs = [a - b for a, b in zip(rates["found"], rates[name], strict=True)]
        figures[f"found above {name}"] = bounds(pairs)
    if quick:
        print(json.dumps(figures, indent=2))
    else:
        save("battleship", figures, seeds=[0])


if __name__ == "__main__":
    main()
