"""Replies kept by content, in one file for many processes; identical calls in flight are sent once."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.rollout import Cost
from trace_opt.core.tracer import record
from trace_opt.errors import LLMError
from trace_opt.llm.base import LLM, FinishReason, Reply, Request
from trace_opt.llm.cache import Database, dump_reply, key_of, load_reply
from trace_opt.llm.connect import connect
from trace_opt.llm.limits import no_waits
from trace_opt.llm.meter import charging, metering

if TYPE_CHECKING:
    from tests.llm.conftest import LoopbackServer, Purse

texts = st.text(st.characters(), max_size=30)  # lone surrogates and NULs included
replies = st.builds(
    Reply, text=texts, finish=st.sampled_from(get_args(FinishReason)), model=texts, estimated=st.booleans(),
    logprobs=st.lists(st.floats(), max_size=4).map(tuple),
    cost=st.builds(Cost, st.integers(0, 9), st.integers(0, 9**9), st.integers(0, 9**9), st.none() | st.floats(0, 1e6)),
)  # fmt: skip
requests = st.builds(
    Request, messages=st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": texts}), min_size=1, max_size=3).map(tuple),
    max_tokens=st.integers(1, 3), temperature=st.sampled_from([0.0, 1.0]), seed=st.integers(0, 3),
    stop=st.lists(texts, max_size=2).map(tuple), prefill=texts, raw=st.booleans(),
)  # fmt: skip


NAMES = ("messages", "max_tokens", "temperature", "stop", "prefill", "raw")


def asked(server: LoopbackServer, mode: str, path: Path | None, **options: Any) -> LLM:
    return connect(f"openai/{mode}", base_url=server.url, api_key=server.key, cache=path, **options)


@given(replies)
def test_a_reply_survives_its_json(reply: Reply) -> None:
    loaded = load_reply(dump_reply(reply))

    assert (loaded.text, loaded.finish, loaded.model) == (reply.text, reply.finish, reply.model)
    assert repr(loaded.logprobs) == repr(reply.logprobs)
    assert (loaded.cached, loaded.cost) == (True, Cost())


@given(requests, requests)
def test_two_requests_share_a_key_when_nothing_that_matters_differs(a: Request, b: Request) -> None:
    def matters(request: Request) -> object:
        seed = request.seed if request.temperature else None
        return [getattr(request, name) for name in NAMES] + [seed]

    assert (key_of("m", a) == key_of("m", b)) == (matters(a) == matters(b))
    assert key_of("m", a) != key_of("n", a)


def test_an_identical_call_is_answered_from_the_file_and_costs_nothing(server: LoopbackServer, tmp_path: Path) -> None:
    asked(server, "echo", tmp_path / "c.db")("hi")

    with metering() as meter:
        reply = asked(server, "echo", tmp_path / "c.db").reply("hi")

    assert (reply.text, reply.cached, reply.cost) == ("hi", True, Cost())
    assert meter.cost == Cost()
    assert server.hits["echo"] == 1


def test_64_identical_calls_at_once_are_sent_once_and_paid_once(
    server: LoopbackServer, tmp_path: Path, purse: type[Purse]
) -> None:
    llm, ledger = asked(server, "slow", tmp_path / "c.db"), purse()

    async def main() -> list[Reply]:
        return await asyncio.gather(*(llm.areply("hi") for _ in range(64)))

    with charging(ledger):
        answers = asyncio.run(main())

    assert {reply.text for reply in answers} == {"fine"}
    assert sorted(reply.cached for reply in answers) == [False] + [True] * 63
    assert server.hits["slow"] == ledger.spent.calls == 1


def test_a_failure_is_told_to_all_who_wait_each_with_an_error_of_its_own(
    server: LoopbackServer, tmp_path: Path
) -> None:
    llm = asked(server, "500", tmp_path / "c.db", attempts=2)

    async def main() -> list[Any]:
        with no_waits():
            return await asyncio.gather(*(llm.areply("hi") for _ in range(8)), return_exceptions=True)

    errors = asyncio.run(main())

    assert {error.kind for error in errors} == {"server"}
    assert len({id(error) for error in errors}) == 8
    assert server.hits["500"] == 2


def test_a_failure_is_not_kept(server: LoopbackServer, tmp_path: Path) -> None:
    llm = asked(server, "503-then-fine", tmp_path / "c.db", attempts=1)

    with pytest.raises(LLMError):
        llm("hi")

    assert llm("hi") == "fine"


def test_one_who_gives_up_leaves_the_call_to_the_others(server: LoopbackServer, tmp_path: Path) -> None:
    server.slow_s = 0.3
    llm = asked(server, "slow", tmp_path / "c.db")

    async def main() -> Reply:
        first, second = asyncio.create_task(llm.areply("hi")), asyncio.create_task(llm.areply("hi"))
        await asyncio.sleep(0.1)
        first.cancel()
        return await second

    try:
        assert asyncio.run(main()).text == "fine"
    finally:
        server.slow_s = 0.05
    assert server.hits["slow"] == 1


def test_one_who_could_not_pay_does_not_stop_another_who_can(
    server: LoopbackServer, tmp_path: Path, purse: type[Purse]
) -> None:
    llm = asked(server, "slow", tmp_path / "c.db")

    async def main() -> list[Any]:
        tasks: list[asyncio.Task[Reply]] = []
        for ledger in (purse(calls=0), purse(calls=1)):
            with charging(ledger):
                tasks.append(asyncio.create_task(llm.areply("hi")))
        return await asyncio.gather(*tasks, return_exceptions=True)

    poor, rich = asyncio.run(main())

    assert type(poor).__name__ == "BudgetError"
    assert rich.text == "fine"


def sampled(llm: LLM, seed: int, times: int = 3) -> None:
    with record(seed=seed):
        for _ in range(times):
            llm("hi", temperature=1.0)


def test_sampled_calls_of_one_rollout_draw_an_answer_each(server: LoopbackServer, tmp_path: Path) -> None:
    sampled(asked(server, "echo", tmp_path / "c.db"), seed=5)

    assert server.hits["echo"] == 3
    assert len({body["seed"] for body in server.bodies}) == 3


def test_a_rollout_repeated_gets_its_sampled_answers_from_the_file(server: LoopbackServer, tmp_path: Path) -> None:
    llm = asked(server, "echo", tmp_path / "c.db")
    sampled(llm, seed=5)

    sampled(llm, seed=5)

    assert server.hits["echo"] == 3


def test_another_rollout_seed_draws_anew_where_the_model_samples_and_only_there(
    server: LoopbackServer, tmp_path: Path
) -> None:
    llm = asked(server, "echo", tmp_path / "c.db")
    for seed in (1, 2):
        sampled(llm, seed, times=1)
        with record(seed=seed):
            llm("greedy")

    assert server.hits["echo"] == 3


def test_an_explicit_seed_asks_for_one_answer(server: LoopbackServer, tmp_path: Path) -> None:
    llm = asked(server, "echo", tmp_path / "c.db")

    llm("hi", temperature=1.0, seed=3)
    llm("hi", temperature=1.0, seed=3)

    assert server.hits["echo"] == 1
    assert server.bodies[0]["seed"] == 3


def test_a_file_that_is_no_cache_is_told_and_calls_go_on(server: LoopbackServer, tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    path.write_text("this is a diary, and long enough to be taken for a database header" * 20)
    llm = asked(server, "echo", path)

    with pytest.warns(UserWarning, match="cannot be used"):
        assert llm("hi") == "hi"


def test_a_cache_of_a_newer_version_is_left_alone(server: LoopbackServer, tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()

    with pytest.warns(UserWarning, match="newer version"):
        asked(server, "echo", path)("hi")


def test_the_first_reply_written_stays(tmp_path: Path) -> None:
    table = Database(tmp_path / "c.db")
    request = Request(messages=({"role": "user", "content": "hi"},))

    table.keep("k", request, Reply(text="first"))
    table.keep("k", request, Reply(text="second"))

    found = table.find("k")
    assert found is not None
    assert found.text == "first"


WRITER = """
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from trace_opt.llm.base import Reply, Request
from trace_opt.llm.cache import Database
table, name = Database(Path(sys.argv[1])), sys.argv[2]
for i in range(100):
    request = Request(messages=({"role": "user", "content": str(i)},))
    table.keep(f"{name}{i}", request, Reply(text=f"{name}{i}"))
    table.keep(f"shared{i}", request, Reply(text=name))
"""


def test_processes_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    command = [sys.executable, "-W", "error", "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, name]) for name in "ab"]
    codes = [writer.wait(60) for writer in writers]

    table = Database(path)
    found = [table.find(f"{name}{i}") for i in range(100) for name in ("a", "b", "shared")]
    assert codes == [0, 0]
    assert all(reply is not None for reply in found)


def test_a_new_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    request = Request(messages=({"role": "user", "content": "hi"},))
    start = threading.Barrier(8)

    def keep(table: Database) -> bool:
        start.wait()
        table.keep("k", request, Reply(text="first"))
        return table.find("k") is not None

    with ThreadPoolExecutor(8) as pool:
        for i in range(60):
            tables = [Database(tmp_path / f"{i}.db") for _ in range(8)]
            assert all(pool.map(keep, tables))
