"""A worker: it holds the workflow and its guide, runs rollouts of them, and asks its driver about everything that costs.

`Workplace` is what a worker does wherever it is; `main` is a worker that talks to its driver through its standard input
and output, frame by frame. It ends with its driver: when the input ends, so do the worker and all that it started.
"""

from __future__ import annotations

import asyncio
import os
import pickle  # noqa: TID251 # between the live processes of one run, never from disk
import re
import signal
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from threading import Lock, Thread
from typing import Any, BinaryIO

from trace_opt.core.memory import Memory, remembering
from trace_opt.core.rollout import Rollout
from trace_opt.llm.elsewhere import Line, Question, Tab, become_worker, loading
from trace_opt.llm.meter import metering
from trace_opt.search.executors import LocalExecutor
from trace_opt.search.rolling import Job, Roller
from trace_opt.search.shipping import (
    Fault,
    Order,
    Parcel,
    Shipment,
    opened,
    packed_error,
    returned,
    unpack,
    unpacked_error,
)
from trace_opt.search.sources import Reach

KEY_PLACEHOLDER = "held-by-the-driver"

_KEYS = re.compile(
    r"(^|_)(API_?KEY|KEY|KEYS|TOKEN|TOKENS|SECRET|SECRETS|PASSWORD|PASSWD|CREDENTIALS)($|_)", re.IGNORECASE
)
_STORES = ("TRACE_OPT_STORE",)
_HEADER = 8


def without_keys(environment: dict[str, str], passed: tuple[str, ...] = ()) -> dict[str, str]:
    """An environment whose secrets are replaced by a placeholder, so that code which looks whether they are set runs on.

    Args:
        environment: By name.
        passed: Names of secrets that the workflow's own tools need.
    """
    return {
        name: KEY_PLACEHOLDER if _KEYS.search(name) and name not in passed else value
        for name, value in environment.items()
        if name not in _STORES
    }


class _Books:
    """Stands in for the driver's ledger: accounts are tabs there."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def account(self, role: str, job: Any, place: Any = None) -> Any:
        """A tab of the rollout that runs; its place is known to the driver."""
        del place
        return Tab(self._line, job.ticket, role)


class _Ordered(Job):
    """A job that came as an order."""

    __slots__ = ("ticket",)

    def __init__(self, ticket: int, order: Order) -> None:
        super().__init__(
            order.candidate, order.values, order.number, order.example, bound=order.bound, seed=order.seed,
            name=lambda _: order.name, keep=order.keep,
        )  # fmt: skip
        self.training, self.apart, self.repeat = order.training, order.apart, order.repeat
        self.ticket = ticket


class Workplace:
    """Runs orders of one problem.

    Args:
        shipment: The problem.
        line: To the driver.

    Attributes:
        hashes: Of everything that workflow and guide reach.
    """

    def __init__(self, shipment: Shipment, line: Line) -> None:
        become_worker(line, taped=shipment.taped)
        sys.path[:] = [*shipment.path, *(entry for entry in sys.path if entry not in shipment.path)]
        if shipment.threads is not None:
            _use_threads(shipment.threads)
        with loading():
            workflow, guide = opened(shipment)
        self.hashes = Reach({"the workflow": workflow, "the guide": guide}).hashes
        self._base: dict[str, Any] = unpack(shipment.base)
        executor = LocalExecutor(shipment.slots)
        books: Any = _Books(line)  # all that is asked for is accounts
        self._roller = Roller(workflow, guide, books, executor, shipment.timeout)
        self._memory = Memory(meter=metering)
        self._training = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[int, Future[Any]] = {}

    def run(self, ticket: int, parcel: Parcel) -> bytes:
        """Run an order in this thread, and give what came of it, packed.

        Args:
            ticket: The attempt's number.
            parcel: The order.

        Raises:
            BaseException: what `Roller.run` raises.
        """
        order: Order = unpack(parcel)
        job = _Ordered(ticket, order)
        job.values = {**self._base, **job.values}
        with remembering(self._memory):
            rollout = self._rolled(ticket, job)
        return returned(rollout, self._memory.reported(), stuck=self._roller.stuck > 0)

    def _rolled(self, ticket: int, job: Job) -> Rollout:
        if self._roller.is_async:
            rollout, _ = self._awaited(ticket, self._roller.arun(job))
        elif job.training:
            with self._training:  # they draw from torch's own stream, which is the process's
                rollout, _ = self._roller.run(job)
        else:
            rollout, _ = self._roller.run(job)
        return rollout

    def cancel(self, ticket: int) -> None:
        """End an order of an async workflow where it waits; a thread cannot be stopped."""
        task = self._tasks.get(ticket)
        if task is not None:
            task.cancel()

    def _awaited(self, ticket: int, work: Coroutine[Any, Any, Any]) -> Any:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            Thread(target=self._loop.run_forever, name="trace_opt-rollouts", daemon=True).start()
        task = self._tasks[ticket] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return task.result()
        finally:
            del self._tasks[ticket]


def _use_threads(count: int) -> None:
    """Have torch work with as many threads as in the driver, without loading it for that."""
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
    else:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)


# -- frames ------------------------------------------------------------------------------------------------------------


class Frames:
    """Whole messages over two byte streams; writing is safe from any thread, reading is one thread's."""

    def __init__(self, read: BinaryIO, write: BinaryIO) -> None:
        self._read = read
        self._write = write
        self._lock = Lock()

    def send(self, message: Any) -> None:
        """Write a message.

        Raises:
            OSError, ValueError: nobody reads any more.
        """
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._lock:
            self._write.write(len(data).to_bytes(_HEADER, "big"))
            self._write.write(data)
            self._write.flush()

    def receive(self) -> Any:
        """Read a message.

        Raises:
            EOFError: the other side is gone.
        """
        size = int.from_bytes(self._exactly(_HEADER), "big")
        return pickle.loads(self._exactly(size))  # noqa: S301 # from the process at the other end

    def _exactly(self, size: int) -> bytes:
        data = self._read.read(size)
        if len(data) < size:
            raise EOFError("the other side has closed its end")
        return data


@dataclass(frozen=True, slots=True)
class Start:
    """The first message to a worker."""

    shipment: Shipment


@dataclass(frozen=True, slots=True)
class Run:
    """An order."""

    ticket: int
    parcel: Parcel


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for an order any more."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Answer:
    """To a question of the worker's."""

    number: int
    answer: Any


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has loaded the problem."""

    hashes: dict[str, str]


@dataclass(frozen=True, slots=True)
class Failed:
    """It could not."""

    fault: Fault


@dataclass(frozen=True, slots=True)
class Done:
    """What came of an order: bytes, or a `Fault`."""

    ticket: int
    result: Any


@dataclass(frozen=True, slots=True)
class Asked:
    """A question."""

    number: int
    question: Question


class _Pipe:
    """The line of a worker that talks in frames."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._numbers = count()
        self._open: dict[int, Future[Any]] = {}

    def ask(self, question: Question) -> Any:
        """See `Line.ask`."""
        return _opened_answer(self._asked(question).result())

    async def aask(self, question: Question) -> Any:
        """See `Line.aask`."""
        return _opened_answer(await asyncio.wrap_future(self._asked(question)))

    def _asked(self, question: Question) -> Future[Any]:
        number = next(self._numbers)
        future: Future[Any] = Future()
        self._open[number] = future
        self._frames.send(Asked(number, question))
        return future

    def answered(self, answer: Answer) -> None:
        """Give an answer to whoever waits for it."""
        future = self._open.pop(answer.number)
        if future.set_running_or_notify_cancel():
            future.set_result(answer.answer)


def _opened_answer(answer: Any) -> Any:
    if isinstance(answer, Fault):
        raise unpacked_error(answer)
    return answer


class _Served:
    """One worker process."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._pipe = _Pipe(frames)
        self._place: Workplace | None = None

    def serve(self) -> None:
        """Read messages until there are no more."""
        while True:
            message = self._frames.receive()
            match message:
                case Start():
                    self._thread(lambda shipment=message.shipment: self._start(shipment))
                case Run():
                    self._thread(lambda order=message: self._run(order))
                case Cancel():
                    if self._place is not None:
                        self._place.cancel(message.ticket)
                case _:
                    self._pipe.answered(message)

    @staticmethod
    def _thread(work: Callable[[], None]) -> None:
        Thread(target=work, name="trace_opt-rollouts", daemon=True).start()

    def _start(self, shipment: Shipment) -> None:
        try:
            self._place = Workplace(shipment, self._pipe)
            self._frames.send(Ready(self._place.hashes))
        except BaseException as error:  # noqa: BLE001 # said by the driver
            self._frames.send(Failed(packed_error(error)))

    def _run(self, order: Run) -> None:
        try:
            if self._place is None:
                raise RuntimeError("an order came before its problem")
            result: Any = self._place.run(order.ticket, order.parcel)
        except BaseException as error:  # noqa: BLE001 # raised again in the driver
            result = packed_error(error)
        self._frames.send(Done(order.ticket, result))


def main() -> None:
    """Be a worker process. What the workflow prints goes to the standard error, for the output is the line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    write = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    frames = Frames(sys.stdin.buffer, write)
    try:
        _Served(frames).serve()
    except EOFError:
        pass
    finally:
        leave()


def leave() -> None:
    """End this process and all that it started, at once."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)
