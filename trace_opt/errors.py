"""Every error that trace_opt raises on purpose.

    TraceOptError
    ├── TraceError (TypeError)      an edge would be lost, a recorded value was mutated, nesting or threads were misused
    ├── OpError                     an exception left a recording; .node .graph, the user's exception in __cause__
    ├── CodeError                   generated code does not compile, changed its signature, or failed; .source .line .limit
    ├── ReplyError                  a model's reply held no usable proposal; .reply .problems
    ├── LLMError                    a model could not be reached, refused, or is not configured; .kind
    ├── BudgetError                 the budget cannot pay for what was asked
    ├── FeedbackError (ValueError)  a guide returned no finite score
    ├── GradientError               a loss gives a tensor parameter no gradient, or one that cannot be trusted
    ├── ProblemError (ValueError)   a problem, its file, or an option of `optimize` makes no sense
    └── StoreError                  a run is missing, foreign, locked, changed, or from a newer version

A failing candidate is data and is recorded; a user's mistake raises, before a model call is paid where possible.
A message says what happened, names the thing by its repr, and says what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from trace_opt.core.graph import Graph
    from trace_opt.core.node import Node

LLMErrorKind = Literal[
    "rate", "quota", "server", "key", "model", "too_long", "request", "timeout", "connection", "malformed", "refusal"
]

RETRIED_KINDS: frozenset[LLMErrorKind] = frozenset({"rate", "server", "timeout", "connection", "malformed"})
"""Kinds that a later attempt may mend."""

LASTING_KINDS: frozenset[LLMErrorKind] = frozenset({"key", "quota", "model"})
"""Kinds that no candidate can be blamed for and that no later attempt mends: they end a run."""


class TraceOptError(Exception):
    """The root of the errors that trace_opt raises on purpose."""


class TraceError(TraceOptError, TypeError):
    """Recording was misused: an edge would be lost, a recorded value was mutated, or contexts were mixed."""


class OpError(TraceOptError):
    """An exception left a recording. `__cause__` is the user's exception.

    Attributes:
        node: The error node: the op call that failed, or one tied to every leaf when no op had failed.
        graph: The recording up to the failure.
    """

    def __init__(self, message: str, *, node: Node[Any], graph: Graph) -> None:
        super().__init__(message)
        self.node = node
        self.graph = graph


class CodeError(TraceOptError):
    """Generated code does not compile, breaks its contract, failed, or hit a limit: a candidate's failure.

    Attributes:
        source: The generated source.
        line: The line of it, counted from 1, or None where no line is to blame.
        limit: Which limit was hit (`"time"`, `"memory"`, `"recursion"`, `"calls"`, `"sleep"`, `"output"`, `"result"`,
            `"size"`), or None.
    """

    def __init__(self, message: str, *, source: str = "", line: int | None = None, limit: str | None = None) -> None:
        super().__init__(message)
        self.source = source
        self.line = line
        self.limit = limit

    def __reduce__(self) -> tuple[Any, ...]:
        return _code_error, (str(self), self.source, self.line, self.limit)


def _code_error(message: str, source: str, line: int | None, limit: str | None) -> CodeError:
    return CodeError(message, source=source, line=line, limit=limit)


class ReplyError(TraceOptError):
    """A model's reply held no usable proposal.

    Attributes:
        reply: The text as it came.
        problems: One sentence for each thing that was wrong with it.
    """

    def __init__(self, message: str, *, reply: str = "", problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reply = reply
        self.problems = problems


class LLMError(TraceOptError):
    """A model could not be reached, refused, or is not configured.

    Attributes:
        kind: What went wrong, one of `LLMErrorKind`.
        retry_after: Seconds the server asked to wait, or None.
    """

    def __init__(self, message: str, *, kind: LLMErrorKind, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind: LLMErrorKind = kind
        self.retry_after = retry_after

    @property
    def lasting(self) -> bool:
        """Whether no later attempt mends it (key, quota, model)."""
        return self.kind in LASTING_KINDS


class BudgetError(TraceOptError):
    """The budget cannot pay for what was asked."""


class FeedbackError(TraceOptError, ValueError):
    """A guide returned no finite score where one was needed."""


class GradientError(TraceOptError):
    """A loss gives a tensor parameter no gradient, or one that cannot be trusted (a solver that did not converge)."""


class ProblemError(TraceOptError, ValueError):
    """A problem, its file, or an option of `optimize` makes no sense."""


class StoreError(TraceOptError):
    """A run is missing, foreign, locked, changed, or from a newer version."""


def meant(given: object, known: Iterable[str], otherwise: str = "") -> str:
    """The remedy for a name that is not known: the one that was probably meant.

    Args:
        given: What was given.
        known: The names there are.
        otherwise: The remedy where none of them is near.
    """
    from difflib import get_close_matches

    near = get_close_matches(str(given), list(known), 1)
    return f"did you mean {near[0]!r}?" if near else otherwise
