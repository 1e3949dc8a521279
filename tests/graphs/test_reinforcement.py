"""The regulator and the bandit: exact values against sampling, `optimize` reaches the optimum, estimators learn them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from tests.problem_files import load, mean_score, module_of, optimum
from trace_opt.refine.batch import Batch
from trace_opt.refine.estimators.base import Estimator
from trace_opt.refine.estimators.igt import NPGIGT
from trace_opt.refine.estimators.reinforce import Reinforce
from trace_opt.search.engine import optimize


def test_the_exact_return_of_a_gain_is_the_mean_of_what_it_earns() -> None:
    lqr = module_of("lqr")
    for case in lqr.CASES.values():
        policy = lqr.Regulator(case)
        policy.gain.data = torch.tensor((0.6, 0.9), dtype=torch.float64)
        returns = lqr.draw(policy, 20_000, torch.Generator().manual_seed(1)).returns
        exact = float(lqr.value(policy.gain.detach(), case.sigma))
        assert abs(float(returns.mean()) - exact) < 4 * float(returns.std()) / 20_000**0.5


def test_the_known_values_of_the_regulator() -> None:
    lqr = module_of("lqr")
    of = lambda gain, sigma: float(lqr.value(torch.tensor(gain, dtype=torch.float64), sigma))
    assert of((0.0, 0.0), 0.3) == pytest.approx(-96.128, abs=5e-4)
    assert of((0.5, 0.5), 1.0) == pytest.approx(-22.489447, abs=1e-6)
    gain = torch.tensor((0.3, 0.6), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(lqr.value(gain, 0.3), gain)
    assert gradient.tolist() == pytest.approx([15.91713514, 13.74217212], abs=1e-6)


@pytest.mark.parametrize("case", ["hard", "noisy"])
def test_no_gain_near_the_best_one_is_better(case: str) -> None:
    lqr = module_of("lqr")
    chosen = lqr.CASES[case]
    best = torch.tensor(chosen.best, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(lqr.value(best, chosen.sigma), best)
    assert float(gradient.abs().max()) < 1e-6
    assert float(lqr.value(best.detach(), chosen.sigma)) == pytest.approx(chosen.value, abs=1e-12)


@pytest.mark.parametrize("case", ["hard", "noisy"])
def test_the_examples_of_the_regulator_have_its_expected_return_as_their_mean(case: str) -> None:
    lqr = module_of("lqr")
    chosen = lqr.CASES[case]
    for gain in (chosen.start, chosen.best):
        values = {"gain": torch.tensor(gain, dtype=torch.float64)}
        exact = float(lqr.value(values["gain"], chosen.sigma))
        assert mean_score(load("lqr", case=case), lqr.examples_of(chosen), values) == pytest.approx(exact, rel=1e-12)


def test_optimize_finds_the_best_gain() -> None:
    problem = load("lqr")
    run = optimize(problem.workflow, problem.train, problem.guide, val=problem.val, parameters=problem.parameters,
                   optimizers=problem.optimizers, budget=problem.budget, store=None)  # fmt: skip
    assert mean_score(problem, problem.train, run.best) == pytest.approx(optimum("lqr")[1], abs=1e-3)


def test_the_exact_return_of_a_player_is_the_mean_of_what_it_earns() -> None:
    bandit = module_of("bandit")
    policy = bandit.Player()
    assert float(bandit.value(policy.logits.detach())) == pytest.approx(1.928906, abs=1e-6)
    policy.logits.data = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    returns = bandit.draw(policy, 20_000, torch.Generator().manual_seed(3)).returns
    exact = float(bandit.value(policy.logits.detach()))
    assert abs(float(returns.mean()) - exact) < 4 * float(returns.std()) / 20_000**0.5


def test_the_best_arms_are_best_among_all_and_optimize_finds_them() -> None:
    values, best = optimum("bandit")
    problem = load("bandit")
    names = list(values)
    scores = {arms: mean_score(problem, problem.train, dict(zip(names, arms, strict=True)))
              for arms in itertools.product(range(4), repeat=4)}  # fmt: skip
    assert max(scores, key=scores.__getitem__) == tuple(values.values())
    assert max(scores.values()) == pytest.approx(best)
    run = optimize(problem.workflow, problem.train, problem.guide, val=problem.val, parameters=problem.parameters,
                   optimizers=problem.optimizers, budget=problem.budget, store=None)  # fmt: skip
    assert run.best == values


def test_n_pg_igt_solves_the_noisy_regulator_from_returns_alone() -> None:
    """One trajectory an update."""
    lqr = module_of("lqr")
    case = lqr.CASES["noisy"]
    policy = lqr.Regulator(case)
    exact = lambda: float(lqr.value(policy.gain.detach(), policy.sigma))
    assert _reached(NPGIGT(policy, lr=0.3), lambda g: lqr.draw(policy, 1, g), exact, case.threshold, 600)


def test_reinforce_solves_the_bandit_from_returns_alone() -> None:
    bandit = module_of("bandit")
    policy = bandit.Player()
    exact = lambda: float(bandit.value(policy.logits.detach()))
    assert _reached(Reinforce(policy, lr=0.3), lambda g: bandit.draw(policy, 1, g), exact, bandit.THRESHOLD, 600)


def _reached(
    estimator: Estimator,
    draw: Callable[[torch.Generator], Batch],
    exact: Callable[[], float],
    threshold: float,
    most: int,
) -> bool:
    generator = torch.Generator().manual_seed(0)
    for count in range(1, most + 1):
        estimator.update(estimator.sample(lambda: draw(generator)))
        if count % 20 == 0 and exact() > threshold:
            return True
    return False
