"""`start=`: a run begins at the best of another, or at values given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.search.conftest import Line, Listed
from trace_opt.core.parameter import Demonstrations, Parameter
from trace_opt.core.tracer import trace
from trace_opt.errors import ProblemError, StoreError
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.options import Event
from trace_opt.search.splits import split
from trace_opt.store.store import Store


def run_line(line: Line, values: Any, **options: Any) -> Any:
    given: dict[str, Any] = {"budget": Budget(trials=len(values)), "optimizers": [Listed(values)], **options}
    return optimize(line.workflow, line.examples(40), line.guide, **given)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs.db")


def test_a_run_starts_from_the_best_of_another(line: Line, store: Store) -> None:
    """Its start, its report and its record are those values; the Parameters keep their own."""
    first = run_line(line, [{"a": 3}], store=store)
    second = run_line(line, [{"b": 7}], store=store, start=first.id[:8])
    assert second.start == {"a": 3, "b": 0}
    assert second.best == {"a": 3, "b": 7}
    report = second.report()
    assert report.changed == {"b": (0, 7)}
    assert report.start is not None
    assert report.start.mean == pytest.approx(first.report().best.mean)
    assert f"the start's values are the best of run {first.id} for 'a', 'b'" in report.notes
    assert store.load(second.id).start == {"a": 3, "b": 0}
    assert (line.a.value, line.b.value) == (0, 0)


def test_last_is_the_newest_run(line: Line, store: Store) -> None:
    """As on the command line."""
    run_line(line, [{"a": 3}], store=store)
    newest = run_line(line, [{"b": 7}], store=store)
    assert run_line(line, [{"a": 1}], store=store, start="last").start == newest.best


def test_values_given_are_the_start_and_the_rest_keeps_its_own(line: Line) -> None:
    """Told in an event, by name."""
    events: list[Event] = []
    run = run_line(line, [{"a": 3}], store=None, start={"b": 7}, on_event=events.append)
    assert run.start == {"a": 0, "b": 7}
    [note] = [event for event in events if event.data.get("start")]
    assert note.text == "the start's values are those given for 'b'; 'a' starts as in the problem"


def test_every_kind_of_value_comes_back(store: Store) -> None:
    """Choices, structured values and demonstrations too."""
    kinds: dict[str, Any] = {"shape": "wide"}
    shape = Parameter("narrow", name="shape", choices=("narrow", "wide"))
    table = Parameter({"x": [1]}, name="table", type=dict[str, list[int]])
    shown = Parameter(Demonstrations(2), name="shown")
    kinds |= {"table": {"x": [2, 3]}, "shown": Demonstrations(2, ({"q": "a"},))}

    @trace
    def whole(x: int) -> float:
        return float(shape.value == "wide") + len(table.value["x"]) + len(shown.value.examples)

    given: dict[str, Any] = {"budget": Budget(trials=1), "store": store, "parameters": [shape, table, shown]}
    examples = [{"x": x} for x in range(24)]
    first = optimize(whole, examples, lambda out, _: out, optimizers=[Listed([kinds])], **given)
    assert first.best == kinds
    second = optimize(
        whole, examples, lambda out, _: out, optimizers=[Listed([{"shape": "narrow"}])], start="last", **given
    )
    assert second.start == kinds


def test_a_frozen_parameter_stays_what_it_is(store: Store) -> None:
    """A run's value for it is not taken; one given for it is a mistake."""
    open_line, frozen = Line(), Line()
    run_line(open_line, [{"a": 3, "b": 7}], store=store)
    frozen.a.frozen = True
    assert run_line(frozen, [{"b": 6}], store=store, start="last").start == {"a": 0, "b": 7}
    with pytest.raises(ProblemError, match="start gives 'a' a value, which is frozen"):
        run_line(frozen, [{"b": 6}], store=store, start={"a": 1})


def test_a_value_for_no_parameter_is_refused_before_anything_is_run(line: Line, store: Store) -> None:
    """All such names are one error, with what is known."""
    run_line(line, [{"a": 3, "b": 7}], store=store)
    ran = len(line.runs)
    with pytest.raises(
        ProblemError, match=r"run '\w+' has a value for 'b', which is no parameter of this problem; .*'a'|a;"
    ):
        run_line(line, [{"a": 3}], store=store, start="last", parameters=[line.a])
    with pytest.raises(ProblemError, match=r"start gives a value for 'c', .*'c', 'd' in all"):
        run_line(line, [{"a": 3}], store=store, start={"c": 1, "d": 2})
    with pytest.raises(ProblemError, match="start does not fit: parameter 'a' got 'three'"):
        run_line(line, [{"a": 3}], store=store, start={"a": "three"})
    assert len(line.runs) == ran
    assert len(store.runs()) == 1


def test_what_names_no_run_is_refused(line: Line, store: Store) -> None:
    """A run that is not there, a store that is not there, or something else altogether."""
    with pytest.raises(StoreError, match="no store"):
        run_line(line, [{"a": 3}], store=store, start="last")
    run_line(line, [{"a": 3}], store=store)
    with pytest.raises(StoreError, match="has no run 'nope'"):
        run_line(line, [{"a": 3}], store=store, start="nope")
    with pytest.raises(ProblemError, match="start='last' needs a store"):
        run_line(line, [{"a": 3}], store=None, start="last")
    with pytest.raises(ProblemError, match="start is 3; give a run's id, 'last', or values"):
        run_line(line, [{"a": 3}], store=None, start=3)


def test_a_resumed_run_starts_where_it_began(line: Line, store: Store) -> None:
    """Whatever "last" is by then, and whether or not the start is named again."""
    first = run_line(line, [{"a": 2}], store=store)
    second = run_line(line, [{"b": 7}], store=store, start="last")
    run_line(line, [{"a": 1}], store=store)
    for more in ({}, {"start": "last"}):
        resumed = run_line(line, [{"b": 7}, {"a": 3}], store=store, resume=second.id, **more)
        assert resumed.start == first.best == {"a": 2, "b": 0}
        assert resumed.best == {"a": 3, "b": 7}


def test_test_examples_that_the_run_before_used_are_counted(line: Line, store: Store) -> None:
    """Also those of a run before that one; with the same seed there are none."""
    first = run_line(line, [{"a": 3}], store=store)
    same = run_line(line, [{"b": 7}], store=store, start=first.id)
    assert not any("not held out" in note for note in same.report().notes)
    events: list[Event] = []
    other = run_line(line, [{"b": 7}], store=store, start=same.id, seed=1, on_event=events.append)
    [note] = [note for note in other.report().notes if "not held out" in note]
    used = {example["x"] for example in parts(line, 0)[0]}
    count = sum(example["x"] in used for example in parts(line, 1)[1])
    assert count
    assert note.startswith(f"{count} of the 8 test examples were used to train or to choose by in run {same.id!r}")
    assert note in [event.text for event in events]
    third = run_line(line, [{"b": 6}], store=store, start=other.id, seed=0)
    assert any(f"in run {other.id!r}" in note for note in third.report().notes)


def parts(line: Line, seed: int) -> tuple[list[Any], list[Any]]:
    """What a seed gives to train or choose by, and to test."""
    data = split(line.examples(40), None, None, seed)
    return [data.examples[n] for n in (*data.train, *data.val)], [data.examples[n] for n in data.test]


def test_tensors_keep_the_keys_of_their_examples_too(store: Store) -> None:
    """Where no rollouts are reused."""
    torch = pytest.importorskip("torch")
    weight = Parameter(torch.zeros(1), name="weight")

    def workflow(x: int) -> float:
        return float(weight.value.sum()) + x

    options: dict[str, Any] = {"store": store, "budget": Budget(trials=1)}
    examples = [{"x": x} for x in range(40)]
    run = optimize(workflow, examples, lambda out, example: 0.0, optimizers=[Listed([{}])], **options)
    more = optimize(
        workflow, examples, lambda out, example: 0.0, optimizers=[Listed([{}])], start=run.id, seed=1, **options
    )
    assert any("not held out" in note for note in more.report().notes)
