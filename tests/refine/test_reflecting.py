"""The prompt of a reflector, its budget, and what is taken from a reply."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.context import rollout
from trace_opt.core.feedback import Feedback
from trace_opt.core.strand import here
from trace_opt.core.tracer import record, trace
from trace_opt.errors import TraceError
from trace_opt.llm.base import Reply
from trace_opt.optim.text import tokens_in
from trace_opt.refine.rating import joined, recalled
from trace_opt.refine.reflecting import Hindsight, seed_of, seeded, text_of
from trace_opt.refine.trajectory import Mark


@trace
def look(place: str) -> str:
    return f"at {place}"


def part_of(places: list[str]) -> Any:
    with record():
        frame = here()
        assert frame is not None
        place = Mark.of(frame)
        for name in places:
            look(name)
        return place.part()


HOSTILE = st.text(max_size=300) | st.sampled_from(["# Task\n" * 40, "漢字" * 200, "0 1 2 " * 200, "\x00\ud800\u2028#"])


@given(
    HOSTILE | st.dictionaries(st.text(max_size=9), HOSTILE, max_size=4), st.lists(HOSTILE, max_size=30),
    st.lists(HOSTILE, max_size=5), HOSTILE, st.integers(200, 1500),
)  # fmt: skip
def test_a_prompt_fits_whatever_it_is_about(
    task: Any, places: list[str], memory: list[str], said: str, tokens: int
) -> None:
    """Task, attempt, advice, output and feedback of any kind together stay within `tokens`, and only our own headings
    stand at the margin."""
    hindsight = Hindsight(tokens=tokens)
    system, user = hindsight(task, part_of(places), said, Feedback(score=0.25, text=said), tuple(memory))
    assert tokens_in(user["content"]) <= tokens
    assert system["content"] == hindsight.instruction
    headings = [line for line in user["content"].split("\n") if line.startswith("#")]
    assert headings[-2:] == ["# Result", "# Advice for the next attempt"]
    assert len(headings) == len(set(headings))
    assert "return 0.25" in user["content"].split("\n")


def test_the_prompt_holds_all_that_fits() -> None:
    """A small attempt is shown whole, with the task, advice, what came of it, and the cue at the end."""
    (_, user) = Hindsight()("find it", part_of(["hall"]), ["hall"], Feedback(score=0, text="lost"), ("go\nnorth",))
    assert user["content"].split("\n") == [
        "# Task", "| find it", "", "# Earlier advice", "| go", "| north", "", "# What the agent did",
        "look_1 = look(place='hall') -> 'at hall'", "gave ['hall']", "", "# Result", "return 0", "| lost", "",
        "# Advice for the next attempt",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (" go \n", "go"),
        (Reply(text=" go"), "go"),
        (Reply(text="never", finish="refusal"), ""),
        (Reply(text="", finish="content_filter"), ""),
        (Reply(text="half", finish="length"), "half"),
    ],
)
def test_the_text_of_what_was_said(said: Any, text: str) -> None:
    """White space around it goes, a refusal says nothing, a cut reply says what it says."""
    assert text_of(said) == text


def test_what_is_no_text_is_refused() -> None:
    """The value is named, with what to return."""
    with pytest.raises(TraceError, match="the reflector gave 3"):
        text_of(3)


def test_memory_keeps_the_last() -> None:
    """None keeps all; empty reflections say nothing in the text."""
    assert recalled(["a", "b", "c"], 2) == ["b", "c"]
    assert recalled(["a"], 2) == ["a"]
    assert recalled(["a", "b", "c"], None) == ["a", "b", "c"]
    assert joined(["a", "", "b"]) == "a\nb"


def test_a_part_of_a_rollout_has_chance_of_its_own() -> None:
    """Within the block seed and stream are the part's, values the rollout's; afterwards all is as before."""
    with record({"x": 1}, 7, repeat=2):
        before = rollout().rng.random()
        with seeded(seed_of(7, "attempt", 1)):
            inner = rollout()
            assert inner.seed == seed_of(7, "attempt", 1) != 7
            assert (inner.values, inner.repeat) == ({"x": 1}, 2)
            drawn = [inner.rng.random() for _ in range(3)]
        assert rollout().seed == 7
        after = rollout().rng.random()
        with seeded(seed_of(7, "attempt", 1)):
            assert [rollout().rng.random() for _ in range(3)] == drawn
    with record({"x": 1}, 7):
        assert [rollout().rng.random() for _ in range(2)] == [before, after]
