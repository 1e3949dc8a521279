"""How many proposals a budget buys, told before anything is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_opt.core.rollout import Cost
from trace_opt.optim.proposer import Proposer
from trace_opt.search.defaults import models_of
from trace_opt.search.measures import error_rates
from trace_opt.search.racing import RUNGS

if TYPE_CHECKING:
    from trace_opt.optim.base import Optimizer
    from trace_opt.search.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposing:
    """What one proposal takes, by the settings alone.

    Attributes:
        rollouts: How many rollouts, for one that is no better than what it is compared with: its minibatch, and both
            candidates on the examples that the search gate takes on average, and what it is trained on.
        most_rollouts: How many at most: both candidates on all validation examples, and the most that any optimizer
            trains on.
        asked: How many model calls optimizers make for it, on average over those that take turns.
        call: What such a call costs at most; None where none is made.
        race: How many rollouts the race before takes; 0 without one.
        training: How many of `rollouts` optimizers run themselves to make it, on average over those that take turns. One
            that the budget cuts short runs fewer, and is tested all the same.
        trained: Names of the classes of optimizers that run rollouts of their own, of which it is not known how many.
    """

    rollouts: int
    most_rollouts: int
    asked: float
    call: Cost | None
    race: int
    training: int = 0
    trained: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bought:
    """How many proposals a budget buys.

    Attributes:
        about: As many as it buys of ordinary ones; None where that is not known.
        least: As many as it buys if each costs the most that it can; None where that is not known.
        limit: The name of the limit that is reached first; "" where none is set or known.
        unknown: Names of the limits of which it is not known how far they go.
    """

    about: int | None
    least: int | None
    limit: str
    unknown: tuple[str, ...]


def proposing(settings: Settings, optimizers: Sequence[Optimizer], *, batch: int, raced: int) -> Proposing:
    """What one proposal takes.

    Args:
        settings: The run's.
        optimizers: Those that own a parameter, with their models.
        batch: Training rollouts that it is made from.
        raced: How many combinations are raced first.
    """
    total, gate = len(settings.data.val), settings.search.gate
    looks = error_rates(gate, total)["examples"] if gate is not None else 0.0
    most = total if settings.search.tests else 0
    asking = [optimizer for optimizer in optimizers if models_of([optimizer])]
    calls = [cost for optimizer in asking if (cost := _call(optimizer)) is not None]
    examples, batches = len(settings.data.train), settings.data.batches
    minibatch = min(settings.search.minibatch, examples)
    own = [optimizer.rollouts_at_most(examples, minibatch, batches=batches) for optimizer in optimizers]
    known = [count for count in own if count is not None]
    training = math.ceil(sum(known) / max(1, len(own)))
    return Proposing(
        rollouts=batch + training + math.ceil(2 * looks * settings.repeats),
        most_rollouts=batch + max(known, default=0) + 2 * most * settings.repeats, training=training,
        asked=len(asking) / len(optimizers) if optimizers else 0.0,
        call=max(calls, key=lambda cost: (cost.usd or 0.0, cost.tokens), default=None),
        race=_race(raced, total, getattr(settings.search, "rungs", RUNGS)) * settings.repeats,
        trained=tuple(dict.fromkeys(type(o).__name__ for o, n in zip(optimizers, own, strict=True) if n is None)),
    )  # fmt: skip


def _race(count: int, total: int, rungs: Sequence[int | None]) -> int:
    """Rollouts of a race at most; the start was run on all examples before, and may not get beyond the first rung."""
    if count < 2:
        return 0
    rollouts, before, left = 0, 0, count
    for stop in sorted({min(total, rung) for rung in rungs if rung is not None} | {total}):
        rollouts += (left - (not before)) * (stop - before)
        before, left = stop, -(-left // 4)
    return rollouts


def _call(optimizer: Any) -> Cost | None:
    """The most that one call of an optimizer costs; None where it does not say."""
    if isinstance(optimizer, Proposer):
        return optimizer.call_at_most()
    inner = [cost for source in getattr(optimizer, "sources", ()) if (cost := _call(source)) is not None]
    return max(inner, key=lambda cost: cost.tokens, default=None)


def bought(
    budget: Mapping[str, Any], needed: Mapping[str, int], per: Proposing, one: Cost | None, seconds: float | None
) -> Bought:  # fmt: skip
    """How many proposals a budget buys.

    Args:
        budget: The limits that are set, by name.
        needed: Rollouts by what for, as `Plan.rollouts` has them; the start's, the test's and the controls' are paid
            for in any case.
        per: What a proposal takes.
        one: What a rollout costs; None where that is not known.
        seconds: How long it takes, or None.
    """
    fixed = needed["to score the start"] + needed["for the test"] + needed.get("for the controls", 0) + per.race
    call = per.call or Cost(1, 0, 0, None)
    units: dict[str, tuple[float | None, float | None]] = {
        "rollouts": (1.0, 0.0),
        "calls": (None if one is None else one.calls, 1.0),
        "tokens": (None if one is None else one.tokens, call.tokens if per.call is not None or not per.asked else None),
        "usd": (None if one is None else one.usd, call.usd if per.asked else 0.0),
        "seconds": (seconds, 0.0),
    }
    about: dict[str, int] = {}
    least: dict[str, int] = {}
    unknown: list[str] = []
    for name, limit in budget.items():
        if name == "trials":
            about[name] = least[name] = limit
            continue
        rollout, asked = units[name]
        if rollout is None or asked is None:
            unknown.append(name)
            continue
        left = limit - fixed * rollout
        # asked once more about values that were no good, it makes a second call
        for found, rollouts, calls in (
            (about, per.rollouts, per.asked),
            (least, per.most_rollouts, 2 * math.ceil(per.asked)),
        ):
            price = rollouts * rollout + calls * asked
            if price > 0:
                found[name] = max(0, math.floor(left / price + 1e-9))
    return Bought(
        about=min(about.values(), default=None), least=min(least.values(), default=None),
        limit=min(about, key=lambda name: about[name], default=""), unknown=tuple(unknown),
    )  # fmt: skip
