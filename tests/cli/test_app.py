from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import trace_opt
from trace_opt.cli import docs

COMMANDS = dict(docs.commands())
LEAVES = [name for name, command in COMMANDS.items() if not hasattr(command, "commands")]


def test_the_page_is_what_the_commands_say() -> None:
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page(), "run `python -m trace_opt.cli.docs`"


def test_the_check_finds_a_page_that_is_out_of_date(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "PAGE", tmp_path / "docs" / "CLI.md")
    assert docs.main(["--check"]) == 1
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    docs.PAGE.write_text(docs.PAGE.read_text() + "more\n")
    assert docs.main(["--check"]) == 1


def test_all_commands_of_the_design_are_there() -> None:
    wanted = {"run", "list", "show", "diff", "export", "resume", "graph", "models list", "models pull", "doctor"}
    assert {name.removeprefix("trace-opt ") for name in LEAVES} == wanted


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented_and_every_option_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert f"## {name}\n" in docs.page()
    for parameter in command.params:
        assert parameter.help or parameter.name in ("install_completion", "show_completion"), parameter.name


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_shows_its_help(cli: Any, name: str, flag: str) -> None:
    done = cli(*name.split()[1:], flag)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: {name}")


@pytest.mark.parametrize(
    "name", sorted({"run", "list", "show", "diff", "resume", "doctor", "models list", "models pull"})
)
def test_every_command_that_answers_takes_json(name: str) -> None:
    assert any("--json" in parameter.opts for parameter in COMMANDS[f"trace-opt {name}"].params)


def test_help_names_the_exit_codes(cli: Any) -> None:
    said = " ".join(cli("--help").out.split())
    assert "0 ok, 1 error, 2 usage, 3 the budget" in said
    assert "130 interrupted" in said


def test_the_version_is_printed(cli: Any) -> None:
    assert cli("--version").out == f"trace-opt {trace_opt.__version__}\n"


def test_no_command_at_all_shows_help_and_is_a_usage_error(cli: Any) -> None:
    done = cli()
    assert done.code == 2
    assert done.out.startswith("Usage: trace-opt")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["rn"], "Did you mean 'run'"),
        (["list", "--limt", "3"], "--limit"),
        (["list", "--limit", "0"], "greater than or equal to 1"),
        (["run"], "FILE"),
        (["export", "--format", "xml"], "'xml'"),
        (["run", "x.py", "--budget", "lihgt"], "did you mean 'light'?"),
        (["run", "x.py", "--budget", "cals=3"], "did you mean 'calls'?"),
        (["run", "x.py", "--budget", "calls=many"], "give a whole number above 0"),
        (["run", "x.py", "--budget", "calls=0"], "above 0"),
        (["run", "x.py", "--budget", "calls=1,calls=2"], "twice"),
        (["run", "x.py", "--budget", ""], "name limits"),
        (["run", "x.py", "--set", "seed"], "write name=value"),
        (["run", "x.py", "--set", "seed=1", "--set", "seed=2"], "twice"),
        (["run", "x.py", "--capture", "a", "--replay", "b"], "exclude each other"),
        (["list", "--store", "none"], "keeps no runs"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_code_2(cli: Any, args: list[str], said: str) -> None:
    done = cli(*args)
    assert done.code == 2
    assert done.out == ""
    first, hint = done.err.strip().split("\n")
    assert first.startswith("trace-opt: ")
    assert said in first
    assert hint.startswith("try `trace-opt")


def test_options_of_the_program_may_follow_the_command(cli: Any) -> None:
    assert cli("list", "--debug", "--no-color").code == 0


def test_debug_shows_the_traceback_and_the_sentence(cli: Any) -> None:
    done = cli("run", "gone.py", "--debug")
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.err
    assert done.err.strip().split("\n")[-1].startswith("trace-opt: there is no file 'gone.py'")


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import resource, sys, json; from trace_opt.cli import main; main(['--help']);"
        "heavy = [n for n in ('torch', 'litellm', 'openai', 'sqlalchemy', 'networkx', 'pydantic', 'optuna', 'rich')"
        " if n in sys.modules];"
        "use = resource.getrusage(resource.RUSAGE_SELF);"
        "sys.stderr.write(json.dumps([use.ru_utime + use.ru_stime, heavy]))"
    )
    seconds = []
    for _ in range(3):  # the machine may be busy, so the best of three counts
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        used, heavy = json.loads(done.stderr)
        seconds.append(used)
        assert heavy == []
    assert min(seconds) <= 0.3
