"""`trace-opt doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from trace_opt.cli.options import JsonOption, Sets, StoreOption, parsed_sets


def doctor(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="A problem to look at too; its workflow is not run.")
    ] = None,
    sets: Sets = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """Check what trace_opt needs on this machine; of a problem's file, what recording cannot stand in for.

    Says whether keys are present, never what they are. The code is 1 where something is broken.
    """
    options = parsed_sets(sets)
    from dataclasses import asdict

    from trace_opt.cli.checks import machine_checks, problem_checks
    from trace_opt.cli.failures import ERROR, OK
    from trace_opt.cli.terminal import answer, answer_json, styled, suggest, table

    checks = [*machine_checks(store), *(problem_checks(file, options) if file is not None else [])]
    broken = any(check.state == "broken" for check in checks)
    if json:
        answer_json({"ok": not broken, "checks": [asdict(check) for check in checks]})
        return ERROR if broken else OK
    lines = table(["check", "state", "what"], [[check.name, check.state, check.said] for check in checks])
    answer(*lines, "", styled("something is broken" if broken else "nothing is broken", "bold"))
    suggest(*dict.fromkeys(check.remedy for check in checks if check.remedy))
    return ERROR if broken else OK
