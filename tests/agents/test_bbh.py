"""The BIG-Bench-Hard agent: its files, its guide, and template and code improved together by whatever replies come."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.loading import module_at
from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Demonstrations
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import record
from trace_opt.errors import CodeError, ProblemError
from trace_opt.problem import Problem, load_problem, problem_options
from trace_opt.search.budget import Budget
from trace_opt.testing import ScriptedLLM

PATH = Path(__file__).parents[2] / "agents" / "bbh.py"

TEMPLATE = "{question}\nThink step by step. End with: The answer is (X)."
CODE = """\
import re

def extract(reply):
    found = re.findall(r"answer is (\\([A-D]\\))", reply)
    return found[-1] if found else ""
"""


@pytest.fixture
def agent() -> Any:
    """The file anew, so that each test has its own source of `extract`."""
    return module_at(PATH, "agent_bbh", listed=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two task files as their publishers write them: one of multiple choice, one of free answers."""
    rng = random.Random(0)
    choices = [
        {
            "input": f"Which letter is number {i} of a list?\nOptions:\n(A) a\n(B) b\n(C) c",
            "target": f"({rng.choice('ABC')})",
        }
        for i in range(30)
    ]
    words = [{"input": f"Sort: pear{i} fig{i}", "target": f"fig{i} pear{i}"} for i in range(30)]
    for name, examples in (("letters", choices), ("word_sorting", words)):
        text = json.dumps({"canary": "never train on this", "examples": examples})
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    return tmp_path


def answering(problem: Problem) -> ScriptedLLM:
    """A model that knows the answers: it thinks aloud where told to, else it only nods.

    Its thoughts end in a remark, so that no line of them is the answer.
    """
    right = {example["question"]: example["answer"] for example in problem.train}

    def script(messages: Sequence[Mapping[str, Any]]) -> str:
        asked = str(messages[-1]["content"])
        question = next(q for q in right if q in asked)
        if "step by step" not in asked:
            return "That depends."
        return f"Not (D), I think.\nSo the answer is {right[question]}.\nI hope this helps!"

    return ScriptedLLM(script)


def proposing(*replies: Any) -> ScriptedLLM:
    """A model that proposes the values given, one after another, the last one again and again."""
    left = list(replies)

    def script(_: Any) -> str:
        reply = left.pop(0) if len(left) > 1 else left[0]
        return reply if isinstance(reply, str) else json.dumps({"reasoning": "", "values": reply})

    return ScriptedLLM(script, "scripted/proposer")


def tuned(agent: Any, folder: Path, *replies: Any, trials: int = 1) -> Any:
    problem = agent.problem(path=folder, task="letters", rewrite=True, shown=0)
    problem.workflow.llm = answering(problem)
    return problem.optimize(model=proposing(*replies), budget=Budget(trials=trials), store=None)


def test_template_and_code_are_improved_together_from_a_start_that_is_always_wrong(agent: Any, folder: Path) -> None:
    """One reply changes both; the candidate is right on every held-out question."""
    run = tuned(agent, folder, {"template": TEMPLATE, "extract": CODE})

    report = run.report()
    assert (report.start.mean, report.best.mean) == (0.0, 1.0)
    assert run.best["template"] == TEMPLATE
    assert "re.findall" in run.best["extract"]
    assert '"""The answer that a reply gives' in run.best["extract"]  # the contract's own docstring is kept


@pytest.mark.parametrize("values", [{"template": TEMPLATE}, {"extract": CODE}], ids=["template", "code"])
def test_neither_change_alone_helps(agent: Any, folder: Path, values: dict[str, str]) -> None:
    """So what the test above finds is a joint change."""
    run = tuned(agent, folder, values)

    assert run.best == run.start


def test_wrong_malformed_and_hostile_replies_are_contained_and_a_later_one_wins(agent: Any, folder: Path) -> None:
    """Nothing is written, nobody's template loses its question, and the run goes on to the right proposal."""
    marker = folder / "escaped"
    write = f"open({str(marker)!r}, 'w').write('x')"
    replies = [
        "I'd rather talk about the weather.",
        '{"values": {"extract": "def extract(reply):',
        {"template": "Answer.", "extract": "def other(reply):\n    return 1\n"},
        {"template": "{question:>9999999999}{question.__class__}", "extract": f"{write}\ndef extract(reply):\n    return ''"},
        {"template": TEMPLATE, "extract": f"def extract(reply):\n    {write}\n    return 'x'\n"},
        {"template": TEMPLATE, "extract": "def extract(reply):\n    import os\n    os.system('touch x')\n    return 'x'\n"},
        {"template": TEMPLATE, "extract": "def extract(reply):\n    return reply * 10 ** 12\n"},
        {"template": TEMPLATE, "extract": "def extract(reply):\n    return extract(reply)\n"},
        {"template": TEMPLATE, "extract": "def extract(reply):\n    return ['(A)']\n"},
        {"template": TEMPLATE, "extract": "def extract(reply):\n    return '(A)'\n"},
        {"template": TEMPLATE, "extract": CODE},
    ]  # fmt: skip

    run = tuned(agent, folder, *replies, trials=14)

    assert run.report().best.mean == 1.0
    assert not marker.exists()
    assert not Path("x").exists()
    assert "re.findall" in run.best["extract"]
    assert {trial.changed["template"] for trial in run.history if "template" in trial.changed} == {TEMPLATE}


def test_what_a_wrong_rewrite_does_is_told_with_its_line(agent: Any) -> None:
    """The feedback on generated code is its traceback."""
    source = "def extract(reply):\n    words = reply.split()\n    return words[9]\n"

    with in_force({"extract": source}), pytest.raises(CodeError, match="line 4.*IndexError|IndexError"):
        agent.extract("no ninth word")


def test_all_parameters_reach_the_answer(agent: Any, folder: Path) -> None:
    """What is offered to the optimizers is what the answer depends on."""
    problem = agent.problem(path=folder, task="letters", rewrite=True)
    problem.workflow.llm = answering(problem)
    with record() as graph:
        output = problem.workflow(problem.train[0]["question"])

    assert set(propagate(graph, graph.output(output), Feedback(1.0))) == {"template", "demonstrations", "extract"}


def test_shown_questions_are_turns_before_the_one_asked(agent: Any) -> None:
    """Each is written by the same template, its answer is the assistant's."""
    solver = agent.Solver(ScriptedLLM(lambda _: "(A)"), 2, 9)
    shown = Demonstrations(2, ({"question": "1 {plain}?", "answer": "(B)"},))

    with in_force({"template": "Q: {question}", "demonstrations": shown}):
        messages = solver.prompt("2?")

    assert [(m["role"], m["content"]) for m in messages] == [
        ("user", "Q: 1 {plain}?"),
        ("assistant", "(B)"),
        ("user", "Q: 2?"),
    ]


@pytest.mark.parametrize(
    ("output", "answer", "score", "says"),
    [
        ("(B)", "(B)", 1.0, "'(B)' is right"),
        (" fig  pear ", "fig pear", 1.0, "right"),
        ("True", "true", 1.0, "right"),
        ("", "(B)", 0.0, "no answer was extracted"),
        ("B", "(B)", 0.0, "not in the form asked for"),
        ("(A)", "(B)", 0.0, "extracted '(A)', expected '(B)'"),
        ("The answer is (B).", "(B)", 0.0, "holds more than the answer"),
        ("valid", "invalid", 0.0, "extracted 'valid', expected 'invalid'"),
        ("invalid", "valid", 0.0, "extracted 'invalid', expected 'valid'"),
    ],
)
def test_the_guide_tells_what_was_extracted_from_what_was_expected(
    agent: Any, output: str, answer: str, score: float, says: str
) -> None:
    """One half of an answer never counts as the other."""
    feedback = agent.guide(output, {"question": "?", "answer": answer})

    assert feedback.value == score
    assert says in feedback.text


def test_a_task_is_loaded_by_its_file_or_by_folder_and_name(agent: Any, folder: Path) -> None:
    """Both ways give the same examples."""
    by_file = agent.load(folder / "word_sorting.json", None)

    assert by_file == agent.load(folder, "word_sorting")
    assert by_file[0] == {"question": "Sort: pear0 fig0", "answer": "fig0 pear0"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("gone.json", None, "cannot be read"),
        ("cut.json", '{"examples": [', "is no BIG-Bench-Hard task"),
        ("bytes.json", b"\xff\xfe", "is no BIG-Bench-Hard task"),
        ("list.json", "[]", "is no BIG-Bench-Hard task"),
        ("keys.json", '{"examples": [{"input": "a"}]}', r"examples\.0\.target: "),
        ("types.json", '{"examples": [{"input": "a", "target": 1}]}', r"examples\.0\.target: "),
        ("none.json", '{"examples": []}', "holds no example"),
        ("blank.json", '{"examples": [{"input": "a", "target": " "}]}', "blank input or target"),
    ],
)
def test_a_file_that_is_no_task_is_refused_in_one_sentence(
    agent: Any, tmp_path: Path, name: str, content: str | bytes | None, says: str
) -> None:
    """The sentence names the file and what is wrong with it."""
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(ProblemError, match=says) as error:
        agent.load(tmp_path / name, None)

    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_task_is_refused_with_the_one_that_was_meant(agent: Any, folder: Path, tmp_path: Path) -> None:
    """Folder, file and made tasks each say what there is."""
    with pytest.raises(ProblemError, match="did you mean 'letters'"):
        agent.load(folder, "leters")
    with pytest.raises(ProblemError, match="name a task .* known: letters, word_sorting"):
        agent.load(folder, None)
    with pytest.raises(ProblemError, match="holds no task 'letters'; leave task out"):
        agent.load(folder / "word_sorting.json", "letters")
    with pytest.raises(ProblemError, match="needs its file.*did you mean 'object_counting'"):
        agent.problem(task="object_countin")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProblemError, match="it holds no task"):
        agent.load(tmp_path / "empty", "letters")


def test_made_examples_are_right_all_different_and_the_same_for_a_seed(agent: Any) -> None:
    """Each answer is worked out again from the words of its question."""
    checks = {"boolean_expressions": _boolean, "object_counting": _counted(agent), "largest_number": _largest}
    assert set(checks) == set(agent.MADE)
    for task, answer in checks.items():
        examples = agent.made(task, 60, seed=3)
        assert len({example["question"] for example in examples}) == 60
        assert examples == agent.made(task, 60, seed=3) != agent.made(task, 60, seed=4)
        assert [answer(example["question"]) for example in examples] == [e["answer"] for e in examples]


def _boolean(question: str) -> str:
    return str(eval(question.removesuffix(" is"), {"__builtins__": {}}))  # Python itself is the judge


def _counted(agent: Any) -> Any:
    numbers = {"one": 1, "two": 2, "three": 3, "four": 4}

    def answer(question: str) -> str:
        have, _, asked = question.partition(" How many ")
        things = agent._THINGS[asked.partition(" ")[0]]
        return str(sum(numbers[n] for n, thing in re.findall(r"(\w+) (\w+?)s?[,.]", have) if thing in things))

    return answer


def _largest(question: str) -> str:
    return max(re.findall(r"(\(\w\)) (\d+)", question), key=lambda option: int(option[1]))[0]


def test_options_are_taken_from_the_command_line(folder: Path) -> None:
    """Every option has a help text, and texts become values of its type."""
    assert all(option.help for option in problem_options(PATH))

    problem = load_problem(PATH, {"path": str(folder), "task": "letters", "examples": "12", "seed": "4", "shown": "1"})

    assert (len(problem.train), problem.seed, problem.workflow.demonstrations.value.k) == (12, 4, 1)
    with pytest.raises(ProblemError, match="examples is 0"):
        load_problem(PATH, {"examples": "0"})
    with pytest.raises(ProblemError, match="at most 2000 are made"):
        load_problem(PATH, {"examples": "2001"})


def test_code_is_offered_to_optimizers_only_where_it_is_to_be_rewritten(agent: Any) -> None:
    """Without a rewriter nothing needs an optimizers' model."""

    def names(problem: Problem) -> list[str]:
        return [parameter.name for parameter in problem.parameters or ()]

    assert names(agent.problem()) == ["template", "demonstrations"]
    assert names(agent.problem(rewrite=True)) == ["template", "demonstrations", "extract"]


def test_without_a_rewriter_templates_and_shown_questions_are_searched(agent: Any, folder: Path) -> None:
    """The search asks no model but the one that answers, and finds the template under which it does."""
    problem = agent.problem(path=folder, task="word_sorting", rewrite=False)
    right = {example["question"]: example["answer"] for example in problem.train}

    def script(messages: Sequence[Mapping[str, Any]]) -> str:
        asked = str(messages[-1]["content"])
        answer = next(a for q, a in right.items() if q in asked)
        return f"Well...\n{answer}" if "last line" in asked else f"I sort it: {answer}"

    problem.workflow.llm = ScriptedLLM(script)
    run = problem.optimize(budget=Budget(trials=40), store=None)

    assert "last line" in run.best["template"]
    assert run.report().best.mean == 1.0
