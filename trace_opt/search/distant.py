"""Rollouts in other processes: the driver sends orders to workers, takes in what comes back, and replaces workers that die.

The driver alone decides, pays and keeps. A worker is whatever answers an order; it may die at any time, and then its
orders go to another one, each still the same rollout: same seed, same account, replies that were paid for given again.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import pickle  # noqa: TID251 # between the live processes of one run, never from disk
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from trace_opt.errors import ProblemError
from trace_opt.search.executors import LocalExecutor
from trace_opt.search.gateway import Errand, Gateway
from trace_opt.search.shipping import Returned, Shipment
from trace_opt.search.sources import differing

if TYPE_CHECKING:
    from trace_opt.search.account import Account
    from trace_opt.search.shipping import Parcel

ATTEMPTS = 3
"""Workers that one rollout may take with it before it counts as failed."""

_GRACE_S = 2.0
_MEDIAN_OF = 101
_FEWEST = 5
_LOOK_S = 0.05


class WorkerLost(Exception):  # noqa: N818 # what happened, not what is wrong
    """A worker died with an order."""


class WorkerStuck(Exception):  # noqa: N818 # as above
    """A worker did not end an order in time, and was ended."""


class Worker(Protocol):
    """One worker, as its driver sees it."""

    async def ready(self) -> Mapping[str, str]:
        """Wait until the problem is loaded; gives the hashes of what it reaches.

        Raises:
            WorkerLost: it died over it.
            TraceOptError: it could not be loaded.
        """
        ...

    async def run(self, ticket: int, parcel: Parcel) -> bytes:
        """What came of an order.

        Raises:
            WorkerLost: the worker died.
            BaseException: what the rollout raised.
        """
        ...

    def cancel(self, ticket: int) -> None:
        """Nobody waits for an order any more."""
        ...

    def kill(self) -> None:
        """End it, and what it has started."""
        ...


@dataclass(slots=True, eq=False)
class _Post:
    """A worker with the orders it has."""

    worker: Worker
    orders: set[int] = field(default_factory=set[int])
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    dead: bool = False
    retired: bool = False


class DistantExecutor(LocalExecutor):
    """Runs rollouts in workers. What it does itself, it does as a `LocalExecutor`.

    Args:
        workers: How many; None takes one for each core.
        copies: Once a rollout takes this many times the median, run a copy of it on another worker and take what is there
            first; None runs none. A copy is the same rollout (same seed, the same replies of remote models) and costs
            nothing: one that would have to make a call of its own, of an embedded model say, ends.
    """

    apart = True

    def __init__(self, workers: int | None = None, *, copies: float | None = None) -> None:
        if workers is not None and workers < 1:
            raise ProblemError(f"workers is {workers!r}; give a whole number of at least 1")
        if copies is not None and copies <= 1:
            raise ProblemError(f"copies is {copies!r}; give how many times the median is late, above 1")
        super().__init__(1)
        self.workers = workers
        self.copies = copies
        self._seconds: deque[float] = deque(maxlen=_MEDIAN_OF)
        self._gateway: Gateway | None = None
        self._shipment: Shipment | None = None
        self._hashes: Mapping[str, str] = {}
        self._posts: list[_Post] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._fruitless = 0
        self._slots = 1
        self._limit: float | None = None
        self._out = 0
        self._back = asyncio.Event()
        self._quarantine = asyncio.Lock()
        self._tickets = itertools.count(1)

    # -- what a kind of worker adds ------------------------------------------------------------------------------------

    def count(self) -> int:
        """How many workers there are to be."""
        raise NotImplementedError

    async def start(self, shipment: Shipment, gateway: Gateway) -> Worker:
        """Start one.

        Args:
            shipment: The problem.
            gateway: Answers what it asks.
        """
        raise NotImplementedError

    # -- orders ----------------------------------------------------------------------------------------------------------

    def open(self, shipment: Shipment, hashes: Mapping[str, str], concurrency: int) -> None:
        """Be ready for the rollouts of one run; workers are started with the first of them.

        Args:
            shipment: The problem.
            hashes: Of what it reaches here; a worker that finds others is refused.
            concurrency: Rollouts at once, over all workers.

        Raises:
            ProblemError: another run uses this executor.
        """
        if self._shipment is not None:
            raise ProblemError("this executor runs the rollouts of another run; make one for each run")
        LocalExecutor.__init__(self, concurrency)
        self._slots = math.ceil(concurrency / max(1, self.count()))
        self._shipment, self._hashes = replace(shipment, slots=self._slots), hashes
        # a worker says itself that a rollout took too long, unless something in it holds up even that
        self._limit = None if shipment.timeout is None else shipment.timeout + _GRACE_S
        self._gateway = Gateway()
        self._out, self._back, self._quarantine = 0, asyncio.Event(), asyncio.Lock()

    async def rollout(self, parcel: Parcel, account: Account) -> Returned | None:
        """What came of an order; None where it took too many workers with it.

        Args:
            parcel: The order.
            account: Pays for it.

        Raises:
            WorkerStuck: it took too long, and its worker could not even say so.
        """
        errand = Errand(account)
        try:
            return await self._first(await self._post(), errand, parcel)
        except WorkerLost:
            # one of the rollouts that it had may have killed it: each is run again in a worker that has no other
            async with self._quarantine:
                return await self._again(errand, parcel)

    async def _first(self, post: _Post, errand: Errand, parcel: Parcel) -> Returned:
        """What comes first of an order and, where it is late and a worker has room, of a copy."""
        if self.copies is None:
            return await self._ordered(post, errand, parcel)
        own = asyncio.ensure_future(self._ordered(post, errand, parcel))
        try:
            other = await self._when_late(own, post)
            if other is None:
                return await own
            twin = asyncio.ensure_future(self._ordered(other, errand, parcel, copy=True))
            await asyncio.wait([own, twin], return_when=asyncio.FIRST_COMPLETED)
            if not own.done() and twin.exception() is None:
                own.add_done_callback(_unheard)
                return twin.result()
            twin.add_done_callback(_unheard)
            return await own
        except asyncio.CancelledError:
            own.cancel()
            raise

    async def _when_late(self, own: asyncio.Future[Any], post: _Post) -> _Post | None:
        """Wait until an order is late and another worker has room; None where it came before that."""
        began = perf_counter()
        while True:
            await asyncio.wait([own], timeout=_LOOK_S)
            if own.done():
                return None
            enough = len(self._seconds) >= _FEWEST and self.copies is not None
            if enough and perf_counter() - began > (self.copies or 0.0) * statistics.median(self._seconds):
                others = [other for other in self._posts if other is not post and len(other.orders) < self._slots]
                if others:
                    return others[0]

    async def _again(self, errand: Errand, parcel: Parcel) -> Returned | None:
        for _ in range(ATTEMPTS - 1):
            post = await self._emptied()
            try:
                return await self._ordered(post, errand, parcel)
            except WorkerLost:
                continue
            finally:
                self._out -= 1
                if not post.dead and not post.retired:
                    self._posts.append(post)
                self._back.set()
        return None

    async def _emptied(self) -> _Post:
        """A worker without orders, that gets no other until it is given back."""
        while True:
            post = await self._post()
            self._posts.remove(post)
            self._out += 1
            self._back.clear()
            if post.orders:
                await post.idle.wait()
            if not post.dead and not post.retired:
                return post
            self._out -= 1
            self._back.set()

    async def _ordered(self, post: _Post, errand: Errand, parcel: Parcel, *, copy: bool = False) -> Returned:
        if self._gateway is None:
            raise ProblemError("a rollout was ordered after the executor was closed")
        ticket = next(self._tickets)
        self._gateway.begin(ticket, errand, copy=copy)
        post.orders.add(ticket)
        post.idle.clear()
        try:
            found = await self._answered(post, ticket, parcel)
            self._seconds.append(found.rollout.seconds)
            if found.stuck:
                self._retire(post)
            return found
        except (WorkerLost, WorkerStuck):
            self._gateway.lost(ticket)
            self._drop(post)
            raise
        finally:
            post.orders.discard(ticket)
            if not post.orders:
                post.idle.set()
                if post.retired:
                    self._drop(post)

    async def _answered(self, post: _Post, ticket: int, parcel: Parcel) -> Returned:
        gateway = self._gateway
        work = asyncio.ensure_future(post.worker.run(ticket, parcel))
        try:
            if self._limit is not None:
                await asyncio.wait([work], timeout=self._limit)
                if not work.done():
                    work.add_done_callback(_unheard)
                    # one of several that held all up: each is run again in a worker that has no other
                    raise WorkerLost("it was stuck") if post.dead or len(post.orders) > 1 else WorkerStuck
            data = await asyncio.shield(work)
        except (WorkerLost, WorkerStuck):
            raise
        except asyncio.CancelledError:
            self._cancel(post, ticket, work)
            raise
        except BaseException:
            if gateway is not None:
                gateway.end(ticket)
            raise
        if gateway is not None:
            gateway.end(ticket)
        return pickle.loads(data)  # noqa: S301 # from a worker of this run

    def _cancel(self, post: _Post, ticket: int, work: asyncio.Future[bytes]) -> None:
        """Have a worker stop an order, and stop the worker where it does not."""
        gateway = self._gateway

        def ended(done: asyncio.Future[bytes]) -> None:
            late.cancel()
            if not done.cancelled():
                done.exception()  # nobody waits for it
            if gateway is not None:
                gateway.end(ticket)

        def give_up() -> None:
            self._drop(post)

        post.worker.cancel(ticket)
        if gateway is not None:
            gateway.cancel(ticket)
        late = asyncio.get_running_loop().call_later(_GRACE_S, give_up)
        work.add_done_callback(ended)

    def _retire(self, post: _Post) -> None:
        """Give a worker no further order, and end it once it has none."""
        post.retired = True
        if post in self._posts:
            self._posts.remove(post)

    def _drop(self, post: _Post) -> None:
        if not post.dead:
            post.dead = True
            post.worker.kill()
        if post in self._posts:
            self._posts.remove(post)

    # -- workers -----------------------------------------------------------------------------------------------------------

    async def _post(self) -> _Post:
        """The worker with the fewest orders. Missing ones are started; where there is none they are waited for.

        Raises:
            ProblemError: none can be started.
        """
        while not self._posts:
            self._fill()
            starting = list(self._starting)
            if not starting:  # the only ones there are have been taken out
                await self._back.wait()
                continue
            await asyncio.wait(starting)
            errors = [task.exception() for task in starting if not task.cancelled() and task.exception() is not None]
            if not self._posts and errors and errors[0] is not None:
                raise errors[0]
        if self._fruitless < ATTEMPTS:
            self._fill()
        return min(self._posts, key=lambda post: len(post.orders))

    def _fill(self) -> None:
        for _ in range(self.count() - len(self._posts) - len(self._starting) - self._out):
            task = asyncio.ensure_future(self._start_one())
            self._starting.add(task)
            task.add_done_callback(self._has_started)

    def _has_started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        failed = not task.cancelled() and task.exception() is not None
        self._fruitless = self._fruitless + 1 if failed else 0

    async def _start_one(self) -> None:
        if self._shipment is None or self._gateway is None:
            raise ProblemError("a worker was wanted before the executor was opened")
        worker = await self.start(self._shipment, self._gateway)
        try:
            hashes = await worker.ready()
        except WorkerLost as lost:
            worker.kill()
            raise ProblemError(
                f"a worker ended before it had loaded the problem ({lost}); what it said is above; load the problem's file"
                " by itself to see why"
            ) from lost
        except BaseException:
            worker.kill()
            raise
        changed = differing(self._hashes, hashes)
        if changed:
            worker.kill()
            raise ProblemError(
                f"a worker loads another problem than the one here: {', '.join(changed[:5])} differ; define them in the "
                "file as they are to be, save it, and start anew"
            )
        self._posts.append(_Post(worker))

    def close(self) -> None:
        """End all workers, and what they have started."""
        for task in self._starting:
            task.cancel()
        for post in self._posts:
            post.worker.kill()
        self._starting.clear()
        self._posts.clear()
        self._shipment = self._gateway = None
        super().close()


def _unheard(task: asyncio.Task[Any]) -> None:
    """Nobody asks what became of it."""
    if not task.cancelled():
        task.exception()
