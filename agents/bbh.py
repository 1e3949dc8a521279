"""A task of BIG-Bench Hard: the prompt template and the code that takes the answer out of a reply, tuned together.

What a model says and what a program can read off it depend on each other: "think step by step" helps only if the answer is
found at the end of the thoughts. So the template, whose placeholder cannot be lost, and `extract`, whose rewrites run in a
sandbox, go to one optimizer.

    trace-opt run agents/bbh.py
    trace-opt run agents/bbh.py --set path=bbh --set task=date_understanding --set model=openai/gpt-4.1-nano
    trace-opt run agents/bbh.py --set path=FILE --set model=openai/gpt-4.1-nano --set rewrite=true --model openai/gpt-4.1

`model` answers; with `rewrite` the model named by `--model` rewrites template and code, else the templates of this file and
the shown examples are searched. The first line needs no data, key or network: the examples are made here and the embedded
model answers. With 135 million parameters it gets few of them right.

The tasks are files `NAME.json` of M. Suzgun et al., "Challenging BIG-Bench Tasks and Whether Chain-of-Thought Can Solve
Them" (arXiv 2210.09261), https://github.com/suzgunmirac/BIG-Bench-Hard; they are no part of this project.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
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
from trace_opt.errors import ProblemError, meant
from trace_opt.llm.base import LLM, Message
from trace_opt.problem import Problem

TEMPLATES = (
    "{question}",
    "{question}\nGive the answer alone, without a sentence around it.",
    "Q: {question}\nA:",
    "Answer the question with one option, word or number.\n\n{question}",
    "{question}\n\nThink step by step. Then write the answer, and nothing else, on the last line.",
)


class Example(TypedDict):
    """One question."""

    question: str
    answer: str


@trace(trainable=True)
def extract(reply: str) -> str:
    """The answer that a reply gives: an option as '(B)', or the word, number or list asked for; '' where there is none."""
    lines = reply.strip().splitlines()
    return lines[-1].strip() if lines else ""


class Solver(Module):
    """A prompt template with examples, and the model that answers it.

    Args:
        llm: The model.
        shown: How many examples may be shown with their answers at most.
        tokens: The longest reply.
    """

    def __init__(self, llm: LLM, shown: int, tokens: int) -> None:
        super().__init__()
        self.llm = llm
        self.tokens = tokens
        self.template = Parameter(
            TEMPLATES[0],
            description="What the model is told; {question} stands for the question with its options.",
            placeholders=("question",),
            suggestions=TEMPLATES[1:],
        )
        self.demonstrations = Parameter(
            Demonstrations(k=shown), description="Questions shown with their answers before the one to answer."
        )

    @trace
    def prompt(self, question: str) -> list[Message]:
        """The conversation up to where the model answers."""
        template = self.template.value
        turns: list[Message] = []
        for shown in self.demonstrations.value:
            turns.append({"role": "user", "content": template.format(question=shown["question"])})
            turns.append({"role": "assistant", "content": shown["answer"]})
        return [*turns, {"role": "user", "content": template.format(question=question)}]

    @trace
    def ask(self, messages: list[Message]) -> str:
        """The model's reply."""
        return self.llm.reply(messages, max_tokens=self.tokens).text

    def __call__(self, question: str) -> str:
        """The workflow: question in, answer out."""
        return extract(self.ask(self.prompt(question)))


def guide(output: str, example: Example) -> Feedback:
    """Right or wrong, and whether the reading or the answer was at fault."""
    got, wanted = " ".join(output.split()), " ".join(example["answer"].split())
    if got.casefold() == wanted.casefold():
        return Feedback(1.0, f"{wanted!r} is right")
    if not got:
        return Feedback(0.0, f"no answer was extracted from the reply; expected {wanted!r}")
    if wanted.strip("()").casefold() == got.strip("()").casefold():
        return Feedback(0.0, f"extracted {got!r}, expected it as {wanted!r}: right, but not in the form asked for")
    if f" {wanted} ".casefold() in f" {got.strip('.')} ".casefold():
        return Feedback(0.0, f"extracted {got!r:.200}, which holds more than the answer; expected {wanted!r} alone")
    return Feedback(0.0, f"extracted {got!r:.200}, expected {wanted!r}")


# -- examples ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Item:
    input: str
    target: str


@dataclass(frozen=True, slots=True)
class _Task:
    examples: list[_Item]


def load(path: Path, task: str | None) -> list[Example]:
    """The examples of a task's file, as its publishers write it.

    Args:
        path: The file, or the folder with the files of all tasks.
        task: Which of them; may be left out where the path is a file.

    Raises:
        ProblemError: there is no such file or task, or it holds something else.
    """
    from pydantic import TypeAdapter, ValidationError

    if path.is_dir():
        names = sorted(file.stem for file in path.glob("*.json"))
        listed = f"known: {', '.join(names)}" if names else "it holds no task, that is no file NAME.json"
        if task is None:
            raise ProblemError(f"{str(path)!r} is a folder; name a task with --set task=NAME; {listed}")
        if task not in names:
            raise ProblemError(f"{str(path)!r} has no task {task!r}; {meant(task, names, listed)}")
        path = path / f"{task}.json"
    elif task not in (None, path.stem):
        raise ProblemError(f"{str(path)!r} is one file and holds no task {task!r}; leave task out, or give the folder")
    try:
        items = TypeAdapter(_Task).validate_json(path.read_bytes()).examples
    except OSError as error:
        raise ProblemError(f"{str(path)!r} cannot be read ({error.strerror}); give the path of a task's file") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ProblemError(
            f"{str(path)!r} is no BIG-Bench-Hard task ({where}: {first['msg']}); expected "
            '{"examples": [{"input": "...", "target": "..."}, ...]}'
        ) from None
    found: list[Example] = [{"question": item.input.strip(), "answer": item.target.strip()} for item in items]
    blank = next((i for i, example in enumerate(found) if not example["question"] or not example["answer"]), None)
    if blank is not None:
        raise ProblemError(
            f"example {blank} of {str(path)!r} has a blank input or target; mend the file or leave it out"
        )
    if not found:
        raise ProblemError(f"{str(path)!r} holds no example; give the file of a BIG-Bench-Hard task")
    return found


def boolean_expressions(rng: random.Random) -> Example:
    """What an expression of `and`, `or` and `not` comes to."""
    terms: list[str] = []
    value, group = False, True
    for i in range(rng.randint(3, 5)):
        plain, negated = rng.random() < 0.5, rng.random() < 0.4
        if i:
            word = rng.choice(("and", "or"))
            terms.append(word)
            if word == "or":
                value, group = value or group, True
        terms.append(f"not {plain}" if negated else str(plain))
        group = group and plain != negated
    return {"question": f"{' '.join(terms)} is", "answer": str(value or group)}


_THINGS = {
    "fruits": ("apple", "banana", "plum", "peach", "grape", "fig"),
    "animals": ("cat", "dog", "goat", "rabbit", "snail", "duck"),
    "tools": ("hammer", "saw", "drill", "file", "spade", "chisel"),
}
_NUMBERS = ("", "one", "two", "three", "four")


def object_counting(rng: random.Random) -> Example:
    """How many things of one sort there are among others."""
    asked, other = rng.sample(list(_THINGS), 2)
    counts = {thing: rng.randint(1, 4) for thing in rng.sample(_THINGS[asked], rng.randint(2, 4))}
    others = {thing: rng.randint(1, 4) for thing in rng.sample(_THINGS[other], rng.randint(1, 2))}
    have = [f"{_NUMBERS[n]} {thing}{'s' * (n > 1)}" for thing, n in (counts | others).items()]
    rng.shuffle(have)
    question = f"I have {', '.join(have[:-1])}, and {have[-1]}. How many {asked} do I have?"
    return {"question": question, "answer": str(sum(counts.values()))}


def largest_number(rng: random.Random) -> Example:
    """Which of several options is the largest number."""
    options = rng.sample(range(1, 100), 4)
    listed = "\n".join(f"({letter}) {number}" for letter, number in zip("ABCD", options, strict=True))
    answer = f"({'ABCD'[options.index(max(options))]})"
    return {"question": f"Which of these numbers is the largest?\nOptions:\n{listed}", "answer": answer}


MADE: dict[str, Callable[[random.Random], Example]] = {
    "boolean_expressions": boolean_expressions,
    "object_counting": object_counting,
    "largest_number": largest_number,
}
MOST = 2000  # each of them has thousands of different questions


def made(task: str, count: int, seed: int) -> list[Example]:
    """Examples in the manner of BIG-Bench Hard, all different.

    Raises:
        ProblemError: none of that task can be made, or not so many.
    """
    if task not in MADE:
        hint = meant(task, MADE, f"made here are {', '.join(MADE)}")
        raise ProblemError(f"task {task!r} needs its file; give --set path=FOLDER; {hint}")
    if count > MOST:
        raise ProblemError(f"examples is {count}; at most {MOST} are made")
    rng = random.Random(f"{task}/{seed}")  # noqa: S311 # examples that can be repeated
    found: dict[str, Example] = {}
    while len(found) < count:
        example = MADE[task](rng)
        found.setdefault(example["question"], example)
    return list(found.values())


def problem(
    *, path: Path | None = None, task: str | None = None, examples: int | None = None, model: str = "embedded/smollm2",
    rewrite: bool = False, shown: int = 4, tokens: int | None = None, seed: int = 0,
) -> Problem:  # fmt: skip
    """Answer the questions of a BIG-Bench-Hard task.

    Args:
        path: The task's file, or the folder of all tasks; without it examples are made.
        task: The name of the task: needed for a folder; of those that can be made, boolean_expressions by default.
        examples: How many are used, drawn by the seed; all of a file's by default, or 150 made ones.
        model: The model that answers.
        rewrite: Whether a language model rewrites template and extraction code (it needs --model or a key); else the
            templates are searched among those given, and the code stays.
        shown: How many questions a prompt may show with their answers.
        tokens: The longest reply; 512 by default, 24 for the embedded model, which cannot reason.
        seed: Which examples are drawn, how they are split, and all chance of the search.
    """
    if examples is not None and examples < 1:
        raise ProblemError(f"examples is {examples!r}; give at least 1")
    if path is None:
        task = task or "boolean_expressions"
        found = made(task, examples or 150, seed)
    else:
        found = load(path, task)
        random.Random(seed).shuffle(found)  # noqa: S311 # a choice that can be repeated
        found = found[:examples]
    if tokens is None:
        tokens = 24 if model.startswith("embedded/") else 512
    solver = Solver(connect(model), shown, tokens)
    searched = [solver.template, solver.demonstrations]
    return Problem(
        workflow=solver,
        train=found,
        guide=guide,
        parameters=[*searched, parameter_of(extract)] if rewrite else searched,
        optimizers=[OptoPrime(), Demos()] if rewrite else [Categorical(sources=[Demos()])],
        seed=seed,
        score_range=(0.0, 1.0),
        description=f"BIG-Bench Hard, {task or path.stem if path else task}",
    )
