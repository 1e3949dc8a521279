"""Floats and tensors become one vector in comparable units, and come back as values that are allowed."""

from __future__ import annotations

import math
from typing import Annotated, Any

import pytest
import torch
from annotated_types import Ge, Interval
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from trace_opt.core.constraint import Box
from trace_opt.core.parameter import Parameter
from trace_opt.optim.numeric.vector import Bounds, Vector, bounds_of, handled

D = torch.float64


def mixed() -> list[Parameter[Any]]:
    return [
        Parameter(250.0, name="wide"),
        Parameter(0.3, name="share", type=Annotated[float, Field(ge=0, le=4)]),
        Parameter(torch.tensor([[1.0, -7.0], [0.0, 2.0]]), name="matrix"),
        Parameter(torch.tensor(0.5, dtype=D), name="scalar", constraint=Box(0.0, 10.0)),
    ]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (float, Bounds()),
        (Annotated[float, Field(ge=-1, le=2)], Bounds(-1, 2)),
        (Annotated[float, Field(ge=0)], Bounds(0)),
        (Annotated[float, Field(gt=0, lt=1)], Bounds(math.nextafter(0, 1), math.nextafter(1, 0))),
        (Annotated[float, Ge(-3)], Bounds(-3)),
        (Annotated[float, Interval(ge=-3, le=3)], Bounds(-3, 3)),
        (Annotated[float, Field(ge=0), Field(le=1), "a share"], Bounds(0, 1)),
        (Annotated[float, Field(description="a share")], Bounds()),
        (Annotated[float, Field(multiple_of=0.5)], None),
        (float | None, None),
    ],
)
def test_bounds_are_read_from_the_type(annotation: Any, expected: Bounds | None) -> None:
    assert bounds_of(Parameter(0.5, name="x", type=annotation)) == expected


@pytest.mark.parametrize(
    ("parameter", "takes"),
    [
        (Parameter(1.0, name="x"), True),
        (Parameter(1, name="x", type=float), True),
        (Parameter(1, name="x"), False),
        (Parameter(1, name="x", type=Annotated[int, Field(ge=0)]), False),
        (Parameter(True, name="x"), False),
        (Parameter(1.0, name="x", choices=(1.0, 2.0)), False),
        (Parameter("1.0", name="x"), False),
        (Parameter(torch.ones(2, dtype=torch.float16), name="x"), True),
        (Parameter(torch.ones(2, dtype=torch.int64), name="x"), False),
        (Parameter(None, name="x"), False),
    ],
)
def test_floats_and_floating_tensors_are_handled(parameter: Parameter[Any], takes: bool) -> None:
    assert handled(parameter) is takes


def test_bounded_entries_count_in_half_widths_and_others_by_their_start() -> None:
    vector = Vector(mixed())
    assert vector.unit.tolist() == [250, 2, 1, 7, 1, 2, 5]
    assert vector.centre.tolist() == [0, 2, 0, 0, 0, 0, 5]
    assert vector.read().tolist() == pytest.approx([1, -0.85, 1, -1, 0, 1, -0.9])


def test_values_come_back_in_their_own_shape_and_dtype() -> None:
    parameters = mixed()
    vector = Vector(parameters)
    values = vector.values(vector.read())
    assert values["wide"] == 250.0
    assert type(values["share"]) is float
    assert values["matrix"].dtype == torch.float32
    assert torch.equal(values["matrix"], parameters[2].initial)
    assert values["scalar"].shape == ()


@given(at=st.lists(st.floats(-50, 50), min_size=7, max_size=7))
def test_any_coordinates_give_allowed_values_and_run_where_they_say(at: list[float]) -> None:
    parameters = mixed()
    vector = Vector(parameters)
    where = vector.project(torch.tensor(at, dtype=D))
    values = vector.values(where)
    for parameter in parameters:
        parameter.check(values[parameter.name])
    assert 0 <= values["scalar"] <= 10
    assert torch.allclose(vector.place(values), where, rtol=1e-14, atol=1e-14)
    assert torch.allclose(vector.project(where), where, rtol=1e-14, atol=1e-14)


def test_an_exclusive_bound_is_never_reached() -> None:
    parameter = Parameter(0.5, name="x", type=Annotated[float, Field(gt=0, lt=1)])
    vector = Vector([parameter])
    for far in (-5.0, 5.0):
        parameter.check(vector.values(torch.tensor([far], dtype=D))["x"])


def test_float32_is_run_as_it_is_noted() -> None:
    vector = Vector([Parameter(torch.tensor([0.1, 0.2]), name="x")])
    where = vector.project(torch.tensor([1 / 3, 2 / 3], dtype=D))
    assert where.tolist() == [float(torch.tensor(1 / 3)), float(torch.tensor(2 / 3))]
