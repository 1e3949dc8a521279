"""Equality-constrained problems of two or three variables with known optima: Hock and Schittkowski's 6, 7 and 28, and a sphere.

HS6 has a curved constraint and an objective that vanishes on it, HS7 a negative curvature at the start, HS28 is a quadratic
on a plane, which Newton's method solves in one step, and the sphere has a linear objective, so all curvature comes from the
constraint's multiplier. The exact augmented Lagrangian solves each in at most 20 steps, in full digits.

    trace-opt run graphs/equality.py
    trace-opt run graphs/equality.py --set case=sphere --set solver=sketch

Source: W. Hock and K. Schittkowski, "Test Examples for Nonlinear Programming Codes", 1981.
"""

from __future__ import annotations

from typing import Any, Literal

import torch  # noqa: TID253 # a problem about tensors loads it anyway
from torch import Tensor  # noqa: TID253

from trace_opt import Budget, Feedback, Parameter, trace
from trace_opt.optim.numeric.lagrangian import AugmentedLagrangian, Settings, Solver
from trace_opt.problem import Problem

Case = Literal["hs6", "hs7", "hs28", "sphere"]

STARTS: dict[str, tuple[float, ...]] = {
    "hs6": (-1.2, 1.0), "hs7": (2.0, 2.0), "hs28": (-4.0, 1.0, 1.0), "sphere": (2.0, 1.0, 0.5),
}  # fmt: skip
OPTIMA: dict[str, tuple[float, ...]] = {
    "hs6": (1.0, 1.0), "hs7": (0.0, 3**0.5), "hs28": (0.5, -0.5, 0.5), "sphere": (-(3**-0.5),) * 3,
}  # fmt: skip
BEST_SCORES = {"hs6": 0.0, "hs7": 3**0.5, "hs28": 0.0, "sphere": 3**0.5}
OPTIMUM = {"point": OPTIMA["hs7"]}
BEST_SCORE = BEST_SCORES["hs7"]
"""Mean score at the optimum."""

PENALTY = 10.0
"""What a unit of violation costs in the score: more than any of the multipliers, so that the optimum keeps the best score."""


@trace
def objective(point: Tensor, case: Case) -> Tensor:
    """What is minimised, by case."""
    if case == "hs6":
        return (1 - point[0]) ** 2
    if case == "hs7":
        return torch.log1p(point[0] ** 2) - point[1]
    if case == "hs28":
        return (point[0] + point[1]) ** 2 + (point[1] + point[2]) ** 2
    return point.sum()


@trace
def constraint(point: Tensor, case: Case) -> Tensor:
    """What has to be zero, by case."""
    if case == "hs6":
        return 10 * (point[1] - point[0] ** 2)
    if case == "hs7":
        return (1 + point[0] ** 2) ** 2 + point[1] ** 2 - 4
    if case == "hs28":
        return point[0] + 2 * point[1] + 3 * point[2] - 1
    return (point**2).sum() - 1


def guide(output: dict[str, Tensor], example: dict[str, Any]) -> Feedback:  # noqa: ARG001 # there is no datum to compare with
    """Both losses; the score counts the violation of the constraint."""
    value, away = output["objective"].item(), abs(output["constraint"].item())
    text = f"the objective is {value:.6g}, the constraint is violated by {away:.3g}"
    return Feedback(score=-value - PENALTY * away, text=text, loss=output)


def problem(*, case: Case = "hs7", solver: Solver = "dense", steps: int = 50) -> Problem:
    """The problem at its usual start.

    Args:
        case: Which one.
        solver: How the Newton systems are solved.
        steps: Newton steps at most.
    """
    start = torch.tensor(STARTS[case], dtype=torch.float64)
    point = Parameter(start, name="point", description="where the objective is taken")

    def workflow() -> dict[str, Tensor]:
        return {"objective": objective(point.value, case), "constraint": constraint(point.value, case)}

    return Problem(
        workflow=workflow,
        train=[{}],
        val=[{}],
        guide=guide,
        parameters=[point],
        optimizers=[AugmentedLagrangian("objective", ["constraint"], settings=Settings(solver=solver), steps=steps)],
        budget=Budget(trials=1),
        description=f"the least objective on a curve or surface ({case})",
    )
