"""Every mistake of a user is one sentence on stderr, nothing on stdout, and the right exit code."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

BASE = """
from trace_opt import Budget, Categorical, Feedback, OptoPrime, Parameter, Problem, connect, trace
word = Parameter("a", name="word", choices=("a", "b"))
@trace
def join(text): return text + word.value
def workflow(text): return join(text)
def guide(output, example): return 1.0
train = [{"text": "x"}, {"text": "y"}]
more = {}
"""
TAIL = """
problem = Problem(workflow=workflow, train=train, guide=guide, **more)
"""

CASES = {
    "missing file": (None, [], 1, "there is no file"),
    "ends the program": ("import sys\nsys.exit(3)", [], 1, "ended the program while it was loaded (sys.exit(3))"),
    "no problem": ("x = 1", [], 1, "defines no `problem`"),
    "no Problem": ("problem = 3", [], 1, "`problem`"),
    "syntax error": ("problem = (", [], 1, "cannot be loaded"),
    "failing import": ("import gone_for_good", [], 1, "gone_for_good"),
    "empty training set": (BASE + "train = []" + TAIL, [], 1, "train is empty"),
    "guide gives nan": (BASE + "def guide(o, e): return float('nan')" + TAIL, [], 1, "finite"),
    "guide gives a text": (BASE + "def guide(o, e): return 'good'" + TAIL, [], 1, "score"),
    "guide raises": (BASE + "def guide(o, e): return e['gone']" + TAIL, [], 1, "gone"),
    "two of one name": (
        BASE + "other = Parameter('a', name='word', choices=('a', 'b'))\n"
        "def workflow(text): return join(text) + join(other.value)" + TAIL,
        [], 1, "two parameters",
    ),
    "two given of one name": (
        BASE + "more = {'parameters': [word, Parameter('a', name='word')]}" + TAIL, [], 1, "two parameters",
    ),
    "unknown option": (BASE + "def problem(*, size: int = 3): ...", ["--set", "sise=3"], 2, "did you mean 'size'?"),
    "option of the wrong type": (BASE + "def problem(*, size: int = 3): ...", ["--set", "size=big"], 2, "whole number"),
    "option of a plain problem": (BASE + TAIL, ["--set", "size=3"], 2, "takes no option"),
    "nobody's parameter": (
        BASE + "more = {'optimizers': [OptoPrime('openai/gpt-4.1')]}\nword = Parameter('a', name='word')\n"
        "from trace_opt import Demonstrations\nword = Parameter(Demonstrations(2), name='word')\n"
        "@trace\ndef join(text): return text + str(len(word.value))" + TAIL,
        [], 1, "no optimizer handles",
    ),
    "parameter made inside": (
        BASE + "def workflow(text): return join(Parameter('b', name='inner').value)" + TAIL, [], 1, "inside a workflow",
    ),
    "no parameter": (BASE + "def workflow(text): return text" + TAIL, [], 1, "read no Parameter"),
    "budget too small": (BASE + TAIL, ["--budget", "rollouts=1"], 3, "cannot pay for one proposal"),
    "usd without a price": (
        BASE + "llm = connect('openai/gpt-4.1', base_url='http://127.0.0.1:9', api_key='none')\n"
        "@trace\ndef join(text): return llm(text + word.value)" + TAIL,
        ["--budget", "usd=1"], 3, "price",
    ),
    "store in a folder that is a file": (BASE + TAIL, ["--store", "bad.py/x/runs.db"], 1, "cannot be made"),
    "model that makes no sense": (BASE + TAIL, ["--model", "gpt-nothing"], 1, "'gpt-nothing'"),
    "replay file missing": (BASE + TAIL, ["--replay", "gone.jsonl"], 1, "gone.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_sentence_with_its_code(cli: Any, tmp_path: Path, case: str) -> None:
    text, args, code, said = CASES[case]
    if case == "model that makes no sense":
        text = BASE + "word = Parameter('a', name='word')" + TAIL
    if text is not None:
        (tmp_path / "bad.py").write_text(text)
    done = cli("run", "bad.py", "--quiet", *args)
    assert done.code == code, done.err
    assert done.out == ""
    first, *rest = done.err.strip().split("\n")
    assert first.startswith("trace-opt: ")
    assert said in first
    assert not first.endswith(".")
    # what follows is only how to go on
    assert all(line.startswith(("what was done is kept", "try `")) for line in rest)


def test_a_store_of_a_newer_version_is_refused(cli: Any, choices: Path) -> None:
    cli("run", choices, "--budget", "trials=1", "--store", "runs.db")
    with sqlite3.connect("runs.db") as connection:
        connection.execute("UPDATE meta SET value = 99 WHERE name = 'schema'")
    connection.close()
    for args in (["list"], ["show"], ["run", choices]):
        done = cli(*args, "--store", "runs.db")
        assert done.code == 1
        assert "holds schema 99" in done.err


def test_a_corrupt_store_is_refused(cli: Any) -> None:
    Path("runs.db").write_bytes(b"no database at all" * 100)
    done = cli("list", "--store", "runs.db")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "damaged" in done.err


def test_a_database_of_another_program_is_refused(cli: Any) -> None:
    with sqlite3.connect("other.db") as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    done = cli("list", "--store", "other.db")
    assert done.code == 1
    assert "another program" in done.err


def test_a_run_that_is_not_there_is_named(cli: Any, choices: Path) -> None:
    assert "there is no store" in cli("show", "abc").err
    cli("run", choices, "--budget", "trials=1")
    done = cli("show", "zzz")
    assert done.code == 1
    assert "no run 'zzz'" in done.err


def test_an_error_of_the_user_s_own_code_names_the_line(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BASE + "def guide(o, e):\n    return e['gone']" + TAIL)
    done = cli("run", "bad.py", "--quiet")
    line = (tmp_path / "bad.py").read_text().split("\n").index("    return e['gone']") + 1
    assert f"bad.py:{line}" in done.err
    assert "Traceback" not in done.err
