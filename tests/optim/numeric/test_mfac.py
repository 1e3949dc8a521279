"""M-FAC: the inverse of the dense matrix, without the matrix."""

from __future__ import annotations

import pytest
import torch

from trace_opt.optim.numeric import registry
from trace_opt.optim.numeric.mfac import empty, remember, solve

Tensor = torch.Tensor


def draws(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(window: Tensor, vector: Tensor, damping: float) -> Tensor:
    fisher = damping * torch.eye(len(vector), dtype=vector.dtype) + window.T @ window / len(window)
    return torch.linalg.solve(fisher, vector)


@pytest.mark.parametrize("damping", [1.0, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("seen", [1, 7, 16, 40])
def test_it_equals_the_dense_inverse(damping: float, seen: int) -> None:
    gradients, vector = draws(seen, 50), draws(1, 50, seed=1)[0]
    state = empty(16, 50, vector)
    for gradient in gradients:
        remember(state, gradient)
    expected = dense(gradients[-16:], vector, damping)
    assert (solve(state, vector, damping) - expected).norm() <= 1e-10 * expected.norm()


def test_products_kept_over_many_replacements_do_not_drift() -> None:
    gradients = draws(500, 30)
    state = empty(8, 30, gradients[0])
    for gradient in gradients:
        remember(state, gradient)
    window = state["gradients"]
    assert torch.allclose(state["gram"], window @ window.T, rtol=0, atol=1e-12)


def test_without_gradients_only_the_damping_counts() -> None:
    vector = draws(1, 5)[0]
    assert torch.equal(solve(empty(4, 5, vector), vector, 0.5), vector / 0.5)


def test_all_leaves_are_one_vector() -> None:
    a, b = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True), torch.zeros(4, dtype=torch.float64)
    b.requires_grad_()
    stepper = registry.build("m-fac", [{"params": [a]}, {"params": [b], "lr": 0.5}], lr=1.0, damping=0.1, window=3)
    gradients = draws(5, 10)
    for gradient in gradients:
        a.grad, b.grad = gradient[:6].reshape(2, 3), gradient[6:]
        before = torch.cat([a.detach().reshape(-1), b.detach()])
        stepper.step()
    moved = before - torch.cat([a.detach().reshape(-1), b.detach()])
    expected = dense(gradients[-3:], gradients[-1], 0.1) * torch.tensor([1.0] * 6 + [0.5] * 4)
    assert torch.allclose(moved, expected, rtol=1e-10, atol=1e-12)


def test_leaves_in_float32_are_solved_in_float64() -> None:
    x = torch.zeros(50, requires_grad=True)
    stepper = registry.build("m-fac", [x], lr=1.0, damping=1e-3, window=8)
    gradients = draws(8, 50).float()
    for gradient in gradients:
        before = x.detach().clone()
        x.grad = gradient
        stepper.step()
    expected = dense(gradients.double(), gradients[-1].double(), 1e-3)
    assert ((before - x.detach()).double() - expected).norm() <= 1e-2 * expected.norm()
