"""Runs in the store: begun, read, taken up again, refused."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trace_opt.core.rollout import Cost
from trace_opt.errors import StoreError
from trace_opt.store import lease
from trace_opt.store.database import Database, on_network, url_of
from trace_opt.store.rows import CandidateRow, RolloutRow, TrialRow
from trace_opt.store.schema import VERSION
from trace_opt.store.store import NewRun, Store, open_store
from trace_opt.store.writer import Writer


def new_run(**data: Any) -> NewRun:
    return NewRun(name="p", seed=3, version="0", data={"config": {"seed": 3}, "budget": {"trials": 9}, **data})


def candidate(number: int, value: Any = "x") -> CandidateRow:
    return CandidateRow(number, 0, "O", [0], {"style": value}, f"hash {number}", 0.5, 4, 1, int(number == 0))


def rollout(number: int, example: int, score: float | None = 1.0, **data: Any) -> RolloutRow:
    return RolloutRow(number, example, 0, score, data, 1, 10, 2, 0.5, 0.1)


def trial(number: int, verdict: str = "dropped", **data: Any) -> TrialRow:
    row = {"changed": {"style": "y"}, "reason": "why", "notes": {}, "by": 0, **data}
    return TrialRow(number, number, 0, "O", 0, number, row, 0.1, 0.2, 4, 0, verdict)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = Store(tmp_path / "runs.db")
    yield made
    made.close()


def test_a_store_that_does_not_exist_has_no_runs_and_is_not_made_by_asking(store: Store) -> None:
    assert store.runs() == []
    assert not Path(store.name).exists()
    with pytest.raises(StoreError, match="there is no store"):
        store.load("last")


def test_the_default_store_is_in_the_working_folder_unless_the_environment_names_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert open_store().name == os.path.join(".trace_opt", "runs.db")
    monkeypatch.setenv("TRACE_OPT_STORE", str(tmp_path / "other.db"))
    assert open_store().name == str(tmp_path / "other.db")
    assert open_store(tmp_path / "third.db").name == str(tmp_path / "third.db")


def test_what_a_writer_keeps_comes_back_as_records(store: Store) -> None:
    writer = store.begin(new_run(splits={"train": 2, "val": 1, "test": 1}, first=2))
    writer.candidate(candidate(0))
    writer.candidate(candidate(1, "y"))
    writer.rollout(
        rollout(0, 0, text="good", scores={"a": 1.0, "b": 2.0}), spend={"workflow": Cost(1, 10, 2, 0.5)}, landed=()
    )
    writer.rollout(rollout(0, 2, None, error="ValueError: no", text="failed"), spend={}, landed=(), graph="{}")
    writer.rollout(rollout(0, 3), spend={}, landed=())
    writer.trial(trial(1))
    writer.set(best=1, report=json.dumps({"claim": "none"}))
    writer.close("finished", "done")

    record = store.load("last")
    rows = store.rollouts("last")

    assert (record.info.status, record.info.ended, record.info.trials, record.info.seed) == ("finished", "done", 1, 3)
    assert [c.values for c in record.candidates] == [{"style": "x"}, {"style": "y"}]
    assert record.best == {"style": "y"}
    assert record.best_candidate == 1
    assert (record.trials[0].changed, record.trials[0].reason, record.trials[0].verdict) == (
        {"style": "y"},
        "why",
        "dropped",
    )
    assert record.spend == {"workflow": Cost(1, 10, 2, 0.5)}
    assert record.report == {"claim": "none"}
    assert [(r.split, r.score, r.text) for r in rows] == [
        ("train", 1.0, "good"),
        ("val", None, "failed"),
        ("test", 1.0, ""),
    ]
    assert rows[0].scores == {"a": 1.0, "b": 2.0}
    assert rows[1].error == "ValueError: no"
    assert store.graph("last", 0, 2) == "{}"


def test_a_run_is_named_by_a_prefix_that_is_unique(store: Store) -> None:
    first, second = store.begin(new_run()), store.begin(new_run())
    for writer in (first, second):
        writer.close("finished", "")
    assert store.load(first.run).info.id == first.run
    assert store.load(second.run[:-1]).info.id == second.run
    with pytest.raises(StoreError, match="several runs"):
        store.load(first.run[:6])
    with pytest.raises(StoreError, match="no run 'zz'"):
        store.load("zz")
    assert store.load("last").info.id in (first.run, second.run)
    assert len(store.runs()) == 2


def test_nothing_free_is_on_disk_before_something_paid_is(store: Store) -> None:
    writer = store.begin(new_run())
    writer.rollout(rollout(0, 0), spend={}, landed=())
    assert store.rollouts("last") == []
    writer.rollout(rollout(0, 1), spend={}, landed=(), now=True)
    assert [r.example for r in store.rollouts("last")] == [0, 1]
    writer.close("finished", "")


def test_free_steps_are_written_in_groups_and_paid_ones_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A free step waits up to the group's time or size, with what was said last; a paid one takes all along with it."""
    monkeypatch.setattr("trace_opt.store.writer.GROUP_S", 1000.0)
    writer = store.begin(new_run())
    writer.candidate(candidate(0))
    writer.commit()
    writer.trial(trial(1, ""))
    writer.trial(trial(1, "accepted"))
    assert writer.commit_soon()
    assert store.load("last").trials == ()
    writer.spend({"workflow": Cost(1, 2, 3, 0.5)}, ())
    assert not writer.commit_soon()
    assert [t.verdict for t in store.load("last").trials] == ["accepted"]
    for example in range(100):
        writer.rollout(rollout(0, example), spend={}, landed=())
        assert len(store.rollouts("last")) == (100 if example == 99 else 0)
    monkeypatch.setattr("trace_opt.store.writer.GROUP_S", 0.0)
    writer.trial(trial(2))
    assert not writer.commit_soon()
    assert len(store.load("last").trials) == 2
    writer.close("finished", "")


def test_a_failed_write_leaves_nothing_of_its_transaction(store: Store) -> None:
    writer = store.begin(new_run())
    writer.candidate(candidate(0))
    writer.set(nonsense=1)
    with pytest.raises(StoreError):
        writer.commit()
    writer.close("failed", "")
    assert store.load("last").candidates == ()


@pytest.mark.parametrize("text", ["nul \x00 nul", "half \ud800 pair", "ü\u2028<script>"])
def test_texts_that_databases_dislike_come_back_unchanged(store: Store, text: str) -> None:
    writer = store.begin(new_run())
    writer.rollout(rollout(0, 0, text=text), spend={}, landed=())
    writer.trial(trial(1, verdict=f"dropped: {text}", reason=text))
    writer.close("failed", f"it broke: {text}")
    assert store.rollouts("last")[0].text == text
    record = store.load("last")
    assert record.trials[0].reason == text
    assert record.info.ended.startswith("it broke: ")
    assert record.trials[0].verdict.startswith("dropped: ")


# -- leases ------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_held_is_refused_and_the_holder_is_named(store: Store) -> None:
    writer = store.begin(new_run())
    with pytest.raises(StoreError, match=f"is held by .*:{os.getpid()}'"):
        store.reopen(writer.run)
    writer.close("interrupted", "")
    taken, saved = store.reopen(writer.run)
    assert saved.status == "running"
    taken.close("finished", "")


def test_a_run_of_a_dead_process_on_this_host_is_taken_over_at_once(store: Store) -> None:
    writer = store.begin(new_run())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with store.database.writing() as connection:
        owner = writer._owner.replace(f":{os.getpid()}:", f":{dead.pid}:")
        connection.exec_driver_sql("UPDATE runs SET owner = ?", (owner,))
    assert store.runs()[0].status == "interrupted"
    taken, _ = store.reopen(writer.run)
    taken.close("finished", "")
    writer._connection = None


def test_a_lease_that_ran_out_elsewhere_is_taken_over_and_the_old_holder_writes_no_more(store: Store) -> None:
    writer = store.begin(new_run())
    with store.database.writing() as connection:
        connection.exec_driver_sql("UPDATE runs SET owner = 'elsewhere:1:x', lease_until = 1")
    taken, _ = store.reopen(writer.run)
    writer.candidate(candidate(0))
    with pytest.raises(StoreError, match="taken over by another process"):
        writer.commit()
    taken.close("finished", "")
    assert store.load("last").candidates == ()


def test_a_lease_is_renewed_while_its_holder_lives(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.02)
    writer = store.begin(new_run())
    with store.database.writing() as connection:
        connection.exec_driver_sql("UPDATE runs SET lease_until = 1")
    deadline = 1.0
    for _ in range(1000):
        with store.database.reading() as connection:
            deadline = connection.exec_driver_sql("SELECT lease_until FROM runs").scalar()
        if deadline > 1:
            break
        writer._stop.wait(0.02)
    writer.close("finished", "")
    assert deadline > 1


def test_what_was_in_flight_at_a_kill_is_booked_as_lost_once(store: Store) -> None:
    writer = store.begin(new_run())
    writer.launch(1, "workflow", "candidate 0, val example 1", Cost(1, 10, 5, 0.25))
    writer.launch(2, "optimizer", "proposal 1", Cost(1, 20, 5, 0.5))
    writer.rollout(rollout(0, 0), spend={"workflow": Cost(1, 9, 1, 0.1)}, landed=[1], now=True)
    abandon(writer, store)

    taken, saved = store.reopen(writer.run)
    taken.close("interrupted", "")
    again, _ = store.reopen(writer.run)
    again.close("finished", "")
    record = store.load("last")

    assert saved.spend["lost"] == record.spend["lost"] == Cost(1, 20, 5, 0.5)
    assert [(call.role, call.what) for call in record.lost] == [("optimizer", "proposal 1")]
    assert saved.flights == 2


def abandon(writer: Writer, store: Store) -> None:
    """What a kill leaves behind: a lease of nobody."""
    writer._stop.set()
    writer._connection.close()
    writer._connection = None
    with store.database.writing() as connection:
        connection.exec_driver_sql("UPDATE runs SET lease_until = 1, owner = 'elsewhere:1:x'")


# -- stores that cannot be used ----------------------------------------------------------------------------------------


def test_a_store_of_a_newer_version_is_refused_and_not_touched(store: Store, tmp_path: Path) -> None:
    store.begin(new_run()).close("finished", "")
    store.close()
    connection = sqlite3.connect(tmp_path / "runs.db")
    connection.execute("UPDATE meta SET value = 7")
    connection.commit()
    connection.close()
    before = (tmp_path / "runs.db").read_bytes()
    for use in (lambda s: s.runs(), lambda s: s.begin(new_run()), lambda s: s.load("last")):
        newer = Store(tmp_path / "runs.db")
        with pytest.raises(StoreError, match=f"holds schema 7, this version knows {VERSION}; upgrade"):
            use(newer)
        newer.close()
    assert (tmp_path / "runs.db").read_bytes() == before


def test_a_corrupt_store_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "runs.db").write_bytes(b"this is no database at all" * 200)
    broken = Store(tmp_path / "runs.db")
    with pytest.raises(StoreError, match="is damaged or no trace_opt store"):
        broken.runs()
    with pytest.raises(StoreError, match="is damaged or no trace_opt store"):
        broken.begin(new_run())
    broken.close()


def test_a_store_damaged_in_the_middle_is_one_clear_error(store: Store, tmp_path: Path) -> None:
    writer = store.begin(new_run())
    for number in range(300):
        writer.rollout(rollout(0, number, text="x" * 200), spend={}, landed=())
    writer.close("finished", "")
    store.close()
    data = bytearray((tmp_path / "runs.db").read_bytes())
    data[4096 * 3 :] = b"\xff" * len(data[4096 * 3 :])
    (tmp_path / "runs.db").write_bytes(data)
    broken = Store(tmp_path / "runs.db")
    with pytest.raises(StoreError, match="damaged"):
        broken.rollouts("last")
    broken.close()


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "runs.db")
    connection.execute("CREATE TABLE meta (k TEXT)")
    connection.commit()
    connection.close()
    foreign = Store(tmp_path / "runs.db")
    with pytest.raises(StoreError, match="another program"):
        foreign.begin(new_run())
    foreign.close()


def test_a_file_left_empty_by_a_kill_is_a_new_store(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "runs.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    store = Store(tmp_path / "runs.db")
    assert store.runs() == []
    store.begin(new_run()).close("finished", "")
    assert len(store.runs()) == 1
    store.close()


def test_a_folder_that_cannot_hold_a_store_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "runs.db", tmp_path):
        blocked = Store(path)
        with pytest.raises(StoreError, match="pass another store|check the path"):
            blocked.begin(new_run())
        blocked.close()


def test_urls_are_checked_and_their_passwords_never_shown() -> None:
    pytest.importorskip("sqlalchemy")
    with pytest.raises(StoreError, match="no path and no URL"):
        Database("://")
    with pytest.raises(StoreError, match=r"'mysql://me:\*\*\*@host/runs' .* use SQLite or PostgreSQL"):
        Store("mysql://me:secret@host/runs")
    with pytest.raises(StoreError, match="synchronous is 'off'"):
        Database("sqlite:///x.db?synchronous=off")
    with pytest.raises(StoreError, match="keeps nothing"):
        url_of(":memory:")
    named = Database("postgresql+psycopg://user:secret@host/db")
    assert "secret" not in named.name
    assert named.mark == "%s"


def test_a_missing_database_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"trace-opt-framework\[postgres\]"):
        Store("postgresql+psycopg://u@localhost/db").begin(new_run())


def test_two_processes_make_one_store_together(tmp_path: Path) -> None:
    code = (
        "import sys; from trace_opt.store.store import NewRun, Store\n"
        "for _ in range(5): Store(sys.argv[1]).begin(NewRun(name='p', seed=0, version='0', data={})).close('finished', '')"
    )
    others = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "runs.db")]) for _ in range(2)]
    assert [other.wait() for other in others] == [0, 0]
    store = Store(tmp_path / "runs.db")
    assert len(store.runs()) == 10
    store.close()


@pytest.mark.parametrize(
    ("kind", "network"), [("ext4", False), ("nfs4", True), ("fuse.sshfs", True), ("overlay", False)]
)
def test_a_network_file_system_is_known_by_its_mount(tmp_path: Path, kind: str, network: bool) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"none / ext4 rw 0 0\nserver:/x {tmp_path.resolve()} {kind} rw 0 0\n")
    assert on_network(tmp_path / "runs.db", mounts) is network
