"""The problems of graphs/ as tests see them: loaded by path, run on an example, scored under values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.loading import module_at
from trace_opt.core.binding import bind
from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.problem import Problem, load_problem

FOLDER = Path(__file__).parents[1] / "graphs"


def load(name: str, **options: str) -> Problem:
    """The problem of a file, its options as texts."""
    return load_problem(FOLDER / f"{name}.py", options)


@lru_cache(maxsize=32)
def module_of(name: str) -> Any:
    """The file as a module: its optimum, its guide, its ops."""
    return module_at(FOLDER / f"{name}.py", f"module_of_{name}", listed=True)


def optimum(name: str) -> tuple[dict[str, Any], float]:
    """The best values and the mean score there, as the file states them."""
    module = module_of(name)
    return module.OPTIMUM, module.BEST_SCORE


def run(problem: Problem, example: Any) -> Any:
    """The workflow on one example."""
    args, kwargs = bind(problem.workflow, example)
    return problem.workflow(*args, **kwargs)


def mean_score(problem: Problem, examples: Sequence[Any], values: Mapping[str, Any] | None = None) -> float:
    """The mean score of values, or of those at the start."""
    scores: list[float] = []
    for example in examples:
        with in_force(values):
            score = Feedback.of(problem.guide(run(problem, example), example)).value
        assert score is not None
        scores.append(score)
    return sum(scores) / len(scores)


def held_out(problem: Problem) -> list[Any]:
    """What a search does not learn from."""
    return [*(problem.val or ()), *(problem.test or ())]
