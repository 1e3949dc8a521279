"""ZerothOrder finds what it is to find from values alone, inside the bounds, and the same again after a kill."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pytest
import torch
from pydantic import Field

from tests.optim.numeric.memory import Memory, propose
from trace_opt import Budget, Feedback, Gradient, Parameter, optimize, trace
from trace_opt.core.codec import decode, encode
from trace_opt.core.constraint import Ball, Box, Simplex
from trace_opt.errors import BudgetError, FeedbackError, TraceError
from trace_opt.optim.base import Outcome
from trace_opt.optim.numeric.zeroth import Method, ZerothOrder
from trace_opt.search.greedy import Greedy
from trace_opt.testing import OptimizerContract

D = torch.float64
METHODS: list[Method] = ["surrogate", "central", "two-point", "spsa"]
TARGET = torch.tensor([0.5, -0.4, 0.3, -0.2], dtype=D)
CURVATURE = torch.tensor([0.3, 1.0, 3.0, 10.0], dtype=D)


def point(**options: Any) -> Parameter[Any]:
    start = torch.tensor([-0.8, 0.7, -0.6, 0.9], dtype=D)
    return Parameter(start, name="point", constraint=Box(-1.0, 1.0), **options)


def bowl(values: Mapping[str, Any], example: Any) -> float:
    return -0.5 * float((CURVATURE * (values["point"] - TARGET) ** 2).sum())


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return encode(dict(left)) == encode(dict(right))


# -- what it finds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "gap"), [("surrogate", 1e-4), ("central", 0.3), ("two-point", 0.8), ("spsa", 0.8)])
def test_every_method_moves_towards_the_optimum(method: Method, gap: float) -> None:
    runner = Memory(bowl)
    proposal = propose(ZerothOrder(method, queries=100), [point()], runner)
    assert bowl(proposal.values, None) > -gap > bowl({"point": point().initial}, None)
    assert proposal.phase


def test_a_curved_quadratic_is_solved_to_six_digits_in_150_queries() -> None:
    proposal = propose(ZerothOrder(queries=150), [point()], Memory(bowl))
    assert bowl(proposal.values, None) > -1e-5


def test_the_best_point_is_proposed_exactly_as_it_was_asked() -> None:
    runner = Memory(bowl)
    proposal = propose(ZerothOrder(queries=60), [point()], runner)
    best = max(runner.asked, key=lambda values: bowl(values, None))
    assert same(proposal.values, best)


def test_several_parameters_move_together_each_in_its_own_units() -> None:
    parameters: list[Parameter[Any]] = [
        Parameter(900.0, name="rate", type=Annotated[float, Field(ge=0, le=1000)]),
        Parameter(torch.zeros(2, 2), name="matrix", constraint=Box(-0.1, 0.1)),
        Parameter(3.0, name="free"),
    ]

    def score(values: Mapping[str, Any], example: Any) -> float:
        matrix = 10 * values["matrix"].double() - 0.5
        return -(((values["rate"] - 200) / 500) ** 2) - float((matrix**2).sum()) - (values["free"] - 1) ** 2 / 9

    found = propose(ZerothOrder(queries=150), parameters, Memory(score)).values
    assert found["rate"] == pytest.approx(200, abs=3)
    assert found["free"] == pytest.approx(1, abs=0.03)
    assert torch.allclose(found["matrix"], torch.full((2, 2), 0.05), atol=1e-3)
    assert found["matrix"].dtype == torch.float32
    assert type(found["rate"]) is float


def test_an_optimum_on_the_bounds_is_reached() -> None:
    corner = torch.tensor([1.0, -1.0, 1.0, 0.2], dtype=D)

    def score(values: Mapping[str, Any], example: Any) -> float:
        return -float(((values["point"] - 2 * corner) ** 2).sum())

    found = propose(ZerothOrder(queries=120), [point()], Memory(score)).values["point"]
    assert torch.allclose(found, torch.tensor([1.0, -1.0, 1.0, 0.4], dtype=D), atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_every_query_is_an_allowed_value(method: Method) -> None:
    parameters: list[Parameter[Any]] = [point(), Parameter(0.9, name="share", type=Annotated[float, Field(gt=0, lt=1)])]

    def score(values: Mapping[str, Any], example: Any) -> float:
        return float(values["point"].sum()) - values["share"]

    runner = Memory(score)
    propose(ZerothOrder(method, queries=60, lr=1.0, batch=3), parameters, runner)
    for asked in runner.asked:
        assert bool((asked["point"].abs() <= 1).all())
        parameters[1].check(asked["share"])


@pytest.mark.parametrize(
    ("constraint", "target", "found"),
    [
        (Ball(1.0), [3.0, 4.0], [0.6, 0.8]),
        (Ball(1.0, p=1), [3.0, 1.0], [1.0, 0.0]),
        (Simplex(), [0.9, 0.3], [0.8, 0.2]),
    ],
    ids=repr,
)
def test_norms_and_simplexes_are_kept_to(constraint: Any, target: list[float], found: list[float]) -> None:
    goal = torch.tensor(target, dtype=D)
    parameter = Parameter(torch.tensor([0.5, 0.5], dtype=D), name="x", constraint=constraint)

    def score(values: Mapping[str, Any], example: Any) -> float:
        return -float(((values["x"] - goal) ** 2).sum())

    runner = Memory(score)
    proposal = propose(ZerothOrder(queries=80), [parameter], runner)
    for asked in runner.asked:
        parameter.check(asked["x"])
    assert torch.allclose(proposal.values["x"], torch.tensor(found, dtype=D), atol=2e-2)


def test_the_objective_is_the_mean_over_the_minibatch() -> None:
    def score(values: Mapping[str, Any], example: float) -> float:
        return -((values["x"] - example) ** 2)

    found = propose(ZerothOrder(queries=40), [Parameter(3.0, name="x")], Memory(score), examples=[0.0, 1.0, 5.0])
    assert found.values["x"] == pytest.approx(2.0, abs=1e-2)


def test_the_loss_can_be_the_objective() -> None:
    def score(values: Mapping[str, Any], example: Any) -> Feedback:
        return Feedback(score=0.0, loss=(torch.tensor(values["x"], requires_grad=True) - 2) ** 2)

    parameters = [Parameter(3.0, name="x")]
    found = propose(ZerothOrder(queries=40, objective="loss"), parameters, Memory(score))
    assert found.values["x"] == pytest.approx(2.0, abs=1e-2)
    with pytest.raises(FeedbackError, match="without a loss"):
        propose(ZerothOrder(queries=40, objective="loss"), parameters, Memory(lambda values, _: 0.0))


def test_the_reason_says_what_the_score_was_and_became() -> None:
    proposal = propose(ZerothOrder(queries=30), [point()], Memory(bowl))
    assert proposal.reason.startswith("the best of 30 points by surrogate: score -8.")
    assert float(proposal.reason.split()[-1]) == pytest.approx(bowl(proposal.values, None), rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensors_on_a_gpu_stay_there_and_find_the_same() -> None:
    def score(values: Mapping[str, Any], example: Any) -> float:
        assert values["point"].is_cuda
        return bowl({"point": values["point"].cpu()}, example)

    there = Parameter(point().initial.cuda(), name="point", constraint=Box(-1.0, 1.0))
    found = propose(ZerothOrder(queries=40), [there], Memory(score)).values["point"]
    assert found.is_cuda
    assert torch.equal(found.cpu(), propose(ZerothOrder(queries=40), [point()], Memory(bowl)).values["point"])


# -- failures and noise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_failed_rollouts_count_as_the_worst_seen(method: Method) -> None:
    failed: list[float] = []

    def score(values: Mapping[str, Any], example: Any) -> float:
        if values["x"] < 0.5:
            failed.append(values["x"])
            raise ZeroDivisionError("too small")
        return -values["x"]

    parameter = Parameter(0.9, name="x", type=Annotated[float, Field(ge=0, le=1)])
    proposal = propose(ZerothOrder(method, queries=60), [parameter], Memory(score))
    assert failed
    assert proposal.notes["failed"] == len(failed)
    assert 0.5 <= proposal.values["x"] < 0.6


def test_where_every_rollout_fails_nothing_is_proposed() -> None:
    def score(values: Mapping[str, Any], example: Any) -> float:
        raise ZeroDivisionError("always")

    proposal = propose(ZerothOrder(queries=30), [point()], Memory(score))
    assert proposal.values == {}
    assert "none of 30 points" in proposal.reason


def test_where_no_point_is_better_nothing_is_proposed() -> None:
    at = {"point": TARGET.clone()}
    assert propose(ZerothOrder(queries=40), [point()], Memory(bowl), values=at).values == {}


def test_noise_is_fitted_and_a_lucky_draw_decides_nothing() -> None:
    def gaps(*, noisy: bool, seed: int) -> tuple[float, float]:
        """How far the point found is from the optimum, and how much better than it is it was taken for."""
        chance = random.Random(seed)

        def score(values: Mapping[str, Any], example: Any) -> float:
            return bowl(values, example) + chance.gauss(0, 0.5)

        proposal = propose(ZerothOrder(queries=80, noisy=noisy), [point()], Memory(score), seed=seed)
        true = -bowl(proposal.values, None)
        return true, true + float(proposal.reason.split()[-1])

    plain, fitted = ([gaps(noisy=noisy, seed=seed) for seed in range(5)] for noisy in (False, True))
    assert median(gap for gap, _ in fitted) < median(gap for gap, _ in plain)
    assert abs(median(flattered for _, flattered in fitted)) < 0.25 < 0.5 < median(flattered for _, flattered in plain)


# -- what it asks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "batch", "batches"),
    [
        ("surrogate", 1, [10, *[1] * 20]),
        ("surrogate", 4, [10, 4, 4, 4, 4, 3, 1]),
        ("central", 1, [8, 8, 8, 1]),
        ("two-point", 3, [6, 6, 6, 6, 4, 1]),
        ("spsa", 1, [*[2] * 14, 1]),
    ],
)
def test_queries_of_a_step_are_asked_at_once_and_never_more_than_planned(
    method: Method, batch: int, batches: list[int]
) -> None:
    runner = Memory(bowl)
    queries = 25 if method == "central" else 29 if method != "surrogate" else 30
    proposal = propose(ZerothOrder(method, queries=queries, batch=batch), [point()], runner)
    assert runner.batches == batches
    assert proposal.notes["queries"] == sum(batches) == queries


def test_a_batch_of_four_costs_next_to_nothing() -> None:
    gaps = [-bowl(propose(ZerothOrder(queries=110, batch=b), [point()], Memory(bowl)).values, None) for b in (1, 4)]
    assert max(gaps) < 1e-3


def test_the_first_queries_lie_around_the_start_and_the_last_is_the_last_iterate() -> None:
    runner = Memory(bowl)
    propose(ZerothOrder(queries=40), [point()], runner)
    for asked in runner.asked[:10]:
        assert bool(((asked["point"] - point().initial).abs() <= 0.1 + 1e-12).all())
    assert bowl(runner.asked[-1], None) > bowl(runner.asked[12], None)


def test_without_a_number_there_are_thirty_queries_a_coordinate() -> None:
    runner = Memory(bowl)
    propose(ZerothOrder(), [point()], runner)
    assert len(runner.asked) == 120


def test_without_a_number_half_of_the_budget_is_left() -> None:
    runner = Memory(bowl, budget=100)
    propose(ZerothOrder(), [point()], runner)
    assert 50 <= len(runner.asked) <= 56


def test_a_budget_that_ends_in_a_phase_ends_the_phase() -> None:
    runner = Memory(bowl, budget=35)
    proposal = propose(ZerothOrder(queries=100), [point()], runner)
    assert len(runner.asked) == 35
    assert bowl(proposal.values, None) == max(bowl(asked, None) for asked in runner.asked)
    with pytest.raises(BudgetError, match="spent"):
        propose(ZerothOrder(queries=100), [point()], Memory(bowl, budget=5))


# -- the same again --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_phase_goes_on_from_any_checkpoint_bit_for_bit(method: Method) -> None:
    def made() -> ZerothOrder:
        return ZerothOrder(method, queries=60, batch=2, checkpoint_every=7)

    whole = Memory(bowl)
    expected = propose(made(), [point()], whole, seed=3)
    assert len(whole.kept) >= 5
    for before, saved in whole.kept:
        rest = Memory(bowl, saved)
        found = propose(made(), [point()], rest, seed=3)
        assert same(found.values, expected.values)
        assert found.reason == expected.reason
        assert [encode(asked) for asked in rest.asked] == [encode(asked) for asked in whole.asked[before:]]


def test_another_seed_asks_other_points() -> None:
    first, second = Memory(bowl), Memory(bowl)
    propose(ZerothOrder(queries=20), [point()], first, seed=0)
    propose(ZerothOrder(queries=20), [point()], second, seed=1)
    assert not same(first.asked[0], second.asked[0])


def test_a_state_goes_through_json_and_the_next_phase_is_the_same() -> None:
    one = ZerothOrder(queries=40)
    proposal = propose(one, [point()], Memory(bowl))
    one.observe(proposal, Outcome(-1.0, -0.5, accepted=True))
    other = ZerothOrder(queries=40)
    other.load_state_dict(decode(json.loads(json.dumps(encode(one.state_dict())))))
    following = [propose(o, [point()], Memory(bowl), seed=1, values=proposal.values).values for o in (one, other)]
    assert same(following[0], following[1])


def test_an_empty_state_forgets() -> None:
    optimizer = ZerothOrder(queries=40)
    proposal = propose(optimizer, [point()], Memory(bowl))
    optimizer.observe(proposal, Outcome(-1.0, -0.5, accepted=True))
    optimizer.load_state_dict({})
    runner = Memory(bowl)
    propose(optimizer, [point()], runner, values=proposal.values)
    assert runner.batches[0] == 10


# -- from phase to phase ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accepted", [True, False])
def test_the_next_phase_knows_the_queries_of_the_last(*, accepted: bool) -> None:
    optimizer = ZerothOrder(queries=40)
    proposal = propose(optimizer, [point()], Memory(bowl))
    optimizer.observe(proposal, Outcome(-1.0, -0.5, accepted=accepted))
    runner = Memory(bowl)
    propose(optimizer, [point()], runner, values=proposal.values if accepted else None, history=[None])
    assert set(runner.batches) == {1}


def test_a_point_that_was_rejected_is_not_proposed_again() -> None:
    optimizer = ZerothOrder(queries=40)
    rejected = propose(optimizer, [point()], Memory(bowl))
    optimizer.observe(rejected, Outcome(-1.0, -2.0, accepted=False))
    runner = Memory(bowl)
    following = propose(optimizer, [point()], runner, history=[None], seed=1)
    assert any(same(following.values, asked) for asked in runner.asked)
    assert not same(following.values, rejected.values)


def test_another_incumbent_of_someone_else_s_parameter_makes_them_void() -> None:
    optimizer = ZerothOrder(queries=40)
    proposal = propose(optimizer, [point()], Memory(bowl), values={"prompt": "a"})
    optimizer.observe(proposal, Outcome(-1.0, -0.5, accepted=False))
    runner = Memory(bowl)
    propose(optimizer, [point()], runner, values={"prompt": "b"})
    assert runner.batches[0] == 10


def test_phases_at_once_do_not_see_each_other() -> None:
    together = ZerothOrder(queries=40)
    propose(together, [point()], Memory(bowl), seed=0)
    second = propose(together, [point()], Memory(bowl), seed=1)
    alone = propose(ZerothOrder(queries=40), [point()], Memory(bowl), seed=1)
    assert same(second.values, alone.values)


def test_what_phases_at_once_found_counts_together_afterwards() -> None:
    optimizer = ZerothOrder(queries=40)
    proposals = [propose(optimizer, [point()], Memory(bowl), seed=seed) for seed in (0, 1)]
    for proposal in proposals:
        optimizer.observe(proposal, Outcome(-1.0, -0.5, accepted=False))
    propose(optimizer, [point()], Memory(bowl), seed=2, history=[None, None])
    ((_, kept),) = optimizer._open
    assert len(kept.queries) == 1 + 3 * 40


# -- whose it is -----------------------------------------------------------------------------------------------------


class TestContract(OptimizerContract):
    """What every optimizer has to keep to."""

    def optimizer(self) -> ZerothOrder:
        return ZerothOrder(queries=12)


def test_it_takes_the_parameters_that_it_is_given_by_name() -> None:
    optimizer = ZerothOrder(parameters=["point"])
    assert optimizer.handles(point())
    assert not optimizer.handles(Parameter(1.0, name="other"))
    assert not ZerothOrder(parameters=["other"]).handles(Parameter("text", name="other"))


def test_beside_gradient_it_moves_what_no_gradient_reaches() -> None:
    behind = Parameter(torch.tensor(0.8, dtype=D), name="behind", constraint=Box(-1.0, 1.0))
    before = Parameter(torch.tensor(1.5, dtype=D), name="before")

    @trace
    def through(tensor: Any) -> float:
        return float(f"{tensor.item():.6g}")

    @trace
    def add(number: float, tensor: Any) -> Any:
        return (number + 0.6) ** 2 + (tensor - 0.5) ** 2 + 0.1 * number * tensor

    def workflow() -> Any:
        return add(through(behind.value), before.value)

    def guide(output: Any, example: Any) -> Feedback:
        return Feedback(score=-output.item(), loss=output)

    optimizers = [ZerothOrder(queries=40, parameters=["behind"]), Gradient("adam", lr=0.2, steps=60)]
    run = optimize(
        workflow, [{}], guide, val=[{}], optimizers=optimizers, parameters=[behind, before], budget=Budget(trials=6),
        store=None,
    )  # fmt: skip
    assert {trial.optimizer for trial in run.history} == {"ZerothOrder", "Gradient"}
    least = torch.linalg.solve(torch.tensor([[2.0, 0.1], [0.1, 2.0]]), torch.tensor([-1.2, 1.0])).tolist()
    assert [float(run.best["behind"]), float(run.best["before"])] == pytest.approx(least, abs=0.02)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "surogate"}, "did you mean 'surrogate'"),
        ({"objective": "reward"}, "objective='reward'"),
        ({"lr": 0.0}, "lr=0.0; give a number above 0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"queries": 1}, "queries=1; give at least 2"),
        ({"batch": 0}, "batch=0"),
        ({"difference": -1.0}, "difference=-1.0"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ZerothOrder(**options)


def test_a_step_by_hand_says_what_to_do_instead() -> None:
    x = Parameter(1.0, name="x")

    @trace
    def double(number: float) -> float:
        return 2 * number

    from trace_opt import record

    optimizer = ZerothOrder()
    with record():
        output = double(x.value)
    optimizer.backward(output, 1.0)
    with pytest.raises(TraceError, match="pass it to optimize"):
        optimizer.step()


# -- through optimize ------------------------------------------------------------------------------------------------


@trace
def write(number: float, tensor: Any) -> str:
    """Both as text."""
    return f"{number:.6g} {tensor.item():.6g}"


@trace
def read(line: str) -> float:
    """Read both back: no gradient gets through."""
    number, other = (float(word) for word in line.split())
    return (number - 0.3) ** 2 + (other + 0.6) ** 2


class Text:
    """Two parameters behind a text, and a fault that can be set to stop the run."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.number = Parameter(0.9, name="number", type=Annotated[float, Field(ge=0, le=1)])
        self.tensor = Parameter(torch.tensor(0.8), name="tensor", constraint=Box(-1.0, 1.0))
        self.fixed = Parameter(0.5, name="fixed", frozen=True)
        self.runs = 0
        self._stop_at = stop_at

    def __call__(self, offset: float) -> float:
        self.runs += 1
        if self.runs == self._stop_at:
            raise KeyboardInterrupt
        return read(write(self.number.value, self.tensor.value)) + offset * self.fixed.value

    def optimize(self, **options: Any) -> Any:
        examples = [{"offset": 0.0}, {"offset": 0.1}]
        optimizer = ZerothOrder(queries=40, checkpoint_every=8)
        settings: dict[str, Any] = {"budget": Budget(trials=3), "seed": 5, "concurrency": 1} | options
        return optimize(
            self, examples, lambda output, _: -output, val=examples, optimizers=[optimizer],
            parameters=[self.number, self.tensor, self.fixed], **settings,
        )  # fmt: skip


def trials(run: Any) -> list[Any]:
    return [(trial.number, trial.before, trial.after, trial.verdict) for trial in run.history]


def test_a_workflow_without_a_gradient_path_is_improved_through_optimize(tmp_path: Path) -> None:
    without = Text().optimize(store=None)
    within = Text().optimize(store=str(tmp_path / "runs.db"))
    assert without.best["number"] == pytest.approx(0.3, abs=2e-3)
    assert float(without.best["tensor"]) == pytest.approx(-0.6, abs=2e-3)
    assert without.best["fixed"] == 0.5
    assert same(without.best, within.best)
    assert trials(without) == trials(within)


def test_points_run_at_once_give_the_same_as_one_by_one() -> None:
    assert same(Text().optimize(store=None, concurrency=4).best, Text().optimize(store=None).best)


def test_proposals_at_once_each_go_their_way(tmp_path: Path) -> None:
    runs = [Text().optimize(store=None, search=Greedy(width=2), concurrency=c) for c in (1, 4)]
    assert same(runs[0].best, runs[1].best)
    assert trials(runs[0]) == trials(runs[1])


@pytest.mark.parametrize("stop_at", [30, 77, 130])
def test_a_run_killed_in_a_phase_ends_as_an_uninterrupted_one(stop_at: int, tmp_path: Path) -> None:
    whole = Text()
    expected = whole.optimize(store=str(tmp_path / "whole.db"))
    store = str(tmp_path / "killed.db")
    with pytest.raises(KeyboardInterrupt):
        Text(stop_at).optimize(store=store)
    from trace_opt.store.store import Store

    name = next(iter(Store(store).runs())).id
    rest = Text()
    found = rest.optimize(store=store, resume=name)
    assert same(found.best, expected.best)
    assert trials(found) == trials(expected)
    assert rest.runs < whole.runs - stop_at + 2 * 2 * 10
