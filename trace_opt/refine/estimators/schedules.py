"""How step sizes and momenta fall with the number of the update, by name.

Source: arXiv 2302.01734, theorems on N-PG-IGT and (N)-HARPG: momentum (2/(t+2))^(4/5) and 2/(t+2), step 2/(t+2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

from trace_opt.errors import meant

Schedule = Literal["constant", "inverse", "inverse-sqrt", "sqrt-inverse"]

_RULES: dict[str, Callable[[int], float]] = {
    "constant": lambda _: 1.0,
    "inverse": lambda t: 2 / (t + 2),
    "inverse-sqrt": lambda t: 1 / math.sqrt(1 + t / 100),
    "sqrt-inverse": lambda t: math.sqrt(2 / (t + 2)),
}


def factor(schedule: Schedule, t: int) -> float:
    """What the initial step is multiplied by at update t = 0, 1, ...

    Args:
        schedule: "constant"; "inverse", the papers' 2/(t+2) for normalised steps; "sqrt-inverse", its root, the paper's for
            HARPG; "inverse-sqrt", 1/sqrt(1 + t/100), which falls late.
        t: Updates made before.
    """
    return _RULES[schedule](t)


def checked(schedule: Schedule) -> Schedule:
    """The same name.

    Raises:
        ValueError: there is no such schedule.
    """
    if schedule not in _RULES:
        known = get_args(Schedule)
        hint = meant(schedule, known, f"known: {', '.join(known)}")
        raise ValueError(f"there is no schedule {schedule!r}; {hint}")
    return schedule
