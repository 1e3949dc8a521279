"""Clipping along an edge: closed forms, and hooks on recorded values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import plain, record, trace
from trace_opt.errors import TraceError
from trace_opt.optim.numeric.clipping import clip_channels, clip_ops, hook

_tensors = st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=5).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64)
)


@pytest.mark.parametrize(("norm", "expected"), [("inf", (0.75, 1.0)), ("l2", (0.6, 0.8))])
def test_the_case_of_three_and_four(norm: str, expected: tuple[float, float]) -> None:
    gradient = torch.tensor([(3.0, 4.0), (0.3, 0.4), (0.0, 0.0), (-3.0, -4.0)], dtype=torch.float64)
    clipped = clip_channels(gradient, 1.0, norm)  # type: ignore[arg-type]
    assert torch.allclose(clipped[0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    assert torch.equal(clipped[1:3], gradient[1:3])
    assert torch.equal(clipped[3], -clipped[0])


@given(_tensors, st.floats(0.01, 100.0), st.sampled_from(["inf", "l2"]))
def test_every_position_is_within_the_limit_and_keeps_its_direction(
    gradient: torch.Tensor, limit: float, norm: str
) -> None:
    clipped = clip_channels(gradient, limit, norm)  # type: ignore[arg-type]
    order = float("inf") if norm == "inf" else 2
    sizes = torch.linalg.vector_norm(clipped, order, dim=-1)
    assert bool((sizes <= limit * (1 + 1e-12)).all())
    lengths = torch.linalg.vector_norm(gradient, dim=-1) * torch.linalg.vector_norm(clipped, dim=-1)
    assert torch.allclose((gradient * clipped).sum(-1), lengths, rtol=1e-9)
    within = torch.linalg.vector_norm(gradient, order, dim=-1) <= limit
    assert torch.equal(clipped[within], gradient[within])
    assert clipped.shape == gradient.shape


def test_a_single_number_is_one_channel() -> None:
    assert float(clip_channels(torch.tensor(-7.0), 2.0)) == -2.0
    assert float(clip_channels(torch.tensor(0.0), 2.0)) == 0.0


def test_a_hook_clips_what_flows_back_and_can_be_taken_away() -> None:
    x = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    y = x * 1.0
    handle = hook(y, 1.0, "l2")
    (clipped,) = torch.autograd.grad((y * y.detach()).sum(), x, retain_graph=True)
    assert clipped.tolist() == pytest.approx([0.6, 0.8])
    handle.remove()
    (whole,) = torch.autograd.grad((y * y.detach()).sum(), x)
    assert whole.tolist() == [3.0, 4.0]


@trace
def scale(x: torch.Tensor, by: float) -> torch.Tensor:
    return x * by


@trace
def loss_of(y: torch.Tensor) -> torch.Tensor:
    return 0.5 * y.square().sum()


def test_gradients_are_clipped_behind_every_call_of_a_named_op() -> None:
    p = Parameter(torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64), name="p")
    with record() as graph:
        total = loss_of(scale(p.value, 1.0)) + loss_of(scale(p.value, 2.0))
    loss = plain(total)
    handles = clip_ops(graph, {"scale": 1.0}, "l2")
    assert len(handles) == 2
    (found,) = torch.autograd.grad(loss, [graph.parameters["p"].value])
    # d/dx of each call: the clipped gradient of its result, times its factor
    expected = [[0.6 * (1 + 2), 0.8 * (1 + 2)], [0.3 + 2 * 0.6, 0.4 + 2 * 0.8]]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64))


def test_a_misspelt_op_is_named() -> None:
    with record() as graph:
        scale(torch.ones(2), 2.0)
    with pytest.raises(TraceError, match="'sclae' was recorded; did you mean 'scale'"):
        clip_ops(graph, {"sclae": 1.0})
    assert clip_ops(graph, {"scale": 1.0}) == []  # a constant takes no gradient


@pytest.mark.parametrize(("limit", "norm", "message"), [(0.0, "inf", "limit of 0.0"), (1.0, "l3", "norm 'l3'")])
def test_options_that_make_no_sense_are_refused(limit: float, norm: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip_channels(torch.ones(2), limit, norm)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        hook(torch.ones(2, requires_grad=True), limit, norm)  # type: ignore[arg-type]


def test_a_constant_takes_no_hook() -> None:
    with pytest.raises(ValueError, match="takes no gradient"):
        hook(torch.ones(2), 1.0)
