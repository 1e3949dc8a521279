"""What counts as a number where people give one: a truth value does not, though Python takes it for 0 or 1."""

from __future__ import annotations

from typing import Any, TypeGuard


def is_number(given: Any) -> TypeGuard[float]:
    """Whether something is a whole or floating number; NaN is none."""
    return isinstance(given, (int, float)) and not isinstance(given, bool) and given == given  # noqa: PLR0124 # NaN is not


def is_whole(given: Any, least: int = 1) -> TypeGuard[int]:
    """Whether something is a whole number, and not too small.

    Args:
        given: What was given.
        least: The smallest that will do.
    """
    return isinstance(given, int) and not isinstance(given, bool) and given >= least
