"""Budgets hold whatever fails, and every cost is counted where it arose."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_opt.core.rollout import Cost
from trace_opt.core.tracer import record, trace
from trace_opt.errors import RETRIED_KINDS, BudgetError, LLMError
from trace_opt.llm.meter import charge, charging, metering
from trace_opt.testing import ScriptedLLM

if TYPE_CHECKING:
    from tests.llm.conftest import Purse

kinds = st.sampled_from(["rate", "quota", "server", "key", "too_long", "request", "timeout", "connection", "malformed"])
scripts = st.lists(kinds | st.none(), max_size=30)  # what each request sent comes to; None is an answer


@settings(max_examples=60)
@given(script=scripts, calls=st.integers(0, 20), tokens=st.integers(0, 3000), usd=st.floats(0, 0.01))
def test_no_limit_is_ever_exceeded_whatever_fails(
    purse: type[Purse], script: list[str | None], calls: int, tokens: int, usd: float
) -> None:
    todo = list(script)

    def answer(messages: object) -> str | Exception:
        kind = todo.pop() if todo else None
        return "fine" if kind is None else LLMError("no", kind=kind)  # pyright: ignore[reportArgumentType]

    llm, ledger = ScriptedLLM(answer, price=(1e-6, 1e-5)), purse(calls, tokens, usd)

    async def main() -> None:
        await asyncio.gather(*(llm.areply(f"hi {i}", max_tokens=20) for i in range(8)), return_exceptions=True)

    with charging(ledger), metering() as meter:
        asyncio.run(main())

    assert ledger.spent.calls <= calls
    assert ledger.spent.tokens <= tokens
    assert (ledger.spent.usd or 0) <= usd + 1e-9
    assert ledger.spent.calls == ledger.settled == llm.calls
    assert meter.cost.calls == llm.calls


@given(script=st.lists(kinds, min_size=1, max_size=6), attempts=st.integers(1, 5))
def test_faults_are_retried_while_they_may_pass_and_attempts_are_left(script: list[str], attempts: int) -> None:
    todo = list(script)
    llm = ScriptedLLM(lambda _: LLMError("no", kind=todo.pop(0)) if todo else "fine", attempts=attempts)  # pyright: ignore[reportArgumentType]

    with (
        pytest.raises(LLMError)
        if len(script) >= attempts or any(k not in RETRIED_KINDS for k in script)
        else metering()
    ):
        llm("hi")

    lasting = next((i + 1 for i, kind in enumerate(script) if kind not in RETRIED_KINDS), attempts)
    assert llm.calls == min(attempts, lasting, len(script) + 1)


def test_a_model_of_unknown_price_is_refused_by_a_limit_in_dollars(purse: type[Purse]) -> None:
    llm = ScriptedLLM(lambda _: "fine", price=None)

    with charging(purse(usd=1.0)), pytest.raises(BudgetError):
        llm("hi")

    assert llm.calls == 0


def test_meters_nest_and_each_counts_all_within() -> None:
    llm = ScriptedLLM(lambda _: "fine")

    with metering() as outer:
        llm("one")
        with metering() as inner:
            llm("two")

    assert (outer.cost.calls, inner.cost.calls) == (2, 1)


def test_a_meter_counts_the_calls_of_its_own_tasks_only() -> None:
    llm = ScriptedLLM(lambda _: "fine", seconds=0.01)

    async def rollout(times: int) -> int:
        with metering() as meter:
            for _ in range(times):
                await llm.areply("hi")
            return meter.cost.calls

    async def main() -> list[int]:
        return await asyncio.gather(*(rollout(times) for times in range(6)))

    assert asyncio.run(main()) == [0, 1, 2, 3, 4, 5]


def test_what_a_users_own_client_spends_is_counted(purse: type[Purse]) -> None:
    ledger = purse()

    with charging(ledger), metering() as meter:
        charge(tokens_in=3, tokens_out=4, usd=0.5)

    assert ledger.spent == meter.cost == Cost(1, 3, 4, 0.5)


def test_without_a_ledger_calls_are_free_to_make() -> None:
    assert ScriptedLLM(lambda _: "fine")("hi") == "fine"


def test_a_model_called_in_a_workflow_is_an_op() -> None:
    llm = ScriptedLLM(lambda messages: f"{messages[-1]['content']}!")

    with record() as graph:
        output = llm(llm("hi"))

    node = graph.output(output)
    assert node.value == "hi!!"
    assert [n.op.name for n in graph.nodes] == ["llm", "llm"]
    assert graph.parents(node)[0][0] is graph.nodes[0]


def test_a_model_called_in_an_op_gives_its_plain_value() -> None:
    llm = ScriptedLLM(lambda _: "a")
    kinds: list[type] = []

    @trace
    def ask(question: str) -> str:
        answer = llm(question)
        kinds.append(type(answer))
        return answer

    with record() as graph:
        ask("q")

    assert kinds == [str]
    assert [n.op.name for n in graph.nodes] == ["ask"]


def test_a_whole_reply_is_an_op_too_also_awaited() -> None:
    llm = ScriptedLLM(lambda messages: str(messages[-1]["content"]))

    async def workflow() -> object:
        first = await llm.areply("hi")
        return llm.reply([{"role": "user", "content": first.text}]).text

    async def main() -> object:
        with record() as graph:
            return graph.output(await workflow()).value

    assert asyncio.run(main()) == "hi"


def test_a_scripted_model_is_safe_from_many_threads() -> None:
    llm = ScriptedLLM(lambda _: "fine")
    threads = [threading.Thread(target=lambda: [llm("hi") for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert llm.calls == 160


def test_a_scripted_choice_must_be_one_of_the_answers() -> None:
    llm = ScriptedLLM(lambda _: "maybe")

    with pytest.raises(LLMError, match="none of the answers"):
        llm.reply("hi", answers=("yes", "no"))


def test_a_scripted_choice_is_the_likeliest() -> None:
    reply = ScriptedLLM(lambda _: "no").reply("hi", answers=("yes", "no"))

    assert (reply.text, reply.logprobs[1] > reply.logprobs[0]) == ("no", True)


def test_an_exception_that_is_no_llm_error_leaves_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        ScriptedLLM(lambda _: ZeroDivisionError())("hi")
