"""The command line in this process and in one of its own, and small problems to run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Cli = Callable[..., Done]

CHOICES = '''
"""Two choices, one combination of nine right."""
import time
from trace_opt import Categorical, Feedback, Parameter, Problem, trace


def problem(*, wait: float = 0.0, examples: int = 8, right: int = 2) -> Problem:
    """A problem.

    Args:
        wait: Seconds a rollout takes.
        examples: How many examples there are.
        right: The right number.
    """
    word = Parameter("a", name="word", description="a word", choices=("a", "b", "c"))
    number = Parameter(0, name="number", description="a number", choices=(0, 1, 2))

    @trace
    def join(text: str, word: str, number: int) -> str:
        time.sleep(wait)
        return f"{text}{word}{number}"

    def workflow(text: str) -> str:
        return join(text, word.value, number.value)

    def guide(output: str, example: dict) -> Feedback:
        wanted = f"{example['text']}b{right}"
        return Feedback(sum(a == b for a, b in zip(output, wanted)) / len(wanted), f"wanted {wanted}")

    data = [{"text": f"t{i:02}"} for i in range(examples)]
    return Problem(
        workflow=workflow, train=data, val=data[: examples // 2], test=data[examples // 2 :], guide=guide,
        parameters=[word, number], optimizers=[Categorical()], description="two choices",
    )
'''

PROMPT = '''
"""A text that a scripted model improves."""
import json
from trace_opt import Feedback, OptoPrime, Parameter, Problem, trace
from trace_opt.testing import ScriptedLLM

ask = ScriptedLLM(lambda messages: "yes" if "[bold]politely[/bold]" in messages[-1]["content"] else "no", name="scripted/worker")
teach = ScriptedLLM(lambda messages: json.dumps({"prompt": "Answer [bold]politely[/bold].\\x1b[2J"}), name="scripted/teacher")
prompt = Parameter("Answer.", name="prompt", description="what the model is told")


@trace
def answer(question: str) -> str:
    return ask(f"{prompt.value} {question}")


def workflow(question: str) -> str:
    return answer(question)


def guide(output, example):
    return Feedback(1.0 if output == "yes" else 0.0, "say yes")


data = [{"question": f"question {i}"} for i in range(30)]
problem = Problem(
    workflow=workflow, train=data[:10], val=data[10:20], test=data[20:], guide=guide, optimizers=[OptoPrime(teach)],
    description="a prompt",
)
'''


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, no keys, no settings of the machine's."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("TRACE_OPT_") or name.endswith("_API_KEY") or name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process."""
    from trace_opt.cli import main

    def run(*args: object) -> Done:
        capfd.readouterr()
        code = main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return run


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200", **more}


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "trace_opt", *map(str, args)]


@pytest.fixture
def spawn() -> Cli:
    """Runs a command in a process of its own."""

    def run(*args: object, **options: str) -> Done:
        done = subprocess.run(
            command(*args), capture_output=True, text=True, encoding="utf-8", env=environment(**options), timeout=100,
            check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[Any]]]:
    """Starts a command in a process of its own, which is ended with the test."""
    running: list[subprocess.Popen[Any]] = []

    def begin(*args: object, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[Any]:
        made = subprocess.Popen(command(*args), env=environment(**(env or {})), **options)
        running.append(made)
        return made

    yield begin
    for process in running:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a problem file."""

    def to(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(dedent(text), encoding="utf-8")
        return path

    return to


@pytest.fixture
def choices(write: Callable[[str, str], Path]) -> Path:
    return write("choices.py", CHOICES)


@pytest.fixture
def prompt(write: Callable[[str, str], Path]) -> Path:
    return write("prompt.py", PROMPT)
