"""What a Parameter holds, allows and refuses."""

# ruff: noqa: TID251, SIM105 # the forms these rules object to are what is tested

import copy
import operator
import pickle
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from trace_opt.core.constraint import Ball, Box, Simplex
from trace_opt.core.parameter import Demonstrations, Parameter, by_name, same, short
from trace_opt.core.tracer import plain, record
from trace_opt.errors import TraceError


class Persona(BaseModel):
    tone: str
    age: int


KINDS: dict[str, Parameter[Any]] = {
    "text": Parameter("a", name="p"),
    "number": Parameter(1.5, name="p"),
    "boolean": Parameter(True, name="p"),
    "tensor": Parameter(torch.ones(2), name="p"),
    "choice": Parameter("a", name="p", choices=["a", "b"]),
    "demonstrations": Parameter(Demonstrations(4), name="p"),
    "structured": Parameter(Persona(tone="warm", age=3), name="p"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_follows_from_the_value(kind: str) -> None:
    assert KINDS[kind].kind == kind
    assert Parameter(3, name="p").kind == "number"
    assert Parameter([1], name="p", type=list[int]).kind == "structured"
    assert Parameter("a", name="p", type=Literal["a", "b"]).kind == "structured"


ALLOWED: list[tuple[Parameter[Any], Any]] = [
    (Parameter(1.5, name="p"), 2),
    (Parameter(1.5, name="p"), -2.5),
    (Parameter("a", name="p"), ""),
    (Parameter("a", name="p", choices=("a", "b")), "b"),
    (Parameter("a", name="p", suggestions=["b"]), "c"),
    (Parameter(torch.ones(2), name="p"), torch.zeros(2)),
    (Parameter(Demonstrations(2), name="p"), Demonstrations(2, (1,))),
    (Parameter([1], name="p", type=list[int]), [2, 3]),
    (Parameter(Persona(tone="a", age=1), name="p"), Persona(tone="b", age=2)),
]
REFUSED: list[tuple[Parameter[Any], Any]] = [
    (Parameter(1, name="p"), 1.5),
    (Parameter(1, name="p"), True),
    (Parameter(1, name="p"), "1"),
    (Parameter(1.5, name="p"), float("nan")),
    (Parameter(True, name="p"), 1),
    (Parameter("a", name="p"), None),
    (Parameter("a", name="p", choices=("a", "b")), "c"),
    (Parameter(1, name="p", choices=(1, 2)), True),
    (Parameter(torch.ones(2), name="p"), torch.ones(3)),
    (Parameter(torch.ones(2), name="p"), [1.0, 2.0]),
    (Parameter(Demonstrations(2), name="p"), [1]),
    (Parameter([1], name="p", type=list[int]), ["1"]),
    (Parameter("a", name="p", type=Literal["a", "b"]), "c"),
]


@pytest.mark.parametrize("case", range(len(ALLOWED)))
def test_an_allowed_value_is_taken_as_it_is(case: int) -> None:
    parameter, value = ALLOWED[case]
    assert parameter.check(value) is value
    fresh = copy.copy(parameter)
    fresh.value = value
    assert fresh.value is value


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_a_value_that_does_not_fit_is_refused_by_name_and_never_converted(case: int) -> None:
    parameter, value = REFUSED[case]
    before = parameter.value
    with pytest.raises(ValueError, match="'p'"):
        parameter.value = value
    assert parameter.value is before


@given(st.one_of(st.integers(), st.floats(), st.text(), st.booleans(), st.none(), st.lists(st.integers())))
def test_check_gives_back_the_very_value_or_refuses(value: Any) -> None:
    for parameter in KINDS.values():
        try:
            assert parameter.check(value) is value
        except ValueError:
            pass


def test_an_initial_value_or_suggestion_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of"):
        Parameter("z", name="p", choices=["a"])
    with pytest.raises(ValueError, match="at least one"):
        Parameter("z", name="p", choices=[])
    with pytest.raises(ValueError, match="'str'"):
        Parameter("z", name="p", suggestions=[1])
    with pytest.raises(ValueError, match="at most k"):
        Demonstrations(1, (1, 2))


def test_demonstrations_are_a_sequence_of_their_examples() -> None:
    shown = Demonstrations(4, [1, 2])
    assert (list(shown), len(shown), shown.examples) == ([1, 2], 2, (1, 2))


REFUSALS: dict[str, Any] = {
    "str": str, "format": format, "bool": bool, "len": len, "iter": iter, "int": int, "float": float,
    "add": lambda p: p + 1, "radd": lambda p: "a" + p, "mul": lambda p: p * 2, "lt": lambda p: p < 1,
    "getitem": lambda p: p[0], "call": lambda p: p(), "in": lambda p: 1 in p, "mod": lambda p: p % 2,
    "in text": lambda p: f"{p}",
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_parameter_has_no_operators_and_no_conversions(case: str) -> None:
    with pytest.raises(TraceError, match=r"use \.value"):
        REFUSALS[case](Parameter("a", name="p"))


def test_a_parameter_without_a_name_says_what_to_do() -> None:
    with pytest.raises(TraceError, match="name="):
        _ = Parameter("a").name
    assert repr(Parameter("a")) == "Parameter('a', name=None)"
    assert repr(Parameter("a", name="p", frozen=True)) == "Parameter('a', name='p', frozen)"


def test_two_parameters_of_one_name_are_refused() -> None:
    p, q = Parameter("a", name="same"), Parameter("b", name="same")
    assert by_name([p, p]) == {"same": p}
    with pytest.raises(TraceError, match="'same'"):
        by_name([p, q])


def test_a_parameter_can_be_copied_and_pickled() -> None:
    p = Parameter([1], name="p", type=list[int], description="d", frozen=True)
    p.check([2])  # makes the adapter
    for made in (copy.deepcopy(p), pickle.loads(pickle.dumps(p)), copy.copy(p)):
        assert (made.name, made.value, made.description, made.frozen, made.kind) == ("p", [1], "d", True, "structured")
        assert made.check([3]) == [3]


def test_a_recording_hands_out_tensor_leaves_of_its_own() -> None:
    p = Parameter(torch.ones(2), name="p")
    with record() as one:
        a = plain(p.value)
    with record(training=False) as two:
        b = plain(p.value)
    assert (a.requires_grad, b.requires_grad, p.value.requires_grad) == (True, False, False)
    assert a.data_ptr() == p.value.data_ptr()
    assert one["p"].value is not two["p"].value


def test_equal_means_equal_in_type_too() -> None:
    assert same(1, 1)
    assert not same(1, True)
    assert not same(1, 1.0)


@given(st.text(), st.integers(10, 100))
def test_short_is_never_longer_than_asked(text: str, width: int) -> None:
    assert len(short(text, width)) <= width
    assert len(repr(text)) > width or short(text, width) == repr(text)


@pytest.mark.parametrize(
    "make", [lambda: Box(2, 1), lambda: Box(float("nan"), 1), lambda: Ball(0), lambda: Ball(-1)], ids=range(4)
)
def test_an_empty_constraint_is_refused(make: Any) -> None:
    with pytest.raises(ValueError):
        make()


def test_constraints_are_values() -> None:
    assert (Box(0, 1), Ball(1), Simplex()) == (Box(0, 1), Ball(1, 2.0), Simplex())
    assert operator.ne(Box(0, 1), Box(0, 2))


def test_a_plain_dict_is_no_structured_value() -> None:
    class Settings(BaseModel):
        depth: int

    parameter = Parameter(Settings(depth=1), name="settings")

    with pytest.raises(ValueError, match=r"a plain dict; give a Settings\(\.\.\.\)"):
        Parameter(Settings(depth=1), name="settings", type=Settings).check({"depth": 2})
    assert parameter.value.depth == 1
