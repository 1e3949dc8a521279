"""Gradient rules of an op's own: what they give, what they see, and what is refused."""

import asyncio
import gc
import json
import runpy
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trace_opt.core.context import in_force, rollout
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import node_of, op_of, record, trace
from trace_opt.errors import TraceError
from trace_opt.testing import check_gradients


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> list[Any]:
    return list(torch.autograd.grad(loss, leaves, allow_unused=True))


def shift(grad: torch.Tensor, output: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    quarter = torch.pi / 2
    return grad * (cosine(angle + quarter) - cosine(angle - quarter)) / 2


@trace(vjp=shift)
def cosine(angle: torch.Tensor) -> torch.Tensor:
    """A black box: torch sees nothing of it."""
    return torch.from_numpy(angle.detach().numpy().copy()).cos()


@trace(vjp=lambda grad, output, x: grad * output)
def exponential(x: torch.Tensor) -> torch.Tensor:
    return x.exp()


@pytest.mark.parametrize("recorded", [True, False])
def test_the_rule_is_exact_where_torch_sees_nothing(recorded: bool) -> None:
    angle = double(0.3, 1.2).requires_grad_()
    if recorded:
        with record():
            loss = cosine(angle).sum()
    else:
        loss = cosine(angle).sum()
    assert torch.allclose(gradients(loss, angle)[0], -angle.sin(), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("op", "second"), [(cosine, lambda x: -x.cos()), (exponential, torch.exp)])
def test_second_derivatives_go_through_the_rule(op: Any, second: Callable[..., Any]) -> None:
    x = double(0.4).requires_grad_()
    first = torch.autograd.grad(op(x).sum(), x, create_graph=True)[0]
    assert torch.allclose(gradients(first.sum(), x)[0], second(x), rtol=0, atol=1e-14)


def test_a_parameter_passed_as_an_argument_gets_its_gradient_by_hand() -> None:
    angle = Parameter(double(0.5), name="angle")
    with record() as graph:
        loss = cosine(angle).sum() * 3
    propagate(graph, node_of(loss), Feedback(loss=loss))
    assert angle.grad is not None
    assert torch.allclose(angle.grad, -3 * double(0.5).sin())
    assert [node.op.name for node in graph.nodes if node.kind == "op"] == ["cosine", "sum", "mul"]


def test_it_reads_as_the_function_itself() -> None:
    assert cosine.__name__ == "cosine"
    assert cosine.__doc__ == "A black box: torch sees nothing of it."
    assert op_of(cosine).parameters == ("angle",)
    assert op_of(cosine).source.partition(":")[0] == __file__


def test_it_gets_every_input_in_the_order_of_the_signature() -> None:
    seen: list[Any] = []

    def rule(grad: torch.Tensor, output: torch.Tensor, *inputs: Any) -> Any:
        seen.append((grad, output, *inputs))
        return grad, None, None, None, None

    @trace(vjp=rule)
    def scaled(x: torch.Tensor, how: str, *more: float, by: float = 2.0, **rest: Any) -> torch.Tensor:
        return x * by

    x = double(1.0).requires_grad_()
    loss = scaled(x, "up", 3.0, 4.0, note="z").sum()
    assert torch.equal(gradients(loss, x)[0], double(1.0))
    _, output, *inputs = seen[0]
    assert torch.equal(output, double(2.0))
    assert inputs[1:] == ["up", (3.0, 4.0), 2.0, {"note": "z"}]
    assert torch.equal(inputs[0], x)


def test_containers_of_tensors_go_in_and_come_out() -> None:
    def rule(grad: Any, output: Any, parts: Any, weights: Any) -> Any:
        a, b = parts["a"], parts["b"][0]
        return {"a": grad[0] * b, "b": [grad[0] * a + grad[1]["sum"]]}, None

    @trace(vjp=rule)
    def both(parts: dict[str, Any], weights: Any) -> Any:
        return parts["a"] * parts["b"][0], {"sum": parts["b"][0] + 0, "n": 2}

    a, b = double(2.0).requires_grad_(), double(5.0).requires_grad_()
    with record():
        product, rest = both({"a": a, "b": [b]}, (double(1.0),))
        loss = product.sum() + rest["sum"].sum()
    assert int(rest["n"]) == 2
    assert [float(g) for g in gradients(loss, a, b)] == [5.0, 3.0]


def test_an_input_without_a_gradient_stays_without_one() -> None:
    @trace(vjp=lambda grad, output, x, y: (grad * y, None))
    def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * y

    x, y = double(2.0).requires_grad_(), double(3.0).requires_grad_()
    assert gradients(product(x, y).sum(), x, y) == [double(3.0), None]


def test_an_integer_output_beside_the_value_is_left_alone() -> None:
    @trace(vjp=lambda grad, output, x: torch.zeros_like(x).index_fill(0, output[1], 1.0) * grad[0])
    def largest(x: torch.Tensor) -> Any:
        found = x.max(0)
        return found.values, found.indices

    x = double(1.0, 4.0, 2.0).requires_grad_()
    value, place = largest(x)
    assert int(place) == 1
    assert torch.equal(gradients(value * 2, x)[0], double(0.0, 2.0, 0.0))


def test_returning_an_argument_as_it_is_works() -> None:
    @trace(vjp=lambda grad, output, x: -grad)
    def reversal(x: torch.Tensor) -> torch.Tensor:
        return x

    x = double(1.0).requires_grad_()
    assert float(gradients(reversal(x).sum(), x)[0]) == -1.0


def test_methods_and_static_methods_take_a_rule() -> None:
    class Gate:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        @trace(vjp=lambda grad, output, self, x: (None, grad * self.factor * 10))
        def scale(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

        @trace(vjp=lambda grad, output, x: grad * 7)
        @staticmethod
        def seven(x: torch.Tensor) -> torch.Tensor:
            return x

    x = double(1.0).requires_grad_()
    assert float(gradients(Gate(2.0).scale(x).sum(), x)[0]) == 20.0
    assert float(gradients(Gate.seven(x).sum(), x)[0]) == 7.0


def test_the_rule_runs_unrecorded_with_the_candidates_values_in_force() -> None:
    gain = Parameter(1.0, name="gain")
    seen: list[Any] = []

    def rule(grad: torch.Tensor, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        seen.append((gain.value, rollout().seed))
        return grad * gain.value

    @trace(vjp=rule)
    def amplified(x: torch.Tensor) -> torch.Tensor:
        return x * gain.value

    x = double(1.0).requires_grad_()
    with record({"gain": 5.0}, seed=3, training=True) as graph:
        loss = amplified(x).sum()
        size = len(graph)
        inside = gradients(loss, x)[0]
        assert len(graph) == size
    assert float(inside) == 5.0
    assert seen == [(5.0, 3)]
    with record({"gain": 7.0}):
        later = amplified(x).sum()
    assert float(gradients(later, x)[0]) == 7.0


@pytest.mark.parametrize("where", ["the workflow", "an op", "an inner op of its body", "a guide"])
def test_reading_a_tensor_parameter_that_trains_in_the_body_is_refused(where: str) -> None:
    weight = Parameter(double(2.0), name="weight")
    read = trace(lambda: weight.value)

    @trace(vjp=lambda grad, output, x: grad)
    def hidden(x: torch.Tensor) -> torch.Tensor:
        return x * (read() if where == "an inner op of its body" else weight.value)

    call = trace(lambda: hidden(double(1.0))) if where == "an op" else lambda: hidden(double(1.0))
    leaf = double(3.0).requires_grad_()
    with pytest.raises(TraceError, match="'hidden' .* read the tensor parameter 'weight' .* pass it as an argument"):
        if where == "a guide":
            with in_force({"weight": leaf}, training=True):
                call()
        else:
            with record({"weight": leaf}, training=True):
                call()


@pytest.mark.parametrize("training", [False, True])
def test_reading_one_that_does_not_train_is_fine(training: bool) -> None:
    weight = Parameter(double(2.0), name="weight")

    @trace(vjp=lambda grad, output, x: grad * weight.value)
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * weight.value

    x = double(1.0).requires_grad_()
    with record({"weight": double(3.0)}, training=training) as graph:
        loss = scaled(x).sum()
    assert float(gradients(loss, x)[0]) == 3.0
    assert [(parent.kind, kind) for parent, kind, _ in graph.nodes[1].parents() if kind == "read"] == [("parameter", "read")]  # fmt: skip
    with in_force({"weight": double(4.0)}, training=training):
        assert float(scaled(x).detach()) == 4.0


def test_reading_a_frozen_one_is_fine_by_hand_too() -> None:
    weight = Parameter(double(2.0), name="weight", frozen=True)
    scaled = trace(vjp=lambda grad, output, x: grad * 2)(lambda x: x * weight.value)
    x = double(1.0).requires_grad_()
    with record():
        loss = scaled(x).sum()
    assert float(gradients(loss, x)[0]) == 2.0


def test_grad_mode_outside_the_body_is_never_changed() -> None:
    @trace(vjp=lambda grad, output, x: grad)
    def failing(x: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        failing(double(1.0).requires_grad_())
    assert torch.is_grad_enabled()

    async def two() -> list[bool]:
        async def one() -> bool:
            await asyncio.sleep(0)
            return bool(cosine(double(1.0).requires_grad_()).requires_grad)

        return list(await asyncio.gather(one(), one()))

    assert asyncio.run(two()) == [True, True]


def test_dropping_the_output_frees_what_the_rule_was_given() -> None:
    class Held(dict[str, int]):
        """Something that can be pointed at weakly."""

    held = Held(a=1)
    watch = weakref.ref(held)

    @trace(vjp=lambda grad, output, x, note: (grad, None))
    def keeps(x: torch.Tensor, note: Any) -> torch.Tensor:
        return x * 2

    made = keeps(double(1.0).requires_grad_(), held)
    del held
    assert watch() is not None
    del made
    gc.collect()
    assert watch() is None


async def _async(x: Any) -> Any:
    return x


def _generator(x: Any) -> Any:
    yield x


class _Callable:
    def __call__(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    ("fn", "options", "says"),
    [
        (_async, {}, "'_async' got a vjp rule but is asynchronous"),
        (_generator, {}, "is a generator"),
        (_Callable(), {}, "is a _Callable"),
        (lambda x: x, {"inline": True}, "is inline"),
        (cosine, {}, "is an op already"),
        (json.dumps, {"vjp": 3}, "the vjp rule of 'dumps' is 3"),
    ],
)
def test_what_cannot_have_a_rule_is_refused_when_it_is_decorated(fn: Any, options: Any, says: str) -> None:
    with pytest.raises(TraceError, match=says):
        trace(**{"vjp": lambda grad, output, x: grad, **options})(fn)


def test_a_body_that_returns_no_tensor_is_refused() -> None:
    parse = trace(vjp=lambda grad, output, x: grad)(lambda x: float(x.detach()))
    with pytest.raises(TraceError, match="returned 'float' without a tensor"):
        parse(double(1.0))


def test_a_body_that_changes_its_argument_in_place_is_refused() -> None:
    wipe = trace(vjp=lambda grad, output, x: grad)(lambda x: x.zero_() + 1)
    with pytest.raises(TraceError, match="changed an argument in place"):
        wipe(double(1.0))


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (lambda grad, output, x, y: grad, r"returned 1 gradients for the inputs \(x, y\)"),
        (lambda grad, output, x, y: (grad, None, None), "returned 3 gradients"),
        (lambda grad, output, x, y: (grad.sum(), None), r"returned \[\(\)\] for its input 'x'; return tensors of shapes \[\(2,\)\]"),
        (lambda grad, output, x, y: (1.0, None), r"returned \['float'\]"),
        (lambda grad, output, x, y: (grad, grad), "for its input 'y'"),
    ],
)  # fmt: skip
def test_a_rule_that_returns_something_else_says_what_was_wanted(rule: Any, says: str) -> None:
    op = trace(vjp=rule)(lambda x, y: x * 2)
    x = double(1.0, 2.0).requires_grad_()
    with pytest.raises(TraceError, match=says):
        op(x, "text").sum().backward()


def test_the_examples_rules_are_those_of_their_papers(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = runpy.run_path(str(project / "examples" / "custom_gradients.py"))
    printed = capsys.readouterr().out
    assert "the qubit's expectation went from" in printed
    angles = Parameter(double(0.0, 0.0), name="angles")
    found = check_gradients(lambda: shown["qubit"](angles.value), {"angles": double(0.4, -1.1)})
    assert found["angles"] < 1e-9
    draws = torch.Generator().manual_seed(0)
    x, grad, weight = (torch.randn(*shape, generator=draws, dtype=torch.float64) for shape in ((5, 9), (5, 3), (3, 9)))
    of_input, of_weight = shown["tract"](grad, None, x, weight)
    damping, kernel = shown["DAMPING"], x @ x.T / len(x)
    eye = torch.eye(5, dtype=torch.float64)
    by_samples = grad.T @ (eye - kernel @ torch.linalg.inv(kernel / damping + eye) / damping) @ x / damping
    assert torch.allclose(of_weight, by_samples, rtol=0, atol=1e-11)
    assert torch.equal(of_input, grad @ weight)
