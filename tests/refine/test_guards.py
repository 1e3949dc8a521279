"""What policies are held to: completions that are no text, divergence, and one sentence whatever the task."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.refine.tables import Table
from trace_opt.refine.guards import PolicyGuards, Watch, distinct_completions, distinct_share, exact

PLACES = [f"place {i}" for i in range(8)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Open the red door first.", ""),
        ("", "empty"),
        (" ... !", "empty"),
        ("take take take take", "repetition"),
        ("Take TAKE take, the door", ""),
        ("take the take the take", "repetition"),
        ("one two three four five six seven", "length"),
    ],
)
def test_a_completion_that_is_no_plain_text_is_named(text: str, said: str) -> None:
    """Distinct words over words are held to .6, case and punctuation apart."""
    assert PolicyGuards(longest=6).objection(text) == said


def test_it_earns_nothing_good() -> None:
    """What is bad of it stays bad, so that saying nothing is no way out."""
    assert PolicyGuards().held(["", "empty", "repetition", "empty"], [0.5, 0.5, 0.9, -0.3]) == [0.5, 0.0, 0.0, -0.3]


@given(st.lists(st.tuples(st.sampled_from(["", "empty"]), st.floats(-9, 9))))
def test_no_reward_is_ever_raised(rows: list[tuple[str, float]]) -> None:
    held = PolicyGuards().held([said for said, _ in rows], [reward for _, reward in rows])
    assert all(
        after == before if not said else after <= min(0, before)
        for (said, before), after in zip(rows, held, strict=True)
    )


def test_the_price_of_divergence_rises_beyond_the_limit_and_falls_far_below_it() -> None:
    guards = PolicyGuards(kl=1.0)
    assert guards.price(0.0, 2.0, 0.0) > 0
    assert guards.price(0.1, 2.0, 0.02) == pytest.approx(0.15)
    assert guards.price(0.1, 0.7, 0.02) == 0.1
    assert guards.price(0.1, 0.2, 0.02) == pytest.approx(0.08)
    assert guards.price(0.02, 0.2, 0.02) == 0.02
    assert guards.price(0.1, None, 0.02) == 0.1
    assert PolicyGuards(kl=1.0, beyond="stop").price(0.1, 5.0, 0.0) == 0.1


def test_exact_rewards_want_all_the_words_and_no_others() -> None:
    assert exact("Room 1: RED.", ["room 1 red"]) == 1
    assert exact("room 1: red door", ["room 1 red"]) == 0
    assert exact("redden", ["red"]) == 0
    assert exact("b", ["a", "b"]) == 1
    assert exact("", []) == 0


def test_texts_are_told_apart_by_how_they_begin() -> None:
    """Sentences of a collapsed policy differ in their ends, if at all."""
    start = "Instead of immediately taking action, the agent should take a step"
    assert distinct_share([f"{start} back", f"{start} forward", f"{start.upper()}!"]) == pytest.approx(1 / 3)
    assert distinct_share(["left", "right"]) == 1
    assert distinct_share([]) == 0


def test_a_policy_that_always_says_the_same_is_seen() -> None:
    """Completions of different prompts, by the likeliest tokens: one of eight of a collapsed policy, all of one that looks."""
    collapsed = Table(["stop", "go"], start=(3.0, 0.0))
    assert distinct_completions(collapsed, PLACES) == 1 / 8
    looking = Table(PLACES, 8, lambda prompt: int(str(prompt)[-1]))
    looking.logits.data += 4 * looking.logits.new_ones(8).diag()
    assert distinct_completions(looking, PLACES) == 1


def watched(policy: Table, prompts: list[str]) -> Watch:
    watch = Watch()
    for prompt in prompts:
        drawn = policy.sample([prompt], 2)
        watch.completed(drawn, ["", "empty"])
    return watch


def test_a_verdict_names_each_guard_that_objects() -> None:
    policy = Table(["stop", "go"], start=(3.0, 0.0))
    watch = watched(policy, PLACES)
    watch.k1, watch.k3 = 2.0, 3.0
    found, named = watch.verdict(PolicyGuards(kl=1.0, repeated=0.4), policy)
    assert [said.split(":")[0] for said in named] == ["distinct completions", "repetition and length", "divergence"]
    assert found["distinct"] == 1 / 8
    assert found["objections"] == {"empty": 8}
    assert (found["k1"], found["k3"]) == (2.0, 3.0)
    assert watch.verdict(PolicyGuards(distinct=0.1), policy)[1] == []


def test_draws_that_come_to_open_alike_are_seen_where_they_did_not_before() -> None:
    """A language model's collapsed sentences differ in what follows; a form that it always had is no collapse."""
    free = Table([f"{word} {i} it" for i, word in enumerate("abcdefgh")])
    alike = Table([f"Instead of {i}, the agent should {word}" for i, word in enumerate("abcdefgh")])
    alike.logits.data += 9 * torch.eye(8)[[0]]
    looking = Table([f"instead of {i} {word} it" for i, word in enumerate("abcdefgh")], 8, lambda p: int(str(p)[-1]))
    looking.logits.data += 9 * torch.eye(8)
    watch = watched(free, PLACES)
    watch.objections.clear()
    before, same = watch.openings(free), watch.openings(looking)
    assert before is not None
    assert before >= 0.5
    assert same == 1 / 16
    [said] = watch.verdict(PolicyGuards(), looking, before)[1]
    assert "begins the same way whatever the task" in said
    assert watch.verdict(PolicyGuards(), looking, same)[1] == []
    assert watch.verdict(PolicyGuards(distinct=0.0), looking, before)[1] == []
    assert "says the same whatever the task" in watch.verdict(PolicyGuards(), alike, before)[1][0]


def test_a_few_prompts_say_nothing_of_collapse() -> None:
    """Two tasks may deserve the same answer, and the same task seen again does."""
    policy = Table(["stop", "go"], start=(3.0, 0.0))
    assert watched(policy, PLACES[:3] * 5).verdict(PolicyGuards(), policy)[1] == []


def test_a_watch_goes_through_data_and_keeps_the_last_prompts() -> None:
    policy = Table(["stop", "go"])
    watch = watched(policy, [f"place {i}" for i in range(40)])
    assert len(watch.prompts) == 16
    assert watch.prompts[-1] == '"place 39"'
    again = Watch.load(watch.dump())
    assert again.dump() == watch.dump()
    again.completed(policy.sample(["more"]), [""])
    assert again.seen == watch.seen + 1


@pytest.mark.parametrize(
    "options",
    [
        {"distinct_words": 1.1},
        {"distinct": -0.1},
        {"repeated": 2.0},
        {"longest": 0},
        {"longest": 1.5},
        {"kl": 0.0},
        {"beyond": "end"},
    ],
)
def test_limits_out_of_their_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PolicyGuards(**options)  # pyright: ignore[reportArgumentType]
