"""What the two supervised stages are given, checked before anything is paid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from trace_opt.refine.supervised import Pair

if TYPE_CHECKING:
    from trace_opt.refine.buffer import Experience

_FIELDS = ("prompt", "completion", "gain")


def pairs_of(name: str, given: Sequence[Pair | Experience]) -> list[Pair]:
    """Pairs, of what may be reflections from the store.

    Args:
        name: What learns from them.
        given: Pairs or reflections.

    Raises:
        ValueError: one is neither.
    """
    for one in cast("Sequence[Any]", given):
        if not all(hasattr(one, field) for field in _FIELDS):
            raise ValueError(
                f"the {name} got {one!r:.80} for a pair; give Pair(prompt, completion, gain), or reflections from the store"
            )
    return [Pair.of(one) for one in given]


def check_every(name: str, every: int) -> None:
    """Refuse a number of steps between checkpoints that is none.

    Args:
        name: What is trained.
        every: How many steps.

    Raises:
        ValueError: it is no whole number of at least 1.
    """
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:  # pyright: ignore[reportUnnecessaryIsInstance] # users pass anything
        raise ValueError(f"the {name} got every={every!r}; give a whole number of steps of at least 1")
