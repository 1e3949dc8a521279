"""Values as text for a prompt: bounded, on one line or in a quoted block, never able to pass for a heading.

A value that a user, a model or a data set brought is written as a Python literal or behind `| ` marks, so no line of a
prompt but our own starts at the margin. Long values are cut in the middle with their length stated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from trace_opt.core.adapter import Adapter
from trace_opt.core.node import Failure
from trace_opt.core.parameter import Demonstrations, is_tensor

_PIECE = re.compile(r"[A-Za-z]+|[0-9]+|[^\x00-\x7f]+|\n|[ \t]{2,}|[^\w\s]+|_")

_ITEMS = 200  # of a container longer than this only both ends are looked at, so that no value costs its size
_PLAIN_NAME = re.compile(r"[\w./ -]{1,200}")


def size(text: str) -> int:
    """Length in UTF-8 bytes, the unit in which the budget is shared out."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def tokens_in(text: str) -> int:
    """About how many tokens a model's tokenizer makes of a text, rather too many than too few.

    Counted from words, digits and marks, since prose has 4 bytes a token and lines of code 2. Against OpenAI's
    cl100k_base: 1.05 to 1.3 times the truth for prose, code, numbers and problem texts, up to 2 for other scripts.
    """
    return sum(map(_tokens_of, _PIECE.findall(text))) + 1


def _tokens_of(piece: str) -> int:
    length, first = len(piece), piece[0]
    if not first.isascii():
        return sum(3 if c > "\uffff" else 1 for c in piece) + length // 2
    if not first.isalpha():
        return 1 if first.isspace() else (length + 1) // 2
    is_word = length < 3 or piece[1:].islower()
    # no language has words of more than 16 letters often enough for a token of their own: these are codes and ids
    return 1 + (length - 1) // 7 if is_word and length <= 16 else (length + 1) // 2


def cut(text: str, limit: int) -> str:
    """A text of at most about `limit` characters: the middle of a longer one is left out and its length stated."""
    if len(text) <= limit:
        return text
    note = f" ... [{len(text):,} characters, the middle left out] ... "
    half = max(8, (limit - len(note)) // 2)
    return f"{text[:half]}{note}{text[-half:]}"


def one_line(text: str) -> str:
    """A text with every run of white space and line ends turned into one space."""
    return " ".join(text.split())


def name_text(name: str) -> str:
    """A parameter's name as it stands in a prompt: quoted where it holds anything unusual."""
    return name if _PLAIN_NAME.fullmatch(name) and name == name.strip() else json.dumps(name)


def json_text(value: Any) -> str:
    """A JSON-able value on one line, readable, with every character that ends a line escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def block(text: str, indent: str = "  ") -> str:
    """A text as lines behind `| ` marks."""
    return "\n".join(f"{indent}| {_printable(line)}" for line in text.splitlines() or [""])


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)


def literal(value: Any, limit: int = 200) -> str:
    """A value on one line, much like its Python literal, of about `limit` characters at most.

    Costs no more than what is shown: of a long text or container only both ends are read. A repr that fails is said so.
    """
    if isinstance(value, str):
        return _text_literal(value, limit)
    if isinstance(value, Failure):
        return cut(one_line(str(value)), limit)
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() < 2000 else f"an integer of {value.bit_length()} bits"
    return cut(_compound(value, limit, 6), limit)


def _text_literal(value: str, limit: int) -> str:
    if len(value) <= limit:
        return _quoted(value)
    half = max(8, (limit - 50) // 2)
    return f"{_quoted(value[:half])} ... [{len(value):,} characters, the middle left out] ... {_quoted(value[-half:])}"


def _quoted(text: str) -> str:
    shown = repr(str(text))
    return shown if "\ud800" not in shown else ascii(text)


def _compound(value: Any, limit: int, depth: int) -> str:
    """Containers item by item, so that a long one costs only what is shown; any other object by its repr."""
    if is_tensor(value):
        return _tensor_text(value)
    if isinstance(value, (bytes, bytearray)):
        return repr(bytes(value)) if len(value) <= 60 else f"{type(value).__name__} of {len(value):,} bytes"
    if type(value).__module__.startswith("PIL."):
        return f"an image of size {getattr(value, 'size', '')}"
    if isinstance(value, Adapter):
        return str(value)
    if isinstance(value, Demonstrations):
        return f"Demonstrations of {_joined(value.examples, limit, depth)}"
    kind = cast("Any", type(value))
    if depth <= 0 or kind not in _BRACKETS:
        return _repr(value)
    if not len(value) and kind in (set, frozenset):
        return f"{kind.__name__}()"
    left, right = _BRACKETS[kind]
    return f"{left}{_joined(_ordered(value), limit, depth)}{',' if kind is tuple and len(value) == 1 else ''}{right}"


_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"), tuple: ("(", ")"), set: ("{", "}"), frozenset: ("{", "}"), dict: ("{", "}"),
}  # fmt: skip


def _ordered(value: Any) -> Any:
    """A container whose order is the same in every process: sets follow the hash, which is seeded."""
    return sorted(value, key=repr) if isinstance(value, (set, frozenset)) and len(value) <= 10_000 else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _joined(value: Any, limit: int, depth: int) -> str:
    count = len(value)
    entries: list[Any] = list(cast("Any", value.items() if isinstance(value, Mapping) else value))
    shown = entries if count <= _ITEMS else [*entries[: _ITEMS // 2], *entries[-_ITEMS // 2 :]]
    each = max(20, limit // max(1, min(len(shown), 8)))
    texts = [_entry(value, entry, each, depth - 1) for entry in shown]
    keep = _fitting(texts, limit)
    if keep >= count:
        return ", ".join(texts)
    head, tail = (keep + 1) // 2, keep // 2
    ends = [*texts[:head], f"... {count - head - tail} more ...", *(texts[-tail:] if tail else [])]
    return f"{', '.join(ends)} ({count} in all)"


def _fitting(texts: list[str], limit: int) -> int:
    """How many entries fit, taken from both ends in turn; at least one."""
    used = kept = 0
    for i in range(len(texts)):
        used += len(texts[i // 2 if i % 2 == 0 else -(i // 2) - 1]) + 2
        if used > limit and kept:
            break
        kept += 1
    return kept


def _entry(holder: Any, entry: Any, limit: int, depth: int) -> str:
    if isinstance(holder, Mapping):
        key, item = entry
        return f"{_item(key, limit, depth)}: {_item(item, limit, depth)}"
    return _item(entry, limit, depth)


def _item(value: Any, limit: int, depth: int) -> str:
    if type(value) in _BRACKETS:
        return cut(_compound(value, limit, depth), limit)
    return literal(value, limit)


def _tensor_text(value: Any) -> str:
    kind = str(value.dtype).removeprefix("torch.")
    if value.numel() > 20:
        return f"a {kind} tensor of shape {tuple(value.shape)}"
    return f"tensor({value.detach().cpu().tolist()!r})"


def _repr(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 # a hostile repr must not cost a proposal
        return f"(a {type(value).__name__} whose repr raised {type(error).__name__})"
    # addresses differ from run to run, and a prompt must not
    return one_line(re.sub(r" at 0x[0-9a-fA-F]+", "", text[:20_000]))
