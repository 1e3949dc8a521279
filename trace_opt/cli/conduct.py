"""Conducting one run for the command line: events shown, its origin kept, Ctrl-C, SIGTERM and errors ended with what is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trace_opt.cli.answers import run_commands, run_document, run_lines
from trace_opt.cli.approving import asker
from trace_opt.cli.failures import INTERRUPTED, OK, code_of, explain
from trace_opt.cli.options import with_store
from trace_opt.cli.progress import Watcher
from trace_opt.cli.terminal import answer, answer_json, suggest, tell

if TYPE_CHECKING:
    from trace_opt.problem import Problem
    from trace_opt.search.options import Event
    from trace_opt.search.run import Run


def origin(file: str, options: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """What is kept with a run so that `trace-opt resume RUN` can load its problem again.

    Args:
        file: The problem's.
        options: What `--set` gave.
        more: What else the command line said of the search; what is None or False goes without saying.
    """
    known = {"file": str(Path(file).absolute()), "options": dict(options), "model": None}
    return {**known, **{name: value for name, value in more.items() if value}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How one run is conducted.

    Attributes:
        problem: What is run.
        options: Options of `optimize` that win over the problem's own; without `store`.
        store: What `--store` named; "none" keeps nothing.
        json: Whether the answer is JSON.
        quiet: Whether no progress is shown.
        approve: Whether the person at the terminal is asked before the search builds on a proposal.
    """

    problem: Problem
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    store: str | None = None
    json: bool = False
    quiet: bool = False
    approve: bool = False

    @property
    def kept(self) -> bool:
        """Whether the run is kept in a store."""
        return self.store is None or self.store.casefold() != "none"


def conduct(what: Conduct) -> int:
    """Run a problem, print the answer, and give the exit code."""
    from trace_opt.store.store import open_store

    store = open_store(what.store) if what.kept else None
    watcher = Watcher(quiet=what.quiet)

    def listen(event: Event) -> None:
        watcher.event(event)
        if event.kind == "start":
            _greet(what, watcher)

    asking: dict[str, Any] = {"approve": asker(watcher)} if what.approve else {}
    try:
        with _termination(), watcher:
            run = what.problem.optimize(**what.options, **asking, store=store, on_event=listen)
    except KeyboardInterrupt:
        tell("interrupted", *_way_back(what, watcher))
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 # said in one sentence, with how to go on
        explain(error)
        tell(*_way_back(what, watcher))
        return code_of(error)
    finally:
        if store is not None:
            store.close()
    return _finish(what, watcher, run)


@contextmanager
def _termination() -> Generator[None]:
    """Let SIGTERM, as `kill` and schedulers send it, end a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(*_: object) -> None:
        if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL, None):
            raise KeyboardInterrupt  # a shell's background job takes no SIGINT
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _greet(what: Conduct, watcher: Watcher) -> None:
    """Which models work here, and why."""
    if not what.quiet:
        from trace_opt.cli.answers import optimizer_models, workflow_models

        problem = what.problem
        # who optimizes is settled by the parameters, and these may be known only once the start has run
        unknown = problem.optimizers is None and problem.parameters is None
        asked = optimizer_models(problem, str(watcher.start.get("model") or ""))
        tell(f"workflow model: {workflow_models(problem)}")
        tell(f"optimizer model: {asked or ('known once the start has run' if unknown else 'none is asked')}")


def _way_back(what: Conduct, watcher: Watcher) -> list[str]:
    run = watcher.start.get("run")
    if not run:
        return []
    if not what.kept:
        return ["nothing was kept (--store none)"]
    return [f"what was done is kept; go on with `trace-opt resume {run}{with_store(what.store)}`"]


def _finish(what: Conduct, watcher: Watcher, run: Run) -> int:
    """Print the answer."""
    report = run.report()
    if what.json:
        answer_json(run_document(what.problem, run, report, watcher))
    else:
        answer(*run_lines(what.problem, run, report, watcher))
        if run.id and not what.quiet:
            suggest(*run_commands(run.id, what.store, run.parameters.values()))
    return OK


@contextmanager
def replies(capture: Path | None, replay: Path | None) -> Generator[None]:
    """Write model replies to a file, or answer from one, while a command runs.

    Raises:
        typer.BadParameter: both are wanted.
        LLMError: the replay file cannot be read.
    """
    if capture is not None and replay is not None:
        raise typer.BadParameter("capture and replay exclude each other; give one of them", param_hint="--capture")
    if capture is None and replay is None:
        yield
        return
    from trace_opt.llm import replay as tape

    manager = tape.capture(capture) if capture is not None else tape.replay(replay or "")
    with manager:
        yield
