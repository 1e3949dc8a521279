"""What runs in the confined process: it forks a child for each call, and relays what the child says.

The process is confined from its first instruction (core/sandbox/process.py starts it so); its text comes by the command
line, with that of `wire.py` before it, and uses the standard library alone. The child closes every file but its own pipes,
takes on limits, gives up every system call but those of a computation (no processes, programs, signals, sockets, or change
of any file) and then runs the generated source. It says what it wants on a private pipe, in frames that are relayed, never
interpreted here.
"""

from __future__ import annotations
import __future__

import builtins
import ctypes
import gc
import json
import os
import platform
import random
import resource
import select
import signal
import struct
import sys
import time
import types
from contextlib import suppress
from typing import Any, NoReturn

from trace_opt.core.sandbox.wire import Refused, dump, load

FILE = "<generated>"
RESULT, ERROR, CALL = b"R", b"E", b"C"
HEAD = struct.Struct("!cI")

# System calls of a computation: memory, time, reading what is open or what Landlock lets it open, ending.
_X86 = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19, 20, 21, 23, 24, 25, 28, 32, 35, 39, 60, 63, 72, 78, 79, 89,
    96, 97, 98, 100, 102, 104, 107, 108, 110, 131, 186, 201, 202, 204, 217, 219, 228, 229, 230, 231, 257, 262, 267, 270,
    271, 273, 318, 324, 332, 334, 439,
)  # fmt: skip
_ARM = (
    17, 23, 25, 48, 56, 57, 61, 62, 63, 64, 65, 66, 67, 72, 73, 78, 79, 80, 93, 94, 98, 99, 101, 113, 114, 115, 123, 124, 128,
    132, 134, 135, 139, 153, 160, 163, 165, 169, 172, 173, 174, 175, 176, 177, 178, 214, 215, 216, 222, 226, 233, 278, 283,
    291, 293, 439,
)  # fmt: skip
MACHINES = {"x86_64": (0xC000003E, _X86), "aarch64": (0xC00000B7, _ARM)}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_SET_PDEATHSIG = 38, 22, 1
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_void_p)]


def filter_program(machine: str) -> bytes:
    """A seccomp program that lets the system calls of a computation through and refuses all others with EPERM."""
    audit, allowed = MACHINES[machine]
    code = [(0x20, 0, 0, 4), (0x15, 1, 0, audit), (0x06, 0, 0, 0x80000000), (0x20, 0, 0, 0)]
    code += [(0x15, len(allowed) - i, 0, number) for i, number in enumerate(allowed)]
    code += [(0x06, 0, 0, 0x00050000 | 1), (0x06, 0, 0, 0x7FFF0000)]
    return b"".join(struct.pack("HBBI", *step) for step in code)


class Confinement:
    """The last steps into confinement, prepared before the fork so that the child spends little on them."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        program = filter_program(platform.machine())
        self.text = ctypes.create_string_buffer(program, len(program))
        self.filter = _Filter(len(program) // 8, ctypes.addressof(self.text))
        # no program may be started, no process outside signalled, no abstract socket met
        self.rules = ctypes.create_string_buffer(struct.pack("QQQ", 1, 0, 3))

    def drop_privileges(self) -> None:
        """Give up every capability: a limit that was lowered stays lowered, also for root."""
        header = ctypes.create_string_buffer(struct.pack("II", 0x20080522, 0))
        number = {"x86_64": 126, "aarch64": 91}[platform.machine()]
        if self.libc.syscall(number, header, ctypes.create_string_buffer(24)) != 0:
            raise OSError("capset failed")

    def enter(self) -> None:
        """Confine this process for good."""
        libc = self.libc
        rules = libc.syscall(_LANDLOCK_CREATE, self.rules, 24, 0)
        done = (
            rules >= 0
            and libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            and libc.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0
        )
        if not done:
            raise OSError("landlock failed")
        os.close(rules)
        if libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(self.filter), 0, 0) != 0:
            raise OSError("seccomp failed")


def read_exactly(fd: int, size: int) -> bytes:
    """So many bytes.

    Raises:
        EOFError: the other end closed before.
    """
    parts: list[bytes] = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def write_frame(fd: int, kind: bytes, body: bytes) -> None:
    """One frame, whole."""
    data = memoryview(HEAD.pack(kind, len(body)) + body)
    while data:
        data = data[os.write(fd, data) :]


def read_frame(fd: int) -> tuple[bytes, bytes]:
    """One frame: its kind and its body."""
    kind, size = HEAD.unpack(read_exactly(fd, HEAD.size))
    return kind, read_exactly(fd, size)


def main() -> NoReturn:
    """Serve calls until the host closes the pipe."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    confinement = Confinement()
    confinement.drop_privileges()
    for name in json.loads(sys.argv[1]):
        __import__(name)
    gc.freeze()
    write_frame(replies, RESULT, b"ready")
    while True:
        try:
            _, body = read_frame(requests)
        except EOFError:
            os._exit(0)
        _serve(json.loads(body), requests, replies, confinement)


def _serve(request: dict[str, Any], requests: int, replies: int, confinement: Confinement) -> None:
    said_r, said_w = os.pipe()
    told_r, told_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(request, told_r, said_w, confinement)
    os.close(said_w)
    os.close(told_r)
    try:
        kind, body = _relay(request, said_r, told_w, requests, replies)
    finally:
        os.close(said_r)
        os.close(told_w)
        _kill(pid)
    status = os.waitpid(pid, 0)[1]
    if kind == b"":
        died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        kind, body = ERROR, json.dumps({"died": died}).encode()
    write_frame(replies, kind, body)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _relay(request: dict[str, Any], said: int, told: int, requests: int, replies: int) -> tuple[bytes, bytes]:
    """Hand frames of the child to the host and answers back, within the time and the size of the call."""
    left = request["seconds"]
    while True:
        start = time.monotonic()
        frame = _awaited(said, start + left, request["result"] + 100_000)
        left -= time.monotonic() - start
        if frame[0] != CALL:
            return frame
        write_frame(replies, *frame)
        kind, body = read_frame(requests)
        write_frame(told, kind, body)


def _awaited(fd: int, deadline: float, most: int) -> tuple[bytes, bytes]:
    """A frame, or what kept it from coming: `(b"", b"")` where the child died."""
    data = b""
    size = HEAD.size
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            return ERROR, b'{"limit": "time"}'
        part = os.read(fd, 1 << 20)
        if not part:
            return b"", b""
        data += part
        if len(data) >= HEAD.size and size == HEAD.size:
            size += HEAD.unpack(data[: HEAD.size])[1]
            if size > most:
                return ERROR, b'{"limit": "result"}'
    return data[:1], data[HEAD.size : size]


def _child(request: dict[str, Any], told: int, said: int, confinement: Confinement) -> NoReturn:
    status = 1
    try:
        os.dup2(told, 3) if told != 3 else None
        os.dup2(said, 4) if said != 4 else None
        os.closerange(5, 256)
        _limit(request)
        confinement.enter()
        kind, body = _run(request, 3, 4)
        write_frame(4, kind, body)
        status = 0
    except BaseException as error:  # noqa: BLE001 # whatever it is, it ends here
        with suppress(BaseException):  # nobody may be left to be told
            write_frame(4, ERROR, json.dumps({"setup": type(error).__name__ + ": " + str(error)[:200]}).encode())
    finally:
        os._exit(status)


def _limit(request: dict[str, Any]) -> None:
    seconds = int(request["seconds"]) + 1
    limits = {
        resource.RLIMIT_AS: request["memory"], resource.RLIMIT_CPU: seconds, resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NOFILE: 64,
    }  # fmt: skip
    for which, most in limits.items():
        resource.setrlimit(which, (most, most))
    sys.setrecursionlimit(request["recursion"] + 20)
    random.seed(request["seed"])


def _run(request: dict[str, Any], told: int, said: int) -> tuple[bytes, bytes]:
    module = types.ModuleType("generated")  # dataclasses look their module up
    sys.modules["generated"] = module
    space = vars(module)
    try:
        exec(compile(request["classes"], "<classes>", "exec"), space)  # noqa: S102 # dataclasses that the host wrote
        classes = {name: space[name] for name in request["names"]}
        fields = {space[name]: tuple(names) for name, names in request["names"].items()}
        for name in request["uses"]:
            space[name] = _host_function(name, told, said, classes, fields, request["result"])
        exec(compile(request["preamble"], "<preamble>", "exec"), space)  # noqa: S102 # the user's imports and constants
        args, kwargs = load(request["arguments"], classes)
        # annotations stay unevaluated: they are the original's, and may name what only its module has
        code = compile(request["source"], FILE, "exec", __future__.annotations.compiler_flag)
        exec(code, space)  # noqa: S102 # what this process is for
        if request["define_only"]:
            return RESULT, b"null"
        value = space[request["name"]](*args, **kwargs)
        if type(value) is types.CoroutineType:
            value = _finished(value)
        sys.setrecursionlimit(1000)  # the depth of a result has a limit of its own
        return RESULT, dump(value, request["result"], fields).encode()
    except Refused as error:
        return ERROR, json.dumps({"refused": str(error), "limit": "result" if error.limit else None}).encode()
    except BaseException as error:  # noqa: BLE001 # the candidate's failure, whatever its class
        return ERROR, json.dumps(_described(error)).encode()


def _finished(coroutine: Any) -> Any:
    """What a coroutine that waits for nothing but other such coroutines returns."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("async code in this sandbox may await its own functions only")


def _described(error: BaseException) -> dict[str, Any]:
    kind = type(error)
    try:
        message = str(error)[:2000]
    except BaseException:  # noqa: BLE001 # a hostile __str__
        message = "(its text could not be read)"
    line, steps, trace = None, 0, error.__traceback__
    while trace is not None and steps < 5000:
        if trace.tb_frame.f_code.co_filename == FILE:
            line = trace.tb_lineno
        trace, steps = trace.tb_next, steps + 1
    if isinstance(error, SyntaxError) and error.filename == FILE:
        line, message = error.lineno, str(error.msg)[:2000]
    limit = "memory" if kind is MemoryError else "recursion" if kind is RecursionError else None
    if "limit of host calls reached" in message:
        limit = "calls"
    name = type.__getattribute__(kind, "__name__")
    return {"type": str(name)[:100], "message": str(message), "line": line, "limit": limit}


def _host_function(name: str, told: int, said: int, classes: Any, fields: Any, room: int) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        write_frame(said, CALL, dump([name, list(args), kwargs], room, fields).encode())
        kind, body = read_frame(told)
        if kind == RESULT:
            return load(body.decode(), classes)
        failed = json.loads(body)
        known: Any = vars(builtins).get(failed["type"])
        plain = type(known) is type and issubclass(known, Exception) and not issubclass(known, UnicodeError)
        raise (known if plain else RuntimeError)(failed["message"])

    call.__name__ = call.__qualname__ = name
    return call
