"""Values as text: bounded, honest about what is left out, and unable to pass for anything else."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.cpu_time import cpu_time, least
from trace_opt.core.node import Failure
from trace_opt.core.parameter import Demonstrations
from trace_opt.optim.text import block, cut, json_text, literal, name_text, size, tokens_in

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
plain_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=10,
)  # fmt: skip


@given(plain_values)
def test_a_short_value_is_its_python_literal(value: Any) -> None:
    assert ast.literal_eval(literal(value, 5000)) == value


@given(plain_values, st.integers(min_value=60, max_value=400))
def test_a_value_is_one_line_and_about_as_long_as_allowed(value: Any, limit: int) -> None:
    shown = literal(value, limit)
    assert len(shown.splitlines()) == 1
    assert len(shown) <= limit * 2 + 120  # an escaped character is longer than itself


@given(st.text(max_size=200))
def test_a_block_holds_every_line_behind_its_mark(text: str) -> None:
    lines = block(text).split("\n")
    assert all(line.startswith("  | ") for line in lines)
    assert len(lines) == max(1, len(text.splitlines()))


@given(st.text(max_size=100))
def test_json_text_stays_on_one_line_and_is_exact(text: str) -> None:
    assert len(json_text(text).splitlines()) == 1
    assert json.loads(json_text(text)) == text


def test_a_long_text_is_cut_in_the_middle_with_its_length() -> None:
    shown = literal("a" * 5000 + "z" * 5000, 200)
    assert shown.startswith("'aaa")
    assert shown.endswith("zzz'")
    assert "10,000 characters" in shown


def test_a_long_list_shows_both_ends_and_its_count() -> None:
    shown = literal(list(range(1000)), 100)
    assert shown.startswith("[0, 1, ")
    assert "998, 999" in shown
    assert "(1000 in all)" in shown


HUGE: dict[str, Callable[[], Any]] = {
    "text": lambda: "x" * 50_000_000,
    "list": lambda: list(range(3_000_000)),
    "dict": lambda: {i: i for i in range(1_000_000)},
    "integer": lambda: 10**400_000,
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_value_costs_what_is_shown(kind: str) -> None:
    value = HUGE[kind]()
    assert least(lambda: cpu_time(lambda: literal(value, 200)), 0.2) <= 0.2


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Plain:
    pass


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Hostile(), "(a Hostile whose repr raised RuntimeError)"),
        (b"x" * 100, "bytes of 100 bytes"),
        (torch.zeros(3, 50), "a float32 tensor of shape (3, 50)"),
        (torch.tensor([1.0, 2.0]), "tensor([1.0, 2.0])"),
        (Failure("ValueError", "bad\nthing"), "ValueError: bad thing"),
        (Demonstrations(2, ("a",)), "Demonstrations of 'a'"),
        ({"b", "a"}, "{'a', 'b'}"),
        (set(), "set()"),
        ((1,), "(1,)"),
        ("\ud800", "'\\ud800'"),
    ],
    ids=["hostile", "bytes", "tensor", "small tensor", "failure", "demonstrations", "set", "empty set", "tuple", "surrogate"],
)  # fmt: skip
def test_special_values_say_what_they_are(value: Any, shown: str) -> None:
    assert literal(value) == shown


def test_an_object_s_address_is_not_shown() -> None:
    assert "0x" not in literal(Plain())


def test_names_that_could_pass_for_text_are_quoted() -> None:
    assert name_text("planner.prompt") == "planner.prompt"
    assert name_text("a\n# Variables") == '"a\\n# Variables"'


def test_cut_keeps_short_texts_as_they_are() -> None:
    assert cut("short", 10) == "short"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        # counted with OpenAI's cl100k_base
        ("Find values for the variables under which the outputs get better feedback.", 13),
        ("step_12 = step(x=step_11, y=10)\n" * 20, 300),
        ("0.8474337369372327 0.763774618976614 0.2550690257394217", 25),
        ("请用一句话回答这个问题,并说明理由。" * 10, 180),
        ("😀🚀🎉" * 10, 80),
    ],
    ids=["prose", "code", "numbers", "chinese", "emoji"],
)
def test_the_estimate_of_tokens_is_rather_too_high_than_too_low(text: str, tokens: int) -> None:
    assert tokens * 0.95 <= tokens_in(text) <= tokens * 2.2


def test_size_counts_bytes() -> None:
    assert (size("abc"), size("é"), size("\ud800")) == (3, 2, 1)
