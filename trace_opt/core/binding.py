"""How an example becomes a workflow's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from trace_opt.errors import TraceError


@lru_cache(maxsize=256)
def _arguments(workflow: Callable[..., Any]) -> tuple[tuple[str, ...], frozenset[str], bool]:
    """Argument names, the ones without a default, and whether any keyword is taken."""
    try:
        parameters = inspect.signature(workflow).parameters.values()
    except (ValueError, TypeError):
        return ("example",), frozenset(), False
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = frozenset(p.name for p in named if p.default is p.empty)
    return tuple(p.name for p in named), needed, any(p.kind is p.VAR_KEYWORD for p in parameters)


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
    if not isinstance(example, Mapping):
        return (example,), {}
    names, needed, any_keyword = _arguments(workflow)
    keywords: dict[str, Any] = {str(key): value for key, value in example.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if "example" in names and "example" not in keywords:
        keywords["example"] = example
    bound = keywords if any_keyword else {name: keywords[name] for name in names if name in keywords}
    missing = sorted(needed - set(bound))
    if missing:
        if len(names) == 1 and not any(name in keywords for name in names):
            return (example,), {}
        raise TraceError(
            f"an example has keys {sorted(keywords)!r} but the workflow needs {missing[0]!r}; add the key, or take "
            "the whole example through an argument called 'example'"
        )
    return (), bound
