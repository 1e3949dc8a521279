"""Gradients through solvers equal closed forms and finite differences, and are refused where they would be wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_opt import Feedback, Parameter, trace
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import plain, record
from trace_opt.errors import GradientError
from trace_opt.optim.numeric.implicit import implicit

D = torch.float64
I40, J8 = torch.arange(1, 41, dtype=D)[:, None], torch.arange(1, 9, dtype=D)[None]
ROWS, WANTED = torch.cos(I40 * J8), torch.sin(0.7 * I40[:, 0])
HELD_OUT = torch.sin(torch.arange(1, 25, dtype=D).reshape(3, 8))
EYE = torch.eye(8, dtype=D)


def ridge(w: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
    return 0.5 * ((ROWS @ w - WANTED) ** 2).sum() + 0.5 * decay * (w**2).sum()


def solve_ridge(decay: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve(ROWS.T @ ROWS + decay * EYE, ROWS.T @ WANTED)


def held_out(w: torch.Tensor) -> torch.Tensor:
    return ((HELD_OUT @ w - 1) ** 2).sum()


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=D, requires_grad=True)


def derivatives(fit: Any, order: int) -> list[float]:
    decay = leaf(0.7)
    value = held_out(fit(decay))
    found: list[float] = []
    for _ in range(order):
        (value,) = torch.autograd.grad(value, decay, create_graph=True)
        found.append(value.item())
    return found


@pytest.mark.parametrize("method", ["cg", "gmres", "dense", None])
def test_the_ridge_gradient_equals_the_closed_form(method: Any) -> None:
    fit = implicit(ridge, solve=method)(solve_ridge)
    w = solve_ridge(torch.tensor(0.7, dtype=D))
    v = 2 * HELD_OUT.T @ (HELD_OUT @ w - 1)
    exact = -v @ torch.linalg.solve(ROWS.T @ ROWS + 0.7 * EYE, w)
    assert derivatives(fit, 1)[0] == pytest.approx(exact.item(), abs=1e-12)


def test_second_and_third_derivatives_equal_those_of_the_closed_form() -> None:
    assert derivatives(implicit(ridge)(solve_ridge), 3) == pytest.approx(derivatives(solve_ridge, 3), abs=1e-12)


MIX = 0.4 * torch.sin(1.3 * torch.arange(36, dtype=D).reshape(6, 6)) + 0.3 * torch.triu(torch.ones(6, 6, dtype=D), 1)


def squashed(w: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    return torch.tanh(MIX @ w + theta)


def iterate(theta: torch.Tensor) -> torch.Tensor:
    w = torch.zeros(6, dtype=D)
    for _ in range(500):
        w = squashed(w, theta)
    return w


THETA = torch.linspace(-1, 1, 6, dtype=D)


def test_a_fixed_point_has_first_and_second_derivatives_of_finite_differences() -> None:
    solved = implicit(squashed, "fixed-point")(iterate)
    theta = THETA.clone().requires_grad_()
    assert torch.autograd.gradcheck(solved, theta)
    assert torch.autograd.gradgradcheck(solved, theta)


def test_conjugate_gradients_on_a_fixed_point_are_right_or_refused_never_silently_wrong() -> None:
    rotation = torch.tensor([[1.0, -3.0], [3.0, 1.0]], dtype=D)

    def contracted(w: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return 0.2 * rotation @ w + theta

    def closed(theta: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(torch.eye(2, dtype=D) - 0.2 * rotation, theta)

    theta = leaf(0.3, -0.2)
    right = implicit(contracted, "fixed-point")(closed)(theta)
    (exact,) = torch.autograd.grad(right[0], theta)
    assert torch.allclose(exact, torch.linalg.inv(torch.eye(2, dtype=D) - 0.2 * rotation)[0], atol=1e-12)
    wrong = implicit(contracted, "fixed-point", solve="cg")(closed)(theta)
    try:
        (found,) = torch.autograd.grad(wrong[0], theta)
    except GradientError as error:
        assert "residual" in str(error)
    else:
        assert torch.allclose(found, exact, atol=1e-6)


def test_no_convergence_raises_and_names_the_residual() -> None:
    def flat(w: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:  # a line of minima: none is isolated
        return (w.sum() - theta) ** 2

    solved = implicit(flat)(lambda theta: torch.stack([theta / 2, theta / 2]))
    w = solved(leaf(1.0))
    with pytest.raises(GradientError, match=r"relative residual of \S+ after \d+ products"):
        w[0].backward()


def test_a_result_that_is_no_solution_is_refused_with_its_residual() -> None:
    off = implicit(ridge)(lambda decay: solve_ridge(decay) + 0.1)
    with pytest.raises(GradientError, match=r"returned no solution: .* residual of"):
        held_out(off(leaf(0.7))).backward()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_whether_a_result_is_a_solution_does_not_depend_on_the_scale_of_the_objective(scale: float) -> None:
    def scaled(w: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        return scale * ridge(w, decay)

    held_out(implicit(scaled)(solve_ridge)(leaf(0.7))).backward()
    with pytest.raises(GradientError, match="no solution"):
        held_out(implicit(scaled)(lambda decay: solve_ridge(decay) + 0.1)(leaf(0.7))).backward()


def test_the_gradient_s_error_is_of_first_order_in_the_solution_s() -> None:
    exact = derivatives(solve_ridge, 1)[0]
    errors: list[float] = []
    for away in (1e-3, 1e-5):
        shift = away * torch.ones(8, dtype=D)
        near = implicit(ridge, accuracy=None)(lambda decay, shift=shift: solve_ridge(decay) + shift)
        errors.append(abs(derivatives(near, 1)[0] / exact - 1))
    assert errors[0] < 0.1
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.05)


def test_kkt_conditions_give_the_exact_third() -> None:
    def program(y: torch.Tensor, c: torch.Tensor, b: torch.Tensor) -> Any:
        return 0.5 * ((y - c) ** 2).sum(), (y.sum() - b).reshape(1), None

    @implicit(program, "kkt")
    def solved(c: torch.Tensor, b: torch.Tensor) -> Any:
        multiplier = (c.sum() - b) / 3
        return c - multiplier, multiplier.reshape(1)

    c, b = leaf(0.3, 2.0, -1.0), leaf(1.0)
    y, _ = solved(c, b)
    for entry in y:
        assert torch.autograd.grad(entry, b, retain_graph=True)[0].item() == pytest.approx(1 / 3, abs=1e-15)
    assert torch.autograd.gradcheck(solved, (c, b))
    assert torch.autograd.gradgradcheck(solved, (c, b))


@pytest.mark.parametrize(("bound", "slope"), [(0.5, 1.0), (2.0, 0.0)], ids=["active", "inactive"])
def test_an_inequality_counts_where_it_is_active(bound: float, slope: float) -> None:
    def program(y: torch.Tensor, b: torch.Tensor) -> Any:
        return 0.5 * ((y - 1) ** 2).sum(), None, y - b

    @implicit(program, "kkt")
    def solved(b: torch.Tensor) -> Any:
        y = torch.ones(1, dtype=D).clamp(max=b.item())
        return y, 1 - y

    b = leaf(bound)
    assert torch.autograd.grad(solved(b)[0].sum(), b)[0].item() == pytest.approx(slope, abs=1e-14)


def test_several_arguments_and_solutions_and_options_are_told_apart() -> None:
    def coupled(u: torch.Tensor, v: torch.Tensor, a: torch.Tensor, label: str, b: torch.Tensor, *, power: float) -> Any:
        assert label == "kept"
        return u - a * v.sum() ** power, v - torch.stack([b, 2 * b])

    @implicit(coupled, "root")
    def solved(a: torch.Tensor, label: str, b: torch.Tensor, *, power: float) -> Any:
        v = torch.stack([b, 2 * b])
        return a * v.sum() ** power, v

    a, b = leaf(1.5), leaf(0.4)
    u, v = solved(a, "kept", b, power=2.0)
    assert u.item() == pytest.approx(1.5 * 1.44)
    grads = torch.autograd.grad(u + v[1], [a, b])
    assert [g.item() for g in grads] == pytest.approx([1.44, 1.5 * 18 * 0.4 + 2])


def test_what_needs_no_gradient_gets_none() -> None:
    asked: list[bool] = []

    def inner(w: torch.Tensor, decay: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        asked.append(rows.requires_grad)
        return 0.5 * ((rows @ w - WANTED) ** 2).sum() + 0.5 * decay * (w**2).sum()

    fit = implicit(inner)(lambda decay, rows: solve_ridge(decay))
    assert not fit(torch.tensor(0.7, dtype=D), ROWS).requires_grad
    assert asked == []
    held_out(fit(leaf(0.7), ROWS)).backward()
    assert asked
    assert not any(asked)


def test_the_solver_gets_plain_tensors_and_its_steps_are_not_differentiated() -> None:
    seen: list[bool] = []

    @implicit(ridge)
    def fit(decay: torch.Tensor) -> torch.Tensor:
        seen.append(decay.requires_grad or not torch.is_grad_enabled())
        return torch.from_numpy(solve_ridge(decay).numpy().copy())  # what autograd cannot follow

    assert derivatives(fit, 1) == pytest.approx(derivatives(solve_ridge, 1), abs=1e-12)
    assert seen == [False]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 5))
def test_any_quadratic_s_solution_moves_with_its_arguments_as_its_closed_form(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(size, size, dtype=D, generator=generator)
    curve = half @ half.T + torch.eye(size, dtype=D)
    target = torch.randn(size, dtype=D, generator=generator).requires_grad_()
    weights = torch.randn(size, dtype=D, generator=generator)
    solved = implicit(lambda w, t: 0.5 * w @ curve @ w - t @ w)(lambda t: torch.linalg.solve(curve, t))
    (found,) = torch.autograd.grad((weights * solved(target)).sum(), target)
    assert torch.allclose(found, torch.linalg.solve(curve, weights), atol=1e-9)


def test_float32_works_at_its_own_tolerance() -> None:
    rows, wanted = ROWS.float(), WANTED.float()

    def inner(w: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        return 0.5 * ((rows @ w - wanted) ** 2).sum() + 0.5 * decay * (w**2).sum()

    decay = torch.tensor(0.7, requires_grad=True)
    fit = implicit(inner)(lambda decay: torch.linalg.solve(rows.T @ rows + decay * torch.eye(8), rows.T @ wanted))
    ((HELD_OUT.float() @ fit(decay) - 1) ** 2).sum().backward()
    assert decay.grad is not None
    assert decay.grad.item() == pytest.approx(derivatives(solve_ridge, 1)[0], rel=1e-3)


# -- in a workflow ---------------------------------------------------------------------------------------------------


@trace
@implicit(ridge)
def fit(decay: torch.Tensor) -> torch.Tensor:
    """The weights at a decay."""
    return solve_ridge(decay)


def test_a_tensor_parameter_gets_its_gradient_through_a_solver_in_an_op() -> None:
    decay = Parameter(torch.tensor(0.7, dtype=D), name="decay")
    with record() as graph:
        output = fit(decay.value)
    w = plain(output)
    propagate(graph, graph.output(output), Feedback(loss=held_out(w)))
    assert decay.grad is not None
    assert decay.grad.item() == pytest.approx(derivatives(solve_ridge, 1)[0], abs=1e-12)


def test_rollouts_that_run_at_once_do_not_mix() -> None:
    async def one(start: float) -> float:
        decay = torch.tensor(start, dtype=D, requires_grad=True)
        await asyncio.sleep(0)
        (found,) = torch.autograd.grad(held_out(implicit(ridge)(solve_ridge)(decay)), decay)
        return found.item()

    async def all_of_them() -> list[float]:
        return await asyncio.gather(*(one(start) for start in (0.3, 0.7, 1.1)))

    assert asyncio.run(all_of_them())[1] == pytest.approx(derivatives(solve_ridge, 1)[0], abs=1e-12)


# -- misuse ----------------------------------------------------------------------------------------------------------


def test_an_unknown_form_is_refused_with_the_near_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'fixed-point'"):
        implicit(ridge, "fixedpoint")  # type: ignore[arg-type]


def test_an_unknown_linear_solver_is_refused_when_it_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'dense'"):
        implicit(ridge, solve="dens")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("solver", "said"),
    [(lambda decay: 3.0, "returned 'float'"), (lambda decay: torch.ones(8, dtype=torch.int64), "returned 'Tensor'")],
)
def test_a_solver_has_to_return_floating_tensors(solver: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        implicit(ridge)(solver)(leaf(0.7))


def test_an_objective_has_to_be_one_number() -> None:
    with pytest.raises(TypeError, match="return one number"):
        implicit(lambda w, decay: w * decay)(solve_ridge)(leaf(0.7)).sum().backward()


def test_a_condition_has_to_have_the_solution_s_shapes() -> None:
    with pytest.raises(TypeError, match=r"shapes \[\(1,\)\] where the solution has \[\(8,\)\]"):
        implicit(lambda w, decay: w[:1], "root")(solve_ridge)(leaf(0.7)).sum().backward()


def test_kkt_needs_a_multiplier_for_each_group() -> None:
    solved = implicit(lambda y, b: ((y - b) ** 2, None, y - 1), "kkt")(lambda b: b.clone())
    with pytest.raises(TypeError, match="one for each"):
        solved(leaf(0.5)).backward()


def test_a_condition_that_ignores_the_solution_is_refused() -> None:
    with pytest.raises(GradientError, match="does not depend on its solution"):
        implicit(lambda w, decay: decay**2)(solve_ridge)(leaf(0.7)).sum().backward()
