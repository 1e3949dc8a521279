"""Problems whose optimum is known: the text that optimizers read is enough to find it, and so is the sampler."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reading_llm import ReadingLLM
from trace_opt import Feedback, OptoPrime, plain, record
from trace_opt.core.binding import bind
from trace_opt.core.parameter import by_name
from trace_opt.problem import Problem, load_problem

GRAPHS = Path(__file__).parents[2] / "graphs"
ALL = sorted(path.stem for path in GRAPHS.glob("*.py"))
READ = ["branching", "chain", "diamond", "fan_in"]


def loaded(name: str) -> tuple[Problem, dict[str, Any]]:
    """A problem, and the constants of its file."""
    problem = load_problem(GRAPHS / f"{name}.py", {})
    return problem, vars(sys.modules[problem.workflow.__module__])


def rolled_out(problem: Problem, example: Any) -> tuple[Any, Any, Feedback]:
    """A recording of one example: what the workflow gave, its graph, and what the guide said."""
    with record() as graph:
        args, kwargs = bind(problem.workflow, example)
        output = problem.workflow(*args, **kwargs)
    return output, graph, Feedback.of(problem.guide(plain(output), example))


def test_there_are_five_problems() -> None:
    assert set(ALL) >= {*READ, "discrete"}


@pytest.mark.parametrize("name", ALL)
def test_a_problem_gives_the_same_recorded_and_plain(name: str) -> None:
    problem, _ = loaded(name)
    for example in problem.train:
        args, kwargs = bind(problem.workflow, example)
        output, _, _ = rolled_out(problem, example)
        assert plain(output) == problem.workflow(*args, **kwargs)


@pytest.mark.parametrize("name", READ)
def test_the_rendered_text_alone_leads_to_the_optimum_within_three_steps(name: str) -> None:
    problem, constants = loaded(name)
    optimizer = OptoPrime(ReadingLLM())
    parameters: dict[str, Any] = {}
    for _ in range(3):
        for example in problem.train:
            output, graph, feedback = rolled_out(problem, example)
            parameters |= by_name(node.parameter for node in graph.parameters.values())
            optimizer.backward(graph if plain(output) is output else output, feedback)
        optimizer.step()
        optimizer.zero_feedback()
    scores = [rolled_out(problem, example)[2].value for example in problem.train]
    assert sum(scores) / len(scores) == constants["BEST_SCORE"]
    assert {key: parameters[key].value for key in constants["OPTIMUM"]} == constants["OPTIMUM"]


@pytest.mark.parametrize("name", READ)
def test_a_search_with_that_reader_finds_the_optimum(name: str) -> None:
    problem, constants = loaded(name)
    run = problem.optimize(optimizers=[OptoPrime(ReadingLLM())], store=None, seed=0)
    assert {key: run.best[key] for key in constants["OPTIMUM"]} == constants["OPTIMUM"]


@pytest.mark.parametrize("seed", range(5))
def test_categorical_solves_its_problem_within_sixty_trials(seed: int) -> None:
    problem, constants = loaded("discrete")
    run = problem.optimize(seed=seed, store=None)
    assert len(run.history) <= 60
    assert {key: run.best[key] for key in constants["OPTIMUM"]} == constants["OPTIMUM"]
