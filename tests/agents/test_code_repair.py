"""agents/code_repair.py: every task is solved from its wrong start, and nothing that a model answers does any harm."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.agents.command_line import exported
from tests.loading import module_at
from trace_opt import Budget
from trace_opt.core.tracer import record
from trace_opt.errors import OpError, ProblemError
from trace_opt.problem import Problem, load_problem
from trace_opt.testing import ScriptedLLM

PATH = Path(__file__).parents[2] / "agents" / "code_repair.py"

FIXES = {
    "median": {
        "median": """
def median(numbers):
    ordered, half = sorted(numbers), len(numbers) // 2
    return float(ordered[half]) if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
"""
    },
    "days_in_month": {
        "days_in_month": """
def days_in_month(year, month):
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31
"""
    },
    "insertion_point": {
        "insertion_point": """
import bisect
def insertion_point(numbers, new):
    return bisect.bisect_left(numbers, new)
"""
    },
    "flatten": {
        "flatten": """
def flatten(nested):
    found = []
    for item in nested:
        found += flatten(item) if isinstance(item, list) else [item]
    return found
"""
    },
    "merge": {
        "merge": """
def merge(intervals):
    merged = []
    for first, last in sorted(intervals):
        if merged and first <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return merged
"""
    },
    "chunks": {
        "chunks": """
def chunks(items, size):
    return [items[start:start + size] for start in range(0, len(items), size)]
"""
    },
    "seconds": {
        "seconds": """
import re
def seconds(text):
    units = {"h": 3600, "m": 60, "s": 1, "": 60}
    return sum(int(count) * units[unit] for count, unit in re.findall(r"([0-9]+)([hms]?)", text))
"""
    },
    "roman": {
        "roman": """
def roman(numeral):
    worth = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    values = [worth[letter] for letter in numeral]
    return sum(-a if a < b else a for a, b in zip(values, values[1:] + [0]))
"""
    },
    "weekday": {
        "weekday": """
import datetime
def weekday(year, month, day):
    names = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    return names[datetime.date(year, month, day).weekday()]
"""
    },
    "columns": {
        "columns": """
def columns(line):
    fields, field, quoted, i = [], "", False, 0
    while i < len(line):
        mark = line[i]
        if mark == '"' and quoted and line[i + 1:i + 2] == '"':
            field += '"'
            i += 1
        elif mark == '"':
            quoted = not quoted
        elif mark == "," and not quoted:
            fields.append(field)
            field = ""
        else:
            field += mark
        i += 1
    return [*fields, field]
"""
    },
    "newer": {
        "newer": """
def parts_of(version):
    return ([int(part) for part in version.split(".")] + [0] * 9)[:9]

def newer(one, other):
    return parts_of(one) > parts_of(other)
"""
    },
    "wrap": {
        "wrap": """
def wrap(text, width):
    lines = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines
"""
    },
    "encode": {
        "encode": """
import itertools
def encode(text):
    return "".join(f"{len(list(run))}:{letter};" for letter, run in itertools.groupby(text))
""",
        "summary": """
def summary(code):
    longest = {}
    for run in code.split(";")[:-1]:
        count, letter = run.split(":")
        longest[letter] = max(longest.get(letter, 0), int(count))
    return longest
""",
    },
    "add_minutes": {
        "minutes": """
def minutes(clock, added):
    time, half = clock.split()
    hour, minute = time.split(":")
    return int(hour) % 12 * 60 + int(minute) + (720 if half == "pm" else 0) + added
""",
        "clock_of": """
def clock_of(total):
    hour, minute = divmod(total % 1440, 60)
    half = "am" if hour < 12 else "pm"
    return f"{(hour - 1) % 12 + 1}:{minute:02} {half}"
""",
    },
}

HOSTILE = (
    "import os\ndef chunks(items, size):\n    os.system('touch harmed')\n    return []\n",
    "def chunks(items, size):\n    open('harmed', 'w').write('x')\n    return []\n",
    "open('harmed', 'w')\ndef chunks(items, size):\n    return []\n",
    "def chunks(items, size):\n    ''.__class__.__base__.__subclasses__()\n    return []\n",
    "def chunks(items, size):\n    return [[0] * 10 ** 10]\n",
    "def chunks(items, size):\n    return chunks(items, size)\n",
    "def chunks(items, size):\n    return 'not a list'\n",
    "def pieces(items, size):\n    return []\n",
    "def chunks(items):\n    return []\n",
    "def chunks(items, size:\n",
    "def chunks(items, size):\n    yield items\n",
    7,
)
MALFORMED = ("", "no idea", "{", "[1, 2]", '{"values": 3}', '{"values": {"other": "def f(): pass"}}')


def loaded(**options: str) -> Problem:
    return load_problem(PATH, options)


def answering(values: dict[str, Any]) -> ScriptedLLM:
    return ScriptedLLM(lambda _: json.dumps({"reasoning": "as the docstring says", "values": values}))


def searched(problem: Problem, llm: ScriptedLLM, trials: int = 1) -> Any:
    return problem.optimize(model=llm, budget=Budget(trials=trials), store=None)


@pytest.fixture(scope="module")
def module() -> Any:
    return module_at(PATH, "code_repair_under_test", listed=True)


def test_every_task_is_named_by_the_option_and_mended_here(module: Any) -> None:
    assert set(module.TASKS) == set(FIXES) == set(module.TaskName.__args__)


@pytest.mark.parametrize("task", FIXES)
def test_a_task_is_solved_from_its_wrong_start(task: str) -> None:
    problem = loaded(task=task)
    found = searched(problem, answering(FIXES[task]))
    assert set(found.best) == set(FIXES[task])
    scores = [found.start, found.best]
    means: list[float] = []
    for values in scores:
        right = 0.0
        for example in problem.test or ():
            try:
                with record(values=values) as graph:
                    output = problem.workflow(**example)
                right += problem.guide(graph.output(output).value, example).value
            except OpError:
                pass
        means.append(right / len(problem.test or ()))
    assert means[0] <= 0.9
    assert means[1] == 1.0


@pytest.mark.parametrize("task", ["encode", "add_minutes"])
def test_of_two_functions_neither_change_alone_solves_it(task: str) -> None:
    for name, source in FIXES[task].items():
        problem = loaded(task=task)
        found = searched(problem, answering({name: source}))
        assert found.history[0].after is None or found.history[0].after < 1.0


@pytest.mark.parametrize("source", HOSTILE)
def test_a_hostile_reply_is_contained_and_the_right_one_after_it_is_taken(source: Any) -> None:
    replies = iter([source])
    here = os.getpid()
    llm = ScriptedLLM(
        lambda _: json.dumps({"values": {"chunks": next(replies, FIXES["chunks"]["chunks"])}}),
    )
    found = searched(loaded(task="chunks", cases="20"), llm, trials=2)
    assert "range(0, len(items), size)" in found.best["chunks"]
    assert not Path("harmed").exists()
    assert os.getpid() == here


def test_an_endless_loop_ends_at_its_limit() -> None:
    problem = loaded(task="chunks", cases="8")
    source = "def chunks(items: list[int], size: int) -> list[list[int]]:\n    while True:\n        pass\n"
    with pytest.raises(OpError) as failed, record(values={"chunks": source}):
        problem.workflow(**problem.train[0])
    assert "time limit" in str(failed.value.__cause__.__cause__)


@pytest.mark.parametrize("reply", MALFORMED)
def test_a_malformed_reply_changes_nothing(reply: str) -> None:
    found = searched(loaded(task="chunks", cases="20"), ScriptedLLM(lambda _: reply))
    assert found.best == found.start


def test_a_failing_test_tells_its_call_what_was_expected_and_the_line() -> None:
    problem = loaded(task="newer", cases="8")
    llm = answering({})
    source = "def newer(one, other):\n    return int(one) > 0\n"
    from trace_opt import OptoPrime

    optimizer = OptoPrime(llm)
    parameter = problem.parameters[0]
    with pytest.raises(OpError) as failed, record(values={"newer": parameter.check(source)}):
        problem.workflow(**problem.train[0])
    optimizer.backward(failed.value, str(failed.value))
    optimizer.step()
    text = str(llm.requests[0].messages[-1]["content"])
    assert f"{problem.train[0]['call']} failed; expected {problem.train[0]['expected']!r}" in text
    assert 'File "<newer>", line 3, in newer' in text


def test_the_guide_takes_no_true_for_one(module: Any) -> None:
    example = {"args": [], "expected": 1, "call": "f()"}
    assert [module.guide(output, example).value for output in (1, True, 1.0)] == [1.0, 0.0, 0.0]


def test_no_test_comes_twice_and_the_seed_decides_which() -> None:
    one, again, other = (loaded(task="median", seed=seed) for seed in ("3", "3", "4"))
    calls = [e["call"] for part in (one.train, one.val, one.test) for e in part or ()]
    assert len(set(calls)) == len(calls) == 60
    assert (one.test, one.train) == (again.test, again.train)
    assert one.test != other.test


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("task", "sorting", "one of 'median'"), ("cases", "3", "give from 8 to 400"), ("cases", "many", "a whole number"),
     ("sandbox", "none", "one of 'monty', 'process'"), ("seed", "x", "a whole number")],
)  # fmt: skip
def test_a_wrong_option_is_refused_in_one_sentence(name: str, value: str, told: str) -> None:
    with pytest.raises(ProblemError, match=told):
        loaded(**{name: value})


WRAPPER = """
import json
from trace_opt import OptoPrime
from trace_opt.problem import load_problem
from trace_opt.testing import ScriptedLLM
import dataclasses


def problem(*, task: str = "encode"):
    llm = ScriptedLLM(lambda _: json.dumps({"values": FIXES}))
    return dataclasses.replace(load_problem(PATH, {"task": task}), optimizers=[OptoPrime(llm)], reload=None)
"""


def test_the_diff_shown_is_applied_and_the_exported_module_does_the_same(capfd: Any, tmp_path: Path) -> None:
    file = tmp_path / "wrapper.py"
    file.write_text(f"FIXES = {FIXES['encode']!r}\nPATH = {str(PATH)!r}\n{WRAPPER}", encoding="utf-8")
    found = exported(file, ("encode", "summary"), capfd)
    assert found.summary(found.encode("a" * 12 + "b")) == {"a": 12, "b": 1}


def test_a_dry_run_spends_nothing(capfd: Any) -> None:
    from trace_opt.cli import main

    assert main(["run", str(PATH), "--dry-run", "--model", "openai/gpt-4.1-mini", "--set", "task=wrap"]) == 0
    assert "wrap" in capfd.readouterr().out
