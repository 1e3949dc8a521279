from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.cli.export import diff_lines
from trace_opt.cli.terminal import visible
from trace_opt.cli.values import encoded, literal, python_module, value_text, values_lines, values_text
from trace_opt.core.codec import Unrestored, canonical, decode
from trace_opt.core.parameter import Demonstrations
from trace_opt.errors import StoreError

texts = st.text(st.characters(exclude_categories=[]), max_size=200)
plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), texts, st.binary(max_size=20)
)
hashable = st.one_of(st.none(), st.booleans(), st.integers(), texts)
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner),
        st.tuples(inner, inner),
        st.dictionaries(hashable, inner, max_size=4),
        st.sets(hashable, max_size=3),
        st.frozensets(hashable, max_size=3),
        st.lists(inner, max_size=3).map(lambda items: Demonstrations(5, tuple(items))),
    ),
    max_leaves=12,
)


@given(values)
def test_a_literal_gives_its_value_back(value: Any) -> None:
    scope = {"Demonstrations": Demonstrations, "torch": torch}
    assert canonical(eval(literal(value, 4), scope)) == canonical(value)


@given(st.dictionaries(st.text(max_size=10), values, max_size=4), texts)
def test_a_module_holds_all_values_whatever_they_and_the_title_are(given_values: dict[str, Any], title: str) -> None:
    scope: dict[str, Any] = {}
    source = python_module(given_values, title=title)
    exec(compile(source, "values.py", "exec"), scope)
    assert canonical(scope["VALUES"]) == canonical(given_values)


@given(values)
def test_encoded_values_decode_to_themselves(value: Any) -> None:
    assert canonical(decode(encoded({"it": value})["it"])) == canonical(value)


@given(texts)
def test_visible_text_has_nothing_that_steers_a_terminal(text: str) -> None:
    shown = visible(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert not any(0x7F <= ord(c) < 0xA0 for c in shown)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=100))
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert visible(text) == text


@given(texts, texts)
def test_a_diff_is_empty_only_for_equal_values(left: str, right: str) -> None:
    lines = diff_lines({"p": left}, {"p": right}, "a", "b")
    assert (lines == []) == (left == right)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([[0.1, float("nan")], [float("-inf"), 3.0]]),
        torch.tensor(2.5, dtype=torch.float64),
        torch.tensor([1, 2, 3]),
        torch.tensor([True, False]),
        torch.zeros(0, 3),
        torch.tensor([0.1, 0.2], dtype=torch.bfloat16),
    ],
)
def test_a_tensor_s_literal_is_exact(tensor: torch.Tensor) -> None:
    back = eval(literal(tensor), {"torch": torch})
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back.nan_to_num(7.0), tensor.nan_to_num(7.0))


def test_a_value_that_was_not_kept_whole_is_refused_as_python() -> None:
    with pytest.raises(StoreError, match="by its repr only"):
        literal(Unrestored("<thing>", "my.Thing"))


def test_demonstrations_are_listed_one_by_one() -> None:
    shown = Demonstrations(3, ({"question": "one\ntwo", "answer": 3}, "bare"))
    assert value_text(shown) == "1. question: one\ntwo\n   answer: 3\n2. bare"


def test_values_as_text_stand_under_their_names() -> None:
    assert values_text({"a": "one\ntwo", "b": 3}) == "# a\none\ntwo\n\n# b\n3\n"


def test_long_texts_are_indented_below_their_name() -> None:
    assert values_lines({"a": "x", "b": "one\ntwo"}) == ["  a: 'x'", "  b:", "    one", "    two"]


def test_values_that_only_read_alike_still_differ() -> None:
    assert "-1" in diff_lines({"p": 1}, {"p": "1"}, "a", "b")
