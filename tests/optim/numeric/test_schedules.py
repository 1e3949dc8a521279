"""Schedules: closed forms, and refinement from gradient norms."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.optim.numeric.schedules import NAMES, Refined, gradient_norm, multiplier, refined

_norms = st.lists(st.floats(0.0, 1e6), min_size=2, max_size=60)


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("linear", {0.0: 1.0, 0.25: 0.75, 1.0: 0.0, 1.5: 0.0}),
        ("refined", {0.0: 1.0, 0.25: 0.75, 1.0: 0.0}),
        ("cosine", {0.0: 1.0, 0.5: 0.5, 1 / 3: 0.75, 1.0: 0.0, 1.5: 0.0}),
        ("constant", {0.0: 1.0, 0.7: 1.0, 2.0: 1.0}),
    ],
)
def test_a_named_schedule_has_its_closed_form(name: str, shares: dict[float, float]) -> None:
    for share, expected in shares.items():
        assert multiplier(name, share) == pytest.approx(expected, abs=1e-15)  # type: ignore[arg-type]


@given(st.sampled_from(NAMES), st.floats(0.0, 3.0), st.floats(0.0, 3.0))
def test_a_named_schedule_never_rises(name: str, one: float, other: float) -> None:
    early, late = sorted((one, other))
    assert 1.0 >= multiplier(name, early) >= multiplier(name, late) >= 0.0  # type: ignore[arg-type]


def test_an_unknown_schedule_names_a_near_one() -> None:
    with pytest.raises(ValueError, match="'linaer'.*such as 'linear'"):
        multiplier("linaer", 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("length", [2, 3, 10, 1000])
def test_constant_norms_refine_to_linear_decay_exactly(kind: str, length: int) -> None:
    schedule = refined([0.37] * length, kind)  # type: ignore[arg-type]
    assert list(schedule.factors) == [(length - 1 - t) / (length - 1) for t in range(length)]
    # at the steps of its own run it gives its own factors
    for t in range(length):
        assert multiplier(schedule, t / length) == pytest.approx(1 - t / (length - 1), abs=1e-12)


@pytest.mark.parametrize(("kind", "power"), [("adam", 1), ("sgd", 2)])
def test_refinement_is_the_papers_formula(kind: str, power: int) -> None:
    norms = [4.0, 2.0, 1.0, 2.0, 5.0, 3.0]  # too few for the median filter to be wider than one
    weights = [norm**-power for norm in norms]
    steps = [weight * sum(weights[t + 1 :]) for t, weight in enumerate(weights)]
    schedule = refined(norms, kind)  # type: ignore[arg-type]
    assert list(schedule.factors) == pytest.approx([step / max(steps) for step in steps], abs=1e-15)


@given(st.lists(st.floats(0.1, 10.0), min_size=20, max_size=60))
def test_norms_go_through_a_running_median_that_reflects_the_end(norms: list[float]) -> None:
    half = int(0.1 * len(norms) / 2)
    last = len(norms) - 1
    around = [[norms[last - abs(last - max(t + i, 0))] for i in range(-half, half + 1)] for t in range(len(norms))]
    weights = [1 / sorted(window)[half] for window in around]
    steps = [weight * sum(weights[t + 1 :]) for t, weight in enumerate(weights)]
    assert list(refined(norms).factors) == pytest.approx([step / max(steps) for step in steps], rel=1e-12)


def test_large_gradients_at_the_start_give_a_warm_up() -> None:
    norms = [100.0 / (1 + t) if t < 20 else 5.0 for t in range(200)]
    factors = refined(norms).factors
    assert factors[0] < 0.2
    assert max(range(200), key=factors.__getitem__) > 10
    assert factors[-1] == 0.0


def test_a_single_outlier_is_filtered_out() -> None:
    norms = [1.0] * 100
    norms[50] = 1e9
    assert refined(norms) == refined([1.0] * 100)


@given(_norms, st.sampled_from(["adam", "sgd"]), st.floats(0.0, 1.2))
def test_any_norms_give_multipliers_between_zero_and_one(norms: list[float], kind: str, share: float) -> None:
    schedule = refined(norms, kind)  # type: ignore[arg-type]
    assert max(schedule.factors) == 1.0
    assert schedule.factors[-1] == 0.0
    assert 0.0 <= multiplier(schedule, share) <= 1.0


@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=40), st.floats(1e-6, 1e6))
def test_the_scale_of_the_norms_does_not_matter(norms: list[float], scale: float) -> None:
    scaled = refined([scale * norm for norm in norms], "sgd").factors
    assert list(scaled) == pytest.approx(list(refined(norms, "sgd").factors), rel=1e-9)


def test_a_norm_of_zero_does_not_take_the_whole_way() -> None:
    norms = [1.0] * 50 + [0.0] * 20 + [1.0] * 50
    assert refined(norms) == refined([1.0] * 120)
    assert refined([0.0, 0.0, 0.0]) == refined([1.0, 1.0, 1.0])


def test_a_refined_schedule_applies_to_a_run_of_another_length() -> None:
    schedule = refined([1.0] * 101)
    assert [multiplier(schedule, t / 7) for t in range(7)] == pytest.approx([1 - 1.01 * t / 7 for t in range(7)])
    assert Refined([0.0, 1.0, 0.5]).at(0.5) == pytest.approx(0.75)
    assert Refined([0.0, 1.0, 0.5]).at(0.9) == 0.5


@given(_norms)
def test_a_refined_schedule_survives_json_bit_for_bit(norms: list[float]) -> None:
    schedule = refined(norms)
    assert Refined(json.loads(json.dumps(schedule.factors))) == schedule


@pytest.mark.parametrize("norms", [[], [1.0], [1.0, math.nan], [1.0, -1.0], [math.inf, 1.0]])
def test_norms_that_make_no_sense_are_refused(norms: list[float]) -> None:
    with pytest.raises(ValueError, match="refining a schedule got"):
        refined(norms)


@pytest.mark.parametrize("factors", [[], [1.5], [-0.1], [math.nan]])
def test_factors_that_make_no_sense_are_refused(factors: list[float]) -> None:
    with pytest.raises(ValueError, match="refined schedule got the factors"):
        Refined(factors)


def test_the_norm_is_taken_over_all_leaves() -> None:
    gradients = [torch.tensor([[3.0, 0.0]], dtype=torch.float64), torch.tensor(-4.0, dtype=torch.float64)]
    assert float(gradient_norm(gradients, "adam")) == 7.0
    assert float(gradient_norm(gradients, "sgd")) == 5.0
    with pytest.raises(ValueError, match="no gradients"):
        gradient_norm([])


def last_losses(schedule: Any, rates: list[float], steps: int = 2000) -> torch.Tensor:
    """Excess loss of the last iterate of SGD on noisy logistic regressions, by seed and learning rate, all at once."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(1.0, 0.1, 20, dtype=torch.float64)
    x = torch.randn(5, 2000, 20, dtype=torch.float64, generator=generator) * scales
    clean = torch.sign(x @ (torch.randn(20, dtype=torch.float64, generator=generator) / scales))
    y = torch.where(torch.rand(5, 2000, generator=generator) < 0.15, -clean, clean)
    batches = torch.randint(2000, (steps, 5, 4), generator=generator)
    seeds, lr = torch.arange(5)[:, None], torch.tensor(rates, dtype=torch.float64)[None, :, None]

    def loss(w: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.softplus(-y[:, None] * (w @ x.mT)).mean(-1)

    best = torch.zeros(5, 1, 20, dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid(-y * (best @ x.mT)[:, 0])
        hessian = (x.mT * (p * (1 - p))[:, None]) @ x
        best += torch.linalg.solve(hessian, (x.mT @ (y * p)[..., None]))[:, None, :, 0]
    w = torch.zeros(5, len(rates), 20, dtype=torch.float64)
    for t in range(steps):
        part, labels = x[seeds, batches[t]], y[seeds, batches[t]][:, None]
        w += lr * multiplier(schedule, t / steps) * (labels * torch.sigmoid(-labels * (w @ part.mT))) @ part / 4
    return loss(w) - loss(best)


def test_linear_decay_leaves_at_most_six_tenths_of_the_constant_rates_excess_loss() -> None:
    rates = [0.03, 0.1, 0.3, 1.0, 3.0]
    least = {name: float(last_losses(name, rates).mean(0).min()) for name in ("constant", "linear", "cosine")}
    assert 0 < least["linear"] <= 0.6 * least["constant"]
    assert 0 < least["cosine"] <= 0.6 * least["constant"]
