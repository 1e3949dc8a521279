"""`trace-opt resume`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from trace_opt.cli.options import (
    AddressOption,
    BudgetOption,
    CaptureOption,
    ConcurrencyOption,
    ExecutorOption,
    JsonOption,
    ModelOption,
    QuietOption,
    ReplayOption,
    RunName,
    Sets,
    StoreOption,
    parsed_budget,
    parsed_search,
    parsed_sets,
    store_of,
)


def resume(
    run: RunName,
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="The problem's file; the one the run was started from else.")
    ] = None,
    *,
    budget: BudgetOption = None,
    model: ModelOption = None,
    store: StoreOption = None,
    sets: Sets = None,
    concurrency: ConcurrencyOption = None,
    executor: ExecutorOption = None,
    address: AddressOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    capture: CaptureOption = None,
    replay: ReplayOption = None,
) -> int:
    """Go on with a run that was interrupted, or give a finished one a larger budget; nothing kept is paid again.

    Budget and concurrency may change; the problem may not.
    """
    options = parsed_sets(sets)
    limits = None if budget is None else parsed_budget(budget)
    from trace_opt.cli.conduct import Conduct, conduct, origin, replies
    from trace_opt.problem import load_problem

    opened = store_of(store)
    record = opened.load(run)
    info = record.info
    known: Mapping[str, Any] = record.config.get("origin") or {}
    opened.close()
    path = file or _known_file(known, info.id)
    merged = {**known.get("options", {}), **options}
    asked, search = model or known.get("model"), known.get("search")
    with replies(capture, replay):
        problem = load_problem(path, merged)
        given: dict[str, Any] = {
            "budget": limits, "concurrency": concurrency, "model": asked, "executor": executor, "address": address,
            "search": None if search is None else parsed_search(search),
        }  # fmt: skip
        overrides = {key: value for key, value in given.items() if value is not None}
        # without a seed and a budget given, the run's own stand
        overrides |= {"resume": info.id, "name": info.name, "origin": origin(path, merged, asked, search)}
        return conduct(Conduct(problem=problem, options=overrides, store=store, json=json, quiet=quiet))


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
