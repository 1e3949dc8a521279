"""Every remote call of a worker goes through the driver: one key, one ledger, one rate limit, and replies are paid for once."""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.search import sent_problems as sent
from tests.search.conftest import Listed
from trace_opt.core.rollout import Cost
from trace_opt.errors import BudgetError, LLMError
from trace_opt.llm import replay
from trace_opt.llm.base import Reply, Request
from trace_opt.llm.connect import connect, connected
from trace_opt.llm.elsewhere import (
    Find,
    Keep,
    Price,
    Question,
    Reserve,
    Send,
    Settle,
    Spec,
    Through,
    become_worker,
    through,
)
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.gateway import Errand, Gateway
from trace_opt.search.ledger import Ledger
from trace_opt.search.processes import ProcessExecutor
from trace_opt.search.shipping import Fault, unpacked_error

KEY = "sk-the-real-key"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers are killed by signals here")


class Served:
    """A server that shouts back, and what it saw.

    Attributes:
        asked: Prompt and seed of each request.
        keys: The keys sent.
        peak: The most requests at once.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, int | None]] = []
        self.keys: set[str] = set()
        self.peak = 0
        self._now = 0
        self._lock = threading.Lock()
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                data = json.loads(self.rfile.read(int(self.headers["content-length"])))
                body = json.dumps(served.answer(data, self.headers.get("authorization", ""))).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, data: Any, key: str) -> Any:
        text, seed = data["messages"][-1]["content"], data.get("seed")
        with self._lock:
            self.asked.append((text, seed))
            self.keys.add(key.removeprefix("Bearer "))
            self._now += 1
            self.peak = max(self.peak, self._now)
        time.sleep(0.005)
        with self._lock:
            self._now -= 1
        shown = text.removeprefix("Say it: ")
        said = shown.removeprefix("Shout it: ").upper() if shown.startswith("Shout it: ") else shown
        if data.get("temperature", 0) > 0:
            said += f" {seed}"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "test",
            "choices": [choice],
            "usage": usage,
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Served]:
    made = Served()
    monkeypatch.setenv("SENT_SERVER", made.url)
    monkeypatch.setenv("SENT_API_KEY", KEY)
    monkeypatch.setenv("SENT_FOLDER", str(tmp_path))
    held = sent.server(), sent.server(temperature=1.0)
    yield made
    del held
    made.close()


def run(workflow: Any, guide: Any, executor: Any, **more: Any) -> Any:
    options: dict[str, Any] = {
        "optimizers": [Listed([{"prompt": "Shout it: "}])],
        "store": None,
        "seed": 3,
        "concurrency": 6,
    }
    return optimize(workflow, sent.examples(more.pop("count", 12)), guide, executor=executor, **(options | more))


def test_calls_of_workers_are_the_drivers_with_its_key_its_limit_and_its_ledger(served: Served) -> None:
    here = run(sent.remotely, sent.loud, None)
    asked, served.asked = sorted(served.asked, key=str), []
    there = run(sent.remotely, sent.loud, ProcessExecutor(2))
    assert sorted(served.asked, key=str) == asked
    assert served.keys == {KEY}
    assert served.peak <= 2  # the connection's concurrency, over all workers
    assert (there.best, there.spent) == (here.best, here.spent)
    assert there.best == {"prompt": "Shout it: "}
    assert there.spent["workflow"].calls == len(asked)
    assert there.spent["workflow"].usd == pytest.approx(0.007 * len(asked))


def test_a_rollout_whose_worker_dies_after_its_call_does_not_pay_for_it_again(served: Served) -> None:
    here = run(sent.remotely, sent.loud, None, count=4)
    count, served.asked = len(served.asked), []
    there = run(sent.remotely_dying, sent.loud, ProcessExecutor(2), count=4)
    assert len(list(Path(os.environ["SENT_FOLDER"]).iterdir())) == 4  # every example has killed a worker
    assert len(served.asked) == count
    assert there.spent == here.spent
    assert [(t.before, t.after) for t in there.history] == [(t.before, t.after) for t in here.history]


def test_a_worker_draws_what_the_same_rollout_draws_here(served: Served) -> None:
    run(sent.drawing, sent.never, None, count=6)
    asked, served.asked = sorted(served.asked, key=str), []
    run(sent.drawing, sent.never, ProcessExecutor(2), count=6)
    assert sorted(served.asked, key=str) == asked
    assert len(set(asked)) == len(asked)  # two draws of one prompt have two seeds


def test_no_key_is_in_a_workers_environment(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
    found = run(sent.keys_seen, sent.never, ProcessExecutor(1), optimizers=[Listed([])])
    output = found.graph.to_text()
    assert "held-by-the-driver held-by-the-driver" in output
    assert "sk-" not in output


@pytest.mark.parametrize("limits", [{"usd": 1.5}, {"calls": 20}], ids=str)
def test_the_budget_is_not_exceeded_by_calls_of_workers(limits: Any, served: Served) -> None:
    try:
        spent = run(sent.remotely, sent.loud, ProcessExecutor(2), budget=Budget(**limits)).spent
    except BudgetError:
        spent = {
            "workflow": Cost(len(served.asked), 5 * len(served.asked), 2 * len(served.asked), 0.007 * len(served.asked))
        }
    total = sum(spent.values(), Cost())
    assert total.calls >= len(served.asked)
    assert total.calls <= limits.get("calls", 10**6)
    assert total.tokens <= limits.get("tokens", 10**6)
    assert (total.usd or 0.0) <= limits.get("usd", 10**6)


def test_calls_of_workers_are_captured_and_replayed_by_the_driver(served: Served, tmp_path: Path) -> None:
    with replay.capture(tmp_path / "calls.jsonl"):
        first = run(sent.remotely, sent.loud, ProcessExecutor(2))
    count = len(served.asked)
    with replay.replay(tmp_path / "calls.jsonl"):
        again = run(sent.remotely, sent.loud, ProcessExecutor(2))
    assert len(served.asked) == count
    assert [(t.before, t.after) for t in again.history] == [(t.before, t.after) for t in first.history]


# -- errands -----------------------------------------------------------------------------------------------------------


def answered(text: str) -> Future[Reply]:
    future: Future[Reply] = Future()
    future.set_result(Reply(text=text, cost=Cost(1, 2, 3, 0.5)))
    return future


def errand(**limits: Any) -> tuple[Errand, Ledger]:
    ledger = Ledger(Budget(**(limits or {"calls": 10})))
    return Errand(ledger.account("workflow", "it")), ledger


def test_the_nth_identical_call_of_an_attempt_is_answered_as_that_of_the_last_one() -> None:
    one, _ = errand()
    one.begin(1)
    sent_texts = iter("abc")

    def send() -> Future[Reply]:
        return answered(next(sent_texts))

    first = [one.reply(1, "key", "workflow", send)[0].result().text for _ in range(2)]
    one.begin(2)
    second = [one.reply(2, "key", "workflow", send) for _ in range(3)]
    assert first == ["a", "b"]
    assert [(future.result().text, again) for future, again in second] == [("a", True), ("b", True), ("c", False)]


def test_a_call_that_failed_is_sent_anew_by_the_next_attempt() -> None:
    one, _ = errand()
    failed: Future[Reply] = Future()
    failed.set_exception(LLMError("gone", kind="connection"))
    one.begin(1)
    one.reply(1, "key", "workflow", lambda: failed)
    one.begin(2)
    future, again = one.reply(2, "key", "workflow", lambda: answered("here"))
    assert (future.result().text, again) == ("here", False)


def test_what_a_lost_workers_own_models_did_is_taken_back_and_what_may_have_been_billed_stays() -> None:
    one, ledger = errand(calls=10)
    local, billed = Cost(1, 10, 10, 0.0), Cost(1, 10, 10, 0.25)
    one.settle(1, "workflow", one.reserve(1, "workflow", local), Cost(1, 4, 2, 0.0))
    one.settle(1, "guide", one.reserve(1, "guide", local), Cost(1, 3, 1, 0.0))
    one.reserve(1, "workflow", local)
    one.settle(1, "workflow", one.reserve(1, "workflow", billed), Cost(1, 4, 2, 0.1))
    one.reserve(1, "workflow", billed)
    one.lost(1)
    assert ledger.total == Cost(2, 14, 12, pytest.approx(0.35))
    assert ledger.spent["guide"] == Cost()
    for _ in range(8):  # nothing stays reserved
        one.reserve(1, "workflow", local)
    with pytest.raises(BudgetError):
        one.reserve(1, "workflow", local)


def test_a_copy_shares_the_replies_of_its_rollout_and_makes_no_call_of_its_own() -> None:
    one, ledger = errand()
    one.begin(1)
    one.begin(2, copy=True)
    first = one.reply(2, "key", "workflow", lambda: answered("a"))
    assert one.reply(1, "key", "workflow", lambda: answered("b")) == (first[0], True)
    for spend in (lambda: one.reserve(2, "workflow", Cost(1)), lambda: one.settle(2, "workflow", None, Cost(1))):
        with pytest.raises(BudgetError, match="makes no calls of its own"):
            spend()
    one.reserve(1, "workflow", Cost(1))
    one.lost(2)
    assert ledger.total == Cost()


def ask(gateway: Gateway, question: Question) -> Any:
    found: Future[Any] = Future()
    gateway.handle(question, found.set_result)
    answer = found.result(timeout=10)
    if isinstance(answer, Fault):
        raise unpacked_error(answer)
    return answer


def test_a_gateway_answers_what_workers_ask(served: Served, tmp_path: Path) -> None:
    one, ledger = errand()
    gateway, spec = Gateway(), Spec(model="openai/test", base_url=served.url, cache=None, price=(0.001, 0.001))
    request = Request(messages=({"role": "user", "content": "Say it: a"},), seed=4)
    gateway.begin(7, one)
    reply = ask(gateway, Send(7, "workflow", spec, request))
    path = str(tmp_path / "cache.db")
    number = ask(gateway, Reserve(7, "guide", Cost(1, 1, 1, 0.0)))
    ask(gateway, Settle(7, "guide", number, Cost(1, 1, 1, 0.0)))
    ask(gateway, Keep(7, "workflow", path, "key", request, reply))
    assert reply.text == "a"
    assert ask(gateway, Find(7, "workflow", path, "key")).text == "a"
    assert ask(gateway, Find(7, "workflow", path, "other")) is None
    assert ask(gateway, Price(7, "workflow", spec, request)).calls == 1
    assert ask(gateway, Send(None, "workflow", spec, request)).text == "a"
    assert ledger.spent == {"workflow": Cost(1, 5, 2, pytest.approx(0.007)), "guide": Cost(1, 1, 1, 0.0)}

    gateway.end(7)
    with pytest.raises(BudgetError, match="nobody waits"):
        ask(gateway, Send(7, "workflow", spec, request))
    with pytest.raises(TypeError, match="which no gateway answers"):
        ask(gateway, Question(None, "workflow"))


# -- connections that travel -------------------------------------------------------------------------------------------


def test_a_connection_travels_without_its_key_and_is_found_again_where_the_key_is() -> None:
    import pickle  # noqa: TID251 # as executors do

    model = connect("openai/test", api_key=KEY, temperature=0.5, timeout_s=7.0)
    data = pickle.dumps(model)
    assert KEY.encode() not in data
    assert pickle.loads(data) is model


def test_two_keys_for_one_connection_or_none_that_is_here_are_told_apart_by_nobody() -> None:
    spec = Spec(model="openai/test", keyed=True, timeout_s=8.0)
    with pytest.raises(LLMError, match="never here, where the keys are"):
        connected(spec)
    two = connect("openai/test", api_key="a", timeout_s=8.0), connect("openai/test", api_key="b", timeout_s=8.0)
    with pytest.raises(LLMError, match="2 different keys"):
        connected(spec)
    del two


class _Line:
    def ask(self, question: Question) -> Any:
        return Cost(1)

    async def aask(self, question: Question) -> Any:
        return Reply(text="through", cost=Cost(1))


def test_in_a_worker_remote_models_are_the_drivers_and_embedded_ones_its_own_unless_replies_are_taped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from trace_opt.llm import elsewhere

    monkeypatch.setattr(elsewhere._Here, "line", None)
    monkeypatch.setattr(elsewhere._Here, "taped", False)
    assert through(Spec(model="openai/test")) is None
    become_worker(_Line(), taped=False)
    model = connect("openai/test", api_key="none")
    assert isinstance(model, Through)
    assert model("Hello") == "through"
    assert model.price(model.request("?")).calls == 1
    assert through(Spec(model="embedded/smollm2")) is None
    become_worker(_Line(), taped=True)
    assert asyncio.run(connect("embedded/smollm2").areply("Hello")).text == "through"
