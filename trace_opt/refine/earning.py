"""What rated completions earn, and the batch that an estimator learns from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from trace_opt.core.rollout import Rollout
from trace_opt.errors import TraceError
from trace_opt.refine.guards import PolicyGuards, Watch, exact
from trace_opt.refine.local import Completions
from trace_opt.refine.outcomes import Episode

if TYPE_CHECKING:
    from trace_opt.refine.batch import Batch
    from trace_opt.refine.local import LocalPolicy
    from trace_opt.refine.outcomes import Rated

Reward = Callable[[Completions], Sequence[float]] | Literal["exact"] | None
"""What completions earn: by None what the environment said of them, by "exact" 1 where they are one of the labels."""


@dataclass(frozen=True, slots=True)
class Earned:
    """Completions of one prompt and what they earned.

    Attributes:
        completions: The completions.
        rewards: What each counts for: guarded, and with what its entropy earns.
        raw: What each earned by itself.
    """

    completions: Completions
    rewards: tuple[float, ...]
    raw: tuple[float, ...]

    @property
    def is_silent(self) -> bool:
        """Whether all earned the same, so that none is better than another."""
        return len(set(self.rewards)) < 2


class Silent(Exception):  # noqa: N818 # no fault: there is nothing to learn from
    """No completion of what was drawn is better than another of its prompt."""


def earned(
    rated: Sequence[Rated], watch: Watch, guards: PolicyGuards, *, reward: Reward = None, entropy: float = 0.0
) -> list[Earned]:
    """What the rated completions of one update earn.

    Args:
        rated: The completions.
        watch: Takes them in.
        guards: What they are held to.
        reward: What they earn by themselves.
        entropy: What a nat of a completion's surprise earns besides.

    Raises:
        TraceError: labels are needed and missing, or nothing says what the completions were worth.
    """
    raw = [_raw(one, reward) for one in rated]
    objections = [[guards.objection(text) for text in one.completions.texts] for one in rated]
    flat = [reward for row in raw for reward in row]
    floor = iter(guards.held([said for row in objections for said in row], flat))
    found: list[Earned] = []
    for one, row, said in zip(rated, raw, objections, strict=True):
        watch.completed(one.completions, said)
        rewards = list(islice(floor, len(row)))
        if entropy:
            surprise = [-sum(each) for each in one.completions.log_probs]
            rewards = [reward + entropy * nats for reward, nats in zip(rewards, surprise, strict=True)]
        found.append(Earned(one.completions, tuple(rewards), tuple(row)))
    return found


def _raw(rated: Rated, reward: Reward) -> list[float]:
    if reward is None:
        if len(rated.gains) != len(rated.completions.texts):
            raise TraceError(
                "reflections were drawn with pairs=0, so nothing says what they were worth; give Episodes(pairs=...) of at "
                "least 1, or Refiner(reward=...)"
            )
        return list(rated.gains)
    if callable(reward):
        said, n = reward(rated.completions), len(rated.completions.texts)
        found = numbers_in(said, n)
        if found is None:
            raise TraceError(
                f"the reward of {n} completions is {said!r:.80}; let it return a list of {n} finite numbers, one for each"
            )
        return found
    if not rated.labels:
        raise TraceError("reward is 'exact', but the rated completions have no labels; give the reflector's tasks some")
    return [exact(text, rated.labels) for text in rated.completions.texts]


def numbers_in(said: Any, count: int) -> list[float] | None:
    """The rewards that a function gave, where there is a finite one for each completion: a NaN would ruin the weights.

    Args:
        said: What it gave.
        count: How many completions it was asked about.
    """
    try:
        found = [float(value) for value in said]
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def batch_of(policy: LocalPolicy, groups: Sequence[Earned], *, relative: bool, alike: bool = False) -> Batch:
    """What an estimator learns from.

    Args:
        policy: At the weights at which the completions were drawn.
        groups: What was drawn, a prompt each.
        relative: Whether those that earned the same are left out, before anything is computed of them.
        alike: Whether all may earn the same, where they are compared with what came before.

    Raises:
        Silent: nothing is left.
        ValueError: completions are to be compared with others of their prompt, of which there are none.
    """
    if relative and groups and all(len(group.rewards) < 2 for group in groups):
        raise ValueError(
            "each prompt has one completion, which leaves the estimator none to compare it with; draw at least two"
        )
    told = [group for group in groups if not group.is_silent] if relative else list(groups)
    if not told or (not alike and len({reward for group in told for reward in group.rewards}) < 2):
        raise Silent
    completions = Completions.joined([group.completions for group in told])
    return policy.batch(completions, [reward for group in told for reward in group.rewards])


def rated_of(rollouts: Sequence[Rollout]) -> list[Rated]:
    """The rated completions of training rollouts, in their order; none of those that failed or were solved at once.

    Raises:
        TraceError: an output is none of `Episodes`, or holds reflections that were not rated.
    """
    found: list[Rated] = []
    for rollout in rollouts:
        if rollout.error is not None:
            continue
        try:
            episode = Episode.of(rollout.output)
        except (TypeError, KeyError, AttributeError):
            raise TraceError(
                f"the workflow returned {rollout.output!r:.80}, which holds no rated reflections; return what a workflow "
                "of Episodes(...) returned"
            ) from None
        if len(episode.returns) > 1 and not episode.rated:
            raise TraceError(
                "an episode holds reflections that were not rated; let its reflector be the policy that is trained, and by "
                "hand run it in `with record(training=True)`"
            )
        found += episode.rated
    return found
