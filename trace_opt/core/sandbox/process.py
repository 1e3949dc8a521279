"""Full CPython in a process that the kernel confines: Landlock and seccomp through `sandlock`, then more in each child.

A worker is started once and confined from its first instruction: it may read the interpreter and nothing else, has no
network and a clean environment. It forks a child for every call; the child gives up all system calls but those of a
computation (core/sandbox/worker.py), runs under limits and is killed when the call is over. Where the kernel cannot do
this, the sandbox refuses with one sentence instead of running anything less confined.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import select
import signal
import struct
import sys
import sysconfig
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from trace_opt.core.sandbox import border, wire
from trace_opt.core.sandbox.base import MESSAGE, HostCalls, Job, Limits, Sandbox, Serve
from trace_opt.core.sandbox.wire import Refused
from trace_opt.errors import TraceError

_HEAD = struct.Struct("!cI")
_GRACE = 3.0
_elsewhere: list[_Worker] = []
_HERE = Path(__file__).parent
# imported before the fork, so that a call need not: what small functions use
_WARM = (
    "_strptime", "abc", "array", "ast", "bisect", "calendar", "collections", "collections.abc", "contextlib", "copy",
    "dataclasses", "datetime", "decimal", "difflib", "enum", "fractions", "functools", "hashlib", "heapq", "html",
    "inspect", "io", "itertools", "json", "math", "numbers", "operator", "pprint", "random", "re", "statistics", "string",
    "struct", "textwrap", "traceback", "types", "typing", "unicodedata", "uuid",
)  # fmt: skip


# by its file: the folder around it holds other packages and is not readable
_NUMPY = """\
import importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "numpy", "{folder}/__init__.py", submodule_search_locations=["{folder}"]
)
sys.modules["numpy"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["numpy"])
"""


class Process(Sandbox):
    """Full Python with its standard library, in a process that can do nothing but compute.

    Args:
        limits: What one call may use.
        arrays: Whether numpy is there, and arrays and tensors may cross (tensors as arrays).
    """

    def __init__(self, limits: Limits | None = None, *, arrays: bool = False) -> None:
        super().__init__(limits)
        self.arrays = arrays
        version = ".".join(platform.python_version_tuple()[:2])
        self.language = (
            f"Python {version} with its standard library{' and numpy' if arrays else ''}, but no files, network, threads, "
            "processes or environment"
        )
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        # also where nobody closes it: when it is dropped, or at exit
        weakref.finalize(self, _end_all, self._idle)

    def close(self) -> None:
        """End the workers; the next call starts new ones."""
        with self._lock:
            _end_all(self._idle)

    @staticmethod
    def refusal() -> str | None:
        """Why this machine cannot run it, in one sentence, or None where it can."""
        if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
            return (
                "sandbox='process' needs Linux on x86_64 or aarch64, which confines processes with Landlock and seccomp; "
                "use the default sandbox"
            )
        try:
            import sandlock
        except (ImportError, OSError):
            return "sandbox='process' needs the package sandlock; install trace-opt-framework[process]"
        try:
            found, needed = max(0, sandlock.landlock_abi_version()), sandlock.min_landlock_abi()
        except (OSError, RuntimeError):
            found, needed = 0, 6
        if found < needed:
            return (
                f"sandbox='process' needs a kernel with Landlock ABI {needed} or later (Linux 6.7 and later) and this one "
                f"has {found or 'none'}; use the default sandbox"
            )
        return None

    def _take(self) -> _Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.alive():
                    return worker
                worker.end()
        return _Worker(arrays=self.arrays)

    def _give(self, worker: _Worker) -> None:
        with self._lock:
            if len(self._idle) < max(2, os.cpu_count() or 1):
                self._idle.append(worker)
                return
        worker.end()

    def _run(self, job: Job, serve: Serve | None, *, define_only: bool = False) -> Any:
        refusal = self.refusal()
        if refusal is not None:
            raise TraceError(refusal)
        classes = border.shapes(job.returns)
        request = self._request(job, classes, define_only=define_only)
        host = HostCalls(job, self.limits.calls, serve)
        for last in (False, True):
            worker = self._take()
            clean = False
            try:
                request["memory"] = worker.size + self.limits.memory
                kind, body = worker.call(request, self._answer(host), self.limits.seconds + _GRACE)
                clean = True
            except (EOFError, OSError):
                # an earlier call may have harmed it on its way out: only one that was new tells about this one
                if last or host.left < self.limits.calls:
                    host.check()
                    job.fail("hit the time limit (its worker was silent and was ended)", limit="time")
                continue
            finally:
                self._give(worker) if clean else worker.end()
            host.check()
            return self._result(job, kind, body, host)
        raise AssertionError("unreachable")

    def _request(self, job: Job, classes: dict[str, type], *, define_only: bool) -> dict[str, Any]:
        try:
            arguments = border.sent((list(job.args), dict(job.kwargs)), arrays=self.arrays, classes=classes)
            text = wire.dump(arguments, 2**31)
        except Refused as refused:
            raise TraceError(
                f"an argument of {job.name!r} cannot be handed to generated code: {refused}; pass plain data, or use "
                "sandbox='trusted'"
            ) from None
        return {
            "source": job.source, "name": job.name, "preamble": job.preamble, "arguments": text, "uses": list(job.uses),
            "classes": border.definitions(classes),
            "names": {name: border.field_names(kind) for name, kind in classes.items()},
            "seconds": self.limits.seconds, "recursion": self.limits.recursion, "result": self.limits.result,
            "seed": job.seed, "define_only": define_only,
        }  # fmt: skip

    def _answer(self, host: HostCalls) -> Callable[[bytes], tuple[bytes, bytes]]:
        def answer(body: bytes) -> tuple[bytes, bytes]:
            try:
                name, args, kwargs = wire.load(body.decode())
                if name not in host.job.uses:
                    raise NameError(f"{str(name)[:100]!r} is no function of the host")
                value = host(name, tuple(args), kwargs)
                return b"R", wire.dump(border.sent(value, arrays=self.arrays), 2**31).encode()
            except Exception as error:  # noqa: BLE001 # raised again in the sandbox, and by `host.check`
                return b"E", json.dumps({"type": type(error).__name__, "message": str(error)[:MESSAGE]}).encode()

        return answer

    def _result(self, job: Job, kind: bytes, body: bytes, host: HostCalls) -> Any:
        if kind == b"R":
            try:
                return wire.load(body.decode())
            except ValueError as error:
                job.fail(f"gave a value that cannot cross: {str(error)[:200]}")
        try:
            told = json.loads(body)
            line, limit = told.get("line"), told.get("limit")
        except (ValueError, AttributeError, RecursionError):
            told, line, limit = {"message": "unreadable words"}, None, None
        line = line if type(line) is int else None
        limit = limit if limit in ("time", "memory", "recursion", "calls", "result") else None
        if "setup" in told:
            raise TraceError(f"sandbox='process' cannot confine here ({told['setup']}); use the default sandbox")
        cause = host.raised if isinstance(host.raised, Exception) else None
        raise job.failure(self._told(told, limit), line=line, limit=limit or _limit_of(told)) from cause

    def _told(self, told: dict[str, Any], limit: str | None) -> str:
        limits = self.limits
        if "died" in told:
            died = told["died"]
            limit = _limit_of(told)
            name = signal.Signals(died).name if died in iter(signal.Signals) else "no signal"
            return f"hit the {limit} limit ({name})" if limit else f"ended its process ({name})"
        if "refused" in told:
            return f"gave a value that cannot cross: {str(told['refused'])[:300]}"
        if limit == "time":
            return f"hit the time limit of {limits.seconds:g} s"
        words = f"{str(told.get('type', ''))[:100]}: {str(told.get('message', ''))[:MESSAGE]}".removesuffix(
            ": "
        ).lstrip(": ")
        if limit is not None:
            return f"hit the {limit} limit ({words[:200]})" if words else f"hit the {limit} limit"
        return f"raised {words}"


def _limit_of(told: dict[str, Any]) -> str | None:
    return "time" if told.get("died") in (signal.SIGXCPU, signal.SIGKILL) else None  # what RLIMIT_CPU sends


def _end_all(idle: list[_Worker]) -> None:
    while idle:
        idle.pop().end()


class _Worker:
    """One confined process, serving one call at a time."""

    def __init__(self, *, arrays: bool) -> None:
        import sandlock

        self.owner = os.getpid()
        self.folder = tempfile.TemporaryDirectory(prefix="trace-opt-")
        # the text rather than the path: nothing of this package need be readable
        text = _script()
        start = _NUMPY.format(folder=f"{_numpy_folder()}/numpy") if arrays else ""
        self.sandbox = sandlock.Sandbox(
            fs_readable=_readable(arrays=arrays), fs_writable=["/dev/null"], clean_env=True, no_coredump=True,
            env={"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}, cwd=self.folder.name,
        )  # fmt: skip
        # no max_processes: it counts the children that have ended too, and a child of ours cannot fork at all
        # -E would leave the order of sets to chance, and the environment is clean
        command = [
            os.path.realpath(sys.executable),
            "-s",
            "-S",
            "-P",
            "-B",
            "-c",
            f"{start}{text}\nmain()\n",
            json.dumps(_WARM),
        ]
        try:
            self.process: Any = self.sandbox.popen(
                command, stdin=sandlock.StdioMode.PIPED, stdout=sandlock.StdioMode.PIPED, stderr=sandlock.StdioMode.NULL
            )
        except (RuntimeError, ValueError, OSError) as error:
            self.folder.cleanup()
            raise TraceError(f"sandbox='process' cannot confine here ({error}); use the default sandbox") from None
        self.incoming: Any = self.process.stdout
        self.outgoing: Any = self.process.stdin
        self.pid = self.process.pid or 0
        try:
            self._frame(time.monotonic() + 30)
            self.size = _address_space(self.pid)
        except (EOFError, OSError):
            self.end()
            raise TraceError(
                "sandbox='process' started its worker and the worker ended; the interpreter is not readable under "
                "confinement here, so use the default sandbox"
            ) from None

    def alive(self) -> bool:
        """Whether it still listens, to this process: after a fork it belongs to the one that started it."""
        return self.owner == os.getpid() and not select.select([self.incoming], [], [], 0)[0]

    def call(
        self, request: dict[str, Any], answer: Callable[[bytes], tuple[bytes, bytes]], seconds: float
    ) -> tuple[bytes, bytes]:
        """One call: its last frame.

        Raises:
            EOFError, OSError: the worker is gone, or was silent for longer than the call's limits allow.
        """
        self._send(b"R", json.dumps(request).encode())
        while True:
            kind, body = self._frame(time.monotonic() + seconds)
            if kind != b"C":
                return kind, body
            self._send(*answer(body))

    def _send(self, kind: bytes, body: bytes) -> None:
        data = memoryview(_HEAD.pack(kind, len(body)) + body)
        while data:
            data = data[self.outgoing.write(data) :]

    def _frame(self, deadline: float) -> tuple[bytes, bytes]:
        kind, size = _HEAD.unpack(self._exactly(_HEAD.size, deadline))
        return kind, self._exactly(size, deadline)

    def _exactly(self, size: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        while size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.incoming], [], [], left)[0]:
                raise EOFError
            part = os.read(self.incoming.fileno(), min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def end(self) -> None:
        """Kill it and all it started."""
        if self.owner != os.getpid():
            _elsewhere.append(self)  # dropping it would kill the other process's worker
            return
        with suppress(OSError, RuntimeError):
            self.process.kill()
            self.process.wait(timeout=5)
        for stream in (self.incoming, self.outgoing):
            stream.close()
        self.folder.cleanup()


@functools.lru_cache(maxsize=1)
def _script() -> str:
    """The text of `wire.py` and `worker.py` as one, without what only packages need."""
    texts = [(_HERE / name).read_text(encoding="utf-8") for name in ("wire.py", "worker.py")]
    dropped = ("from __future__ import", "from trace_opt.")
    return "\n".join(line for text in texts for line in text.splitlines() if not line.startswith(dropped))


def _readable(*, arrays: bool) -> list[str]:
    """The interpreter, its library, the folder of the system's shared libraries, and two devices."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}  # not the virtual environment's
    library = {sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")}
    found = {os.path.realpath(sys.executable), "/dev/urandom", "/dev/null", *library}
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        shared = Path("/" + line.partition("/")[2])
        if shared.name.startswith(("libc.so", "ld-linux")):
            found |= {str(shared.parent), "/lib64"}  # where the loader looks, resolved and by its old name
        elif shared.name.startswith("libpython"):
            found.add(str(shared))
    if arrays:
        found |= {f"{_numpy_folder()}/numpy", f"{_numpy_folder()}/numpy.libs"}
    return sorted(folder for folder in found if Path(folder).exists())


def _numpy_folder() -> str:
    import numpy as np

    return str(Path(np.__file__).parents[1])


def _address_space(pid: int) -> int:
    """Bytes of address space of a process; its children start with as much."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")
