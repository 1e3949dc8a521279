"""What may cross: found at decoration time where the annotation tells, and never trusted when it comes back."""

from __future__ import annotations

import datetime as dt
import enum
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from trace_opt.core.sandbox import border, wire
from trace_opt.core.sandbox.wire import Instance, Refused
from trace_opt.core.sandbox.worker import MACHINES, filter_program


@dataclass
class Point:
    x: int
    y: float = 0.0


class Model(BaseModel):
    early: int = 1
    points: list[Point]
    name: str | None = None


class Typed(TypedDict):
    a: int


class Colour(enum.Enum):
    RED = 1


@dataclass
class Holder:
    run: Callable[[], int]


@dataclass
class Tree:
    value: int
    children: list[Tree]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=20)
    | st.complex_numbers(allow_nan=False) | st.dates() | st.datetimes() | st.timedeltas()
    | st.decimals(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4)
    | st.frozensets(st.integers() | st.text(max_size=2), max_size=4) | st.sets(st.integers(), max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(PLAIN)
def test_every_plain_value_crosses_unchanged(value: Any) -> None:
    found = wire.load(wire.dump(border.sent(value), 10**6))
    assert found == value
    assert repr(type(found)) == repr(type(value))
    assert border.admitted(found, border.ANY) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["$", "v", "c", "dtype", "shape", "a"]), inner | st.sampled_from(
        ["tuple", "set", "dict", "array", "scalar", "instance", "bytes", "float", "complex", "date", "timedelta", "Decimal", "x"]
    ), max_size=5),
    max_leaves=10,
)  # fmt: skip


@given(JSON)
def test_whatever_a_confined_process_says_is_a_value_or_refused(data: Any) -> None:
    try:
        value = wire.load(json.dumps(data))
    except ValueError:
        return
    with suppress(Refused):
        border.admitted(value, list[int])


@pytest.mark.parametrize(
    "text", ["", "[", "[" * 100_000, '{"$": "array", "dtype": "O", "shape": [1], "v": ""}', "1" * 5000]
)
def test_broken_answers_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        wire.load(text)


class Hostile:
    def __getattribute__(self, name: str) -> Any:
        raise AssertionError("touched")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("touched")

    __hash__ = None  # type: ignore

    def __repr__(self) -> str:
        raise AssertionError("touched")


class Text(str):
    __slots__ = ()

    def __len__(self) -> int:
        return 0


FOREIGN: dict[str, Callable[[], Any]] = {
    "instance": Hostile, "in a list": lambda: [Hostile()], "in a dict": lambda: {"a": (Hostile(),)}, "text": lambda: Text("x"),
    "key": lambda: {Text("x"): 1}, "function": lambda: print, "member": lambda: Colour.RED, "range": lambda: range(3),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_nothing_of_a_foreign_class_runs_when_it_is_refused(name: str) -> None:
    value = FOREIGN[name]()
    with pytest.raises(Refused):
        wire.dump(value, 1000)
    with pytest.raises(Refused):
        border.sent(value)
    with pytest.raises(Refused):
        border.admitted(value, border.ANY)
    assert border.brief(value).startswith("a '")


def test_size_and_depth_are_bounded_whatever_is_shared() -> None:
    value: Any = "a" * 1000
    for _ in range(60):
        value = [value, value]
    with pytest.raises(Refused) as caught:
        wire.dump(value, 100_000)
    assert caught.value.limit
    deep: Any = []
    for _ in range(10_000):
        deep = [deep]
    for check in (lambda: wire.dump(deep, 10**6), lambda: border.sent(deep), lambda: border.admitted(deep, border.ANY)):
        with pytest.raises(Refused) as caught:
            check()
        assert caught.value.limit


@pytest.mark.parametrize(
    "annotation",
    [
        int, str, Any, border.ANY, None | int, list[int], dict[str, tuple[int, ...]], Literal["a", 1], Point, Model, Tree, Typed,
        dt.date, Sequence[int], Mapping[str, list[Point]], set[str], object, type(None), bytes,
    ],
    ids=str,
)  # fmt: skip
def test_annotations_of_data_can_cross(annotation: Any) -> None:
    assert border.obstacle(annotation) is None


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Callable[[int], str], "uses="), (Iterator[int], "no data"), (list[Colour], "'Colour'"), (type, "'type'"),
        (dict[str, Holder], "uses="), (np.ndarray, "arrays=True"), (torch.Tensor | None, "arrays=True"), (Hostile, "'Hostile'"),
    ],
    ids=str,
)  # fmt: skip
def test_annotations_of_what_cannot_cross_are_named_before_any_call(annotation: Any, words: str) -> None:
    found = border.obstacle(annotation)
    assert found is not None
    assert words in found


def test_arrays_are_no_obstacle_where_they_are_asked_for() -> None:
    assert border.obstacle(np.ndarray, arrays=True) is None
    assert border.obstacle(list[torch.Tensor], arrays=True) is None


def test_definitions_are_dataclasses_that_any_python_runs() -> None:
    space: dict[str, Any] = {}
    exec(border.definitions(border.shapes(dict[str, Model])), space)
    assert space["Model"](points=[space["Point"](1)]).early == 1
    assert space["Model"](2, [], "n").name == "n"
    assert border.definitions({}) == ""


def test_fields_are_checked_one_by_one() -> None:
    good = Instance("Model", {"early": 2, "points": [Instance("Point", {"x": 1, "y": 2.0})], "name": None})
    assert border.admitted(good, Model) == Model(early=2, points=[Point(1, 2.0)])
    for fields, words in (
        ({"early": "2", "points": [], "name": None}, "field 'early'"),
        ({"early": 2, "points": [Instance("Point", {"x": "a", "y": 1.0})], "name": None}, "field 'x'"),
        ({"early": 2, "points": []}, "lacks the field 'name'"),
        ({"early": 2, "points": [Instance("Other", {})], "name": None}, "does not name"),
    ):
        with pytest.raises(Refused, match=words):
            border.admitted(Instance("Model", fields), Model)


@pytest.mark.parametrize("dtype", ["float32", "int8", "bool", "complex128", ">i4"])
def test_arrays_cross_bit_by_bit(dtype: str) -> None:
    array = (np.arange(12).reshape(3, 4) % 5).astype(dtype)
    found = wire.load(wire.dump(border.sent(array.T, arrays=True), 10_000))
    assert found.dtype == array.dtype
    assert (found == array.T).all()


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_the_filter_lets_through_what_it_lists_and_nothing_else(machine: str) -> None:
    """The seccomp program, run by an interpreter of its own."""
    program = filter_program(machine)
    steps = [
        (int.from_bytes(program[i : i + 2], "little"), program[i + 2], program[i + 3], int.from_bytes(program[i + 4 : i + 8], "little"))
        for i in range(0, len(program), 8)
    ]  # fmt: skip
    audit, allowed = MACHINES[machine]

    def verdict(number: int, arch: int) -> int:
        at, held = 0, 0
        while True:
            code, yes, no, value = steps[at]
            if code == 0x20:
                held = arch if value == 4 else number
            elif code == 0x06:
                return value
            else:
                at += yes if held == value else no
            at += 1

    for number in range(600):
        assert verdict(number, audit) == (0x7FFF0000 if number in allowed else 0x00050001)
        assert verdict(number, 0x40000003) == 0x80000000  # another instruction set has other numbers
    assert verdict(0x40000000, audit) == 0x00050001  # the x32 numbers
