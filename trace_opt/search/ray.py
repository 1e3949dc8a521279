"""Workers that are actors on a Ray cluster (extra `ray`).

Orders are method calls of actors, and what workers ask goes through one small actor, the mailbox, from which the driver
takes it: nothing but Ray has to reach from one machine to another. Ray retries nothing here (`max_restarts=0`): the driver
does, since it is the one that counts.
"""

from __future__ import annotations

import asyncio
import os
import pickle  # noqa: TID251 # between the live processes of one run, never from disk
import socket
from collections.abc import Mapping, Sequence
from threading import Thread
from typing import Any, cast

from trace_opt.errors import ProblemError
from trace_opt.llm.elsewhere import Question
from trace_opt.search.distant import DistantExecutor, Worker, WorkerLost
from trace_opt.search.gateway import Gateway
from trace_opt.search.shipping import Fault, Parcel, Shipment, packed_error, unpacked_error
from trace_opt.search.worker import Workplace, without_keys

_MOST_TAKEN = 64


class RayExecutor(DistantExecutor):
    """Runs rollouts in the workers of a Ray cluster. trace_opt and the problem's files must be on every machine.

    Remote models are asked by this process; embedded ones run in each worker. A worker that dies is replaced and its
    rollouts are run again.

    Args:
        address: Of the cluster, as `ray.init` takes it ("auto" is one that runs here); None uses the one this process is
            connected to, else starts one on this machine.
        workers: How many; by default one for each CPU of the cluster.
        copies: As in `DistantExecutor`.
        secrets: As in `ProcessExecutor`.
        options: More arguments of `ray.init`.
        resources: What a worker needs, as `ray.remote` takes it: `{"num_cpus": 1, "num_gpus": 0.5}`.

    Raises:
        ProblemError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(
        self, address: str | None = None, workers: int | None = None, *, copies: float | None = None,
        secrets: Sequence[str] = (), options: Mapping[str, Any] | None = None,
        resources: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(workers, copies=copies)
        self._secrets = tuple(secrets)
        self._address = address
        self._options = dict(options or {})
        self._resources = {"num_cpus": 1, **(resources or {})}
        self._ray: Any = None
        self._mine = False
        self._mailbox: Any = None
        self._lost: list[_Actor] = []

    def count(self) -> int:
        """How many workers there are to be."""
        if self.workers is not None:
            return self.workers
        return max(1, int(self._connected().cluster_resources().get("CPU", 1)))

    def open(self, shipment: Shipment, hashes: Mapping[str, str], concurrency: int) -> None:
        """See `DistantExecutor.open`; connects to the cluster.

        Raises:
            ProblemError: it cannot be reached.
        """
        self._connected()
        super().open(shipment, hashes, concurrency)
        if self._gateway is not None:
            self._post_office(self._gateway)

    def _connected(self) -> Any:
        if self._ray is not None:
            return self._ray
        # what a run is about is nobody's business
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise ProblemError(
                "Ray is not installed; run `pip install 'trace-opt-framework[ray]'`, or use executor='processes'"
            ) from None
        if not cast("Any", ray).is_initialized():
            self._start(ray)
            self._mine = True
        elif self._address not in (None, "auto"):
            raise ProblemError(
                f"this process is connected to a Ray cluster already; leave address={self._address!r} out"
            )
        self._ray = ray
        return ray

    def _start(self, ray: Any) -> None:
        options: dict[str, Any] = {"address": self._address, "log_to_driver": False, "logging_level": "error"}
        if self._address is None:
            options |= {"address": "local", "include_dashboard": False, "num_cpus": self.workers}
        try:
            ray.init(**{name: value for name, value in (options | self._options).items() if value is not None})
        except Exception as error:
            raise ProblemError(
                f"the Ray cluster at {self._address or 'this machine'!r} cannot be used ({error!s:.200}); start one with "
                "`ray start --head`, or leave the address out"
            ) from error

    def _post_office(self, gateway: Gateway) -> None:
        ray = self._connected()
        self._mailbox = mailbox = ray.remote(num_cpus=0, max_restarts=0, max_concurrency=1000)(_Mailbox).remote()

        def serve() -> None:
            try:
                while True:
                    for number, data in ray.get(mailbox.take.remote()):
                        question: Question = pickle.loads(data)  # noqa: S301 # from a worker of this run
                        gateway.handle(question, lambda answer, number=number: reply(number, answer))
            except Exception:  # noqa: BLE001 # the mailbox has gone, with the run
                return

        def reply(number: int, answer: Any) -> None:
            try:
                mailbox.answer.remote(number, pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))
            except Exception:  # noqa: BLE001 # nobody waits any more
                return

        Thread(target=serve, name="trace_opt-mailbox", daemon=True).start()

    async def start(self, shipment: Shipment, gateway: Gateway) -> Worker:
        """Start an actor."""
        del gateway  # asked through the mailbox
        ray = self._connected()
        actor = ray.remote(**self._resources, max_restarts=0, max_task_retries=0, max_concurrency=shipment.slots + 2)
        made = _Actor(ray, actor(_Place).remote(self._mailbox, self._secrets), shipment)
        self._lost.append(made)
        return made

    def close(self) -> None:
        """Kill all workers; leave a cluster that was there before running."""
        super().close()
        ray = self._ray
        if ray is None:
            return
        for actor in self._lost:
            actor.kill()
        self._lost.clear()
        if self._mailbox is not None:
            ray.kill(self._mailbox)
            self._mailbox = None
        if self._mine:
            ray.shutdown()
            self._mine = False
        self._ray = None


class _Actor:
    """One worker, as the driver sees it."""

    def __init__(self, ray: Any, actor: Any, shipment: Shipment) -> None:
        self._ray = ray
        self._actor = actor
        self._ready = actor.load.remote(pickle.dumps(shipment, pickle.HIGHEST_PROTOCOL))

    async def ready(self) -> Mapping[str, str]:
        """See `Worker.ready`."""
        return await self._opened(self._ready)

    async def run(self, ticket: int, parcel: Parcel) -> bytes:
        """See `Worker.run`."""
        return await self._opened(self._actor.run.remote(ticket, parcel))

    async def _opened(self, reference: Any) -> Any:
        try:
            found = pickle.loads(await asyncio.wrap_future(reference.future()))  # noqa: S301 # from a worker of this run
        except self._ray.exceptions.RayError as error:
            raise WorkerLost(f"{type(error).__name__}: {error!s:.200}") from error
        if isinstance(found, Fault):
            raise unpacked_error(found)
        return found

    def cancel(self, ticket: int) -> None:
        """See `Worker.cancel`."""
        self._actor.cancel.remote(ticket)

    def kill(self) -> None:
        """See `Worker.kill`."""
        self._ray.kill(self._actor, no_restart=True)


class _Mailbox:
    """Where workers leave questions and the driver takes them; an actor of its own."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self._open: dict[int, asyncio.Future[bytes]] = {}
        self._next = 0

    async def ask(self, data: bytes) -> bytes:
        """A question; gives its answer."""
        self._next += 1
        number = self._next
        future = self._open[number] = asyncio.get_running_loop().create_future()
        self._asked.put_nowait((number, data))
        try:
            return await future
        finally:
            del self._open[number]

    async def take(self) -> list[tuple[int, bytes]]:
        """The questions that wait, at least one, with their numbers."""
        found = [await self._asked.get()]
        while not self._asked.empty() and len(found) < _MOST_TAKEN:
            found.append(self._asked.get_nowait())
        return found

    async def answer(self, number: int, data: bytes) -> None:
        """The answer to one."""
        future = self._open.get(number)
        if future is not None and not future.done():
            future.set_result(data)


class _Letters:
    """The line of a worker: through the mailbox."""

    def __init__(self, mailbox: Any) -> None:
        import ray

        self._ray: Any = ray
        self._mailbox = mailbox

    def ask(self, question: Question) -> Any:
        """See `Line.ask`."""
        return _opened(self._ray.get(self._mailbox.ask.remote(pickle.dumps(question, pickle.HIGHEST_PROTOCOL))))

    async def aask(self, question: Question) -> Any:
        """See `Line.aask`."""
        reference = self._mailbox.ask.remote(pickle.dumps(question, pickle.HIGHEST_PROTOCOL))
        return _opened(await asyncio.wrap_future(reference.future()))


def _opened(data: bytes) -> Any:
    answer = pickle.loads(data)  # noqa: S301 # from the driver of this run
    if isinstance(answer, Fault):
        raise unpacked_error(answer)
    return answer


class _Place:
    """One worker; an actor. Results and errors are packed here, so that Ray need not know the problem's classes."""

    def __init__(self, mailbox: Any, secrets: tuple[str, ...]) -> None:
        kept = without_keys(dict(os.environ), secrets)
        for name in list(os.environ):
            if os.environ.get(name) != kept.get(name):
                del os.environ[name]
        os.environ.update(kept)
        self._line = _Letters(mailbox)
        self._place: Workplace | None = None

    def load(self, data: bytes) -> bytes:
        """Load the problem, and give the hashes of what it reaches."""
        try:
            self._place = Workplace(pickle.loads(data), self._line)  # noqa: S301 # from the driver of this run
            return pickle.dumps(self._place.hashes)
        except BaseException as error:  # noqa: BLE001 # raised again in the driver
            return pickle.dumps(packed_error(error))

    def run(self, ticket: int, parcel: Parcel) -> bytes:
        """Run an order."""
        try:
            if self._place is None:
                raise RuntimeError("an order came before its problem")
            return pickle.dumps(self._place.run(ticket, parcel))
        except BaseException as error:  # noqa: BLE001 # raised again in the driver
            return pickle.dumps(packed_error(error))

    def cancel(self, ticket: int) -> None:
        """Nobody waits for an order any more."""
        if self._place is not None:
            self._place.cancel(ticket)

    def where(self) -> tuple[str, int]:
        """The machine and the process it is on."""
        return socket.gethostname(), os.getpid()
