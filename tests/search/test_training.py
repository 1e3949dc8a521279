"""Training under a search: rollouts that train and rollouts that do not, resumed phases, batches, other processes."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from trace_opt import Budget, Feedback, Gradient, Greedy, Parameter, aoptimize, charge, optimize, record, rollout, trace
from trace_opt.core.neural import TorchModule
from trace_opt.search.executors import LocalExecutor
from trace_opt.search.rolling import Roller
from trace_opt.store.store import open_store
from trace_opt.testing import ScriptedLLM

EXAMPLES = [{"x": i / 5, "y": 1 + 2 * i / 5} for i in range(-6, 6)]


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@trace
def line(x: float, w: torch.Tensor) -> torch.Tensor:
    return w[0] + w[1] * x


def squares(output: torch.Tensor, example: dict[str, float]) -> Feedback:
    return Feedback(loss=(output - example["y"]) ** 2)


def new_line() -> Parameter[torch.Tensor]:
    return Parameter(double(0.0, 0.0), name="w")


# -- grad mode and gradients never cross -------------------------------------------------------------------------------


def test_training_and_scored_rollouts_beside_each_other_never_cross_in_tasks() -> None:
    """The fault this guards against: grad mode held across an `await` switches it off for other tasks."""
    seen: list[tuple[bool, bool, bool]] = []
    p = Parameter(double(1.0), name="p")

    @trace
    async def slow(x: float, p: torch.Tensor) -> torch.Tensor:
        await asyncio.sleep(0.001 * (x % 3))
        made = p * x
        await asyncio.sleep(0.001 * (x % 2))
        seen.append((bool(rollout().training), p.requires_grad, made.requires_grad))
        assert torch.is_grad_enabled()
        return made

    async def one(number: int) -> float:
        leaf = double(float(number)).requires_grad_()
        training = number % 2 == 0
        with record({"p": leaf}, number, training=training) as graph:
            node = graph.output(await slow(float(number), p.value))
        if training:
            node.value.sum().backward()
            return float(leaf.grad)
        return -1.0 if leaf.grad is None else float("nan")

    async def main() -> list[float]:
        return await asyncio.gather(*(one(n) for n in range(40)))

    found = asyncio.run(main())
    assert found == [float(n) if n % 2 == 0 else -1.0 for n in range(40)]
    assert all(a == b == c for a, b, c in seen)
    assert torch.is_grad_enabled()


def test_training_and_scored_rollouts_beside_each_other_never_cross_in_threads() -> None:
    p, gate, found = Parameter(double(1.0), name="p"), threading.Barrier(8), dict[int, Any]()

    @trace
    def meet(x: float, p: torch.Tensor) -> torch.Tensor:
        gate.wait(20)  # all bodies run at once
        return p * x

    def one(number: int) -> None:
        leaf = double(float(number)).requires_grad_()
        with record({"p": leaf}, number, training=number % 2 == 0) as graph:
            value = graph.output(meet(float(number), p.value)).value
        if value.requires_grad:
            value.sum().backward()
        found[number] = (value.requires_grad, None if leaf.grad is None else float(leaf.grad), torch.is_grad_enabled())

    threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: (n % 2 == 0, float(n) if n % 2 == 0 else None, True) for n in range(8)}


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_async_workflow_trains_to_the_same_values_whatever_runs_at_once(concurrency: int) -> None:
    w = new_line()

    async def workflow(x: float) -> torch.Tensor:
        await asyncio.sleep(0.0001 if x > 0 else 0)
        return line(x, w.value)

    run = asyncio.run(
        aoptimize(
            workflow, EXAMPLES, squares, parameters=[w], val=EXAMPLES, optimizers=[Gradient(lr=0.1, steps=20)], seed=5,
            budget=Budget(trials=2), store=None, concurrency=concurrency,
        )
    )  # fmt: skip
    reference = optimize(
        lambda x: line(x, w.value), EXAMPLES, squares, parameters=[w], val=EXAMPLES, store=None, seed=5,
        optimizers=[Gradient(lr=0.1, steps=20)], budget=Budget(trials=2),
    )  # fmt: skip
    assert torch.equal(run.best["w"], reference.best["w"])


# -- killed in the middle of a phase -----------------------------------------------------------------------------------


def training(where: Path, resume: str | None = None, **options: Any) -> Any:
    w = new_line()

    @trace
    def weak(x: float, w: torch.Tensor) -> torch.Tensor:
        kept = torch.nn.functional.dropout(w, 0.5) if w.requires_grad else w
        return w[0] + w[1] * x + 0.1 * kept.sum()

    def workflow(x: float) -> torch.Tensor:
        return weak(x, w.value)

    given: dict[str, Any] = {"lr": 0.05, "steps": 25, "batch": 3, "checkpoint_every": 4, **options}
    torch.manual_seed(0)
    return optimize(
        workflow, EXAMPLES, squares, parameters=[w], val=EXAMPLES, test=EXAMPLES[:3], optimizers=[Gradient(**given)],
        seed=2, budget=Budget(rollouts=400), store=where, resume=resume, name="line",
    )  # fmt: skip


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ends the session at the n-th training rollout."""
    run, count = Roller.run, [0]

    def at(number: int) -> None:
        def counted(self: Roller, job: Any) -> Any:
            count[0] += job.training
            if job.training and count[0] == number:
                raise KeyboardInterrupt
            return run(self, job)

        monkeypatch.setattr(Roller, "run", counted)

    return at


@pytest.mark.parametrize("stop_at", [2, 40, 76, 110])
@pytest.mark.parametrize(
    "options", [{}, {"optimizer": "lion"}, {"optimizer": "frugal"}], ids=["adamw", "lion", "frugal"]
)
def test_a_run_stopped_within_a_phase_ends_bit_identical(
    tmp_path: Path, stop_at: int, options: dict[str, Any], stops: Callable[[int], None]
) -> None:
    whole = training(tmp_path / "whole.db", **options)
    stops(stop_at)
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path / "cut.db", **options)
    store = open_store(tmp_path / "cut.db")
    cut = store.load("last").info.id
    store.close()
    resumed = training(tmp_path / "cut.db", resume=cut, **options)
    assert torch.equal(resumed.best["w"], whole.best["w"])
    assert [(t.verdict, t.before, t.after, t.reason) for t in resumed.history] == [
        (t.verdict, t.before, t.after, t.reason) for t in whole.history
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the process kills itself by a signal")
def test_a_process_killed_in_a_phase_leaves_what_a_resumed_one_ends_bit_identical(tmp_path: Path) -> None:
    child = Path(__file__).with_name("training_child.py")

    def run(store: str, run: str, number: int, out: str) -> int:
        command = [sys.executable, str(child), str(tmp_path / store), run, str(number), str(tmp_path / out)]
        return subprocess.run(command, check=False, timeout=100).returncode

    assert run("whole.db", "", 0, "whole.json") == 0
    assert run("cut.db", "", 50, "-") == -9
    store = open_store(tmp_path / "cut.db")
    cut = store.load("last").info.id
    store.close()
    assert run("cut.db", cut, 100, "-") == -9
    assert run("cut.db", cut, 0, "cut.json") == 0
    assert (tmp_path / "cut.json").read_text() == (tmp_path / "whole.json").read_text()


def test_a_checkpoint_of_a_finished_phase_is_forgotten(tmp_path: Path) -> None:
    run = training(tmp_path / "runs.db")
    store = open_store(tmp_path / "runs.db")
    writer, saved = store.reopen(run.id)
    writer.close("finished", "")
    store.close()
    left = {part: state for part, state in saved.states.items() if part.startswith("proposal ")}
    assert set(left.values()) <= {None}


# -- what a phase pays for ---------------------------------------------------------------------------------------------


def test_a_phase_pays_for_each_examples_model_calls_once() -> None:
    llm = ScriptedLLM(lambda messages: str(len(messages[-1]["content"])))
    style, scale = Parameter("Brief.", name="style", frozen=True), Parameter(double(0.1), name="scale")

    @trace
    def ask(question: str) -> str:
        return llm(f"{style.value} {question}")

    @trace
    def calibrate(answer: str, scale: torch.Tensor) -> torch.Tensor:
        return float(answer) * scale[0]

    examples = [{"question": "q" * i, "y": i + 7.0} for i in range(1, 7)]

    def calls(**options: Any) -> tuple[int, Any]:
        before = llm.calls
        run = optimize(
            lambda question: calibrate(ask(question), scale.value), examples, squares, parameters=[style, scale],
            val=examples[:1], optimizers=[Gradient(lr=0.02, steps=30, batch=6, **options)], budget=Budget(trials=1),
            store=None,
        )  # fmt: skip
        return llm.calls - before, run.best["scale"]

    once, best = calls()
    every, same = calls(reuse=False)
    assert once == 2 + 6  # the start's and the candidate's validation, then each training example
    assert every == 2 + 30 * 6
    assert torch.equal(best, same)


def test_a_phase_leaves_enough_of_the_budget_to_be_tested() -> None:
    w = new_line()
    run = optimize(
        lambda x: line(x, w.value), EXAMPLES, squares, parameters=[w], val=EXAMPLES, store=None,
        optimizers=[Gradient(lr=0.1, steps=1000, batch=1)], budget=Budget(rollouts=12 + 12 + 30),
    )  # fmt: skip
    assert run.history[0].notes["steps"] == 30
    assert "the budget ended it" in run.history[0].reason
    assert run.history[0].accepted


def test_calls_of_users_own_clients_in_a_phase_are_booked() -> None:
    w = new_line()

    @trace
    def paid(x: float, w: torch.Tensor) -> torch.Tensor:
        charge(tokens_in=1, tokens_out=1, usd=0.0)
        return w[0] + w[1] * x

    run = optimize(
        lambda x: paid(x, w.value), EXAMPLES, squares, parameters=[w], val=EXAMPLES[:2], store=None,
        optimizers=[Gradient(steps=5, batch=2)], budget=Budget(trials=1),
    )  # fmt: skip
    assert run.spent["workflow"].calls == 2 + 2 + 5 * 2


# -- batches and modules -----------------------------------------------------------------------------------------------


def loader(shuffle: bool = True) -> DataLoader[Any]:
    pairs = [(torch.tensor([i / 16, 1.0]), torch.tensor(3 * i / 16 - 1)) for i in range(64)]
    return DataLoader(pairs, batch_size=16, shuffle=shuffle)  # pyright: ignore[reportArgumentType]


def test_a_data_loader_is_an_ordinary_training_loop() -> None:
    batches = loader(shuffle=False)
    net = TorchModule(torch.nn.Linear(2, 1, bias=False, dtype=torch.float32), name="net")
    start = net.weights["weight"].value.clone()

    def guide(output: torch.Tensor, batch: Any) -> Feedback:
        return Feedback(loss=((output[:, 0] - batch[1]) ** 2).mean())

    run = optimize(
        lambda batch: net(batch[0]), batches, guide, optimizers=[Gradient("sgd", 0.1, steps=12, total_steps=12)],
        search=Greedy(gate=None), store=None, budget=Budget(trials=1),
    )  # fmt: skip
    own = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([own], lr=0.1, fused=True)
    t = 0
    for _ in range(3):
        for x, y in batches:
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - t / 12)
            optimizer.zero_grad()
            (((x @ own.T)[:, 0] - y) ** 2).mean().backward()
            optimizer.step()
            t += 1
    assert torch.equal(run.best["net.weight"], own.detach())


def test_a_shuffled_data_loader_repeats_by_the_runs_seed_and_is_left_as_it_was() -> None:
    w = Parameter(torch.zeros(2), name="w")
    batches = loader()

    def guide(output: torch.Tensor, batch: Any) -> Feedback:
        return Feedback(loss=((output - batch[1]) ** 2).mean())

    def run(seed: int) -> torch.Tensor:
        return optimize(
            lambda batch: trace(torch.mv)(batch[0], w.value), batches, guide, seed=seed, store=None,
            optimizers=[Gradient("sgd", 0.1, steps=6, total_steps=6)], search=Greedy(gate=None),
        ).best["w"]  # fmt: skip

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert (batches.generator, batches.sampler.generator) == (None, None)


def test_running_statistics_go_with_the_weights_that_were_trained() -> None:
    torch.manual_seed(0)
    net = TorchModule(torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1)), name="net")
    batches = [{"x": torch.randn(8, 2) * 3 + 1, "y": torch.randn(8)} for _ in range(4)]
    before = net.buffers["0.running_mean"].value.clone()
    run = optimize(
        lambda x: net(x), batches, lambda o, e: Feedback(loss=((o[:, 0] - e["y"]) ** 2).mean()), store=None,
        optimizers=[Gradient(batch=1, steps=8)], budget=Budget(trials=1),
    )  # fmt: skip
    assert run.history[0].accepted
    assert int(run.best["net.0.num_batches_tracked"]) == 8
    assert not torch.equal(run.best["net.0.running_mean"], before)
    assert torch.equal(net.buffers["0.running_mean"].value, before)


def test_the_users_own_chance_is_left_as_it_was() -> None:
    w = new_line()
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)

    @trace
    def noisy(x: float, w: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.dropout(w) if w.requires_grad else w).sum() * x

    optimize(
        lambda x: noisy(x, w.value), EXAMPLES, squares, parameters=[w], val=EXAMPLES[:1], store=None, optimizers=[Gradient(steps=3)], budget=Budget(trials=1),
    )  # fmt: skip
    assert torch.equal(torch.rand(2), expected)


# -- other processes ---------------------------------------------------------------------------------------------------


class Apart(LocalExecutor):
    """Hands back only what can be pickled, as an executor of other processes does."""

    apart = True

    async def run(self, jobs: Any, work: Any) -> list[Any]:
        found = await super().run(jobs, work)
        for rollout_, _ in (pair for pair in found if pair is not None):
            torch.save([rollout_.gradients, rollout_.feedback, rollout_.error], io.BytesIO())
            assert rollout_.graph is None or not rollout_.gradients
        return found


@pytest.mark.parametrize("combine", ["mean", "mgda"])
def test_gradients_travel_by_name_from_other_processes(combine: Any) -> None:
    def guide(output: torch.Tensor, example: dict[str, float]) -> Feedback:
        loss = (output - example["y"]) ** 2
        return Feedback(score=-loss.detach().item(), loss={"square": loss, "size": output.abs()})

    def run(executor: LocalExecutor | None = None) -> torch.Tensor:
        w = new_line()
        return optimize(
            lambda x: line(x, w.value), EXAMPLES, guide, parameters=[w], val=EXAMPLES[:1], search=Greedy(gate=None), executor=executor,
            optimizers=[Gradient(steps=9, lr=0.1, total_steps=9, combine=combine)], store=None, seed=1,
        ).best["w"]  # fmt: skip

    assert torch.allclose(run(Apart(8)), run(), rtol=0, atol=1e-12)


# -- on the GPU --------------------------------------------------------------------------------------------------------

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@cuda
def test_a_phase_on_the_gpu_gives_what_the_cpu_gives_and_brings_the_values_home() -> None:
    def run(device: str | None) -> Any:
        w = new_line()
        seen: set[str] = set()

        @trace
        def placed(x: float, w: torch.Tensor) -> torch.Tensor:
            seen.add(w.device.type)
            return w[0] + w[1] * x

        found = optimize(
            lambda x: placed(x, w.value), EXAMPLES, squares, parameters=[w], val=EXAMPLES[:1], store=None, seed=1,
            optimizers=[Gradient(lr=0.1, steps=30, device=device)], search=Greedy(gate=None), budget=Budget(trials=1),
        )  # fmt: skip
        return found.best["w"], seen

    (on_gpu, devices), (on_cpu, _) = run("auto"), run(None)
    assert "cuda" in devices
    assert on_gpu.device.type == "cpu"
    assert torch.allclose(on_gpu, on_cpu, rtol=0, atol=1e-12)


@pytest.mark.gpu
@cuda
def test_fused_kernels_are_taken_on_the_gpu() -> None:
    from trace_opt.optim.numeric import registry

    leaf = torch.zeros(3, device="cuda", requires_grad=True)
    assert registry.build("adamw", [leaf], lr=0.1).optimizer.param_groups[0]["fused"] is True


@pytest.mark.gpu
@cuda
def test_a_parameter_on_the_gpu_stays_there() -> None:
    w = Parameter(torch.zeros(2, dtype=torch.float64, device="cuda"), name="w")
    run = optimize(
        lambda x: line(x, w.value), EXAMPLES, squares, parameters=[w], val=EXAMPLES[:1], store=None,
        optimizers=[Gradient(steps=5)], search=Greedy(gate=None), budget=Budget(trials=1),
    )  # fmt: skip
    assert run.best["w"].device.type == "cuda"
