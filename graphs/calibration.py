"""A prompt and a calibration: a text says which reading to take, a tensor turns volts into degrees.

The reader follows its instruction to the letter, so the wrong one gives another sensor's voltage. The other sensors feel
the weather too, which makes the calibration for a wrong one useful for the right one, and so both parts can be improved
in turns: text by trying suggestions, the tensor by gradients of the same loss. The optimum is unique.

    trace-opt run graphs/calibration.py
"""

from __future__ import annotations

import random
import re
from typing import Any

import torch  # noqa: TID253 # a problem about tensors loads it anyway
from torch import Tensor  # noqa: TID253

from trace_opt import Budget, Categorical, Feedback, Gradient, Parameter, trace
from trace_opt.problem import Problem

OPTIMUM: dict[str, Any] = {"instruction": "Read the number after 'street'.", "calibration": (8.0, 15.0)}
BEST_SCORE = 0.0
"""Mean score at the optimum."""

SENSORS = ("yesterday", "roof", "cellar", "street", "car")

INSTRUCTIONS = (
    "Read the first number.", "Read the last number.", *(f"Read the number after '{name}'." for name in SENSORS[1:-1]),
)  # fmt: skip


@trace
def read(line: str, instruction: str) -> float:
    """Take a number out of a line as told: the one after a quoted word, else the last or the first."""
    numbers = [(word, float(volts)) for word, volts in re.findall(r"(\w+) (-?\d+\.\d+) V", line)]
    asked = re.search(r"after '(\w+)'", instruction)
    if asked:
        return dict(numbers)[asked[1]]
    return numbers[-1 if "last" in instruction else 0][1]


@trace
def degrees(volts: float, calibration: Tensor) -> Tensor:
    """The temperature of a voltage: `calibration[0] * volts + calibration[1]`."""
    return calibration[0] * volts + calibration[1]


def guide(output: Tensor, example: dict[str, Any]) -> Feedback:
    """The square of the difference."""
    loss = (output - example["celsius"]) ** 2
    text = f"read {output.item():.4g} °C from {example['line']!r}, it was {example['celsius']:.4g} °C"
    return Feedback(score=-loss.item(), text=text, loss=loss)


def days(count: int) -> list[dict[str, Any]]:
    """One line of readings a day, with the street's temperature; the other sensors lag behind it or lie."""
    rng = random.Random(3)  # noqa: S311 # the same examples every time
    found: list[dict[str, Any]] = []
    for _ in range(count):
        weather = rng.uniform(-1, 1)
        volts = {sensor: round(0.6 * weather + rng.uniform(-0.8, 0.8), 3) for sensor in SENSORS}
        volts["street"] = round(weather, 3)
        scale, offset = OPTIMUM["calibration"]
        line = ", ".join(f"{sensor} {value:.3f} V" for sensor, value in volts.items())
        found.append({"line": line, "celsius": scale * volts["street"] + offset})
    return found


def problem(*, optimizer: str = "adam", lr: float = 1.0, steps: int = 60, phases: int = 6, batch: int = 8) -> Problem:
    """The problem, with the first number read and no calibration at the start.

    Args:
        optimizer: Name of a rule in the registry, for the tensor.
        lr: Its learning rate.
        steps: Steps of a phase.
        phases: Phases, as many as texts tried.
        batch: Examples of a step.
    """
    instruction = Parameter(
        INSTRUCTIONS[0], name="instruction", description="which number to read", suggestions=INSTRUCTIONS
    )
    calibration = Parameter(
        torch.tensor([1.0, 0.0], dtype=torch.float64), name="calibration", description="degrees a volt, degrees at 0 V"
    )

    def workflow(line: str) -> Tensor:
        return degrees(read(line, instruction.value), calibration.value)

    examples = days(64)
    return Problem(
        workflow=workflow,
        train=examples[:32],
        val=examples[32:48],
        test=examples[48:],
        guide=guide,
        parameters=[instruction, calibration],
        optimizers=[
            Categorical(),
            Gradient(optimizer=optimizer, lr=lr, schedule="linear", steps=steps, batch=batch),
        ],
        budget=Budget(trials=2 * phases),
        description="which reading to take, and what it is in degrees",
    )
