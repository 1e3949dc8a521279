"""The refiner: an optimizer whose parameter is the adapter of a model that writes reflections.

A proposal is a phase: many updates by policy gradient on what reflections were worth, tested once at its end like any
proposal. Source: Retroformer, arXiv 2308.02151; here the rating of a reflection is the mean change of return over attempts
with it against attempts without, on the same seeds, and training is on the policy's own reflections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trace_opt.core.rollout import Rollouts
from trace_opt.errors import TraceError
from trace_opt.optim.base import Optimizer, Outcome, Proposal, Trial, rollouts_of
from trace_opt.optim.numeric.kept import SHRINK, PhaseStates
from trace_opt.refine.earning import Reward, Silent, batch_of, earned, rated_of
from trace_opt.refine.estimators.base import Sample
from trace_opt.refine.estimators.named import Factory, Recipe, draws_elsewhere, is_relative
from trace_opt.refine.guards import PolicyGuards, Watch
from trace_opt.refine.phase import Phase, Progress, Refining

if TYPE_CHECKING:
    from trace_opt.core.adapter import Adapter
    from trace_opt.core.parameter import Parameter
    from trace_opt.optim.proposer import Proposer
    from trace_opt.refine.estimators.base import Estimator
    from trace_opt.refine.local import LocalPolicy
    from trace_opt.refine.over import Over

_KEPT = 2  # states of phases, each about three adapters large


class Refiner(Optimizer):
    """Trains the adapter of a policy whose completions a workflow of `Episodes` rates.

    A phase that is dropped leaves values and the estimator's state as they were, and the next one from there is tried at
    half the learning rate. It is kept unless the search finds it worse; one that ends with a guard in force, whose reason
    names the guard, or that was trained for a reward of its own has to be found better.

    By hand: run the workflow in a training recording (`record(training=True)`), then `backward` and `step`; a step is one
    update.

    Args:
        policy: Writes; its `adapter` is what changes.
        estimator: A name ("grpo", "unbiased-grpo", "ppo", "reinforce", "normalised-reinforce", "n-pg-igt", "harpg",
            "n-harpg"), a class, or a function `(policy, *, lr, kl, ...) -> Estimator`.
        updates: Updates of a phase.
        tasks: Tasks of an update; HARPG takes twice as many.
        lr: Learning rate, or where steps are normalised the length of the first; by default one that suits the estimator.
        kl: Price of a nat of divergence from the base model, token by token.
        entropy: What a nat of a completion's surprise earns.
        reward: What completions earn in the place of the change of return: a function `(completions) -> rewards`, such as
            a reward model, or "exact": 1 for one of the labels. `Episodes(pairs=0)` then saves the attempts that tell.
        guards: What the policy is held to.
        patience: Updates in a row without anything to learn from after which a phase ends.
        checkpoint_every: Updates after which a phase under way is committed.
        **options: Those of the estimator.

    Raises:
        ValueError: the policy is none, or an option is unknown or makes no sense.
    """

    wants_rollouts = False  # it draws tasks of its own

    def __init__(
        self, policy: LocalPolicy, estimator: str | Factory = "grpo", *, updates: int = 24, tasks: int = 2,
        lr: float | None = None, kl: float = 0.02, entropy: float = 0.0, reward: Reward = None,
        guards: PolicyGuards | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if not all(hasattr(policy, name) for name in ("adapter", "sample", "batch", "load", "dump")):
            raise ValueError(
                f"Refiner got policy={policy!r:.80}, which has no adapter to train; give a policy such as TrainablePolicy()"
            )
        self.policy = policy
        patience: int = options.pop("patience", 3)
        every: int = options.pop("checkpoint_every", 1)
        self.refining = Refining(
            recipe=Recipe.of(estimator, lr, kl, options), updates=updates, tasks=tasks, entropy=entropy, reward=reward,
            guards=PolicyGuards() if guards is None else guards, patience=patience, checkpoint_every=every,
        )  # fmt: skip
        self._kept = PhaseStates(_KEPT)
        self._hand: Estimator | None = None

    @staticmethod
    def over(optimizer: Proposer, **options: Any) -> Over:
        """An optimizer that asks a trainable local model, and trains it on what its replies were worth.

        Args:
            optimizer: Such as `OptoPrime(policy)`.
            **options: Those of `Over`.
        """
        from trace_opt.refine.over import Over

        return Over(optimizer, **options)

    def handles(self, parameter: Parameter[Any]) -> bool:
        """The adapter of its policy."""
        return parameter is self.policy.adapter

    async def propose(
        self,
        parameters: Sequence[Parameter[Any]],
        rollouts: Rollouts,
        history: Sequence[Trial],  # noqa: ARG002
    ) -> Proposal:
        """A phase, or by hand one update.

        Raises:
            TraceError: the workflow's outputs hold no rated completions.
            BudgetError: the budget does not cover one update.
        """
        if not parameters:
            return Proposal(reason="there is no adapter to train")
        if rollouts.by_hand:
            return self._stepped(rollouts)
        name, refining = self.policy.adapter.name, self.refining
        base: Adapter = self.policy.adapter.value
        key = self._kept.key({name: base})
        kept = self._kept.get(key)
        progress = Progress() if kept is None else Progress.load(kept)
        phase = Phase(refining, self.policy, rollouts, progress, SHRINK ** self._kept.dropped(key))
        adapter, found, named = await phase.run()
        notes: dict[str, Any] = {
            "updates": phase.done, "learned": phase.learned, "total": phase.progress.updates, "failed": phase.failed,
            "curve": phase.curve.dump(), "guards": found, "objections": named,
        }  # fmt: skip
        reason = _said(phase, named)
        if not phase.learned or adapter == base:
            return Proposal(reason=f"{reason}; nothing changed", notes=notes)
        made = self._kept.key({name: adapter})
        notes |= self._kept.wait(key, made, phase.progress.dump())
        # what was trained for something else than the score has to show that it is worth it there
        return Proposal({name: adapter}, reason, notes, phase=not named and refining.reward is None)

    def rollouts_at_most(self, examples: int, minibatch: int, *, batches: int | None = None) -> int | None:  # noqa: ARG002
        """The tasks of all updates of a phase; None where a function makes the estimator."""
        draws, refining = self.refining.recipe.draws, self.refining
        return None if draws is None else rollouts_of(refining.updates * draws, refining.tasks, batches or examples)

    def observe(self, proposal: Proposal, outcome: Outcome) -> None:
        """Keep the estimator's state of a phase that is built on; forget that of one that was dropped."""
        self._kept.observe(proposal, outcome)

    # -- by hand -------------------------------------------------------------------------------------------------------

    def _stepped(self, rollouts: Rollouts) -> Proposal:
        """One update from the rated completions collected.

        Raises:
            TraceError: reflections were not rated, or the estimator draws at points of its own.
        """
        policy, refining = self.policy, self.refining
        rated = rated_of(rollouts)
        if not rated:
            return Proposal(reason="every task was solved at once; nothing changed")
        with policy.lock:
            before = policy.adapter.value
            policy.load(before)
            if self._hand is None:
                self._hand = refining.recipe(policy)
            estimator = self._hand
            if draws_elsewhere(estimator):
                raise TraceError(
                    f"Refiner.step() was called, but {refining.recipe.name} draws at weights of its own; pass the refiner "
                    "to optimize(optimizers=[...]), or take another estimator"
                )
            watch = Watch()
            groups = earned(rated, watch, refining.guards, reward=refining.reward, entropy=refining.entropy)
            try:
                batch = batch_of(policy, groups, relative=is_relative(estimator))
            except Silent:
                return Proposal(reason="no completion was better than others of its prompt; nothing changed")
            said = estimator.update(Sample(batch))
            watch.diverged(batch)
            adapter = policy.dump()
        notes = {"reward": said.mean, "norm": said.norm, "k1": watch.k1, "k3": watch.k3}
        return Proposal({policy.adapter.name: adapter}, f"an update of {refining.recipe.name}", notes)

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The estimator's state of each phase that was built on or waits for its verdict."""
        return self._kept.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._kept.load_state_dict(state)


def _said(phase: Phase, named: Sequence[str]) -> str:
    parts = [f"{phase.done} updates of {phase.refining.recipe.name}"]
    if phase.learned < phase.done:
        parts[0] += f", {phase.done - phase.learned} of them with nothing to learn from"
    if phase.failed:
        parts[0] += f", {phase.failed} training rollouts failed, the first with {phase.failure:.200}"
    if phase.ended:
        parts.append(phase.ended)
    parts += [f"guard {said}" for said in named]
    return "; ".join(parts)
