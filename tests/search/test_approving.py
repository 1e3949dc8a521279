"""`approve=`: asked before an acceptance takes effect, kept before it does, and never asked twice."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.search.conftest import Line, Listed
from trace_opt.core.parameter import Parameter
from trace_opt.errors import ProblemError, StoreError
from trace_opt.optim.memory import attempts
from trace_opt.search.approving import Approval
from trace_opt.search.beam import Beam
from trace_opt.search.budget import Budget
from trace_opt.search.engine import aoptimize, optimize
from trace_opt.search.greedy import Greedy
from trace_opt.search.pareto import Pareto
from trace_opt.store.store import Store

STEPS = [{"a": 2}, {"a": 3}, {"b": 7}]


def run_line(line: Line, approve: Any, values: Any = STEPS, **options: Any) -> Any:
    given: dict[str, Any] = {
        "store": None,
        "budget": Budget(trials=len(values)),
        "optimizers": [Listed(values)],
        **options,
    }
    return optimize(line.workflow, line.examples(40), line.guide, approve=approve, **given)


@pytest.mark.parametrize(
    "search", [Greedy(), Greedy(gate=None), Beam(), Pareto(parents=1)], ids=["greedy", "untested", "beam", "pareto"]
)
def test_what_is_refused_is_not_built_on_and_is_an_outcome_of_its_own(line: Line, search: Any) -> None:
    """In every search: the verdict says refused, what comes after is made from what was there, the best leaves it out."""
    asked: list[Approval] = []

    def approve(approval: Approval) -> bool:
        asked.append(approval)
        return approval.new != {"a": 3}

    run = run_line(line, approve, search=search)
    refused = run.history[1]
    assert (refused.accepted, refused.verdict.split(":")[0]) == (False, "refused")
    assert refused.notes["refused"] == "its acceptance was refused"
    assert [trial.accepted for trial in run.history] == [True, False, True]
    assert run.best["a"] != 3
    assert [approval.new for approval in asked] == STEPS
    later = {0, 2} if isinstance(search, Greedy | Pareto) else {0}  # a beam's first step has one parent
    assert {approval.old["a"] for approval in asked if "a" in approval.old} == later


def test_who_is_asked_sees_what_the_search_knows(line: Line) -> None:
    """Values, scores, reason, and what the test found."""
    asked: list[Approval] = []
    run_line(line, lambda approval: asked.append(approval) or True, [{"a": 3, "b": 7}])
    [approval] = asked
    assert (approval.trial, approval.optimizer, approval.reason) == (1, "Listed", "number 1 of the list")
    assert (approval.old, approval.new) == ({"a": 0, "b": 0}, {"a": 3, "b": 7})
    assert approval.after == 0.0
    assert approval.before is not None
    assert approval.before < 0
    assert approval.n >= 4
    assert "better than the incumbent" in approval.verdict


def test_proposers_are_shown_that_it_was_refused(line: Line) -> None:
    """In the memory of tried values, apart from what was merely rejected."""
    given = {"optimizers": (listed := [Listed([{"a": 3}, {"a": 1}])])}
    histories: list[Any] = []
    original = listed[0].propose

    async def propose(parameters: Any, rollouts: Any, history: Any) -> Any:
        histories.append((parameters, history))
        return await original(parameters, rollouts, history)

    listed[0].propose = propose  # type: ignore[method-assign]
    run_line(line, lambda approval: False, [{"a": 3}, {"a": 1}], **given)
    parameters, history = histories[1]
    assert attempts(parameters, history, 5)[0].verdict == "refused: its acceptance was refused"


def test_a_race_is_won_only_with_approval() -> None:
    """The winner of a race is an acceptance as any other."""
    word = Parameter("a", name="word", choices=("a", "b"))
    given: dict[str, Any] = {"race": ["word"], "budget": Budget(trials=1), "store": None}
    examples = [{"x": str(x)} for x in range(20)]
    asked: list[Approval] = []

    def approve(approval: Approval) -> bool:
        asked.append(approval)
        return False

    run = optimize(lambda x: x + word.value, examples, lambda out, _: float("b" in out), approve=approve, **given)
    assert [(approval.optimizer, dict(approval.new)) for approval in asked] == [("race", {"word": "b"})]
    assert run.best == {"word": "a"}
    assert run.history[0].verdict.startswith("refused: won the race of 2")


def test_an_async_one_is_awaited_and_a_plain_one_holds_up_no_loop(line: Line) -> None:
    """A plain function runs in a thread of its own; both may wait."""
    here = threading.get_ident()
    threads: list[int] = []

    def plain(approval: Approval) -> bool:
        threads.append(threading.get_ident())
        return True

    async def later(approval: Approval) -> bool:
        await asyncio.sleep(0)
        threads.append(threading.get_ident())
        return True

    for approve in (plain, later):
        assert run_line(line, approve, [{"a": 3}]).best == {"a": 3, "b": 0}
    assert threads[0] != here
    assert threads[1] == here


@pytest.mark.parametrize("answer", [None, "yes", 1])
def test_an_answer_that_is_neither_yes_nor_no_is_refused(line: Line, answer: Any) -> None:
    """A forgotten return must not pass for a no, nor a text for a yes."""
    with pytest.raises(ProblemError, match="approve returned .*; return True to build on the values, False to refuse"):
        run_line(line, lambda approval: answer, [{"a": 3}])


def test_what_cannot_be_called_is_refused(line: Line) -> None:
    """Before anything is run."""
    with pytest.raises(ProblemError, match="approve is True, which cannot be called"):
        run_line(line, True)
    assert not line.runs


@pytest.mark.parametrize("search", [Greedy(width=2), Beam(beam=2), Pareto()], ids=["greedy", "beam", "pareto"])
def test_an_answer_is_kept_before_it_takes_effect_and_not_asked_for_again(
    line: Line, tmp_path: Path, search: Any
) -> None:
    """Interrupted at the second question, resumed: the first is not asked again, and the end is that of one run."""
    values = [{"a": 2}, {"a": 3}, {"b": 7}, {"b": 6}]
    whole = run_line(line, lambda approval: approval.new != {"a": 2}, values, search=search)
    asked: list[Any] = []

    async def interrupted(approval: Approval) -> bool:
        asked.append(dict(approval.new))
        if len(asked) == 2:
            raise asyncio.CancelledError
        return approval.new != {"a": 2}

    store = Store(tmp_path / "runs.db")
    given: dict[str, Any] = {"store": store, "budget": Budget(trials=4), "search": search}
    again = Line()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(
            aoptimize(
                again.workflow,
                again.examples(40),
                again.guide,
                optimizers=[Listed(values)],
                approve=interrupted,
                **given,
            )
        )
    assert store.runs()[0].status == "interrupted"
    later: list[Any] = []

    def answers(approval: Approval) -> bool:
        later.append(dict(approval.new))
        return approval.new != {"a": 2}

    third = Line()
    resumed = optimize(
        third.workflow,
        third.examples(40),
        third.guide,
        optimizers=[Listed(values)],
        approve=answers,
        resume="last",
        **given,
    )
    assert asked[0] not in later
    assert asked[1] in later
    assert resumed.best == whole.best
    assert [t.verdict for t in resumed.history] == [t.verdict for t in whole.history]


def test_a_run_that_asked_goes_on_asking(line: Line, tmp_path: Path) -> None:
    """Left out on resuming, it is refused: nothing slips through unasked."""
    store = Store(tmp_path / "runs.db")
    run_line(line, lambda approval: True, [{"a": 3}], store=store)
    with pytest.raises(StoreError, match="the setting 'approve'"):
        run_line(Line(), None, STEPS, store=store, resume="last")
