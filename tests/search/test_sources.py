"""What a problem is made of, found without running it."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from trace_opt.core.module import Module
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import trace
from trace_opt.guides import exact, judge
from trace_opt.problem import load_problem
from trace_opt.search.sources import Reach, differing, is_users
from trace_opt.testing import ScriptedLLM

STYLE = Parameter("brief", name="style")
RULE = "be kind"
SEEN: list[str] = []


def helper(text: str) -> str:
    SEEN.append(text)
    return RULE + text


@trace
def ask(text: str) -> str:
    return helper(text) + STYLE.value


def test_functions_constants_and_parameters_are_found_through_globals_and_ops() -> None:
    reach = Reach({"the workflow": lambda x: [ask(y) for y in x]})
    assert [p.name for p in reach.parameters] == ["style"]
    assert {"ask", "helper", "helper RULE"} <= set(reach.hashes)


def test_what_a_workflow_collects_says_nothing_about_its_source() -> None:
    before = Reach({"w": ask}).hashes
    ask("x")
    SEEN.append(("y",))  # type: ignore[arg-type]
    assert Reach({"w": ask}).hashes == before


def test_closures_defaults_partials_and_methods_count() -> None:
    def made(factor: int, *, extra: int = 1) -> Any:
        def inner(x: int, base: int = 7) -> int:
            return x * factor + base + extra

        return inner

    def changed(one: Any, two: Any) -> list[str]:
        return differing(Reach({"w": one}).hashes, Reach({"w": two}).hashes)

    assert changed(made(2), made(2)) == []
    assert len(changed(made(2), made(3))) == 1
    assert len(changed(made(2, extra=2), made(2))) == 1
    assert changed(functools.partial(made(2), base=1), functools.partial(made(2), base=2)) == ["w argument base"]

    class Agent(Module):
        def __init__(self, k: int) -> None:
            super().__init__()
            self.k = k
            self.prompt = Parameter("p")
            self.llm = ScriptedLLM(lambda messages: "", name="scripted/inner")

        def __call__(self, x: int) -> int:
            return self.k + x

    assert changed(Agent(1), Agent(1)) == []
    assert changed(Agent(1), Agent(2)) == ["w.k"]
    assert changed(Agent(1).__call__, Agent(2).__call__) != []
    found = Reach({"w": Agent(1)})
    assert [p.name for p in found.parameters] == ["prompt"]
    assert [llm.name for llm in found.models] == ["scripted/inner"]


def test_the_settings_of_our_own_guides_count() -> None:
    assert differing(Reach({"g": exact("a")}).hashes, Reach({"g": exact("b")}).hashes) == ["g.key"]
    llm = ScriptedLLM(lambda messages: "")
    assert differing(Reach({"g": judge(llm, "x")}).hashes, Reach({"g": judge(llm, "y")}).hashes) == ["g.rubric"]


def test_packages_and_the_standard_library_are_not_looked_into() -> None:
    assert not is_users(json.dumps)
    assert not is_users(pytest.raises)
    assert not is_users(Parameter)
    assert is_users(helper)
    assert Reach({"w": json.dumps}).hashes == {}


def test_an_edit_of_a_file_changes_what_it_touches_and_nothing_else(tmp_path: Path) -> None:
    text = (
        "from trace_opt import Problem, trace\n"
        "def unrelated(): return 1\n"
        "@trace\ndef op(x):\n    return x + 1\n"
        "def workflow(x):\n    return op(x)\n"
        "problem = Problem(workflow=workflow, train=[1], guide=lambda o, e: 1.0)\n"
    )

    def hashes(source: str) -> dict[str, str]:
        file = tmp_path / f"p{len(list(tmp_path.iterdir()))}.py"
        file.write_text(source)
        problem = load_problem(file)
        return Reach({"w": problem.workflow, "g": problem.guide}).hashes

    first = hashes(text)
    assert differing(first, hashes(text.replace("unrelated(): return 1", "unrelated(): return 2"))) == []
    assert differing(first, hashes(text.replace("x + 1", "x + 2"))) == ["op"]
    assert differing(first, hashes(text.replace("guide=lambda o, e: 1.0", "guide=lambda o, e: 0.5"))) == ["<lambda>"]
