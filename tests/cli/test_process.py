"""What only shows in a process of its own: terminals, pipes, signals, exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX terminals and signals")

ESCAPE = "\x1b"


def read_all(master: int, seconds: float = 60.0) -> str:
    """Everything that is written to a terminal until its process ends."""
    parts: list[bytes] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ready, _, _ = select.select([master], [], [], 1.0)
        if not ready:
            continue
        try:
            data = os.read(master, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not data:
            break
        parts.append(data)
    return b"".join(parts).decode("utf-8", "replace")


def on_terminal(start: Any, *args: object, **env: str) -> tuple[int, str]:
    master, slave = pty.openpty()
    try:
        process = start(*args, env={"TERM": "xterm-256color", **env}, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        text = read_all(master)
        return process.wait(60), text
    finally:
        os.close(master)


def test_a_terminal_gets_a_bar_and_colours(start: Any, choices: Path) -> None:
    code, text = on_terminal(start, "run", choices, "--budget", "trials=3", "--set", "wait=0.02")
    assert code == 0
    assert f"{ESCAPE}[1m" in text
    assert "trial 3 (Categorical)" in text
    assert re.search(r"\d+/\d+", text)


def test_no_color_takes_the_colours_and_leaves_the_bar(start: Any, choices: Path) -> None:
    code, text = on_terminal(start, "run", choices, "--budget", "trials=3", NO_COLOR="1")
    assert code == 0
    assert re.search(rf"{ESCAPE}\[(3|4|9)\d", text) is None
    assert on_terminal(start, "diff", "--no-color")[1].count(f"{ESCAPE}[3") == 0


def test_a_dumb_terminal_gets_plain_lines(start: Any, choices: Path) -> None:
    code, text = on_terminal(start, "run", choices, "--budget", "trials=3", TERM="dumb")
    assert code == 0
    assert ESCAPE not in text
    assert "trial 3 (Categorical)" in text


def test_a_terminal_is_not_steered_by_a_model(start: Any, prompt: Path) -> None:
    code, text = on_terminal(start, "run", prompt, "--budget", "trials=1")
    assert code == 0
    assert "[bold]politely[/bold]" in text
    assert f"{ESCAPE}[2J" not in text
    assert f"{ESCAPE}[2J" not in on_terminal(start, "export")[1]


def test_without_a_terminal_there_is_no_escape_at_all(spawn: Any, choices: Path) -> None:
    done = spawn("run", choices, "--budget", "trials=3")
    assert done.code == 0
    assert ESCAPE not in done.out + done.err


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["list"], ["show", "--all"], ["show", "--json"]])
def test_a_closed_pipe_is_silent(spawn: Any, start: Any, choices: Path, args: list[str]) -> None:
    if args[0] in ("list", "show"):
        assert spawn("run", choices, "--budget", "trials=2", "--quiet").code == 0
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*args, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"rror" not in err
    assert b"Traceback" not in err


def test_a_reader_of_progress_that_goes_away_does_not_stop_a_run(start: Any, choices: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("run", choices, "--budget", "trials=3", "--json", stdout=subprocess.PIPE, stderr=writer)
    os.close(writer)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["report"]["trials"] == 3


def test_an_encoding_that_lacks_a_character_is_no_error(spawn: Any, choices: Path) -> None:
    text = choices.read_text(encoding="utf-8").replace('"a", "b", "c"', '"a", "b", "c", "\u00e9\U0001f600"')
    choices.write_text(text, encoding="utf-8")
    done = spawn("run", choices, "--budget", "trials=12", PYTHONIOENCODING="ascii")
    assert done.code == 0, done.err
    shown = spawn("show", "--json", PYTHONIOENCODING="ascii")
    assert "\u00e9\U0001f600" in {c["values"]["word"] for c in json.loads(shown.out)["candidates"]}


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["list"], 0),
        (["show", "gone"], 1),
        (["list", "--nothing"], 2),
        (["run", "choices.py", "--budget", "rollouts=2"], 3),
    ],
)
def test_exit_codes_reach_the_shell(spawn: Any, choices: Path, args: list[str], code: int) -> None:
    assert spawn(*args).code == code


def interrupted(start: Any, choices: Path, by: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
    """Starts a slow run and sends it a signal after its second trial; one that ended all the same is begun anew."""
    for _ in range(5):
        process = start(
            "run", choices, "--set", "wait=0.15", "--seed", "3", "--budget", "trials=8",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("trial 2 "):
                process.send_signal(by)
                break
        out, err = process.communicate(timeout=60)
        if process.returncode != 0:
            break
    return process.returncode, out, "".join(lines) + err


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_with_130_and_everything_kept(
    spawn: Any, start: Any, choices: Path, by: signal.Signals
) -> None:
    code, out, err = interrupted(start, choices, by)
    assert code == 130
    assert out == ""
    assert "Traceback" not in err
    info = json.loads(spawn("list", "--json").out)[0]
    assert info["status"] == "interrupted"
    assert info["trials"] >= 2
    assert f"`trace-opt resume {info['id']}`" in err


def test_sigterm_ends_a_background_job_that_takes_no_sigint(spawn: Any, start: Any, choices: Path) -> None:
    """As a script's shell starts one with `&`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code, _, err = interrupted(start, choices, signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130, err
    assert json.loads(spawn("list", "--json").out)[0]["status"] == "interrupted"


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_goes_on_to_the_same_end(
    spawn: Any, start: Any, choices: Path, by: signal.Signals
) -> None:
    interrupted(start, choices, by)
    assert json.loads(spawn("list", "--json").out)[0]["status"] == "interrupted"
    resumed = spawn("resume", "last", "--json", "--quiet")
    assert resumed.code == 0, resumed.err
    whole = spawn("run", choices, "--set", "wait=0.15", "--seed", "3", "--budget", "trials=8", "--json", "--quiet")
    left, right = json.loads(resumed.out), json.loads(whole.out)
    assert left["best"] == right["best"]
    assert left["report"]["best"] == right["report"]["best"]
    runs = [json.loads(spawn("show", document["run"], "--json").out) for document in (left, right)]
    assert runs[0]["trials"] == runs[1]["trials"]


def test_a_run_held_by_another_process_is_refused(spawn: Any, start: Any, choices: Path) -> None:
    process = start("run", choices, "--set", "wait=100", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    next(line for line in process.stderr if line.startswith("start: "))
    done = spawn("resume", "last", "--quiet")
    assert done.code == 1
    assert "is held by" in done.err
    assert "Traceback" not in done.err


def test_python_m_and_the_script_are_one_command(spawn: Any) -> None:
    script = Path(sys.executable).with_name("trace-opt")
    if not script.exists():
        pytest.skip("the package is not installed with its script")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == spawn("--version").out
