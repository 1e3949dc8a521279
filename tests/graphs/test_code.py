"""graphs/code.py: the optimum is one, no single change helps, and what reads only the problem text finds both changes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.problem_files import held_out, load, mean_score, optimum
from trace_opt.core.code import diff
from trace_opt.core.context import in_force
from trace_opt.core.tracer import record
from trace_opt.errors import CodeError, OpError
from trace_opt.optim.optoprime import OptoPrime
from trace_opt.search.budget import Budget
from trace_opt.testing import ScriptedLLM

Message = Mapping[str, Any]


class ReadingCoder(ScriptedLLM):
    """Writes each function that does not do what its docstring says so that it does; it knows the text alone.

    Args:
        form: Whether it answers with whole functions ("whole"), diffs ("diff") or fenced blocks ("fenced").
        only: The functions that it changes; all by default.
    """

    def __init__(self, form: str = "whole", only: Sequence[str] | None = None) -> None:
        super().__init__(self._answer, "scripted/coder")
        self.form = form
        self.only = only

    def _answer(self, messages: Sequence[Message]) -> str:
        written = dict(self._written(str(messages[-1]["content"])))
        if self.form == "fenced":
            return "\n".join(f"{name}:\n```python\n{new}```" for name, (_, new) in written.items())
        values = {name: diff(old, new, name) if self.form == "diff" else new for name, (old, new) in written.items()}
        return json.dumps({"reasoning": "as the docstrings say", "values": values})

    def _written(self, text: str) -> Iterator[tuple[str, tuple[str, str]]]:
        section = text.partition("\n# Variables\n")[2].partition("\n# ")[0]
        for entry in re.split(r"(?m)^(?=\S)", section):
            name = entry.partition(" (a Python function")[0]
            source = "\n".join(re.findall(r"(?m)^    \| ?(.*)$", entry)) + "\n"
            if " (a Python function" not in entry or (self.only is not None and name not in self.only):
                continue
            node = ast.parse(source).body[0]
            assert isinstance(node, ast.FunctionDef)
            formula = re.search(r"`(.+)`", ast.get_docstring(node) or "")
            if formula is not None:
                head = "\n".join(source.split("\n")[: node.body[0].end_lineno])
                yield name, (source, f"{head}\n    return {formula[1]}\n")


def test_the_optimum_reaches_the_best_score_and_no_single_change_comes_near() -> None:
    problem = load("code")
    values, best = optimum("code")
    for examples in (problem.train, held_out(problem)):
        assert mean_score(problem, examples, values) == best
        assert mean_score(problem, examples) == 0.0
    for name in values:
        for example in problem.train:
            with in_force({name: values[name]}), pytest.raises((CodeError, ValueError, IndexError)):
                problem.workflow(example["line"])


@pytest.mark.parametrize("form", ["whole", "diff", "fenced"])
def test_a_reader_of_the_text_alone_changes_both_by_hand_in_one_step(form: str) -> None:
    problem = load("code")
    optimizer = OptoPrime(ReadingCoder(form))
    for example in problem.train:
        with record() as graph:
            output = problem.workflow(example["line"])
        optimizer.backward(output, problem.guide(graph.output(output).value, example))
    assert set(optimizer.step().values) == {"fields", "cents"}
    assert mean_score(problem, held_out(problem)) == 1.0


@pytest.mark.parametrize("form", ["whole", "diff"])
def test_a_reader_of_the_text_alone_solves_it_through_optimize(form: str) -> None:
    problem = load("code")
    found = problem.optimize(optimizers=[OptoPrime(ReadingCoder(form))], budget=Budget(trials=2), store=None)
    values, best = optimum("code")
    assert found.best == values
    assert mean_score(problem, held_out(problem), found.best) == best
    assert mean_score(problem, held_out(problem)) == 0.0  # nothing is written before apply
    found.apply()
    assert mean_score(problem, held_out(problem)) == best


def test_worker_processes_run_the_functions_as_this_one_does() -> None:
    options: dict[str, Any] = {"budget": Budget(trials=1), "store": None, "concurrency": 2, "seed": 1}
    found = [
        load("code").optimize(optimizers=[OptoPrime(ReadingCoder())], executor=executor, **options)
        for executor in ("local", "processes")
    ]
    assert found[0].best == found[1].best == optimum("code")[0]
    assert [(t.before, t.after, t.verdict) for t in found[0].history] == [
        (t.before, t.after, t.verdict) for t in found[1].history
    ]


def test_one_change_alone_is_not_accepted() -> None:
    problem = load("code")
    found = problem.optimize(optimizers=[OptoPrime(ReadingCoder(only=["fields"]))], budget=Budget(trials=1), store=None)
    assert found.best == found.start


def test_a_candidate_that_fails_tells_its_line_and_is_mended_from_it() -> None:
    problem = load("code")
    values, _ = optimum("code")
    coder = ReadingCoder()
    optimizer = OptoPrime(coder)
    with pytest.raises(OpError) as failed, record(values={"fields": values["fields"]}):
        problem.workflow(problem.train[0]["line"])
    optimizer.backward(failed.value, "it failed")
    optimizer.step()
    told = str(coder.requests[0].messages[-1]["content"])
    assert 'File "<cents>", line 3, in cents' in told
    assert mean_score(problem, held_out(problem)) == 1.0


def test_the_default_optimizers_give_code_to_a_language_model(tmp_path: Path) -> None:
    problem = load("code")
    found = problem.optimize(
        optimizers=None, model=ReadingCoder(), budget=Budget(trials=2), store=str(tmp_path / "runs.db")
    )
    assert found.best == optimum("code")[0]


def test_the_reader_knows_no_problem() -> None:
    source = Path(__file__).read_text(encoding="utf-8").partition("class ReadingCoder")[2].partition("\ndef test_")[0]
    assert not any(word in source for word in ("';'", "strip", "cents", "parts", "float("))


@pytest.mark.parametrize(
    "reply",
    [
        "import os; os.system('x')", "null", "{}", '{"values": {"fields": "import os\\nos.abort()\\ndef fields(line):\\n    return []"}}',
        '{"values": {"fields": "def fields(line):\\n    while True: pass\\n", "cents": "def cents(parts):\\n    return 10 ** 10 ** 10\\n"}}',
        '{"values": {"fields": "def fields(line):\\n    return [line] * 10 ** 12\\n"}}',
        '{"values": {"fields": "def fields(line):\\n    return fields(line)\\n"}}',
        '{"values": {"cents": "def cents(parts):\\n    return \'210\'\\n"}}',
        '{"values": {"cents": 7, "fields": ["a"]}}',
    ],
    ids=["prose", "null", "empty", "side effects", "endless", "huge", "recursion", "wrong type", "no text"],
)  # fmt: skip
def test_hostile_and_malformed_replies_end_a_trial_and_never_the_run(reply: str) -> None:
    problem = load("code")
    llm = ScriptedLLM(lambda _: reply)
    found = problem.optimize(optimizers=[OptoPrime(llm)], budget=Budget(trials=1), store=None)
    assert found.best == found.start
    assert len(found.history) == 1
