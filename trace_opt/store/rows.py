"""Rows as a search writes them: one field for each column, in the order of the columns, without the run.

`data` is JSON-able here; the writer turns it into text.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class RolloutRow(NamedTuple):
    """A finished rollout.

    Attributes:
        score: None where the workflow failed.
        data: `text`, `scores`, `error`, `output`, `node`, `reached`, those that there are.
    """

    candidate: int
    example: int
    repeat: int
    score: float | None
    data: Any
    calls: int
    tokens_in: int
    tokens_out: int
    usd: float | None
    seconds: float


class CandidateRow(NamedTuple):
    """A candidate, or what has become of it.

    Attributes:
        parents: Numbers of candidates, JSON-able.
        data: Its values by full parameter name, each as `dump_value` gives it.
        values_hash: The hash of the values.
        mean, n, failed: Its scores on the validation examples so far.
    """

    id: int
    step: int
    optimizer: str
    parents: Any
    data: Any
    values_hash: str
    mean: float | None
    n: int
    failed: int
    accepted: int


class TrialRow(NamedTuple):
    """A trial, or what has become of it.

    Attributes:
        base, candidate: Numbers of candidates; None where nothing came of the proposal.
        data: `changed`, `reason`, `notes`, `by`.
        before, after, n: Paired means, and over how many examples.
        verdict: "" while it is open.
    """

    number: int
    step: int
    slot: int
    optimizer: str
    base: int
    candidate: int | None
    data: Any
    before: float | None
    after: float | None
    n: int
    accepted: int
    verdict: str


class MemoRow(NamedTuple):
    """What a call of a pure op gave.

    Attributes:
        op: The hash of what the op is made of.
        arguments: The hash of its arguments.
        variant: The hash of what else the value depends on.
        data: `reads`, `seeded`, `made`, `value`, `size`.
        created: When, in seconds since 1970.
    """

    op: str
    arguments: str
    variant: str
    data: Any
    calls: int
    tokens_in: int
    tokens_out: int
    usd: float | None
    seconds: float
    created: float
