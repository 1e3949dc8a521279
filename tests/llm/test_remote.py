"""What the two client paths send, and how they live with event loops, deadlines and cancellation."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from trace_opt.errors import LLMError
from trace_opt.llm.base import LLM
from trace_opt.llm.connect import connect
from trace_opt.llm.limits import no_waits
from trace_opt.llm.meter import charging, metering

if TYPE_CHECKING:
    from tests.llm.conftest import LoopbackServer, Purse

CLIENTS = ("openai", "hosted_vllm")


def asked(client: str, server: LoopbackServer, mode: str, **options: object) -> LLM:
    return connect(f"{client}/{mode}", base_url=server.url, api_key=server.key, cache=None, **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_request_is_sent_with_all_that_was_asked(client: str, server: LoopbackServer) -> None:
    asked(client, server, "fine").reply("hi", temperature=0.5, seed=7, stop=("END",), max_tokens=9)

    body = server.bodies[0]
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert (body["temperature"], body["seed"], body["stop"], body["max_tokens"]) == (0.5, 7, ["END"], 9)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_start_of_the_answer_is_sent_and_taken_off_where_it_comes_back(client: str, server: LoopbackServer) -> None:
    reply = asked(client, server, "echo").reply("hi", prefill="Topic:")

    assert server.bodies[0]["messages"][-1] == {"role": "assistant", "content": "Topic:"}
    assert reply.text == ""


@pytest.mark.parametrize("client", CLIENTS)
def test_answers_are_scored_by_their_first_tokens(client: str, server: LoopbackServer) -> None:
    reply = asked(client, server, "logprobs").reply("hi", answers=("no", "yes"))

    assert reply.text == "yes"
    assert reply.logprobs[1] > reply.logprobs[0]
    assert server.bodies[0]["top_logprobs"] == 20


def test_a_model_that_tells_no_probabilities_cannot_choose(server: LoopbackServer) -> None:
    with pytest.raises(LLMError, match="told no probability"):
        asked("openai", server, "fine").reply("hi", answers=("yes", "no"))


def test_a_key_of_the_environment_is_never_sent_to_another_server(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")

    connect("openai/fine", base_url=server.url, cache=None)("hi")

    sent = {name.lower(): value for name, value in server.headers[0].items()}
    assert sent["authorization"] == "Bearer none"


def test_a_missing_key_is_one_sentence_and_no_call() -> None:
    with metering() as meter, pytest.raises(LLMError, match="needs a key; set OPENAI_API_KEY") as caught:
        connect("openai/gpt-4.1-mini", cache=None)("hi")

    assert caught.value.kind == "key"
    assert meter.cost.calls == 0


def test_a_missing_key_of_another_provider_is_one_sentence_and_no_call() -> None:
    with metering() as meter, pytest.raises(LLMError, match="needs a key") as caught:
        connect("anthropic/claude-sonnet-4-5", cache=None)("hi")

    assert caught.value.kind == "key"
    assert meter.cost.calls == 0


def test_a_provider_that_nobody_knows_is_one_sentence_and_no_call() -> None:
    with metering() as meter, pytest.raises(LLMError, match="litellm does not know") as caught:
        connect("nosuch/model", cache=None)("hi")

    assert caught.value.kind == "model"
    assert meter.cost.calls == 0


@pytest.mark.parametrize("client", CLIENTS)
def test_one_model_answers_in_two_event_loops_and_in_none(client: str, server: LoopbackServer) -> None:
    llm = asked(client, server, "echo")

    first = asyncio.run(llm.areply("one"))
    second = asyncio.run(llm.areply("two"))

    assert [first.text, second.text, llm("three")] == ["one", "two", "three"]


def test_a_synchronous_call_works_where_a_loop_is_running(server: LoopbackServer) -> None:
    llm = asked("openai", server, "echo")

    async def main() -> str:
        return llm("inside")

    assert asyncio.run(main()) == "inside"


@pytest.mark.parametrize("client", CLIENTS)
def test_a_burst_is_answered_with_no_more_at_once_than_allowed(client: str, server: LoopbackServer) -> None:
    llm = asked(client, server, "slow", concurrency=8)

    replies = llm.replies([f"hi {i}" for i in range(64)])

    assert [reply.text for reply in replies] == ["fine"] * 64
    assert server.hits["slow"] == 64
    assert server.most_open <= 8


@pytest.mark.parametrize("client", CLIENTS)
def test_a_cancelled_call_returns_at_once_and_stays_booked(
    client: str, server: LoopbackServer, purse: type[Purse]
) -> None:
    llm, ledger = asked(client, server, "silent", price=(0.0, 1.0), max_tokens=5), purse()
    asked(client, server, "fine")("load the client")
    ledger_before = ledger.spent

    async def main() -> float:
        with charging(ledger):
            task = asyncio.create_task(llm.areply("hi"))
        while not server.hits["silent"]:
            await asyncio.sleep(0.01)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - start

    assert asyncio.run(main()) < 10  # of the 20 that the server takes
    deadline = time.monotonic() + 30
    while ledger.held and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ledger_before.calls == 0
    assert (ledger.spent.calls, ledger.spent.usd, ledger.settled) == (1, 5.0, 1)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_dripping_answer_ends_at_the_deadline(client: str, server: LoopbackServer) -> None:
    asked(client, server, "fine")("load the client")
    llm = asked(client, server, "drip", timeout_s=1.0, attempts=1)
    start = time.monotonic()

    with pytest.raises(LLMError, match=r"within 1 s"):
        llm("hi")

    assert time.monotonic() - start < 6  # of the 9 that the answer takes


def test_a_deadline_over_all_attempts_ends_the_retries(server: LoopbackServer) -> None:
    asked("openai", server, "fine")("load the client")
    llm = asked("openai", server, "rate-50s", attempts=10, deadline_s=20)
    start = time.monotonic()

    with pytest.raises(LLMError, match="429"):
        llm("hi")

    assert time.monotonic() - start < 20
    assert server.hits["rate-50s"] == 1


def test_a_429_holds_back_the_other_calls_of_its_model(server: LoopbackServer) -> None:
    llm = asked("openai", server, "rate-1s-then-fine", concurrency=1)
    start = time.monotonic()

    llm.replies(["one", "two"])

    assert time.monotonic() - start >= 1.0
    assert server.hits["rate-1s-then-fine"] == 3


def test_a_pace_is_kept(server: LoopbackServer) -> None:
    asked("openai", server, "fine")("load the client")
    llm = asked("openai", server, "fine", requests_per_minute=600)
    start = time.monotonic()

    llm.replies(["a", "b", "c", "d"])

    assert time.monotonic() - start >= 0.3


def test_waits_can_be_switched_off(server: LoopbackServer) -> None:
    llm = asked("openai", server, "rate-50s-then-fine", requests_per_minute=1)
    start = time.monotonic()

    with no_waits():
        llm("hi")

    assert time.monotonic() - start < 30


SCRIPT = """
import asyncio, sys
from trace_opt.llm.connect import connect
for client in ("openai", "hosted_vllm"):
    llm = connect(client + "/fine", base_url=sys.argv[1], cache=None)
    assert asyncio.run(llm.areply("hi")).text == "fine"
    assert asyncio.run(llm.areply("hi")).text == "fine"
    assert llm("hi") == "fine"
del llm
"""


def test_clients_close_without_a_warning(server: LoopbackServer) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-X", "dev", "-c", SCRIPT, server.url],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )

    ours = [line for line in done.stderr.splitlines() if "ResourceWarning" in line or "Traceback" in line]
    assert done.returncode == 0, done.stderr
    assert ours == []
