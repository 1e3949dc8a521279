from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trace_opt.core.graph import Graph

ROOT = Path(__file__).resolve().parents[2]


def test_the_graph_of_one_example_is_a_line_a_node(cli: Any, choices: Path) -> None:
    done = cli("graph", choices)
    assert done.code == 0
    assert "join_1 = join(text='t00', word=word, number=number): 't00a0'" in done.out.splitlines()


def test_another_example_is_chosen_by_its_number(cli: Any, choices: Path) -> None:
    assert "'t03a0'" in cli("graph", choices, "--example", 3).out


def test_an_example_that_is_not_there_is_a_usage_error(cli: Any, choices: Path) -> None:
    done = cli("graph", choices, "--example", 8)
    assert done.code == 2
    assert "from 0 to 7" in done.err


def test_json_gives_the_graph_back(cli: Any, choices: Path) -> None:
    out = cli("graph", choices, "--format", "json").out
    json.loads(out)
    assert list(Graph.from_json(out).parameters) == ["word", "number"]


@pytest.mark.parametrize(("format", "start"), [("mermaid", "flowchart TD"), ("dot", "digraph")])
def test_pictures_are_written_for_other_tools(cli: Any, choices: Path, format: str, start: str) -> None:
    assert cli("graph", choices, "--format", format).out.startswith(start)


def test_a_graph_goes_to_a_file(cli: Any, choices: Path, tmp_path: Path) -> None:
    done = cli("graph", choices, "-o", "graph.txt")
    assert (done.out, done.err) == ("", "wrote graph.txt\n")
    assert "join_1" in (tmp_path / "graph.txt").read_text()


def test_a_workflow_that_fails_has_a_graph_and_code_1(cli: Any, choices: Path) -> None:
    choices.write_text(choices.read_text().replace("time.sleep(wait)", "raise ValueError('broken')"))
    done = cli("graph", choices)
    assert done.code == 1
    assert "ValueError: broken" in done.out
    assert "the workflow failed on example 0" in done.err
    assert "Traceback" not in done.err


def test_an_async_workflow_has_a_graph(cli: Any, choices: Path) -> None:
    text = choices.read_text().replace("def workflow", "async def workflow")
    choices.write_text(text)
    assert "join_1" in cli("graph", choices).out


def test_an_op_that_hides_others_is_named(cli: Any, write: Any) -> None:
    path = write("hiding.py", """
        from trace_opt import Parameter, Problem, trace
        word = Parameter("a", name="word")
        @trace
        def inner(text): return text + word.value
        @trace
        def outer(text): return inner(text)
        def workflow(text): return outer(text)
        problem = Problem(workflow=workflow, train=[{"text": "x"}], guide=lambda o, e: 1.0)
    """)  # fmt: skip
    assert "op 'outer' hides calls of 'inner'" in cli("graph", path).err
    assert "'outer' calls 'inner' in its body" in cli("doctor", path).out


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "graphs").glob("*.py")))
def test_every_problem_of_graphs_has_a_graph_and_a_clean_bill(cli: Any, file: str) -> None:
    done = cli("graph", ROOT / "graphs" / file)
    assert done.code == 0, done.err
    assert done.out
    checked = json.loads(cli("doctor", ROOT / "graphs" / file, "--json").out)["checks"]
    assert [check["state"] for check in checked if check["name"] == "workflow"] == ["ok"]
