"""The options of `optimize` settled and checked, before anything is run or written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_opt.core.feedback import Guide
from trace_opt.core.parameter import Parameter, by_name
from trace_opt.core.trainable import listed
from trace_opt.errors import BudgetError, ProblemError, meant
from trace_opt.search import checking, fingerprint
from trace_opt.search.budget import Budget, resolve, unpriced
from trace_opt.search.defaults import models_of
from trace_opt.search.measures import power_note
from trace_opt.search.options import Event, Options
from trace_opt.search.session import Goals
from trace_opt.search.sources import Reach
from trace_opt.search.splits import Data, split
from trace_opt.search.starting import Warm, warm, warm_of

if TYPE_CHECKING:
    from trace_opt.llm.base import LLM
    from trace_opt.optim.base import Optimizer
    from trace_opt.search.executors import Executor
    from trace_opt.search.greedy import Search
    from trace_opt.store.store import Store

_DEFAULT: Any = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run runs under.

    Attributes:
        workflow, guide: Functions.
        data: The examples, laid out.
        seed: The run's seed.
        budget: With a level resolved.
        search: How candidates are tried.
        optimizers: As given, or None for those of the parameters' kinds.
        parameters: As given, by name, or None for those that the start reaches.
        model: As given.
        race: As given.
        goals: When to stop, whom to tell.
        concurrency: Rollouts at once.
        executor, address, reload: As given.
        store: Where to keep, or None.
        resume: The run to go on with, or None.
        score_range, weights, margins: As given.
        repeats: How often validation and test examples are run.
        controls: Workflows by name that the best is compared with at the end.
        timeout: Seconds that a rollout may take, or None.
        warm: The values to start from.
        reuse: Whether rollouts are taken from other runs of the store.
        name: The problem's name.
        origin: What a command line needs to load the problem again, JSON-able.
        reach: What workflow and guide are made of.
        prints: What a resumed run must share, by kind and name, as it was before anything ran; the starting values join
            once they are known.
    """

    workflow: Callable[..., Any]
    guide: Guide
    data: Data
    seed: int
    budget: Budget
    search: Search
    optimizers: list[Optimizer] | None
    parameters: dict[str, Parameter[Any]] | None
    model: str | LLM | None
    race: tuple[str, ...]
    goals: Goals
    concurrency: int
    executor: Executor | str | None
    address: str | None
    reload: Callable[[], Any] | None
    store: Store | None
    resume: str | None
    score_range: tuple[float, float] | None
    weights: dict[str, float] | None
    margins: dict[str, float] | None
    repeats: int
    controls: dict[str, Callable[..., Any]]
    timeout: float | None
    warm: Warm
    reuse: bool
    name: str
    origin: Mapping[str, Any]
    reach: Reach
    prints: Mapping[str, Mapping[str, Any]]

    @property
    def floor(self) -> float | None:
        """The lower end of the score range."""
        return None if self.score_range is None else float(self.score_range[0])

    @property
    def judged(self) -> range:
        """The examples that start and best are compared on at the end: a search without a gate has not used the others."""
        return self.data.test if self.data.test or self.search.tests else self.data.val

    @property
    def compared(self) -> Sequence[int]:
        """The examples that controls are run on: those that start and best are compared on."""
        return self.judged or self.data.order(self.seed)

    @property
    def config(self) -> dict[str, Any]:
        """The settings that decide the run's course, JSON-able."""
        start = {"start": self.warm.to_json(self.known)} if self.warm.values else {}
        return {**self.prints["settings"], "origin": dict(self.origin), "concurrency": self.concurrency, **start}

    @property
    def known(self) -> dict[str, Parameter[Any]]:
        """The parameters that are known before anything is run, by full name."""
        return _known(self.parameters, self.reach)


def settle(workflow: Any, train: Any, guide: Any, options: Options) -> Settings:
    """Check what `optimize` was given.

    Raises:
        ProblemError, BudgetError, StoreError, TraceError: one sentence about the first thing that makes no sense.
    """
    _check_names(options)
    for what, value in (("workflow", workflow), ("guide", guide)):
        if not callable(value):
            raise ProblemError(f"the {what} is {value!r:.60}, which cannot be called; pass a function")
    store = _store(options)
    resume = options.get("resume")
    seed, budget_given = _of_saved_run(options, store, resume)
    data = split(train, options.get("val"), options.get("test"), seed)
    repeats = checking.whole("repeats", options.get("repeats", 1))
    weights, margins = (checking.by_score(name, options.get(name)) for name in ("weights", "margins"))
    controls = checking.controlling(options.get("controls"))
    budget = resolve(
        budget_given, val=len(data.val) * repeats, test=len(data.test) * repeats, controls=len(controls)
    )  # fmt: skip
    optimizers, timeout = checking.optimizing(options.get("optimizers")), checking.timeout(options.get("timeout"))
    parameters, reuse = _parameters(options.get("parameters")), checking.reusing(options.get("reuse", False), store)
    reach = Reach({"the workflow": workflow, "the guide": guide})
    search, race, goals = checking.searching(options.get("search")), tuple(options.get("race") or ()), _goals(options)
    score_range, origin = checking.score_range(options.get("score_range")), checking.origin(options.get("origin"))
    config = {
        "seed": seed, "search": repr(search), "race": list(race), "score_range": score_range,
        "weights": weights, "margins": None if margins is None else {n: str(m) for n, m in margins.items()},
        "repeats": repeats, "target": goals.target, "patience": goals.patience,
        "optimizers": None if optimizers is None else [fingerprint.of_optimizer(o) for o in optimizers],
    }  # fmt: skip
    config |= {name: value for name, value in (("timeout", timeout), ("approve", goals.approve is not None)) if value}
    if race and not search.tests:
        raise ProblemError(f"race={list(race)!r} needs a gate to decide by; leave gate=None or race out")
    settings = Settings(
        workflow=workflow, guide=guide, data=data, seed=seed, budget=budget, search=search,
        optimizers=optimizers, parameters=parameters,
        model=options.get("model"), race=race, goals=goals,
        concurrency=checking.whole("concurrency", options.get("concurrency", 8)), executor=options.get("executor"),
        address=options.get("address"), reload=options.get("reload"), store=store, resume=resume,
        score_range=score_range, weights=weights, margins=margins, repeats=repeats,
        controls=controls, timeout=timeout, warm=_warm(options, store, resume, lambda: _known(parameters, reach)), reuse=reuse,
        name=options.get("name") or getattr(workflow, "__name__", type(workflow).__name__),
        origin=origin, reach=reach,
        prints=json.loads(json.dumps({
            "examples": fingerprint.of_examples(data), "sources": reach.hashes, "settings": config,
            **({"controls": Reach(controls).hashes} if controls else {}),
        })),
    )  # fmt: skip
    _check_budget(settings)
    return settings


def _check_names(options: Options) -> None:
    known = Options.__optional_keys__
    for name in options:
        if name not in known:
            hint = meant(name, known, f"known: {', '.join(sorted(known))}")
            raise ProblemError(f"optimize has no option {name!r}; {hint}")


def _store(options: Options) -> Store | None:
    where = options.get("store", _DEFAULT)
    if where is None:
        if options.get("resume"):
            raise ProblemError(f"resume={options.get('resume')!r} needs a store; leave store=None out")
        return None
    return checking.opened(None if where is _DEFAULT else where)


def _of_saved_run(options: Options, store: Store | None, resume: str | None) -> tuple[int, Any]:
    """The seed and the budget: as given, else those of the run to go on with, else the defaults."""
    seed, budget = options.get("seed"), options.get("budget")
    if resume and store is not None and (seed is None or budget is None):
        saved = store.peek(resume)
        seed = saved["config"]["seed"] if seed is None else seed
        budget = Budget(**saved["budget"]) if budget is None and saved["budget"] else budget
    if isinstance(seed, bool) or not isinstance(seed, (int, type(None))):
        raise ProblemError(f"seed is {seed!r}; give a whole number")
    return seed or 0, "light" if budget is None else budget


def _parameters(given: Any) -> dict[str, Parameter[Any]] | None:
    if given is None:
        return None
    found = listed(given)
    for item in found:
        if not isinstance(item, Parameter):
            raise ProblemError(
                f"parameters holds {item!r:.60}, which is no Parameter; pass Parameters, trainable ops or a Module"
            )
    if not found:
        raise ProblemError("parameters is empty; leave it out for those that the workflow reads")
    return by_name(found)


def _goals(options: Options) -> Goals:
    patience = options.get("patience")
    return Goals(
        target=checking.target(options.get("target")), patience=None if patience is None else checking.whole("patience", patience),
        on_trial=options.get("on_trial"), on_event=options.get("on_event"), approve=checking.approving(options.get("approve")),
    )  # fmt: skip


def _known(parameters: dict[str, Parameter[Any]] | None, reach: Reach) -> dict[str, Parameter[Any]]:
    return by_name(reach.parameters_named()) if parameters is None else parameters


def _warm(
    options: Options, store: Store | None, resume: str | None, known: Callable[[], Mapping[str, Parameter[Any]]]
) -> Warm:  # fmt: skip
    """Where the run starts; a resumed one where it began."""
    resumed = resume is not None and store is not None
    given = (store.peek(resume)["config"] if resume is not None and store is not None else options).get("start")
    if given is None:
        return Warm(values={})
    return warm_of(given, known()) if resumed else warm(given, store, known())


def power_notes(settings: Settings) -> list[str]:
    """What the validation examples can show at all; nothing without a gate."""
    return [power_note(len(settings.data.val), settings.score_range)] if settings.search.tests else []


def needs(settings: Settings, *, proposing: bool) -> dict[str, int]:
    """How many rollouts one proposal takes at least, by what for.

    Args:
        settings: The run's.
        proposing: Whether its minibatch counts.
    """
    data, first = settings.data, settings.search.boundaries(len(settings.data.val))[0]
    reading = settings.optimizers is None or any(getattr(o, "wants_rollouts", True) for o in settings.optimizers)
    batch = min(settings.search.minibatch, len(data.train)) if proposing and reading and not data.shared else 0
    times = settings.repeats
    controls = times * len(settings.controls) * len(settings.compared)
    return {"to score the start": times * len(data.val), "to propose from": batch, "to try a proposal": times * first,
            "for the test": times * 2 * len(settings.judged),
            **({"for the controls": controls} if controls else {})}  # fmt: skip


def _check_budget(settings: Settings) -> None:
    """Refuse a budget that cannot pay for one proposal, as far as can be told before anything runs.

    Raises:
        BudgetError: it cannot, or a model's price is unknown.
    """
    budget = settings.budget
    if budget.usd is not None:
        held = [*models_of(settings.optimizers or ()), *settings.reach.models, settings.model]
        name = unpriced(held)
        if name is not None:
            raise BudgetError(
                f"the price of {name!r} is unknown, so {budget} cannot be kept; pass price=(in, out) to connect(...), "
                "or limit calls or tokens instead of usd"
            )
    if settings.resume is None:
        needed = {what: count for what, count in needs(settings, proposing=True).items() if count}
        if budget.rollouts is not None and sum(needed.values()) > budget.rollouts:
            raise BudgetError(too_small(budget, "rollouts", needed))


def too_small(budget: Budget, name: str, needed: Mapping[str, int]) -> str:
    """The message about a budget that cannot pay for one proposal."""
    listed = [f"{count} {what}" for what, count in needed.items() if count]
    return (
        f"{budget} cannot pay for one proposal: {', '.join(listed[:-1])} and {listed[-1]}; set {name} to "
        f"{sum(needed.values())} or more"
    )


def announce(settings: Settings, kind: Any, text: str, **data: Any) -> None:
    """Tell an event to whoever listens."""
    if settings.goals.on_event is not None:
        settings.goals.on_event(Event(kind, text, data))
