"""`--approve`: the person at the terminal says whether the search may build on a proposal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import typer

from trace_opt.cli.export import coloured, diff_lines
from trace_opt.cli.terminal import styled, tell

if TYPE_CHECKING:
    from rich.text import Text

    from trace_opt.cli.progress import Watcher
    from trace_opt.search.approving import Approval

_QUESTION = "build on this? [y]es, [n]o, [q]uit and go on later: "
_LONGEST_LINE = 4096


def check_terminal() -> None:
    """Refuse where nobody can be asked.

    Raises:
        typer.BadParameter: there is no terminal.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise typer.BadParameter(
            "it asks on the terminal, and here is none; run it in one, or pass approve=... to optimize()",
            param_hint="--approve",
        )


def asker(watcher: Watcher) -> Callable[[Approval], Awaitable[bool]]:
    """Who asks the person at the terminal.

    Args:
        watcher: Its progress stands still meanwhile.
    """

    async def approve(approval: Approval) -> bool:
        with watcher.paused():
            tell(*_lines(approval))
            while True:
                sys.stderr.write(_QUESTION)
                sys.stderr.flush()
                said = (await _line()).strip().casefold()
                if said in ("y", "yes"):
                    return True
                if said in ("n", "no"):
                    return False
                if said in ("q", "quit"):
                    await _quit()
                tell("answer y, n or q")

    return approve


def _lines(approval: Approval) -> list[str | Text]:
    """What the proposal changes, and what is known of it."""
    head = f"trial {approval.trial} ({approval.optimizer}) would be built on: {approval.verdict}"
    lines: list[str | Text] = [
        "",
        styled(head, "bold"),
        *map(coloured, diff_lines(approval.old, approval.new, "now", "new")),
    ]
    if approval.before is not None and approval.after is not None:
        lines.append(f"mean score {approval.before:.3f} -> {approval.after:.3f} on {approval.n} examples")
    return [*lines, f"reason: {approval.reason}"] if approval.reason else lines


async def _line() -> str:
    """A line from the terminal; "q" at its end. Ctrl-C ends the wait, as it does any other."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    number = sys.stdin.fileno()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    try:
        loop.add_reader(number, wake)
    except NotImplementedError:  # loops of Windows watch sockets only
        return await asyncio.to_thread(sys.stdin.readline) or "q"
    try:
        await ready
    finally:
        loop.remove_reader(number)
    return os.read(number, _LONGEST_LINE).decode(errors="replace") or "q"


async def _quit() -> None:
    """End the run as Ctrl-C does: what it has is kept."""
    signal.raise_signal(signal.SIGINT)
    await asyncio.sleep(60)
