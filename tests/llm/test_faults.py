"""Every way a provider fails, on both client paths: what it is called, whether it is retried, what it costs."""

from __future__ import annotations

import dataclasses
import math
import string
import time
import traceback
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.errors import BudgetError, LLMError
from trace_opt.llm.base import LLM
from trace_opt.llm.connect import connect
from trace_opt.llm.faults import kind_of, retry_after_of, scrub
from trace_opt.llm.limits import no_waits
from trace_opt.llm.meter import charging, metering

if TYPE_CHECKING:
    from tests.llm.conftest import LoopbackServer, Purse

ATTEMPTS = 3
SLOW = ("silent", "drip")
CLIENTS = ("openai", "hosted_vllm")  # the second goes through litellm
WORST_TOKENS_OUT = 7


@dataclasses.dataclass(frozen=True)
class Row:
    """What the server does; what we call it; how many requests we send; whether the reservation stays booked."""

    mode: str
    kind: str
    retried: bool
    booked: bool = False


FAULTS = (
    Row("rate", "rate", retried=True),
    Row("quota", "quota", retried=False),
    Row("500", "server", retried=True),
    Row("503", "server", retried=True),
    Row("401", "key", retried=False),
    Row("403", "key", retried=False),
    Row("404", "model", retried=False),
    Row("too-long", "too_long", retried=False),
    Row("400", "request", retried=False),
    Row("422", "request", retried=False),
    Row("408", "timeout", retried=True),
    Row("409", "server", retried=True),
    Row("reset", "connection", retried=True, booked=True),
    Row("cut", "connection", retried=True, booked=True),
    Row("silent", "timeout", retried=True, booked=True),
    Row("drip", "timeout", retried=True, booked=True),
    Row("broken", "malformed", retried=True, booked=True),
    Row("html", "malformed", retried=True, booked=True),
    Row("200-error", "server", retried=True),
    Row("no-choices", "malformed", retried=True, booked=True),
    Row("null-choices", "malformed", retried=True, booked=True),
)


def asked(client: str, server: LoopbackServer, mode: str, attempts: int = ATTEMPTS) -> LLM:
    patience = 1.0 if mode in SLOW else 10.0  # enough for a request to arrive on a busy machine
    return connect(
        f"{client}/{mode}", base_url=server.url, api_key=server.key, cache=None, timeout_s=patience,
        attempts=attempts, price=(1e-6, 2e-6), max_tokens=WORST_TOKENS_OUT,
    )  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row.mode)
def test_a_fault_has_its_kind_is_retried_as_told_and_is_charged_once_for_each_request_sent(
    row: Row, client: str, server: LoopbackServer, purse: type[Purse]
) -> None:
    attempts = 2 if row.mode in SLOW else ATTEMPTS
    llm, ledger = asked(client, server, row.mode, attempts), purse()
    asked(client, server, "fine")("load the client")

    with no_waits(), charging(ledger), metering() as meter, pytest.raises(LLMError) as caught:
        llm("hi")

    assert caught.value.kind == row.kind
    assert server.hits[row.mode] == (attempts if row.retried else 1)
    assert ledger.spent == meter.cost
    assert ledger.spent.calls == ledger.settled == server.hits[row.mode]
    assert ledger.spent.tokens_out == (WORST_TOKENS_OUT * ledger.spent.calls if row.booked else 0)
    assert not ledger.held


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "mode", ["rate", "503", "408", "409", "reset", "cut", "broken", "html", "200-error", "no-choices"]
)
def test_what_passes_is_retried_and_the_answer_costs_both_requests(
    mode: str, client: str, server: LoopbackServer
) -> None:
    llm = asked(client, server, f"{mode}-then-fine")

    with no_waits(), metering() as meter:
        reply = llm.reply("hi")

    assert reply.text == "fine"
    assert reply.cost == meter.cost
    assert reply.cost.calls == server.hits[f"{mode}-then-fine"] == 2


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("mode", "finish", "text"),
    [("refusal", "refusal", "I cannot help with that"), ("filtered", "content_filter", ""),
     ("length", "length", "half an ans"), ("fine", "stop", "fine")],
)  # fmt: skip
def test_refused_filtered_cut_and_whole_answers_are_told_apart(
    mode: str, finish: str, text: str, client: str, server: LoopbackServer
) -> None:
    reply = asked(client, server, mode).reply("hi")

    assert (reply.finish, reply.text, reply.cost.calls) == (finish, text, 1)


@pytest.mark.parametrize("mode", ["refusal", "filtered"])
def test_a_declined_answer_is_no_text(mode: str, server: LoopbackServer) -> None:
    with pytest.raises(LLMError, match="declined") as caught:
        asked("openai", server, mode)("hi")

    assert caught.value.kind == "refusal"


@pytest.mark.parametrize("client", CLIENTS)
def test_an_answer_without_usage_is_estimated_and_never_free(client: str, server: LoopbackServer) -> None:
    reply = asked(client, server, "no-usage").reply("twelve chars")

    assert reply.estimated
    assert (reply.cost.tokens_in, reply.cost.tokens_out) == (3, 1)
    assert reply.cost.usd == pytest.approx(3e-6 + 2e-6)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_budget_is_not_exceeded_by_retries(client: str, server: LoopbackServer, purse: type[Purse]) -> None:
    llm, ledger = asked(client, server, "503", attempts=10), purse(calls=4)

    with no_waits(), charging(ledger), pytest.raises(BudgetError):
        llm("hi")

    assert server.hits["503"] == ledger.spent.calls == 4


@pytest.mark.parametrize("client", CLIENTS)
def test_what_cannot_be_paid_is_not_sent(client: str, server: LoopbackServer, purse: type[Purse]) -> None:
    llm, ledger = asked(client, server, "fine"), purse(usd=1e-6)

    with charging(ledger), pytest.raises(BudgetError):
        llm("hi")

    assert server.hits["fine"] == ledger.spent.calls == 0


@pytest.mark.parametrize("client", CLIENTS)
def test_a_wrong_key_is_one_clear_error_without_the_key(client: str, server: LoopbackServer) -> None:
    with pytest.raises(LLMError) as caught:
        asked(client, server, "401")("hi")

    everything = "".join(traceback.format_exception(caught.value))
    assert caught.value.kind == "key"
    assert caught.value.lasting
    assert server.key not in everything
    assert "sk-" not in everything
    assert "check the key" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_is_not_there_costs_no_call(client: str) -> None:
    llm = connect(f"{client}/x", base_url="http://127.0.0.1:9/v1", api_key="x", cache=None, attempts=2)

    with no_waits(), metering() as meter, pytest.raises(LLMError) as caught:
        llm("hi")

    assert caught.value.kind == "connection"
    assert meter.cost.calls == 0


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_asks_for_an_hour_is_given_up_on(client: str, server: LoopbackServer) -> None:
    with pytest.raises(LLMError, match="asks to wait 3600 s"):
        asked(client, server, "rate-hour")("hi")

    assert server.hits["rate-hour"] == 1


@pytest.mark.parametrize("client", CLIENTS)
def test_retry_after_is_obeyed(client: str, server: LoopbackServer) -> None:
    start = time.monotonic()

    asked(client, server, "rate-1s-then-fine")("hi")

    assert time.monotonic() - start >= 1.0


@pytest.mark.parametrize("client", CLIENTS)
def test_a_schema_that_a_server_refuses_gives_way_and_is_not_tried_again(client: str, server: LoopbackServer) -> None:
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    llm = asked(client, server, "no-format")

    with metering() as first:
        llm.reply("hi", schema=schema)
    with metering() as second:
        llm.reply("hi", schema=schema)

    assert [body.get("response_format", {}).get("type") for body in server.bodies] in (
        ["json_schema", "json_object", None, None], [None, None]  # another test may have learned it
    )  # fmt: skip
    assert second.cost.calls == 1
    assert first.cost.calls + 1 == server.hits["no-format"]
    assert "JSON schema" in server.bodies[-1]["messages"][0]["content"]


@pytest.mark.parametrize("client", CLIENTS)
def test_an_option_that_a_model_refuses_is_left_out(client: str, server: LoopbackServer) -> None:
    llm = asked(client, server, "no-temperature")

    llm("hi")
    llm("hi")

    assert "temperature" not in server.bodies[-1]
    assert "seed" in server.bodies[-1]


def keys() -> st.SearchStrategy[str]:
    body = st.text(string.ascii_letters + string.digits + "-_", min_size=16, max_size=48)
    return st.builds(str.__add__, st.sampled_from(["sk-", "sk-proj-", "sk-ant-", "gsk_", "AIza", "hf_", "xai-"]), body)


@given(keys(), st.text(max_size=60), st.text(max_size=60))
def test_what_looks_like_a_key_never_stays_in_a_text(key: str, before: str, after: str) -> None:
    cleaned = scrub(f"{before} {key} {after}")

    assert key not in cleaned
    assert key[8:] in f"{before} {after}" or key[8:] not in cleaned


@given(st.text(min_size=4, max_size=40).filter(lambda key: not key.isspace()), st.text(max_size=40))
def test_a_known_key_never_stays_in_a_text_whatever_it_looks_like(key: str, around: str) -> None:
    assert key not in scrub(f"{around}{key}{around}", key) or key in "***…" or key in scrub(around + around, key)


@pytest.mark.parametrize(
    "text",
    ["Authorization: Bearer abcdefgh12345", "https://h/v1?key=abcdefgh12345&x=1", "api_key=abcdefgh12345",
     "https://user:abcdefgh12345@host/simple"],
)  # fmt: skip
def test_what_follows_a_name_of_keys_is_a_key(text: str) -> None:
    assert "abcdefgh12345" not in scrub(text)


@given(
    st.dictionaries(
        st.sampled_from(["retry-after", "retry-after-ms", "x"]),
        st.one_of(st.text(max_size=40), st.floats(), st.integers(), st.none(), st.floats().map(str),
                  st.just("Wed, 21 Oct 2026 07:28:00 GMT"), st.just("Wed, 99 Oct 2026")),
    )
)  # fmt: skip
def test_a_wait_is_none_or_a_number_of_at_least_zero_whatever_the_headers_say(headers: dict[str, object]) -> None:
    wait = retry_after_of(headers, now=time.time())

    assert wait is None or (wait >= 0 and math.isfinite(wait))


@given(st.integers(400, 599), st.text(max_size=80))
def test_every_status_has_a_kind_and_only_server_side_ones_are_retried(status: int, said: str) -> None:
    kind = kind_of(status, said)

    assert (kind in ("server", "rate", "timeout")) == (status in (408, 409) or status >= 500 or kind == "rate")
