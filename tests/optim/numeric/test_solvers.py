"""Linear solvers solve what they fit, and tell by their residual where they don't."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_opt.optim.numeric.nearest import nearest
from trace_opt.optim.numeric.solvers import accepted, dense_matrix, sketch, solve

D = torch.float64


def matrix(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, size, dtype=D, generator=generator) / size**0.5 + 2 * torch.eye(size, dtype=D)


def vector(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, dtype=D, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 30), seed=st.integers(0, 10_000))
def test_gmres_and_dense_solve_any_regular_system(size: int, seed: int) -> None:
    a, b = matrix(size, seed), vector(size, seed + 1)
    for method in ("gmres", "dense"):
        found = solve(lambda x: a @ x, b, method)  # type: ignore[arg-type]
        assert torch.allclose(a @ found.solution, b, atol=1e-9)
        assert found.residual <= 1e-9


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 30), seed=st.integers(0, 10_000))
def test_conjugate_gradients_solve_symmetric_definite_systems(size: int, seed: int) -> None:
    half = matrix(size, seed)
    a, b = half @ half.T + 0.1 * torch.eye(size, dtype=D), vector(size, seed + 1)
    for sign in (1.0, -1.0):
        found = solve(lambda x, sign=sign: sign * (a @ x), b, "cg")
        assert found.residual <= 1e-9
        assert torch.allclose(a @ found.solution, sign * b, atol=1e-8)


def test_conjugate_gradients_take_as_many_products_as_there_are_eigenvalues() -> None:
    spread = torch.tensor([1.0, 1.0, 5.0, 5.0, 9.0, 9.0], dtype=D)
    assert solve(lambda x: spread * x, vector(6, 0), "cg").iterations == 3


def test_gmres_takes_no_more_products_than_there_are_dimensions() -> None:
    a = matrix(12, 3)
    assert solve(lambda x: a @ x, vector(12, 4), "gmres").iterations <= 12


def test_gmres_goes_on_over_restarts() -> None:
    size = 150
    ones = torch.ones(size - 1, dtype=D)
    a = 2.01 * torch.eye(size, dtype=D) - 1.2 * torch.diag(ones, 1) - 0.8 * torch.diag(ones, -1)
    found = solve(lambda x: a @ x, vector(size, 6), "gmres")
    assert found.residual <= 1e-9
    assert found.iterations > 60


def test_conjugate_gradients_on_a_rotation_leave_a_residual_that_tells() -> None:
    a = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=D) + 0.01 * torch.eye(2, dtype=D)
    assert solve(lambda x: a @ x, vector(2, 1), "cg").residual > accepted(D, None)
    assert solve(lambda x: a @ x, vector(2, 1), "gmres").residual < 1e-12


@pytest.mark.parametrize("method", ["cg", "gmres", "dense"])
def test_a_singular_system_leaves_a_residual_that_tells(method: str) -> None:
    a = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=D)
    right = torch.tensor([1.0, 0.0], dtype=D)
    assert not solve(lambda x: a @ x, right, method).residual <= 0.1  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["cg", "gmres", "dense"])
def test_a_right_hand_side_of_zeros_needs_no_product(method: str) -> None:
    def refuse(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("asked")

    found = solve(refuse, torch.zeros(3, dtype=D), method)  # type: ignore[arg-type]
    assert found.iterations == 0
    assert not found.solution.any()


def test_float32_is_solved_to_what_it_can_hold() -> None:
    a, b = matrix(8, 1).float(), vector(8, 2).float()
    found = solve(lambda x: a @ x, b, "gmres")
    assert found.solution.dtype is torch.float32
    assert found.residual <= accepted(torch.float32, None)


def test_an_unknown_solver_is_refused_with_the_near_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'gmres'"):
        solve(lambda x: x, vector(2, 0), "gmre")  # type: ignore[arg-type]


def test_the_dense_matrix_is_that_of_the_product() -> None:
    a = matrix(5, 2)
    assert torch.equal(dense_matrix(lambda x: a @ x, vector(5, 0)), a)


@pytest.mark.parametrize("kind", ["gaussian", "kaczmarz"])
def test_sketches_reach_the_residual_asked_for_and_repeat_by_seed(kind: str) -> None:
    a, b = matrix(6, 7), vector(6, 8)
    runs = [sketch(a, b, torch.Generator().manual_seed(3), limit=1e-8, kind=kind) for _ in range(2)]  # type: ignore[arg-type]
    assert float((a @ runs[0].solution - b).norm()) <= 1e-8
    assert torch.equal(runs[0].solution, runs[1].solution)
    other = sketch(a, b, torch.Generator().manual_seed(4), limit=1e-8, kind=kind)  # type: ignore[arg-type]
    assert not torch.equal(runs[0].solution, other.solution)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), equal=st.integers(0, 2), ups=st.integers(0, 3), boxed=st.booleans())
def test_the_nearest_point_is_feasible_and_no_feasible_point_is_nearer(
    seed: int, equal: int, ups: int, boxed: bool
) -> None:
    inside = 0.5 * torch.tanh(vector(5, seed))
    rows = torch.randn(equal + ups, 5, dtype=D, generator=torch.Generator().manual_seed(seed + 1))
    is_up = torch.arange(equal + ups) >= equal
    right = rows @ inside + 0.1 * is_up  # so that `inside` is a point of the set
    wanted = 2 * vector(5, seed + 2)
    found = nearest(wanted, rows, right, is_up, (lambda p: p.clamp(-1, 1)) if boxed else None)
    gap = rows @ found - right
    assert float(torch.where(is_up, gap.clamp_min(0), gap.abs()).sum()) <= 1e-4
    if boxed:
        assert float(found.abs().max()) <= 1 + 1e-4
    # the projection on a convex set: <wanted - found, other - found> <= 0 for every point of it
    assert float((wanted - found) @ (inside - found)) <= 1e-3 * (1 + float(wanted.norm()))


def test_the_nearest_point_of_a_corner_is_the_corner() -> None:
    rows = torch.eye(2, dtype=D)
    found = nearest(torch.tensor([3.0, 2.0], dtype=D), rows, torch.ones(2, dtype=D), torch.tensor([True, True]))
    assert found.tolist() == pytest.approx([1.0, 1.0])
