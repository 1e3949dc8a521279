"""The problems with a level below or a constraint: their stated optimum is one, and their optimizer reaches it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.problem_files import held_out, load, mean_score, module_of, optimum
from trace_opt.search.budget import Budget

D = torch.float64
NAMES = ["ridge", "bilevel", "equality"]


def tensors(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=D) for name, value in values.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_optimum_has_the_best_score_and_the_start_has_not(name: str) -> None:
    problem = load(name)
    values, best = optimum(name)
    for examples in (problem.train, held_out(problem)):
        assert mean_score(problem, examples, tensors(values)) == pytest.approx(best, abs=1e-9)
        assert mean_score(problem, examples) < best - 0.05


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_no_point_around_the_optimum_scores_better(name: str, seed: int) -> None:
    problem = load(name)
    values, best = optimum(name)
    generator = torch.Generator().manual_seed(seed)
    for size in (1e-3, 0.1, 1.0):
        moved = {
            key: value + size * torch.randn(value.shape, dtype=D, generator=generator)
            for key, value in tensors(values).items()
        }
        assert mean_score(problem, problem.train, moved) <= best + 1e-12


@pytest.mark.parametrize(("name", "tolerance"), [("ridge", 1e-3), ("bilevel", 1e-2), ("equality", 1e-8)])
def test_its_optimizer_reaches_the_optimum_through_optimize(name: str, tolerance: float) -> None:
    problem = load(name, steps="200") if name == "bilevel" else load(name)
    found = problem.optimize(budget=Budget(trials=1), store=None)
    for key, value in tensors(optimum(name)[0]).items():
        assert float((found.best[key] - value).abs().max()) < tolerance


def test_ten_coordinates_of_the_bilevel_toy_take_no_more_steps_than_one() -> None:
    found = load("bilevel", size="10", steps="165").optimize(store=None)
    assert float((found.best["x"] + 0.3).abs().max()) < 1e-2
    assert float((found.best["y"] - torch.tensor([[0.7], [-0.4]], dtype=D)).abs().max()) < 1e-2


@pytest.mark.parametrize("case", ["hs6", "hs7", "hs28", "sphere"])
def test_every_equality_problem_is_solved_to_its_stated_optimum(case: str) -> None:
    problem, module = load("equality", case=case), module_of("equality")
    at = {"point": torch.tensor(module.OPTIMA[case], dtype=D)}
    assert mean_score(problem, problem.train, at) == pytest.approx(module.BEST_SCORES[case], abs=1e-9)
    found = problem.optimize(store=None)
    assert found.best["point"].tolist() == pytest.approx(module.OPTIMA[case], abs=1e-7)
