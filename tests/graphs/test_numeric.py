"""The numeric problems whose optimum is known: they are right, and `optimize` reaches it by the gradient of the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.problem_files import held_out, load, mean_score, module_of, optimum, run
from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import plain, record
from trace_opt.problem import Problem

CASES: dict[str, tuple[str, dict[str, str]]] = {
    "rosenbrock": ("rosenbrock", {}),
    "quadratic": ("quadratic", {}),
    "box": ("constrained", {"constraint": "box"}),
    "l2": ("constrained", {"constraint": "l2"}),
    "l1": ("constrained", {"constraint": "l1"}),
    "logistic": ("logistic", {}),
    "pareto": ("pareto", {}),
    "router": ("router", {}),
    "calibration": ("calibration", {}),
}
UNCONSTRAINED = sorted(CASES.keys() - {"box", "l2", "l1"})


def made(case: str, **more: str) -> Problem:
    name, options = CASES[case]
    return load(name, **options, **more)


def best(case: str) -> tuple[dict[str, Any], float]:
    """The best values as the parameters hold them, and the score there."""
    name, _ = CASES[case]
    values, score = optimum(name) if name != "logistic" else ({}, 0.0)
    if name == "logistic":
        weights, loss = module_of(name).optimum()
        values, score = {"weights": weights}, -loss
    elif name == "constrained":
        values, score = {"weights": module_of(name).OPTIMA[case]}, module_of(name).BEST_SCORES[case]
    return {
        key: torch.tensor(value, dtype=torch.float64) if isinstance(value, tuple) else value
        for key, value in values.items()
    }, score


def off(problem: Problem, case: str, found: Any) -> float:
    """The greatest distance of an entry from the optimum."""
    values, _ = best(case)
    tensors = [name for name, value in values.items() if isinstance(value, torch.Tensor)]
    return max(float((found[name] - values[name]).abs().max()) for name in tensors)


@pytest.mark.parametrize("case", CASES)
def test_the_optimum_reaches_the_best_score_and_the_start_does_not(case: str) -> None:
    problem = made(case)
    values, score = best(case)
    for examples in (problem.train, held_out(problem)):
        assert mean_score(problem, examples, values) == pytest.approx(score, abs=1e-9)
        assert mean_score(problem, examples) < score - 0.1


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_the_same_recorded_and_plain(case: str) -> None:
    problem = made(case)
    for values in ({}, best(case)[0]):
        for example in problem.train[:3]:
            with record(values=values):
                recorded = plain(run(problem, example))
            with in_force(values):
                torch.testing.assert_close(recorded, run(problem, example), rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_the_score_is_minus_the_loss(case: str) -> None:
    problem = made(case)
    for example in problem.train[:3]:
        feedback = Feedback.of(problem.guide(run(problem, example), example))
        losses = feedback.loss if isinstance(feedback.loss, dict) else {"loss": feedback.loss}
        assert feedback.value == pytest.approx(-sum(float(x) for x in losses.values() if x is not None) / len(losses))
        assert feedback.text


def gradients(problem: Problem, values: dict[str, Any]) -> dict[str, Any]:
    """The mean gradient of the training losses at values."""
    for parameter in problem.parameters or ():
        parameter.grad = None
    given = {name: v.clone().requires_grad_() if isinstance(v, torch.Tensor) else v for name, v in values.items()}
    for example in problem.train:
        with record(values=given) as graph:
            output = run(problem, example)
        propagate(graph, graph.output(output), Feedback.of(problem.guide(plain(output), example)))
    return {p.name: p.grad / len(problem.train) for p in problem.parameters or () if p.kind == "tensor"}


@pytest.mark.parametrize("case", UNCONSTRAINED)
def test_the_gradient_vanishes_at_the_optimum_and_not_at_the_start(case: str) -> None:
    problem = made(case)
    values, _ = best(case)
    start = {p.name: p.initial for p in problem.parameters or ()}
    assert all(float(g.norm()) < 1e-10 for g in gradients(problem, values).values())
    assert all(float(g.norm()) > 1e-4 for g in gradients(problem, start).values())


@pytest.mark.parametrize("case", ["box", "l2", "l1"])
def test_a_projected_step_from_the_constrained_optimum_leads_back_to_it(case: str) -> None:
    problem = made(case)
    values, _ = best(case)
    (gradient,) = gradients(problem, values).values()
    (parameter,) = problem.parameters or ()
    assert parameter.constraint is not None
    assert float(gradient.norm()) > 0.05  # without the constraint it would move on
    back = parameter.constraint.project(values["weights"] - gradient)
    torch.testing.assert_close(back, values["weights"], rtol=0, atol=1e-8)


REACHED = {  # error of the worst entry, and what the score may lack
    "rosenbrock": (2e-2, 1e-4), "quadratic": (1e-4, 1e-10), "box": (1e-4, 1e-4), "l2": (1e-4, 1e-4), "l1": (1e-4, 1e-4),
    "logistic": (0.5, 5e-3), "router": (2e-2, 1e-3), "calibration": (0.1, 1e-2),
}  # fmt: skip


@pytest.mark.parametrize("case", REACHED)
def test_optimize_reaches_the_optimum(case: str) -> None:
    problem = made(case)
    values, score = best(case)
    error, lacks = REACHED[case]
    found = problem.optimize(store=None).best
    assert off(problem, case, found) <= error
    assert mean_score(problem, problem.train, found) >= score - lacks
    assert {n: v for n, v in found.items() if isinstance(v, str)} == {
        n: v for n, v in values.items() if isinstance(v, str)
    }


@pytest.mark.parametrize(
    ("combine", "share"), [("mgda", 0.0), ("upgrad", 0.419), ("mean", 0.5)], ids=["mgda", "upgrad", "mean"]
)
def test_every_way_to_combine_ends_on_the_pareto_segment_where_it_is_known_to(combine: str, share: float) -> None:
    if combine == "upgrad":
        pytest.importorskip("torchjd", reason="the extra 'multiobjective' is not installed")
    found = load("pareto", combine=combine).optimize(store=None).best["point"].tolist()
    along, away = module_of("pareto").place(tuple(found))
    assert away < 1e-6
    assert along == pytest.approx(share, abs=2e-3)


def test_the_distance_from_the_pareto_segment_counts_beyond_its_ends() -> None:
    place = module_of("pareto").place
    assert place((1.0, 2.0)) == (pytest.approx(4 / 17 * 0.25 / 0.25), pytest.approx(2 * (1 - 1 / 17) ** 0.5))
    assert place((3.0, 0.0)) == (0.0, 2.0)
    assert place((-1.0, 0.5)) == (1.0, 0.0)


@pytest.mark.parametrize(("estimator", "steps"), [("reinforce", "300"), ("enumerate", "80")])
def test_choices_and_tensor_of_the_router_are_found_by_other_estimators_too(estimator: str, steps: str) -> None:
    problem = load("router", estimator=estimator, steps=steps)
    found = problem.optimize(store=None).best
    assert (found["for_lengths"], found["for_areas"]) == ("once", "twice")
    assert mean_score(problem, problem.train, found) > -1e-2


def test_no_calibration_makes_up_for_a_wrong_tool() -> None:
    module, problem = module_of("router"), load("router")
    right = (module.OPTIMUM["for_lengths"], module.OPTIMUM["for_areas"])
    for tools in ((a, b) for a in module.TOOLS for b in module.TOOLS if (a, b) != right):
        rows, wanted = [], []
        for example in problem.train:
            readings = module.ask(tools[example["kind"] == "area"], example["sides"])
            rows += [[float(reading), 1.0] for reading in readings]
            wanted += example["wanted"].tolist()
        best = torch.linalg.lstsq(torch.tensor(rows), torch.tensor(wanted)[:, None], driver="gelsd").solution
        residual = torch.tensor(rows) @ best - torch.tensor(wanted)[:, None]
        assert float((residual**2).mean()) > 0.005, tools


@pytest.mark.parametrize(
    ("instruction", "volts"),
    [
        ("Read the first number.", 0.31), ("Read the last number.", -0.5),
        ("Read the number after 'roof'.", -0.42),
    ],
)  # fmt: skip
def test_the_reader_follows_its_instruction_to_the_letter(instruction: str, volts: float) -> None:
    line = "yesterday 0.310 V, roof -0.420 V, street 0.900 V, car -0.500 V"
    assert module_of("calibration").read(line, instruction) == volts


def test_a_calibration_for_the_wrong_sensor_leaves_the_right_one_better() -> None:
    module, problem = module_of("calibration"), load("calibration")
    wanted = torch.tensor([example["celsius"] for example in problem.train])
    right = module.OPTIMUM["instruction"]
    for instruction in module.INSTRUCTIONS:
        read = torch.tensor([module.read(example["line"], instruction) for example in problem.train])
        rows = torch.stack([read, torch.ones(len(read))], 1)
        fitted = torch.linalg.lstsq(rows, wanted[:, None]).solution[:, 0].double()
        values = {"calibration": fitted}
        own, other = (
            mean_score(problem, problem.train, {**values, "instruction": text}) for text in (instruction, right)
        )
        assert instruction == right or other > own + 1


def test_text_and_tensor_of_the_calibration_both_get_better() -> None:
    problem = load("calibration")
    run_ = problem.optimize(store=None)
    accepted = {trial.optimizer for trial in run_.history if trial.accepted}
    assert accepted == {"Categorical", "Gradient"}
    for name in ("instruction", "calibration"):
        without = {key: value for key, value in run_.best.items() if key != name}
        assert mean_score(problem, held_out(problem), without) < mean_score(problem, held_out(problem), run_.best) - 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rosenbrock", {"optimizer": "lion", "lr": "0.01"}), ("quadratic", {"optimizer": "adabelief", "lr": "1"}),
        ("quadratic", {"optimizer": "sgd", "lr": "1", "schedule": "cosine"}),
        ("logistic", {"optimizer": "adamw", "lr": "0.03"}), ("constrained", {"optimizer": "sgd", "lr": "1", "constraint": "l2"}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["optimizer"],
)  # fmt: skip
def test_another_rule_of_the_registry_is_one_option_away(name: str, options: dict[str, str]) -> None:
    problem = load(name, **options, steps="300")
    found = problem.optimize(store=None).best
    start, reached = (mean_score(problem, problem.train, values) for values in ({}, found))
    _, top = best(options.get("constraint", name))
    assert reached > top + 0.1 * (start - top)


def test_a_constant_learning_rate_hovers_above_the_optimum_that_linear_decay_reaches() -> None:
    _, top = best("logistic")
    lacks: dict[str, float] = {}
    for schedule in ("constant", "linear"):
        problem = load("logistic", schedule=schedule)
        lacks[schedule] = top - mean_score(problem, problem.val or (), problem.optimize(store=None).best)
    assert lacks["linear"] < 0.6 * lacks["constant"]


def test_all_rows_in_one_batch_reach_the_optimum_itself() -> None:
    problem = load("logistic", batch="2000", steps="600", lr="0.3")
    values, top = best("logistic")
    found = problem.optimize(store=None).best
    assert top - mean_score(problem, problem.train, found) < 1e-6
    assert float((found["weights"] - values["weights"]).abs().max()) < 2e-2
