"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trace_opt.errors import meant

if TYPE_CHECKING:
    from trace_opt.search.budget import Budget, Level
    from trace_opt.search.greedy import Search
    from trace_opt.store.store import Store

ProblemFile = Annotated[str, typer.Argument(metavar="FILE", help="A Python file that offers `problem`.")]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="The run's id, the beginning of it, or `last` for the newest.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An option of the problem's function; may be given many times."),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="WHERE",
        help="Where runs are kept: a path or URL; TRACE_OPT_STORE or .trace_opt/runs.db else.",
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget", metavar="BUDGET",
        help="light, medium or heavy, or limits: calls, tokens, usd, seconds, trials, rollouts, as in calls=500,usd=2.",
    ),
]  # fmt: skip
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="The optimizers' model, as provider/name; TRACE_OPT_MODEL or a key else."
    ),
]
ConcurrencyOption = Annotated[
    int | None, typer.Option("--concurrency", metavar="N", min=1, help="How many rollouts run at once.")
]
ExecutorOption = Annotated[
    str | None,
    typer.Option(
        "--executor", metavar="WHO", help="Who runs rollouts: local (the default), processes, or ray (extra `ray`)."
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="WHERE",
        help="The Ray cluster, as in `--executor ray --address auto`; a fresh local one else.",
    ),
]
SearchOption = Annotated[
    str | None,
    typer.Option(
        "--search",
        metavar="greedy|pareto|beam",
        help="How candidates are tried: build on the best mean (greedy, the default), on whatever leads somewhere (pareto), "
        "on the few best (beam).",
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="SECONDS", help="What a rollout may take at most; one that takes longer has failed."
    ),
]
ApproveOption = Annotated[
    bool, typer.Option("--approve", help="Ask on the terminal before the search builds on a proposal.")
]
FromOption = Annotated[
    str | None,
    typer.Option("--from", metavar="RUN", help="Start from the best values of a run: its id, or `last`."),
]
ReuseOption = Annotated[
    bool,
    typer.Option(
        "--reuse", help="Take rollouts that runs in the store have made already, where nothing about them differs."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
CaptureOption = Annotated[
    Path | None, typer.Option("--capture", metavar="FILE", help="Write every model reply to a file, for --replay.")
]
ReplayOption = Annotated[
    Path | None,
    typer.Option("--replay", metavar="FILE", help="Answer every model call from a file that --capture wrote."),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to a file instead of stdout.")
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """The options of whatever runs a search."""

    budget: BudgetOption = None
    model: ModelOption = None
    store: StoreOption = None
    sets: Sets = None
    concurrency: ConcurrencyOption = None
    executor: ExecutorOption = None
    address: AddressOption = None
    reuse: ReuseOption = False
    json: JsonOption = False
    quiet: QuietOption = False
    capture: CaptureOption = None
    replay: ReplayOption = None


def parsed_sets(given: Sequence[str] | None) -> dict[str, str]:
    """The options of a problem by name.

    Raises:
        typer.BadParameter: one is not `name=value`, or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"{text!r} is no option of a problem; write name=value", param_hint="--set")
        if name in found:
            raise typer.BadParameter(f"{name!r} is set twice; set it once", param_hint="--set")
        found[name] = value
    return found


def parsed_budget(text: str) -> Budget | Level:
    """A budget from its text: a level, or limits by name.

    Raises:
        typer.BadParameter: it is neither.
    """
    from trace_opt.errors import BudgetError
    from trace_opt.search.budget import LEVELS, Budget

    if text in LEVELS:
        return text  # pyright: ignore[reportReturnType] # the keys of LEVELS are the levels
    names = [field.name for field in dataclasses.fields(Budget)]
    if "=" not in text:
        hint = meant(text, LEVELS, f"name limits, as in calls=500,usd=2 ({', '.join(names)})")
        raise typer.BadParameter(f"no budget is named {text!r}; {hint}", param_hint="--budget")
    limits: dict[str, int | float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in names:
            hint = meant(name, names, f"known: {', '.join(names)}")
            raise typer.BadParameter(f"a budget has no limit {name!r}; {hint}", param_hint="--budget")
        if name in limits:
            raise typer.BadParameter(f"the limit {name!r} is given twice; give it once", param_hint="--budget")
        limits[name] = _number(name, value)
    try:
        return Budget(**limits)  # pyright: ignore[reportArgumentType] # the names were checked, the values are its own job
    except BudgetError as error:
        raise typer.BadParameter(str(error), param_hint="--budget") from None


_SEARCHES = {"greedy": "Greedy", "pareto": "Pareto", "beam": "Beam"}


def parsed_search(text: str) -> Search:
    """The search that goes by a name, with its own settings as they are by default.

    Raises:
        typer.BadParameter: none does.
    """
    import trace_opt

    if text not in _SEARCHES:
        hint = meant(text, _SEARCHES, f"known: {', '.join(_SEARCHES)}")
        raise typer.BadParameter(f"no search is named {text!r}; {hint}", param_hint="--search")
    return getattr(trace_opt, _SEARCHES[text])()


def _number(name: str, text: str) -> int | float:
    whole = name not in ("usd", "seconds")
    try:
        return int(text.replace("_", "")) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise typer.BadParameter(f"{name}={text!r} is no limit; give {kind} above 0", param_hint="--budget") from None


def store_of(where: str | None) -> Store:
    """The store that `--store` names, or the default one.

    Raises:
        StoreError: the URL makes no sense.
        typer.BadParameter: it is `none`, where runs are to be read.
    """
    from trace_opt.store.store import open_store

    if where is not None and where.casefold() == "none":
        raise typer.BadParameter("'none' keeps no runs, so there are none to read; name a store", param_hint="--store")
    return open_store(where)


def with_store(where: str | None) -> str:
    """`--store WHERE` for a command that is suggested next, empty for the default store."""
    import shlex

    return f" --store {shlex.quote(where)}" if where else ""
