"""One rollout: what becomes feedback, what goes up, who is charged."""

import asyncio
from pathlib import Path
from threading import Event
from time import sleep
from typing import Any

import pytest

from tests.search.conftest import Listed
from trace_opt.core.context import rollout as current
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Cost
from trace_opt.core.tracer import trace
from trace_opt.errors import BudgetError, FeedbackError, LLMError, TraceError
from trace_opt.search.budget import Budget
from trace_opt.search.engine import aoptimize
from trace_opt.search.executors import LocalExecutor
from trace_opt.search.ledger import Ledger
from trace_opt.search.rolling import Job, Roller, own_lines
from trace_opt.store.store import Store
from trace_opt.testing import ScriptedLLM


def roll(workflow: Any, guide: Any = lambda out, example: 1.0, *, keep: bool = True, **values: Any) -> Any:
    ledger, executor = Ledger(Budget()), LocalExecutor(2)
    roller = Roller(workflow, guide, ledger, executor)
    job = Job(0, values, 0, 5, bound=((5,), {}), seed=11, name=lambda number: f"train example {number}", keep=keep)
    try:
        return asyncio.run(roller.arun(job)) if roller.is_async else roller.run(job)
    finally:
        executor.close()


def test_values_and_seed_are_in_force_for_workflow_and_guide_and_gone_afterwards() -> None:
    p = Parameter(1, name="p")
    seen: list[Any] = []

    @trace
    def op(x: int) -> int:
        seen.append((p.value, current().seed, current().rng.random()))
        return x

    def guide(out: int, example: int) -> float:
        seen.append((p.value, current().seed))
        return float(out)

    made, _ = roll(op, guide, p=7)
    again, _ = roll(op, guide, p=7)
    assert seen[0] == seen[2]
    assert seen[0][:2] == seen[1] == (7, 11)
    assert (p.value, current().seed) == (1, None)
    assert made.score == again.score == 5.0
    assert made.graph.values == {"p": 7}


def test_a_guide_gets_the_plain_output_and_is_not_recorded() -> None:
    @trace
    def op(x: int) -> list[int]:
        return [x, x]

    def guide(out: Any, example: Any) -> float:
        assert type(out) is dict
        assert type(out["a"]) is list
        op(3)
        return 1.0

    made, _ = roll(lambda x: {"a": op(x)}, guide)
    assert [node.op.name for node in made.graph.nodes if node.kind == "op"] == ["op"]
    assert made.output == {"a": [5, 5]}


def test_a_failing_op_is_feedback_on_its_error_node() -> None:
    @trace
    def op(x: int) -> int:
        return x // 0

    made, _ = roll(lambda x: op(x))
    assert made.error == "ZeroDivisionError: integer division or modulo by zero"
    assert made.node.kind == "error"
    assert made.score is None
    assert "return x // 0" in made.feedback.text


def test_an_error_between_ops_and_one_without_text_are_feedback_too() -> None:
    def workflow(x: int) -> int:
        raise StopIteration

    made, _ = roll(workflow)
    assert made.error == "StopIteration"
    assert made.node.kind == "error"


def test_a_model_that_is_down_is_a_failure_and_a_wrong_key_is_not() -> None:
    def llm(kind: Any) -> Any:
        return ScriptedLLM(lambda messages: LLMError("no", kind=kind), attempts=1)

    made, account = roll(lambda x: llm("server")("hi"))
    assert made.error.endswith(": no")
    assert account.cost.calls == 1
    with pytest.raises(LLMError):
        roll(lambda x: llm("key")("hi"))


def test_misuse_of_tracing_goes_up_even_where_the_workflow_swallows_it() -> None:
    @trace
    def op(x: int) -> int:
        return x

    def workflow(x: int) -> str:
        try:
            return f"{op(x)}"
        except TypeError:
            return "swallowed"

    with pytest.raises(TraceError, match="lose the edge"):
        roll(workflow)


def test_a_spent_budget_goes_up_even_where_the_workflow_swallows_it() -> None:
    llm = ScriptedLLM(lambda messages: "x")

    def workflow(x: int) -> str:
        try:
            return llm("hi")
        except Exception:
            return "swallowed"

    ledger, executor = Ledger(Budget(tokens=1)), LocalExecutor(1)
    job = Job(0, {}, 0, 5, bound=((5,), {}), seed=1)
    with pytest.raises(BudgetError):
        Roller(workflow, lambda o, e: 1.0, ledger, executor).run(job)


def test_calls_of_workflow_and_guide_are_charged_apart() -> None:
    llm = ScriptedLLM(lambda messages: "x", price=(1.0, 1.0))
    made, account = roll(lambda x: llm("four"), lambda out, example: float(len(llm("eight123"))))
    assert account.spend == {"workflow": Cost(1, 1, 1, 2.0), "guide": Cost(1, 2, 1, 3.0)}
    assert made.cost == Cost(2, 3, 2, 5.0)


def test_an_async_workflow_may_have_a_guide_that_blocks() -> None:
    llm = ScriptedLLM(lambda messages: "x", seconds=0.01)

    async def workflow(x: int) -> str:
        return (await llm.areply("hi")).text

    made, account = roll(workflow, lambda out, example: float(len(llm("hi"))))
    assert made.score == 1.0
    assert set(account.spend) == {"workflow", "guide"}


def test_graphs_are_dropped_unless_wanted() -> None:
    made, _ = roll(lambda x: x, keep=False)
    assert (made.graph, made.node, made.output) == (None, None, None)


def test_a_wrong_feedback_names_the_example() -> None:
    with pytest.raises(FeedbackError, match=r"on train example 0"):
        roll(lambda x: x, lambda out, example: "words alone")


def test_only_the_users_own_lines_of_a_traceback_are_shown() -> None:
    import trace_opt.search.rolling as rolling

    text = (
        "Traceback (most recent call last):\n"
        f'  File "{rolling.__file__}", line 1, in run\n    x()\n'
        '  File "<trace ask>", line 5, in ask\n    y()\n'
        '  File "/home/me/agent.py", line 9, in ask\n    return 1 / 0\n           ~~^~~\n'
        "ZeroDivisionError: division by zero\n"
    )
    assert own_lines(text) == '  File "/home/me/agent.py", line 9, in ask\n    return 1 / 0\n           ~~^~~'


def test_a_rollout_whose_guide_is_at_it_when_a_run_is_cancelled_is_kept_and_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume would run it once more, so that more rollouts than the budget allows would have been paid for."""
    monkeypatch.setattr("trace_opt.search.rolling.GRACE_S", 20.0)
    p, judged, begun, cancelled = Parameter(0, name="p"), list[int](), Event(), Event()

    async def workflow(x: int) -> int:
        await asyncio.sleep(0)
        return p.value + x

    def guide(out: int, x: int) -> float:
        if len(judged) == 5:
            begun.set()
            assert cancelled.wait(20)
        sleep(0.06)  # long enough for its graph to be kept
        judged.append(x)
        return 1.0

    async def run(*, stopped: bool, **options: Any) -> None:
        task = asyncio.ensure_future(
            aoptimize(
                workflow, list(range(12)), guide, val=list(range(12)), optimizers=[Listed([])], parameters=[p],
                concurrency=1, budget=Budget(rollouts=16), store=tmp_path / "runs.db", **options,
            )
        )  # fmt: skip
        if stopped:
            await asyncio.to_thread(begun.wait)
            task.cancel()
            asyncio.get_running_loop().call_later(0.05, cancelled.set)
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run(stopped=True))
    assert len(judged) == 6
    asyncio.run(run(stopped=False, resume="last"))
    assert len(judged) == len(set(judged))


def test_a_call_that_outlives_its_rollout_is_booked(tmp_path: Path) -> None:
    """`gather` leaves the other calls alone where one fails; what they cost later would be missing after a resume."""
    sent: list[str] = []

    async def answers(messages: Any) -> str:
        sent.append(messages[-1]["content"])
        if sent[-1] == "bad":
            raise LLMError("it is broken", kind="server")
        await asyncio.sleep(0.03)
        return "yes"

    llm, p = ScriptedLLM(answers), Parameter(0, name="p")

    @trace
    def joined(replies: Any, n: int) -> str:
        return "".join(reply.text for reply in replies) * n

    async def workflow(x: int) -> str:
        replies = await asyncio.gather(llm.areply(f"slow {x}"), llm.areply("bad" if x == 3 else f"good {x}"))
        return joined(replies, p.value)

    async def run() -> None:
        await aoptimize(
            workflow, list(range(6)), lambda out, x: 1.0, val=list(range(6)), optimizers=[Listed([])], parameters=[p],
            concurrency=1, budget=Budget(calls=40), store=tmp_path / "runs.db",
        )  # fmt: skip

    asyncio.run(run())
    record = Store(tmp_path / "runs.db").load("last")
    assert sum(cost.calls for cost in record.spend.values()) == len(sent) == 12
    assert record.spend["lost"].calls == 1
