"""A small model in this process: llama.cpp, one thread, one call at a time, the same bits every time.

A prompt's start that the model has just read is not read again, and that must not show in the numbers. Two things would
let it: flash attention, which is off, and tokens read one at a time, which go through another matrix kernel than tokens
read in company and round differently (in 9 of 40 prompts, by up to 0.05 in probability). So a prompt is always read in
company: at least its last two tokens are new, and what the model said itself is read again when it comes back.

Every generation streams, so that a deadline or Ctrl-C ends it at the next token or the next piece of the prompt.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import http.client
import importlib
import json
import math
import os
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trace_opt.core.rollout import Cost
from trace_opt.errors import LLMError
from trace_opt.llm.base import Reply, Request, normalised
from trace_opt.llm.faults import UNSENT, CallError, fault
from trace_opt.llm.prices import FREE
from trace_opt.llm.stack import Backend

T = TypeVar("T")

CONTEXT_TOKENS = 4096
# a prompt is read in pieces of this many tokens, 1-2 s each, and can be given up between two of them
_PIECE_TOKENS = 256
_LEAST_PROBABILITY = 1e-30
_CLOSE_SECONDS = 10.0

Body = dict[str, Any]


def runtime_version() -> str:
    """The version of the embedded runtime; another one may round differently.

    Raises:
        LLMError: it is not installed.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xllamacpp")
    except PackageNotFoundError:
        raise LLMError(
            "the embedded runtime 'xllamacpp' is not installed (it has no wheel for some platforms); connect to a"
            " server instead: connect('openai/NAME', base_url=...)",
            kind="model",
        ) from None


class Embedded(Backend):
    """The backend that asks a GGUF file's model.

    Args:
        name: `embedded/...`, for messages.
        path: The GGUF file.
    """

    local = True
    rates = FREE

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._path = path

    async def asend(self, request: Request) -> Reply:
        """Answer on the model's own thread."""
        runtime = _runtime(self._path, self.name)
        stop = threading.Event()
        future = runtime.submit(lambda: _Call(runtime, self.name, request, stop).answer())
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            stop.set()
            raise


@dataclass(frozen=True, slots=True)
class _Call:
    """One request on the runtime's thread."""

    runtime: _Runtime
    name: str
    request: Request
    stop: threading.Event

    def answer(self) -> Reply:
        prompt, started = self._prompt()
        ids = self.runtime.tokens_of_prompt(prompt)
        return self._score(ids, started) if self.request.answers else self._generate(ids)

    def _prompt(self) -> tuple[str, str]:
        """The whole text to continue, and that part of it with which the assistant's answer starts."""
        request = self.request
        messages = [{"role": m["role"], "content": _printable(m["content"], self.name)} for m in request.messages]
        prefill = _printable(request.prefill, self.name)
        if request.raw:
            text = "".join(m["content"] for m in messages) + prefill
            return text, text
        last = messages[-1]
        started = (last["content"] if last["role"] == "assistant" else "") + prefill
        return self.runtime.rendered(messages) + prefill, started

    def _generate(self, prompt: Sequence[int]) -> Reply:
        request = self.request
        body: Body = {
            "prompt": prompt, "n_predict": request.max_tokens, "temperature": request.temperature,
            "seed": (request.seed or 0) % 2**31, "stop": list(request.stop), "top_k": 40, "top_p": 0.95, "min_p": 0.05,
        }  # fmt: skip
        if request.schema is not None:
            body["json_schema"] = request.schema
        text, last = self._stream(body)
        usage = last.get("usage", {})
        finish = "length" if last["choices"][0]["finish_reason"] == "length" else "stop"
        cost = Cost(1, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), 0.0)
        return Reply(text="".join(text), finish=finish, cost=cost, model=self.name)

    def _score(self, prompt: Sequence[int], started: str) -> Reply:
        # a model writes a word with its leading space, except at the very start of an answer
        lead = " " if started and not started[-1].isspace() else ""
        answers = [_printable(lead + answer, self.name) for answer in self.request.answers]
        tokens = [self.runtime.tokens(answer) for answer in answers]
        firsts = [ids[0] for ids in tokens]
        if len(set(firsts)) == len(firsts):
            scores, tokens_in = self._score_firsts(prompt, firsts)
        else:
            scores, tokens_in = self._score_wholes(prompt, tokens)
        scores = normalised(scores)
        best = max(range(len(scores)), key=scores.__getitem__)
        cost = Cost(1, tokens_in, 1, 0.0)
        return Reply(text=self.request.answers[best], cost=cost, logprobs=scores, model=self.name)

    def _score_firsts(self, prompt: Sequence[int], firsts: Sequence[int]) -> tuple[list[float], int]:
        """All answers in one call: the sampler is confined to their first tokens and tells their probabilities."""
        count = len(firsts)
        _, last = self._stream({
            "prompt": prompt, "n_predict": 1, "n_probs": count, "temperature": 1, "top_k": count, "top_p": 1, "min_p": 0,
            "post_sampling_probs": True, "logit_bias": [[token, 100] for token in firsts], "seed": 0,
        })  # fmt: skip
        told = {entry["id"]: entry["prob"] for entry in last["logprobs"]["content"][0]["top_probs"]}
        scores = [math.log(max(told.get(token, 0.0), _LEAST_PROBABILITY)) for token in firsts]
        return scores, last["usage"]["prompt_tokens"]

    def _score_wholes(self, ids: Sequence[int], tokens: Sequence[Sequence[int]]) -> tuple[list[float], int]:
        """Each answer token by token, for answers that start alike."""
        # answers with a common start share its score
        known: dict[tuple[int, ...], float] = {}
        scores: list[float] = []
        for answer in tokens:
            total = 0.0
            for i, token in enumerate(answer):
                head = tuple(answer[: i + 1])
                if head not in known:
                    known[head] = self._score_token([*ids, *answer[:i]], token)
                total += known[head]
            scores.append(total)
        return scores, len(ids) + sum(len(answer) for answer in tokens)

    def _score_token(self, ids: Sequence[int], token: int) -> float:
        _, last = self._stream({
            "prompt": ids, "n_predict": 1, "n_probs": 1, "temperature": 0, "logit_bias": [[token, 100]], "seed": 0,
        })  # fmt: skip
        return last["logprobs"]["content"][0]["logprob"]

    def _stream(self, body: Body) -> tuple[list[str], Body]:
        """The texts that came, and the last piece with the log-probabilities of the first."""
        texts: list[str] = []
        probabilities: list[Any] = []
        lasts: list[Body] = []

        def receive(piece: Body) -> bool:
            lasts[:] = [piece]
            if "choices" in piece:
                choice = piece["choices"][0]
                texts.append(choice["text"])
                if choice.get("logprobs"):
                    probabilities.append(choice["logprobs"])
            return self.stop.is_set()

        try:
            self.runtime.complete({**body, "stream": True, "return_progress": True}, receive)
        except (RuntimeError, ValueError, TypeError) as error:
            raise fault(self.name, "request", "cannot take this request", said=str(error)) from None
        last = lasts[0] if lasts else {}
        if "error" in last:
            self._raise(last["error"])
        if self.stop.is_set():
            raise fault(self.name, "timeout", "was stopped", spent=None)
        if "choices" not in last or last["choices"][0].get("finish_reason") is None:
            raise fault(self.name, "malformed", "ended an answer without a reason", spent=None)
        return texts, {**last, "logprobs": probabilities[0] if probabilities else None}

    def _raise(self, error: Mapping[str, Any]) -> None:
        if error.get("type") == "exceed_context_size_error":
            what = f"has a context of {error.get('n_ctx')} tokens, the prompt has {error.get('n_prompt_tokens')}"
            raise fault(self.name, "too_long", what)
        raise fault(self.name, "request", "cannot take this request", said=str(error.get("message", error)))


def _printable(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise CallError(f"{name!r} reads text only; give a message's content as text", kind="request", spent=UNSENT)
    return text.encode("utf-8", "replace").decode("utf-8")


class _Runtime:
    """One loaded model: its server, its thread, and what only its HTTP port answers."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._process = os.getpid()
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._key = secrets.token_hex(16)  # the port is open to every process of this machine
        self._connection: http.client.HTTPConnection | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="trace_opt-embedded", daemon=True)
        self._thread.start()
        atexit.register(self._close)
        self.tokens = functools.lru_cache(maxsize=512)(self._tokens)
        # the tokens that the server holds as they were read in company, and whether it holds more after them
        self._read: Sequence[int] = ()
        self._holds_more = True

    @property
    def forked(self) -> bool:
        """Whether this is a child process's copy."""
        return os.getpid() != self._process

    @property
    def loaded(self) -> bool:
        """Whether a call has loaded the model."""
        return "server" in self.__dict__

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run a job on this model's thread, after those before it."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future

    def _close(self) -> None:
        # a thread that is within the C++ library when the interpreter goes away would abort the process
        self._closing = True
        self._jobs.put((Future(), lambda: None))
        if not self.forked:
            self._thread.join(_CLOSE_SECONDS)
            self._disconnect()

    def _serve(self) -> None:
        while not self._closing:
            future, job = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 # it belongs to whoever waits for the job
                future.set_exception(error)
            del future, job  # else they live until the next call

    @functools.cached_property
    def server(self) -> Any:
        """The llama.cpp server, loaded by the first call."""
        if not self._path.is_file():
            raise _missing(self._path, self._name)
        runtime_version()
        llama: Any = importlib.import_module("xllamacpp")  # it has no types
        params = llama.CommonParams()
        params.model.path = str(self._path)
        params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_parallel = 1
        # a second thread spins and is 4x slower on a busy machine
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_ram_mib = 0
        params.n_ctx = CONTEXT_TOKENS
        params.n_batch = params.n_ubatch = _PIECE_TOKENS
        params.verbosity = -1
        params.ui = params.warmup = params.fit_params = False
        params.n_gpu_layers = 0
        params.api_keys = [self._key]
        try:
            return llama.Server(params)
        except RuntimeError as error:
            raise fault(self._name, "model", f"cannot be loaded from {str(self._path)!r}", said=str(error)) from None

    def complete(self, body: Body, receive: Callable[[Body], bool]) -> None:
        """Send a completion of a prompt of token ids, so that its numbers do not depend on the prompts before it.

        Args:
            body: The request.
            receive: Gets each piece of the answer, and says whether to stop.
        """
        prompt: Sequence[int] = body["prompt"]
        if prompt:
            self._prepare(prompt)
        self._read, self._holds_more = (), True  # an answer that is broken off leaves the server with who knows what
        broken_off = False

        def watch(piece: Body) -> bool:
            nonlocal broken_off
            broken_off = receive(piece) or "error" in piece or self._closing
            return broken_off

        self.server.handle_completions(body if prompt else {**body, "prompt": ""}, watch)
        if not broken_off:
            self._read = prompt

    def _prepare(self, prompt: Sequence[int]) -> None:
        """See to it that the server, which reuses all it can, leaves no token of the prompt to be read alone."""
        common = _common(self._read, prompt)
        rest = len(prompt) - common
        exact = common < len(self._read) or not self._holds_more
        if exact and rest > 1 and rest % _PIECE_TOKENS != 1:
            return
        keep = max(0, min(common, len(prompt) - 2))
        if (len(prompt) - keep) % _PIECE_TOKENS == 1 and len(prompt) > 1:  # the last piece would be one token
            keep = keep - 1 if keep else len(prompt) - 8
        # a token that the prompt does not have there makes the server forget what follows
        other = prompt[keep] + 1 if prompt[keep] == 0 else prompt[keep] - 1
        self.server.handle_completions({"prompt": [*prompt[:keep], other], "n_predict": 1, "temperature": 0, "seed": 0})

    def rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation as the model's chat template writes it, up to where the answer starts."""
        return self._ask("/apply-template", {"messages": list(messages)})["prompt"]

    def tokens_of_prompt(self, text: str) -> tuple[int, ...]:
        """The token ids of a rendered prompt, its template's marks read as such."""
        return self._tokens(text, whole=True) if text else ()

    def _tokens(self, text: str, *, whole: bool = False) -> tuple[int, ...]:
        """The token ids of a text; of a `whole` prompt with the marks of the chat template read as such."""
        body = {"content": text, "add_special": whole, "parse_special": whole}
        return tuple(self._ask("/tokenize", body)["tokens"])

    def _ask(self, path: str, body: Body) -> Body:
        try:
            status, answer = self._post(path, body)
        except (OSError, http.client.HTTPException):
            if self._connection is not None:
                self._connection.close()
            self._disconnect()  # the server closes a connection that was idle
            status, answer = self._post(path, body)
        if status != 200:
            error = answer.get("error", answer)
            raise fault(self._name, "request", "cannot take these messages", said=str(error.get("message", error)))
        return answer

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, path: str, body: Body) -> tuple[int, Body]:
        if self._connection is None:
            address = self.server.listening_address.removeprefix("http://").rstrip("/")
            self._connection = http.client.HTTPConnection(address, timeout=60)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        self._connection.request("POST", path, json.dumps(body), headers)
        response = self._connection.getresponse()
        return response.status, json.loads(response.read())


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two prompts have in common at their start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


_runtimes: dict[Path, _Runtime] = {}
_runtimes_lock = threading.Lock()


def _runtime(path: Path, name: str) -> _Runtime:
    with _runtimes_lock:
        runtime = _runtimes.get(path)
        if runtime is None or (runtime.forked and not runtime.loaded):
            runtime = _runtimes[path] = _Runtime(path, name)
    if runtime.forked:  # llama.cpp's threads are gone, and a second server would hang as well
        raise LLMError(
            f"{name!r} cannot answer in a forked process; start worker processes with multiprocessing's 'spawn'",
            kind="model",
        )
    return runtime


def _missing(path: Path, name: str) -> LLMError:
    if name.endswith(".gguf"):
        return LLMError(f"there is no file {str(path)!r}; give the path of a GGUF file", kind="model")
    short = name.removeprefix("embedded/")
    return LLMError(
        f"the model {name!r} is not in {str(path.parent)!r}; fetch it with 'trace-opt models pull {short}'",
        kind="model",
    )
