"""What was good or bad about an output: a score, a sentence, a loss.

A guide returns one `Feedback` for one output. A greater score is better. Nothing here reads an output; a Feedback
is handed along the graph as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from trace_opt.errors import FeedbackError

if TYPE_CHECKING:
    import torch

Guide = Callable[[Any, Any], "Feedback | float | dict[str, float] | str"]
"""`(output, example) -> Feedback`; a bare number, dict of numbers or sentence is taken as the obvious Feedback."""


@dataclass(frozen=True, slots=True, eq=False)
class Feedback:
    """What a guide says about one output.

    Args:
        score: Greater is better. Of a dict the first entry decides. A bool is 0 or 1.
        text: What to keep or to change, in words; read by language-model optimizers.
        loss: A scalar tensor still attached to its autograd graph, or several by name; smaller is better.

    Raises:
        FeedbackError: a score is not a finite number, or the dict of scores is empty.
    """

    score: float | dict[str, float] | None = None
    text: str = ""
    loss: torch.Tensor | dict[str, torch.Tensor] | None = None
    spent: list[bool] = field(default_factory=list[bool], init=False, repr=False)
    """Not empty once `propagate` has run the backward pass of `loss`, which happens once for each Feedback."""

    def __post_init__(self) -> None:
        if self.score is None:
            return
        if type(self.score) is float and math.isfinite(self.score):
            if self.score == 0:  # a store has one zero, and a resumed run is to show what it showed
                object.__setattr__(self, "score", 0.0)
            return
        if isinstance(self.score, Mapping):
            if not self.score:
                raise FeedbackError("a Feedback got an empty dict of scores; give at least one, the first decides")
            checked: Any = {str(name): _finite(value, f"score {name!r}") for name, value in self.score.items()}
        else:
            checked = _finite(self.score, "score")
        object.__setattr__(self, "score", checked)

    @property
    def scores(self) -> dict[str, float]:
        """All scores by name; a single one is called `score`; empty where there is none."""
        if self.score is None:
            return {}
        return dict(self.score) if isinstance(self.score, dict) else {"score": self.score}

    @property
    def value(self) -> float | None:
        """The score that decides: the only one, or the first of several."""
        return next(iter(self.score.values()), None) if isinstance(self.score, dict) else self.score

    @classmethod
    def of(cls, given: object) -> Feedback:
        """Take what a guide returned as Feedback: a Feedback, a number, a dict of numbers, or a sentence."""
        if isinstance(given, Feedback):
            return given
        if isinstance(given, str):
            return cls(text=given)
        if isinstance(given, (int, float, Mapping)):
            return cls(score=cast("Any", given))  # each entry is checked in __post_init__
        item = getattr(given, "item", None)  # numpy and torch scalars
        if callable(item):
            return cls(score=cast("Any", given))  # checked in __post_init__
        raise FeedbackError(
            f"a guide returned {type(given).__name__!r}; return a Feedback, a number (greater is better) or a sentence"
        )


def _finite(value: object, what: str) -> float:
    given = value
    try:
        if not isinstance(value, (int, float)):
            item = getattr(value, "item", None)
            value = item() if callable(item) else value
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value) + 0.0  # no zero with a sign
    except (
        TypeError,
        ValueError,
        RuntimeError,
        OverflowError,
    ):  # an array of several numbers, a whole number beyond floats
        value = given
    # a whole number of more than 4300 digits has no repr
    shown = "a whole number that no float can hold" if type(value) is int else f"{value!r:.80}"
    raise FeedbackError(f"{what} is {shown}; a score must be a finite number, and a greater one is better")
