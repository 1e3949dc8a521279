"""Accepted code as a Python module: the imports it needs, what the original read, its decorators, the new function.

The module stands alone where it can: imports are repeated, plain values and functions of the original's module are written
out. What can only be had from the original module (an object made there) is imported from it.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from trace_opt.core import codecheck
from trace_opt.core.code import Contract, is_literal, nonlocals, normal
from trace_opt.errors import TraceError


def export(sources: Mapping[str, str], contracts: Mapping[str, Contract], *, title: str = "") -> str:
    """A module with the functions, formatted, that imports and behaves as the workflow did.

    Args:
        sources: The new sources, by any name.
        contracts: The contracts, by the same names.
        title: The module's docstring.

    Returns:
        The text of the module: imports, constants, helpers, then the functions with their decorators.

    Raises:
        TraceError: a function reads something that a module of its own cannot have.
    """
    parts = _Parts(written={contract.name for contract in contracts.values()})
    functions: list[str] = []
    for key, source in sources.items():
        contract = contracts[key]
        decorators = [_with_known_options(decorator, contract) for decorator in contract.decorators]
        for decorator in decorators:
            parts.need(codecheck.free_names(decorator), contract)
        parts.need(codecheck.free_names(source), contract)
        imports, rest = _without_imports(source)
        parts.imports.update(imports)
        functions.append(_with_decorators(rest, contract.name, [f"@{text}" for text in decorators]))
    blocks = [f'"""{title}"""'] if title else []
    # the standard library's first, as formatters have them
    for group in (True, False):
        lines = sorted({line for line in parts.imports.values() if _is_standard(line) is group}, key=_place)
        if lines:
            blocks.append("\n".join(lines))
    if parts.constants:
        blocks.append("\n".join(f"{name} = {value}" for name, value in sorted(parts.constants.items())))
    head = "\n\n".join(blocks)
    return "\n\n\n".join(text.strip("\n") for text in [head, *parts.helpers.values(), *functions] if text) + "\n"


def _is_standard(line: str) -> bool:
    """Whether an import is of the standard library."""
    return line.split()[1].partition(".")[0] in sys.stdlib_module_names


def _place(line: str) -> tuple[bool, str]:
    return line.startswith("from "), line


class _Parts:
    """What a module needs before its functions."""

    def __init__(self, *, written: set[str]) -> None:
        self.imports: dict[str, str] = {}
        self.constants: dict[str, str] = {}
        self.helpers: dict[str, str] = {}
        self.written = written

    def need(self, names: set[str], contract: Contract) -> None:
        """Bring what the names stand for in the original."""
        scope = _scope(contract)
        for name in sorted(names - self.written):
            if name in contract.imports:
                self.imports[name] = contract.imports[name]
            elif name in scope:
                self._bring(name, scope[name], contract)

    def _bring(self, name: str, value: Any, contract: Contract) -> None:
        if name in self.constants or name in self.helpers or name in self.imports:
            return
        home = "" if contract.fn is None else contract.fn.__module__
        if is_literal(value):
            self.constants[name] = repr(value)
        elif isinstance(value, types.ModuleType):
            self.imports[name] = f"import {value.__name__}" + ("" if value.__name__ == name else f" as {name}")
        elif _is_helper(value, name, home):
            self._bring_helper(name, value, contract)
        elif getattr(value, "__module__", home) != home and getattr(value, "__name__", "") == name:
            self.imports[name] = f"from {value.__module__} import {name}"
        elif home not in ("", "__main__") and not home.startswith(
            "trace_opt_problem_"
        ):  # loaded by path: no name to import
            self.imports[name] = f"from {home} import {name}"
        else:
            raise TraceError(
                f"{contract.name!r} reads {name!r}, a {type(value).__name__!r} that only its session has; define it in a "
                "module of its own to export the function"
            )

    def _bring_helper(self, name: str, value: Callable[..., Any], contract: Contract) -> None:
        try:
            text = normal(inspect.getsource(value))
        except (OSError, TypeError):
            raise TraceError(f"the source of {name!r}, which {contract.name!r} calls, cannot be found") from None
        self.written.add(name)
        self.need(codecheck.free_names(text), contract)
        self.helpers[name] = text


def _scope(contract: Contract) -> dict[str, Any]:
    """What the original can read by name."""
    return {} if contract.fn is None else {**contract.fn.__globals__, **nonlocals(contract.fn)}


def _with_known_options(decorator: str, contract: Contract) -> str:
    """A decorator without the options whose values are local to where the function was made, as `sandbox=chosen`.

    Raises:
        TraceError: the decorator itself, or a positional argument of it, is local to there.
    """
    known = {*_scope(contract), *contract.imports, *dir(builtins)}
    unknown = codecheck.free_names(decorator) - known
    if not unknown:
        return decorator
    call = ast.parse(decorator, mode="eval").body
    if isinstance(call, ast.Call):
        call.keywords = [k for k in call.keywords if not unknown & codecheck.free_names(ast.unparse(k.value))]
        kept = ast.unparse(call)
        if not unknown & codecheck.free_names(kept):
            return kept
    raise TraceError(
        f"{contract.name!r} is decorated by {decorator!r}, where {min(unknown)!r} is known only inside the function that "
        "made it; define it at the top of a module to export the function"
    )


def _is_helper(value: Any, name: str, home: str) -> bool:
    """Whether a value is a function or class of the original's own module, whose text can be repeated."""
    defined = isinstance(value, (types.FunctionType, type)) and value.__module__ == home
    return (defined and value.__name__ == name and "<locals>" not in inspect.unwrap(value).__qualname__) or (
        defined and isinstance(value, types.FunctionType) and value.__name__ == name and not value.__closure__
    )


def _without_imports(source: str) -> tuple[dict[str, str], str]:
    """The imports at the top of a source, by name, and the rest of it."""
    found = codecheck.import_lines(source)
    lines: list[str | None] = list(source.splitlines())
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            lines[node.lineno - 1 : node.end_lineno] = [None] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    return found, "\n".join(line for line in lines if line is not None)


def _with_decorators(source: str, name: str, decorators: list[str]) -> str:
    """A source with blank lines between its parts, and the decorators on its function."""
    lines = source.splitlines()
    blocks: list[str] = []
    start = 0
    nodes = ast.parse(source).body
    for before, node in zip([None, *nodes], nodes, strict=False):
        first = min([d.lineno for d in getattr(node, "decorator_list", [])], default=node.lineno) - 1
        comments = "\n".join(lines[start:first]).strip("\n")
        text = "\n".join(lines[first : node.end_lineno])
        if getattr(node, "name", None) == name:
            text = "\n".join([*decorators, text])
        both_plain = not isinstance(node, _BLOCKS) and before is not None and not isinstance(before, _BLOCKS)
        text = f"{comments}\n{text}" if comments else text
        if both_plain:
            blocks[-1] += "\n" + text
        else:
            blocks.append(text)
        start = node.end_lineno or first
    tail = "\n".join(lines[start:]).strip("\n")
    return "\n\n\n".join([*blocks, *([tail] if tail else [])])


_BLOCKS = (*codecheck.FunctionNode, ast.ClassDef)
