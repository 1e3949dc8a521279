"""Episodes: several attempts at one task, each but the first with what hindsight said of those before it.

    agent = Episodes(attempt, connect("embedded/smollm2"), guide=guide)
    optimize(agent, tasks, agent.scored, margins=agent.margins, ...)

One rollout is all attempts on one task. What an attempt does is recorded in the rollout's graph; when it fails, its part of
the graph is shown to a reflector, and what that says is handed to the next attempt. So feedback on the episode reaches the
parameters of the actor and of the reflector alike. In a training rollout several reflections are drawn at each step and
each is tried out against none, which is what a refiner learns from.

Sources: Reflexion (arXiv 2303.11366), Retroformer (arXiv 2308.02151).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trace_opt.core.feedback import Feedback, Guide
from trace_opt.core.numbers import is_whole
from trace_opt.core.parameter import Parameter
from trace_opt.core.wrapper import is_async
from trace_opt.errors import ProblemError
from trace_opt.refine.controls import Others, controls_of
from trace_opt.refine.outcomes import Episode, Rated
from trace_opt.refine.reflecting import (
    INSTRUCTION,
    Asking,
    Hindsight,
    Render,
    driven,
)
from trace_opt.refine.trying import Trying

if TYPE_CHECKING:
    from trace_opt.core.adapter import Adapter

__all__ = ["Episode", "Episodes", "Rated"]

_SOUND = "attempts without error"


@dataclass(frozen=True, slots=True, eq=False)
class Episodes:
    """A workflow whose one rollout is all attempts on one task.

    A task that is a mapping is bound by name, as a workflow's example is: an attempt gets the keys that its signature names,
    and the reflector is shown these and no others. Where its first argument is no key, it gets the whole task, and the
    reflector sees only what the attempt did, since a task may hold its own answer.

    Its output is plain data that `Episode.of` reads. An attempt that raises has failed: its return is `failed`, and the
    reflector is shown the error. Where a model could not be reached the whole rollout fails instead, for an outage says
    nothing of the attempt. Each attempt has a seed of its own, which depends on the rollout's seed and the attempt's
    number alone: what is compared with and without reflection is compared under the same chance.

    Args:
        attempt: Makes one attempt, `(task, reflection) -> output`: a function that composes ops, an op, or any other; sync
            or async. The reflection is "" the first time.
        reflector: What looks back: a language model, a policy with an adapter (`TrainablePolicy`), a function of messages,
            or None for attempts that know nothing of each other.
        guide: `(output, task) -> Feedback` of one attempt; its score is the attempt's return.
        attempts: How many there are at most.
        memory: How many of the latest reflections an attempt is handed; None hands it all.
        solved: The return from which on a task counts as solved, and is not tried again.
        failed: The return of an attempt that raised.
        tokens: Length of the reflector's prompt at most, its instruction apart.
        max_tokens: Length of a reflection at most.
        temperature: At which reflections are drawn.
        instruction: What the reflector is to do; a Parameter is tuned like any other text.
        render: Writes the reflector's prompt in place of the default (`reflecting.Hindsight`).
        completions: How many reflections a training rollout draws at each step.
        pairs: How many attempts with each of them, and without, tell what it is worth; 0 where a reward does
            (`Refiner(reward=...)`), for none is then paid for.
        labels: `(task) -> texts` that would be right reflections, where that is known; handed on to those who reward.
        untrained: Of a control: a policy answers as it did before it learned anything.
        others: Of a control: reflections are those on another task's attempts.

    Raises:
        ProblemError: an argument makes no sense.
    """

    attempt: Callable[..., Any]
    reflector: Any
    guide: Guide = field(kw_only=True)
    attempts: int = field(default=4, kw_only=True)
    memory: int | None = field(default=3, kw_only=True)
    solved: float = field(default=1.0, kw_only=True)
    failed: float = field(default=0.0, kw_only=True)
    tokens: int = field(default=512, kw_only=True)
    max_tokens: int = field(default=48, kw_only=True)
    temperature: float = field(default=1.0, kw_only=True)
    instruction: str | Parameter[str] = field(default=INSTRUCTION, kw_only=True)
    render: Render | None = field(default=None, kw_only=True)
    completions: int = field(default=8, kw_only=True)
    pairs: int = field(default=4, kw_only=True)
    labels: Callable[[Any], Sequence[str]] | None = field(default=None, kw_only=True)
    untrained: bool = field(default=False, kw_only=True, repr=False)
    others: Others | None = field(default=None, kw_only=True, repr=False)
    adapter: Parameter[Adapter] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("attempts", 1), ("completions", 1), ("pairs", 0), ("max_tokens", 1)):
            _whole(name, getattr(self, name), least)
        if self.memory is not None:
            _whole("memory", self.memory, 1)
        if not callable(self.attempt):
            raise ProblemError(f"the attempt is {self.attempt!r:.60}, which cannot be called; pass a function")
        known = self.reflector is None or callable(self.reflector) or hasattr(self.reflector, "sample")
        if not known:
            raise ProblemError(
                f"the reflector is {self.reflector!r:.60}; pass a model from connect(...), a policy, or a function of messages"
            )
        if self.labels is not None and not callable(self.labels):
            raise ProblemError(
                f"labels is {self.labels!r:.60}; pass a function of a task that returns its right reflections"
            )
        if not callable(self.guide):
            raise ProblemError(f"the guide is {self.guide!r:.60}; pass a function (output, task) -> score or Feedback")
        Hindsight(tokens=self.tokens)  # checks it
        # where a search looks for parameters
        object.__setattr__(self, "adapter", getattr(self.reflector, "adapter", None))

    def __call__(self, example: Any) -> Any:
        """All attempts on one task.

        Args:
            example: The task.

        Returns:
            `Episode.to_json` as a result; something to await where the attempt or the reflector is async.
        """
        trying = Trying(self, example)
        return trying.episode() if self.is_async else driven(trying.episode())

    @property
    def is_async(self) -> bool:
        """Whether calling it gives something to await."""
        return any(is_async(part) for part in (self.attempt, self.reflector, self.guide))

    @property
    def asking(self) -> Asking:
        """How the reflector is asked."""
        return Asking(
            reflector=self.reflector, max_tokens=self.max_tokens, temperature=self.temperature,
            untrained=self.untrained,
        )  # fmt: skip

    def scored(self, output: Any, example: Any = None) -> Feedback:
        """A guide for episodes: the best return of all attempts decides; whether it was solved by then is said of each.

        Args:
            output: What the workflow gave.
            example: The task, which it does not look at.

        Returns:
            Scores "return", "solved after 1", "solved after 2", ..., and the share of "attempts without error"; see `margins`.
        """
        del example
        episode = Episode.of(output)
        scores = {"return": episode.best()}
        scores |= {f"solved after {n}": float(episode.best(n) >= self.solved) for n in range(1, self.attempts + 1)}
        scores[_SOUND] = 1 - sum(error is not None for error in episode.errors) / len(episode.returns)
        lines = [
            f"attempt {i + 1}: return {value:.6g}{f', {said}' if said else ''}"
            for i, (value, said) in enumerate(zip(episode.returns, episode.texts, strict=True))
        ]
        return Feedback(score=scores, text="\n".join(lines))

    def controls(
        self,
        random: Callable[..., Any] | None = None,
        *,
        tasks: Sequence[Any] = (),
        key: Callable[[Any], Any] | None = None,
    ) -> dict[str, Callable[..., Any]]:
        """What these episodes have to beat, for `Problem(controls=...)`: workflows by name, of the same guide.

        "no retry", "retry without memory", "untrained reflector" (of a policy), "another task's reflection" (given tasks),
        "random actor" (given one). Where all else is equal, so are examples, seeds and values.

        Args:
            random: An attempt that knows nothing and goes by chance.
            tasks: Where other tasks are taken from; those that the controls are run on will do.
            key: What makes two tasks the same; their content by default.
        """
        return dict(controls_of(self, random, tasks, key))

    @property
    def margins(self) -> dict[str, float]:
        """For `optimize`: what `scored` says besides "return" is reported and decides nothing."""
        return {f"solved after {n}": math.inf for n in range(1, self.attempts + 1)} | {_SOUND: math.inf}


def _whole(name: str, value: Any, least: int) -> None:
    if not is_whole(value, least):
        raise ProblemError(f"{name} is {value!r}; give a whole number of at least {least}")
