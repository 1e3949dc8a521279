"""Small functions with failing tests: a language model mends them from what the tests say.

Each task is one function, or two that must be changed together, with a docstring that says what is right and a body that
is not. The tests are made from a seed; what is expected comes from the standard library wherever it knows the answer.
Some tests are shown to the optimizer, others choose, and others judge. What a model writes runs in a sandbox.

    trace-opt run agents/code_repair.py --model openai/gpt-4.1-mini
    trace-opt run agents/code_repair.py --set task=weekday --set cases=40

The tasks are median, days_in_month, insertion_point, flatten, merge, chunks, seconds, roman, weekday, columns, newer and
wrap, and of two functions encode and add_minutes.
"""

from __future__ import annotations

import bisect
import calendar
import csv
import datetime as dt
import io
import itertools
import random
import statistics
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from trace_opt import Feedback, OptoPrime, trace
from trace_opt.core.trainable import parameter_of
from trace_opt.errors import ProblemError
from trace_opt.problem import Problem

TaskName = Literal[
    "median", "days_in_month", "insertion_point", "flatten", "merge", "chunks", "seconds", "roman", "weekday",
    "columns", "newer", "wrap", "encode", "add_minutes",
]  # fmt: skip

# -- the functions, all wrong ------------------------------------------------------------------------------------------


def median(numbers: list[int]) -> float:
    """The middle of the numbers when sorted; of an even count, the mean of the two in the middle. Never empty."""
    return float(sorted(numbers)[len(numbers) // 2])


def days_in_month(year: int, month: int) -> int:
    """The days of a month, 1 to 12, in the Gregorian calendar."""
    if month == 2:
        return 29 if year % 4 == 0 else 28
    return 30 if month in (4, 6, 9, 11) else 31


def insertion_point(numbers: list[int], new: int) -> int:
    """Where to insert a number into a sorted list so that it stays sorted, before any equal ones."""
    low, high = 0, len(numbers) - 1
    while low < high:
        middle = (low + high) // 2
        if numbers[middle] < new:
            low = middle + 1
        else:
            high = middle
    return low


def flatten(nested: list[Any]) -> list[Any]:
    """All that is in a list and in the lists in it, however deep, in order."""
    found = []
    for item in nested:
        found += item if isinstance(item, list) else [item]
    return found


def merge(intervals: list[list[int]]) -> list[list[int]]:
    """The union of closed intervals [first, last] of whole numbers, sorted; those that share a number become one."""
    merged: list[list[int]] = []
    for first, last in sorted(intervals):
        if merged and first < merged[-1][1]:
            merged[-1][1] = last
        else:
            merged.append([first, last])
    return merged


def chunks(items: list[int], size: int) -> list[list[int]]:
    """The items in lists of `size`; the last list may be shorter."""
    return [items[i * size : (i + 1) * size] for i in range(len(items) // size)]


def seconds(text: str) -> int:
    """The seconds of a time such as '1h30m', '45s' or '2h5s'; a number without a unit is minutes."""
    total, digits = 0, ""
    for mark in text:
        if mark.isdigit():
            digits += mark
        else:
            total += int(digits) * {"h": 3600, "m": 60, "s": 1}[mark]
            digits = ""
    return total


def roman(numeral: str) -> int:
    """The number that a Roman numeral stands for."""
    worth = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    return sum(worth[letter] for letter in numeral)


def weekday(year: int, month: int, day: int) -> str:
    """The English name of the weekday of a date, as in 'Monday'."""
    names = ("Saturday", "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
    century, rest = divmod(year, 100)
    return names[(day + 13 * (month + 1) // 5 + rest + rest // 4 + century // 4 + 5 * century) % 7]


def columns(line: str) -> list[str]:
    """The fields of a line of CSV: a comma within double quotes separates nothing, and "" within them is one quote."""
    return [field.strip('"') for field in line.split(",")]


def newer(one: str, other: str) -> bool:
    """Whether the version `one`, as in '1.10.2', is newer than `other`; parts left out are zeros."""
    return one > other


def wrap(text: str, width: int) -> list[str]:
    """The words of a text in lines of at most `width` characters, as many to a line as fit; no word is longer than that."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if len(line) + len(word) < width:
            line += " " + word
        else:
            lines.append(line)
            line = word
    return lines


def encode(text: str) -> str:
    """The run-length code of letters: each run as its count, ':', its letter and ';', as in '12:a;1:b;' for 12 a and a b."""
    runs: list[list[Any]] = []
    for letter in text:
        if runs and runs[-1][0] == letter and runs[-1][1] < 9:
            runs[-1][1] += 1
        else:
            runs.append([letter, 1])
    return "".join(f"{count}{letter}" for letter, count in runs)


def summary(code: str) -> dict[str, int]:
    """The longest run of each letter in a code that `encode` wrote; its runs are closed by ';'."""
    longest: dict[str, int] = {}
    for count, letter in zip(code[::2], code[1::2], strict=False):
        longest[letter] = max(longest.get(letter, 0), int(count))
    return longest


def minutes(clock: str, added: int) -> int:
    """The minutes from midnight to a time on a 12-hour clock, as in '9:05 pm', plus `added`; 12:30 am is half past midnight."""
    hour, minute = clock[:-3].split(":")
    return int(hour) * 60 + int(minute) + added


def clock_of(total: int) -> str:
    """The time on a 12-hour clock, as in '9:05 pm', so many minutes after midnight, of whatever day."""
    return f"{total // 60}:{total % 60:02} am"


# -- their tests: arguments and what is right --------------------------------------------------------------------------

Case = tuple[list[Any], Any]


def _numbers(rng: random.Random, least: int, most: int) -> list[int]:
    return [rng.randint(-9, 30) for _ in range(rng.randint(least, most))]


def _median(rng: random.Random) -> Case:
    numbers = _numbers(rng, 1, 8)[: rng.choice((2, 4, 7))]
    return [numbers], float(statistics.median(numbers))


def _days_in_month(rng: random.Random) -> Case:
    year = rng.choice((rng.randint(1600, 2400), 100 * rng.randint(1, 90)))
    month = rng.choice((2, 2, rng.randint(1, 12)))
    return [year, month], calendar.monthrange(year, month)[1]


def _insertion_point(rng: random.Random) -> Case:
    numbers, new = sorted(_numbers(rng, 0, 6)), rng.choice((rng.randint(-9, 30), 40))
    return [numbers, new], bisect.bisect_left(numbers, new)


def _flatten(rng: random.Random) -> Case:
    numbers = _numbers(rng, 2, 7)
    return [_nested(rng, numbers)], numbers


def _nested(rng: random.Random, numbers: list[int]) -> list[Any]:
    at = rng.randint(0, len(numbers))
    return [*numbers[:at], _nested(rng, numbers[at:])] if at < len(numbers) else numbers


def _merge(rng: random.Random) -> Case:
    intervals = [[first, first + rng.randint(0, 9)] for first in _numbers(rng, 1, 5)]
    covered = sorted({half for first, last in intervals for half in range(2 * first, 2 * last + 1)})
    starts = [half for half in covered if half - 1 not in covered]
    return [intervals], [[a // 2, next(h for h in covered if h >= a and h + 1 not in covered) // 2] for a in starts]


def _chunks(rng: random.Random) -> Case:
    items, size = _numbers(rng, 0, 8), rng.randint(1, 4)
    return [items, size], [items[start : start + size] for start in range(0, len(items), size)]


def _seconds(rng: random.Random) -> Case:
    hours, mins, secs = (rng.choice((0, rng.randint(1, 59))) for _ in range(3))
    secs = secs if rng.random() < 0.5 else 0
    parts = ((hours, "h"), (mins, "m"), (secs, "s"))
    text = "".join(f"{count}{unit}" for count, unit in parts if count) or "0"
    return [text.removesuffix("m") if rng.random() < 0.8 else text], 3600 * hours + 60 * mins + secs


def _roman(rng: random.Random) -> Case:
    number = rng.randint(1, 3999)
    units = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
    text = ""
    for place, letters in ((1000, "M  "), (100, "CDM"), (10, "XLC"), (1, "IVX")):
        text += units[number // place % 10].translate(str.maketrans("IVX", letters))
    return [text], number


def _weekday(rng: random.Random) -> Case:
    date = dt.date(rng.randint(1600, 2400), rng.choice((rng.randint(1, 2), rng.randint(1, 12))), rng.randint(1, 28))
    names = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    return [date.year, date.month, date.day], names[date.weekday()]


def _columns(rng: random.Random) -> Case:
    words = ("pen", "ink, blue", '3" nail', "", "a b", "x,y", 'so "big"', "7")
    fields = [rng.choice(words) for _ in range(rng.randint(2, 4))]
    quoted = csv.QUOTE_ALL if rng.random() < 0.3 else csv.QUOTE_MINIMAL
    line = io.StringIO()
    csv.writer(line, quoting=quoted, lineterminator="").writerow(fields)
    return [line.getvalue()], fields


def _newer(rng: random.Random) -> Case:
    one, other = ([rng.choice((0, 2, 9, 10, 11)) for _ in range(rng.randint(1, 3))] for _ in range(2))
    padded = [(*parts, 0, 0)[:3] for parts in (one, other)]
    return [".".join(map(str, one)), ".".join(map(str, other))], padded[0] > padded[1]


def _wrap(rng: random.Random) -> Case:
    words = ["abcdefgh"[: rng.randint(1, 8)] for _ in range(rng.randint(0, 9))]
    text, width = " ".join(words), rng.randint(8, 16)
    return [text, width], textwrap.wrap(text, width)


def _encode(rng: random.Random) -> Case:
    runs = [(rng.choice("abc"), rng.choice((1, 3, 9, 10, 12, 25))) for _ in range(rng.randint(1, 4))]
    text = "".join(letter * count for letter, count in runs)
    longest: dict[str, int] = {}
    for letter, run in itertools.groupby(text):
        longest[letter] = max(longest.get(letter, 0), len(list(run)))
    return [text], longest


def _add_minutes(rng: random.Random) -> Case:
    start, added = dt.datetime(2000, 1, 1, tzinfo=dt.UTC), dt.timedelta(minutes=rng.randint(-900, 900))
    start += dt.timedelta(minutes=rng.randrange(1440))
    return [_clock(start), added // dt.timedelta(minutes=1)], _clock(start + added)


def _clock(time: dt.datetime) -> str:
    return f"{(time.hour - 1) % 12 + 1}:{time.minute:02} {'am' if time.hour < 12 else 'pm'}"


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be mended.

    Args:
        functions: One function, or two of which the second gets what the first gave.
        case: From a source of chance to arguments and what is right.
    """

    functions: tuple[Callable[..., Any], ...]
    case: Callable[[random.Random], Case]


TASKS: dict[str, Task] = {
    "median": Task((median,), _median),
    "days_in_month": Task((days_in_month,), _days_in_month),
    "insertion_point": Task((insertion_point,), _insertion_point),
    "flatten": Task((flatten,), _flatten),
    "merge": Task((merge,), _merge),
    "chunks": Task((chunks,), _chunks),
    "seconds": Task((seconds,), _seconds),
    "roman": Task((roman,), _roman),
    "weekday": Task((weekday,), _weekday),
    "columns": Task((columns,), _columns),
    "newer": Task((newer,), _newer),
    "wrap": Task((wrap,), _wrap),
    "encode": Task((encode, summary), _encode),
    "add_minutes": Task((minutes, clock_of), _add_minutes),
}

# -- the problem -------------------------------------------------------------------------------------------------------


class Example(TypedDict):
    """One test."""

    args: list[Any]
    expected: Any
    call: str


class Program:
    """The workflow: what is to be mended, called with the arguments of a test.

    Args:
        task: What is to be mended.
        sandbox: Where rewritten functions run.
    """

    def __init__(self, task: Task, sandbox: Literal["monty", "process"]) -> None:
        self.functions: list[Any] = [trace(trainable=True, sandbox=sandbox)(fn) for fn in task.functions]

    def __call__(self, args: list[Any], expected: Any, call: str) -> Any:
        """What the functions give; the first one gets the arguments, a second one what the first one gave."""
        try:
            value = self.functions[0](*args)
            for function in self.functions[1:]:
                value = function(value)
        except Exception as error:
            raise RuntimeError(f"{call} failed; expected {expected!r}") from error
        return value


def guide(output: Any, example: Example) -> Feedback:
    """Right or wrong, and what would have been right; 1 is not True, and 2 is not 2.0."""
    expected, call = example["expected"], example["call"]
    if type(output) is type(expected) and output == expected:
        return Feedback(1.0, f"{call} gave {output!r}, which is right")
    return Feedback(0.0, f"{call} gave {output!r}, expected {expected!r}")


def examples(task: Task, cases: int, seed: int) -> list[Example]:
    """So many tests of a task, no two with the same arguments.

    Args:
        task: The task.
        cases: How many.
        seed: Which ones.
    """
    rng = random.Random(seed)  # noqa: S311 # tests that can be made again
    found: dict[str, Example] = {}
    while len(found) < cases:
        args, expected = task.case(rng)
        first, *rest = [fn.__name__ for fn in task.functions]
        call = f"{first}({', '.join(map(repr, args))})"
        for name in rest:
            call = f"{name}({call})"
        found.setdefault(call, {"args": args, "expected": expected, "call": call})
    return list(found.values())


def problem(
    *, task: TaskName = "columns", cases: int = 60, seed: int = 0, sandbox: Literal["monty", "process"] = "monty"
) -> Problem:
    """Mend a function until its tests pass.

    Args:
        task: Which function.
        cases: How many tests there are: a quarter to learn from, a quarter to choose by, half to judge by.
        seed: Which tests are made, and all chance of the search.
        sandbox: Where functions that a model wrote run.

    Raises:
        ProblemError: there are too few or too many tests.
    """
    if not 8 <= cases <= 400:
        raise ProblemError(f"option 'cases' got {cases}; give from 8 to 400 tests, to learn, choose and judge by")
    program, tests, quarter = Program(TASKS[task], sandbox), examples(TASKS[task], cases, seed), cases // 4
    return Problem(
        workflow=program,
        train=tests[:quarter],
        val=tests[quarter : 2 * quarter],
        test=tests[2 * quarter :],
        guide=guide,
        parameters=[parameter_of(function) for function in program.functions],
        optimizers=[OptoPrime(objective="Make the functions do what their docstrings say.")],
        seed=seed,
        score_range=(0.0, 1.0),
        description=f"{task!r}, to be mended until its tests pass",
    )
