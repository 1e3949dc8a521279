"""The model in this process: bit for bit the same, scored answers, and errors instead of hangs."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trace_opt.errors import LLMError
from trace_opt.llm.base import LLM, normalised
from trace_opt.llm.connect import connect
from trace_opt.llm.embedded import Embedded, _Call
from trace_opt.llm.meter import charging, metering
from trace_opt.llm.models import path_of
from trace_opt.llm.runtime import runtime_of
from trace_opt.llm.stack import Connected

if TYPE_CHECKING:
    from tests.llm.conftest import Purse

TOPICS = ("business", "entertainment", "politics", "sports", "tech")
HEADLINE = "Classify the headline.\nHeadline: Rovers win the cup final"


def test_the_same_request_gives_the_same_bits_whatever_was_asked_before(smollm2: LLM) -> None:
    prompts = [f"{HEADLINE}{' and more' * n}" for n in range(7)]
    asked = [smollm2.request(prompt, answers=TOPICS, prefill="Topic:") for prompt in prompts]
    apart: list[tuple[float, ...]] = []
    for request in asked:
        smollm2.reply("Else", raw=True, max_tokens=1)  # so that nothing of the prompt is kept
        apart.append(smollm2.send(request).logprobs)

    in_a_row = [smollm2.send(request).logprobs for request in asked]
    twice = [smollm2.send(request).logprobs for request in reversed(asked) for _ in range(2)]

    assert in_a_row == apart
    assert twice[::2] == twice[1::2] == apart[::-1]


def test_a_conversation_goes_on_with_the_same_bits_as_when_it_is_read_anew(smollm2: LLM) -> None:
    said = smollm2("Name an animal.", max_tokens=12)
    conversation = [
        {"role": "user", "content": "Name an animal."}, {"role": "assistant", "content": said},
        {"role": "user", "content": "Another."},
    ]  # fmt: skip

    going_on = smollm2.reply(conversation, answers=("cat", "dog")).logprobs
    smollm2.reply("Else", raw=True, max_tokens=1)

    assert smollm2.reply(conversation, answers=("cat", "dog")).logprobs == going_on


@pytest.mark.parametrize("tokens", [257, 258])
def test_a_prompt_of_several_pieces_gives_the_same_bits_in_part_and_whole(smollm2: LLM, tokens: int) -> None:
    text = " cat" * (tokens - 20) + " dog" * 20
    smollm2.reply("Else", raw=True, max_tokens=1)

    cold = smollm2.reply(text, raw=True, answers=("a", "b"))
    smollm2.reply(text[:-40], raw=True, max_tokens=2)
    warm = smollm2.reply(text, raw=True, answers=("a", "b"))

    assert cold.cost.tokens_in == tokens
    assert cold.logprobs == warm.logprobs


def test_a_seed_decides_what_is_sampled(smollm2: LLM) -> None:
    texts = [smollm2("Name an animal.", temperature=1.0, seed=seed, max_tokens=8) for seed in (1, 1, 2)]

    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_answers_are_scored_and_the_likeliest_is_the_text(smollm2: LLM) -> None:
    reply = smollm2.reply(HEADLINE, answers=TOPICS, prefill="Topic:")

    assert reply.text == "sports" == TOPICS[reply.logprobs.index(max(reply.logprobs))]
    assert sum(map(math.exp, reply.logprobs)) == pytest.approx(1.0)
    assert (reply.cost.calls, reply.cost.tokens_out, reply.cost.usd) == (1, 1, 0.0)


@pytest.mark.parametrize("prefill", ["", "Topic:"])
def test_one_call_for_all_answers_agrees_with_token_by_token(smollm2: LLM, prefill: str) -> None:
    assert isinstance(smollm2, Connected)
    assert isinstance(smollm2.backend, Embedded)
    runtime = runtime_of(smollm2.backend._path, smollm2.name)
    lead = " " if prefill else ""
    words = ("business", "politics", "sports")
    in_one = smollm2.reply(HEADLINE, answers=words, prefill=prefill).logprobs

    def by_token() -> tuple[float, ...]:
        call = _Call(runtime, smollm2.name, smollm2.request(HEADLINE), threading.Event())
        prompt = runtime.rendered([{"role": "user", "content": HEADLINE}]) + prefill
        firsts = [runtime.tokens(lead + word)[0] for word in words]
        return normalised([call._score_token(runtime.tokens_of_prompt(prompt), token) for token in firsts])

    assert in_one == pytest.approx(runtime.submit(by_token).result(), abs=1e-4)


def test_answers_that_start_alike_are_scored_whole(smollm2: LLM) -> None:
    reply = smollm2.reply(HEADLINE, answers=("sports", "sports news of the week", "tech"), prefill="Topic:")

    assert reply.text == "sports"
    assert reply.logprobs[0] > reply.logprobs[1]


def test_an_answer_goes_on_from_its_start(smollm2: LLM) -> None:
    reply = smollm2.reply("Count to five.", prefill="1, 2, 3,", max_tokens=4)

    assert reply.text.startswith(" 4")


def test_raw_text_is_continued_without_a_template(smollm2: LLM) -> None:
    raw = smollm2.reply("The capital of France is", raw=True, max_tokens=1)

    assert raw.cost.tokens_in == 5
    assert raw.text == " Paris"


def test_many_prompts_come_back_in_order(smollm2: LLM) -> None:
    prompts = [f"Say the number {i}." for i in range(4)]

    together = [reply.text for reply in smollm2.replies(prompts, max_tokens=4)]

    assert together == [smollm2(prompt, max_tokens=4) for prompt in prompts]


def test_a_schema_shapes_the_answer(smollm2: LLM) -> None:
    import json

    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 4}}, "required": ["n"], "additionalProperties": False}  # fmt: skip

    answer = json.loads(smollm2("Give a number as JSON.", schema=schema, max_tokens=40))

    assert answer["n"] in (3, 4)


def test_a_stop_text_ends_the_answer(smollm2: LLM) -> None:
    reply = smollm2.reply("Count to nine.", prefill="1, 2,", stop=("4",), max_tokens=20)

    assert "4" not in reply.text
    assert reply.finish == "stop"


def test_a_cut_answer_says_so(smollm2: LLM) -> None:
    assert smollm2.reply("Tell a story.", max_tokens=3).finish == "length"


def test_a_prompt_beyond_the_context_is_too_long(smollm2: LLM) -> None:
    with pytest.raises(LLMError, match="context of 4096 tokens") as caught:
        smollm2("word " * 5000)

    assert caught.value.kind == "too_long"
    assert smollm2("hi", max_tokens=1)


@pytest.mark.parametrize("text", ["\ud800 lone", "nul \x00 in it", "", "😀 é"])
def test_any_text_is_read(smollm2: LLM, text: str) -> None:
    assert smollm2.reply(text, max_tokens=1).cost.calls == 1


def test_messages_that_the_template_refuses_are_one_error(smollm2: LLM) -> None:
    twice = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]

    with pytest.raises(LLMError, match="cannot take these messages") as caught:
        smollm2.reply(twice)

    assert caught.value.kind == "request"


def test_it_costs_no_money_and_stays_within_what_was_reserved(smollm2: LLM, purse: type[Purse]) -> None:
    request = smollm2.request(HEADLINE, answers=TOPICS, prefill="Topic:")
    worst, ledger = smollm2.price(request), purse(usd=0.0)

    with charging(ledger), metering() as meter:
        smollm2.send(request)

    assert smollm2.local
    assert meter.cost == ledger.spent
    assert ledger.spent.usd == 0.0
    assert ledger.spent.tokens <= worst.tokens


def test_a_deadline_ends_a_generation_and_the_next_call_is_fine(smollm2: LLM) -> None:
    smollm2("load the model", max_tokens=1)
    hasty = connect("embedded/smollm2", cache=None, timeout_s=0.3)
    start = time.monotonic()

    with pytest.raises(LLMError, match=r"within 0\.3 s") as caught:
        hasty("Tell a long story.", max_tokens=3000)

    assert time.monotonic() - start < 10
    assert caught.value.kind == "timeout"
    assert smollm2("hi", max_tokens=1)
    assert time.monotonic() - start < 15  # the story would take half a minute and more


def test_a_cancelled_generation_stops(smollm2: LLM) -> None:
    async def main() -> None:
        task = asyncio.create_task(smollm2.areply("Tell a long story.", max_tokens=3000))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    start = time.monotonic()
    asyncio.run(main())

    assert smollm2("hi", max_tokens=1)
    assert time.monotonic() - start < 15


SCRIPT = """
import os, signal, threading, time
from trace_opt.llm.connect import connect
llm = connect("embedded/smollm2", cache=None)
llm("hi", max_tokens=1)
start = time.monotonic()
try:
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    llm("Tell a long story.", max_tokens=3000)
except KeyboardInterrupt:
    print("interrupted" if time.monotonic() - start < 15 else "too late")
"""


def test_ctrl_c_ends_a_generation_and_the_process(smollm2: LLM) -> None:
    start = time.monotonic()

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path.cwd(),
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
    assert time.monotonic() - start < 40


def test_a_file_that_is_no_model_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF, but not really")

    with pytest.raises(LLMError, match="cannot be loaded from") as caught:
        connect(f"embedded/{path}", cache=None)("hi")

    assert caught.value.kind == "model"


def test_a_model_that_was_not_pulled_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACE_OPT_HOME", str(tmp_path))

    with pytest.raises(LLMError, match="trace-opt models pull smollm2"):
        connect("embedded/smollm2", cache=None)("hi")


def test_the_weights_serve_by_path_as_well(smollm2: LLM) -> None:
    by_path = connect(f"embedded/{path_of('smollm2')}", cache=None)

    assert by_path("Say hi.", max_tokens=3) == smollm2("Say hi.", max_tokens=3)
