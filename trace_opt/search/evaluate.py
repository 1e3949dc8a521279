"""Score values on examples, without a search; and say what a search would do, without running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack

from trace_opt.core.binding import bind
from trace_opt.core.feedback import Guide
from trace_opt.core.memory import Memory, remembering
from trace_opt.core.rollout import Cost
from trace_opt.errors import BudgetError, ProblemError
from trace_opt.llm.meter import metering
from trace_opt.search.bench import Bench
from trace_opt.search.budget import Budget
from trace_opt.search.candidate import Candidate
from trace_opt.search.defaults import default_optimizers, give_model, owners, raced
from trace_opt.search.ending import summary
from trace_opt.search.engine import blocking
from trace_opt.search.executors import LocalExecutor
from trace_opt.search.forecast import Proposing, proposing
from trace_opt.search.ledger import Ledger
from trace_opt.search.measures import smallest_gain
from trace_opt.search.memory import saved_json
from trace_opt.search.options import Options
from trace_opt.search.report import Report, spend_json
from trace_opt.search.rolling import Job, Roller
from trace_opt.search.settings import Settings, needs, power_notes, settle
from trace_opt.search.splits import Data, split


def evaluate(
    workflow: Callable[..., Any],
    examples: Sequence[Any],
    guide: Guide,
    *,
    values: Mapping[str, Any] | None = None,
    seed: int = 0,
    concurrency: int = 8,
    budget: Budget | None = None,
    score_range: tuple[float, float] | None = None,
) -> Report:
    """Mean score of a workflow on examples, with its interval and its costs.

    Args:
        workflow: Function of an example, sync or async.
        examples: At least one.
        guide: `(output, example) -> Feedback`.
        values: Values by full parameter name; others are the Parameters' own.
        seed: Decides all chance.
        concurrency: Rollouts at once.
        budget: What it may spend at most.
        score_range: The lowest and the highest score possible; failed rollouts count as the lowest.

    Raises:
        ProblemError: there are no examples.
        BudgetError: the budget does not cover all of them.
        FeedbackError: the guide returned no finite score.
    """
    options: dict[str, Any] = {"values": values, "seed": seed, "concurrency": concurrency, "budget": budget}
    return blocking(lambda: aevaluate(workflow, examples, guide, **options, score_range=score_range))


async def aevaluate(
    workflow: Callable[..., Any],
    examples: Sequence[Any],
    guide: Guide,
    *,
    values: Mapping[str, Any] | None = None,
    seed: int = 0,
    concurrency: int = 8,
    budget: Budget | None = None,
    score_range: tuple[float, float] | None = None,
) -> Report:
    """`evaluate` for asynchronous code."""
    given = list(examples)
    if not given:
        raise ProblemError("examples is empty; evaluate needs at least one")
    laid = split(given, given, None, seed)
    data = Data(laid.examples, laid.keys, laid.train, laid.val, laid.test)
    executor = LocalExecutor(concurrency)
    ledger = Ledger(budget or Budget())
    bench = Bench(
        Roller(workflow, guide, ledger, executor), executor, data, seed=seed, ledger=ledger, keep_graphs=False,
        floor=None if score_range is None else score_range[0],
    )  # fmt: skip
    candidate = Candidate(0, dict(values or {}), "")
    try:
        with remembering(Memory(meter=metering)) as memory:
            await bench.score([(candidate, list(data.val))], "examples")
    finally:
        executor.close()
    return Report(
        examples="given", held_out=False, best=summary(candidate, list(data.val), bench.floor),
        spend=spend_json(ledger.spent), seconds=ledger.seconds, saved=saved_json(memory.saved),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `optimize` would do; `print` it, or take `to_json`.

    Attributes:
        name: The problem's name.
        train, val, test: How many examples each part has; val is 0 where candidates are chosen by the training examples.
        budget: The limits.
        rollouts: How many rollouts it takes at least: "to score the start", "to propose from", "to try a proposal", "for
            the test", and where there are any "for the controls".
        parameters: The optimizer of each parameter, as far as they are found without running the workflow.
        raced: How many combinations are raced.
        model: The optimizers' model and why it is this one; "" where none is asked.
        first_call: What the first model call of a rollout costs at most; None where the first example needs none.
        smallest_gain: The smallest gain in mean score that the validation examples show with 80 % power at alpha .05; None
            where they show none, or nothing is tested.
        proposal: What one proposal takes.
        notes: What else is to be known.
    """

    name: str
    train: int
    val: int
    test: int
    budget: Mapping[str, Any]
    rollouts: Mapping[str, int]
    parameters: Mapping[str, str]
    raced: int
    model: str
    first_call: Cost | None
    smallest_gain: float | None = None
    proposal: Proposing | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self) | {"notes": list(self.notes)}

    def __str__(self) -> str:
        val = f"{self.val} to choose by" if self.val else "choosing by the same"
        limits = ", ".join(f"{name} {value}" for name, value in self.budget.items()) or "none"
        lines = [f"{self.name}: {self.train} training examples, {val}, {self.test} to test", f"  limits: {limits}"]
        lines += [f"  {count} rollouts {what}" for what, count in self.rollouts.items() if count]
        lines += [f"  {self.raced} combinations are raced first"] if self.raced > 1 else []
        lines += [f"  {name}: {optimizer}" for name, optimizer in self.parameters.items()]
        lines += [f"  optimizers ask {self.model}"] if self.model else []
        if self.first_call is None:
            lines.append("  a rollout asks no model on the first example")
        else:
            usd = self.first_call.usd
            price = "price unknown" if usd is None else f"${usd:.6f}"
            lines.append(f"  the first model call of a rollout: at most {self.first_call.tokens} tokens, {price}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def plan(workflow: Callable[..., Any], train: Sequence[Any], guide: Guide, **options: Unpack[Options]) -> Plan:
    """What `optimize` would do with the same arguments: nothing is sent, written or decided.

    The workflow is run on one example up to its first model call.

    Raises:
        ProblemError, BudgetError, LLMError, StoreError: as `optimize` would.
    """
    settings = settle(workflow, train, guide, {**options, "resume": None})
    data = settings.data
    parameters = settings.parameters or {p.name: p for p in settings.reach.parameters_named()}
    optimizers = settings.optimizers if settings.optimizers is not None else default_optimizers(parameters.values())
    owned = (
        owners(parameters.values(), optimizers) if settings.parameters is not None else _found(parameters, optimizers)
    )
    model = give_model(optimizers, owned, settings.model)
    needed = needs(settings, proposing=True)
    combinations = 1
    for values in raced(settings.race, parameters).values() if parameters else ():
        combinations *= len(values)
    return Plan(
        name=settings.name, train=len(data.train), val=0 if data.shared else len(data.val), test=len(data.test),
        budget=settings.budget.limits, rollouts=needed, raced=combinations, model=model,
        parameters={name: type(optimizers[place]).__name__ for name, place in owned.items()},
        first_call=_first_call(workflow, guide, data.examples[data.order(settings.seed)[0]]), smallest_gain=_smallest(settings),
        proposal=proposing(
            settings, [optimizers[place] for place in sorted(set(owned.values()))], batch=needed["to propose from"],
            raced=combinations,
        ),
        notes=(*data.notes, *power_notes(settings)),
    )  # fmt: skip


def _smallest(settings: Settings) -> float | None:
    """See `Plan.smallest_gain`."""
    gain = smallest_gain(len(settings.data.val)) if settings.search.tests else None
    low, high = settings.score_range or (0.0, 1.0)
    return None if gain is None else gain * (high - low)


def _found(parameters: Mapping[str, Any], optimizers: Sequence[Any]) -> dict[str, int]:
    """Owners of the parameters found without running, those that nobody handles left out: they may not be read."""
    owned: dict[str, int] = {}
    for parameter in parameters.values():
        try:
            owned |= owners([parameter], optimizers)
        except ProblemError:
            continue
    return owned


def _first_call(workflow: Callable[..., Any], guide: Guide, example: Any) -> Cost | None:
    """The first thing a rollout asks a ledger for."""
    asking = _Asking()
    executor = LocalExecutor(1)
    roller = Roller(workflow, guide, asking, executor)
    job = Job(-1, {}, 0, example, bound=bind(workflow, example), seed=0)

    async def once() -> None:
        try:
            await executor.run([job], roller.arun if roller.is_async else roller.run)
        except BudgetError:
            if asking.first is None:
                raise

    try:
        blocking(once)
    finally:
        executor.close()
    return asking.first


class _Asking(Ledger):
    """A ledger that pays for nothing, and notes the first thing it is asked for."""

    def __init__(self) -> None:
        super().__init__(Budget())
        self.first: Cost | None = None

    def reserve(self, worst: Cost, role: Any, what: str, place: Any = None) -> Any:
        """Note what is asked for.

        Raises:
            BudgetError: always.
        """
        del role, what, place
        self.first = self.first or worst
        raise BudgetError("a dry run sends nothing")
