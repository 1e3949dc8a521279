"""The 52 kinds of replies that models were seen to give, and what must come of each."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from tests.cpu_time import cpu_time, least
from trace_opt.core.parameter import Parameter
from trace_opt.errors import BudgetError, LLMError, ReplyError
from trace_opt.llm.base import Reply
from trace_opt.optim.reply import ask, read, value_of
from trace_opt.testing import ScriptedLLM


def parameters() -> list[Parameter[Any]]:
    return [
        Parameter("Be kind.", name="style"),
        Parameter(3, name="k"),
        Parameter(0.5, name="rate"),
        Parameter(True, name="flag"),
    ]


@dataclass(frozen=True)
class Kind:
    """A kind of reply: values that must be taken, names that must be asked about again, or nothing at all."""

    number: str
    text: str
    values: dict[str, Any] | None
    again: tuple[str, ...] = ()
    repaired: bool = False
    finish: str = "stop"


ALL = ("style", "k", "rate", "flag")
SHORT = {"style": "Be brief."}
OBJECT = '{"reasoning": "too long", "values": {"style": "Be brief."}}'
FENCED = f"```json\n{OBJECT}\n```"

KINDS = [
    Kind("1 a clean object", OBJECT, SHORT),
    Kind("1 a clean flat object", '{"style": "Be brief.", "k": 4}', {"style": "Be brief.", "k": 4}),
    Kind("2 fenced with a language", FENCED, SHORT),
    Kind("2 fenced without a language", f"```\n{OBJECT}\n```", SHORT),
    Kind("3 fenced with CRLF", FENCED.replace("\n", "\r\n"), SHORT),
    Kind("4 prose around", f"Here's what I'd change:\n{OBJECT}\nI hope it's fine, isn't it?", SHORT),
    Kind("5 a draft, then the final one", '{"values": {"style": "draft"}}\nBetter:\n' + OBJECT, SHORT),
    Kind("6 thinking with an object, then the answer", f'<think>maybe {{"style": "draft"}}</think>{OBJECT}', SHORT),
    Kind("6 thinking whose opening mark the template wrote", f'maybe {{"style": "draft"}}\n</think>\n{OBJECT}', SHORT),
    Kind("7 an unfinished thought with an object", '<think>maybe {"values": {"style": "draft"}} but', None),
    Kind("8 trailing commas", '{"values": {"style": "Be brief.", "k": 4,},}', {"style": "Be brief.", "k": 4}, repaired=True),
    Kind("9 single quotes", "{'style': 'Be brief.', 'k': 4}", {"style": "Be brief.", "k": 4}, repaired=True),
    Kind("10 single quotes and an apostrophe", "{'style': 'don't stop'}", {}, again=("style",), repaired=True),
    Kind("11 cut inside a text", '{"values": {"k": 4, "style": "Be bri', {"k": 4}, again=("style", "rate", "flag"), finish="length"),
    Kind("12 cut after a key", '{"values": {"k": 4, "style":', {"k": 4}, again=("style", "rate", "flag"), finish="length"),
    Kind("13 cut inside a number", '{"values": {"k": 4, "rate": 0.0', {"k": 4}, again=("style", "rate", "flag"), finish="length"),
    Kind("14 a raw newline in a text", '{"style": "one\ntwo"}', {"style": "one\ntwo"}),
    Kind("15 quotes not escaped", '{"style": "say "hi" now"}', {"style": 'say "hi" now'}, repaired=True),
    Kind("16 NaN", '{"rate": NaN, "k": 4}', {"k": 4}, again=("rate",)),
    Kind("16 Infinity", '{"rate": -Infinity, "k": 4}', {"k": 4}, again=("rate",)),
    Kind("17 Python's True and None", '{"flag": False, "style": None, "k": 4}', {"flag": False, "k": 4}, repaired=True),
    Kind("18 comments", '{"style": "Be brief.", // shorter\n "k": 4 /* more */}', {"style": "Be brief.", "k": 4}, repaired=True),
    Kind("19 empty", "", None),
    Kind("20 blank", " \n\t ", None),
    Kind("21 prose with a def", "I would define a shorter instruction and try again.", None),
    Kind("22 a refusal in words", "I'm sorry, but I can't help with that.", None),
    Kind("22 a refusal by the provider", "", None, finish="refusal"),
    Kind("23 TERMINATE in a value", '{"style": "Say TERMINATE at the end."}', {"style": "Say TERMINATE at the end."}),
    Kind("24 a list of names and values", '[{"name": "style", "value": "Be brief."}]', {}, again=ALL),
    Kind("25 a scalar", "42", {}, again=ALL),
    Kind("26 a name that comes twice", '{"k": 4, "k": 5}', {"k": 5}),
    Kind("27 a missing comma", '{"style": "Be brief."\n "k": 4}', {"style": "Be brief.", "k": 4}, repaired=True),
    Kind("28 keys without quotes", '{style: "Be brief.", k: 4}', {"style": "Be brief.", "k": 4}, repaired=True),
    Kind("29 a missing last brace", '{"reasoning": "x", "values": {"style": "Be brief."}', SHORT, repaired=True),
    Kind("30 a brace too many", OBJECT + "}", SHORT),
    Kind("31 code with braces in a value", '{"style": "use {x} and }{ and \\"{\\""}', {"style": 'use {x} and }{ and "{"'}),
    Kind("32 code with raw newlines and quotes", '{"style": "def f():\n    return "a, b"\n", "k": 4}', {"k": 4}, again=("style",), repaired=True),
    Kind("33 Python's triple quotes", '{"style": """def f():\n    return "x"\n"""}', {}, again=("style",), repaired=True),
    Kind("34 a code fence inside a value", '{"style": "Use\\n```json\\n{\\"k\\": 9}\\n```"}', {"style": 'Use\n```json\n{"k": 9}\n```'}),
    Kind("34 the same with prose around", 'So: {"style": "Use\\n```json\\n{\\"k\\": 9}\\n```"} it is', {"style": 'Use\n```json\n{"k": 9}\n```'}),
    Kind("35 half a surrogate pair", '{"style": "\\ud800", "k": 4}', {"k": 4}, again=("style",)),
    Kind("36 a NUL", '{"style": "a\\u0000b", "k": 4}', {"k": 4}, again=("style",)),
    Kind("37 a bad escape", '{"style": "match \\d+"}', {"style": "match \\d+"}, repaired=True),
    Kind("38 typographic quotes", "{“style”: “Be brief.”}", SHORT, repaired=True),
    Kind("39 JSON inside a JSON text", json.dumps(OBJECT), SHORT),
    Kind("40 YAML", "style: Be brief.\nk: 4\n", {}, again=ALL),
    Kind("41 XML", "<style>Be brief.</style><k>4</k>", {}, again=ALL),
    Kind("42 a byte-order mark", "\ufeff" + OBJECT, SHORT),
    Kind("43 a text for an integer", '{"k": "4", "style": "Be brief."}', SHORT, again=("k",)),
    Kind("44 7.9 for an integer", '{"k": 7.9, "style": "Be brief."}', SHORT, again=("k",)),
    Kind("44 7.0 for an integer", '{"k": 7.0, "style": "Be brief."}', SHORT, again=("k",)),
    Kind("45 a text for a boolean", '{"flag": "False", "style": "Be brief."}', SHORT, again=("flag",)),
    Kind("45 1 for a boolean", '{"flag": 1, "style": "Be brief."}', SHORT, again=("flag",)),
    Kind("45 a boolean for a number", '{"rate": true, "k": true, "style": "Be brief."}', SHORT, again=("rate", "k")),
    Kind("46 an integer of 5000 digits", '{"k": ' + "9" * 5000 + ', "style": "Be brief."}', SHORT, again=("k",)),
    Kind("47 a number beyond all floats", '{"rate": 1e999, "style": "Be brief."}', SHORT, again=("rate",)),
    Kind("48 20,000 brackets", "[" * 20_000, None),
    Kind("48 20,000 nested objects", '{"style":' * 20_000, None),
    Kind("49 100,000 braces", "{" * 100_000, None),
    Kind("50 the schema echoed, then the answer", '{"type": "object", "properties": {"style": {"type": "string"}}}\n' + OBJECT, SHORT),
    Kind("51 the answer, then an example object", OBJECT + '\nThe program will then say {"topic": "sport"}.', SHORT),
    Kind("52 endless repetition, cut", '{"k": 4, "style": "' + "brief " * 5000, {"k": 4}, again=("style", "rate", "flag"), finish="length"),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.number)
def test_a_reply_gives_exactly_what_it_says(kind: Kind) -> None:
    def reading() -> None:
        if kind.values is None:
            with pytest.raises(ReplyError):
                read(kind.text, parameters(), finish=kind.finish)
        else:
            answer = read(kind.text, parameters(), finish=kind.finish)
            assert answer.values == kind.values
            assert all(type(answer.values[name]) is type(value) for name, value in kind.values.items())
            assert set(answer.problems) == set(kind.again)
            assert answer.repaired == kind.repaired

    assert least(lambda: cpu_time(reading), 0.05) <= 0.05


def test_all_52_kinds_are_in_the_table() -> None:
    assert {int(kind.number.split()[0]) for kind in KINDS} == set(range(1, 53))


def test_a_name_that_comes_twice_is_noted() -> None:
    assert read('{"k": 4, "k": 5}', parameters()).duplicates == ("k",)


def test_names_that_nothing_has_are_listed_and_the_others_kept() -> None:
    answer = read('{"values": {"style": "Be brief.", "stile": "x"}}', parameters())
    assert answer.values == SHORT
    assert answer.unknown == ("stile",)


def test_an_answer_with_wrong_names_only_is_asked_again() -> None:
    answer = read('{"values": {"stile": "x"}}', parameters())
    assert "'stile'" in answer.problems["style"]


def test_an_answer_that_changes_nothing_is_an_answer() -> None:
    answer = read('{"reasoning": "all is well", "values": {}}', parameters())
    assert (answer.values, answer.problems, answer.reason) == ({}, {}, "all is well")


def test_a_parameter_that_is_called_values_gets_its_value() -> None:
    answer = read('{"values": {"values": 5}}', [Parameter(3, name="values")])
    assert answer.values == {"values": 5}


def test_a_cut_reply_whose_last_text_was_complete_keeps_it() -> None:
    assert read('{"style": "Be brief."', parameters(), finish="length").values == SHORT


def test_a_list_that_was_cut_is_not_taken_for_a_whole_one() -> None:
    words = Parameter(["a"], name="words", type=list[str])
    assert read('{"words": ["a", "b"', [words], finish="length").values == {}


@pytest.mark.parametrize(
    "text", ["x" * 300_000, '{"a": 1} ' * 40_000, '"' * 200_000, "{[" * 100_000, "```\n{\n" * 40_000]
)
def test_a_hostile_reply_costs_little(text: str) -> None:
    def reading() -> None:
        with contextlib.suppress(ReplyError):
            assert read(text, [Parameter("a", name="style")]).values == {}

    assert least(lambda: cpu_time(reading), 0.2) <= 0.2


@given(st.text(max_size=300))
def test_no_text_does_anything_but_give_values_or_a_reply_error(text: str) -> None:
    try:
        answer = read(text, parameters())
    except ReplyError:
        return
    assert set(answer.values) <= set(ALL)


fragments = st.sampled_from(['{"values": ', '"style": "', '"', "{", "}", "[", "]", ",", "k: 4", "'k': ", "4", "true", "\\", "\n",
                             "```", "<think>", "</think>", "null", "NaN", "don't", "“", "//", '"k": '])  # fmt: skip


@given(st.lists(fragments, max_size=30).map("".join), st.sampled_from(["stop", "length"]))
def test_whatever_comes_values_are_of_their_parameters_own_type(text: str, finish: str) -> None:
    try:
        answer = read(text, parameters(), finish=finish)
    except ReplyError:
        return
    expected = {"style": str, "k": int, "rate": float, "flag": bool}
    assert all(type(value) is expected[name] for name, value in answer.values.items())


storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


@given(storable, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.booleans())
def test_values_survive_the_way_through_json(style: str, k: int, rate: float, flag: bool, fenced: bool) -> None:
    values = {"style": style, "k": k, "rate": rate, "flag": flag}
    text = json.dumps({"reasoning": "r", "values": values})
    assert read(f"```json\n{text}\n```" if fenced else text, parameters()).values == values


@given(storable, st.integers(min_value=1, max_value=200))
def test_a_cut_reply_never_gives_a_value_that_is_not_whole(style: str, at: int) -> None:
    values = {"style": style, "k": 12345, "rate": 0.625}
    text = json.dumps({"values": values})[:at]
    try:
        answer = read(text, parameters(), finish="length")
    except ReplyError:
        return
    assert all(answer.values[name] == values[name] for name in answer.values)


# -- values ----------------------------------------------------------------------------------------------------------


class Plan(BaseModel):
    steps: list[str]
    width: Annotated[int, Field(ge=1, le=4)] = 1


class Mode(enum.Enum):
    FAST = "fast"
    SURE = "sure"


@pytest.mark.parametrize(
    ("parameter", "raw", "value"),
    [
        (Parameter(0.5, name="p"), 2, 2.0),
        (Parameter("a", name="p", choices=["a", "b"]), "b", "b"),
        (Parameter(1.0, name="p", choices=[1.0, 2.0]), 2, 2.0),
        (Parameter(1, name="p", choices=[1, 1.0, True]), 1.0, 1.0),
        (Parameter(None, name="p", choices=[None, "a"]), None, None),
        (Parameter((1, 2), name="p", choices=[(1, 2), (3, 4)]), "(3, 4)", (3, 4)),
        (Parameter(Mode.FAST, name="p", choices=list(Mode)), repr(Mode.SURE), Mode.SURE),
        (Parameter(Mode.FAST, name="p", type=Mode), "sure", Mode.SURE),
        (Parameter((1, "a"), name="p", type=tuple[int, str]), [2, "b"], (2, "b")),
        (Parameter({1}, name="p", type=set[int]), [2, 3], {2, 3}),
        (Parameter(Plan(steps=["a"]), name="p", type=Plan), {"steps": ["b"], "width": 2}, Plan(steps=["b"], width=2)),
        (Parameter(["a"], name="p"), ["b"], ["b"]),
        (Parameter({"a": 1}, name="p", type=dict[str, int]), {"b": 2}, {"b": 2}),
        (Parameter(1, name="p", type=Literal[1, 2]), 2, 2),
    ],
    ids=repr,
)
def test_a_value_of_the_right_type_is_taken(parameter: Parameter[Any], raw: Any, value: Any) -> None:
    taken = value_of(parameter, raw)
    assert (taken, type(taken)) == (value, type(value))


@pytest.mark.parametrize(
    ("parameter", "raw"),
    [
        (Parameter(1, name="p", type=Literal[1, 2]), True),
        (Parameter(1, name="p", type=Literal[1, 2]), 1.0),
        (Parameter(True, name="p", type=Literal[True]), 1),
        (Parameter([1], name="p", type=list[Literal[1, 2]]), [2, True]),
        (Parameter(2, name="p", choices=[1, 2]), True),
        (Parameter(1, name="p", choices=[1, 2]), 2.0),
        (Parameter("a", name="p", choices=["a", "b"]), "A"),
        (Parameter(["a"], name="p", type=list[str]), '["a"]'),
        (Parameter(Plan(steps=["a"]), name="p", type=Plan), {"steps": ["b"], "width": 9}),
        (Parameter(Plan(steps=["a"]), name="p", type=Plan), {"steps": "b"}),
        (Parameter([0.5], name="p", type=list[float]), [math.inf]),
        (Parameter({"a": "b"}, name="p", type=dict[str, str]), {"a\x00": "b"}),
        (Parameter("a", name="p"), 3),
        (Parameter("a", name="p"), ["a"]),
    ],
    ids=repr,
)
def test_a_value_of_another_type_is_refused_with_its_reason(parameter: Parameter[Any], raw: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        value_of(parameter, raw)


def test_null_leaves_a_value_as_it_is_unless_its_type_takes_it() -> None:
    optional: Parameter[Any] = Parameter("a", name="hint", type=str | None)
    answer = read('{"style": null, "hint": null}', [*parameters(), optional])
    assert answer.values == {"hint": None}


# -- asking ----------------------------------------------------------------------------------------------------------


def asked(*replies: str | Reply | Exception) -> tuple[ScriptedLLM, Any, dict[str, Any]]:
    left = list(replies)
    llm = ScriptedLLM(lambda messages: left.pop(0), attempts=1)
    answer, notes = asyncio.run(ask(llm, [{"role": "user", "content": "q"}], parameters()))
    return llm, answer, notes


def test_a_clean_reply_costs_one_call() -> None:
    llm, answer, notes = asked(OBJECT)
    assert (llm.calls, answer.values, notes["calls"]) == (1, SHORT, 1)


def test_wrong_values_are_asked_for_once_more_by_name_and_reason() -> None:
    llm, answer, _ = asked('{"style": "Be brief.", "k": "4"}', '{"values": {"k": 4}}')
    assert answer.values == {"style": "Be brief.", "k": 4}
    assert answer.problems == {}
    question = str(llm.requests[1].messages[-1]["content"])
    assert "- k: " in question
    assert "valid integer" in question
    assert "style" not in question


def test_the_second_question_comes_after_the_model_s_own_first_answer() -> None:
    llm, _, _ = asked('{"k": "4"}', '{"k": 4}')
    assert [message["role"] for message in llm.requests[1].messages] == ["user", "assistant", "user"]
    assert llm.requests[1].messages[1]["content"] == '{"k": "4"}'


def test_the_schema_of_the_second_question_holds_only_what_is_asked_again() -> None:
    llm, _, _ = asked('{"style": "Be brief.", "k": "4"}', '{"k": 4}')
    schema: Any = llm.requests[1].schema
    assert list(schema["properties"]["values"]["properties"]) == ["k"]


def test_a_value_that_stays_wrong_is_left_and_recorded() -> None:
    llm, answer, notes = asked('{"style": "Be brief.", "k": "4"}', '{"k": "5"}')
    assert llm.calls == 2
    assert answer.values == SHORT
    assert "k" in notes["problems"]


@pytest.mark.parametrize(
    "second",
    ["", "I can't.", BudgetError("the budget is spent"), LLMError("the server is down", kind="server")],
    ids=str,
)
def test_a_second_reply_that_cannot_be_had_keeps_the_first_one_s_values(second: str | Exception) -> None:
    _, answer, notes = asked('{"style": "Be brief.", "k": "4"}', second)
    assert answer.values == SHORT
    assert "second_reply" in notes


def test_a_key_that_is_refused_at_the_second_call_is_the_user_s_error() -> None:
    with pytest.raises(LLMError, match="key"):
        asked('{"k": "4"}', LLMError("the key was refused", kind="key"))


def test_a_reply_without_an_answer_is_not_asked_again() -> None:
    left = ["I would rather not."]
    llm = ScriptedLLM(lambda messages: left.pop(0))
    with pytest.raises(ReplyError, match="no object"):
        asyncio.run(ask(llm, [{"role": "user", "content": "q"}], parameters()))
    assert llm.calls == 1
