"""8-bit states: two bytes for AdamW and one for Lion, near the full rule, and clear where the library is missing."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from trace_opt.errors import ProblemError
from trace_opt.optim.numeric import registry
from trace_opt.optim.numeric.stepper import Stepper

pytest.importorskip("bitsandbytes", reason="the extra `quantized` is not installed")

SIZE, STEPS, LR = 100_000, 20, 0.01


def followed(name: str, size: int = SIZE, **options: Any) -> tuple[Stepper, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(size, requires_grad=True)
    stepper = registry.build(name, [x], lr=LR, weight_decay=0.01, **options)
    for _ in range(STEPS):
        x.grad = torch.randn(size, generator=generator)
        stepper.step()
    return stepper, x.detach()


@pytest.mark.parametrize(("name", "full", "bytes_"), [("adamw8bit", "adamw", 2.0), ("lion8bit", "lion", 1.0)])
def test_it_is_near_the_full_rule_at_a_fraction_of_the_state(name: str, full: str, bytes_: float) -> None:
    stepper, found = followed(name)
    _, expected = followed(full)
    path = STEPS * LR
    assert (found - expected).abs().mean() <= 0.01 * path
    assert not torch.equal(found, expected)
    assert stepper.state_bytes() / SIZE == pytest.approx(bytes_, rel=0.05)


@pytest.mark.parametrize(("name", "full", "bytes_"), [("adamw8bit", "adamw", 8.0), ("lion8bit", "lion", 4.0)])
def test_tensors_of_fewer_elements_keep_32_bits(name: str, full: str, bytes_: float) -> None:
    stepper, found = followed(name, 1000)
    assert stepper.state_bytes() / 1000 == bytes_
    assert (found - followed(full, 1000)[1]).abs().max() <= 1e-6
    smaller, _ = followed(name, 1000, min_8bit_size=500)
    assert smaller.state_bytes() < 0.8 * stepper.state_bytes()


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    entry = registry.rule("adamw8bit")
    fresh = registry.Rule("adamw8bit", entry.path, entry.source, entry.doc)
    with pytest.raises(
        ProblemError, match="'AdamW8bit' needs bitsandbytes, which is not installed; install the extra 'quantized'"
    ):
        _ = fresh.defaults
