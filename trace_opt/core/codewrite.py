"""A new source put in the place of the old one in the user's own file, and nothing else of the file touched.

The old text must still stand there as it was captured. Imports and helper functions that the new source brings along go
where a person would put them: among the imports, and before the function.
"""

from __future__ import annotations

import ast
import textwrap
from typing import Any

from trace_opt.core import codecheck
from trace_opt.core.code import Contract, normal
from trace_opt.errors import TraceError


def rewritten(text: str, contract: Contract, source: str) -> str:
    """The text of a file with a function's source replaced.

    Args:
        text: The file as it is.
        contract: The function's contract; its source is what must stand in the file.
        source: The new source, as `checked` gave it.

    Returns:
        The new text. Decorators, comments around the function and the line ends of the file stay.

    Raises:
        TraceError: the file has changed since, or the new source cannot stand there.
    """
    ends = "\r\n" if "\r\n" in text else "\n"
    plain = text.replace("\r\n", "\n")
    try:
        tree = ast.parse(plain)
    except SyntaxError as error:
        raise TraceError(
            f"the file of {contract.name!r} does not compile any more: {error.msg}; nothing was written"
        ) from None
    node = _found(tree, plain, contract)
    lines = plain.split("\n")
    imports, before, function = _parts(source, contract.name)
    indent = " " * node.col_offset
    _refuse_taken(tree, before, contract)
    block = _indented(function, indent, contract.name)
    top = _top(tree, node)
    lines[node.lineno - 1 : node.end_lineno] = block.split("\n")
    if before:
        at = min([d.lineno for d in getattr(top, "decorator_list", [])], default=top.lineno) - 1
        lines[at:at] = [*"\n\n\n".join(before).split("\n"), "", ""]
    known = codecheck.import_lines(plain)
    new = [line for name, line in imports.items() if known.get(name) != line]
    if new:
        lines[_import_line(tree) : _import_line(tree)] = new
    made = "\n".join(lines)
    ast.parse(made)  # never write what does not compile
    return made.replace("\n", ends)


def _found(tree: ast.Module, text: str, contract: Contract) -> Any:
    """The definition in the file whose text is the contract's source."""
    named = [n for n in ast.walk(tree) if isinstance(n, codecheck.FunctionNode) and n.name == contract.name]
    lines = text.split("\n")
    same = [n for n in named if normal("\n".join(lines[n.lineno - 1 : n.end_lineno])) == contract.source]
    if len(same) != 1:
        what = (
            "is not there any more" if not named else "has changed since" if not same else "stands there more than once"
        )
        raise TraceError(
            f"{contract.name!r} {what} in its file, so nothing was written; take the function from `--format code`"
        )
    return same[0]


def _parts(source: str, name: str) -> tuple[dict[str, str], list[str], str]:
    """Imports by name, what else stands beside the function, and the function."""
    lines = source.split("\n")
    before: list[str] = []
    function = ""
    for node in ast.parse(source).body:
        first = min([d.lineno for d in getattr(node, "decorator_list", [])], default=node.lineno)
        text = "\n".join(lines[first - 1 : node.end_lineno])
        if getattr(node, "name", None) == name:
            function = text
        elif not isinstance(node, (ast.Import, ast.ImportFrom)):
            before.append(text)
    return codecheck.import_lines(source), before, function


def _refuse_taken(tree: ast.Module, before: list[str], contract: Contract) -> None:
    """Refuse helpers that would give a name of the module another meaning."""
    taken = {name for node in tree.body for name in codecheck._bound(node)}
    brought = {name for text in before for node in ast.parse(text).body for name in codecheck._bound(node)}
    if clash := sorted(taken & brought):
        raise TraceError(
            f"the new {contract.name!r} brings {clash[0]!r} along, and its file has one already, so nothing was written; "
            "take the function from `--format code`"
        )


def _indented(function: str, indent: str, name: str) -> str:
    """A function's text under an indentation.

    Raises:
        TraceError: a text of several lines in it would change by that.
    """
    if not indent:
        return function
    for node in ast.walk(ast.parse(function)):
        multi = isinstance(node, (ast.Constant, ast.JoinedStr)) and (node.end_lineno or node.lineno) > node.lineno
        if multi and not _is_doc(function, node):
            raise TraceError(
                f"the new {name!r} holds a text of several lines that indenting would change, so nothing was written; take "
                "the function from `--format code`"
            )
    return textwrap.indent(function, indent, lambda line: bool(line.strip()))


def _has_doc(node: Any) -> bool:
    return isinstance(node, codecheck.FunctionNode) and ast.get_docstring(node) is not None


def _is_doc(function: str, wanted: Any) -> bool:
    """Whether a constant is a docstring."""
    nodes: list[Any] = [node for node in ast.walk(ast.parse(function)) if _has_doc(node)]
    place = wanted.lineno, wanted.col_offset
    return any((node.body[0].lineno, node.body[0].col_offset) == place for node in nodes)


def _top(tree: ast.Module, node: Any) -> Any:
    """The statement at the top level that holds a node."""
    return next(top for top in tree.body if top.lineno <= node.lineno <= (top.end_lineno or top.lineno))


def _import_line(tree: ast.Module) -> int:
    """Behind which line imports are added: the last import at the top, else the module's docstring."""
    last = 0
    for node in tree.body:
        is_doc = last == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, (ast.Import, ast.ImportFrom)) or is_doc:
            last = node.end_lineno or node.lineno
        else:
            break
    return last
