"""`reuse=True`: rollouts that a run in the store has made are taken, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.conftest import Line, Listed
from trace_opt.core.context import rollout
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import trace
from trace_opt.errors import ProblemError
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.store.store import Store
from trace_opt.testing import ScriptedLLM

VALUES = [{"prompt": "Shout: "}, {"prompt": "Sing: "}]


class Asked:
    """A workflow that asks a model about each word; drawn noise shows whether seeds are the same."""

    def __init__(self, constant: str = "") -> None:
        self.prompt = Parameter("Say: ", name="prompt")
        self.llm = ScriptedLLM(lambda messages: str(messages[-1]["content"]).upper(), price=(1e-6, 1e-6))
        prompt, llm = self.prompt, self.llm

        @trace
        def ask(word: str) -> str:
            return llm(prompt.value + word + constant)

        @trace
        def drawn(said: str) -> str:
            return f"{said} {rollout().rng.random()}"

        def workflow(word: str) -> str:
            return drawn(ask(word))

        self.workflow = workflow

    def optimize(self, store: Store | None, values: Any = VALUES, n: int = 20, **options: Any) -> Any:
        examples = [{"word": f"w{i}"} for i in range(n)]
        given = {"optimizers": [Listed(values)], "budget": Budget(trials=len(values)), "seed": 3} | options
        return optimize(self.workflow, examples, guide, store=store, **given)


def guide(output: str, example: Any) -> Feedback:
    return Feedback({"song": float(output.startswith("SING")), "noise": float(output.rsplit(maxsplit=1)[-1])}, output)


def outcome(run: Any) -> Any:
    report = run.report()
    history = [(t.before, t.after, t.n, t.accepted, t.verdict) for t in run.history]
    return run.best, history, report.best, report.start, report.difference


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs.db")


def test_the_same_run_again_asks_no_model_and_comes_to_the_same(store: Store) -> None:
    """All of it is taken from the first run, which need not have asked for that."""
    first = Asked().optimize(store)
    again = Asked()
    second = again.optimize(store, reuse=True)
    assert again.llm.calls == 0
    assert outcome(second) == outcome(first)
    assert second.spent == {}
    reused = second.report().reused
    assert (reused["rollouts"], reused["calls"]) == (len(store.rollouts()), first.spent["workflow"].calls)
    assert f"taken from other runs: {reused['rollouts']} rollouts" in str(second.report())
    assert first.report().reused == {}


def test_reused_rollouts_count_against_no_limit(store: Store) -> None:
    """A budget that pays for one search pays for a longer one."""
    first = Asked().optimize(store, [{"prompt": "Sing: "}])
    rows = len(store.rollouts())
    longer = Asked()
    limit = Budget(rollouts=rows, calls=rows + 10, trials=3)
    second = longer.optimize(
        store, [{"prompt": "Sing: "}, {"prompt": "Hum: "}, {"prompt": "Roar: "}], reuse=True, budget=limit
    )
    assert len(second.history) == 3
    assert 0 < longer.llm.calls < rows
    assert second.report().reused["rollouts"] >= first.report().trials


def test_other_data_of_the_same_examples_is_found_by_content(store: Store) -> None:
    """Examples are known by what they hold, not by their places."""
    Asked().optimize(store, n=20)
    more = Asked()
    run = more.optimize(store, n=30, reuse=True)
    assert 0 < run.report().reused["rollouts"] < len(store.rollouts())


@pytest.mark.parametrize("what", ["seed", "source", "constant", "value", "guide", "failed"])
def test_what_differs_in_anything_is_run(store: Store, what: str) -> None:
    """Another seed, source, constant, value or guide, and what failed before."""
    Asked().optimize(store, values=[{"prompt": "Sing: "}])
    other = Asked("!" if what == "constant" else "")
    options: dict[str, Any] = {"reuse": True, "values": [{"prompt": "Sing: "}]}
    if what == "seed":
        options["seed"] = 4
    if what == "value":
        other.prompt.value = "Whisper: "
        options["values"] = [{"prompt": "Roar: "}]
    if what == "source":
        plain = other.workflow
        other.workflow = lambda word: plain(word)
    examples = [{"word": f"w{i}"} for i in range(20)]
    if what == "guide":
        run = optimize(
            other.workflow, examples, lambda out, example: guide(out, example), store=store, seed=3, reuse=True,
            optimizers=[Listed([{"prompt": "Sing: "}])], budget=Budget(trials=1),
        )  # fmt: skip
    elif what == "failed":
        broken = Parameter("a", name="broken")

        def workflow(word: str) -> str:
            raise ValueError(broken.value + word)

        for reuse in (False, True):
            run = optimize(
                workflow, examples, guide, store=store, seed=3, reuse=reuse, score_range=(0, 1),
                optimizers=[Listed([{"broken": "b"}])], budget=Budget(trials=1),
            )  # fmt: skip
    else:
        run = other.optimize(store, **options)
    assert run.report().reused == {}


def test_the_other_run_may_go(store: Store) -> None:
    """What was taken stands in the run's own rows: a resumed run needs no other, and counts it as it was."""
    Asked().optimize(store, [{"prompt": "Sing: "}])
    given: dict[str, Any] = {"budget": Budget(trials=2, rollouts=60)}
    second = Asked().optimize(store, [{"prompt": "Sing: "}, {"prompt": "Hum: "}], reuse=True, **given)
    with store.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM rollouts WHERE run <> ?", (second.id,))
    more = [{"prompt": "Sing: "}, {"prompt": "Hum: "}, {"prompt": "Roar: "}]
    resumed = Asked()
    third = resumed.optimize(store, more, budget=Budget(trials=3, rollouts=60), resume=second.id, reuse=True)
    assert outcome(third)[1][:2] == outcome(second)[1]
    assert third.report().reused["rollouts"] == second.report().reused["rollouts"]
    rows = store.rollouts(second.id)
    assert third.spent["workflow"].calls == len(rows) - third.report().reused["rollouts"]


def test_a_run_that_is_warm_started_takes_what_its_source_ran(store: Store) -> None:
    """The start is the other's best, whose rollouts are there."""
    Asked().optimize(store, [{"prompt": "Sing: "}])
    warm = Asked()
    run = warm.optimize(store, [{"prompt": "Hum: "}], start="last", reuse=True)
    assert run.start == {"prompt": "Sing: "}
    assert run.report().reused["rollouts"] > 0


def test_reuse_needs_a_store_and_a_truth_value(line: Line) -> None:
    """Refused before anything is run."""
    for options, said in (({"store": None, "reuse": True}, "needs a store"), ({"reuse": "yes"}, "give True or False")):
        with pytest.raises(ProblemError, match=said):
            optimize(line.workflow, line.examples(4), line.guide, optimizers=[Listed([{"a": 1}])], **options)
    assert not line.runs


@settings(max_examples=12)
@given(n=st.integers(1, 24), seed=st.integers(0, 3), values=st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_a_reused_search_is_the_search(tmp_path_factory: Any, n: int, seed: int, values: list[int]) -> None:
    """Whatever another run has left in the store, the result is that of a run without it."""
    store = Store(tmp_path_factory.mktemp("runs") / "runs.db")
    steps = [{"a": value} for value in values]
    given: dict[str, Any] = {"budget": Budget(trials=len(steps)), "seed": seed}
    other = Line()
    optimize(
        other.workflow, other.examples(24), other.guide, optimizers=[Listed([{"a": 3}])], store=store, seed=seed,
        budget=Budget(trials=1),
    )  # fmt: skip
    found = []
    for options in ({"store": None}, {"store": store, "reuse": True}):
        line = Line()
        run = optimize(line.workflow, line.examples(n), line.guide, optimizers=[Listed(steps)], **given, **options)
        found.append(outcome(run))
    assert found[0] == found[1]
