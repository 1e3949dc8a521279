"""How the command line speaks: the answer goes to stdout, progress and messages to stderr.

What a problem's own code prints is no answer: while a command runs, stdout itself leads to stderr (`answering`).

Texts that models wrote are shown as they are, never as markup, and what would steer a terminal (escape sequences,
writing directions) is shown instead of obeyed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), *_BIDI)
_SHOWN = {code: repr(chr(code))[1:-1] for code in _CONTROLS if chr(code) not in "\n\t"}


@dataclass(slots=True)
class Settings:
    """What the options that every command has were set to.

    Attributes:
        debug: Whether an error shows its traceback.
        color: Whether colours may be used on a terminal.
        leaving: Whether the process ends with the command.
        out: Where the answer goes while a command runs; None is `sys.stdout`.
    """

    debug: bool = False
    color: bool = True
    leaving: bool = False
    out: TextIO | None = None


SETTINGS = Settings()


def visible(text: str) -> str:
    """A text that is safe to print: control characters other than line breaks and tabs as their escapes."""
    return text.translate(_SHOWN)


def animated(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can redraw a line."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def console(stream: TextIO) -> Console:
    """A Rich console for a stream: no markup, no wrapping, a closed pipe as BrokenPipeError."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> NoReturn:
            raise BrokenPipeError

    return Plain(
        file=stream, markup=False, emoji=False, highlight=False, soft_wrap=True,
        no_color=True if not SETTINGS.color or os.environ.get("NO_COLOR") else None,
    )  # fmt: skip


@contextmanager
def answering() -> Generator[None]:
    """Keep stdout for the answer: whatever else is written there meanwhile, by child processes too, goes to stderr."""
    out = _apart(sys.stdout)
    if out is None:  # a stand-in without a file of the system's: only what Python prints can be led away
        yield from _led_away(sys.stdout)
        return
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with out:
            yield from _led_away(out)
    finally:
        # C code writes what it still holds when the process ends: that is no answer either
        if not SETTINGS.leaving:
            os.dup2(kept, 1)
        os.close(kept)


def _apart(stream: TextIO) -> TextIO | None:
    """Another stream to the same place, that stays where it is when stdout is led elsewhere; None where there is none."""
    try:
        stream.flush()
        for number in (1, 2):
            os.fstat(number)
        return open(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors=stream.errors)  # noqa: PTH123
    except (AttributeError, OSError, ValueError):
        return None


def _led_away(out: TextIO) -> Generator[None]:
    before = sys.stdout
    SETTINGS.out, sys.stdout = out, sys.stderr
    try:
        yield
    except BrokenPipeError:
        silence(out)
        raise
    finally:
        SETTINGS.out = None
        if not SETTINGS.leaving:
            sys.stdout = before


def stdout() -> TextIO:
    """Where the answer goes."""
    return sys.stdout if SETTINGS.out is None else SETTINGS.out


def answer(*lines: str | Text) -> None:
    """Print lines of the answer on stdout."""
    _print(stdout(), lines)


def tell(*lines: str | Text) -> None:
    """Print messages on stderr; a reader that has gone away stops nothing."""
    try:
        _print(sys.stderr, lines)
    except BrokenPipeError:
        silence(sys.stderr)


def _print(stream: TextIO, lines: Iterable[str | Text]) -> None:
    if not stream.isatty():  # Rich would be loaded for nothing
        stream.writelines(visible(line if isinstance(line, str) else line.plain) + "\n" for line in lines)
        stream.flush()
        return
    screen = console(stream)
    for line in lines:
        screen.print(visible(line) if isinstance(line, str) else line)


def styled(text: str, style: str) -> Text:
    """A text in a style; it is made safe to print."""
    from rich.text import Text

    return Text(visible(text), style=style)


def answer_json(data: Any) -> None:
    """Print one JSON document on stdout."""
    out = stdout()
    out.write(json.dumps(data, indent=2, allow_nan=False) + "\n")
    out.flush()


def answer_exactly(text: str) -> None:
    """Print a text on stdout: to a terminal made safe, into a pipe or file as it is."""
    out = stdout()
    out.write(visible(text) if out.isatty() else text)
    out.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str | Text]:
    """Rows as aligned columns; on a terminal the last column is cut where the screen ends.

    Args:
        header: The columns' names.
        rows: One text for each column.
    """
    from rich.cells import cell_len, set_cell_size

    cells = [[visible(" ".join(cell.split())) for cell in row] for row in (header, *rows)]
    widths = [max(cell_len(row[i]) for row in cells) for i in range(len(header) - 1)]
    limit = _columns(stdout()) if stdout().isatty() else None
    lines: list[str] = []
    for row in cells:
        fixed = [set_cell_size(cell, width) for cell, width in zip(row, widths, strict=False)]
        line = "  ".join([*fixed, row[-1]]).rstrip()
        lines.append(line if limit is None or cell_len(line) <= limit else set_cell_size(line, limit - 1) + "…")
    return [styled(lines[0], "bold"), *lines[1:]]


def _columns(stream: TextIO) -> int:
    """How wide a terminal is; shutil would ask the place that stdout leads to meanwhile."""
    said = os.environ.get("COLUMNS", "")
    with suppress(OSError):
        return (int(said) if said.isdecimal() else 0) or os.get_terminal_size(stream.fileno()).columns or 80
    return 80


def fields(pairs: Mapping[str, str]) -> list[str]:
    """Names and values, one a line, values aligned."""
    width = max((len(name) for name in pairs), default=0)
    return [f"{name:{width}}  {value}".rstrip() for name, value in pairs.items()]


def suggest(*commands: str) -> None:
    """Say what to type next, after an answer; a message, so that pipes and files hold the answer alone."""
    tell(*(styled(f"next: {command}", "dim") for command in commands))


def silence(stream: TextIO) -> None:
    """Send what is still written to a stream nowhere, since its reader has gone away."""
    try:
        hole = os.open(os.devnull, os.O_WRONLY)
        os.dup2(hole, stream.fileno())
        os.close(hole)
    except (OSError, ValueError):  # no stream of the system's, or closed
        return


def prepare() -> None:
    """Make the standard streams take any text, whatever their encoding."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
