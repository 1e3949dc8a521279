"""The commands put together, and what every one of them ends with: an exit code, and silence on a closed pipe."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from trace_opt.cli import doctor, export, graph, models, resume, run, runs
from trace_opt.cli.failures import BUDGET, ERROR, INTERRUPTED, OK, USAGE, code_of, explain
from trace_opt.cli.terminal import SETTINGS, answering, prepare, silence, tell

ANYWHERE = ("--debug", "--no-color")
"""Options of `trace-opt` that may also stand after the command."""

HELP_NAMES: dict[str, Any] = {"help_option_names": ["-h", "--help"]}

EPILOG = (
    f"Exit codes: {OK} ok, {ERROR} error, {USAGE} usage, {BUDGET} the budget cannot pay for the first proposal or was "
    f"spent before it, {INTERRUPTED} interrupted with everything kept."
)

app = typer.Typer(
    name="trace-opt", no_args_is_help=True, context_settings=HELP_NAMES, epilog=EPILOG, pretty_exceptions_enable=False,
    rich_markup_mode=None,
)  # fmt: skip


def _version(value: bool) -> None:
    if value:
        import trace_opt

        sys.stdout.write(f"trace-opt {trace_opt.__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", help="Use no colours, as with NO_COLOR; may stand anywhere.")
    ] = False,
) -> None:
    """Improve the prompts, choices and examples of a Python workflow, and look at what came of it."""
    del version
    SETTINGS.debug = debug
    SETTINGS.color = not no_color


def _add(command: Callable[..., Any], name: str, short: str, to: typer.Typer = app) -> None:
    @functools.wraps(command)
    def answered(*args: Any, **options: Any) -> Any:
        with answering():
            return command(*args, **options)

    to.command(name, short_help=short, context_settings=HELP_NAMES)(answered)


_add(run.run, "run", "Improve the problem that a file offers.")
_add(runs.list_runs, "list", "List the runs of a store.")
_add(runs.show, "show", "Show a run: report, values, trials.")
_add(export.diff, "diff", "Show what changed, start against best.")
_add(export.export, "export", "Write the best values for use elsewhere.")
_add(resume.resume, "resume", "Go on with a run that was interrupted.")
_add(graph.graph, "graph", "Write a workflow's graph on one example.")
_add(doctor.doctor, "doctor", "Check this machine, and a problem.")
_models = typer.Typer(
    no_args_is_help=True, context_settings=HELP_NAMES, rich_markup_mode=None, help="Fetch and list embedded models."
)
_add(models.list_models, "list", "List the embedded models.", _models)
_add(models.pull_model, "pull", "Fetch a model's weights.", _models)
app.add_typer(_models, name="models")


def run_command(args: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    prepare()
    SETTINGS.debug = "--debug" in (sys.argv[1:] if args is None else args)
    SETTINGS.leaving = args is None
    try:
        code = _dispatch(_hoisted(sys.argv[1:] if args is None else args))
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
        return OK
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 # the last resort: one sentence instead of a traceback
        explain(error)
        return code_of(error)
    return code


def _hoisted(args: Sequence[str]) -> list[str]:
    """The arguments with the options that may stand anywhere moved to the front."""
    end = args.index("--") if "--" in args else len(args)
    found = [arg for arg in args[:end] if arg in ANYWHERE]
    return [*found, *(arg for arg in args[:end] if arg not in ANYWHERE), *args[end:]]


def _dispatch(args: list[str]) -> int:
    """Parse and run, without Typer's own handling of errors and pipes."""
    command: Any = typer.main.get_command(app)
    if os.environ.get("_TRACE_OPT_COMPLETE"):
        command.main(args, prog_name="trace-opt")
    try:
        with command.make_context("trace-opt", args) as context:
            returned = command.invoke(context)
    except typer.Exit as leaving:
        return leaving.exit_code
    except typer.Abort:
        return ERROR
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _usage(error)
    return returned if isinstance(returned, int) else OK


def _usage(error: Any) -> int:
    """Say how a command line is wrong; calling for help is not wrong."""
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stdout.write(error.ctx.get_help() + "\n")
        return USAGE
    context = getattr(error, "ctx", None)
    tell(f"trace-opt: {error.format_message().rstrip('.')}")
    if context is not None:
        tell(f"try `{context.command_path} --help`")
    return error.exit_code
