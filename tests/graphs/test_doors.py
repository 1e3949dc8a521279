"""The doors: exact success, reflectors that reach it, and what a policy learns there."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.problem_files import load, module_of, run
from trace_opt.core.adapter import Adapter
from trace_opt.core.context import in_force
from trace_opt.core.tracer import plain, record
from trace_opt.refine.episodes import Episode, Episodes

doors = module_of("doors")

# fact sheet: attempts 1, 2, 4 and 6, with memory and without
TABLE = {
    (2, 3): ((0.1111, 0.3333, 0.8889, 1.0), (0.1111, 0.2099, 0.3757, 0.5067)),
    (3, 3): ((0.0370, 0.1481, 0.6296, 0.9630), (0.0370, 0.0727, 0.1401, 0.2026)),
    (3, 4): ((0.0156, 0.0625, 0.3125, 0.6875), (0.0156, 0.0310, 0.0611, 0.0902)),
}


def mean_success(reflect: Any, rooms: int, colours: int, attempts: int) -> float:
    every = doors.tasks(rooms, colours)
    return sum(doors.success_of(task["doors"], colours, reflect, attempts) for task in every) / len(every)


def success_by_attempt(agent: Episodes, tasks: list[Any], rounds: int, values: Any = None) -> tuple[list[float], int]:
    episodes = []
    for round_ in range(rounds):
        for i, task in enumerate(tasks):
            with in_force(values, seed=100_003 * round_ + 17 * i):
                episodes.append(Episode.of(agent(task)))
    shares = [sum(e.best(n) >= 1 for e in episodes) / len(episodes) for n in range(1, agent.attempts + 1)]
    return shares, len(episodes)


@pytest.mark.parametrize("size", TABLE)
def test_the_closed_forms_are_the_known_table(size: tuple[int, int]) -> None:
    """The problem's two functions give every entry of the published table, to its four digits."""
    memory, none = TABLE[size]
    assert [round(doors.success(*size, n), 4) for n in (1, 2, 4, 6)] == list(memory)
    assert [round(doors.success_without(*size, n), 4) for n in (1, 2, 4, 6)] == list(none)


@pytest.mark.parametrize(("size", "most"), [((2, 3), 6), ((3, 3), 4), ((3, 4), 2)])
def test_going_through_all_that_can_happen_gives_the_closed_forms(size: tuple[int, int], most: int) -> None:
    """The actor's own parser and the scripted reflector, enumerated, are exactly as good as the formulas say."""
    for n in range(1, most + 1):
        assert mean_success(doors.best, *size, n) == pytest.approx(doors.success(*size, n), abs=1e-12)
        assert mean_success(lambda _: "", *size, n) == pytest.approx(doors.success_without(*size, n), abs=1e-12)


def test_a_reflector_that_says_the_opposite_is_worse_than_none() -> None:
    """Success depends on what is said: calling locked doors right never gets through by a second attempt."""
    wrong = lambda shown: doors.best(shown).replace("not ", "")
    assert mean_success(wrong, 2, 3, 4) == pytest.approx(doors.success(2, 3, 1))


@pytest.mark.parametrize(
    ("advice", "left"),
    [
        ("", ["red", "blue", "green"]),
        ("room 1: not red", ["blue", "green"]),
        ("room 2: red", ["red", "blue", "green"]),
        ("room 1: blue", ["blue"]),
        ("room 1: blue\nroom 1: not blue", ["red", "green"]),
        ("room 1: not blue\nroom 1: blue", ["blue"]),
        ("room 1: not red\nroom 1: not blue\nroom 1: not green", ["red", "blue", "green"]),
        ("# room 1: pink; room 11: red", ["red", "blue", "green"]),
    ],
)
def test_the_actor_believes_what_it_was_told_last(advice: str, left: list[str]) -> None:
    """The doors that the actor chooses among follow from the advice by the rules the page states."""
    assert doors.options(1, advice, 3) == left


def test_episodes_reach_the_exact_table_and_retrying_blindly_its_other_half() -> None:
    """Run for real, success after every attempt is within three standard errors of the exact value, with and without."""
    tasks = doors.tasks(2, 3)
    for reflector, exact in ((doors.best, doors.success), (None, doors.success_without)):
        shares, n = success_by_attempt(doors.episodes(reflector, attempts=4), tasks, 45)
        for attempt, share in enumerate(shares, 1):
            p = exact(2, 3, attempt)
            assert abs(share - p) <= 3 * math.sqrt(p * (1 - p) / n), (attempt, share, p)


def test_memory_of_the_last_reflection_alone_forgets_doors() -> None:
    """With memory=1 an earlier `not` is lost, so four attempts solve fewer tasks than with all reflections."""
    tasks = doors.tasks(2, 3)
    (*_, short), n = success_by_attempt(doors.episodes(doors.best, attempts=4, memory=1), tasks, 45)
    p = doors.success(2, 3, 4)
    assert short < p - 3 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("kind", ["table", "tiny"])
def test_what_a_policy_says_it_drew_is_what_it_computes(kind: Any) -> None:
    """Sampled log probabilities, `log_prob` of the batch and `reflections` agree; the reference stays at the start."""
    policy = doors.Reflector(3, kind)
    start = {name: value.clone() for name, value in policy.net.state_dict().items()}
    with torch.no_grad():
        for value in policy.net.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    shown = ("room 1: red opens\nroom 2: blue is locked", "room 1: green is locked")
    drawn = policy.sample(shown, 5, seed=3)
    batch = policy.batch(drawn, [float(i) for i in range(10)])
    for i, row in enumerate(drawn.log_probs):
        assert policy.log_prob(batch)[i, : len(row)].tolist() == pytest.approx(list(row), abs=1e-6)
        assert math.exp(sum(row)) <= policy.reflections(shown[drawn.prompt[i]])[drawn.texts[i]] + 1e-6
    assert batch.returns.tolist() == [float(i) for i in range(10)]
    before = policy.reference(batch)
    kept = policy.dump()
    policy.load(Adapter())
    assert all(torch.equal(policy.net.state_dict()[name], value) for name, value in start.items())
    assert torch.allclose(policy.log_prob(batch).detach(), before)
    policy.load(kept)
    assert policy.dump() == kept
    assert policy.sample(shown, 5, seed=3) == drawn


def test_texts_from_elsewhere_become_the_tokens_that_say_them() -> None:
    """`written` finds the sayings of a text, and its batch holds no log probabilities."""
    policy = doors.Reflector(3)
    shown = "room 1: red opens\nroom 2: blue is locked"
    found = policy.written([(shown, doors.best(shown)), (shown, "room 2: blue")])
    assert found.tokens == ((0, 1), (2, 0))
    assert policy.batch(found, [1.0, 1.0]).log_probs is None


@pytest.mark.parametrize("kind", ["table", "tiny"])
def test_a_trained_policy_is_as_good_as_the_best_reflector(kind: str) -> None:
    """After one phase of `trace-opt run graphs/doors.py` success, enumerated exactly, is within .01 of the optimum, and
    ahead of every control on the test tasks."""
    problem = load("doors", policy=kind)
    found = problem.optimize(store=None)
    policy = problem.workflow.reflector  # type: ignore[attr-defined]
    policy.load(found.start["advice"])
    before = [mean_success(policy.reflections, 2, 3, n) for n in (1, 2, 3, 4)]
    policy.load(found.best["advice"])
    after = [mean_success(policy.reflections, 2, 3, n) for n in (1, 2, 3, 4)]
    assert after == pytest.approx([doors.success(2, 3, n) for n in (1, 2, 3, 4)], abs=0.01)
    assert after[3] > before[3] + 0.2
    report = found.report()
    assert report.claim == "better"
    names = {row.name for row in report.controls}
    assert names == {
        "no retry", "retry without memory", "untrained reflector", "another task's reflection", "random actor",
    }  # fmt: skip
    assert all(row.difference.low > 0 and row.scores.n == 36 for row in report.controls)


def test_outputs_are_the_same_recorded_and_plain() -> None:
    """Nothing depends on being recorded, reflections included."""
    problem = load("doors")
    for example in problem.train[:4]:
        with record(seed=5):
            recorded = plain(run(problem, example))
        with in_force(seed=5):
            assert recorded == run(problem, example)


def test_the_best_return_never_falls() -> None:
    """What is reported after n attempts is the best so far."""
    agent = doors.episodes(None, attempts=4)
    for seed in range(20):
        with in_force(seed=seed):
            scores = agent.scored(agent(doors.tasks(2, 3)[seed % 9])).scores
        solved = [scores[f"solved after {n}"] for n in range(1, 5)]
        assert all(a <= b for a, b in pairwise(solved))
        assert (scores["return"] >= 1) == bool(solved[-1])
