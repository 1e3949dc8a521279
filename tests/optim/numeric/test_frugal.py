"""FRUGAL: a state for a part of every matrix only, and signSGD for the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.optim.numeric.rules import adam
from trace_opt.optim.numeric import registry
from trace_opt.optim.numeric.frugal import PROJECTIONS, _blocks
from trace_opt.optim.numeric.stepper import Stepper

Tensor = torch.Tensor


def draws(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def follow(stepper: Stepper, gradients: Tensor) -> None:
    for gradient in gradients:
        for leaf in stepper.leaves:
            leaf.grad = gradient.to(leaf)
        stepper.step()


def made(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, **options: Any) -> Stepper:
    leaves = [torch.ones(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    return registry.build("frugal", leaves, lr=options.pop("lr", 0.01), **options)


@pytest.mark.parametrize("rho", [0.125, 0.25, 0.5])
@pytest.mark.parametrize("projection", ["columns", "rows", "blocks", "blocks-mirror"])
def test_the_state_is_eight_rho_bytes_a_parameter(projection: str, rho: float) -> None:
    stepper = made(*[(256, 512)] * 8, dtype=torch.float32, projection=projection, rho=rho)
    follow(stepper, draws(2, 256, 512))
    assert stepper.state_bytes() / (8 * 256 * 512) == pytest.approx(8 * rho, rel=0.05)


@pytest.mark.parametrize(("projection", "extra"), [("entries", 0.0), ("svd", 0.25), ("random", 0.25)])
def test_bases_add_their_own_bytes_and_drawn_entries_none(projection: str, extra: float) -> None:
    stepper = made((256, 512), dtype=torch.float32, projection=projection, rho=0.25)
    follow(stepper, draws(2, 256, 512))
    assert stepper.state_bytes() / (256 * 512) == pytest.approx(2 * (1 + extra), rel=0.01)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_whole_share_is_adam_and_none_is_sign_descent(projection: str) -> None:
    gradients = draws(20, 6, 4)
    whole = made((6, 4), rho=1.0, projection=projection, weight_decay=0.0, gap=5)
    follow(whole, gradients)
    expected = adam(torch.ones(6, 4, dtype=torch.float64), list(gradients), 0.01, coupled=0)
    assert (whole.leaves[0].detach() - expected).abs().max() <= 1e-12

    none = made((6, 4), rho=0.0, projection=projection, weight_decay=0.0, gap=5)
    follow(none, gradients)
    assert torch.allclose(none.leaves[0].detach(), 1 - 0.01 * gradients.sign().sum(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("projection", ["svd", "random"])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_a_basis_splits_the_gradient_into_what_it_spans_and_the_rest(projection: str, shape: tuple[int, int]) -> None:
    stepper = made(shape, projection=projection, rho=0.5, weight_decay=0.0, lr=1.0)
    (gradient,) = draws(1, *shape)
    follow(stepper, gradient[None])
    basis = stepper.optimizer.state[stepper.leaves[0]]["basis"]
    assert torch.allclose(basis.T @ basis, torch.eye(3, dtype=torch.float64), atol=1e-12)
    wide = gradient if shape == (6, 9) else gradient.T
    inside = basis.T @ wide
    # at the first step Adam's direction is the sign
    expected = (wide - basis @ inside).sign() + basis @ (inside / (inside.abs() + 1e-8))
    moved = 1 - stepper.leaves[0].detach()
    assert torch.allclose(moved if shape == (6, 9) else moved.T, expected, atol=1e-12)
    if projection == "svd":
        assert torch.allclose(inside.norm(dim=1), torch.linalg.svdvals(gradient)[:3])


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_new_part_starts_from_nothing_and_the_seed_decides_it(projection: str) -> None:
    shapes = [(6, 8)] * 4
    gradients = draws(10, 6, 8)
    one, two, other = (made(*shapes, projection=projection, rho=0.5, gap=3, seed=s) for s in (0, 0, 1))
    for stepper in (one, two, other):
        follow(stepper, gradients)
    assert all(torch.equal(a, b) for a, b in zip(one.leaves, two.leaves, strict=True))
    drawn = projection in ("columns", "rows", "entries", "blocks", "random")
    assert drawn != all(torch.equal(a, b) for a, b in zip(one.leaves, other.leaves, strict=True))
    states = [one.optimizer.state[leaf] for leaf in one.leaves if one.optimizer.state[leaf]]
    assert {state["epoch"] for state in states} == {3}  # the tenth step is the first of the fourth part
    assert {state["count"] for state in states} == {1}


@pytest.mark.parametrize(
    ("order", "turns"),
    [
        ("blocks-ascending", [{0, 1}, {2, 3}, {0, 1}, {2, 3}]),
        ("blocks-descending", [{3, 2}, {1, 0}, {3, 2}, {1, 0}]),
        ("blocks-mirror", [{0, 1}, {2, 3}, {3, 2}, {1, 0}]),
    ],
)
def test_blocks_take_turns_in_order(order: str, turns: list[set[int]]) -> None:
    group = {"projection": order, "rho": 0.5, "seed": 0}
    assert [_blocks(group, 0, epoch, 4) for epoch in range(4)] == turns


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("order", ["blocks", "blocks-ascending", "blocks-descending", "blocks-mirror"])
def test_as_many_blocks_as_asked_for_have_a_state_in_every_turn(order: str, count: int) -> None:
    group = {"projection": order, "rho": 0.4, "seed": 0}
    assert {len(_blocks(group, 0, epoch, count)) for epoch in range(12)} == {round(count * 0.4)}


def test_only_matrices_are_split() -> None:
    stepper = made((8,), (2, 2, 2), rho=0.25, weight_decay=0.0, gap=3)
    gradients = draws(10, 8)
    for gradient in gradients:
        for leaf in stepper.leaves:
            leaf.grad = gradient.reshape(leaf.shape)
        stepper.step()
    expected = adam(torch.ones(8, dtype=torch.float64), list(gradients), 0.01, coupled=0)
    for leaf in stepper.leaves:
        assert (leaf.detach().reshape(-1) - expected).abs().max() <= 1e-12


def least_squares(lr: float, **options: Any) -> float:
    """What half the squared error falls to."""
    rows = draws(1, 100, 20, seed=3)[0] / 10
    wanted = rows @ draws(1, 20, 20, seed=4)[0]
    w = torch.zeros(20, 20, dtype=torch.float64, requires_grad=True)
    stepper = registry.build("frugal", [w], lr=lr, weight_decay=0.0, gap=50, **options)
    for t in range(1000):
        stepper.set_lr(1 - t / 1000)
        w.grad = rows.T @ (rows @ w.detach() - wanted)
        stepper.step()
    return float(((rows @ w.detach() - wanted) ** 2).sum()) / 2


def test_what_has_no_state_moves_too_and_that_is_the_point() -> None:
    rates = (0.003, 0.01, 0.03)
    whole = min(least_squares(lr) for lr in rates)
    part_alone = min(least_squares(lr, residual=0.0) for lr in rates)
    assert whole < 1e-6
    assert part_alone > 10 * whole
