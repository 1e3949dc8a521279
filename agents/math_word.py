"""Word problems of grade-school arithmetic: the prompt, the worked examples it shows, and the code that reads the number.

    trace-opt run agents/math_word.py
    trace-opt run agents/math_word.py --set path=train.jsonl --set test=test.jsonl --set model=openai/gpt-4.1-nano
    trace-opt run agents/math_word.py --set path=train.jsonl --set rewrite=true --model openai/gpt-4.1

`model` answers; with `rewrite` the model named by `--model` rewrites prompt and code, else the prompts of this file and the
shown problems are searched. The first line needs no data, key or network: the problems are made here and the embedded model
answers. With 135 million parameters it gets few of them right.

The files are those of GSM8K (K. Cobbe et al., "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168),
https://github.com/openai/grade-school-math: a JSON object with `question` and `answer` a line, where an answer is a solution
that ends in `#### NUMBER`. They are no part of this project.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypedDict

from trace_opt import (
    Categorical,
    Demonstrations,
    Demos,
    Feedback,
    Module,
    OptoPrime,
    Parameter,
    connect,
    parameter_of,
    trace,
)
from trace_opt.errors import ProblemError
from trace_opt.llm.base import LLM, Message
from trace_opt.problem import Problem

PROMPTS = (
    "{question}",
    "{question}\nAnswer with a number.",
    "Solve the problem. End with the result.\n\n{question}",
    "{question}\n\nWork step by step, one calculation a line. Then write '####' and the result as a plain number.",
)

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|[-+]?\.\d+")
_MONEY = dict.fromkeys(map(ord, "$€£¥"))


class Example(TypedDict):
    """One problem: its text, a solution in words that ends in `#### NUMBER`, and the number."""

    question: str
    solution: str
    answer: str


@trace(trainable=True)
def extract(reply: str) -> str:
    """The number that a reply gives as its result, as it stands there; '' where there is none."""
    return reply.rsplit(maxsplit=1)[-1]


class Solver(Module):
    """A prompt with worked examples, and the model that answers it.

    Args:
        llm: The model.
        shown: How many worked examples may be shown at most.
        tokens: The longest reply.
    """

    def __init__(self, llm: LLM, shown: int, tokens: int) -> None:
        super().__init__()
        self.llm = llm
        self.tokens = tokens
        self.prompt = Parameter(
            PROMPTS[0],
            description="What the model is told; {question} stands for the problem.",
            placeholders=("question",),
            suggestions=PROMPTS[1:],
        )
        self.demonstrations = Parameter(
            Demonstrations(k=shown),
            description="Problems shown with their solutions, each of which ends in '#### NUMBER'.",
        )

    @trace
    def messages(self, question: str) -> list[Message]:
        """The conversation up to where the model answers."""
        prompt = self.prompt.value
        turns: list[Message] = []
        for shown in self.demonstrations.value:
            turns.append({"role": "user", "content": prompt.format(question=shown["question"])})
            turns.append({"role": "assistant", "content": shown["solution"]})
        return [*turns, {"role": "user", "content": prompt.format(question=question)}]

    @trace
    def ask(self, messages: list[Message]) -> str:
        """The model's reply."""
        return self.llm.reply(messages, max_tokens=self.tokens).text

    def __call__(self, question: str) -> str:
        """The workflow: problem in, number out."""
        return extract(self.ask(self.messages(question)))


def number(text: str) -> Fraction | None:
    """The one number in a text, exactly, whatever sign of money or unit stands by it; None where there is none or another.

    `$1,200.00`, `1200 dollars` and `1200` are equal; `3 of 4` is no number.
    """
    plain = text.replace("\N{MINUS SIGN}", "-").translate(_MONEY)
    found, rest = NUMBER.findall(plain), NUMBER.sub("", plain)
    if len(found) != 1 or any(letter.isdigit() for letter in rest):
        return None
    try:
        return Fraction(found[0].replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def guide(output: str, example: Example) -> Feedback:
    """Right or wrong, by the exact number, and whether there was one to compare."""
    wanted = example["answer"]
    if not output.strip():
        return Feedback(0.0, f"no number was extracted from the reply; expected {wanted}")
    got = number(output)
    if got is None:
        return Feedback(0.0, f"extracted {output!r:.200}, which is not one number; expected {wanted}")
    if got == number(wanted):
        return Feedback(1.0, f"{wanted} is right")
    return Feedback(0.0, f"extracted {output!r:.200}, expected {wanted}")


# -- examples ----------------------------------------------------------------------------------------------------------


def load(path: Path) -> list[Example]:
    """The problems of a file, as its publishers write it, without the marks of their calculator.

    Raises:
        ProblemError: there is no such file, or a line of it is no problem; the message names the line.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ProblemError(f"{str(path)!r} cannot be read ({error.strerror}); give the path of a GSM8K file") from None
    except UnicodeDecodeError:
        raise ProblemError(f"{str(path)!r} is no text in UTF-8; give the path of a GSM8K file") from None
    found = [_example(line, f"line {n} of {str(path)!r}") for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ProblemError(f"{str(path)!r} holds no problem; give the path of a GSM8K file")
    return found


@dataclass(frozen=True, slots=True)
class _Line:
    question: str
    answer: str


def _example(line: str, where: str) -> Example:
    from pydantic import TypeAdapter, ValidationError

    form = '{"question": "...", "answer": "... #### NUMBER"}'
    try:
        item = TypeAdapter(_Line).validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the line"
        raise ProblemError(f"{where} is no problem of GSM8K ({place}: {first['msg']}); expected {form}") from None
    solution, marks, answer = item.answer.rpartition("####")
    if not marks or number(answer) is None or not item.question.strip():
        raise ProblemError(f"{where} is {line!r:.120}; expected {form}")
    solution = re.sub(r"<<[^<>]*>>", "", solution).strip()
    return {
        "question": item.question.strip(),
        "solution": f"{solution}\n#### {answer.strip()}",
        "answer": answer.strip().replace(",", ""),
    }


_NAMES = ("Ana", "Ben", "Carla", "Dan", "Emma", "Femi", "Gita", "Hugo")
MOST = 2000  # each kind has thousands of different problems
_GOODS = ("pencils", "apples", "stamps", "eggs", "tickets", "shells")


def made(count: int, seed: int) -> list[Example]:
    """Problems of one to three steps, all different.

    Raises:
        ProblemError: so many cannot be made.
    """
    if count > MOST:
        raise ProblemError(f"examples is {count}; at most {MOST} are made")
    rng = random.Random(f"math_word/{seed}")  # noqa: S311 # examples that can be repeated
    found: dict[str, Example] = {}
    while len(found) < count:
        example = rng.choice((_added, _given_away, _bought, _shared))(rng)
        found.setdefault(example["question"], example)
    return list(found.values())


def _worked(question: str, steps: list[str], answer: int) -> Example:
    return {"question": question, "solution": "\n".join([*steps, f"#### {answer}"]), "answer": str(answer)}


def _added(rng: random.Random) -> Example:
    who, goods = rng.choice(_NAMES), rng.choice(_GOODS)
    had, found = rng.randint(2, 9), rng.randint(2, 9)
    question = f"{who} has {had} {goods} and finds {found} more. How many {goods} does {who} have now?"
    return _worked(question, [f"{who} has {had} + {found} = {had + found} {goods} now."], had + found)


def _given_away(rng: random.Random) -> Example:
    who, goods = rng.choice(_NAMES), rng.choice(_GOODS)
    had, gave = rng.randint(10, 20), rng.randint(2, 9)
    question = f"{who} has {had} {goods} and gives {gave} away. How many {goods} does {who} have left?"
    return _worked(question, [f"{who} has {had} - {gave} = {had - gave} {goods} left."], had - gave)


def _bought(rng: random.Random) -> Example:
    who, goods = rng.choice(_NAMES), rng.choice(_GOODS)
    count, price = rng.randint(2, 9), rng.randint(2, 9)
    paid = rng.choice((100, 200))
    cost = count * price
    question = (
        f"{who} buys {count} {goods} for ${price} each and pays with ${paid}. How many dollars does {who} get back?"
    )
    steps = [
        f"The {goods} cost {count} * {price} = {cost} dollars.",
        f"{who} gets {paid} - {cost} = {paid - cost} dollars back.",
    ]
    return _worked(question, steps, paid - cost)


def _shared(rng: random.Random) -> Example:
    who, other = rng.sample(_NAMES, 2)
    goods, boxes, each, people = rng.choice(_GOODS), rng.randint(2, 6), rng.randint(2, 6), rng.randint(2, 4)
    extra = rng.randint(1, 9) * people - boxes * each % people
    total = boxes * each + extra
    question = (
        f"{who} has {boxes} boxes with {each} {goods} each. {other} brings {extra} more. They share all {goods} equally "
        f"among {people} people. How many {goods} does each get?"
    )
    steps = [
        f"The boxes hold {boxes} * {each} = {boxes * each} {goods}.",
        f"Together there are {boxes * each} + {extra} = {total} {goods}.",
        f"Each gets {total} / {people} = {total // people} {goods}.",
    ]
    return _worked(question, steps, total // people)


def problem(
    *, path: Path | None = None, test: Path | None = None, examples: int | None = None, model: str = "embedded/smollm2",
    rewrite: bool = False, shown: int = 3, tokens: int | None = None, seed: int = 0,
) -> Problem:  # fmt: skip
    """Solve word problems.

    Args:
        path: A GSM8K file to learn and choose from; without it problems are made.
        test: A GSM8K file to judge by at the end; by default a part of the other.
        examples: How many of each file are used, drawn by the seed; all by default, or 150 made ones.
        model: The model that answers.
        rewrite: Whether a language model rewrites prompt and extraction code (it needs --model or a key); else the prompts
            are searched among those given, and the code stays.
        shown: How many problems a prompt may show with their solutions.
        tokens: The longest reply; 512 by default, 96 for the embedded model.
        seed: Which problems are drawn, how they are split, and all chance of the search.
    """
    if examples is not None and examples < 1:
        raise ProblemError(f"examples is {examples!r}; give at least 1")
    if path is None and test is not None:
        raise ProblemError("test names a file to judge by and path none to learn from; give both, or path alone")
    found = made(examples or 150, seed) if path is None else _drawn(load(path), examples, seed)
    if tokens is None:
        tokens = 96 if model.startswith("embedded/") else 512
    solver = Solver(connect(model), shown, tokens)
    searched = [solver.prompt, solver.demonstrations]
    return Problem(
        workflow=solver,
        train=found,
        test=None if test is None else _drawn(load(test), examples, seed),
        guide=guide,
        parameters=[*searched, parameter_of(extract)] if rewrite else searched,
        optimizers=[OptoPrime(), Demos()] if rewrite else [Categorical(sources=[Demos()])],
        seed=seed,
        score_range=(0.0, 1.0),
        description="word problems of grade-school arithmetic",
    )


def _drawn(found: list[Example], count: int | None, seed: int) -> list[Example]:
    return random.Random(seed).sample(found, min(len(found), count or len(found)))  # noqa: S311 # can be repeated
