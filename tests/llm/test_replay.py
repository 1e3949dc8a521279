"""Captured calls are answered later without a model."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.rollout import Cost
from trace_opt.core.tracer import record
from trace_opt.errors import BudgetError, LLMError
from trace_opt.llm.base import LLM, Reply, Request
from trace_opt.llm.connect import connect
from trace_opt.llm.meter import charging, metering
from trace_opt.llm.replay import Capture, Replay, capture, replay
from trace_opt.search.budget import Budget
from trace_opt.search.ledger import Ledger

if TYPE_CHECKING:
    from tests.llm.conftest import LoopbackServer


def asked(server: LoopbackServer, mode: str, **options: Any) -> LLM:
    return connect(f"openai/{mode}", base_url=server.url, api_key=server.key, cache=None, **options)


def test_a_captured_call_is_replayed_without_being_sent(server: LoopbackServer, tmp_path: Path) -> None:
    llm = asked(server, "echo")
    with capture(tmp_path / "calls.jsonl"):
        llm("hi")

    with replay(tmp_path / "calls.jsonl"), metering() as meter:
        reply = llm.reply("hi")

    assert (reply.text, reply.cached) == ("hi", True)
    assert meter.cost.calls == 1  # counted as when it was captured
    assert server.hits["echo"] == 1


def test_a_replay_charges_each_call_what_it_cost_when_it_was_captured(server: LoopbackServer, tmp_path: Path) -> None:
    def calls(llm: LLM) -> list[int]:
        counts: list[int] = []
        for prompt in ("a", "a", "b", "a"):
            with metering() as meter:
                llm(prompt)
            counts.append(meter.cost.calls)
        return counts

    uncached, cached = asked(server, "echo"), connect("openai/echo", base_url=server.url, cache=tmp_path / "c.db")
    for llm, expected in ((uncached, [1, 1, 1, 1]), (cached, [1, 0, 1, 0])):
        with capture(tmp_path / f"{id(llm)}.jsonl"):
            assert calls(llm) == expected
        with replay(tmp_path / f"{id(llm)}.jsonl"):
            assert calls(llm) == expected


def test_what_failed_attempts_cost_is_captured_too(server: LoopbackServer, tmp_path: Path) -> None:
    llm = asked(server, "too-long")
    with capture(tmp_path / "calls.jsonl"), metering() as paid, pytest.raises(LLMError):
        llm("hi")
    with replay(tmp_path / "calls.jsonl"), metering() as meter, pytest.raises(LLMError):
        llm("hi")
    assert meter.cost == paid.cost
    assert paid.cost.calls == 1


def test_a_budget_ends_a_replay_where_it_ended_the_capture(server: LoopbackServer, tmp_path: Path) -> None:
    def answered() -> int:
        ledger, count = Ledger(Budget(calls=3)), 0
        with charging(ledger.account("workflow", "test")), suppress(BudgetError):
            for prompt in "abcdef":
                llm(prompt)
                count += 1
        return count

    llm = asked(server, "echo")
    with capture(tmp_path / "calls.jsonl"):
        assert answered() == 3
    with replay(tmp_path / "calls.jsonl"):
        assert answered() == 3


def test_a_file_from_before_costs_were_written_charges_what_its_replies_say(tmp_path: Path) -> None:
    request = Request(messages=({"role": "user", "content": "hi"},))
    Capture(tmp_path / "calls.jsonl").keep("k", request, Reply(text="hi", cost=Cost(1, 2, 3, 0.5)))
    line = json.loads((tmp_path / "calls.jsonl").read_text())
    del line["cost"]
    (tmp_path / "calls.jsonl").write_text(json.dumps(line))
    with metering() as meter:
        asyncio.run(
            Replay(tmp_path / "calls.jsonl").play("k", request, connect("openai/echo", base_url="http://127.0.0.1:9"))
        )
    assert meter.cost == Cost(1, 2, 3, 0.5)


def test_best_of_n_is_replayed_in_order(server: LoopbackServer, tmp_path: Path) -> None:
    llm = asked(server, "echo")

    def workflow() -> None:
        with record(seed=3):
            for _ in range(3):
                llm("hi", temperature=1.0)

    with capture(tmp_path / "calls.jsonl"):
        workflow()
    with replay(tmp_path / "calls.jsonl"):
        workflow()

    assert server.hits["echo"] == 3
    assert len((tmp_path / "calls.jsonl").read_text().splitlines()) == 3


def test_a_call_that_was_not_captured_ends_the_run_and_names_the_prompt(server: LoopbackServer, tmp_path: Path) -> None:
    (tmp_path / "calls.jsonl").write_text("")

    with replay(tmp_path / "calls.jsonl"), pytest.raises(LLMError, match="How far is the Moon") as caught:
        asked(server, "echo")("How far is the Moon?")

    assert caught.value.lasting
    assert server.hits["echo"] == 0


def test_a_failure_that_belongs_to_the_candidate_is_replayed_too(server: LoopbackServer, tmp_path: Path) -> None:
    llm = asked(server, "too-long")
    with capture(tmp_path / "calls.jsonl"), pytest.raises(LLMError):
        llm("hi")

    with replay(tmp_path / "calls.jsonl"), pytest.raises(LLMError) as caught:
        llm("hi")

    assert caught.value.kind == "too_long"
    assert server.hits["too-long"] == 1


def test_cached_replies_are_captured(server: LoopbackServer, tmp_path: Path) -> None:
    llm = connect("openai/echo", base_url=server.url, cache=tmp_path / "c.db")
    llm("hi")

    with capture(tmp_path / "calls.jsonl"):
        llm("hi")

    assert json.loads((tmp_path / "calls.jsonl").read_text())["reply"]["text"] == "hi"


def test_no_key_reaches_the_file(server: LoopbackServer, tmp_path: Path) -> None:
    with capture(tmp_path / "calls.jsonl"):
        asked(server, "echo")("hi")

    assert server.key not in (tmp_path / "calls.jsonl").read_text()


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "a"}', '{"key": "a", "reply": {"text": 1}}'])
def test_a_line_that_is_no_call_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "calls.jsonl").write_text(f"\n{line}\n")

    with pytest.raises(LLMError, match="line 2 "):
        Replay(tmp_path / "calls.jsonl")


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(LLMError, match="cannot be read"), replay(tmp_path / "nothing.jsonl"):
        pass


@given(calls=st.dictionaries(st.text(st.characters(), max_size=20), st.text(st.characters(), max_size=20), max_size=5))
def test_any_texts_survive_capture_and_replay(calls: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("tape") / "calls.jsonl"
    path.touch()
    tape = Capture(path)
    asked = {prompt: Request(messages=({"role": "user", "content": prompt},)) for prompt in calls}
    for i, (prompt, text) in enumerate(calls.items()):
        tape.keep(str(i), asked[prompt], Reply(text=text))

    replayed = Replay(path)

    found = [replayed.find(str(i), asked[prompt], "m").text for i, prompt in enumerate(calls)]
    assert found == list(calls.values())
