"""The surrogate is the Gaussian process that a dense computation gives, and its gradient is that of its mean."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_opt.optim.numeric.gaussian import LENGTHSCALES, Gaussian, fit, nearest, squared_distances

D = torch.float64


def data(seed: int, count: int = 30, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    points = torch.rand(count, size, dtype=D, generator=chance) * 2 - 1
    return points, (points**2).sum(-1) + torch.sin(3 * points[:, 0])


def dense(points: torch.Tensor, lengthscale: float, variance: float) -> torch.Tensor:
    kernel = [[math.exp(-float(((p - q) ** 2).sum()) / (2 * lengthscale**2)) for q in points] for p in points]
    return torch.tensor(kernel, dtype=D) + variance * torch.eye(len(points), dtype=D)


def test_the_lengthscales_are_nine_from_a_tenth_to_ten() -> None:
    assert len(LENGTHSCALES) == 9
    assert LENGTHSCALES[0] == pytest.approx(0.1)
    assert LENGTHSCALES[-1] == pytest.approx(10)
    assert {round(b / a, 9) for a, b in pairwise(LENGTHSCALES)} == {round(10**0.25, 9)}


def test_the_weights_solve_the_dense_system() -> None:
    points, values = data(0)
    found = fit(points, values, lengthscales=[0.7], variances=[1e-3])
    standard = (values - values.mean()) / values.std(correction=0)
    assert torch.allclose(dense(points, 0.7, 1e-3) @ found.weights, standard, atol=1e-10)


def test_the_likelihood_is_the_gaussian_s_at_its_best_amplitude() -> None:
    points, values = data(1)
    found = fit(points, values, lengthscales=[0.5], variances=[1e-2])
    covariance = dense(points, 0.5, 1e-2)
    standard = (values - values.mean()) / values.std(correction=0)

    def log_density(amplitude: float) -> float:
        normal: Any = torch.distributions.MultivariateNormal(torch.zeros(len(points), dtype=D), amplitude * covariance)
        return float(normal.log_prob(standard))

    amplitude = float(standard @ torch.linalg.solve(covariance, standard)) / len(points)
    constant = -0.5 * len(points) * (1 + math.log(2 * math.pi))
    assert found.likelihood + constant == pytest.approx(log_density(amplitude), rel=1e-10)
    assert log_density(amplitude) > max(log_density(0.9 * amplitude), log_density(1.1 * amplitude))


def test_the_lengthscale_and_noise_of_the_greatest_likelihood_are_taken() -> None:
    points, values = data(2)
    grid = [(length, noise) for length in LENGTHSCALES for noise in (1e-6, 1e-2)]
    each = {pair: fit(points, values, lengthscales=[pair[0]], variances=[pair[1]]).likelihood for pair in grid}
    found = fit(points, values, variances=(1e-6, 1e-2))
    assert (found.lengthscale, found.variance) == max(each, key=lambda pair: each[pair])
    assert found.likelihood == pytest.approx(max(each.values()), rel=1e-9)


@given(seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_gradient_is_the_derivative_of_the_mean(seed: int) -> None:
    points, values = data(seed)
    found = fit(points, values)
    at = torch.rand(4, dtype=D, generator=torch.Generator().manual_seed(seed + 1)).requires_grad_()
    (expected,) = torch.autograd.grad(found.value(at[None])[0], at)
    assert torch.allclose(found.gradient(at.detach()), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max() + 1))


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
@settings(max_examples=25, deadline=None)
def test_scaled_and_shifted_values_scale_and_shift_the_mean_and_scale_the_gradient(
    seed: int, scale: float, shift: float
) -> None:
    points, values = data(seed)
    one = fit(points, values, lengthscales=[0.5], variances=[1e-3])
    other = fit(points, scale * values + shift, lengthscales=[0.5], variances=[1e-3])
    at = torch.full((4,), 0.1, dtype=D)
    assert float(other.value(at[None])) == pytest.approx(scale * float(one.value(at[None])) + shift, rel=1e-6, abs=1e-6)
    assert torch.allclose(other.gradient(at), scale * one.gradient(at), rtol=1e-5, atol=1e-7)


def test_the_mean_goes_through_exact_values_and_past_noisy_ones() -> None:
    points, values = data(3)
    assert torch.allclose(fit(points, values).value(points), values, atol=1e-3)
    points, values = data(3, 150, 2)
    noise = 0.5 * torch.randn(150, dtype=D, generator=torch.Generator().manual_seed(0))
    smooth = fit(points, values + noise, variances=(1e-6, 1e-2, 0.1, 1.0))
    assert smooth.variance > 1e-6
    assert (smooth.value(points) - values).norm() < 0.5 * noise.norm()


def test_equal_values_have_no_gradient() -> None:
    points, _ = data(4)
    found = fit(points, torch.full((30,), 2.5, dtype=D))
    assert found.gradient(points[0]).abs().max() == 0
    assert float(found.value(points[:1])) == 2.5


def test_points_asked_twice_do_no_harm() -> None:
    points, values = data(5)
    found = fit(torch.cat([points, points]), torch.cat([values, values]))
    assert bool(found.gradient(points[0]).isfinite().all())


def test_no_query_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="given no query"):
        fit(torch.empty(0, 3, dtype=D), torch.empty(0, dtype=D))


def test_queries_around_a_trajectory_determine_the_gradient_that_those_on_it_do_not() -> None:
    chance = torch.Generator().manual_seed(0)
    curvature = 10 ** torch.linspace(-1, 1, 10, dtype=D)
    line = torch.linspace(0, 1, 40, dtype=D)[:, None] * torch.linspace(-1, 1, 10, dtype=D)
    at, true = line[-1], curvature * line[-1]

    def error(points: torch.Tensor) -> float:
        found: Gaussian = fit(points, 0.5 * (curvature * points**2).sum(-1))
        return float((found.gradient(at) - true).norm() / true.norm())

    around = line + 0.1 * torch.randn(40, 10, dtype=D, generator=chance)
    assert error(around) < 0.3 < 0.5 < error(line)


def test_the_nearest_are_those_of_a_sort_in_the_order_of_asking() -> None:
    points, _ = data(6)
    at = torch.zeros(4, dtype=D)
    chosen = nearest(points, at, 7).tolist()
    by_distance = sorted(range(30), key=lambda i: float((points[i] ** 2).sum()))
    assert chosen == sorted(by_distance[:7])
    assert nearest(points, at, 100).tolist() == list(range(30))


def test_distances_of_near_points_are_exact() -> None:
    points = torch.tensor([[1.0, 1.0], [1.0 + 1e-9, 1.0]], dtype=D)
    assert float(squared_distances(points, points)[0, 1]) == pytest.approx(1e-18, rel=1e-6)
