"""Diffs as models write them: applied where they fit, refused with the line where they do not."""

from __future__ import annotations

import difflib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.code import diff
from trace_opt.optim.patch import is_diff, patched

TEXT = "def f(x):\n    a = 1\n    b = 2\n    a = 1\n    return a + b + x\n"
CHANGE = "@@ -2,3 +2,3 @@\n     a = 1\n-    b = 2\n+    b = 3\n     a = 1\n"
lines = st.lists(st.sampled_from(["a", "b", "    c", "", "d = 1", "@@", "--- x", "-", "+"]), min_size=1, max_size=12)


@given(lines, lines)
def test_the_diff_shown_is_the_diff_applied(old: list[str], new: list[str]) -> None:
    before, after = "\n".join(old) + "\n", "\n".join(new) + "\n"
    shown = diff(before, after, "f")
    if shown and before.strip() and after.strip():
        assert patched(before, shown) == after


@pytest.mark.parametrize(
    "given_diff",
    [
        CHANGE,
        f"--- f\n+++ f\n{CHANGE}",
        f"diff --git a/f b/f\nindex 1..2 100644\n--- a/f\n+++ b/f\n{CHANGE}",
        CHANGE.replace("@@ -2,3 +2,3 @@", "@@ -90,3 +90,3 @@"),
        CHANGE.replace("@@ -2,3 +2,3 @@", "@@"),
        CHANGE.replace("@@ -2,3 +2,3 @@", "@@ def f(x):"),
        "--- f\n+++ f\n     a = 1\n-    b = 2\n+    b = 3\n     a = 1\n",
        CHANGE.replace("a = 1\n", "a = 1   \n"),
        CHANGE + "\n\n",
        CHANGE + "\\ No newline at end of file\n",
    ],
    ids=["plain", "with files", "as git", "numbers wrong", "no numbers", "a name for numbers", "no heading", "spaces at ends",
         "empty lines after it", "no newline"],
)  # fmt: skip
def test_a_hunk_is_found_by_its_lines(given_diff: str) -> None:
    assert is_diff(given_diff)
    assert patched(TEXT, given_diff) == TEXT.replace("b = 2", "b = 3")


def test_of_several_places_the_one_nearest_to_the_number_is_changed() -> None:
    change = "-    a = 1\n+    a = 5\n"
    assert patched(TEXT, f"@@ -4 +4 @@\n{change}").splitlines()[3] == "    a = 5"
    assert patched(TEXT, f"@@ -2 +2 @@\n{change}").splitlines()[1] == "    a = 5"
    with pytest.raises(ValueError, match="fits 2 places"):
        patched(TEXT, f"@@\n{change}")


def test_later_hunks_stand_behind_earlier_ones() -> None:
    both = "@@ -1 +1,2 @@\n def f(x):\n+    # new\n@@ -5 +6 @@\n-    return a + b + x\n+    return a\n"
    assert patched(TEXT, both) == TEXT.replace("f(x):\n", "f(x):\n    # new\n").replace("return a + b + x", "return a")


@pytest.mark.parametrize(
    ("given_diff", "says"),
    [
        ("@@ -1 +1 @@\n-    c = 9\n+    c = 8\n", "the text has no line `c = 9`"),
        ("@@ -1 +1 @@\n-    b = 2\n-    b = 2\n+    c = 8\n", "do not follow each other"),
        ("@@\n+    c = 8\n", "does not say where"),
        ("@@ -1 +1 @@\nb = 2\n+b = 3\n", "begins with none of space"),
        ("--- f\n+++ f\n", "has no hunk"),
        ("@@ -1 +1 @@\n     a = 1\n", "has no hunk"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_line(given_diff: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        patched(TEXT, given_diff)


@pytest.mark.parametrize(
    "text", [TEXT, "x = -1\n", "- a list\n- of things", "+ 1", "", "--- a heading ---\nprose", "a @@ b"]
)
def test_code_and_prose_are_no_diff(text: str) -> None:
    assert not is_diff(text)


def test_python_s_own_diff_without_context_is_applied() -> None:
    new = TEXT.replace("b = 2", "b = 7")
    made = "".join(difflib.unified_diff(TEXT.splitlines(keepends=True), new.splitlines(keepends=True), "f", "f", n=0))
    assert patched(TEXT, made) == new
