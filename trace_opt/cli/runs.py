"""`trace-opt list` and `trace-opt show`."""

from __future__ import annotations

from typing import Annotated

import typer

from trace_opt.cli.options import JsonOption, RunName, StoreOption, store_of, with_store


def list_runs(
    store: StoreOption = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", metavar="N", min=1, help="Only the newest N.")] = None,
    json: JsonOption = False,
) -> None:
    """List the runs of a store, the newest first, with their validation means."""
    from trace_opt.cli.answers import info_document, list_lines
    from trace_opt.cli.terminal import answer, answer_json, suggest, tell

    opened = store_of(store)
    infos = opened.runs()[:limit]
    if json:
        answer_json([info_document(info) for info in infos])
    elif infos:
        answer(*list_lines(infos))
        suggest(f"trace-opt show {infos[0].id}{with_store(store)}")
    else:
        tell(f"no runs in {opened.name!r} yet")
        suggest(f"trace-opt run FILE{with_store(store)}")


def show(
    run: RunName = "last",
    store: StoreOption = None,
    all_trials: Annotated[bool, typer.Option("--all", help="All trials, not only the last 20.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what is kept of a run: how it stands, its report, the best values, its trials, and lost calls."""
    from trace_opt.cli.answers import record_commands, record_document, record_lines
    from trace_opt.cli.terminal import answer, answer_json, suggest

    record = store_of(store).load(run)
    if json:
        answer_json(record_document(record))
    else:
        answer(*record_lines(record, all_trials=all_trials))
        suggest(*record_commands(record, store))
