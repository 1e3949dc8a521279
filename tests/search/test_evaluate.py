"""Scoring without a search, and a plan without a run."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cpu_time import cpu_time, least
from tests.search.conftest import Line, Listed
from trace_opt.core.context import rollout
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import node_of, trace
from trace_opt.errors import BudgetError, ProblemError
from trace_opt.llm.meter import charge
from trace_opt.search.budget import Budget
from trace_opt.search.evaluate import aevaluate, evaluate, plan
from trace_opt.testing import ScriptedLLM


def test_values_are_scored_without_being_written(line: Line) -> None:
    report = evaluate(line.workflow, line.examples(10), line.guide, values={"a": 3, "b": 7})
    assert (report.best.mean, report.best.n, report.held_out, report.claim) == (0.0, 10, False, "none")
    assert evaluate(line.workflow, line.examples(10), line.guide).best.mean < 0
    assert line.a.value == 0


def test_an_async_workflow_and_an_async_guide_are_scored() -> None:
    async def workflow(x: int) -> int:
        await asyncio.sleep(0)
        return x

    async def guide(out: int, x: int) -> float:
        await asyncio.sleep(0)
        return float(out == x)

    assert evaluate(workflow, [1, 2, 3], guide).best.mean == 1.0
    assert evaluate(lambda x: workflow(x), [1, 2, 3], guide).best.mean == 1.0


def test_several_scores_are_averaged_by_name(line: Line) -> None:
    report = evaluate(line.workflow, line.examples(4), lambda out, e: {"right": 1.0, "x": float(e["x"])})
    assert report.best.means == {"right": 1.0, "x": 2.5}


def test_what_calls_cost_is_counted_the_users_own_included() -> None:
    llm = ScriptedLLM(lambda messages: "yes", price=(1e-6, 1e-6))

    def workflow(x: int) -> str:
        charge(tokens_in=5, usd=0.5)
        return llm(f"say {x}")

    report = evaluate(workflow, [1, 2], lambda out, _: 1.0)
    assert report.spend["workflow"]["calls"] == 4
    assert report.spend["workflow"]["usd"] == pytest.approx(1.0, abs=1e-3)


def test_an_evaluation_keeps_to_its_budget_and_needs_examples(line: Line) -> None:
    llm = ScriptedLLM(lambda messages: "x")
    with pytest.raises(BudgetError):
        evaluate(lambda x: llm(str(x)), list(range(9)), lambda o, _: 1.0, budget=Budget(calls=5))
    assert llm.calls <= 5
    with pytest.raises(ProblemError, match="examples is empty"):
        evaluate(line.workflow, [], line.guide)


def test_trivial_workflows_are_scored_by_the_thousand(line: Line) -> None:
    examples = line.examples(10) * 300

    def scoring() -> None:
        evaluate(lambda x: x, [e["x"] for e in examples], lambda out, _: 1.0)

    assert least(lambda: cpu_time(scoring), 1.5) < 1.5


def test_a_plan_says_what_would_be_done_and_sends_nothing(tmp_path: Path) -> None:
    style = Parameter("plain", name="style")
    cue = Parameter("x", name="cue", choices=("x", "y"))
    llm = ScriptedLLM(lambda messages: "x", name="scripted/worker")

    @trace
    def ask(q: int) -> str:
        return llm(style.value + cue.value + str(q))

    said = plan(
        lambda q: ask(q), [{"q": i} for i in range(100)], lambda out, _: 1.0, store=tmp_path / "runs.db", race=["cue"],
        model=ScriptedLLM(lambda messages: "", name="scripted/optimizer"), budget="light",
    )  # fmt: skip
    assert llm.calls == 0
    assert not (tmp_path / "runs.db").exists()
    assert (said.train, said.val, said.test) == (60, 20, 20)
    assert said.parameters == {"style": "OptoPrime", "cue": "Categorical"}
    assert said.budget == {"rollouts": 10 * 24 + 40}
    assert (said.raced, said.model) == (2, "scripted/optimizer (given as model=)")
    assert said.first_call is not None
    assert said.first_call.calls == 1
    assert json.loads(json.dumps(said.to_json()))["rollouts"]["for the test"] == 40
    assert "20 rollouts to score the start" in str(said)


def test_a_plan_refuses_what_a_run_would_refuse(line: Line) -> None:
    options: dict[str, Any] = {"optimizers": [Listed([])], "store": None}
    with pytest.raises(BudgetError, match="cannot pay for one proposal"):
        plan(line.workflow, line.examples(40), line.guide, budget=Budget(rollouts=3), **options)
    with pytest.raises(ProblemError, match="race names 'z'"):
        plan(line.workflow, line.examples(40), line.guide, race=["z"], **options)


def test_ten_thousand_rollouts_at_once_on_one_loop_do_not_cross() -> None:
    """All 10,000 are under way before any goes on; each sees its own example, seed, values and cost to its end."""
    count = 10_000
    shift = Parameter(0, name="shift")
    waiting: list[int] = []
    seeds: dict[int, tuple[int | None, int | None]] = {}
    nodes: list[int] = []

    @trace
    def moved(x: int, by: int) -> int:
        return x + by

    async def whole() -> float:
        together = asyncio.Event()

        async def workflow(x: int) -> int:
            before = rollout().seed
            first = moved(x, shift.value)
            waiting.append(x)
            if len(waiting) == count:
                together.set()
            await together.wait()
            seeds[x] = before, rollout().seed
            charge(tokens_in=x, calls=1)
            out = moved(first, shift.value)
            nodes.append(len(node_of(out).inputs))
            return out

        report = await aevaluate(
            workflow, list(range(count)), lambda out, x: float(out == x + 14), values={"shift": 7}, concurrency=count
        )
        assert report.spend["workflow"]["tokens_in"] == sum(range(count))
        return report.best.mean

    assert asyncio.run(whole()) == 1.0
    assert len(waiting) == len(seeds) == count
    assert all(before == after for before, after in seeds.values())
    assert len({before for before, _ in seeds.values()}) > count - 100  # seeds differ by example
    assert set(nodes) == {2}
