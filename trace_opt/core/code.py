"""A function's source as a value that may be rewritten: what is captured, what must stay, how a change is shown.

The value is plain text: the `def` alone, without the decorators around it. Its `Contract` holds what a proposal may not
touch: name, parameters, type hints, docstring. `checked` refuses a proposal that breaks it and gives back the text that is
kept, with the original's own header and docstring, so that line numbers mean the same wherever the code is shown or run.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import inspect
import linecache
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trace_opt.core import codecheck
from trace_opt.core.codecheck import FunctionNode
from trace_opt.core.node import is_a
from trace_opt.errors import CodeError, TraceError

MAX_SIZE = 20_000  # characters; more than any function that a person would accept


@dataclass(frozen=True, slots=True, eq=False)
class Contract:
    """What a proposal may not touch, and what the code around the function gives it.

    Args:
        name: The function's name.
        source: The original text, as `checked` would give it back.
        header: From `def` to the colon.
        doc: The docstring, or None.
        hints: Annotations of parameters and `return`, resolved where they can be.
        decorators: The text of all decorators, outermost first.
        imports: Import statements of the original module, by the name each binds.
        constants: Plain values (numbers, text, tuples of them) that the original reads, by name.
        is_async: Whether it is an `async def`.
        fn: The function, or None where only text was given.
        max_size: The greatest number of characters.
    """

    name: str
    source: str
    header: str
    doc: str | None
    hints: Mapping[str, Any] = field(default_factory=dict[str, Any])
    decorators: tuple[str, ...] = ()
    imports: Mapping[str, str] = field(default_factory=dict[str, str])
    constants: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_async: bool = False
    fn: Callable[..., Any] | None = None
    max_size: int = MAX_SIZE

    @property
    def returns(self) -> Any:
        """The annotation of its result, or `inspect.Signature.empty`."""
        return self.hints.get("return", inspect.Signature.empty)

    @property
    def text(self) -> str:
        """The contract in words and code, as a model is told it."""
        doc = "" if self.doc is None else f'\n    """{self.doc}"""'
        return f"{self.header}{doc}\n    ..."

    def preamble(self, source: str) -> str:
        """What must run before a source: those imports and constants of the original module that it reads."""
        free = codecheck.free_names(source)
        lines = dict.fromkeys(text for name, text in self.imports.items() if name in free)
        constants = [f"{name} = {value!r}" for name, value in self.constants.items() if name in free]
        return "".join(f"{line}\n" for line in [*lines, *constants])

    def missing(self, source: str, uses: Mapping[str, Any]) -> list[str]:
        """Names that a source reads and that nothing would give it in a sandbox."""
        known = {*uses, *self.imports, *self.constants, *dir(__import__("builtins"))}
        return sorted(codecheck.free_names(source) - known)


def capture(fn: Callable[..., Any], source: str | None = None, *, max_size: int = MAX_SIZE) -> Contract:
    """The contract of a function, from its file, a notebook cell, the REPL, or text given along.

    Args:
        fn: A function made by `def` or `async def`; what decorators made of it is unwrapped.
        source: Its text, where Python does not know it (a function made by `exec`).
        max_size: The greatest number of characters that a proposal may have.

    Raises:
        TraceError: it is a lambda, a generator, a builtin or a class, or its source cannot be found.
    """
    plain = _plain_function(fn)
    text = _source_of(plain) if source is None else source
    try:
        tree = ast.parse(normal(text))
    except SyntaxError as error:
        raise TraceError(
            f"the source given for {plain.__name__!r} does not compile: {error.msg}; give the whole def"
        ) from None
    node = _definition(tree, plain, given=source is not None)
    return _contract(node, normal(text), plain, max_size)


def contract_of(source: str, *, name: str | None = None, max_size: int = MAX_SIZE) -> Contract:
    """The contract of a function that is given as text alone; its hints stay unresolved.

    Args:
        source: Text with one function, or with several and `name`.
        name: Which function.
        max_size: As for `capture`.

    Raises:
        CodeError: it does not compile, or holds no such function.
    """
    text = normal(source)
    tree = codecheck.parsed(text, name or "function")
    found = [n for n in tree.body if isinstance(n, FunctionNode) and name in (None, n.name)]
    if len(found) != 1:
        wanted = "one function" if name is None else f"one function {name!r}"
        raise CodeError(
            f"the source holds {len(found)} functions where {wanted} was expected; give one def", source=text
        )
    return _contract(found[0], text, None, max_size)


def _plain_function(fn: Any) -> types.FunctionType:
    target: Any = inspect.unwrap(fn.func if is_a(fn, functools.partial) else fn)
    target = getattr(target, "__func__", target)
    shown = getattr(fn, "__name__", None) or repr(fn)
    if not isinstance(target, types.FunctionType):
        raise TraceError(f"{shown!r} has no Python source, so it cannot be trained; write a def that calls it")
    if target.__name__ == "<lambda>":
        raise TraceError("a lambda has no def whose source could be rewritten; write it as a def to train it")
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise TraceError(f"{shown!r} is a generator, whose items cannot leave a sandbox; return a list to train it")
    return target


def _source_of(fn: types.FunctionType) -> str:
    file, first = fn.__code__.co_filename, fn.__code__.co_firstlineno
    linecache.checkcache(file)
    try:
        # inspect finds notebook cells and, from 3.13 on, the REPL through linecache
        lines, _ = inspect.getsourcelines(fn)
    except (OSError, TypeError, IndexError):
        lines = inspect.getblock(linecache.getlines(file)[first - 1 :])
    if not lines:
        raise TraceError(
            f"the source of {fn.__name__!r} cannot be found (it was made in {file!r}); define it in a file or notebook, or "
            "give its text with source=..."
        )
    return "".join(lines)


def _definition(tree: ast.Module, fn: types.FunctionType, *, given: bool) -> Any:
    found = [n for n in ast.walk(tree) if isinstance(n, FunctionNode) and n.name == fn.__name__]
    if not found or (given and found[0] not in tree.body):
        raise TraceError(f"the source of {fn.__name__!r} holds no def of that name; give its text with source=...")
    return found[0]


def normal(source: str) -> str:
    """A source with Unix newlines, no common indentation, no space at line ends, and one newline at its end."""
    text = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return textwrap.dedent(text.expandtabs(4) if _mixed(text) else text).strip("\n").rstrip() + "\n"


def _mixed(text: str) -> bool:
    """Whether lines are indented by tabs, which would not line up with what is put beside them."""
    return any(line[: len(line) - len(line.lstrip())].count("\t") for line in text.split("\n"))


def _contract(node: Any, text: str, fn: types.FunctionType | None, max_size: int) -> Contract:
    lines = text.split("\n")
    decorators = tuple(ast.get_source_segment(text, d) or ast.unparse(d) for d in node.decorator_list)
    body = normal("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    header = codecheck.header_of(codecheck.parsed(body, node.name).body[0], body)
    none: tuple[dict[str, str], dict[str, Any]] = ({}, {})
    found = none if fn is None else _around(fn, body)
    return Contract(
        name=node.name, source=body, header=header, doc=ast.get_docstring(node, clean=False), hints=_hints(fn),
        decorators=decorators, imports=found[0], constants=found[1], is_async=isinstance(node, ast.AsyncFunctionDef), fn=fn,
        max_size=max_size,
    )  # fmt: skip


def _hints(fn: types.FunctionType | None) -> dict[str, Any]:
    if fn is None:
        return {}
    try:
        # names of the scope around a nested function are found where it reads them
        return typing.get_type_hints(fn, localns=nonlocals(fn), include_extras=True)
    except Exception:  # noqa: BLE001 # annotations are the user's expressions and may fail in any way
        return {name: hint for name, hint in fn.__annotations__.items() if not isinstance(hint, str)}


def _around(fn: types.FunctionType, source: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The imports of a function's module, and the plain values that the function reads."""
    module = linecache.getlines(fn.__code__.co_filename)
    imports = codecheck.import_lines("".join(module)) if module else {}
    for name, value in fn.__globals__.items():  # in a notebook the import stands in another cell
        if isinstance(value, types.ModuleType) and name not in imports and not name.startswith("__"):
            imports[name] = f"import {value.__name__}" + ("" if value.__name__ == name else f" as {name}")
    free = codecheck.free_names(source)
    scope = {**fn.__globals__, **nonlocals(fn)}
    return imports, {name: scope[name] for name in sorted(free) if name in scope and is_literal(scope[name])}


def nonlocals(fn: Any) -> dict[str, Any]:
    """What a nested function finds in the functions around it; names that are not bound yet are left out."""
    found: dict[str, Any] = {}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # the function itself, while it is being decorated
            found[name] = cell.cell_contents
    return found


def is_literal(value: Any) -> bool:
    """Whether the repr of a value is source for it."""
    if type(value) in (tuple, list, set, dict):
        parts: list[Any] = [*value, *value.values()] if type(value) is dict else [*value]
        return len(parts) < 1000 and all(is_literal(part) for part in parts)
    if type(value) is float:
        return value - value == 0
    return value is None or type(value) in (str, bytes, int, bool)


def checked(source: str, contract: Contract) -> str:
    """A proposal that keeps the contract, as the text that is kept.

    Args:
        source: What was proposed: the function, with imports, helper functions and plain constants beside it if need be.
        contract: The contract.

    Returns:
        The text with the original's header and docstring, without decorators that repeat the original's.

    Raises:
        CodeError: it is too long, does not compile, names another function or other parameters, or does something when it
            is defined. One sentence, with the line.
    """
    if not is_a(source, str):
        raise CodeError(f"the new {contract.name!r} is a {type(source).__name__!r}; give its source as text")
    if len(source) > contract.max_size:
        raise CodeError(
            f"the new {contract.name!r} has {len(source)} characters; at most {contract.max_size} are allowed",
            source=source[: contract.max_size], limit="size",
        )  # fmt: skip
    text = normal(source)
    tree = codecheck.parsed(text, contract.name)
    node = codecheck.only_definition(tree, text, contract.name)
    codecheck.no_side_effects(tree, text, node, contract.decorators)
    codecheck.same_signature(node, text, contract.header, contract.name)
    kept = codecheck.restored(node, text, contract.header, contract.doc)
    codecheck.compiled(kept, contract.name)
    return kept


def diff(old: str, new: str, name: str) -> str:
    """The unified diff between two sources of a function; empty where they are equal."""
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), f"{name} (before)", f"{name} (after)"
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def marked(source: str, line: int | None, *, around: int = 3) -> str:
    """The lines of a source around one of them, numbered, that one marked: what a model is shown of a failure."""
    lines = source.splitlines()
    if line is None or not 1 <= line <= len(lines):
        return source
    chosen = range(max(1, line - around), min(len(lines), line + around) + 1)
    return "\n".join(f"{'->' if n == line else '  '} {n:3} {lines[n - 1]}" for n in chosen)


def generated_line(error: BaseException, filename: str) -> int | None:
    """The innermost line of a generated source in the traceback of an exception raised in this process."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
