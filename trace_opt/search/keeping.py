"""What of a search goes to the store, and how it comes back; without a writer nothing does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trace_opt.core.codec import decode, dump_value, encode, restore_value
from trace_opt.core.memory import MEMORY
from trace_opt.core.rollout import Cost
from trace_opt.errors import StoreError
from trace_opt.optim.base import Optimizer, Proposal
from trace_opt.search import statistics
from trace_opt.search.candidate import Attempt, Candidate, Score
from trace_opt.search.memory import saved_json, saved_of
from trace_opt.store.rows import CandidateRow, TrialRow
from trace_opt.store.writer import GROUP_S

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.search.account import Account
    from trace_opt.search.bench import Bench
    from trace_opt.store.writer import Writer


class Keeper:
    """Writes attempts, candidates and states, and reads them back.

    Args:
        bench: Knows the examples' order and what a failure counts as.
        parameters: By full name.
        optimizers: In the run's order; a state goes by its optimizer's place.
        writer: Who keeps, or None.
    """

    def __init__(
        self, bench: Bench, parameters: Mapping[str, Parameter[Any]], optimizers: Sequence[Optimizer],
        writer: Writer | None,
    ) -> None:  # fmt: skip
        self._bench = bench
        self._parameters = parameters
        self._optimizers = optimizers
        self._writer = writer
        self._timer: asyncio.TimerHandle | None = None
        self._failed: StoreError | None = None  # why the timer could not write
        self._changed: set[int] = set()  # places of the optimizers whose state is not on disk

    def book(
        self, attempt: Attempt | None, optimizer: Optimizer, accounts: Sequence[Account], *, now: bool
    ) -> None:  # fmt: skip
        """Keep a proposal with what it cost; at once where it paid or took long.

        Args:
            attempt: The proposal; None where there was nothing to propose.
            optimizer: Who proposed.
            accounts: What paid for it.
            now: Whether it took long.
        """
        paid = sum((account.cost for account in accounts), Cost()).calls
        self._take(accounts)
        if self._writer is None:
            return
        if attempt is not None:
            self.attempt(attempt)
        # beside the proposal: a resumed run does not ask for it again
        self._state(self._optimizers.index(optimizer))
        if now or paid:
            self._writer.commit()

    def checkpoint(self, part: str, state: Mapping[str, Any] | None, accounts: Sequence[Account]) -> None:
        """Keep where a proposal under way stands, with what it cost so far, and commit; None forgets it.

        Args:
            part: Names the proposal.
            state: JSON-able, tensors allowed.
            accounts: What paid for it since the last time.
        """
        self._take(accounts)
        if self._writer is None:
            return
        self._writer.state(part, encode(state))
        self._writer.state("unsaved", self._bench.ledger.unsaved)
        if state is not None:
            self._writer.commit()

    def _take(self, accounts: Sequence[Account]) -> None:
        """Book what accounts have paid, with the next commit."""
        for account in accounts:
            spend, landed = account.take()
            if self._writer is not None:
                self._writer.spend(spend, landed)
            self._bench.ledger.land(landed)

    def _state(self, place: int) -> None:
        """Keep an optimizer's state, with the next commit."""
        if self._writer is not None:
            self._writer.state(f"optimizer {place}", encode(self._optimizers[place].state_dict()))
            self._writer.state("unsaved", self._bench.ledger.unsaved)

    def attempt(self, attempt: Attempt) -> None:
        """Keep an attempt as it stands, its candidate too, with the next commit."""
        if self._writer is None:
            return
        if attempt.candidate is not None and (attempt.is_new or attempt.accepted):
            self.candidate(attempt.candidate)
        by = None if attempt.by is None else self._optimizers.index(attempt.by)
        if by is not None:
            self._changed.add(by)
        proposal = attempt.proposal
        data = {
            "changed": {name: dump_value(self._parameters[name], value) for name, value in proposal.values.items()},
            "reason": proposal.reason, "notes": encode(dict(proposal.notes)), "by": by, "phase": proposal.phase,
        }  # fmt: skip
        row = TrialRow(
            attempt.number, attempt.step, attempt.slot, attempt.optimizer, attempt.base.id,
            None if attempt.candidate is None else attempt.candidate.id, data, attempt.before, attempt.after, attempt.n,
            int(attempt.accepted), attempt.verdict,
        )  # fmt: skip
        self._writer.trial(row)

    def candidate(self, candidate: Candidate) -> None:
        """Keep a candidate as it stands, its graph too once it was accepted, with the next commit."""
        if self._writer is None:
            return
        order = self._bench.order
        scores = candidate.on(candidate.known(order))
        values = {name: dump_value(self._parameters[name], value) for name, value in candidate.values.items()}
        row = CandidateRow(
            candidate.id, candidate.step, candidate.optimizer, list(candidate.parents), values, candidate.key,
            statistics.mean(scores, self._bench.floor) if scores else None, len(scores),
            sum(score is None for score in scores), int(candidate.accepted),
        )  # fmt: skip
        self._writer.candidate(row)
        if candidate.accepted and candidate.graph is not None:
            self._writer.graph(candidate.id, order[0], candidate.graph.to_json())

    def answer(self, part: str, number: int, *, yes: bool) -> None:
        """Keep what was said about an attempt, and commit.

        Args:
            part: Names the question.
            number: The attempt's.
            yes: The answer.
        """
        if self._writer is not None:
            self._writer.state(f"{part}{number}", yes)
            self._writer.commit()

    def save(self, state: Mapping[str, Any], incumbent: Candidate) -> None:
        """Keep the state of the search and of the optimizers that learned something, with all that waits.

        What cost nothing and went fast is committed with what follows within 50 ms: a resumed run makes it again, the same.

        Raises:
            StoreError: it cannot be written, or what was said before could not.
        """
        if self._writer is None:
            return
        for place in self._changed:
            self._state(place)
        self._changed.clear()
        self._writer.state("search", state)
        memory = MEMORY.get()
        if memory is not None and memory.saved.ops:
            self._writer.state("saved", saved_json(memory.saved))
        self._writer.set(best=incumbent.id)
        if self._failed is not None:
            raise self._failed
        if self._writer.commit_soon() and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GROUP_S, self._commit)

    def _commit(self) -> None:
        """Commit what waits where nothing followed; called by the loop, where an error has nobody to go to."""
        self._timer = None
        try:
            if self._writer is not None and not self._writer.closed:
                self._writer.commit()
        except StoreError as error:
            self._failed = error

    # -- and back ----------------------------------------------------------------------------------------------------

    def load_states(self, states: Mapping[str, Any]) -> None:
        """Give optimizers back what they had learned, and the memory what it had saved."""
        memory = MEMORY.get()
        if memory is not None:
            memory.saved.join(saved_of(states.get("saved", {})))
        for place, optimizer in enumerate(self._optimizers):
            if f"optimizer {place}" in states:
                optimizer.load_state_dict(decode(states[f"optimizer {place}"]))

    def restored_candidate(self, row: Mapping[str, Any], scores: Mapping[tuple[int, int], Score]) -> Candidate:
        """A candidate from its row, with its scores by example and repeat."""
        values = {name: restore_value(self._parameters[name], data) for name, data in row["data"].items()}
        made = Candidate(
            row["id"], values, row["values_hash"], tuple(json.loads(row["parents"])), row["step"], row["optimizer"],
            accepted=bool(row["accepted"]),
        )  # fmt: skip
        self._bench.draws.load(made, scores)
        return made

    def restored_attempt(self, row: Mapping[str, Any], candidates: Mapping[int, Candidate]) -> Attempt:
        """An attempt from its row."""
        data = row["data"]
        changed = {name: restore_value(self._parameters[name], value) for name, value in data["changed"].items()}
        by: int | None = data["by"]
        return Attempt(
            row["number"], row["step"], row["slot"], None if by is None else self._optimizers[by], row["optimizer"],
            candidates[row["base"]], Proposal(changed, data["reason"], decode(data["notes"]), phase=data["phase"]),
            None if row["candidate"] is None else candidates[row["candidate"]], row["before"], row["after"], row["n"],
            bool(row["accepted"]), row["verdict"],
        )  # fmt: skip
