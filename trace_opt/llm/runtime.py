"""llama.cpp with one model loaded: one thread, one call at a time, the same bits every time.

A prompt's start that the model has just read is not read again, and that must not show in the numbers. Two things would
let it: flash attention, which is off, and tokens read one at a time, which go through another matrix kernel than tokens
read in company and round differently (in 9 of 40 prompts, by up to 0.05 in probability). So a prompt is always read in
company: at least its last two tokens are new, and what the model said itself is read again when it comes back.
"""

from __future__ import annotations

import atexit
import functools
import http.client
import importlib
import json
import os
import queue
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from trace_opt.errors import LLMError
from trace_opt.llm.faults import fault

T = TypeVar("T")

CONTEXT_TOKENS = 4096
# a prompt is read in pieces of this many tokens, 1-2 s each, and can be given up between two of them
_PIECE_TOKENS = 256
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


class Runtime:
    """One loaded model: its server, its thread, and what only its HTTP port answers."""

    def __init__(self, path: Path, name: str, adapter: Path | None = None) -> None:
        self._path = path
        self._adapter = adapter
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
        if self._adapter is not None:
            if not self._adapter.is_file():
                said = f"there is no file {str(self._adapter)!r}; write it with export_adapter(policy, path)"
                raise LLMError(said, kind="model")
            params.lora_adapters = [llama.CommonAdapterLoraInfo(str(self._adapter), 1.0)]
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


_loaded: dict[tuple[Path, Path | None], Runtime] = {}
_loaded_lock = threading.Lock()


def runtime_of(path: Path, name: str, adapter: Path | None = None) -> Runtime:
    """The loaded model of a file, with an adapter's or without, one for the whole process.

    Raises:
        LLMError: this is a forked process and its parent had loaded it.
    """
    with _loaded_lock:
        runtime = _loaded.get((path, adapter))
        if runtime is None or (runtime.forked and not runtime.loaded):
            runtime = _loaded[path, adapter] = Runtime(path, name, adapter)
    if runtime.forked:  # llama.cpp's threads are gone, and a second server would hang as well
        raise LLMError(
            f"{name!r} cannot answer in a forked process; start worker processes with multiprocessing's 'spawn'",
            kind="model",
        )
    return runtime


def _missing(path: Path, name: str) -> LLMError:
    short = name.removeprefix("embedded/").partition("+")[0]
    if short.endswith(".gguf"):
        return LLMError(f"there is no file {str(path)!r}; give the path of a GGUF file", kind="model")
    return LLMError(
        f"the model {name!r} is not in {str(path.parent)!r}; fetch it with 'trace-opt models pull {short}'",
        kind="model",
    )
