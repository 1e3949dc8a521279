"""The replay buffer: what a run's stored rollouts hold of reflections and what they were worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.problem_files import load
from tests.refine.test_episodes import attempt, guide
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import trace
from trace_opt.optim.base import Optimizer, Proposal
from trace_opt.refine.buffer import replay
from trace_opt.refine.episodes import Episodes
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.store.store import open_store


class Same(Optimizer):
    """Proposes a text."""

    needs_model = False

    def handles(self, parameter: Parameter[Any]) -> bool:
        return True

    async def propose(self, parameters: Any, rollouts: Any, history: Any) -> Proposal:
        return Proposal({"tone": "other"})


def test_training_rollouts_are_kept_with_all_that_was_drawn(tmp_path: Path) -> None:
    """Every reflection drawn in training is there with tokens, log probabilities and paired gain; so are one for each retry
    of kept evaluations, whose gain is the next change of return. Controls are not."""
    problem = load("doors", updates="2", attempts="3")
    store = open_store(tmp_path / "runs.db")
    run = problem.optimize(store=store)
    found = replay(store, run.id)
    paired = [one for one in found if one.rated == "paired"]
    after = [one for one in found if one.rated == "next"]
    assert paired
    assert after
    assert {one.candidate for one in paired} == {-1}
    assert {one.split for one in paired} == {"train"}
    assert {one.candidate for one in after} <= {0, 1}
    for one in found:
        assert len(one.tokens) == len(one.log_probs) > 0
        assert one.prompt[0]["role"] == "system"  # type: ignore[index]
        assert all(p <= 0 for p in one.log_probs)
    groups: dict[Any, int] = {}
    for one in paired:
        place = one.example, one.repeat, one.attempt
        groups[place] = groups.get(place, 0) + 1
    assert set(groups.values()) == {8}
    assert found == replay(store)
    assert found == replay(store, run.id[:6])


def test_a_model_that_gives_no_tokens_is_in_the_buffer_too(tmp_path: Path) -> None:
    """Reflections of a function, kept with the first validation rollout, are rated by what the next attempt gained."""
    tone = Parameter("plain", name="tone")

    @trace
    def spoken(messages: Any) -> str:
        return f"{tone.value}: go left"

    agent = Episodes(attempt, spoken, guide=guide, attempts=3)
    tasks = [f"left{' ' * (i % 2)}".strip() for i in range(8)]
    store = open_store(tmp_path / "runs.db")
    run = optimize(
        agent, tasks, agent.scored, optimizers=[Same()], store=store, budget=Budget(trials=1), margins=agent.margins, seed=1,
        controls=agent.controls(),
    )  # fmt: skip
    found = replay(store, run.id)
    assert found
    for one in found:
        assert (one.rated, one.tokens, one.log_probs) == ("next", (), ())
        assert one.completion in ("plain: go left", "other: go left")
        assert one.gain == 1.0
        assert one.attempt == 1
    assert {row.name for row in run.report().controls} == {"no retry", "retry without memory"}


def test_a_run_of_no_episodes_has_an_empty_buffer(tmp_path: Path) -> None:
    """Other outputs are passed over."""
    tone = Parameter("plain", name="tone")
    store = open_store(tmp_path / "runs.db")
    run = optimize(
        lambda x: {"returns": tone.value}, list(range(4)), lambda output, example: 1.0, optimizers=[Same()], store=store,
        budget=Budget(trials=1), parameters=[tone],
    )  # fmt: skip
    assert replay(store, run.id) == []
