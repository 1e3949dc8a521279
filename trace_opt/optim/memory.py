"""What was tried before and what came of it, as lines of a problem text; rejected attempts are the most telling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_opt.core.code import diff
from trace_opt.core.codec import canonical
from trace_opt.optim.schema import to_json
from trace_opt.optim.text import block, cut, json_text, name_text

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.optim.base import Trial


@dataclass(frozen=True, slots=True)
class Attempt:
    """Values that were tried together.

    Attributes:
        values: By full parameter name.
        score: Their mean score, or None where it is unknown.
        verdict: What came of them, in words.
    """

    values: Mapping[str, Any]
    score: float | None
    verdict: str = ""


def attempts(parameters: Sequence[Parameter[Any]], history: Sequence[Trial], most: int) -> list[Attempt]:
    """The latest trials that changed one of `parameters`, oldest first; of equal values the latest trial counts."""
    owned = {parameter.name: parameter for parameter in parameters}
    found: dict[str, Attempt] = {}
    for trial in reversed(history):
        values = {name: value for name, value in trial.proposal.values.items() if name in owned}
        key = key_of(owned, values)
        if values and key not in found:
            found[key] = Attempt(values, trial.outcome.after, _verdict(trial))
        if len(found) >= most:
            break
    return list(found.values())[::-1]


def solutions(parameters: Sequence[Parameter[Any]], history: Sequence[Trial], most: int) -> list[Attempt]:
    """The best complete sets of values with a known score, the best last: what a trial started from and what it tried."""
    owned = {parameter.name: parameter for parameter in parameters}
    best: dict[str, Attempt] = {}
    for trial in history:
        base = {name: trial.base[name] for name in owned if name in trial.base}
        tried = {**base, **{name: value for name, value in trial.proposal.values.items() if name in owned}}
        for values, score in ((base, trial.outcome.before), (tried, trial.outcome.after)):
            if score is not None and len(values) == len(owned):
                best[key_of(owned, values)] = Attempt(values, score)
    ranked = sorted(best.values(), key=lambda attempt: attempt.score or 0.0)
    return ranked[-most:] if most > 0 else []


def attempts_text(
    parameters: Sequence[Parameter[Any]], tried: Sequence[Attempt], heading: str, limit: int = 400
) -> str:
    """Attempts under a heading; of each value about `limit` characters."""
    if not tried:
        return ""
    owned = {parameter.name: parameter for parameter in parameters}
    lines = [heading]
    for i, attempt in enumerate(tried):
        known = "no score" if attempt.score is None else f"score {attempt.score:.6g}"
        lines.append(f"{i + 1}. {known}{', ' if attempt.verdict else ''}{attempt.verdict}")
        for name, value in attempt.values.items():
            if owned[name].code is not None:
                changed = diff(str(owned[name].value), str(value), name)
                # of code what it changes says more than its first and last lines
                lines.append(
                    f"  {name_text(name)} changed so:\n{block(cut(changed, 2 * limit), '    ')}"
                    if changed
                    else f"  {name_text(name)} as it is now"
                )
                continue
            lines.append(f"  {name_text(name)} = {cut(json_text(to_json(owned[name], value)), limit)}")
    return "\n".join(lines)


def key_of(owned: Mapping[str, Parameter[Any]], values: Mapping[str, Any]) -> str:
    """One text for equal values."""
    return canonical({name: to_json(owned[name], value) for name, value in sorted(values.items())})


def _verdict(trial: Trial) -> str:
    refused = trial.proposal.notes.get("refused")
    if refused:
        return f"refused: {refused}"
    before = trial.outcome.before
    kept = "kept" if trial.outcome.accepted else "rejected"
    return kept if before is None else f"was {before:.6g} before, {kept}"
