"""Functions as variables: what a problem text says of them, and what is taken from a reply."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.core.sandbox.hostile import CASES, Case
from tests.optim.test_render import headings, rollout, section
from trace_opt.core.code import diff
from trace_opt.core.context import in_force
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Rollouts
from trace_opt.core.sandbox import Limits
from trace_opt.core.sandbox.monty import Monty
from trace_opt.core.tracer import plain, record, trace
from trace_opt.core.trainable import code_of, parameter_of
from trace_opt.errors import OpError, ReplyError
from trace_opt.optim.base import Outcome, Proposal, Trial
from trace_opt.optim.opro import OPRO
from trace_opt.optim.optoprime import OptoPrime
from trace_opt.optim.render import render
from trace_opt.optim.reply import read
from trace_opt.optim.text import tokens_in
from trace_opt.testing import ScriptedLLM

UNIT = "km"


@trace
def convert(x: float, unit: str) -> float:
    """Into metres."""
    return x * {"km": 1000.0, "m": 1.0}[unit]


@trace(trainable=True, uses=[convert])
def parse(reply: str) -> float:
    """Turn a reply into metres."""
    number = reply.removesuffix(UNIT)

    return float(number)


@trace(trainable=True)
def judge(metres: float) -> str:
    """Say whether it is far."""
    return "far" if metres > 5 else "near"


def both() -> list[Parameter[Any]]:
    return [parameter_of(parse), parameter_of(judge)]


def work(reply: str) -> Any:
    return judge(parse(reply))


def said(reply: str, feedback: Any = "expected 5", **values: str) -> Any:
    return rollout(lambda: work(reply), feedback, values)


def text_of(*rollouts: Any, tokens: int = 8000) -> str:
    return render(both(), rollouts, tokens=tokens)


# the problem text


def test_a_function_stands_with_its_contract_its_python_and_what_it_may_call() -> None:
    told = section(text_of(said("7")), "Variables")
    assert "parse (a Python function: its whole source, or a unified diff of it)\n" in told
    assert "  must keep: def parse(reply: str) -> float:\n" in told
    assert f"  run by: {code_of(parse).sandbox.language}\n" in told
    assert "    convert(x: float, unit: str) -> float: Into metres.\n" in told
    assert "  finds: UNIT = 'km'\n" in told
    assert '    |     """Turn a reply into metres."""\n    |     number = reply.removesuffix(UNIT)\n' in told


def test_one_python_is_described_once() -> None:
    told = section(text_of(said("7")), "Variables")
    assert told.count(code_of(parse).sandbox.language) == 1
    assert told.count("run by: the same") == 1


def test_a_failure_of_the_original_is_told_by_the_line_of_the_variable() -> None:
    told = text_of(said("7 miles"))
    assert 'File "<parse>", line 5, in parse' in told
    assert __file__ not in told.split("# Example")[1]
    assert re.search(r"\| ->   5     return float\(number\)", told)


def test_a_failure_of_generated_code_is_told_by_its_line_too() -> None:
    source = (
        'def parse(reply: str) -> float:\n    """Turn a reply into metres."""\n    n = reply[0]\n    return float(n)\n'
    )
    told = text_of(said("x", parse=source))
    assert 'File "<parse>", line 4, in parse' in told
    assert re.search(r"\| ->   4     return float\(n\)", told)
    assert "generated parse" not in told.split("File")[1]


def test_the_lines_of_one_failure_are_shown_once() -> None:
    told = text_of(said("a"), said("b"), said("c"))
    assert told.count("| ->   5") == 1
    assert told.count('File "<parse>", line 5') == 3


def test_failing_and_passing_calls_stand_side_by_side() -> None:
    runs = [said(f"{n} miles") for n in range(9)] + [said(f"{n}", 1.0) for n in range(9)]
    told = section(text_of(*runs), "Calls of the functions")
    calls = [line for line in told.splitlines() if line.strip().startswith("parse(")]
    assert sum("raised ValueError" in line for line in calls) == sum(" gave " in line for line in calls) == 4
    assert "  parse(reply='0') gave 0.0" in calls


def test_where_all_examples_are_alike_no_call_passes_for_right() -> None:
    alike = [said(str(n), 0.0) for n in range(3)]
    mixed = [*alike, said("9", 1.0)]
    last = section(text_of(*mixed), "Calls of the functions").splitlines()
    assert section(text_of(*alike), "Calls of the functions").splitlines()[0] == "  parse(reply='0') gave 0.0"
    assert [line for line in last if "parse(" in line][-1] == "  parse(reply='9') gave 9.0"


@trace
def whole(reply: str) -> str:
    """Parse and judge."""
    return plain(judge(parse(reply)))


def test_calls_made_in_another_op_s_body_are_shown_too() -> None:
    runs = [rollout(lambda: whole("7"), 1.0), rollout(lambda: whole("7 miles"), "wrong")]
    told = section(text_of(*runs), "Calls of the functions").splitlines()
    assert "  parse(reply='7') gave 7.0" in told
    assert "  judge(metres=7.0) gave 'far'" in told
    assert any(line.startswith("  parse(reply='7 miles') raised ValueError") for line in told)
    assert not any("whole(" in line for line in told)


def test_examples_that_are_right_are_shown_beside_those_that_are_wrong() -> None:
    runs = [said(f"{n} miles " + "x" * 300) for n in range(60)] + [said(str(n), 1.0) for n in range(60)]
    told = text_of(*runs, tokens=4000)
    assert tokens_in(told) <= 4000
    examples = [heading for heading in headings(told) if heading.startswith("# Example")]
    right = sum("score 1" in heading for heading in examples)
    assert len(examples) >= 6
    assert abs(2 * right - len(examples)) <= 1
    assert re.search(r"\(\d+ more examples are not shown\.\)", told)


def test_without_functions_the_worst_examples_are_shown() -> None:
    style = Parameter("brief", name="style")

    @trace
    def ask(question: str) -> str:
        return f"{style.value} {question}"

    runs = [rollout(lambda n=n: ask(str(n) + "x" * 300), float(n)) for n in range(60)]
    told = render([style], runs, tokens=2500)
    assert "Calls of the functions" not in told
    assert "more examples, with better feedback, are not shown" in told


def test_a_long_function_alone_is_too_much_before_any_call() -> None:
    with pytest.raises(ValueError, match="variables alone"):
        text_of(said("7"), tokens=200)


def test_what_was_tried_is_shown_as_the_change_that_it_was() -> None:
    tried = 'def parse(reply: str) -> float:\n    """Turn a reply into metres."""\n    return 0.0\n'
    history = [Trial("OptoPrime", {}, Proposal({"parse": tried}), Outcome(0.5, 0.25, accepted=False))]
    llm = ScriptedLLM(lambda _: '{"values": {"parse": null}}')
    asyncio.run(OptoPrime(llm).propose(both(), Rollouts([said("7")]), history))
    told = section(str(llm.requests[0].messages[-1]["content"]), "Tried before")
    assert "1. score 0.25, was 0.5 before, rejected" in told
    assert "| -    return float(number)" in told
    assert "| +    return 0.0" in told


def test_opro_takes_functions_as_well() -> None:
    llm = ScriptedLLM(lambda _: json.dumps({"values": {"parse": "def parse(reply):\n    return 1.0\n"}}))
    proposal = asyncio.run(OPRO(llm).propose(both(), Rollouts([said("7", 0.0)]), ()))
    assert set(proposal.values) == {"parse"}
    assert "must keep: def judge(metres: float) -> str:" in str(llm.requests[0].messages[-1]["content"])


# replies

NEW = "def parse(reply):\n    return 1.0\n"
KEPT = 'def parse(reply: str) -> float:\n    """Turn a reply into metres."""\n    return 1.0\n'
CHANGE = "@@ -3,3 +3,3 @@\n     number = reply.removesuffix(UNIT)\n \n-    return float(number)\n+    return 1.0\n"
PATCHED = 'def parse(reply: str) -> float:\n    """Turn a reply into metres."""\n    number = reply.removesuffix(UNIT)\n\n    return 1.0\n'


def answer(**values: Any) -> str:
    return json.dumps({"reasoning": "why", "values": values})


@pytest.mark.parametrize(
    ("reply", "source"),
    [
        (answer(parse=NEW), KEPT),
        (answer(parse=f"```python\n{NEW}```"), KEPT),
        (answer(parse=NEW.replace("\n", "\r\n")), KEPT),
        (answer(parse=CHANGE), PATCHED),
        (answer(parse=f"--- parse\n+++ parse\n{CHANGE}"), PATCHED),
        (answer(parse=f"```diff\n{CHANGE}```"), PATCHED),
        (f"Here it is:\n```python\n{NEW}```\nIt works.", KEPT),
        (f"The change:\n```diff\n--- parse\n+++ parse\n{CHANGE}```\n", PATCHED),
        (f"{answer(parse=None)}\n```python\n{NEW}```", KEPT),
        (f"```python\ndef parse(reply):\n    return 2.0\n```\nBetter:\n```python\n{NEW}```", KEPT),
        (f"<think>```python\ndef parse(reply):\n    return 2.0\n```</think>\n```python\n{NEW}```", KEPT),
        ('{"values": {"parse": "def parse(reply):\n    return 1.0\n"}}', KEPT),
    ],
    ids=["json", "a fence in json", "other line ends", "a diff", "a diff with files", "a fenced diff", "a fence alone",
         "a fenced diff alone", "json and a fence", "two fences", "after a thought", "raw lines in json"],
)  # fmt: skip
def test_a_reply_gives_the_whole_function_or_its_diff(reply: str, source: str) -> None:
    found = read(reply, both())
    assert found.values == {"parse": source}
    assert not found.problems


def test_the_diff_is_of_the_source_in_force() -> None:
    with in_force({"parse": KEPT}):
        found = read(answer(parse="@@ -3 +3 @@\n-    return 1.0\n+    return 2.0\n"), both())
    assert found.values == {"parse": KEPT.replace("1.0", "2.0")}
    assert diff(KEPT, found.values["parse"], "parse").count("\n-    ") == 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("def other(reply):\n    return 1.0\n", "must define 'parse', it defines 'other'; keep the name"),
        ("You should define the default first, then def parse it.", "does not compile"),
        ("class parse: pass", "must define 'parse'"),
        ("def parse(reply, extra=1):\n    return 1.0\n", "must keep its parameters (reply: str)"),
        ("def parse(reply: int):\n    return 1.0\n", "must keep the type of 'reply', str"),
        ("import os\nos.system('touch owned')\n" + NEW, "does something when it is defined"),
        ("@__import__('os').system\n" + NEW, "has a decorator of its own"),
        (
            "def parse(reply=__import__('os').system('true')):\n    return 1.0\n",
            "must keep its parameters (reply: str)",
        ),
        ("def helper(x=__import__('os').system('true')):\n    return x\n" + NEW, "has a default value in 'helper'"),
        ("def parse(reply):\n    return judge(reply)\n", "reads 'judge', which it will not find"),
        ("from trace_opt import *\n" + NEW, "imports everything"),
        ("import subprocess\n" + NEW, "No module named 'subprocess'"),
        ("def parse(reply):\n    yield 1.0\n", "must not be a generator"),
        ("def parse(reply):\n    return _t_fn(reply)\n", "reserved"),
        ("def parse(reply):\n" + "    x = 0\n" * 4000, "characters; at most"),
        ("def parse(reply):\n    return " + "(" * 5000 + ")" * 5000 + "\n", "does not compile"),
        ("def parse(reply):\n    return '\x00'\n", "NUL"),
        ("@@ -1 +1 @@\n-nothing of this kind\n+x\n", "the text has no line `nothing of this kind`"),
        ("", "must define 'parse'"),
        (7, "is no text"),
        (["def parse(reply): return 1.0"], "is no text"),
        ({"code": NEW}, "is no text"),
        (True, "is no text"),
    ],
)
def test_a_source_that_cannot_be_used_is_a_problem_that_says_why(value: Any, says: str) -> None:
    found = read(answer(parse=value, judge="def judge(metres):\n    return 'far'\n"), both())
    assert set(found.values) == {"judge"}
    assert says in found.problems["parse"]


def test_a_wrong_source_is_asked_about_once_more() -> None:
    replies = iter([answer(parse="def wrong(reply):\n    return 1.0\n", judge=None), answer(parse=NEW)])
    llm = ScriptedLLM(lambda _: next(replies))
    proposal = asyncio.run(OptoPrime(llm).propose(both(), Rollouts([said("x")]), ()))
    assert proposal.values == {"parse": KEPT}
    assert "it defines 'wrong'; keep the name" in str(llm.requests[1].messages[-1]["content"])


def test_a_reply_without_any_function_is_no_answer() -> None:
    for reply in (
        "I would define parse(reply) so that it returns 1.0.",
        "```python\nprint('def parse')\n```",
        f"<think>```python\n{NEW}```",
    ):
        with pytest.raises(ReplyError):
            read(reply, both())


def test_code_is_never_taken_from_json_that_had_to_be_mended() -> None:
    broken = "{'reasoning': 'x', 'values': {'parse': 'def parse(reply): return 1.0', 'style': 'brief'}}"
    found = read(broken, [parameter_of(parse), Parameter("long", name="style")])
    assert found.repaired
    assert found.values == {"style": "brief"}
    assert "never guessed at" in found.problems["parse"]


def test_a_cut_reply_gives_no_half_of_a_function() -> None:
    whole = answer(judge="def judge(metres):\n    return 'far'\n", parse=NEW)
    found = read(whole[: whole.index("1.0")], both(), finish="length")
    assert set(found.values) == {"judge"}
    assert "cut" in found.problems["parse"]


def test_two_functions_change_together() -> None:
    reply = answer(
        parse="def parse(reply):\n    return [1.0]\n".replace("[1.0]", "-1.0"),
        judge="def judge(metres):\n    return 'far' if metres < 0 else 'near'\n",
    )
    found = read(reply, both())
    with record(values=found.values):
        assert work("x") == "far"


def test_a_fence_that_two_functions_could_mean_is_left_alone() -> None:
    one, two = Parameter("a", name="one"), Parameter("b", name="two")
    assert parameter_of(parse).code is not None
    parameters = [parameter_of(parse), code_of(parse).make_parameter("copy.parse"), one, two]
    with pytest.raises(ReplyError):
        read(f"```python\n{NEW}```", parameters)
    assert set(read(answer(**{"copy.parse": NEW}), parameters).values) == {"copy.parse"}


@pytest.mark.parametrize(
    "reply",
    ["", "null", "[]", "{", '{"values": 7}', answer(), answer(parse=None), "\ud800", '{"values": {"parse": NaN}}'],
)
def test_an_empty_or_broken_reply_changes_nothing(reply: str) -> None:
    with contextlib.suppress(ReplyError):
        assert read(reply, both()).values == {}


TIGHT = Monty(Limits(seconds=0.15, memory=32 * 2**20, sleep=0.1))


@trace(trainable=True, sandbox=TIGHT, uses={"double": lambda y: 2 * y})
def f(x: dict[str, Any]) -> Any:
    """Look at x."""
    return x


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_a_hostile_function_in_a_reply_is_refused_or_fails_and_gets_nothing(case: Case, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    prey = {"secret": str(tmp_path / "secret.txt"), "folder": str(tmp_path), "port": 9, "pid": os.getpid()}
    found = read(answer(f=case.source), [parameter_of(f)])
    assert set(found.values) | set(found.problems) == {"f"}
    if found.values:
        try:
            with record(values=found.values):
                assert plain(f(prey)) != "ESCAPED"
        except OpError as error:
            assert error.node.value.type == "CodeError"
            assert "generated 'f' " in str(error)
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret.txt"]
    assert (tmp_path / "secret.txt").read_text() == "secret"
    assert f(prey) is prey


def test_by_hand_a_step_writes_the_mended_function() -> None:
    parameter = parameter_of(judge)
    before = parameter.value

    def mends(messages: Any) -> str:
        line = re.search(r'File "<judge>", line (\d+)', str(messages[-1]["content"]))
        assert line is not None
        hunk = f'@@ -{line[1]} +{line[1]} @@\n-    return "far" if metres > 5 else "near"\n+    return \'near\'\n'
        return answer(judge=hunk)

    optimizer = OptoPrime(ScriptedLLM(mends))
    try:
        with pytest.raises(OpError) as failed, record():
            judge("x")  # pyright: ignore[reportArgumentType]
        optimizer.backward(failed.value, "it failed")
        optimizer.step()
        assert judge("x") == "near"  # pyright: ignore[reportArgumentType]
    finally:
        parameter.value = before
