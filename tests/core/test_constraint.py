"""Constraints: the nearest tensor inside, by how much one is outside, and what a parameter refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.constraint import Ball, Box, Constraint, Simplex
from trace_opt.core.parameter import Parameter

SETS: dict[str, Constraint] = {
    "box": Box(-0.5, 1.5),
    "half line": Box(0.25, math.inf),
    "l1": Ball(1.5, 1),
    "l2": Ball(1.5, 2),
    "l-inf": Ball(0.75, math.inf),
    "simplex": Simplex(),
}
numbers = st.floats(-1e3, 1e3, allow_nan=False, width=64)
vectors = st.lists(numbers, min_size=1, max_size=12).map(lambda row: torch.tensor(row, dtype=torch.float64))


def inside(name: str, seed: torch.Tensor) -> torch.Tensor:
    """A point of the set made without its projection."""
    if name == "simplex":
        return torch.softmax(seed / 100, -1)
    unit = seed / (1 + seed.abs().sum())
    return unit.abs() + 0.25 if name == "half line" else unit / 2


@pytest.mark.parametrize("name", SETS)
@given(x=vectors, seed=vectors)
def test_a_projection_is_inside_and_no_other_point_is_nearer(name: str, x: torch.Tensor, seed: torch.Tensor) -> None:
    found = SETS[name].project(x)
    assert SETS[name].violation(found) <= 1e-12
    other = inside(name, seed.repeat(len(x))[: len(x)])
    assert SETS[name].violation(other) <= 1e-12
    # a projection onto a convex set sees every point of the set at an obtuse angle
    assert float((x - found) @ (other - found)) <= 1e-9 * (1 + float(x.norm()))


@pytest.mark.parametrize("name", SETS)
@given(x=vectors)
def test_a_projection_stays_when_projected_again(name: str, x: torch.Tensor) -> None:
    once = SETS[name].project(x)
    assert torch.allclose(SETS[name].project(once), once, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SETS)
@given(seed=vectors)
def test_a_tensor_inside_is_returned_to_the_bit(name: str, seed: torch.Tensor) -> None:
    x = inside(name, seed)
    if SETS[name].violation(x) == 0:  # a softmax sums to one only to the last bit
        assert torch.equal(SETS[name].project(x), x)


CLOSED: list[tuple[Constraint, list[Any], list[Any], float]] = [
    (Box(-1, 1), [3.0, -2.0, 0.5], [1.0, -1.0, 0.5], 2.0),
    (Ball(1, 2), [3.0, -4.0], [0.6, -0.8], 4.0),
    (Ball(1, 1), [1.5, -1.2, 0.5, 0.2], [0.65, -0.35, 0.0, 0.0], 2.4),
    (Ball(2, math.inf), [3.0, -1.0], [2.0, -1.0], 1.0),
    (Simplex(), [[0.6, 0.6], [-1.0, 0.5]], [[0.5, 0.5], [0.0, 1.0]], 1.5),
]


@pytest.mark.parametrize("case", range(len(CLOSED)))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_projections_and_violations_in_closed_form(case: int, dtype: torch.dtype) -> None:
    rule, given_, expected, away = CLOSED[case]
    x = torch.tensor(given_, dtype=dtype)
    found = rule.project(x)
    close = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert found.dtype == dtype
    assert torch.allclose(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=close)
    assert rule.violation(x) == pytest.approx(away, rel=3 * close)
    assert torch.equal(x, torch.tensor(given_, dtype=dtype))


def test_a_ball_bounds_the_whole_tensor_whatever_its_shape() -> None:
    x = torch.full((2, 3), 1.0, dtype=torch.float64)
    assert Ball(1, 1).project(x).shape == (2, 3)
    assert float(Ball(1, 1).project(x).sum()) == pytest.approx(1)
    assert float(Ball(1, 2).project(x).norm()) == pytest.approx(1)


def test_projections_of_large_float32_tensors_hold() -> None:
    x = torch.linspace(-1e3, 1e3, 100_000)
    for rule in SETS.values():
        assert rule.violation(rule.project(x)) <= 1e-6 * rule.scale


def test_projections_keep_no_graph() -> None:
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    assert not any(rule.project(x).requires_grad for rule in SETS.values())


def test_a_number_that_is_none_is_a_violation() -> None:
    assert math.isnan(Ball(1).violation(torch.tensor([math.nan])))
    assert Ball(1).violation(torch.tensor([])) == 0
    assert Simplex().violation(torch.tensor(1.0)) == math.inf


@pytest.mark.parametrize(
    ("kind", "options"),
    [(Ball, (1, 3)), (Ball, (0,)), (Ball, (math.nan,)), (Box, (1, 0)), (Box, (math.nan, 1))],
    ids=str,
)
def test_sets_that_make_no_sense_are_refused(kind: Any, options: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="give|must"):
        kind(*options)


# -- parameters ------------------------------------------------------------------------------------------------------


def test_a_start_outside_is_refused_and_its_projection_taken() -> None:
    x = torch.tensor([3.0, 4.0])
    with pytest.raises(
        ValueError, match=r"parameter 'w' got tensor.*violates Ball\(radius=1, p=2.0\) by 4; give a tensor inside"
    ):
        Parameter(x, name="w", constraint=Ball(1))
    Parameter(Ball(1).project(x), name="w", constraint=Ball(1))


@pytest.mark.parametrize("name", SETS)
@given(x=vectors)
def test_every_projection_is_allowed_in_any_type(name: str, x: torch.Tensor) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        Parameter(SETS[name].project(x.to(dtype)), name="w", constraint=SETS[name])


def test_rounding_is_allowed_and_more_is_not() -> None:
    w = Parameter(torch.ones(2, dtype=torch.float64), name="w", constraint=Box(-1000, 1000))
    w.value = torch.tensor([1000.0005, 0], dtype=torch.float64)
    with pytest.raises(ValueError, match="violates"):
        w.value = torch.tensor([1000.01, 0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([1.0, math.nan]), "not every entry is finite"),
        (torch.tensor([1.0, math.inf]), "not every entry is finite"),
        (torch.ones(2, dtype=torch.float64), r"its dtype is torch.float64; give a tensor of torch.float32"),
        (torch.ones(2, dtype=torch.int64), r"its dtype is torch.int64"),
        (torch.ones(3), r"give a tensor of shape \(2,\)"),
        (1.0, r"give a tensor of shape \(2,\)"),
    ],
)
def test_a_tensor_of_another_sort_is_refused(value: Any, message: str) -> None:
    w: Parameter[Any] = Parameter(torch.ones(2), name="w")
    with pytest.raises(ValueError, match=message):
        w.value = value


def test_a_start_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="parameter 'w'.*finite"):
        Parameter(torch.tensor([math.inf]), name="w")


def test_tensors_that_hold_no_floating_numbers_are_allowed() -> None:
    assert Parameter(torch.tensor([True]), name="w").kind == "tensor"
    assert Parameter(torch.tensor([1, 2]), name="w", constraint=Box(0, 2)).kind == "tensor"
    with pytest.raises(ValueError, match="violates"):
        Parameter(torch.tensor([1, 3]), name="w", constraint=Box(0, 2))
