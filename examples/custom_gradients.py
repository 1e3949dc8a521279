"""Ops with a gradient rule of their own: `@trace(vjp=rule)`.

Two rules: the parameter shift, for a step that torch cannot see into, and TrAct (arXiv 2410.23970), which changes what the
first layer of a network learns from a batch. `rule(grad_output, output, *inputs)` gives one gradient for each input.
"""

import math

import torch  # noqa: TID253 # a script about tensors loads it anyway

from trace_opt import Feedback, Gradient, Parameter, record, trace

# -- 1. parameter shift: exact gradients from two more runs of a black box ------------------------------------------------


def shift(grad, output, angles):
    """f'(a) = (f(a + pi/2) - f(a - pi/2)) / 2, exact where f is a sine of each angle; no small step, so no rounding."""
    found = torch.zeros_like(angles)
    for i in range(len(angles)):
        quarter = torch.zeros_like(angles)
        quarter[i] = math.pi / 2
        found[i] = (qubit(angles + quarter) - qubit(angles - quarter)) / 2
    return grad * found


@trace(vjp=shift)
def qubit(angles):
    """The expectation of Z after rotations of one qubit about X and Y; stands for a device that is only run."""
    x, y = angles.tolist()
    return torch.tensor(math.cos(x) * math.cos(y), dtype=angles.dtype)


angles = Parameter(torch.tensor([0.4, 0.9], dtype=torch.float64), name="angles")
optimizer = Gradient("sgd", lr=0.5)
for step in range(40):
    with record():
        value = qubit(angles.value)
        loss = (value + 1) ** 2
    optimizer.backward(loss, Feedback(loss=loss))
    if step == 0:
        x, y = (float(angle) for angle in angles.value)
        outer = 2 * (math.cos(x) * math.cos(y) + 1)
        by_hand = torch.tensor([-math.sin(x) * math.cos(y), -math.cos(x) * math.sin(y)], dtype=torch.float64) * outer
        print(f"parameter shift: off the derivative by {float((angles.grad - by_hand).abs().max()):.1e}")
    optimizer.step()
    optimizer.zero_feedback()
print(f"the qubit's expectation went from {math.cos(0.4) * math.cos(0.9):.3f} to {float(qubit(angles.value)):.3f} (-1)")

# -- 2. TrAct: a first layer that moves its activations instead of its weights --------------------------------------------

DAMPING = 0.1  # the only setting


def tract(grad, output, x, weight):
    """The weight's gradient g'x, times the inverse of the inputs' second moments; the input's own stays as it is."""
    moments = x.T @ x / len(x) + DAMPING * torch.eye(x.shape[1], dtype=x.dtype)
    return grad @ weight, torch.linalg.solve(moments, (grad.T @ x).T).T


def linear(x, weight):
    """A linear layer without a bias."""
    return x @ weight.T


def trained(first_layer, steps=60):
    """The loss of a small network on correlated inputs, as pixels are, after some steps."""
    draws = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    spread = torch.logspace(0, -1.5, 16, dtype=torch.float64)  # a few directions hold most of the variance
    inputs = normal(256, 16) * spread @ torch.linalg.qr(normal(16, 16)).Q
    targets = torch.tanh(inputs @ normal(16, 1) * 3)
    first = Parameter(normal(32, 16) / 4, name="first")
    second = Parameter(normal(1, 32) / 6, name="second")
    optimizer = Gradient("sgd", lr=0.1)
    for _ in range(steps):
        with record():
            hidden = torch.tanh(first_layer(inputs, first.value))
            loss = (linear(hidden, second.value) - targets).square().mean()
        optimizer.backward(loss, Feedback(loss=loss))
        optimizer.step()
        optimizer.zero_feedback()
    return loss.item()


print(f"loss after 60 steps with torch's gradient: {trained(trace(linear)):.4f}")
print(f"loss after 60 steps with TrAct's:          {trained(trace(vjp=tract)(linear)):.4f}")
