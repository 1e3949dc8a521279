"""How a run ends: the test, once, and the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trace_opt.core.codec import dump_value
from trace_opt.errors import BudgetError
from trace_opt.search.candidate import Candidate
from trace_opt.search.report import Difference, Report, Summary, spend_json
from trace_opt.search.statistics import is_binary

if TYPE_CHECKING:
    from trace_opt.search.budget import Ledger
    from trace_opt.search.session import Session
    from trace_opt.search.settings import Settings
    from trace_opt.store.writer import Writer


async def run_test(settings: Settings, session: Session, best: Candidate) -> list[str]:
    """Run start and best on the test examples, example by example; gives notes for the report."""
    test = settings.judged
    if not test:
        return []
    pair = [session.start] if best is session.start else [session.start, best]
    judged = [c for c in session.candidates.values() if c not in pair and any(n in c.scores for n in test)]
    notes = [f"the test examples have judged {len(judged)} earlier best before, so a claim is weaker"] if judged else []
    try:
        await session.bench.score([(candidate, [n]) for n in test for candidate in pair], "test")
    except BudgetError as error:
        notes.append(f"the test is not complete: {error}")
    return notes


def report_of(
    settings: Settings, session: Session, best: Candidate, ledger: Ledger, notes: Sequence[str]
) -> Report:  # fmt: skip
    """First values against best, on the test examples where there are any."""
    data, start, floor = settings.data, session.start, session.bench.floor
    tested = [n for n in settings.judged if n in start.scores and n in best.scores]
    numbers = tested or [n for n in session.order if n in start.scores and n in best.scores]
    held_out = bool(tested) and settings.judged != data.train
    difference = None if best is start or not numbers else Difference.of(start.on(numbers), best.on(numbers))
    claim = "none" if not held_out else "no evidence" if difference is None else difference.claim
    binary = is_binary(start.on(numbers)) and is_binary(best.on(numbers))
    said = [*data.notes, *notes]
    if best is start:
        said.append("no proposal was better, so the start's values stay")
    return Report(
        examples="test" if held_out and data.test else "train" if data.shared else "val", held_out=held_out, claim=claim,
        best=summary(best, numbers, floor, binary=binary), start=summary(start, numbers, floor, binary=binary),
        difference=difference,
        trials=len(session.attempts), accepted=sum(attempt.accepted for attempt in session.attempts),
        changed=_changed(session, best), spend=spend_json(ledger.spent), seconds=ledger.seconds, notes=tuple(said),
    )  # fmt: skip


def summary(candidate: Candidate, numbers: Sequence[int], floor: float, *, binary: bool | None = None) -> Summary:
    """A candidate's scores on some examples."""
    several = [s for n in numbers if (s := candidate.scores[n].several) is not None]
    names = list(several[0]) if several else []
    means = {name: sum(s.get(name, floor) for s in several) / len(several) for name in names}
    return Summary.of(candidate.on(numbers), floor, binary=binary, means=means)


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
    session.keeper.candidate(best)
    writer.set(best=best.id, report=json.dumps(report.to_json()))
