"""Recorded values under other parameter values, without the workflow."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.context import rollout
from trace_opt.core.graph import Graph
from trace_opt.core.module import Module
from trace_opt.core.node import Node
from trace_opt.core.parameter import Parameter
from trace_opt.core.replay import Replay, calls_of, recompute
from trace_opt.core.tracer import no_trace, node_of, record, trace
from trace_opt.errors import TraceError


@trace
def times(x: Any, by: Any = 3) -> Any:
    return x * by


@trace
def plus(x: Any, y: Any) -> Any:
    return x + y


def replayed(workflow: Callable[[Any], Any], old: Any, new: Any) -> tuple[Any, Any]:
    """What replay says of the workflow's result under another value, and what running it gives."""
    p = Parameter(old, name="p")
    with record() as graph:
        out = workflow(p)
        node = node_of(out)
    (again,) = recompute(graph, [node], {"p": new})
    assert recompute(graph, [node], {"p": old}) == [node.value]
    assert recompute(graph, [node], {}) == [node.value]
    with record({"p": new}):
        fresh = node_of(workflow(p)).value
    return again, fresh


class Pair(NamedTuple):
    a: Any
    b: Any


@dataclass(frozen=True)
class Box:
    inner: Any


@trace
def flat(held: Any) -> list[Any]:
    return [*held["pair"], held["box"].inner, *held["list"]]


@trace
def spread(first: Any, *rest: Any, key: Any, **more: Any) -> list[Any]:
    return [first, *rest, key, *more.items()]


@trace
def positional(a: Any, /, b: Any, *, c: Any) -> tuple[Any, ...]:
    return (a, b, c)


@trace
def counted(n: int) -> Iterator[int]:
    yield from range(n)


@trace(inline=True)
def scope(x: Any) -> Any:
    return plus(times(x), 1)


FACTOR = Parameter(7, name="factor")


@trace
def reading(x: Any) -> Any:
    return x * FACTOR.value


@trace
def nesting(x: Any) -> Any:
    return plus(times(x, 2), 1)


WORKFLOWS: dict[str, Callable[[Any], Any]] = {
    "operators": lambda p: (p.value + 1) * p.value - 2 // (p.value + 1),
    "defaults": lambda p: times(p.value),
    "parameter as argument": lambda p: times(p, p),
    "containers": lambda p: flat(
        {"pair": Pair(p.value, 1), "box": Box(times(p.value)), "list": [p.value, [times(p.value)], (p.value,)]}
    ),
    "variadic": lambda p: spread(p.value, 1, times(p.value), key=times(p.value), more=p.value),
    "nothing variadic": lambda p: spread(p.value, key=0),
    "positional and keyword only": lambda p: positional(p.value, times(p.value), c=p.value),
    "generator": lambda p: sum_of(counted(p.value)),
    "inline": lambda p: scope(scope(p.value)),
    "reads in a body": lambda p: reading(times(p.value)),
    "calls in a body": lambda p: nesting(p.value),
    "methods of values": lambda p: text(p.value).replace("1", "one").upper(),
    "attributes": lambda p: complex_of(p.value).imag,
    "items": lambda p: spread(p.value, key=4)[0],
    "iteration": lambda p: plus(*pair(p.value)),
    "builtin": lambda p: trace(divmod)(times(p.value), 2),
    "builtin without a signature": lambda p: trace(max)(p.value, times(p.value), key=abs),
    "lambda": lambda p: trace(lambda a, *b: a + sum(b))(p.value, p.value, 1),
    "class": lambda p: trace(Box)(p.value),
    "decisions that stay": lambda p: times(p.value) if p.value > 0 and len(pair(p.value)) == 2 else p.value,
}


@trace
def sum_of(items: list[int]) -> int:
    return sum(items)


@trace
def text(x: Any) -> str:
    return str(x)


@trace
def complex_of(x: Any) -> complex:
    return complex(1, x)


@trace
def pair(x: Any) -> tuple[Any, Any]:
    return x, x * x


@pytest.mark.parametrize("name", WORKFLOWS)
def test_replay_gives_what_the_workflow_would(name: str) -> None:
    again, fresh = replayed(WORKFLOWS[name], 3, 11)
    assert again == fresh
    assert type(again) is type(fresh)


@given(st.integers(-9, 9), st.integers(-9, 9), st.lists(st.sampled_from(["times", "plus", "both"]), max_size=8))
def test_replay_gives_what_any_chain_would(old: int, new: int, names: list[str]) -> None:
    def workflow(p: Any) -> Any:
        y = times(p.value, 1)
        for name in names:
            y = {"times": lambda y: times(y), "plus": lambda y: plus(y, 5), "both": lambda y: plus(y, p.value)}[name](y)
        return y

    again, fresh = replayed(workflow, old, new)
    assert again == fresh


def test_only_what_follows_from_the_change_runs() -> None:
    ran: list[str] = []

    @trace
    def step(name: str, *_: Any) -> str:
        ran.append(name)
        return name

    p, q = Parameter(1, name="p"), Parameter(2, name="q")
    with record() as graph:
        before = step("other", q.value)
        first = step("first", p.value, before)
        wanted = step("wanted", first)
        step("behind", wanted)
        step("beside", p.value)
        node = node_of(wanted)
    ran.clear()
    replay = Replay(graph, [node], ["p"])
    assert replay.calls == 2
    assert replay({"p": 5}) == ["wanted"]
    assert ran == ["first", "wanted"]
    assert Replay(graph, [node], ["unread"])({"unread": 0}) == ["wanted"]
    assert ran == ["first", "wanted"]


def test_several_nodes_and_parameters_themselves_can_be_asked_for() -> None:
    p, q = Parameter(2, name="p"), Parameter(3, name="q")
    with record() as graph:
        a, b = times(p.value), plus(p.value, q.value)
        nodes: list[Node[Any]] = [node_of(b), graph.parameters["p"], node_of(a), graph.parameters["q"]]
    assert recompute(graph, nodes, {"p": 10}) == [13, 10, 30, 3]
    assert recompute(graph, nodes, {"p": 10, "q": 20}) == [30, 10, 30, 20]


def test_a_body_that_reads_a_parameter_sees_what_was_recorded_or_given() -> None:
    with record({"factor": 5}) as graph:
        node = node_of(reading(2))
    FACTOR.value = 7
    assert recompute(graph, [node], {"factor": 100}) == [200]
    p = Parameter(2, name="p")
    with record({"factor": 5}) as graph:
        node = node_of(reading(p.value))
    assert recompute(graph, [node], {"p": 3}) == [15]


def test_a_parameter_that_was_written_since_keeps_its_recorded_value() -> None:
    p, q = Parameter(2, name="p"), Parameter(10, name="q")

    @trace
    def body(x: int) -> int:
        return x * q.value

    with record() as graph:
        node = node_of(body(p.value))
    q.value = 1000
    assert recompute(graph, [node], {"p": 3}) == [30]


def test_gradients_flow_through_a_replay() -> None:
    w = Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64), name="w")

    @trace
    def body(x: torch.Tensor) -> torch.Tensor:
        return (w.value * x).sin()

    x = torch.tensor([3.0, 4.0], dtype=torch.float64)
    with record(training=False) as graph:
        z = torch.stack([body(x), body(2 * x)]).sum(0) @ w.value
        node = node_of(z)
    leaf = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    (again,) = recompute(graph, [node], {"w": 2 * leaf})
    expected = ((2 * leaf * x).sin() + (4 * leaf * x).sin()) @ (2 * leaf)
    assert torch.equal(again, expected)
    (found,) = torch.autograd.grad(again, leaf, create_graph=True)
    (wanted,) = torch.autograd.grad(expected, leaf, create_graph=True)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-14)
    assert torch.allclose(torch.autograd.grad(found.sum(), leaf)[0], torch.autograd.grad(wanted.sum(), leaf)[0])
    assert torch.equal(node.value, ((w.initial * x).sin() + (2 * w.initial * x).sin()) @ w.initial)


class Layer(Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = Parameter(by)

    @trace
    def forward(self, x: Any) -> Any:
        return x * self.by.value

    @trace
    def shift(self, x: Any, *, one: Any) -> Any:
        return x + one


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Layer(2.0)
        self.rest = [Layer(3.0), Layer(5.0)]

    @trace
    def head(self, x: Any) -> Any:
        return -x


def test_an_op_keeps_its_gradient_rule() -> None:
    @trace(vjp=lambda grad, output, x: 10 * grad)
    def odd(x: torch.Tensor) -> torch.Tensor:
        return x.square()

    p = Parameter(torch.tensor([1.0, 2.0]), name="p")
    with record() as graph:
        node = node_of(odd(p.value))
    leaf = torch.tensor([3.0, 4.0], requires_grad=True)
    (again,) = recompute(graph, [node], {"p": leaf})
    assert again.tolist() == [9.0, 16.0]
    assert torch.autograd.grad(again.sum(), leaf)[0].tolist() == [10.0, 10.0]


@pytest.mark.parametrize("training", [None, False, True])
def test_a_torch_module_runs_in_the_mode_and_with_the_chance_of_its_recording(training: bool | None) -> None:
    from trace_opt.core.neural import TorchModule

    inner = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)
    )
    net = TorchModule(inner.double().eval(), name="net")
    x = torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaf = net.weights["0.weight"].initial.detach().clone().requires_grad_()
    with record({"net.0.weight": leaf}, seed=3, training=training) as graph:
        node = node_of(times(net(x), 2.0))
    assert torch.equal(recompute(graph, [node], {"net.0.weight": leaf})[0], node.value)
    moved = (1.5 * leaf).detach().requires_grad_()
    (again,) = recompute(graph, [node], {"net.0.weight": moved})
    with record({"net.0.weight": moved}, seed=3, training=training):
        fresh = node_of(times(net(x), 2.0)).value
    assert torch.equal(again, fresh)
    assert not torch.equal(again, node.value)
    assert float(torch.autograd.grad(again.square().sum(), moved)[0].norm()) > 0


def test_a_replay_writes_no_buffers() -> None:
    from trace_opt.core.neural import TorchModule, phase_copies

    net = TorchModule(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8)).double(), name="net")
    leaf = net.weights["0.weight"].initial.detach().clone().requires_grad_()
    copies = phase_copies(net.parameters())
    x = torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with record({"net.0.weight": leaf, **copies}, seed=3, training=True) as graph:
        node = node_of(net(x))
    written = {name: copy.clone() for name, copy in copies.items()}
    assert not torch.equal(copies["net.1.running_mean"], net.buffers["1.running_mean"].initial)
    recompute(graph, [node], {"net.0.weight": 2 * leaf})
    assert all(torch.equal(copies[name], written[name]) for name in copies)


def test_methods_run_on_the_module_whose_parameter_they_read() -> None:
    net = Net()
    with record() as graph:
        out = net.head(net.rest[1].forward(net.rest[0].forward(net.first.forward(1.0))))
        node = node_of(out)
    assert recompute(graph, [node], {"first.by": 1.0, "rest.1.by": 7.0}) == [-21.0]


def test_a_method_that_more_than_one_object_can_have_run_is_refused() -> None:
    net = Net()
    with record() as graph:
        node = node_of(net.first.shift(net.first.by.value, one=1.0))
    with pytest.raises(TraceError, match="'shift' is a method, and 3 objects"):
        recompute(graph, [node], {"first.by": 1.0})


def test_a_method_of_an_object_that_holds_no_parameters_is_refused() -> None:
    class Plain:
        @trace
        def method(self, x: Any) -> Any:
            return x

    p = Parameter(1, name="p")
    with record() as graph:
        node = node_of(Plain().method(p.value))
    with pytest.raises(TraceError, match="'method' is a method, and no Module"):
        recompute(graph, [node], {"p": 2})


def run_async(workflow: Callable[[Any], Any]) -> Any:
    import asyncio

    async def main() -> Any:
        p = Parameter(2, name="p")
        with record() as graph:
            node = node_of(await workflow(p))
        return recompute(graph, [node], {"p": 5})

    return asyncio.run(main())


def test_async_ops_run_as_long_as_they_wait_for_nothing() -> None:
    @trace
    async def double(x: Any) -> Any:
        return 2 * x

    @trace
    async def both(x: Any) -> AsyncIterator[Any]:
        yield x
        yield await double(x)

    @trace
    async def slow(x: Any) -> Any:
        import asyncio

        await asyncio.sleep(0)
        return x

    async def chain(p: Any) -> Any:
        items = [item async for item in both(await double(p.value))]
        return plus(*items)

    async def waits(p: Any) -> Any:
        return await slow(p.value)

    assert run_async(chain) == [30]
    with pytest.raises(TraceError, match="'slow' waits for something outside"):
        run_async(waits)


def test_decisions_of_tasks_that_ran_side_by_side_are_taken_again() -> None:
    import asyncio

    async def branch(p: Any, least: int) -> Any:
        await asyncio.sleep(0)
        return times(p.value) if p.value > least else plus(p.value, 1)

    async def both(p: Any) -> Any:
        return plus(*await asyncio.gather(branch(p, 0), branch(p, 1)))

    assert run_async(both) == [30]
    with pytest.raises(TraceError, match="'bool' comes out as True"):
        run_async(lambda p: branch(p, 3))


def refused(workflow: Callable[[Any], Any], old: Any, new: Any) -> None:
    p = Parameter(old, name="p")
    with record() as graph:
        node = node_of(workflow(p))
    recompute(graph, [node], {"p": new})


def test_a_decision_that_comes_out_otherwise_is_refused() -> None:
    def branching(p: Any) -> Any:
        return times(p.value) if p.value > 2 else plus(p.value, 1)

    refused(branching, 3, 4)
    with pytest.raises(TraceError, match="'bool' comes out as False where the recording has True"):
        refused(branching, 3, 1)
    with pytest.raises(TraceError, match="'float' comes out as 4.0 where the recording has 3.0"):
        refused(lambda p: times(float(p.value)), 3, 4)
    with pytest.raises(TraceError, match="'contains' comes out as False"):
        refused(lambda p: times(2) if 9 in pair(p.value) else 0, 3, 4)
    with pytest.raises(TraceError, match="'iter' comes out as 4"):
        refused(lambda p: plus(*[0 for _ in counted_list(p.value)][:2]), 3, 4)


@trace
def counted_list(n: int) -> list[int]:
    return list(range(n))


def test_a_decision_beside_or_behind_the_wanted_node_does_not_matter() -> None:
    p = Parameter(3, name="p")
    with record() as graph:
        node = node_of(times(p.value))
        if p.value > 2:
            times(p.value)
    assert recompute(graph, [node], {"p": 1}) == [3]


def test_a_value_read_as_a_whole_is_refused() -> None:
    from trace_opt.core.tracer import plain

    with pytest.raises(TraceError, match="as a whole \\('plain'\\)"):
        refused(lambda p: times(plain(p.value)), 3, 4)


def test_a_result_that_a_body_reads_past_its_arguments_is_refused() -> None:
    def closure(p: Any) -> Any:
        hidden = times(p.value)
        return trace(lambda: hidden + 1)()

    with pytest.raises(TraceError, match="read a result of 'times' that was not passed to it"):
        refused(closure, 3, 4)


def test_a_failed_call_is_refused() -> None:
    @trace
    def fails(x: Any) -> Any:
        raise ValueError("no")

    p = Parameter(3, name="p")
    with record() as graph:
        with suppress(ValueError):
            fails(p.value)
        node = node_of(times(2))
    with pytest.raises(TraceError, match="'fails' failed in this recording"):
        recompute(graph, [node], {"p": 4})


def test_a_node_of_another_recording_and_a_loaded_graph_are_refused() -> None:
    p = Parameter(3, name="p")
    with record() as graph:
        node = node_of(times(p.value))
    with record() as other:
        times(p.value)
    with pytest.raises(TraceError, match="another recording"):
        recompute(other, [node], {"p": 4})
    loaded = Graph.from_json(graph.to_json())
    with pytest.raises(TraceError, match="holds no code"):
        recompute(loaded, [loaded["times_1"]], {"p": 4})


def test_a_call_is_found_by_its_op_and_a_misspelt_one_is_offered_a_near_name() -> None:
    p = Parameter(3, name="p")
    with record() as graph:
        scope(p.value)
        times(p.value)
    assert [node.value for node in calls_of(graph, "times")] == [9]
    assert [node.value for node in calls_of(graph, "scope/times")] == [9]
    with pytest.raises(TraceError, match="'tims' was recorded; did you mean 'times'"):
        calls_of(graph, "tims")
    with pytest.raises(TraceError, match="choose one of"):
        calls_of(graph, "xyz")


def test_a_replay_records_nothing_and_reports_the_rollouts_seed() -> None:
    @trace
    def seeded(x: Any) -> Any:
        return x, rollout().seed

    p = Parameter(3, name="p")
    with record(seed=17) as graph:
        node = node_of(seeded(p.value))
        size = len(graph)
        with no_trace():
            assert recompute(graph, [node], {"p": 4}) == [(4, 17)]
        assert recompute(graph, [node], {"p": 5}) == [(5, 17)]
        assert len(graph) == size


def test_lists_and_dicts_handed_to_a_body_are_new_each_time() -> None:
    @trace
    def grows(items: list[Any], x: Any) -> int:
        items.append(x)
        return len(items)

    p = Parameter(3, name="p")
    with record() as graph:
        node = node_of(grows([1, 2], p.value))
    replay = Replay(graph, [node], ["p"])
    assert [replay({"p": 0}), replay({"p": 0})] == [[3], [3]]
