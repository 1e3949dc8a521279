"""Places in a workflow's source where a recorded value would not act like the plain one: identity and exact type.

Nothing can stand in for a value in `x is True` or `type(x) is T`. Only what runs in the workflow matters: the body of an
op sees plain values. The source is read, never run.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from trace_opt.search.sources import is_users

_MOST = 1000


@dataclass(frozen=True, slots=True)
class Finding:
    """One place.

    Attributes:
        file: The file's name.
        line: The line in it.
        source: The code.
        remedy: What to write instead.
    """

    file: str
    line: int
    source: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.source!r} is never true of a recorded value; {self.remedy}"


def findings(workflow: Callable[..., Any]) -> list[Finding]:
    """All such places in a workflow and in the user's functions that it calls outside ops."""
    found: list[Finding] = []
    for function in functions(workflow):
        found += _in_function(function)
    return sorted(found, key=lambda finding: (finding.file, finding.line))


def hiding(workflow: Callable[..., Any]) -> list[str]:
    """Sentences about ops that call other ops in their bodies, by what their code names."""
    lines: list[str] = []
    for op in _ops(workflow):
        inner = [i.name for f in _bodies(op.fn) for i in map(_op, _named(f)) if i is not None and i is not op]
        if inner and not op.inline:
            names = ", ".join(repr(name) for name in dict.fromkeys(inner))
            lines.append(
                f"op {op.name!r} calls {names} in its body, where the graph does not show it; @trace(inline=True) on "
                f"{op.name!r} records it in place"
            )
    return lines


def functions(workflow: Callable[..., Any]) -> list[Any]:
    """The user's plain functions that run in the workflow itself, the workflow first; ops and what they call left out."""
    return [item for item in _walk(workflow) if _op(item) is None]


def _ops(workflow: Callable[..., Any]) -> list[Any]:
    return [op for op in map(_op, _walk(workflow)) if op is not None]


def _op(value: Any) -> Any:
    return getattr(value, "__trace_op__", None)


def _walk(workflow: Callable[..., Any]) -> list[Any]:
    """Functions reached through plain functions; ops are reached and not looked into."""
    seen: dict[int, Any] = {}
    todo = _bodies(workflow)
    while todo and len(seen) < _MOST:
        value = todo.pop(0)
        key = id(getattr(value, "__wrapped__", value))  # a method is wrapped anew each time
        if key in seen or (_op(value) is None and not is_users(value)):
            continue
        seen[key] = value
        if _op(value) is None:
            todo.extend(_named(value))
    return list(seen.values())


def _bodies(value: Any) -> list[Any]:
    """The functions that run when a value is called: itself, a method's, a class's, an instance's `__call__`."""
    value = inspect.unwrap(value) if _op(value) is None and callable(value) else value
    value = getattr(value, "func", value) if type(value).__name__ == "partial" else value
    if _op(value) is not None or inspect.isfunction(value):
        return [value]
    if inspect.ismethod(value):
        return [_WithSelf(value.__func__, value.__self__)] if _op(value.__func__) is None else [value.__func__]
    if isinstance(value, type):
        made = value.__dict__.get("__init__")
        return [made] if inspect.isfunction(made) else []
    call = inspect.getattr_static(value.__class__, "__call__", None)
    if call is not None and _op(call) is not None:
        return [call]
    return [_WithSelf(call, value)] if inspect.isfunction(call) else []


class _WithSelf:
    """A method's function with the object it is called on, whose other methods it may call."""

    def __init__(self, function: Any, owner: Any) -> None:
        self.__wrapped__ = function
        self.__code__ = function.__code__
        self.__globals__ = function.__globals__
        self.__closure__ = function.__closure__
        self.__module__ = function.__module__
        self.owner = owner


def _named(function: Any) -> Iterator[Any]:
    """What a function's code names and could call: globals, its closure, and attributes of its `self`."""
    code = getattr(function, "__code__", None)
    if code is None:
        return
    for cell in function.__closure__ or ():
        try:
            yield from _callable(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    owner = getattr(function, "owner", None)
    for name in _names(code):
        if name in function.__globals__:
            yield from _callable(function.__globals__[name])
        elif owner is not None:
            found = inspect.getattr_static(owner.__class__, name, None)
            if inspect.isfunction(found):
                yield found if _op(found) is not None else _WithSelf(found, owner)
            else:
                yield from _callable(getattr(owner, "__dict__", {}).get(name))


def _callable(value: Any) -> list[Any]:
    if value is None or not callable(value) or inspect.ismodule(value):
        return []
    if _op(value) is None and not is_users(
        value if hasattr(value, "__code__") or isinstance(value, type) else type(value)
    ):
        return []
    return _bodies(value)


def _names(code: Any) -> list[str]:
    names = list(code.co_names)
    for const in code.co_consts:
        if inspect.iscode(const):
            names += _names(const)
    return names


def _in_function(function: Any) -> list[Finding]:
    try:
        lines, first = inspect.getsourcelines(inspect.unwrap(function))
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):  # a lambda within an expression, or no source at all
        return []
    file = Path(inspect.getsourcefile(inspect.unwrap(function)) or "?").name
    return [
        Finding(file, first + node.lineno - 1, ast.unparse(shown), remedy)
        for node, shown, remedy in _suspects(tree.body)
    ]


def _suspects(body: list[ast.stmt]) -> Iterator[tuple[Any, ast.AST, str]]:
    todo: list[ast.AST] = list(body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and any(map(_is_trace, node.decorator_list)):
            continue  # an op of its own: its body sees plain values
        todo.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Compare):
            remedy = _remedy(node)
            if remedy:
                yield node, node, remedy
        elif isinstance(node, ast.MatchSingleton) and node.value is not None:
            yield node, node, "compare with == in a guard, or move it into an op"


def _is_trace(decorator: ast.expr) -> bool:
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    return (isinstance(target, ast.Name) and target.id == "trace") or (
        isinstance(target, ast.Attribute) and target.attr == "trace"
    )


def _remedy(node: ast.Compare) -> str:
    sides = [node.left, *node.comparators]
    for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
        pair = (left, right)
        if isinstance(operator, (ast.Is, ast.IsNot)) and any(map(_is_boolean, pair)):
            return "write == or test the value itself, or move it into an op"
        if isinstance(operator, (ast.Is, ast.IsNot, ast.Eq, ast.NotEq, ast.In, ast.NotIn)) and any(map(_is_type, pair)):
            return "write isinstance(...), or move it into an op"
    return ""


def _is_boolean(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(cast("object", node.value), bool)


def _is_type(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "type"
        and len(node.args) == 1
    )
