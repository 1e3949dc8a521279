"""Acceptances that a person, or whatever else decides, is asked about before they take effect.

An answer is on disk before it takes effect, so a resumed run does not ask again.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trace_opt.errors import ProblemError

if TYPE_CHECKING:
    from trace_opt.search.candidate import Attempt
    from trace_opt.search.executors import Executor
    from trace_opt.search.keeping import Keeper

REFUSED = "its acceptance was refused"
"""What proposers are told of it."""

_PART = "approval "


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A proposal that the search would build on.

    Attributes:
        trial: Its number in the run, from 1.
        optimizer: The class name of who proposed it; "race" for a combination raced, "Merge" for a merge.
        reason: Why, in the optimizer's words.
        notes: What else the optimizer kept.
        old, new: The values that it changes, by full parameter name: those of the candidate it was made from, and its own.
        before, after: Mean scores of the two on the examples that both were run on; None where nothing was tested.
        n: How many those were.
        verdict: What the test found, in words.
    """

    trial: int
    optimizer: str
    reason: str
    notes: Mapping[str, Any]
    old: Mapping[str, Any]
    new: Mapping[str, Any]
    before: float | None
    after: float | None
    n: int
    verdict: str


Approve = Callable[[Approval], "bool | Awaitable[bool]"]


class Approving:
    """Asks, and remembers the answers.

    Args:
        approve: Who is asked, or None where everything is approved; a plain function is called in a thread of its own.
        keeper: Keeps the answers.
        executor: Lends the thread.
    """

    def __init__(self, approve: Approve | None, keeper: Keeper, executor: Executor) -> None:
        self._approve = approve
        self._keeper = keeper
        self._executor = executor
        self._answers: dict[int, bool] = {}

    async def allows(self, attempt: Attempt, said: str) -> bool:
        """Whether an acceptance may take effect; where it may not, the attempt gets its verdict here.

        Args:
            attempt: The proposal, its means noted.
            said: What the test found.

        Raises:
            ProblemError: the answer is neither True nor False.
            Exception: what `approve` raised.
        """
        if self._approve is None:
            return True
        number = attempt.number
        if number not in self._answers:
            answer = await self._asked(self._approve, _approval(attempt, said))
            self._keeper.answer(_PART, number, yes=answer)
            self._answers[number] = answer
        if not self._answers[number]:
            proposal = attempt.proposal
            attempt.verdict = f"refused: {said}"
            # the note is shown to the proposer with the history
            attempt.proposal = replace(proposal, notes={**proposal.notes, "refused": REFUSED})
        return self._answers[number]

    def load(self, states: Mapping[str, Any]) -> None:
        """Take the answers that an earlier session kept."""
        for part, answer in states.items():
            if part.startswith(_PART):
                self._answers[int(part.removeprefix(_PART))] = bool(answer)

    async def _asked(self, approve: Approve, approval: Approval) -> bool:
        if inspect.iscoroutinefunction(approve):
            answer: Any = await approve(approval)
        else:
            # a function that waits for a person must not hold up what ends the run
            answer = await self._executor.in_thread(lambda: approve(approval))
            if inspect.isawaitable(answer):
                answer = await answer
        if not isinstance(answer, bool):
            raise ProblemError(
                f"approve returned {answer!r:.60}; return True to build on the values, False to refuse them"
            )
        return answer


def _approval(attempt: Attempt, said: str) -> Approval:
    proposal = attempt.proposal
    return Approval(
        trial=attempt.number, optimizer=attempt.optimizer, reason=proposal.reason, notes=dict(proposal.notes),
        old={name: attempt.base.values[name] for name in proposal.values}, new=dict(proposal.values),
        before=attempt.before, after=attempt.after, n=attempt.n, verdict=said,
    )  # fmt: skip
