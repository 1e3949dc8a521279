"""Model calls written to a file as they are answered, and answered from it later without any model.

One line of JSON a call. A replay needs no key, no network and no model file, and never falls back to them: a call that
the file does not hold ends the run. It charges the budget what the call cost when it was captured, so that a whole run
ends where it ended then and its report says the same, though nothing is spent.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Lock
from typing import Any

from trace_opt.core.codec import canonical
from trace_opt.core.rollout import Cost
from trace_opt.errors import LLMError, LLMErrorKind
from trace_opt.llm.base import LLM, Reply, Request
from trace_opt.llm.cache import described, dump_reply, load_reply
from trace_opt.llm.faults import UNSENT, CallError
from trace_opt.llm.meter import LEDGER, count, patiently


class Capture:
    """Appends calls to a file, each once; one that is paid for again leaves a line with that cost alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._written: set[str] = set()

    def keep(self, key: str, request: Request, answer: Reply | LLMError, cost: Cost | None = None) -> None:
        """Write what a call was answered with, unless it was written.

        Args:
            key: What the call is known by.
            request: What was asked.
            answer: What it was answered with.
            cost: What all its requests cost; the reply's own by default.

        Raises:
            LLMError: the file cannot be written.
        """
        if cost is None:
            cost = answer.cost if isinstance(answer, Reply) else Cost()
        paid = [cost.calls, cost.tokens_in, cost.tokens_out, cost.usd]
        line: dict[str, Any] = {"key": key, "cost": paid, "request": described(request)}
        if isinstance(answer, Reply):
            line["reply"] = json.loads(dump_reply(answer))
        else:
            line["error"] = {"kind": answer.kind, "text": str(answer)}
        data = json.dumps({**line, "request": json.loads(canonical(line["request"]))}, ensure_ascii=True) + "\n"
        with self._lock:
            if key in self._written:
                if not cost.calls:
                    return
                data = json.dumps({"key": key, "cost": paid}) + "\n"
            self._written.add(key)
            try:
                self._append(data.encode())
            except OSError as error:
                said = f"the capture file {str(self._path)!r} cannot be written ({error.strerror}); name another"
                raise CallError(said, kind="model", spent=UNSENT) from None

    def _append(self, data: bytes) -> None:
        # one write to a file opened for appending: lines of several processes do not mix
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, data)
        finally:
            os.close(handle)


class Replay:
    """The calls of a file.

    Raises:
        LLMError: the file cannot be read, or a line of it is no call.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._answers: dict[str, Reply | tuple[LLMErrorKind, str]] = {}
        self._costs: dict[str, deque[Cost]] = {}
        self._lock = Lock()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise LLMError(f"the replay file {str(path)!r} cannot be read ({error})", kind="model") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                self._read(number, line)

    def _read(self, number: int, line: str) -> None:
        try:
            data: Mapping[str, Any] = json.loads(line)
            key: str = data["key"]
            if "error" in data:
                self._answers.setdefault(key, (data["error"]["kind"], data["error"]["text"]))
            elif "reply" in data or key not in self._answers:
                self._answers.setdefault(key, load_reply(json.dumps(data["reply"])))
            said: Mapping[str, Any] = data.get("reply", {})
            paid: Sequence[Any] = data.get("cost") or said.get("cost") or [0, 0, 0, 0]
            calls, tokens_in, tokens_out, usd = paid
            self._costs.setdefault(key, deque()).append(Cost(calls, tokens_in, tokens_out, usd))
        except (ValueError, KeyError, TypeError):
            raise LLMError(
                f"line {number} of the replay file {str(self._path)!r} is no captured call; capture it again",
                kind="model",
            ) from None

    async def play(self, key: str, request: Request, llm: LLM) -> Reply:
        """Answer a call as it was answered, and charge what that cost: the n-th such call what the n-th one did.

        Raises:
            LLMError: as `find`.
            BudgetError: the budget in force cannot pay for it, as it could not have when the call was captured.
        """
        with self._lock:
            costs = self._costs.get(key)
            cost = costs.popleft() if costs else Cost()  # asked once more than it was paid for: the cache answered then
        if cost.calls or key not in self._answers:  # what the budget refused then is in no file, and refused again
            worst = llm.price(request)
            await patiently(lambda: _charge(cost, worst))
        return self.find(key, request, llm.name)

    def find(self, key: str, request: Request, name: str) -> Reply:
        """What a call was answered with.

        Raises:
            LLMError: the call is not in the file, or failed when it was captured.
        """
        answer = self._answers.get(key)
        if answer is None:
            said = request.messages[-1]["content"]
            raise CallError(
                f"the replay file {str(self._path)!r} holds no call of {name!r} with the prompt {said!r:.80}; capture"
                " the run again",
                kind="model",
                spent=UNSENT,
            )
        if isinstance(answer, Reply):
            return answer
        raise CallError(answer[1], kind=answer[0], spent=UNSENT)


async def _charge(cost: Cost, worst: Cost) -> None:
    """Reserve and settle at once, as `Meter` does around a request."""
    ledger = LEDGER.get()
    if ledger is not None:
        ledger.settle(ledger.reserve(worst), cost)
    count(cost)


_CAPTURE: ContextVar[Capture | None] = ContextVar("trace_opt_capture", default=None)
_REPLAY: ContextVar[Replay | None] = ContextVar("trace_opt_replay", default=None)


@contextmanager
def capture(path: str | Path) -> Generator[None]:
    """Write every model call of a `with` block to a file, cached ones too, for `replay`.

    Args:
        path: A file of JSON lines; calls are appended.
    """
    token = _CAPTURE.set(Capture(Path(path)))
    try:
        yield
    finally:
        _CAPTURE.reset(token)


@contextmanager
def replay(path: str | Path) -> Generator[None]:
    """Answer every model call of a `with` block from a file that `capture` wrote.

    Args:
        path: The file.

    Raises:
        LLMError: it cannot be read; within the block, of kind model, where it does not hold a call.
    """
    token = _REPLAY.set(Replay(Path(path)))
    try:
        yield
    finally:
        _REPLAY.reset(token)


def capturing() -> Capture | None:
    """Where model calls are being written to, or None."""
    return _CAPTURE.get()


def replaying() -> Replay | None:
    """Where model calls are being answered from, or None."""
    return _REPLAY.get()
