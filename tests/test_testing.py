"""The tools for plug-in authors find what they are there to find."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.rollout import Rollouts
from trace_opt.core.tracer import trace
from trace_opt.errors import BudgetError
from trace_opt.optim.base import Optimizer, Outcome, Proposal, Trial
from trace_opt.optim.categorical import Categorical
from trace_opt.optim.demos import Demos
from trace_opt.optim.numeric.gradient import Gradient
from trace_opt.optim.numeric.zeroth import ZerothOrder
from trace_opt.problem import Problem
from trace_opt.testing import OptimizerContract, check_gradients

w = Parameter(torch.zeros(2, dtype=torch.float64), name="w")
START = {"w": torch.tensor([0.5, -2.0], dtype=torch.float64)}
wrong = trace(vjp=lambda grad, output, x: 3 * grad)(lambda x: x * 2)


# -- check_gradients -----------------------------------------------------------------------------------------------------


def test_a_wrong_gradient_is_found_and_named() -> None:
    with pytest.raises(AssertionError, match=r"entry 0 of 'w' is 3, central differences give 2"):
        check_gradients(lambda: wrong(w.value).sum(), START)


def test_a_path_that_ends_is_found() -> None:
    parse = trace(lambda x: torch.tensor(x.tolist(), dtype=torch.float64))
    with pytest.raises(AssertionError, match=r"is 0 \(none reaches it\), central differences give 1"):
        check_gradients(lambda: parse(w.value).sum(), START)


def test_a_point_on_the_edge_of_a_branch_is_said_to_be_one() -> None:
    def workflow() -> Any:
        total = w.value.sum()
        return total * 2 if (total >= -1.5).item() else total

    with pytest.raises(AssertionError, match="takes another way where entry 0 of 'w' moves by -1e-06"):
        check_gradients(workflow, START)


def test_it_gives_the_largest_deviation_and_leaves_gradients_and_chance_alone() -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    found = check_gradients(lambda factor: (w.value * factor).exp() * torch.rand(2).double(), START, 1.5)
    assert set(found) == {"w"}
    assert 0 < found["w"] < 1e-7
    assert w.grad is None
    assert torch.equal(torch.get_rng_state(), before)


def test_of_a_large_tensor_some_entries_are_checked() -> None:
    calls: list[int] = []
    big = Parameter(torch.zeros(500, dtype=torch.float64), name="big")

    def workflow() -> Any:
        calls.append(1)
        return big.value.square().sum()

    check_gradients(workflow, {"big": torch.ones(500, dtype=torch.float64)}, most=5)
    assert len(calls) == 11


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "no floating tensor"),
        ({"w": torch.ones(2)}, "give value.double"),
        ({**START, "ww": START["w"]}, "never reads 'ww'; did you mean 'w'"),
    ],
)
def test_what_cannot_be_checked_is_refused(values: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_gradients(lambda: w.value.sum(), values)


def test_an_output_without_a_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no floating tensor"):
        check_gradients(lambda: trace(str)(w.value), START)


# -- OptimizerContract ---------------------------------------------------------------------------------------------------


class Halving(Optimizer):
    """Halves numbers, with chance from the seed and a count as its state; each fault breaks one rule."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.count = 0
        self.notes: dict[str, Any] = {}

    def handles(self, parameter: Parameter[Any]) -> bool:
        if self.fault == "handles":
            return parameter.kind  # pyright: ignore
        return parameter.kind == "number"

    async def propose(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
    ) -> Proposal:
        self.count += 1
        self.notes["count"] = self.count
        draws = random.Random(None if self.fault == "chance" else f"{rollouts.seed}/{self.count}")
        values = {p.name: p.value / 2 + draws.random() for p in parameters}
        if self.fault == "others":
            values |= {name: 1.0 for name in rollouts[0].slices if name == "offset"} | {"elsewhere": 2.0}
        if self.fault == "frozen":
            values["unit"] = "km"
        if self.fault == "type":
            values = dict.fromkeys(values, "a text")
        if self.fault == "writes":
            parameters[0].value = 5.0
        if self.fault == "failed":
            assert all(rollout.error is None for rollout in rollouts), "cannot stand failures"
        if self.fault == "budget":
            try:
                await rollouts.run({}, rollouts.train)
            except BudgetError as error:
                raise KeyError("no rollouts") from error
        return Proposal(values)

    def observe(self, proposal: Proposal, outcome: Outcome) -> None:
        if self.fault == "outcome":
            assert outcome.before is not None, "cannot stand the unknown"

    def state_dict(self) -> dict[str, Any]:
        if self.fault == "json":
            return {"count": self}
        if self.fault == "alias":
            return self.notes
        return {} if self.fault == "forgets" else {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state.get("count", 0)
        self.notes = {"count": self.count} if self.fault == "alias" else {}


def contract(made: Any, on: Any = None) -> OptimizerContract:
    class Contract(OptimizerContract):
        def optimizer(self) -> Optimizer:
            return made()

        def problem(self) -> Problem:
            return super().problem() if on is None else on()

    return Contract()


class TestHalving(OptimizerContract):
    def optimizer(self) -> Optimizer:
        return Halving()


@pytest.mark.parametrize(
    ("fault", "method", "says"),
    [
        ("handles", "it_says_of_every_kind_of_parameter_whether_it_handles_it", "return True or False"),
        ("others", "it_proposes_values_that_their_parameters_allow", "'elsewhere', which it was not asked about"),
        ("frozen", "it_leaves_frozen_parameters_and_those_of_others_alone", r"it proposed for \['unit'\]"),
        ("type", "it_proposes_values_that_their_parameters_allow", "give a value of type"),
        ("writes", "proposing_writes_to_no_parameter_and_no_rollout", "the search alone writes values"),
        ("chance", "the_same_seed_gives_the_same_proposal", "draw all chance from rollouts.seed"),
        ("json", "its_state_goes_through_json_and_it_proposes_the_same_from_there", "part of which JSON cannot hold"),
        ("alias", "its_state_goes_through_json_and_it_proposes_the_same_from_there", "return a copy"),
        ("forgets", "its_state_goes_through_json_and_it_proposes_the_same_from_there", "proposes something else"),
        ("failed", "a_failed_rollout_among_the_others_is_no_reason_to_fail", "cannot stand failures"),
        ("budget", "a_spent_budget_ends_it_as_budget_error_or_with_what_it_has", "no rollouts"),
        ("outcome", "an_outcome_may_be_good_bad_or_unknown", "cannot stand the unknown"),
    ],
)
def test_an_optimizer_that_breaks_a_rule_is_found_out(fault: str, method: str, says: str) -> None:
    broken = contract(lambda: Halving(fault))
    with pytest.raises((AssertionError, ValueError, KeyError), match=says):
        getattr(broken, f"test_{method}")()
    getattr(contract(Halving), f"test_{method}")()


def test_an_optimizer_that_handles_nothing_there_is_told_to_bring_a_problem() -> None:
    class Nothing(Halving):
        def handles(self, parameter: Parameter[Any]) -> bool:
            return False

    with pytest.raises(AssertionError, match=r"handles none of the problem's parameters.*override problem\(\)"):
        contract(Nothing).check()


@pytest.mark.parametrize(
    "made",
    [lambda: Categorical(startup=2), Demos, lambda: Gradient("sgd", 0.05, steps=3),
     lambda: Gradient("adamw", 0.05, steps=2, estimator="loo"), lambda: ZerothOrder("spsa", queries=6)],
    ids=["Categorical", "Demos", "Gradient", "Gradient with choices", "ZerothOrder"],
)  # fmt: skip
def test_our_own_optimizers_keep_to_it(made: Any) -> None:
    contract(made).check()


def test_a_problem_of_ones_own_needs_no_list_of_parameters() -> None:
    def problem() -> Problem:
        x = Parameter(4.0, name="x")
        double = trace(lambda given: given * x.value)
        return Problem(workflow=lambda given: double(given), train=[1.0, 2.0], guide=lambda out, _: Feedback(-abs(out)))

    contract(Halving, problem).check()
