"""Unified diffs as models write them, applied strictly: what a hunk says of the text must be in the text.

Models count lines badly and leave out what stands in a hunk's heading, so the numbers only help to choose between several
places; the lines themselves have to be there, letter for letter but for space at their ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_HEADING = re.compile(r"@@(?: -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@.*|.*)$")
_FILES = re.compile(r"(?:--- |\+\+\+ |diff |index |new file|deleted file|\*\*\* )")


@dataclass(slots=True)
class _Hunk:
    """One change: where it says that its lines stand, and the lines, each behind its mark."""

    start: int | None
    lines: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    @property
    def old(self) -> list[str]:
        """The lines that must be there, without space at their ends."""
        return [text.rstrip() for mark, text in self.lines if mark != "+"]

    def new(self, found: list[str]) -> list[str]:
        """The lines in place of those found; what only shows the place stays as it was found."""
        rest = iter(found)
        kept = [(mark, text if mark == "+" else next(rest)) for mark, text in self.lines]
        return [text for mark, text in kept if mark != "-"]


def is_diff(text: str) -> bool:
    """Whether a text is a unified diff and no Python: it has a heading, and lines that add or take away."""
    lines = text.strip("\n").split("\n")
    headed = any(line.startswith("@@") for line in lines) or (
        any(line.startswith("--- ") for line in lines[:3]) and any(line.startswith("+++ ") for line in lines[:4])
    )
    return headed and any(line[:1] in ("+", "-") for line in lines)


def patched(source: str, diff: str) -> str:
    """A text with a diff applied.

    Args:
        source: The text.
        diff: Its unified diff, with or without the lines that name files.

    Returns:
        The new text.

    Raises:
        ValueError: it has no hunk, or one does not fit the text; the message says which line.
    """
    lines = source.removesuffix("\n").split("\n")
    shift, least = 0, 0
    hunks = _hunks(diff)
    if not hunks:
        raise ValueError("the diff has no hunk; begin each with @@, or give the whole text")
    for number, hunk in enumerate(hunks, 1):
        at = _place(lines, hunk, number, shift, least)
        count = len(hunk.old)
        new = hunk.new(lines[at : at + count])
        lines[at : at + count] = new
        shift += len(new) - count
        least = at + len(new)
    return "\n".join(lines) + "\n"


def _hunks(diff: str) -> list[_Hunk]:
    found: list[_Hunk] = []
    headed = False
    for number, line in enumerate(diff.strip("\n").split("\n"), 1):
        heading = _HEADING.match(line) if line.startswith("@@") else None
        if heading or (headed and not found and line.strip()):
            found.append(_Hunk(int(heading[1]) if heading and heading[1] else None))
            if heading:
                continue
        if not found or (not found[-1].lines and _FILES.match(line)):
            headed = headed or line.startswith("+++ ")
            continue
        _add(found[-1], line, number)
    return [_trimmed(hunk) for hunk in found if any(mark != " " for mark, _ in hunk.lines)]


def _add(hunk: _Hunk, line: str, number: int) -> None:
    mark, rest = line[:1], line[1:]
    if mark == "\\":
        return
    if mark not in ("", " ", "+", "-"):
        raise ValueError(f"line {number} of the diff (`{line[:80]}`) begins with none of space, + and -")
    hunk.lines.append((mark or " ", rest))


def _trimmed(hunk: _Hunk) -> _Hunk:
    """A hunk without the empty lines at its end that only close the text it came in."""
    while hunk.lines and hunk.lines[-1][0] == " " and not hunk.lines[-1][1].strip():
        hunk.lines.pop()
    return hunk


def _place(lines: list[str], hunk: _Hunk, number: int, shift: int, least: int) -> int:
    """Where a hunk's old lines stand, behind those changed before."""
    old = hunk.old
    if not old:
        if hunk.start is None:
            raise ValueError(
                f"hunk {number} of the diff only adds lines and does not say where; show a line around them"
            )
        return min(len(lines), max(least, hunk.start + shift))
    have = [line.rstrip() for line in lines]
    places = [i for i in range(least, len(have) - len(old) + 1) if have[i : i + len(old)] == old]
    if not places:
        lost = next((line for line in old if line not in have), None)
        why = (
            f"the text has no line `{lost.strip()[:100]}`"
            if lost is not None
            else "its lines do not follow each other so"
        )
        raise ValueError(
            f"hunk {number} of the diff does not fit: {why}; give the whole text, or show its lines exactly"
        )
    if len(places) > 1 and hunk.start is None:
        raise ValueError(f"hunk {number} of the diff fits {len(places)} places; show more lines around it")
    wanted = places[0] if hunk.start is None else hunk.start - 1 + shift
    return min(places, key=lambda place: abs(place - wanted))
