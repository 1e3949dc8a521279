"""`trace-opt diff` and `trace-opt export`: two sets of values beside each other, and one set for use elsewhere."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trace_opt.cli.functions import best_format
from trace_opt.cli.options import (
    JsonOption,
    OutputOption,
    RunName,
    Sets,
    StoreOption,
    parsed_sets,
    store_of,
    with_store,
)
from trace_opt.errors import meant

if TYPE_CHECKING:
    from rich.text import Text

    from trace_opt.store.records import RunRecord

Format = Literal["text", "json", "python", "code"]


def diff(
    run: RunName = "last",
    a: Annotated[str, typer.Argument(metavar="A", help="A candidate's number, `start` or `best`.")] = "start",
    b: Annotated[str, typer.Argument(metavar="B", help="The same.")] = "best",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show how two candidates' values differ, by default the best from the start."""
    from trace_opt.cli.terminal import answer, answer_json, suggest, tell
    from trace_opt.cli.values import encoded

    record = store_of(store).load(run)
    left, right = _values(record, a), _values(record, b)
    lines = diff_lines(left, right, a, b)
    if json:
        changed = [name for name in right if encoded({name: left.get(name)}) != encoded({name: right[name]})]
        document = {"run": record.info.id, "a": encoded(left), "b": encoded(right), "changed": changed}
        answer_json({**document, "diff": "\n".join(lines)})
        return
    if not lines:
        tell(f"{a} and {b} have the same values")
        return
    answer(*map(coloured, lines))
    suggest(f"trace-opt export {record.info.id}{with_store(store)} --format {best_format(record.parameters)}")


def _values(record: RunRecord, which: str) -> Mapping[str, Any]:
    """The values of a candidate that is named by its number, `start` or `best`.

    Raises:
        typer.BadParameter: the run has no such candidate.
    """
    if which == "best":
        return record.best
    if which == "start":
        return record.start
    try:
        return record.candidate(int(which)).values
    except (ValueError, KeyError):
        numbers = [candidate.id for candidate in record.candidates]
        known = f"{numbers[0]} to {numbers[-1]}" if numbers else "none yet"
        raise typer.BadParameter(
            f"run {record.info.id!r} has no candidate {which!r}; name start, best or a number ({known})"
        ) from None


def diff_lines(left: Mapping[str, Any], right: Mapping[str, Any], a: str, b: str) -> list[str]:
    """A unified diff of the parameters whose values differ, each under its name; empty where none does."""
    from trace_opt.cli.values import encoded, value_text

    lines: list[str] = []
    for name in right:
        before, after = left.get(name), right[name]
        if encoded({name: before}) == encoded({name: after}):
            continue
        one, two = value_text(before), value_text(after)
        if one == two:  # 1 and "1" read alike
            one, two = repr(before), repr(after)
        if one.endswith("\n") and two.endswith("\n"):
            one, two = one[:-1], two[:-1]  # the last line's end makes no line of its own
        found = difflib.unified_diff(one.split("\n"), two.split("\n"), f"{name} ({a})", f"{name} ({b})", lineterm="")
        lines += found
    return lines


def coloured(line: str) -> str | Text:
    """A line of a diff as a terminal shows it."""
    from trace_opt.cli.terminal import styled

    if line.startswith(("---", "+++")):
        return styled(line, "bold")
    style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
    return styled(line, style) if style else line


def export(
    run: RunName = "last",
    format: Annotated[Format, typer.Option("--format", help="What to write.")] = "text",  # the option's name
    output: OutputOption = None,
    parameter: Annotated[
        str | None, typer.Option("--parameter", metavar="NAME", help="Only this one; as text its bare value.")
    ] = None,
    candidate: Annotated[
        str, typer.Option("--candidate", metavar="C", help="A candidate's number, `start` or `best`.")
    ] = "best",
    file: Annotated[
        str | None,
        typer.Option(
            "--file", metavar="FILE", help="The problem's file, for functions; the one the run was started from else."
        ),
    ] = None,
    sets: Sets = None,
    write: Annotated[
        bool, typer.Option("--write", help="Put the functions into the files they come from, and show what changed.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Write the best values for use elsewhere.

    text: the prompt's parts, each under its name. json: for `trace_opt.load_values`. python: a module with the values in
    place and a function that writes them into Parameters. code: a module with the functions that the run rewrote, their
    imports and decorators. Files of yours are changed by `--write` alone.
    """
    from trace_opt.cli.terminal import answer_exactly, tell

    options = parsed_sets(sets)
    record = store_of(store).load(run)
    if write:
        _write(record, _only(_values(record, candidate), parameter), file, options)
        return
    values = _only(_values(record, candidate), parameter)
    title = (
        f"Values of candidate {candidate} of run {record.info.id} ({record.info.name}), written by trace-opt export."
    )
    if format == "code":
        from trace_opt.cli.functions import found_functions, module_text

        text = module_text(values, found_functions(record, file, options), title=title)
    else:
        text = exported(values, format, title=title, bare=parameter is not None)
    if output is None:
        answer_exactly(text)
        return
    write_whole(output, text)
    tell(f"wrote {output}")


def _write(record: RunRecord, values: Mapping[str, Any], file: str | None, options: Mapping[str, str]) -> None:
    """Put functions into the files they come from, all or none, and show the change."""
    from trace_opt.cli.functions import change_lines, file_changes, found_functions
    from trace_opt.cli.terminal import answer, tell

    changes = file_changes(values, found_functions(record, file, options))
    for path, (before, after) in changes.items():
        answer(*map(coloured, change_lines(path, before, after)))
    for path, (_, after) in changes.items():
        write_whole(path, after)
        tell(f"wrote {path}")
    if not changes:
        tell("the functions stand in their files as they are")


def _only(values: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    if name is None:
        return values
    if name not in values:
        hint = meant(name, values, f"known: {', '.join(values)}")
        raise typer.BadParameter(f"the run has no parameter {name!r}; {hint}", param_hint="--parameter")
    return {name: values[name]}


def exported(values: Mapping[str, Any], format: Format, *, title: str, bare: bool = False) -> str:
    """Values as a whole file.

    Args:
        values: By full parameter name.
        format: Which kind of file.
        title: What a Python module's docstring says.
        bare: Whether text is the one value alone.
    """
    import json

    from trace_opt.cli.values import encoded, python_module, value_text, values_text

    if format == "json":
        return json.dumps(encoded(values), indent=2) + "\n"
    if format == "python":
        return python_module(values, title=title)
    return "".join(map(value_text, values.values())) + "\n" if bare else values_text(values)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    import os

    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        # "" keeps line ends as they stand in the text
        part.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
