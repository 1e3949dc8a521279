"""Sophia's estimates of curvature: unbiased, by enumeration of what is drawn."""

from __future__ import annotations

import itertools

import pytest
import torch

from trace_opt.optim.numeric import registry
from trace_opt.optim.numeric.sophia import gauss_newton, hutchinson

Tensor = torch.Tensor
CLASSES = 4


def inputs(rows: int = 8, columns: int = 5) -> Tensor:
    i, j = torch.arange(1.0, rows + 1)[:, None], torch.arange(1.0, columns + 1)[None]
    return torch.cos(i * j).double()


def start() -> Tensor:
    return torch.linspace(-1, 1, 5 * CLASSES, dtype=torch.float64).sin().reshape(5, CLASSES).requires_grad_()


def loss(weights: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(inputs() @ weights, labels)


def hessian(weights: Tensor) -> Tensor:
    labels = torch.zeros(8, dtype=torch.long)
    full = torch.autograd.functional.hessian(lambda w: loss(w, labels), weights.detach())
    return full.reshape(20, 20).diagonal().reshape(5, CLASSES)


def test_hutchinson_is_exact_where_the_hessian_is_diagonal() -> None:
    x = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64, requires_grad=True)
    (found,) = hutchinson((x**4).sum(), [x], torch.Generator().manual_seed(0))
    assert torch.allclose(found, 12 * x.detach() ** 2)


def test_hutchinson_is_unbiased_over_all_signs() -> None:
    scale = torch.tensor([[2.0, 1.0, 0.5], [1.0, -3.0, 0.2], [0.5, 0.2, 1.0]], dtype=torch.float64)
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    products = [
        z * (scale @ z) for z in map(torch.tensor, itertools.product([-1.0, 1.0], repeat=3)) for z in [z.double()]
    ]
    assert torch.allclose(torch.stack(products).mean(0), scale.diagonal())
    generator, seen = torch.Generator().manual_seed(0), []
    for _ in range(60):
        seen += hutchinson(0.5 * x @ scale @ x, [x], generator)
    # every estimate is one of those that the signs allow, and in time all of them
    assert all(any(torch.allclose(one, product) for product in products) for one in seen)
    assert all(any(torch.allclose(one, product) for one in seen) for product in products)


def test_signs_vary_less_than_normal_numbers() -> None:
    weights, exact = start(), hessian(start())
    spread = {}
    for kind in ("rademacher", "gaussian"):
        generator = torch.Generator().manual_seed(0)
        value = loss(weights, torch.zeros(8, dtype=torch.long))
        found = torch.stack([hutchinson(value, [weights], generator, kind)[0] for _ in range(600)])
        assert (found.mean(0) - exact).abs().max() < 0.05
        spread[kind] = float(found.var(0).sum())
    assert spread["rademacher"] < 0.7 * spread["gaussian"]


def test_gauss_newton_is_unbiased_over_all_labels() -> None:
    weights = start()
    chances = (inputs() @ weights.detach()).softmax(-1)
    total = torch.zeros(5, CLASSES, dtype=torch.float64)
    for row in range(8):
        for label in range(CLASSES):
            value = torch.nn.functional.cross_entropy(inputs()[row : row + 1] @ weights, torch.tensor([label]))
            (found,) = gauss_newton(value, [weights], 1)
            total += chances[row, label] * found
    assert (total / 8 - hessian(weights)).abs().max() <= 1e-15


def test_the_mean_over_a_batch_counts_as_the_batch() -> None:
    weights = start()
    generator = torch.Generator().manual_seed(0)
    chances = (inputs() @ weights.detach()).softmax(-1)
    total = torch.zeros(5, CLASSES, dtype=torch.float64)
    for _ in range(2000):
        labels = torch.multinomial(chances, 1, generator=generator)[:, 0]
        total += gauss_newton(loss(weights, labels), [weights], 8)[0]
    exact = hessian(weights)
    assert (total / 2000 - exact).norm() <= 0.06 * exact.norm()


def test_estimates_leave_the_graph_alive_and_gradients_alone() -> None:
    weights, other = start(), torch.ones(3, dtype=torch.float64, requires_grad=True)
    value = loss(weights, torch.zeros(8, dtype=torch.long))
    for found in (hutchinson(value, [weights, other], torch.Generator()), gauss_newton(value, [weights, other], 8)):
        assert torch.equal(found[1], torch.zeros(3, dtype=torch.float64))
        assert not any(part.requires_grad for part in found)
    assert weights.grad is None
    value.backward()
    assert weights.grad is not None


def test_a_linear_loss_has_no_curvature() -> None:
    x = torch.ones(3, requires_grad=True)
    assert torch.equal(hutchinson(x.sum(), [x], torch.Generator())[0], torch.zeros(3))
    constant = torch.tensor(1.0)
    assert torch.equal(hutchinson(constant, [x], torch.Generator())[0], torch.zeros(3))
    assert torch.equal(gauss_newton(constant, [x], 2)[0], torch.zeros(3))


def test_the_same_generator_draws_the_same() -> None:
    weights = start()
    value = loss(weights, torch.zeros(8, dtype=torch.long))
    one, two = (hutchinson(value, [weights], torch.Generator().manual_seed(5))[0] for _ in range(2))
    assert torch.equal(one, two)


def test_another_distribution_is_refused() -> None:
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="distribution='normal'; give 'rademacher' or 'gaussian'"):
        hutchinson((x**2).sum(), [x], torch.Generator(), "normal")


@pytest.mark.parametrize(("name", "lr"), [("sophiah", 3.0), ("sophia-g", 0.03)])
def test_both_forms_train_on_estimates_of_their_own(name: str, lr: float) -> None:
    weights, generator = (
        torch.zeros(5, CLASSES, dtype=torch.float64, requires_grad=True),
        torch.Generator().manual_seed(0),
    )
    labels = (inputs() @ start().detach()).argmax(-1)
    stepper = registry.build(name, [weights], lr=lr, every=5)
    first = loss(weights, labels).item()
    for t in range(200):
        stepper.set_lr(1 - t / 200)
        value = loss(weights, labels)
        curvature = None
        if stepper.wants_curvature(t) and name == "sophiah":
            curvature = hutchinson(value, [weights], generator)
        elif stepper.wants_curvature(t):
            drawn = torch.multinomial((inputs() @ weights.detach()).softmax(-1), 1, generator=generator)[:, 0]
            curvature = gauss_newton(loss(weights, drawn), [weights], 8)
        weights.grad = None
        value.backward()
        stepper.step(curvature)
    assert loss(weights, labels).item() < 0.3 * first
