"""Batch growth: the three tests on a case with known answers, and what always holds."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.optim.numeric.growth import BatchGrowth

CASE = torch.tensor([(1.0, 0.0), (0.0, 1.0), (2.0, 1.0), (1.0, 2.0)], dtype=torch.float64)

_rows = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(st.floats(-9, 9), min_size=3, max_size=3), min_size=n, max_size=n)
)
_growths = st.builds(
    BatchGrowth, st.integers(2, 8), st.integers(8, 500), st.sampled_from(["norm", "inner", "orthogonal"]),
    st.floats(0.01, 2.0),
)  # fmt: skip


@pytest.mark.parametrize(
    ("test", "eta", "wanted", "size"),
    [
        ("norm", 0.1, 4 / 3 / (0.01 * 2), 67),
        ("norm", 0.5, 4 / 3 / (0.25 * 2), 4),
        ("inner", 0.1, 4 / 3 / (0.01 * 4), 34),
        ("orthogonal", 0.1, max(4 / 3 / (0.01 * 4), 2 / 3 / (0.01 * 2)), 34),
    ],
)
def test_the_case_of_four_gradients(test: str, eta: float, wanted: float, size: int) -> None:
    growth = BatchGrowth(4, 1000, test, eta)  # type: ignore[arg-type]
    assert growth.wanted(CASE) == pytest.approx(wanted, rel=1e-12)
    assert growth.next(4, CASE) == size


def test_the_orthogonal_test_sees_the_noise_that_the_inner_test_does_not() -> None:
    # all noise is across the mean (1, 0), with variance 2/3 * 4
    across = torch.tensor([(1.0, 2.0), (1.0, -2.0), (1.0, 0.0), (1.0, 0.0)], dtype=torch.float64)
    assert BatchGrowth(4, 10_000, "inner").next(4, across) == 4
    assert BatchGrowth(4, 10_000, "orthogonal").wanted(across) == pytest.approx(8 / 3 / 0.01)
    assert BatchGrowth(4, 10_000, "orthogonal").next(4, across) == 267


def test_the_variance_across_the_mean_is_two_thirds_in_the_case_of_four_gradients() -> None:
    # so little weight on the inner product that the other part of the test is what counts
    mean = CASE.mean(0)
    along = (CASE - mean) @ mean / (mean @ mean)
    across = (CASE - mean) - torch.outer(along, mean)
    assert float(across.square().sum() / 3) == pytest.approx(2 / 3)
    assert BatchGrowth(4, 1000, "norm").wanted(across + mean) == pytest.approx(2 / 3 / (0.01 * 2))


def test_the_inner_product_is_over_the_whole_gradient() -> None:
    # the two halves cancel in every example: tensor by tensor there is variance, over the whole there is none
    halves = torch.tensor([(2.0, 0.0), (0.0, 2.0), (1.0, 1.0)], dtype=torch.float64)
    assert BatchGrowth(2, 100, "inner").wanted(halves) == 0.0


@given(_growths, st.integers(2, 600), _rows)
def test_a_batch_never_shrinks_and_never_passes_the_cap(
    growth: BatchGrowth, batch: int, rows: list[list[float]]
) -> None:
    following = growth.next(batch, torch.tensor(rows, dtype=torch.float64))
    assert following == batch if batch >= growth.most else batch <= following <= growth.most


@given(_rows, st.floats(0.1, 10.0))
def test_the_scale_of_the_gradients_does_not_matter(rows: list[list[float]], scale: float) -> None:
    gradients = torch.tensor(rows, dtype=torch.float64)
    if float(gradients.mean(0).norm()) > 1e-3:
        for test in ("norm", "inner", "orthogonal"):
            growth = BatchGrowth(2, 100, test)  # type: ignore[arg-type]
            assert growth.wanted(scale * gradients) == pytest.approx(growth.wanted(gradients), rel=1e-6, abs=1e-9)


def test_equal_gradients_leave_the_batch_as_it_is() -> None:
    assert BatchGrowth(2, 100).next(3, torch.ones(3, 4)) == 3


@pytest.mark.parametrize("test", ["norm", "inner", "orthogonal"])
def test_a_mean_of_zero_grows_to_the_cap(test: str) -> None:
    growth = BatchGrowth(2, 100, test)  # type: ignore[arg-type]
    away = torch.tensor([(1.0, 1.0), (-1.0, -1.0)])
    assert growth.next(2, away) == (100 if test == "norm" else 2)  # no inner product varies with a mean of zero
    near = torch.tensor([(1.0, 1.0), (-1.0 + 1e-9, -1.0 + 1e-9)], dtype=torch.float64)
    assert growth.next(2, near) == 100


def test_gradients_that_tell_nothing_leave_the_batch_as_it_is() -> None:
    growth = BatchGrowth(2, 100)
    assert growth.next(4, torch.zeros(4, 3)) == 4
    assert growth.next(4, torch.ones(1, 3)) == 4
    assert growth.next(4, torch.tensor([(math.nan, 1.0), (1.0, 1.0)])) == 4


def test_growth_stops_at_what_the_budget_pays_for() -> None:
    assert BatchGrowth(4, 1000).next(4, CASE, affordable=20) == 20
    assert BatchGrowth(4, 1000).next(4, CASE, affordable=2) == 4


def test_steps_are_tested_at_the_interval_until_the_cap() -> None:
    growth = BatchGrowth(2, 100, every=10)
    assert [step for step in range(25) if growth.tests(step, 50)] == [0, 10, 20]
    assert not growth.tests(10, 100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 1, "most": 9}, "start=1"),
        ({"start": 9, "most": 8}, "most=8"),
        ({"start": 2, "most": 9, "test": "nrom"}, "'nrom'"),
        ({"start": 2, "most": 9, "eta": 0.0}, "eta=0.0"),
        ({"start": 2, "most": 9, "every": 0}, "every=0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchGrowth(**options)  # type: ignore[arg-type]
