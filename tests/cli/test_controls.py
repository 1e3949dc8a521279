"""Controls of a problem file at the command line: `run`, `show`, `--dry-run`, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

AGENT = '''
"""An agent that tries again with what it was told."""
from trace_opt import Budget, Categorical, Feedback, Parameter, Problem, rollout, trace
from trace_opt.refine.episodes import Episodes

tone = Parameter("silent", name="tone", choices=("silent", "clear"))


@trace
def go(reflection: str) -> str:
    return reflection.split()[-1] if reflection else rollout().rng.choice(("left", "right", "back"))


def attempt(task: dict, reflection: str) -> str:
    return go(reflection)


@trace
def reflector(messages: list) -> str:
    return "take left" if tone.value == "clear" else ""


agent = Episodes(attempt, reflector, guide=lambda output, task: Feedback(score=float(output == "left")), attempts=2)
data = [{"number": i} for i in range(40)]
problem = Problem(
    workflow=agent, train=data[:10], val=data[10:20], test=data[20:], guide=agent.scored, margins=agent.margins,
    parameters=[tone], optimizers=[Categorical()], controls=agent.controls(attempt), budget=Budget(trials=1),
    score_range=(0.0, 1.0),
)
'''


def test_run_and_show_print_success_by_attempt_against_the_controls(
    cli: Any, write: Callable[[str, str], Path]
) -> None:
    """The same table in both, and its figures in the JSON; the dry run says what the controls take."""
    file = write("agent.py", AGENT)
    done = cli("run", file, "--quiet")
    assert done.code == 0
    lines = done.out.splitlines()
    head = next(line for line in lines if line.startswith("  controls"))
    assert head.split("  ")[-1] == "attempts without error"
    assert "solved after 2" in head
    assert "return" in head
    rows = [line.strip().split("  ")[0] for line in lines[lines.index(head) + 1 : lines.index(head) + 6]]
    assert rows == ["start", "best", "no retry", "retry without memory", "random actor"]
    ahead = [line for line in lines if line.startswith("  best against ")]
    assert len(ahead) == 3
    again = cli("show", "last")
    assert all(line in again.out.splitlines() for line in [head, *ahead])
    report = json.loads(cli("show", "last", "--json").out)["report"]
    row = report["controls"][0]
    assert row["name"] == "no retry"
    assert row["scores"]["n"] == 20
    low, high = row["scores"]["intervals"]["solved after 2"]
    assert 0 <= low <= row["scores"]["means"]["solved after 2"] <= high <= 1
    planned = cli("run", file, "--dry-run")
    assert "60 rollouts for the controls" in planned.out + planned.err
