"""The front: who leads where, who is needed, who is built on."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.search.front import Front, dominates, undominated

worths = st.sampled_from([0.0, 0.5, 1.0, -math.inf])
tables = st.integers(1, 6).flatmap(
    lambda cells: st.lists(st.lists(worths, min_size=cells, max_size=cells), min_size=1, max_size=9)
)


def front_of(*rows: list[float]) -> Front:
    return Front(dict(enumerate(rows)), {number: sum(row) for number, row in enumerate(rows)})


def test_a_candidate_that_is_best_nowhere_is_not_on_the_front() -> None:
    front = front_of([1, 0], [0, 1], [0.5, 0.5])
    assert front.alive == (0, 1)


def test_of_candidates_that_lead_on_the_same_examples_the_better_one_stays() -> None:
    front = front_of([1, 0, 0], [1, 0.5, 0])
    assert front.alive == (1,)


def test_of_equal_candidates_the_earlier_one_stays() -> None:
    assert front_of([1, 1], [1, 1], [1, 1]).alive == (0,)


def test_one_that_others_cover_together_is_not_needed() -> None:
    # it ties with one of them on each example, and adds nothing that both lack
    assert front_of([1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]).alive == (0, 1)


def test_parents_are_drawn_by_the_share_of_the_front_that_they_hold() -> None:
    front = front_of([1, 1, 1, 0], [0, 0, 0, 1])
    drawn = Counter(front.draw(random.Random(seed), 1)[0] for seed in range(2000))
    assert drawn[0] / 2000 == pytest.approx(0.75, abs=0.04)


def test_a_lead_that_several_share_counts_for_each_as_a_part() -> None:
    assert front_of([1, 1, 0], [1, 0, 1]).coverage == {0: 1.5, 1: 1.5}


def test_every_parent_is_drawn_before_any_is_drawn_again() -> None:
    front = front_of([1, 0, 0], [0, 1, 0], [0, 0, 1])
    for seed in range(20):
        drawn = front.draw(random.Random(seed), 6)
        assert sorted(drawn[:3]) == sorted(drawn[3:]) == [0, 1, 2]


def test_an_example_that_all_failed_is_led_by_all() -> None:
    front = front_of([-math.inf, 1], [-math.inf, 0])
    assert front.leaders[0] == {0, 1}
    assert front.alive == (0,)


@given(tables)
def test_the_front_keeps_the_best_of_every_example_and_nobody_who_is_not_needed_for_it(rows: list[list[float]]) -> None:
    front = front_of(*rows)
    for cell in range(len(rows[0])):
        assert max(rows[n][cell] for n in front.alive) == max(row[cell] for row in rows)
    assert 1 <= len(front.alive) <= len(rows[0])
    for number in front.alive if len(front.alive) > 1 else ():
        others = [n for n in front.alive if n != number]
        assert any(rows[number][c] > max(rows[n][c] for n in others) for c in range(len(rows[0])))


@given(tables)
def test_the_shares_of_the_front_add_up_to_all_of_it(rows: list[list[float]]) -> None:
    front = front_of(*rows)
    assert sum(front.coverage.values()) == pytest.approx(len(rows[0]))


@given(tables)
def test_taking_in_candidates_one_by_one_keeps_the_best_of_every_example(rows: list[list[float]]) -> None:
    members: dict[int, list[float]] = {}
    for number, row in enumerate(rows):
        members[number] = row
        alive = Front(members, {n: sum(r) for n, r in members.items()}).alive
        members = {n: members[n] for n in alive}
    for cell in range(len(rows[0])):
        assert max(row[cell] for row in members.values()) == max(row[cell] for row in rows)


@given(tables)
def test_what_nobody_dominates_is_what_a_comparison_of_all_pairs_leaves(rows: list[list[float]]) -> None:
    left = undominated(dict(enumerate(rows)))
    assert left
    for number, row in enumerate(rows):
        assert (number in left) != any(dominates(other, row) for other in rows)


def test_domination_needs_one_place_that_is_better_and_none_that_is_worse() -> None:
    assert dominates([1, 0], [0, 0])
    assert not dominates([1, 0], [1, 0])
    assert not dominates([1, 0], [0, 1])
