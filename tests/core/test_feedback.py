"""What counts as feedback."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.feedback import Feedback
from trace_opt.errors import FeedbackError


@pytest.mark.parametrize(
    ("given_score", "expected"),
    [(1, 1.0), (True, 1.0), (0.5, 0.5), (np.float64(2), 2.0), (np.int64(3), 3.0), (torch.tensor(4.0), 4.0)],
    ids=range(6),
)
def test_a_score_is_a_finite_number(given_score: Any, expected: float) -> None:
    assert Feedback(given_score).value == expected
    assert type(Feedback(given_score).value) is float


@pytest.mark.parametrize(
    "score", [math.nan, math.inf, -math.inf, "1", [1], {}, {"a": math.nan}, {"a": None}], ids=range(8)
)
def test_anything_else_is_refused(score: Any) -> None:
    with pytest.raises(FeedbackError):
        Feedback(score)


def test_the_first_entry_of_several_decides() -> None:
    feedback = Feedback({"accuracy": True, "length": 0.1})
    assert (feedback.value, feedback.scores) == (1.0, {"accuracy": 1.0, "length": 0.1})
    assert Feedback(2.0).scores == {"score": 2.0}
    assert (Feedback(text="x").value, Feedback(text="x").scores) == (None, {})


@given(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**60), 2**60), st.booleans()))
def test_of_takes_a_bare_number(score: Any) -> None:
    assert Feedback.of(score).value == float(score)


def test_of_takes_text_dicts_and_feedback() -> None:
    feedback = Feedback(1.0)
    assert Feedback.of(feedback) is feedback
    assert (Feedback.of("too long").text, Feedback.of("too long").score) == ("too long", None)
    assert Feedback.of({"a": 1}).scores == {"a": 1.0}
    assert Feedback.of(np.float32(0.5)).value == 0.5


@pytest.mark.parametrize(
    "given_value", [None, [1], object, np.array([1, 2]), torch.ones(2), 10**400, pytest.param(10**5000, id="no repr")]
)
def test_of_refuses_what_is_no_feedback(given_value: Any) -> None:
    with pytest.raises(FeedbackError):
        Feedback.of(given_value)
