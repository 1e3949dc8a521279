"""What trials say about combinations of options."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.context import in_force
from trace_opt.core.parameter import Demonstrations, Parameter
from trace_opt.optim.base import Outcome, Proposal, Trial
from trace_opt.optim.combinations import Effects, Known, Options, Space, Untried

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def space(*sizes):
    return Space.of([Parameter(0, name=f"p{i}", choices=list(range(size))) for i, size in enumerate(sizes)], {}, [])


def every(sizes):
    return list(itertools.product(*map(range, sizes)))


@given(SIZES, st.data())
def test_near_combinations_are_all_that_differ_in_so_many_values(sizes, data):
    point = data.draw(st.sampled_from(every(sizes)))
    changes = data.draw(st.integers(1, len(sizes)))

    near = space(*sizes).near(point, changes)

    expected = {p for p in every(sizes) if sum(a != b for a, b in zip(p, point, strict=True)) == changes}
    assert len(near) == len(set(near))
    assert set(near) == expected


def test_no_list_of_near_combinations_is_made_where_they_are_very_many():
    assert space(*[60] * 20).near((0,) * 20, 2) == []


@given(SIZES, st.integers(0, 99), st.data())
def test_a_draw_is_never_a_combination_that_was_tried(sizes, seed, data):
    taken = frozenset(data.draw(st.sets(st.sampled_from(every(sizes)), max_size=math.prod(sizes) - 1)))
    untried, rng = Untried(space(*sizes), taken), random.Random(seed)

    assert untried.left == math.prod(sizes) - len(taken)
    assert untried.draw(rng) not in taken
    assert set(untried.drawn(rng)).isdisjoint(taken)


def test_draws_from_a_space_too_large_to_list_are_some_of_it():
    drawn = Untried(space(*[9] * 30), frozenset()).drawn(random.Random(0))

    assert 100 < len(set(drawn)) < 1000


@given(st.lists(st.lists(st.integers(-9, 9), min_size=2, max_size=3), min_size=2, max_size=3))
def test_what_values_add_is_found_where_all_combinations_are_known(own):
    def score(point):
        return float(sum(values[v] for values, v in zip(own, point, strict=True)))

    points = every([len(values) for values in own])
    effects = Effects({point: score(point) for point in points})

    assert score(max(points, key=effects.predicted)) == max(map(score, points))


def test_a_pair_that_pays_only_together_is_remembered():
    worth = {(0, 0): 0.0, (0, 1): 0.0, (1, 0): 0.0, (1, 1): 1.0, (2, 0): 0.4, (2, 1): 0.4}

    effects = Effects(worth)

    assert max(worth, key=effects.predicted) == (1, 1)


def test_of_combinations_that_promise_the_same_the_one_least_seen_is_worth_a_look():
    effects = Effects({(0, 0): 1.0, (0, 1): 1.0}, opened=[(1, 0)])

    assert max([(0, 0), (1, 0), (1, 1)], key=effects.worth_a_look) == (1, 1)


def test_of_changes_that_promise_the_same_the_smaller_is_taken():
    effects = Effects({(0, 0, 0): 0.0, (1, 1, 1): 0.0, (2, 2, 2): 0.0})

    assert effects.of_change((0, 0, 0), (3, 0, 0)) > effects.of_change((0, 0, 0), (3, 3, 0))


def test_the_best_is_the_incumbent_of_a_search():
    history = [
        Trial("x", {"p0": 0}, Proposal({"p0": 1}), Outcome(0.0, 1.0, True)),
        Trial("x", {"p0": 1}, Proposal({"p0": 2}), Outcome(0.0, 9.0, False)),
    ]

    with in_force({"p0": 1}):
        known = Known.of(space(3), history)

    assert (known.incumbent, known.best) == ((1,), (1,))


def test_by_hand_where_every_step_is_kept_the_best_may_be_an_earlier_one():
    history = [
        Trial("x", {"p0": 0}, Proposal({"p0": 1}), Outcome(0.0, 1.0, True)),
        Trial("x", {"p0": 1}, Proposal({"p0": 2}), Outcome(1.0, 0.2, True)),
    ]

    with in_force({"p0": 2}):
        known = Known.of(space(3), history)

    assert (known.incumbent, known.best) == ((2,), (1,))


@given(
    st.lists(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.lists(st.integers())), max_size=9
    )
)
def test_every_option_is_found_where_an_equal_one_of_its_type_stands_first(values):
    options = Options(values)

    for value in values:
        found = options.values[options.position(value)]
        assert (type(found), found) == (type(value), value)
    assert len(options) == len({(type(value).__name__, repr(value)) for value in values})


def test_demonstrations_are_told_apart_by_what_they_show():
    options = Options([Demonstrations(2), Demonstrations(2, ({"q": "a"},)), Demonstrations(2, ({"q": "a"},))])

    assert len(options) == 2
    assert options.position(Demonstrations(2, ({"q": "a"},))) == 1


def test_a_value_that_is_no_option_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"'c' is none of the 2 options"):
        Options(["a", "b"]).position("c")
