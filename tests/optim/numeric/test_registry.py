"""Every optimizer by its name: equal to its rule, resumed to the bit, and clear about what it does not take."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.optim.numeric.rules import HELD, diffgrad, follow, frugal, gradients, leaf
from trace_opt.errors import ProblemError
from trace_opt.optim.numeric import registry


@pytest.fixture
def wide() -> Iterator[None]:
    """float64 as default type: torch keeps the counters of NAdam and ASGD in the default type, whatever the leaf's."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("held", HELD)
def test_an_optimizer_equals_its_rule_on_random_gradients(held: str) -> None:
    name, rule, lr, options = HELD[held]
    x = leaf()
    expected = rule(x.detach(), gradients(), lr)
    found = follow(registry.build(name, [x], lr=lr, **options), x, gradients())
    assert (found - expected).abs().max() <= 1e-12
    assert (found - leaf().detach()).abs().max() > 1e-3


def test_frugal_equals_its_rule_on_the_columns_that_it_draws() -> None:
    x = leaf()
    stepper = registry.build("frugal", [x], lr=0.01, rho=0.5, gap=6)
    parts: list[list[int]] = []
    for t, gradient in enumerate(gradients()):
        follow(stepper, x, [gradient], t)
        if t % 6 == 0:
            parts.append(stepper.optimizer.state[x]["index"].tolist())
    assert len({tuple(part) for part in parts}) > 1
    assert (x.detach() - frugal(leaf().detach(), gradients(), 0.01, parts)).abs().max() <= 1e-12


@pytest.mark.parametrize("held", ["nadam", "asgd"])
def test_counters_in_float32_cost_what_the_note_says(held: str) -> None:
    name, rule, lr, options = HELD[held]
    x = leaf()
    found = follow(registry.build(name, [x], lr=lr, **options), x, gradients())
    assert 1e-12 < (found - rule(leaf().detach(), gradients(), lr)).abs().max() < 1e-7
    assert "1e-7" in registry.rule(name).doc


def test_every_entry_is_held_to_a_rule() -> None:
    quantized = {"adamw8bit", "lion8bit"}  # test_quantized.py
    assert {name for name, *_ in HELD.values()} | {"frugal"} | quantized == set(registry.names())


def test_diffgrad_is_as_far_from_its_paper_as_its_note_says() -> None:
    x = leaf()
    m, v, before, paper = (torch.zeros_like(x.detach()) for _ in range(4))
    paper = x.detach().clone()
    for t, g in enumerate(gradients(), 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        paper = paper - 0.01 * torch.sigmoid((before - g).abs()) * (m / (1 - 0.9**t)) / (
            (v / (1 - 0.999**t)).sqrt() + 1e-8
        )
        before = g
    away = (diffgrad(leaf().detach(), gradients(), 0.01) - paper).abs().max()
    assert 1e-12 < away < 1e-5
    assert "1e-7" in registry.rule("diffgrad").doc


@pytest.mark.parametrize("name", registry.names())
def test_an_entry_says_where_it_comes_from(name: str) -> None:
    entry = registry.rule(name)
    assert entry.name == name
    assert entry.source
    assert entry.doc.endswith(".")
    assert next(iter(entry.defaults)) == "lr"


# -- kernels ---------------------------------------------------------------------------------------------------------


def test_torch_steps_with_fused_kernels_wherever_it_has_them() -> None:
    fused = {n for n in registry.names() if registry.build(n, [leaf()]).optimizer.defaults.get("fused")}
    assert fused == {"adam", "adamw", "sgd", "adagrad"}
    assert registry.build("adamw", [leaf()], fused=False).optimizer.defaults["fused"] is False
    whole = torch.ones(3, dtype=torch.complex64, requires_grad=True)
    assert not registry.build("adamw", [whole]).optimizer.defaults["fused"]


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    "held",
    [
        h
        for h in HELD
        if "foreach" in registry.rule(HELD[h][0]).defaults and "fused" not in registry.rule(HELD[h][0]).defaults
    ],
)
def test_several_small_tensors_move_together_as_each_would_alone(held: str) -> None:
    name, _, lr, options = HELD[held]
    together = [leaf() for _ in range(6)]
    stepper = registry.build(name, together, lr=lr, **options)
    assert stepper.optimizer.defaults["foreach"] is True
    for t, gradient in enumerate(gradients()):
        for i, one in enumerate(together):
            one.grad = gradient * (i + 1)
        wanted = stepper.curvature != "none" and t % 3 == 0
        stepper.step([one.grad**2 - 0.3 for one in together] if wanted else None)
    for i, one in enumerate(together):
        alone = leaf()
        follow(registry.build(name, [alone], lr=lr, **options), alone, [g * (i + 1) for g in gradients()])
        assert (one - alone).abs().max() <= 1e-12


def test_large_tensors_move_one_by_one() -> None:
    large = registry.build("adabelief", [leaf((5000,)) for _ in range(20)])
    assert large.optimizer.defaults["foreach"] is False
    assert registry.build("adabelief", [leaf((5000,))], foreach=True).optimizer.defaults["foreach"] is True


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("held", [held for held in HELD if held not in ("muon", "adafactor")])
def test_a_gpu_gives_what_the_rule_does(held: str) -> None:
    name, rule, lr, options = HELD[held]
    x = leaf().detach().cuda().requires_grad_()
    stepper = registry.build(name, [x], lr=lr, **options)
    follow(stepper, x, [g.cuda() for g in gradients()])
    assert (x.detach().cpu() - rule(leaf().detach(), gradients(), lr)).abs().max() <= 1e-12
    if name in ("adam", "adamw", "sgd"):
        assert stepper.optimizer.defaults["fused"] is True


# -- what is refused -------------------------------------------------------------------------------------------------


def test_a_name_counts_in_any_case_of_letters() -> None:
    assert registry.rule("AdamW").name == "adamw"
    assert isinstance(registry.build("LION", [leaf()]).optimizer, registry.rule("lion").cls)


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(
        ValueError, match=r"no optimizer 'adamu'; did you mean 'adam'\?; choose one of \['adamw', 'adam',"
    ):
        registry.rule("adamu")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw", {"beta": 1}, "adamw has no option 'beta'; did you mean 'betas'"),
        ("lion", {"use_gc": True}, "lion has no option 'use_gc'.*there are betas"),
        ("sophiah", {"update_period": 3}, "sophiah has no option 'update_period'"),
        ("lion-k", {"constraint": "sphere"}, r"no constraint 'sphere'.*choose one of \['box', 'l2'"),
        ("lion-k", {"lr": 0.5, "weight_decay": 3.0}, "product exceeds 1"),
        ("lion-k", {"lr": -1.0}, "lr=-1.0"),
        ("lion-k", {"delta": 0.0}, "delta=0.0"),
        ("lion-k", {"constraint": "group", "group_size": 5}, "group_size=5"),
        ("frugal", {"projection": "column"}, "no projection 'column'; did you mean 'columns'"),
        ("frugal", {"rho": 2.0}, "rho=2.0"),
        ("frugal", {"residual": -1.0}, "residual=-1.0"),
        ("frugal", {"betas": (1.0, 0.9)}, "betas="),
        ("m-fac", {"damping": 0.0}, "damping=0.0"),
        ("adagrad-norm", {"b0": -1.0}, "b0=-1.0"),
        ("sophia-g", {"eps": 0.0}, "eps=0.0"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.build(name, [leaf()], **options)


def test_a_group_with_an_option_that_it_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="a group of m-fac has no option 'damping' of its own"):
        registry.build("m-fac", [{"params": [leaf()], "damping": 2.0}])
    with pytest.raises(ValueError, match="'weight_decai' of its own; did you mean 'weight_decay'"):
        registry.build("adamw", [{"params": [leaf()], "weight_decai": 2.0}])


def test_tensors_that_a_rule_cannot_move_are_refused() -> None:
    with pytest.raises(ValueError, match=r"muon takes matrices only, and got a tensor of shape \(3,\)"):
        registry.build("muon", [leaf((3,))])
    with pytest.raises(ValueError, match=r"constraint='spectral' got a tensor of shape \(3,\)"):
        registry.build("lion-k", [leaf((3,))], constraint="spectral")
    with pytest.raises(ValueError, match="several dtypes"):
        registry.build("m-fac", [leaf(), leaf(dtype=torch.float32)])
    with pytest.raises(ValueError, match="got no tensors"):
        registry.build("adamw", [])


def test_a_library_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(importlib.import_module("torch.optim"), "Muon")
    fresh = registry.Rule("muon", registry.rule("muon").path, "", "")
    with pytest.raises(ProblemError, match=r"torch.optim has no 'Muon'; install a newer one"):
        _ = fresh.cls


def test_the_registry_itself_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys; from trace_opt.optim.numeric import registry; registry.names(); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert done.stdout.strip() == "False"
