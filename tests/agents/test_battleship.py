"""agents/battleship.py: the rules of the game, what is said about shots, and a policy improved by a scripted model."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.agents.command_line import exported
from tests.loading import module_at
from trace_opt import Budget
from trace_opt.core.context import in_force
from trace_opt.errors import ProblemError
from trace_opt.problem import Problem, load_problem
from trace_opt.testing import ScriptedLLM

PATH = Path(__file__).parents[2] / "agents" / "battleship.py"
SMALL = {"size": "5", "ships": "[3,2]", "shots": "12", "boards": "16"}

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

GOOD = {"reason": DENSITY, "act": ARGMAX}


def loaded(**options: str) -> Problem:
    return load_problem(PATH, {**SMALL, **options})


def answering(values: dict[str, Any]) -> ScriptedLLM:
    return ScriptedLLM(lambda _: json.dumps({"reasoning": "where ships can lie", "values": values}))


@pytest.fixture(scope="module")
def game() -> Any:
    return module_at(PATH, "battleship_under_test", listed=True)


def a_game(game: Any) -> Any:
    return game.Game((((0, 0), (0, 1)), ((2, 0), (2, 1), (2, 2))), ["..."] * 3, [2, 3], 5)


def test_shots_are_marked_and_a_ship_hit_everywhere_is_sunk(game: Any) -> None:
    after = a_game(game)
    for square in ((1, 1), (0, 0), (0, 0), (3, 0), (0, 1), (2, 2)):
        after = game.fire(after, square)
    assert after.board == ["##.", ".o.", "..x"]
    assert after.afloat == [3]
    assert [told for _, told in after.log] == [
        "a miss", "a hit", "already tried", "outside the board", "a hit that sank the ship of 2", "a hit"
    ]  # fmt: skip
    assert game.hit_rate(after) == 3 / 5


def test_a_shot_from_the_other_end_of_the_board_is_outside(game: Any) -> None:
    assert game.fire(a_game(game), (-1, 0)).log[0][1] == "outside the board"


def test_the_guide_says_what_was_lost_and_what_is_left(game: Any) -> None:
    after = a_game(game)
    for square in ((2, 2), (2, 2), (5, 5), (1, 0)):
        after = game.fire(after, square)
    feedback = game.guide(after, {"seed": 0})
    assert feedback.value == 0.2
    assert "1 of 5 squares with ships hit in 4 shots, 1 missed" in feedback.text
    assert "1 lost because already tried, such as shot 2 at (2, 2)" in feedback.text
    assert "1 lost because outside the board, such as shot 3 at (5, 5)" in feedback.text
    assert "still afloat: 2, 3; the ship of 3 at (2, 0) to (2, 2) was hit in 1 places only" in feedback.text
    assert feedback.text.endswith("SS.\no..\nSSx")


def test_boards_hold_all_ships_without_overlap_and_the_seed_decides_them(game: Any) -> None:
    for seed in range(30):
        dealt = game.deal(seed, 6, (4, 3, 3, 2))
        assert [len(ship) for ship in dealt.ships] == [4, 3, 3, 2]
        assert len({square for ship in dealt.ships for square in ship}) == 12
        assert dealt == game.deal(seed, 6, (4, 3, 3, 2))
    assert len({game.deal(seed, 6, (4, 3, 3, 2)).ships for seed in range(30)}) == 30


def test_training_validation_and_test_share_no_board() -> None:
    problem = loaded(boards="40")
    parts = [[example["seed"] for example in part or ()] for part in (problem.train, problem.val, problem.test)]
    assert [len(part) for part in parts] == [10, 10, 20]
    assert len({seed for part in parts for seed in part}) == 40
    assert not {e["seed"] for e in loaded(seed="1").train} & {e["seed"] for e in problem.train}


def test_a_better_policy_hits_more_and_neither_function_helps_alone() -> None:
    problem = loaded(size="6", boards="40", shots="14")
    means: list[float] = []
    for values in ({}, {"reason": DENSITY}, GOOD):
        with in_force(values):
            scores = [problem.guide(problem.workflow(**example), example).value for example in problem.train]
        means.append(statistics.mean(scores))
    assert means[0] == means[1] < means[2] - 0.3


def test_a_scripted_model_improves_it_and_hostile_replies_change_nothing() -> None:
    hostile = "import os\ndef act(promise, board, luck):\n    os.system('touch harmed')\n    return 0, 0\n"
    outside = "def act(promise, board, luck):\n    return len(board), 0\n"
    wrong_type = "def act(promise, board, luck):\n    return 'a1'\n"
    replies = iter([{"act": hostile}, {"act": outside}, {"act": wrong_type}])
    llm = ScriptedLLM(lambda _: json.dumps({"values": next(replies, GOOD)}))
    found = loaded().optimize(model=llm, budget=Budget(trials=4), store=None)
    assert [trial.accepted for trial in found.history] == [False, False, False, True]
    assert "weight" in found.best["reason"]
    assert "top[luck" in found.best["act"]
    assert not Path("harmed").exists()


def test_both_sandboxes_play_the_same_game() -> None:
    from trace_opt.core.sandbox.process import Process

    if Process.refusal() is not None:
        pytest.skip("this kernel cannot confine processes")
    logs: list[Any] = []
    for sandbox in ("monty", "process"):
        problem = loaded(sandbox=sandbox)
        with in_force(GOOD):
            logs.append(problem.workflow(**problem.train[0]).log)
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("size", "1", "give from 2 to 20"), ("size", "big", "a whole number"), ("ships", "[9]", "give lengths from 1 to size=5"),
     ("ships", "[]", "give lengths"), ("ships", "4", "option 'ships' got '4'"), ("shots", "26", "give from 1 to 25"), ("shots", "0", "give from 1"),
     ("boards", "4", "give 8 or more"), ("sandbox", "vm", "one of 'monty', 'process'")],
)  # fmt: skip
def test_a_wrong_option_is_refused_in_one_sentence(name: str, value: str, told: str) -> None:
    with pytest.raises(ProblemError, match=told):
        loaded(**{name: value})


WRAPPER = """
import dataclasses
import json
from trace_opt import OptoPrime
from trace_opt.problem import load_problem
from trace_opt.testing import ScriptedLLM

llm = ScriptedLLM(lambda _: json.dumps({"values": GOOD}))
problem = dataclasses.replace(load_problem(PATH, SMALL), optimizers=[OptoPrime(llm)], reload=None)
"""


def test_run_diff_and_export_from_the_command_line(capfd: Any, tmp_path: Path) -> None:
    file = tmp_path / "wrapper.py"
    file.write_text(f"PATH, SMALL, GOOD = {str(PATH)!r}, {SMALL!r}, {GOOD!r}\n{WRAPPER}", encoding="utf-8")
    found = exported(file, ("reason", "act"), capfd)
    promise = found.reason(["...", ".x.", "..."], [2])
    assert found.act(promise, ["...", ".x.", "..."], 0) in [(0, 1), (1, 0), (1, 2), (2, 1)]


def test_a_dry_run_spends_nothing(capfd: Any) -> None:
    from trace_opt.cli import main

    options = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    assert main(["run", str(PATH), "--dry-run", "--model", "openai/gpt-4.1-mini", *options]) == 0
    assert "Battleship" in capfd.readouterr().out
