"""One optimizer over leaves: groups, curvature, and a state that goes on to the bit."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from tests.optim.numeric.rules import follow, gradients, leaf
from trace_opt.core.codec import decode, encode
from trace_opt.optim.numeric import registry


def test_groups_have_their_own_learning_rates_and_options() -> None:
    fast, slow = leaf(), leaf()
    stepper = registry.build("sgd", [{"params": [fast]}, {"params": [slow], "lr": 0.01, "momentum": 0.9}], lr=0.1)
    stepper.set_lr(0.5)
    fast.grad = slow.grad = torch.ones(4, 6, dtype=torch.float64)
    stepper.step()
    assert torch.allclose(leaf() - fast, torch.tensor(0.05, dtype=torch.float64))
    assert torch.allclose(leaf() - slow, torch.tensor(0.005, dtype=torch.float64))
    assert stepper.optimizer.param_groups[1]["momentum"] == 0.9


@pytest.mark.parametrize("name", registry.names())
def test_a_leaf_without_a_gradient_stays_where_it_is(name: str) -> None:
    moved, kept = leaf(), leaf()
    stepper = registry.build(name, [moved, kept])
    for gradient in gradients(3):
        moved.grad = gradient
        stepper.step([gradient**2, gradient**2] if stepper.curvature != "none" else None)
    assert torch.equal(kept, leaf())
    assert not torch.equal(moved, leaf())


@pytest.mark.parametrize("options", [{"maximize": True}, {"weight_decouple": False, "weight_decay": 0.1}])
@pytest.mark.parametrize("name", ["lion", "diffgrad", "adabelief", "exadam", "sophiah"])
def test_gradients_are_left_as_they_were(name: str, options: dict[str, Any]) -> None:
    x = leaf()
    gradient = gradients(1)[0]
    x.grad = gradient
    registry.build(name, [x], **options).step()
    assert torch.equal(gradient, gradients(1)[0])


# -- state -----------------------------------------------------------------------------------------------------------


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """A state after it has been through a store."""
    return decode(json.loads(json.dumps(encode(state))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", registry.names())
def test_a_stored_state_goes_on_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"frugal": {"gap": 6}, "exadam": {"growing": True}, "sgd": {"momentum": 0.9}}.get(
        name, {}
    )
    shape = (64, 80) if name.endswith("8bit") else (4, 6)  # 8 bits from 4096 elements
    given = gradients(16, shape)
    whole = leaf(shape, dtype)
    stepper = registry.build(name, [whole], **options)
    stepper.set_lr(0.5)
    follow(stepper, whole, given[:9])
    part = whole.detach().clone().requires_grad_()
    state = stored(stepper.state_dict())
    follow(stepper, whole, given[9:], 9)

    resumed = registry.build(name, [part], **options)
    resumed.load_state_dict(state)
    follow(resumed, part, given[9:], 9)

    assert torch.equal(part, whole)
    assert resumed.state_bytes() == stepper.state_bytes() or name.endswith("8bit")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["adamw", "nadam", "lion", "sophiah", "lion-k", "m-fac", "frugal", "adagrad-norm"])
def test_a_stored_state_goes_on_bit_for_bit_on_a_gpu(name: str) -> None:
    whole = leaf().detach().cuda().requires_grad_()
    stepper = registry.build(name, [whole])
    follow(stepper, whole, gradients(9))
    part = whole.detach().clone().requires_grad_()
    resumed = registry.build(name, [part])
    resumed.load_state_dict(stored(stepper.state_dict()))
    follow(stepper, whole, gradients(7, seed=1), 9)
    follow(resumed, part, gradients(7, seed=1), 9)
    assert torch.equal(part, whole)


def test_a_state_is_a_copy_that_later_steps_leave_alone() -> None:
    x = leaf()
    stepper = registry.build("adamw", [x])
    follow(stepper, x, gradients(3))
    state = stepper.state_dict()
    before = copy.deepcopy(state)
    follow(stepper, x, gradients(3))
    assert torch.equal(state["leaves"][0]["exp_avg"], before["leaves"][0]["exp_avg"])
    other = registry.build("adamw", [leaf()])
    other.load_state_dict(state)
    follow(other, other.leaves[0], gradients(3))
    assert torch.equal(state["leaves"][0]["exp_avg"], before["leaves"][0]["exp_avg"])


def test_a_resumed_optimizer_keeps_the_learning_rate_it_was_made_with() -> None:
    x = leaf()
    stepper = registry.build("adamw", [x], lr=0.1)
    stepper.set_lr(0.5)
    follow(stepper, x, gradients(2))
    resumed = registry.build("adamw", [leaf()], lr=0.01)
    resumed.load_state_dict(stepper.state_dict())
    assert resumed.optimizer.param_groups[0]["lr"] == 0.005


def test_the_state_of_another_optimizer_is_refused() -> None:
    state = registry.build("adamw", [leaf()]).state_dict()
    with pytest.raises(ValueError, match="'adamw'; make the optimizer it comes from"):
        registry.build("lion", [leaf()]).load_state_dict(state)
    with pytest.raises(ValueError, match="2 leaves in 1 groups got the state of 1 in 1"):
        registry.build("adamw", [leaf(), leaf()]).load_state_dict(state)


def test_state_bytes_count_what_the_optimizer_keeps() -> None:
    x = leaf((100, 100), torch.float32)
    stepper = registry.build("lion", [x])
    assert stepper.state_bytes() == 0
    follow(stepper, x, gradients(1, (100, 100)))
    assert stepper.state_bytes() == 4 * 10_000


# -- curvature -------------------------------------------------------------------------------------------------------


def test_curvature_is_wanted_every_so_many_steps_by_those_that_use_it() -> None:
    stepper = registry.build("sophiah", [leaf()], every=4)
    assert [t for t in range(10) if stepper.wants_curvature(t)] == [0, 4, 8]
    assert stepper.curvature == "hessian"
    assert registry.build("sophia-g", [leaf()]).curvature == "gauss-newton"
    assert not registry.build("adamw", [leaf()]).wants_curvature(0)


def test_curvature_of_the_wrong_kind_or_number_is_refused() -> None:
    with pytest.raises(ValueError, match="works without curvature"):
        registry.build("adamw", [leaf()]).step([leaf()])
    with pytest.raises(ValueError, match="has 1 leaves but got 2 estimates"):
        registry.build("sophia-g", [leaf()]).step([leaf(), leaf()])
    with pytest.raises(ValueError, match="every=0"):
        registry.build("sophiah", [leaf()], every=0)
