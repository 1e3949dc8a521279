"""Workflows of the top level of a file, as they are sent to workers."""

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trace_opt.core.context import rollout
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import trace
from trace_opt.llm.base import LLM
from trace_opt.llm.connect import connect
from trace_opt.llm.meter import charge
from trace_opt.testing import ScriptedLLM

prompt = Parameter("Say it: ", name="prompt")
offset = Parameter(0, name="offset")


def _answer(messages: Any) -> str:
    text = str(messages[-1]["content"])
    return text.removeprefix("Shout it: ").upper() if text.startswith("Shout it: ") else text.removeprefix("Say it: ")


llm = ScriptedLLM(_answer)


def examples(n: int) -> list[dict[str, str]]:
    return [{"word": f"word {i}"} for i in range(n)]


# -- text --------------------------------------------------------------------------------------------------------------


@trace
def ask(text: str) -> str:
    """What the model says."""
    return llm(prompt.value + text)


def shouting(word: str) -> str:
    return ask(word)


def loud(output: str, example: Mapping[str, str]) -> Feedback:
    wanted = example["word"].upper()
    return Feedback(float(output == wanted), f"wanted {wanted}")


async def ashouting(word: str) -> str:
    return await aask(word)


@trace
async def aask(text: str) -> str:
    """What the model says."""
    return (await llm.areply(prompt.value + text)).text


# -- plain code --------------------------------------------------------------------------------------------------------


@trace
def shifted(x: int, noise: float) -> float:
    """The number, moved."""
    return x + offset.value + noise


def shifting(x: int) -> float:
    return shifted(x, rollout().rng.random() / 10)


def near_three(output: float, example: Mapping[str, int]) -> Feedback:
    return Feedback(-abs(output - example["x"] - 3), f"{output:.3f}")


def numbers(n: int) -> list[dict[str, int]]:
    return [{"x": x} for x in range(n)]


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def _once(name: str) -> bool:
    """Whether this is the first time, over all processes."""
    try:
        (Path(os.environ["SENT_FOLDER"]) / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def dying(word: str) -> str:
    """As `shouting`; the first worker to meet two of the examples dies, one before its call and one after."""
    if word == "word 2" and _once("before"):
        os.kill(os.getpid(), signal.SIGKILL)
    said = ask(word)
    if word == "word 5" and _once("after"):
        os.kill(os.getpid(), signal.SIGKILL)
    return said


def deadly(word: str) -> str:
    if word == "word 1":
        os.kill(os.getpid(), signal.SIGKILL)
    return ask(word)


def failing(word: str) -> str:
    if word == "word 1":
        raise ValueError("no such word")
    return ask(word)


def angry(output: str, example: Mapping[str, str]) -> float:
    raise ZeroDivisionError(f"a mistake of the guide on {example['word']}")


def charging(word: str) -> str:
    charge(tokens_in=3, tokens_out=1, usd=0.5, calls=2)
    return prompt.value + word


@trace
def odd_op(text: str) -> Any:
    """Something that no pickle holds."""
    return threading.Lock()


def odd(word: str) -> str:
    odd_op(word)
    return prompt.value + word


def sleeping(word: str) -> str:
    (Path(os.environ["SENT_FOLDER"]) / f"pid {os.getpid()}").touch()
    time.sleep(60)
    return prompt.value + word


def late(word: str) -> str:
    """Takes a minute on the first worker that meets one of the examples."""
    time.sleep(60 if word == "word 7" and _once("late") else 0.02)
    return prompt.value + word


# -- remote models -----------------------------------------------------------------------------------------------------


def server(**options: Any) -> LLM:
    """The model of a test's server; its address and key are known once the test runs."""
    return connect(
        "openai/test", base_url=os.environ["SENT_SERVER"], api_key=os.environ["SENT_API_KEY"], cache=None,
        price=(0.001, 0.001), concurrency=2, **options,
    )  # fmt: skip


@trace
def ask_remote(text: str) -> str:
    """What the server says."""
    return server()(prompt.value + text)


def remotely(word: str) -> str:
    return ask_remote(word)


def remotely_dying(word: str) -> str:
    said = ask_remote(word)
    if _once(word):
        os.kill(os.getpid(), signal.SIGKILL)
    return said


@trace
def ask_twice(text: str) -> list[str]:
    """Two draws."""
    model = server(temperature=1.0)
    return [model(prompt.value + text), model(prompt.value + text)]


def drawing(word: str) -> str:
    return " ".join(ask_twice(word))


def keys_seen(word: str) -> str:
    found = [os.environ.get(name, "") for name in ("SENT_API_KEY", "OPENAI_API_KEY")]
    return prompt.value + " ".join(found)


def never(output: str, example: Any) -> Feedback:
    """Whatever: the output is the feedback."""
    return Feedback(0.5, output)


# -- pure ops ----------------------------------------------------------------------------------------------------------


@trace(memo=True)
def ask_once(text: str) -> str:
    """What the model says."""
    return llm(prompt.value + text)


def remembering_ask(word: str) -> str:
    return ask_once(word)


# -- too long ----------------------------------------------------------------------------------------------------------


def dawdling(word: str) -> str:
    """Sleeps on one of the examples; asks the model first."""
    said = ask(word)
    if word == "word 3":
        time.sleep(60)
    return said


async def adawdling(word: str) -> str:
    said = await aask(word)
    if word == "word 3":
        await asyncio.sleep(60)
    return said


def holding(word: str) -> str:
    """Holds the interpreter's lock on one of the examples, so that no other thread of its process runs."""
    if word == "word 3":
        re.match(r"(a+)+$", "a" * 60 + "b")
    return prompt.value + word
