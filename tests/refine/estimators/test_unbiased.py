"""Gradients and Hessian-vector products against sums over all trajectories of small policies, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.refine.small_policies import GAMMA, GRADIENT, HESSIAN_VECTOR, VALUE, VECTOR, Arms, Tree
from trace_opt.refine.advantages import BaselineName, Running
from trace_opt.refine.batch import Batch
from trace_opt.refine.estimators.base import Estimator, k3
from trace_opt.refine.estimators.grpo import GRPO
from trace_opt.refine.estimators.harpg import HARPG
from trace_opt.refine.estimators.reinforce import Reinforce

TOLERANCE = 1e-12


def constant(value: float) -> Running:
    made = Running()
    made.load_state_dict({"mean": torch.full((2,), value, dtype=torch.float64)})
    return made


CREDIT: dict[str, dict[str, Any]] = {
    "whole return": {"to_go": False, "baseline": "none"},
    "to go": {"baseline": "none"},
    "to go, less a constant": {"baseline": constant(0.9)},
}


def exact() -> tuple[Tensor, Tensor, Tensor]:
    """The expected return of the tree with its gradient and Hessian times VECTOR, by autograd."""
    tree = Tree()
    value = tree.value()
    (gradient,) = torch.autograd.grad(value, tree.logits, create_graph=True)
    (product,) = torch.autograd.grad((gradient * torch.tensor(VECTOR, dtype=torch.float64)).sum(), tree.logits)
    return value.detach(), gradient.detach(), product


def moments(of: Callable[[Batch], Tensor], tree: Tree) -> tuple[Tensor, float]:
    """The exact mean of an estimate over all trajectories, and the trace of its covariance."""
    pairs = [(p, of(batch)) for p, batch in tree.every()]
    mean = sum((p * g for p, g in pairs), torch.zeros(3, dtype=torch.float64))
    return mean, sum(p * float(((g - mean) ** 2).sum()) for p, g in pairs)


def gradient_of(estimator: Estimator, batch: Batch) -> Tensor:
    advantages, _ = estimator._advantages(batch)
    return estimator._gradient(batch, advantages)[0]


def test_the_closed_forms_of_the_tree_are_those_on_paper() -> None:
    value, gradient, product = exact()
    assert float(value) == pytest.approx(VALUE, abs=1e-12)
    assert gradient.tolist() == pytest.approx(GRADIENT, abs=1e-9)
    assert product.tolist() == pytest.approx(HESSIAN_VECTOR, abs=1e-9)


@pytest.mark.parametrize(
    ("credit", "variance"), [("whole return", 0.8937), ("to go", 0.5479), ("to go, less a constant", 0.3451)]
)
def test_the_mean_gradient_is_exact_and_credit_only_changes_its_variance(credit: str, variance: float) -> None:
    tree = Tree()
    estimator = Reinforce(tree, lr=1.0, gamma=GAMMA, **CREDIT[credit])
    mean, trace = moments(lambda batch: gradient_of(estimator, batch), tree)
    assert torch.allclose(mean, exact()[1], rtol=0, atol=TOLERANCE)
    assert trace == pytest.approx(variance, abs=5e-5)


@pytest.mark.parametrize(
    ("credit", "variance"), [("whole return", 0.2161), ("to go", 0.1843), ("to go, less a constant", 0.0922)]
)
def test_the_mean_hessian_vector_product_is_exact(credit: str, variance: float) -> None:
    tree = Tree()
    estimator = HARPG(tree, lr=1.0, gamma=GAMMA, **CREDIT[credit])
    vector = [torch.tensor(VECTOR, dtype=torch.float64)]
    mean, trace = moments(lambda batch: estimator.hessian_vector(batch, vector)[0], tree)
    assert torch.allclose(mean, exact()[2], rtol=0, atol=TOLERANCE)
    assert trace == pytest.approx(variance, abs=5e-5)


def test_the_hessian_vector_product_of_a_batch_is_the_mean_over_its_trajectories() -> None:
    """Also where the trajectories of the batch differ: the score of each goes with its own surrogate."""
    tree = Tree()
    estimator = HARPG(tree, lr=1.0, gamma=GAMMA, baseline="none")
    vector = [torch.tensor(VECTOR, dtype=torch.float64)]
    pairs = [(0, 1), (1, 0), (1, 1), (1, 1)]
    together = estimator.hessian_vector(tree.batch(pairs), vector)[0]
    apart = [estimator.hessian_vector(tree.batch([pair]), vector)[0] for pair in pairs]
    assert torch.allclose(together, torch.stack(apart).mean(0), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("credit", "wrong"),
    [("to go", (-0.1993, 0.0854, -0.0081)), ("to go, less a constant", (0.0207, -0.1042, 0.0527))],
)
def test_without_the_score_term_the_product_would_be_wrong_and_hang_on_the_baseline(
    credit: str, wrong: tuple[float, ...]
) -> None:
    """The negative case: what a hand-written version computes that forgets that sampling depends on the weights."""
    tree = Tree()
    estimator = Reinforce(tree, lr=1.0, gamma=GAMMA, **CREDIT[credit])

    def forgetful(batch: Batch) -> Tensor:
        advantages, _ = estimator._advantages(batch)
        phi = (advantages * tree.log_prob(batch)).sum()
        (gradient,) = torch.autograd.grad(phi, tree.logits, create_graph=True)
        return torch.autograd.grad((gradient * torch.tensor(VECTOR, dtype=torch.float64)).sum(), tree.logits)[0]

    mean, _ = moments(forgetful, tree)
    assert mean.tolist() == pytest.approx(wrong, abs=5e-5)
    assert not torch.allclose(mean, exact()[2], rtol=0, atol=0.05)


def test_the_hessian_vector_product_of_one_trajectory_is_the_difference_of_reweighted_gradients() -> None:
    """By finite differences of weights: B u is the derivative of p(theta')/p(theta) * grad Phi(theta') at theta along u."""
    tree = Tree()
    vector = torch.tensor(VECTOR, dtype=torch.float64)
    estimator = HARPG(tree, lr=1.0, gamma=GAMMA, baseline="none")
    for _, batch in tree.every():
        found = estimator.hessian_vector(batch, [vector])[0]
        base = tree.log_prob(batch).sum().detach()
        start = tree.logits.detach().clone()
        sides = []
        for sign in (1, -1):
            tree.logits.data = start + sign * 1e-5 * vector
            weight = (tree.log_prob(batch).sum().detach() - base).exp()
            sides.append(weight * gradient_of(estimator, batch))
        tree.logits.data = start
        assert torch.allclose(found, (sides[0] - sides[1]) / 2e-5, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [2, 3])
def test_leaving_one_out_leaves_the_mean_gradient(n: int) -> None:
    worth = (0.0, 1.0, 3.0)
    arms = Arms((0.2, -0.1, 0.4))
    estimator = Reinforce(arms, lr=1.0, baseline="leave-one-out")
    total = torch.zeros(3, dtype=torch.float64)
    for p, picked in arms.every(n):
        total += p * gradient_of(estimator, arms.batch(picked, [worth[a] for a in picked]))
    p = arms.logits.softmax(0)
    (true,) = torch.autograd.grad((p * torch.tensor(worth, dtype=torch.float64)).sum(), arms.logits)
    assert torch.allclose(total, true, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("n", [2, 3])
def test_a_baseline_with_its_own_return_in_it_would_shrink_the_gradient(n: int) -> None:
    """The negative case of the same sum: the group's whole mean gives (n - 1) / n of the gradient."""
    worth = (0.0, 1.0, 3.0)
    arms = Arms((0.2, -0.1, 0.4))
    estimator = Reinforce(arms, lr=1.0, baseline="none")
    total = torch.zeros(3, dtype=torch.float64)
    for p, picked in arms.every(n):
        batch = arms.batch(picked, [worth[a] for a in picked])
        total += p * estimator._gradient(batch, batch.rewards - batch.rewards.mean())[0]
    p = arms.logits.softmax(0)
    (true,) = torch.autograd.grad((p * torch.tensor(worth, dtype=torch.float64)).sum(), arms.logits)
    assert torch.allclose(total, true * (n - 1) / n, rtol=0, atol=TOLERANCE)


def expected_update(estimator: GRPO, arms: Arms, n: int) -> tuple[float, float]:
    """The exact mean of GRPO's gradient of the logit difference of a two-armed bandit, and how often it says nothing."""
    total = silent = 0.0
    for p, picked in arms.every(n):
        batch = arms.batch(picked, [float(a) for a in picked])
        advantages = estimator.advantages(batch)
        if not bool(advantages.any()):
            silent += p
            continue
        gradient = estimator._gradient_of(batch, advantages, None, n)[0]
        total += p * float(gradient[1])
    return total, silent


@pytest.mark.parametrize(
    ("p", "n", "true", "scaled", "silent"),
    [(0.02, 8, 0.0196, 0.0472, 0.85), (0.1, 4, 0.09, 0.1317, 0.66), (0.1, 8, 0.09, 0.1959, 0.43), (0.5, 8, 0.25, 0.4339, 0.008)],
)  # fmt: skip
def test_grpo_weighs_hard_prompts_up_and_its_unbiased_form_does_not(
    p: float, n: int, true: float, scaled: float, silent: float
) -> None:
    arms = Arms((0.0, math.log(p / (1 - p))))
    plain, nothing = expected_update(GRPO(arms, lr=1.0), arms, n)
    assert plain == pytest.approx(scaled, rel=2e-3)
    assert nothing == pytest.approx(silent, abs=5e-3)
    unbiased, _ = expected_update(GRPO(arms, lr=1.0, unbiased=True), arms, n)
    assert unbiased == pytest.approx(true, abs=1e-12)
    assert true == pytest.approx(p * (1 - p), abs=1e-12)


@pytest.mark.parametrize("baseline", ["none", "leave-one-out"])
def test_the_price_of_divergence_and_the_wage_of_entropy_have_the_gradients_of_both(baseline: BaselineName) -> None:
    """Taken off the rewards, the mean gradient is that of reward - kl KL(pi, reference) + entropy H(pi), exactly."""
    from dataclasses import replace

    worth, reference = (0.0, 1.0, 3.0), torch.tensor((0.4, 0.4, 0.2), dtype=torch.float64).log()
    arms = Arms((0.2, -0.1, 0.4))
    estimator = Reinforce(arms, lr=1.0, baseline=baseline, kl=0.3, entropy=0.2)
    total = torch.zeros(3, dtype=torch.float64)
    for p, picked in arms.every(2):
        batch = arms.batch(picked, [worth[a] for a in picked])
        batch = replace(batch, reference=reference[batch.actions["arm"]])
        total += p * gradient_of(estimator, batch)
    log_p = arms.logits.log_softmax(0)
    p_all = log_p.exp()
    goal = (p_all * torch.tensor(worth, dtype=torch.float64)).sum()
    goal = goal - 0.3 * (p_all * (log_p - reference)).sum() - 0.2 * (p_all * log_p).sum()
    (true,) = torch.autograd.grad(goal, arms.logits)
    assert torch.allclose(total, true, rtol=0, atol=TOLERANCE)


def test_the_three_estimates_of_a_divergence_have_the_means_and_spreads_that_choose_between_them() -> None:
    """k3, which GRPO takes, has k1's exact mean at a two-hundredth of its variance; k2 is biased."""
    p, q = (torch.tensor(values, dtype=torch.float64) for values in ((0.5, 0.3, 0.2), (0.4, 0.4, 0.2)))
    k1 = (p / q).log()
    estimates = (k1, k1**2 / 2, k3(p.log(), q.log()))
    means = [float((p * k).sum()) for k in estimates]
    spreads = [float((p * (k - (p * k).sum()) ** 2).sum()) for k in estimates]
    assert means == pytest.approx([0.0252671539, 0.0248624073, 0.0252671539], abs=1e-10)
    assert spreads == pytest.approx([0.0491, 0.000205, 0.000255], rel=5e-3)


def test_harpg_carries_its_direction_exactly_where_all_trajectories_are_listed() -> None:
    """Its correction averages to the difference of the exact gradients, over points and trajectories alike."""
    tree = Tree()
    estimator = HARPG(tree, lr=1.0, gamma=GAMMA, baseline="none")
    step = torch.tensor((0.4, -0.3, 0.2), dtype=torch.float64)
    start = tree.logits.detach().clone()

    def at(logits: Tensor) -> Tensor:
        tree.logits.data = logits
        (gradient,) = torch.autograd.grad(tree.value(), tree.logits)
        return gradient

    nodes, weights = _gauss_legendre(12)
    total = torch.zeros(3, dtype=torch.float64)
    for share, weight in zip(nodes, weights, strict=True):
        tree.logits.data = start + (share - 1) * step
        mean, _ = moments(lambda batch: estimator.hessian_vector(batch, [step])[0], tree)
        total += weight * mean
    difference = at(start) - at(start - step)
    assert torch.allclose(total, difference, rtol=0, atol=1e-10)


def _gauss_legendre(n: int) -> tuple[list[float], list[float]]:
    import numpy as np

    x, w = np.polynomial.legendre.leggauss(n)
    return ((x + 1) / 2).tolist(), (w / 2).tolist()


def test_groups_are_kept_apart_whatever_order_their_trajectories_come_in() -> None:
    arms = Arms((0.2, -0.1, 0.4))
    picked, worth = [0, 1, 2, 2, 1, 0], [0.0, 1.0, 3.0, 2.0, 5.0, 4.0]
    groups = [0, 1, 0, 1, 0, 1]
    estimator = GRPO(arms, lr=1.0, unbiased=True)
    mixed = estimator.advantages(arms.batch(picked, worth, groups))
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 97):
        again = estimator.advantages(
            arms.batch([picked[i] for i in order], [worth[i] for i in order], [groups[i] for i in order])
        )
        assert torch.equal(again, mixed[list(order)])
