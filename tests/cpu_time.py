"""How much CPU time work takes, on machines that may be busy or slow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_QUIET_S = 0.02


def least(measure: Callable[[], float], limit: float, tries: int = 5) -> float:
    """The least of a few measurements, of which the first that keeps the limit is the last.

    Where none does, it is divided by how much slower than a quiet one the machine is.

    Args:
        measure: Does the work and gives its CPU time in seconds; see `cpu_time`.
        limit: What it should take at most.
        tries: Measurements at most.
    """
    best = math.inf
    for _ in range(tries):
        best = min(best, measure())
        if best <= limit:
            return best
    return best / max(1.0, min(cpu_time(_plain_python) for _ in range(5)) / _QUIET_S)


def cpu_time(work: Callable[[], object]) -> float:
    """The seconds of CPU time that some work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def _plain_python() -> int:
    """Takes `_QUIET_S` on a quiet machine."""
    found = {number: (number, str(number)) for number in range(100_000)}
    return sum(len(text) for _, text in found.values())
