"""What a problem is made of, found without running it: the functions that its workflow and guide reach, and Parameters.

A resumed run must be the same problem. What is compared are hashes of source texts and constants, by name, so that a
refusal can say what changed. Only the user's own code is looked at, never the standard library, installed packages or
trace_opt itself.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import sysconfig
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from trace_opt.core.codec import content_hash
from trace_opt.core.module import HELD, Module
from trace_opt.core.parameter import Parameter
from trace_opt.llm.base import LLM

_CONSTANTS = (str, bytes, int, float, bool, type(None))
_MOST = 5000


class Reach:
    """Everything reached from some functions.

    Attributes:
        hashes: By name: of a function's or class's source, or of a constant that one refers to.
        parameters: The Parameters found, in the order of finding.
        models: The language models found.
    """

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self.hashes: dict[str, str] = {}
        self.parameters: list[Parameter[Any]] = []
        self.models: list[LLM] = []
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # an id is only good while its object lives
        todo: list[tuple[str, Any]] = list(roots.items())
        while todo and len(self._seen) < _MOST:
            name, value = todo.pop(0)
            todo.extend(self._visit(name, value))

    @property
    def containers(self) -> list[Any]:
        """The lists, tuples, sets and dicts found, in the order of finding."""
        return [value for value in self._alive if type(value) in (list, tuple, set, frozenset, dict)]

    def parameters_named(self) -> list[Parameter[Any]]:
        """The Parameters found that have a name."""
        return [p for p in self.parameters if p.owner is not None or p.own_name is not None]

    def _visit(self, name: str, value: Any) -> Iterable[tuple[str, Any]]:
        if _constant(value):
            self.hashes.setdefault(name, content_hash(value))
            return ()
        if id(value) in self._seen:
            return ()
        self._seen.add(id(value))
        self._alive.append(value)
        if isinstance(value, Parameter):
            self.parameters.append(cast("Parameter[Any]", value))
            return ()
        if isinstance(value, LLM):
            self.models.append(value)
            self.hashes.setdefault(f"model of {name}", content_hash(value.name))
            return ()
        return self._parts(name, value)

    def _parts(self, name: str, value: Any) -> Iterable[tuple[str, Any]]:
        """What else a value leads to."""
        if isinstance(value, functools.partial):
            found = cast("functools.partial[Any]", value)
            return [(name, found.func), *((f"{name} argument {i}", a) for i, a in enumerate(found.args)),
                    *((f"{name} argument {k}", v) for k, v in found.keywords.items())]  # fmt: skip
        op = getattr(value, "__trace_op__", None)
        if op is not None and not isinstance(value, type):
            return [(name, op.fn)]
        if isinstance(value, types.MethodType):
            return [(name, value.__func__), (_label(name, value.__self__), value.__self__)]
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, (list, tuple, set, frozenset, dict)):
            held = cast("Any", value.values() if isinstance(value, dict) else value)
            items = list(cast("Iterable[Any]", held))[:100]
            # texts and numbers in there may be what the workflow collects, so they say nothing about its source
            return [(f"{name}[{i}]", item) for i, item in enumerate(items) if not _constant(item)]
        return self._instance(name, value)

    def _note(self, name: str, found: Any) -> None:
        """Note a source; functions of one name (lambdas) share a hash."""
        known = self.hashes.get(name)
        made = _source_hash(found)
        self.hashes[name] = made if known is None else content_hash([known, made])

    def _function(self, fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
        if not is_users(fn):
            return
        self._note(fn.__qualname__, fn)
        yield from ((f"{fn.__qualname__} {name}", value) for name, value in _free(fn))
        for part in (fn.__defaults__ or ()), (fn.__kwdefaults__ or {}).values():
            yield from ((f"{fn.__qualname__} default {i}", value) for i, value in enumerate(part))

    def _class(self, cls: type[Any]) -> Iterator[tuple[str, Any]]:
        if not is_users(cls):
            return
        self._note(cls.__qualname__, cls)
        for base in cls.__mro__:
            if is_users(base):
                for name, value in vars(base).items():
                    inner: Any = getattr(value, "__func__", value)
                    if callable(inner) or isinstance(inner, Parameter):
                        yield f"{base.__qualname__}.{name}", inner

    def _instance(self, name: str, value: Any) -> Iterator[tuple[str, Any]]:
        cls = cast("type[Any]", type(value))
        ours = cls.__module__.partition(".")[0] == "trace_opt"
        if not (is_users(cls) or ours or isinstance(value, Module)):
            return
        yield cls.__qualname__, cls
        held = dict(getattr(value, "__dict__", {}))
        slots = [slot for base in cls.__mro__ for slot in getattr(base, "__slots__", ()) if isinstance(slot, str)]
        held |= {slot: getattr(value, slot, None) for slot in slots}
        for attribute, item in held.items():
            if not attribute.startswith("_") or attribute == HELD:
                yield f"{name}.{attribute}", item


def _constant(value: Any) -> bool:
    """Whether a value is a text, a number, or a tuple of such."""
    return isinstance(value, _CONSTANTS) or (isinstance(value, tuple) and all(map(_constant, cast("Any", value))))


def _label(name: str, value: Any) -> str:
    return f"{name} of {type(value).__qualname__}"


def _free(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function takes from around it: its closure, and the globals that it and its inner functions name."""
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue  # not filled yet
    names: dict[str, None] = {}
    todo = [fn.__code__]
    while todo:
        code = todo.pop()
        names |= dict.fromkeys(code.co_names)
        todo.extend(const for const in code.co_consts if isinstance(const, types.CodeType))
    for name in names:
        if name in fn.__globals__ and not isinstance(fn.__globals__[name], types.ModuleType):
            yield name, fn.__globals__[name]


def _source_hash(found: Callable[..., Any]) -> str:
    try:
        text = textwrap.dedent(inspect.getsource(found))
    except (OSError, TypeError):
        code = getattr(found, "__code__", None)
        text = repr(code.co_code) + repr(code.co_names) if code is not None else repr(sorted(vars(found)))
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


@lru_cache(maxsize=1)
def _foreign() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple({str(Path(paths[key]).resolve()) for key in ("stdlib", "platstdlib", "purelib", "platlib")})


def is_users(found: Any) -> bool:
    """Whether a function or class is the user's own: no package's, not the standard library's, not trace_opt's."""
    module: str = getattr(found, "__module__", None) or ""
    if module.partition(".")[0] in ("trace_opt", "builtins") or module in sys.builtin_module_names:
        return False
    code = getattr(inspect.unwrap(found) if callable(found) else found, "__code__", None)
    loaded = sys.modules.get(module)
    file = code.co_filename if code is not None else getattr(loaded, "__file__", None)
    if file is None:
        return True
    return not is_foreign(file) if not file.startswith("<") else True


def is_foreign(file: str) -> bool:
    """Whether a file belongs to the standard library or to an installed package."""
    return str(Path(file).resolve()).startswith(_foreign())


def differing(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names whose hashes differ or that only one side has."""
    return sorted(name for name in saved.keys() | now.keys() if saved.get(name) != now.get(name))
