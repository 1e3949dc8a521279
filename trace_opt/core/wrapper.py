"""The wrapper of an op: written out with the op's own signature and compiled once, when the function is decorated.

The interpreter binds the arguments and fills the defaults; outside a recording a call costs one ContextVar read. The
source is real to tracebacks (`<trace ask>`). Nothing of the user's is in it but the names of arguments.
"""

from __future__ import annotations

import functools
import inspect
import linecache
from collections.abc import Generator
from contextlib import contextmanager
from keyword import iskeyword
from threading import get_ident
from time import perf_counter
from typing import Any

from trace_opt.core import arguments, calls, reuse
from trace_opt.core.context import FRAME, Process
from trace_opt.core.node import SOLID, TENSORS, Node, Op, class_of, is_a
from trace_opt.core.parameter import Parameter
from trace_opt.core.result import STAND_INS, Blank, wrap
from trace_opt.core.standins import PLAIN_STAND_INS
from trace_opt.core.strand import Frame, running_loop


class Wrapper:
    """Writes and compiles the wrapper of one op."""

    def __init__(self, fn: Any, name: str | None, *, inline: bool, max_items: int) -> None:
        self.fn = fn
        self.inline = inline
        self.max_items = max_items
        target = fn.func if is_a(fn, functools.partial) else fn
        own = getattr(target, "__name__", None) or class_of(target).__name__
        self.name = name or (own if own != "<lambda>" else "function")
        try:
            self.signature = inspect.signature(fn)
        except (ValueError, TypeError):  # some builtins tell nothing about theirs
            self.signature = inspect.signature(lambda *args, **kwargs: None)  # noqa: ARG005
        self.parameters = list(self.signature.parameters.values())
        self.is_method = _is_method(fn, self.parameters)
        self.taken = [p.name for p in self.parameters[1 if self.is_method else 0 :]]
        self.op = Op(
            self.name, fn, tuple(self.taken), doc=_first_paragraph(fn), signature=str(self.signature), inline=inline,
            variadic=frozenset(p.name for p in self.parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)),
        )  # fmt: skip

    def build(self) -> Any:
        """The wrapper."""
        awaits = is_async(self.fn)
        if inspect.isgeneratorfunction(self.fn) or inspect.isasyncgenfunction(self.fn):
            body = self._stream_body()
        elif self.inline:
            body = self._inline_body(is_async=awaits)
        elif awaits:
            body = self._async_body()
        else:
            body = self._sync_body()
        # Python normalizes other letters in names
        usable = self.name.isascii() and self.name.isidentifier() and not iskeyword(self.name)
        safe = self.name if usable and not self.name.startswith("_t_") else "op"
        head = f"{'async ' if awaits else ''}def {safe}({self._declaration()}):\n"
        names = self._names()
        source = head + body
        filename = f"<trace {self.name if self.name.isprintable() else safe}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        exec(compile(source, filename, "exec"), names)  # noqa: S102 # built from the signature alone, no user text runs
        made = names.pop(safe)  # its globals are to hold no way back to it
        # a class or an object has a __dict__ that is no function's
        functools.update_wrapper(made, self.fn, updated=("__dict__",) if inspect.isfunction(self.fn) else ())
        for attribute, default in (("__name__", self.name), ("__qualname__", self.name), ("__doc__", None)):
            if not hasattr(self.fn, attribute):
                setattr(made, attribute, default)
        made.__signature__ = self.signature
        made.__trace_op__ = self.op
        return made

    def _names(self) -> dict[str, Any]:
        defaults = {
            f"_t_d{i}": p.default for i, p in enumerate(self.parameters) if p.default is not inspect.Parameter.empty
        }
        return {
            "_t_fn": self.fn, "_t_op": self.op, "_t_get": FRAME.get,
            "_t_ident": get_ident, "_t_loop": running_loop, "_t_process": Process, "_t_solid": SOLID,
            "_t_bare": arguments.bare_all, "_t_take": arguments.take, "_t_nested": calls.nested, "_t_settled": calls.settled,
            "_t_check": arguments.check_borrowed, "_t_clock": perf_counter, "_t_node": Node, "_t_wrap": wrap,
            "_t_stand_in": STAND_INS.get, "_t_tensor": TENSORS.get, "_t_plain": PLAIN_STAND_INS, "_t_new": object.__new__, "_t_acall": calls.acall, "_t_stream": calls.stream,
            "_t_inline": _inline, "_t_max_items": self.max_items, "_t_scoped": calls.scoped,
            "_t_reused": reuse.reused, "_t_areused": reuse.areused, "_t_blank": Blank, "_t_parameter": Parameter,
            **defaults,
        }  # fmt: skip

    def _declaration(self) -> str:
        """The argument list, defaults by reference."""
        parts: list[str] = []
        slash = star = False
        for i, p in enumerate(self.parameters):
            if slash and p.kind is not p.POSITIONAL_ONLY:
                parts.append("/")
            slash = p.kind is p.POSITIONAL_ONLY
            if p.kind is p.KEYWORD_ONLY and not star:
                parts.append("*")
                star = True
            star = star or p.kind is p.VAR_POSITIONAL
            default = "" if p.default is p.empty else f"=_t_d{i}"
            mark = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
            parts.append(f"{mark}{p.name}{default}")
        if slash:
            parts.append("/")
        return ", ".join(parts)

    def _call(self, names: dict[str, str] | None = None) -> str:
        """The argument list that calls the function with the wrapper's own arguments (or those in `names`)."""
        parts: list[str] = []
        for p in self.parameters:
            value = (names or {}).get(p.name, p.name)
            if p.kind is p.KEYWORD_ONLY:
                parts.append(f"{p.name}={value}")
            else:
                parts.append({p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + value)
        return ", ".join(parts)

    def _given(self) -> str:
        return "(" + "".join(f"{name}, " for name in self.taken) + ")"

    def _invoke(self) -> str:
        names = {name: f"_t_v[{i}]" for i, name in enumerate(self.taken)}
        return f"lambda _t_v: _t_fn({self._call(names)})"

    def _owner(self) -> str:
        """What a method is called on, which is no argument of its op."""
        return self.parameters[0].name if self.is_method else "None"

    def _outside(self, returned: str) -> list[str]:
        unwrap = [f"            if type({name}) not in _t_solid: {name} = _t_bare({name})" for name in self.taken]
        check = ["        if _t_process.unwraps:", *unwrap] if unwrap else []
        return [
            "    _t_f = _t_get()",
            "    if _t_f is not None and (_t_f.thread != _t_ident() or _t_loop() is not None): _t_f = _t_f.mine()",
            "    if _t_f is None:",
            *check,
            f"        return {returned}",
        ]

    def _sync_body(self) -> str:
        takes: list[str] = []
        for i, name in enumerate(self.taken):
            takes += [
                f"    _t_k = type({name})",
                f"    if _t_k in _t_solid: _t_n{i} = {name}",
                f"    elif _t_k in _t_plain and {name}._trace_graph is _t_g:",
                f"        _t_n{i} = {name}._trace_node; {name} = _t_n{i}.value",
                f"    else: {name}, _t_n{i} = _t_take(_t_f, {name})",
            ]
        inputs = "(" + "".join(f"_t_n{i}, " for i in range(len(self.taken))) + ")"
        # written out instead of calling calls.call and Node(): each function call is a tenth of an op call's cost
        lines = [
            *self._outside(f"_t_fn({self._call()})"),
            f"    if _t_f.inside: return _t_nested(_t_f, _t_op, {self._given()}, {self._invoke()})",
            f"    if _t_f.memo is not None: return _t_reused(_t_f, _t_op, {self._given()}, {self._invoke()}, {self._owner()})",
            "    _t_g = _t_f.graph",
            *takes,
            "    _t_f.inside = True",
            "    _t_start = _t_clock()",
            "    try:",
            f"        _t_value = _t_fn({self._call()})",
            "        if type(_t_value) not in _t_solid: _t_value = _t_settled(_t_g, _t_value)",
            "        if _t_f.borrowed: _t_check(_t_f, _t_op)",
            "    except BaseException as _t_error:",
            "        _t_f.inside = False",
            "        _t_f.borrowed.clear()",
            f"        _t_f.fail(_t_scoped(_t_f, _t_op), {inputs}, _t_f.settle(0), _t_error)",
            "        raise",
            "    _t_f.inside = False",
            "    _t_made = _t_new(_t_node)",
            "    _t_made.seconds = _t_clock() - _t_start",
            "    _t_made.op = _t_op if _t_f.scope is None else _t_op.within(_t_f.scope)",
            "    _t_made.value = _t_value",
            f"    _t_made.inputs = {inputs}",
            "    _t_made.trail = _t_f.settle(0) if _t_f.log else ()",
            "    _t_made.control = _t_f.control() if _t_f.pending else _t_f.last",
            "    _t_made.index = -1",
            "    _t_f.add(_t_made)",
            "    _t_class = _t_stand_in(type(_t_value))",
            "    if _t_class is None:",
            "        _t_class = _t_tensor(type(_t_value))",
            "        if _t_class is None: return _t_wrap(_t_f, _t_made)",
            "        _t_result = _t_value.as_subclass(_t_class)",
            "        _t_result._trace_node = _t_made",
            "        _t_result._trace_graph = _t_g",
            "        return _t_result",
            "    _t_result = _t_blank()",
            "    _t_result._trace_node = _t_made",
            "    _t_result._trace_graph = _t_g",
            "    _t_result.__class__ = _t_class",
            "    return _t_result",
        ]
        return "\n".join(lines) + "\n"

    def _async_body(self) -> str:
        lines = [
            *self._outside(f"await _t_fn({self._call()})"),
            "    if _t_f.memo is not None and not _t_f.inside:",
            f"        return await _t_areused(_t_f, _t_op, {self._given()}, {self._invoke()}, {self._owner()})",
            f"    return await _t_acall(_t_f, _t_op, {self._given()}, {self._invoke()})",
        ]
        return "\n".join(lines) + "\n"

    def _stream_body(self) -> str:
        lines = [
            *self._outside(f"_t_fn({self._call()})"),
            f"    return _t_stream(_t_f, _t_op, {self._given()}, {self._invoke()}, _t_max_items)",
        ]
        return "\n".join(lines) + "\n"

    def _inline_body(self, *, is_async: bool) -> str:
        wait = "await " if is_async else ""
        nested = "_t_acall" if is_async else "_t_nested"
        lines = [
            *self._outside(f"{wait}_t_fn({self._call()})"),
            "    if _t_f.inside:",
            f"        return {wait}{nested}(_t_f, _t_op, {self._given()}, {self._invoke()})",
            *[f"    if isinstance({name}, _t_parameter): {name} = {name}.value" for name in self.taken],
            "    with _t_inline(_t_f, _t_op.name):",
            f"        return {wait}_t_fn({self._call()})",
        ]
        return "\n".join(lines) + "\n"


def is_async(fn: Any) -> bool:
    """Whether calling a function, or an object that can be called, gives something to await."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(_call_method(fn))


def _call_method(fn: Any) -> Any:
    """What runs when an object that is no function is called."""
    return None if inspect.isroutine(fn) or isinstance(fn, (type, functools.partial)) else type(fn).__call__


def _is_method(fn: Any, parameters: list[inspect.Parameter]) -> bool:
    """Whether the first argument is the instance or class that a method is called on."""
    scope = getattr(fn, "__qualname__", "").rpartition(".")[0]
    return bool(scope and not scope.endswith("<locals>") and parameters and parameters[0].name in ("self", "cls"))


def _first_paragraph(fn: Any) -> str:
    if isinstance(fn, (functools.partial, type)) or not getattr(fn, "__name__", ""):
        return ""
    return " ".join((inspect.getdoc(fn) or "").split("\n\n")[0].split())


@contextmanager
def _inline(frame: Frame, name: str) -> Generator[None]:
    before = frame.scope
    frame.scope = name if before is None else f"{before}/{name}"
    try:
        yield
    finally:
        frame.scope = before
