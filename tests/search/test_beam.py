"""Beam search: several candidates are built on, and the best few stay."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests import evolving
from tests.search.conftest import Line, Listed
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Rollouts
from trace_opt.errors import ProblemError
from trace_opt.optim.base import Optimizer, Proposal, Trial
from trace_opt.search.beam import Beam
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.gate import Gate
from trace_opt.search.run import Run


class Towards(Optimizer):
    """Moves one of the two numbers of the line by one, the way and which decided by its seed."""

    def handles(self, parameter: Parameter[Any]) -> bool:
        return True

    async def propose(self, parameters: Any, rollouts: Rollouts, history: Sequence[Trial]) -> Proposal:
        chosen = parameters[rollouts.seed % 2]
        return Proposal({chosen.name: chosen.value + 1}, "one more")


def run_on(line: Line, optimizer: Optimizer, search: Any, **options: Any) -> Run:
    return optimize(
        line.workflow, line.examples(40), line.guide, parameters=[line.a, line.b], optimizers=[optimizer], search=search,
        **{"store": None, "budget": Budget(trials=40), **options},
    )  # fmt: skip


def test_every_candidate_of_the_beam_is_built_on(line: Line) -> None:
    run = run_on(line, Towards(), Beam(beam=3))
    bases = {trial.step: [t.base for t in run.history if t.step == trial.step] for trial in run.history}
    assert bases[1] == [0, 0, 0]
    assert all(len(set(bases[step])) == 3 for step in range(4, max(bases)))


def test_the_beam_climbs_to_a_better_mean(line: Line) -> None:
    run = run_on(line, Towards(), Beam(beam=2, proposals=2))
    report = run.report()
    assert report.start is not None
    assert report.best.mean > report.start.mean + 30
    assert run.best["a"] >= 2


def test_the_beam_holds_its_best_few_and_says_their_places(line: Line) -> None:
    values = [{"a": 1}, {"a": 2}, {"a": 3}, {"b": 1}]
    run = run_on(line, Listed(values), Beam(beam=2, proposals=2), budget=Budget(trials=4))
    places = {trial.changed.get("a"): trial.verdict for trial in run.history if trial.accepted}
    assert set(places) == {2, 3}
    assert places[3].endswith("place 1 of the beam")
    assert places[2].endswith("place 2 of the beam")
    left = next(trial for trial in run.history if trial.changed == {"a": 1})
    assert left.verdict.endswith("but not in the beam")
    assert run.best["a"] == 3


def test_a_worse_proposal_is_dropped_after_a_few_examples(line: Line) -> None:
    run = run_on(line, Listed([{"a": -5}]), Beam(beam=1, gate=Gate.search(block=2)), budget=Budget(trials=1))
    assert run.history[0].n < 8
    assert run.history[0].verdict.startswith("dropped: ")
    assert "its parent" in run.history[0].verdict or "little hope" in run.history[0].verdict


def test_a_beam_of_none_is_refused() -> None:
    with pytest.raises(ProblemError, match="below 1"):
        Beam(beam=0)


def test_the_race_comes_first(line: Line) -> None:
    kind = Parameter("low", name="kind", choices=("low", "mid", "high"))
    run = optimize(
        lambda x, y: {"low": 0, "mid": 1, "high": 2}[kind.value] + 0 * x + 0 * y, line.examples(30),
        lambda out, _: float(out), parameters=[kind], race=["kind"], search=Beam(beam=2), store=None,
        budget=Budget(trials=8),
    )  # fmt: skip
    assert run.best == {"kind": "high"}
    assert run.history[0].optimizer == "race"


def test_a_killed_and_resumed_beam_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    from tests.search.test_pareto import child

    evolving.search("beam", str(tmp_path / "clean.db"), None, evolving.Doom("never", 0))
    store = tmp_path / "runs.db"
    assert child("beam", store, "", "before a reply", 70) == -9
    resume = evolving.harness().Store(store).runs()[0].id
    assert child("beam", store, resume, "before a commit", 8) == -9
    evolving.search("beam", str(store), resume, evolving.Doom("never", 0))
    whole, clean = (evolving.harness().dump(file) for file in (store, tmp_path / "clean.db"))
    assert whole["result"] == clean["result"]
    assert any(trial[10] for trial in clean["result"]["trials"])
