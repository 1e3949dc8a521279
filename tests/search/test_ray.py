"""Rollouts on a Ray cluster: the same result as on one machine, and a killed worker loses nothing."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.problem_files import load
from tests.search import sent_problems as sent
from tests.search.conftest import Listed
from trace_opt.errors import ProblemError
from trace_opt.optim.numeric.gradient import Gradient
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.ray import RayExecutor
from trace_opt.search.run import Run

HERE = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HERE, reason="Ray is not installed (extra `ray`)")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two CPUs of this machine, for all tests here."""
    ray: Any = pytest.importorskip("ray")
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("SENT_FOLDER", str(tmp_path_factory.mktemp("marks")))
    patch.setenv("SENT_API_KEY", "sk-secret")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
    patch.undo()


def run(workflow: Any, guide: Any, executor: Any, **more: Any) -> Run:
    options: dict[str, Any] = {
        "optimizers": [Listed([{"prompt": "Shout it: "}, {"prompt": "Whisper it: "}])], "store": None, "seed": 3,
        "concurrency": 4,
    } | more  # fmt: skip
    return optimize(workflow, sent.examples(12), guide, executor=executor, **options)


def result_of(found: Run) -> Any:
    return found.best, [(t.before, t.after, t.accepted, t.verdict) for t in found.history], found.spent


@needs_ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
class TestOnACluster:
    def test_the_result_is_that_of_one_machine(self) -> None:
        here = run(sent.shouting, sent.loud, None)
        assert result_of(run(sent.shouting, sent.loud, RayExecutor(workers=2))) == result_of(here)
        assert len(here.history) == 2

    def test_tensors_trained_on_it_are_those_trained_here(self) -> None:
        def trained(executor: Any) -> Any:
            found = load("quadratic").optimize(
                executor=executor, store=None, seed=1, budget=Budget(trials=1), concurrency=2,
                optimizers=[Gradient("adam", lr=0.1, steps=3, batch=2)],
            )  # fmt: skip
            return {name: value.tolist() for name, value in found.best.items()}, [t.after for t in found.history]

        assert trained(RayExecutor(workers=1)) == trained(None)

    def test_a_killed_worker_loses_nothing_and_its_rollouts_are_charged_once(self) -> None:
        here = run(sent.shouting, sent.loud, None)
        there = run(sent.dying, sent.loud, RayExecutor(workers=2))
        assert result_of(there) == result_of(here)

    def test_a_worker_with_a_late_rollout_is_replaced(self) -> None:
        """As on one machine: the late one has failed and shows what it did, the others come through."""
        for _ in range(3):  # a busy machine may make others late as well
            optimizer = Listed([{"prompt": "Shout it: "}])
            given: dict[str, Any] = {"optimizers": [optimizer], "budget": Budget(trials=1), "timeout": 3.0}
            run(sent.dawdling, sent.loud, RayExecutor(workers=1), **given)
            late = [rollout for rollout in optimizer.asked[0] if rollout.error is not None]
            if len(late) == 1:
                break
        assert [rollout.error for rollout in late] == ["Timeout: took longer than 3 s (timeout=3)"]
        assert late[0].graph is not None

    def test_no_key_is_to_be_seen_in_a_worker(self) -> None:
        seen = run(sent.keys_seen, sent.never, RayExecutor(workers=1), optimizers=[Listed([])]).graph
        assert seen is not None
        assert "sk-secret" not in seen.to_text()
        assert "held-by-the-driver" in seen.to_text()

    def test_the_command_line_runs_rollouts_on_the_cluster_at_an_address(self, project: Path) -> None:
        import ray

        address = str(ray.get_runtime_context().gcs_address)
        command = [sys.executable, "-m", "trace_opt", "run", str(project / "graphs" / "branching.py")]
        options = ["--store", "none", "--budget", "trials=3", "--json"]
        options += ["--executor", "ray", "--address", address]
        there = subprocess.run([*command, *options], capture_output=True, text=True, timeout=100)
        here = load("branching").optimize(store=None, budget=Budget(trials=3))
        assert there.returncode == 0, there.stderr
        assert json.loads(there.stdout)["best"] == here.best

    def test_a_cluster_that_was_there_stays_and_an_address_beside_it_is_refused(self) -> None:
        import ray

        assert ray.is_initialized()
        with pytest.raises(ProblemError, match="connected to a Ray cluster already"):
            run(sent.shouting, sent.loud, RayExecutor("127.0.0.1:1", workers=1))


@pytest.mark.skipif(HERE, reason="Ray is installed")
def test_without_ray_the_extra_is_named() -> None:
    with pytest.raises(ProblemError, match=r"pip install .*\[ray\]"):
        run(sent.shouting, sent.loud, "ray")
