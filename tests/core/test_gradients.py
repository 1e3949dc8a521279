"""Gradients through recorded op calls are those of central differences."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trace_opt.core.neural import TorchModule
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import trace
from trace_opt.testing import check_gradients

w = Parameter(torch.zeros(3, dtype=torch.float64), name="w")
m = Parameter(torch.zeros(3, 2, dtype=torch.float64), name="m")
START = {
    "w": torch.tensor([0.7, -1.3, 2.1], dtype=torch.float64),
    "m": torch.tensor([[1.0, 0.5], [-0.2, 0.3], [0.9, -1.1]], dtype=torch.float64),
}

ident = trace(lambda x: x)
scale = trace(lambda x: x * w.value.sum())
square = trace(lambda x: x**2)
halves = trace(lambda x: {"low": x[:1], "rest": [x[1:], x.sum()]})
power = trace(vjp=lambda grad, output, x, n: (grad * n * x ** (n - 1), None))(lambda x, n: x**n)


@trace(inline=True)
def inlined(x: Any) -> Any:
    return square(x) + square(x * 2)


@trace
async def later(x: Any) -> Any:
    await asyncio.sleep(0)
    return x.exp()


def branching() -> Any:
    x = ident(w.value)
    if (x.sum() > 0).item():
        return square(x)
    return x


def looping() -> Any:
    x = ident(w.value)
    while x.norm() < 20:
        x = square(x) + x * 1.5
    return x


def caught() -> Any:
    try:
        return trace(lambda x: [x].index(None))(w.value)
    except ValueError:
        return square(w.value)


async def concurrent() -> Any:
    first, second = await asyncio.gather(later(w.value), later(w.value * 0.5))
    return first * second


CASES: dict[str, Callable[[], Any]] = {
    "+": lambda: ident(w.value) + 2.0 + w.value,
    "-": lambda: 1.0 - ident(w.value),
    "*": lambda: ident(w.value) * w.value * 3,
    "/": lambda: 1 / ident(w.value),
    "matmul": lambda: ident(w.value) @ m.value @ ident(m.value).T,
    "indexing": lambda: ident(m.value)[1:, 0] * w.value[[0, 2]] + m.value[..., -1].flip(0)[:2],
    "a mask": lambda: torch.where(ident(w.value) > 0, square(w.value), w.value),
    "a read in a body": lambda: scale(ident(w.value)),
    "an inner op call": lambda: trace(lambda x: square(x) + scale(x))(w.value),
    "a branch": branching,
    "a loop": looping,
    "a caught exception": caught,
    "containers": lambda: (found := halves(w.value), found["low"] * found["rest"][1], square(found["rest"][0]))[1:],
    "a list of results": lambda: torch.stack([square(x) for x in w.value]),
    "a dict for the output": lambda: {"a": square(w.value), "b": [w.value.sum(), "text"]},
    "an inline op": lambda: inlined(w.value),
    "async ops": concurrent,
    "a rule of its own": lambda: power(power(w.value, 3), 2),
    "functions of torch": lambda: torch.nn.functional.softmax(ident(w.value), 0).log().sum(),
    "a product of one number": lambda: square(w.value).sum(),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_through(case: str) -> None:
    found = check_gradients(CASES[case], {name: START[name] for name in (("w", "m") if case in ("matmul", "indexing") else ("w",))})  # fmt: skip
    assert 0 <= max(found.values()) < 1e-4


@pytest.mark.parametrize("mode", [True, False])
def test_through_a_torch_module_with_dropout_and_batch_norm(mode: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Dropout(0.4), nn.Linear(3, 1)).double()
    net = TorchModule(module.train(mode), name="net")
    values = {p.name: p.initial for p in net.weights.values()} | {"m": START["m"]}
    call = trace(lambda x: net(x).square())
    assert check_gradients(lambda: call(m.value), values).keys() == values.keys()


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["+", "*", "@", "[]", "tanh", "if"]), min_size=1, max_size=6), st.integers(0, 5))
def test_through_any_chain_of_them(steps: list[str], seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    start = {"w": torch.randn(3, generator=draws, dtype=torch.float64), "m": torch.randn(3, 2, generator=draws, dtype=torch.float64)}  # fmt: skip
    ops: dict[str, Callable[[Any], Any]] = {
        "+": trace(lambda x: x + w.value),
        "*": trace(lambda x: x * w.value.flip(0)),
        "@": trace(lambda x: m.value @ (m.value.T @ x)),
        "[]": trace(lambda x: x[[2, 0, 0]]),
        "tanh": trace(torch.tanh),
    }

    def workflow() -> Any:
        x = ident(w.value)
        for step in steps:
            x = (x * 2 if (x.sum() > 0.1).item() else x - 1) if step == "if" else ops[step](x)
        return x + m.value.sum()

    check_gradients(workflow, start, rtol=1e-4, atol=1e-6)
