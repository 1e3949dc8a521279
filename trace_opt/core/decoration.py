"""What is settled when a trainable function is decorated: what may cross, what may be called, which decorators stand inside.

What a decorator made of the original holds the original. So those below `@trace` are found in the source, taken by their
text from where the function is defined, and put around each new source as well.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trace_opt.core import code as sources
from trace_opt.core.code import Contract
from trace_opt.core.node import is_a
from trace_opt.core.sandbox import Sandbox, border
from trace_opt.core.sandbox.wire import Refused
from trace_opt.errors import TraceError

Uses = Sequence[Callable[..., Any]] | Mapping[str, Callable[..., Any]]
"""Functions that generated code may call, by their names or by those given."""


def inner(contract: Contract, frame: Any) -> list[Callable[[Any], Any]]:
    """The decorators below `@trace`, outermost first.

    Args:
        contract: The function's contract.
        frame: Where it is decorated.

    Raises:
        TraceError: one of them cannot be found again.
    """
    texts = list(contract.decorators)
    for place, text in enumerate(texts):
        if _is_trace(text, frame):
            texts = texts[place + 1 :]
            break
    return [_decorator(text, contract, frame) for text in texts if text not in ("staticmethod", "classmethod")]


def _is_trace(text: str, frame: Any) -> bool:
    """Whether a decorator is `trace`, under whatever name."""
    node = ast.parse(text, mode="eval").body
    called = ast.unparse(node.func if isinstance(node, ast.Call) else node)
    try:
        found = _value(called, frame)
    except Exception:  # noqa: BLE001 # names of the user's, which may be gone
        return called.rpartition(".")[2] == "trace"
    found = found.func if is_a(found, functools.partial) else found
    return getattr(found, "__module__", "") == "trace_opt.core.tracer"


def _value(text: str, frame: Any, scope: dict[str, Any] | None = None) -> Any:
    return eval(text, {**frame.f_globals, **(scope or {})}, frame.f_locals)  # noqa: S307 # the user's own source


def _decorator(text: str, contract: Contract, frame: Any) -> Callable[[Any], Any]:
    fn: Any = contract.fn
    try:
        found = _value(text, frame, None if fn is None else fn.__globals__)
    except Exception as error:  # noqa: BLE001 # the expression is the user's
        raise TraceError(
            f"the decorator @{text} of {contract.name!r} cannot be put around generated code ({type(error).__name__}: "
            f"{error}); define what it names at the top level of the module, or put it above @trace"
        ) from None
    if not callable(found):
        raise TraceError(f"the decorator @{text} of {contract.name!r} is {found!r}, which cannot be called")
    return found


def def_line(contract: Contract) -> int:
    """The line of its file on which a function's `def` stands, decorators left out."""
    if contract.fn is None:
        return 0
    code: Any = getattr(contract.fn, "__code__", None)
    first = contract.source.split("\n", 1)[0].strip()
    lines = linecache.getlines(code.co_filename)
    start = code.co_firstlineno
    return next((n for n in range(start, len(lines) + 1) if lines[n - 1].strip() == first), 0)


def refuse_hidden(contract: Contract, frame: Any) -> None:
    """Refuse a function that came through a decorator that hides it, so that another's source would be trained.

    Raises:
        TraceError: the source found stands elsewhere than the line that is being decorated.
    """
    fn: Any = contract.fn
    line = frame.f_lineno
    file = frame.f_code.co_filename
    if fn is None or not linecache.getline(file, line).lstrip().startswith("@"):
        return
    elsewhere = fn.__code__.co_filename != file
    last = def_line(contract)
    if elsewhere or (last and not fn.__code__.co_firstlineno <= line < last):
        raise TraceError(
            f"a decorator below @trace gave {contract.name!r} in place of the function at line {line}; let it use "
            "functools.wraps, or put it above @trace"
        )


def trusting(contract: Contract) -> Sandbox:
    """A sandbox in process where generated code finds what the original finds."""
    from trace_opt.core.sandbox.trusted import Trusted

    fn: Any = contract.fn
    return Trusted(namespace=_Around(fn))


class _Around(Mapping[str, Any]):
    """The names that a function sees around it, as they are now."""

    def __init__(self, fn: Any) -> None:
        self._fn = fn
        self._found: dict[str, Any] = {}

    def __iter__(self) -> Any:
        self._found = {**self._fn.__globals__, **sources.nonlocals(self._fn)}
        return iter(list(self._found))

    def __getitem__(self, name: str) -> Any:
        return self._found[name]

    def __len__(self) -> int:
        return len(self._fn.__globals__)


def refuse_obstacles(contract: Contract, sandbox: Sandbox) -> None:
    """Refuse annotations and defaults of values that cannot cross.

    Raises:
        TraceError: at the first of them.
    """
    if not sandbox.data:
        return
    for name, hint in contract.hints.items():
        why = border.obstacle(hint, arrays=sandbox.arrays)
        if why is not None:
            what = "its result" if name == "return" else f"its argument {name!r}"
            raise TraceError(
                f"{contract.name!r} cannot be trained in this sandbox, for {what} cannot cross into it: {why}; annotate "
                "plain data, or use sandbox='trusted'"
            )
    fn: Any = contract.fn
    for parameter in inspect.signature(fn).parameters.values() if fn is not None else ():
        if parameter.default is not parameter.empty:
            try:
                border.sent(parameter.default, arrays=sandbox.arrays)
            except Refused as refused:
                raise TraceError(
                    f"{contract.name!r} cannot be trained in this sandbox, for the default of {parameter.name!r} cannot "
                    f"cross into it: {refused}; give it plain data, or use sandbox='trusted'"
                ) from None


def by_name(uses: Uses, contract: Contract, sandbox: Sandbox) -> dict[str, Callable[..., Any]]:
    """The functions in `uses` by name.

    Raises:
        TraceError: one cannot be called, has no name that code can use, or is asynchronous where `fn` is not.
    """
    label = contract.name
    pairs = list(uses.items()) if isinstance(uses, Mapping) else [(getattr(fn, "__name__", ""), fn) for fn in uses]
    found: dict[str, Callable[..., Any]] = {}
    for name, fn in pairs:
        if not callable(fn):
            raise TraceError(f"uses= of {label!r} holds {fn!r}, which cannot be called; give functions or ops")
        if not name.isidentifier() or name.startswith("_t_") or name in found or name == label:
            raise TraceError(
                f"uses= of {label!r} holds {fn!r} under the name {name!r}; name each as code calls it: uses={{'name': fn}}"
            )
        if not contract.is_async and inspect.iscoroutinefunction(fn):
            raise TraceError(
                f"{label!r} is no async function, so it cannot use {name!r}, which is; make it an async def"
            )
        returned: Any = sources._hints(fn).get("return", border.ANY) if inspect.isfunction(fn) else border.ANY
        why = border.obstacle(returned, arrays=sandbox.arrays) if sandbox.data else None
        if why is not None:
            raise TraceError(f"{label!r} cannot use {name!r}, whose result cannot be handed to generated code: {why}")
        found[name] = fn
    return found
