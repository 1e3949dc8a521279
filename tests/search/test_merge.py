"""Merging two candidates through the one that both come from."""

import json
import random
from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trace_opt.search.candidate import Candidate
from trace_opt.search.merge import Merger, ancestors, merged


def key_of(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def candidate(number: int, parents: tuple[int, ...] = (), **values: Any) -> Candidate:
    return Candidate(number, values, key_of(values), parents)


def family() -> dict[int, Candidate]:
    """A start, two children that changed one parameter each, and a grandchild."""
    made = [
        candidate(0, a=0, b=0, c=0),
        candidate(1, (0,), a=1, b=0, c=0),
        candidate(2, (0,), a=0, b=2, c=0),
        candidate(3, (2,), a=0, b=2, c=3),
    ]
    return {one.id: one for one in made}


def test_what_only_one_of_the_two_has_changed_is_taken_from_it() -> None:
    known = family()
    assert merged(known[1], known[3], known[0], key_of) == {"a": 1, "b": 2, "c": 3}


def test_where_both_have_changed_the_same_the_first_ones_value_stands() -> None:
    start, one, other = candidate(0, a=0, b=0), candidate(1, a=1, b=0), candidate(2, a=2, b=2)
    assert merged(one, other, start, key_of) == {"a": 1, "b": 2}


def test_nothing_is_merged_where_one_has_nothing_that_the_other_lacks() -> None:
    start, one, other = candidate(0, a=0, b=0), candidate(1, a=1, b=0), candidate(2, a=2, b=0)
    assert merged(one, other, start, key_of) is None
    same = candidate(3, a=1, b=3)
    assert merged(one, same, start, key_of) is None
    assert merged(same, one, start, key_of) is None


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=5))
def test_a_merge_has_only_values_of_the_two_and_differs_from_both(rows: list[tuple[int, int, int]]) -> None:
    names = [f"p{i}" for i in range(len(rows))]
    start, one, other = (candidate(n, **dict(zip(names, column, strict=True))) for n, column in enumerate(zip(*rows, strict=True)))  # fmt: skip
    values = merged(one, other, start, key_of)
    if values is None:
        return
    assert values not in (one.values, other.values)
    for name, value in values.items():
        assert value in (one.values[name], other.values[name])
        changed = [c.values[name] for c in (one, other) if c.values[name] != start.values[name]]
        assert value in (changed or [start.values[name]])


def test_ancestors_are_all_that_a_candidate_comes_from_by_every_parent() -> None:
    known = {**family(), 4: candidate(4, (1, 3), a=1, b=2, c=3)}
    assert ancestors(known, 4) == {0, 1, 2, 3, 4}
    assert ancestors(known, 0) == {0}


def test_the_pair_that_promises_most_is_merged_through_its_latest_common_ancestor() -> None:
    known = family()
    known[4] = candidate(4, (2,), a=4, b=2, c=0)
    rows = {1: [1.0, 0, 0, 0], 3: [0.0, 1, 1, 0], 4: [0.0, 1, 0, 0.5]}
    merge = Merger().find(known, rows, key_of)
    assert merge is not None
    assert (merge.base.id, merge.other.id, merge.ancestor.id) == (3, 1, 0)
    merge = Merger(tried={(1, 3), (1, 4)}).find(known, rows, key_of)
    assert merge is not None
    assert (merge.base.id, merge.other.id, merge.ancestor.id) == (3, 4, 2)
    assert merge.values == {"a": 4, "b": 2, "c": 3}


def test_a_candidate_is_not_merged_with_what_it_comes_from() -> None:
    known = family()
    assert Merger().find(known, {2: [1.0, 0.0], 3: [0.0, 1.0]}, key_of) is None


def test_two_of_which_one_is_better_everywhere_are_not_merged() -> None:
    assert Merger().find(family(), {1: [0.5, 0.0], 3: [0.5, 1.0]}, key_of) is None


def test_values_that_were_tried_are_not_made_again() -> None:
    known = family()
    known[9] = candidate(9, (0,), a=1, b=2, c=3)
    assert Merger().find(known, {1: [1.0, 0.0], 3: [0.0, 1.0]}, key_of) is None


def chances(merger: Merger) -> float:
    return sum(merger.pays(random.Random(seed)) for seed in range(400)) / 400


def test_merges_are_tried_as_often_as_they_have_paid_compared_with_proposals() -> None:
    assert 0.4 < chances(Merger()) < 0.6
    poor, rich = Merger(), Merger()
    for _ in range(8):
        for merger in (poor, rich):
            merger.observe(merge=False, accepted=False)
        poor.observe(merge=True, accepted=False)
        rich.observe(merge=True, accepted=True)
    poor.observe(merge=False, accepted=True)
    poor.observe(merge=False, accepted=True)
    assert chances(poor) < 0.3 < 0.9 < chances(rich)


def test_what_a_merger_has_learned_survives_as_json() -> None:
    merger = Merger(tried={(2, 5)})
    merger.observe(merge=True, accepted=True)
    merger.observe(merge=False, accepted=False)
    merger.observe(merge=False, accepted=False)
    again = Merger.of(json.loads(json.dumps(merger.state())))
    assert again == merger
    assert Merger.of({}) == Merger()
