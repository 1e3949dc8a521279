"""The functions of a run: found again in the problem's file, exported as a module, or written into the file they came from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trace_opt.errors import StoreError, TraceError

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.core.trainable import Code
    from trace_opt.store.records import RunRecord


def best_format(parameters: Iterable[Any]) -> Literal["code", "text"]:
    """The format that shows these parameters' values best: "code" where one of them is a function."""
    return "code" if any(parameter.kind == "code" for parameter in parameters) else "text"


def functions_of(record: RunRecord) -> list[str]:
    """The names of the parameters of a run that are functions."""
    return [parameter.name for parameter in record.parameters if parameter.kind == "code"]


def found_functions(record: RunRecord, file: str | None, options: Mapping[str, str]) -> dict[str, Code]:
    """The functions of a run, by parameter name, from the problem's file: what surrounds them is known only there.

    Args:
        record: The run.
        file: The problem's file; None takes the one that the run was started from.
        options: Options of the problem's function, besides those of the run.

    Raises:
        StoreError: the run has no functions, was started from no file, or the file no longer has one of them.
        ProblemError: the file cannot be loaded.
    """
    from trace_opt.problem import load_problem

    names = functions_of(record)
    if not names:
        raise StoreError(f"run {record.info.id!r} has no functions among its parameters; use another --format")
    origin: Mapping[str, Any] = record.config.get("origin") or {}
    path = file or str(origin.get("file", ""))
    if not path or not Path(path).exists():
        gone = f"the file {path!r} that it was started from is gone" if path else "it was started from no file"
        raise StoreError(f"the functions of run {record.info.id!r} cannot be found, for {gone}; name it with --file")
    known = _parameters(load_problem(path, {**origin.get("options", {}), **options}))
    found: dict[str, Code] = {}
    for name in names:
        code = known[name].code if name in known else None
        if code is None:
            raise StoreError(f"{path!r} has no trainable function {name!r} any more; name another file with --file")
        found[name] = code
    return found


def _parameters(problem: Any) -> dict[str, Parameter[Any]]:
    """The parameters of a problem: those it names, else all that its workflow and guide reach."""
    from trace_opt.core.parameter import by_name
    from trace_opt.search.sources import Reach

    if problem.parameters is not None:
        return by_name(problem.parameters)
    return by_name(Reach({"workflow": problem.workflow, "guide": problem.guide}).parameters_named())


def module_text(values: Mapping[str, Any], codes: Mapping[str, Code], *, title: str) -> str:
    """A module with the functions in their new form.

    Raises:
        StoreError: it cannot have what one of them reads.
    """
    from trace_opt.core.codefile import export

    sources = {name: code.check(values[name]) for name, code in codes.items() if name in values}
    try:
        return export(sources, {name: codes[name].contract for name in sources}, title=title)
    except TraceError as error:
        raise StoreError(str(error)) from None


def file_changes(values: Mapping[str, Any], codes: Mapping[str, Code]) -> dict[Path, tuple[str, str]]:
    """What writing the functions into the user's files would do: by file, its text and its new text.

    Raises:
        StoreError: a file has changed since, or cannot take a function.
    """
    from trace_opt.core.codewrite import rewritten

    changes: dict[Path, tuple[str, str]] = {}
    for name, code in codes.items():
        fn: Any = code.contract.fn
        if name not in values or values[name] == code.source:
            continue
        path = Path(fn.__code__.co_filename)
        with path.open(encoding="utf-8", newline="") as opened:
            before, now = changes.get(path) or ((text := opened.read()), text)
        try:
            changes[path] = before, rewritten(now, code.contract, code.check(values[name]))
        except TraceError as error:
            raise StoreError(str(error)) from None
    return changes


def change_lines(path: Path, before: str, after: str) -> list[str]:
    """A unified diff of a file."""
    return list(
        difflib.unified_diff(before.splitlines(), after.splitlines(), f"a/{path.name}", f"b/{path.name}", lineterm="")
    )
