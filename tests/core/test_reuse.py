"""Reuse of op calls: what depends on nothing that moves runs once for each example."""

from __future__ import annotations

import asyncio
from typing import Any

import torch

from trace_opt import Module, Parameter, record, rollout, trace
from trace_opt.core.reuse import Memo, Memos


def moving(value: float = 1.0) -> torch.Tensor:
    return torch.tensor(value, requires_grad=True)


class Counting:
    """An op that counts how often its body runs."""

    def __init__(self, fn: Any, **options: Any) -> None:
        self.calls = 0

        def body(*args: Any) -> Any:
            self.calls += 1
            return fn(*args)

        self.op = trace(body, **options)


def times(workflow: Any, memo: Memo, values: list[dict[str, Any]]) -> list[Any]:
    outputs: list[Any] = []
    for point in values:
        with record(point, 1, training=True, memo=memo) as graph:
            out = workflow()
            node = graph.output(out)
        outputs.append(node.value)
    return outputs


def test_what_comes_before_the_first_tensor_runs_once() -> None:
    ask, scale = Parameter("brief", name="style"), Parameter(torch.tensor(1.0), name="scale")
    model, head = Counting(lambda text: len(text + ask.value)), Counting(lambda n, s: n * s)
    outputs = times(
        lambda: head.op(model.op("question"), scale.value), Memo(), [{"scale": moving(i)} for i in (1.0, 2.0, 3.0)]
    )
    assert (model.calls, head.calls) == (1, 3)
    assert [float(o.detach()) for o in outputs] == [13.0, 26.0, 39.0]


def test_a_reused_call_is_recorded_with_what_its_body_read() -> None:
    style, scale = Parameter("brief", name="style"), Parameter(torch.tensor(1.0), name="scale")
    model = Counting(lambda text: len(text + style.value), name="model")
    memo = Memo()
    graphs = []
    for _ in range(2):
        with record({"scale": moving()}, 1, training=True, memo=memo) as graph:
            graph.output(model.op("q") * scale.value)
        graphs.append(graph)
    assert graphs[0].to_text() == graphs[1].to_text()
    assert set(graphs[1].parameters) == {"style", "scale"}


def test_what_reads_a_moving_tensor_in_its_body_runs_again() -> None:
    scale = Parameter(torch.tensor(1.0), name="scale")
    hidden = Counting(lambda text: len(text) * scale.value)
    times(lambda: hidden.op("abc"), Memo(), [{"scale": moving(i)} for i in (1.0, 2.0)])
    assert hidden.calls == 2


def test_other_inputs_run_again_and_the_same_come_back() -> None:
    scale, texts = Parameter(torch.tensor(1.0), name="scale"), iter(["a", "b", "a", "b"])
    model = Counting(str.upper)
    outputs = times(lambda: (model.op(next(texts)), scale.value), Memo(), [{"scale": moving()}] * 4)
    assert model.calls == 2
    assert [pair[0] for pair in outputs] == ["A", "B", "A", "B"]


def test_the_same_call_twice_in_a_rollout_is_kept_twice() -> None:
    scale, answers = Parameter(torch.tensor(1.0), name="scale"), iter(range(10))
    sample = Counting(lambda prompt: next(answers))
    outputs = times(lambda: (sample.op("q"), sample.op("q"), scale.value), Memo(), [{"scale": moving()}] * 3)
    assert [pair[:2] for pair in outputs] == [(0, 1)] * 3


def test_a_list_is_compared_by_its_items_and_an_unknown_object_never() -> None:
    scale, lists, objects = Parameter(torch.tensor(1.0), name="scale"), Counting(len), Counting(lambda o: 1)
    held = [1, 2]

    def workflow() -> Any:
        held[0] += 1
        return lists.op(held[1:]), lists.op(held), objects.op(object()), scale.value

    times(workflow, Memo(), [{"scale": moving()}] * 3)
    assert (lists.calls, objects.calls) == (1 + 3, 3)


def test_an_object_that_the_example_holds_is_known() -> None:
    scale, model, image = Parameter(torch.tensor(1.0), name="scale"), Counting(lambda o: 1), torch.ones(3)
    times(lambda: (model.op(image), scale.value), Memo([{"image": image}]), [{"scale": moving()}] * 3)
    assert model.calls == 1


def test_what_draws_from_the_rollouts_stream_draws_again() -> None:
    scale = Parameter(torch.tensor(1.0), name="scale")
    noisy = Counting(lambda x: x + rollout().rng.random())
    times(lambda: (noisy.op(1), scale.value), Memo(), [{"scale": moving()}] * 2)
    assert noisy.calls == 2


def test_methods_of_two_objects_are_two_calls() -> None:
    class Reader(Module):
        def __init__(self, word: str) -> None:
            super().__init__(word)
            self.word = word
            self.calls = 0

        @trace
        def read(self, text: str) -> str:
            self.calls += 1
            return self.word + text

    scale, one, two = Parameter(torch.tensor(1.0), name="scale"), Reader("one"), Reader("two")
    outputs = times(lambda: (one.read("!"), two.read("!"), scale.value), Memo(), [{"scale": moving()}] * 3)
    assert (one.calls, two.calls) == (1, 1)
    assert [pair[:2] for pair in outputs] == [("one!", "two!")] * 3


def test_async_ops_are_reused_too() -> None:
    scale = Parameter(torch.tensor(1.0), name="scale")
    calls: list[str] = []

    @trace
    async def ask(text: str) -> str:
        calls.append(text)
        await asyncio.sleep(0)
        return text.upper()

    async def main() -> list[Any]:
        memo, outputs = Memo(), []
        for _ in range(3):
            with record({"scale": moving()}, 1, training=True, memo=memo) as graph:
                out = (*await asyncio.gather(ask("a"), ask("b")), scale.value)
            outputs.append(graph.output(out).value[:2])
        return outputs

    assert asyncio.run(main()) == [("A", "B")] * 3
    assert sorted(calls) == ["a", "b"]


def test_an_example_with_nothing_to_keep_goes_without_a_memo() -> None:
    scale, head, memos = Parameter(torch.tensor(1.0), name="scale"), Counting(lambda s: s * 2), Memos()
    memo = memos.of(0, 0, ())
    assert memo is not None
    times(lambda: head.op(scale.value), memo, [{"scale": moving()}])
    assert memos.of(0, 0, ()) is None
    assert memos.of(0, 1, ()) is not None


def test_without_a_memo_everything_runs() -> None:
    scale, model = Parameter(torch.tensor(1.0), name="scale"), Counting(str.upper)
    for _ in range(2):
        with record({"scale": moving()}, 1, training=True):
            model.op("a"), scale.value
    assert model.calls == 2
