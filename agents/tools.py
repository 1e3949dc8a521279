"""An agent with two tools, search and a calculator, whose instructions and tool descriptions are tuned.

Questions about made-up lighthouses take one look into the corpus or several, and often a sum: how old was the builder when
it was lit? In each of a few steps the model calls a tool, as JSON, or answers. It is told what to do in one text and what
each tool is for in another; these texts are the parameters. The guide says which turn was the wrong one: a fact never
looked up, a sum done in the head, an argument that a tool cannot take, no answer at all.

    trace-opt run agents/tools.py --set model=openai/gpt-4.1-nano
    trace-opt run agents/tools.py --set model=openai/gpt-4.1-nano --set rewrite=true --model openai/gpt-4.1

The embedded model, the default, is too small for the task; it shows that everything runs. The facts are in this file and
in no other place, so no model knows them by heart.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, cast

from trace_opt import Categorical, Feedback, Module, OptoPrime, Parameter, connect, trace
from trace_opt.errors import ProblemError
from trace_opt.llm.base import LLM, Message
from trace_opt.problem import Problem

SEARCH, CALCULATOR, ANSWER = "search", "calculator", "answer"
TOOLS = (SEARCH, CALCULATOR, ANSWER)
NONE = "none"
"""The tool of a reply that calls none."""

SYSTEMS = (
    "Use the tools to answer the question.\n{tools}",
    "Use these tools, one call at a time:\n{tools}\nYou know none of the facts yourself: look up each one.",
    "Look up one thing at a time, then decide on the next call. Tools:\n{tools}\nAnswer with the word or number alone.",
)
DESCRIPTIONS = {
    SEARCH: ("Searches.", "Gives the best article. Input: the name of one lighthouse, island or person, nothing else."),
    CALCULATOR: (
        "Calculates.",
        "Works out a sum. Input: numbers with + - * / and parentheses, as 1871 - 1840; no words.",
    ),
    ANSWER: ("Answers.", "Ends the work. Input: the answer alone, one word or number without a sentence around it."),
}
LONGEST_REPLY, LONGEST_INPUT = 4000, 200


class Question(TypedDict):
    """One example: what is asked, what is right, which articles tell it, and whether it takes a sum."""

    question: str
    answer: str
    articles: list[str]
    sum: bool


class Call(TypedDict):
    """One call of a tool and what came of it."""

    tool: str
    input: str
    result: str


class Work(TypedDict):
    """What the workflow gives: the answer, None where there is none, and the calls that led there."""

    answer: str | None
    calls: list[Call]


# -- the corpus --------------------------------------------------------------------------------------------------------

ISLANDS = {
    "Tarn": (31, 1240), "Oskar Skerry": (4, 86), "Vell": (118, 5310), "Great Mew": (57, 2075), "Hollin": (22, 640),
    "Brandsey": (9, 175),
}  # fmt: skip
"""Square kilometres and inhabitants."""

PEOPLE = {
    "Ada Krell": (1840, "Vesk"), "Tomas Undset": (1812, "Port Leary"), "Mina Halloran": (1851, "Dunmere"),
    "Jonas Vik": (1829, "Vesk"), "Clara Osei": (1867, "Sandport"), "Piers Aldane": (1798, "Dunmere"),
    "Ruth Marek": (1874, "Port Leary"), "Emil Strand": (1835, "Sandport"),
}  # fmt: skip
"""Year and place of birth."""

LIGHTHOUSES = {
    "Marrow Point": ("Tarn", 43, 1871, "Ada Krell"), "Cold Stack": ("Vell", 61, 1849, "Tomas Undset"),
    "Gannet Head": ("Great Mew", 38, 1888, "Mina Halloran"), "The Widow": ("Oskar Skerry", 52, 1862, "Jonas Vik"),
    "Sallow Ness": ("Hollin", 27, 1903, "Clara Osei"), "Old Lantern": ("Brandsey", 19, 1836, "Piers Aldane"),
    "Northlight": ("Vell", 70, 1911, "Ruth Marek"), "Kettle Rock": ("Great Mew", 46, 1874, "Emil Strand"),
    "Fennel Bar": ("Tarn", 33, 1880, "Jonas Vik"), "Grey Maiden": ("Hollin", 55, 1893, "Mina Halloran"),
    "Skua Tower": ("Brandsey", 24, 1866, "Ada Krell"), "Long Reach": ("Vell", 49, 1859, "Emil Strand"),
}  # fmt: skip
"""Island, height in metres, year, builder."""

ARTICLES: dict[str, str] = {
    **{
        name: f"{name} is a lighthouse on the island of {island}. It is {height} metres high and was built in {year} by {who}."
        for name, (island, height, year, who) in LIGHTHOUSES.items()
    },
    **{
        name: f"{name} is an island with an area of {area} square kilometres and {people} inhabitants."
        for name, (area, people) in ISLANDS.items()
    },
    **{
        name: f"{name} was born in {year} in {place} and became a builder of harbours and towers."
        for name, (year, place) in PEOPLE.items()
    },
}


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"\w+", text.casefold())


_COUNTS = {title: Counter(words_of(f"{title} {title} {text}")) for title, text in ARTICLES.items()}
_HELD_BY = Counter(word for counts in _COUNTS.values() for word in counts)


def search(query: str) -> str:
    """The article that fits a query best, or "nothing found".

    Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009, equation 3.15, with
    k = 1.2 and without the normalisation by length, for articles are equally long.
    """
    worths: dict[str, float] = {}
    for title, counts in _COUNTS.items():
        for word in sorted(counts.keys() & words_of(query[:LONGEST_INPUT])):
            rare = math.log(1 + (len(ARTICLES) - _HELD_BY[word] + 0.5) / (_HELD_BY[word] + 0.5))
            worths[title] = worths.get(title, 0.0) + rare * counts[word] * 2.2 / (counts[word] + 1.2)
    return ARTICLES[max(worths, key=worths.__getitem__)] if worths else "nothing found"


_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def calculate(expression: str) -> str:
    """The value of a sum of plain numbers, or what is wrong with it."""
    try:
        if not re.fullmatch(r"[0-9\s.()+*/-]{1,200}", expression):
            raise ValueError("it holds something other than numbers")
        value = float(_value(ast.parse(expression.strip(), mode="eval").body, 0))
        if not math.isfinite(value):
            raise ValueError("it grows without end")
    except (ValueError, SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        why = "it is no sum" if isinstance(error, SyntaxError) else error
        return f"error: {expression[:60]!r} cannot be calculated ({why}); give numbers with + - * / and parentheses"
    return f"{value:.12g}"


def _value(node: ast.expr, depth: int) -> Any:
    if depth > 30:
        raise ValueError("it is nested too deeply")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(cast("float", node.value))  # so that no number grows without end
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, depth + 1)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, depth + 1), _value(node.right, depth + 1))
    raise ValueError("it holds something other than numbers")


# -- the agent ---------------------------------------------------------------------------------------------------------

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"tool": {"type": "string", "enum": list(TOOLS)}, "input": {"type": "string", "maxLength": 60}},
    "required": ["tool", "input"],
    "additionalProperties": False,
}


class Agent(Module):
    """Asks a model for one call after another until it answers, or makes a call again.

    Args:
        llm: The model.
        steps: How many calls it may make, the answer included.
        rewrite: Whether the texts may be any; among those given otherwise.
    """

    def __init__(self, llm: LLM, *, steps: int = 6, rewrite: bool = False) -> None:
        super().__init__()
        self.llm = llm
        self.steps = steps
        self.system = Parameter(
            SYSTEMS[0], description="What the model is told; {tools} stands for the tools with their descriptions.",
            placeholders=("tools",), suggestions=None if rewrite else SYSTEMS[1:],
        )  # fmt: skip
        self.tools = {
            tool: Parameter(
                texts[0], description=f"What the model is told that the tool {tool!r} does and takes.",
                suggestions=None if rewrite else texts[1:],
            )
            for tool, texts in DESCRIPTIONS.items()
        }  # fmt: skip

    @trace
    def ask(self, question: str, steps: Sequence[tuple[str, str]]) -> str:
        """The model's next reply, given its earlier ones with what came of them."""
        told = "\n".join(f"- {tool}: {parameter.value}" for tool, parameter in self.tools.items())
        messages: list[Message] = [
            {"role": "system", "content": self.system.value.format(tools=told)}, {"role": "user", "content": question},
        ]  # fmt: skip
        for reply, result in steps:
            messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": result}]
        return self.llm.reply(messages, schema=SCHEMA, max_tokens=80).text

    @trace
    def use(self, reply: str) -> Call:
        """The call in a reply, made; what is none gets told what a call looks like."""
        tool, given = call_in(reply)
        if tool == NONE:
            return {
                "tool": tool,
                "input": given,
                "result": f'error: reply {{"tool": one of {TOOLS}, "input": "..."}} alone',
            }
        result = search(given) if tool == SEARCH else calculate(given) if tool == CALCULATOR else ""
        return {"tool": tool, "input": given, "result": result}

    @trace
    def finish(self, calls: list[Call]) -> Work:
        """The answer, where the last call gave one."""
        last = calls[-1]
        return {"answer": last["input"] if last["tool"] == ANSWER else None, "calls": calls}

    def __call__(self, question: str) -> Work:
        """The workflow: question in, answer and calls out."""
        calls: list[Call] = []
        steps: list[tuple[str, str]] = []
        for _ in range(self.steps):
            reply = self.ask(question, steps)
            call = self.use(reply)
            calls.append(call)
            if call["tool"] == ANSWER or call in calls[:-1]:  # what was of no use once will be of none again
                break
            steps.append((reply, call["result"]))
        return self.finish(calls)


def call_in(reply: str) -> tuple[str, str]:
    """The tool that a reply calls and its input, or NONE and the reply's beginning."""
    start, end = reply.find("{"), reply.rfind("}")
    try:
        given: Any = json.loads(reply[start : end + 1]) if len(reply) <= LONGEST_REPLY else None
    except (ValueError, RecursionError):
        given = None
    call = cast("Mapping[str, Any]", given) if isinstance(given, dict) else {}
    tool, argument = call.get("tool"), call.get("input")
    if type(argument) in (int, float):
        argument = str(argument)
    if tool not in TOOLS or not isinstance(argument, str):
        return NONE, reply[:LONGEST_INPUT]
    return cast("str", tool), argument[:LONGEST_INPUT]


# -- what was good or bad ----------------------------------------------------------------------------------------------


def guide(work: Work, example: Question) -> Feedback:
    """Right or wrong, the share of the articles found, the calls made; and in words which turn was the wrong one."""
    answer, calls = work["answer"], work["calls"]
    right = answer is not None and agrees(answer, example["answer"])
    unseen = [title for title in example["articles"] if all(call["result"] != ARTICLES[title] for call in calls)]
    scores = {
        "right": float(right), "found": 1 - len(unseen) / len(example["articles"]), "calls": -float(len(calls)),
    }  # fmt: skip
    if right:
        return Feedback(scores, f"right, in {len(calls)} calls")
    said = [
        f"expected {example['answer']!r}, got {answer!r}" if answer is not None else f"no answer in {len(calls)} calls"
    ]
    said += faults(calls)
    searched = list(dict.fromkeys(call["input"] for call in calls if call["tool"] == SEARCH))
    if unseen:
        said.append(f"it never found the article on {' or on '.join(map(repr, unseen))}; it searched for {searched!r}")
    elif example["sum"] and not any(call["tool"] == CALCULATOR for call in calls):
        said.append("it had all facts and did the sum without the calculator")
    elif answer is not None:
        said.append("it had all facts and drew the wrong conclusion")
    return Feedback(scores, "; ".join(said))


def faults(calls: Sequence[Call]) -> list[str]:
    """What is wrong with single calls, each kind once."""
    said: dict[str, str] = {}
    if len(calls) > 1 and calls[-1] in calls[:-1]:
        said["again"] = (
            f"it made the call {calls[-1]['tool']} with {calls[-1]['input'][:80]!r} twice, which ends the work"
        )
    for call in calls:
        if call["tool"] == NONE:
            said.setdefault(NONE, f"{call['input'][:80]!r} calls no tool")
        elif call["result"].startswith("error"):
            said.setdefault(CALCULATOR, f"the calculator was given {call['input'][:80]!r}, which is no sum of numbers")
        elif call["result"] == "nothing found":
            said.setdefault(SEARCH, f"a search for {call['input'][:80]!r} found nothing")
    return list(said.values())


def agrees(answer: str, wanted: str) -> bool:
    """Whether an answer is right: the one number in it, or the words themselves but for case and a full stop."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", answer.replace(",", ""))
    if re.fullmatch(r"-?\d+", wanted):
        return len(numbers) == 1 and float(numbers[0]) == float(wanted)
    return words_of(answer) == words_of(wanted)


# -- questions ---------------------------------------------------------------------------------------------------------


def _question(kind: str, one: str, other: str) -> Question:
    """A question of a kind about the first of two lighthouses, or about both."""
    (island, height, year, who), (away, low, _, _) = LIGHTHOUSES[one], LIGHTHOUSES[other]
    text, answer, articles = {
        "who": (f"Who built {one}?", who, [one]),
        "born": (f"Where was the builder of {one} born?", PEOPLE[who][1], [one, who]),
        "people": (f"How many people live on the island where {one} stands?", ISLANDS[island][1], [one, island]),
        "age": (f"How old did its builder turn in the year in which {one} was built?", year - PEOPLE[who][0], [one, who]),
        "higher": (f"By how many metres is {one} higher than {other}?", height - low, [one, other]),
        "together": (
            f"How many people live on the two islands of {one} and {other} together?",
            ISLANDS[island][1] + ISLANDS[away][1], [one, other, island, away],
        ),
    }[kind]  # fmt: skip
    return {"question": text, "answer": str(answer), "articles": articles, "sum": kind in SUMS}


SUMS = ("age", "higher", "together")
MOST = 120
"""Questions that can be made without asking any twice."""


def questions(count: int, seed: int) -> list[Question]:
    """Distinct questions with their answers, most of them about more than one article.

    Args:
        count: How many.
        seed: Decides which.
    """
    rng = random.Random(f"questions/{seed}")  # noqa: S311 # examples that can be made again
    found: dict[str, Question] = {}
    while len(found) < count:
        kind = rng.choice(("who", "born", "people", *SUMS))
        one, other = rng.sample(list(LIGHTHOUSES), 2)
        if kind == "higher" and LIGHTHOUSES[one][1] < LIGHTHOUSES[other][1]:
            one, other = other, one
        if kind != "together" or LIGHTHOUSES[one][0] != LIGHTHOUSES[other][0]:
            made = _question(kind, one, other)
            found.setdefault(made["question"], made)
    return list(found.values())


def problem(
    *, seed: int = 11, train: int = 20, val: int = 30, test: int = 50, steps: int = 6, rewrite: bool = False,
    model: str = "embedded/smollm2",
) -> Problem:  # fmt: skip
    """Answer questions with search and a calculator.

    Args:
        seed: Which questions are made, how they are split, and all chance of the search.
        train: How many questions are for training.
        val: How many candidates are compared on.
        test: How many are kept for the test at the end.
        steps: How many calls the agent may make for a question, the answer included.
        rewrite: Whether a language model rewrites the texts (it needs --model or a key); else they are searched among
            those given.
        model: The model of the agent.
    """
    if min(train, val, test, steps) < 1 or train + val + test > MOST:
        raise ProblemError(
            f"train={train}, val={val}, test={test}, steps={steps} cannot be; give each at least 1, and ask for at most "
            f"{MOST} questions together"
        )
    made = questions(train + val + test, seed)
    workflow = Agent(connect(model), steps=steps, rewrite=rewrite)
    return Problem(
        workflow=workflow,
        train=made[test + val :],
        val=made[test : test + val],
        test=made[:test],
        guide=guide,
        parameters=workflow,
        optimizers=[OptoPrime()] if rewrite else [Categorical()],
        seed=seed,
        score_range=(0.0, 1.0),
        # whether the answer is right decides; the others are told
        margins={"found": math.inf, "calls": math.inf},
        description="questions answered with search and a calculator",
    )
