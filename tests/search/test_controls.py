"""Controls: always run at the end, on what start and best are compared on, paid for, kept and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trace_opt.core.context import rollout
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import trace
from trace_opt.errors import BudgetError, ProblemError, StoreError
from trace_opt.optim.base import Optimizer, Proposal
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.evaluate import plan
from trace_opt.search.report import Report
from trace_opt.store.store import open_store
from trace_opt.testing import ScriptedLLM

ROWS = [{"x": float(i)} for i in range(30)]


class Raise(Optimizer):
    """Proposes one more."""

    needs_model = False

    def handles(self, parameter: Parameter[Any]) -> bool:
        return True

    async def propose(self, parameters: Any, rollouts: Any, history: Any) -> Proposal:
        now = max([0, *(trial.proposal.values["level"] for trial in history if trial.outcome.accepted)])
        return Proposal({"level": now + 1})


class Made:
    """A problem whose workflow and controls note what they ran on."""

    def __init__(self) -> None:
        self.level = Parameter(0, name="level")
        self.seen: list[tuple[str, float, int, int | None]] = []

    def of(self, name: str, factor: float) -> Any:
        @trace(name="read")
        def read(x: float) -> float:
            value = self.level.value
            self.seen.append((name, x, value, rollout().seed))
            return min(1.0, factor * value / 3)

        def workflow(x: float) -> float:
            return read(x)

        return workflow

    def run(self, **options: Any) -> Any:
        given: dict[str, Any] = {
            "val": ROWS[10:20], "test": ROWS[20:], "parameters": [self.level], "optimizers": [Raise()], "store": None,
            "budget": Budget(trials=2), "controls": {"half": self.of("half", 0.5), "same": self.of("same", 1.0)},
            "score_range": (0.0, 1.0), **options,
        }  # fmt: skip
        return optimize(
            self.of("own", 1.0), ROWS[:10], lambda output, example: {"score": output, "twice": 2 * output}, **given
        )


def test_controls_run_on_the_test_examples_with_the_best_values_and_the_same_seeds() -> None:
    """Each test example once for each control, under what the search chose, on the seeds that the best had."""
    made = Made()
    run = made.run()
    assert run.best == {"level": 2}
    own = {(x, seed) for name, x, level, seed in made.seen if name == "own" and level == 2 and x >= 20}
    for name in ("half", "same"):
        rows = [row for row in made.seen if row[0] == name]
        assert {(x, seed) for _, x, _, seed in rows} == own
        assert len(rows) == 10
        assert {level for _, _, level, _ in rows} == {2}
    half, same = run.report().controls
    assert (half.name, same.name) == ("half", "same")
    assert half.scores.mean == pytest.approx(1 / 3)
    assert half.scores.means == pytest.approx({"score": 1 / 3, "twice": 2 / 3})
    assert half.difference.wins == 10
    assert half.difference.mean == pytest.approx(1 / 3)
    assert same.difference.mean == 0


def test_the_report_shows_them_and_is_the_same_after_json() -> None:
    """A row for start, best and each control, a column for each score, and the best against each."""
    report = Made().run().report()
    again = Report.from_json(json.loads(json.dumps(report.to_json())))
    assert again == report
    lines = str(report).splitlines()
    table = [
        line.split() for line in lines if line.startswith(("  controls ", "  start ", "  best ", "  half", "  same"))
    ]
    assert ["controls", "score", "twice"] in table
    assert any(row[:1] == ["half"] and row[1] == "0.333" for row in table)
    assert any(line.startswith("  best against half  +0.333") for line in lines)


def test_a_run_without_controls_has_none() -> None:
    """Nothing is said and nothing is run."""
    report = Made().run(controls=None).report()
    assert report.controls == ()
    assert "controls" not in str(report)


def test_controls_count_against_the_budget_and_are_held_back_from_the_search() -> None:
    """A budget in rollouts that covers the search, the test and the controls is not exceeded and completes them."""
    made = Made()
    needed = 10 + 2 * 10 + 2 * 10
    run = made.run(budget=Budget(rollouts=needed + 40))
    assert len(made.seen) <= needed + 40
    assert all(row.scores.n == 10 for row in run.report().controls)
    with pytest.raises(BudgetError, match="20 for the controls"):
        Made().run(budget=Budget(rollouts=30))


def test_a_level_pays_for_them_too() -> None:
    """`light` stands for more rollouts where there are controls, and the plan says what they take."""
    made = Made()
    given: dict[str, Any] = {
        "val": ROWS[10:20], "test": ROWS[20:], "parameters": [made.level], "optimizers": [Raise()], "store": None
    }  # fmt: skip
    guide = lambda output, example: output
    plain = plan(made.of("own", 1.0), ROWS[:10], guide, **given)
    more = plan(made.of("own", 1.0), ROWS[:10], guide, controls={"half": made.of("half", 0.5)}, **given)
    assert more.budget["rollouts"] == plain.budget["rollouts"] + 10
    assert more.rollouts["for the controls"] == 10
    assert "for the controls" not in plain.rollouts


def test_without_test_examples_they_run_on_what_was_chosen_by() -> None:
    """Where nothing is held out, controls are compared on the validation examples."""
    made = Made()
    run = optimize(
        made.of("own", 1.0), ROWS[:10], lambda output, example: output, parameters=[made.level], optimizers=[Raise()],
        store=None, budget=Budget(trials=1), controls={"half": made.of("half", 0.5)},
    )  # fmt: skip
    (half,) = run.report().controls
    assert half.scores.n == 10


def test_a_resumed_run_does_not_pay_for_them_again(tmp_path: Path) -> None:
    """What a control came to is in the store; a larger budget that finds nothing better runs none of it again."""
    store = open_store(tmp_path / "runs.db")
    made = Made()
    run = made.run(store=store, budget=Budget(trials=3))
    assert run.best == {"level": 3}
    before = len([row for row in made.seen if row[0] in ("half", "same")])
    again = made.run(store=store, resume=run.id, budget=Budget(trials=4))
    assert again.best == run.best
    assert len([row for row in made.seen if row[0] in ("half", "same")]) == before == 20
    assert again.report().controls == run.report().controls
    kept = [record for record in store.rollouts(run.id) if record.candidate < -1]
    assert len(kept) == 20
    assert {record.split for record in kept} == {"test"}


def test_a_run_is_not_resumed_with_other_controls(tmp_path: Path) -> None:
    """What a control is made of belongs to the problem."""
    store = open_store(tmp_path / "runs.db")
    made = Made()
    run = made.run(store=store)
    with pytest.raises(StoreError, match="a control uses"):
        made.run(store=store, resume=run.id, budget=Budget(trials=4), controls={"half": lambda x: 0.0})


def test_a_control_that_cannot_be_called_is_refused() -> None:
    """It is named, before anything runs."""
    with pytest.raises(ProblemError, match="the control 'half' is 3"):
        Made().run(controls={"half": 3})


def test_a_run_stopped_in_its_controls_goes_on_there(tmp_path: Path) -> None:
    """What was run of a control before Ctrl-C is kept, and only the rest is run when the run is resumed."""
    store = open_store(tmp_path / "runs.db")
    made = Made()
    stopping = [True]
    inner = made.of("half", 0.5)

    def half(x: float) -> Any:
        if stopping and x == 27.0:
            raise KeyboardInterrupt
        return inner(x)

    controls = {"half": half}
    with pytest.raises(KeyboardInterrupt):
        made.run(store=store, controls=controls)
    stopping.clear()
    done = {x for name, x, _, _ in made.seen if name == "half"}
    assert 0 < len(done) < 10
    run = store.runs()[0].id
    resumed = made.run(store=store, resume=run, controls=controls)
    (row,) = resumed.report().controls
    assert row.scores.n == 10
    ran = [x for name, x, _, _ in made.seen if name == "half"]
    assert sorted(ran) == sorted(set(ran))
    alone = Made()
    assert alone.run(controls={"half": alone.of("half", 0.5)}).report().controls == (row,)


def test_controls_that_the_budget_does_not_cover_are_said_to_be_incomplete() -> None:
    """Calls that only a control makes cannot be held back; it ends where the budget does, and the report says so."""
    llm = ScriptedLLM(lambda messages: "1")
    made = Made()

    def asking(x: float) -> Any:
        return len(llm(f"what of {x}?"))

    report = made.run(controls={"asking": asking}, budget=Budget(trials=2, calls=4), concurrency=1).report()
    (row,) = report.controls
    assert row.scores.n == llm.calls == 4
    assert row.difference.mean == pytest.approx(2 / 3 - 1)
    assert any(note.startswith("the controls are not complete: ") for note in report.notes)
