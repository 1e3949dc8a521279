"""How a run begins, or goes on: its row in the store, the start's scores, the parameters and who owns each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trace_opt.core.codec import dump_value, values_hash
from trace_opt.core.parameter import Parameter, by_name
from trace_opt.core.rollout import Cost
from trace_opt.errors import BudgetError, ProblemError, StoreError
from trace_opt.search import fingerprint
from trace_opt.search.bench import Bench
from trace_opt.search.budget import unpriced
from trace_opt.search.candidate import Candidate, Score
from trace_opt.search.defaults import default_optimizers, give_model, models_of, owners, raced
from trace_opt.search.draws import Draws
from trace_opt.search.executors import Executor
from trace_opt.search.failures import Failures
from trace_opt.search.ledger import Ledger
from trace_opt.search.measures import declared, says
from trace_opt.search.memory import memory_of
from trace_opt.search.racing import RUNGS
from trace_opt.search.restoring import Stored, decided, paid, unsaved
from trace_opt.search.reusing import reuse_of
from trace_opt.search.rollers import roller_of
from trace_opt.search.session import Session
from trace_opt.search.settings import Settings, announce, needs, power_notes, too_small
from trace_opt.search.starting import used_before
from trace_opt.search.strays import Strays

if TYPE_CHECKING:
    from trace_opt.core.memory import Memory
    from trace_opt.optim.base import Optimizer
    from trace_opt.search.gate import Measure
    from trace_opt.store.store import Saved
    from trace_opt.store.writer import Writer

_FIRST = 4
"""After so many examples a start that costs something is given up, where none of them read a Parameter."""
_FREE_S = 1.0
"""So many seconds of rollouts in all count as no cost."""


class Opening:
    """Begins one run, or takes one up again.

    Args:
        settings: The run's.
        executor: Runs rollouts.

    Attributes:
        writer: Who keeps, or None.
        ledger: Who pays.
        bench: Runs candidates.
        memory: What pure ops gave.
        raced: Values to race, by parameter name.
        scores: What earlier sessions left, by candidate, then by example and repeat.
        notes: What the report must say of the beginning.
        strays: Notes parameters that are read where no recording sees it.
    """

    ledger: Ledger
    bench: Bench
    memory: Memory

    def __init__(self, settings: Settings, executor: Executor) -> None:
        self.settings = settings
        self.writer: Writer | None = None
        self.raced: Mapping[str, Sequence[Any]] = {}
        self.scores: Mapping[int, Mapping[tuple[int, int], Score]] = {}
        self.notes: list[str] = []
        self.strays = Strays()
        self._failures = Failures()
        self._executor = executor
        self._saved: Saved | None = None
        self._optimizers: list[Optimizer] = settings.optimizers or []
        self._owned: dict[str, int] = {}
        self._model = ""

    def open(self) -> None:
        """Check what can be checked before anything runs, then take the run in the store.

        Raises:
            ProblemError, LLMError, BudgetError, StoreError: nothing was run or written.
        """
        settings = self.settings
        if settings.parameters is not None:
            self._assign(settings.parameters)
        if settings.store is not None:
            self._take(settings)
        self.memory = memory_of(settings.store, self.writer, settings.reach)
        saved = self._saved
        spent = {} if saved is None else dict(saved.spend)
        self.ledger = Ledger(
            settings.budget, spent=spent, journal=self.writer,
            rollouts=0 if saved is None else paid(saved), trials=0 if saved is None else decided(saved),
            seconds=0.0 if saved is None else saved.seconds, flights=0 if saved is None else saved.flights,
        )  # fmt: skip
        self.ledger.unsaved = 0 if saved is None else unsaved(saved)
        roller = roller_of(settings, self.ledger, self._executor)
        roller.late = self._late
        self.bench = Bench(
            roller, self._executor, settings.data, seed=settings.seed, ledger=self.ledger, writer=self.writer,
            floor=settings.floor, tell=settings.goals.on_event, draws=Draws(settings.data, settings.repeats, settings.weights),
        )  # fmt: skip
        self.bench.reuse = reuse_of(settings, self.writer, saved)
        used = used_before(settings.warm, settings.store, settings.data, settings.judged)
        self.notes += [used] if used else []
        self._announce()

    def _assign(self, parameters: Mapping[str, Parameter[Any]]) -> None:
        """Find out who owns each parameter, and give models to those who ask one.

        Raises:
            ProblemError, LLMError, BudgetError: nobody does, there is no model, or its price is unknown.
        """
        settings = self.settings
        if settings.optimizers is None:
            self._optimizers = default_optimizers(parameters.values())
        self._owned = owners(parameters.values(), self._optimizers)
        self._model = give_model(self._optimizers, self._owned, settings.model)
        self.raced = raced(settings.race, dict(parameters))
        name = unpriced(models_of(self._optimizers)) if settings.budget.usd is not None else None
        if name is not None:
            raise BudgetError(
                f"the price of {name!r} is unknown, so {settings.budget} cannot be kept; pass price=(in, out) to "
                "connect(...), or limit calls or tokens instead of usd"
            )
        self._check_race()

    def _check_race(self) -> None:
        """Refuse a race that the budget cannot pay for."""
        count = 1
        for values in self.raced.values():
            count *= len(values)
        settings = self.settings
        if count > 1 and settings.budget.rollouts is not None and settings.resume is None:
            rungs: tuple[int | None, ...] = getattr(settings.search, "rungs", RUNGS)
            first = min(rung or len(settings.data.val) for rung in (*rungs, len(settings.data.val)))
            needed = needs(settings, proposing=False) | {"to try a proposal": 0}
            needed["to begin the race"] = (count - 1) * first * settings.repeats
            if sum(needed.values()) > settings.budget.rollouts:
                raise BudgetError(too_small(settings.budget, "rollouts", needed))
        trials = settings.budget.trials
        if trials is not None and count - 1 > trials:
            raise BudgetError(
                f"{self.settings.budget} cannot pay for the race of {count} combinations; set trials to {count - 1} or "
                "more, or race fewer choices"
            )

    def _late(self, spend: Mapping[str, Cost]) -> None:
        """Keep what a rollout that was given up has spent since."""
        if self.writer is not None and not self.writer.closed:
            self.writer.spend(spend, ())

    # -- the store ---------------------------------------------------------------------------------------------------

    def _take(self, settings: Settings) -> None:
        from trace_opt.store.store import NewRun

        store = settings.store
        if store is None:
            return
        if settings.resume is None:
            from trace_opt import __version__

            self.writer = store.begin(
                NewRun(name=settings.name, seed=settings.seed, version=__version__, data=self._data())
            )
            return
        saved = store.peek(settings.resume)
        fingerprint.check(settings.resume, saved["fingerprint"], settings.prints)
        self.writer, self._saved = store.reopen(settings.resume)
        self.writer.set(data=json.dumps(self._data(saved)))

    def _data(self, saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What stands in the run's row about it."""
        settings, data = self.settings, self.settings.data
        now: dict[str, Any] = {
            "config": {**settings.config, "notes": list(data.notes)}, "fingerprint": dict(settings.prints), "model": self._model, "budget": settings.budget.limits,
            "splits": {"train": len(data.train), "val": 0 if data.shared else len(data.val), "test": len(data.test)},
            "first": data.order(settings.seed)[0],
        }  # fmt: skip
        if saved is not None:
            now["parameters"] = saved.get("parameters", [])
            # not known yet where the session before was killed while the start was scored
            now["fingerprint"] |= {kind: prints for kind, prints in saved["fingerprint"].items() if kind == "start"}
            now["config"]["origin"] = dict(settings.origin) or saved["config"].get("origin", {})
        return now

    def _announce(self) -> None:
        data, budget = self.settings.data, self.settings.budget
        run = "" if self.writer is None else self.writer.run
        val = f"{len(data.val)} to choose by" if not data.shared else "choosing by the same"
        text = f"{self.settings.name}: {len(data.train)} training examples, {val}, {len(data.test)} to test; {budget}"
        announce(
            self.settings, "start", f"run {run}: {text}" if run else text, run=run, name=self.settings.name,
            train=len(data.train), val=len(data.val), test=len(data.test), budget=budget.limits, model=self._model,
            resumed=self._saved is not None,
        )  # fmt: skip
        if self.settings.goals.on_event is None:
            return
        for note in (*data.notes, *self.notes, *power_notes(self.settings)):
            announce(self.settings, "note", note)

    # -- the start ---------------------------------------------------------------------------------------------------

    async def begin(self) -> Session:
        """Score the start and make the session, at the point where an earlier one stopped.

        Raises:
            ProblemError, LLMError: a parameter that the start reached is nobody's, or there is no model.
            BudgetError: the budget does not cover it.
        """
        saved = self._saved
        scores = self.scores = self._stored_scores()
        start = Candidate(0, {}, "", accepted=True)
        self.bench.draws.load(start, scores.get(0, {}))
        self._failures.load(self.bench.stored)
        parameters = await self._scored(start)
        if self.settings.parameters is None:
            self._assign(parameters)
        start.values = {name: self.settings.warm.own(name, parameter) for name, parameter in parameters.items()}
        start.key = values_hash(parameters, start.values)
        start.kept = {n: replace(rollout, values=start.values) for n, rollout in start.kept.items()}
        self.bench.parameters = parameters
        self._check_start(parameters, start)
        self._warn(start)
        if self.settings.warm.values:
            announce(self.settings, "note", self.settings.warm.note(parameters), start=list(self.settings.warm.values))
        session = Session(
            self.bench, parameters=parameters, optimizers=self._optimizers, owned=self._owned, start=start,
            minibatch=self.settings.search.minibatch, goals=self.settings.goals, writer=self.writer,
            tests=self.settings.search.tests, measures=self._declared(start),
        )  # fmt: skip
        if saved is not None:
            session.restore(saved, scores)
        self._keep_start(session, parameters)
        return session

    def _declared(self, start: Candidate) -> tuple[Measure, ...]:
        """What is declared of the scores, before any candidate is run; whoever listens is told how they are tested."""
        settings, gate = self.settings, self.settings.search.gate
        scores = [start.scores[n] for n in start.known(self.bench.order)]
        measures = declared(
            scores, score_range=settings.score_range, weights=settings.weights, margins=settings.margins
        )  # fmt: skip
        if gate is not None:
            announce(settings, "note", says(gate, measures), test=gate.kind_of(measures[0]))
        return measures

    async def _scored(self, start: Candidate) -> dict[str, Parameter[Any]]:
        """Score the start; gives the parameters that may change."""
        declared, bench = self.settings.parameters, self.bench
        warm = self.settings.warm
        own = {name: warm.own(name, parameter) for name, parameter in (declared or {}).items()}
        start.values = own or dict(warm.values)
        bench.watch(on=True)
        bench.failed = self._failures.note
        self.ledger.on_first = self._check_calls if self._saved is None else None
        if not start.scores:
            await self._looked(start, declared)
        if self.settings.search.tests:
            await bench.score([(start, bench.order)], "start")
        bench.watch(on=False)
        bench.failed = None
        return self._known(declared, start)

    async def _looked(self, start: Candidate, declared: dict[str, Parameter[Any]] | None) -> None:
        """Run examples alone until one reads a parameter, so that a mistake shows before many calls are paid for.

        Raises:
            ProblemError: the first few read none and others would cost something, or one is nobody's.
        """
        order = self.bench.order
        for count, number in enumerate(order, 1):
            await self.bench.score([(start, [number])], "start")
            if declared is not None or self._reached():
                break
            ran = [start.scores[n] for n in order[:count]]
            if count >= _FIRST and (any(s.cost.calls for s in ran) or sum(s.seconds for s in ran) >= _FREE_S):
                break
        if declared is None:
            self._known(declared, start)

    def _warn(self, start: Candidate) -> None:
        """Say, and note for the report, what makes all that follows doubtful."""
        failed = self._failures.of_all(start.known(self.bench.order))
        self.notes += [failed] if failed else []
        for note in (failed, self.stray(fresh=True)):
            if note:
                announce(self.settings, "note", note)

    def stray(self, *, fresh: bool = False) -> str:
        """What is to be said of parameters that were read where no recording sees it; "" where none was.

        Args:
            fresh: Whether only of those of which nothing was said yet.
        """
        known = [*(self.settings.parameters or {}).values(), *self.bench.parameters.values()]
        return self.strays.says([*known, *self.settings.reach.parameters_named()], fresh=fresh)

    def _known(self, declared: dict[str, Parameter[Any]] | None, start: Candidate) -> dict[str, Parameter[Any]]:
        """The parameters that may change: those declared, else those that the start's rollouts read.

        Raises:
            ProblemError: there is none, or one is nobody's.
        """
        reached, ran = self._reached(), start.known(self.bench.order)
        failed = self._failures.says(ran)
        if declared is not None:
            idle = [name for name in declared if name not in reached and not declared[name].frozen]
            if idle:
                why = f"; {failed}" if failed else ""
                announce(self.settings, "note", f"the start's rollouts did not read {', '.join(map(repr, idle))}{why}")
            return declared
        if not reached:
            few = "" if len(ran) == len(self.bench.order) else f"first {len(ran)} "
            hint = self.stray() or "read one by .value in the workflow or in an op"
            why = f"{failed}; mend that first" if failed else hint
            raise ProblemError(f"the workflow read no Parameter on the {few}validation examples; {why}")
        if self.settings.optimizers is not None:
            owners(reached.values(), self.settings.optimizers)
        return reached

    def _reached(self) -> dict[str, Parameter[Any]]:
        """The parameters that the start's rollouts read, in the order of the examples; of earlier sessions by name."""
        found = {p.name: p for p in by_name(self.settings.reach.parameters_named()).values()}
        reached: dict[str, Parameter[Any]] = {}
        for number in self.bench.order:
            for parameter in self.bench.reached.get(number, ()):
                reached.setdefault(parameter.name, parameter)
            stored = self.bench.stored.get((0, number))
            for name in json.loads(stored.data).get("reached", ()) if stored is not None else ():
                if name not in reached and name not in found:
                    raise StoreError(
                        f"parameter {name!r} of the run to resume is not found in the workflow; pass parameters=[...]"
                    )
                reached.setdefault(name, found.get(name, reached.get(name)))  # pyright: ignore[reportArgumentType] # one of them holds it
        return reached

    def _check_calls(self, _: Cost) -> None:
        """Called at the first model call: refuse a number of calls that cannot pay for one proposal.

        Raises:
            BudgetError: nothing was paid yet.
        """
        limit = self.settings.budget.calls
        if limit is None:
            return
        asking = 1 if any(models_of([optimizer]) for optimizer in self._optimizers) else 0
        needed = {**needs(self.settings, proposing=bool(asking)), "to propose": asking}
        if sum(needed.values()) > limit:
            raise BudgetError(too_small(self.settings.budget, "calls", needed))

    def _check_start(self, parameters: Mapping[str, Parameter[Any]], start: Candidate) -> None:
        if self._saved is not None:
            now = {"start": fingerprint.of_values(list(parameters.values()), start.values)}
            fingerprint.check(self._saved.id, self._saved.data["fingerprint"], now)

    def _keep_start(self, session: Session, parameters: Mapping[str, Parameter[Any]]) -> None:
        if self.writer is None:
            return
        data = self._data() if self._saved is None else self._data(self._saved.data)
        data["parameters"] = [
            {
                "name": name, "kind": p.kind, "start": dump_value(p, session.start.values[name]), "description": p.description,
                "optimizer": type(self._optimizers[self._owned[name]]).__name__ if name in self._owned else "",
            }
            for name, p in parameters.items()
        ]  # fmt: skip
        data["fingerprint"]["start"] = fingerprint.of_values(list(parameters.values()), session.start.values)
        self.writer.set(data=json.dumps(data))
        session.keeper.candidate(session.start)
        self.writer.commit()

    def _stored_scores(self) -> dict[int, dict[tuple[int, int], Score]]:
        """Scores that earlier sessions left, by candidate, example and repeat; their data goes to the bench."""
        scores: dict[int, dict[tuple[int, int], Score]] = {}
        for row in self._saved.rollouts if self._saved is not None else ():
            cost = Cost(row["calls"], row["tokens_in"], row["tokens_out"], row["usd"])
            several = json.loads(row["data"]).get("scores")
            score = Score(row["score"], several, cost, row["seconds"])
            scores.setdefault(row["candidate"], {})[row["example"], row["repeat"]] = score
            key = row["candidate"], row["example"]
            self.bench.stored.setdefault(key, Stored(score, row["data"], self._graph_of(*key)))
        return scores

    def _graph_of(self, candidate: int, example: int) -> Callable[[], str | None]:
        store, run = self.settings.store, "" if self._saved is None else self._saved.id
        return lambda: None if store is None else store.graph(run, candidate, example)
