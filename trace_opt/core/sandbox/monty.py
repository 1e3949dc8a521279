"""The default sandbox: `pydantic-monty`, a small Python interpreter in worker processes that has no way out.

It has no files, no network and no processes to give; time, memory, recursion and calls of the host are limited by the
interpreter itself. A session is fresh for every call. One thing it does not limit is the value that a call gives back: a
small graph that is a huge tree would be unfolded on our side. So results, and arguments of functions of the host, first
pass a guard that runs in the sandbox; generated code cannot reach it, for its name is drawn anew for each call.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from trace_opt.core import codecheck
from trace_opt.core.node import class_of
from trace_opt.core.sandbox import border
from trace_opt.core.sandbox.base import MESSAGE, HostCalls, Job, Limits, Sandbox, Serve
from trace_opt.core.sandbox.wire import DEPTH, Instance, Refused
from trace_opt.errors import TraceError

if TYPE_CHECKING:
    import pydantic_monty

WORKERS = 64
_SEQUENCES: tuple[Any, ...] = (list, tuple, set, frozenset)

# What the guard needs is put aside, under names drawn for the call, before generated code can give others their names.
_ASIDE = (
    "K_type, K_len, K_error, K_getattr, K_str, K_int, K_bytes, K_bool, K_float, K_list, K_tuple, K_dict, K_set, "
    "K_frozenset, K_big = type, len, ValueError, getattr, str, int, bytes, bool, float, list, tuple, dict, set, frozenset, "
    "1 << 14000\n"
)
# A copy of a value without shared parts, within a size.
_GUARD = """\
def K_out(x, left, depth=0):
    kind = K_type(x)
    left[0] -= 8
    if kind is K_str or kind is K_bytes:
        left[0] -= K_len(x)
    if left[0] < 0:
        raise K_error("M:limit:it is too large")
    if kind is K_int:
        if x < K_big and x > -K_big:
            return x
        raise K_error("M:limit:it holds an int of more than 4,000 digits")
    for atom in K_atoms:
        if kind is atom:
            return x
    if depth >= K_depth:
        raise K_error("M:limit:it is nested more than K_depth deep")
    if kind is K_list or kind is K_tuple:
        left[0] -= 8 * K_len(x)
        if left[0] < 0:
            raise K_error("M:limit:it is too large")
        y = [i if K_type(i) is K_float or K_type(i) is K_int and -K_big < i < K_big else K_out(i, left, depth + 1) for i in x]
        return y if kind is K_list else K_tuple(y)
    if kind is K_dict:
        return {K_out(k, left, depth + 1): K_out(v, left, depth + 1) for k, v in x.items()}
    if kind is K_set or kind is K_frozenset:
        return kind([K_out(i, left, depth + 1) for i in x])
    for known, name, names in K_classes:
        if kind is known:
            return {"K": name, "v": {n: K_out(K_getattr(x, n), left, depth + 1) for n in names}}
    raise K_error("M:kind:" + kind.__name__)
"""
# Most results are a number or a short text and need no guard.
_LAST = (
    "(K_r,) if K_r is None or K_type(K_r) is K_bool or K_type(K_r) is K_float or K_type(K_r) is K_str and "
    "K_len(K_r) <= K_room or K_type(K_r) is K_int and -K_big < K_r < K_big else None\n"
)
_IN = """\
def K_in(x):
    kind = K_type(x)
    if kind is K_list or kind is K_tuple or kind is K_set or kind is K_frozenset:
        return kind([K_in(i) for i in x])
    if kind is K_dict:
        if "K" in x:
            for known, name, names in K_classes:
                if name == x["K"]:
                    return known(**{k: K_in(v) for k, v in x["v"].items()})
        return {K_in(k): K_in(v) for k, v in x.items()}
    return x
"""

_LIMITS = (
    (re.compile(r"feed time limit exceeded|turn time limit exceeded"), "time"),
    (re.compile(r"sleep limit exceeded"), "sleep"),
    (re.compile(r"suspension limit \d+ exceeded|limit of host calls reached"), "calls"),
    (re.compile(r"memory limit exceeded|memory allocation"), "memory"),
    (re.compile(r"maximum recursion depth exceeded|too deeply nested"), "recursion"),
)


class Monty(Sandbox):
    """The sandbox for generated code unless another is asked for; its workers are started by the first call.

    Args:
        limits: What one call may use.
    """

    language = (
        "a small Python 3.14: functions, lambdas, closures, plain classes, dataclasses, comprehensions, generator "
        "expressions, f-strings, try, with, match and async; imports only math, re, json, datetime, collections, "
        "itertools, functools, random, bisect, typing, copy, decimal, unicodedata, hashlib and time. It has no yield, no "
        "class inheritance (so no own exceptions or enums), no property, classmethod or staticmethod, no del, no "
        "str.translate, and no files, network, os or other modules"
    )

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__(limits)
        self._lock = threading.Lock()
        self._pools: list[tuple[pydantic_monty.Monty, int]] = []  # one at most, with the process that started it
        weakref.finalize(self, _end_all, self._pools)

    def close(self) -> None:
        """End the workers; the next call starts new ones."""
        with self._lock:
            _end_all(self._pools)

    def _started(self) -> pydantic_monty.Monty:
        with self._lock:
            if not self._pools:
                self._pools.append((_pool(), os.getpid()))
            pool, owner = self._pools[0]
        if owner != os.getpid():
            # a forked process has the pool without the threads that serve it: it would wait for ever
            raise TraceError(
                "this process was forked from one whose sandbox was running; start it with the 'spawn' method, or fork "
                "before the first call of generated code"
            )
        return pool

    def _run(self, job: Job, serve: Serve | None, *, define_only: bool = False) -> Any:
        import pydantic_monty as monty

        key = "_t_" + secrets.token_hex(8)
        _sound(job.source, job.name)
        classes = border.shapes(job.returns)
        inputs = {} if define_only else self._inputs(job, key, classes)
        program = _Program(job, key, classes, self.limits)
        host = HostCalls(job, self.limits.calls, serve)
        seeded: Any = None if job.seed is None else {"random_start": {"seed": job.seed}}
        more: Any = {
            "external_lookup": program.lookup(host), "print_callback": monty.CollectString(max_bytes=self.limits.output)
        }  # fmt: skip
        try:
            with self._started().checkout(limits=self._budget(), os_policy=seeded) as session:
                value = session.feed_run(program.text(define_only=define_only), inputs=inputs, **more)
                value = session.feed_run(program.rest(), **more) if value is None else value[0]
        except monty.MontyError as error:
            host.check()
            self._fail(job, program, host, error)
        except ValueError as error:  # what the client itself cannot convert
            host.check()
            job.fail(f"gave a value that cannot cross: {str(error)[:200]}")
        host.check()
        return _plain(value, key)

    def _inputs(self, job: Job, key: str, classes: dict[str, type]) -> dict[str, Any]:
        try:
            sent = border.sent((list(job.args), dict(job.kwargs)), classes=classes)
            return {f"{key}_a": _tagged(sent[0], key), f"{key}_k": _tagged(sent[1], key)}
        except Refused as refused:
            raise TraceError(
                f"an argument of {job.name!r} cannot be handed to generated code: {refused}; pass plain data, or use "
                "sandbox='trusted'"
            ) from None

    def _budget(self) -> Any:
        limits = self.limits
        return {
            "max_feed_duration_secs": limits.seconds,
            "max_turn_duration_secs": limits.seconds,
            "max_memory": limits.memory,
            "max_recursion_depth": limits.recursion,
            "max_suspensions": limits.calls + 100,  # names that are looked up count as well
            "max_total_sleep_secs": limits.sleep,
        }

    def _fail(self, job: Job, program: _Program, host: HostCalls, error: Any) -> NoReturn:
        import pydantic_monty as monty

        if isinstance(error, monty.MontyConversionError):
            raise TraceError(
                f"an argument of {job.name!r} cannot be handed to generated code: {str(error)[:200]}"
            ) from None
        text = _cleaned(str(error), program.key)
        if isinstance(error, monty.MontyCrashedError):
            late = error.timed_out
            job.fail(
                f"{'hit the time limit' if late else 'ended its worker'} ({text[:200]})", limit="time" if late else None
            )
        line = program.line(error)
        if f"{program.mark}:" in str(error):
            kind, _, rest = str(error).partition(f"{program.mark}:")[2].partition(":")
            told = f"gave a value that cannot cross: {rest if kind == 'limit' else f'it holds a {rest!r}'}"
            job.fail(told[:300], line=line, limit="result" if kind == "limit" else None)
        limit = next((name for pattern, name in _LIMITS if pattern.search(text)), None)
        if limit == "memory" and f"> {self.limits.output} bytes" in text:
            limit = "output"
        told = f"hit the {limit} limit ({text[:200]})" if limit else f"raised {text[:MESSAGE]}"
        raise job.failure(told, line=line, limit=limit) from (
            host.raised if isinstance(host.raised, Exception) else None
        )


@functools.lru_cache(maxsize=512)
def _sound(source: str, name: str) -> None:
    """Refuse what Python itself refuses: a `return` outside a function would end the program before its guard."""
    codecheck.compiled(source, name)


def _end_all(pools: list[tuple[pydantic_monty.Monty, int]]) -> None:
    if pools and pools[0][1] == os.getpid():
        pools.pop()[0].__exit__(None, None, None)


def _pool() -> pydantic_monty.Monty:
    try:
        import pydantic_monty as monty
    except ImportError:
        raise TraceError("sandbox='monty' needs the package pydantic-monty; install pydantic-monty==1.4.*") from None
    return monty.Monty(min_processes=1, max_processes=WORKERS, checkout_timeout=600).__enter__()


class _Program:
    """The text that one call runs: what is put aside, classes and host functions, the source, the call."""

    def __init__(self, job: Job, key: str, classes: dict[str, type], limits: Limits) -> None:
        self.job = job
        self.key = key
        self.mark = "_m_" + secrets.token_hex(8)  # it shows in errors that generated code may read, so it is no name
        self.loads = bool(classes)
        atoms = "bool, float, type(None), complex, str, bytes"
        head = [_ASIDE, border.definitions(classes)]
        if "datetime" in job.source or "datetime" in job.preamble or ((job.args or job.kwargs) and _dated(job)):
            head.append("import datetime as K_d\n")
            atoms += ", K_d.date, K_d.datetime, K_d.time, K_d.timedelta"
        if "ecimal" in job.source or "ecimal" in job.preamble:
            head.append("import decimal as K_e\n")
            atoms += ", K_e.Decimal"
        table = "".join(f"({name}, {name!r}, {border.field_names(kind)!r}), " for name, kind in classes.items())
        head.append(f"K_atoms, K_classes, K_room = ({atoms}), ({table}), {limits.result}\n")
        if self.loads:
            head.append(_IN)
        if job.uses:
            head.append(_GUARD)
        head.extend(
            f"def {name}(*args, **kwargs):\n    left = [K_room]\n"
            f"    return K_f_{name}(*K_out(args, left), **K_out(kwargs, left))\n"
            for name in job.uses
        )
        self.head = self._keyed("".join(head)) + (job.preamble.rstrip("\n") + "\n" if job.preamble else "")
        self.offset = self.head.count("\n")
        self.length = job.source.count("\n") + 1

    def _keyed(self, text: str) -> str:
        return (
            re.sub(r"\bK(?=_)|\"K\"", lambda m: self.key if m[0] == "K" else f'"{self.key}"', text)
            .replace("M:", self.mark + ":")
            .replace(self.key + "_depth", str(DEPTH))
        )

    def text(self, *, define_only: bool) -> str:
        """The program up to the result, which it gives at once where that needs no guard."""
        body = self.head + self.job.source.rstrip("\n") + "\n"
        if define_only:
            return body + "(None,)"
        load = "K_in" if self.loads else ""
        wait = "await " if re.search(rf"(?m)^async\s+def\s+{self.job.name}\b", self.job.source) else ""
        call = self._keyed(f"K_r = {wait}NAME(*{load}(K_a), **{load}(K_k))\n{_LAST}")
        return body + call.replace("NAME", self.job.name, 1)

    def rest(self) -> str:
        """The program that gives a result through the guard."""
        return self._keyed(("" if self.job.uses else _GUARD) + "K_out(K_r, [K_room])")

    def lookup(self, host: HostCalls) -> dict[str, Any]:
        """What names the sandbox asks the host for."""
        return {f"{self.key}_f_{name}": _hosted(host, name, self.key) for name in self.job.uses}

    def line(self, error: Any) -> int | None:
        """The innermost line of the source that an error names."""
        frames: list[Any] = error.traceback() if hasattr(error, "traceback") else []
        lines = [frame.line - self.offset for frame in frames if frame.filename != "<python-input-1>"]
        return next((line for line in reversed(lines) if 1 <= line <= self.length), None)


def _hosted(host: HostCalls, name: str, key: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return _tagged(
            host(name, tuple(_plain(a, key) for a in args), {k: _plain(v, key) for k, v in kwargs.items()}), key
        )

    return call


def _dated(job: Job) -> bool:
    text = repr([type(x).__name__ for x in (*job.args, *job.kwargs.values())])
    return any(word in text for word in ("date", "timedelta", "list", "dict", "tuple"))


def _cleaned(text: str, key: str) -> str:
    return text.replace(key + "_", "").replace(key, "")


def _tagged(value: Any, key: str) -> Any:
    """Instances as dicts that the guard's counterpart in the sandbox understands."""
    if isinstance(value, Instance):
        return {key: value.name, "v": {name: _tagged(item, key) for name, item in value.fields.items()}}
    kind: Any = class_of(value)
    if kind in _SEQUENCES:
        return kind([_tagged(item, key) for item in value])
    if kind is dict:
        return {_tagged(k, key): _tagged(item, key) for k, item in value.items()}
    return value


def _plain(value: Any, key: str) -> Any:
    """What the guard let out, instances as `Instance`."""
    kind: Any = class_of(value)
    if kind in _SEQUENCES:
        return kind([_plain(item, key) for item in value])
    if kind is dict:
        if key in value:
            return Instance(value[key], {name: _plain(item, key) for name, item in value["v"].items()})
        return {_plain(k, key): _plain(item, key) for k, item in value.items()}
    return value
