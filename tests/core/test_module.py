"""Modules name, list, save and load the parameters below them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import texts
from trace_opt.core.module import Module
from trace_opt.core.parameter import Demonstrations, Parameter
from trace_opt.core.tracer import plain, record, trace
from trace_opt.errors import TraceError


class Planner(Module):
    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.prompt = Parameter("plan")
        self.given = Parameter(1, name="steps")

    @trace
    def run(self, q: str) -> str:
        return f"{self.prompt.value} {q}"


class Team(Module):
    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.planner = Planner()
        self.workers: list[Any] = [Planner(), Parameter("w")]
        self.table = {"a": Parameter("t"), "b": (Parameter("u"),)}
        self.other = "no parameter"


def test_names_are_paths_of_attributes_below_the_outermost_module() -> None:
    assert list(Team().named_parameters()) == [
        "workers.1", "table.a", "table.b.0", "planner.prompt", "planner.steps", "workers.0.prompt", "workers.0.steps",
    ]  # fmt: skip


def test_a_named_module_leads_the_names_below() -> None:
    assert list(Planner("lead").named_parameters()) == ["lead.prompt", "lead.steps"]
    team = Team("team")
    team.planner = Planner("own")
    assert "team.own.prompt" in team.named_parameters()


def test_a_module_works_in_a_recording() -> None:
    team = Team()
    with record(values={"planner.prompt": "go"}) as graph:
        out = team.planner.run("x")
    assert plain(out) == "go x"
    assert list(graph.parameters) == ["planner.prompt"]
    assert team.planner.run("x") == "plan x"


def test_what_is_added_to_a_list_later_is_found() -> None:
    team = Team()
    team.workers.append(Parameter("late"))
    assert "workers.2" in team.named_parameters()
    assert team.workers[2].name == "workers.2"


def test_a_shared_parameter_has_one_name_and_is_listed_once() -> None:
    shared = Parameter("s")

    class One(Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = shared

    class Both(Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = One(), One()

    both = Both()
    assert list(both.named_parameters()) == ["left.text"]
    both.left.text = Parameter("new")
    assert sorted(both.named_parameters()) == ["left.text", "right.text"]


def test_a_child_that_names_its_parent_makes_no_circle() -> None:
    team = Team()
    team.planner.boss = team
    assert team.planner.prompt.name == "planner.prompt"
    assert len(team.named_parameters()) == 7


def test_a_module_that_moves_takes_its_new_name() -> None:
    first, second = Module(), Module()
    first.a = Planner()
    moved = first.a
    first.a = None
    second.b = moved
    assert moved.prompt.name == "b.prompt"


def test_a_parameter_that_was_replaced_has_lost_its_name() -> None:
    planner = Planner()
    old = planner.prompt
    planner.prompt = Parameter("new")
    assert planner.prompt.name == "prompt"
    with pytest.raises(TraceError, match="name="):
        _ = old.name


def test_two_parameters_of_one_name_are_refused() -> None:
    module = Module()
    module.a, module.b = Parameter(1, name="same"), Parameter(2, name="same")
    with pytest.raises(TraceError, match="'same'"):
        module.named_parameters()


def test_a_module_that_forgot_to_call_init_still_works() -> None:
    class Bare(Module):
        def __init__(self) -> None:
            self.a = Parameter(1)

    assert list(Bare().named_parameters()) == ["a"]


def test_a_deepcopy_owns_its_own_parameters() -> None:
    team = Team()
    made = copy.deepcopy(team)
    made.planner.prompt.value = "other"
    assert team.planner.prompt.value == "plan"
    assert list(made.named_parameters()) == list(team.named_parameters())


def test_state_dict_round_trips() -> None:
    one, two = Planner(), Planner()
    one.prompt.value = "better"
    two.load_state_dict(one.state_dict())
    assert two.state_dict() == {"prompt": "better", "steps": 1}


@pytest.mark.parametrize(
    "state", [{}, {"prompt": "x"}, {"prompt": "x", "steps": 1, "more": 2}, {"prompt": "x", "steps": "y"}], ids=range(4)
)
def test_a_state_that_does_not_fit_changes_nothing(state: dict[str, Any]) -> None:
    planner = Planner()
    with pytest.raises(ValueError):
        planner.load_state_dict(state)
    assert planner.state_dict() == {"prompt": "plan", "steps": 1}


class Everything(Module):
    def __init__(self, text: str = "a", number: float = 1.0, shown: tuple[Any, ...] = ()) -> None:
        super().__init__()
        self.text = Parameter(text)
        self.number = Parameter(number)
        self.tensor = Parameter(torch.arange(3.0) * number)
        self.shown = Parameter(Demonstrations(9, shown))
        self.structured = Parameter({"k": [text]}, type=dict[str, list[str]])
        self.choice = Parameter((1, 2), choices=[(1, 2), (3, 4)])


@given(st.text(), st.floats(-1e9, 1e9), st.lists(st.one_of(texts, st.integers(), st.tuples(texts)), max_size=3))
def test_save_and_load_restore_every_kind_exactly(text: str, number: float, shown: list[Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "values.json"
        saved = Everything(text, number, tuple(shown))
        saved.save(path)
        loaded = Everything()
        loaded.load(path)
        assert list(Path(folder).iterdir()) == [path]
    before, after = saved.state_dict(), loaded.state_dict()
    assert torch.equal(before.pop("tensor"), after.pop("tensor"))
    assert before == after


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"values": 3}', "\x00", '{"values": {"x": {"$": "what"}}}'])
def test_a_file_that_holds_no_values_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    planner = Planner()
    with pytest.raises(ValueError):
        planner.load(path)
    assert planner.state_dict() == {"prompt": "plan", "steps": 1}


def test_a_missing_file_is_pythons_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Planner().load(tmp_path / "none.json")


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    Planner().save(tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["values"] == {"prompt": "plan", "steps": 1}
