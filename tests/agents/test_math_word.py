"""The word-problem agent: its files, exact numbers, and prompt and code improved together by whatever replies come."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.loading import module_at
from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Demonstrations
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import record
from trace_opt.errors import ProblemError
from trace_opt.problem import Problem, load_problem, problem_options
from trace_opt.search.budget import Budget
from trace_opt.testing import ScriptedLLM

PATH = Path(__file__).parents[2] / "agents" / "math_word.py"

PROMPT = "{question}\nWork step by step and end with '#### NUMBER'."
CODE = """\
def extract(reply):
    for line in reply.splitlines():
        if line.startswith("####"):
            return line.removeprefix("####")
    return ""
"""

once = module_at(PATH, "agent_math_word", listed=True)
"""The file for tests that change nothing."""


@pytest.fixture
def agent() -> Any:
    """The file anew, so that each test has its own source of `extract`."""
    return module_at(PATH, "agent_math_word", listed=True)


def lines(count: int) -> str:
    """Problems in the form of GSM8K, calculator marks and thousands separators included."""
    items = [
        {
            "question": f"Ann has {i} boxes of 1,000 pins. How many pins?",
            "answer": f"Each has 1,000.\n{i}*1000=<<{i}*1000={i * 1000}>>{i * 1000}\n#### {i * 1000:,}",
        }
        for i in range(1, count + 1)
    ]
    return "".join(json.dumps(item) + "\n" for item in items)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of 24 problems."""
    path = tmp_path / "train.jsonl"
    path.write_text(lines(24), encoding="utf-8")
    return path


def answering(problem: Problem) -> ScriptedLLM:
    """A model that knows the answers: it works them out where told to, else it says something else."""
    right = {example["question"]: example["answer"] for example in problem.train}

    def script(messages: Sequence[Mapping[str, Any]]) -> str:
        asked = str(messages[-1]["content"])
        answer = next(a for q, a in right.items() if q in asked)
        if "step by step" not in asked:
            return "Many pins!"
        return f"Of 1,000 there are some.\n#### ${int(answer):,}.00\nI checked it twice."

    return ScriptedLLM(script)


def tuned(agent: Any, file: Path, *replies: Any, trials: int = 1) -> Any:
    problem = agent.problem(path=file, rewrite=True, shown=0)
    problem.workflow.llm = answering(problem)
    left = list(replies)

    def script(_: Any) -> str:
        reply = left.pop(0) if len(left) > 1 else left[0]
        return reply if isinstance(reply, str) else json.dumps({"reasoning": "", "values": reply})

    return problem.optimize(model=ScriptedLLM(script, "scripted/proposer"), budget=Budget(trials=trials), store=None)


def test_prompt_and_code_are_improved_together_from_a_start_that_is_always_wrong(agent: Any, file: Path) -> None:
    """One reply changes both; sums of money with commas and cents are equal to the plain number."""
    run = tuned(agent, file, {"prompt": PROMPT, "extract": CODE})

    report = run.report()
    assert (report.start.mean, report.best.mean) == (0.0, 1.0)
    assert run.best["prompt"] == PROMPT


@pytest.mark.parametrize("values", [{"prompt": PROMPT}, {"extract": CODE}], ids=["prompt", "code"])
def test_neither_change_alone_helps(agent: Any, file: Path, values: dict[str, str]) -> None:
    """So what the test above finds is a joint change."""
    run = tuned(agent, file, values)

    assert run.best == run.start


def test_wrong_malformed_and_hostile_replies_are_contained_and_a_later_one_wins(agent: Any, file: Path) -> None:
    """Nothing is written or run outside the sandbox, and the run goes on to the right proposal."""
    marker = file.with_name("escaped")
    replies = [
        "",
        '{"values": {"prompt": "{question}", "extract": ',
        {"prompt": "No question.", "extract": 7},
        {"prompt": PROMPT, "extract": f"def extract(reply):\n    open({str(marker)!r}, 'w')\n    return '1'\n"},
        {"prompt": PROMPT, "extract": "def extract(reply):\n    return ().__class__.__base__.__subclasses__()\n"},
        {"prompt": PROMPT, "extract": "def extract(reply):\n    return '9' * 10 ** 10\n"},
        {"prompt": PROMPT, "extract": "def extract(reply):\n    return 1000\n"},
        {"prompt": PROMPT, "extract": "def extract(reply):\n    return reply\n"},
        {"prompt": PROMPT, "extract": CODE},
    ]

    run = tuned(agent, file, *replies, trials=12)

    assert run.report().best.mean == 1.0
    assert not marker.exists()
    assert run.best["prompt"] == PROMPT


def test_all_parameters_reach_the_answer(agent: Any, file: Path) -> None:
    """What is offered to the optimizers is what the answer depends on."""
    problem = agent.problem(path=file, rewrite=True)
    problem.workflow.llm = answering(problem)
    with record() as graph:
        output = problem.workflow(problem.train[0]["question"])

    assert set(propagate(graph, graph.output(output), Feedback(1.0))) == {"prompt", "demonstrations", "extract"}


def test_shown_problems_are_turns_with_their_solutions() -> None:
    """Each is written by the same prompt, its whole solution is the assistant's."""
    solver = once.Solver(ScriptedLLM(lambda _: "1"), 2, 9)
    shown = Demonstrations(2, ({"question": "1 or 2?", "solution": "Two.\n#### 2", "answer": "2"},))

    with in_force({"prompt": "Q: {question}", "demonstrations": shown}):
        messages = solver.messages("3?")

    assert [(m["role"], m["content"]) for m in messages] == [
        ("user", "Q: 1 or 2?"),
        ("assistant", "Two.\n#### 2"),
        ("user", "Q: 3?"),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", 18),
        ("18.", 18),
        ("18.00", 18),
        ("1,200", 1200),
        ("$1,200.50", Fraction("1200.5")),
        ("-$5", -5),
        ("\N{MINUS SIGN}5", -5),
        ("12 eggs", 12),
        ("25%", 25),
        (".5", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        ("**42**", 42),
        ("0.1", Fraction(1, 10)),
        ("3 of 4", None),
        ("10-3", None),
        ("1/0", None),
        ("1,2345", None),
        ("1e5", None),
        ("twelve", None),
        ("", None),
        ("9" * 5000, None),
        ("inf", None),
    ],
)
def test_a_number_is_read_exactly_or_not_at_all(text: str, value: Any) -> None:
    """Marks of money, thousands and units do not count; what is no single number is none."""
    assert once.number(text) == value


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "{}.00", "{:,} eggs", "about {}", "<{:,}.>"]))
def test_every_way_to_write_a_number_gives_it_back(value: int, form: str) -> None:
    """Exact for any size."""
    assert once.number(form.format(value)) == value


@given(st.text(max_size=50))
def test_any_output_gets_a_score(output: str) -> None:
    """Whatever the code extracts, the guide answers, and only the right number scores."""
    feedback = once.guide(output, {"question": "?", "solution": "", "answer": "18"})

    assert feedback.value == float(once.number(output) == 18)


@pytest.mark.parametrize(
    ("output", "score", "says"),
    [
        ("$18.00", 1.0, "18 is right"),
        ("18.01", 0.0, "extracted '18.01', expected 18"),
        (" ", 0.0, "no number was extracted"),
        ("2 and 16", 0.0, "which is not one number"),
    ],
)
def test_the_guide_tells_what_was_extracted_from_what_was_expected(output: str, score: float, says: str) -> None:
    """Right, wrong, nothing and no number are told apart."""
    feedback = once.guide(output, {"question": "?", "solution": "", "answer": "18"})

    assert feedback.value == score
    assert says in feedback.text


def test_a_file_is_read_without_the_calculators_marks(file: Path) -> None:
    """A solution shown to a model is one that a person would write."""
    examples = once.load(file)

    assert len(examples) == 24
    assert examples[1] == {
        "question": "Ann has 2 boxes of 1,000 pins. How many pins?",
        "solution": "Each has 1,000.\n2*1000=2000\n#### 2,000",
        "answer": "2000",
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"\n\n", "holds no problem"),
        (b'{"question": "a", "answer": "#### 1"}\nnot json\n', "line 2 of .* is no problem of GSM8K"),
        (b"[1]", "line 1 of .* is no problem of GSM8K"),
        (b'{"question": "a"}', r"\(answer: "),
        (b'{"question": "a", "answer": 3}', r"\(answer: "),
        (b'{"question": "a", "answer": "3"}', "expected .*#### NUMBER"),
        (b'{"question": "a", "answer": "#### many"}', "expected .*#### NUMBER"),
        (b'{"question": " ", "answer": "#### 1"}', "expected .*#### NUMBER"),
    ],
)
def test_a_file_that_holds_no_problems_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    """The sentence names the file, and the line where there is one."""
    if content is not None:
        (tmp_path / "bad.jsonl").write_bytes(content)

    with pytest.raises(ProblemError, match=says) as error:
        once.load(tmp_path / "bad.jsonl")

    assert "bad.jsonl" in str(error.value)
    assert "\n" not in str(error.value)


def test_made_problems_are_right_all_different_and_the_same_for_a_seed() -> None:
    """Each calculation in a solution holds, and the last one is the answer."""
    examples = once.made(90, seed=5)

    assert len({example["question"] for example in examples}) == 90
    assert examples == once.made(90, seed=5) != once.made(90, seed=6)
    for example in examples:
        steps = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", example["solution"])
        for left, sign, right, result in steps:
            a, b = int(left), int(right)
            assert {"-": a - b, "+": a + b, "*": a * b, "/": Fraction(a, b)}[sign] == int(result)
        assert steps[-1][3] == example["answer"] == example["solution"].rpartition("#### ")[2]
        assert all(number in example["question"] for number in re.findall(r"\d+", example["solution"].split(" = ")[0]))


def test_options_are_taken_from_the_command_line(file: Path) -> None:
    """A file of its own to judge by stays apart from the one to learn from."""
    assert all(option.help for option in problem_options(PATH))
    judged = file.with_name("test.jsonl")
    judged.write_text(lines(30), encoding="utf-8")

    problem = load_problem(PATH, {"path": str(file), "test": str(judged), "examples": "12", "seed": "4", "shown": "1"})

    assert (len(problem.train), len(problem.test or ()), problem.seed) == (12, 12, 4)
    with pytest.raises(ProblemError, match="give both, or path alone"):
        load_problem(PATH, {"test": str(judged)})
    with pytest.raises(ProblemError, match="examples is 0"):
        load_problem(PATH, {"examples": "0"})
    with pytest.raises(ProblemError, match="at most 2000 are made"):
        load_problem(PATH, {"examples": "2001"})


def test_without_a_rewriter_prompts_and_shown_problems_are_searched(agent: Any) -> None:
    """On made problems, with a model that solves them only after it was shown how."""
    problem = agent.problem(rewrite=False, examples=60)
    right = {example["question"]: example["answer"] for example in problem.train}

    def script(messages: Sequence[Mapping[str, Any]]) -> str:
        answer = next(a for q, a in right.items() if q in str(messages[-1]["content"]))
        return f"I see.\n#### {answer}" if len(messages) > 1 else f"{answer} it is"

    problem.workflow.llm = ScriptedLLM(script)
    run = problem.optimize(budget=Budget(trials=10), store=None)

    assert len(run.best["demonstrations"]) >= 1
    assert (run.report().start.mean, run.report().best.mean) == (0.0, 1.0)
