"""Several processes at one store, on both databases: who may write which run, and what a kill leaves."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from trace_opt.core.rollout import Cost
from trace_opt.errors import StoreError
from trace_opt.store import lease
from trace_opt.store.rows import CandidateRow, MemoRow, RolloutRow, TrialRow
from trace_opt.store.store import NewRun, Store

HOLDER = """
import sys, time
from trace_opt.store import lease
from trace_opt.store.store import NewRun, Store
if "elsewhere" in sys.argv:  # as on another host, where nobody here can see whether it lives
    lease.LEASE_S, lease.RENEW_S, lease.owner_name = 3.0, 0.5, lambda: "elsewhere:1:x"
writer = Store(sys.argv[1]).begin(NewRun(name="held", seed=0, version="0", data={}))
print(writer.run, flush=True)
sys.stdin.readline()
try:
    writer.commit()
    print("written", flush=True)
except Exception as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""

MAKER = """
import sys
from trace_opt.store.rows import RolloutRow
from trace_opt.store.store import NewRun, Store
store = Store(sys.argv[1])
for _ in range(2):
    writer = store.begin(NewRun(name=sys.argv[2], seed=0, version="0", data={}))
    for example in range(20):
        writer.rollout(RolloutRow(0, example, 0, 1.0, {}, 0, 0, 0, 0.0, 0.0), spend={}, landed=(), now=True)
    writer.close("finished", "done")
"""


@contextmanager
def holder(where: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, Callable[[], str]]]:
    """A process that holds a run: itself, the run, and what makes it write and gives what it said."""
    command = [sys.executable, "-c", HOLDER, where, *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    send, read = process.stdin, process.stdout
    try:
        yield process, read.readline().strip(), lambda: (send.write("\n"), send.flush(), read.readline().strip())[2]
    finally:
        process.kill()
        process.wait()
        send.close()
        read.close()


@pytest.fixture
def store(where: str) -> Iterator[Store]:
    made = Store(where)
    yield made
    made.close()


def new_run(name: str = "p") -> NewRun:
    return NewRun(name=name, seed=3, version="0", data={"config": {"seed": 3}, "splits": {"train": 2}})


def test_what_is_written_comes_back_whatever_the_database(store: Store) -> None:
    hostile = "nul \x00, half of a pair \ud800, ünïcödé, 'quoted' %s ? \\"
    writer = store.begin(new_run())
    writer.candidate(CandidateRow(0, 0, "", [], {"style": {"$": "float", "v": "nan"}}, "h0", 0.5, 2, 1, 1))
    writer.candidate(CandidateRow(1, 1, "O", [0], {"style": "x"}, "h1", None, 0, 0, 0))
    row = RolloutRow(0, 0, 0, 0.25, {"text": hostile}, 1, 2**40, 3, None, 0.1)
    writer.rollout(row, spend={"workflow": Cost(1, 2**40, 3, 0.5)}, landed=(), graph='{"nodes": []}')
    writer.rollout(row._replace(score=9.0), spend={"workflow": Cost(1, 1, 1, 0.5)}, landed=())  # the first one stands
    writer.rollout(row._replace(example=1, score=None), spend={}, landed=(), now=True)
    data = {"changed": {"style": "x"}, "reason": hostile, "notes": {}, "by": 0, "phase": False}
    writer.trial(TrialRow(1, 1, 0, "O", 0, 1, data, 0.1, 0.2, 2, 0, ""))
    writer.trial(TrialRow(1, 1, 0, "O", 0, 1, data, 0.1, 0.2, 2, 1, f"accepted {hostile}"))
    writer.state("search", {"step": 1})
    writer.state("search", {"step": 2})
    writer.launch(1, "optimizer", "trial 1", Cost(1, 10, 10, 0.5))
    writer.lose({1: Cost(1, 5, 5, 0.25)})
    writer.close("finished", hostile)

    record, rows = store.load("last"), store.rollouts("last")
    assert (record.info.status, record.info.trials, record.info.accepted) == ("finished", 1, 1)
    assert math.isnan(record.candidates[0].values["style"])
    assert record.trials[0].reason == hostile
    assert record.spend == {"workflow": Cost(2, 2**40 + 1, 4, 1.0), "lost": Cost(1, 5, 5, 0.25)}
    assert [(r.score, r.text) for r in rows] == [(0.25, hostile), (None, hostile)]
    assert store.graph("last", 0, 0) == '{"nodes": []}'
    reopened, saved = store.reopen("last")
    assert saved.states == {"search": {"step": 2}}
    assert (saved.flights, len(saved.rollouts)) == (1, 2)
    reopened.close("finished", "")


def test_what_pure_ops_gave_is_kept_for_all_runs(store: Store) -> None:
    for run in range(2):
        writer = store.begin(new_run())
        for number in range(3):
            writer.memo(MemoRow("op", f"{number}", "v", {"value": run}, 1, 2, 3, None, 0.5, float(10 * run + number)))
        writer.close("finished", "")
        writer.memo(MemoRow("op", "late", "v", {}, 0, 0, 0, None, 0.0, 0.0))  # a closed run writes nothing
    assert [(m["arguments"], m["data"], m["usd"]) for m in store.memos("op")] == [
        ("2", {"value": 0}, None),
        ("1", {"value": 0}, None),
        ("0", {"value": 0}, None),
    ]
    assert len(store.memos("op", most=2)) == 2
    assert store.memos("other") == []


def test_a_run_that_another_process_holds_is_refused_by_name(where: str, store: Store) -> None:
    with holder(where) as (process, run, write):
        with pytest.raises(StoreError, match=rf"run '{run}' is held by '.*:{process.pid}'; wait"):
            store.reopen(run)
        assert store.runs()[0].owner.endswith(str(process.pid))
        assert write() == "written"  # and it goes on undisturbed


def test_other_runs_of_that_store_can_be_begun_and_gone_on_with(where: str, store: Store) -> None:
    with holder(where) as (_, run, write):
        own = store.begin(new_run())
        own.commit()
        own.close("interrupted", "")
        again, _ = store.reopen(own.run)
        again.close("finished", "")
        assert write() == "written"
        assert {info.id: info.status for info in store.runs()} == {run: "running", own.run: "finished"}


def test_a_killed_process_leaves_its_run_to_the_next_at_once(where: str, store: Store) -> None:
    with holder(where) as (process, run, _):
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert store.runs()[0].status == "interrupted"
        writer, saved = store.reopen(run)
        assert saved.status == "running"
        writer.close("finished", "")


def test_a_heartbeat_holds_a_run_and_one_that_stops_loses_it_for_good(where: str, store: Store) -> None:
    with holder(where, "elsewhere") as (process, run, write):
        with store.database.writing() as connection:
            connection.exec_driver_sql("UPDATE runs SET lease_until = 1")
        _wait_for(lambda: _lease_until(store) > 1, "the lease was not renewed")
        with pytest.raises(StoreError, match="is held by 'elsewhere:1'"):
            store.reopen(run)
        _stop_between_transactions(process, store)
        writer = _taken(store, run, within=30.0)
        os.kill(process.pid, signal.SIGCONT)
        assert "was taken over by another process" in write()
        writer.commit()
        writer.close("finished", "")


def test_who_is_stopped_within_a_transaction_keeps_no_lock_beyond_its_lease(
    postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = postgres()
    store, stuck = Store(where), Store(where)
    store.begin(new_run()).close("interrupted", "")
    with pytest.raises(StoreError, match="cannot be used"), monkeypatch.context() as short:
        short.setattr(lease, "LEASE_S", 1.0)
        with stuck.database.writing() as connection:
            short.undo()  # for whoever comes next: only the stuck one's transaction may run out
            connection.exec_driver_sql("SELECT * FROM runs FOR UPDATE")
            store.reopen("last")[0].close("finished", "")
    assert store.runs()[0].status == "finished"


def _lease_until(store: Store) -> float:
    with store.database.reading() as connection:
        return float(connection.exec_driver_sql("SELECT lease_until FROM runs").scalar_one())


def _stop_between_transactions(process: subprocess.Popen[str], store: Store) -> None:
    """Stop a process where it holds no lock on the database, which nobody could take from it where that is a file."""
    while True:
        process.send_signal(signal.SIGSTOP)
        try:
            with store.database.writing():
                return
        except StoreError:
            process.send_signal(signal.SIGCONT)


def _wait_for(what: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end, otherwise
        time.sleep(0.05)


def _taken(store: Store, run: str, within: float) -> Any:
    end = time.monotonic() + within
    while True:
        try:
            return store.reopen(run)[0]
        except StoreError:
            assert time.monotonic() < end, "the lease never ran out"
            time.sleep(0.1)


def test_processes_that_make_a_store_together_write_all_their_runs(where: str, store: Store) -> None:
    makers = [subprocess.Popen([sys.executable, "-c", MAKER, where, f"maker {n}"]) for n in range(2)]
    assert [maker.wait(60) for maker in makers] == [0, 0]
    runs = store.runs()
    assert sorted(info.name for info in runs) == sorted(f"maker {n}" for n in range(2) for _ in range(2))
    assert all(len(store.rollouts(info.id)) == 20 for info in runs)


def test_one_of_two_processes_that_take_a_run_at_once_gets_it(where: str, store: Store) -> None:
    writer = store.begin(new_run())
    writer.close("interrupted", "")
    code = (
        "import sys; from trace_opt.errors import StoreError; from trace_opt.store.store import Store\n"
        "store = Store(sys.argv[1]); store.runs(); print('ready', flush=True); sys.stdin.readline()\n"
        "try: print('took' if store.reopen(sys.argv[2]) else '', flush=True)\n"
        "except StoreError as error: print('refused' if 'is held by' in str(error) else error, flush=True)\n"
        "sys.stdin.readline()"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    takers = [subprocess.Popen([sys.executable, "-c", code, where, writer.run], **pipes) for _ in range(2)]
    try:
        assert [taker.stdout.readline().strip() for taker in takers] == ["ready"] * 2  # type: ignore[union-attr]
        for taker in takers:
            taker.stdin.write("\n")  # type: ignore[union-attr]
            taker.stdin.flush()  # type: ignore[union-attr]
        said = [taker.stdout.readline().strip() for taker in takers]  # type: ignore[union-attr]
    finally:
        for taker in takers:
            taker.kill()
            taker.communicate()
    assert sorted(said) == ["refused", "took"]


def test_a_run_outlives_a_server_that_drops_its_connections(postgres: Callable[[], str]) -> None:
    where = postgres()
    store, other = Store(where), Store(where)
    writer = store.begin(new_run())
    row = RolloutRow(0, 0, 0, 1.0, {}, 1, 10, 2, 0.5, 0.1)
    for example in range(3):
        writer.rollout(row._replace(example=example), spend={"workflow": Cost(1, 10, 2, 0.5)}, landed=(), now=True)
        with other.database.writing() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
    writer.close("finished", "")
    assert len(store.rollouts("last")) == 3
    assert store.load("last").spend == {"workflow": Cost(3, 30, 6, 1.5)}


def test_a_server_that_does_not_answer_is_one_clear_error() -> None:
    pytest.importorskip("psycopg")
    store = Store("postgresql://nobody:secret@/none?host=/nowhere")
    with pytest.raises(StoreError, match="cannot be used .* check the URL and that the server runs") as caught:
        store.runs()
    assert "secret" not in str(caught.value)
