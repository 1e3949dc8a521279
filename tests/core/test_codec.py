"""Values through JSON: exact for what is listed, described for the rest."""

import json
import math
from datetime import date
from enum import Enum
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.strategies import tensors, values
from trace_opt.core.codec import Unrestored, canonical, content_hash, decode, dump_value, encode, restore_value
from trace_opt.core.parameter import Demonstrations, Parameter


def alike(left: Any, right: Any) -> bool:
    """Equal in value and type, NaN to itself."""
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(alike, left, right))
    if isinstance(left, dict):
        return len(left) == len(right) and all(alike(a, b) for a, b in zip(left.items(), right.items(), strict=True))
    if isinstance(left, (set, frozenset)):
        return sorted(map(canonical, left)) == sorted(map(canonical, right))
    if isinstance(left, Demonstrations):
        return left.k == right.k and alike(left.examples, right.examples)
    if isinstance(left, (float, complex)):
        return repr(left) == repr(right)
    return left == right


@settings(max_examples=300)
@given(values)
def test_values_round_trip_exactly_through_json_text(value: Any) -> None:
    text = json.dumps(encode(value), allow_nan=False, ensure_ascii=False)
    text.encode()
    assert "\x00" not in text
    assert alike(decode(json.loads(text)), value)


@settings(max_examples=100, deadline=None)
@given(tensors())
def test_tensors_round_trip_exactly(tensor: Any) -> None:
    again = decode(json.loads(json.dumps(encode([tensor]))))[0]
    assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(again, tensor)


def test_a_tensor_loses_its_gradient_graph_only() -> None:
    made = torch.ones(2, requires_grad=True) * 2
    assert torch.equal(decode(encode(made)), made.detach())
    assert torch.equal(decode(encode(torch.tensor([1 + 2j]).conj())), torch.tensor([1 - 2j]))


@pytest.mark.parametrize("tensor", [torch.eye(2).to_sparse(), torch.empty(2, device="meta")], ids=["sparse", "meta"])
def test_a_tensor_without_plain_bytes_is_described(tensor: Any) -> None:
    assert isinstance(decode(encode(tensor)), Unrestored)


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("value", [len, object(), Hostile(), range(3), [Hostile()]], ids=range(5))
def test_other_values_are_described_and_not_restored(value: Any) -> None:
    again = decode(json.loads(json.dumps(encode(value))))
    again = again[0] if isinstance(again, list) else again
    assert isinstance(again, Unrestored)
    assert again == decode(encode(value if not isinstance(value, list) else value[0]))
    assert len({again, again}) == 1


def test_depth_is_bounded() -> None:
    deep: Any = []
    for _ in range(10_000):
        deep = [deep]
    assert json.dumps(encode(deep))


def test_an_unknown_tag_is_refused() -> None:
    with pytest.raises(ValueError, match="upgrade"):
        decode({"$": "from the future"})


@given(values, values)
def test_hashes_are_equal_exactly_where_values_are(left: Any, right: Any) -> None:
    assert (content_hash(left) == content_hash(right)) is (canonical(left) == canonical(right))
    assert content_hash(left) == content_hash(decode(encode(left)))


def test_canonical_does_not_depend_on_the_order_of_keys_or_sets() -> None:
    assert canonical({"a": 1, "b": {2, 3}}) == canonical({"b": {3, 2}, "a": 1})
    assert canonical(1) != canonical(1.0) != canonical(True)
    assert canonical(math.nan) == canonical(math.nan)


class Persona(BaseModel):
    tone: str
    tags: set[str] = set()


PARAMETERS: list[Parameter[Any]] = [
    Parameter("a", name="p"),
    Parameter(1.5, name="p"),
    Parameter(True, name="p"),
    Parameter((1, "x"), name="p", choices=[(1, "x"), (2, "y")]),
    Parameter(Demonstrations(2, ({"q": 1},)), name="p"),
    Parameter(Persona(tone="a", tags={"x", "y"}), name="p"),
    Parameter([(1, "a")], name="p", type=list[tuple[int, str]]),
]


@pytest.mark.parametrize("case", range(len(PARAMETERS)))
def test_a_parameters_value_round_trips_through_its_type(case: int) -> None:
    parameter = PARAMETERS[case]
    again = restore_value(parameter, json.loads(json.dumps(dump_value(parameter, parameter.value))))
    assert again == parameter.value
    assert type(again) is type(parameter.value)


def test_a_stored_value_that_no_longer_fits_is_refused() -> None:
    with pytest.raises(ValueError):
        restore_value(Parameter(1, name="p"), "text")
    with pytest.raises(ValueError):
        restore_value(PARAMETERS[5], {"tone": 3})


@given(st.integers())
def test_integers_of_any_size_keep_their_value(number: int) -> None:
    assert decode(json.loads(json.dumps(encode(number)))) == number


def test_a_choice_that_json_has_no_word_for_is_found_again() -> None:
    """Enums and dates among the choices, so that a run over them can be resumed."""
    kinds = Enum("kinds", ["ONE", "TWO"])
    for choices in (list(kinds), [date(2020, 1, 2), date(2021, 3, 4)]):
        parameter = Parameter(choices[0], name="choice", choices=choices)
        assert [restore_value(parameter, dump_value(parameter, choice)) for choice in choices] == choices
