"""What is kept of phases: the state that goes with the values a phase led to, and how often one from there was dropped.

A state goes by the values, not by a candidate's number: whatever has those values goes on from it. A phase's state waits
for the verdict and is forgotten where the phase is dropped, so nothing but a count is left of one that was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trace_opt.core.codec import content_hash
from trace_opt.optim.base import Outcome, Proposal

SHRINK = 0.5
"""What a step size is multiplied by for each phase from the same values that was dropped."""

_MOST = 8


class PhaseStates:
    """States of an optimizer's phases, by a hash of values; the latest few that were built on, and those that wait.

    Args:
        most: How many that were built on are kept.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._built_on: dict[str, Mapping[str, Any]] = {}
        self._waiting: dict[str, Mapping[str, Any]] = {}
        self._dropped: dict[str, int] = {}

    @staticmethod
    def key(values: Mapping[str, Any]) -> str:
        """What values go by.

        Args:
            values: By full parameter name.
        """
        return content_hash(dict(values))

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The state to go on from, or None where no phase led to these values."""
        return self._built_on.get(key)

    def dropped(self, key: str) -> int:
        """How many phases from these values were dropped."""
        return self._dropped.get(key, 0)

    def wait(self, base: str, made: str, state: Mapping[str, Any]) -> dict[str, str]:
        """Keep a phase's state until its verdict.

        Args:
            base: Where it began.
            made: Where it ended.
            state: JSON-able, tensors allowed.

        Returns:
            Notes for its proposal, by which `observe` knows it again.
        """
        self._waiting[made] = state
        return {"from": base, "to": made}

    def observe(self, proposal: Proposal, outcome: Outcome) -> None:
        """Keep the state of a phase that is built on; forget that of one that was dropped, and count it."""
        made, base = proposal.notes.get("to"), proposal.notes.get("from")
        if made is None or base is None:
            return
        state = self._waiting.pop(made, None)
        if not outcome.accepted:
            self._dropped[base] = self._dropped.get(base, 0) + 1
        elif state is not None:
            self._built_on[made] = state
            for old in list(self._built_on)[: -self._most]:
                del self._built_on[old]

    def state_dict(self) -> dict[str, Any]:
        """All of it, JSON-able but for tensors."""
        return {"states": dict(self._built_on), "pending": dict(self._waiting), "dropped": dict(self._dropped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._built_on = dict(state["states"])
        self._waiting = dict(state["pending"])
        self._dropped = dict(state["dropped"])
