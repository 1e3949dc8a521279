"""What a run tells while it goes on: a bar and the trials on a terminal, a line a step elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trace_opt.cli.terminal import animated, console, tell, visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from trace_opt.search.options import Event

_PAUSE_S = 10.0
"""Without a terminal a long phase says this seldom how far it is."""


class Watcher:
    """Follows a run's events; its method `event` is what `on_event` takes.

    Args:
        quiet: Whether nothing is shown; what is known of the run is kept all the same.

    Attributes:
        start: The data of the event "start", empty before it: run, model, budget and so on.
        end: The data of the event "end", empty before it: status and why it ended.
        trials: How many trials were finished in this session.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.start: dict[str, Any] = {}
        self.end: dict[str, Any] = {}
        self.trials = 0
        self._quiet = quiet
        self._stack = ExitStack()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._phase = ""
        self._last = 0.0

    def __enter__(self) -> Watcher:
        if not self._quiet and animated(sys.stderr):
            self._bar = self._stack.enter_context(_progress())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar = None
        self._stack.close()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Let go of the last line of the terminal meanwhile."""
        bar = self._bar
        if bar is not None:
            bar.stop()
        try:
            yield
        finally:
            if bar is not None:
                bar.start()

    def event(self, event: Event) -> None:
        """Take one event."""
        if event.kind == "start":
            self.start = dict(event.data)
        elif event.kind == "end":
            self.end = dict(event.data)
        elif event.kind == "trial":
            self.trials += 1
        # how a run that did not finish ended is said by the command itself
        if self._quiet or (event.kind == "end" and event.data.get("status") != "finished"):
            return
        if self._bar is not None:
            self._draw(self._bar, event)
        else:
            self._line(event)

    def _line(self, event: Event) -> None:
        if event.kind == "proposing":
            return
        if event.kind == "rollouts":
            phase, now = str(event.data.get("phase", "")), time.monotonic()
            if phase == self._phase and now - self._last < _PAUSE_S:
                return
            self._phase, self._last = phase, now
        tell(event.text)

    def _draw(self, bar: Progress, event: Event) -> None:
        if event.kind == "rollouts":
            total, done = int(event.data.get("total", 0)), int(event.data.get("done", 0))
            self._show(bar, str(event.data.get("phase", "rollouts")), done, total)
        elif event.kind == "proposing":
            self._show(bar, event.text, 0, None)
        else:
            from rich.text import Text

            bar.console.print(Text(visible(event.text)))

    def _show(self, bar: Progress, text: str, done: int, total: int | None) -> None:
        if self._task is None:
            self._task = bar.add_task(visible(text), total=total)
        bar.update(self._task, description=visible(text), completed=done, total=total)


def _progress() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, TimeElapsedColumn
    from rich.text import Text

    class Said(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(task.description)

    return Progress(
        SpinnerColumn(), Said(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console(sys.stderr), transient=True, refresh_per_second=4,
    )  # fmt: skip
