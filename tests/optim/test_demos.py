"""Demonstration sets: what is shown, balanced how, in what order."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_opt.core.codec import canonical
from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Demonstrations, Parameter
from trace_opt.core.rollout import Rollout, Rollouts
from trace_opt.optim.base import Outcome, Proposal, Trial
from trace_opt.optim.demos import Demos, class_key, label_key


def labelled(per_class, classes=3):
    return [{"text": f"text {c}.{i}", "topic": f"topic {c}"} for i in range(per_class) for c in range(classes)]


def shown(k=6, examples=()):
    return Parameter(Demonstrations(k, tuple(examples)), name="shown")


def ran(examples, outputs, scores):
    return [
        Rollout(example=e, output=o, feedback=Feedback(s)) for e, o, s in zip(examples, outputs, scores, strict=True)
    ]


def family(parameter, train, *, rollouts=(), seed=0, **options):
    given_rollouts = Rollouts(rollouts, train=train, seed=seed)
    return asyncio.run(Demos(**options).family([parameter], given_rollouts, []))[parameter.name]


def propose(parameter, train, *, rollouts=(), seed=0, history=(), **options):
    given_rollouts = Rollouts(rollouts, train=train, seed=seed)
    return asyncio.run(Demos(**options).propose([parameter], given_rollouts, list(history)))


def trial(parameter, value):
    return Trial("Demos", {parameter.name: parameter.initial}, Proposal({parameter.name: value}), Outcome(0, 0, False))


def texts(demonstrations):
    return [example["text"] for example in demonstrations]


def test_only_demonstrations_are_handled():
    others = [Parameter("a", name="a"), Parameter("a", name="b", choices=["a", "b"]), Parameter(1.0, name="c")]

    assert [Demos().handles(p) for p in [shown(), *others]] == [True, False, False, False]


@given(classes=st.integers(2, 5), per_class=st.integers(1, 4), k=st.integers(0, 12), seed=st.integers(0, 99))
def test_every_set_of_a_family_shows_each_class_equally_often(classes, per_class, k, seed):
    train = labelled(per_class + 1, classes)

    for demonstrations in family(shown(k), train, seed=seed):
        counts = Counter(example["topic"] for example in demonstrations)
        assert len(set(counts.values())) == 1
        assert k < classes or len(counts) == classes


@given(n=st.integers(0, 9), k=st.integers(0, 6), sets=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_family_holds_distinct_sets_of_distinct_training_examples_within_the_limit(n, k, sets, seed):
    train = [{"text": f"t{i}", "answer": i} for i in range(n)]

    found = family(shown(k), train, seed=seed, sets=sets)

    assert len(found) <= sets
    assert len({canonical(demonstrations) for demonstrations in found}) == len(found)
    for demonstrations in found:
        assert 1 <= len(demonstrations) <= k == demonstrations.k
        assert len(set(texts(demonstrations))) == len(demonstrations)
        assert all(example in train for example in demonstrations)


@given(seed=st.integers(0, 2**32))
def test_the_seed_alone_decides_what_is_drawn(seed):
    train = labelled(5)

    assert family(shown(), train, seed=seed) == family(shown(), train, seed=seed)
    assert propose(shown(), train, seed=seed) == propose(shown(), train, seed=seed)


def test_another_seed_draws_other_sets():
    train = labelled(20)

    assert family(shown(), train, seed=1) != family(shown(), train, seed=2)


def test_several_rounds_over_the_classes_are_tried_where_the_limit_allows():
    sizes = {len(demonstrations) for demonstrations in family(shown(7), labelled(9), sets=8)}

    assert sizes == {3, 6}


def test_the_set_in_force_is_not_among_the_family():
    train = ["only"]

    assert family(shown(1), train) == [Demonstrations(1, ("only",))]
    assert family(shown(1, train), train) == []


def test_the_same_examples_in_another_order_are_another_set():
    train = labelled(2, classes=2)

    orders = {tuple(texts(d)) for d in family(shown(2), train, sets=8)}

    assert len(orders) == 8
    assert len({frozenset(order) for order in orders}) == 4


def test_without_training_examples_nothing_is_proposed():
    proposal = propose(shown(), [])

    assert not proposal.values
    assert proposal.reason == "there is no demonstration set left to try"


def test_by_hand_the_examples_of_the_rollouts_are_shown():
    examples = labelled(2)

    proposal = propose(shown(), [], rollouts=ran(examples, ["?"] * 6, [0.0] * 6))

    assert all(example in examples for example in proposal.values["shown"])


@given(per_class=st.integers(2, 3), seed=st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_no_set_is_proposed_twice_until_none_is_left(per_class, seed):
    train, parameter, history = labelled(per_class, classes=2), shown(2), []
    possible = 2 * per_class**2

    for i in range(possible):
        proposal = propose(parameter, train, seed=1000 * seed + i, history=history)
        history.append(trial(parameter, proposal.values["shown"]))

    assert len({canonical(t.proposal.values["shown"]) for t in history}) == possible
    assert not propose(parameter, train, seed=seed, history=history).values


@given(seed=st.integers(0, 500))
def test_a_change_to_a_balanced_set_leaves_it_balanced(seed):
    train = labelled(4)
    parameter = shown(3, train[:3])

    changed = propose(parameter, train, seed=seed).values["shown"]

    assert Counter(example["topic"] for example in changed) == {"topic 0": 1, "topic 1": 1, "topic 2": 1}


def test_a_small_change_starts_from_the_values_in_force():
    train = labelled(40)
    parameter = shown(3)
    incumbent = Demonstrations(3, tuple(train[60:63]))

    with in_force({"shown": incumbent}):
        kept = [
            len(set(texts(propose(parameter, train, seed=seed).values["shown"])) & set(texts(incumbent)))
            for seed in range(30)
        ]

    assert sum(count >= 2 for count in kept) >= 8


def test_several_parameters_get_sets_of_their_own_size():
    small, large = (Parameter(Demonstrations(k), name=f"of {k}") for k in (2, 4))

    found = asyncio.run(Demos(sets=3).family([small, large], Rollouts(train=labelled(5, classes=2)), []))

    assert [max(map(len, found[name])) for name in ("of 2", "of 4")] == [2, 4]


def test_some_sets_show_only_what_the_incumbent_gets_right():
    train = labelled(30)
    right = train[30:60]
    rollouts = ran(train, [e["topic"] if e in right else "?" for e in train], [float(e in right) for e in train])

    found = family(shown(3), train, rollouts=rollouts, sets=8)

    assert sum(all(example in right for example in demonstrations) for demonstrations in found) >= 4


def test_unlabelled_examples_are_shown_with_the_output_of_a_run_that_scored_well():
    train = [{"question": f"q{i}"} for i in range(6)]
    rollouts = ran(train, [f"a{i}" for i in range(6)], [0.0, 1.0, 0.0, 1.0, 0.0, 0.0])

    found = family(shown(2), train, rollouts=rollouts, labelled=False)

    assert {canonical(example) for d in found for example in d} == {
        canonical({"question": "q1", "output": "a1"}),
        canonical({"question": "q3", "output": "a3"}),
    }


def test_an_example_that_holds_the_output_already_is_shown_as_it_is():
    train = labelled(2)
    rollouts = ran(train, [e["topic"] for e in train], [1.0] * len(train))

    found = family(shown(3), train, rollouts=rollouts, labelled=False)

    assert found
    assert all(example in train for d in found for example in d)


def test_an_example_that_is_no_mapping_is_shown_beside_its_output():
    rollouts = ran(["2 + 2", "3 + 3"], [4, 7], [1.0, 0.0])

    assert family(shown(1), ["2 + 2", "3 + 3"], rollouts=rollouts, labelled=False) == [
        Demonstrations(1, (("2 + 2", 4),))
    ]


@pytest.mark.parametrize(("scores", "count"), [([0.0, 0.0], 0), ([1.0, 1.0], 2), ([-3.0, -3.0], 0), ([0.2, 0.9], 1)])
def test_without_a_threshold_good_is_above_the_mean_or_all_equal_and_positive(scores, count):
    train = [{"question": "q0"}, {"question": "q1"}]

    found = family(shown(1), train, rollouts=ran(train, ["a", "b"], scores), labelled=False)

    assert len(found) == count


def test_a_threshold_says_which_rollouts_are_good():
    train = [{"question": f"q{i}"} for i in range(4)]
    rollouts = ran(train, "abcd", [0.1, 0.5, 0.6, 0.9])

    found = family(shown(1), train, rollouts=rollouts, labelled=False, good=0.5)

    assert {d.examples[0]["question"] for d in found} == {"q1", "q2", "q3"}


def test_failed_rollouts_are_never_shown():
    failed = Rollout(example={"question": "q"}, feedback=Feedback(text="boom"), error="ValueError: boom")

    assert family(shown(1), [{"question": "q"}], rollouts=[failed], labelled=False) == []


def test_the_label_is_the_field_that_equals_the_outputs_of_good_rollouts():
    train = [{"label": "x", "kind": f"k{i % 2}", "text": str(i)} for i in range(6)]

    assert label_key(train, ran(train, [e["kind"] for e in train], [1.0] * 6)) == "kind"


def test_without_good_rollouts_the_label_is_found_by_its_usual_name():
    assert label_key([{"text": "t", "category": "c"}], []) == "category"


def test_a_true_answer_is_not_the_number_one():
    train = [{"flag": True, "count": 1}]

    assert label_key(train, ran(train, [1], [1.0])) == "count"


def test_an_answer_that_hardly_recurs_is_no_class():
    train = [{"question": str(i), "answer": i} for i in range(10)]

    assert class_key(train, "answer") is None


def test_without_a_known_label_the_last_field_that_recurs_is_the_class():
    train = [{"text": f"t{i}", "mood": "good" if i % 2 else "bad", "id": i} for i in range(8)]

    assert class_key(train, None) == "mood"


def test_pairs_are_balanced_by_their_second_item():
    train = [(f"text {i}", "ab"[i % 2]) for i in range(10)]

    for demonstrations in family(shown(4), train):
        assert len({Counter(label for _, label in demonstrations)[c] for c in "ab"}) == 1


@pytest.mark.parametrize("train", [["one", "two"], [[1], [2, 3]], [{"a": [1]}, {"b": {2}}], [None, float("nan")]])
def test_examples_of_any_shape_can_be_shown(train):
    assert family(shown(2), train, sets=4)


def test_duplicate_examples_are_shown_once():
    train = [{"text": "same", "topic": "x"}] * 5

    assert [len(d) for d in family(shown(4), train)] == [1]


def test_asking_for_no_sets_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="sets=0; ask for at least one"):
        Demos(sets=0)
