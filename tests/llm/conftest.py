"""The loopback server that speaks OpenAI's chat protocol and fails in every way a provider may; and who pays."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from trace_opt.core.rollout import Cost
from trace_opt.errors import BudgetError, LLMError
from trace_opt.llm import connect as connecting
from trace_opt.llm.base import LLM
from trace_opt.llm.models import pull

KEY = "sk-proj-abcdefghijklmnop1234567890"


def completion(text: str | None = "fine", **changes: Any) -> dict[str, Any]:
    """The body of an answer as OpenAI gives it."""
    message = {"role": "assistant", "content": text, "refusal": changes.pop("refusal", None)}
    body: dict[str, Any] = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": changes.pop("finish", "stop")}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }  # fmt: skip
    return {**body, **changes}


def error(message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of an error as OpenAI gives it."""
    return {"error": {"message": message, "type": "some_error", "param": param, "code": code}}


class LoopbackServer:
    """Answers each model name in its own way; `hits` counts requests by model name, `bodies` keeps them.

    A name with a suffix `-then-fine` fails once and answers after.
    """

    key = KEY

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.slow_s = 0.05
        self.open = 0
        self.most_open = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    owner.hits[body["model"]] += 1
                    nth = owner.hits[body["model"]]
                    owner.bodies.append(body)
                    owner.headers.append(dict(self.headers))
                try:
                    name = body["model"]
                    if name.endswith("-then-fine"):
                        name = "fine" if nth > 1 else name.removesuffix("-then-fine")
                    getattr(self, "do_" + name.replace("-", "_"))(body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                kind = "text/html" if isinstance(body, str) and body.startswith("<") else "application/json"
                self.send_response(status)
                for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(data)

            def do_fine(self, body: Any) -> None:
                self.send(200, completion())

            def do_echo(self, body: Any) -> None:
                self.send(200, completion(body["messages"][-1]["content"]))

            def do_slow(self, body: Any) -> None:
                with owner.lock:
                    owner.open += 1
                    owner.most_open = max(owner.most_open, owner.open)
                time.sleep(owner.slow_s)
                with owner.lock:
                    owner.open -= 1
                self.send(200, completion())

            def do_rate(self, body: Any) -> None:
                self.send(429, error("slow down"), {"Retry-After": "0"})

            def do_rate_1s(self, body: Any) -> None:
                self.send(429, error("slow down"), {"Retry-After": "1"})

            def do_rate_50s(self, body: Any) -> None:
                self.send(429, error("slow down"), {"Retry-After": "50"})

            def do_rate_hour(self, body: Any) -> None:
                self.send(429, error("slow down"), {"Retry-After": "3600"})

            def do_quota(self, body: Any) -> None:
                self.send(429, error("You exceeded your current quota", "insufficient_quota"))

            def do_500(self, body: Any) -> None:
                self.send(500, "<html>oops</html>")

            def do_503(self, body: Any) -> None:
                self.send(503, "<html>busy</html>")

            def do_401(self, body: Any) -> None:
                self.send(401, error(f"Incorrect API key provided: {KEY}", "invalid_api_key"))

            def do_403(self, body: Any) -> None:
                self.send(403, error("not allowed"))

            def do_404(self, body: Any) -> None:
                self.send(404, error("The model does not exist", "model_not_found"))

            def do_too_long(self, body: Any) -> None:
                said = "This model's maximum context length is 10 tokens"
                self.send(400, error(said, "context_length_exceeded"))

            def do_400(self, body: Any) -> None:
                self.send(400, error("bad thing", "bad"))

            def do_422(self, body: Any) -> None:
                self.send(422, error("unprocessable", "bad"))

            def do_408(self, body: Any) -> None:
                self.send(408, error("took too long"))

            def do_409(self, body: Any) -> None:
                self.send(409, error("conflict"))

            def reset(self) -> None:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()

            def do_reset(self, body: Any) -> None:
                self.reset()

            def do_cut(self, body: Any) -> None:
                data = json.dumps(completion()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[:30])
                self.close_connection = True

            def do_silent(self, body: Any) -> None:
                time.sleep(20)
                self.close_connection = True

            def do_drip(self, body: Any) -> None:
                data = json.dumps(completion()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                for i in range(0, len(data), 3):
                    self.wfile.write(data[i : i + 3])
                    self.wfile.flush()
                    time.sleep(0.1)

            def do_broken(self, body: Any) -> None:
                self.send(200, '{"id": "x", "choices": [')

            def do_html(self, body: Any) -> None:
                self.send(200, "<html>Welcome to the proxy</html>")

            def do_200_error(self, body: Any) -> None:
                self.send(200, error("upstream is down"))

            def do_no_choices(self, body: Any) -> None:
                self.send(200, completion(choices=[]))

            def do_null_choices(self, body: Any) -> None:
                self.send(200, completion(choices=None))

            def do_refusal(self, body: Any) -> None:
                self.send(200, completion(None, refusal="I cannot help with that"))

            def do_filtered(self, body: Any) -> None:
                self.send(200, completion(None, finish="content_filter"))

            def do_length(self, body: Any) -> None:
                self.send(200, completion("half an ans", finish="length"))

            def do_no_usage(self, body: Any) -> None:
                body = completion()
                del body["usage"]
                self.send(200, body)

            def do_no_schema(self, body: Any) -> None:
                if body.get("response_format", {}).get("type") == "json_schema":
                    self.send(400, error("response_format json_schema is not supported", param="response_format"))
                else:
                    self.send(200, completion("{}"))

            def do_no_format(self, body: Any) -> None:
                if "response_format" in body:
                    self.send(400, error("unknown field response_format"))
                else:
                    self.send(200, completion("{}"))

            def do_no_temperature(self, body: Any) -> None:
                if "temperature" in body:
                    said = "Unsupported value: 'temperature' does not support 0.0 with this model."
                    self.send(400, error(said, "unsupported_value", "temperature"))
                else:
                    self.send(200, completion())

            def do_logprobs(self, body: Any) -> None:
                top = [("Yes", -0.2), (" yes", -3.0), ("No", -2.0), ("Maybe", -4.0)]
                tops = [{"token": token, "logprob": value, "bytes": None} for token, value in top]
                content = [{**tops[0], "top_logprobs": tops}]
                body = completion("Yes", finish="length")
                body["choices"][0]["logprobs"] = {"content": content, "refusal": None}
                self.send(200, body)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=lambda: self._server.serve_forever(0.02), daemon=True).start()

    def forget(self) -> None:
        with self.lock:
            self.hits.clear()
            self.bodies.clear()
            self.headers.clear()
            self.most_open = 0

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Purse:
    """A ledger with limits that checks, at every step, that they hold."""

    role = "workflow"

    def __init__(self, calls: int = 10**9, tokens: int = 10**9, usd: float | None = None) -> None:
        self.limits = calls, tokens, usd
        self.spent = Cost()
        self.held: dict[int, Cost] = {}
        self.settled = 0
        self._next = 0
        self._lock = threading.Lock()

    def reserve(self, worst: Cost) -> int:
        with self._lock:
            total = sum(self.held.values(), self.spent) + worst
            calls, tokens, usd = self.limits
            if usd is not None and worst.usd is None:
                raise BudgetError("the price is unknown")
            if total.calls > calls or total.tokens > tokens or (usd is not None and (total.usd or 0) > usd + 1e-12):
                raise BudgetError("the budget is spent")
            self._next += 1
            self.held[self._next] = worst
            return self._next

    def settle(self, token: int | None, actual: Cost) -> None:
        with self._lock:
            if token is not None:
                worst = self.held.pop(token)  # a token settled twice is a KeyError
                assert actual.calls <= worst.calls
                self.settled += 1
            self.spent += actual


@pytest.fixture(scope="session")
def _one_server() -> Iterator[LoopbackServer]:
    server = LoopbackServer()
    yield server
    server.close()


@pytest.fixture
def server(_one_server: LoopbackServer) -> LoopbackServer:
    """The loopback server, with nothing counted yet."""
    _one_server.forget()
    return _one_server


@pytest.fixture(scope="session")
def purse() -> type[Purse]:
    return Purse


@pytest.fixture(scope="session")
def smollm2() -> LLM:
    """The embedded model, uncached; its weights are fetched once."""
    try:
        pull("smollm2")
    except LLMError as error:
        pytest.skip(f"the embedded model cannot be had here: {error}")
    return connecting.connect("embedded/smollm2", cache=None)


@pytest.fixture(autouse=True)
def _no_keys_and_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.endswith("_API_KEY") or name in ("TRACE_OPT_MODEL", "OPENAI_BASE_URL"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TRACE_OPT_CACHE", "off")
