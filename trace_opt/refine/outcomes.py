"""What comes of the attempts at one task, as data: their returns, the reflections between them, what those were worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from trace_opt.refine.local import Completions


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """Reflections on one failed attempt, and what each was worth.

    Attributes:
        completions: Reflections drawn for one prompt; the first is the one that the episode went on with.
        gains: Of each, the change of return: mean return of attempts with it less that of attempts without it, on the
            same seeds. Empty where none were made.
        baseline: Mean return of the attempts without.
        attempt: The number of the attempt that they look back on, from 1.
        labels: Texts that would have been right, where the task knows them; for exact-match rewards.
    """

    completions: Completions
    gains: tuple[float, ...]
    baseline: float = 0.0
    attempt: int = 1
    labels: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; `of_json` gives it back exactly."""
        return {
            "completions": self.completions.to_json(), "gains": list(self.gains), "baseline": self.baseline,
            "attempt": self.attempt, "labels": list(self.labels),
        }  # fmt: skip

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Rated:
        """What `to_json` was given."""
        return cls(
            completions=Completions.of_json(data["completions"]), gains=tuple(data["gains"]),
            baseline=data["baseline"], attempt=data["attempt"], labels=tuple(data["labels"]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """What came of the attempts at one task.

    Attributes:
        returns: The return of each attempt; as many as were made.
        reflections: What was said after each attempt but the last; "" where nothing was.
        outputs: What each attempt gave; None where it raised.
        errors: "ValueError: ..." of each attempt that raised, None of the others.
        texts: What the guide said of each attempt.
        attempts: How many there could have been.
        rated: In a training rollout, what reflections were worth; one entry for each failed attempt but the last.
    """

    returns: tuple[float, ...]
    reflections: tuple[str, ...] = ()
    outputs: tuple[Any, ...] = ()
    errors: tuple[str | None, ...] = ()
    texts: tuple[str, ...] = ()
    attempts: int = 1
    rated: tuple[Rated, ...] = ()

    def best(self, attempts: int | None = None) -> float:
        """The best return of the first attempts; of all by default."""
        return max(self.returns[:attempts])

    def to_json(self) -> dict[str, Any]:
        """Plain data, which is what the workflow's output is; `of` gives the episode back."""
        return {
            "returns": list(self.returns), "reflections": list(self.reflections), "outputs": list(self.outputs),
            "errors": list(self.errors), "texts": list(self.texts), "attempts": self.attempts,
            "rated": [rated.to_json() for rated in self.rated],
        }  # fmt: skip

    @classmethod
    def of(cls, output: Any) -> Episode:
        """The episode that a workflow of episodes gave as its output."""
        if isinstance(output, Episode):
            return output
        data = cast("Mapping[str, Any]", output)
        return cls(
            returns=tuple(data["returns"]), reflections=tuple(data["reflections"]), outputs=tuple(data["outputs"]),
            errors=tuple(data["errors"]), texts=tuple(data["texts"]), attempts=data["attempts"],
            rated=tuple(Rated.of_json(rated) for rated in data["rated"]),
        )  # fmt: skip


def is_episode(output: Any) -> bool:
    """Whether an output is that of a workflow of episodes."""
    return isinstance(output, Mapping) and set(Episode.__dataclass_fields__) <= set(cast("Mapping[str, Any]", output))
