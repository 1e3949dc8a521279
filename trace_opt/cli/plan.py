"""`trace-opt run --dry-run`: what a run would do and what it may cost, without spending anything.

Where the first call of a rollout is free (an embedded model), one rollout is run to its end, so that the whole run can be
estimated in calls and seconds; where it costs money, only its price is asked for.
"""

from __future__ import annotations

import math
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
    from trace_opt.search.forecast import Bought


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


def show_plan(problem: Problem, overrides: Mapping[str, Any], *, json: bool, store: str | None = None) -> int:
    """Print the plan of a run; refuses what the run would refuse before its first call.

    Args:
        problem: What would be run.
        overrides: Options that win over its own.
        json: Whether the answer is JSON.
        store: Where the run to start from is, where there is one.

    Raises:
        ProblemError, LLMError, BudgetError: as the run would raise them.
    """
    from trace_opt.cli.answers import workflow_model_names
    from trace_opt.cli.failures import OK
    from trace_opt.cli.options import store_of
    from trace_opt.cli.terminal import answer, answer_json

    plan = problem.plan(**overrides, store=store_of(store) if "start" in overrides else None)
    models = workflow_model_names(problem)
    probe = probed(problem) if plan.first_call is not None and plan.first_call.usd == 0 else None
    most, buys = estimate(plan, probe), proposals(plan, probe)
    if json:
        rollout = None if probe is None else asdict(probe)
        answer_json({
            **plan.to_json(), "workflow_models": models, "one_rollout": rollout, "estimate": most,
            "proposals": None if buys is None else asdict(buys) | {"unknown": list(buys.unknown)},
        })  # fmt: skip
    else:
        answer(*_lines(problem, plan, models, probe, most, buys))
    return OK


def proposals(plan: Plan, probe: Probe | None) -> Bought | None:
    """How many proposals the budget buys, as far as a rollout's cost is known.

    Args:
        plan: What the run would do.
        probe: What one rollout came to, where that was free to find out; else its first call stands for it.
    """
    from trace_opt.search.forecast import bought

    if plan.proposal is None:
        return None
    one = probe.cost if probe is not None else plan.first_call or Cost()
    seconds = None if probe is None else probe.seconds
    return bought(plan.budget, plan.rollouts, plan.proposal, one, seconds)


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
    asked = _asked(plan, probe)
    if asked is not None:
        for name, value in (("calls", one.cost.calls), ("tokens", one.cost.tokens), ("usd", one.cost.usd)):
            more = getattr(asked, name)
            if value is not None and more is not None:
                found.setdefault(name, value * rollouts + more)
    if probe is not None:
        found.setdefault("seconds", round(one.seconds * rollouts, 1))
    return found


def _asked(plan: Plan, probe: Probe | None) -> Cost | None:
    """The most that optimizers' calls come to for all proposals the budget buys; None where that is not known."""
    per, buys = plan.proposal, proposals(plan, probe)
    if per is None or not per.asked:
        return Cost()
    if per.call is None or buys is None or buys.about is None:
        return None
    calls, one = 2 * math.ceil(per.asked * buys.about), per.call
    return Cost(calls, calls * one.tokens_in, calls * one.tokens_out, None if one.usd is None else calls * one.usd)


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
    problem: Problem, plan: Plan, models: list[str], probe: Probe | None, most: Mapping[str, float | int],
    buys: Bought | None,
) -> list[str | Text]:  # fmt: skip
    lines: list[str | Text] = [problem.description] if problem.description else []
    lines += str(plan).split("\n")
    lines.append(f"  the workflow asks {', '.join(models) or 'no model that trace_opt connected'}")
    if probe is not None:
        failed = f"; it failed: {probe.error}" if probe.error else ""
        lines.append(
            f"  one rollout: {probe.cost.calls} calls, {probe.cost.tokens} tokens, {probe.seconds:.2f} s{failed}"
        )
    lines += _proposal_lines(plan, buys)
    said = ", ".join(f"${value:.2f}" if name == "usd" else f"{value:g} {name}" for name, value in most.items())
    return [*lines, "", f"at most: {said or 'no limit is set'}", "nothing was spent, and no run is kept"]


def _proposal_lines(plan: Plan, buys: Bought | None) -> list[str]:
    """What a proposal takes, and how many there are for the budget."""
    per = plan.proposal
    if per is None or buys is None:
        return []
    asks = f", and asks a model {per.asked:.2g} times on average" if per.asked else ""
    lines = [f"  {per.race} rollouts to race"] if per.race else []
    trains = f", beside those that {', '.join(per.trained)} trains on" if per.trained else ""
    own = f" (up to {per.training} of them to train)" if per.training else ""
    lines.append(f"  a proposal takes about {per.rollouts} rollouts{own}, at most {per.most_rollouts}{trains}{asks}")
    if per.asked and per.call is not None:
        price = "price unknown" if per.call.usd is None else f"${per.call.usd:.4f}"
        lines.append(f"  such a call: at most {per.call.tokens} tokens, {price}")
    if buys.about == 0 and per.training:
        lines.append(f"  the budget buys no whole proposal: training ends early, if it begins; raise {buys.limit}")
    elif buys.about == 0:
        lines.append(f"  the budget buys no proposal{' after the race' if per.race else ''}; raise {buys.limit}")
    elif buys.about is not None:
        least = "" if buys.least is None or buys.least == buys.about else f", at least {buys.least}"
        count = f"{buys.about} proposal{'' if buys.about == 1 else 's'}"
        more = ", more where training ends early" if per.training else ""
        lines.append(f"  the budget buys about {count}{least}{more}; the limit on {buys.limit} is reached first")
    elif not buys.unknown:
        lines.append("  no limit ends the search before its optimizers do")
    if buys.unknown:
        lines.append(f"  how far the limits on {', '.join(buys.unknown)} go is not known before something is paid for")
    return lines
