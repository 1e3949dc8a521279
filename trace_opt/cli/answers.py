"""What a run came to, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from trace_opt.cli.functions import best_format
from trace_opt.cli.options import with_store
from trace_opt.cli.terminal import fields, styled, table
from trace_opt.cli.values import encoded, values_lines
from trace_opt.optim.text import cut, one_line

if TYPE_CHECKING:
    from rich.text import Text

    from trace_opt.cli.progress import Watcher
    from trace_opt.problem import Problem
    from trace_opt.search.report import Report
    from trace_opt.search.run import Run
    from trace_opt.store.records import RunInfo, RunRecord, TrialRecord


def workflow_model_names(problem: Problem) -> list[str]:
    """The models that a problem's workflow reaches, by name, without running it."""
    from trace_opt.search.sources import Reach

    return list(dict.fromkeys(model.name for model in Reach({"workflow": problem.workflow}).models))


def workflow_models(problem: Problem) -> str:
    """The same in words."""
    return ", ".join(workflow_model_names(problem)) or "none that trace_opt connected"


def optimizer_models(problem: Problem, told: str, trials: Iterable[TrialRecord] = ()) -> str:
    """The models that optimizers ask, in words; "" where there is none.

    Args:
        problem: Its optimizers may bring their own.
        told: What the run said at its beginning; "" too where it was not known which parameters there are.
        trials: What was asked in them.
    """
    from trace_opt.search.defaults import brought

    return told or brought(problem.optimizers or ()) or asked(trials)


def asked(trials: Iterable[TrialRecord]) -> str:
    """The models that were asked in trials, by name."""
    names = [str(trial.notes["model"]) for trial in trials if trial.notes.get("model")]
    return ", ".join(dict.fromkeys(names))


def run_lines(problem: Problem, run: Run, report: Report, watcher: Watcher) -> list[str | Text]:
    """A finished run for people.

    Args:
        problem: What was run.
        run: What came of it.
        report: Its report.
        watcher: Who followed it.
    """
    head = {
        "problem": watcher.start.get("name") or problem.name or "",
        "run": run.id or "(not kept)",
        "ended": run.ended,
        "workflow model": workflow_models(problem),
        "optimizer model": _optimizers_of(problem, run, watcher) or "none is asked",
    }
    return [
        *fields({name: value for name, value in head.items() if value}), "",
        *report_lines(report), "", styled("best values", "bold"), *values_lines(run.best),
    ]  # fmt: skip


def _optimizers_of(problem: Problem, run: Run, watcher: Watcher) -> str:
    return optimizer_models(problem, str(watcher.start.get("model") or ""), run.history)


def run_commands(run: str, store: str | None, parameters: Iterable[Any]) -> list[str]:
    """What to type after a run with these parameters."""
    where = with_store(store)
    return [f"trace-opt diff {run}{where}", f"trace-opt export {run}{where} --format {best_format(parameters)}"]


def report_lines(report: Report) -> list[str]:
    """A report without the values, which are printed whole elsewhere."""
    return str(replace(report, changed={})).split("\n")


def run_document(problem: Problem, run: Run, report: Report, watcher: Watcher) -> dict[str, Any]:
    """A finished run for machines."""
    return {
        "run": run.id,
        "problem": watcher.start.get("name") or problem.name,
        "status": run.status,
        "ended": run.ended,
        "models": {
            "workflow": workflow_model_names(problem),
            "optimizer": _optimizers_of(problem, run, watcher) or None,
        },
        "start": encoded(run.start),
        "best": encoded(run.best),
        "report": report.to_json(),
    }


def info_document(info: RunInfo) -> dict[str, Any]:
    """One line of the list for machines."""
    return {**asdict(info), "budget": dict(info.budget)}


def record_lines(record: RunRecord, *, all_trials: bool) -> list[str | Text]:
    """Everything about a kept run for people."""
    from trace_opt.search.report import Report

    info = record.info
    head = {
        "run": info.id, "problem": info.name, "status": _status(info),
        "began": info.created, "seconds": f"{info.seconds:.1f}", "seed": str(info.seed),
        "budget": ", ".join(f"{name}={value}" for name, value in info.budget.items()),
        "optimizer model": info.model or asked(record.trials) or "none is asked", "held by": info.owner, "trace_opt": info.version,
    }  # fmt: skip
    lines: list[str | Text] = [*fields({name: value for name, value in head.items() if value}), ""]
    if record.report is not None:
        lines += report_lines(Report.from_json(record.report))
    else:
        lines.append(f"validation mean  {_mean(info.start_mean)} -> {_mean(info.best_mean)}; no report yet")
        lines += [f"  {role}: {cost.calls} calls, {cost.tokens} tokens" for role, cost in record.spend.items()]
    if record.lost:
        lines.append(f"  in flight when it was stopped, and perhaps billed ({len(record.lost)}):")
        lines += [f"    {call.role}: {call.what}" for call in record.lost]
    lines += ["", styled(f"best values (candidate {record.best_candidate})", "bold"), *values_lines(record.best)]
    return [*lines, *_trial_lines(record.trials, all_trials=all_trials)]


def _status(info: RunInfo) -> str:
    if not info.ended or info.ended.startswith(info.status):
        return info.ended or info.status
    return f"{info.status}: {info.ended}"


def record_commands(record: RunRecord, store: str | None) -> list[str]:
    """What to type after looking at a run."""
    info = record.info
    if info.status in ("interrupted", "failed"):
        return [f"trace-opt resume {info.id}{with_store(store)}"]
    return [] if info.status == "running" else run_commands(info.id, store, record.parameters)


_SHOWN_TRIALS = 20


def _trial_lines(trials: Sequence[TrialRecord], *, all_trials: bool) -> list[str | Text]:
    if not trials:
        return []
    shown = trials if all_trials else trials[-_SHOWN_TRIALS:]
    rows = [
        [
            str(t.number), t.optimizer, "" if t.candidate is None else str(t.candidate), _mean(t.before), _mean(t.after),
            str(t.n), "yes" if t.accepted else "", ", ".join(t.changed) or "-", t.verdict or "(open)",
        ]
        for t in shown
    ]  # fmt: skip
    header = ["trial", "optimizer", "candidate", "before", "after", "n", "accepted", "changed", "verdict"]
    lines: list[str | Text] = ["", *table(header, rows)]
    lines += [f"  {t.number}: {cut(one_line(t.reason), 300)}" for t in shown if t.reason]
    if len(shown) < len(trials):
        lines.append(f"({len(trials) - len(shown)} earlier trials; --all shows them)")
    return lines


def _mean(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def record_document(record: RunRecord) -> dict[str, Any]:
    """Everything about a kept run for machines."""
    return {
        **info_document(record.info),
        "config": dict(record.config),
        "parameters": [
            {"name": p.name, "kind": p.kind, "description": p.description, "optimizer": p.optimizer}
            for p in record.parameters
        ],
        "start": encoded(record.start),
        "best": encoded(record.best),
        "best_candidate": record.best_candidate,
        "candidates": [{**_shallow(c), "values": encoded(c.values)} for c in record.candidates],
        "trials": [{**_shallow(t), "changed": encoded(t.changed), "notes": encoded(t.notes)} for t in record.trials],
        "spend": {role: asdict(cost) for role, cost in record.spend.items()},
        "lost": [asdict(call) for call in record.lost],
        "report": record.report,
    }


def _shallow(record: Any) -> dict[str, Any]:
    # asdict would copy values, which may be tensors
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def list_lines(infos: Sequence[RunInfo]) -> list[str | Text]:
    """The list of runs for people."""
    rows = [
        [
            info.id, info.name, info.status, str(info.seed), str(info.trials), str(info.accepted), _mean(info.start_mean),
            _mean(info.best_mean), info.created, info.ended,
        ]
        for info in infos
    ]  # fmt: skip
    header = ["run", "problem", "status", "seed", "trials", "accepted", "start", "best", "began", "ended"]
    return table(header, rows)
