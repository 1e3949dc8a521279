"""`--approve` on a real terminal: what is shown, what the answers do, and how a run that was left goes on."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from trace_opt.store.store import Store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="terminals are another thing there")

_QUESTION = b"go on later: "


@pytest.fixture
def dialogue(start: Any) -> Callable[..., tuple[int, str]]:
    """Runs a command on a terminal of its own, and types an answer to each question."""

    def talk(answers: Sequence[bytes], *args: object) -> tuple[int, str]:
        master, slave = pty.openpty()
        env = {"TERM": "xterm"}
        process: subprocess.Popen[Any] = start(
            *args, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(slave)
        said, told, until = b"", 0, time.monotonic() + 60
        while time.monotonic() < until and select.select([master], [], [], 30)[0]:
            try:
                data = os.read(master, 65536)
            except OSError:
                break
            if not data:
                break
            said += data
            if said.count(_QUESTION) > told:
                os.write(master, answers[told])
                told += 1
        os.close(master)
        assert told == len(answers), said
        return process.wait(30), said.decode(errors="replace")

    return talk


def _take_terminal() -> None:
    """Make the terminal the one that the process is controlled from, so that Ctrl-C typed there reaches it."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


WORDS = '''
"""Three words and three numbers; the third and the best of what is tried first are both better than the start."""
from trace_opt import Categorical, Feedback, Parameter, Problem, trace

word = Parameter("a", name="word", suggestions=("b", "c"))
number = Parameter(0, name="number", choices=(0, 1, 2))


@trace
def join(text: str, word: str, number: int) -> str:
    return f"{text}{word}{number}"


def workflow(text: str) -> str:
    return join(text, word.value, number.value)


def guide(output: str, example: dict) -> Feedback:
    return Feedback((output[-2] == "b") / 2 + (output[-1] == "2") / 2, "two at a time")


problem = Problem(
    workflow=workflow, train=[{"text": f"t{i:02}"} for i in range(40)], guide=guide, optimizers=[Categorical()]
)
'''

RUN = ("--approve", "--budget", "trials=9")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.py"
    path.write_text(WORDS, encoding="utf-8")
    return path


def test_an_acceptance_is_shown_as_a_diff_and_waits_for_the_answer(dialogue: Any, words: Path) -> None:
    """No is a refusal, nonsense is asked about again, yes is built on."""
    code, said = dialogue([b"n\n", b"perhaps\n", b"y\n"], "run", words, *RUN)
    assert code == 0
    assert "would be built on: better than the incumbent" in said
    assert "--- number (now)" in said
    assert "answer y, n or q" in said
    record = Store(".trace_opt/runs.db").load()
    verdicts = [trial.verdict.split(":")[0] for trial in record.trials]
    assert verdicts.count("refused") == 1
    assert verdicts.count("accepted") == 1


@pytest.mark.parametrize("leaving", [b"q\n", b"\x03", b"\x04"], ids=["q", "Ctrl-C", "Ctrl-D"])
def test_who_leaves_keeps_the_run_and_goes_on_where_it_was(dialogue: Any, words: Path, leaving: bytes) -> None:
    """Resuming asks the question again that was not answered, and no other."""
    code, said = dialogue([b"n\n", leaving], "run", words, *RUN)
    assert code == 130
    assert "what was done is kept; go on with `trace-opt resume" in said
    assert "Traceback" not in said
    [info] = Store(".trace_opt/runs.db").runs()
    assert info.status == "interrupted"
    code, said = dialogue([b"y\n"], "resume", "last")
    assert code == 0
    trials = Store(".trace_opt/runs.db").load().trials
    assert [trial.verdict.split(":")[0] for trial in trials if not trial.verdict.startswith("dropped")] == [
        "refused",
        "accepted",
    ]


def test_without_a_terminal_it_is_refused_before_anything_is_run(cli: Any, choices: Path) -> None:
    """One sentence that says what else there is, for a run and for one to go on with."""
    done = cli("run", choices, "--approve")
    assert done.code == 2
    assert "it asks on the terminal, and here is none" in done.err
    assert "approve=" in done.err
    assert not Path(".trace_opt/runs.db").exists()
    assert cli("run", choices, "--approve", "--dry-run").code == 0
