from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest


def run_id(out: str) -> str:
    return next(line.split()[1] for line in out.splitlines() if line.startswith("run "))


def test_a_run_reports_start_and_best_and_prints_the_values(cli: Any, choices: Path) -> None:
    done = cli("run", choices, "--budget", "trials=12", "--seed", 1)
    assert done.code == 0
    assert "4 test examples (held out), mean score with 95 % interval" in done.out
    assert "  word: 'b'" in done.out
    assert "  number: 2" in done.out


def test_a_run_says_which_models_work_and_why(cli: Any, prompt: Path) -> None:
    done = cli("run", prompt, "--budget", "trials=1")
    assert "workflow model   scripted/worker" in done.out
    assert "optimizer model  scripted/teacher (brought by OptoPrime)" in done.out
    assert "workflow model: scripted/worker" in done.err
    assert "optimizer model: scripted/teacher (brought by OptoPrime)" in done.err
    assert "optimizer model  scripted/teacher" in cli("show").out


def test_a_run_without_an_optimizer_s_model_says_so(cli: Any, choices: Path) -> None:
    """Where optimizers search without one, none is asked."""
    done = cli("run", choices, "--budget", "trials=1")
    assert "optimizer model  none is asked" in done.out
    assert "optimizer model: none is asked" in done.err


def test_progress_is_a_line_a_step_on_stderr(cli: Any, choices: Path) -> None:
    done = cli("run", choices, "--budget", "trials=3")
    trials = [line for line in done.err.splitlines() if line.startswith("trial ")]
    assert len(trials) == 3
    assert "trial" not in done.out.split("best values")[1]


def test_quiet_shows_no_progress(cli: Any, choices: Path) -> None:
    done = cli("run", choices, "--budget", "trials=3", "--quiet")
    assert done.err == ""
    assert "best values" in done.out


def test_the_next_commands_end_an_answer(cli: Any, choices: Path) -> None:
    done = cli("run", choices, "--budget", "trials=2", "--store", "kept runs.db")
    run = run_id(done.out)
    assert f"next: trace-opt diff {run} --store 'kept runs.db'" in done.err


def test_json_is_one_document_with_the_report(cli: Any, choices: Path) -> None:
    done = cli("run", choices, "--budget", "trials=12", "--seed", 1, "--json", "--quiet")
    document = json.loads(done.out)
    assert document["best"] == {"word": "b", "number": 2}
    assert document["start"] == {"word": "a", "number": 0}
    assert document["report"]["held_out"] is True
    assert document["models"] == {"workflow": [], "optimizer": None}
    assert document["status"] == "finished"


def test_options_of_the_problem_come_from_set(cli: Any, choices: Path) -> None:
    done = cli("run", choices, "--budget", "trials=12", "--set", "right=1", "--set", "examples=4", "--json")
    document = json.loads(done.out)
    assert document["best"]["number"] == 1
    assert document["report"]["best"]["n"] == 2


def test_the_same_seed_gives_the_same_run(cli: Any, choices: Path) -> None:
    def trials() -> Any:
        cli("run", choices, "--budget", "trials=6", "--seed", 5)
        return json.loads(cli("show", "last", "--json").out)["trials"]

    assert trials() == trials()


def test_store_none_keeps_nothing(cli: Any, choices: Path, tmp_path: Path) -> None:
    done = cli("run", choices, "--budget", "trials=2", "--store", "none")
    assert done.code == 0
    assert not (tmp_path / ".trace_opt").exists()
    assert "next:" not in done.err


def test_a_name_given_is_the_run_s(cli: Any, choices: Path) -> None:
    cli("run", choices, "--budget", "trials=2", "--name", "mine")
    assert json.loads(cli("list", "--json").out)[0]["name"] == "mine"


def test_a_model_named_is_the_optimizers_and_the_run_says_so(cli: Any, prompt: Path) -> None:
    text = prompt.read_text().replace("OptoPrime(teach)", "OptoPrime()")
    prompt.write_text(text)
    done = cli("run", prompt, "--dry-run", "--model", "openai/gpt-4.1-mini")
    assert done.code == 0
    assert "openai/gpt-4.1-mini" in done.out


def test_without_any_model_the_sentence_says_how_to_get_one(cli: Any, prompt: Path) -> None:
    prompt.write_text(prompt.read_text().replace("OptoPrime(teach)", "OptoPrime()"))
    done = cli("run", prompt, "--budget", "trials=1", "--quiet")
    assert done.code == 1
    assert "TRACE_OPT_MODEL" in done.err
    assert "--model" in done.err


# -- dry run ---------------------------------------------------------------------------------------------------------------


def test_a_dry_run_keeps_and_spends_nothing(cli: Any, prompt: Path, tmp_path: Path) -> None:
    done = cli("run", prompt, "--dry-run")
    assert done.code == 0
    assert "nothing was spent" in done.out
    assert not (tmp_path / ".trace_opt" / "runs.db").exists()


def test_a_dry_run_estimates_from_one_free_rollout(cli: Any, prompt: Path) -> None:
    document = json.loads(cli("run", prompt, "--dry-run", "--budget", "rollouts=100", "--json").out)
    assert document["one_rollout"]["cost"]["calls"] == 1
    assert document["estimate"]["rollouts"] == 100
    proposals = document["proposals"]["about"]
    assert document["estimate"]["calls"] == 100 + 2 * proposals
    assert document["workflow_models"] == ["scripted/worker"]


def test_a_dry_run_makes_no_call_that_costs_money(cli: Any, prompt: Path, tmp_path: Path) -> None:
    text = prompt.read_text().replace('name="scripted/worker")', 'name="scripted/worker", price=(1e-6, 2e-6))')
    text = text.replace('lambda messages: "yes"', 'lambda messages: open("called", "w").close() or "yes"', 1)
    prompt.write_text(text)
    document = json.loads(cli("run", prompt, "--dry-run", "--json").out)
    assert document["one_rollout"] is None
    assert document["first_call"]["usd"] > 0
    assert not (tmp_path / "called").exists()


def test_a_dry_run_refuses_what_the_run_would_refuse(cli: Any, choices: Path) -> None:
    done = cli("run", choices, "--dry-run", "--budget", "rollouts=3")
    assert done.code == 3
    assert "cannot pay for one proposal" in done.err


# -- what was run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(cli: Any, choices: Path) -> str:
    """The id of a run that tries all nine combinations."""
    return run_id(cli("run", choices, "--budget", "trials=12", "--seed", 1).out)


def test_list_has_one_line_a_run_the_newest_first(cli: Any, kept: str, choices: Path) -> None:
    newer = run_id(cli("run", choices, "--budget", "trials=2").out)
    lines = cli("list").out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", newer, kept]
    assert cli("list", "--limit", 1).out.splitlines()[1].startswith(newer)


def test_an_empty_store_lists_nothing_and_says_so_aside(cli: Any) -> None:
    done = cli("list")
    assert (done.code, done.out) == (0, "")
    assert "no runs" in done.err
    assert json.loads(cli("list", "--json").out) == []


def test_show_tells_report_values_and_trials(cli: Any, kept: str) -> None:
    out = cli("show", kept[:8]).out
    assert "4 test examples (held out)" in out
    assert "  word: 'b'" in out
    assert sum(line.split()[1:2] == ["Categorical"] for line in out.splitlines()) == 8  # all combinations but the start


def test_show_in_json_holds_every_candidate(cli: Any, kept: str) -> None:
    document = json.loads(cli("show", kept, "--json").out)
    assert document["candidates"][0]["values"] == {"word": "a", "number": 0}
    assert len(document["trials"]) == document["report"]["trials"]
    best = next(c for c in document["candidates"] if c["id"] == document["best_candidate"])
    assert best["values"] == document["best"]


def test_show_has_the_last_twenty_trials_unless_all_are_wanted(cli: Any, prompt: Path, choices: Path) -> None:
    choices.write_text(choices.read_text().replace("(0, 1, 2)", "tuple(range(9))"))
    cli("run", choices, "--budget", "trials=23")
    out = cli("show").out
    assert "(3 earlier trials; --all shows them)" in out
    assert sum("Categorical" in line for line in cli("show", "--all").out.splitlines()) == 23


def test_diff_shows_start_against_best(cli: Any, kept: str) -> None:
    lines = cli("diff", kept).out.splitlines()
    assert "--- word (start)" in lines
    assert "-a" in lines
    assert "+b" in lines


def test_diff_takes_two_candidates(cli: Any, kept: str) -> None:
    document = json.loads(cli("diff", kept, "0", "1", "--json").out)
    record = json.loads(cli("show", kept, "--json").out)
    assert document["a"] == record["start"]
    assert document["b"] == next(c["values"] for c in record["candidates"] if c["id"] == 1)
    assert document["changed"] == [name for name in document["b"] if document["a"][name] != document["b"][name]]


def test_diff_of_one_candidate_with_itself_is_empty(cli: Any, kept: str) -> None:
    done = cli("diff", kept, "best", "best")
    assert (done.code, done.out) == (0, "")
    assert "same values" in done.err


def test_a_candidate_that_is_not_there_is_named_with_what_is(cli: Any, kept: str) -> None:
    done = cli("diff", kept, "0", "99")
    assert done.code == 2
    assert "no candidate '99'" in done.err


def test_the_json_export_is_what_load_values_takes(cli: Any, kept: str, tmp_path: Path) -> None:
    from trace_opt import Parameter, load_values

    cli("export", kept, "--format", "json", "-o", "best.json")
    word = Parameter("a", name="word", choices=("a", "b", "c"))
    number = Parameter(0, name="number", choices=(0, 1, 2))
    load_values([word, number], tmp_path / "best.json")
    assert (word.value, number.value) == ("b", 2)


def test_the_python_export_puts_the_values_in_place(cli: Any, kept: str) -> None:
    from trace_opt import Parameter

    scope: dict[str, Any] = {}
    exec(compile(cli("export", kept, "--format", "python").out, "best.py", "exec"), scope)
    word = Parameter("a", name="word", choices=("a", "b", "c"))
    number = Parameter(0, name="number", choices=(0, 1, 2))
    scope["apply"]([word, number])
    assert (word.value, number.value) == ("b", 2)


def test_exports_of_a_structured_value_make_it_again(cli: Any, write: Any, tmp_path: Path) -> None:
    from trace_opt import load_values
    from trace_opt.problem import load_problem

    path = write("structured.py", """
        import json
        from pydantic import BaseModel
        from trace_opt import OptoPrime, Parameter, Problem, trace
        from trace_opt.testing import ScriptedLLM
        class Plan(BaseModel):
            steps: list[str]
        plan = Parameter(Plan(steps=["a"]), name="plan", type=Plan)
        @trace
        def length(x): return len(plan.value.steps)
        def workflow(x): return length(x)
        teacher = ScriptedLLM(lambda messages: json.dumps({"plan": {"steps": ["a", "b"]}}))
        problem = Problem(workflow=workflow, train=[{"x": i} for i in range(4)], guide=lambda o, e: float(o),
                          parameters=[plan], optimizers=[OptoPrime(teacher)])
    """)  # fmt: skip
    assert cli("run", path, "--budget", "trials=1").code == 0
    scope: dict[str, Any] = {}
    exec(compile(cli("export", "--format", "python").out, "best.py", "exec"), scope)
    cli("export", "--format", "json", "-o", "best.json")
    for put in (scope["apply"], lambda parameters: load_values(parameters, tmp_path / "best.json")):
        (plan,) = load_problem(path).parameters or ()
        put([plan])
        assert type(plan.value).__name__ == "Plan"
        assert plan.value.steps == ["a", "b"]


def test_exports_of_values_that_json_has_no_word_for_make_them_again(cli: Any, write: Any, tmp_path: Path) -> None:
    """Enums, dates, bytes that are no text and complex numbers: as the run found them, by both formats."""
    from trace_opt import load_values
    from trace_opt.problem import load_problem

    path = write("kinds.py", """
        import enum, json
        from datetime import date
        from trace_opt import OptoPrime, Parameter, Problem, trace
        from trace_opt.testing import ScriptedLLM
        class Color(enum.Enum):
            RED = "r"
            GREEN = "g"
        found = [
            Parameter(Color.RED, name="color"), Parameter([Color.RED], name="colors", type=list[Color]),
            Parameter(date(2020, 1, 2), name="day"), Parameter(b"\\xff\\x00", name="raw"), Parameter(1j, name="wave"),
        ]
        @trace
        def right(x): return float(found[0].value is Color.GREEN and [p.value for p in found[1:]] != [])
        def workflow(x): return right(x)
        teacher = ScriptedLLM(lambda messages: json.dumps({"color": "g", "colors": ["g", "r"], "day": "2021-03-04"}))
        problem = Problem(workflow=workflow, train=[{"x": i} for i in range(4)], guide=lambda o, e: float(o),
                          parameters=found, optimizers=[OptoPrime(teacher)])
    """)  # fmt: skip
    done = cli("run", path, "--budget", "trials=1")
    assert done.code == 0, done.err
    scope: dict[str, Any] = {}
    exec(compile(cli("export", "--format", "python").out, "best.py", "exec"), scope)
    cli("export", "--format", "json", "-o", "best.json")
    for put in (scope["apply"], lambda parameters: load_values(parameters, tmp_path / "best.json")):
        color, colors, day, raw, wave = load_problem(path).parameters or ()
        put([color, colors, day, raw, wave])
        kinds = type(color.value)
        assert (color.value, colors.value) == (kinds.GREEN, [kinds.GREEN, kinds.RED])
        assert (day.value, raw.value, wave.value) == (date(2021, 3, 4), b"\xff\x00", 1j)


def test_the_text_export_of_one_parameter_is_its_bare_value(cli: Any, prompt: Path) -> None:
    cli("run", prompt, "--budget", "trials=1")
    assert cli("export", "--parameter", "prompt").out == "Answer [bold]politely[/bold].\x1b[2J\n"
    assert cli("export").out == "# prompt\nAnswer [bold]politely[/bold].\x1b[2J\n"


def test_an_export_of_an_unknown_parameter_suggests_a_near_one(cli: Any, kept: str) -> None:
    done = cli("export", kept, "--parameter", "wrd")
    assert done.code == 2
    assert "did you mean 'word'?" in done.err


def test_an_export_that_cannot_be_written_leaves_no_part_behind(cli: Any, kept: str, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    done = cli("export", kept, "-o", "taken")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert list(tmp_path.glob("*.part")) == []


def test_text_that_a_model_wrote_is_shown_never_obeyed(cli: Any, prompt: Path) -> None:
    done = cli("run", prompt, "--budget", "trials=1")
    assert "[bold]politely[/bold].\\x1b[2J" in done.out
    assert "\x1b" not in done.out + done.err


# -- going on --------------------------------------------------------------------------------------------------------------


def test_a_finished_run_goes_on_with_a_larger_budget(cli: Any, choices: Path) -> None:
    first = run_id(cli("run", choices, "--budget", "trials=3", "--seed", 1).out)
    done = cli("resume", first, "--budget", "trials=12")
    assert done.code == 0
    assert run_id(done.out) == first
    resumed = json.loads(cli("show", first, "--json").out)
    cli("run", choices, "--budget", "trials=12", "--seed", 1)
    whole = json.loads(cli("show", "last", "--json").out)
    assert resumed["trials"] == whole["trials"]
    assert resumed["best"] == whole["best"]


def test_resume_finds_file_and_options_again(cli: Any, choices: Path, tmp_path: Path, monkeypatch: Any) -> None:
    run = run_id(cli("run", choices.name, "--budget", "trials=3", "--set", "right=1", "--store", tmp_path / "s.db").out)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = cli("resume", run, "--budget", "trials=5", "--store", tmp_path / "s.db")
    assert done.code == 0, done.err


@pytest.mark.parametrize("search", ["greedy", "pareto", "beam"])
def test_a_search_is_named_once_and_found_again_by_resume(cli: Any, choices: Path, search: str) -> None:
    done = cli("run", choices, "--budget", "trials=4", "--search", search)
    assert done.code == 0, done.err
    first = run_id(done.out)
    assert cli("resume", first, "--budget", "trials=8").code == 0
    shown = json.loads(cli("show", first, "--json").out)
    assert len(shown["trials"]) == 8
    assert max(trial["step"] for trial in shown["trials"]) == {"greedy": 8, "pareto": 4, "beam": 2}[search]


def test_a_search_that_is_not_there_suggests_a_near_one(cli: Any, choices: Path) -> None:
    done = cli("run", choices, "--search", "paretto")
    assert done.code == 2
    assert "no search is named 'paretto'; did you mean 'pareto'?" in done.err


def test_resume_without_the_file_asks_for_it(cli: Any, choices: Path) -> None:
    run = run_id(cli("run", choices, "--budget", "trials=2").out)
    choices.rename(choices.with_name("moved.py"))
    done = cli("resume", run)
    assert done.code == 1
    assert f"`trace-opt resume {run} FILE`" in done.err
    assert cli("resume", run, "moved.py", "--budget", "trials=4").code == 0


def test_resume_refuses_a_problem_that_changed_and_names_it(cli: Any, choices: Path) -> None:
    run = run_id(cli("run", choices, "--budget", "trials=2").out)
    choices.write_text(choices.read_text().replace('f"{text}{word}{number}"', 'f"{text}{number}{word}"'))
    done = cli("resume", run, "--budget", "trials=4", "--quiet")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "changed" in done.err


REMOTE = """
from trace_opt import Categorical, Parameter, Problem, connect, trace
tone = Parameter("a", name="tone", choices=("a", "b"))
llm = connect("served/model", api_key="none", base_url="http://127.0.0.1:PORT/v1", attempts=1, cache=None)

@trace
def ask(question): return llm(f"{tone.value} {question}")
def workflow(question): return ask(question)
problem = Problem(workflow=workflow, train=[{"question": "q"}, {"question": "r"}],
                  guide=lambda output, example: float(output == "fine"), parameters=[tone], optimizers=[Categorical()])
"""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """An OpenAI-compatible server that says whether it was asked for tone b."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = "fine" if asked["messages"][-1]["content"].startswith("b") else "no"
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
            reply = {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "model",
                "choices": [choice],
                "usage": usage,
            }
            body = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def test_a_captured_run_is_replayed_without_its_server(cli: Any, write: Any, server: ThreadingHTTPServer) -> None:
    path = write("remote.py", REMOTE.replace("PORT", str(server.server_port)))
    budget = ("--budget", "trials=1", "--store", "none", "--json", "--quiet")
    first = cli("run", path, *budget, "--capture", "calls.jsonl")
    assert first.code == 0, first.err
    server.shutdown()
    server.server_close()
    again = cli("run", path, *budget, "--replay", "calls.jsonl")
    assert json.loads(again.out)["best"] == json.loads(first.out)["best"] == {"tone": "b"}
    assert json.loads(first.out)["report"]["spend"]["workflow"]["calls"] > 0
    # the budget is charged as it was then, so the report says the same, but for the time
    reports = [json.loads(done.out)["report"] | {"seconds": 0} for done in (first, again)]
    assert reports[0] == reports[1]


def test_a_run_that_a_budget_of_calls_ended_is_replayed_whole(
    cli: Any, write: Any, server: ThreadingHTTPServer
) -> None:
    remote = REMOTE.replace("PORT", str(server.server_port)).replace('("a", "b")', "tuple('acdefghi')")
    path = write("remote.py", remote)
    budget = ("--budget", "calls=9", "--store", "none", "--json", "--quiet")
    first = cli("run", path, *budget, "--capture", "calls.jsonl")
    assert first.code == 0, first.err
    assert "the budget is spent" in json.loads(first.out)["ended"]
    server.shutdown()
    server.server_close()
    again = cli("run", path, *budget, "--replay", "calls.jsonl")
    assert again.code == 0, again.err
    reports = [json.loads(done.out)["report"] | {"seconds": 0} for done in (first, again)]
    assert reports[0] == reports[1]


def test_a_replay_never_falls_back_to_the_model(cli: Any, write: Any, server: ThreadingHTTPServer) -> None:
    path = write("remote.py", REMOTE.replace("PORT", str(server.server_port)))
    Path("empty.jsonl").write_text("")
    done = cli("run", path, "--budget", "trials=1", "--replay", "empty.jsonl", "--quiet", "--store", "none")
    assert done.code == 1
    assert "holds no call" in done.err


NOISY = """
import os
import subprocess
import sys

import {name}

print("noise of Python")
os.write(1, b"noise below Python\\n")
subprocess.run([sys.executable, "-c", "print('noise of a child')"])
problem = {name}.problem
"""


@pytest.mark.parametrize("executor", ["local", "processes"])
def test_what_a_file_prints_is_no_answer(spawn: Any, choices: Path, write: Any, executor: str) -> None:
    """Python, what is below it, child processes and workers print on stderr while the answer is JSON on stdout."""
    noisy = write("noisy.py", "import sys\nsys.path.insert(0, '.')\n" + NOISY.format(name=choices.stem))
    done = spawn("run", noisy, "--budget", "trials=2", "--executor", executor, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["status"] == "finished"
    for kind in ("of Python", "below Python", "of a child"):
        assert done.err.count(f"noise {kind}") >= (1 if executor == "local" else 2)


def test_what_a_workflow_prints_is_no_answer(cli: Any, choices: Path) -> None:
    """In this process too, and for people as for machines; the file's stdout is there again afterwards."""
    text = choices.read_text(encoding="utf-8").replace("time.sleep(wait)", "print('noise')")
    choices.write_text(text, encoding="utf-8")
    done = cli("run", choices, "--budget", "trials=2")
    assert "noise" in done.err
    assert "noise" not in done.out
    assert "best values" in done.out
    assert json.loads(cli("graph", choices, "--format", "json").out)["nodes"]


def test_what_is_written_at_the_end_of_the_process_is_no_answer(spawn: Any, choices: Path) -> None:
    """A handler of atexit, as C code that flushes its own buffer, writes after the answer."""
    with choices.open("a", encoding="utf-8") as file:
        file.write("\nimport atexit, os\natexit.register(lambda: (print('late'), os.write(1, b'later\\n')))\n")
    done = spawn("run", choices, "--budget", "trials=1", "--json", "--quiet")
    assert json.loads(done.out)["status"] == "finished"
    assert {"late", "later"} <= set(done.err.split())


def test_a_stand_in_for_stdout_gets_the_answer_alone(choices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream without a file of the system's, as notebooks have it."""
    from trace_opt.cli import main

    out = io.StringIO()
    choices.write_text("print('noise')\n" + choices.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["run", str(choices), "--budget", "trials=1", "--json", "--quiet"]) == 0
    assert json.loads(out.getvalue())["status"] == "finished"
