"""`trace-opt run --dry-run`: what a run would do and what it may cost, without spending anything.

Where the first call of a rollout is free (an embedded model), one rollout is run to its end, so that the whole run can be
estimated in calls and seconds; where it costs money, only its price is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trace_opt.core.rollout import Cost
from trace_opt.errors import BudgetError, LLMError

if TYPE_CHECKING:
    from rich.text import Text

    from trace_opt.problem import Problem
    from trace_opt.search.evaluate import Plan


@dataclass(frozen=True, slots=True)
class Probe:
    """What one free rollout came to.

    Attributes:
        cost: Its calls.
        seconds: Wall time, loading a model included.
        error: Why the workflow failed on it, or "".
    """

    cost: Cost
    seconds: float
    error: str = ""


def show_plan(problem: Problem, overrides: Mapping[str, Any], *, json: bool) -> int:
    """Print the plan of a run; refuses what the run would refuse before its first call.

    Raises:
        ProblemError, LLMError, BudgetError: as the run would raise them.
    """
    from trace_opt.cli.answers import workflow_model_names
    from trace_opt.cli.failures import OK
    from trace_opt.cli.terminal import answer, answer_json

    plan = problem.plan(**overrides, store=None)
    models = workflow_model_names(problem)
    probe = probed(problem) if plan.first_call is not None and plan.first_call.usd == 0 else None
    most = estimate(plan, probe)
    if json:
        rollout = None if probe is None else asdict(probe)
        answer_json({**plan.to_json(), "workflow_models": models, "one_rollout": rollout, "estimate": most})
    else:
        answer(*_lines(problem, plan, models, probe, most))
    return OK


def estimate(plan: Plan, probe: Probe | None) -> dict[str, float | int]:
    """The most the run can come to, as far as it is known: its own limits, else its rollouts times one rollout.

    Args:
        plan: What the run would do.
        probe: What one rollout came to, where that was free to find out.
    """
    found: dict[str, float | int] = {name: value for name, value in plan.budget.items() if name != "trials"}
    rollouts = found.get("rollouts")
    if rollouts is None or (plan.first_call is not None and probe is None):
        return found
    one = Probe(Cost(), 0.0) if probe is None else probe
    if not plan.model:  # what optimizers ask is not known before they do
        for name, value in (("calls", one.cost.calls), ("tokens", one.cost.tokens), ("usd", one.cost.usd)):
            if value is not None:
                found.setdefault(name, value * rollouts)
    if probe is not None:
        found.setdefault("seconds", round(one.seconds * rollouts, 1))
    return found


class _Free:
    """A ledger that lets through what costs no money.

    Attributes:
        role: As a ledger has it.
    """

    role = "workflow"

    def reserve(self, worst: Cost) -> None:
        """Let a free call through.

        Raises:
            BudgetError: it costs money.
        """
        if worst.usd != 0:
            raise BudgetError("a dry run makes no call that costs money")

    def settle(self, token: Any, actual: Cost) -> None:
        """Nothing was reserved."""


def probed(problem: Problem) -> Probe | None:
    """One rollout run to its end for nothing; None where a later call of it costs money or cannot be made.

    Replies that are cached tell neither calls nor time, and the first call loads the model, so the second rollout that
    makes a call counts.
    """
    found: Probe | None = None
    for example in list(problem.train)[: -_MOST_PROBED - 1 : -1]:
        probe = _probe(problem, example)
        if probe is None:
            return None
        if probe.cost.calls:
            if found is not None:
                return probe
            found = probe
    return found


_MOST_PROBED = 32


def _probe(problem: Problem, example: Any) -> Probe | None:
    from trace_opt.cli.graph import recorded
    from trace_opt.llm.meter import charging, metering

    began = time.perf_counter()
    with metering() as meter, charging(_Free()):
        try:
            _, error = recorded(problem, example, problem.seed)
        except (BudgetError, LLMError):
            return None
    return Probe(meter.cost, time.perf_counter() - began, error)


def _lines(
    problem: Problem, plan: Plan, models: list[str], probe: Probe | None, most: Mapping[str, float | int]
) -> list[str | Text]:
    lines: list[str | Text] = [problem.description] if problem.description else []
    lines += str(plan).split("\n")
    lines.append(f"  the workflow asks {', '.join(models) or 'no model that trace_opt connected'}")
    if probe is not None:
        failed = f"; it failed: {probe.error}" if probe.error else ""
        lines.append(
            f"  one rollout: {probe.cost.calls} calls, {probe.cost.tokens} tokens, {probe.seconds:.2f} s{failed}"
        )
    said = ", ".join(f"${value:.2f}" if name == "usd" else f"{value:g} {name}" for name, value in most.items())
    return [*lines, "", f"at most: {said or 'no limit is set'}", "nothing was spent, and no run is kept"]
