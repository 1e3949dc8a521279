"""Content is equal for equal values only, and missing where no hash can stand for a value."""

import copy
import datetime as dt
import enum
import math
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from trace_opt.core.content import content
from trace_opt.core.module import Module
from trace_opt.core.parameter import Demonstrations, Parameter


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Point:
    x: int
    y: Any = field(default=0)


class Pair(NamedTuple):
    left: int
    right: int


class Doc(BaseModel):
    text: str
    tags: list[str] = []


class Agent(Module):
    def __init__(self, shots: int) -> None:
        super().__init__()
        self.shots = shots
        self.prompt = Parameter("be brief", name="prompt")


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(plain)
def test_a_copy_has_the_same_content(value: Any) -> None:
    one, other = content(value), content(copy.deepcopy(value))
    assert one == other
    assert one is not None


@given(plain, plain)
def test_different_values_have_different_content(one: Any, other: Any) -> None:
    assert (repr(one) == repr(other)) == (content(one) == content(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        ("1", 1),
        (b"a", "a"),
        ([1, 2], (1, 2)),
        ([[1], 2], [[1, 2]]),
        (["ab"], ["a", "b"]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),  # a function may depend on the order
        ({1}, frozenset({1})),
        (Colour.RED, Colour.BLUE),
        (Point(1), Point(2)),
        (Pair(1, 2), (1, 2)),
        (Doc(text="a"), Doc(text="a", tags=["b"])),
        (Path("a"), "a"),
        (Decimal("1.0"), Decimal("1.00")),
        (dt.date(2026, 1, 1), dt.date(2026, 1, 2)),
        (np.zeros(2), np.zeros((2, 1))),
        (np.zeros(2), np.zeros(2, "float32")),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), np.zeros(2, "float32")),
        (Demonstrations(2, ({"a": 1},)), Demonstrations(3, ({"a": 1},))),
        (Agent(1), Agent(2)),
    ],
)
def test_what_a_function_can_tell_apart_has_different_content(one: Any, other: Any) -> None:
    first, second = content([one]), content([other])
    assert first is not None
    assert second is not None
    assert first.digest != second.digest


@pytest.mark.parametrize(
    "value",
    [
        {"b", "a", "c"},
        Point(1, [Pair(1, 2), Colour.RED]),
        Doc(text="a"),
        np.arange(6).reshape(2, 3)[:, ::2],
        torch.arange(6).reshape(2, 3)[:, ::2],
        math.nan,
        "\ud800",
        2**200,
        Agent(1),
    ],
)
def test_equal_values_have_equal_content(value: Any) -> None:
    assert content(value) == content(copy.deepcopy(value)) is not None


def test_a_modules_parameters_count_by_name_and_not_by_value() -> None:
    one, other = Agent(1), Agent(1)
    other.prompt.value = "be long"
    assert content(one) == content(other)


def test_what_no_hash_stands_for_has_no_content() -> None:
    class Local(Module):
        pass

    deep: list[Any] = []
    deep.append(deep)
    unstable = [object(), lambda: 0, print, deep, torch.ones(1, requires_grad=True), Local(), np.array([object()]), int]
    for value in unstable:
        assert content(value) is None
        assert content({"in": [value]}) is None


def test_the_size_grows_with_what_is_held() -> None:
    small, large = content("a" * 10), content(["a" * 10_000])
    assert small is not None
    assert large is not None
    assert small.size < 100 < 10_000 < large.size < 11_000
