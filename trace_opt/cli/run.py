"""`trace-opt run`."""

from __future__ import annotations

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
    ProblemFile,
    QuietOption,
    ReplayOption,
    SearchOption,
    Sets,
    StoreOption,
    parsed_budget,
    parsed_search,
    parsed_sets,
)


def run(
    file: ProblemFile,
    *,
    budget: BudgetOption = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", min=0, help="Decides all chance.")] = None,
    model: ModelOption = None,
    search: SearchOption = None,
    store: StoreOption = None,
    sets: Sets = None,
    concurrency: ConcurrencyOption = None,
    executor: ExecutorOption = None,
    address: AddressOption = None,
    name: Annotated[str | None, typer.Option("--name", help="The run's name in the store; the problem's else.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and what it may cost; spend nothing.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    capture: CaptureOption = None,
    replay: ReplayOption = None,
) -> int:
    """Improve the problem that a file offers, and report start against best on held-out examples.

    `--store none` keeps nothing. A run that was interrupted goes on with `trace-opt resume`.
    """
    options = parsed_sets(sets)
    limits = None if budget is None else parsed_budget(budget)
    way = None if search is None else parsed_search(search)
    from trace_opt.cli.conduct import Conduct, conduct, origin, replies
    from trace_opt.problem import load_problem

    with replies(capture, replay):
        problem = load_problem(file, options)
        given: dict[str, Any] = {
            "budget": limits, "seed": seed, "concurrency": concurrency, "name": name, "executor": executor,
            "address": address, "search": way,
        }  # fmt: skip
        overrides = {key: value for key, value in given.items() if value is not None}
        if model is not None:
            overrides["model"] = model
        if dry_run:
            from trace_opt.cli.plan import show_plan

            return show_plan(problem, overrides, json=json)
        overrides["origin"] = origin(file, options, model, search)
        return conduct(Conduct(problem=problem, options=overrides, store=store, json=json, quiet=quiet))
