"""What a reflection is worth: attempts with it against attempts without it, on the same seeds.

One noisy attempt would credit luck, so each side is a mean over several; both sides of a pair share the seed, and the side
without is shared by all reflections on one attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from trace_opt.core.tracer import no_trace
from trace_opt.refine.reflecting import seed_of, seeded

Try = Callable[[str], Awaitable[float]]
"""The return of an attempt that is handed a text, under the seed in force."""


async def gains_of(
    attempt: Try, texts: Sequence[str], without: str, *, pairs: int, seed: int, together: bool = False
) -> tuple[list[float], float]:
    """The gain in mean return of attempts that are handed each text.

    Args:
        attempt: Makes an attempt, unrecorded.
        texts: What attempts are handed, one for each reflection; equal ones are tried once.
        without: What the attempts are handed that they are compared with.
        pairs: How many attempts on each side.
        seed: Decides the seeds of the attempts.
        together: Whether attempts may run at once.

    Returns:
        The gain of each text, and the mean return without.
    """
    seeds = [seed_of(seed, "pair", i) for i in range(pairs)]
    distinct = list(dict.fromkeys([without, *texts]))

    async def one(text: str, chance: int) -> float:
        with seeded(chance):
            return await attempt(text)

    with no_trace():
        calls = [one(text, chance) for text in distinct for chance in seeds]
        returns = list(await asyncio.gather(*calls)) if together else [await call for call in calls]
    means = {text: sum(returns[i * pairs : (i + 1) * pairs]) / pairs for i, text in enumerate(distinct)}
    return [means[text] - means[without] for text in texts], means[without]


def recalled(reflections: Sequence[Any], memory: int | None) -> list[Any]:
    """The reflections that the next attempt is handed: the last `memory`, or all."""
    kept = list(reflections)
    return kept if memory is None else kept[max(0, len(kept) - memory) :]


def joined(texts: Sequence[str]) -> str:
    """Reflections as the one text that an attempt is handed; empty ones say nothing."""
    return "\n".join(text for text in texts if text)
