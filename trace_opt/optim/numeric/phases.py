"""Phases of methods that are written on one flat vector: run, committed, resumed, kept by the values they led to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from trace_opt.core.rollout import Rollouts
from trace_opt.errors import BudgetError, TraceError
from trace_opt.optim.base import Optimizer, Outcome, Proposal
from trace_opt.optim.numeric.kept import SHRINK, PhaseStates
from trace_opt.optim.numeric.live import Flat, Point, Workflow, flat_of
from trace_opt.optim.numeric.solvers import norm

if TYPE_CHECKING:
    import torch

    from trace_opt.core.parameter import Parameter

_FARTHEST = 1e9
_MOST_HALVINGS = 10


class Work(Protocol):
    """A method as a phase drives it. What it keeps from step to step is its own business.

    Attributes:
        names: The losses it needs.
        scale: What its step sizes are multiplied by; None where it has none.
        iterate: The dataclass that says where it stands.
    """

    names: Sequence[str]
    scale: float | None
    iterate: ClassVar[Callable[..., Any]]

    def begin(self, start: torch.Tensor) -> Generator[torch.Tensor, Point, Any]:
        """Where it stands before its first step."""
        ...

    def step(self, now: Any, seed: int) -> Generator[torch.Tensor, Point, Any]:
        """Where it stands a step later."""
        ...

    def dump(self, now: Any) -> dict[str, Any]:
        """Where it stands as JSON-able data and tensors; a `point` can be asked for again."""
        return {f.name: getattr(now, f.name) for f in fields(now) if f.name != "point"}

    def load(self, data: Mapping[str, Any]) -> Any:
        """What `dump` gave."""
        return self.iterate(**data)

    def ended(self, now: Any) -> str:
        """Why no step is left to take, or ""."""
        ...

    def vector(self, now: Any) -> torch.Tensor:
        """The values it stands for."""
        ...

    def notes(self, now: Any) -> dict[str, Any]:
        """What is worth keeping of it, JSON-able."""
        ...


class Phases(Optimizer):
    """An optimizer whose proposals are phases of a `Work`.

    A phase that is dropped leaves values and state as they were, and the next one from there is tried at half the step
    sizes, as is one that diverges. A candidate's phase goes on from the state of the phase that led to it.

    Args:
        steps: Steps of a phase.
        checkpoint_every: Steps after which a phase under way is committed.

    Raises:
        ValueError: one of them is no whole number above 0.
    """

    wants_rollouts = False  # it runs points of its own

    def __init__(self, steps: int, checkpoint_every: int) -> None:
        super().__init__()
        for name, value in (("steps", steps), ("checkpoint_every", checkpoint_every)):
            if isinstance(value, bool) or value < 1:
                raise ValueError(f"{type(self).__name__} got {name}={value!r}; give a whole number of at least 1")
        self.steps, self.checkpoint_every = steps, checkpoint_every
        self._kept = PhaseStates()

    @abstractmethod
    def handles(self, parameter: Parameter[Any]) -> bool:
        """See `Optimizer.handles`."""

    async def _phase(self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, work: Work) -> Proposal:
        """A phase over all training examples."""
        name = type(self).__name__
        if rollouts.by_hand:
            raise TraceError(
                f"{name}.step() was called, but it has to run the workflow at points of its own; pass it to optimize("
                "optimizers=[...]) instead"
            )
        key = self._kept.key({p.name: p.value for p in parameters})
        dropped = self._kept.dropped(key)
        if work.scale is not None:
            work.scale = SHRINK**dropped
        elif dropped:
            return Proposal(reason=f"the phase of {name} from here was dropped, and would be the same again")
        phase = _Phase(self, flat_of(parameters), rollouts, work)
        now = await phase.run(self._kept.get(key))
        if phase.diverged:
            said = "give smaller step sizes" if work.scale is not None else "start elsewhere"
            return Proposal(
                reason=f"{name} diverged in step {phase.done + 1} of a phase, whatever its step sizes; {said}"
            )
        values = phase.flat.split(work.vector(now))
        made = self._kept.key(values)
        said = f"{phase.done} steps of {name}"
        said += f", {phase.points.failed} training rollouts failed" if phase.points.failed else ""
        said += f", at {work.scale:.3g} of its step sizes" if phase.halvings else ""
        said += f"; {phase.ended}" if phase.ended else ""
        if made == key:
            return Proposal(reason=f"{said}; nothing changed")
        notes: dict[str, Any] = {"steps": phase.done, "failed": phase.points.failed, "scale": work.scale}
        notes |= work.notes(now) | self._kept.wait(key, made, work.dump(now))
        return Proposal(values, said, notes, phase=True)

    def rollouts_at_most(self, examples: int, minibatch: int, *, batches: int | None = None) -> int | None:  # noqa: ARG002
        """None: how many points a step takes shows on the way."""
        return None

    def observe(self, proposal: Proposal, outcome: Outcome) -> None:
        """Keep the state of a phase that is built on; forget that of one that was dropped."""
        self._kept.observe(proposal, outcome)

    def state_dict(self) -> dict[str, Any]:
        """The state of each phase that was built on or waits for its verdict."""
        return self._kept.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._kept.load_state_dict(state)


class _Phase:
    """A phase under way.

    Attributes:
        done: Steps of it that are done.
        ended: Why it ended before all its steps were done, in words; "" else.
        halvings: How often it started over.
        diverged: Whether a step led to values that are not finite, or a billion times as large as at the start.
    """

    def __init__(self, of: Phases, flat: Flat, rollouts: Rollouts, work: Work) -> None:
        self.flat = flat
        self.points = Workflow(rollouts, flat, work.names, type(of).__name__)
        self._of, self._rollouts, self._work = of, rollouts, work
        self.done = 0
        self.ended = ""
        self.diverged = False
        self.halvings = 0

    async def run(self, kept: Mapping[str, Any] | None) -> Any:
        """Take all steps, from what was kept of the candidate or of this very phase; where the last one ended.

        Where it diverges, it starts over at half the step sizes.
        """
        saved, work = self._rollouts.saved, self._work
        if saved is not None:
            self.done, work.scale = saved["done"], saved["scale"]
            self.halvings = saved["halvings"]
        now = await self._steps(kept if saved is None else saved["now"])
        while self.diverged and work.scale is not None and self.halvings < _MOST_HALVINGS:
            work.scale *= SHRINK
            self.halvings += 1
            self.done, self.diverged = 0, False
            now = await self._steps(kept)
        return now

    async def _steps(self, kept: Mapping[str, Any] | None) -> Any:
        work = self._work
        now = await self._answered(work.begin(self.flat.start())) if kept is None else work.load(kept)
        limit = _FARTHEST * (1.0 + norm(self.flat.start()))  # a guide refuses what overflows, so it ends well before
        while self.done < self._of.steps and not work.ended(now):
            try:
                now = await self._answered(work.step(now, self._rollouts.seed))
            except BudgetError as error:
                if not self.done:
                    raise
                self.ended = f"the budget ended it ({error})"
                return now
            if not norm(work.vector(now)) <= limit:
                self.diverged = True
                return now
            self.done += 1
            if self.done % self._of.checkpoint_every == 0 and self.done < self._of.steps:
                await self._rollouts.checkpoint(self._state(now))
        self.ended = work.ended(now)
        return now

    def _state(self, now: Any) -> dict[str, Any]:
        work = self._work
        return {"done": self.done, "scale": work.scale, "halvings": self.halvings, "now": work.dump(now)}

    async def _answered(self, asks: Generator[torch.Tensor, Point, Any]) -> Any:
        examples = list(self._rollouts.train)
        try:
            wanted = next(asks)
            while True:
                wanted = asks.send(await self.points.at(wanted, examples))
        except StopIteration as end:
            return end.value
