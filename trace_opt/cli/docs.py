"""docs/CLI.md, written from the commands themselves: `python -m trace_opt.cli.docs`, and `--check` to compare."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "CLI.md"

_HEAD = """# The command line

Written by `python -m trace_opt.cli.docs`; `make check` fails where it is out of date.

The answer goes to stdout, progress and messages to stderr. Without a terminal there is no colour and no animation; NO_COLOR
and TERM=dumb are obeyed. Every command that answers takes `--json`. Keys come from the environment, never from an option.
"""


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(f"\n{section}" for section in sections())


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its full name, groups before what they hold."""
    import typer

    from trace_opt.cli.app import app

    todo: list[tuple[str, Any]] = [("trace-opt", typer.main.get_command(app))]
    while todo:
        name, command = todo.pop(0)
        yield name, command
        todo = [(f"{name} {inner}", found) for inner, found in getattr(command, "commands", {}).items()] + todo


def sections() -> Iterator[str]:
    """One section a command: its help as it is printed, 100 columns wide."""
    for name, command in commands():
        context = command.make_context(name, [], resilient_parsing=True, max_content_width=100, terminal_width=100)
        with context:
            text = command.get_help(context)
        lines = [line.rstrip() for line in text.strip().split("\n")]
        yield f"## {name}\n\n```text\n" + "\n".join(lines) + "\n```\n"


def main(args: Sequence[str]) -> int:
    """Write the page, or with `--check` compare it."""
    wanted = page()
    if "--check" in args:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != wanted:
            sys.stderr.write("docs/CLI.md is out of date; run `python -m trace_opt.cli.docs`\n")
            return 1
        return 0
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
