"""Parameters read in threads that no recording reached, where a rollout gets a parameter's own value for a candidate's."""

from __future__ import annotations

from collections.abc import Collection
from threading import current_thread, get_ident
from typing import TYPE_CHECKING, Any

from trace_opt.core.context import Process

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter

_OWN = "trace_opt"


class Strays:
    """Notes such reads in this process, in a `with` block around a search."""

    def __init__(self) -> None:
        self._home = 0
        self._found: dict[int, Parameter[Any]] = {}
        self._told: set[int] = set()

    def __enter__(self) -> Strays:
        self._home = get_ident()
        Process.outside = (*Process.outside, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        Process.outside = tuple(note for note in Process.outside if note != self._note)

    def _note(self, parameter: Parameter[Any]) -> None:
        # callbacks and `approve` run in the search's own threads, and may look at a parameter's own value
        if get_ident() != self._home and not current_thread().name.startswith(_OWN):
            self._found.setdefault(id(parameter), parameter)

    def says(self, parameters: Collection[Parameter[Any]], *, fresh: bool = False) -> str:
        """What is to be said of the reads so far; "" where there was none.

        Args:
            parameters: Those of the search and those that the workflow refers to; others are of no interest.
            fresh: Whether only what was not said before is wanted.
        """
        known = {id(parameter) for parameter in parameters}
        found = [p for key, p in list(self._found.items()) if key in known and not (fresh and key in self._told)]
        self._told |= {id(parameter) for parameter in found}
        if not found:
            return ""
        names, thread = ", ".join(sorted(repr(p.name) for p in found)), "a thread that the recording does not reach"
        whose = "its own value" if len(found) == 1 else "their own values"
        return (
            f"{names} {'was' if len(found) == 1 else 'were'} read in {thread}, which gives {whose} and not a "
            "candidate's; pass the function that the thread runs through carry(...), as in pool.map(carry(op), items)"
        )
