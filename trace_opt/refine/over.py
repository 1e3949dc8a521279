"""An optimizer that asks a local model, and trains the model on what its replies were worth.

Several replies to one problem text are drawn and each is run on the examples that the text shows: the change of score says
how good a reply was, and an unusable one is worse than any. The best is proposed, and the model learns from all of them.
What it has learned is the optimizer's state; no parameter of the workflow holds it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.adapter import Adapter
from trace_opt.core.codec import content_hash
from trace_opt.core.rollout import Rollout, Rollouts
from trace_opt.errors import LLMError, ReplyError, TraceError
from trace_opt.llm.base import LLM, Reply
from trace_opt.optim.base import Optimizer, Outcome, Proposal, Trial
from trace_opt.optim.proposer import Proposer
from trace_opt.refine.earning import Earned, Silent, batch_of
from trace_opt.refine.estimators.base import Sample
from trace_opt.refine.estimators.named import Factory, Recipe, draws_elsewhere
from trace_opt.refine.guards import Watch
from trace_opt.refine.local import Completions

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.llm.base import Request
    from trace_opt.refine.local import LocalPolicy

_UNUSABLE = -2.0


class Over(Optimizer):
    """Made by `Refiner.over(OptoPrime(policy))`.

    With several completions it rates them by rollouts of its own; with one it learns from what the search finds out about
    the value proposed, for which an estimator with a running baseline is needed: `estimator="reinforce",
    baseline="running"`.

    Args:
        optimizer: Asks a trainable local model: `OptoPrime(policy)`, `OPRO(policy)`.
        estimator: As for `Refiner`; one that samples at the weights that it steps from.
        completions: Replies drawn for one problem text.
        tasks: Problem texts, with replies of which some were better than others, that an update is made of.
        lr, kl: As for `Refiner`.
        temperature: At which replies are drawn.
        max_tokens: Length of a reply at most.
        prefill: Text with which every reply begins.
        **options: Those of the estimator.

    Raises:
        ValueError: the optimizer asks no trainable model, or an option makes no sense.

    Attributes:
        updates: How many were made.
        curve: Of each proposal the shares of usable replies and of those that improved the score, the mean reward.
    """

    def __init__(
        self, optimizer: Proposer, *, estimator: str | Factory = "grpo", completions: int = 8, tasks: int = 1,
        lr: float | None = None, kl: float = 0.02, temperature: float = 1.0, max_tokens: int = 128, prefill: str = "",
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe = Recipe.of(estimator, lr, kl, options)
        for name, value in (("completions", completions), ("tasks", tasks), ("max_tokens", max_tokens)):
            if isinstance(value, bool) or value < 1:
                raise ValueError(f"Refiner.over() got {name}={value!r}; give a whole number of at least 1")
        if completions == 1 and self.recipe.is_relative:
            raise ValueError(
                f"{self.recipe.name} compares replies to one problem text, of which completions=1 draws one; draw more, or "
                "take estimator='reinforce' with baseline='running'"
            )
        self.optimizer = optimizer
        self.policy = _policy_of(optimizer)
        self.completions, self.tasks = completions, tasks
        self.updates = 0
        self.curve: list[dict[str, float]] = []
        self._lock = self.policy.lock
        self._learned: Adapter | None = None
        self._estimator: dict[str, Any] | None = None
        self._groups: list[Earned] = []
        self._drawn: dict[str, _Drawn] = {}
        self._scribe = _Scribe(self.policy, self._lock, temperature, max_tokens, prefill)
        optimizer._llm = self._scribe

    @property
    def adapter(self) -> Adapter:
        """What the model has learned: that of its policy, until it has learned more."""
        return self.policy.adapter.value if self._learned is None else self._learned

    @property
    def sources(self) -> list[Optimizer]:
        """The optimizer that it trains."""
        return [self.optimizer]

    def handles(self, parameter: Parameter[Any]) -> bool:
        """What the optimizer handles."""
        return self.optimizer.handles(parameter)

    def rollouts_at_most(self, examples: int, minibatch: int, *, batches: int | None = None) -> int | None:
        """Those of every reply on the minibatch, and what the optimizer runs itself for each."""
        inner = self.optimizer.rollouts_at_most(examples, minibatch, batches=batches)
        tried = minibatch if self.completions > 1 else 0
        return None if inner is None else self.completions * (inner + tried)

    async def propose(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
    ) -> Proposal:
        """The best of several replies, all of which will be learned from.

        Raises:
            ReplyError: no reply changes a value.
            BudgetError: the budget does not cover running them.
            TraceError: by hand, with several completions.
            LLMError, ValueError: as the optimizer raises them.
        """
        if rollouts.by_hand and self.completions > 1:
            raise TraceError(
                "Refiner.over(...).step() was called, but several replies have to be run to be compared; pass it to "
                "optimize(optimizers=[...]), or draw one with completions=1"
            )
        self._scribe.begin(self.adapter, self.completions, rollouts.seed)
        proposals: list[Proposal | None] = []
        why = ""
        for turn in range(self.completions):
            self._scribe.turn = turn
            try:
                proposals.append(await self.optimizer.propose(parameters, rollouts, history))
            except ReplyError as error:
                proposals.append(None)
                why = str(error)
        drawn = self._scribe.end()
        if drawn is None:  # nothing was asked
            return proposals[0] or Proposal()
        key = str(rollouts.seed)
        proposal, rewards = await self._best(parameters, rollouts, proposals)
        # weights move when outcomes are told and not before, so that proposals of one step are independent of each other
        self._drawn[key] = _Drawn(drawn, rewards)
        if proposal is None and rollouts.by_hand and proposals[0] is not None:
            return proposals[0]
        if proposal is None:  # an error is told to `observe` too, where a search would not tell of nothing proposed
            said = f"; of the last that could not be used it was said: {why}" if why else ""
            raise ReplyError(f"none of {self.completions} replies changes a value{said}")
        return proposal if rewards is not None else replace(proposal, notes={**proposal.notes, "reply": key})

    async def _best(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, proposals: Sequence[Proposal | None]
    ) -> tuple[Proposal | None, tuple[float, ...] | None]:
        """The best of the proposals, and what each earned; None where the search has yet to find out."""
        helpful = [(i, made) for i, made in enumerate(proposals) if made is not None and made.values]
        if self.completions == 1 and helpful:
            return helpful[0][1], None
        gains: list[float | None] = [None if made is None else 0.0 for made in proposals]
        if helpful:
            gains = await _gains(parameters, rollouts, proposals)
        rewards = tuple(standing(gains))
        if not helpful:
            return None, rewards
        place, best = max(helpful, key=lambda one: gains[one[0]] or 0.0)
        known = [gain for gain in gains if gain is not None]
        better = sum(gain > 0 for gain in known)
        notes = {"gain": gains[place], "replies": len(gains), "usable": len(known), "better": better}
        return replace(best, notes={**best.notes, **notes}), rewards

    def observe(self, proposal: Proposal, outcome: Outcome) -> None:
        """Learn from the replies rated since the last time, and from a single one by what came of it."""
        self.optimizer.observe(proposal, outcome)
        own = self._drawn.pop(proposal.notes.get("reply", ""), None)
        for key in sorted(key for key, drawn in self._drawn.items() if drawn.rewards is not None):
            drawn = self._drawn.pop(key)
            self._learn(drawn.completions, drawn.rewards or ())
        if own is not None and outcome.before is not None and outcome.after is not None:
            reward = float(outcome.after > outcome.before) - float(outcome.after < outcome.before)
            self._learn(own.completions, (reward,))

    def _learn(self, completions: Completions, rewards: tuple[float, ...]) -> None:
        """Make an update, once enough problem texts have replies to learn from."""
        n = len(rewards)
        usable, better = sum(r > _UNUSABLE for r in rewards), sum(r > 0 for r in rewards)
        self.curve.append({"usable": usable / n, "better": better / n, "reward": math.fsum(rewards) / n})
        group = Earned(completions, rewards, rewards)
        if not (self.recipe.is_relative and group.is_silent):
            self._groups.append(group)
        if len(self._groups) < self.tasks:
            return
        policy = self.policy
        with self._lock:
            policy.load(self.adapter)
            estimator = self.recipe(policy)
            if draws_elsewhere(estimator):
                raise TraceError(
                    f"Refiner.over() got {self.recipe.name}, which draws at weights of its own; take another estimator"
                )
            if self._estimator is not None:
                estimator.load_state_dict(self._estimator)
            try:
                batch = batch_of(policy, self._groups, relative=self.recipe.is_relative, alike=True)
            except Silent:
                return
            finally:
                self._groups = []
            estimator.update(Sample(batch))
            self._learned = policy.dump()
            self._estimator = estimator.state_dict()
        self.updates += 1
        watch = Watch()
        watch.diverged(batch)
        if self.curve and watch.k1 is not None and watch.k3 is not None:
            self.curve[-1] |= {"k1": watch.k1, "k3": watch.k3}

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What the model and the estimator have learned, and replies that wait to be learned from."""
        groups = [{"completions": g.completions.to_json(), "rewards": list(g.rewards)} for g in self._groups]
        return {
            "adapter": self.adapter.data, "estimator": self._estimator, "updates": self.updates, "groups": groups,
            "drawn": {key: drawn.to_json() for key, drawn in sorted(self._drawn.items())},
            "curve": [dict(row) for row in self.curve], "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._learned = Adapter(state["adapter"])
        self._estimator = state["estimator"]
        self.updates = state["updates"]
        groups = [(Completions.of_json(g["completions"]), tuple(g["rewards"])) for g in state["groups"]]
        self._groups = [Earned(completions, rewards, rewards) for completions, rewards in groups]
        self._drawn = {key: _Drawn.of_json(drawn) for key, drawn in state["drawn"].items()}
        self.curve = [dict(row) for row in state["curve"]]
        self.optimizer.load_state_dict(state["optimizer"])


def standing(gains: Sequence[float | None]) -> list[float]:
    """What replies earn, whatever the scale of the score: 1 to 2 for an improvement, 0 for none, down to -1 for a loss.

    Args:
        gains: The change of score of each; None of an unusable one, which earns -2.
    """
    known = [gain for gain in gains if gain is not None]
    most, least = max([0.0, *known]), min([0.0, *known])

    def earned(gain: float | None) -> float:
        if gain is None:
            return _UNUSABLE
        return 1 + gain / most if gain > 0 else -gain / least if gain < 0 else 0.0

    return [earned(gain) for gain in gains]


async def _gains(
    parameters: Sequence[Parameter[Any]], rollouts: Rollouts, proposals: Sequence[Proposal | None]
) -> list[float | None]:
    """The change of the mean score that each proposal makes on the minibatch; equal ones are run once.

    Raises:
        BudgetError: the budget does not cover it.
    """
    now = {parameter.name: parameter.value for parameter in parameters}
    keys = [None if made is None else content_hash({**now, **made.values}) for made in proposals]
    same = content_hash(now)
    points = {
        key: made.values for key, made in zip(keys, proposals, strict=True) if key is not None and made and key != same
    }
    found = await rollouts.run_all(list(points.values()), [rollout.example for rollout in rollouts])
    scores = {key: _scores(rows) for key, rows in zip(points, found, strict=True)}
    scores[same] = _scores(list(rollouts))
    lowest = min((s for row in scores.values() for s in row if s is not None), default=0.0)
    means = {key: math.fsum(lowest if s is None else s for s in row) / max(1, len(row)) for key, row in scores.items()}
    return [None if key is None else means[key] - means[same] for key in keys]


def _scores(rollouts: Sequence[Rollout]) -> list[float | None]:
    return [rollout.score for rollout in rollouts]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Replies that are still to be learned from.

    Attributes:
        completions: The replies.
        rewards: What each earned, or None where the search has yet to find out.
    """

    completions: Completions
    rewards: tuple[float, ...] | None

    def to_json(self) -> dict[str, Any]:
        rewards = None if self.rewards is None else list(self.rewards)
        return {"completions": self.completions.to_json(), "rewards": rewards}

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> _Drawn:
        rewards = None if data["rewards"] is None else tuple(data["rewards"])
        return cls(Completions.of_json(data["completions"]), rewards)


@dataclass(slots=True)
class _Asked:
    """Replies under way.

    Attributes:
        adapter: Who answers.
        n: How many replies are drawn.
        seed: Of the draws.
        drawn: They, once they are asked for.
        answered: The turns that have had theirs.
    """

    adapter: Adapter
    n: int
    seed: int
    drawn: Completions | None = None
    answered: set[int] = field(default_factory=set[int])


class _Scribe(LLM):
    """The model as its optimizer sees it: each turn gets one of several replies that were drawn together.

    Args:
        policy: Writes them.
        lock: Keeps its weights.
        temperature, max_tokens, prefill: See `Over`.

    Attributes:
        turn: Which of the replies is next.
    """

    local = True

    def __init__(self, policy: LocalPolicy, lock: Any, temperature: float, max_tokens: int, prefill: str) -> None:
        self.name = getattr(policy, "name", type(policy).__name__)
        self.turn = 0
        self._policy, self._lock = policy, lock
        self._temperature, self._max_tokens, self._prefill = temperature, max_tokens, prefill
        self._asked: _Asked | None = None

    def begin(self, adapter: Adapter, n: int, seed: int) -> None:
        """Be ready for n turns."""
        self.turn = 0
        self._asked = _Asked(adapter, n, seed % 2**31)

    def end(self) -> Completions | None:
        """What was drawn; None where nothing was asked."""
        asked, self._asked = self._asked, None
        return None if asked is None else asked.drawn

    async def asend(self, request: Request) -> Reply:
        """The turn's reply; what an optimizer asks beyond it is refused, so that a reply stands by itself."""
        asked = self._asked
        if asked is None:
            raise LLMError(f"{self.name!r} is being trained; ask it by the optimizer that trains it", kind="request")
        if self.turn in asked.answered:
            raise LLMError(f"{self.name!r} is asked once for each reply while it is trained", kind="request")
        if asked.drawn is None:
            asked.drawn = await asyncio.to_thread(self._draw, asked, request)
        asked.answered.add(self.turn)
        # those of one prompt are neighbours
        text, tokens = asked.drawn.texts[self.turn], asked.drawn.tokens[self.turn]
        finish = "length" if len(tokens) >= self._max_tokens else "stop"
        return Reply(text=self._prefill + text, finish=finish, model=self.name)

    def _draw(self, asked: _Asked, request: Request) -> Completions:
        prompt = list(request.messages)
        if self._prefill:
            prompt.append({"role": "assistant", "content": self._prefill})
        limit = min(self._max_tokens, request.max_tokens)
        with self._lock:
            self._policy.load(asked.adapter)
            return self._policy.sample(
                [tuple(prompt)], asked.n, max_tokens=limit, temperature=self._temperature, seed=asked.seed
            )


def _policy_of(optimizer: Proposer) -> LocalPolicy:
    """The trainable model that an optimizer asks.

    Raises:
        ValueError: it asks none.
    """
    llm: Any = getattr(optimizer, "_llm", None)
    if not isinstance(optimizer, Proposer) or not all(hasattr(llm, name) for name in ("adapter", "sample", "batch")):  # pyright: ignore[reportUnnecessaryIsInstance] # users pass anything
        raise ValueError(
            f"Refiner.over() got {optimizer!r:.60}, which asks no trainable model; give one that does, as in "
            "Refiner.over(OptoPrime(TrainablePolicy()))"
        )
    return cast("LocalPolicy", llm)
