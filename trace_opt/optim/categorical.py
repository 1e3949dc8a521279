"""Joint search over choices, suggested texts and demonstration sets.

Chance picks one of three ways to the next proposal: a joint TPE (Optuna's ask and tell), which learns which values go
well together; a change of one or two values of the incumbent; or a look at values that were hardly tried together. Everything it
knows is in the history: the study is rebuilt from the trials at every proposal with a sampler seeded for it, so that a
resumed run goes on bit-identically. A combination that was tried is never proposed again while another one is left.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from trace_opt.core.codec import canonical, decode, encode
from trace_opt.errors import ReplyError
from trace_opt.optim.base import Optimizer, Outcome, Proposal, Trial
from trace_opt.optim.combinations import Effects, Known, Point, Space, Untried

if TYPE_CHECKING:
    import optuna

    from trace_opt.core.parameter import Parameter
    from trace_opt.core.rollout import Rollouts
    from trace_opt.llm.base import LLM

_ASKS = 20
# how often each way is taken: looks find what pays only together, changes what pays by itself
_WAYS = ("look", "look", "change", "change", "tpe")

_SEARCHED_KINDS = ("text", "demonstrations")


@runtime_checkable
class Family(Protocol):
    """A source that gives many values at once; one that lacks this is asked for a proposal instead."""

    async def family(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
    ) -> Mapping[str, Sequence[Any]]:
        """Values worth searching, by full parameter name."""
        ...


class Categorical(Optimizer):
    """Searches choices, texts with suggestions and demonstration sets together.

    Args:
        sources: Optimizers that are asked once, at the first proposal, for texts and demonstration sets to search:
            `Categorical(sources=[OptoPrime(), Demos()])` searches several instructions with several sets, as MIPRO does.
            Parameters stay owned by Categorical.
        startup: How many trials look around before TPE has something to learn from.
    """

    def __init__(self, sources: Sequence[Optimizer] = (), *, startup: int = 8) -> None:
        super().__init__()
        if startup < 1:
            raise ValueError(f"Categorical got startup={startup!r}; give at least 1")
        self.sources = tuple(sources)
        self.needs_model = any(source.needs_model for source in self.sources)
        self._startup = startup
        self._found: dict[str, list[Any]] | None = None
        self._problems: list[str] = []
        self._lock: asyncio.Lock | None = None
        self._open: list[tuple[str, dict[str, Any]]] = []

    @property
    def wants_rollouts(self) -> bool:
        """Whether it would read rollouts now: its sources do, once; the search itself needs none."""
        return bool(self.sources) and self._found is None

    def use(self, llm: LLM) -> None:
        """Give the run's model to the sources that need one."""
        for source in self.sources:
            if source.needs_model:
                source.use(llm)
        self.needs_model = any(source.needs_model for source in self.sources)

    def handles(self, parameter: Parameter[Any]) -> bool:
        """Choices, texts with suggestions, and what texts and demonstrations its sources can give values for."""
        if parameter.kind == "choice" or (parameter.kind == "text" and parameter.suggestions):
            return True
        return parameter.kind in _SEARCHED_KINDS and any(source.handles(parameter) for source in self.sources)

    async def propose(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
    ) -> Proposal:
        """Suggest a combination that has not been tried; the reason says how it was found."""
        if self._found is None:
            await self._ask_sources(parameters, rollouts, history)
        space = Space.of(parameters, self._found or {}, history)
        known = Known.of(space, history)
        opened = [space.locate(values) for _, values in self._open]
        untried = Untried(space, known.tried | {known.incumbent, *opened})
        if not untried.left:
            return Proposal(reason=f"all {space.size} combinations have been tried", notes=self._notes("none"))
        rng = random.Random(f"categorical/{rollouts.seed}/{len(opened)}")  # noqa: S311 # reproducible, not a secret
        point, how = self._pick(space, known, opened, untried, rng)
        proposal = space.proposal(
            known.incumbent, point, f"{how} after {len(known.values) - 1} trials", self._notes(how)
        )
        self._open.append((canonical(dict(proposal.values)), space.values(point)))
        return proposal

    def observe(self, proposal: Proposal, outcome: Outcome) -> None:  # noqa: ARG002 # the history holds the outcome
        """Note that a proposal is no longer being tried; what came of it is read from the history."""
        key = canonical(dict(proposal.values))
        position = next((i for i, (known, _) in enumerate(self._open) if known == key), None)
        if position is not None:
            del self._open[position]

    def state_dict(self) -> dict[str, Any]:
        """What the sources gave, and the proposals still being tried."""
        found = self._found
        return {
            "found": None if found is None else {n: [encode(v) for v in values] for n, values in found.items()},
            "problems": list(self._problems),
            "open": [[key, {n: encode(v) for n, v in values.items()}] for key, values in self._open],
            "sources": [source.state_dict() for source in self.sources],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; an empty one forgets everything."""
        found = state.get("found")
        self._found = None if found is None else {n: [decode(v) for v in values] for n, values in found.items()}
        self._problems = list(state.get("problems", ()))
        self._open = [(key, {n: decode(v) for n, v in values.items()}) for key, values in state.get("open", ())]
        for source, inner in zip(self.sources, state.get("sources", ()), strict=False):
            source.load_state_dict(inner)

    def _pick(
        self, space: Space, known: Known, opened: Sequence[Point], untried: Untried, rng: random.Random
    ) -> tuple[Point, str]:
        effects = Effects(known.values, opened)
        way = rng.choice(_WAYS) if len(known.values) > self._startup else "look"
        if way == "look":
            return max(untried.drawn(rng), key=effects.worth_a_look), "a look around"
        if way == "change":
            near = [p for changes in (1, 2) for p in space.near(known.best, changes) if p in untried]
            if near:
                # chance decides ties
                return max(
                    rng.sample(near, len(near)), key=lambda p: effects.of_change(known.best, p)
                ), "a small change"
        study = _study(space, known, opened, rng.getrandbits(32))
        for _ in range(_ASKS):
            point = _ask(study, space)
            if point in untried:
                return point, "joint TPE"
        return untried.draw(rng), "a random draw"

    def _notes(self, how: str) -> dict[str, Any]:
        return {"how": how, **({"problems": list(self._problems)} if self._problems else {})}

    async def _ask_sources(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
    ) -> None:
        # candidates proposed at once wait for one answer; a lock belongs to the loop it is made under
        self._lock = self._lock or asyncio.Lock()
        async with self._lock:
            if self._found is not None:
                return
            found: dict[str, list[Any]] = {}
            rest = [p for p in parameters if p.kind in _SEARCHED_KINDS]
            for source in self.sources:
                mine = [p for p in rest if source.handles(p)]
                rest = [p for p in rest if p not in mine]
                if mine:
                    for name, values in (await self._asked(source, mine, rollouts, history)).items():
                        found.setdefault(name, []).extend(values)
            self._found = found
        self._lock = None

    async def _asked(
        self, source: Optimizer, mine: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
    ) -> dict[str, list[Any]]:
        """What one source gives, without values that their parameters do not allow."""
        try:
            if isinstance(source, Family):
                given = await source.family(mine, rollouts, history)
            else:
                proposal = await source.propose(mine, rollouts, history)
                given = {name: [value] for name, value in proposal.values.items()}
        except ReplyError as error:
            self._problems.append(f"{type(source).__name__}: {error}")
            return {}
        allowed: dict[str, list[Any]] = {}
        for parameter in mine:
            for value in given.get(parameter.name, ()):
                try:
                    allowed.setdefault(parameter.name, []).append(parameter.check(value))
                except ValueError as error:
                    self._problems.append(f"{type(source).__name__}: {error}")
        return allowed


def _study(space: Space, known: Known, opened: Sequence[Point], seed: int) -> optuna.Study:
    """An Optuna study that holds these trials; what is still running counts as bad, so that TPE looks elsewhere."""
    import optuna

    distributions = _distributions(space)
    worst = min(known.values.values())
    told = [*known.values.items(), *((point, worst) for point in opened)]
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=1, n_ei_candidates=64)
        study = optuna.create_study(direction="maximize", sampler=sampler)
    finally:
        optuna.logging.set_verbosity(verbosity)
    study.add_trials([
        optuna.trial.create_trial(params=_params(point), distributions=distributions, value=worth)
        for point, worth in told
    ])  # fmt: skip
    return study


def _distributions(space: Space) -> dict[str, Any]:
    # positions, not values: Optuna's choices must be plain
    from optuna.distributions import CategoricalDistribution

    return {str(i): CategoricalDistribution(tuple(range(len(options)))) for i, options in enumerate(space.options)}


def _params(point: Point) -> dict[str, int]:
    return {str(i): position for i, position in enumerate(point)}


def _ask(study: optuna.Study, space: Space) -> Point:
    import optuna

    trial = study.ask(_distributions(space))
    study.tell(trial, state=optuna.trial.TrialState.FAIL)  # not learned from; the next ask draws anew
    return tuple(cast("int", trial.params[str(i)]) for i in range(len(space.names)))
