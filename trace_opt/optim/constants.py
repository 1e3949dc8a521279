"""Which constants of the recorded calls are part of the code and which are inputs that differ from example to example.

A short constant that is the same in every example is written into its line. Any other gets a name, and the same name
wherever calls with an argument of that name were given the same values.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from typing import Any

from trace_opt.optim.lines import Gap, Hole, Line, Part
from trace_opt.optim.text import literal

_INLINE_CHARACTERS = 40
_COMPARED_CHARACTERS = 2000  # values that agree this far are taken as the same

Place = tuple[int, str, str]
"""A course up to a line, the line's node and where in the line: the same point of the program in several examples."""


class Constants:
    """The constants of all examples' lines.

    Args:
        listings: The lines of each example.
        taken: Names that are in use.
    """

    def __init__(self, listings: Sequence[Sequence[Line | Gap]], taken: Container[str]) -> None:
        self._taken = taken
        self._listings = listings
        self._courses = _courses(listings)
        found = [_holes(lines, courses) for lines, courses in zip(listings, self._courses, strict=True)]
        self._texts = [
            {place: literal(value, _COMPARED_CHARACTERS) for place, value in holes.items()} for holes in found
        ]
        self._inline: dict[Place, str] = {}
        self._names: dict[Place, str] = {}
        self._values: list[dict[str, Any]] = [{} for _ in listings]
        for place in dict.fromkeys(place for holes in found for place in holes):
            self._settle(place)
        for i, holes in enumerate(found):
            for place, value in holes.items():
                if place in self._names:
                    self._values[i].setdefault(self._names[place], value)

    def texts(self, example: int) -> list[str]:
        """The lines of one example with every constant in its place."""
        return [
            line.text if isinstance(line, Gap) else "".join(self._filled(part, course) for part in line.parts)
            for line, course in zip(self._listings[example], self._courses[example], strict=True)
        ]

    def inputs(self, example: int) -> Mapping[str, Any]:
        """The named constants of one example."""
        return self._values[example]

    def _filled(self, part: Part, course: int) -> str:
        if isinstance(part, str):
            return part
        place = (course, part.node, part.place)
        return self._inline[place] if place in self._inline else self._names[place]

    def _settle(self, place: Place) -> None:
        texts = {i: known[place] for i, known in enumerate(self._texts) if place in known}
        distinct = set(texts.values())
        if len(distinct) == 1 and len(text := distinct.pop()) <= _INLINE_CHARACTERS:
            self._inline[place] = text
            return
        base = _base(place[2])
        number = 1
        while True:
            name = f"{base}_{number}"
            number += 1
            if name not in self._taken and self._fits(name, texts, is_named=base != "value"):
                self._names[place] = name
                return

    def _fits(self, name: str, texts: Mapping[int, str], *, is_named: bool) -> bool:
        """Whether a name is free, or stands for the same values in the examples that have both."""
        held = [place for place, known in self._names.items() if known == name]
        if not held:
            return True
        both = [(self._texts[i].get(place), text) for place in held for i, text in texts.items()]
        shared = [(a, b) for a, b in both if a is not None]
        return all(a == b for a, b in shared) and (bool(shared) or is_named)


def structure(line: Line | Gap) -> Any:
    """What a line says without its constants."""
    if isinstance(line, Gap):
        return line
    return tuple(part if isinstance(part, str) else (part.node, part.place) for part in line.parts)


def _courses(listings: Sequence[Sequence[Line | Gap]]) -> list[list[int]]:
    """For each line of each example a number for all that was said up to there: equal where two are at one point.

    A constant of a branch stands at a point of its own, so it is never taken for an input that differs.
    """
    known: dict[Any, int] = {}
    courses: list[list[int]] = []
    for lines in listings:
        course, numbers = -1, list[int]()
        for line in lines:
            course = known.setdefault((course, structure(line)), len(known))
            numbers.append(course)
        courses.append(numbers)
    return courses


def _holes(lines: Sequence[Line | Gap], courses: Sequence[int]) -> dict[Place, Any]:
    return {
        (course, part.node, part.place): part.value
        for line, course in zip(lines, courses, strict=True)
        if isinstance(line, Line)
        for part in line.parts
        if isinstance(part, Hole)
    }


def _base(place: str) -> str:
    """A name for a constant: its argument's, unless that is an operator's side or a position."""
    words = re.match(r"[^\W\d]\w*", place)
    name = words[0] if words else ""
    keyword = re.fullmatch(r"kwargs\['(\w+)'\]", place)
    if keyword:
        return keyword[1]
    return "value" if name in ("", "a", "b", "args", "value") else name
