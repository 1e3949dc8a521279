"""What every optimizer has to keep to, as tests for the author of one.

The tests propose from real rollouts of a small problem, as a search would make them, and never look at how an optimizer
works: only at what it reads, gives and leaves alone.
"""

# ruff: noqa: S101 # asserts are what a test framework reports on

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from trace_opt.core.binding import bind
from trace_opt.core.codec import canonical, decode, encode
from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Demonstrations, Parameter
from trace_opt.core.rollout import Rollout, Rollouts
from trace_opt.core.tracer import trace
from trace_opt.core.trainable import listed
from trace_opt.errors import BudgetError
from trace_opt.optim.base import Optimizer, Outcome, Proposal, Trial
from trace_opt.problem import Problem
from trace_opt.search.budget import Budget
from trace_opt.search.executors import LocalExecutor
from trace_opt.search.ledger import Ledger
from trace_opt.search.rolling import Job, Roller


class OptimizerContract(ABC):
    """What every optimizer has to keep to, as tests on a small problem.

    Subclass it in a test module under a name that pytest collects (`class TestMine(OptimizerContract)`), or call
    `check()` on an instance. Each test makes an optimizer and a problem of its own.
    """

    @abstractmethod
    def optimizer(self) -> Optimizer:
        """A new optimizer, always with the same settings; one that needs a model is given a `ScriptedLLM`."""

    def problem(self) -> Problem:
        """A new problem with parameters that the optimizer handles; by default one with a parameter of each kind."""
        return _problem()

    def check(self) -> None:
        """Run all tests.

        Raises:
            AssertionError: one of them failed; its name stands in the traceback.
        """
        for name in dir(self):
            if name.startswith("test_"):
                getattr(self, name)()

    def test_it_says_of_every_kind_of_parameter_whether_it_handles_it(self) -> None:
        """`handles` answers with a bool, and the same again."""
        optimizer = self.optimizer()
        for parameter in (*listed(_problem().parameters or ()), *_Bench(self.problem()).parameters):
            answers = [optimizer.handles(parameter) for _ in range(2)]
            assert type(answers[0]) is bool, f"handles({parameter!r}) gave {answers[0]!r}; return True or False"
            assert answers[0] is answers[1], f"handles({parameter!r}) gave {answers!r}; answer by the parameter alone"

    def test_it_proposes_values_that_their_parameters_allow(self) -> None:
        """Every value is one of a parameter it was asked about, and passes its check."""
        bench = _Bench(self.problem())
        asked = bench.handled(self.optimizer())
        proposal = bench.propose(self.optimizer(), asked)
        assert isinstance(proposal, Proposal), f"propose gave {proposal!r}; return a Proposal"
        known = {parameter.name: parameter for parameter in asked}
        for name, value in proposal.values.items():
            assert name in known, f"it proposed a value for {name!r}, which it was not asked about"
            known[name].check(value)

    def test_it_leaves_frozen_parameters_and_those_of_others_alone(self) -> None:
        """Asked about one parameter, with all others frozen, it proposes for none of the others."""
        bench = _Bench(self.problem())
        for parameter in bench.handled(self.optimizer()):
            for other in bench.parameters:
                other.frozen = other is not parameter
            proposal = bench.propose(self.optimizer(), [parameter])
            others = sorted(set(proposal.values) - {parameter.name})
            assert not others, f"asked about {parameter.name!r} alone, it proposed for {others!r}"

    def test_proposing_writes_to_no_parameter_and_no_rollout(self) -> None:
        """Values, gradients and the rollouts it read are as they were."""
        bench = _Bench(self.problem())
        before = bench.snapshot()
        bench.propose(self.optimizer(), bench.handled(self.optimizer()))
        assert bench.snapshot() == before, "proposing changed a Parameter or a rollout; the search alone writes values"

    def test_the_same_seed_gives_the_same_proposal(self) -> None:
        """Two new optimizers propose the same, whatever is drawn elsewhere."""
        first, again = (self._proposed(seed=3) for _ in range(2))
        assert _text(first) == _text(again), "two proposals of one seed differ; draw all chance from rollouts.seed"

    def test_its_state_goes_through_json_and_it_proposes_the_same_from_there(self) -> None:
        """A new optimizer with the saved state goes on as the old one, and the saved state stays as it was."""
        bench = _Bench(self.problem())
        first, second = self.optimizer(), self.optimizer()
        asked = bench.handled(first)
        history = bench.tried(first, asked)
        saved = first.state_dict()
        text = json.dumps(encode(saved))
        assert '"$": "repr"' not in text, f"state_dict() gave {text!r:.200}, part of which JSON cannot hold"
        second.load_state_dict(decode(json.loads(text)))
        assert canonical(second.state_dict()) == canonical(decode(json.loads(text))), "the state changed on its way"
        proposals = [bench.propose(optimizer, asked, seed=5, history=history) for optimizer in (first, second)]
        assert _text(proposals[0]) == _text(proposals[1]), "an optimizer with the saved state proposes something else"
        assert json.dumps(encode(saved)) == text, "the dict that state_dict() gave changed later; return a copy"

    def test_an_outcome_may_be_good_bad_or_unknown(self) -> None:
        """`observe` takes all of them, and it can propose afterwards."""
        for outcome in (Outcome(0.0, 1.0, accepted=True), Outcome(0.0, -1.0, accepted=False), Outcome(None, None, accepted=False)):  # fmt: skip
            bench, optimizer = _Bench(self.problem()), self.optimizer()
            asked = bench.handled(optimizer)
            history = bench.tried(optimizer, asked, outcome)
            bench.propose(optimizer, asked, seed=1, history=history)

    def test_a_failed_rollout_among_the_others_is_no_reason_to_fail(self) -> None:
        """The first example fails in every rollout; it still proposes."""
        bench = _Bench(self.problem(), failing=True)
        bench.propose(self.optimizer(), bench.handled(self.optimizer()))

    def test_a_spent_budget_ends_it_as_budget_error_or_with_what_it_has(self) -> None:
        """No rollout can be paid for: a BudgetError goes through, anything else must not come of it."""
        bench = _Bench(self.problem(), broke=True)
        try:
            proposal = bench.propose(self.optimizer(), bench.handled(self.optimizer()))
        except BudgetError:
            return
        assert isinstance(proposal, Proposal)

    def _proposed(self, seed: int) -> Proposal:
        bench = _Bench(self.problem())
        return bench.propose(self.optimizer(), bench.handled(self.optimizer()), seed=seed)


def _text(proposal: Proposal) -> str:
    return canonical([dict(proposal.values), proposal.phase])


class _Bench:
    """A problem with rollouts of its start, and the `Runner` that gives an optimizer more of them.

    Args:
        problem: The problem.
        failing: Whether the workflow fails on the first example.
        broke: Whether no further rollout can be paid for.
    """

    batches: int | None = None
    saved: Mapping[str, Any] | None = None

    def __init__(self, problem: Problem, *, failing: bool = False, broke: bool = False) -> None:
        self.problem = problem
        self._failing = failing
        self._executor = LocalExecutor(1)
        self._roller = Roller(self._workflow, problem.guide, Ledger(Budget()), self._executor)
        self._broke = False
        self.examples = list(problem.train)
        self.items = asyncio.run(self.run([{}], self.examples, grad=False, repeat=0, memos=None))[0]
        self._broke = broke
        reached = {p.name: p for rollout in self.items for p in _reached(rollout)}
        given = reached.values() if problem.parameters is None else problem.parameters
        self.parameters: list[Parameter[Any]] = listed(given)

    def _workflow(self, example: Any) -> Any:
        args, keywords = bind(self.problem.workflow, example)
        output = self.problem.workflow(*args, **keywords)
        if self._failing and example is self.examples[0]:
            raise ValueError("this example fails")
        return output

    def handled(self, optimizer: Optimizer) -> list[Parameter[Any]]:
        """The parameters that an optimizer may change."""
        found = [p for p in self.parameters if not p.frozen and optimizer.handles(p)]
        kinds = sorted({p.kind for p in self.parameters})
        assert found, f"it handles none of the problem's parameters, whose kinds are {kinds!r}; override problem()"
        return found

    def propose(
        self, optimizer: Optimizer, asked: Sequence[Parameter[Any]], *, seed: int = 0, history: Sequence[Trial] = ()
    ) -> Proposal:
        """What an optimizer proposes from the start's rollouts."""
        rollouts = Rollouts(self.items, train=self.examples, seed=seed, runner=self)

        async def proposed() -> Proposal:
            with in_force({p.name: p.initial for p in self.parameters}, seed):
                return await optimizer.propose(list(asked), rollouts, tuple(history))

        return asyncio.run(proposed())

    def tried(
        self, optimizer: Optimizer, asked: Sequence[Parameter[Any]], outcome: Outcome | None = None
    ) -> list[Trial]:
        """The history after one proposal, whose outcome the optimizer was told."""
        proposal = self.propose(optimizer, asked)
        seen = Outcome(0.0, 1.0, accepted=True) if outcome is None else outcome
        optimizer.observe(proposal, seen)
        base = {p.name: p.initial for p in self.parameters}
        return [Trial(type(optimizer).__name__, base, proposal, seen)]

    def snapshot(self) -> str:
        """What proposing must not change."""
        held = [[p.name, p.initial, p.frozen, p.grad] for p in self.parameters]
        return canonical([held, [[dict(rollout.values), rollout.feedback.scores] for rollout in self.items]])

    async def run(
        self, points: Sequence[Mapping[str, Any]], examples: Sequence[Any], *, grad: bool, repeat: int, memos: Any
    ) -> list[list[Rollout]]:
        """As `Rollouts.run_all`; nothing is reused."""
        del memos
        if self._broke:
            raise BudgetError("the contract's test spends nothing; propose what is known or let this error through")
        found: list[list[Rollout]] = []
        for point in points:
            found.append([])
            for example in examples:
                number = next((i for i, known in enumerate(self.examples) if known is example), len(self.examples))
                job = Job(-1, dict(point), number, example, bound=((example,), {}), seed=number, keep=True)
                job.training, job.repeat = grad, repeat
                found[-1].append((await self._one(job))[0])
        return found

    async def _one(self, job: Job) -> Any:
        return await asyncio.to_thread(self._roller.run, job)

    def epoch(self, number: int) -> Iterable[Any]:
        """All examples, each epoch in another order."""
        start = number % len(self.examples)
        return self.examples[start:] + self.examples[:start]

    def share(self, done: float) -> float | None:
        """As if one proposal were the whole budget."""
        return done

    def affordable(self) -> int | None:
        """No limit, or nothing at all."""
        return 0 if self._broke else None

    async def checkpoint(self, state: Mapping[str, Any]) -> None:
        """A state has to be data."""
        assert '"$": "repr"' not in json.dumps(encode(dict(state))), "checkpoint() got a state that is not data"


def _reached(rollout: Rollout) -> list[Parameter[Any]]:
    return [cast("Any", piece).parameter for piece in rollout.slices.values()]


@dataclass(frozen=True, slots=True)
class _Parts:
    """The default problem's parameters: one of each kind."""

    tone: Parameter[str] = field(default_factory=lambda: Parameter("Answer at length.", name="tone", suggestions=("Be brief.", "Be kind.")))  # fmt: skip
    unit: Parameter[str] = field(default_factory=lambda: Parameter("m", name="unit", choices=("m", "km", "mile")))
    offset: Parameter[float] = field(default_factory=lambda: Parameter(0.0, name="offset"))
    doubled: Parameter[bool] = field(default_factory=lambda: Parameter(False, name="doubled"))  # noqa: FBT003 # the value itself
    shown: Parameter[Demonstrations] = field(default_factory=lambda: Parameter(Demonstrations(2), name="shown"))

    @property
    def plain(self) -> list[Parameter[Any]]:
        """Those that are no tensors."""
        return [self.tone, self.unit, self.offset, self.doubled, self.shown]


def _problem() -> Problem:
    """Fit y = 2 x + 1, and say so briefly, with a parameter of each kind."""
    import torch

    parts = _Parts()
    weights = Parameter(torch.tensor([0.5, 0.0], dtype=torch.float64), name="weights")
    factors = {"m": 1.0, "km": 0.5, "mile": 0.25}

    @trace
    def fit(x: float, weights: Any, unit: str, offset: float, doubled: bool) -> Any:  # noqa: FBT001 # an op's argument
        """Predict: `(weights[0] * x + weights[1]) * factor[unit] + offset`, twice that where doubled."""
        value = (weights[0] * x + weights[1]) * factors[unit] + offset
        return value * 2 if doubled else value

    @trace
    def say(tone: str, shown: Demonstrations) -> str:
        """Words for the answer."""
        return f"{'It is' if 'brief' in tone else 'I have thought about it for long, and it is'} {len(shown)}"

    def workflow(x: float) -> Any:
        value = fit(x, weights.value, parts.unit.value, parts.offset.value, parts.doubled.value)
        return {"value": value, "words": say(parts.tone.value, parts.shown.value)}

    def guide(output: Any, example: dict[str, float]) -> Feedback:
        loss = (output["value"] - example["y"]) ** 2
        score = -float(loss.detach()) - 0.01 * len(output["words"])
        return Feedback(score=score, text="be brief, and come nearer to the value wanted", loss=loss)

    train = [{"x": x, "y": 2 * x + 1} for x in (-1.0, -0.5, 0.5, 1.0, 1.5)]
    return Problem(workflow=workflow, train=train, guide=guide, parameters=[*parts.plain, weights])
