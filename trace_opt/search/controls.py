"""Controls: other workflows that the best is compared with at the end, on the same examples, seeds and values.

They are asked for with the problem and always run, so that a reader of the report sees what the result has to beat. Their
rollouts are kept under numbers below 0, so that a resumed run does not pay for them again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from trace_opt.errors import BudgetError
from trace_opt.search.bench import Bench
from trace_opt.search.candidate import Candidate
from trace_opt.search.rollers import roller_of
from trace_opt.search.sources import Reach

if TYPE_CHECKING:
    from trace_opt.search.executors import Executor
    from trace_opt.search.opening import Opening
    from trace_opt.search.session import Session
    from trace_opt.search.settings import Settings

_FIRST = -2  # -1 stands for values that are no candidate


@dataclass(frozen=True, slots=True)
class Controls:
    """What came of the controls.

    Attributes:
        rows: The scores of each, by name, as if it were a candidate.
        notes: What a reader of the report must know.
    """

    rows: Mapping[str, Candidate] = field(default_factory=dict[str, Candidate])
    notes: tuple[str, ...] = ()


async def run_controls(
    settings: Settings, session: Session, best: Candidate, opening: Opening, executor: Executor
) -> Controls:  # fmt: skip
    """Run all controls on the examples that start and best are compared on."""
    rows: dict[str, Candidate] = {}
    opening.ledger.on_first = None  # what one proposal takes is no question any more
    for place, (name, workflow) in enumerate(settings.controls.items()):
        number = _FIRST - place - len(settings.controls) * best.id
        control = rows[name] = Candidate(number, dict(best.values), "")
        session.bench.draws.load(control, opening.scores.get(number, {}))
        wanted = [n for n in settings.compared if n in best.scores]
        try:
            if len(control.known(wanted)) < len(wanted):
                await _bench(settings, session, opening, executor, name, workflow).score(
                    [(control, wanted)], "controls"
                )
        except BudgetError as error:
            return Controls(rows, (f"the controls are not complete: {error}",))
    return Controls(rows)


def _bench(
    settings: Settings, session: Session, opening: Opening, executor: Executor, name: str, workflow: Callable[..., Any]
) -> Bench:  # fmt: skip
    """What runs one control."""
    reach = Reach({"the workflow": workflow, "the guide": settings.guide})
    reload = None if settings.reload is None else functools.partial(made, settings.reload, name)
    asked = replace(settings, workflow=workflow, reach=reach, reload=reload, parameters=dict(session.parameters))
    if executor.apart:
        executor.close()  # its workers have another workflow
    ledger = opening.ledger
    bench = Bench(
        roller_of(asked, ledger, executor), executor, settings.data, seed=settings.seed, ledger=ledger,
        writer=opening.writer, floor=settings.floor, tell=settings.goals.on_event, keep_graphs=False,
        draws=session.bench.draws,
    )  # fmt: skip
    bench.parameters = session.parameters
    return bench


def made(reload: Callable[[], Any], name: str) -> SimpleNamespace:
    """A problem with one of its controls as the workflow, made again in a worker."""
    problem = reload()
    return SimpleNamespace(workflow=problem.controls[name], guide=problem.guide)
