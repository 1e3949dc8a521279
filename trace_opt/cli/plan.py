"""`trace-opt run --dry-run`: what a run would do and what it may cost, without spending anything.

The workflow is run once, on one training example, behind a ledger that lets calls of free models through and stops at the
first one that costs money, whose price it then knows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from trace_opt.core.rollout import Cost
from trace_opt.errors import BudgetError, LLMError, OpError, ProblemError

if TYPE_CHECKING:
    from rich.text import Text

    from trace_opt.problem import Problem
    from trace_opt.search.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one rollout came to.

    Attributes:
        cost: What its calls came to; of one that would cost money the most that its first such call can cost.
        seconds: Wall time.
        whole: Whether the rollout was run to its end, for nothing.
        note: Why not, or "".
    """

    cost: Cost = Cost()
    seconds: float = 0.0
    whole: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run would do.

    Attributes:
        problem: Its name.
        description: The problem's line for people.
        train, val, test: How many examples.
        budget: The limits.
        parameters: By name: kind and the optimizer that owns it.
        workflow_models: The models that the workflow reaches.
        optimizer_model: The optimizers' model and why; "" where none is asked.
        rollout: What one rollout came to, or None where it asks no model.
        notes: What else to know.
    """

    problem: str
    description: str
    train: int
    val: int
    test: int
    budget: Mapping[str, Any]
    parameters: Mapping[str, tuple[str, str]]
    workflow_models: list[str]
    optimizer_model: str
    rollout: Probe | None
    notes: tuple[str, ...] = field(default=())

    @property
    def estimate(self) -> dict[str, float | int | None]:
        """The most the run can come to, as far as it is known: its own limits, else rollouts times one rollout."""
        rollouts: int | None = self.budget.get("rollouts")
        found: dict[str, float | int | None] = {
            name: self.budget.get(name) for name in ("rollouts", "calls", "tokens", "usd", "seconds")
        }
        probe = self.rollout
        if probe is None:
            return {**found, "calls": 0, "tokens": 0, "usd": 0.0} if not self.optimizer_model else found
        if rollouts is None or not probe.whole:
            return found
        cost = probe.cost
        known = {"calls": cost.calls, "tokens": cost.tokens, "usd": cost.usd, "seconds": probe.seconds}
        for name, one in known.items():
            if found[name] is None and one is not None and (name == "seconds" or not self.optimizer_model):
                found[name] = round(rollouts * one, 2) if isinstance(one, float) else rollouts * one
        return found


def show_plan(problem: Problem, overrides: Mapping[str, Any], model: str | None, *, json: bool) -> int:
    """Print the plan of a run; refuses what the run would refuse before its first call.

    Raises:
        ProblemError, LLMError, BudgetError: as the run would raise them.
    """
    from trace_opt.cli.failures import OK
    from trace_opt.cli.terminal import answer, answer_json

    plan = planned(problem, overrides, model)
    if json:
        answer_json({**asdict(plan), "estimate": plan.estimate})
    else:
        answer(*plan_lines(plan))
    return OK


def planned(problem: Problem, overrides: Mapping[str, Any], model: str | None) -> Plan:
    """The plan of a run."""
    from trace_opt.cli.answers import workflow_model_names
    from trace_opt.search.settings import settle

    options = {**problem_options_of(problem), **overrides, "store": None}
    if model is not None:
        options["model"] = model
    settings = settle(problem.workflow, problem.train, problem.guide, options)  # pyright: ignore[reportArgumentType] # their names are the Problem's fields
    data = settings.data
    models = workflow_model_names(problem)
    owned, why = _owners(settings)
    return Plan(
        problem=settings.name, description=problem.description, train=len(data.train), val=len(data.val),
        test=len(data.test), budget=settings.budget.limits, parameters=owned, workflow_models=models,
        optimizer_model=why, rollout=_probe(problem, settings) if models else None, notes=data.notes,
    )  # fmt: skip


_OPTIONS = ("val", "test", "parameters", "optimizers", "race", "model", "budget", "seed", "score_range", "name")


def problem_options_of(problem: Problem) -> dict[str, Any]:
    """The fields of a problem that are options of `optimize`, those that are set."""
    found = {name: getattr(problem, name) for name in _OPTIONS}
    return {name: value for name, value in found.items() if value is not None and value != ""}


def _owners(settings: Settings) -> tuple[dict[str, tuple[str, str]], str]:
    """Kind and optimizer of every parameter, and the optimizers' model."""
    from trace_opt.core.parameter import by_name
    from trace_opt.search.defaults import default_optimizers, give_model, owners

    parameters = settings.parameters
    if parameters is None:
        parameters = by_name(settings.reach.parameters)
    if not parameters:
        raise ProblemError("no Parameter is found in the workflow; read one by .value, or pass parameters=[...]")
    optimizers = settings.optimizers if settings.optimizers is not None else default_optimizers(parameters.values())
    owned = owners(parameters.values(), optimizers)
    why = give_model(optimizers, owned, settings.model)
    names = {name: type(optimizers[place]).__name__ for name, place in owned.items()}
    return {name: (p.kind, names.get(name, "(frozen)")) for name, p in parameters.items()}, why


class _Free:
    """A ledger that lets through what costs no money, and remembers the price of what does.

    Attributes:
        role: As a ledger has it.
        refused: The most that the call it stopped can cost, or None.
    """

    role = "workflow"

    def __init__(self) -> None:
        self.refused: Cost | None = None

    def reserve(self, worst: Cost) -> None:
        """Let a free call through.

        Raises:
            BudgetError: it costs money.
        """
        if worst.usd != 0:
            self.refused = worst
            raise BudgetError("a dry run makes no call that costs money")

    def settle(self, token: Any, actual: Cost) -> None:
        """Nothing was reserved."""


def _probe(problem: Problem, settings: Settings) -> Probe:
    """Run the workflow once for nothing."""
    from trace_opt.cli.graph import recorded
    from trace_opt.llm.meter import charging, metering

    ledger = _Free()
    began = time.perf_counter()
    with metering() as meter, charging(ledger):
        try:
            _, error = recorded(problem, settings.data.examples[settings.data.train[0]], settings.seed)
            note, whole = (f"the workflow failed on it: {error}" if error else ""), True
        except BudgetError:
            note, whole = "its first call that costs money was not made", False
        except (LLMError, OpError) as failure:
            note, whole = str(failure), False
    seconds = time.perf_counter() - began
    cost = meter.cost if ledger.refused is None else ledger.refused
    return Probe(cost=cost, seconds=seconds, whole=whole, note=note)


def plan_lines(plan: Plan) -> list[str | Text]:
    """A plan for people."""
    from trace_opt.cli.terminal import fields, table

    head = {
        "problem": plan.problem + (f": {plan.description}" if plan.description else ""),
        "examples": f"{plan.train} to learn from, {plan.val} to choose by, {plan.test} to test",
        "budget": ", ".join(f"{name}={value}" for name, value in plan.budget.items()) or "no limit",
        "workflow model": ", ".join(plan.workflow_models) or "none that trace_opt connected",
        "optimizer model": plan.optimizer_model or "none is asked",
    }
    rows = [[name, kind, owner] for name, (kind, owner) in plan.parameters.items()]
    return [
        *fields(head), "", *table(["parameter", "kind", "optimizer"], rows), "", *_cost_lines(plan),
        *(f"note: {note}" for note in plan.notes), "nothing was spent and nothing kept",
    ]  # fmt: skip


def _cost_lines(plan: Plan) -> list[str]:
    lines: list[str] = []
    probe = plan.rollout
    if probe is not None:
        usd = "price unknown" if probe.cost.usd is None else f"${probe.cost.usd:.5f}"
        calls = f"{probe.cost.calls} calls, {probe.cost.tokens} tokens, {usd}"
        said = (
            f"one rollout: {calls}, {probe.seconds:.2f} s"
            if probe.whole
            else f"one rollout: at least {calls} at most each"
        )
        lines.append(said + (f" ({probe.note})" if probe.note else ""))
    known = [f"{value:g} {name}" if name != "usd" else f"${value:.2f}"
             for name, value in plan.estimate.items() if value is not None]  # fmt: skip
    lines.append("the whole run at most: " + (", ".join(known) if known else "no limit is set"))
    return lines
