"""Which parameter is suspected of failures, and which is asked about."""

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Rollout
from trace_opt.core.tracer import record, trace
from trace_opt.search.credit import Bandit, shortfalls, suspicion


def routed() -> Callable[[str], str]:
    """A workflow of which every example takes one of two ways, after a step that all take."""
    split, left, right = (Parameter(name, name=name) for name in ("split", "left", "right"))

    @trace
    def route(kind: str) -> str:
        return f"{split.value}:{kind}"

    @trace
    def one(text: str) -> str:
        return text + left.value

    @trace
    def other(text: str) -> str:
        return text + right.value

    def workflow(kind: str) -> str:
        text = route(kind)
        return one(text) if text == "split:left" else other(text)

    return workflow


def rolled(workflow: Callable[[str], str], kind: str, score: float | None) -> Rollout:
    with record() as graph:
        output = workflow(kind)
    node = graph.output(output)
    return Rollout(graph=graph, node=node, feedback=Feedback(score), error=None if score is not None else "E: failed")


NAMES = ["split", "left", "right"]


def test_the_parameter_on_the_way_of_the_failures_is_suspected_most() -> None:
    workflow = routed()
    rollouts = [rolled(workflow, "left", 0.0), rolled(workflow, "left", 0.0), *[rolled(workflow, "right", 1.0)] * 2]
    found = suspicion(rollouts, NAMES)
    assert found["left"] == pytest.approx(1.0)
    assert found["split"] == pytest.approx(2 / (2 * 4) ** 0.5)
    assert found["right"] == 0.0


def test_how_much_a_rollout_failed_counts() -> None:
    workflow = routed()
    found = suspicion([rolled(workflow, "left", 0.0), rolled(workflow, "right", 0.5), rolled(workflow, "right", 1.0)], NAMES)  # fmt: skip
    assert found["left"] > found["right"] > 0


def test_where_all_failed_alike_all_that_they_read_is_suspected() -> None:
    workflow = routed()
    found = suspicion([rolled(workflow, "left", 0.0), rolled(workflow, "right", 0.0)], NAMES)
    assert found["split"] == pytest.approx(1.0)
    assert found["left"] == found["right"] == pytest.approx(0.5**0.5)


def test_a_failed_rollout_is_the_worst_failure() -> None:
    workflow = routed()
    rollouts = [rolled(workflow, "left", None), rolled(workflow, "right", 0.4), rolled(workflow, "right", 0.4)]
    assert shortfalls(rollouts) == [1.0, 0.0, 0.0]
    assert shortfalls([rolled(workflow, "left", None)]) == [1.0]
    assert suspicion(rollouts, NAMES)["left"] == pytest.approx(1.0)


def test_without_rollouts_nothing_is_suspected() -> None:
    assert suspicion([], NAMES) == dict.fromkeys(NAMES, 0.0)


def share(bandit: Bandit, suspected: dict[str, float], name: str) -> float:
    return Counter(bandit.choose(suspected, random.Random(seed)) for seed in range(600))[name] / 600


def test_a_suspect_is_asked_about_more_often_than_the_others() -> None:
    assert share(Bandit(), {"left": 1.0, "right": 0.2}, "left") > 0.85
    assert 0.4 < share(Bandit(), {"left": 1.0, "right": 1.0}, "left") < 0.6


def test_one_whose_changes_keep_being_rejected_gives_way() -> None:
    bandit = Bandit()
    for _ in range(12):
        bandit.observe(["left"], accepted=False)
    suspected: dict[str, float] = {"left": 1.0, "right": 0.6}
    assert share(bandit, suspected, "right") > 0.8


def test_one_whose_changes_paid_is_asked_about_again() -> None:
    bandit = Bandit()
    for _ in range(6):
        bandit.observe(["left"], accepted=True)
        bandit.observe(["right"], accepted=False)
    assert share(bandit, {"left": 0.7, "right": 1.0}, "left") > 0.9


def test_a_change_of_several_parameters_says_less_of_each() -> None:
    bandit = Bandit()
    bandit.observe(["left", "right"], accepted=True)
    bandit.observe(["split"], accepted=True)
    assert bandit.counts == {"left": [0.5, 0.0], "right": [0.5, 0.0], "split": [1.0, 0.0]}


def test_what_a_bandit_has_learned_survives_as_json() -> None:
    bandit = Bandit()
    for i in range(7):
        bandit.observe(["left" if i % 3 else "right"], accepted=i % 2 == 0)
    again = Bandit.of(json.loads(json.dumps(bandit.state())))
    suspected: dict[str, Any] = {"left": 0.8, "right": 0.9}
    assert [again.choose(suspected, random.Random(s)) for s in range(50)] == [
        bandit.choose(suspected, random.Random(s)) for s in range(50)
    ]
