"""A timeout: what is late has failed and is kept as such, and nothing that it still does counts."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.search import sent_problems as sent
from tests.search.conftest import Listed
from trace_opt.core.feedback import Feedback
from trace_opt.core.graph import Graph
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import record, trace
from trace_opt.errors import OpError, ProblemError, StoreError
from trace_opt.llm.meter import charge
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.evaluate import plan
from trace_opt.search.processes import ProcessExecutor
from trace_opt.search.run import Run
from trace_opt.store.store import Store
from trace_opt.testing import ScriptedLLM

LATE_S = 1.2  # no rollout that is not meant to be late should be, however the machine stalls
SAID = f"took longer than {LATE_S} s (timeout={LATE_S})"

TRAIN = [{"x": x} for x in range(4)]


class Slow:
    """A workflow that waits for an event on one example once its offset is 1; scores are what it gives."""

    def __init__(self, wait: Callable[[], Any] | None = None) -> None:
        self.offset = Parameter(0, name="offset")
        self.go = threading.Event()
        self.ended = threading.Event()
        offset, go, ended = self.offset, self.go, self.ended

        @trace
        def first(x: int) -> int:
            return x + offset.value

        @trace
        def second(x: int, y: int) -> int:
            if y > x == 2:
                go.wait(10)
                if wait is not None:
                    wait()
                ended.set()
            return y

        def workflow(x: int) -> int:
            return second(x, first(x))

        self.workflow = workflow

    def optimize(self, **options: Any) -> Run:
        return optimize(self.workflow, TRAIN, lambda out, example: Feedback(out - example["x"]), **options)


def options(values: Any = ({"offset": 1},), **more: Any) -> dict[str, Any]:
    given = {
        "optimizers": [Listed(values)],
        "budget": Budget(trials=len(values)),
        "timeout": LATE_S,
        "score_range": (0, 2),
    }
    return {**given, **more}


def late_rollouts(store: Store) -> list[Any]:
    return [rollout for rollout in store.rollouts() if rollout.error]


def test_a_thread_that_is_late_is_left_behind_and_its_rollout_has_failed(tmp_path: Path) -> None:
    """The search goes on at once; the rollout is kept as failed, with what it took and what is said of it."""
    slow, store = Slow(), Store(tmp_path / "runs.db")
    run = slow.optimize(**options(), store=store)
    assert not slow.ended.is_set()
    slow.go.set()
    assert run.history[0].n == 4
    [late] = late_rollouts(store)
    assert (late.candidate, late.example, late.score) == (1, 2, None)
    assert late.error == f"Timeout: {SAID}"
    assert late.text == f"the workflow {SAID}"
    assert LATE_S <= late.seconds < 9


def test_the_proposer_sees_what_a_late_rollout_did_until_then(tmp_path: Path) -> None:
    """Its recording ends where it was: the first op stands in it, the second, which never ended, does not."""
    slow, optimizer = Slow(), Listed([{"offset": 1}, {"offset": 2}])
    given = options(optimizers=[optimizer], budget=Budget(trials=2))
    slow.offset.value = 1
    slow.optimize(**given, store=None)
    slow.go.set()
    late = next(rollout for rollout in optimizer.asked[0] if rollout.error)
    assert late.graph is not None
    assert late.node is not None
    assert [node.op.name for node in late.graph.nodes if node.kind == "op"] == ["first"]
    assert [node.op.name for node in late.node.inputs[0].nodes] == ["first"]
    assert slow.ended.wait(20)
    assert [node.op.name for node in late.graph.nodes if node.kind == "op"] == ["first"]


def test_a_recording_given_up_takes_in_nothing_more() -> None:
    """A thread that goes on records nowhere: not its ops, not its output, not its failure."""
    given: list[Graph] = []
    inside, go = threading.Event(), threading.Event()

    @trace
    def step(x: int) -> int:
        return x + 1

    @trace
    def waits(x: int) -> int:
        inside.set()
        go.wait(10)
        return x

    def whole(*, fails: bool) -> None:
        try:
            with record() as graph:
                given.append(graph)
                found = waits(step(1))
                if fails:
                    raise ValueError(step(found))
                graph.output(step(found))
        except OpError:
            pass

    for fails in (False, True):
        for event in (inside, go):
            event.clear()
        thread = threading.Thread(target=whole, kwargs={"fails": fails})
        thread.start()
        assert inside.wait(20)
        frozen = given[-1].given_up()
        before = frozen.to_json()
        go.set()
        thread.join()
        assert frozen.to_json() == before
        assert [node.op.name for node in frozen.nodes] == ["step"]
        assert len(given[-1].nodes) <= 2  # the failure at most, tied to what was there


def test_a_task_that_is_late_is_cancelled() -> None:
    """An async workflow ends at once, and so does its own clean-up."""
    offset, cancelled = Parameter(0, name="offset"), []

    @trace
    async def shifted(x: int) -> int:
        try:
            await asyncio.sleep(60 if offset.value and x == 2 else 0)
        except asyncio.CancelledError:
            cancelled.append(x)
            raise
        return x + offset.value

    async def workflow(x: int) -> int:
        return await shifted(x)

    run = optimize(workflow, TRAIN, lambda out, example: Feedback(out - example["x"]), **options(), store=None)
    assert cancelled == [2]
    assert run.history[0].n == 4


def test_a_rollout_that_blocked_the_loop_was_late_all_the_same() -> None:
    """Nothing could cancel it, but what took longer than it may has failed, whenever it ends."""
    offset = Parameter(0, name="offset")

    async def workflow(x: int) -> int:
        if offset.value and x == 2:
            time.sleep(LATE_S + 0.1)
        return x + offset.value

    given = options(concurrency=1)  # those beside it would be late with it
    run = optimize(workflow, TRAIN, lambda out, example: Feedback(out - example["x"]), **given, store=None)
    assert run.history[0].after == pytest.approx(3 / 4)


def test_the_guide_is_part_of_a_rollout() -> None:
    """A guide that does not come back is given up too."""
    offset, go = Parameter(0, name="offset"), threading.Event()

    def guide(out: int, example: Any) -> float:
        if out > example["x"] == 2:
            go.wait(10)
        return float(out - example["x"])

    run = optimize(lambda x: x + offset.value, TRAIN, guide, **options(), store=None)
    go.set()
    assert run.history[0].after == pytest.approx(3 / 4)


def test_a_late_rollout_pays_for_what_it_spent_and_makes_no_further_call(tmp_path: Path) -> None:
    """Calls before it was given up are its own, the one on its way is lost, a later one is refused, and a charge counts."""
    go, ended, refused = threading.Event(), threading.Event(), list[str]()
    offset = Parameter(0, name="offset")

    async def answer(messages: Any) -> str:
        while "slowly" in messages[-1]["content"] and not go.is_set():
            await asyncio.sleep(0.01)
        return "yes"

    llm = ScriptedLLM(answer, price=(0.001, 0.001))

    @trace
    def ask(x: int) -> int:
        llm("a question")
        if offset.value and x == 2:
            llm("slowly")
            try:
                llm("one more")
            except Exception as error:
                refused.append(str(error))
            charge(calls=7, usd=0.5)
            ended.set()
        return x + offset.value

    store = Store(tmp_path / "runs.db")

    def late(event: Any) -> None:
        if event.kind == "trial":
            go.set()
            assert ended.wait(20)

    given = options(budget=Budget(trials=1, usd=50), on_event=late)
    run = optimize(lambda x: ask(x), TRAIN, lambda out, example: Feedback(out - example["x"]), **given, store=store)
    assert len(refused) == 1
    assert "was given up" in refused[0]
    late_one = late_rollouts(store)[0]
    assert late_one.cost.calls == 1
    # 4 of the start, 4 of the candidate, the charge of 7; the one on its way is lost
    assert run.spent["workflow"].calls == 4 + 4 + 7
    assert run.spent["lost"].calls == 1
    kept = store.load().spend
    assert {role: cost.calls for role, cost in kept.items()} == {"workflow": 15, "lost": 1}


def test_a_late_rollout_is_never_run_again(tmp_path: Path) -> None:
    """A resumed run takes it as it stands; the timeout is a setting, so another one is refused."""
    slow, store = Slow(), Store(tmp_path / "runs.db")
    slow.optimize(**options(), store=store)
    before = late_rollouts(store)
    slow.go.set()
    assert slow.ended.wait(20)
    again = slow.optimize(**options(({"offset": 1}, {"offset": 2})), store=store, resume="last")
    assert late_rollouts(store)[0] == before[0]
    assert again.history[1].after == pytest.approx(2.0)
    with pytest.raises(StoreError, match="the setting 'timeout'"):
        slow.optimize(**options(({"offset": 1}, {"offset": 2}), timeout=9), store=store, resume="last")


@pytest.mark.skipif(sys.platform == "win32", reason="workers are killed by signals here")
@pytest.mark.parametrize("workflow", [sent.dawdling, pytest.param(sent.adawdling, marks=pytest.mark.slow)])
def test_a_worker_with_a_late_rollout_is_replaced(workflow: Any) -> None:
    """The others' rollouts come through, the late one is paid once and shows what it did."""
    optimizer = Listed([{"prompt": "Shout it: "}])
    given = {"optimizers": [optimizer], "budget": Budget(trials=1), "timeout": 2.0, "store": None, "concurrency": 4}
    run = optimize(workflow, sent.examples(6), sent.loud, executor=ProcessExecutor(2), **given)
    assert [rollout.error for rollout in optimizer.asked[0]].count("Timeout: took longer than 2 s (timeout=2)") == 1
    late = next(rollout for rollout in optimizer.asked[0] if rollout.error)
    assert late.graph is not None
    assert run.spent["workflow"].calls == 12


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="workers are killed by signals here")
def test_a_worker_that_cannot_even_say_that_it_is_late_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout that holds the interpreter's lock takes its worker with it; those beside it are run again elsewhere."""
    monkeypatch.setattr("trace_opt.search.distant._GRACE_S", 0.5)
    optimizer = Listed([{"prompt": "Shout it: "}])
    given = {"optimizers": [optimizer], "budget": Budget(trials=1), "timeout": 2.0, "store": None, "concurrency": 4}
    optimize(sent.holding, sent.examples(5), sent.never, executor=ProcessExecutor(1), **given)
    errors = [rollout.error for rollout in optimizer.asked[0]]
    assert errors.count("Timeout: took longer than 2 s (timeout=2)") == 1
    assert errors.count(None) == 4


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), True, "5"])
def test_what_is_no_timeout_is_refused(timeout: Any) -> None:
    """Before anything is run."""
    with pytest.raises(ProblemError, match="timeout is .*; give seconds above 0"):
        plan(lambda x: x, TRAIN, lambda out, example: 1.0, timeout=timeout, store=None)
