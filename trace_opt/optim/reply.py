"""Asking a model for values, and taking from its reply exactly those that are valid.

Each value is checked on its own, strictly and without any conversion: valid ones are kept, the model is asked once more
about the others with what was wrong, and what is still wrong stays as it is and is recorded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.parameter import same, short
from trace_opt.errors import BudgetError, LLMError, ReplyError
from trace_opt.optim.extract import Extract, Unreadable, extract
from trace_opt.optim.functions import codes, fenced, source_of
from trace_opt.optim.schema import admits_null, labels, schema_of

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.llm.base import LLM, Message, Reply

_SHOWN_CHARACTERS = 4000  # of a reply that is quoted back to the model


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model's reply gives for some parameters.

    Attributes:
        values: Valid values by full parameter name; names left out stay as they are.
        reason: The model's own words on why.
        problems: One sentence for each value that was given and cannot be used, by name.
        unknown: Names in the reply that no parameter has.
        duplicates: Names given twice; the last one counts.
        repaired: Whether the reply was no valid JSON and was mended.
    """

    values: dict[str, Any] = field(default_factory=dict[str, Any])
    reason: str = ""
    problems: dict[str, str] = field(default_factory=dict[str, str])
    unknown: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    repaired: bool = False


def read(text: str, parameters: Sequence[Parameter[Any]], *, finish: str = "stop") -> Answer:
    """Take the valid values from a reply.

    Args:
        text: The reply's text.
        parameters: Those it may give values for.
        finish: Why the reply ended, as `Reply.finish`; of a cut one only complete values count.

    Returns:
        Values that may be written as they are, and the problems of the others.

    Raises:
        ReplyError: the model refused, or the text holds nothing like an answer.
    """
    if finish == "refusal":
        raise ReplyError(f"the model declined to answer: {short(text)}; rephrase the objective", reply=text)
    by_name = {parameter.name: parameter for parameter in parameters}
    found = _found(text, by_name, is_cut=finish in ("length", "content_filter"))
    values: dict[str, Any] = {}
    problems = dict(found.lost)
    for name, raw in found.values.items():
        if raw is None and not admits_null(by_name[name]):
            continue  # null leaves it as it is
        try:
            values[name] = value_of(by_name[name], raw)
        except ValueError as error:
            problems[name] = str(error)
    if not found.values and not problems and found.unknown:
        problems = dict.fromkeys(by_name, _misnamed(found))
    return Answer(values, found.reason, problems, found.unknown, found.duplicates, found.repaired)


def _found(text: str, by_name: Mapping[str, Parameter[Any]], *, is_cut: bool) -> Extract:
    """What the JSON of a reply gives, and what stands in fenced blocks of functions that it does not give."""
    blocks: dict[str, Any] = {**fenced(text, list(by_name.values()))}
    try:
        found = extract(text, by_name, is_cut=is_cut, exact=codes(by_name.values()))
    except ReplyError:
        if not blocks:
            raise
        return Extract(blocks)
    given = {name: raw for name, raw in blocks.items() if found.values.get(name) is None}
    if not given:
        return found
    lost = {} if not found.values else {name: why for name, why in found.lost.items() if name not in given}
    return replace(found, values={**found.values, **given}, lost=lost)


def value_of(parameter: Parameter[Any], raw: Any) -> Any:
    """The value that a piece of JSON stands for, never converted.

    Raises:
        ValueError: it is not allowed here; the message says what is.
    """
    fault = _fault_of(raw)
    if fault:
        raise ValueError(fault)
    if parameter.choices is not None:
        return _chosen(parameter, raw)
    if parameter.code is not None:
        return source_of(parameter, raw)
    from pydantic import ValidationError

    try:
        value = parameter.adapter.validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        raise ValueError(_errors(error, raw)) from None
    if parameter.kind == "structured" and _is_coerced(raw, parameter.adapter.dump_python(value, mode="json")):
        raise ValueError(f"{short(raw)} is of another type than what is allowed; true is not 1, and 1 is not 1.0")
    return parameter.check(value)


async def ask(
    llm: LLM,
    messages: Sequence[Message],
    parameters: Sequence[Parameter[Any]],
    *,
    seed: int | None = None,
    **fields: Any,
) -> tuple[Answer, dict[str, Any]]:
    """Ask a model for values, and once more about those that cannot be used.

    Args:
        llm: The model.
        messages: The conversation that ends with the question.
        parameters: Those that it may give values for.
        seed: Seed of both calls.
        **fields: Further fields of `Request` (`max_tokens`, `temperature`).

    Returns:
        The answer of both replies together, and notes on how it came about, JSON-able.

    Raises:
        ReplyError: the first reply held nothing like an answer.
        LLMError, BudgetError: the first call could not be made.
    """
    if seed is not None:
        fields["seed"] = seed % 2**31  # what servers take
    reply = await llm.asend(llm.request(messages, schema=schema_of(parameters), **fields))
    answer = read(reply.text, parameters, finish=reply.finish)
    notes: dict[str, Any] = {"model": reply.model or llm.name, "calls": 1}
    if answer.problems:
        notes["asked_again_about"] = dict(answer.problems)
        answer = await _asked_again(llm, messages, reply, parameters, answer, fields, notes)
    told = {
        "problems": dict(answer.problems), "unknown": list(answer.unknown), "duplicates": list(answer.duplicates),
        "repaired": answer.repaired,
    }  # fmt: skip
    return answer, {**notes, **{key: said for key, said in told.items() if said}}


async def _asked_again(
    llm: LLM,
    messages: Sequence[Message],
    reply: Reply,
    parameters: Sequence[Parameter[Any]],
    answer: Answer,
    fields: Mapping[str, Any],
    notes: dict[str, Any],
) -> Answer:
    """The answer with what a second reply mends; a second reply that cannot be had or used changes nothing."""
    wrong = [parameter for parameter in parameters if parameter.name in answer.problems]
    follow_up = [*messages, {"role": "assistant", "content": _quoted_back(reply.text)}, question_about(answer.problems)]
    notes["calls"] = 2
    try:
        second = await llm.asend(llm.request(follow_up, schema=schema_of(wrong), **fields))
        mended = read(second.text, wrong, finish=second.finish)
    except (ReplyError, BudgetError, LLMError) as error:
        if isinstance(error, LLMError) and error.lasting:
            raise
        notes["second_reply"] = str(error)
        return answer
    still = {name: why for name, why in answer.problems.items() if name not in mended.values}
    return Answer(
        {**answer.values, **mended.values},
        answer.reason or mended.reason,
        {**still, **mended.problems},
        tuple(dict.fromkeys((*answer.unknown, *mended.unknown))),
        tuple(dict.fromkeys((*answer.duplicates, *mended.duplicates))),
        answer.repaired or mended.repaired,
    )


def question_about(problems: Mapping[str, str]) -> dict[str, str]:
    """The message that asks once more, naming each wrong value and its error."""
    lines = "\n".join(f"- {name}: {why}" for name, why in problems.items())
    names = ", ".join(problems)
    return {
        "role": "user",
        "content": "Some values in your answer cannot be used:\n"
        f"{lines}\n\n"
        "All other values were taken. Answer again with one JSON object of the same form, nothing before or after it, "
        f'whose "values" hold only: {names}. Keep what you meant; give null for a value that is to stay as it was.',
    }


def _quoted_back(text: str) -> str:
    half = _SHOWN_CHARACTERS // 2
    if len(text) > _SHOWN_CHARACTERS:
        text = f"{text[:half]}\n[...]\n{text[-half:]}"
    return text.encode("utf-8", "replace").decode("utf-8") or "(nothing)"


def _misnamed(found: Extract) -> str:
    names = ", ".join(repr(name) for name in found.unknown[:5])
    return f"the reply gave no value of this name, only {names}; use the names of the variables"


def _chosen(parameter: Parameter[Any], raw: Any) -> Any:
    named = labels(parameter)
    for label, choice in named:
        if same(label, raw):
            return choice
    for label, choice in named:
        # JSON has one kind of number: 1 names the choice 1.0 where no choice is 1
        if type(label) is float and type(raw) is int and label == raw:
            return choice
    allowed = ", ".join(json.dumps(label, ensure_ascii=False) for label, _ in named)
    raise ValueError(f"{_shown(raw)} is not one of the choices; give exactly one of {allowed}")


def _fault_of(raw: Any) -> str:
    """Why no store could hold this value, or "": not finite, no real text, or not to be represented."""
    if isinstance(raw, Unreadable):
        return raw.why
    if isinstance(raw, float):
        return "" if math.isfinite(raw) else f"{raw!r} is not a finite number"
    if isinstance(raw, str):
        return _text_fault(raw)
    if isinstance(raw, dict):
        entries = cast("dict[str, Any]", raw)
        return next((fault for item in (*entries, *entries.values()) if (fault := _fault_of(item))), "")
    if isinstance(raw, list):
        return next((fault for item in cast("list[Any]", raw) if (fault := _fault_of(item))), "")
    return ""


def _text_fault(text: str) -> str:
    if "\x00" in text:
        return "the text holds a NUL character, which cannot be stored; leave it out"
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        return "the text holds half of a surrogate pair, which is no character; leave it out"
    return ""


def _errors(error: Any, raw: Any) -> str:
    """What is wrong with a value; of a structured one, each field that is."""
    found = error.errors(include_url=False, include_context=False)
    told: list[str] = []
    for one in found[:5]:
        place = ".".join(str(part) for part in one["loc"])
        where = f" at {place!r}" if place else ""
        told.append(f"{_shown(one.get('input', raw))}{where} cannot be used: {one['msg']}")
    return "; ".join(told) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")


def _shown(raw: Any) -> str:
    text = json.dumps(raw, ensure_ascii=True, default=repr)
    return text if len(text) <= 80 else f"{text[:40]} ... {text[-35:]}"


def _is_coerced(raw: Any, kept: Any) -> bool:
    """Whether validation changed a scalar's type: pydantic's Literal takes True and 1.0 for 1 even when strict."""
    if isinstance(raw, dict) and isinstance(kept, dict):
        entries, others = cast("dict[str, Any]", raw), cast("dict[str, Any]", kept)
        return any(key in others and _is_coerced(item, others[key]) for key, item in entries.items())
    if isinstance(raw, list) and isinstance(kept, list):
        items, others = cast("list[Any]", raw), cast("list[Any]", kept)
        return len(items) == len(others) and any(_is_coerced(a, b) for a, b in zip(items, others, strict=True))
    # a set comes back in another order, so only equal scalars are held against each other
    given = cast("Any", raw)
    return (
        type(given) in (bool, int, float)
        and type(given) is not type(kept)
        and given == kept
        and type(kept) is not float
    )
