"""torch modules in a workflow: their tensors are parameters, and calls never mix whoever runs them at once."""

import copy
import pickle  # noqa: TID251 # users copy their workflows to other processes with it
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.core.module import Module
from trace_opt.core.neural import TorchModule, phase_copies
from trace_opt.core.parameter import Parameter
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import node_of, plain, record, trace
from trace_opt.errors import TraceError
from trace_opt.optim.numeric.gradient import Gradient
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.rolling import Job, _seed_torch


def seeded(module: nn.Module) -> nn.Module:
    draws = torch.Generator().manual_seed(0)
    for tensor in module.parameters():
        tensor.data = torch.randn(tensor.shape, generator=draws, dtype=torch.float64)
    return module.double()


def two_layers() -> nn.Module:
    return seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))


def normed() -> nn.Module:
    return seeded(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))


X = torch.arange(12, dtype=torch.float64).reshape(4, 3) / 7


class Slow(nn.Module):
    """Reads its weight twice with time between for another thread to get in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.weight * x
        time.sleep(0.005)
        return torch.stack([first, self.weight * x])


class Counter(nn.Module):
    """Assigns to a buffer instead of writing into it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))
        self.seen: torch.Tensor
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + 1
        return self.weight * x


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.embed(x))


def test_outside_a_recording_it_gives_what_the_module_gives() -> None:
    module = two_layers()
    assert torch.equal(TorchModule(module)(X), module(X))


def test_parameters_are_named_by_their_path_below_the_modules_own_name() -> None:
    class Agent(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = TorchModule(normed())

    assert list(TorchModule(two_layers(), name="mlp").named_parameters()) == [
        "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias",
    ]  # fmt: skip
    named = Agent().named_parameters()
    assert {"net.0.weight", "net.1.running_mean", "net.1.num_batches_tracked"} <= set(named)


def test_buffers_and_what_did_not_require_grad_are_frozen() -> None:
    module = normed()
    module[0].bias.requires_grad_(False)  # pyright: ignore
    frozen = {name for name, p in TorchModule(module).named_parameters().items() if p.frozen}
    assert frozen == {"0.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}


@pytest.mark.parametrize("within", ["the workflow", "an op"])
def test_a_call_is_one_op_call_that_reads_its_tensors_and_gives_torchs_gradients(within: str) -> None:
    module = two_layers()
    net = TorchModule(module)
    apply = (
        trace(
            lambda x: net(x),
        )
        if within == "an op"
        else net
    )
    with record() as graph:
        loss = apply(X).square().mean()
    slices = propagate(graph, node_of(loss), Feedback(loss=loss))
    module(X).square().mean().backward()
    assert set(slices) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for path, tensor in module.named_parameters():
        grad = net.weights[path].grad
        assert grad is not None
        assert torch.allclose(grad, tensor.grad, rtol=0, atol=1e-12)  # pyright: ignore
    calls = [node for node in graph.nodes if node.kind == "op"]
    assert len(calls) == 3
    assert calls[0].op.name == ("Sequential" if within == "the workflow" else "function")


def test_the_values_in_force_are_used_and_the_module_is_left_alone() -> None:
    module = two_layers()
    net = TorchModule(module, name="net")
    before = copy.deepcopy(module.state_dict())
    zero = {"net.2.weight": torch.zeros(2, 4).double(), "net.2.bias": torch.ones(2).double()}
    with in_force(zero):
        assert torch.equal(net(X), torch.ones(4, 2))
    with record(zero):
        assert torch.equal(net(X), torch.ones(4, 2))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(net(X), module(X))


def test_tied_weights_are_one_parameter_whose_gradient_is_the_sum() -> None:
    module = seeded(Tied())
    net = TorchModule(module)
    index = torch.tensor([1, 2])
    assert list(net.named_parameters()) == ["embed.weight"]
    with record() as graph:
        loss = net(index).square().sum()
    propagate(graph, node_of(loss), Feedback(loss=loss))
    module(index).square().sum().backward()
    assert torch.allclose(net.weights["embed.weight"].grad, module.embed.weight.grad)  # pyright: ignore


@pytest.mark.parametrize(
    "module",
    [nn.LSTM(3, 4, batch_first=True), nn.GRU(3, 4), nn.TransformerEncoderLayer(3, 1, 8, batch_first=True),
     nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), nn.MultiheadAttention(3, 1), nn.Bilinear(3, 3, 2)],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_modules_of_many_kinds_give_their_own_output_and_gradients(module: nn.Module) -> None:
    module = module.double().eval()
    inputs = {"MultiheadAttention": 3, "Bilinear": 2}.get(type(module).__name__, 1)
    args = [X[None] if inputs != 2 else X] * inputs
    net = TorchModule(module)

    def first(value: Any) -> torch.Tensor:
        return value[0] if isinstance(value, tuple) else value

    with record() as graph:
        loss = trace(lambda: first(net(*args)).square().sum())()
    propagate(graph, node_of(loss), Feedback(loss=loss))
    plain = first(module(*args)).square().sum()
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), abs=1e-12)
    for path, tensor in module.named_parameters():
        grad = net.weights[path].grad
        if tensor.grad is None or grad is None:
            assert tensor.grad is grad is None, path
        else:
            assert torch.allclose(grad, tensor.grad, rtol=0, atol=1e-10), path


def test_threads_with_different_values_never_mix() -> None:
    net = TorchModule(Slow(), name="slow")
    barrier = threading.Barrier(8)

    def call(number: int) -> bool:
        barrier.wait()
        right = True
        for turn in range(5):
            value = float(number * 10 + turn)
            with in_force({"slow.weight": torch.tensor(value)}):
                right &= bool((net(torch.tensor(2.0)) == 2 * value).all())
        return right

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(8)))
    assert len(net._pool) <= 8


def test_threads_get_the_gradients_of_their_own_recordings() -> None:
    net = TorchModule(Slow(), name="slow")

    def gradient(number: int) -> float:
        leaf = torch.tensor(float(number), requires_grad=True)
        with record({"slow.weight": leaf}, training=True):
            loss = trace(lambda: net(torch.tensor(1.0)).square().sum())()
        return float(torch.autograd.grad(loss, leaf)[0])

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(gradient, range(6))) == [4.0 * number for number in range(6)]


@pytest.mark.parametrize("own", [True, False])
def test_by_hand_the_modules_own_mode_counts(own: bool) -> None:
    module = seeded(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.99))).train(own)
    net = TorchModule(module)
    torch.manual_seed(0)
    with record():
        zeros = int((net(X) == 0).sum())
    assert (zeros > 6) is own
    module[1].train(not own)  # pyright: ignore
    torch.manual_seed(0)
    assert (int((net(X) == 0).sum()) > 6) is not own


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("part", [True, False])
def test_in_a_search_training_rollouts_train_and_all_others_evaluate(whole: bool, part: bool) -> None:
    module = seeded(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9)))
    module.train(whole)[1].train(part)  # pyright: ignore
    net = TorchModule(module)
    with record():
        net(X)
    with record(seed=1, training=True):
        trained = int((net(X) == 0).sum())
    with record(seed=1, training=False):
        scored = int((net(X) == 0).sum())
    assert trained > 6
    assert scored == 0


def test_dropout_in_a_training_rollout_follows_the_rollouts_seed_and_leaves_torchs_chance_alone() -> None:
    net = TorchModule(seeded(nn.Sequential(nn.Linear(3, 30), nn.Dropout(0.5))))

    def draw(seed: int, repeat: int = 0) -> list[torch.Tensor]:
        torch.manual_seed(time.monotonic_ns() % 1000)
        with record(seed=seed, training=True, repeat=repeat):
            return [plain(net(X)) == 0 for _ in range(2)]

    first, again, other = draw(1), draw(1), draw(2)
    assert not torch.equal(first[0], draw(1, repeat=1)[0])
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    draw_state = torch.get_rng_state()
    with in_force(seed=3, training=True):
        net(X)
    assert torch.equal(torch.get_rng_state(), draw_state)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("training", [None, False, True])
def test_running_statistics_are_not_written_where_no_phase_owns_them(training: bool | None) -> None:
    module = normed().train()
    net = TorchModule(module, name="net")
    values = {name: p.value for name, p in net.named_parameters().items()}
    before = {name: value.clone() for name, value in values.items()}
    with record(values, training=training):
        net(X)
    assert all(torch.equal(values[name], before[name]) for name in values)
    assert all(torch.equal(p.value, before[name]) for name, p in net.named_parameters().items())


class Watch(nn.Module):
    """Notes the mode it is called in."""

    def __init__(self, modes: set[bool]) -> None:
        super().__init__()
        self.modes = modes

    def __deepcopy__(self, memo: Any) -> "Watch":
        return Watch(self.modes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.modes.add(self.training)
        return x


def test_optimize_trains_a_module_with_dropout_and_the_same_seed_gives_the_same_weights() -> None:
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(32, 3, generator=draws, dtype=torch.float64)
    train = [{"x": part, "y": part.square().sum(1, keepdim=True)} for part in x.split(8)]

    def run(seed: int) -> tuple[dict[str, Any], float, set[bool]]:
        modes: set[bool] = set()
        net = TorchModule(seeded(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), Watch(modes), nn.Linear(8, 1))), "net")

        def guide(output: Any, example: Any) -> Feedback:
            return Feedback(loss=(output - example["y"]).square().mean())

        def error() -> float:
            return float((net(x) - x.square().sum(1, keepdim=True)).square().mean())

        net.module.eval()
        optimizer = Gradient("adamw", lr=0.02, steps=30, batch=2)
        best = optimize(
            lambda x: net(x), train, guide, optimizers=[optimizer], budget=Budget(trials=2), seed=seed, store=None
        ).best
        with in_force(best):
            return dict(best), error(), modes

    first, error, modes = run(0)
    torch.rand(3)  # whatever else is drawn
    again, other = run(0)[0], run(1)[0]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert modes == {True, False}
    start = TorchModule(seeded(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Identity(), nn.Linear(8, 1))).eval())
    assert error < 0.7 * float((start(x) - x.square().sum(1, keepdim=True)).square().mean())


def test_a_rollout_that_begins_in_another_thread_leaves_the_chance_of_a_module_alone() -> None:
    """It seeds the stream of the whole process; it waits until the module has drawn."""
    job = Job(0, {}, 0, None, bound=((), {}), seed=3)
    others: list[threading.Thread] = []

    class Meddled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            others.append(threading.Thread(target=_seed_torch, args=(job,)))
            others[-1].start()
            others[-1].join(0.1)
            return x

    def drawn(first: nn.Module) -> torch.Tensor:
        net = TorchModule(nn.Sequential(first, nn.Dropout(0.5)), "net")
        with record(seed=7, training=True):
            return plain(net(torch.ones(64)))

    alone = drawn(nn.Identity())
    beside = drawn(Meddled())
    for other in others:
        other.join()
    assert torch.equal(alone, beside)


def test_a_phases_own_copies_take_the_running_statistics_as_torch_would_write_them() -> None:
    module = normed()
    net = TorchModule(module, name="net")
    own = phase_copies(net.weights.values())
    assert set(own) == {"net.1.running_mean", "net.1.running_var", "net.1.num_batches_tracked"}
    for _ in range(2):
        with record(dict(own), training=True):
            net(X)
        module(X)
    buffers = dict(module.named_buffers())
    assert all(torch.equal(tensor, buffers[name.removeprefix("net.")]) for name, tensor in own.items())
    assert int(net.buffers["1.num_batches_tracked"].value) == 0


def test_buffers_that_are_replaced_reach_the_phases_copies_too() -> None:
    net = TorchModule(Counter())
    own = phase_copies(net.parameters())
    for _ in range(3):
        with in_force(own, training=True):
            net(X)
    with in_force(own, training=False):
        net(X)
    own = phase_copies(net.parameters(), saved={name: tensor.clone() for name, tensor in own.items()})
    with in_force(own, training=True):
        net(X)
    assert int(own["seen"]) == 4
    assert int(net.buffers["seen"].value) == 0


def test_parameters_without_a_module_have_no_buffers() -> None:
    assert phase_copies([Parameter(torch.ones(2), name="w")]) == {}


def test_saved_values_come_back_into_another_instance(tmp_path: Path) -> None:
    first, second = TorchModule(normed(), name="net"), TorchModule(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double(), name="net")  # fmt: skip
    first.weights["0.weight"].value = torch.eye(3).double()
    first.save(tmp_path / "net.json")
    second.load(tmp_path / "net.json")
    assert torch.equal(second(X), first(X))
    assert second.buffers["1.num_batches_tracked"].value.dtype == torch.int64


def test_a_module_for_use_without_trace_opt_holds_the_values_in_force() -> None:
    net = TorchModule(two_layers())
    net.weights["2.bias"].value = torch.ones(2).double()
    made = net.to_torch()
    assert torch.equal(made(X), net(X))
    assert not torch.equal(made(X), net.module(X))


def test_it_survives_pickle_and_deepcopy() -> None:
    net = TorchModule(two_layers(), name="net")
    for made in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert torch.equal(made(X), net(X))
        assert list(made.named_parameters()) == list(net.named_parameters())


def test_a_module_that_fails_leaves_the_pool_usable() -> None:
    net = TorchModule(two_layers())
    with pytest.raises(RuntimeError, match="mat1"):
        net(torch.ones(4, 7).double())
    assert torch.equal(net(X), net.module(X))
    assert len(net._pool) == 1


def test_a_lazy_module_is_refused_with_what_to_do() -> None:
    with pytest.raises(TraceError, match="call the module once"):
        TorchModule(nn.LazyLinear(3))


def test_results_and_parameters_may_be_its_arguments() -> None:
    net = TorchModule(two_layers())
    start = Parameter(X, name="x")
    with record() as graph:
        loss = net(trace(lambda: X)()).sum() + net(start).sum()
    propagate(graph, node_of(loss), Feedback(loss=loss))
    assert start.grad is not None
    assert start.grad.abs().sum() > 0
