"""Target-based surrogates: the logistic-regression case, optimizers inside, and what is refused."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.graph import Graph
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import plain, record, trace
from trace_opt.errors import GradientError, TraceError
from trace_opt.optim.numeric.surrogate import Inner, Surrogate, minimise

W = Parameter(torch.zeros(10, dtype=torch.float64), name="w")
COUNTS = {"cheap": 0, "dear": 0}


@trace
def logits(x: torch.Tensor) -> torch.Tensor:
    COUNTS["cheap"] += 1
    return x @ W.value


@trace
def logistic(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    COUNTS["dear"] += 1
    return torch.nn.functional.softplus(-y * z).sum()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """200 labelled points of 10 features on scales from 1 to 0.1, a tenth of the labels wrong."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 10, dtype=torch.float64, generator=generator) * torch.linspace(1.0, 0.1, 10).double()
    truth = torch.randn(10, dtype=torch.float64, generator=generator)
    noise = torch.randn(200, dtype=torch.float64, generator=generator)
    y = torch.where(x @ truth + noise > 0, 1.0, -1.0).double()
    return x, torch.where(torch.rand(200, generator=generator) < 0.1, -y, y)


def run(workflow: Callable[[], Any], values: Mapping[str, torch.Tensor]) -> tuple[Graph, torch.Tensor]:
    with record(dict(values), training=True) as graph:
        out = workflow()
    return graph, plain(out)


def outer(
    surrogate: Surrogate,
    w: torch.Tensor,
    workflow: Callable[[], Any],
    t: int = 0,
    step: Callable[[], Any] | None = None,
) -> tuple[float, Inner]:
    """One expensive gradient and its inner steps; the loss before them."""
    graph, loss = run(workflow, {"w": w})
    expansion = surrogate.expand(loss, [graph], ["w"], [w])
    return float(loss.detach()), surrogate.minimise(expansion, [w], lambda: {"w": w}, step=step, t=t)


def optimum(x: torch.Tensor, y: torch.Tensor) -> float:
    w = torch.zeros(10, dtype=torch.float64)
    for _ in range(20):
        p = torch.sigmoid(-y * (x @ w))
        w += torch.linalg.solve((x.T * (p * (1 - p))) @ x, x.T @ (y * p))
    return float(torch.nn.functional.softplus(-y * (x @ w)).sum())


def gaps(m: int, most: int, **options: Any) -> list[float]:
    """Gaps to the optimum before each expensive gradient, until one is below 1e-2."""
    x, y = data()
    best = optimum(x, y)
    rate = 4.0 / float(torch.linalg.eigvalsh(x.T @ x)[-1])
    surrogate = Surrogate("logits", m, 4.0, **{"inner_lr": rate, **options})
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    found: list[float] = []
    for t in range(most):
        found.append(outer(surrogate, w, lambda: logistic(logits(x), y), t)[0] - best)
        if found[-1] <= 1e-2:
            break
    return found


def test_more_inner_steps_need_fewer_expensive_gradients_and_the_loss_never_rises() -> None:
    found = {m: gaps(m, 200) for m in (1, 5, 20, 100)}
    needed = {m: len(curve) - 1 for m, curve in found.items()}
    assert found[1][-1] > 1e-2  # not in 200
    assert needed[5] <= 57
    assert needed[20] <= 18
    assert needed[100] <= 10
    assert needed[5] > needed[20] > needed[100]
    for curve in found.values():
        assert all(later <= earlier + 1e-12 for earlier, later in pairwise(curve))


def test_a_line_search_needs_no_step_size() -> None:
    curve = gaps(20, 60, inner_lr=None)
    assert curve[-1] <= 1e-2
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(curve))


def test_one_inner_step_is_a_plain_gradient_step() -> None:
    x, y = data()
    w = torch.full((10,), 0.1, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(torch.nn.functional.softplus(-y * (x @ w)).sum(), w)
    expected = (w - 0.003 * gradient).detach()
    _, inner = outer(Surrogate("logits", 1, 4.0, inner_lr=0.003), w, lambda: logistic(logits(x), y))
    assert torch.allclose(w.detach(), expected, rtol=0, atol=1e-15)
    assert inner.steps == 1


def test_many_inner_steps_reach_the_projected_gradient_step_in_target_space() -> None:
    x, y = data()
    w = torch.full((10,), 0.1, dtype=torch.float64, requires_grad=True)
    z = (x @ w).detach().requires_grad_()
    (dz,) = torch.autograd.grad(torch.nn.functional.softplus(-y * z).sum(), z)
    wanted = torch.linalg.lstsq(x, (z - 4.0 * dz).detach().unsqueeze(1)).solution.squeeze(1)
    _, inner = outer(Surrogate("logits", 2000, 4.0, tolerance=0.0), w, lambda: logistic(logits(x), y))
    assert torch.allclose(w.detach(), wanted, rtol=0, atol=1e-5)
    assert inner.steps < 1000  # the search ends where rounding swallows what is left


@trace
def same() -> torch.Tensor:
    return W.value.view(2, 5)


@trace
def bowl(z: torch.Tensor) -> torch.Tensor:
    return (z - 1.0).square().sum()


def test_a_target_that_shares_memory_with_a_leaf_stays_where_it_was() -> None:
    w = torch.full((10,), 3.0, dtype=torch.float64, requires_grad=True)
    outer(Surrogate("same", 50, 0.25), w, lambda: bowl(same()))
    assert w.tolist() == pytest.approx([3.0 - 0.25 * 4.0] * 10)


def test_the_expensive_part_runs_once_whatever_the_inner_steps() -> None:
    x, y = data()
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    COUNTS.update(cheap=0, dear=0)
    _, inner = outer(Surrogate("logits", 30, 4.0, inner_lr=1e-3), w, lambda: logistic(logits(x), y))
    assert COUNTS == {"cheap": 1 + 30, "dear": 1}
    assert (inner.steps, inner.evaluations) == (30, 30)
    assert inner.value < 0.0


@pytest.mark.parametrize("name", ["SGD", "Adam", "LBFGS"])
def test_any_torch_optimizer_takes_the_inner_steps(name: str) -> None:
    x, y = data()
    best = optimum(x, y)
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = {
        "SGD": lambda: torch.optim.SGD([w], lr=0.01, momentum=0.9),
        "Adam": lambda: torch.optim.Adam([w], lr=0.05),
        "LBFGS": lambda: torch.optim.LBFGS([w], lr=0.01, max_iter=1),
    }[name]()
    step: Any = optimizer.step if name != "LBFGS" else lambda: optimizer.step(lambda: torch.tensor(0.0))
    losses = [outer(Surrogate("logits", 20, 4.0), w, lambda: logistic(logits(x), y), step=step)[0] for _ in range(40)]
    assert losses[-1] - best < 0.05 * (losses[0] - best)


def test_a_minibatch_of_rollouts_is_one_model() -> None:
    x, y = data()
    parts = [(x[i : i + 50], y[i : i + 50]) for i in range(0, 200, 50)]
    whole = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    outer(Surrogate("logits", 7, 4.0, inner_lr=1e-3), whole, lambda: logistic(logits(x), y))
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    runs = [run(lambda a=a, b=b: logistic(logits(a), b), {"w": w}) for a, b in parts]
    mean = sum(loss for _, loss in runs) / 4
    surrogate = Surrogate("logits", 7, 16.0, inner_lr=4e-3)  # a mean over 4 is 4 times smoother than their sum
    expansion = surrogate.expand(mean, [graph for graph, _ in runs], ["w"], [w])  # type: ignore[arg-type]
    surrogate.minimise(expansion, [w], lambda: {"w": w})
    assert torch.allclose(w, whole, rtol=0, atol=1e-13)


def test_values_may_be_functions_of_the_leaves() -> None:
    x, y = data()
    half = torch.full((10,), 0.1, dtype=torch.float64, requires_grad=True)
    surrogate = Surrogate("logits", 5, 4.0, inner_lr=1e-3)

    def values() -> dict[str, torch.Tensor]:
        return {"w": 2 * half}

    graph, loss = run(lambda: logistic(logits(x), y), values())
    inner = surrogate.minimise(surrogate.expand(loss, [graph], ["w"], [half]), [half], values)
    after = torch.nn.functional.softplus(-y * (x @ (2 * half))).sum()
    assert inner.steps == 5
    assert float(after.detach()) < float(loss.detach())


def test_inner_steps_stop_where_the_model_is_flat() -> None:
    leaf = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    surrogate = Surrogate("z", 50, 1.0, inner_lr=1.0)
    inner = minimise(surrogate, [torch.zeros(1).double()], [torch.ones(1).double()], lambda: [leaf], [leaf])
    assert (inner.steps, leaf.tolist(), inner.value) == (1, [-1.0], -0.5)
    flat = minimise(surrogate, [leaf.detach().clone()], [torch.zeros(1).double()], lambda: [leaf], [leaf])
    assert (flat.steps, flat.evaluations) == (0, 1)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.1, 5.0), st.floats(0.1, 3.0))
def test_a_line_search_never_raises_the_model(start: float, slope: float, eta: float, bend: float) -> None:
    leaf = torch.tensor(start, dtype=torch.float64, requires_grad=True)

    def again() -> list[torch.Tensor]:
        return [torch.sin(bend * leaf) + leaf]

    target = again()[0].detach()
    inner = minimise(Surrogate("z", 5, eta), [target], [torch.tensor(slope, dtype=torch.float64)], again, [leaf])
    moved = float(again()[0].detach()) - float(target)
    reached = slope * moved + moved**2 / (2 * eta)
    assert reached <= 1e-12
    assert inner.value == pytest.approx(reached, abs=1e-12)


def test_eta_shrinks_where_asked() -> None:
    assert [Surrogate("z", 1, 6.0).eta_at(t) for t in (0, 8)] == [6.0, 6.0]
    assert [Surrogate("z", 1, 6.0, "sqrt").eta_at(t) for t in (0, 8)] == [6.0, 2.0]


@trace
def noisy(x: torch.Tensor) -> torch.Tensor:
    return x @ W.value + torch.rand(len(x), dtype=torch.float64)


@trace
def penalty() -> torch.Tensor:
    return W.value.square().sum()


def refusal(workflow: Callable[[], Any], target: str) -> None:
    w = torch.ones(10, dtype=torch.float64, requires_grad=True)
    outer(Surrogate(target, 3, 4.0, inner_lr=1e-3), w, workflow)


def test_a_part_that_gives_something_else_the_second_time_is_refused() -> None:
    x, y = data()
    with pytest.raises(TraceError, match="'noisy' gives another value when it is run again"):
        refusal(lambda: logistic(noisy(x), y), "noisy")


def test_a_loss_that_reaches_the_leaves_around_the_target_is_refused() -> None:
    x, y = data()
    with pytest.raises(GradientError, match="ways around the target 'logits'"):
        refusal(lambda: logistic(logits(x), y) + penalty(), "logits")


def test_targets_that_cannot_be_ones_are_refused() -> None:
    x, y = data()
    with pytest.raises(TraceError, match="'logit' was recorded; did you mean 'logits'"):
        refusal(lambda: logistic(logits(x), y), "logit")
    with pytest.raises(GradientError, match="no gradient leads from the loss to the target 'penalty'"):
        refusal(lambda: [penalty(), logistic(logits(x), y)][1], "penalty")
    with pytest.raises(GradientError, match="'number' gave 'float' that no gradient leads to"):
        refusal(lambda: logistic(logits(x) * number(), y), "number")
    with pytest.raises(TraceError, match="one call of the target 'twice' feeds another"):
        refusal(lambda: logistic(twice(twice(logits(x))), y), "twice")


@trace
def number() -> float:
    return 2.0


@trace
def twice(z: torch.Tensor) -> torch.Tensor:
    return 2 * z


def test_calls_of_the_target_that_stand_side_by_side_are_one_model() -> None:
    x, y = data()
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    whole = w.detach().clone().requires_grad_()
    surrogate = Surrogate("logits", 6, 4.0, inner_lr=1e-3)
    outer(surrogate, w, lambda: logistic(logits(x[:80]), y[:80]) + logistic(logits(x[80:]), y[80:]))
    outer(surrogate, whole, lambda: logistic(logits(x), y))
    assert torch.allclose(w, whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": 0}, "inner_steps=0"),
        ({"eta": 0.0}, "eta=0.0"),
        ({"eta": math.nan}, "eta=nan"),
        ({"decay": "cubic"}, "decay='cubic'"),
        ({"inner_lr": -1.0}, "inner_lr=-1.0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Surrogate("z", **options)
