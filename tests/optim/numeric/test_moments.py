"""The moments make Adam's step."""

from __future__ import annotations

import torch

from trace_opt.core.codec import decode, encode
from trace_opt.optim.numeric.moments import Moments

D = torch.float64


def test_steps_equal_torch_s_adam() -> None:
    chance = torch.Generator().manual_seed(0)
    at = torch.randn(5, dtype=D, generator=chance)
    theirs = at.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.99), eps=1e-12)
    moments = Moments.none(at)
    for _ in range(20):
        gradient = torch.randn(5, dtype=D, generator=chance)
        moments = moments.after(gradient)
        at = at + 0.1 * moments.direction
        theirs.grad = gradient.clone()
        adam.step()
        assert torch.allclose(at, theirs.detach(), rtol=0, atol=1e-12)


def test_no_gradient_moves_nothing() -> None:
    moments = Moments.none(torch.zeros(3, dtype=D)).after(torch.zeros(3, dtype=D))
    assert moments.direction.abs().max() == 0


def test_a_state_goes_on_bit_for_bit() -> None:
    gradients = torch.randn(6, 4, dtype=D, generator=torch.Generator().manual_seed(1))
    whole = half = Moments.none(gradients[0], (0.8, 0.95))
    for gradient in gradients[:3]:
        whole = half = half.after(gradient)
    half = Moments.of_state(decode(encode(half.to_state())), (0.8, 0.95))
    for gradient in gradients[3:]:
        whole, half = whole.after(gradient), half.after(gradient)
    assert torch.equal(whole.direction, half.direction)


def test_squares_can_be_shared() -> None:
    gradient = torch.tensor([3.0, 4.0], dtype=D)
    moments = Moments.none(gradient).after(gradient, torch.full((2,), 12.5, dtype=D))
    assert torch.allclose(moments.direction, -gradient / 12.5**0.5)
