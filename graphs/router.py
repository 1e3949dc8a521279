"""A router: which tool answers which kind of question is a choice, how its answer is calibrated is a tensor.

The loss is differentiable in the tensor but not in the choices. A score-function estimator moves the choices' logits by
the losses of sampled choices, and the same samples give the tensor its gradient, so that both are learned at once. Any
wrong tool leaves a loss that no calibration removes; the optimum is unique and its loss is 0.

    trace-opt run graphs/router.py
    trace-opt run graphs/router.py --set estimator=enumerate
"""

from __future__ import annotations

from typing import Any, Literal

import torch  # noqa: TID253 # a problem about tensors loads it anyway
from torch import Tensor  # noqa: TID253

from trace_opt import Budget, Feedback, Gradient, Parameter, trace
from trace_opt.problem import Problem

OPTIMUM: dict[str, Any] = {"for_lengths": "once", "for_areas": "twice", "calibration": (1.5, -0.5)}
BEST_SCORE = 0.0
"""Mean score at the optimum."""

TOOLS = ("never", "root", "once", "twice")


@trace
def ask(tool: str, sides: Tensor) -> Tensor:
    """What a tool makes of a side: 1 (never), its square root, itself (once), or its square (twice)."""
    if tool == "never":
        return sides**0
    if tool == "root":
        return sides**0.5
    return sides if tool == "once" else sides**2


@trace
def calibrate(readings: Tensor, calibration: Tensor) -> Tensor:
    """Scale and offset of a reading: `calibration[0] * readings + calibration[1]`."""
    return calibration[0] * readings + calibration[1]


def guide(output: Tensor, example: dict[str, Any]) -> Feedback:
    """The mean square of the differences."""
    loss = ((output - example["wanted"]) ** 2).mean()
    value = loss.item()
    return Feedback(score=-value, text=f"the {example['kind']}s are off by {value**0.5:.4g} (rms)", loss=loss)


def problem(
    *, estimator: Literal["reinforce", "loo", "enumerate", "reparam"] = "loo", optimizer: str = "adam",
    lr: float = 0.1, schedule: str = "linear", steps: int = 300,
) -> Problem:  # fmt: skip
    """The problem, with a wrong tool for both kinds and no calibration at the start.

    Args:
        estimator: How the logits of the choices get their gradient.
        optimizer: Name of a rule in the registry.
        lr: Its learning rate.
        schedule: How the learning rate falls.
        steps: Steps of the one phase.
    """
    for_lengths = Parameter("never", name="for_lengths", description="tool asked for a length", choices=TOOLS)
    for_areas = Parameter("root", name="for_areas", description="tool asked for an area", choices=TOOLS)
    calibration = Parameter(
        torch.tensor([1.0, 0.0], dtype=torch.float64), name="calibration", description="scale and offset of an answer"
    )

    def workflow(kind: str, sides: Tensor) -> Tensor:
        tool = for_lengths.value if kind == "length" else for_areas.value
        return calibrate(ask(tool, sides), calibration.value)

    scale, offset = OPTIMUM["calibration"]
    sides = torch.linspace(0.2, 2.0, 16, dtype=torch.float64)
    examples: list[dict[str, Any]] = [
        {"kind": kind, "sides": some, "wanted": scale * some**power + offset}
        for some in (sides[::2], sides[1::2])
        for kind, power in (("length", 1), ("area", 2))
    ]
    return Problem(
        workflow=workflow,
        train=examples,
        val=examples,
        guide=guide,
        parameters=[for_lengths, for_areas, calibration],
        optimizers=[Gradient(optimizer=optimizer, lr=lr, schedule=schedule, steps=steps, estimator=estimator)],
        budget=Budget(trials=1),
        description="which tool answers which question, and the scale and offset of its answers",
    )
