"""`trace-opt resume`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from trace_opt.cli.groups import spread
from trace_opt.cli.options import Common, RunName, parsed_budget, parsed_search, parsed_sets, store_of


@spread
def resume(
    run: RunName,
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="The problem's file; the one the run was started from else.")
    ] = None,
    *,
    common: Common,
) -> int:
    """Go on with a run that was interrupted, or give a finished one a larger budget; nothing kept is paid again.

    Budget and concurrency may change; the problem may not. A run that was started with `--approve` goes on asking.
    """
    options = parsed_sets(common.sets)
    limits = None if common.budget is None else parsed_budget(common.budget)
    from trace_opt.cli.approving import check_terminal
    from trace_opt.cli.conduct import Conduct, conduct, origin, replies
    from trace_opt.problem import load_problem

    opened = store_of(common.store)
    record = opened.load(run)
    info = record.info
    known: Mapping[str, Any] = record.config.get("origin") or {}
    opened.close()
    approve = bool(known.get("approve"))
    if approve:
        check_terminal()
    path = file or _known_file(known, info.id)
    merged = {**known.get("options", {}), **options}
    said: dict[str, Any] = {
        "model": common.model or known.get("model"), "reuse": common.reuse or bool(known.get("reuse")),
        "timeout": known.get("timeout"), "search": known.get("search"), "approve": approve,
    }  # fmt: skip
    with replies(common.capture, common.replay):
        problem = load_problem(path, merged)
        given: dict[str, Any] = {
            "budget": limits, "concurrency": common.concurrency, "executor": common.executor, "address": common.address,
            "model": said["model"], "reuse": said["reuse"], "timeout": said["timeout"],
            "search": None if said["search"] is None else parsed_search(said["search"]),
        }  # fmt: skip
        overrides = {key: value for key, value in given.items() if value is not None}
        # without a seed and a budget given, the run's own stand
        overrides |= {"resume": info.id, "name": info.name, "origin": origin(path, merged, **said)}
        return conduct(
            Conduct(
                problem=problem, options=overrides, store=common.store, json=common.json, quiet=common.quiet,
                approve=approve,
            )
        )  # fmt: skip


def _known_file(known: Mapping[str, Any], run: str) -> str:
    from trace_opt.errors import StoreError

    path = str(known.get("file", ""))
    if not path:
        raise StoreError(f"run {run!r} was not started from a file; name it: `trace-opt resume {run} FILE`")
    if not Path(path).exists():
        raise StoreError(
            f"the file {path!r} that run {run!r} was started from is gone; name it: `trace-opt resume {run} FILE`"
        )
    return path
