"""A run with long phases, for a test that kills it: `training_child.py STORE RUN KILL_AT OUT`."""

from __future__ import annotations

import json
import os
import signal
import sys

import torch

from trace_opt import Budget, Feedback, Gradient, Parameter, optimize, trace
from trace_opt.search.rolling import Roller

EXAMPLES = [{"x": i / 5, "y": 1 + 2 * i / 5} for i in range(-6, 6)]
weight = Parameter(torch.zeros(2, dtype=torch.float64), name="w")


@trace
def line(x: float, w: torch.Tensor) -> torch.Tensor:
    return w[0] + w[1] * x


def workflow(x: float) -> torch.Tensor:
    return line(x, weight.value)


def guide(output: torch.Tensor, example: dict[str, float]) -> Feedback:
    return Feedback(loss=(output - example["y"]) ** 2)


def kill_at(number: int) -> None:
    """Let the process die as it begins its n-th training rollout."""
    run, seen = Roller.run, [0]

    def counted(self: Roller, job: object) -> object:
        seen[0] += job.training  # pyright: ignore[reportAttributeAccessIssue]
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(self, job)  # pyright: ignore[reportArgumentType]

    Roller.run = counted  # pyright: ignore[reportAttributeAccessIssue]


def main(store: str, run: str, number: str, out: str) -> None:
    if number != "0":
        kill_at(int(number))
    result = optimize(
        workflow, EXAMPLES, guide, val=EXAMPLES, parameters=[weight], store=store, resume=run or None, seed=4,
        optimizers=[Gradient("adamw", 0.05, steps=40, batch=3, checkpoint_every=7)], budget=Budget(rollouts=450),
    )  # fmt: skip
    trials = [[t.number, t.verdict, t.before, t.after, t.notes["to"]] for t in result.history]
    with open(out, "w", encoding="utf-8") as file:
        json.dump({"w": result.best["w"].tolist(), "trials": trials}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
