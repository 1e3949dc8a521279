"""The command `trace-opt`: how people look at runs and start them from a shell.

Nothing heavy is imported before a command's body, so that `--help` is on screen at once.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: What follows `trace-opt`; by default what the shell gave.

    Returns:
        The exit code: 0 ok, 1 error, 2 usage, 3 budget, 130 interrupted.
    """
    from trace_opt.cli.app import run_command

    return run_command(args)
