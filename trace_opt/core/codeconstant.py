"""Which expressions of a proposed source are constants: read off the syntax tree, and cheap to work out when it is loaded."""

from __future__ import annotations

import ast
import operator
from typing import Any

_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv", ast.FloorDiv: "floordiv", ast.Mod: "mod",
    ast.Pow: "pow", ast.LShift: "lshift",
}  # fmt: skip
_MOST_BITS = 128


def is_constant(node: ast.expr) -> bool:
    """Whether an expression is a literal, or arithmetic on a few numbers as `10**9 + 7` or `float("inf")`."""
    return is_literal(node) or _number(node) is not None


def is_literal(node: ast.expr) -> bool:
    """Whether an expression is a literal, containers of literals included."""
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _number(node: ast.expr) -> float | None:
    """What arithmetic on numbers gives; None for all else and for what grows long."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value] # of one of the two types
    if isinstance(node, ast.Call) and ast.unparse(node) in ("float('inf')", "float('-inf')"):
        return float(ast.literal_eval(node.args[0]))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inner = _number(node.operand)
        return None if inner is None else (-inner if isinstance(node.op, ast.USub) else inner)
    if not isinstance(node, ast.BinOp) or type(node.op) not in _ARITHMETIC:
        return None
    left, right = _number(node.left), _number(node.right)
    if left is None or right is None or (isinstance(node.op, (ast.Pow, ast.LShift)) and not 0 <= right <= _MOST_BITS):
        return None
    try:
        found: Any = getattr(operator, _ARITHMETIC[type(node.op)])(left, right)
    except (ArithmeticError, TypeError, ValueError):
        return None
    return found if type(found) is float or (type(found) is int and found.bit_length() <= _MOST_BITS) else None
