"""What training through `optimize` costs beside the hand-written torch loop: a step, and 1,000 of them.

The workflow has three ops and two matrices; its hand-written loop takes about 160 microseconds a step with fused AdamW.
"""

from __future__ import annotations

import argparse
from typing import Any

import harness
import torch

from trace_opt import Budget, Feedback, Gradient, Greedy, Parameter, optimize, trace

SIZES = (64, 128, 10)
BATCH = 64


@trace
def hidden(x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    return x @ first


@trace
def squashed(h: torch.Tensor) -> torch.Tensor:
    return torch.tanh(h)


@trace
def outputs(h: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return h @ second


def data() -> tuple[list[dict[str, torch.Tensor]], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows, width, wide, out = 32 * BATCH, *SIZES
    x = torch.randn(rows, width, generator=generator)
    y = x @ torch.randn(width, out, generator=generator)
    batches = [{"x": x[i : i + BATCH], "y": y[i : i + BATCH]} for i in range(0, rows, BATCH)]
    first = 0.1 * torch.randn(width, wide, generator=generator)
    return batches, first, 0.1 * torch.randn(wide, out, generator=generator)


def by_hand(batches: list[dict[str, torch.Tensor]], first: torch.Tensor, second: torch.Tensor, steps: int) -> Any:
    a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
    optimizer = torch.optim.AdamW([a, b], lr=0.01, fused=True)
    for step in range(steps):
        batch = batches[step % len(batches)]
        optimizer.zero_grad(set_to_none=True)
        loss = ((torch.tanh(batch["x"] @ a) @ b - batch["y"]) ** 2).mean()
        loss.backward()
        optimizer.step()
    return a, b


def by_optimize(batches: list[dict[str, torch.Tensor]], first: torch.Tensor, second: torch.Tensor, steps: int) -> Any:
    a, b = Parameter(first, name="first"), Parameter(second, name="second")

    def workflow(x: torch.Tensor) -> torch.Tensor:
        return outputs(squashed(hidden(x, a.value)), b.value)

    def guide(output: torch.Tensor, example: dict[str, torch.Tensor]) -> Feedback:
        return Feedback(loss=((output - example["y"]) ** 2).mean())

    return optimize(
        workflow, batches, guide, val=batches[:1], parameters=[a, b], search=Greedy(gate=None), store=None,
        optimizers=[Gradient("adamw", 0.01, "constant", batch=1, steps=steps, total_steps=steps)],
        budget=Budget(trials=1),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 3 if parser.parse_args().quick else 15
    torch.set_num_threads(1)
    given = data()
    runs = {
        f"{name} {steps}": (lambda run=run, steps=steps: run(*given, steps))
        for name, run in (("by hand", by_hand), ("optimize", by_optimize))
        for steps in (100, 1000)
    }
    best = harness.minima(runs, rounds)
    step = {name: (best[f"{name} 1000"] - best[f"{name} 100"]) / 900 * 1e6 for name in ("by hand", "optimize")}
    harness.save("training", {
        "cpu_seconds": {name: round(seconds, 4) for name, seconds in best.items()},
        "ratio_of_1000_steps": round(best["optimize 1000"] / best["by hand 1000"], 3),
        "microseconds_a_step": {name: round(value, 1) for name, value in step.items()},
        "ratio_of_a_step": round(step["optimize"] / step["by hand"], 3),
    })  # fmt: skip


if __name__ == "__main__":
    main()
