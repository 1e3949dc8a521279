"""What counts as a number: neither truth values nor NaN, and whole numbers of any size."""

from __future__ import annotations

from typing import Any

import pytest

from trace_opt.core.numbers import is_number, is_whole


@pytest.mark.parametrize(
    ("given", "number", "whole"),
    [
        (1, True, True), (0, True, False), (10**400, True, True), (1.0, True, False), (float("inf"), True, False),
        (float("nan"), False, False), (True, False, False), ("1", False, False), (None, False, False),
    ],
)  # fmt: skip
def test_a_number_is_told_from_what_python_takes_for_one(given: Any, number: bool, whole: bool) -> None:
    assert (is_number(given), is_whole(given)) == (number, whole)


def test_the_least_is_included() -> None:
    assert is_whole(0, least=0)
    assert not is_whole(-1, least=0)
