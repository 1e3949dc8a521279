"""How an example becomes a workflow's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from trace_opt.core.node import is_a
from trace_opt.errors import TraceError

Bound = tuple[tuple[Any, ...], dict[str, Any]]


class Binding:
    """Makes examples the arguments of a workflow.

    A mapping is bound by name: the workflow gets the keys that its signature names, and an argument called `example`
    gets the whole. Anything else is the only argument.

    Args:
        workflow: The function that will be called with them.
    """

    def __init__(self, workflow: Callable[..., Any]) -> None:
        try:
            parameters = list(inspect.signature(workflow).parameters.values())
        except (ValueError, TypeError):  # some builtins tell nothing about theirs
            self._named: list[inspect.Parameter] | None = None
            self._plain: frozenset[str] | None = None
            return
        self._named = named = [
            p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        self._open = any(p.kind is p.VAR_KEYWORD for p in parameters)
        names = frozenset(p.name for p in named)
        # keys that are just these need no further look
        only_names = "example" not in names and all(p.kind is not p.POSITIONAL_ONLY for p in named)
        self._plain = names if only_names else None

    def __call__(self, example: Any) -> Bound:
        """Positional and keyword arguments for one example.

        Raises:
            TraceError: a mapping lacks an argument that the workflow needs.
        """
        kind = cast("Any", type(example))
        if kind is dict and example.keys() == self._plain:
            return (), example.copy()
        named = self._named
        if named is None or not is_a(example, Mapping):
            return (example,), {}
        keywords = {str(key): value for key, value in example.items()}
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
        if self._open:
            names |= keywords.keys() - {p.name for p in named}
        return tuple(positional), {name: value for name, value in keywords.items() if name in names}


def bind(workflow: Callable[..., Any], example: Any) -> Bound:
    """Arguments that call a workflow on an example (see `Binding`).

    Raises:
        TraceError: a mapping lacks an argument that the workflow needs.
    """
    return Binding(workflow)(example)
