"""One trial of a refiner: many updates of a policy from rated reflections, on weights that nobody else uses meanwhile.

Estimators are plain synchronous code that draws where it likes, rollouts are asynchronous: an estimator runs in a thread
and its draws call back into the event loop. Where a phase stands is committed between updates, and a resumed one goes on
from there bit for bit: tasks, rollouts and draws come from seeds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from trace_opt.core.adapter import Adapter
from trace_opt.core.numbers import is_whole
from trace_opt.core.rollout import Rollout, Rollouts
from trace_opt.errors import BudgetError, TraceError
from trace_opt.refine.calling import Calls, released
from trace_opt.refine.earning import Earned, Reward, Silent, batch_of, earned, rated_of
from trace_opt.refine.estimators.named import Recipe, is_relative
from trace_opt.refine.guards import PolicyGuards, Watch
from trace_opt.refine.outcomes import is_episode

if TYPE_CHECKING:
    from trace_opt.refine.batch import Batch
    from trace_opt.refine.estimators.base import Estimator, Sample, Update
    from trace_opt.refine.local import LocalPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Refining:
    """How a `Refiner` trains: its options, checked when it is made."""

    recipe: Recipe
    updates: int
    tasks: int
    entropy: float
    reward: Reward
    guards: PolicyGuards
    patience: int
    checkpoint_every: int

    def __post_init__(self) -> None:
        for name in ("updates", "tasks", "patience", "checkpoint_every"):
            value = getattr(self, name)
            if not is_whole(value):
                raise ValueError(f"Refiner got {name}={value!r}; give a whole number of at least 1")
        if not 0 <= self.entropy < math.inf:
            raise ValueError(f"Refiner got entropy={self.entropy!r}; give a number of 0 or more")
        if not isinstance(self.guards, PolicyGuards):  # pyright: ignore[reportUnnecessaryIsInstance] # users pass anything
            raise ValueError(  # noqa: TRY004 # an option refused, like any other
                f"Refiner got guards={self.guards!r:.80}; give PolicyGuards(...), or None for its defaults"
            )
        if self.reward is not None and self.reward != "exact" and not callable(self.reward):
            raise ValueError(f"Refiner got reward={self.reward!r}; give a function of completions, 'exact' or None")


@dataclass(slots=True)
class Progress:
    """How far an adapter has been trained, over all phases that led to it.

    Attributes:
        updates: Updates made.
        epoch, position: The epoch of tasks under way, and how many of it have been seen.
        draws: How often was drawn.
        price: Of a nat of divergence; None for the first.
        estimator: Its state, or None before the first update.
    """

    updates: int = 0
    epoch: int = 0
    position: int = 0
    draws: int = 0
    price: float | None = None
    estimator: dict[str, Any] | None = None

    def dump(self) -> dict[str, Any]:
        """As data, tensors included."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Progress:
        """What `dump` gave."""
        return cls(**copy.deepcopy(dict(data)))


@dataclass(slots=True)
class Curve:
    """How a phase went, update by update.

    Attributes:
        rewards: Mean reward of the completions, before guards.
        k1, k3: Estimates of the divergence from the base, in nats a token; None where nothing was learned.
        silent: Share of the prompts whose completions all earned the same.
    """

    rewards: list[float] = field(default_factory=list[float])
    k1: list[float | None] = field(default_factory=list["float | None"])
    k3: list[float | None] = field(default_factory=list["float | None"])
    silent: list[float] = field(default_factory=list[float])

    def dump(self) -> dict[str, Any]:
        """As data."""
        return {name: list(getattr(self, name)) for name in self.__slots__}


class Phase:
    """A phase under way.

    Args:
        refining: The options.
        policy: Its weights move; they are put back when the phase ends.
        rollouts: Runs the workflow, keeps checkpoints.
        progress: Where the candidate it starts from stands.
        scale: What the learning rate is multiplied by.

    Attributes:
        done: Updates of this phase that are done, those without anything to learn included.
        learned: Updates that moved the weights.
        failed: Training rollouts that failed.
        failure: What the first of those raised.
        ended: Why it ended before all its updates were done, in words; "" else.
    """

    def __init__(
        self, refining: Refining, policy: LocalPolicy, rollouts: Rollouts, progress: Progress, scale: float = 1.0
    ) -> None:
        saved = rollouts.saved
        self.refining, self.policy = refining, policy
        self.progress = progress if saved is None else Progress.load(saved["progress"])
        self.done: int = 0 if saved is None else saved["done"]
        self.learned: int = 0 if saved is None else saved["learned"]
        self.failed: int = 0 if saved is None else saved["failed"]
        self.failure: str = "" if saved is None else saved["failure"]
        self.curve = Curve() if saved is None else Curve(**{k: list(v) for k, v in saved["curve"].items()})
        self.watch = Watch() if saved is None else Watch.load(saved["watch"])
        self.ended = ""
        self._idle: int = 0 if saved is None else saved["idle"]
        self._rollouts = rollouts
        self._scale = scale
        self._start: Adapter = policy.adapter.value
        self._now = self._start if saved is None else Adapter(saved["adapter"])
        self._lock = policy.lock
        self._groups: list[Earned] = []
        self._calls = Calls()

    async def run(self) -> tuple[Adapter, dict[str, Any], list[str]]:
        """Make all updates.

        Returns:
            The adapter where the phase ended, what the guards found, and a sentence for each that objects.

        Raises:
            BudgetError: the budget does not cover a single update.
            TraceError: the workflow gives no rated completions.
        """
        policy, refining = self.policy, self.refining
        try:
            with self._lock:
                policy.load(self._now)
                estimator = refining.recipe(policy, self._scale)
                if self.progress.estimator is not None:
                    estimator.load_state_dict(self.progress.estimator)
            if self.progress.price is None:
                self.progress.price = estimator.kl
            tasks = self._minibatches()
            while self.done < refining.updates and not self.ended:
                try:
                    await self._update(estimator, tasks)
                except BudgetError as error:
                    if not self.learned:
                        raise
                    self.ended = f"the budget ended it ({error})"
                    break
                if not self.ended and self.done % refining.checkpoint_every == 0 and self.done < refining.updates:
                    self.progress.estimator = estimator.state_dict()
                    await self._rollouts.checkpoint(self._state())
            self.progress.estimator = estimator.state_dict()
            found, named = await self._calls.in_thread(self._verdict)
            return self._now, found, named
        finally:
            with self._lock:
                policy.load(self._start)

    def _verdict(self) -> tuple[dict[str, Any], list[str]]:
        with self._lock:
            self.policy.load(self._start)
            before = self.watch.openings(self.policy)
            self.policy.load(self._now)
            return self.watch.verdict(self.refining.guards, self.policy, before)

    async def _update(self, estimator: Estimator, tasks: Iterator[list[Any]]) -> None:
        """Draw, and learn from it where there is anything to learn."""
        guards, progress = self.refining.guards, self.progress
        if guards.kl is not None and guards.beyond == "price":
            estimator.kl = progress.price or 0.0
        self._groups = []
        sample = await self._calls.in_thread(lambda: self._sampled(estimator, tasks))
        rewards = [reward for group in self._groups for reward in group.raw]
        self.curve.rewards.append(sum(rewards) / max(1, len(rewards)))
        self.curve.silent.append(sum(g.is_silent for g in self._groups) / max(1, len(self._groups)))
        if sample is not None:
            self.watch.diverged(sample.batch)
            if self._is_beyond():
                self.ended = f"it was {self.watch.k1:.2f} nats a token from the base, beyond {guards.kl:.2f}"
                return
            await self._calls.in_thread(lambda: self._learned(estimator, sample))
            self._idle = 0
            self.learned += 1
        else:
            self._idle += 1
            if self._idle >= self.refining.patience:
                self.ended = f"for {self._idle} updates no completion was better than others of its prompt"
        self.curve.k1.append(None if sample is None else self.watch.k1)
        self.curve.k3.append(None if sample is None else self.watch.k3)
        progress.price = guards.price(progress.price or 0.0, self.watch.k1, self.refining.recipe.kl)
        progress.updates += 1
        self.done += 1

    def _is_beyond(self) -> bool:
        guards, seen = self.refining.guards, self.watch.k1
        return guards.kl is not None and guards.beyond == "stop" and seen is not None and seen > guards.kl

    # -- in the estimator's thread -------------------------------------------------------------------------------------

    def _sampled(self, estimator: Estimator, tasks: Iterator[list[Any]]) -> Sample | None:
        """What an update is made of, or None where nothing can be learned from what was drawn."""
        with self._lock:
            self.policy.load(self._now)
            try:
                return estimator.sample(lambda: self._draw(next(tasks), relative=is_relative(estimator)))
            except Silent:
                return None

    def _learned(self, estimator: Estimator, sample: Sample) -> Update:
        with self._lock:
            self.policy.load(self._now)
            said = estimator.update(sample)
            self._now = self.policy.dump()
        return said

    def _draw(self, examples: list[Any], *, relative: bool) -> Batch:
        """Reflections of the policy as it stands, rated by rollouts."""
        adapter = self.policy.dump()
        values = {self.policy.adapter.name: adapter}
        self.progress.draws += 1
        # a dropped phase's successor is to see other attempts than it did
        repeat = 1 + self._rollouts.seed % 200_003 * 10_000 + self.progress.draws
        with released(self._lock):
            found = self._calls.from_thread(
                lambda: self._rollouts.run(values, examples, grad=True, repeat=repeat)  # rollouts load what they need
            )
        self.progress.position += len(examples)
        self._look(found)
        refining = self.refining
        groups = earned(rated_of(found), self.watch, refining.guards, reward=refining.reward, entropy=refining.entropy)
        self._groups += groups
        self.policy.load(adapter)  # others may have used the model meanwhile, a reward model among them
        return batch_of(self.policy, groups, relative=relative)

    def _look(self, found: Sequence[Rollout]) -> None:
        """Count those that failed.

        Raises:
            TraceError: none of the others asked this policy for its reflections.
        """
        errors = [rollout.error for rollout in found if rollout.error is not None]
        self.failed += len(errors)
        self.failure = self.failure or (errors[0] if errors else "")
        name = self.policy.adapter.name
        graphs = [rollout.graph for rollout in found if is_episode(rollout.output) and rollout.output["rated"]]
        if graphs and all(graph is not None and name not in graph.parameters for graph in graphs):
            raise TraceError(
                f"reflections were rated that the policy with adapter {name!r} did not write; give the refiner the policy that "
                "Episodes(...) has as its reflector"
            )

    # -- tasks -----------------------------------------------------------------------------------------------------------

    def _minibatches(self) -> Iterator[list[Any]]:
        """Tasks from where the candidate's last epoch stands, one epoch after another."""
        progress = self.progress
        while True:
            fresh = islice(self._rollouts.epoch(progress.epoch), progress.position, None)
            while batch := list(islice(fresh, self.refining.tasks)):
                yield batch
            progress.epoch += 1
            progress.position = 0

    def _state(self) -> dict[str, Any]:
        return {
            "done": self.done, "learned": self.learned, "failed": self.failed, "failure": self.failure, "idle": self._idle,
            "adapter": self._now.data, "progress": self.progress.dump(), "curve": self.curve.dump(),
            "watch": self.watch.dump(),
        }  # fmt: skip
