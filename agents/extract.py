"""Fields out of a sentence: who paid, when, how much, in which currency, by a language model that answers in JSON.

The model is confined to the record's JSON schema, so what it gives is well formed; whether it is right depends on what it
is told. Tuned are the instruction, what each field is said to be (a structured value, every field with bounds of its own),
whether that is said at all, how the prompt is laid out, and the sentences shown with their records. Every field is scored
by itself, and the feedback says of each what was given and what would have been right.

    trace-opt run agents/extract.py
    trace-opt run agents/extract.py --set rewrite=true --model openai/gpt-4.1-mini
    trace-opt run agents/extract.py --set path=mine.jsonl --set model=openai/gpt-4.1-nano

With `path` it reads records of your own: JSON lines, each with a "text" and the same other fields. The sentences that it
makes otherwise cost nothing to check: they are written from the records.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError, create_model  # noqa: TID253
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

from trace_opt import Categorical, Demonstrations, Demos, Feedback, Module, OptoPrime, Parameter, connect, trace
from trace_opt.errors import ProblemError
from trace_opt.llm.base import LLM, Message
from trace_opt.problem import Problem

Example = dict[str, Any]
"""A text, and its fields by name."""


class Payment(BaseModel):
    """What a sentence says of a payment; None where nothing usable was given."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str | None = None
    date: str | None = None
    amount: float | None = None
    currency: Literal["EUR", "GBP", "JPY", "USD"] | None = None


Words = Annotated[str, StringConstraints(min_length=3, max_length=160)]

PAYMENT_FIELDS = {
    "name": "who pays: first and last name",
    "date": "when it was paid, as YYYY-MM-DD",
    "amount": "how much, as a plain number",
    "currency": "EUR for euros, GBP for pounds, JPY for yen, USD for dollars",
}

INSTRUCTIONS = (
    "Extract the fields.",
    "Extract the fields from the text as JSON.",
    "Read the text and fill in the record. Copy names and numbers exactly.",
    "You keep the books. Write down the payment that the text tells of.",
)

NAMES_ONLY, DESCRIBED = "names only", "with descriptions"
ONE_MESSAGE, TURNS = "one message", "system and turns"

LONGEST_REPLY = 20_000
LONGEST_TEXT = 60  # of a field that the model writes


class Extractor(Module):
    """A prompt with all that can be tuned about it, and the model that fills in the record.

    Args:
        llm: The model.
        record: The record's class; every field may be None.
        fields: What each field is, in words.
        shown: How many sentences may be shown with their records at most.
        rewrite: Whether a language model rewrites the descriptions; they stay as they are otherwise.
    """

    def __init__(
        self, llm: LLM, record: type[BaseModel], fields: dict[str, str], *, shown: int = 4, rewrite: bool = False
    ) -> None:
        super().__init__()
        self.llm = llm
        self.record = record
        self.schema = schema_of(record)
        self.instruction = Parameter(
            INSTRUCTIONS[0], description="What the model is told to do.", suggestions=INSTRUCTIONS[1:]
        )
        self.fields = Parameter(
            fields, type=described_by(record), description="What each field of the record is and how it is written.",
            frozen=not rewrite,
        )  # fmt: skip
        self.told = Parameter(
            NAMES_ONLY, description="What the prompt says of the fields.", choices=(NAMES_ONLY, DESCRIBED)
        )
        self.layout = Parameter(
            ONE_MESSAGE, description="Whether all is one message, or the instruction a system message and texts turns.",
            choices=(ONE_MESSAGE, TURNS),
        )  # fmt: skip
        self.demonstrations = Parameter(Demonstrations(k=shown), description="Texts shown with their records.")

    @trace
    def prompt(self, text: str) -> list[Message]:
        """The conversation up to where the model answers; what all texts share comes first, to be read once."""
        fields = self.fields.value
        told = [f"- {name}: {words}" for name, words in fields.items()]
        lines = [self.instruction.value, *(told if self.told.value == DESCRIBED else [f"Fields: {', '.join(fields)}"])]
        shown = [
            (e["text"], json.dumps({n: e[n] for n in fields}, ensure_ascii=False)) for e in self.demonstrations.value
        ]
        if self.layout.value == ONE_MESSAGE:
            lines += [line for pair in shown for line in pair]
            return [{"role": "user", "content": "\n".join([*lines, text])}]
        turns = [
            message
            for asked, answered in shown
            for message in ({"role": "user", "content": asked}, {"role": "assistant", "content": answered})
        ]
        return [{"role": "system", "content": "\n".join(lines)}, *turns, {"role": "user", "content": text}]

    @trace
    def answer(self, messages: list[Message]) -> str:
        """The model's answer, confined to the schema where the model can be."""
        return self.llm.reply(messages, schema=self.schema, max_tokens=40 * len(self.record.model_fields)).text

    @trace
    def read(self, reply: str) -> BaseModel:
        """The record in an answer: every field that fits its type, None for the others."""
        return record_in(reply, self.record)

    def __call__(self, text: str) -> BaseModel:
        """The workflow: text in, record out."""
        return self.read(self.answer(self.prompt(text)))


def record_in(reply: str, record: type[BaseModel]) -> BaseModel:
    """The record in a model's answer; nothing is converted, and nothing that it says can raise."""
    start, end = reply.find("{"), reply.rfind("}")
    try:
        given: Any = json.loads(reply[start : end + 1]) if len(reply) <= LONGEST_REPLY else None
    except (ValueError, RecursionError):
        given = None
    found: dict[str, Any] = {}
    for name, field in record.model_fields.items():
        value = cast("dict[str, Any]", given).get(name) if isinstance(given, dict) else None
        if isinstance(value, float) and not math.isfinite(value):
            continue
        try:
            found[name] = TypeAdapter(field.annotation).validate_python(value, strict=True)
        except ValidationError:
            continue
    return record(**found)


def schema_of(record: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a whole record: no field may be missing, and texts are short."""
    made: dict[str, Any] = {}
    for name, field in record.model_json_schema()["properties"].items():
        kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
        kept = {key: value for key, value in kinds[0].items() if key in ("type", "enum")}
        made[name] = {**kept, "maxLength": LONGEST_TEXT} if kept == {"type": "string"} else kept
    return {"type": "object", "properties": made, "required": list(made), "additionalProperties": False}


def described_by(record: type[BaseModel]) -> Any:
    """The type of a record's descriptions: a dict with a few words for every field, and no other."""
    made: Any = TypedDict("Fields", dict.fromkeys(record.model_fields, Words))
    made.__pydantic_config__ = ConfigDict(extra="forbid")
    return made


# -- what was good or bad ----------------------------------------------------------------------------------------------


def guide(found: BaseModel, example: Example) -> Feedback:
    """The share of the fields that are right, every field by itself, and in words what is wrong."""
    given = found.model_dump()
    right = {name: agrees(value, example[name]) for name, value in given.items()}
    said = [f"{name}: {_wrong(given[name], example[name])}" for name, fine in right.items() if not fine]
    share = sum(right.values()) / len(right)
    scores = {"fields": share, **{name: float(fine) for name, fine in right.items()}}
    return Feedback(scores, "; ".join(said) or "every field is right")


def agrees(value: Any, wanted: Any) -> bool:
    """Whether a field is right: numbers to half a hundredth, texts but for case and blanks."""
    if isinstance(value, (int, float)) and isinstance(wanted, (int, float)) and not isinstance(value, bool):
        return abs(value - wanted) < 0.005
    if isinstance(value, str) and isinstance(wanted, str):
        return " ".join(value.casefold().split()) == " ".join(wanted.casefold().split())
    return value is wanted


def _wrong(value: Any, wanted: Any) -> str:
    return f"expected {wanted!r}, got {'nothing that fits its type' if value is None else repr(value)[:80]}"


# -- examples ----------------------------------------------------------------------------------------------------------

FIRST = ("Ada", "Bruno", "Carla", "Daniel", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Keiko", "Lars")
LAST = ("Albers", "Brandt", "Castillo", "Dvorak", "Eriksen", "Fontaine", "Greco", "Haddad", "Ivanov", "Jensen", "Kim")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
MONEY = {
    "EUR": ("{a} euros", "EUR {a}", "€{a}"), "GBP": ("{a} pounds", "GBP {a}", "£{a}"),
    "JPY": ("{a} yen", "JPY {a}", "¥{a}"), "USD": ("{a} dollars", "USD {a}", "${a}"),
}  # fmt: skip
DATES = ("{d} {m} {y}", "{m} {d}, {y}", "{y}-{n:02}-{d:02}")
SENTENCES = (
    "{name} paid {money} on {date}.",
    "On {date} we received {money} from {name} for order {order}.",
    "Invoice {order}, issued to {name}: {money}, settled on {date}.",
    "Order {order}. Customer: {name}. Paid {date}. Total: {money}.",
    "{name} still owed us for order {order}; the {money} came in on {date}.",
    "Dear {name}, thank you for your payment of {money} of {date} ({order}).",
)


def payments(count: int, seed: int) -> list[Example]:
    """Distinct sentences about payments with their records.

    Args:
        count: How many.
        seed: Decides which.
    """
    rng = random.Random(f"payments/{seed}")  # noqa: S311 # examples that can be made again
    found: dict[str, Example] = {}
    while len(found) < count:
        name, currency = f"{rng.choice(FIRST)} {rng.choice(LAST)}", rng.choice(list(MONEY))
        year, month, day = rng.randint(2019, 2026), rng.randint(1, 12), rng.randint(1, 28)
        amount = rng.randint(20, 9900) if rng.random() < 0.5 else rng.randint(2000, 99_000) / 100
        date = rng.choice(DATES).format(d=day, m=MONTHS[month - 1], y=year, n=month)
        written = f"{amount:,}" if isinstance(amount, int) else f"{amount:,.2f}"
        money = rng.choice(MONEY[currency]).format(a=written)
        text = rng.choice(SENTENCES).format(name=name, date=date, money=money, order=rng.randint(1000, 9999))
        found[text] = {
            "text": text, "name": name, "date": f"{year}-{month:02}-{day:02}", "amount": amount, "currency": currency,
        }  # fmt: skip
    return list(found.values())


def examples_at(path: Path) -> list[Example]:
    """Records of one's own.

    Args:
        path: JSON lines, each an object with a "text" and the same other fields: texts, numbers, true, false or null.

    Raises:
        ProblemError: the file cannot be read, or a line is no such record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"{str(path)!r} cannot be read ({error}); give a file of JSON lines as path=...") from None
    found: list[Example] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            found.append(_example(line, f"line {number} of {str(path)!r}"))
            if set(found[-1]) != set(found[0]):
                raise ProblemError(
                    f"line {number} of {str(path)!r} has other fields than the first; give each the same"
                )
    if len(found) < 2:
        raise ProblemError(f"{str(path)!r} holds {len(found)} records; give more")
    return found


def _example(line: str, where: str) -> Example:
    try:
        given: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise ProblemError(
            f'{where} is no JSON; write one object a line, as in {{"text": "...", "name": "..."}}'
        ) from None
    found = cast("Example", given) if isinstance(given, dict) else {}
    plain = all(isinstance(value, (str, int, float, type(None))) for value in found.values())
    if not isinstance(found.get("text"), str) or len(found) < 2 or not plain:
        raise ProblemError(
            f'{where} is {line!r:.60}; write an object with a "text" and fields that are texts or numbers'
        )
    return found


def record_of(examples: list[Example]) -> type[BaseModel]:
    """The record's class for examples of one's own: for every field the types that occur.

    Raises:
        ProblemError: a field's name is none that a record can have, or it has no value anywhere.
    """
    fields: dict[str, Any] = {}
    for name in examples[0]:
        kinds = {float if type(e[name]) is int else type(e[name]) for e in examples} - {type(None)}
        if name == "text":
            continue
        if not name.isidentifier() or name.startswith(("_", "model_")):
            raise ProblemError(f"the field {name!r} cannot be extracted under that name; rename it")
        if len(kinds) != 1:
            raise ProblemError(f"the field {name!r} holds values of {len(kinds)} types; give it values of one type")
        fields[name] = (kinds.pop() | None, None)
    return create_model("Record", __config__=ConfigDict(allow_inf_nan=False), **fields)


def problem(
    *, seed: int = 11, train: int = 80, val: int = 30, test: int = 80, shown: int = 4, sets: int = 6,
    path: Path | None = None, rewrite: bool = False, model: str = "embedded/smollm2",
) -> Problem:  # fmt: skip
    """Extract a record from a text.

    Args:
        seed: Which sentences are made, how they are split, and all chance of the search.
        train: How many sentences are for training.
        val: How many candidates are compared on.
        test: How many are kept for the test at the end.
        shown: How many texts a prompt may show with their records.
        sets: How many sets of shown texts are searched.
        path: A file of JSON lines with texts and fields of your own, in place of the sentences about payments.
        rewrite: Whether a language model rewrites instruction and descriptions (it needs --model or a key); else they are
            searched among those given.
        model: The model that extracts.
    """
    if min(train, val, test) < 1:
        raise ProblemError(f"train={train}, val={val}, test={test} leaves a part empty; give at least 1 each")
    own = None if path is None else examples_at(path)
    record = Payment if own is None else record_of(own)
    fields = PAYMENT_FIELDS if own is None else {name: f"the {name} in the text" for name in record.model_fields}
    made = payments(train + val + test, seed) if own is None else own
    workflow = Extractor(connect(model), record, fields, shown=shown, rewrite=rewrite)
    searched = Categorical(sources=[Demos(sets=sets)])
    return Problem(
        workflow=workflow,
        train=made[test + val :] if own is None else own,
        val=made[test : test + val] if own is None else None,
        test=made[:test] if own is None else None,
        guide=guide,
        parameters=workflow,
        optimizers=[OptoPrime(), searched] if rewrite else [searched],
        race=("told", "layout"),
        seed=seed,
        score_range=(0.0, 1.0),
        # a field may get worse where the record gets better
        margins=dict.fromkeys(record.model_fields, math.inf),
        description=f"{', '.join(record.model_fields)} out of a text",
    )
