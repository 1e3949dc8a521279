"""LV-HBA reaches optima of constrained bilevel problems, as a function and as an optimizer of a workflow."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.optim.numeric.workflows import Recording, propose, restored
from trace_opt import Budget, Feedback, Parameter, optimize, trace
from trace_opt.core.codec import encode
from trace_opt.core.constraint import Box
from trace_opt.errors import FeedbackError, GradientError, ProblemError, TraceError
from trace_opt.optim.base import Outcome
from trace_opt.optim.numeric.lv_hba import LVHBA, Bilevel, Rates, lv_hba

D = torch.float64
OPTIMUM = (-0.3, 0.7, -0.4)


def upper(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    n = x.numel()
    return (0.5 * (x - y[n:]) ** 2 + 0.5 * (y[:n] - 1) ** 2).sum()


def lower(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    n = x.numel()
    return (0.5 * y[:n] ** 2 - x * y[:n] + y[n:]).sum()


def balance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    n = x.numel()
    return (x + y[:n] + y[n:]).sum().reshape(1) / n**0.5


def start(n: int, x: float, y1: float, y2: float) -> tuple[torch.Tensor, torch.Tensor]:
    full = torch.ones(n, dtype=D)
    return x * full, torch.cat([y1 * full, y2 * full])


def error(n: int, x: torch.Tensor, y: torch.Tensor) -> float:
    wanted = [torch.full((n,), value, dtype=D) for value in OPTIMUM]
    return float((torch.cat([x, y]) - torch.cat(wanted)).abs().max())


@pytest.mark.parametrize("first", [(10, 10, 10), (-5, 8, 8), (10, -3, 5)])
def test_it_reaches_the_toy_s_optimum_to_a_hundredth(first: tuple[float, float, float]) -> None:
    found = lv_hba(upper, lower, *start(1, *first), equality=balance, steps=260)
    assert error(1, found.x, found.y) < 1e-2
    assert found.z.item() == pytest.approx(-1, abs=0.1)
    assert abs(balance(found.x, found.y).item()) < 1e-12


@pytest.mark.parametrize("size", [10, 100])
def test_a_constraint_divided_by_the_root_of_the_size_needs_the_same_steps(size: int) -> None:
    found = lv_hba(upper, lower, *start(size, 10, 10, 10), equality=balance, steps=165)
    one = lv_hba(upper, lower, *start(1, 10, 10, 10), equality=balance, steps=165)
    assert error(size, found.x, found.y) < 1e-2
    assert error(size, found.x, found.y) == pytest.approx(error(1, one.x, one.y), rel=1e-6)


def test_the_published_order_of_updates_has_the_same_limit() -> None:
    found = lv_hba(upper, lower, *start(1, 10, 10, 10), equality=balance, rates=Rates(fresh=True), steps=260)
    assert error(1, found.x, found.y) < 1e-2


def test_the_error_goes_on_falling_with_the_upper_level_s_weight() -> None:
    found = [lv_hba(upper, lower, *start(1, 10, 10, 10), equality=balance, steps=steps) for steps in (300, 1200)]
    errors = [error(1, end.x, end.y) for end in found]
    assert errors[1] < 5e-3 < errors[0] < 1e-2


def test_a_lower_level_s_inequality_binds_where_it_must() -> None:
    # below: y near x, at most 1; above: x near 2, y near 3; so x = 2, y = 1 with a multiplier of 2
    found = lv_hba(
        lambda x, y: ((x - 2) ** 2 + (y - 3) ** 2).sum(), lambda x, y: ((y - x) ** 2).sum(), torch.zeros(1, dtype=D),
        torch.zeros(1, dtype=D), inequality=lambda x, y: y - 1, steps=600, rates=Rates(gamma1=1, gamma2=1, beta=1),
    )  # fmt: skip
    assert found.y.item() == pytest.approx(1, abs=1e-9)
    assert found.x.item() == pytest.approx(2, abs=0.03)
    assert found.z.item() == pytest.approx(2, abs=0.1)


def test_points_stay_in_their_sets() -> None:
    sets = Bilevel(project_x=lambda x: x.clamp(-0.2, 0.2), project_y=lambda y: y.clamp(-5, 5))
    x, y = start(1, 0.1, 0.1, 0.1)
    found = lv_hba(upper, lower, x, y, equality=balance, problem=sets, steps=400)
    assert found.x.item() == pytest.approx(-0.2, abs=1e-9)  # the unconstrained x is -0.3
    assert found.y.tolist() == pytest.approx([0.8, -0.6], abs=0.03)


def test_without_constraints_it_is_a_plain_bilevel_method() -> None:
    # y = x below; above: (y - 1)^2 + x^2, so x = y = 1/2
    found = lv_hba(
        lambda x, y: ((y - 1) ** 2 + x**2).sum(), lambda x, y: ((y - x) ** 2).sum(), torch.ones(1, dtype=D),
        torch.zeros(1, dtype=D), rates=Rates(penalty=10), steps=500,
    )  # fmt: skip
    assert found.x.item() == pytest.approx(0.5, abs=0.04)
    assert found.y.item() == pytest.approx(0.5, abs=0.04)


def test_a_start_outside_a_curved_set_is_brought_onto_it() -> None:
    found = lv_hba(
        lambda x, y: (x**2).sum(), lambda x, y: (y**2).sum(), torch.tensor([3.0], dtype=D),
        torch.tensor([1.0], dtype=D), equality=lambda x, y: x**2 + y**2 - 1, steps=0,
    )  # fmt: skip
    assert (found.x**2 + found.y**2).item() == pytest.approx(1, abs=1e-9)


def test_a_set_without_points_is_refused() -> None:
    with pytest.raises(ProblemError, match="no point that satisfies"):
        x, y = start(1, 1, 1, 1)
        lv_hba(upper, lower, x, y, equality=lambda x, y: (x**2 + 1).sum().reshape(1) + 0 * y.sum(), steps=1)


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"power": 0.5}, {"penalty": -1.0}])
def test_rates_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Rates(**options)  # type: ignore[arg-type]


# -- in a workflow ---------------------------------------------------------------------------------------------------


@trace
def levels(x: torch.Tensor, y: torch.Tensor, weight: float) -> dict[str, torch.Tensor]:
    """Both levels' losses and the constraint."""
    flat = y.reshape(-1)
    return {"upper": weight * upper(x, flat), "lower": lower(x, flat), "balance": balance(x, flat)}


def parameters(constraint: Any = None) -> list[Parameter[Any]]:
    x = Parameter(torch.tensor([10.0 if constraint is None else 0.1], dtype=D), name="x", constraint=constraint)
    return [x, Parameter(torch.full((2, 1), 10.0, dtype=D), name="y")]


def workflow_of(made: list[Parameter[Any]]) -> Any:
    return lambda weight=1.0: levels(made[0].value, made[1].value, weight)


def guide(output: Any, example: Any) -> Feedback:
    return Feedback(score=-float(output["upper"].detach()), loss=output)


def optimizer(**options: Any) -> LVHBA:
    return LVHBA(["x"], ["y"], equalities=["balance"], **{"steps": 165, **options})


def test_a_phase_reaches_the_optimum_with_two_rollouts_a_step() -> None:
    made = parameters()
    runner = Recording(workflow_of(made), guide)
    proposal = propose(optimizer(), made, runner)
    assert error(1, proposal.values["x"], proposal.values["y"].reshape(-1)) < 1e-2
    assert proposal.values["y"].shape == (2, 1)
    assert proposal.phase
    assert 2 * 165 <= runner.ran <= 2 * 165 + 2
    assert made[0].value.item() == 10.0


def test_a_phase_in_a_workflow_is_the_plain_function_bit_for_bit() -> None:
    made = parameters()
    proposal = propose(optimizer(steps=40), made, Recording(workflow_of(made), guide))
    found = lv_hba(upper, lower, *start(1, 10, 10, 10), equality=balance, steps=40)
    assert torch.equal(proposal.values["x"], found.x)
    assert torch.equal(proposal.values["y"].reshape(-1), found.y)


def test_losses_are_means_over_the_examples() -> None:
    made = parameters()
    mixed = propose(optimizer(steps=30), made, Recording(workflow_of(made), guide), [{"weight": 0.5}, {"weight": 1.5}])
    plain = propose(optimizer(steps=30), made, Recording(workflow_of(made), guide))
    assert torch.allclose(mixed.values["x"], plain.values["x"], atol=1e-12)


def test_a_parameter_s_constraint_holds_at_every_rollout() -> None:
    made = parameters(Box(-0.2, 0.2))
    seen: list[float] = []

    def watched() -> Any:
        seen.append(float(made[0].value.detach()))
        return levels(made[0].value, made[1].value, 1.0)

    proposal = propose(optimizer(steps=200), made, Recording(watched, guide))
    assert max(abs(x) for x in seen) <= 0.2 + 1e-9
    assert proposal.values["x"].item() == pytest.approx(-0.2, abs=1e-6)


def test_rollouts_of_another_process_lead_to_the_same_point() -> None:
    made = parameters()
    apart = Recording(workflow_of(made), guide, apart=True)
    examples = [{"weight": 0.5}, {"weight": 1.5}]
    there = propose(optimizer(steps=30), made, apart, examples)
    here = propose(optimizer(steps=30), made, Recording(workflow_of(made), guide), examples)
    for name, value in here.values.items():
        assert torch.allclose(there.values[name], value, atol=1e-12)


def test_a_phase_resumed_from_any_checkpoint_ends_bit_identically() -> None:
    made = parameters()
    whole = Recording(workflow_of(made), guide)
    expected = propose(optimizer(steps=50, checkpoint_every=15), made, whole)
    assert len(whole.kept) == 3
    for kept in whole.kept:
        again = Recording(workflow_of(made), guide)
        again.saved = restored(json.loads(json.dumps(kept)))
        found = propose(optimizer(steps=50, checkpoint_every=15), made, again)
        assert encode(dict(found.values)) == encode(dict(expected.values))
        assert again.ran < whole.ran


def test_the_next_phase_goes_on_where_an_accepted_one_ended() -> None:
    made, first = parameters(), optimizer(steps=30)
    proposal = propose(first, made, Recording(workflow_of(made), guide))
    first.observe(proposal, Outcome(None, None, accepted=True))
    second = optimizer(steps=30)
    second.load_state_dict(restored(json.loads(json.dumps(encode(first.state_dict())))))
    for parameter in made:
        parameter.value = proposal.values[parameter.name]
    onward = propose(second, made, Recording(workflow_of(made), guide))
    fresh = parameters()
    whole = propose(optimizer(steps=60), fresh, Recording(workflow_of(fresh), guide))
    assert encode(dict(onward.values)) == encode(dict(whole.values))
    assert onward.notes["total"] == 60


def test_a_dropped_phase_is_tried_again_at_half_the_step_sizes() -> None:
    made, mine = parameters(), optimizer(steps=30)
    proposal = propose(mine, made, Recording(workflow_of(made), guide))
    mine.observe(proposal, Outcome(None, None, accepted=False))
    again = propose(mine, made, Recording(workflow_of(made), guide))
    halved = propose(optimizer(steps=30, rates=Rates(alpha=0.05, eta=0.15)), made, Recording(workflow_of(made), guide))
    assert encode(dict(again.values)) == encode(dict(halved.values))


def test_a_phase_that_diverges_starts_over_at_half_the_step_sizes_and_resumes_there() -> None:
    made = parameters()

    def wild() -> LVHBA:
        return optimizer(steps=100, rates=Rates(alpha=3.2, eta=9.6), checkpoint_every=40)

    runner = Recording(workflow_of(made), guide)
    proposal = propose(wild(), made, runner)
    assert "of its step sizes" in proposal.reason
    scale = proposal.notes["scale"]
    assert scale < 1
    calm = optimizer(steps=100, rates=Rates(alpha=3.2 * scale, eta=9.6 * scale))
    plain = propose(calm, made, Recording(workflow_of(made), guide))
    assert encode(dict(plain.values)) == encode(dict(proposal.values))
    again = Recording(workflow_of(made), guide)
    again.saved = restored(json.loads(json.dumps(runner.kept[-1])))
    assert encode(dict(propose(wild(), made, again).values)) == encode(dict(proposal.values))


def test_a_phase_that_diverges_at_any_step_size_proposes_nothing() -> None:
    made = parameters()
    proposal = propose(
        optimizer(steps=2000, rates=Rates(alpha=1e9, eta=1e9)), made, Recording(workflow_of(made), guide)
    )
    assert proposal.values == {}
    assert "diverged in step" in proposal.reason


def test_a_spent_budget_ends_a_phase_where_it_stands() -> None:
    made = parameters()
    proposal = propose(optimizer(), made, Recording(workflow_of(made), guide, pays=52))
    assert "the budget ended it" in proposal.reason
    assert proposal.notes["steps"] == 25


def test_failed_rollouts_are_left_out_and_counted() -> None:
    made = parameters()

    @trace
    def broken(weight: float) -> float:
        return 1 / weight

    def workflow(weight: float) -> Any:
        broken(weight)
        return levels(made[0].value, made[1].value, 1.0)

    runner = Recording(workflow, guide)
    proposal = propose(optimizer(steps=10), made, runner, [{"weight": 0.0}, {"weight": 1.0}])
    assert proposal.notes["failed"] == runner.ran / 2
    plain = propose(optimizer(steps=10), made, Recording(workflow_of(made), guide))
    assert torch.equal(proposal.values["x"], plain.values["x"])
    with pytest.raises(GradientError, match="all 1 training rollouts failed"):
        propose(optimizer(steps=10), made, Recording(workflow, guide), [{"weight": 0.0}])


def test_it_improves_a_workflow_through_optimize_and_the_start_stays_untouched() -> None:
    made = parameters()
    found = optimize(
        workflow_of(made), [{}], guide, parameters=made, optimizers=[optimizer()], budget=Budget(trials=1),
        store=None,
    )  # fmt: skip
    assert error(1, found.best["x"], found.best["y"].reshape(-1)) < 1e-2
    assert made[0].value.item() == 10.0


class Fuse:
    """Breaks a run off after so many words of the guide, as Ctrl-C does."""

    left = -1

    @classmethod
    def burn(cls) -> None:
        cls.left -= 1
        if cls.left == 0:
            raise KeyboardInterrupt


def fused(output: Any, example: Any) -> Feedback:
    Fuse.burn()
    return guide(output, example)


def test_a_run_killed_in_the_middle_of_a_phase_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def run(store: str, **options: Any) -> Any:
        made = parameters()
        return optimize(
            workflow_of(made), [{}], fused, parameters=made, optimizers=[optimizer(steps=60, checkpoint_every=20)],
            budget=Budget(trials=1), store=str(tmp_path / store), **options,
        )  # fmt: skip

    Fuse.left = -1
    whole = run("whole.db")
    Fuse.left = 100
    with pytest.raises(KeyboardInterrupt):
        run("killed.db")
    with closing(sqlite3.connect(tmp_path / "killed.db")) as store:
        (number,) = store.execute("select id from runs").fetchone()
    Fuse.left = 100  # less than a whole run needs
    resumed = run("killed.db", resume=number)
    assert encode(dict(resumed.best)) == encode(dict(whole.best))


# -- misuse ----------------------------------------------------------------------------------------------------------


def test_a_missing_loss_is_named_with_a_near_one() -> None:
    made = parameters()
    mine = LVHBA(["x"], ["y"], equalities=["balanse"])
    with pytest.raises(FeedbackError, match="needs the loss 'balanse'.*did you mean 'balance'"):
        propose(mine, made, Recording(workflow_of(made), guide))


def test_a_guide_without_a_loss_is_told_so() -> None:
    made = parameters()
    with pytest.raises(FeedbackError, match="gave no loss"):
        propose(optimizer(), made, Recording(workflow_of(made), lambda output, example: Feedback(score=1.0)))


def test_losses_cut_off_from_the_parameters_are_refused() -> None:
    made = parameters()

    def cut(output: Any, example: Any) -> Feedback:
        return Feedback(score=0.0, loss={name: loss.detach() for name, loss in output.items()})

    with pytest.raises(GradientError, match="do not depend on"):
        propose(optimizer(), made, Recording(workflow_of(made), cut))


def test_names_that_are_no_parameters_are_refused() -> None:
    made = parameters()
    with pytest.raises(ProblemError, match=r"moves \['z'\]"):
        propose(LVHBA(["x"], ["y", "z"]), made, Recording(workflow_of(made), guide))
    with pytest.raises(ValueError, match="both levels"):
        LVHBA(["x"], ["x"])
    with pytest.raises(ValueError, match="steps=0"):
        optimizer(steps=0)


def test_by_hand_it_says_that_it_needs_a_search() -> None:
    from trace_opt.core.tracer import record

    made, mine = parameters(), optimizer()
    with record() as graph:
        output = workflow_of(made)()
    mine.backward(output, guide(graph.output(output).value, None))
    with pytest.raises(TraceError, match="pass it to optimize"):
        mine.step()


def test_it_handles_the_named_floating_tensors_alone() -> None:
    mine = optimizer()
    assert mine.handles(parameters()[0])
    assert not mine.handles(Parameter(torch.zeros(1), name="other"))
    assert not mine.handles(Parameter("text", name="x"))
    assert not mine.handles(Parameter(torch.zeros(1, dtype=torch.int64), name="x"))
