"""The exact augmented Lagrangian solves equality-constrained problems in few Newton steps, and says where it cannot."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.optim.numeric.workflows import Recording, propose, restored
from trace_opt import Budget, Feedback, Parameter, optimize, trace
from trace_opt.core.codec import encode
from trace_opt.core.constraint import Box
from trace_opt.errors import GradientError, ProblemError
from trace_opt.optim.base import Outcome
from trace_opt.optim.numeric import lagrangian
from trace_opt.optim.numeric.lagrangian import AugmentedLagrangian, Settings, augmented_lagrangian

D = torch.float64


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=D)


PROBLEMS: dict[str, Any] = {
    "HS6": (lambda x: (1 - x[0]) ** 2, lambda x: 10 * (x[1] - x[0] ** 2), (-1.2, 1.0), (1.0, 1.0)),
    "HS7": (
        lambda x: torch.log(1 + x[0] ** 2) - x[1], lambda x: (1 + x[0] ** 2) ** 2 + x[1] ** 2 - 4, (2.0, 2.0),
        (0.0, 3**0.5),
    ),
    "HS28": (
        lambda x: (x[0] + x[1]) ** 2 + (x[1] + x[2]) ** 2, lambda x: x[0] + 2 * x[1] + 3 * x[2] - 1, (-4.0, 1.0, 1.0),
        (0.5, -0.5, 0.5),
    ),
    "sphere": (lambda x: x.sum(), lambda x: (x**2).sum() - 1, (1.0, 0.0, 0.0), (-(3**-0.5),) * 3),
}  # fmt: skip
PROBLEMS["ball"] = (*PROBLEMS["sphere"][:2], (2.0, 1.0, 0.5), PROBLEMS["sphere"][3])


@pytest.mark.parametrize(("name", "steps"), [("HS6", 8), ("HS7", 9), ("HS28", 1), ("sphere", 14)])
def test_the_dense_solve_takes_the_known_number_of_steps(name: str, steps: int) -> None:
    objective, equality, start, optimum = PROBLEMS[name]
    found = augmented_lagrangian(objective, equality, vector(*start))
    assert found.step <= steps
    assert found.kkt <= 1e-8
    assert found.x.tolist() == pytest.approx(optimum, abs=1e-8)


@pytest.mark.parametrize(("name", "steps"), [("HS7", 11), ("HS28", 5), ("ball", 18)])
def test_gaussian_sketches_need_a_few_steps_more(name: str, steps: int) -> None:
    objective, equality, start, optimum = PROBLEMS[name]
    found = augmented_lagrangian(objective, equality, vector(*start), settings=Settings(solver="sketch"))
    assert found.step <= steps
    assert found.sketched > found.step
    assert found.x.tolist() == pytest.approx(optimum, abs=1e-6)


def test_randomized_kaczmarz_solves_it_too_and_repeats_by_seed() -> None:
    objective, equality, start, optimum = PROBLEMS["HS7"]
    runs = [
        augmented_lagrangian(objective, equality, vector(*start), settings=Settings(solver="kaczmarz"), seed=seed)
        for seed in (0, 0, 1)
    ]
    assert all(run.x.tolist() == pytest.approx(optimum, abs=1e-6) for run in runs)
    assert torch.equal(runs[0].x, runs[1].x)
    assert not torch.equal(runs[0].x, runs[2].x)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 6), count=st.integers(1, 3))
def test_any_convex_quadratic_on_a_plane_takes_one_step(seed: int, size: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = min(count, size - 1)
    half = torch.randn(size, size, dtype=D, generator=generator)
    curve = half @ half.T + torch.eye(size, dtype=D)
    rows = torch.linalg.qr(torch.randn(size, count, dtype=D, generator=generator)).Q.T
    right, slope, start = (torch.randn(n, dtype=D, generator=generator) for n in (count, size, size))
    how = Settings(tol=1e-7)
    found = augmented_lagrangian(
        lambda x: 0.5 * x @ curve @ x - slope @ x, lambda x: rows @ x - right, start, settings=how
    )
    assert found.step == 1
    assert torch.allclose(curve @ found.x - slope + rows.T @ found.multipliers, torch.zeros(size, dtype=D), atol=1e-7)


def test_the_merit_function_s_slope_is_that_of_finite_differences() -> None:
    from trace_opt.optim.numeric.live import Flat, Point

    objective, equality, start, _ = PROBLEMS["HS7"]
    now = lagrangian.Iterate(vector(*start), vector(0.3), 1.5, 0.2, 0.1)

    def point(x: torch.Tensor) -> Point:
        leaf = x.clone().requires_grad_()
        losses = {"f": objective(leaf), "c": equality(leaf)}
        return Point([losses], {"": leaf}, Flat({"": x}))

    def merit(both: torch.Tensor) -> float:
        return lagrangian._merit(now, point(both[:2]), "f", ["c"], both[2:])

    at = torch.cat([now.x, now.multipliers])
    exact = lagrangian._merit_slope(now, lagrangian._local(point(now.x), "f", ["c"], now.multipliers))
    found = [(merit(at + 1e-6 * unit) - merit(at - 1e-6 * unit)) / 2e-6 for unit in torch.eye(3, dtype=D)]
    assert exact.tolist() == pytest.approx(found, rel=1e-6)


def test_the_merit_function_falls_at_every_step_at_given_weights() -> None:
    objective, equality, start, _ = PROBLEMS["HS6"]
    steps = [augmented_lagrangian(objective, equality, vector(*start), steps=n) for n in range(9)]
    merits = [lagrangian._merit(s, s.point, "objective", ["equality"], s.multipliers) for s in steps]  # type: ignore[arg-type]
    assert len({(s.eta1, s.eta2) for s in steps}) == 1
    assert all(after <= before for before, after in pairwise(merits))


@pytest.mark.parametrize("twin", [lambda c: c, lambda c: 2 * c], ids=["same", "scaled"])
def test_dependent_constraints_are_refused_with_the_eigenvalue(twin: Any) -> None:
    objective, equality, start, _ = PROBLEMS["HS7"]
    with pytest.raises(ProblemError, match=r"nearly dependent: the least eigenvalue of G G' is"):
        augmented_lagrangian(objective, lambda x: torch.stack([equality(x), twin(equality(x))]), vector(*start))


def test_a_constraint_without_slope_is_refused() -> None:
    with pytest.raises(ProblemError, match="nearly dependent"):
        augmented_lagrangian(lambda x: x.sum(), lambda x: (x**2).sum() - 1, vector(0.0, 0.0))


def test_without_constraints_it_is_newton_s_method() -> None:
    found = augmented_lagrangian(lambda x: ((x - 2) ** 4 + (x - 2) ** 2).sum(), lambda x: x[:0], vector(0.0, 5.0))
    assert found.x.tolist() == pytest.approx([2, 2], abs=1e-6)


@pytest.mark.parametrize("options", [{"solver": "exact"}, {"tol": 0.0}, {"growth": 1.0}])
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Settings(**options)


# -- in a workflow ---------------------------------------------------------------------------------------------------


@trace
def losses(point: torch.Tensor) -> dict[str, torch.Tensor]:
    """HS7's objective and constraint."""
    objective, equality, _, _ = PROBLEMS["HS7"]
    return {"objective": objective(point), "c": equality(point)}


def made() -> Parameter[Any]:
    return Parameter(vector(2.0, 2.0), name="point")


def guide(output: Any, example: Any) -> Feedback:
    return Feedback(score=-float(output["objective"].detach()) - 10 * abs(float(output["c"].detach())), loss=output)


@pytest.mark.parametrize("solver", ["dense", "sketch"])
def test_a_phase_is_the_plain_function_bit_for_bit(solver: Any) -> None:
    point = made()
    how = Settings(solver=solver)
    proposal = propose(
        AugmentedLagrangian(equalities=["c"], settings=how), [point], Recording(lambda: losses(point.value), guide)
    )
    objective, equality, start, _ = PROBLEMS["HS7"]
    found = augmented_lagrangian(objective, equality, vector(*start), settings=how)
    assert torch.equal(proposal.values["point"], found.x)
    assert proposal.notes["kkt"] == found.kkt
    assert "the optimality conditions are met" in proposal.reason


@pytest.mark.parametrize("solver", ["dense", "sketch"])
def test_a_phase_resumed_from_any_checkpoint_ends_bit_identically(solver: Any) -> None:
    point = made()

    def optimizer() -> AugmentedLagrangian:
        return AugmentedLagrangian(equalities=["c"], settings=Settings(solver=solver), checkpoint_every=3)

    whole = Recording(lambda: losses(point.value), guide)
    expected = propose(optimizer(), [point], whole)
    assert len(whole.kept) >= 2
    for kept in whole.kept:
        again = Recording(lambda: losses(point.value), guide)
        again.saved = restored(json.loads(json.dumps(kept)))
        found = propose(optimizer(), [point], again)
        assert encode(dict(found.values)) == encode(dict(expected.values))


def test_several_parameters_move_together() -> None:
    first, second = (Parameter(torch.tensor(v, dtype=D), name=n) for n, v in (("a", -1.2), ("b", 1.0)))

    @trace
    def together(a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"objective": (1 - a) ** 2, "c": 10 * (b - a**2)}

    runner = Recording(lambda: together(first.value, second.value), guide)
    proposal = propose(AugmentedLagrangian(equalities=["c"]), [first, second], runner)
    assert proposal.values["a"].item() == pytest.approx(1, abs=1e-8)
    assert proposal.values["b"].shape == ()


def test_a_solved_problem_gets_no_proposal() -> None:
    point, optimizer = made(), AugmentedLagrangian(equalities=["c"])
    runner = Recording(lambda: losses(point.value), guide)
    proposal = propose(optimizer, [point], runner)
    optimizer.observe(proposal, Outcome(None, None, accepted=True))
    point.value = proposal.values["point"]
    again = propose(optimizer, [point], runner)
    assert again.values == {}
    assert "nothing changed" in again.reason


def test_a_dropped_phase_is_not_run_again() -> None:
    point, optimizer = made(), AugmentedLagrangian(equalities=["c"])
    runner = Recording(lambda: losses(point.value), guide)
    proposal = propose(optimizer, [point], runner)
    optimizer.observe(proposal, Outcome(None, None, accepted=False))
    ran = runner.ran
    again = propose(optimizer, [point], runner)
    assert again.values == {}
    assert runner.ran == ran


def test_it_solves_a_workflow_through_optimize() -> None:
    point = made()
    found = optimize(
        lambda: losses(point.value), [{}], guide, parameters=[point],
        optimizers=[AugmentedLagrangian(equalities=["c"])], budget=Budget(trials=1), store=None,
    )  # fmt: skip
    assert found.best["point"].tolist() == pytest.approx([0, 3**0.5], abs=1e-8)


def test_rollouts_of_another_process_are_refused_for_they_carry_no_second_derivatives() -> None:
    point = made()
    runner = Recording(lambda: losses(point.value), guide, apart=True)
    with pytest.raises(GradientError, match="carry first ones only"):
        propose(AugmentedLagrangian(equalities=["c"]), [point], runner)


def test_constraints_that_are_no_equalities_are_refused() -> None:
    point = Parameter(vector(-1.2, 1.0), name="point", constraint=Box(-2, 2))
    with pytest.raises(ProblemError, match="keeps equalities only"):
        propose(AugmentedLagrangian(equalities=["c"]), [point], Recording(lambda: losses(point.value), guide))


def test_it_handles_floating_tensors_or_those_named() -> None:
    assert AugmentedLagrangian().handles(made())
    assert not AugmentedLagrangian(parameters=["other"]).handles(made())
    assert not AugmentedLagrangian().handles(Parameter(1.0, name="number"))
