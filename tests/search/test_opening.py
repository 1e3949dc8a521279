"""How a run begins: what is said of a start that fails, that reads nothing, or that reads where nobody sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.search.conftest import Line, Listed
from trace_opt.core.context import Process
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import carry, trace
from trace_opt.errors import ProblemError
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.greedy import Greedy
from trace_opt.search.options import Event
from trace_opt.store.store import Store
from trace_opt.testing import ScriptedLLM

EXAMPLES = [{"x": x} for x in range(8)]


def begun(workflow: Callable[..., Any], optimizer: Listed | None = None, **options: Any) -> tuple[Any, list[str]]:
    """A run of one trial and the notes that were told."""
    events: list[Event] = []
    given: dict[str, Any] = {
        "val": EXAMPLES, "store": None, "optimizers": [optimizer or Listed([{}])], "budget": Budget(trials=1),
        "concurrency": 1, "on_event": events.append, **options,
    }  # fmt: skip
    run = optimize(workflow, [{"x": 100}], lambda out, example: 1.0, **given)
    return run, [event.text for event in events if event.kind == "note"]


@pytest.mark.parametrize("kind", ["raises", "recurses", "is async"])
def test_a_workflow_that_fails_before_it_reads_anything_is_said_to_fail(kind: str) -> None:
    """With the first error, not only that no Parameter was read."""
    word = Parameter("a", name="word")

    def recursed(x: int) -> str:
        return recursed(x) + word.value

    def raised(x: int) -> str:
        raise RuntimeError(f"wf down\nat {x}")

    async def araised(x: int) -> str:
        raise RuntimeError(f"wf down at {x}")

    workflow: Any = {"raises": raised, "recurses": recursed, "is async": araised}[kind]
    with pytest.raises(ProblemError, match="read no Parameter on the validation examples; 8 of the 8") as found:
        begun(workflow)
    said = str(found.value)
    assert ("RecursionError" if kind == "recurses" else "the first with 'RuntimeError: wf down") in said
    assert "\n" not in said
    assert said.endswith("; mend that first")


@pytest.mark.parametrize("tests", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_one_example_without_a_parameter_does_not_refuse_a_run(fails: bool, tests: bool) -> None:
    """Nor one that fails: the parameter that others read is found, whichever comes first."""
    word, met = Parameter("a", name="word"), list[int]()

    def workflow(x: int) -> str:
        met.append(x)
        if len(met) <= 3:
            if fails:
                raise ValueError("a bad example")
            return "nothing"
        return word.value

    run, _ = begun(workflow, Listed([{"word": "b"}]), search=Greedy() if tests else Greedy(gate=None))
    assert run.start == {"word": "a"}


def test_a_start_that_costs_and_reads_nothing_is_given_up_after_a_few_examples() -> None:
    """So that a wrong workflow is not paid for on all of them."""
    llm = ScriptedLLM(lambda messages: "x")

    @trace
    def ask(x: int) -> str:
        return llm(f"{x}")

    with pytest.raises(ProblemError, match="read no Parameter on the first 4 validation examples; read one by"):
        begun(ask)
    assert llm.calls == 4


def test_a_start_that_fails_everywhere_is_told_and_reported(tmp_path: Any) -> None:
    """With the commonest kind of error; also by a run that is resumed."""
    word = Parameter("a", name="word")

    def workflow(x: int) -> str:
        if word.value == "a":
            raise KeyError(x) if x == 3 else RuntimeError(f"wf down at {x}")
        return word.value

    store = Store(tmp_path / "runs.db")
    run, told = begun(workflow, Listed([{}]), parameters=[word], store=store)
    said = [note for note in told if "failed with the start's values on all 8" in note]
    assert len(said) == 1
    assert "7 times with 'RuntimeError': 'RuntimeError: wf down at" in said[0]
    assert said[0] in run.report().notes
    again, _ = begun(workflow, Listed([{}, {}]), parameters=[word], store=store, resume=run.id, budget=Budget(trials=2))
    assert said[0] in again.report().notes


def test_a_start_that_fails_on_some_examples_only_is_no_note(line: Line) -> None:
    """It is counted in the report, as before."""

    def workflow(x: int) -> int:
        if x == 3:
            raise RuntimeError("now and then")
        return x + line.a.value

    run, told = begun(workflow, parameters=[line.a])
    assert not any("failed" in note for note in (*told, *run.report().notes))


def test_a_declared_parameter_that_is_not_read_is_told_with_the_error() -> None:
    """For that may be why it is not."""
    word = Parameter("a", name="word")

    def workflow(x: int) -> str:
        raise RuntimeError("wf down")

    _, told = begun(workflow, parameters=[word])
    assert (
        "the start's rollouts did not read 'word'; 8 of the 8 rollouts failed, the first with 'RuntimeError: wf down'"
        in told
    )


# -- reads that no recording sees --------------------------------------------------------------------------------------


def threaded(word: Parameter[str], other: Parameter[str], hand: Callable[[Any], Any]) -> Callable[..., Any]:
    @trace
    def op(x: int) -> str:
        return f"{word.value}{x}"

    @trace
    def joined(first: str, parts: list[str]) -> str:
        return first + "".join(parts)

    def workflow(x: int) -> str:
        with ThreadPoolExecutor(1) as pool:
            return joined(other.value, list(pool.map(hand(op), [x, x])))

    return workflow


def test_a_parameter_read_in_a_thread_without_context_is_told_and_reported() -> None:
    """By name, and what to do."""
    word, other = Parameter("a", name="word"), Parameter("o", name="other")
    run, told = begun(threaded(word, other, lambda op: op), Listed([{"other": "p"}]))
    said = [note for note in told if "carry(" in note]
    assert len(said) == 1
    assert said[0].startswith("'word' was read in a thread")
    assert said[0] in run.report().notes
    assert Process.outside == ()


def test_a_carried_op_is_no_stray() -> None:
    """Nor is what callbacks look at."""
    word, other = Parameter("a", name="word"), Parameter("o", name="other")
    seen: list[str] = []
    run, told = begun(
        threaded(word, other, carry), Listed([{"word": "b"}]), on_trial=lambda trial: seen.append(word.value),
        approve=lambda approval: bool(word.value),
    )  # fmt: skip
    assert set(run.start) == {"word", "other"}
    assert seen == ["a"]
    assert not any("carry(" in note for note in (*told, *run.report().notes))


def test_a_workflow_that_reads_only_in_such_a_thread_is_refused_with_the_reason() -> None:
    """As run_in_executor does, which takes no context along."""
    word = Parameter("a", name="word")

    async def workflow(x: int) -> str:
        return await asyncio.get_running_loop().run_in_executor(None, lambda: word.value)

    with pytest.raises(
        ProblemError, match=r"read no Parameter on the validation examples; 'word' was read in a thread"
    ):
        begun(workflow)
    assert Process.outside == ()
