"""How much a run may spend; `search/ledger.py` holds it to that."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from trace_opt.errors import BudgetError, meant

Level = Literal["light", "medium", "heavy"]

LEVELS: dict[str, int] = {"light": 10, "medium": 30, "heavy": 100}
"""How often a level pays for the whole validation set."""

SMALLEST = 24
"""A smaller validation set counts as one of this size: a proposal costs its minibatch however few examples there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a run may spend at most; None is no limit. Workflow, optimizers and guide count together.

    Args:
        calls: Requests to models, retries included, cache hits not.
        tokens: Tokens in and out.
        usd: US dollars. A model of unknown price is refused then.
        seconds: Wall time; what runs then is stopped, and threads end by themselves.
        trials: Proposals tried.
        rollouts: Rollouts, the test at the end included.

    Raises:
        BudgetError: a limit is not a number above 0.
    """

    calls: int | None = None
    tokens: int | None = None
    usd: float | None = None
    seconds: float | None = None
    trials: int | None = None
    rollouts: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.limits.items():
            whole = name not in ("usd", "seconds")
            fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not fits or not 0 < value < math.inf:
                kind = "a whole number" if whole else "a number"
                raise BudgetError(f"Budget got {name}={value!r}; give {kind} above 0, or leave it out for no limit")

    @property
    def limits(self) -> dict[str, Any]:
        """The limits that are set, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) is not None}

    def __str__(self) -> str:
        return "Budget(" + ", ".join(f"{name}={value}" for name, value in self.limits.items()) + ")"


def resolve(budget: Budget | str, *, val: int, test: int, controls: int = 0) -> Budget:
    """A budget, or a level as the number of rollouts it stands for.

    Args:
        budget: A `Budget`, "light", "medium" or "heavy".
        val: Validation examples.
        test: Test examples; start, best and controls are each run on them once.
        controls: How many there are of these.

    Raises:
        BudgetError: it is neither.
    """
    if isinstance(budget, Budget):
        return budget
    times = LEVELS.get(budget) if isinstance(budget, str) else None  # pyright: ignore[reportUnnecessaryIsInstance] # users pass anything
    if times is None:
        hint = meant(budget, LEVELS, "pass 'light', 'medium', 'heavy' or a Budget(...)")
        raise BudgetError(f"no budget is named {budget!r}; {hint}")
    return Budget(rollouts=times * max(val, SMALLEST) + (2 + controls) * test)


def unpriced(models: Iterable[Any]) -> str | None:
    """The name of the first model that cannot tell the price of a call, or None."""
    from trace_opt.llm.base import LLM

    for model in models:
        if isinstance(model, LLM) and model.price(model.request("?")).usd is None:
            return model.name
    return None
