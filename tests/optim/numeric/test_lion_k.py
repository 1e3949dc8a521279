"""Lion-K: each constraint by name is met, at the optimum known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.optim.numeric.rules import lion_k
from trace_opt.optim.numeric import registry

Tensor = torch.Tensor


def tensor(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=torch.float64)


VECTOR = tensor(3, -2, 0.5, 0.2, -0.1, 0)
_TURN = torch.tensor([[math.cos(0.3), -math.sin(0.3), 0], [math.sin(0.3), math.cos(0.3), 0], [0, 0, 1]]).double()


def turned(*sizes: float) -> Tensor:
    return _TURN @ torch.diag(tensor(*sizes))


OPTIMA: dict[str, tuple[Tensor, Tensor, dict[str, Any]]] = {
    "box": (VECTOR, VECTOR.clamp(-1, 1), {}),
    "l2": (VECTOR, VECTOR / VECTOR.norm(), {}),
    "l1": (tensor(1.5, -1.2, 0.5, 0.2, -0.1, 0), tensor(0.65, -0.35, 0, 0, 0, 0), {}),
    "huber": (VECTOR, (VECTOR / 2).clamp(-1, 1), {"delta": 1.0}),
    "group": (VECTOR, torch.cat([x / max(1, x.norm()) for x in VECTOR.split(2)]), {"group_size": 2}),
    "spectral": (turned(3, 1.5, 0.2), turned(1, 1, 0.2), {}),
    "nuclear": (turned(1.5, 1.2, 0.2), turned(0.65, 0.35, 0), {}),
}
"""The centre of half a squared distance, and the point of the set nearest to it."""


@pytest.mark.parametrize("name", OPTIMA)
def test_the_constrained_optimum_is_met_with_quadratic_decay(name: str) -> None:
    centre, optimum, options = OPTIMA[name]
    x = torch.zeros_like(centre).requires_grad_()
    stepper = registry.build("lion-k", [x], lr=0.1, weight_decay=1.0, constraint=name, **options)
    steps = 5000
    for t in range(steps):
        stepper.set_lr((1 - t / steps) ** 2)
        x.grad = x.detach() - centre
        stepper.step()
    assert (x.detach() - optimum).abs().max() <= 1e-4
    assert size(name, x.detach()) <= 1 + 1e-9


def size(name: str, x: Tensor) -> float:
    """What the constraint bounds by 1 / weight_decay."""
    if name in ("spectral", "nuclear"):
        sizes = torch.linalg.svdvals(x)
        return float(sizes[0] if name == "spectral" else sizes.sum())
    if name == "group":
        return float(x.reshape(-1, 2).norm(dim=1).max())
    return float({"l2": x.norm(), "l1": x.abs().sum()}.get(name, x.abs().max()))


@pytest.mark.parametrize("name", OPTIMA)
def test_an_iterate_inside_stays_inside_whatever_the_gradients(name: str) -> None:
    shape = OPTIMA[name][0].shape
    x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    stepper = registry.build("lion-k", [x], lr=0.3, weight_decay=2.0, constraint=name, **OPTIMA[name][2])
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        x.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        stepper.step()
        assert size(name, x.detach()) <= 0.5 + 1e-12


def polar(u: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(u, full_matrices=False)
    return left @ right


def top(u: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(u, full_matrices=False)
    return torch.outer(left[:, 0], right[0])


def largest(u: Tensor) -> Tensor:
    return u.sign() * (u.abs() == u.abs().max())


DIRECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "box": torch.sign,
    "l2": lambda u: u / u.norm(),
    "l1": largest,
    "huber": lambda u: (u / 0.5).clamp(-1, 1),
    "group": lambda u: u / u.norm(dim=1, keepdim=True),
    "spectral": polar,
    "nuclear": top,
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_each_constraint_equals_its_rule_on_random_gradients(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(20)]
    x = torch.ones(4, 6, dtype=torch.float64, requires_grad=True)
    expected = lion_k(DIRECTIONS[name])(x.detach(), given, 0.05)
    stepper = registry.build("lion-k", [x], lr=0.05, weight_decay=0.1, constraint=name, delta=0.5)
    for gradient in given:
        x.grad = gradient
        stepper.step()
    assert (x.detach() - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("name", DIRECTIONS)
def test_no_gradient_means_no_step(name: str) -> None:
    x = torch.ones(4, 6, requires_grad=True)
    stepper = registry.build("lion-k", [x], lr=0.1, constraint=name)
    x.grad = torch.zeros(4, 6)
    stepper.step()
    assert torch.equal(x, torch.ones(4, 6))


def test_a_kernel_of_four_dimensions_is_a_matrix_of_its_rows() -> None:
    x = torch.zeros(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    x.grad = torch.linspace(-1, 2, 72, dtype=torch.float64).sin().reshape(4, 2, 3, 3)
    registry.build("lion-k", [x], lr=1.0, constraint="spectral").step()
    assert torch.linalg.svdvals(x.detach().reshape(4, -1)).max() == pytest.approx(1)


def test_the_polar_factor_is_zero_where_the_momentum_has_no_rank() -> None:
    x = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    x.grad = torch.outer(tensor(1, 2, 2), tensor(2, 1, 2))
    registry.build("lion-k", [x], lr=1.0, constraint="spectral").step()
    assert torch.allclose(x.detach(), -x.grad / 9, atol=1e-12)
