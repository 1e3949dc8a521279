"""Rollouts in worker processes: the same result as on one machine, whatever dies, and nothing left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.problem_files import load
from tests.search import sent_problems as sent
from tests.search.conftest import Listed
from trace_opt.core.memory import Memory, remembering
from trace_opt.core.rollout import Cost
from trace_opt.errors import BudgetError, FeedbackError, LLMError, ProblemError
from trace_opt.optim.numeric.gradient import Gradient
from trace_opt.problem import load_problem
from trace_opt.search.budget import Budget
from trace_opt.search.distant import ATTEMPTS
from trace_opt.search.engine import optimize
from trace_opt.search.executors import LocalExecutor
from trace_opt.search.ledger import Ledger
from trace_opt.search.processes import ProcessExecutor
from trace_opt.search.rollers import executor_of
from trace_opt.search.run import Run
from trace_opt.search.shipping import packed_error, unpacked_error
from trace_opt.search.worker import KEY_PLACEHOLDER, without_keys

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers are killed by signals here")

WORDS = [{"prompt": "Shout it: "}, {"prompt": "Whisper it: "}]
SHIFTS = [{"offset": 2}, {"offset": 3}, {"offset": 9}]


@pytest.fixture(autouse=True)
def _folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SENT_FOLDER", str(tmp_path))


def run(workflow: Any, guide: Any, executor: Any = None, *, train: Any = None, values: Any = None, **more: Any) -> Run:
    options: dict[str, Any] = {
        "optimizers": [Listed(values or WORDS)],
        "store": None,
        "seed": 3,
        "concurrency": 4,
    } | more
    return optimize(workflow, train or sent.examples(12), guide, executor=executor, **options)


def result_of(found: Run) -> Any:
    history = [(t.before, t.after, t.accepted, t.verdict) for t in found.history]
    graph = None if found.graph is None else found.graph.to_json()
    return found.best, history, found.spent, _without_times(graph)


def _without_times(graph: str | None) -> Any:
    import json

    data = None if graph is None else json.loads(graph)
    for row in [*data["nodes"], *data["children"]] if data else ():
        if row[0] >= 0:
            row[-1] = 0.0
    return data


def workers() -> list[int]:
    """Worker processes of this one."""
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "trace_opt.search.worker" in line]


@pytest.mark.parametrize(
    ("workflow", "guide", "train", "values"),
    [
        (sent.shouting, sent.loud, sent.examples(12), WORDS),
        (sent.ashouting, sent.loud, sent.examples(12), WORDS),
        (sent.shifting, sent.near_three, sent.numbers(12), SHIFTS),
        (sent.failing, sent.loud, sent.examples(12), WORDS),
    ],
    ids=["text", "async", "plain code", "failures"],
)
def test_the_result_is_that_of_one_machine(workflow: Any, guide: Any, train: Any, values: Any) -> None:
    here = run(workflow, guide, train=train, values=values)
    there = run(workflow, guide, ProcessExecutor(2), train=train, values=values)
    assert result_of(there) == result_of(here)
    assert len(here.history) == len(values)
    assert workers() == []


def test_tensors_trained_by_workers_are_those_trained_here() -> None:
    def trained(executor: Any) -> Any:
        problem = load("logistic")
        found = problem.optimize(
            executor=executor, store=None, seed=1, budget=Budget(trials=1),
            concurrency=2,
            optimizers=[Gradient("adam", lr=0.1, steps=8, batch=4)],
        )  # fmt: skip
        return {name: value.tolist() for name, value in found.best.items()}, [
            (t.before, t.after) for t in found.history
        ]

    here, there = trained(None), trained(ProcessExecutor(2))
    assert there == here
    assert here[1] != []


def test_a_problem_loaded_by_path_whose_workflow_is_a_closure_is_made_again_in_the_workers() -> None:
    def found(executor: Any) -> Any:
        return load("branching").optimize(executor=executor, store=None, budget=Budget(trials=4), seed=2)

    assert result_of(found("processes")) == result_of(found(None))


def test_an_object_of_a_file_loaded_by_path_is_sent_with_its_class_by_name(tmp_path: Path) -> None:
    file = tmp_path / "parted.py"
    file.write_text(_PARTED)

    def found(executor: Any) -> Any:
        return load_problem(file).optimize(executor=executor, store=None, seed=1, concurrency=3)

    here, there = found(None), found(ProcessExecutor(2))
    assert result_of(there) == result_of(here)
    assert there.best["parts.sign"] == "-"


_PARTED = """
from dataclasses import dataclass
from trace_opt import Categorical, Feedback, Module, Parameter, trace
from trace_opt.problem import Problem

@dataclass(frozen=True)
class Said:
    text: str

class Parts(Module):
    def __init__(self):
        super().__init__()
        self.sign = Parameter("+", choices=("+", "-"))
    @trace
    def join(self, a, b):
        return Said(a + self.sign.value + b)

class Whole(Module):
    def __init__(self):
        super().__init__()
        self.parts = Parts()
    def __call__(self, a, b):
        return self.parts.join(a, b)

def guide(output, example):
    return Feedback(float(output == Said(f"{example['a']}-{example['b']}")), repr(output))

problem = Problem(workflow=Whole(), train=[{"a": str(i), "b": "x"} for i in range(9)], guide=guide, optimizers=[Categorical()])
"""


def test_a_killed_worker_loses_nothing_and_its_rollouts_are_charged_once() -> None:
    here = run(sent.shouting, sent.loud)
    there = run(sent.dying, sent.loud, ProcessExecutor(2))
    assert (Path(os.environ["SENT_FOLDER"]) / "after").exists()
    assert result_of(there)[:3] == result_of(here)[:3]


def test_a_run_begun_here_goes_on_with_workers_and_the_other_way_round(tmp_path: Path) -> None:
    def resumed(name: str, first: Any, second: Any) -> Any:
        store = tmp_path / name
        begun = run(sent.shouting, sent.loud, first, store=store, budget=Budget(trials=1), train=sent.examples(30))
        return result_of(
            run(sent.shouting, sent.loud, second, store=store, budget=Budget(trials=2), train=sent.examples(30), resume=begun.id)
        )  # fmt: skip

    here = resumed("here.db", None, None)
    assert resumed("there.db", None, ProcessExecutor(2)) == resumed("back.db", ProcessExecutor(2), None) == here


def test_a_rollout_that_kills_every_worker_is_a_failed_one_and_takes_no_other_with_it() -> None:
    killed = run(sent.deadly, sent.loud, ProcessExecutor(2))
    failed = run(sent.failing, sent.loud)
    assert [(t.before, t.after) for t in killed.history] == [(t.before, t.after) for t in failed.history]
    assert f"{ATTEMPTS} workers died" in str(asyncio.run(_one(sent.deadly, sent.loud, {"word": "word 1"})).error)


async def _one(workflow: Any, guide: Any, example: Any, *, executor: Any = None, ledger: Ledger | None = None) -> Any:
    """One rollout in a worker."""
    from trace_opt.core.binding import bind
    from trace_opt.search.rollers import roller_of
    from trace_opt.search.rolling import Job
    from trace_opt.search.settings import settle

    executor = executor or ProcessExecutor(1)
    settings = settle(workflow, [example] * 3, guide, {"store": None, "executor": executor, "concurrency": 2})
    roller = roller_of(settings, ledger or Ledger(Budget(rollouts=100)), executor)
    try:
        job = Job(0, {}, 0, example, bound=bind(workflow, example), seed=1, keep=True)
        return (await roller.arun(job))[0]
    finally:
        executor.close()


def test_what_a_workers_client_reports_is_charged_to_the_run() -> None:
    ledger = Ledger(Budget(rollouts=9))
    rollout = asyncio.run(_one(sent.charging, sent.never, {"word": "a"}, ledger=ledger))
    assert rollout.cost == Cost(2, 3, 1, 0.5)
    assert ledger.spent == {"workflow": Cost(2, 3, 1, 0.5)}


def test_the_budget_is_never_exceeded_by_workers() -> None:
    calls = 20
    try:
        spent = run(sent.shouting, sent.loud, ProcessExecutor(2), budget=Budget(calls=calls)).spent
    except BudgetError:
        return
    assert sum(cost.calls for cost in spent.values()) <= calls


def test_a_value_that_cannot_be_pickled_comes_back_as_the_store_would_keep_it() -> None:
    rollout = asyncio.run(_one(sent.odd, sent.never, {"word": "a"}))
    assert rollout.error is None
    assert any("lock" in repr(node.value) for node in rollout.graph.layout().order)


def test_a_mistake_of_the_guide_is_raised_with_the_example_named() -> None:
    with pytest.raises(ZeroDivisionError, match="a mistake of the guide on word") as caught:
        run(sent.shouting, sent.angry, ProcessExecutor(2))
    assert any("raised by the guide on" in note for note in caught.value.__notes__)
    assert workers() == []


def _closure() -> Callable[..., Any]:
    opened = open(os.devnull)  # noqa: SIM115

    def holding(word: str) -> str:
        opened.fileno()
        return sent.prompt.value + word

    return holding


@pytest.mark.parametrize("workflow", [lambda word: sent.prompt.value + word, _closure()], ids=["a lambda", "a closure"])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_workflow_that_cannot_be_sent_is_refused_in_one_sentence_before_anything_runs(workflow: Any) -> None:
    with pytest.raises(
        ProblemError, match=r"cannot be sent to another process .*define both at the top level"
    ) as caught:
        run(workflow, sent.never, ProcessExecutor(2))
    assert str(caught.value).count("\n") == 0
    assert workers() == []


def test_the_workflow_of_a_script_is_sent_by_its_file(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(guard='if __name__ == "__main__":'))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "{'offset': 3}", done.stderr


def test_a_script_that_begins_its_search_unguarded_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(guard="if True:"))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert "put what starts it under `if __name__ == '__main__':`" in done.stderr


_SCRIPT = """
from trace_opt import Categorical, Parameter, optimize
offset = Parameter(0, name="offset", choices=(0, 3))
def workflow(x):
    return x + offset.value
def guide(output, example):
    return -abs(output - example["x"] - 3)
{guard}
    run = optimize(workflow, [{{"x": x}} for x in range(5)], guide, optimizers=[Categorical()], executor="processes",
                   store=None, budget="light")
    print(run.best)
"""


def test_values_set_since_the_file_was_loaded_travel_along() -> None:
    before = sent.prompt.value
    sent.prompt.value = "Shout it: "
    try:
        assert asyncio.run(_one(sent.shouting, sent.loud, {"word": "a"})).score == 1.0
    finally:
        sent.prompt.value = before


def test_a_worker_that_loads_another_problem_than_the_one_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sent, "ask", sent.shifted)
    with pytest.raises(ProblemError, match=r"a worker loads another problem than the one here: .*differ"):
        run(sent.shouting, sent.loud, ProcessExecutor(1))
    assert workers() == []


def test_pure_ops_are_remembered_in_a_worker_and_reported() -> None:
    async def twice() -> tuple[Any, Memory]:
        executor = ProcessExecutor(1)
        memory = Memory()
        with remembering(memory):
            ledger = Ledger(Budget(rollouts=9))
            first = await _both(executor, ledger)
        return first, memory

    async def _both(executor: Any, ledger: Ledger) -> Any:
        from trace_opt.core.binding import bind
        from trace_opt.search.rollers import roller_of
        from trace_opt.search.rolling import Job
        from trace_opt.search.settings import settle

        example = {"word": "a"}
        settings = settle(sent.remembering_ask, [example] * 3, sent.loud, {"store": None, "executor": executor})
        roller = roller_of(settings, ledger, executor)
        try:
            for _ in range(3):
                await roller.arun(Job(0, {}, 0, example, bound=bind(sent.remembering_ask, example), seed=1))
        finally:
            executor.close()
        return ledger.total

    total, memory = asyncio.run(twice())
    assert total.calls == 1
    assert (memory.saved.ops, memory.saved.cost.calls) == (2, 2)


def test_a_workflow_that_hangs_is_stopped_with_its_worker() -> None:
    began = time.monotonic()
    with pytest.raises(BudgetError, match="seconds"):
        run(sent.sleeping, sent.never, ProcessExecutor(2), budget=Budget(seconds=1.0))
    assert time.monotonic() - began < 40  # each of its rollouts takes a minute
    assert workers() == []


def test_a_copy_of_a_late_rollout_comes_first_and_changes_nothing() -> None:
    began = time.monotonic()
    there = run(sent.late, sent.never, ProcessExecutor(2, copies=5.0))
    assert time.monotonic() - began < 50  # without a copy it takes a minute
    assert (Path(os.environ["SENT_FOLDER"]) / "late").exists()
    assert result_of(there) == result_of(
        run(sent.late, sent.never)
    )  # the minute is over: it is met for the second time
    assert workers() == []


def test_ctrl_c_leaves_no_process_behind(tmp_path: Path, project: Path) -> None:
    code = (
        "from tests.search import sent_problems as sent\nfrom trace_opt import optimize, Categorical\n"
        "optimize(sent.sleeping, sent.examples(9), sent.never, executor='processes', store=None)"
    )
    environment = {**os.environ, "PYTHONPATH": str(project), "SENT_FOLDER": str(tmp_path)}
    for how in (signal.SIGINT, signal.SIGKILL):
        driver = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)
        pids = _appear(tmp_path)
        os.kill(driver.pid, how)
        driver.communicate(timeout=50)
        assert _gone(pids)


def _appear(folder: Path) -> list[int]:
    for _ in range(5000):
        found = list(folder.glob("pid *"))
        if found:
            for path in found:
                path.unlink()
            return [int(path.name.split()[1]) for path in found]
        time.sleep(0.01)
    raise AssertionError("no worker began")


def _gone(pids: Sequence[int]) -> bool:
    for _ in range(3000):
        alive = [pid for pid in pids if Path(f"/proc/{pid}").exists() or _alive(pid)]
        if not alive:
            return True
        time.sleep(0.01)
    return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_secrets_do_not_reach_a_worker_unless_they_are_named() -> None:
    found = without_keys(
        {"OPENAI_API_KEY": "sk", "HF_TOKEN": "hf", "DB_PASSWORD": "p", "TOKENIZERS_PARALLELISM": "1", "HOME": "/", "MY_KEY": "k"},
        ("MY_KEY",),
    )  # fmt: skip
    assert found == {
        "OPENAI_API_KEY": KEY_PLACEHOLDER, "HF_TOKEN": KEY_PLACEHOLDER, "DB_PASSWORD": KEY_PLACEHOLDER,
        "TOKENIZERS_PARALLELISM": "1", "HOME": "/", "MY_KEY": "k",
    }  # fmt: skip


class _Own(Exception):
    def __init__(self, one: int, *, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_errors_travel_with_their_class_or_at_least_their_words() -> None:
    error = LLMError("no key", kind="key")
    error.add_note("a note")
    model = unpacked_error(packed_error(error))
    assert (type(model).__mro__[1], str(model), getattr(model, "kind", ""), model.__notes__) == (LLMError, "no key", "key", ["a note"])  # fmt: skip
    assert type(unpacked_error(packed_error(FeedbackError("x")))) is FeedbackError
    assert "_Own: 1 and 2" in str(unpacked_error(packed_error(_Own(1, two=2))))


@pytest.mark.parametrize(
    ("given", "address", "said"),
    [
        ("proceses", None, "did you mean 'processes'"),
        (3, None, "pass one of 'local', 'processes', 'ray'"),
        ("processes", "auto", "only executor='ray' has a use for"),
    ],
)
def test_an_executor_that_makes_no_sense_is_refused(given: Any, address: Any, said: str) -> None:
    with pytest.raises(ProblemError, match=said):
        executor_of(given, address, 2)


def test_an_executor_of_the_users_own_runs_the_rollouts() -> None:
    class Counting(LocalExecutor):
        jobs = 0

        async def run(self, jobs: Sequence[Any], work: Any) -> list[Any]:
            self.jobs += len(jobs)
            return await super().run(jobs, work)

    executor = Counting(3)
    run(sent.shouting, sent.loud, executor)
    assert executor.jobs > 20
