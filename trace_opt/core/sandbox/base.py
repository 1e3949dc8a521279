"""What every sandbox has in common: the limits, one call as data, the functions of the host, and the two ways to wait.

`call` blocks the thread it is made in; `acall` runs it in a thread of its own and serves the functions of the host in the
task that awaits, so an op called from generated code records where the workflow stands.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, NoReturn

from trace_opt.core.sandbox import border
from trace_opt.core.sandbox.wire import Refused
from trace_opt.core.strand import blames_candidate
from trace_opt.errors import CodeError, TraceError

ANY: Any = inspect.Signature.empty
Serve = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
MESSAGE = 2000  # characters of an exception's text that are kept


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may use; every one is always in force.

    Args:
        seconds: Running time, without the time that functions of the host take.
        memory: Bytes.
        recursion: Depth of nested calls.
        calls: Calls of functions of the host.
        sleep: Seconds slept, where the sandbox counts them apart; else they count as running time.
        output: Characters printed, where the sandbox counts them.
        result: Characters that a result, or the arguments of a function of the host, may take as data.
    """

    seconds: float = 2.0
    memory: int = 128 * 2**20
    recursion: int = 400
    calls: int = 200
    sleep: float = 1.0
    output: int = 100_000
    result: int = 4_000_000

    def __post_init__(self) -> None:
        if not min(self.seconds, self.memory, self.recursion, self.calls, self.output, self.result) > 0:
            raise ValueError(f"{self!r} has a limit that is not above 0; give each a positive number")


@dataclass(frozen=True, slots=True)
class Job:
    """One call of a generated function.

    Args:
        source: The generated source.
        name: The function in it.
        args, kwargs: Its arguments.
        uses: The functions of the host that it may call, by name.
        preamble: Source that runs before it: imports and constants (see `Contract.preamble`).
        returns: The annotation of its result, or `ANY`.
        seed: The seed of its `random` module; None takes a new one at every call.
    """

    source: str
    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    uses: Mapping[str, Callable[..., Any]] = field(default_factory=dict[str, Any])
    preamble: str = ""
    returns: Any = ANY
    seed: int | None = None

    def fail(self, what: str, *, line: int | None = None, limit: str | None = None) -> NoReturn:
        """Raise the CodeError of this call.

        Args:
            what: What happened, as the end of the sentence that starts with the function's name.
            line: The line of the source.
            limit: Which limit was hit.
        """
        raise self.failure(what, line=line, limit=limit)

    def failure(self, what: str, *, line: int | None = None, limit: str | None = None) -> CodeError:
        """The CodeError of this call, as for `fail`."""
        where = ""
        lines = self.source.splitlines()
        if line is not None and 1 <= line <= len(lines):
            where = f" at line {line} (`{lines[line - 1].strip()[:120]}`)"
        return CodeError(f"generated {self.name!r} {what}{where}", source=self.source, line=line, limit=limit)


class HostCalls:
    """The functions of the host for one call: counted, and with what they raise kept apart from the candidate's failures.

    Args:
        job: The call.
        most: How many may be made.
        serve: Calls a function of the host; by default at once, in this thread.
    """

    def __init__(self, job: Job, most: int, serve: Serve | None) -> None:
        self.job = job
        self.left = most
        self.serve = served if serve is None else serve
        self.fault: BaseException | None = None
        self.raised: BaseException | None = None

    def __call__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call one of them, its result as data.

        Raises:
            Exception: as the function raised, or what was raised before that no candidate is to blame for.
        """
        if self.fault is not None:
            raise self.fault
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("limit of host calls reached")
        try:
            value = self.serve(self.job.uses[name], args, kwargs)
        except BaseException as error:
            self.raised = error
            if not blames_candidate(error):
                self.fault = error
            raise
        try:
            return border.sent(value)
        except Refused as refused:
            self.fault = TraceError(
                f"{name!r} returned {border.brief(value)}, which cannot be handed to generated code: {refused}; let it "
                "return numbers, text, lists, dicts or dataclasses"
            )
            raise self.fault from None

    def check(self) -> None:
        """Raise what no candidate is to blame for, also where generated code swallowed it."""
        if self.fault is not None:
            raise self.fault


def served(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function of the host in this thread; an async one in a loop of its own."""
    value = fn(*args, **kwargs)
    return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value


async def _awaited(value: Any) -> Any:
    return await value


class Sandbox(ABC):
    """Runs generated functions. A call leaves nothing behind: no state, no file, no process.

    Args:
        limits: What one call may use.

    Attributes:
        language: Which Python it speaks, in words for the model that writes the code.
        arrays: Whether numpy arrays and tensors may cross.
        data: Whether values cross as data; False where generated code gets the objects themselves.
    """

    language: str = ""
    arrays: bool = False
    data: bool = True

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()

    def call(
        self, source: str, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
        uses: Mapping[str, Callable[..., Any]] | None = None, *, preamble: str = "", returns: Any = ANY,
        seed: int | None = None,
    ) -> Any:  # fmt: skip
        """Call a generated function and wait.

        Args:
            source: The generated source; it has passed `checked`.
            name: The function in it.
            args, kwargs: Its arguments; in `monty` and `process` they cross as data.
            uses: The functions of the host that it may call, by name; they too get and give data.
            preamble: Source that runs before it.
            returns: The annotation that its result must satisfy.
            seed: Seeds its `random` module.

        Returns:
            Its result, of the annotated type.

        Raises:
            CodeError: it failed in whatever way; the candidate's failure.
            TraceError: an argument cannot cross, or the sandbox cannot run here.
            Exception: unchanged, what a function of the host raised that no candidate is to blame for.
        """
        job = Job(source, name, tuple(args), dict(kwargs or {}), dict(uses or {}), preamble, returns, seed)
        return self._finish(job, None)

    async def acall(
        self, source: str, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
        uses: Mapping[str, Callable[..., Any]] | None = None, *, preamble: str = "", returns: Any = ANY,
        seed: int | None = None,
    ) -> Any:  # fmt: skip
        """As `call`, without blocking the loop; functions of the host may be async and run in the awaiting task."""
        job = Job(source, name, tuple(args), dict(kwargs or {}), dict(uses or {}), preamble, returns, seed)
        return await _Errand(lambda serve: self._finish(job, serve)).run()

    def check(self, source: str, name: str, *, preamble: str = "") -> None:
        """Run the definition alone, to find at proposal time what this sandbox's Python does not speak.

        Raises:
            CodeError: it does not run.
        """
        self._run(Job(source, name, preamble=preamble), None, define_only=True)

    def _finish(self, job: Job, serve: Serve | None) -> Any:
        value = self._run(job, serve)
        try:
            return border.admitted(value, job.returns)
        except Refused as refused:
            job.fail(f"returned {border.brief(value)}; {refused}", limit="result" if refused.limit else None)

    @abstractmethod
    def _run(self, job: Job, serve: Serve | None, *, define_only: bool = False) -> Any:
        """The raw value of the call."""

    def close(self) -> None:  # noqa: B027 # one without workers has nothing to end
        """End its workers; the next call starts new ones."""

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Errand:
    """A blocking call made in a thread, whose requests are served by the task that awaits it."""

    def __init__(self, work: Callable[[Serve], Any]) -> None:
        self.work = work
        self.loop = asyncio.get_running_loop()
        self.inbox: asyncio.Queue[tuple[Any, ...] | None] = asyncio.Queue()
        self.outcome: Future[Any] = Future()
        self.gone = False

    async def run(self) -> Any:
        # a thread for each: a pool could fill up with calls that wait for calls they made themselves
        threading.Thread(target=copy_context().run, args=(self._thread,), daemon=True).start()
        try:
            while (request := await self.inbox.get()) is not None:
                await _answer(*request)
        finally:
            self.gone = True
        return self.outcome.result()

    def _thread(self) -> None:
        try:
            self.outcome.set_result(self.work(self._serve))
        except BaseException as error:  # noqa: BLE001 # raised where it is awaited
            self.outcome.set_exception(error)
        self._post(None)

    def _post(self, request: tuple[Any, ...] | None) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.inbox.put_nowait, request)

    def _serve(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answer: Future[Any] = Future()
        self._post((answer, fn, args, kwargs))
        while True:
            try:
                return answer.result(timeout=0.5)
            except TimeoutError:
                if answer.done():
                    raise
                if self.gone:
                    raise asyncio.CancelledError from None


async def _answer(answer: Future[Any], fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        value = fn(*args, **kwargs)
        answer.set_result(await value if inspect.isawaitable(value) else value)
    except asyncio.CancelledError as error:
        answer.set_exception(error)
        raise
    except BaseException as error:  # noqa: BLE001 # raised in the thread that asked
        answer.set_exception(error)
