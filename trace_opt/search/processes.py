"""Workers that are processes on this machine.

Each is a fresh interpreter: nothing is forked, so threads, model runtimes and torch are none of their own. Driver and
worker talk through the worker's standard input and output. A worker has a process group of its own, which Ctrl-C in the
terminal does not reach; it ends when its driver ends it, or ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Lock, Thread
from typing import Any, cast

import trace_opt
from trace_opt.search.distant import DistantExecutor, Worker, WorkerLost
from trace_opt.search.gateway import Gateway
from trace_opt.search.shipping import Fault, Parcel, Shipment, unpacked_error
from trace_opt.search.worker import Answer, Asked, Cancel, Done, Failed, Frames, Ready, Run, Start, without_keys

_GONE_S = 1.0
_MAIN = "from trace_opt.search.worker import main; main()"


class ProcessExecutor(DistantExecutor):
    """Runs rollouts in worker processes on this machine: for workflows that compute, or that may hang or crash.

    A workflow of the top level of a file is sent by name, one that `load_problem` made is made again in the worker. Remote
    models are asked by this process; embedded ones run in each worker. A worker that dies is replaced and its rollouts
    are run again. In a script, start the search under `if __name__ == "__main__":`.

    Args:
        workers: How many; one for each core by default.
        copies: As in `DistantExecutor`.
        secrets: Names of environment variables that workers see although they hold secrets, for the workflow's own tools.
    """

    def __init__(
        self, workers: int | None = None, *, copies: float | None = None, secrets: Sequence[str] = ()
    ) -> None:  # fmt: skip
        super().__init__(workers, copies=copies)
        self._secrets = tuple(secrets)
        self._lock = Lock()
        self._processes: list[_Process] = []
        self._closed = False

    def count(self) -> int:
        """How many workers there are to be."""
        if self.workers is not None:
            return self.workers
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def open(self, shipment: Shipment, hashes: Mapping[str, str], concurrency: int) -> None:
        """See `DistantExecutor.open`."""
        super().open(shipment, hashes, concurrency)
        self._closed = False

    async def start(self, shipment: Shipment, gateway: Gateway) -> Worker:
        """Start a process."""
        made = _Process(gateway, without_keys(dict(os.environ), self._secrets))
        with self._lock:
            self._processes.append(made)
        if self._closed:
            made.kill()
        made.load(shipment)
        return made

    def close(self) -> None:
        """Kill all workers, those that are starting too."""
        self._closed = True
        super().close()
        with self._lock:
            processes, self._processes = self._processes, []
        for process in processes:
            process.kill()


class _Process:
    """One worker process."""

    def __init__(self, gateway: Gateway, environment: dict[str, str]) -> None:
        root = str(Path(trace_opt.__file__).parents[1])
        found = environment.get("PYTHONPATH")
        self._gateway = gateway
        self._process = subprocess.Popen(  # noqa: S603 # this interpreter, with a fixed text
            [sys.executable, "-c", _MAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env={**environment, "PYTHONPATH": os.pathsep.join([root, *([found] if found else [])])},
        )  # fmt: skip
        self._frames = Frames(cast("Any", self._process.stdout), cast("Any", self._process.stdin))
        self._lock = Lock()
        self._lost = False
        self._ready: Future[Mapping[str, str]] = Future()
        self._orders: dict[int, Future[bytes]] = {}
        Thread(target=self._listen, name="trace_opt-worker", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def load(self, shipment: Shipment) -> None:
        """Have it load the problem."""
        self._say(Start(shipment))

    async def ready(self) -> Mapping[str, str]:
        """See `Worker.ready`."""
        return await asyncio.wrap_future(self._ready)

    async def run(self, ticket: int, parcel: Parcel) -> bytes:
        """See `Worker.run`."""
        future: Future[bytes] = Future()
        with self._lock:
            if self._lost:
                raise WorkerLost(self._how())
            self._orders[ticket] = future
        self._say(Run(ticket, parcel))
        return await asyncio.wrap_future(future)

    def cancel(self, ticket: int) -> None:
        """See `Worker.cancel`."""
        self._say(Cancel(ticket))

    def kill(self) -> None:
        """End it with all that it has started."""
        if self._process.poll() is None:
            if hasattr(os, "killpg"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        self._all_lost()

    def _say(self, message: Any) -> None:
        try:
            self._frames.send(message)
        except (OSError, ValueError):
            self._all_lost()

    def _listen(self) -> None:
        try:
            while True:
                self._hear(self._frames.receive())
        except EOFError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GONE_S)  # it may have a reason to give
        except Exception:  # noqa: BLE001,S110 # what makes no sense is no worker's word
            pass
        self.kill()
        cast("Any", self._process.stdout).close()

    def _hear(self, message: Any) -> None:
        match message:
            case Asked():
                number = message.number
                self._gateway.handle(message.question, lambda answer: self._say(Answer(number, answer)))
            case Done():
                with self._lock:
                    future = self._orders.pop(message.ticket, None)
                if future is not None:
                    _settle(future, message.result)
            case Ready():
                _settle(self._ready, message.hashes)
            case Failed():
                _settle(self._ready, message.fault)
            case _:
                raise ValueError(f"a worker said {message!r:.80}")

    def _how(self) -> str:
        code = self._process.poll()
        return "it is going" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"

    def _all_lost(self) -> None:
        with self._lock:
            self._lost = True
            orders, self._orders = list(self._orders.values()), {}
        for future in (*orders, self._ready):
            if not future.done() and future.set_running_or_notify_cancel():
                future.set_exception(WorkerLost(self._how()))
        with contextlib.suppress(OSError, ValueError):
            cast("Any", self._process.stdin).close()


def _settle(future: Future[Any], result: Any) -> None:
    if future.done() or not future.set_running_or_notify_cancel():
        return
    if isinstance(result, Fault):
        future.set_exception(unpacked_error(result))
    else:
        future.set_result(result)
