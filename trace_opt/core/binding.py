"""How an example becomes a workflow's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from trace_opt.core.node import is_a
from trace_opt.errors import TraceError


def bind(workflow: Callable[..., Any], example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments that call a workflow on an example.

    A mapping is bound by name: the workflow gets the keys that its signature names, and an argument called `example`
    gets the whole. Anything else is the only argument.

    Args:
        workflow: The function that will be called with them.
        example: One datum.

    Returns:
        Positional and keyword arguments.

    Raises:
        TraceError: the mapping lacks an argument that the workflow needs.
    """
    if not is_a(example, Mapping):
        return (example,), {}
    try:
        parameters = list(inspect.signature(workflow).parameters.values())
    except (ValueError, TypeError):  # some builtins tell nothing about theirs
        return (example,), {}
    keywords = {str(key): value for key, value in example.items()}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if any(p.name == "example" for p in named):
        keywords.setdefault("example", example)
    missing = [p.name for p in named if p.default is p.empty and p.name not in keywords]
    if missing:
        if len(named) == 1:
            return (example,), {}
        raise TraceError(
            f"an example has keys {sorted(keywords)!r} but the workflow needs {missing[0]!r}; add the key, or take "
            "the whole example through an argument called 'example'"
        )
    positional: list[Any] = []
    for p in named:
        # Python fills these from the left only, so one left out leaves out those behind it
        if p.kind is not p.POSITIONAL_ONLY or p.name not in keywords:
            break
        positional.append(keywords[p.name])
    names = {p.name for p in named if p.kind is not p.POSITIONAL_ONLY}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        names |= keywords.keys() - {p.name for p in named}
    return tuple(positional), {name: value for name, value in keywords.items() if name in names}
