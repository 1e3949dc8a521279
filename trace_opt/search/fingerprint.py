"""What makes a resumed run the same problem, and a refusal that names what changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trace_opt.core.codec import content_hash, dump_value
from trace_opt.errors import StoreError
from trace_opt.search.sources import differing

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.optim.base import Optimizer
    from trace_opt.search.splits import Data

_OWN = frozenset({"_collected", "_handled", "_history", "_steps", "_pending", "needs_model"})
"""What the loop by hand keeps in an optimizer."""


def of_examples(data: Data) -> dict[str, Any]:
    """How many examples each part has, and a hash of them."""
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return {name: [len(part), content_hash([data.keys[n] for n in part])] for name, part in parts.items()}


def of_values(parameters: Sequence[Parameter[Any]], values: Mapping[str, Any]) -> dict[str, str]:
    """A hash of each parameter's starting value, and of what is allowed in its place."""
    return {
        p.name: content_hash(
            [dump_value(p, values[p.name]), repr(p.choices), repr(p.suggestions), str(p.annotation), *_more(p)]
        )
        for p in parameters
    }


def _more(parameter: Parameter[Any]) -> list[Any]:
    """What only some parameters have: placeholders, and of code where it runs and what it may call."""
    code, placeholders = parameter.code, parameter.placeholders
    told = [] if placeholders is None else [repr(placeholders)]
    if code is not None:
        told += [type(code.sandbox).__name__, repr(code.sandbox.limits), *sorted(code.uses)]
    return told


def of_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's class and simple settings."""
    settings: dict[str, Any] = {}
    for name, value in vars(optimizer).items():
        if name in _OWN:
            continue
        if isinstance(value, (str, int, float, bool, type(None))):
            settings[name] = value
        elif isinstance(value, dict):
            settings[name] = content_hash(value)
    inner: Sequence[Optimizer] = getattr(optimizer, "sources", ())
    return {"class": type(optimizer).__qualname__, "settings": content_hash(settings),
            "sources": [of_optimizer(source) for source in inner]}  # fmt: skip


_SAY = {
    "settings": "the setting {!r}",  # first, for the seed changes the examples too
    "examples": "the {} examples",
    "start": "the starting value or the choices of {!r}",
    "sources": "the source or value of {!r}",
    "controls": "the source or value of {!r}, which a control uses",
}


def check(run: str, saved: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare fingerprints.

    Args:
        run: The run's id.
        saved: Of the run; by kind, then by name.
        now: Of what is to go on with it.

    Raises:
        StoreError: they differ; the message names what changed.
    """
    changed = [
        _SAY[kind].format(name)
        for kind in _SAY
        if kind in saved and kind in now
        for name in differing(saved[kind], now[kind])
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise StoreError(
            f"run {run!r} cannot be resumed, for the problem has changed since: {', '.join(changed[:3])}{more}; undo "
            "that, or begin a new run"
        )
