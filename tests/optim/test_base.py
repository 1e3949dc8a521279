"""The loop by hand: backward, step, zero_feedback."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Rollouts
from trace_opt.core.tracer import record, trace
from trace_opt.errors import OpError, TraceError
from trace_opt.optim.base import Optimizer, Outcome, Proposal, Trial


class Scripted(Optimizer):
    """Proposes what it is told, and keeps what it was shown."""

    def __init__(self, *values: Mapping[str, Any], kinds: Sequence[str] = ("number", "text")) -> None:
        super().__init__()
        self.left = list(values)
        self.kinds = kinds
        self.seen: list[tuple[list[str], Rollouts, Sequence[Trial]]] = []
        self.outcomes: list[Outcome] = []

    def handles(self, parameter: Parameter[Any]) -> bool:
        return parameter.kind in self.kinds

    async def propose(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
    ) -> Proposal:
        self.seen.append(([parameter.name for parameter in parameters], rollouts, history))
        return Proposal(self.left.pop(0) if self.left else {}, "as told")

    def observe(self, proposal: Proposal, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@trace
def double(x: float) -> float:
    return 2 * x


@trace
def fails(x: float) -> float:
    raise ValueError(f"{x} is too much")


def test_a_step_writes_what_was_proposed_and_returns_it() -> None:
    k = Parameter(1, name="k")
    optimizer = Scripted({"k": 5})
    with record():
        output = double(k.value)
    optimizer.backward(output, "more")
    proposal = optimizer.step()
    assert k.value == 5
    assert proposal.values == {"k": 5}


def test_what_is_collected_holds_graph_output_feedback_and_values() -> None:
    k = Parameter(3, name="k")
    optimizer = Scripted()
    with record(seed=7) as graph:
        output = double(k.value)
    optimizer.backward(output, Feedback(0.5, "more"))
    optimizer.step()
    rollout = optimizer.seen[0][1][0]
    assert (rollout.graph, rollout.output, rollout.values, rollout.seed) == (graph, 6, {"k": 3}, 7)
    assert (rollout.score, rollout.feedback.text) == (0.5, "more")
    assert list(rollout.slices) == ["k"]


@pytest.mark.parametrize(
    "make", [lambda x: [x], lambda x: {"a": (1, x)}, lambda x: ({"b": [x, x]},)], ids=["list", "dict", "nested"]
)
def test_feedback_can_be_about_a_container_of_results(make: Any) -> None:
    k = Parameter(1, name="k")
    optimizer = Scripted({"k": 2})
    with record():
        output = make(double(k.value))
    optimizer.backward(output, "more")
    optimizer.step()
    assert k.value == 2


def test_feedback_can_be_about_a_failure() -> None:
    k = Parameter(1, name="k")
    optimizer = Scripted({"k": 2})
    with pytest.raises(OpError) as caught, record():
        fails(k.value)
    optimizer.backward(caught.value, "do not fail")
    optimizer.step()
    rollout = optimizer.seen[0][1][0]
    assert rollout.error == "ValueError: 1 is too much"
    assert rollout.output is None


def test_feedback_on_a_plain_output_is_given_on_its_graph() -> None:
    k = Parameter(1, name="k")
    optimizer = Scripted({"k": 2})
    with record() as graph:
        double(k.value)
    optimizer.backward(graph, "more")
    optimizer.step()
    assert k.value == 2


def test_a_plain_value_is_refused_with_the_remedy() -> None:
    with pytest.raises(TraceError, match=r"backward\(graph, feedback\)"):
        Scripted().backward(3, "more")


def test_a_step_without_feedback_says_what_to_call_first() -> None:
    with pytest.raises(TraceError, match="call backward"):
        Scripted().step()


def test_a_step_without_a_parameter_of_its_kind_says_so() -> None:
    k = Parameter(1, name="k")
    optimizer = Scripted(kinds=["text"])
    with record():
        output = double(k.value)
    optimizer.backward(output, "more")
    with pytest.raises(TraceError, match="handles no parameter"):
        optimizer.step()


def test_a_step_under_a_running_loop_names_astep() -> None:
    async def main() -> None:
        Scripted().step()

    with pytest.raises(TraceError, match="await optimizer.astep"):
        asyncio.run(main())


def test_astep_does_under_a_running_loop_what_step_does_elsewhere() -> None:
    k = Parameter(1, name="k")

    async def main() -> None:
        optimizer = Scripted({"k": 5})
        with record():
            output = double(k.value)
        optimizer.backward(output, "more")
        await optimizer.astep()

    asyncio.run(main())
    assert k.value == 5


def test_frozen_parameters_and_other_kinds_are_left_alone() -> None:
    k, fixed, text = Parameter(1, name="k"), Parameter(1, name="fixed", frozen=True), Parameter("a", name="text")
    optimizer = Scripted(kinds=["number"])

    @trace
    def use(k: int, fixed: int, text: str) -> str:
        return text * k * fixed

    with record():
        output = use(k.value, fixed.value, text.value)
    optimizer.backward(output, "more")
    optimizer.step()
    assert optimizer.seen[0][0] == ["k"]


def test_an_invalid_value_leaves_all_parameters_as_they_were() -> None:
    a, b = Parameter(1, name="a"), Parameter(1, name="b")
    optimizer = Scripted({"a": 2, "b": "two"})

    @trace
    def add(a: int, b: int) -> int:
        return a + b

    with record():
        output = add(a.value, b.value)
    optimizer.backward(output, "more")
    with pytest.raises(ValueError, match="'b'"):
        optimizer.step()
    assert (a.value, b.value) == (1, 1)


def rounds(optimizer: Scripted, k: Parameter[int], scores: Sequence[Sequence[float]]) -> None:
    for minibatch in scores:
        for score in minibatch:
            with record():
                output = double(k.value)
            optimizer.backward(output, score)
        optimizer.step()
        optimizer.zero_feedback()


def test_the_next_scores_are_the_outcome_of_a_step() -> None:
    k = Parameter(1, name="k")
    optimizer = Scripted({"k": 2}, {"k": 3})
    rounds(optimizer, k, [[0.0, 1.0], [1.0, 0.5]])
    assert optimizer.outcomes == [Outcome(0.5, 0.75, accepted=True)]
    history = optimizer.seen[1][2]
    assert [(trial.base, trial.proposal.values) for trial in history] == [({"k": 1}, {"k": 2})]


def test_text_only_feedback_gives_an_outcome_without_scores() -> None:
    k = Parameter(1, name="k")
    optimizer = Scripted({"k": 2}, {"k": 3})
    for _ in range(2):
        with record():
            output = double(k.value)
        optimizer.backward(output, "more")
        optimizer.step()
        optimizer.zero_feedback()
    assert optimizer.outcomes == [Outcome(None, None, accepted=True)]


def test_without_zero_feedback_older_rollouts_stay_but_do_not_count_as_the_outcome() -> None:
    k = Parameter(1, name="k")
    optimizer = Scripted({"k": 2}, {"k": 3})
    for score in (0.0, 1.0):
        with record():
            output = double(k.value)
        optimizer.backward(output, score)
        optimizer.step()
    assert optimizer.outcomes == [Outcome(0.0, 1.0, accepted=True)]
    assert len(optimizer.seen[1][1]) == 2


def test_an_outcome_is_kept_when_feedback_is_dropped_before_the_next_step() -> None:
    k = Parameter(1, name="k")
    optimizer = Scripted({"k": 2}, {"k": 3})
    rounds(optimizer, k, [[0.0]])
    with record():
        output = double(k.value)
    optimizer.backward(output, 1.0)
    optimizer.zero_feedback()
    assert optimizer.outcomes == [Outcome(0.0, 1.0, accepted=True)]


def test_two_optimizers_take_backward_of_one_output_and_the_loss_counts_once() -> None:
    scale, k = Parameter(torch.tensor(3.0), name="scale"), Parameter(2, name="k")
    numbers, tensors = Scripted({"k": 3}), Scripted(kinds=["tensor"])

    @trace
    def times(scale: torch.Tensor, k: int) -> torch.Tensor:
        return scale * k

    with record():
        output = times(scale.value, k.value)
    feedback = Feedback(text="more", loss=output)
    numbers.backward(output, feedback)
    tensors.backward(output, feedback)
    numbers.step()
    tensors.step()
    assert scale.grad is not None
    assert float(scale.grad) == 2.0
    assert (numbers.seen[0][0], tensors.seen[0][0]) == (["k"], ["scale"])
    tensors.zero_feedback()
    assert scale.grad is None


def test_each_step_has_a_seed_of_its_own() -> None:
    k = Parameter(1, name="k")
    optimizer = Scripted()
    rounds(optimizer, k, [[0.0], [0.0], [0.0]])
    assert [seen[1].seed for seen in optimizer.seen] == [0, 1, 2]


def test_proposing_sees_plain_values_even_inside_a_recording() -> None:
    k = Parameter(1, name="k")

    class Reading(Scripted):
        async def propose(
            self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
        ) -> Proposal:
            assert type(parameters[0].value) is int
            return Proposal({"k": parameters[0].value + 1})

    optimizer = Reading()
    with record():
        optimizer.backward(double(k.value), "more")
        optimizer.step()
    assert k.initial == 2
