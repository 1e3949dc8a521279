"""The ops behind a result's operators, attributes and methods, generated from Python's `operator` module."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from typing import Any

from trace_opt.core.node import Op, identity

_SYMBOLS: dict[str, str] = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@",
    "lshift": "<<", "rshift": ">>", "and_": "&", "or_": "|", "xor": "^",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip

BINARY: dict[str, Op] = {
    name.rstrip("_"): Op(name.rstrip("_"), getattr(operator, name), ("a", "b"), symbol=symbol)
    for name, symbol in _SYMBOLS.items()
} | {"divmod": Op("divmod", divmod, ("a", "b"))}
"""Two-sided operators by the name of their special method."""

COMPARISONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})
"""Those that have no reflected method."""

UNARY: dict[str, Op] = {
    "neg": Op("neg", operator.neg, ("a",), symbol="-"),
    "pos": Op("pos", operator.pos, ("a",), symbol="+"),
    "invert": Op("invert", operator.invert, ("a",), symbol="~"),
}

OPTIONAL_UNARY: dict[str, Op] = {
    "abs": Op("abs", abs, ("a",)),
    "trunc": Op("trunc", math.trunc, ("a",)),
    "floor": Op("floor", math.floor, ("a",)),
    "ceil": Op("ceil", math.ceil, ("a",)),
}
"""Given to a stand-in only where the value's class has them, so that `isinstance(x, SupportsAbs)` tells the truth."""


def _call(a: Any, args: Any, kwargs: Any) -> Any:
    return a(*args, **kwargs)


GETITEM = Op("getitem", operator.getitem, ("a", "b"), symbol="[]")
GETATTR = Op("getattr", getattr, ("a", "name"), symbol=".")
ITEM = Op("item", operator.getitem, ("a", "i"), doc="The i-th item of an iteration.")
ROUND = Op("round", round, ("a", "ndigits"))
CALL = Op("call", _call, ("a", "args", "kwargs"), variadic=frozenset({"args", "kwargs"}))
COPY = Op("copy", copy.copy, ("a",))
DEEPCOPY = Op("deepcopy", copy.deepcopy, ("a",))
OUTPUT = Op("output", identity, ("value",), kind="output")

DECISIONS: dict[str, Op] = {
    name: Op(name, identity, ("value",), kind="decision")
    for name in ("bool", "len", "int", "float", "complex", "index", "hash", "iter", "plain", "array", "path")
}
"""Ways of reading a concrete value in the workflow."""

CONTAINS = Op("contains", operator.contains, ("a", "b"), kind="decision", symbol="in")

MUTATORS: dict[type, frozenset[str]] = {
    list: frozenset({"append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse"}),
    dict: frozenset({"update", "pop", "popitem", "clear", "setdefault"}),
    set: frozenset({
        "add", "remove", "discard", "pop", "clear", "update", "intersection_update", "difference_update",
        "symmetric_difference_update",
    }),
    bytearray: frozenset({"append", "extend", "insert", "pop", "remove", "clear", "reverse"}),
}  # fmt: skip
"""Methods that would change a recorded value in place, by the class that has them."""

_OTHER_MUTATORS: dict[tuple[str, str], frozenset[str]] = {
    ("collections", "deque"): frozenset({
        "append", "appendleft", "extend", "extendleft", "insert", "pop", "popleft", "remove", "clear", "reverse", "rotate",
    }),
    ("numpy", "ndarray"): frozenset({"sort", "fill", "put", "partition", "resize", "itemset", "setfield", "setflags"}),
}  # fmt: skip

_methods: dict[str, Op] = {}


def mutates(kind: type, method: str) -> bool:
    """Whether calling `method` on a value of class `kind` changes the value."""
    for base in kind.__mro__:
        names = MUTATORS.get(base) or _OTHER_MUTATORS.get((base.__module__, base.__name__))
        if names is not None and method in names:
            return True
    return False


def method_op(name: str) -> Op:
    """The op that calls a method of a value: made once for each name."""
    found = _methods.get(name)
    if found is None:

        def call(a: Any, args: Any, kwargs: Any) -> Any:
            return getattr(a, name)(*args, **kwargs)

        made = Op(name, call, ("a", "args", "kwargs"), variadic=frozenset({"args", "kwargs"}))
        found = _methods.setdefault(name, made)
    return found


def function_op(name: str, fn: Callable[..., Any]) -> Op:
    """The op that calls a library's function on results (numpy, torch)."""

    def call(args: Any, kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return Op(name, call, ("args", "kwargs"), variadic=frozenset({"args", "kwargs"}))
