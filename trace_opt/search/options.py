"""The options of `optimize`, and what a run tells while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from trace_opt.core.module import Module
    from trace_opt.core.parameter import Parameter
    from trace_opt.llm.base import LLM
    from trace_opt.optim.base import Optimizer
    from trace_opt.search.approving import Approve
    from trace_opt.search.budget import Budget, Level
    from trace_opt.search.executors import Executor
    from trace_opt.search.greedy import Search
    from trace_opt.store.records import TrialRecord
    from trace_opt.store.store import Store


@dataclass(frozen=True, slots=True)
class Event:
    """Something a run tells, for progress bars and logs.

    Attributes:
        kind: "start" (data: run, name, train, val, test, budget, model, parameters), "rollouts" (data: phase, done,
            total), "proposing" (data: step, optimizer), "trial" (data: trial, a `TrialRecord`; best), "test",
            "note", "end" (data: status, ended).
        text: One line for people.
        data: The same for machines.
    """

    kind: Literal["start", "rollouts", "proposing", "trial", "test", "note", "end"]
    text: str
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Options(TypedDict, total=False):
    """What `optimize` takes besides workflow, train and guide. All have defaults.

    Attributes:
        optimizers: Who proposes; by the kinds of the parameters by default.
        parameters: What may change: Parameters, a Module, or trainable ops for their source; by default what the start's
            rollouts reached.
        val, test: Examples to choose by, and to judge by once at the end; split off `train` where left out.
        budget: A `Budget`, or "light" (the default), "medium", "heavy": multiples of the validation set.
        seed: Decides all chance.
        search: How candidates are tried: `Greedy()`, the default, `Pareto()`, `Beam()`, or anything with their methods.
        concurrency: Rollouts at once.
        executor: Who runs them: "local" (the default: this process), "processes" (worker processes on this machine),
            "ray", or an `Executor`.
        address: Of a Ray cluster, for executor="ray"; one is started on this machine by default.
        reload: Makes the problem again in a worker (gives something with a `workflow` and a `guide`), where these cannot
            be sent by name, as closures cannot. `load_problem` gives it along.
        store: A path, URL or `Store`; None keeps nothing; `.trace_opt/runs.db` or TRACE_OPT_STORE by default.
        resume: The id of a run to go on with.
        race: Names of choices whose combinations are all tried first.
        target: Stop once the validation mean is this high.
        patience: Stop after this many trials in a row without one accepted.
        timeout: Seconds that a rollout may take, its guide included; one that takes longer has failed. An async workflow is
            cancelled (one that holds up its event loop is late with all beside it). A thread cannot be: it is left to end
            by itself, beside the `concurrency` others, and nothing that it still does counts; with executor="processes"
            or "ray" its worker is replaced. A rollout that was in time by a hair may be late another time, so a run that
            it strikes repeats only as far as its store goes.
        approve: Asked before an acceptance takes effect: `(approval) -> bool`, plain or async, of an `Approval`. What it
            says no to is refused, and optimizers are shown that it was. Its answers are kept, and a resumed run asks anew
            only what was not answered. Waiting for one counts as the run's seconds.
        start: Where to start in place of the parameters' own values: a run's id or "last", for its best values, or values
            by parameter name. Parameters that these lack start from their own. A resumed run starts where it began.
        reuse: Whether a rollout that any run in the store has made already is taken from there: one of the same sources of
            workflow and guide, values, example, seed and repeat, which did not fail. It costs nothing and counts against no
            limit. Assumes that a rollout is decided by these: it reads no clock, file or service that changes, and samples
            from models with the rollout's seed. Which runs are looked at is settled when the run begins.
        on_trial: Called with every finished trial.
        on_event: Called with every `Event`, from the thread that runs the search.
        score_range: The lowest and the highest score possible; failed rollouts count as the lowest.
        weights: Of several scores by name: their weighted sum decides, in place of the first.
        margins: Of several scores by name: by how much one may get worse than the incumbent's where another decides; 0 by
            default, infinite for one that is only to be reported.
        repeats: How often each validation and test example is run, its score being the mean, where the workflow itself
            draws; an accepted candidate is then compared on new draws.
        controls: Workflows by name that the best is to be compared with, run once at the end on the examples that start and
            best are compared on, with the best's values and on the same seeds; they count against the budget.
        name: The problem's name in the store.
        model: The model for optimizers that were given none; chosen from the environment by default.
        origin: What a command line needs to load the problem again, JSON-able; kept with the run's config.
    """

    optimizers: Sequence[Optimizer] | None
    parameters: Module | Mapping[str, Parameter[Any]] | Sequence[Parameter[Any] | Callable[..., Any]] | None
    val: Sequence[Any] | None
    test: Sequence[Any] | None
    budget: Budget | Level
    seed: int
    search: Search
    concurrency: int
    executor: Executor | Literal["local", "processes", "ray"] | None
    address: str | None
    reload: Callable[[], Any] | None
    store: str | Path | Store | None
    resume: str | None
    race: Sequence[str]
    target: float | None
    patience: int | None
    timeout: float | None
    approve: Approve | None
    start: str | Mapping[str, Any] | None
    reuse: bool
    on_trial: Callable[[TrialRecord], object] | None
    on_event: Callable[[Event], object] | None
    score_range: tuple[float, float] | None
    weights: Mapping[str, float] | None
    margins: Mapping[str, float] | None
    repeats: int
    controls: Mapping[str, Callable[..., Any]] | None
    name: str
    model: str | LLM | None
    origin: Mapping[str, Any]
