"""What a proposing optimizer may ask of the search: rollouts of values it makes up, and to keep where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trace_opt.core.rollout import Rollout

if TYPE_CHECKING:
    from trace_opt.core.reuse import Memos
    from trace_opt.search.bench import Bench
    from trace_opt.search.budget import Account
    from trace_opt.search.keeping import Keeper


class More:
    """The `Runner` of one proposal under way.

    Args:
        bench: Runs values on examples.
        keeper: Keeps states.
        base: The values that the proposal is made from, by full parameter name.
        account: Pays for what the optimizer itself asks a model.
        part: Names the proposal in the store.
        saved: What an earlier session kept of it.

    Attributes:
        accounts: What is not yet booked.
    """

    def __init__(
        self, bench: Bench, keeper: Keeper, base: Mapping[str, Any], account: Account, part: str,
        saved: Mapping[str, Any] | None,
    ) -> None:  # fmt: skip
        self.saved = saved
        self.accounts: list[Account] = [account]
        self._account = account
        self._bench = bench
        self._keeper = keeper
        self._base = base
        self._part = part
        self._kept = saved is not None

    async def run(
        self, points: Sequence[Mapping[str, Any]], examples: Sequence[Any], *, grad: bool, repeat: int,
        memos: Memos | None,
    ) -> list[list[Rollout]]:  # fmt: skip
        """See `Rollouts.run_all`."""
        values = [{**self._base, **point} for point in points]
        jobs = self._bench.free_jobs(values, examples, training=grad, repeat=repeat, memos=memos)
        found = await self._bench.unsaved(jobs, self.accounts)
        count = len(examples)
        return [found[i * count : (i + 1) * count] for i in range(len(points))]

    def share(self, done: float) -> float | None:
        """See `Rollouts.share`."""
        return self._bench.ledger.share(done)

    def epoch(self, number: int) -> Iterable[Any]:
        """See `Rollouts.epoch`."""
        return self._bench.data.epoch(self._bench.seed, number)

    async def checkpoint(self, state: Mapping[str, Any]) -> None:
        """See `Rollouts.checkpoint`."""
        self._kept = True
        self._keeper.checkpoint(self._part, state, self.accounts)
        self.land()
        self._account.clear()
        self.accounts[:] = [self._account]

    def forget(self) -> None:
        """Drop what was kept of the proposal: it is finished, or fell through."""
        if self._kept:
            self._keeper.checkpoint(self._part, None, ())

    def land(self) -> None:
        """Note that all calls so far are booked."""
        for account in self.accounts:
            self._bench.ledger.land(account)
