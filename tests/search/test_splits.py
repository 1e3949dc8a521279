"""Which examples are learned from, chosen by and judged by."""

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.errors import ProblemError
from trace_opt.search.splits import FEWEST, rollout_seed, split


def examples(n: int) -> list[dict[str, Any]]:
    return [{"q": i, "a": i % 3} for i in range(n)]


@given(st.lists(st.integers(0, 60), min_size=FEWEST, max_size=120), st.integers(0, 5))
def test_a_split_loses_nothing_and_keeps_equal_examples_together(numbers: list[int], seed: int) -> None:
    data = split(numbers, None, None, seed)
    parts = [[data.examples[n] for n in part] for part in (data.train, data.val, data.test)]
    if not data.shared:
        assert Counter(numbers) == Counter(n for part in parts for n in part)
        assert not set(parts[0]) & set(parts[1])
    assert not set(parts[0]) & set(parts[2])
    assert parts[0]


def test_the_shares_are_60_20_20_and_the_seed_decides() -> None:
    data, again, other = (split(examples(200), None, None, seed) for seed in (1, 1, 2))
    assert (len(data.train), len(data.val), len(data.test)) == (120, 40, 40)
    assert data.examples == again.examples
    assert data.examples != other.examples


def test_a_val_set_is_split_off_where_only_test_is_given() -> None:
    data = split(examples(100), None, [{"q": -1, "a": 0}], 0)
    assert (len(data.train), len(data.val), len(data.test)) == (75, 25, 1)


def test_with_fewer_than_20_examples_nothing_is_split_off_and_nothing_is_claimed() -> None:
    data = split(examples(FEWEST - 1), None, None, 0)
    assert data.shared
    assert len(data.test) == 0
    assert any("nothing is claimed" in note for note in data.notes)


def test_the_same_list_as_train_and_val_is_counted_once() -> None:
    given_examples = examples(30)
    data = split(given_examples, given_examples, None, 0)
    assert data.shared
    assert len(data.examples) == 30


def test_a_test_example_that_is_also_trained_on_is_reported() -> None:
    data = split(examples(5), examples(5)[:2], examples(7)[4:], 0)
    assert any("1 of 3 test examples stand in train or val" in note for note in data.notes)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "train is empty; optimize needs at least one example to propose from"),
        ("a text", "train is 'a text'; give a list"),
        (None, "train is None; give a list"),
        (7, "train is 7; give a list"),
    ],
)
def test_a_training_set_that_is_none_is_refused(train: Any, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        split(train, None, None, 0)


def test_an_empty_val_or_test_set_is_refused() -> None:
    with pytest.raises(ProblemError, match="val is empty; leave it out"):
        split(examples(3), [], None, 0)


@given(st.integers(1, 40), st.integers(1, 12))
def test_minibatches_pass_through_all_examples_before_one_comes_again(count: int, size: int) -> None:
    data = split(examples(count), examples(count), None, 0)
    taken = [n for step in range(1 + count // min(size, count)) for n in data.minibatch(5, step, 0, size)]
    once = taken[: count - count % min(size, count)]
    assert len(set(once)) == len(once)
    assert all(len(set(data.minibatch(5, s, 1, size))) == min(size, count) for s in range(9))


def test_slots_of_one_step_get_minibatches_of_their_own() -> None:
    data = split(examples(100), None, None, 0)
    assert data.minibatch(0, 3, 0, 8) != data.minibatch(0, 3, 1, 8)


def test_seeds_differ_by_example_and_repeat_and_not_by_candidate_or_process() -> None:
    data = split(examples(9), None, None, 0)
    seeds = [rollout_seed(4, key, repeat) for key in data.keys for repeat in range(3)]
    assert len(set(seeds)) == 27
    code = (
        "from trace_opt.search.splits import split, rollout_seed\n"
        "d = split([{'q': i, 'a': i % 3} for i in range(9)], None, None, 0)\n"
        "print([rollout_seed(4, key, r) for key in d.keys for r in range(3)])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(seeds)


def test_objects_without_a_text_of_their_own_count_as_distinct() -> None:
    class Thing:
        pass

    data = split([Thing() for _ in range(30)], None, None, 0)
    assert len(set(data.keys)) == 30


def test_examples_are_named_by_their_part_in_messages() -> None:
    data = split(examples(3), examples(2), examples(4), 0)
    assert [data.name(n) for n in (0, 3, 5, 8)] == [
        "train example 0",
        "val example 0",
        "test example 0",
        "test example 3",
    ]
