"""Stencils ask inside the bounds, and their gradients are exact or unbiased where they say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_opt.optim.numeric.differences import central, queries_of, spsa, stencil, two_point

D = torch.float64
CURVATURE = torch.tensor([[3.0, 0.5, 0.0], [0.5, 2.0, -0.3], [0.0, -0.3, 1.0]], dtype=D)
SLOPE = torch.tensor([1.0, -2.0, 0.5], dtype=D)
AT = torch.tensor([0.4, -0.3, 0.9], dtype=D)


def quadratic(points: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.einsum("ni,ij,nj->n", points, CURVATURE, points) + points @ SLOPE


def anywhere(points: torch.Tensor) -> torch.Tensor:
    return points


def box(points: torch.Tensor) -> torch.Tensor:
    return points.clamp(-1, 1)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_central_differences_are_exact_on_a_quadratic() -> None:
    shape = central(AT, 0.1, anywhere)
    assert torch.allclose(shape.gradient(quadratic(shape.points)), CURVATURE @ AT + SLOPE, atol=1e-12)


def test_central_differences_at_a_bound_divide_by_the_distance_that_is_there() -> None:
    at = torch.tensor([1.0, -1.0, 0.97], dtype=D)
    shape = central(at, 0.1, box)
    assert bool((shape.points.abs() <= 1).all())
    assert torch.allclose(shape.gradient(shape.points @ SLOPE), SLOPE, atol=1e-12)


def test_a_coordinate_that_cannot_move_has_no_slope() -> None:
    def held(points: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.full_like(points[:, :1], 0.4), points[:, 1:]], 1)

    for kind in ("central", "spsa", "two-point"):
        shape = stencil(kind, AT, 0.1, held, chance(), 5)
        found = shape.gradient(shape.points @ SLOPE)
        assert found[0] == 0
        assert bool(found.isfinite().all())


def test_central_differences_on_a_plane_give_the_slope_along_it() -> None:
    def onto_the_plane(points: torch.Tensor) -> torch.Tensor:
        return points - points.mean(-1, keepdim=True)

    shape = central(AT - AT.mean(), 0.1, onto_the_plane)
    assert torch.allclose(shape.gradient(shape.points @ SLOPE), SLOPE - SLOPE.mean(), atol=1e-12)


@pytest.mark.parametrize("rule", [two_point, spsa])
def test_random_directions_are_unbiased_on_a_quadratic(rule: Any) -> None:
    shape = rule(AT, 0.1, anywhere, chance(), 100_000)
    true = CURVATURE @ AT + SLOPE
    assert (shape.gradient(quadratic(shape.points)) - true).norm() < 0.02 * true.norm()


def test_spsa_at_a_corner_is_unbiased_for_a_linear_function() -> None:
    shape = spsa(torch.tensor([1.0, -1.0, 0.97], dtype=D), 0.1, box, chance(), 100_000)
    assert (shape.gradient(shape.points @ SLOPE) - SLOPE).norm() < 0.02 * SLOPE.norm()


def test_spsa_moves_every_coordinate_by_h() -> None:
    shape = spsa(AT, 0.1, anywhere, chance(), 20)
    assert torch.allclose((shape.points - AT).abs(), torch.full_like(shape.points, 0.1))


@given(kind=st.sampled_from(["central", "two-point", "spsa"]), seed=st.integers(0, 10_000), pairs=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_as_many_points_as_announced_all_of_them_allowed(kind: Any, seed: int, pairs: int) -> None:
    at = torch.rand(3, dtype=D, generator=chance(seed)) * 2 - 1
    shape = stencil(kind, at, 0.3, box, chance(seed), pairs)
    assert len(shape.points) == queries_of(kind, 3, pairs)
    assert bool((shape.points.abs() <= 1).all())
    again = stencil(kind, at, 0.3, box, chance(seed), pairs)
    assert torch.equal(shape.points, again.points)
