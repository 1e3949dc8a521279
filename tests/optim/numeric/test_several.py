"""Several losses: closed-form cases, what each method promises, and the conflict problem."""

import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.errors import ProblemError
from trace_opt.optim.numeric.several import ParetoDA, unflatten, weights

_pairs = st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=2, max_size=2).map(
    lambda given: torch.tensor(given, dtype=torch.float64)
)


def tensor(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def direction(method: Any, gradients: torch.Tensor, *preference: Any) -> list[float]:
    return (weights(method, gradients, *preference) @ gradients).tolist()


@pytest.mark.parametrize(
    ("method", "first", "second", "expected"),
    [
        ("mean", (1, 0), (0, 1), (0.5, 0.5)),
        ("mgda", (1, 0), (0, 1), (0.5, 0.5)),
        ("upgrad", (1, 0), (0, 1), (0.5, 0.5)),
        ("mean", (1, 0), (-0.5, 1), (0.25, 0.5)),
        ("mgda", (1, 0), (-0.5, 1), (4 / 13, 6 / 13)),
        ("upgrad", (1, 0), (-0.5, 1), (0.4, 0.7)),
        ("mgda", (4, 0), (1, 0.1), (1, 0.1)),
        ("upgrad", (4, 0), (1, 0.1), (2.5, 0.05)),
        ("mgda", (1, 0), (-1, 0), (0, 0)),
        ("upgrad", (1, 0), (-1, 0), (0, 0)),
        ("mgda", (2, 1), (2, 1), (2, 1)),
        ("mgda", (0, 0), (0, 0), (0, 0)),
    ],
)
def test_two_gradients_with_a_known_direction(method: str, first: Any, second: Any, expected: Any) -> None:
    exact = 1e-3 if method == "upgrad" else 1e-12  # its quadratic program is regularised
    found = direction(method, tensor(first, second).double())
    assert found == pytest.approx(expected, abs=exact)


def test_equal_gradients_share_the_weight() -> None:
    assert weights("mgda", tensor((2, 1), (2, 1))).tolist() == [0.5, 0.5]


@given(_pairs)
def test_mgda_lowers_every_loss_or_stands_still(gradients: torch.Tensor) -> None:
    w = weights("mgda", gradients)
    d = w @ gradients
    # the shortest vector of the hull has inner product |d|^2 at least with each of its points
    assert bool((gradients @ d >= d @ d - 1e-9 * (1 + d @ d)).all())
    assert float(w.sum()) == pytest.approx(1.0)
    assert bool((w >= 0).all())


@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=3, max_size=4))
def test_mgda_of_more_losses_is_the_shortest_vector_of_their_hull(given_rows: list[list[float]]) -> None:
    gradients = torch.tensor(given_rows, dtype=torch.float64)
    w = weights("mgda", gradients)
    d = w @ gradients
    assert float(w.sum()) == pytest.approx(1.0)
    assert bool((w >= 0).all())
    assert bool((gradients @ d >= d @ d - 1e-9 * (1 + d @ d)).all())


def test_mgda_of_three_losses_has_known_answers() -> None:
    corner = tensor((1, 0, 0), (0, 1, 0), (0, 0, 1))
    assert weights("mgda", corner).tolist() == pytest.approx([1 / 3] * 3)
    around = tensor((1, 0), (-1, 1), (-1, -1))  # the hull holds zero
    assert (weights("mgda", around) @ around).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert float(weights("mgda", torch.zeros(3, 2)).sum()) == pytest.approx(1.0)


def test_one_loss_takes_all_the_weight() -> None:
    for method in ("mean", "mgda", "upgrad"):
        assert weights(method, tensor((3.0, 4.0))).tolist() == [1.0]  # type: ignore[arg-type]


PARETO: list[tuple[Any, Any, float, Any]] = [
    (((1, 0), (0, 1)), (1, 0), 1.0, (1, 0)),
    (((1, 0), (-0.5, 1)), (0, 1), 1.0, (1 / 3, 2 / 3)),
    (((1, 0), (-0.5, 1)), (1, 0.2), 1.0, (0.886, 0.114)),
    (((1, 0), (-0.5, 1)), (1, 0.2), 0.0, (1 / 3, 2 / 3)),
    (((1, 0), (3, 1)), (1, 0), 1.0, (0, 1)),
]


@pytest.mark.parametrize(("given_rows", "preference", "loss", "expected"), PARETO)
def test_pareto_weights_of_known_cases(given_rows: Any, preference: Any, loss: float, expected: Any) -> None:
    found = weights(ParetoDA(), tensor(*given_rows), tensor(*preference), loss)
    assert found.tolist() == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize(("given_rows", "preference", "loss", "expected"), PARETO)
def test_pareto_weights_do_not_depend_on_the_scale_of_the_gradients(
    given_rows: Any, preference: Any, loss: float, expected: Any, scale: float
) -> None:
    found = weights(ParetoDA(), scale * tensor(*given_rows), scale * tensor(*preference), loss)
    assert found.tolist() == pytest.approx(expected, abs=5e-4)


def test_balancing_may_worsen_a_loss_and_lowering_all_does_not() -> None:
    gradients, preference = tensor((1, 0), (-0.5, 1)), tensor(1, 0.2)
    balanced = weights(ParetoDA(), gradients, preference, 1.0) @ gradients
    assert float(gradients[1] @ balanced) == pytest.approx(-0.3, abs=1e-9)
    lowered = weights(ParetoDA(), gradients, preference, 0.0) @ gradients
    assert bool((gradients @ lowered >= -1e-12).all())


@given(_pairs, st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.sampled_from([0.0, 1.0]))
def test_pareto_weights_are_on_the_simplex(gradients: torch.Tensor, preference: list[float], loss: float) -> None:
    found = weights(ParetoDA(), gradients, torch.tensor(preference, dtype=torch.float64), loss)
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-7)
    assert bool((found >= -1e-9).all())


@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=4, max_size=4))
def test_balancing_hurts_no_loss_more_than_the_preference_does(given_rows: list[list[float]]) -> None:
    *above, preference = torch.tensor(given_rows, dtype=torch.float64)
    gradients = torch.stack(above)
    falls = gradients @ (weights(ParetoDA(), gradients, preference, 1.0) @ gradients)
    agreement, rounding = gradients @ preference, 1e-6 * float(1 + gradients.square().sum() + preference.square().sum())
    if float(agreement.max()) <= 0:
        assert bool((falls >= -rounding).all())
    else:
        assert float(falls[int(agreement.argmax())]) >= -rounding
        assert bool((falls >= agreement - rounding)[agreement <= 0].all())


def test_the_loss_that_agrees_most_with_the_preference_never_rises() -> None:
    gradients = tensor((3, -3, 1), (-2, 0, 1), (4, 4, -4))
    preference = tensor(1, 0, 0)
    falls = gradients @ (weights(ParetoDA(), gradients, preference, 1.0) @ gradients)
    assert float(falls[int((gradients @ preference).argmax())]) == pytest.approx(0.0, abs=1e-6)


def test_losses_that_all_go_against_the_preference_still_fall() -> None:
    assert weights(ParetoDA(), tensor((1, 0), (1, 0.5)), tensor(-1, 0), 0.0).tolist() == pytest.approx([0, 1])


def test_a_preference_that_no_weights_serve_falls_back() -> None:
    # at its goal, no combination may go against the preference more than the first gradient does, which alone hurts the
    # second
    gradients, preference = tensor((1, 0), (-1, 0.1)), tensor(-0.1, -3)
    assert weights(ParetoDA(), gradients, preference, 0.0).tolist() == [0.5, 0.5]
    assert weights(ParetoDA(fixed=(0.25, 0.75)), gradients, preference, 0.0).tolist() == [0.25, 0.75]


def centre(x: torch.Tensor, at: tuple[float, float]) -> torch.Tensor:
    return (x - tensor(*at)).square().sum()


@pytest.mark.parametrize(("method", "place"), [("mgda", 0.0), ("upgrad", 0.419), ("mean", 0.5)])
def test_two_quadratics_in_conflict_end_on_the_pareto_segment(method: str, place: float) -> None:
    x = tensor(2.0, 3.0).requires_grad_()
    for _ in range(500):
        losses = centre(x, (1.0, 0.0)), centre(x, (-1.0, 0.5))
        gradients = torch.stack([torch.autograd.grad([loss], [x])[0] for loss in losses])
        (step,) = unflatten(weights(method, gradients) @ gradients, [x])  # type: ignore[arg-type]
        with torch.no_grad():
            x -= 0.1 * step
    along, off = tensor(-2.0, 0.5), x.detach() - tensor(1.0, 0.0)
    t = float(off @ along / (along @ along))
    assert t == pytest.approx(place, abs=1e-3)
    assert float((off - t * along).norm()) < 1e-9


def test_a_flat_gradient_comes_back_in_the_shapes_of_its_leaves() -> None:
    a, b = tensor((1.0, 2.0), (3.0, 4.0)), tensor(5.0)
    back = unflatten(tensor(2.0, 4.0, 6.0, 8.0, 3.0), [a, b])
    assert [part.shape for part in back] == [a.shape, b.shape]
    assert torch.equal(back[0], 2 * a)


def test_gradients_that_are_not_finite_count_the_same_and_show_in_the_direction() -> None:
    broken = tensor((1.0, float("nan")), (0.0, 1.0))
    for method in ("mean", "mgda", "upgrad"):
        assert weights(method, broken).tolist() == [0.5, 0.5]  # type: ignore[arg-type]
    assert weights(ParetoDA(), broken, tensor(1.0, 0.0), 1.0).tolist() == [0.5, 0.5]
    assert bool((weights("mgda", broken) @ broken).isnan().any())


def test_a_function_is_a_method_too() -> None:
    assert weights(lambda g: g.norm(dim=1), tensor((3, 4), (0, 1))).tolist() == [5.0, 1.0]


def test_weights_are_detached() -> None:
    gradients = tensor((1.0, 0.0), (-0.5, 1.0)).requires_grad_()
    for method in ("mean", "mgda", "upgrad"):
        assert not weights(method, gradients).requires_grad  # type: ignore[arg-type]


def test_what_is_missing_or_misspelt_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = tensor((1.0, 0.0), (0.0, 1.0))
    with pytest.raises(ValueError, match="'mdga'; choose one of .'mgda'"):
        weights("mdga", gradients)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ParetoDA got no preference"):
        weights(ParetoDA(), gradients)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        weights("mean", torch.ones(2))
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(ProblemError, match="extra 'multiobjective'"):
        weights("upgrad", gradients)
