"""What a proposing optimizer may ask of the search: rollouts of values it makes up, and to keep where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trace_opt.core.rollout import Cost, Rollout
from trace_opt.search.rolling import torch_stream

if TYPE_CHECKING:
    import torch

    from trace_opt.core.reuse import Memos
    from trace_opt.search.account import Account
    from trace_opt.search.bench import Bench
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
        seed: The proposal's; orders its epochs.
        test: Gives what testing the proposal will take, in cost and rollouts: kept from what it spends on rollouts.

    Attributes:
        accounts: What is not yet booked.
    """

    def __init__(
        self, bench: Bench, keeper: Keeper, base: Mapping[str, Any], account: Account, part: str,
        saved: Mapping[str, Any] | None, seed: int, test: Callable[[], tuple[Cost, int]],
    ) -> None:  # fmt: skip
        self._seed = seed
        self._tested = test
        self.saved = saved
        self.batches = bench.data.batches
        self.accounts: list[Account] = [account]
        self._account = account
        self._bench = bench
        self._keeper = keeper
        self._base = base
        self._part = part
        self._kept = saved is not None
        self._stream: torch.Tensor | None = None  # where torch's own stream stood before training

    @cached_property
    def _test(self) -> tuple[Cost, int]:
        # most proposals run nothing, and adding up what the start cost takes as long as its examples are many
        return self._tested()

    async def run(
        self, points: Sequence[Mapping[str, Any]], examples: Sequence[Any], *, grad: bool, repeat: int,
        memos: Memos | None,
    ) -> list[list[Rollout]]:  # fmt: skip
        """See `Rollouts.run_all`."""
        await self._account.turn()
        if grad and self._stream is None:
            self._stream = torch_stream().get_state()
        values = [{**self._base, **point} for point in points]
        jobs = self._bench.free_jobs(values, examples, training=grad, repeat=repeat, memos=memos)
        if self._test[1]:
            with self._bench.ledger.aside(*self._test):
                found = await self._bench.unsaved(jobs, self.accounts)
        else:
            found = await self._bench.unsaved(jobs, self.accounts)
        if len(points) == 1:
            return [found]
        count = len(examples)
        return [found[i * count : (i + 1) * count] for i in range(len(points))]

    def share(self, done: float) -> float | None:
        """See `Rollouts.share`."""
        return self._bench.ledger.share(done)

    def affordable(self) -> int | None:
        """See `Rollouts.affordable`."""
        left = self._bench.ledger.rollouts_left
        return None if left is None else max(0, left - self._test[1])

    def epoch(self, number: int) -> Iterable[Any]:
        """See `Rollouts.epoch`."""
        return self._bench.data.epoch(self._seed, number)

    async def checkpoint(self, state: Mapping[str, Any]) -> None:
        """See `Rollouts.checkpoint`."""
        self._kept = True
        self._keeper.checkpoint(self._part, state, self.accounts)
        self.accounts[:] = [self._account]

    def end(self) -> None:
        """Put back what training rollouts moved in the process."""
        if self._stream is not None:
            torch_stream().set_state(self._stream)
            self._stream = None

    def forget(self) -> None:
        """Drop what was kept of the proposal: it is finished, or fell through."""
        if self._kept:
            self._keeper.checkpoint(self._part, None, ())
