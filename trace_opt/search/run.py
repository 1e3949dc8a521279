"""What `optimize` gives back, and how its values come into Parameters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.codec import dump_value, encode, restore_value
from trace_opt.core.graph import Graph
from trace_opt.core.module import Module
from trace_opt.core.parameter import Parameter, by_name
from trace_opt.errors import ProblemError, meant
from trace_opt.store.records import TrialRecord

if TYPE_CHECKING:
    from trace_opt.core.rollout import Cost
    from trace_opt.search.report import Report


class Run:
    """A finished search. It has written to no Parameter; `apply` does.

    Attributes:
        id: Its id in the store; "" where nothing was kept.
        best: The best values by full parameter name.
        start: The starting values.
        parameters: What could change, by full name.
        history: Every trial, in order.
        spent: What model calls cost, by role; "lost" are calls whose answers nobody kept.
        status: "finished".
        ended: Why the search ended, in words.
    """

    def __init__(
        self, *, id: str, parameters: Mapping[str, Parameter[Any]], best: dict[str, Any], start: dict[str, Any],  # the field's word
        history: Sequence[TrialRecord], spent: Mapping[str, Cost], ended: str, report: Report, graph: Graph | str | None,
    ) -> None:  # fmt: skip
        self.id = id
        self.best = best
        self.start = start
        self.history = tuple(history)
        self.spent = dict(spent)
        self.status = "finished"
        self.ended = ended
        self.parameters = dict(parameters)
        self._report = report
        self._graph = graph

    def report(self) -> Report:
        """First values against best: `print` it, or take its `to_json()`."""
        return self._report

    @property
    def graph(self) -> Graph | None:
        """The recording of the best values' rollout on the first validation example."""
        if isinstance(self._graph, str):
            self._graph = Graph.from_json(self._graph)
        return self._graph

    def apply(self) -> None:
        """Write the best values to the Parameters."""
        load_values(self.parameters, self.best)

    def __repr__(self) -> str:
        return f"<run {self.id!r}, {len(self.history)} trials: {self.ended}>"


def load_values(
    parameters: Module | Mapping[str, Parameter[Any]] | Iterable[Parameter[Any]], source: str | Path | Mapping[str, Any]
) -> None:
    """Write values to Parameters, all or none.

    Args:
        parameters: A Module, Parameters by name, or Parameters.
        source: Values by full name, or a JSON file of `trace-opt export` or of such values.

    Raises:
        ProblemError: the file cannot be read, a name is no parameter's, or a value is not allowed.
    """
    known = _named(parameters)
    given = dict(source) if isinstance(source, Mapping) else _from_file(Path(source), known)
    for name, value in checked(known, given).items():
        known[name].value = value


def checked(known: Mapping[str, Parameter[Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values as their parameters take them.

    Args:
        known: By full name.
        given: Values by full name.

    Raises:
        ProblemError: a name is no parameter's, or a value is not allowed.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            hint = meant(name, known, f"known: {', '.join(known)}")
            raise ProblemError(f"there is no parameter {name!r}; {hint}")
        try:
            found[name] = known[name].check(_typed(known[name], value))
        except ValueError as error:
            raise ProblemError(str(error)) from None
    return found


def _typed(parameter: Parameter[Any], value: Any) -> Any:
    """A structured value that came as plain data, as an exported module holds it, made what the parameter's type says.

    Raises:
        ValueError: the parameter does not allow it.
    """
    if parameter.kind != "structured":
        return value
    try:
        return parameter.check(value)
    except ValueError as refused:
        try:
            made = restore_value(parameter, encode(value))
        except ValueError:
            raise refused from None
        # JSON is read leniently: 5 is a date and "5" a number there, but no export writes them so
        if not isinstance(value, (dict, list)) and dump_value(parameter, made) != encode(value):
            raise
        return made


def _named(parameters: Any) -> dict[str, Parameter[Any]]:
    if isinstance(parameters, Module):
        return parameters.named_parameters()
    if isinstance(parameters, Mapping):
        return dict(cast("Mapping[str, Parameter[Any]]", parameters))
    return by_name(parameters)


def _from_file(path: Path, known: Mapping[str, Parameter[Any]]) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProblemError(f"{str(path)!r} cannot be read ({error.strerror}); pass a file of values") from error
    except ValueError as error:
        raise ProblemError(f"{str(path)!r} holds no JSON ({error}); pass a file of `trace-opt export`") from error
    if not isinstance(data, dict):
        raise ProblemError(f"{str(path)!r} holds no values by name; pass a file of `trace-opt export`")
    found = cast("dict[str, Any]", data)
    values = (
        cast("dict[str, Any]", found["values"])
        if isinstance(found.get("values"), dict) and "values" not in known
        else found
    )
    restored: dict[str, Any] = {}
    for name, value in values.items():
        try:
            restored[name] = restore_value(known[name], value) if name in known else value
        except ValueError as error:
            raise ProblemError(str(error)) from None
    return restored
