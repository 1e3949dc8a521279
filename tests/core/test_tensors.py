"""Tensors as results: real tensors whose functions are ops, with gradients as without recording."""

# ruff: noqa: TID251, PLC3002 # the forms these rules object to are what is tested

import copy
import operator
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import node_of, plain, record, trace
from trace_opt.errors import FeedbackError, OpError, TraceError


@trace
def ident(x: Any) -> Any:
    return x


def pair() -> Any:
    return ident(torch.tensor([1.0, 2.0]))


def linear() -> Any:
    torch.manual_seed(0)
    return torch.nn.Linear(2, 2)(pair())


SAME: dict[str, Any] = {
    "arithmetic": lambda: (pair() + 1, 1 - pair(), torch.ones(2) * pair(), pair() / pair(), -pair(), pair() ** 2, abs(pair())),
    "with a number's result": lambda: (torch.ones(2) * ident(2.5), ident(2.5) * torch.ones(2), pair() * ident(2)),
    "matmul": lambda: (pair() @ pair(), torch.eye(2) @ pair()),
    "comparison": lambda: (pair() > 1, pair() == pair(), torch.equal(pair(), pair())),
    "methods": lambda: (pair().sum(), pair().mean(), pair().max(0).values, pair().to(torch.float64), pair().clone().detach()),
    "functions": lambda: (torch.nn.functional.softmax(pair(), dim=0), torch.where(pair() > 1, pair(), 0.0), torch.exp(pair())),
    "stack and cat": lambda: (torch.stack([pair(), pair()]), torch.cat([pair(), torch.ones(1)])),
    "tensors of results": lambda: (torch.tensor([ident(torch.tensor(1.0)), 2.0]), torch.as_tensor(pair()), torch.full((2,), ident(2.5))),
    "sizes from results": lambda: torch.zeros(ident(2)),
    "indexing": lambda: (pair()[0], pair()[1:], torch.arange(5)[ident(2)], torch.arange(5)[ident(torch.tensor([2]))]),
    "iteration": lambda: ([x for x in pair()], (lambda a, b: a + b)(*pair()), pair().split(1)),
    "description": lambda: (tuple(pair().shape), pair().dtype, pair().numel(), len(pair()), pair().size(0), pair().requires_grad),
    "attributes": lambda: (ident(torch.eye(2)).T, pair().real),
    "conversions": lambda: (float(pair()[0]), int(pair()[1]), pair().tolist(), pair().sum().item(), bool((pair() > 0).all())),
    "numpy": lambda: (pair().numpy(), np.asarray(pair()), np.stack([pair(), pair()])),
    "in": lambda: (1.0 in pair(), 9.0 in pair()),
    "in place on numbers": lambda: [getattr(operator, name)(pair(), 2) for name in ("iadd", "isub", "imul", "itruediv", "ipow")],
    "in place on a plain tensor": lambda: torch.ones(2).add_(pair()),
    "copies": lambda: (copy.copy(pair()), copy.deepcopy(pair()), copy.deepcopy([pair()])),
    "builtins": lambda: (sum([pair(), pair()]), max([pair().sum(), pair().sum() * 2])),
    "isinstance": lambda: (isinstance(pair(), torch.Tensor), torch.is_tensor(pair())),
    "new tensors": lambda: (pair().new_zeros(2), torch.zeros_like(pair())),
    "a module": linear,
    "distributions": lambda: torch.distributions.Normal(pair(), 1.0).log_prob(torch.zeros(2)),
    "repr": lambda: repr(pair()),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_the_same_value_recorded_and_plain(case: str) -> None:
    with record():
        recorded = SAME[case]()
    assert repr(plain(recorded)) == repr(SAME[case]())


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("sum_1", lambda: pair().sum()),
        ("stack_1", lambda: torch.stack([torch.zeros(2), pair()])),
        ("getitem_1", lambda: pair()[0]),
        ("item_1", lambda: pair()[0].item()),
        ("getattr_1", lambda: ident(torch.eye(2)).T),
        ("iadd_1", lambda: pair().__iadd__(1)),
        ("softmax_1", lambda: torch.nn.functional.softmax(pair(), dim=0)),
    ],
)
def test_functions_methods_and_indexing_are_ops(name: str, run: Any) -> None:
    with record() as graph:
        run()
    name = {"iadd_1": "add_1"}.get(name, name)
    assert graph[name].kind == "op"
    assert graph.parents(graph[name])


CHANGES: dict[str, Any] = {
    "add_": lambda x: x.add_(1),
    "item": lambda x: operator.setitem(x, 0, 1),
    "copy_": lambda x: x.copy_(torch.zeros(2)),
    "zero_": lambda x: x.zero_(),
    "relu inplace": lambda x: torch.nn.functional.relu(x, inplace=True),
    "out": lambda x: torch.add(torch.ones(2), 1, out=x),
    "data": lambda x: setattr(x, "data", torch.zeros(2)),
    "init": lambda x: torch.nn.init.zeros_(x),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_in_place_is_refused(case: str) -> None:
    value = torch.tensor([-1.0, 2.0])
    with pytest.raises(TraceError, match="would change the recorded value"), record():
        CHANGES[case](ident(value))
    assert value.tolist() == [-1.0, 2.0]


def test_in_place_on_a_result_gives_a_new_value() -> None:
    with record():
        first = x = pair()
        x += 1
    assert (plain(first).tolist(), plain(x).tolist()) == ([1.0, 2.0], [2.0, 3.0])


@pytest.mark.parametrize(
    "build", [lambda x: torch.tensor(x), lambda x: torch.tensor([x, x]), lambda x: torch.as_tensor([x])], ids=range(3)
)
def test_torch_tensor_of_number_results_is_loud_and_names_the_remedy(build: Any) -> None:
    with pytest.raises(OpError) as caught, record():
        build(ident(2.5))
    assert "plain(x)" in caught.value.__notes__[0]


def test_text_of_a_tensor_in_the_workflow_is_refused() -> None:
    with pytest.raises(TraceError, match="text made"), record():
        f"{pair()[0]:.1f}"


def test_reading_a_tensor_is_a_decision() -> None:
    with record() as graph:
        if pair().sum() > 1:
            out = ident("big")
    assert graph.parents(node_of(out)) == [(graph["bool_1"], "control", "control")]


def test_a_body_sees_the_plain_tensor() -> None:
    with record() as graph:
        x = pair()
        kinds = trace(lambda given: (type(given), type(x + given), len(x)))(x)
    assert plain(kinds) == (torch.Tensor, torch.Tensor, 2)
    assert [kind for _, kind, _ in graph.parents(node_of(kinds))] == ["argument", "read"]


def test_after_the_recording_a_tensor_result_is_a_tensor() -> None:
    with record() as graph:
        x = pair()
    assert type(x + 1) is torch.Tensor
    assert f"{x[0]:.1f}" == "1.0"
    x.add_(1)
    assert plain(x).tolist() == [2.0, 3.0]
    assert torch.equal(pickle.loads(pickle.dumps(x)), x)
    assert len(graph) == 1


_steps = st.lists(
    st.sampled_from(["mul", "sin", "add", "sum", "index", "op", "matmul", "stack"]), min_size=1, max_size=6
)


def _run(x: Any, steps: list[str], hand: Any) -> Any:
    y = x
    for step in steps:
        y = {
            "mul": lambda y: y * x.sum(),
            "sin": torch.sin,
            "add": lambda y: 1.5 + y,
            "sum": lambda y: y.sum(),
            "index": lambda y: y.reshape(-1)[-1],
            "op": hand,
            "matmul": lambda y: (y.reshape(-1) @ y.reshape(-1)).sqrt(),
            "stack": lambda y: torch.stack([y, y]).mean(0),
        }[step](y)
    return y.sum()


@settings(max_examples=60, deadline=None)
@given(_steps)
def test_gradients_through_recorded_ops_equal_those_without(steps: list[str]) -> None:
    square = trace(lambda y: y * y + 0.5)
    start = torch.tensor([0.7, 1.3], dtype=torch.float64)
    bare = start.clone().requires_grad_()
    _run(bare, steps, lambda y: y * y + 0.5).backward()
    parameter = Parameter(start, name="p")
    with record() as graph:
        out = _run(parameter.value, steps, square)
    slices = propagate(graph, graph.output(out), Feedback(loss=plain(out)))
    assert parameter.grad is not None
    assert torch.equal(parameter.grad, bare.grad)
    assert slices["p"].path[-1] is node_of(out)
    assert parameter.value.grad is None


def test_a_loss_fills_grad_once_for_each_feedback() -> None:
    p = Parameter(torch.ones(2), name="p")
    with record() as graph:
        out = ident(p.value) * 3
    feedback = Feedback(loss=plain(out).sum())
    for _ in range(3):
        propagate(graph, graph.output(out), feedback)
    assert p.grad is not None
    assert p.grad.tolist() == [3.0, 3.0]
    propagate(graph, graph.output(out), Feedback(loss=plain(out).sum()))
    assert p.grad.tolist() == [6.0, 6.0]


def test_the_mean_of_several_losses_by_name_is_taken() -> None:
    p = Parameter(torch.tensor(2.0), name="p")
    with record() as graph:
        out = p.value * 3
    propagate(graph, graph.output(out), Feedback(loss={"a": plain(out), "b": plain(out) ** 2}))
    assert p.grad is not None
    assert p.grad.item() == (3 + 2 * 6 * 3) / 2


def test_a_loss_that_is_no_single_number_is_refused() -> None:
    p = Parameter(torch.ones(2), name="p")
    with record() as graph:
        out = p.value * 3
    with pytest.raises(FeedbackError, match="mean"):
        propagate(graph, graph.output(out), Feedback(loss=plain(out)))


def test_recordings_have_gradients_of_their_own() -> None:
    p = Parameter(torch.ones(2), name="p")
    with record(values={"p": torch.full((2,), 5.0)}) as one:
        a = (p.value**2).sum()
    with record(training=False) as two:
        b = (p.value**2).sum()
    propagate(one, one.output(a), Feedback(loss=plain(a)))
    propagate(two, two.output(b), Feedback(loss=plain(b)))
    assert p.grad is not None
    assert p.grad.tolist() == [10.0, 10.0]
    assert not plain(b).requires_grad


def test_a_dropped_recording_of_tensors_is_freed() -> None:
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        with record() as graph:
            x = (pair() * 2).sum()
            bool(x > 1)
        gone = weakref.ref(graph)
        del graph, x
        assert gone() is None
    finally:
        gc.enable()


def test_under_no_grad_nothing_requires_grad() -> None:
    p = Parameter(torch.ones(2), name="p")
    with torch.no_grad(), record():
        out = p.value * 2
    assert not plain(out).requires_grad
    assert torch.is_grad_enabled()
