"""What a step costs: the registry's optimizers beside the library's own, on 10M float32 parameters in 100 tensors.

    python benchmarks/optimizer_step.py            # two minutes
    python benchmarks/optimizer_step.py --quick    # 1M parameters

One thread; each pair takes turns on tensors of its own, and a figure is the least CPU time of a step. `ratio` is that of
the registry's step over the best that the library offers: torch's fused kernel where it has one, else its faster
implementation. "foreach" tells where moving all tensors at once beats the loop on this CPU, which is what the registry
decides by.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_optimizer
import torch
from harness import minima, save

from trace_opt.optim.numeric import registry

FUSED = ("adam", "adamw", "sgd", "adagrad")
PLAIN = (
    "rmsprop", "nadam", "radam", "adamax", "adadelta", "asgd", "rprop", "adafactor", "lion", "diffgrad", "adabelief",
    "exadam", "muon", "sophiah",
)  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {"sgd": {"momentum": 0.9}}
OWN: dict[str, dict[str, Any]] = {
    "lion-k huber": {"constraint": "huber"}, "lion-k l2": {"constraint": "l2"}, "lion-k l1": {"constraint": "l1"},
    "lion-k group": {"constraint": "group"}, "adagrad-norm": {}, "sophia-g": {}, "frugal": {}, "frugal rows": {"projection": "rows"},
    "frugal blocks": {"projection": "blocks"}, "m-fac": {"window": 8},
}  # fmt: skip


def leaves(count: int, size: int) -> list[torch.Tensor]:
    """Square matrices with gradients."""
    side = round(size**0.5)
    generator = torch.Generator().manual_seed(0)
    made = [torch.zeros(side, side, requires_grad=True) for _ in range(count)]
    for leaf in made:
        leaf.grad = torch.randn(side, side, generator=generator)
    return made


def ours(name: str, given: Sequence[torch.Tensor], **options: Any) -> Callable[[], None]:
    return registry.build(name, given, lr=1e-4, **OPTIONS.get(name, {}), **options).step


def theirs(name: str, given: Sequence[torch.Tensor], **options: Any) -> Callable[[], None]:
    optimizer = registry.rule(name).cls(given, lr=1e-4, **OPTIONS.get(name, {}), **options)
    if name == "sophiah":  # the steps between two estimates of curvature
        optimizer.update_period = sys.maxsize
        optimizer.step(hessian=[torch.zeros_like(leaf) for leaf in given])
    return optimizer.step


def compared(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Milliseconds of a step of each, after one that makes the state."""
    for run in runs.values():
        run()
    return {name: round(1e3 * seconds, 4) for name, seconds in minima(runs, rounds).items()}


def beside_the_library(name: str, count: int, size: int, rounds: int) -> dict[str, float]:
    """The registry's step and each way in which the library takes it."""
    ways: list[dict[str, Any]] = [{"fused": True}] if name in FUSED else []
    ways += [{"foreach": False}, {"foreach": True}] if "foreach" in registry.rule(name).defaults else [{}]
    runs = {"registry": ours(name, leaves(count, size))}
    for way in ways:
        runs["_".join(f"{k}_{v}".lower() for k, v in way.items()) or "library"] = theirs(
            name, leaves(count, size), **way
        )
    found = compared(runs, rounds)
    best = min(value for way, value in found.items() if way != "registry")
    return {**found, "ratio": round(found["registry"] / best, 3)}


def lion_k_beside_lion(count: int, size: int, rounds: int) -> dict[str, float]:
    """The box constraint against the library's Lion, decay included."""
    lion = pytorch_optimizer.Lion
    runs = {
        "lion_k_box": ours("lion-k", leaves(count, size), weight_decay=0.1),
        "lion_default": lion(leaves(count, size), lr=1e-4, weight_decay=0.1).step,
        "lion_loop": lion(leaves(count, size), lr=1e-4, weight_decay=0.1, foreach=False).step,
    }
    found = compared(runs, rounds)
    return {**found, "ratio": round(found["lion_k_box"] / min(found["lion_default"], found["lion_loop"]), 3)}


def where_foreach_wins(name: str, rounds: int) -> dict[str, float]:
    """The time of all tensors at once over that of the loop, by number and size of tensors."""
    found: dict[str, float] = {}
    for count, size in ((4, 100), (8, 100), (30, 100), (100, 100), (30, 1024), (100, 1024), (30, 4096), (100, 10_000)):
        runs = {way: theirs(name, leaves(count, size), foreach=way == "foreach") for way in ("loop", "foreach")}
        times = compared(runs, rounds)
        found[f"{count}x{size}"] = round(times["foreach"] / times["loop"], 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    count, size, rounds = (100, 10_000, 10) if quick else (100, 100_489, 12)
    figures: dict[str, Any] = {
        "parameters": count * size,
        "milliseconds": {name: beside_the_library(name, count, size, rounds) for name in (*FUSED, *PLAIN)},
        "lion_k_box": lion_k_beside_lion(count, size, rounds),
        "own_milliseconds": {
            name: compared({name: ours(name.split()[0], leaves(count, size), **options)}, rounds // 2)[name]
            for name, options in OWN.items()
        },
        "eight_bit_milliseconds": {
            name: compared({name: ours(name, leaves(count, size))}, 3)[name] for name in ("adamw8bit", "lion8bit")
        },
        "foreach_over_loop": {name: where_foreach_wins(name, 40) for name in ("nadam", "rmsprop", "lion", "adabelief", "diffgrad", "exadam")},
    }  # fmt: skip
    figures["worst_ratio"] = max(row["ratio"] for row in figures["milliseconds"].values())
    save("optimizer_step", figures)


if __name__ == "__main__":
    main()
