"""A search that is killed and resumed ends as an uninterrupted one; the harness is the benchmark's, with a handful of kills."""

import signal
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.loading import module_at
from trace_opt.store.store import Store

HARNESS = Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"


@lru_cache(maxsize=1)
def harness() -> Any:
    return module_at(HARNESS, "kill_resume_harness", listed=True)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return harness().run_whole(tmp_path_factory.mktemp("clean"), [], 0.001)


def test_the_uninterrupted_search_has_something_to_lose(clean: Any) -> None:
    assert clean["sent"] > 50
    assert len(clean["result"]["trials"]) == harness().TRIALS
    assert {t[2] for t in clean["result"]["trials"]} == {"Categorical", "OptoPrime"}
    assert any(t[10] for t in clean["result"]["trials"])


@pytest.mark.parametrize(
    "kills",
    [
        [("before a commit", 1)],
        [("before a call", 9), ("before a call", 9)],
        [("before a call", 25)],
        [("before a commit", 40)],
        [("after a proposal", 1)],
        [("before a reply", 40), ("before a commit", 9), ("before a proposal", 1)],
    ],
    ids=lambda kills: ", ".join(f"{kind} {n}" for kind, n in kills),
)
def test_a_killed_and_resumed_search_ends_as_an_uninterrupted_one(kills: Any, clean: Any, tmp_path: Path) -> None:
    plan = [harness().Kill(kind, n) for kind, n in kills]
    whole = harness().run_whole(tmp_path, plan, 0.001)
    assert whole["killed"] == len(kills)
    assert harness().check(whole, clean, plan) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a signal here")
def test_ctrl_c_keeps_everything_and_the_run_goes_on(clean: Any, tmp_path: Path) -> None:
    said, folder = _interrupted(tmp_path)
    store = Store(folder / "runs.db")
    record = store.load("last")
    store.close()
    assert "KeyboardInterrupt" in said
    assert (record.info.status, record.info.owner) == ("interrupted", "")
    assert sum(c.calls for c in record.spend.values()) >= len(harness().lines(folder))

    again = harness().start(folder, record.info.id, None, 0.001)
    assert again.wait(timeout=60) == 0
    whole = harness().dump(folder / "runs.db")
    assert whole["result"] == clean["result"]


def _interrupted(tmp_path: Path) -> tuple[str, Path]:
    """What a search said that got Ctrl-C in its middle, and its folder; one that was over before is begun anew."""
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = subprocess.Popen(
            [sys.executable, str(HARNESS), "--child", str(folder / "runs.db"), str(folder / "sent"), "", "never", "0", "0.02"],
            stderr=subprocess.PIPE,
        )  # fmt: skip
        while len(harness().lines(folder)) < 60 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1].decode()
        if process.returncode != 0:
            break
    return said, folder
