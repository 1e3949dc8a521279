"""Failures count as the worst seen, and older queries count as long as the incumbent ties them to the new examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trace_opt.core.codec import decode, encode
from trace_opt.core.feedback import Feedback
from trace_opt.core.rollout import Rollout
from trace_opt.errors import FeedbackError
from trace_opt.optim.numeric.queries import Kept, Queries, carried, context_of, loss_of

D = torch.float64


def scored(score: float | None) -> Rollout:
    if score is None:
        return Rollout(feedback=Feedback(text="it failed"), error="ValueError: no")
    return Rollout(feedback=Feedback(score=score))


def vector(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=D)


def kept(points: list[list[float]], values: list[float], *, context: str = "c", examples: str = "e") -> Kept:
    return Kept(Queries(torch.tensor(points, dtype=D), vector(*values), max(values)), context, examples, 0)


def test_the_objective_is_minus_the_mean_score() -> None:
    means = Queries.none(1).means([[scored(1.0), scored(2.0)], [scored(-3.0), scored(5.0)]], "score")
    assert means.tolist() == [-1.5, -1.0]


def test_a_failed_rollout_counts_as_the_worst_one_seen() -> None:
    queries = Queries.none(1)
    assert queries.means([[scored(-7.0), scored(None)], [scored(1.0), scored(1.0)]], "score").tolist() == [7.0, -1.0]
    assert queries.means([[scored(None), scored(3.0)]], "score").tolist() == [2.0]
    assert queries.means([[scored(None), scored(-9.0)]], "score").tolist() == [9.0]
    assert queries.worst == 9.0
    assert queries.failed == 3


def test_failures_before_the_first_success_count_as_the_worst_known_later() -> None:
    queries = Queries.none(1)
    queries.add(torch.zeros(1, 1, dtype=D), queries.means([[scored(None)]], "score"))
    assert queries.filled().tolist() == [0.0]
    queries.add(torch.ones(2, 1, dtype=D), queries.means([[scored(-4.0)], [scored(1.0)]], "score"))
    assert queries.filled().tolist() == [4.0, 4.0, -1.0]


def test_the_loss_is_taken_where_it_is_asked_for_and_averaged_where_there_are_several() -> None:
    one = torch.tensor(2.0, requires_grad=True)
    assert loss_of(Rollout(feedback=Feedback(score=1.0, loss=one)), "loss") == 2.0
    assert loss_of(Rollout(feedback=Feedback(score=1.0, loss={"a": one, "b": one * 3})), "loss") == 4.0
    assert loss_of(Rollout(feedback=Feedback(score=1.0, loss=one * torch.inf)), "loss") is None
    with pytest.raises(FeedbackError, match="without a loss"):
        loss_of(scored(1.0), "loss")


def test_older_queries_count_in_the_same_context_only() -> None:
    phases = [kept([[0.0], [1.0]], [3.0, 2.0]), kept([[0.0], [5.0]], [3.0, 9.0], context="other")]
    found = carried(phases, "c", "e", vector(0.0), torch.tensor(3.0, dtype=D))
    assert found.points.tolist() == [[0.0], [1.0]]
    assert found.values.tolist() == [3.0, 2.0]
    assert found.worst == 3.0


def test_other_examples_shift_older_values_by_as_much_as_the_incumbent_s() -> None:
    phases = [kept([[0.0], [1.0]], [3.0, 2.0])]
    found = carried(phases, "c", "others", vector(0.0), torch.tensor(3.5, dtype=D))
    assert found.values.tolist() == [3.5, 2.5]


def test_other_examples_without_the_incumbent_are_not_comparable() -> None:
    found = carried([kept([[0.0], [1.0]], [3.0, 2.0])], "c", "others", vector(0.5), torch.tensor(1.0, dtype=D))
    assert found.points.tolist() == [[0.5]]


def test_a_point_known_from_several_phases_counts_once() -> None:
    phases = [kept([[0.0], [1.0]], [3.0, 2.0]), kept([[0.0], [1.0], [2.0]], [3.0, 2.0, 1.0])]
    found = carried(phases, "c", "e", vector(0.0), torch.tensor(3.0, dtype=D))
    assert found.points.tolist() == [[0.0], [1.0], [2.0]]


def test_only_the_nearest_of_very_many_are_carried() -> None:
    points = [[float(i)] for i in range(3000)]
    found = carried([kept(points, [0.0] * 3000)], "c", "e", vector(0.0), torch.tensor(0.0, dtype=D))
    assert len(found) == 2000
    assert float(found.points.max()) == 1999


def test_the_context_is_what_stands_still() -> None:
    axes: list[Any] = ["score", vector(1.0, 2.0)]
    assert context_of({"prompt": "a"}, axes) == context_of({"prompt": "a"}, axes)
    assert context_of({"prompt": "a"}, axes) != context_of({"prompt": "b"}, axes)
    assert context_of({"prompt": "a"}, axes) != context_of({"prompt": "a"}, ["score", vector(1.0, 3.0)])


def test_a_state_survives_the_store() -> None:
    before = kept([[0.1], [1.0]], [3.0, float("nan")])
    after = Kept.of_state(decode(encode(before.to_state())))
    assert torch.equal(after.queries.points, before.queries.points)
    assert after.queries.values.tolist()[0] == 3.0
    assert after.queries.values.isnan().tolist() == [False, True]
    assert (after.context, after.examples, after.age) == ("c", "e", 0)
