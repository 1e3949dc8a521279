"""Clients that share corrected surrogates find the minimum of their mean; without the correction each pulls to its own."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import pytest
import torch

from trace_opt.optim.numeric.federated import Features, Federation, federate
from trace_opt.optim.numeric.gaussian import fit

D = torch.float64
START = torch.full((5,), -0.5, dtype=D)


@dataclass
class Quadratic:
    """0.5 sum(a (x - c)^2)."""

    curvature: torch.Tensor
    centre: torch.Tensor

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        return 0.5 * (self.curvature * (points - self.centre) ** 2).sum(-1)


def box(points: torch.Tensor) -> torch.Tensor:
    return points.clamp(-1, 1)


def clients(seed: int, count: int = 4) -> list[Quadratic]:
    chance = torch.Generator().manual_seed(seed)
    curvatures = 10 ** (torch.rand(count, 5, dtype=D, generator=chance) * 2 - 1)
    centres = (torch.rand(count, 5, dtype=D, generator=chance) - 0.5) * 1.6
    return [Quadratic(a, c) for a, c in zip(curvatures, centres, strict=True)]


def lowest(functions: list[Quadratic], weights: list[float] | None = None) -> tuple[torch.Tensor, float]:
    """Where the weighted mean is lowest, and its value there."""
    shares = torch.tensor(weights or [1.0] * len(functions), dtype=D)
    shares = shares / shares.sum()
    curvature = sum(s * f.curvature for s, f in zip(shares, functions, strict=True))
    at: Any = sum(s * f.curvature * f.centre for s, f in zip(shares, functions, strict=True)) / curvature
    return at, float(sum(s * f(at[None]) for s, f in zip(shares, functions, strict=True)))


@pytest.mark.parametrize("seed", range(3))
def test_the_correction_brings_four_clients_to_the_minimum_of_their_mean(seed: int) -> None:
    functions = clients(seed)
    at, least = lowest(functions)
    gaps: list[float] = []
    points: list[torch.Tensor] = []
    for correction in (False, True):
        settings = Federation(rounds=10, steps=10, features=400, correction=correction)
        found = federate(functions, START, settings=settings, project=box, seed=seed)
        points.append(found.point)
        gaps.append(found.value - least)
        assert found.value == pytest.approx(float(sum(f(found.point[None]) for f in functions)) / 4)
        assert list(found.values) == sorted(found.values, reverse=True)
        assert found.queries == 10 + 1 + 10 * 11
    without, corrected = gaps
    assert corrected < 1e-4
    assert corrected < without / 10
    assert torch.allclose(points[1], at, atol=5e-3)


def test_with_one_client_the_correction_changes_nothing() -> None:
    (one,) = clients(0, 1)
    settings = [Federation(rounds=3, steps=8, correction=correction) for correction in (False, True)]
    alone, corrected = (federate([one], START, settings=s, project=box) for s in settings)
    assert torch.allclose(alone.point, corrected.point, atol=1e-9)


def test_weights_move_the_minimum() -> None:
    functions, weights = clients(1, 2), [3.0, 1.0]
    at, least = lowest(functions, weights)
    found = federate(functions, START, weights=weights, project=box, settings=Federation(rounds=8, features=500))
    assert found.value - least < 1e-4
    assert torch.allclose(found.point, at, atol=1e-2)
    assert not torch.allclose(found.point, lowest(functions)[0], atol=3e-2)


def test_an_executor_s_map_gives_the_same_as_the_builtin() -> None:
    functions, settings = clients(2), Federation(rounds=2, steps=4, features=200)
    plain = federate(functions, START, settings=settings, project=box)
    with ThreadPoolExecutor(4) as threads:
        threaded = federate(functions, START, settings=settings, project=box, map=threads.map)
    assert torch.equal(plain.point, threaded.point)
    assert plain.values == threaded.values


@pytest.mark.slow
def test_clients_may_run_in_other_processes() -> None:
    functions, settings = clients(2), Federation(rounds=2, steps=4, features=200)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        elsewhere = federate(functions, START, settings=settings, map=processes.map)
    assert torch.allclose(elsewhere.point, federate(functions, START, settings=settings).point, atol=1e-9)


def test_no_client_is_asked_outside_of_what_is_allowed() -> None:
    asked: list[torch.Tensor] = []

    def client(points: torch.Tensor) -> torch.Tensor:
        asked.append(points)
        return points.sum(-1)

    federate([client, client], START, settings=Federation(rounds=2, steps=5), project=box)
    assert bool((torch.cat(asked).abs() <= 1).all())


def test_random_features_approximate_the_kernel() -> None:
    chance = torch.Generator().manual_seed(0)
    points = torch.rand(20, 3, dtype=D, generator=chance)
    features = Features.drawn(20_000, 3, 0.7, seed=1).of(points)
    exact = torch.exp(-(torch.cdist(points, points) ** 2) / (2 * 0.7**2))
    assert (features @ features.T - exact).abs().max() < 0.03


def test_a_surrogate_sent_as_weights_has_the_gradient_of_the_one_kept() -> None:
    chance = torch.Generator().manual_seed(0)
    points = torch.rand(60, 3, dtype=D, generator=chance) * 2 - 1
    values = Quadratic(torch.tensor([1.0, 2.0, 3.0], dtype=D), torch.zeros(3, dtype=D))(points) + 7
    features = Features.drawn(4000, 3, 1.0, seed=2)
    weights = features.weights(points, values, 1e-6)
    at = torch.tensor([0.2, -0.3, 0.4], dtype=D)
    sent, kept = features.gradient(at, weights), fit(points, values, lengthscales=[1.0]).gradient(at)
    assert torch.allclose(sent, kept, atol=0.05)
    where = at.clone().requires_grad_()
    (derivative,) = torch.autograd.grad((features.of(where[None]) @ weights)[0], where)
    assert torch.allclose(sent, derivative, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: federate([], START), "got 0 clients"),
        (lambda: federate(clients(0), START, weights=[1.0]), "got 4 clients"),
        (lambda: federate(clients(0), START, weights=[0.0] * 4), "one above 0"),
        (lambda: Federation(rounds=0), "rounds=0; give at least 1"),
        (lambda: Federation(start=1), "start=1; give at least 2"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_gap_of_a_round_is_finite_from_the_start() -> None:
    found = federate(clients(3), START, settings=Federation(rounds=1, steps=2))
    assert len(found.values) == 2
    assert all(math.isfinite(value) for value in found.values)
