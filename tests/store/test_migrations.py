"""Stores that older versions wrote are read as if this one had; the old tables stand here as that version made them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from trace_opt.errors import StoreError
from trace_opt.store import migrations
from trace_opt.store.database import Database
from trace_opt.store.schema import VERSION, metadata
from trace_opt.store.store import NewRun, Store

COST = "calls INTEGER NOT NULL, tokens_in BIGINT NOT NULL, tokens_out BIGINT NOT NULL, usd DOUBLE PRECISION"
VERSION_1 = f"""
CREATE TABLE meta (name TEXT NOT NULL, value INTEGER NOT NULL, PRIMARY KEY (name));
CREATE TABLE runs (id TEXT NOT NULL, name TEXT NOT NULL, status TEXT NOT NULL, ended TEXT NOT NULL,
  seed BIGINT NOT NULL, created DOUBLE PRECISION NOT NULL, updated DOUBLE PRECISION NOT NULL, owner TEXT NOT NULL,
  lease_until DOUBLE PRECISION NOT NULL, epoch INTEGER NOT NULL, version TEXT NOT NULL, best INTEGER NOT NULL,
  seconds DOUBLE PRECISION NOT NULL, data TEXT NOT NULL, report TEXT, flights BIGINT NOT NULL, PRIMARY KEY (id));
CREATE TABLE candidates (run TEXT NOT NULL, id INTEGER NOT NULL, step INTEGER NOT NULL, optimizer TEXT NOT NULL,
  parents TEXT NOT NULL, data TEXT NOT NULL, values_hash TEXT NOT NULL, mean DOUBLE PRECISION, n INTEGER NOT NULL,
  failed INTEGER NOT NULL, accepted INTEGER NOT NULL, PRIMARY KEY (run, id), UNIQUE (run, values_hash));
CREATE TABLE rollouts (run TEXT NOT NULL, candidate INTEGER NOT NULL, example INTEGER NOT NULL,
  repeat INTEGER NOT NULL, score DOUBLE PRECISION, data TEXT NOT NULL, {COST}, seconds DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (run, candidate, example, repeat));
CREATE TABLE graphs (run TEXT NOT NULL, candidate INTEGER NOT NULL, example INTEGER NOT NULL, blob TEXT NOT NULL,
  PRIMARY KEY (run, candidate, example));
CREATE TABLE trials (run TEXT NOT NULL, number INTEGER NOT NULL, step INTEGER NOT NULL, slot INTEGER NOT NULL,
  optimizer TEXT NOT NULL, base INTEGER NOT NULL, candidate INTEGER, data TEXT NOT NULL, before DOUBLE PRECISION,
  after DOUBLE PRECISION, n INTEGER NOT NULL, accepted INTEGER NOT NULL, verdict TEXT NOT NULL,
  PRIMARY KEY (run, number));
CREATE TABLE states (run TEXT NOT NULL, part TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (run, part));
CREATE TABLE spend (run TEXT NOT NULL, role TEXT NOT NULL, {COST}, PRIMARY KEY (run, role));
CREATE TABLE flights (run TEXT NOT NULL, token BIGINT NOT NULL, role TEXT NOT NULL, what TEXT NOT NULL, {COST},
  lost INTEGER NOT NULL, PRIMARY KEY (run, token));
CREATE TABLE blobs (hash TEXT NOT NULL, data BYTES NOT NULL, PRIMARY KEY (hash));
INSERT INTO meta VALUES ('schema', 1);
INSERT INTO runs VALUES ('2611240000aa', 'old', 'interrupted', 'Ctrl-C', 7, 1.0, 2.0, '', 0.0, 3, '0.1', 1, 9.5,
  '{{"config": {{}}, "splits": {{"train": 1, "val": 1}}, "parameters": []}}', NULL, 4);
INSERT INTO candidates VALUES ('2611240000aa', 0, 0, '', '[]', '{{"style": "x"}}', 'h0', 0.25, 4, 0, 1);
INSERT INTO candidates VALUES ('2611240000aa', 1, 1, 'OptoPrime', '[0]', '{{"style": "y"}}', 'h1', 0.5, 4, 0, 1);
INSERT INTO rollouts VALUES ('2611240000aa', 1, 0, 0, 0.5, '{{}}', 1, 10, 2, 0.5, 0.1);
INSERT INTO trials VALUES ('2611240000aa', 1, 1, 0, 'OptoPrime', 0, 1,
  '{{"changed": {{"style": "y"}}, "reason": "50 % \\u00fc", "notes": {{}}, "by": 0}}', 0.25, 0.5, 4, 1, 'accepted');
INSERT INTO trials VALUES ('2611240000aa', 2, 2, 0, 'Gradient', 1, NULL,
  '{{"changed": {{}}, "reason": "", "notes": {{}}, "by": 1, "phase": true}}', NULL, NULL, 0, 0, 'nothing');
INSERT INTO spend VALUES ('2611240000aa', 'workflow', 1, 10, 2, 0.5)
"""


def execute(where: str, text: str) -> None:
    database = Database(where)
    engine = sa.create_engine(database.url)
    with engine.begin() as connection:
        for statement in text.replace("BYTES", "BLOB" if database.is_sqlite else "BYTEA").split(";\n"):
            connection.exec_driver_sql(statement.replace("%", "%%") if not database.is_sqlite else statement)
    engine.dispose()


@pytest.fixture
def old(where: str) -> str:
    execute(where, VERSION_1)
    return where


@pytest.fixture
def store(old: str) -> Iterator[Store]:
    made = Store(old)
    yield made
    made.close()


def version_of(store: Store) -> int:
    with store.database.reading() as connection:
        return connection.exec_driver_sql("SELECT value FROM meta").scalar_one()


def test_an_old_run_reads_as_it_was(store: Store) -> None:
    record = store.load("last")
    assert (record.info.name, record.info.status, record.info.seconds) == ("old", "interrupted", 9.5)
    assert record.best == {"style": "y"}
    assert [t.reason for t in record.trials] == ["50 % ü", ""]
    assert version_of(store) == VERSION


def test_trials_from_before_there_were_phases_say_that_they_are_none(store: Store) -> None:
    writer, saved = store.reopen("last")
    assert [trial["data"]["phase"] for trial in saved.trials] == [False, True]
    assert (saved.best, saved.flights, saved.seconds) == (1, 4, 9.5)
    writer.close("finished", "")


def test_an_old_store_takes_new_runs_beside_the_old_ones(store: Store) -> None:
    store.begin(NewRun(name="new", seed=0, version="1", data={})).close("finished", "")
    assert [info.name for info in store.runs()] == ["new", "old"]


def test_a_migrated_store_has_the_tables_of_a_new_one(store: Store) -> None:
    def columns(database: Database) -> dict[str, dict[str, tuple[str, bool, bool]]]:
        with database.reading() as connection:
            inspector = sa.inspect(connection)
            return {
                table: {
                    column["name"]: (
                        column["type"]._type_affinity.__name__,
                        bool(column["nullable"]),
                        column["name"] in inspector.get_pk_constraint(table)["constrained_columns"],
                    )
                    for column in inspector.get_columns(table)
                }
                for table in sorted(inspector.get_table_names())
            }

    store.runs()
    migrated = columns(store.database)
    with store.database.writing() as connection:
        metadata().drop_all(connection)
    store.close()
    fresh = Store(store.database.url.render_as_string(hide_password=False))
    fresh.begin(NewRun(name="new", seed=0, version="1", data={})).close("finished", "")
    assert migrated == columns(fresh.database)
    fresh.close()


def test_a_step_that_fails_leaves_the_store_as_it_was(old: str) -> None:
    execute(old, "UPDATE trials SET data = '{not json' WHERE number = 2")
    for _ in range(2):
        broken = Store(old)
        with pytest.raises(StoreError, match="is damaged"):
            broken.runs()
        broken.close()
    engine = sa.create_engine(Database(old).url)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT value FROM meta").scalar_one() == 1
        assert "memos" not in sa.inspect(connection).get_table_names()
        assert "phase" not in json.loads(
            connection.exec_driver_sql("SELECT data FROM trials WHERE number=1").scalar_one()
        )
    engine.dispose()


def test_a_store_that_an_older_process_works_in_is_left_alone(old: str) -> None:
    execute(old, "UPDATE runs SET owner = 'elsewhere:12:x', lease_until = 99999999999")
    waiting = Store(old)
    with pytest.raises(StoreError, match="older version and 'elsewhere:12' is at work in it"):
        waiting.runs()
    waiting.close()
    execute(old, "UPDATE runs SET lease_until = 0")
    assert len(waiting.runs()) == 1
    waiting.close()


def test_two_processes_that_open_an_old_store_migrate_it_once(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    real = migrations.STEPS[2]
    other = Store(old)

    def slow(connection: Any) -> None:
        steps.append(2)
        real(connection)

    monkeypatch.setattr(migrations, "STEPS", {**migrations.STEPS, 2: slow})
    engine = other.database._opened(create=False)
    migrations.migrate(engine.execution_options(trace_opt_write=True), 1, VERSION, other.database)
    assert steps == [2]  # the second one, which had read version 1 as well, found it done
    assert len(other.runs()) == 1
    other.close()


@pytest.mark.parametrize("version", [VERSION + 1, 99])
def test_a_store_of_a_newer_version_is_refused_in_one_sentence(old: str, version: int) -> None:
    execute(old, f"UPDATE meta SET value = {version}")
    newer = Store(old)
    with pytest.raises(StoreError) as caught:
        newer.runs()
    said = str(caught.value)
    assert f"holds schema {version}, this version knows {VERSION}; upgrade trace-opt-framework" in said
    assert "\n" not in said
    newer.close()


def test_a_version_that_no_step_leads_from_is_refused(old: str) -> None:
    execute(old, "UPDATE meta SET value = 0")
    ancient = Store(old)
    with pytest.raises(StoreError, match="holds schema 0, which this version cannot read"):
        ancient.runs()
    ancient.close()
