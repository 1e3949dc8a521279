"""Which model, which prompt and which tool answer a query, when a right answer counts first and its price second.

Queries of four kinds come in: sums, facts about countries, words to take apart, and remarks whose tone is asked for. A
rule tells the kind; for each kind a route (a tool or one of the models) and the prompt of the models are chosen. At the
start all goes to the last model, as a newcomer would have it. What decides is what an answer is worth less what it cost;
the report shows the front as well: the candidates that no other beats in accuracy and cost, to choose from by hand.

    trace-opt run agents/router.py
    trace-opt run agents/router.py --set 'models=["openai/gpt-4.1-nano", "openai/gpt-4.1"]'
    trace-opt run agents/router.py --set rewrite=true --model openai/gpt-4.1-mini

Without a key the tools and the embedded model are what there is to choose from. With `rewrite` the rule itself, a Python
function, and the prompts are rewritten by a language model.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

from trace_opt import Categorical, Feedback, Module, OptoPrime, Parameter, Pareto, connect, parameter_of, trace
from trace_opt.errors import ProblemError
from trace_opt.llm.base import LLM
from trace_opt.problem import Problem

KINDS = ("arithmetic", "lookup", "string", "tone")
TONES = ("friendly", "rude")

FUNCTION, FIRST_WORD, ASK = "the function", "the first word", "ask the first model"
"""How the kind of a query is told: by `kind_of`, by a fixed table, or by the first of the models."""

TOOL_PRICE, FIRST_MODEL_PRICE = 1, 10
"""What an answer costs; each further model costs ten times the one before."""

QUESTIONS = (
    "Which kind of query is this: arithmetic, lookup, string or tone? {query}",
    "Is this arithmetic (numbers), lookup (countries), string (letters of a word) or tone (friendly or rude)?\n{query}",
)
PROMPTS = (
    "{query}",
    "{query} Answer with the word or number alone.",
    "Answer as briefly as you can, without a sentence around the answer.\n{query}",
)


class Query(TypedDict):
    """One example."""

    query: str
    kind: str
    answer: str


class Answer(TypedDict):
    """What the workflow gives: the answer, which way it came, and what it cost."""

    text: str
    kind: str
    route: str
    cost: int


# -- tools -------------------------------------------------------------------------------------------------------------

COUNTRIES = {
    "Peru": ("Lima", "sol"), "Japan": ("Tokyo", "yen"), "Kenya": ("Nairobi", "shilling"), "Norway": ("Oslo", "krone"),
    "Poland": ("Warsaw", "zloty"), "India": ("Delhi", "rupee"), "Brazil": ("Brasilia", "real"), "Ghana": ("Accra", "cedi"),
    "Turkey": ("Ankara", "lira"), "Thailand": ("Bangkok", "baht"), "Mexico": ("Mexico City", "peso"),
    "Morocco": ("Rabat", "dirham"), "Hungary": ("Budapest", "forint"), "Vietnam": ("Hanoi", "dong"),
    "Egypt": ("Cairo", "pound"), "Iceland": ("Reykjavik", "krona"), "Sweden": ("Stockholm", "krona"),
    "Canada": ("Ottawa", "dollar"), "Austria": ("Vienna", "euro"), "Nigeria": ("Abuja", "naira"),
}  # fmt: skip
WARM = ("thank", "lovely", "enjoyed", "well done")
COLD = ("nobody", "dreadful", "sick of", "rubbish")


def calculator(query: str) -> str:
    """The result of the operation that a query names between its first two numbers; "" where it names none."""
    numbers = [int(text) for text in re.findall(r"\d{1,15}", query)[:2]]
    if len(numbers) < 2:
        return ""
    a, b = numbers
    words = set(re.findall(r"[a-z]+", query.casefold()))
    if words & {"times", "multiply"}:
        return str(a * b)
    if words & {"plus", "add", "sum"}:
        return str(a + b)
    if "take" in words:
        return str(b - a)
    if "minus" in words:
        return str(a - b)
    return str(a // b) if words & {"divided", "share"} and b else ""


def table(query: str) -> str:
    """The capital or the money of the country that a query names; "" where it names none."""
    facts = next((facts for name, facts in COUNTRIES.items() if name in query), ("", ""))
    return facts[0 if "capital" in query.casefold() else 1]


def letters(query: str) -> str:
    """What a query wants of the word that it quotes; "" where it quotes none."""
    quoted = re.search(r"'(\w+)'", query)
    if quoted is None:
        return ""
    word, asked = quoted[1], query.casefold()
    if "backwards" in asked:
        return word[::-1]
    if "capitals" in asked:
        return word.upper()
    number = re.search(r"\d+", query)
    if number is not None:
        return word[int(number[0]) - 1 : int(number[0])]
    return str(len(word))


def lexicon(query: str) -> str:
    """The tone of a remark by a few telling words; "" where it has none of them."""
    said = query.casefold()
    warm, cold = (sum(word in said for word in words) for words in (WARM, COLD))
    return "" if warm == cold else TONES[int(cold > warm)]


TOOLS: dict[str, Callable[[str], str]] = {
    "calculator": calculator, "table": table, "letters": letters, "lexicon": lexicon,
}  # fmt: skip

_BY_FIRST_WORD = {
    "add": "arithmetic", "take": "arithmetic", "share": "arithmetic", "multiply": "arithmetic", "what": "arithmetic",
    "name": "lookup", "which": "lookup", "in": "lookup", "spell": "string", "write": "string", "how": "string",
    "friendly": "tone", "is": "tone", "tell": "tone",
}  # fmt: skip


# -- the workflow ------------------------------------------------------------------------------------------------------


class Branch(Module):
    """What becomes of queries of one kind.

    Args:
        kind: The kind.
        routes: Who may answer; the last one does at the start.
        rewrite: Whether the prompt may be any text; one of those given otherwise.
    """

    def __init__(self, kind: str, routes: tuple[str, ...], *, rewrite: bool) -> None:
        super().__init__()
        self.route = Parameter(
            routes[-1], description=f"Who answers queries of the kind {kind!r}: a tool or a model.", choices=routes
        )
        self.prompt = Parameter(
            PROMPTS[0], description=f"What a model is asked for queries of the kind {kind!r}.", placeholders=("query",),
            suggestions=None if rewrite else PROMPTS[1:],
        )  # fmt: skip


class Router(Module):
    """A rule that tells kinds apart, a branch for each kind, and who answers.

    Args:
        models: The models, from the cheapest to the dearest.
        rewrite: Whether a language model rewrites rule and prompts; they are chosen among those given otherwise.
    """

    def __init__(self, models: list[LLM], *, rewrite: bool = False) -> None:
        super().__init__()
        # two of one name are told apart by their place
        self.models = {
            f"{place}: {llm.name}" if len(models) > 1 else llm.name: llm for place, llm in enumerate(models, 1)
        }
        routes = (*TOOLS, *self.models)
        self.prices = dict.fromkeys(TOOLS, TOOL_PRICE) | {
            name: FIRST_MODEL_PRICE * 10**place for place, name in enumerate(self.models)
        }
        self.rule = Parameter(
            FUNCTION, description="How the kind of a query is told; asking a model costs what its answers cost.",
            choices=(FUNCTION, FIRST_WORD, ASK),
        )  # fmt: skip
        self.question = Parameter(
            QUESTIONS[0], description="What the first model is asked about the kind.", placeholders=("query",),
            suggestions=None if rewrite else QUESTIONS[1:],
        )  # fmt: skip
        self.arithmetic, self.lookup, self.string, self.tone = (Branch(k, routes, rewrite=rewrite) for k in KINDS)
        parameter_of(self.kind_of).frozen = not rewrite

    @trace(trainable=True)
    def kind_of(self, query: str) -> str:
        """The kind of a query: arithmetic, lookup (of countries), string (letters of a word) or tone (of a remark)."""
        return "arithmetic" if any(c.isdigit() for c in query) else "lookup"

    @trace
    def first_word(self, query: str) -> str:
        """The kind that goes with the first word of a query."""
        return _BY_FIRST_WORD.get(query.split(maxsplit=1)[0].casefold(), "lookup")

    @trace
    def asked(self, query: str) -> str:
        """The kind that the first model tells."""
        return one_of(next(iter(self.models.values())), self.question.value.format(query=query), KINDS)

    @trace
    def answer(self, kind: str, query: str, paid: int) -> Answer:
        """The answer of the branch for a kind; of no kind that there is, none."""
        if kind not in KINDS:
            return {"text": "", "kind": kind, "route": "none", "cost": paid}
        branch: Branch = getattr(self, kind)
        route = branch.route.value
        if route in TOOLS:
            text = TOOLS[route](query)
        else:
            llm, prompt = self.models[route], branch.prompt.value.format(query=query)
            text = one_of(llm, prompt, TONES) if kind == "tone" else llm(prompt, max_tokens=24)
        return {"text": text, "kind": kind, "route": route, "cost": paid + self.prices[route]}

    def __call__(self, query: str) -> Answer:
        """The workflow: query in, answer and its cost out."""
        if self.rule.value == ASK:
            return self.answer(self.asked(query), query, FIRST_MODEL_PRICE)
        kind = self.first_word(query) if self.rule.value == FIRST_WORD else self.kind_of(query)
        return self.answer(kind, query, 0)


def one_of(llm: LLM, prompt: str, options: tuple[str, ...]) -> str:
    """Which of some words a model gives, as JSON where it can be held to that; "" where it gives none or several."""
    schema = {
        "type": "object", "properties": {"answer": {"type": "string", "enum": list(options)}}, "required": ["answer"],
        "additionalProperties": False,
    }  # fmt: skip
    said = llm.reply(prompt, schema=schema, max_tokens=32).text[:1000].casefold()
    found = [option for option in options if re.search(rf"\b{option}\b", said)]
    return found[0] if len(found) == 1 else ""


# -- what was good or bad ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Guide:
    """Right or wrong and what it cost, and in words which turn was the wrong one.

    Args:
        worth: What a right answer is worth, in units of cost.
    """

    worth: int

    def __call__(self, given: Answer, example: Query) -> Feedback:
        """Of three scores the first decides: what the answer is worth less its cost, a right one for free being 1."""
        right, cost = agrees(given["text"], example["answer"]), float(given["cost"])
        scores = {"net": right - cost / self.worth, "accuracy": float(right), "cost": -cost}
        return Feedback(scores, f"right, at a cost of {cost:g}" if right else "; ".join(faults(given, example)))


def faults(given: Answer, example: Query) -> list[str]:
    """What is wrong with a wrong answer, and which turn led to it."""
    said = [f"{example['query']!r} is answered by {example['answer']!r}, not {given['text'][:80]!r}"]
    if given["kind"] not in KINDS:
        said.append(f"there is no kind {given['kind'][:40]!r}, only {', '.join(KINDS)}")
    elif given["kind"] != example["kind"]:
        said.append(f"it is of the kind {example['kind']!r} and was taken for {given['kind']!r}")
    else:
        fault = "gave no answer to" if not given["text"] else "was wrong about"
        said.append(f"{given['route']!r} {fault} this {given['kind']} query")
    return said


def agrees(text: str, answer: str) -> bool:
    """Whether the first line of an answer is the right one, but for case of words, quotes and a full stop."""
    line = text.strip().split("\n")[0].strip(" \t'\"`*.!")
    return line == answer if answer.isupper() else line.casefold() == answer.casefold()


# -- queries -----------------------------------------------------------------------------------------------------------

SUMS: dict[str, Callable[[int, int], int]] = {
    "What is {a} times {b}?": lambda a, b: a * b, "Multiply {a} by {b}.": lambda a, b: a * b,
    "Add {a} and {b}.": lambda a, b: a + b, "How much is {a} plus {b}?": lambda a, b: a + b,
    "How much is {a} minus {b}?": lambda a, b: a - b, "Take {b} from {a}.": lambda a, b: a - b,
    "Share {a} equally among {b}: how many does each get?": lambda a, b: a // b,
}  # fmt: skip
FACTS = (
    ("What is the capital of {c}?", 0), ("Name the capital of {c}.", 0), ("Which money is used in {c}?", 1),
    ("In {c}, what does one pay with?", 1),
)  # fmt: skip
WORDS = (
    "parrot", "lemon", "window", "silver", "garden", "candle", "button", "planet", "forest", "bridge", "pencil", "ladder",
)  # fmt: skip
SPELLINGS: dict[str, Callable[[str], str]] = {
    "Spell '{w}' backwards.": lambda w: w[::-1], "How many letters has '{w}'?": lambda w: str(len(w)),
    "Write '{w}' in capitals.": str.upper, "What is letter 3 of '{w}'?": lambda w: w[2],
    "What is letter 5 of '{w}'?": lambda w: w[4],
}  # fmt: skip
REMARKS = {
    "friendly": ("Thank you for {x}.", "How lovely, {x}!", "I really enjoyed {x}.", "Well done with {x}!",
                 "I am so glad about {x}.", "What a treat, {x}."),
    "rude": ("Nobody wants {x}.", "How dreadful, {x}.", "I am sick of {x}.", "What rubbish, {x}.", "Keep {x} to yourself.",
             "You ruined {x}, you fool."),
}  # fmt: skip
THINGS = (
    "the soup", "your 3 letters", "the capital idea", "those 20 minutes", "the new chairs", "that song", "his 12 emails",
)  # fmt: skip
ASKED = ("Is this friendly or rude? {r}", "Friendly or rude: {r}", "Tell me the tone of this, friendly or rude: {r}")


def queries(count: int, seed: int) -> list[Query]:
    """Distinct queries with their answers, the four kinds in turn.

    Args:
        count: How many.
        seed: Decides which.
    """
    rng = random.Random(f"queries/{seed}")  # noqa: S311 # examples that can be made again
    found: dict[str, Query] = {}
    while len(found) < count:
        made = _query(KINDS[len(found) % len(KINDS)], rng)
        found.setdefault(made["query"], made)
    return list(found.values())


def _query(kind: str, rng: random.Random) -> Query:
    if kind == "arithmetic":
        form = rng.choice(list(SUMS))
        b = rng.randint(2, 29)
        a = b * rng.randint(2, 19) if "equally" in form else b + rng.randint(1, 90)
        return {"query": form.format(a=a, b=b), "kind": kind, "answer": str(SUMS[form](a, b))}
    if kind == "lookup":
        (form, place), country = rng.choice(FACTS), rng.choice(list(COUNTRIES))
        return {"query": form.format(c=country), "kind": kind, "answer": COUNTRIES[country][place]}
    if kind == "string":
        form, word = rng.choice(list(SPELLINGS)), rng.choice(WORDS)
        return {"query": form.format(w=word), "kind": kind, "answer": SPELLINGS[form](word)}
    tone = rng.choice(TONES)
    remark = rng.choice(REMARKS[tone]).format(x=rng.choice(THINGS))
    return {"query": rng.choice(ASKED).format(r=remark), "kind": kind, "answer": tone}


MOST = 200
"""Queries that can be made without saying any twice."""


def problem(
    *, seed: int = 11, train: int = 40, val: int = 40, test: int = 100,
    models: tuple[str, ...] | str = ("embedded/smollm2",), worth: int = 1000, rewrite: bool = False,
) -> Problem:  # fmt: skip
    """Route queries to tools and models.

    Args:
        seed: Which queries are made, how they are split, and all chance of the search.
        train: How many queries are for training.
        val: How many candidates are compared on.
        test: How many are kept for the test at the end.
        models: The models, from the cheapest to the dearest, as a JSON list of names or one name.
        worth: What a right answer is worth, where a tool's answer costs 1, the first model's 10, the second's 100.
        rewrite: Whether a language model rewrites the rule and the prompts (it needs --model or a key); else they are
            searched among those given.
    """
    if min(train, val, test) < 1 or train + val + test > MOST:
        raise ProblemError(
            f"train={train}, val={val}, test={test} cannot be made; give each at least 1, and at most {MOST} together"
        )
    names = [models] if isinstance(models, str) else list(models)
    if worth < 1 or not names:
        raise ProblemError(f"models={models!r}, worth={worth} cannot be; name a model, and a worth of at least 1")
    made = queries(train + val + test, seed)
    workflow = Router([connect(name) for name in names], rewrite=rewrite)
    return Problem(
        workflow=workflow,
        train=made[test + val :],
        val=made[test : test + val],
        test=made[:test],
        guide=Guide(worth),
        parameters=workflow,
        optimizers=[OptoPrime()] if rewrite else [Categorical()],
        search=Pareto(),
        budget="medium",  # most rollouts ask no model
        seed=seed,
        # both are in the first score, and on the front
        margins={"accuracy": math.inf, "cost": math.inf},
        description="queries answered by tools and models, right and cheap",
    )
