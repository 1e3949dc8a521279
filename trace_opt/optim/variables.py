"""Parameters as the variables of a problem text: name, what is allowed, what it is for, and the whole value."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from trace_opt.optim.functions import contract_lines
from trace_opt.optim.schema import field_lines, to_json, type_text
from trace_opt.optim.text import block, json_text, name_text, one_line

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter


def variables_text(parameters: Sequence[Parameter[Any]], reached: Collection[str] | None = None) -> str:
    """All variables, each whole.

    Args:
        parameters: Those that may be changed; the values in force are shown.
        reached: Names of those that took part in what is shown; None where nothing is known.
    """
    told: set[str] = set()
    return "\n".join(_variable_text(parameter, reached, told) for parameter in parameters)


def _variable_text(parameter: Parameter[Any], reached: Collection[str] | None, told: set[str]) -> str:
    lines = [f"{name_text(parameter.name)} ({one_line(type_text(parameter))})"]
    if parameter.description:
        lines.append(f"  for: {one_line(parameter.description)}")
    if parameter.code is not None:
        lines += contract_lines(parameter.code, str(parameter.value), told)
    lines += [f"  field {line}" for line in field_lines(parameter)]
    lines.append(f"  now:{value_text(parameter, parameter.value)}")
    if parameter.suggestions:
        given = json_text([to_json(parameter, suggestion) for suggestion in parameter.suggestions])
        lines.append(f"  suggestions: {given}")
    if reached is not None and parameter.name not in reached:
        lines.append("  (it did not reach any output shown below)")
    return "\n".join(lines)


def value_text(parameter: Parameter[Any], value: Any) -> str:
    """A variable's value, exactly: JSON on one line, or a block for a text of several plain lines."""
    given = to_json(parameter, value)
    if parameter.code is not None and isinstance(given, str):
        given = given.removesuffix("\n")
    # a block loses which character ends a line, so it is only for texts that know but one
    if isinstance(given, str) and "\n" in given and given.splitlines() == given.split("\n"):
        return "\n" + block(given, "    ")
    return f" {json_text(given)}"
