"""Exit codes, and every error as one sentence on stderr; a traceback only with `--debug`."""

from __future__ import annotations

import traceback
from pathlib import Path

from trace_opt.cli.terminal import SETTINGS, tell
from trace_opt.errors import BudgetError, TraceOptError

OK = 0
ERROR = 1
USAGE = 2
BUDGET = 3
INTERRUPTED = 130

_OURS = str(Path(__file__).resolve().parents[1])


def code_of(error: BaseException) -> int:
    """The exit code that an error ends the command with."""
    if isinstance(error, BudgetError):
        return BUDGET
    # a mistake on the command line, found only once the file was loaded
    return USAGE if type(error).__name__ == "OptionError" else ERROR


def explain(error: BaseException) -> None:
    """Say what went wrong on stderr: one sentence, with `--debug` the traceback before it."""
    if SETTINGS.debug:
        tell("".join(traceback.format_exception(error)).rstrip())
    tell(f"trace-opt: {sentence(error)}")


def sentence(error: BaseException) -> str:
    """An error in one sentence."""
    if isinstance(error, TraceOptError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{str(error.filename)!r} cannot be used ({error.strerror}); check the path and its permissions"
    said = " ".join(str(error).split())
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    place = _place(error)
    remedy = "" if SETTINGS.debug else "; add --debug for the traceback"
    return f"{text}{f' (at {place})' if place else ''}{remedy}"


def _place(error: BaseException) -> str:
    """Where in the user's own code it was raised, as `file:line`; empty where no such code was running."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        known = frame.filename.startswith((_OURS, "<")) or "site-packages" in frame.filename
        if not known and not frame.filename.startswith(str(Path(traceback.__file__).parent)):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return ""
