"""What a call of generated code needs beside the sandbox: its view of `self`, its seed, and a traceback that shows its line."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import inspect
import linecache
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn, cast

from trace_opt.core import codecheck
from trace_opt.core.arguments import bare_all
from trace_opt.core.code import Contract
from trace_opt.core.context import RolloutState
from trace_opt.core.parameter import Parameter
from trace_opt.core.sandbox import border
from trace_opt.core.sandbox.wire import Refused
from trace_opt.errors import CodeError

_SHOWN = 200  # sources whose lines tracebacks can show

_files: OrderedDict[str, None] = OrderedDict()
_lock = threading.Lock()


def placed(error: CodeError, source: str, name: str) -> CodeError:
    """An error whose traceback ends at the line of the generated source that is to blame.

    Args:
        error: As the sandbox raised it.
        source: The generated source.
        name: The function in it.
    """
    error.__traceback__ = None
    lines = source.splitlines()
    if error.line is None or not 1 <= error.line <= len(lines):
        return error
    text = lines[error.line - 1]
    tree = ast.parse("raise _t_error")
    for node in ast.walk(tree):
        if isinstance(node, (ast.stmt, ast.expr)):
            node.lineno = node.end_lineno = error.line
            node.col_offset, node.end_col_offset = len(text) - len(text.lstrip()), len(text.encode())
    code = compile(tree, _file(source, name), "exec").replace(co_name=name)
    try:
        exec(code, {"_t_error": error})  # noqa: S102 # it raises, and nothing else
    except CodeError as raised:
        trace = raised.__traceback__
        raised.__traceback__ = None if trace is None else trace.tb_next
    return error


def _file(source: str, name: str) -> str:
    """The file name under which tracebacks find a source's lines; one for each source, as candidates run at once."""
    made = f"<generated {name} {hashlib.sha256(source.encode('utf-8', 'replace')).hexdigest()[:8]}>"
    with _lock:
        _files[made] = None
        _files.move_to_end(made)
        linecache.cache[made] = (len(source), None, source.splitlines(keepends=True), made)
        while len(_files) > _SHOWN:
            linecache.cache.pop(_files.popitem(last=False)[0], None)
    return made


def seed_of(state: RolloutState, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """The seed of one call: of the rollout, the arguments, and how often they came before; None outside a rollout.

    It depends on no other call, so that candidates are paired in chance whatever else they do.
    """
    if state.seed is None:
        return None
    try:
        key = f"{name} {args!r} {sorted(kwargs.items())!r}"[:10_000]
    except Exception:  # noqa: BLE001 # a repr of the user's
        key = name
    digest = hashlib.sha256(f"{state.seed} {key}".encode("utf-8", "replace")).hexdigest()
    count = state.calls[digest] = state.calls.get(digest, 0) + 1
    return (int(digest[:15], 16) + count) % 2**31


def awaitable(uses: Mapping[str, Callable[..., Any]]) -> tuple[dict[str, Callable[..., Any]], str]:
    """Functions of the host under names that a sandbox can give them, and the source that lets code await those to await.

    A sandbox waits for the host itself, so in generated code their calls give values; `await` needs something to wait for.
    """
    given, lines = dict[str, Callable[..., Any]](), list[str]()
    for name, fn in uses.items():
        if inspect.iscoroutinefunction(fn):
            given[f"_t_{name}"] = fn
            lines.append(f"async def {name}(*args, **kwargs):\n    return _t_{name}(*args, **kwargs)\n")
        else:
            given[name] = fn
    return given, "".join(lines)


# -- what stands around generated code ---------------------------------------------------------------------------------


def _refuse(name: str, what: str, source: str, line: int | None) -> NoReturn:
    lines = source.splitlines()
    where = f" at line {line} (`{lines[line - 1].strip()[:120]}`)" if line else ""
    raise CodeError(f"the new {name!r} {what}{where}", source=source, line=line)


def refuse_unknown(source: str, contract: Contract, known: Collection[str]) -> None:
    """Refuse names that generated code will not find.

    Args:
        source: The new text, as `checked` gave it.
        contract: The contract.
        known: Names that it will find beside imports and constants.

    Raises:
        CodeError: at the first one.
    """
    header = codecheck.free_names(f"{contract.header} pass")  # the annotations are the original's and are not evaluated
    missing = [name for name in contract.missing(source, dict.fromkeys(known)) if name not in header]
    if not missing:
        return
    name = missing[0]
    line = next((n.lineno for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name) and n.id == name), None)
    offered = f"call only {', '.join(sorted(known))}, or write" if known else "write"
    _refuse(
        contract.name,
        f"reads {name!r}, which it will not find where it runs; {offered} it out beside the function",
        source,
        line,
    )


def _on_self(source: str, contract: Contract) -> list[ast.Attribute]:
    """The attributes of the object it is called on that a method names."""
    node: Any = codecheck.only_definition(ast.parse(source), source, contract.name)
    first = [*node.args.posonlyargs, *node.args.args][0].arg
    return [
        n
        for n in ast.walk(node)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == first
    ]


def refuse_writes(source: str, contract: Contract) -> None:
    """Refuse a method that sets attributes of its object: it gets a copy, where that would be lost.

    Raises:
        CodeError: at the first one.
    """
    for node in _on_self(source, contract):
        if not isinstance(node.ctx, ast.Load):
            _refuse(
                contract.name, f"sets {ast.unparse(node)!r}, which would be lost: it runs on a copy; return the value",
                source, node.lineno,
            )  # fmt: skip


def attributes_read(source: str, contract: Contract) -> dict[str, int]:
    """The attributes of its object that a method reads, with the line of each that is the first."""
    found: dict[str, int] = {}
    for node in _on_self(source, contract):
        found[node.attr] = min(node.lineno, found.get(node.attr, node.lineno))
    return dict(sorted(found.items()))


def view(owner: Any, attributes: Mapping[str, int], source: str, contract: Contract) -> Any:
    """The object that a method is called on, as generated code sees it: the attributes it reads, as data.

    A Parameter keeps its `.value`, and reading it here ties the call to it.

    Raises:
        CodeError: an attribute is missing or no data.
    """
    values: list[Any] = []
    for name, line in attributes.items():
        try:
            found = getattr(owner, name)
        except AttributeError:
            _refuse(contract.name, f"reads the attribute {name!r}, which its object does not have", source, line)
        if isinstance(found, Parameter):
            found = _shape("Parameter", ("value",))(cast("Any", found).value)
        else:
            found = bare_all(found)
        try:
            border.sent(found)
        except Refused as refused:
            _refuse(
                contract.name,
                f"reads the attribute {name!r}, which generated code cannot have: {refused}",
                source,
                line,
            )
        values.append(found)
    kind = cast("Any", owner if isinstance(owner, type) else type(owner))
    return _shape(kind.__name__, tuple(attributes))(*values)


@functools.lru_cache(maxsize=256)
def _shape(name: str, fields: tuple[str, ...]) -> Any:
    return dataclasses.make_dataclass(name, list(fields))
