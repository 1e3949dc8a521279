"""The problems whose optimum is known: they are right, and what reads only their text solves them."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.problem_files import FOLDER, held_out, load, mean_score, optimum, run
from tests.reading_llm import ReadingLLM, read_text
from trace_opt.core.context import in_force
from trace_opt.core.tracer import plain, record
from trace_opt.optim.base import Outcome, Proposal, Trial
from trace_opt.optim.categorical import Categorical
from trace_opt.optim.optoprime import OptoPrime
from trace_opt.problem import Problem
from trace_opt.search.budget import Budget

NAMES = ["branching", "chain", "diamond", "discrete", "fan_in"]


def test_every_file_of_the_folder_is_tested() -> None:
    others = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for path in FOLDER.glob("*.py"):
        assert re.search(rf'["/]{path.stem}(\.py)?"', others), f"no test names {path.name}"


@pytest.mark.parametrize("name", NAMES)
def test_the_optimum_reaches_the_best_score_on_every_split_and_the_start_does_not(name: str) -> None:
    problem = load(name)
    values, best = optimum(name)
    for examples in (problem.train, held_out(problem)):
        assert mean_score(problem, examples, values) == pytest.approx(best)
        assert mean_score(problem, examples) < best - 0.05


@pytest.mark.parametrize("name", NAMES)
def test_no_change_of_one_variable_is_as_good_as_the_optimum(name: str) -> None:
    problem = load(name)
    values, best = optimum(name)
    for parameter in problem.parameters or ():
        at = values[parameter.name]
        others: Any = parameter.choices or parameter.suggestions or (at - 1, at + 1, -at, 2 * at)
        for other in others:
            if other != at:
                assert mean_score(problem, problem.train, {**values, parameter.name: other}) < best


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_the_same_recorded_and_plain(name: str) -> None:
    problem = load(name)
    for values in ({}, optimum(name)[0]):
        for example in [*problem.train, *held_out(problem)]:
            with record(values=values):
                recorded = plain(run(problem, example))
            with in_force(values):
                assert recorded == run(problem, example)


def step_by_hand(problem: Problem, optimizer: Any) -> None:
    for example in problem.train:
        with record() as graph:
            output = run(problem, example)
        optimizer.backward(output, problem.guide(graph.output(output).value, example))
    optimizer.step()
    optimizer.zero_feedback()


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_of_the_text_alone_solves_it_by_hand_in_three_steps(name: str) -> None:
    problem = load(name)
    _, best = optimum(name)
    optimizer = OptoPrime(ReadingLLM())
    for _ in range(3):
        step_by_hand(problem, optimizer)
    assert mean_score(problem, held_out(problem)) == pytest.approx(best)


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_of_the_text_alone_solves_it_through_optimize_in_three_trials(name: str) -> None:
    problem = load(name)
    llm = ReadingLLM()
    found = problem.optimize(optimizers=[OptoPrime(llm)], budget=Budget(trials=3), store=None)
    assert mean_score(problem, held_out(problem), found.best) == pytest.approx(optimum(name)[1])
    assert llm.calls >= 1


@pytest.mark.parametrize(
    ("name", "options"), [("chain", {"steps": "40"}), ("fan_in", {"width": "24"})], ids=["long", "wide"]
)
def test_a_larger_problem_is_solved_from_its_folded_text(name: str, options: dict[str, str]) -> None:
    problem = load(name, **options)
    optimizer = OptoPrime(ReadingLLM())
    step_by_hand(problem, optimizer)
    assert mean_score(problem, held_out(problem)) == pytest.approx(optimum(name)[1], abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_categorical_solves_the_discrete_problem_within_60_trials(seed: int) -> None:
    problem = load("discrete")
    values, best = optimum("discrete")
    found = problem.optimize(optimizers=[Categorical()], budget=Budget(trials=60), store=None, seed=seed)
    assert found.best == values
    assert mean_score(problem, held_out(problem), found.best) == pytest.approx(best)
    assert len(found.history) <= 60


def test_a_router_s_variables_get_slices_through_decisions_alone() -> None:
    problem = load("branching")
    example = problem.train[0]
    optimizer = OptoPrime(ReadingLLM())
    values, _ = optimum("branching")
    with record(values=values) as graph:
        output = run(problem, example)
    node = graph.output(output)
    assert {kind for _, kind, _ in node.parents()} <= {"argument", "control"}
    optimizer.backward(output, "right")
    assert set(optimizer._collected[0].slices) == {"keyword", "ignore_case", "limit"}


def test_the_reader_knows_no_problem() -> None:
    source = (Path(__file__).parents[1] / "reading_llm.py").read_text()
    assert not any(word in source for word in [*NAMES, "graphs", "OPTIMUM", "load_problem"])


def test_the_reader_needs_the_feedback_to_move() -> None:
    problem = load("chain")
    optimizer = OptoPrime(ReadingLLM())
    for example in problem.train:
        with record():
            output = run(problem, example)
        optimizer.backward(output, 0.0)
    assert optimizer.step().values == {}


def test_what_the_reader_reads_is_what_was_recorded() -> None:
    problem = load("chain")
    llm = ReadingLLM()
    optimizer = OptoPrime(llm)
    for example in problem.train[:2]:
        with record() as graph:
            output = run(problem, example)
        optimizer.backward(output, problem.guide(graph.output(output).value, example))
    asyncio.run(optimizer.astep())
    text = read_text(str(llm.requests[0].messages[-1]["content"]))
    assert {name: variable.value for name, variable in text.variables.items()} == {"gain": 1, "offset": 0}
    assert len(text.codes[0][1]) == 8
    assert set(text.formulas) == {"scale", "settle", "shift"}


def test_a_history_of_trials_is_read_past() -> None:
    problem = load("diamond")
    llm = ReadingLLM()
    optimizer = OptoPrime(llm)
    optimizer._history.append(
        Trial("OptoPrime", {"side": 1}, Proposal({"side": 9}), Outcome(-87.0, -300.0, accepted=False))
    )
    step_by_hand(problem, optimizer)
    assert "# Tried before" in str(llm.requests[0].messages[-1]["content"])
    assert mean_score(problem, problem.train) == 0.0
