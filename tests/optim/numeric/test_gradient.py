"""Gradient: phases under `optimize`, steps by hand, and what a phase leaves behind."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from trace_opt import (
    Box,
    Budget,
    Categorical,
    Feedback,
    Gradient,
    Greedy,
    Parameter,
    optimize,
    plain,
    record,
    trace,
)
from trace_opt.errors import FeedbackError, GradientError, TraceError


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


EXAMPLES = [{"x": i / 5, "y": 1 + 2 * i / 5} for i in range(-6, 6)]


@trace
def line(x: float, w: torch.Tensor) -> torch.Tensor:
    """A straight line."""
    return w[0] + w[1] * x


def squares(output: torch.Tensor, example: dict[str, float]) -> Feedback:
    return Feedback(loss=(output - example["y"]) ** 2)


def fitted(w: Parameter[Any], optimizer: Gradient, **options: Any) -> Any:
    def workflow(x: float) -> torch.Tensor:
        return line(x, w.value)

    given: dict[str, Any] = {"store": None, "parameters": [w], "val": EXAMPLES[:6], "test": EXAMPLES[6:], "seed": 3}
    given |= {"budget": Budget(trials=1), **options}
    return optimize(
        workflow, given.pop("train", EXAMPLES), given.pop("guide", squares), optimizers=[optimizer], **given
    )


def new_line(**options: Any) -> Parameter[torch.Tensor]:
    return Parameter(double(0.0, 0.0), name="w", **options)


# -- what it handles and refuses ---------------------------------------------------------------------------------------


def test_it_handles_floating_tensors_and_with_an_estimator_choices() -> None:
    tensor, whole, choice = (
        new_line(),
        Parameter(torch.tensor([1, 2]), name="i"),
        Parameter("a", name="c", choices=["a", "b"]),
    )
    assert [Gradient().handles(p) for p in (tensor, whole, choice)] == [True, False, False]
    assert Gradient(estimator="loo").handles(choice)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 3}, "did you mean 'steps'"),
        ({"optimizer": "adamx"}, "did you mean 'adam"),
        ({"schedule": "linnear"}, "'linear'"),
        ({"lr": 0.0}, "above 0"),
        ({"steps": 0}, "at least 1"),
        ({"estimator": "score"}, "'reinforce'"),
        ({"estimator": "loo", "samples": 1}, "at least 2"),
        ({"optimizer": "sophia-g"}, "sampled_loss="),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gradient(**options)


def test_a_schedule_that_cannot_know_its_end_says_what_to_pass() -> None:
    with pytest.raises(ValueError, match="total_steps="):
        fitted(new_line(), Gradient(steps=2), budget=Budget(seconds=60))


def test_a_guide_without_a_loss_is_told_so() -> None:
    with pytest.raises(FeedbackError, match="loss"):
        fitted(new_line(), Gradient(), guide=lambda output, example: -abs(float(output.detach()) - example["y"]))


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_steps_by_hand_are_those_of_torch() -> None:
    w = new_line()
    own = double(0.0, 0.0).requires_grad_()
    reference = torch.optim.AdamW([own], lr=0.1)
    optimizer = Gradient("adamw", lr=0.1)
    for example in EXAMPLES[:5]:
        with record() as graph:
            output = line(example["x"], w.value)
        optimizer.backward(output, squares(plain(output), example))
        optimizer.step()
        optimizer.zero_feedback()
        reference.zero_grad()
        ((own[0] + own[1] * example["x"] - example["y"]) ** 2).backward()
        reference.step()
        assert graph.parameters["w"].parameter is w
    assert torch.allclose(w.value, own.detach(), rtol=0, atol=1e-15)


def test_a_step_by_hand_without_a_loss_says_what_is_missing() -> None:
    w, optimizer = new_line(), Gradient()
    with record():
        output = line(1.0, w.value)
    optimizer.backward(output, 0.5)
    with pytest.raises(TraceError, match="loss="):
        optimizer.step()


# -- a phase -----------------------------------------------------------------------------------------------------------


def by_torch(batches: list[list[dict[str, float]]], lr: float, total: int, scheduled: bool = True) -> torch.Tensor:
    """The loop that a phase stands for."""
    own = double(0.0, 0.0).requires_grad_()
    optimizer = torch.optim.AdamW([own], lr=lr, fused=True)
    for t, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = lr * (1 - t / total) if scheduled else lr
        optimizer.zero_grad()
        losses = [(own[0] + own[1] * e["x"] - e["y"]) ** 2 for e in batch]
        (losses[0] if len(losses) == 1 else torch.stack(losses).sum() / len(losses)).backward()
        optimizer.step()
    return own.detach()


def test_a_phase_gives_what_the_hand_written_loop_gives() -> None:
    one = EXAMPLES[:1]
    run = fitted(new_line(), Gradient(lr=0.05, steps=40, total_steps=40), train=one, search=Greedy(gate=None))
    assert torch.equal(run.best["w"], by_torch([one] * 40, 0.05, 40))


def test_the_default_phase_is_an_epoch_in_minibatches_of_eight() -> None:
    seen: list[float] = []

    def watched(output: torch.Tensor, example: dict[str, float]) -> Feedback:
        if output.requires_grad:
            seen.append(example["x"])
        return squares(output, example)

    run = fitted(new_line(), Gradient(total_steps=100), guide=watched, search=Greedy(gate=None))
    assert (run.history[0].notes["steps"], sorted(seen)) == (2, sorted(e["x"] for e in EXAMPLES))


def test_phases_go_on_where_the_one_before_stopped() -> None:
    one = EXAMPLES[:1]
    optimizer = Gradient(lr=0.05, steps=10, total_steps=40)
    run = fitted(new_line(), optimizer, train=one, search=Greedy(gate=None), budget=Budget(trials=9))
    assert len(run.history) == 4
    assert torch.equal(run.best["w"], by_torch([one] * 40, 0.05, 40))


def test_micro_batches_give_the_same_step() -> None:
    runs = [
        fitted(new_line(), Gradient(lr=0.05, batch=6, micro_batch=size, total_steps=6), search=Greedy(gate=None))
        for size in (None, 1, 4)
    ]
    assert all(torch.allclose(run.best["w"], runs[0].best["w"], rtol=0, atol=1e-14) for run in runs)


def test_a_phase_writes_to_no_parameter() -> None:
    w = new_line()
    fitted(w, Gradient(lr=0.1, total_steps=9))
    assert torch.equal(w.value, double(0.0, 0.0))
    assert w.grad is None


def test_the_best_phase_by_validation_is_what_the_run_returns() -> None:
    run = fitted(new_line(), Gradient(lr=0.3, steps=30), budget=Budget(trials=4))
    scores = [trial.after for trial in run.history if trial.accepted]
    assert run.report().best.mean >= run.report().start.mean
    assert run.report().trials == len(run.history) == 4
    assert max(scores) > -0.2


def test_a_rejected_phase_leaves_values_and_state_as_they_were() -> None:
    def backwards(output: torch.Tensor, example: dict[str, float]) -> Feedback:
        loss = (output - example["y"]) ** 2
        return Feedback(score=-loss.detach().item(), loss=-loss)  # descends in the wrong direction

    optimizer = Gradient("sgd", lr=0.01, steps=4, schedule="constant")
    before = optimizer.state_dict()
    run = fitted(new_line(), optimizer, guide=backwards, val=EXAMPLES)
    after = optimizer.state_dict()
    [trial] = run.history
    assert trial.verdict.startswith("dropped: worse than the incumbent in 'score' after 12 examples")
    assert torch.equal(run.best["w"], double(0.0, 0.0))
    assert (before["states"], before["pending"], after["states"], after["pending"]) == ({}, {}, {}, {})


def test_after_a_rejected_phase_the_next_one_takes_half_the_learning_rate() -> None:
    def backwards(output: torch.Tensor, example: dict[str, float]) -> Feedback:
        loss = (output - example["y"]) ** 2
        return Feedback(score=-loss.detach().item(), loss=-loss)

    options = {"val": EXAMPLES, "guide": backwards, "budget": Budget(trials=2)}
    run = fitted(new_line(), Gradient("sgd", lr=0.01, steps=1, batch=12, schedule="constant"), **options)
    first, second = (trial.changed["w"] for trial in run.history)
    assert torch.allclose(first, 2 * second, rtol=1e-12, atol=0)


def test_values_that_are_not_finite_are_not_allowed() -> None:
    def steep(output: torch.Tensor, example: dict[str, float]) -> Feedback:
        return Feedback(score=0.0, loss=(output + 1) * float("inf"))

    run = fitted(new_line(), Gradient("sgd", lr=1.0, total_steps=5), guide=steep, search=Greedy(gate=None))
    assert "finite" in run.history[0].verdict
    assert torch.equal(run.best["w"], double(0.0, 0.0))


def test_failed_rollouts_are_left_out_and_counted() -> None:
    @trace
    def fragile(x: float, w: torch.Tensor) -> torch.Tensor:
        if x < 0 and w.requires_grad:
            raise ValueError("no")
        return w[0] + w[1] * x

    w = new_line()
    run = optimize(
        lambda x: fragile(x, w.value), EXAMPLES, squares, val=EXAMPLES[:2], optimizers=[Gradient(batch=12, total_steps=1)],
        parameters=[w], search=Greedy(gate=None), budget=Budget(trials=1), store=None,
    )  # fmt: skip
    good = [e for e in EXAMPLES if e["x"] >= 0]
    assert run.history[0].notes["failed"] == 6
    assert torch.allclose(run.best["w"], by_torch([good], 1e-3, 1), rtol=0, atol=1e-12)


def test_a_path_that_ends_is_named_by_its_op() -> None:
    w = new_line()

    @trace
    def parse(t: torch.Tensor) -> float:
        return t.detach().sum().item()

    @trace
    def back(x: float) -> torch.Tensor:
        return torch.tensor(x, dtype=torch.float64)

    with pytest.raises(
        GradientError, match="'w'.*`parse` returns a float; everything after it is constant.*ZerothOrder"
    ):
        optimize(
            lambda x: back(parse(line(x, w.value))), EXAMPLES, squares, optimizers=[Gradient()], store=None, seed=1
        )


def test_a_tensor_that_only_some_rollouts_read_is_no_error() -> None:
    left, right = Parameter(double(0.0), name="left"), Parameter(double(0.0), name="right")

    @trace
    def shift(x: float, t: torch.Tensor) -> torch.Tensor:
        return t[0] + x

    def workflow(x: float) -> torch.Tensor:
        return shift(x, left.value if x < 0 else right.value)

    run = optimize(
        workflow, EXAMPLES, squares, val=EXAMPLES[:2], optimizers=[Gradient(batch=1, lr=0.1, total_steps=24)],
        parameters=[left, right], search=Greedy(gate=None), budget=Budget(trials=1), store=None,
    )  # fmt: skip
    assert float(run.best["left"]) > 0.1
    assert float(run.best["right"]) > 0.3


def test_constraints_hold_after_every_step() -> None:
    run = fitted(new_line(constraint=Box(-0.5, 0.5)), Gradient(lr=0.3, total_steps=20), search=Greedy(gate=None))
    assert run.best["w"].abs().max() <= 0.5


def test_groups_have_learning_rates_of_their_own() -> None:
    a, b = Parameter(double(0.0), name="head.a"), Parameter(double(0.0), name="body.b")

    @trace
    def both(x: float, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a + b)[0] * x

    def run(**options: Any) -> Any:
        return optimize(
            lambda x: both(x, a.value, b.value), EXAMPLES[:1], squares, optimizers=[Gradient("sgd", 0.01, **options)],
            parameters=[a, b], search=Greedy(gate=None), budget=Budget(trials=1), store=None,
        )  # fmt: skip

    moved = run(total_steps=1, groups={"head.*": {"lr": 0.1}}).best
    assert float(moved["head.a"] / moved["body.b"]) == pytest.approx(10)
    with pytest.raises(ValueError, match="matches none"):
        run(total_steps=1, groups={"tail.*": {"lr": 0.1}})


def test_all_gradients_together_are_clipped() -> None:
    run = fitted(
        new_line(), Gradient("sgd", lr=1.0, clip=0.25, batch=1, steps=1, total_steps=9), search=Greedy(gate=None)
    )
    assert float(run.best["w"].norm()) == pytest.approx(0.25, rel=1e-5)


def test_the_gradient_through_an_op_is_clipped_by_its_name() -> None:
    options = {"train": [{"x": 0.0, "y": 1000.0}], "search": Greedy(gate=None)}
    run = fitted(new_line(), Gradient("sgd", lr=1.0, clip_channels={"line": 0.1}, total_steps=1, steps=1), **options)
    assert run.best["w"].tolist() == pytest.approx([0.1, 0.0])


def test_the_length_of_a_channel_vector_may_be_bounded_instead_of_its_largest_entry() -> None:
    w = Parameter(double(0.0, 0.0), name="w")

    @trace
    def pair(w: torch.Tensor) -> torch.Tensor:
        return w * 1.0

    def pull(output: torch.Tensor, example: Any) -> Feedback:
        return Feedback(score=0.0, loss=-(output * double(3.0, 4.0)).sum())

    def moved(limit: Any) -> list[float]:
        optimizer = Gradient("sgd", 1.0, "constant", steps=1, clip_channels={"pair": limit})
        return optimize(
            lambda example: pair(w.value), [{"n": 0}], pull, parameters=[w], optimizers=[optimizer], store=None,
            search=Greedy(gate=None), budget=Budget(trials=1),
        ).best["w"].tolist()  # fmt: skip

    assert moved(1.0) == pytest.approx([0.75, 1.0])
    assert moved((1.0, "l2")) == pytest.approx([0.6, 0.8])


def test_recorded_norms_refine_the_schedule_of_a_later_run() -> None:
    from trace_opt.optim.numeric.schedules import Refined, refined

    first = fitted(
        new_line(), Gradient("sgd", lr=0.05, steps=30, total_steps=30, record_norms=True), search=Greedy(gate=None)
    )
    norms = [norm for trial in first.history for norm in trial.notes["norms"]]
    schedule = refined(norms, "sgd")
    second = fitted(new_line(), Gradient("sgd", 0.05, schedule, steps=30, total_steps=30), search=Greedy(gate=None))
    assert (len(norms), isinstance(schedule, Refined)) == (30, True)
    assert not torch.equal(first.best["w"], second.best["w"])
    assert second.report().best.mean > first.report().start.mean


def test_the_schedule_follows_the_share_of_the_budget() -> None:
    run = fitted(new_line(), Gradient("sgd", lr=0.01, steps=4, batch=1), budget=Budget(rollouts=60), train=EXAMPLES[:6])
    lengths = [float((t.changed["w"]).norm()) for t in run.history]
    assert len(lengths) >= 3
    assert run.ended.startswith("the budget is spent")


# -- several losses, batches, surrogates, curvature --------------------------------------------------------------------


def two_losses(output: torch.Tensor, example: Any) -> Feedback:
    first, second = ((output - double(1.0, 0.0)) ** 2).sum(), ((output - double(-1.0, 0.5)) ** 2).sum()
    return Feedback(score=-float((first + second).detach()), loss={"first": first, "second": second})


@pytest.mark.parametrize("method", ["mean", "mgda", "upgrad"])
def test_several_losses_end_on_the_pareto_segment(method: Any) -> None:
    if method == "upgrad":
        pytest.importorskip("torchjd", reason="torchjd is not installed")
    point = Parameter(double(2.0, 3.0), name="point")

    @trace
    def same(p: torch.Tensor) -> torch.Tensor:
        return p * 1.0

    run = optimize(
        lambda example: same(point.value), [{"n": 0}], two_losses, parameters=[point], store=None, budget=Budget(trials=1),
        optimizers=[Gradient("sgd", 0.1, "constant", steps=300, combine=method)], search=Greedy(gate=None),
    )  # fmt: skip
    x, y = run.best["point"].tolist()
    t = (1 - x) / 2
    assert -1e-6 <= t <= 1 + 1e-6
    assert y == pytest.approx(0.5 * t, abs=1e-6)


def test_a_preference_is_taken_from_examples_set_aside() -> None:
    from trace_opt.optim.numeric.several import ParetoDA

    point = Parameter(double(2.0, 3.0), name="point")

    @trace
    def same(p: torch.Tensor) -> torch.Tensor:
        return p * 1.0

    seen: set[int] = set()

    def guide(output: torch.Tensor, example: dict[str, int]) -> Feedback:
        if output.requires_grad:
            seen.add(example["n"])
        return two_losses(output, example)

    run = optimize(
        lambda n: same(point.value), [{"n": i} for i in range(6)], guide, parameters=[point], store=None, val=[{"n": 9}],
        optimizers=[Gradient("sgd", 0.05, "constant", steps=200, combine=ParetoDA(loss="first", set_aside=2))],
        search=Greedy(gate=None), budget=Budget(trials=1),
    )  # fmt: skip
    assert seen == set(range(6))
    assert float((run.best["point"] - double(1.0, 0.0)).norm()) < 0.2  # the preferred optimum


def test_batches_grow_as_gradients_get_small_against_their_noise() -> None:
    from trace_opt.optim.numeric.growth import BatchGrowth

    optimizer = Gradient("sgd", 0.05, batch=BatchGrowth(2, 12, eta=0.5), steps=30, total_steps=30)
    fitted(new_line(), optimizer, search=Greedy(gate=None))
    (state,) = optimizer.state_dict()["states"].values()
    assert state["batch"] == 12


def test_a_batch_grows_no_further_than_the_budget_pays() -> None:
    from trace_opt.optim.numeric.growth import BatchGrowth

    optimizer = Gradient("sgd", 0.05, batch=BatchGrowth(2, 12, eta=0.01), steps=3)
    fitted(new_line(), optimizer, search=Greedy(gate=None), budget=Budget(rollouts=1 + 12 + 2 + 5))
    (state,) = optimizer.state_dict()["states"].values()
    assert 2 < state["batch"] <= 5


def test_a_surrogate_takes_many_steps_on_one_gradient_of_the_expensive_part() -> None:
    from trace_opt.optim.numeric.surrogate import Surrogate

    calls: list[float] = []

    def guide(output: torch.Tensor, example: dict[str, float]) -> Feedback:
        if output.requires_grad:
            calls.append(example["x"])
        return squares(output, example)

    def after(inner: int) -> float:
        surrogate = Surrogate("line", inner_steps=inner, eta=6.0)
        options: dict[str, Any] = {"batch": 12, "steps": 3, "surrogate": surrogate}
        run = fitted(new_line(), Gradient("sgd", None, "constant", **options), guide=guide, search=Greedy(gate=None))
        return run.report().best.mean

    one, many = after(1), after(20)
    assert len(calls) == 2 * 3 * 12
    assert many > one / 3  # scores are negative losses


@pytest.mark.parametrize(("name", "lr"), [("sophiah", 3.0), ("sophia-g", 0.05)])
def test_curvature_is_estimated_on_live_graphs(name: str, lr: float) -> None:
    from trace_opt.optim.numeric import registry

    def sampled(output: torch.Tensor, example: Any, generator: torch.Generator) -> torch.Tensor:
        return (output - output.detach() - torch.randn((), generator=generator, dtype=torch.float64)) ** 2

    optimizer = Gradient(name, lr, steps=60, total_steps=60, batch=12, sampled_loss=sampled, options={"every": 2})
    run = fitted(new_line(), optimizer, search=Greedy(gate=None))
    assert registry.rule(name).curvature != "none"
    assert run.report().best.mean > -1.0 > run.report().start.mean


# -- choices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["reinforce", "loo", "enumerate", "reparam"])
def test_a_choice_and_a_tensor_move_together(estimator: Any) -> None:
    power = Parameter(1.0, name="power", choices=[1.0, 2.0, 3.0])
    scale = Parameter(double(1.0), name="scale")

    @trace
    def curve(x: float, power: float, scale: torch.Tensor) -> torch.Tensor:
        return scale[0] * x**power

    examples = [{"x": i / 4, "y": 1.5 * (i / 4) ** 2} for i in range(1, 9)]
    run = optimize(
        lambda x: curve(x, power.value, scale.value), examples, squares, val=examples, parameters=[power, scale],
        optimizers=[Gradient("adam", 0.1, "linear", steps=150, estimator=estimator, samples=6)], store=None,
        search=Greedy(gate=None), budget=Budget(trials=1), seed=2,
    )  # fmt: skip
    assert run.best["power"] == 2.0
    assert float(run.best["scale"]) == pytest.approx(1.5, abs=0.1)


def test_choices_that_are_texts_cannot_be_mixed() -> None:
    tone = Parameter("a", name="tone", choices=["a", "b"])
    with pytest.raises(ValueError, match="'tone'.*no numbers or tensors"):
        optimize(
            lambda x: trace(len)(tone.value), [{"x": 1}], lambda output, example: float(output), store=None,
            optimizers=[Gradient(estimator="reparam", total_steps=2)],
        )  # fmt: skip


def test_a_choice_without_any_tensor_learns_from_scores() -> None:
    tone = Parameter("a", name="tone", choices=["a", "b", "c"])
    run = optimize(
        lambda x: trace(ord)(tone.value), [{"x": 1}], lambda output, example: -abs(output - 99.0), store=None,
        optimizers=[Gradient("adam", 0.3, estimator="loo", steps=60, total_steps=60)], search=Greedy(gate=None),
    )  # fmt: skip
    assert run.best["tone"] == "c"


# -- text and tensors in one workflow ----------------------------------------------------------------------------------


def test_phases_and_text_trials_take_turns_on_the_incumbent() -> None:
    sign = Parameter("minus", name="sign", choices=["minus", "plus"])
    w = Parameter(double(0.1, 0.1), name="w")

    @trace
    def signed(value: torch.Tensor, sign: str) -> torch.Tensor:
        return value if sign == "plus" else -value.abs()

    run = optimize(
        lambda x: signed(line(x, w.value), sign.value), EXAMPLES, squares, val=EXAMPLES, parameters=[sign, w],
        optimizers=[Categorical(), Gradient(lr=0.2, steps=60)], budget=Budget(trials=8), store=None, seed=1,
    )  # fmt: skip
    assert {trial.optimizer for trial in run.history} == {"Categorical", "Gradient"}
    assert run.best["sign"] == "plus"
    assert run.report().best.mean > -0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch imports what it deprecates itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_is_the_same_step() -> None:
    options = {"steps": 5, "total_steps": 5}
    runs = [
        fitted(new_line(), Gradient("sgd", 0.05, compile=c, **options), search=Greedy(gate=None)) for c in (False, True)
    ]
    assert torch.allclose(runs[0].best["w"], runs[1].best["w"], rtol=1e-12, atol=1e-12)
