"""Programs that a language model wrote in two rounds, run again: does our guide score them as those who recorded them did?

    python benchmarks/leetcode.py FILE            half a minute, no network, no key
    python benchmarks/leetcode.py FILE --quick    an eighth of the tasks; nothing is saved

FILE is textgrad_leetcode_runs.csv (zou-group/textgrad, MIT): 39 tasks of LeetCode-Hard with 4 seeds each, the program of
the first round and the one that followed its feedback. A row holds the program, the outcome of the examples in the task's
statement ("local tests"), and LeetCode's own verdict on its hidden tests. The statement's examples can be run again; the
hidden tests are not in the data, only how many there were and how many passed, so of LeetCode's verdict only the recorded
figure can be counted again, and checked against what it implies: a program that is right on all passes the examples.

The programs run in the `process` sandbox (full Python without files or network) as the output of a workflow, and the guide
is an ordinary one.
"""

from __future__ import annotations

import ast
import csv
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import save

from trace_opt import Feedback, Parameter, evaluate, trace
from trace_opt.core.code import checked, contract_of
from trace_opt.core.sandbox import Sandbox, sandbox_of
from trace_opt.errors import CodeError
from trace_opt.search.gate import Gate, Measure
from trace_opt.search.statistics import difference_interval, p_value, paired

FIRST, SECOND = "first", "second"

Row = Mapping[str, str]


# -- what a row holds --------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[tuple[str, str], dict[str, Row]]:
    """The rows of both rounds, by task and seed.

    Raises:
        SystemExit: the file is not what it should be.
    """
    csv.field_size_limit(2**30)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = {"task_id", "problem", "seed", "success", "local_tests", "local_test_state", "iteration_idx"}
    if not rows or not wanted <= set(rows[0]):
        raise SystemExit(f"{str(path)!r} lacks the columns {sorted(wanted)}; give textgrad_leetcode_runs.csv")
    found: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        found[row["task_id"], row["seed"]][FIRST if row["iteration_idx"] == "0" else SECOND] = row
    return found


def listed(row: Row) -> list[tuple[str, bool]]:
    """The asserts of a row with whether they passed, the passed ones first; none where they were not run."""
    passed, _, failed = row["local_tests"].partition("**Tests that the code failed:**")
    asserts = [(line, True) for line in passed.splitlines() if line.startswith("assert ")]
    return asserts + [
        (line.partition(" # ERROR")[0], False) for line in failed.splitlines() if line.startswith("assert ")
    ]


def called(statement: str) -> tuple[str, tuple[Any, ...], Any]:
    """Function, arguments and expected value of `assert f(...) == value`.

    Raises:
        ValueError: it has another form.
    """
    test: Any = ast.parse(statement).body[0]
    test = test.test
    if not (isinstance(test, ast.Compare) and isinstance(test.left, ast.Call) and isinstance(test.left.func, ast.Name)):
        raise ValueError(f"{statement!r:.80} is no assert of one call")  # noqa: TRY004 # a text refused
    return (
        test.left.func.id,
        tuple(ast.literal_eval(arg) for arg in test.left.args),
        ast.literal_eval(test.comparators[0]),
    )


# -- the guide ---------------------------------------------------------------------------------------------------------


class Tests:
    """A guide that runs a program on the examples of its task; keeps the outcomes.

    Args:
        sandbox: Where it runs.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.outcomes: dict[tuple[str, str], dict[str, bool]] = {}
        self.errors: Counter[str] = Counter()

    def __call__(self, program: str, example: Mapping[str, Any]) -> Feedback:
        """Whether it solves all examples, and which share; what failed in words."""
        said: list[str] = []
        outcomes: dict[str, bool] = {}
        for statement in example["tests"]:
            name, args, expected = called(statement)
            try:
                got = self.sandbox.call(program, name, args)
            except CodeError as error:
                outcomes[statement] = False
                said.append(f"{statement}: {error}")
                kind = re.search(r"\b\w+Error\b", str(error))
                self.errors[error.limit or (kind.group() if kind else "other")] += 1
                continue
            outcomes[statement] = bool(got == expected)
            if got != expected:
                said.append(f"{statement}: gave {got!r:.80}")
        self.outcomes[example["task"], example["seed"]] = outcomes
        share = sum(outcomes.values()) / len(outcomes)
        return Feedback({"solved": float(share == 1), "share": share}, "\n".join(said) or "all examples are solved")


# -- figures -----------------------------------------------------------------------------------------------------------


def rounds(pairs: Mapping[tuple[str, str], Mapping[str, Row]], sandbox: Sandbox) -> dict[str, Any]:
    """Both rounds through a workflow with the round as its parameter, under our guide."""
    tests = {task: [statement for statement, _ in listed(pair[FIRST])] for (task, _), pair in pairs.items()}
    examples = [{"task": task, "seed": seed, "tests": tests[task]} for task, seed in pairs]
    which = Parameter(FIRST, name="round", choices=(FIRST, SECOND))

    @trace
    def program(task: str, seed: str) -> str:
        return pairs[task, seed][which.value]["problem"]

    found: dict[str, Any] = {}
    scores: dict[str, list[float]] = {}
    agreed = {"rows": 0, "equal": 0, "asserts": 0, "asserts equal": 0}
    left_out: Counter[str] = Counter()
    broken = 0
    for name in (FIRST, SECOND):
        guide = Tests(sandbox)
        report = evaluate(program, examples, guide, values={"round": name}, concurrency=1)
        outcomes = guide.outcomes
        for key, pair in pairs.items():
            recorded = listed(pair[name])
            if not recorded:
                left_out[f"{name} round: the examples were not run, no outcome is recorded"] += 1
            else:
                equal = [outcomes[key][statement] == passed for statement, passed in recorded]
                agreed["rows"] += 1
                agreed["equal"] += all(equal)
                agreed["asserts"] += len(equal)
                agreed["asserts equal"] += sum(equal)
            broken += pair[name]["success"] == "True" and not all(outcomes[key].values())
        scores[name] = [float(all(outcomes[key].values())) for key in pairs]
        found[name] = {
            **{what: round(mean, 4) for what, mean in report.best.means.items()}, "failed": report.best.failed,
            "errors": dict(guide.errors),
        }  # fmt: skip
    return {
        "agreement with the recorded outcome of the examples": agreed,
        "rows without a recorded outcome": dict(left_out),
        "right by LeetCode, yet not on the examples": broken,
        "the examples, by our guide": {**found, "second against first": versus(pairs, scores)},
    }


def published(pairs: Mapping[tuple[str, str], Mapping[str, Row]]) -> dict[str, Any]:
    """LeetCode's verdicts as recorded, counted again."""
    scores = {name: [float(pair[name]["success"] == "True") for pair in pairs.values()] for name in (FIRST, SECOND)}
    means = {name: f"{sum(each):.0f} of {len(each)}, {sum(each) / len(each):.1%}" for name, each in scores.items()}
    return {**means, "second against first": versus(pairs, scores)}


def versus(pairs: Mapping[tuple[str, str], Any], scores: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The second round against the first, by program, and by task, since the seeds of a task are not independent."""
    by_task: dict[str, dict[str, list[float]]] = {
        name: defaultdict(list) for name in (FIRST, SECOND)
    }  # fmt: skip
    for name, each in scores.items():
        for (task, _), score in zip(pairs, each, strict=True):
            by_task[name][task].append(score)
    tasks = {name: [sum(each) / len(each) for each in found.values()] for name, found in by_task.items()}
    return {
        "programs": _claim(scores[FIRST], scores[SECOND], two_valued=True),
        "tasks": _claim(tasks[FIRST], tasks[SECOND], two_valued=False),
    }


def _claim(before: Sequence[float], after: Sequence[float], *, two_valued: bool) -> dict[str, Any]:
    both = paired(before, after)
    measure = Measure(two_valued=two_valued, score_range=(0.0, 1.0))
    verdict = Gate.claim().begin(len(before), [measure]).extend(before, after)
    return {
        "n": len(before), "won": both.wins, "lost": both.losses, "mean": round(both.mean, 4),
        "interval": [round(bound, 4) for bound in difference_interval(both)], "p": round(p_value(both), 5),
        "claim gate": str(verdict),
    }  # fmt: skip


def proposals(pairs: Mapping[tuple[str, str], Mapping[str, Row]]) -> dict[str, Any]:
    """The second programs as proposals for the first: would our contract take what this optimizer wrote?"""
    found: Counter[str] = Counter()
    for pair in pairs.values():
        name = called(listed(pair[FIRST])[0][0])[0]
        try:
            checked(pair[SECOND]["problem"], contract_of(pair[FIRST]["problem"], name=name))
            found["accepted"] += 1
        except CodeError as error:
            found[f"refused: {re.sub(r'line [0-9]+', 'line N', str(error)):.100}"] += 1
    return dict(found)


def spoken(pairs: Mapping[tuple[str, str], Mapping[str, Row]]) -> dict[str, Any]:
    """The same programs in the default sandbox, whose Python is smaller: what fails there and passes in a full one."""
    found: dict[str, Any] = {}
    for name in (FIRST, SECOND):
        guides = {"monty": Tests(sandbox_of("monty")), "process": Tests(sandbox_of("process"))}
        for (task, seed), pair in pairs.items():
            example = {"task": task, "seed": seed, "tests": [statement for statement, _ in listed(pair[FIRST])]}
            for guide in guides.values():
                guide(pair[name]["problem"], example)
        both = [
            (here[statement], there[statement])
            for here, there in zip(*(guide.outcomes.values() for guide in guides.values()), strict=True)
            for statement in there
        ]
        found[name] = {
            "asserts": len(both), "equal": sum(a == b for a, b in both),
            "errors": dict(guides["monty"].errors), "errors in process": dict(guides["process"].errors),
        }  # fmt: skip
    return found


def main() -> None:
    given = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if len(given) != 1:
        raise SystemExit(__doc__)
    pairs = read(Path(given[0]))
    quick = "--quick" in sys.argv
    if quick:
        kept = sorted({task for task, _ in pairs})[::8]
        pairs = {key: pair for key, pair in pairs.items() if key[0] in kept}
    figures = {
        "tasks": len({task for task, _ in pairs}), "programs": 2 * len(pairs),
        **rounds(pairs, sandbox_of("process")),
        "LeetCode's verdict, as recorded": published(pairs),
        "second programs as proposals for the first": proposals(pairs),
        "asserts in the monty sandbox": spoken(pairs),
    }  # fmt: skip
    # where the data lies is this machine's business
    sys.argv = [Path(sys.argv[0]).name, "FILE", *[a for a in sys.argv[1:] if a.startswith("--")]]
    if quick:
        print(json.dumps(figures, indent=2))
    else:
        save("leetcode", figures)


if __name__ == "__main__":
    main()
