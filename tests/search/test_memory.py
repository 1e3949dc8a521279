"""Pure ops in whole searches: what a proposal pays, what outlives the process, what the report says."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.search.conftest import Listed
from trace_opt.core.context import rollout
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import trace
from trace_opt.llm.meter import charge
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.evaluate import evaluate
from trace_opt.search.greedy import Greedy
from trace_opt.search.report import Report
from trace_opt.store.store import Store
from trace_opt.testing import ScriptedLLM

EXAMPLES = [{"x": x, "y": 3 * x + 7} for x in range(40)]


class Steps:
    """`y = a * x + b` in two pure ops that each pay for a call, the second on what the first gave."""

    def __init__(self, *, memo: bool = True, asynchronous: bool = False) -> None:
        self.runs: list[tuple[str, Any]] = []
        self.a = a = Parameter(3, name="a")
        self.b = b = Parameter(0, name="b")
        runs = self.runs

        @trace(memo=memo)
        def scale(x: int) -> int:
            runs.append(("scale", x))
            charge(tokens_in=10, tokens_out=1, usd=0.5)
            return a.value * x

        @trace(memo=memo)
        def shift(x: int) -> int:
            runs.append(("shift", x))
            charge(tokens_in=1)
            return x + b.value

        async def astep(x: int) -> int:
            await asyncio.sleep(0)
            return shift(scale(x))

        def step(x: int) -> int:
            return shift(scale(x))

        self.workflow: Callable[..., Any] = astep if asynchronous else step

    def guide(self, output: int, example: Mapping[str, int]) -> float:
        return -abs(output - example["y"])

    def optimize(self, values: Any, **options: Any) -> Any:
        given = {"store": None, "budget": Budget(trials=len(values)), "optimizers": [Listed(values)], **options}
        return optimize(self.workflow, EXAMPLES, self.guide, **given)

    def xs(self) -> list[int]:
        """The examples that the first op ran on."""
        return [x for name, x in self.runs if name == "scale"]

    def count(self, op: str) -> int:
        return sum(name == op for name, _ in self.runs)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_search_runs_an_op_once_for_each_example_and_each_value_that_it_reads(asynchronous: bool) -> None:
    steps, plain = Steps(asynchronous=asynchronous), Steps(memo=False, asynchronous=asynchronous)
    values = [{"b": 5}, {"b": 7}, {"b": 9}]
    run, other = steps.optimize(values), plain.optimize(values)
    assert sorted(steps.xs()) == sorted(set(plain.xs()))
    assert steps.count("scale") < plain.count("scale") * 0.6
    assert steps.count("scale") < steps.count("shift") <= plain.count("shift")
    assert [(t.changed, t.before, t.after, t.accepted, t.verdict) for t in run.history] == [
        (t.changed, t.before, t.after, t.accepted, t.verdict) for t in other.history
    ]
    assert run.best == other.best == {"a": 3, "b": 7}


def test_the_report_says_what_was_saved_and_saved_and_spent_make_what_it_would_have_cost() -> None:
    steps, plain = Steps(), Steps(memo=False)
    report, other = steps.optimize([{"b": 5}, {"b": 7}]).report(), plain.optimize([{"b": 5}, {"b": 7}]).report()
    saved, spent, whole = report.saved, report.spend["workflow"], other.spend["workflow"]
    assert other.saved == {}
    assert saved["ops"] == len(plain.runs) - len(steps.runs)
    for unit in ("calls", "tokens_in", "tokens_out", "usd"):
        assert saved[unit] + spent[unit] == whole[unit]
    assert f"not run again: {saved['ops']} pure op calls" in str(report)
    assert Report.from_json(report.to_json()).saved == saved


def test_a_budget_of_calls_goes_further_when_they_are_not_made_again() -> None:
    def spent(*, memo: bool) -> tuple[int, int]:
        b = Parameter(0, name="b")
        llm = ScriptedLLM(lambda messages: str(3 * int(messages[-1]["content"])))

        @trace(memo=memo)
        def scale(x: int) -> int:
            return int(llm(str(x), max_tokens=5))

        @trace
        def shift(x: int) -> int:
            return x + b.value

        run = optimize(
            lambda x: shift(scale(x)), EXAMPLES, lambda out, example: -abs(out - example["y"]), store=None,
            optimizers=[Listed([{"b": value} for value in (5, 6, 7, 8)])], budget=Budget(calls=80, trials=4),
        )  # fmt: skip
        assert run.spent["workflow"].calls == llm.calls <= 80
        return llm.calls, len(run.history)

    (calls, trials), (calls_without, trials_without) = spent(memo=True), spent(memo=False)
    assert calls <= 40 < calls_without
    assert trials == 4 >= trials_without


def test_evaluate_runs_equal_examples_once() -> None:
    steps = Steps()
    report = evaluate(steps.workflow, [{"x": 1, "y": 10}, {"x": 1, "y": 11}, {"x": 2, "y": 13}], steps.guide)
    assert sorted(steps.runs) == [("scale", 1), ("scale", 2), ("shift", 3), ("shift", 6)]
    assert report.saved["ops"] == 2


def test_concurrency_changes_neither_results_nor_what_is_run() -> None:
    found = []
    for concurrency in (1, 16):
        steps = Steps()
        run = steps.optimize([{"b": 5}, {"a": 2}, {"b": 7}], concurrency=concurrency)
        found.append((run.best, [(t.before, t.after, t.verdict) for t in run.history], sorted(steps.runs)))
    assert found[0] == found[1]


def test_repeats_of_a_noisy_op_are_drawn_by_their_seeds() -> None:
    runs: list[Any] = []
    b = Parameter(0, name="b")

    @trace(memo=True)
    def noisy(x: int) -> float:
        state = rollout()
        runs.append((x, state.seed))
        assert state.seed is not None
        return x + (state.seed % 7) / 10

    @trace
    def shift(x: float) -> float:
        return x + b.value

    def workflow(x: int) -> float:
        return shift(noisy(x))

    run = optimize(
        workflow, [{"x": x} for x in range(30)], lambda out, example: -abs(out - example["x"] - 2), store=None,
        optimizers=[Listed([{"b": 1}, {"b": 2}])], budget=Budget(trials=2),
    )  # fmt: skip
    assert run.best == {"b": 2}
    assert len(runs) == len(set(runs)) > 20


# -- across sessions -------------------------------------------------------------------------------------------------

PROBLEM = """
    import sys, os, signal
    from trace_opt.core.parameter import Parameter
    from trace_opt.core.tracer import trace
    from trace_opt.llm.meter import charge

    b = Parameter(0, name="b")
    c = Parameter(0, name="c")
    FACTOR = 3
    OFFSETS = {"none": 0}
    RUNS = []

    @trace
    def offset(name):
        return OFFSETS[name] + c.value

    @trace(memo=True)
    def scale(x):
        if os.environ.get("DIE_AT") == str(len(RUNS)):
            os.kill(os.getpid(), signal.SIGKILL)
        RUNS.append(x)
        charge(tokens_in=10)
        return {"scaled": [x * FACTOR + offset("none")]}

    @trace
    def shift(found):
        return found["scaled"][0] + b.value

    def workflow(x):
        return shift(scale(x))

    def guide(output, example):
        return -abs(output - example["y"])
"""

SESSION = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tests.search.conftest import Listed
import problem
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.store.store import Store
from trace_opt.testing import ScriptedLLM
options = {} if sys.argv[3] == "new" else {"resume": sys.argv[3]}
run = optimize(
    problem.workflow, [{"x": x, "y": 3 * x + 7} for x in range(40)], problem.guide, store=sys.argv[2], concurrency=1,
    optimizers=[Listed([{"b": 5}, {"b": 7}])], budget=Budget(trials=2), **options
)
children = [
    [c.op.name, c.value, list(c.inputs), [r.name for r in c.reads]]
    for node in run.graph.layout().order for c in node.children
]
trials = [[t.before, t.after, t.verdict] for t in run.history]
print(json.dumps({"runs": len(problem.RUNS), "best": run.best, "trials": trials, "children": children, "saved": run.report().saved}))
"""


def session(folder: Path, run: str = "new", source: str = PROBLEM, **environment: str) -> dict[str, Any]:
    (folder / "problem.py").write_text(textwrap.dedent(source))
    command = [sys.executable, "-c", SESSION, str(folder), str(folder / "runs.db"), run]
    root = str(Path(__file__).parents[2])
    paths = {"PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **paths, **environment}, cwd=root)
    if done.returncode:
        return {"killed": done.returncode, "said": done.stderr}
    return json.loads(done.stdout)


def test_a_later_run_over_the_same_op_pays_for_nothing_and_ends_the_same(tmp_path: Path) -> None:
    first, second = session(tmp_path), session(tmp_path)
    assert first["runs"] > 20
    assert second["runs"] == 0
    assert second["saved"]["calls"] == first["saved"]["calls"] + first["runs"]
    assert (second["best"], second["trials"]) == (first["best"], first["trials"])
    assert second["children"] == first["children"] == [["offset", 0, ["none"], ["c"]]]


def test_an_op_whose_source_or_constants_changed_is_run_again(tmp_path: Path) -> None:
    assert session(tmp_path)["runs"] > 20
    assert session(tmp_path, source=PROBLEM.replace("FACTOR = 3", "FACTOR = 4"))["runs"] > 20
    assert session(tmp_path, source=PROBLEM.replace("x * FACTOR", "FACTOR * x"))["runs"] > 20
    assert session(tmp_path, source=PROBLEM.replace('"none": 0', '"none": 1'))["runs"] > 20
    assert session(tmp_path)["runs"] == 0


def test_a_killed_and_resumed_search_pays_for_no_op_call_twice(tmp_path: Path) -> None:
    clean = session(_made(tmp_path / "clean"))
    killed = session(_made(tmp_path / "killed"), DIE_AT="30")
    assert killed["killed"] == -9
    resumed = session(tmp_path / "killed", run="last")
    assert 30 + resumed["runs"] == clean["runs"]
    assert (resumed["best"], resumed["trials"]) == (clean["best"], clean["trials"])


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_fast_and_free_calls_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trace_opt.search.memory.LONG_S", 0.5)
    b = Parameter(0, name="b")

    @trace(memo=True)
    def quick(x: int) -> int:
        return x + b.value

    @trace(memo=True)
    def slow(x: int) -> int:
        time.sleep(0.55 if x == 0 else 0)
        return x

    store = Store(tmp_path / "runs.db")
    optimize(
        lambda x: quick(slow(x)), [{"x": x} for x in range(10)], lambda out, example: float(out == example["x"]),
        store=store, optimizers=[Listed([{"b": 1}])], budget=Budget(trials=1), search=Greedy(minibatch=1),
    )  # fmt: skip
    with store.database.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM memos").scalar_one() == 1
    store.close()


def test_a_run_lives_on_either_database_and_pure_ops_with_it(postgres: Callable[[], str]) -> None:
    where = postgres()
    steps = Steps()
    run = steps.optimize([{"b": 5}, {"b": 7}], store=where)
    again = Steps()
    longer = again.optimize([{"b": 5}, {"b": 7}, {"b": 8}], store=where, resume=run.id, budget=Budget(trials=3))
    store = Store(where)
    assert [t.verdict for t in longer.history][:2] == [t.verdict for t in run.history]
    assert not set(again.xs()) & set(steps.xs())
    assert store.load(run.id).info.trials == 3
    assert store.load(run.id).best == {"a": 3, "b": 7}
    store.close()
