"""Generated code in this process, for people who mean it: nothing is confined, and one loud warning says so."""

from __future__ import annotations
import __future__

import inspect
import linecache
import random
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from trace_opt.core.parameter import short
from trace_opt.core.sandbox import border
from trace_opt.core.sandbox.base import ANY, MESSAGE, HostCalls, Job, Limits, Sandbox, Serve, served
from trace_opt.core.sandbox.wire import Refused
from trace_opt.core.strand import blames_candidate
from trace_opt.errors import CodeError

_KEPT = 256  # compiled sources


class Trusted(Sandbox):
    """Runs generated code in this process, with all rights of the user and no limits of any kind.

    Args:
        limits: Taken and not enforced: nothing can be, in process.
        namespace: Names that generated code finds, such as the globals of the original function.

    Objects cross as they are; the result is checked against its annotation.
    """

    language = f"Python {sys.version_info[0]}.{sys.version_info[1]}, all of it"
    arrays = True
    data = False
    _warned = False

    def __init__(self, limits: Limits | None = None, *, namespace: Mapping[str, Any] | None = None) -> None:
        super().__init__(limits)
        self.namespace = namespace
        self._kept: dict[Any, Callable[..., Any]] = {}
        self._lock = threading.Lock()

    def call(
        self, source: str, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
        uses: Mapping[str, Callable[..., Any]] | None = None, *, preamble: str = "", returns: Any = ANY,
        seed: int | None = None,
    ) -> Any:  # fmt: skip
        """As `Sandbox.call`; a seed seeds this process's `random` for the call and puts its state back."""
        fn = None if uses or seed is not None else self._kept.get((source, name, preamble))
        if fn is None:
            return super().call(source, name, args, kwargs, uses, preamble=preamble, returns=returns, seed=seed)
        try:
            value = fn(*args, **kwargs) if kwargs else fn(*args)
        except BaseException as error:
            if not _candidates(error):
                raise
            _raised(Job(source, name), error)
        if returns is ANY or returns is Any or type(value) is returns:
            return value
        return self._admitted(Job(source, name, returns=returns), value)

    async def acall(
        self, source: str, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
        uses: Mapping[str, Callable[..., Any]] | None = None, *, preamble: str = "", returns: Any = ANY,
        seed: int | None = None,
    ) -> Any:  # fmt: skip
        """As `Sandbox.acall`; an `async def` runs in the awaiting task itself and awaits async functions of the host."""
        job = Job(source, name, tuple(args), dict(kwargs or {}), dict(uses or {}), preamble, returns, seed)
        host = HostCalls(job, self.limits.calls, _natural)
        try:
            fn = self._defined(job, host)
        except BaseException as error:
            if not _candidates(error):
                raise
            _raised(job, error)
        if not inspect.iscoroutinefunction(fn):
            return await super().acall(source, name, args, kwargs, uses, preamble=preamble, returns=returns, seed=seed)
        return self._admitted(job, await self._awaited(job, host, fn))

    async def _awaited(self, job: Job, host: HostCalls, fn: Callable[..., Any]) -> Any:
        with _guarded(job, host):
            _seed(job)
            value = await fn(*job.args, **job.kwargs)
        host.check()
        return value

    def _finish(self, job: Job, serve: Serve | None) -> Any:
        return self._admitted(job, self._run(job, serve))

    def _admitted(self, job: Job, value: Any) -> Any:
        if job.returns is ANY or job.returns is Any or not _checkable(job.returns):
            return value
        try:
            fits = isinstance(value, job.returns) if inspect.isclass(job.returns) else None
            if fits is not True or (isinstance(value, bool) and job.returns is not bool):
                border.admitted(value, job.returns)
        except Refused as refused:
            job.fail(f"returned {short(value, 60)}; {refused}")
        return value

    def _run(self, job: Job, serve: Serve | None, *, define_only: bool = False) -> Any:
        host = HostCalls(job, self.limits.calls, serve)
        with _guarded(job, host):
            fn = self._defined(job, host)
            if define_only:
                return None
            _seed(job)
            value = fn(*job.args, **job.kwargs)
            if inspect.iscoroutine(value):
                value = (served if serve is None else serve)(_same, (value,), {})
        host.check()
        return value

    def _defined(self, job: Job, host: HostCalls) -> Callable[..., Any]:
        self._warn()
        key = (job.source, job.name, job.preamble)
        if not job.uses and key in self._kept:
            return self._kept[key]
        space: dict[str, Any] = {**(self.namespace or {}), "__name__": "generated"}
        for name in job.uses:
            space[name] = _direct(job.uses[name], host)
        file = filename(job.source, job.name)
        exec(compile(job.preamble, "<preamble>", "exec"), space)  # noqa: S102 # the user's imports and constants
        code = compile(job.source, file, "exec", __future__.annotations.compiler_flag)
        exec(code, space)  # noqa: S102 # the user asked for it
        if not job.uses:
            with self._lock:
                if len(self._kept) >= _KEPT:
                    self._kept.clear()
                self._kept[key] = space[job.name]
        return space[job.name]

    def _warn(self) -> None:
        if not Trusted._warned:
            Trusted._warned = True
            warnings.warn(
                "sandbox='trusted' runs code that a language model wrote in this process, with all your rights: it can "
                "read, change and send whatever you can",
                RuntimeWarning,
                stacklevel=4,
            )


def filename(source: str, name: str) -> str:
    """A file name under which tracebacks find the lines of a generated source."""
    made = f"<generated {name}>"
    linecache.cache[made] = (len(source), None, source.splitlines(keepends=True), made)
    return made


@contextmanager
def _guarded(job: Job, host: HostCalls) -> Generator[None]:
    """Run generated code: what it raises is the candidate's failure, and the process's chance is afterwards as it was."""
    state = None if job.seed is None else random.getstate()
    try:
        yield
    except BaseException as error:
        host.check()
        if not _candidates(error):
            raise
        _raised(job, error)
    finally:
        if state is not None:
            random.setstate(state)


def _seed(job: Job) -> None:
    if job.seed is not None:
        random.seed(job.seed)


def _direct(fn: Callable[..., Any], host: HostCalls) -> Callable[..., Any]:
    if host.serve is _natural and inspect.iscoroutinefunction(fn):

        async def acall(*args: Any, **kwargs: Any) -> Any:
            try:
                return await fn(*args, **kwargs)
            except BaseException as error:
                _note(host, error)
                raise

        return acall

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return host.serve(fn, args, kwargs)
        except BaseException as error:
            _note(host, error)
            raise

    return call


def _note(host: HostCalls, error: BaseException) -> None:
    """Keep what a function of the host raised, apart where no candidate is to blame for it."""
    host.raised = error
    if not blames_candidate(error):
        host.fault = error


def _natural(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function of the host where the code that calls it runs."""
    return fn(*args, **kwargs)


def _same(value: Any) -> Any:
    return value


def _checkable(annotation: Any) -> bool:
    return border.obstacle(annotation, arrays=True) is None


def _candidates(error: BaseException) -> bool:
    """Whether the generated code is to blame: also for leaving the interpreter, never for a Ctrl-C."""
    return isinstance(error, SystemExit) or blames_candidate(error)


def _raised(job: Job, error: BaseException) -> NoReturn:
    line, trace = None, error.__traceback__
    file = f"<generated {job.name}>"
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename == file:
        line = error.lineno
    if isinstance(error, CodeError):
        raise error
    limit = "memory" if isinstance(error, MemoryError) else "recursion" if isinstance(error, RecursionError) else None
    try:
        words = str(error)[:MESSAGE]
    except Exception:  # noqa: BLE001 # a hostile __str__
        words = "(its text could not be read)"
    told = f"{type(error).__name__}: {words}".removesuffix(": ")
    raise job.failure(
        f"hit the {limit} limit ({told})" if limit else f"raised {told}", line=line, limit=limit
    ) from error
