"""From the text of a model's reply to the raw JSON values in it, without ever making one up.

The chain: the text as JSON; else the last complete object that holds an expected name; else a fenced block; else a
repair, of which only what stands in the text between its own quotes is believed. A reply that was cut gives only the
values that were complete. Every pass is linear in the text and nothing recurses into it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, cast

from trace_opt.errors import ReplyError
from trace_opt.optim.schema import REASONING, VALUES

MAX_CHARACTERS = 200_000
_MAX_REPAIRED = 25_000  # json_repair takes about 1.5 us a character, and a reply may cost 50 ms at most
_MAX_DEPTH = 100
_MAX_TRIED = 20

_TOKEN = re.compile(r'["{}\[\]]')
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SPACE = re.compile(r"\s*")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\r\n]*\r?\n(.*?)^[ \t]*(?:```|~~~)[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_THINK = re.compile(r"\s*<think(?:ing)?>")
_THOUGHT = re.compile(r"</think(?:ing)?>")


class Unreadable:
    """Stands for a value that JSON allows and that no one can use; says why."""

    __slots__ = ("why",)

    def __init__(self, why: str) -> None:
        self.why = why


@dataclass(frozen=True, slots=True)
class Extract:
    """What a reply's text holds.

    Attributes:
        values: Raw JSON values by expected name; an `Unreadable` where one is there and cannot be used.
        reason: The model's own words on why.
        unknown: Names in the answer that nothing is called.
        duplicates: Names that came twice; the last one counts.
        repaired: Whether the JSON was mended.
        lost: Why names that should be here are not, for the names of which that is known.
    """

    values: dict[str, Any]
    reason: str = ""
    unknown: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    repaired: bool = False
    lost: dict[str, str] = field(default_factory=dict[str, str])


def extract(text: str, names: Collection[str], *, is_cut: bool = False, exact: Collection[str] = ()) -> Extract:
    """The raw values that a reply gives for `names`.

    Args:
        text: The reply's text.
        names: The names that an answer may hold.
        is_cut: Whether the reply ended for lack of tokens.
        exact: Names whose values are taken from valid JSON only, since a mended text would not be the same code.

    Returns:
        Values, and in `lost` what was attempted and could not be read.

    Raises:
        ReplyError: it holds nothing like an answer: blank, prose, an unfinished thought, or nested beyond reason.
    """
    return _Reader(names, exact).read(text, is_cut=is_cut)


class _Reader:
    """One reading: the expected names, and the duplicate keys met on the way."""

    def __init__(self, names: Collection[str], exact: Collection[str] = ()) -> None:
        self.names = names
        self.exact = exact
        self.duplicates: list[str] = []
        self.decoder = json.JSONDecoder(strict=False, parse_int=_integer, object_pairs_hook=self._pairs)

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            keys = [key for key, _ in pairs]
            self.duplicates += [key for key in made if keys.count(key) > 1]
        return made

    def read(self, text: str, *, is_cut: bool) -> Extract:
        whole = text
        is_cut = is_cut or len(text) > MAX_CHARACTERS
        text = text[:MAX_CHARACTERS].lstrip("\ufeff").strip()
        if not text:
            raise ReplyError("the reply is empty; ask again or raise max_tokens", reply=whole)
        text = self._after_thought(text, whole)
        try:
            spans, open_at = _objects(text)
        except RecursionError:
            raise ReplyError(f"the reply nests deeper than {_MAX_DEPTH} levels; it was not read", reply=whole) from None
        if is_cut and open_at is not None:
            return self._from_cut(text, open_at)
        is_json, data = self._loads(text)
        if isinstance(data, str):
            is_json, data = self._loads(data)
        found = data if self._is_answer(data) else None
        if found is None and is_json:
            return self._nothing(f"it is {_kind(data)}, not an object that holds {self._some_names()}")
        if found is None:
            found = self._last_answer([text[start:end] for start, end in spans])
        if found is None:
            found = self._last_answer([match[1] for match in _FENCE.finditer(text)])
        return self._picked(found) if found is not None else self._repaired(text, whole)

    def _after_thought(self, text: str, whole: str) -> str:
        """The text behind a model's thinking."""
        opened = _THINK.match(text)
        closed = _THOUGHT.search(text) if opened or not self._loads(text)[0] else None
        if opened and closed is None:
            raise ReplyError("the reply ends inside the model's own thinking; raise max_tokens", reply=whole)
        # a template may write the opening mark itself, so that the reply holds only the closing one
        return text[closed.end() :].strip() if closed and (opened or "{" in text[closed.end() :]) else text

    def _loads(self, text: str) -> tuple[bool, Any]:
        try:
            data, end = self.decoder.raw_decode(text, _skip(text, 0))
        except (ValueError, RecursionError):
            return False, None
        return (True, data) if _skip(text, end) == len(text) else (False, None)

    def _is_answer(self, data: Any) -> bool:
        if not isinstance(data, dict):
            return False
        found = cast("dict[str, Any]", data)
        return self._is_nested(found) or any(name in found for name in self.names)

    def _is_nested(self, found: dict[str, Any]) -> bool:
        inner = found.get(VALUES)
        if not isinstance(inner, dict):
            return False
        return VALUES not in self.names or any(name in inner for name in self.names)

    def _last_answer(self, texts: list[str]) -> dict[str, Any] | None:
        likely = [text for text in texts if f'"{VALUES}"' in text or any(name in text for name in self.names)]
        for text in reversed(likely[-_MAX_TRIED:]):
            is_json, data = self._loads(text)
            if is_json and self._is_answer(data):
                return data
        return None

    def _picked(self, found: dict[str, Any], *, repaired: bool = False) -> Extract:
        nested = self._is_nested(found)
        holder = cast("dict[str, Any]", found[VALUES]) if nested else found
        reason = found.get(REASONING, "") if nested or REASONING not in self.names else ""
        unknown = [name for name in holder if name not in self.names and (nested or name not in (REASONING, VALUES))]
        return Extract(
            {name: holder[name] for name in self.names if name in holder},
            reason if isinstance(reason, str) else "",
            tuple(unknown),
            tuple(dict.fromkeys(name for name in self.duplicates if name in self.names)),
            repaired,
        )

    def _from_cut(self, text: str, start: int) -> Extract:
        picked = self._picked(self._complete_values(text, start, 0))
        lost = dict.fromkeys(self.names, "the reply was cut before this value was complete")
        return replace(picked, lost={name: why for name, why in lost.items() if name not in picked.values})

    def _complete_values(self, text: str, start: int, depth: int) -> dict[str, Any]:
        """The entries of the object at `start` that were complete before the text was cut."""
        found: dict[str, Any] = {}
        pos = _skip(text, start + 1)
        while text[pos : pos + 1] == '"':
            try:
                key, pos = self.decoder.raw_decode(text, pos)
                pos = _skip(text, pos)
                if text[pos : pos + 1] != ":":
                    break
                pos = _skip(text, pos + 1)
                value, end = self.decoder.raw_decode(text, pos)
            except (ValueError, RecursionError):
                if depth == 0 and text[pos : pos + 1] == "{" and text[:pos].rstrip(": \t\r\n").endswith(f'"{VALUES}"'):
                    found[VALUES] = self._complete_values(text, pos, 1)
                break
            pos = _skip(text, end)
            follows = text[pos : pos + 1]
            if follows not in (",", "}") and (follows or type(value) in (int, float)):
                break  # more digits may have followed
            found[key] = value
            if follows != ",":
                break
            pos = _skip(text, pos + 1)
        return found

    def _repaired(self, text: str, whole: str) -> Extract:
        fences = [match[1] for match in _FENCE.finditer(text) if "{" in match[1]]
        span = fences[-1] if fences else text[text.find("{") :] if "{" in text else ""
        if span and len(span) <= _MAX_REPAIRED:
            import json_repair

            data: Any = json_repair.loads(span)
            if self._is_answer(data):
                picked = self._picked(data, repaired=True)
                return _without(_believed(picked, span), self.exact)
        if not span and not self._is_attempt(text):
            raise ReplyError(f"the reply holds no object with {self._some_names()}; it is left unused", reply=whole)
        return self._nothing(f"it is not one JSON object that holds {self._some_names()}")

    def _is_attempt(self, text: str) -> bool:
        """Whether a text without an object gives values all the same, as YAML or XML would."""
        return any(re.search(rf"(?<!\w){re.escape(name)}[\"'*`]*\s*[:=>]", text) for name in self.names)

    def _nothing(self, why: str) -> Extract:
        return Extract({}, lost=dict.fromkeys(self.names, f"the reply could not be read: {why}"))

    def _some_names(self) -> str:
        names = [repr(name) for name in list(self.names)[:3]]
        return " or ".join(names) + (" ..." if len(self.names) > 3 else "")


def _integer(digits: str) -> Any:
    try:
        return int(digits)
    except ValueError:  # Python refuses more than 4300 digits
        return Unreadable(f"an integer of {len(digits)} digits is too long")


def _skip(text: str, pos: int) -> int:
    found = _SPACE.match(text, pos)
    return found.end() if found else pos


def _kind(data: Any) -> str:
    names: dict[Any, str] = {
        list: "a list",
        str: "a text",
        bool: "true or false",
        type(None): "null",
        dict: "an object",
    }
    return names.get(type(data), "a number")


def _objects(text: str) -> tuple[list[tuple[int, int]], int | None]:
    """Where the outermost complete objects stand, and where one begins that does not end.

    Raises:
        RecursionError: brackets nest deeper than any answer's.
    """
    spans: list[tuple[int, int]] = []
    depth = square = start = pos = 0
    while (token := _TOKEN.search(text, pos)) is not None:
        pos, mark = token.end(), token[0]
        if mark == '"':
            if depth:  # quotes in prose open nothing
                string = _STRING.match(text, token.start())
                if string is None:
                    return spans, start
                pos = string.end()
        elif mark in "{[":
            start = token.start() if mark == "{" and not depth else start
            depth, square = (depth + 1, square) if depth or mark == "{" else (depth, square + 1)
            if depth + square > _MAX_DEPTH:
                raise RecursionError
        elif depth:
            depth -= 1
            if not depth:
                spans.append((start, pos))
        elif mark == "]":
            square = max(0, square - 1)
    return spans, (start if depth else None)


def _without(picked: Extract, exact: Collection[str]) -> Extract:
    """A repaired answer without the values that may not be guessed at."""
    doubted = [name for name in exact if name in picked.values]
    why = "the reply is not valid JSON, and code is never guessed at; escape quotes and newlines"
    return replace(
        picked,
        values={name: value for name, value in picked.values.items() if name not in doubted},
        lost={**picked.lost, **dict.fromkeys(doubted, why)},
    )


_QUOTES = "\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb"
_GLUED = re.compile(r"[\"']\s*\+\s*[\"']")


def _believed(picked: Extract, span: str) -> Extract:
    """Of a repaired answer only what the text says: a guess is lost, and asked for again."""
    if picked.unknown:
        doubted: dict[str, Any] = dict.fromkeys(picked.values)
    else:
        doubted = {name: None for name, value in picked.values.items() if not _stands_in(value, span)}
    why = "the reply is not valid JSON and this value could not be read without guessing; escape quotes and newlines"
    return replace(
        picked,
        values={name: value for name, value in picked.values.items() if name not in doubted},
        lost=dict.fromkeys(doubted, why),
    )


def _stands_in(value: Any, span: str) -> bool:
    """Whether a repaired value is in the text as it is, complete."""
    if isinstance(value, dict):
        return all(_stands_in(item, span) for item in cast("dict[str, Any]", value).values())
    if isinstance(value, list):
        return all(_stands_in(item, span) for item in cast("list[Any]", value))
    if isinstance(value, bool) or value is None:
        return not span.rstrip()[-1:].isalnum()
    if isinstance(value, str):
        return _is_quoted(value, span)
    number = re.escape(str(value))
    return re.search(rf"(?<![\w.]){number}(?![\w.])\s*[,}}\]\n/#]", span) is not None


def _is_quoted(value: str, span: str) -> bool:
    if _GLUED.search(value):
        return False  # pieces of text put together by an expression
    escaped = json.dumps(value, ensure_ascii=False)[1:-1]
    if "\n" in value and '"' in value and escaped not in span:
        return False  # raw lines with raw quotes: where it ends is a guess
    forms = dict.fromkeys((value, escaped, json.dumps(value)[1:-1], escaped.replace("\\n", "\n")))
    return any(_ends_well(span, form) for form in forms)


def _ends_well(span: str, form: str) -> bool:
    """Whether a text stands between quotes and what follows is what follows a JSON value."""
    at = span.find(form)
    while at >= 0:
        end = at + len(form)
        if at and span[at - 1] in _QUOTES and span[end : end + 1] and span[end] in _QUOTES:
            rest = span[end + 1 :].lstrip()
            if not rest or rest[0] in ",}]/#:" or rest[0] in _QUOTES[:2] or re.match(r"\w+[\"']?\s*:", rest):
                return True
        at = span.find(form, at + 1)
    return False
