"""Code parameters in a problem text and in a reply: the contract, the calls, tracebacks by line, and sources as models give them.

A source may come as the whole function, as a unified diff of the one in force, or in a fenced block beside the JSON. What
is taken is only ever the text as it stands: nothing is repaired, renamed or reformatted.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core import code as sources
from trace_opt.core.codecheck import FunctionNode
from trace_opt.core.node import Failure, Node, ParameterNode
from trace_opt.optim.patch import is_diff, patched
from trace_opt.optim.text import cut, literal, name_text, one_line, size

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.core.rollout import Rollout
    from trace_opt.core.trainable import Code

TYPE_TEXT = "a Python function: its whole source, or a unified diff of it"
RULES = (
    "A function is given as text: the whole new source, or a unified diff of the one shown. Its name, parameters, type hints "
    "and docstring stay as they are; beside it only imports, helper functions, plain classes and literal constants may "
    "stand. Its arguments are copies. It must work on inputs that are not shown. Functions that depend on each other can be changed together."
)

_FRAME = re.compile(r'File "([^"\n]+)", line (\d+)')
_GENERATED = re.compile(r"<generated (\w+) [0-9a-f]{8}>")
_FENCE = re.compile(r"^[ \t]*(```|~~~)[^\r\n`]*\r?\n(.*?)^[ \t]*\1[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_WHOLE = re.compile(r"\s*(```|~~~)[^\r\n`]*\r?\n(.*?)\r?\n?[ \t]*\1\s*", re.DOTALL)
_CALLS = 8


def codes(parameters: Iterable[Parameter[Any]]) -> dict[str, Code]:
    """The trainable functions among parameters, by full name."""
    return {parameter.name: parameter.code for parameter in parameters if parameter.code is not None}


# -- what a model is told ----------------------------------------------------------------------------------------------


def contract_lines(code: Code, source: str, told: set[str]) -> list[str]:
    """What a function must keep, which Python it is run by, and what it may call.

    Args:
        code: The function.
        source: Its source in force.
        told: Which Pythons were described already.
    """
    contract, language = code.contract, code.sandbox.language
    lines = [f"  must keep: {one_line(contract.header)}", f"  run by: {'the same' if language in told else language}"]
    told.add(language)
    if code.is_method and code.sandbox.data:
        lines.append(
            "  its first argument: a copy with the attributes it reads, plain data only; methods cannot be called"
        )
    if code.uses:
        lines.append("  may call, as it is called here:")
        lines += [f"    {_used(name, fn)}" for name, fn in code.uses.items()]
    given = contract.preamble(f"{source}\n{code.source}").splitlines()
    if given and code.sandbox.data:
        lines.append(f"  finds: {cut('; '.join(map(one_line, given)), 400)}")
    return lines


def _used(name: str, fn: Any) -> str:
    try:
        signature = re.sub(r"(\w: |-> )'([^']*)'", r"\1\2", str(inspect.signature(fn)))
    except (TypeError, ValueError):  # some builtins tell nothing about theirs
        signature = "(...)"
    told = (inspect.getdoc(fn) or "").split("\n\n")[0]
    return f"{name}{cut(one_line(signature), 200)}{': ' + cut(one_line(told), 200) if told else ''}"


def calls_text(parameters: Sequence[Parameter[Any]], rollouts: Sequence[Rollout], limit: int) -> str:
    """How the functions were called and what came of it, failing and passing calls in equal parts.

    Args:
        parameters: All variables.
        rollouts: The rollouts shown, with graphs.
        limit: About how many bytes it may take.
    """
    functions = [parameter for parameter in parameters if parameter.code is not None]
    if not functions:
        return ""
    right = _right(rollouts)
    lines: list[str] = []
    for parameter in functions:
        failing: dict[str, None] = {}
        passing: dict[str, None] = {}
        for rollout in rollouts:
            for node in _calls_of(parameter, rollout):
                (passing if rollout in right and node.kind != "error" else failing)[_call_line(node)] = None
        lines += [f"  {line}" for line in _balanced(list(failing), list(passing), limit // len(functions))]
    return "# Calls of the functions\n" + "\n".join(lines) if lines else ""


def _calls_of(parameter: Parameter[Any], rollout: Rollout) -> list[Node[Any]]:
    """The calls of a function that took part in the output, those made in the bodies of other ops included."""
    piece = rollout.slices.get(parameter.name)
    if piece is None or parameter.code is None:
        return []
    name, found = parameter.code.name, list[Node[Any]]()
    for node in piece.path:
        if any(isinstance(read, ParameterNode) and read.name == parameter.name for read in node.reads):
            todo: list[Node[Any]] = [node]
            while todo:
                call = todo.pop()
                is_it = call.kind in ("op", "error") and call.op.name.rpartition("/")[2] == name
                found += [call] if is_it else []
                todo += reversed(call.children)
    return found


def _call_line(node: Node[Any]) -> str:
    parts: list[str] = []
    for place, given in node.arguments.items():
        value: Any = cast("Node[Any]", given).value if isinstance(given, Node) else given
        parts.append(f"{place}={literal(value, 120)}")
    came: Any = node.value
    told = f"raised {literal(came, 200)}" if isinstance(came, Failure) else f"gave {literal(came, 120)}"
    return f"{one_line(node.op.name)}({cut(', '.join(parts), 300)}) {told}"


def _balanced(failing: list[str], passing: list[str], limit: int) -> list[str]:
    """Lines of both kinds in turn, as many as fit; failing ones stand first."""
    chosen: list[tuple[int, str]] = []
    for i in range(max(len(failing), len(passing))):
        for kind, lines in enumerate((failing, passing)):
            if i < len(lines) and len(chosen) < _CALLS and size(lines[i]) + 3 <= limit:
                chosen.append((kind, lines[i]))
                limit -= size(lines[i]) + 3
    return [line for _, line in sorted(chosen, key=lambda entry: entry[0])]


def spread(ordered: Sequence[Rollout], most: int) -> list[Rollout]:
    """The rollouts to show where code is to be mended: as many that are right as that are wrong, worst first.

    Args:
        ordered: All of them, worst first.
        most: How many can be shown.
    """
    passing = _right(ordered)
    failing = [rollout for rollout in ordered if rollout not in passing]
    kept = min(len(passing), max(most // 2, most - len(failing)))
    return [*failing[: most - kept], *passing[:kept]]


def _right(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Those with the best score, where not all are alike: nothing else says which are right."""
    scores = {rollout.score for rollout in rollouts}
    best = max((score for score in scores if score is not None), default=None)
    return [rollout for rollout in rollouts if rollout.score == best] if best is not None and len(scores) > 1 else []


def by_line(text: str, parameters: Sequence[Parameter[Any]]) -> str:
    """A text whose traceback frames in a function's source are counted by the lines of its variable."""
    known = codes(parameters)
    if not known or "File " not in text:
        return text

    def told(match: re.Match[str]) -> str:
        for name, code in known.items():
            line = _line_in(code, match[1], int(match[2]))
            if line is not None:
                return f'File "<{name_text(name)}>", line {line}'
        return match[0]

    return _FRAME.sub(told, text)


def _line_in(code: Code, file: str, line: int) -> int | None:
    """Which line of a function's source a frame stands for, if any."""
    generated = _GENERATED.fullmatch(file)
    if generated is not None:
        return line if generated[1] == code.contract.name else None
    fn: Any = code.contract.fn
    if fn is None or not code.line or fn.__code__.co_filename != file:
        return None
    inside = code.line <= line < code.line + code.source.count("\n")
    return line - code.line + 1 if inside else None


def failing_lines(text: str, values: Mapping[str, Any], parameters: Sequence[Parameter[Any]]) -> str:
    """The innermost line of a function that a traceback names, with those around it.

    Args:
        text: What `by_line` gave.
        values: The values of the rollout, by full parameter name.
        parameters: All variables.
    """
    for match in reversed(list(_FRAME.finditer(text))):
        for name, code in codes(parameters).items():
            if match[1] == f"<{name_text(name)}>":
                return f"in {name_text(name)}:\n{sources.marked(str(values.get(name, code.source)), int(match[2]), around=2)}"
    return ""


# -- what a model answers ----------------------------------------------------------------------------------------------


def source_of(parameter: Parameter[Any], raw: Any) -> str:
    """The source that a reply's value stands for, checked.

    Raises:
        ValueError: it is no text, a diff that does not fit, or a source that breaks the contract.
    """
    if not isinstance(raw, str):
        raise ValueError(f"{literal(raw, 60)} is no text; give the function's source as a string")  # noqa: TRY004 # a value refused, like any other
    whole = _WHOLE.fullmatch(raw)
    text = whole[2] if whole is not None else raw
    if is_diff(text):
        try:
            text = patched(str(parameter.value), text)
        except ValueError as error:
            raise ValueError(f"{error} (the text is that of {parameter.name!r} as shown)") from None
    return parameter.check(text)


def fenced(text: str, parameters: Sequence[Parameter[Any]]) -> dict[str, str]:
    """The sources that stand in fenced blocks of a reply, by full name: a block counts if it defines one function alone.

    Args:
        text: The reply.
        parameters: All variables.
    """
    names: dict[str, list[str]] = {}
    for name, code in codes(parameters).items():
        names.setdefault(code.contract.name, []).append(name)
    if not names or ("```" not in text and "~~~" not in text):
        return {}
    found: dict[str, str] = {}
    for block in (match[2] for match in _FENCE.finditer(_after_thought(text))):
        name = _whose(block, names)
        if name is not None:
            found[name] = block
    return found


def _after_thought(text: str) -> str:
    """A reply without the thinking before it: what is tried there is no answer."""
    if "</think" in text:
        return text.rpartition("</think")[2]
    return "" if re.match(r"\s*<think", text) else text


def _whose(block: str, names: Mapping[str, Sequence[str]]) -> str | None:
    """The parameter that a block is meant for, where that is beyond doubt."""
    if is_diff(block):
        told = [
            full
            for plain, owners in names.items()
            for full in owners
            if re.search(rf"(?m)^(?:\+\+\+|---) .*\b{plain}\b", block)
        ]
        every = [full for owners in names.values() for full in owners]
        return (told if len(told) == 1 else every if len(every) == 1 else [None])[0]
    try:
        tree = ast.parse(block)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    defined = [node.name for node in tree.body if isinstance(node, FunctionNode) and node.name in names]
    return names[defined[0]][0] if len(defined) == 1 and len(names[defined[0]]) == 1 else None
