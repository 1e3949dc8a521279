"""What the start's rollouts failed with, so that a run whose workflow is broken says what broke it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trace_opt.core.parameter import short

if TYPE_CHECKING:
    from trace_opt.search.restoring import Stored
    from trace_opt.search.rolling import Job

_WIDTH = 200


class Failures:
    """Errors of the start's rollouts, by example and repeat."""

    def __init__(self) -> None:
        self._errors: dict[tuple[int, int], str] = {}

    def note(self, job: Job, error: str) -> None:
        """Take the error of a rollout; called where it ran."""
        self._errors[job.number, job.repeat] = error

    def load(self, stored: Mapping[tuple[int, int], Stored]) -> None:
        """Take those of an earlier session, by candidate and example."""
        for (candidate, number), row in stored.items():
            error = json.loads(row.data).get("error") if candidate == 0 else None
            if error is not None:
                self._errors.setdefault((number, 0), error)

    def says(self, order: Sequence[int]) -> str:
        """How many rollouts failed and what the first of them failed with, in words; "" where none did.

        Args:
            order: The examples in their order.
        """
        errors = self._of(order)
        if not errors:
            return ""
        return f"{len(errors)} of the {len(order)} rollouts failed, the first with {short(errors[0], _WIDTH)}"

    def of_all(self, order: Sequence[int]) -> str:
        """What is to be said where all of these examples failed; "" where one did not."""
        errors = self._of(order)
        if not errors or len(errors) < len(order):
            return ""
        kind, count = Counter(error.partition(":")[0] for error in errors).most_common(1)[0]
        first = next(error for error in errors if error.partition(":")[0] == kind)
        return (
            f"the workflow failed with the start's values on all {len(order)} examples that it was run on, "
            f"{count} times with {kind!r}: {short(first, _WIDTH)}; mend the workflow unless a proposal is to do that"
        )

    def _of(self, order: Sequence[int]) -> list[str]:
        """One error for each example that failed, in this order."""
        first: dict[int, str] = {}
        for (number, _), error in sorted(self._errors.items()):
            first.setdefault(number, error)
        return [first[number] for number in order if number in first]
