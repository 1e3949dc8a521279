"""What a proposed text must not do: grow without end, lose what has to stay in it, or recite training examples.

A prompt that quotes its training examples scores well on them and on nothing else, and one that has lost its
placeholder fails everywhere; both can be seen before a single rollout is paid for. The proposer is told why.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from trace_opt.core.parameter import short
from trace_opt.errors import ProblemError

_PLACEHOLDER = re.compile(r"(?<!\{)\{[A-Za-z_][A-Za-z0-9_.]*\}(?!\})")
_WORD = re.compile(r"\w+")
_DEPTH = 8
_COMMON_SHARE = 0.05
_COMMON_LEAST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """What texts are held to, before they are tried. A text may always be as long as it was at the start.

    Args:
        longest: The most characters of a text; None is no limit.
        placeholders: Whether `{name}` in a starting text must stay.
        spans: Texts that must stay, letter for letter, wherever a starting text has them.
        recited: A run of so many words that stands in a training example may not be in a text, unless the starting text
            or many examples have it; whole texts of examples count from 4 words on. None does not look.

    Raises:
        ProblemError: a number makes no sense.
    """

    longest: int | None = 20_000
    placeholders: bool = True
    spans: tuple[str, ...] = ()
    recited: int | None = 12

    def __post_init__(self) -> None:
        if (self.longest is not None and self.longest < 1) or (self.recited is not None and self.recited < 4):
            raise ProblemError(
                f"{self!r} has a number too small; give longest from 1 and recited from 4 words, or None"
            )

    def objection(self, name: str, start: Any, value: Any, known: Recited | None) -> str:
        """What is wrong with a value; "" where nothing is.

        Args:
            name: The parameter's full name.
            start: Its starting value.
            value: The proposed one; what is no text passes.
            known: The training examples' phrases, or None.
        """
        if not isinstance(value, str):
            return ""
        begun = start if isinstance(start, str) else ""
        if self.longest is not None and len(value) > max(self.longest, len(begun)):
            return f"{name!r} has {len(value)} characters; at most {max(self.longest, len(begun))} are allowed"
        lost = [part for part in self._kept(begun) if part not in value]
        if lost:
            return f"{name!r} lost {', '.join(map(repr, lost))}; keep that letter for letter"
        found = known.found(value, begun) if known is not None else ""
        return f"{name!r} recites a training example ({short(found, 60)}); state a rule instead" if found else ""

    def _kept(self, start: str) -> list[str]:
        """What must stay of a starting text."""
        kept = [span for span in self.spans if span in start]
        return kept + list(dict.fromkeys(_PLACEHOLDER.findall(start))) if self.placeholders else kept

    def phrases(self, examples: Sequence[Any]) -> Recited | None:
        """The phrases of training examples, to look for."""
        return None if self.recited is None else Recited(examples, self.recited)


class Recited:
    """Looks for phrases of examples in texts.

    Args:
        examples: The training examples; texts are found in whatever they are made of.
        words: How long a phrase is; whole texts of an example count from 4 words on.
    """

    def __init__(self, examples: Sequence[Any], words: int) -> None:
        self._words = words
        counts: Counter[tuple[str, ...]] = Counter()
        for example in examples:
            counts.update({phrase for text in texts(example) for phrase in self._phrases(_split(text))})
        # what many examples say is how they are put, not what they hold
        common = max(_COMMON_LEAST, _COMMON_SHARE * len(examples))
        self._rare = {phrase for phrase, count in counts.items() if count < common}
        self._sizes = sorted({len(phrase) for phrase in self._rare})

    def found(self, value: str, start: str = "") -> str:
        """The first phrase of an example in a text that the starting text has not; "" where there is none."""
        said, allowed = _split(value), _split(start)
        for size in self._sizes:
            known = set(_runs(allowed, size))
            for phrase in _runs(said, size):
                if phrase in self._rare and phrase not in known:
                    return " ".join(phrase)
        return ""

    def _phrases(self, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if len(words) >= self._words:
            yield from _runs(words, self._words)
        elif len(words) >= 4:
            yield words


def texts(value: Any, depth: int = _DEPTH) -> Iterator[str]:
    """The texts that a datum is made of."""
    if isinstance(value, str):
        yield value
    elif depth > 0:
        if isinstance(value, Mapping):
            held = list(cast("Mapping[Any, Any]", value).values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            held = list(cast("Sequence[Any]", value))
        else:
            kind = cast("Any", type(value))
            held = [getattr(value, name, None) for name in getattr(kind, "__dataclass_fields__", ())]
        for item in held:
            yield from texts(item, depth - 1)


def _split(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _runs(words: tuple[str, ...], size: int) -> Iterator[tuple[str, ...]]:
    return (words[i : i + size] for i in range(len(words) - size + 1))
