"""What a proposed text must not do."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.errors import ProblemError
from trace_opt.search.guards import Guards, Recited, texts

STORY = "the ferry to the northern island leaves from pier nine at half past six every second morning"


def objection(guards: Guards, start: object, value: object, examples: object = ()) -> str:
    return guards.objection("prompt", start, value, guards.phrases(list(examples)))  # type: ignore[call-overload]


def test_a_text_may_not_grow_beyond_the_limit() -> None:
    guards = Guards(longest=10)
    assert objection(guards, "short", "x" * 10) == ""
    assert objection(guards, "short", "x" * 11) == "'prompt' has 11 characters; at most 10 are allowed"


def test_a_text_may_be_as_long_as_it_began() -> None:
    assert objection(Guards(longest=10), "y" * 15, "x" * 15) == ""
    assert "at most 15" in objection(Guards(longest=10), "y" * 15, "x" * 16)


def test_a_placeholder_of_the_start_must_stay() -> None:
    said = objection(Guards(), "Answer {question} for {user.name}.", "Answer {question} well.")
    assert said == "'prompt' lost '{user.name}'; keep that letter for letter"
    assert objection(Guards(), "Answer {question}.", "{question}\nThink first.") == ""
    assert objection(Guards(placeholders=False), "Answer {question}.", "Answer.") == ""


def test_braces_that_are_no_placeholder_may_go() -> None:
    assert objection(Guards(), 'Give {"a": 1} and {{literal}} and {}.', "Give JSON.") == ""


def test_a_protected_span_must_stay_wherever_it_stood() -> None:
    guards = Guards(spans=("Never name a price.",))
    assert "lost 'Never name a price.'" in objection(guards, "Be kind. Never name a price.", "Be kind.")
    assert objection(guards, "Be kind.", "Be very kind.") == ""


def test_a_text_that_recites_a_training_example_is_refused() -> None:
    said = objection(Guards(), "Be brief.", f"Remember: {STORY.upper()}!", [{"text": STORY, "label": 3}])
    assert "recites a training example" in said
    assert "state a rule instead" in said
    assert "the ferry to the northern" in said


def test_a_short_quotation_is_no_recital() -> None:
    value = "Treat ferry questions like: the ferry to the northern island leaves from somewhere."
    assert objection(Guards(), "Be brief.", value, [{"text": STORY}]) == ""


def test_a_short_example_counts_when_it_is_recited_whole() -> None:
    examples = [{"q": "who wrote the red book", "a": "Ann"}, {"q": "Ann", "a": "Ben Okri"}]
    assert "who wrote the red book" in objection(Guards(), "", "If asked who wrote the red book, say Ann.", examples)
    assert objection(Guards(), "", "Say Ben Okri.", examples) == ""


def test_what_the_start_already_said_may_be_said_again() -> None:
    assert objection(Guards(), f"Known: {STORY}", f"Known for sure: {STORY}", [{"text": STORY}]) == ""


def test_what_many_examples_say_is_no_secret_of_one() -> None:
    asked = "which of the following eight answers is the right one for the question given below"
    examples = [{"q": f"{asked} {i}"} for i in range(5)]
    assert objection(Guards(), "", f"You will be asked {asked}.", examples) == ""


def test_what_is_no_text_passes() -> None:
    assert objection(Guards(longest=1), 3, 12345) == ""
    assert objection(Guards(longest=1), "a", None) == ""


def test_nothing_is_looked_for_where_no_limit_is_set() -> None:
    guards = Guards(longest=None, placeholders=False, recited=None)
    assert guards.phrases([STORY]) is None
    assert objection(guards, "{a}", STORY * 500, [STORY]) == ""


@pytest.mark.parametrize("options", [{"longest": 0}, {"recited": 3}])
def test_limits_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ProblemError, match="too small"):
        Guards(**options)  # type: ignore[arg-type]


def test_texts_are_found_in_whatever_an_example_is_made_of() -> None:
    @dataclass
    class Case:
        question: str
        parts: tuple[object, ...]

    assert list(texts({"a": Case("one", ("two", {"b": ["three"]}, 4))})) == ["one", "two", "three"]
    loop: list[object] = ["deep"]
    loop.append(loop)
    assert set(texts(loop)) == {"deep"}


words = st.lists(
    st.sampled_from(["red", "blue", "tall", "small", "fish", "tree", "house", "stone"]), min_size=1, max_size=30
)


@given(words, words, st.integers(4, 8))
def test_a_recital_is_found_exactly_where_a_run_of_words_is_shared(one: list[str], other: list[str], size: int) -> None:
    def runs(items: list[str], length: int) -> set[tuple[str, ...]]:
        return {tuple(items[i : i + length]) for i in range(len(items) - length + 1)}

    length = min(size, len(one)) if len(one) >= 4 else size
    expected = bool(runs(one, length) & runs(other, length))
    assert bool(Recited([" ".join(one)], size).found(" ".join(other))) == expected
