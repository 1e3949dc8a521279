"""How a run ends: the test, once, and the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trace_opt.core.codec import dump_value
from trace_opt.core.memory import MEMORY
from trace_opt.errors import BudgetError
from trace_opt.search.candidate import Candidate
from trace_opt.search.gate import Gate
from trace_opt.search.measures import error_rates
from trace_opt.search.memory import saved_json
from trace_opt.search.objectives import front_rows
from trace_opt.search.report import Control, Difference, Report, Summary, spend_json
from trace_opt.search.statistics import is_binary, mean, mean_interval

if TYPE_CHECKING:
    from trace_opt.search.ledger import Ledger
    from trace_opt.search.session import Session
    from trace_opt.search.settings import Settings
    from trace_opt.store.writer import Writer


async def run_test(settings: Settings, session: Session, best: Candidate) -> list[str]:
    """Run start and best on the test examples, example by example; gives notes for the report.

    Where there are none, the best is run on the rest of the validation examples, as far as the budget goes.
    """
    test = settings.judged
    if not test:
        return await _completed(session, best)
    pair = [session.start] if best is session.start else [session.start, best]
    judged = [c for c in session.candidates.values() if c not in pair and any(n in c.scores for n in test)]
    notes = [f"the test examples have judged {len(judged)} earlier best before, so a claim is weaker"] if judged else []
    try:
        await session.bench.score([(candidate, [n]) for n in test for candidate in pair], "test")
    except BudgetError as error:
        notes.append(f"the test is not complete: {error}")
    return notes


async def _completed(session: Session, best: Candidate) -> list[str]:
    try:
        await session.bench.score([(best, session.order)], "validation")
    except BudgetError:
        known, total = len(best.known(session.order)), len(session.order)
        return [f"the best values were run on {known} of {total} examples, among them those that they were chosen by"]
    return []


def report_of(
    settings: Settings, session: Session, best: Candidate, ledger: Ledger, notes: Sequence[str],
    controls: Mapping[str, Candidate] | None = None,
) -> Report:  # fmt: skip
    """First values against best, on the test examples where there are any, and best against the controls."""
    data, start, floor = settings.data, session.start, session.bench.floor
    tested = [n for n in settings.judged if n in start.scores and n in best.scores]
    numbers = tested or [n for n in session.order if n in start.scores and n in best.scores]
    held_out = bool(tested) and settings.judged != data.train
    difference = None
    if best is not start and numbers:
        measure = session.measures[0]
        difference = Difference.of(start.on(numbers), best.on(numbers), measure=measure, seed=settings.seed)
    worse = [] if difference is None else _worse(session, best, numbers, settings.seed)
    claim = "none" if worse or not held_out else "no evidence" if difference is None else difference.claim
    binary = is_binary(start.on(numbers)) and is_binary(best.on(numbers))
    said = [*data.notes, *([settings.warm.says] if settings.warm.values else []), *notes]
    if not numbers:
        said.append(
            "the budget was spent before start and best were run on any example, so nothing tells which is better"
        )
    elif best is start:
        said.append("no proposal was better, so the start's values stay")
    said += [f"{name!r} is worse than the start's by more than its margin, so nothing is claimed" for name in worse]
    rows = [
        _control(name, control, best, numbers, settings, session) for name, control in (controls or {}).items()
    ]  # fmt: skip
    return Report(
        controls=tuple(row for row in rows if row is not None),
        examples="test" if held_out and data.test else "train" if data.shared else "val", held_out=held_out, claim=claim,
        best=summary(best, numbers, floor, binary=binary, weighted=settings.weights is not None),
        start=summary(start, numbers, floor, binary=binary, weighted=settings.weights is not None),
        difference=difference,
        search_gate={} if settings.search.gate is None else error_rates(settings.search.gate, len(session.order)),
        front=tuple(_front(settings, session)), trials=len(session.attempts), accepted=sum(attempt.accepted for attempt in session.attempts),
        changed=_changed(session, best), spend=spend_json(ledger.spent), seconds=ledger.seconds, notes=tuple(said),
        reused={} if session.bench.reuse is None else session.bench.reuse.to_json(),
        saved=saved_json(memory.saved) if (memory := MEMORY.get()) is not None else {},
    )  # fmt: skip


def _worse(session: Session, best: Candidate, numbers: Sequence[int], seed: int) -> list[str]:
    """The scores that were not to get worse, and did."""
    found: list[str] = []
    for measure in session.measures[1:]:
        pairs = [
            (
                None if before is None else before[measure.name],
                None if after is None else after[measure.name] + measure.margin,
            )
            for before, after in ((session.start.scores[n].several, best.scores[n].several) for n in numbers)
        ]
        signs = replace(measure, margin=0.0, two_valued=measure.two_valued and not measure.margin)
        comparison = Gate.phase().begin(len(pairs), [signs], seed=seed)
        verdict = comparison.extend(*zip(*pairs, strict=True))
        if verdict is not None and verdict.outcome == "worse":
            found.append(measure.name)
    return found


def _control(
    name: str, control: Candidate, best: Candidate, numbers: Sequence[int], settings: Settings, session: Session
) -> Control | None:  # fmt: skip
    """A control's scores, and the best's against them, on the examples that it was run on; None without any."""
    known = control.known(numbers)
    if not known:
        return None
    floor, seed = session.bench.floor, settings.seed
    difference = Difference.of(control.on(known), best.on(known), measure=session.measures[0], seed=seed)
    return Control(
        name=name, scores=summary(control, known, floor, weighted=settings.weights is not None), difference=difference
    )  # fmt: skip


def _front(settings: Settings, session: Session) -> list[dict[str, Any]]:
    """What was accepted and is not beaten in everything, on the examples that a front is over.

    Empty where one beats all others, and where there is a single score and no other objective was asked for.
    """
    search = settings.search
    size: Callable[[int], int] = getattr(search, "size", int)
    asked: tuple[str, ...] = tuple(getattr(search, "objectives", ()))
    if not asked and not any(score.several for score in session.start.scores.values()):
        return []
    names = dict.fromkeys((*asked, "length"))
    accepted = [candidate for candidate in session.candidates.values() if candidate.accepted]
    rows = front_rows(accepted, session.order[: size(len(session.order))], session.parameters, list(names))
    return rows if len(rows) > 1 else []


def summary(
    candidate: Candidate, numbers: Sequence[int], floor: float, *, binary: bool | None = None, weighted: bool = False
) -> Summary:
    """A candidate's scores on some examples.

    Args:
        candidate: Run on all of them.
        numbers: The examples.
        floor: What a failed rollout counts as.
        binary: Whether scores are 0 or 1 by nature.
        weighted: Whether a sum of the scores decides, in place of the first.
    """
    several = [s for n in numbers if (s := candidate.scores[n].several) is not None]
    names = list(several[0]) if several else []
    columns = {name: [s.get(name, floor) for s in several] for name in names}
    means = {name: sum(column) / len(column) for name, column in columns.items()}
    intervals = {name: mean_interval(column, binary=is_binary(column)) for name, column in columns.items()}
    if weighted:
        means = {"weighted": mean(candidate.on(numbers), floor), **means}
    return Summary.of(candidate.on(numbers), floor, binary=binary, means=means, intervals=intervals)


def _changed(session: Session, best: Candidate) -> dict[str, tuple[object, object]]:
    changed: dict[str, tuple[object, object]] = {}
    for name, value in best.values.items():
        parameter = session.parameters[name]
        before, after = dump_value(parameter, session.start.values[name]), dump_value(parameter, value)
        if json.dumps(before, sort_keys=True) != json.dumps(after, sort_keys=True):
            changed[name] = before, after
    return changed


def finished(writer: Writer, session: Session, best: Candidate, report: Report) -> None:
    """Keep the report and the choice, with the next commit."""
    # the test of a search without a gate brings scores to the start too
    session.keeper.candidate(session.start)
    session.keeper.candidate(best)
    writer.set(best=best.id, report=json.dumps(report.to_json()))
