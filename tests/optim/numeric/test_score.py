"""Score-function estimators: unbiased by enumeration of all samples, in both orders, and the variance they are for."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_opt.optim.numeric.score import Estimator, box, log_prob, relax, sample, surrogate

LOGITS = torch.tensor([0.5, -0.3, 0.2, 0.0, -0.4], dtype=torch.float64)
COSTS = torch.tensor([11.0, 13.0, 12.0, 15.0, 14.0], dtype=torch.float64)
EXACT = torch.tensor([-0.515097, 0.049098, -0.150323, 0.444972, 0.171349], dtype=torch.float64)


def expected(logits: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
    return (logits.softmax(-1) * costs).sum()


def over_all_samples(
    logits: torch.Tensor, n: int, of_sample: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The exact mean and summed variance of an estimate over all samples of n choices."""
    draws, weights = [], []
    for picks in itertools.product(range(len(logits)), repeat=n):
        index = torch.tensor(picks)
        leaf = logits.clone().requires_grad_()
        draws.append(of_sample(leaf, index))
        weights.append(log_prob(logits, index).sum().exp())
    values, p = torch.stack(draws), torch.stack(weights)
    mean = torch.tensordot(p, values, dims=1)
    variance = torch.tensordot(p, (values - mean) ** 2, dims=1).sum()
    return mean, variance


def gradient(estimator: Estimator) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def of_sample(leaf: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        made = surrogate(COSTS[index], log_prob(leaf, index), estimator)
        return torch.autograd.grad(made, leaf)[0]

    return of_sample


@pytest.mark.parametrize("estimator", ["reinforce", "loo"])
@pytest.mark.parametrize("n", [2, 3])
def test_the_mean_gradient_over_all_samples_is_the_exact_one(estimator: Estimator, n: int) -> None:
    leaf = LOGITS.clone().requires_grad_()
    exact = torch.autograd.grad(expected(leaf, COSTS), leaf)[0]
    mean, _ = over_all_samples(LOGITS, n, gradient(estimator))
    assert torch.allclose(mean, exact, rtol=0, atol=1e-12)
    assert torch.allclose(mean, EXACT, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("n", "plain", "loo"), [(2, 65.4, 1.73), (4, 32.3, 0.488)])
def test_leaving_one_out_has_far_less_variance_than_the_plain_estimate(n: int, plain: float, loo: float) -> None:
    _, reinforce = over_all_samples(LOGITS, n, gradient("reinforce"))
    _, left_out = over_all_samples(LOGITS, n, gradient("loo"))
    assert float(reinforce) == pytest.approx(plain, rel=0.03)
    assert float(left_out) == pytest.approx(loo, rel=0.03)


def test_the_sum_over_all_choices_is_exact_and_has_no_variance() -> None:
    leaf = LOGITS.clone().requires_grad_()
    made = surrogate(COSTS, log_prob(leaf, torch.arange(5)), "enumerate")
    assert torch.allclose(torch.autograd.grad(made, leaf)[0], EXACT, rtol=0, atol=1e-6)
    assert float(made.detach()) == pytest.approx(float(expected(LOGITS, COSTS)), abs=1e-12)


def second(loss: torch.Tensor, leaves: list[torch.Tensor]) -> torch.Tensor:
    """The Hessian of a scalar over the joined leaves."""
    first = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, leaves, create_graph=True)])
    rows = [torch.autograd.grad(entry, leaves, retain_graph=True, allow_unused=True) for entry in first]
    return torch.stack(
        [torch.cat([torch.zeros_like(x) if g is None else g for g, x in zip(row, leaves, strict=True)]) for row in rows]
    )


@pytest.mark.parametrize("estimator", ["reinforce", "loo"])
def test_second_derivatives_are_unbiased_too_also_across_logits_and_a_tensor_in_the_losses(
    estimator: Estimator,
) -> None:
    start = LOGITS[:3]
    scale = torch.tensor([0.7], dtype=torch.float64)

    def costs(w: torch.Tensor) -> torch.Tensor:
        return (COSTS[:3] * w - 3.0) ** 2

    def of_sample(leaf: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        w = scale.clone().requires_grad_()
        return second(surrogate(costs(w)[index], log_prob(leaf, index), estimator), [leaf, w])

    leaf, w = start.clone().requires_grad_(), scale.clone().requires_grad_()
    exact = second(expected(leaf, costs(w)), [leaf, w])
    mean, _ = over_all_samples(start, 2, of_sample)
    assert torch.allclose(mean, exact, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("estimator", ["reinforce", "loo"])
def test_a_tensor_inside_the_losses_gets_its_unbiased_gradient(estimator: Estimator) -> None:
    scale = torch.tensor(2.0, dtype=torch.float64)

    def of_sample(leaf: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        w = scale.clone().requires_grad_()
        return torch.autograd.grad(surrogate((COSTS * w**2)[index], log_prob(leaf, index), estimator), w)[0]

    mean, _ = over_all_samples(LOGITS, 2, of_sample)
    assert float(mean) == pytest.approx(float(4.0 * expected(LOGITS, COSTS)), abs=1e-10)


@settings(max_examples=25)
@given(
    st.lists(st.floats(-2, 2), min_size=2, max_size=4),
    st.lists(st.floats(-20, 20), min_size=4, max_size=4),
    st.sampled_from(["reinforce", "loo"]),
)
def test_no_logits_and_no_costs_make_an_estimate_biased(
    logits: list[float], costs: list[float], estimator: Estimator
) -> None:
    start = torch.tensor(logits, dtype=torch.float64)
    given_costs = torch.tensor(costs[: len(logits)], dtype=torch.float64)

    def of_sample(leaf: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(surrogate(given_costs[index], log_prob(leaf, index), estimator), leaf)[0]

    leaf = start.clone().requires_grad_()
    exact = torch.autograd.grad(expected(leaf, given_costs), leaf)[0]
    mean, _ = over_all_samples(start, 2, of_sample)
    assert torch.allclose(mean, exact, rtol=0, atol=1e-11)


@given(st.floats(-50, 50), st.integers(0, 2))
def test_a_constant_added_to_every_loss_leaves_the_leave_one_out_gradient(shift: float, first: int) -> None:
    index = torch.tensor([first, 3])
    leaf = LOGITS.clone().requires_grad_()
    before = torch.autograd.grad(surrogate(COSTS[index], log_prob(leaf, index), "loo"), leaf)[0]
    after = torch.autograd.grad(surrogate(COSTS[index] + shift, log_prob(leaf, index), "loo"), leaf)[0]
    assert torch.allclose(before, after, rtol=0, atol=1e-12)


def test_the_value_of_a_surrogate_is_the_mean_loss() -> None:
    index = torch.tensor([0, 3, 3])
    for estimator in ("reinforce", "loo"):
        made = surrogate(COSTS[index], log_prob(LOGITS, index), estimator)
        assert float(made) == pytest.approx(float(COSTS[index].mean()), abs=1e-12)


def test_two_choices_multiply_only_the_cost_that_comes_after_them() -> None:
    first, later = (torch.tensor([0.3, -0.1], dtype=torch.float64).requires_grad_() for _ in range(2))
    early, late = torch.tensor([1.0, 4.0], dtype=torch.float64), torch.tensor([[2.0, 5.0], [7.0, 3.0]], dtype=torch.float64)  # fmt: skip
    mean: Any = [torch.zeros(2, dtype=torch.float64) for _ in range(2)]
    for i, j in itertools.product(range(2), repeat=2):
        a, b = log_prob(first, i), log_prob(later, j)
        cost = early[i] * box(a) + late[i, j] * box(a + b)
        found = torch.autograd.grad(cost, [first, later])
        mean = [m + (a + b).detach().exp() * g for m, g in zip(mean, found, strict=True)]
    exact_cost = (first.softmax(-1) * (early + (late * later.softmax(-1)).sum(-1))).sum()
    for found, exact in zip(mean, torch.autograd.grad(exact_cost, [first, later]), strict=True):
        assert torch.allclose(found, exact, rtol=0, atol=1e-12)


def test_log_probabilities_of_many_choices_and_of_many_rows() -> None:
    rows = torch.stack([LOGITS, 2 * LOGITS])
    assert torch.allclose(log_prob(LOGITS, torch.tensor([1, 4])), LOGITS.log_softmax(-1)[[1, 4]])
    assert torch.allclose(log_prob(rows, torch.tensor([1, 4])), rows.log_softmax(-1)[[0, 1], [1, 4]])
    assert log_prob(LOGITS, 2).shape == ()


def test_samples_follow_the_logits_and_the_generator_alone() -> None:
    drawn = sample(LOGITS, 4000, torch.Generator().manual_seed(3))
    share = torch.bincount(drawn, minlength=5) / 4000
    assert torch.allclose(share, LOGITS.softmax(-1).float(), atol=0.03)
    assert torch.equal(drawn, sample(LOGITS, 4000, torch.Generator().manual_seed(3)))


def test_a_relaxed_choice_nears_one_of_the_choices_as_the_temperature_falls() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
    cold = [float(relax(LOGITS, values, torch.Generator().manual_seed(i), 1e-3)) for i in range(200)]
    assert all(min(abs(x - float(v)) for v in values) < 1e-6 for x in cold)
    shares = torch.tensor([sum(abs(x - float(v)) < 1e-6 for x in cold) / 200 for v in values])
    assert torch.allclose(shares, LOGITS.softmax(-1).float(), atol=0.1)


def test_straight_through_gives_one_choice_exactly_with_the_mixtures_gradient() -> None:
    choices = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0])]
    found = []
    for hard in (False, True):
        leaf = torch.tensor([0.1, 0.2], dtype=torch.float64).requires_grad_()
        made = relax(leaf, choices, torch.Generator().manual_seed(0), 0.7, hard=hard)
        found.append((made.detach(), torch.autograd.grad(made.sum(), leaf)[0]))
    assert any(torch.equal(found[1][0], choice.double()) for choice in choices)
    assert torch.equal(found[0][1], found[1][1])


def test_the_relaxed_gradient_is_biased_and_less_so_when_cold() -> None:
    def bias(temperature: float) -> float:
        costs = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
        leaf = LOGITS[:3].clone().requires_grad_()
        exact = torch.autograd.grad(expected(leaf, costs**2), leaf)[0]
        draws = torch.Generator().manual_seed(0)
        total = sum(relax(leaf, costs, draws, temperature) ** 2 for _ in range(4000)) / 4000
        return float((torch.autograd.grad(torch.as_tensor(total), leaf)[0] - exact).norm())

    assert bias(2.0) > 3 * bias(0.2) > 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: surrogate(COSTS, LOGITS, "looo"), "did you mean 'loo'"),  # pyright: ignore[reportArgumentType]
        (lambda: surrogate(COSTS, LOGITS, "reparam"), "relax makes the choice itself differentiable"),  # pyright: ignore[reportArgumentType]
        (lambda: surrogate(COSTS, LOGITS[:2]), "give one number of each for every sample"),
        (lambda: surrogate(COSTS[:1], LOGITS[:1], "loo"), "draw 2 at least"),
        (lambda: surrogate(COSTS[:2], LOGITS.log_softmax(-1)[:2], "enumerate"), "every choice once"),
        (lambda: relax(LOGITS, list("abcde")), "cannot be mixed"),
        (lambda: relax(LOGITS, [1.0, 2.0]), "one logit for each choice"),
        (lambda: relax(LOGITS, COSTS, temperature=0.0), "above 0"),
    ],
)
def test_what_cannot_be_estimated_is_refused_with_what_to_do(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
