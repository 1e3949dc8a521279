"""`trace-opt run`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from trace_opt.cli.groups import spread
from trace_opt.cli.options import (
    ApproveOption,
    Common,
    FromOption,
    ProblemFile,
    SearchOption,
    TimeoutOption,
    parsed_budget,
    parsed_search,
    parsed_sets,
)


@spread
def run(
    file: ProblemFile,
    common: Common,
    *,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", min=0, help="Decides all chance.")] = None,
    search: SearchOption = None,
    name: Annotated[str | None, typer.Option("--name", help="The run's name in the store; the problem's else.")] = None,
    start: FromOption = None,
    timeout: TimeoutOption = None,
    approve: ApproveOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and what it may cost; spend nothing.")
    ] = False,
) -> int:
    """Improve the problem that a file offers, and report start against best on held-out examples.

    `--store none` keeps nothing. A run that was interrupted goes on with `trace-opt resume`.
    """
    options = parsed_sets(common.sets)
    limits = None if common.budget is None else parsed_budget(common.budget)
    way = None if search is None else parsed_search(search)
    from trace_opt.cli.approving import check_terminal
    from trace_opt.cli.conduct import Conduct, conduct, origin, replies
    from trace_opt.problem import load_problem

    if approve and not dry_run:
        check_terminal()
    with replies(common.capture, common.replay):
        problem = load_problem(file, options)
        given: dict[str, Any] = {
            "budget": limits, "seed": seed, "concurrency": common.concurrency, "name": name, "model": common.model,
            "executor": common.executor, "address": common.address, "search": way, "start": start, "timeout": timeout,
        }  # fmt: skip
        overrides = {key: value for key, value in given.items() if value is not None}
        if dry_run:
            from trace_opt.cli.plan import show_plan

            return show_plan(problem, overrides, store=common.store, json=common.json)
        overrides["origin"] = origin(
            file, options, model=common.model, search=search, timeout=timeout, approve=approve, reuse=common.reuse
        )
        return conduct(
            Conduct(
                problem=problem, options=overrides | {"reuse": common.reuse}, store=common.store, json=common.json,
                quiet=common.quiet, approve=approve,
            )
        )  # fmt: skip
