"""What every estimator keeps to: it improves, goes on bit for bit after a restart, and says what is wrong with bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.refine.small_policies import Arms, Tree, with_log_probs
from trace_opt.refine.batch import Batch
from trace_opt.refine.estimators.base import Estimator
from trace_opt.refine.estimators.grpo import GRPO
from trace_opt.refine.estimators.harpg import HARPG
from trace_opt.refine.estimators.igt import NPGIGT
from trace_opt.refine.estimators.ppo import PPO, AdaptiveKL
from trace_opt.refine.estimators.reinforce import Reinforce

WORTH = (0.0, 0.2, 1.0, 0.4)
START = (0.0, 0.5, -0.5, 0.2)

MAKERS: dict[str, Callable[[Any], Estimator]] = {
    "reinforce": lambda policy: Reinforce(policy, lr=0.3),
    "normalised": lambda policy: Reinforce(policy, lr=0.3, normalised=True, baseline="leave-one-out"),
    "reinforce by adam": lambda policy: Reinforce(policy, lr=0.2, optimizer="adamw", clip=1.0),
    "ppo": lambda policy: PPO(policy, lr=0.1, epochs=2, minibatch=5),
    "ppo, adaptive": lambda policy: PPO(policy, lr=0.1, kl=0.02, adaptive=AdaptiveKL(target=0.5, horizon=100)),
    "grpo": lambda policy: GRPO(policy, lr=0.1, kl=0.01),
    "grpo, unbiased": lambda policy: GRPO(policy, lr=0.1, unbiased=True, iterations=2),
    "n-pg-igt": lambda policy: NPGIGT(policy, lr=0.3, schedule="inverse-sqrt"),
    "n-pg-igt, near": lambda policy: NPGIGT(policy, lr=0.5, reach=1.0),
    "harpg": lambda policy: HARPG(policy, lr=0.5, normalised=False),
    "n-harpg": lambda policy: HARPG(policy, lr=0.5),
}


def world(seed: int = 0) -> tuple[Arms, torch.Generator, Callable[[], Batch]]:
    arms, generator = Arms(START), torch.Generator().manual_seed(seed)
    plain = arms.draws(8, generator, WORTH)
    reference = torch.tensor(START, dtype=torch.float64).log_softmax(0)

    def draw() -> Batch:
        batch = plain()
        return replace(batch, reference=reference[batch.actions["arm"]])

    return arms, generator, draw


def value(arms: Arms) -> float:
    return float((arms.logits.detach().softmax(0) * torch.tensor(WORTH, dtype=torch.float64)).sum())


@pytest.mark.parametrize("name", MAKERS)
def test_the_expected_return_rises(name: str) -> None:
    arms, _, draw = world()
    estimator = MAKERS[name](arms)
    before = value(arms)
    for _ in range(60):
        estimator.update(estimator.sample(draw))
    assert value(arms) > before + 0.2, (before, value(arms))


@pytest.mark.parametrize("name", MAKERS)
def test_a_restart_in_the_middle_changes_no_bit(name: str) -> None:
    arms, _, draw = world()
    estimator = MAKERS[name](arms)
    for _ in range(12):
        estimator.update(estimator.sample(draw))
    whole = arms.logits.detach().clone()

    first, generator, draw = world()
    estimator = MAKERS[name](first)
    for _ in range(5):
        estimator.update(estimator.sample(draw))
    state, logits, chance = estimator.state_dict(), first.logits.detach().clone(), generator.get_state()
    second, generator, draw = world()
    generator.set_state(chance)
    second.logits.data = logits
    estimator = MAKERS[name](second)
    estimator.load_state_dict(state)
    for _ in range(7):
        estimator.update(estimator.sample(draw))
    assert torch.equal(second.logits, whole)


@pytest.mark.parametrize("name", MAKERS)
def test_sampling_elsewhere_leaves_the_weights_where_they_are(name: str) -> None:
    arms, _, draw = world()
    estimator = MAKERS[name](arms)
    for _ in range(4):
        before = arms.logits.detach().clone()
        sample = estimator.sample(draw)
        assert torch.equal(arms.logits, before)
        estimator.update(sample)


@pytest.mark.parametrize("name", ["normalised", "grpo, unbiased"])
def test_equal_returns_move_nothing_where_a_group_is_its_own_baseline(name: str) -> None:
    """What rounding leaves of equal returns must not become a step, which it would where steps are normalised."""
    arms, _, _ = world()
    estimator = MAKERS[name](arms)
    batch = arms.batch([0, 1, 2, 3], [0.7] * 4)
    update = estimator.update(estimator.sample(lambda: batch))
    assert (update.used, update.norm) == (0.0, 0.0)
    assert arms.logits.tolist() == list(START)


def test_a_silent_group_is_left_out_before_anything_is_computed_of_it() -> None:
    """Generation aside, a group of equal returns costs nothing: the policy is not asked about it."""
    asked: list[int] = []

    class Counting(Arms):
        def log_prob(self, batch: Batch) -> Tensor:
            asked.append(len(batch))
            return super().log_prob(batch)

    arms = Counting(START)
    batch = arms.batch([0, 1, 2, 2], [0.5, 0.5, 1.0, 0.0], [0, 0, 1, 1])
    asked.clear()
    update = GRPO(arms, lr=0.1).update(GRPO(arms, lr=0.1).sample(lambda: batch))
    assert (asked, update.used) == ([2], 0.5)


def test_n_pg_igt_samples_where_the_average_of_gradients_is_that_at_the_iterate() -> None:
    """On a quadratic with exact gradients its direction is the gradient at the iterate at every step; plain momentum's lags."""
    torch.manual_seed(0)
    curvature = torch.diag(torch.tensor((1.0, 3.0, 0.5), dtype=torch.float64))

    class Quadratic(torch.nn.Module):
        """-x'Ax/2 whose surrogate's gradient is exact: log_prob is linear in x at the point where it was sampled."""

        def __init__(self) -> None:
            super().__init__()
            self.x = torch.nn.Parameter(torch.tensor((1.0, -2.0, 3.0), dtype=torch.float64))

        def log_prob(self, batch: Batch) -> Tensor:
            return (batch.actions["gradient"] * self.x).sum(1, keepdim=True)

        def draw(self) -> Batch:
            gradient = -(curvature @ self.x.detach())[None]
            one = torch.ones(1, 1, dtype=torch.float64)
            return Batch(
                actions={"gradient": gradient}, rewards=one, mask=one.bool(), groups=torch.zeros(1, dtype=torch.long)
            )

    model = Quadratic()
    estimator = NPGIGT(model, lr=0.2, baseline="none")
    for _ in range(8):
        here = -(curvature @ model.x.detach())
        estimator.update(estimator.sample(model.draw))
        assert estimator._direction is not None
        assert torch.allclose(estimator._direction[0], here, rtol=0, atol=1e-12)


def test_the_extrapolation_is_as_long_as_allowed() -> None:
    arms, _, draw = world()
    far, near = NPGIGT(arms, lr=0.3), NPGIGT(arms, lr=0.3, reach=1.5)
    for estimator in (far, near):
        for _ in range(30):
            estimator.update(estimator.sample(draw))
    lengths = [float(e._ahead()[0].norm() / (e._last or [])[0].norm()) for e in (far, near)]
    eta = (2 / 32) ** 0.8
    assert lengths == pytest.approx([(1 - eta) / eta, 1.5])


def test_ppo_stops_where_a_probability_has_moved_far_enough() -> None:
    """Beyond the clip a step has no gradient left, so many epochs on one sample cannot run away."""
    arms = Arms((0.0, 0.0))
    batch = arms.batch([0, 1], [1.0, 0.0])
    estimator = PPO(arms, lr=0.05, epochs=200, epsilon=0.2, optimizer="sgd", clip=None)
    estimator.update(estimator.sample(lambda: batch))
    p = float(arms.logits.detach().softmax(0)[0])
    assert 0.6 <= p < 0.62  # 0.5 * 1.2, and at most one step beyond


def test_ppo_prices_divergence_by_its_distance_from_the_target() -> None:
    price = AdaptiveKL(target=2.0, horizon=100)
    assert price(0.1, 2.0, 10) == 0.1
    assert price(0.1, 2.2, 10) == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert price(0.1, 50.0, 10) == pytest.approx(0.1 * 1.02)
    assert price(0.1, 0.0, 10) == pytest.approx(0.1 * 0.98)


def test_an_update_says_what_it_saw() -> None:
    arms = Arms(START)
    batch = arms.batch([0, 1, 2, 3], [0.0, 1.0, 1.0, 0.0])
    batch = replace(batch, reference=(batch.log_probs if batch.log_probs is not None else batch.rewards) - 0.25)
    update = Reinforce(arms, lr=0.1, baseline="leave-one-out").update(Reinforce(arms, lr=0.1).sample(lambda: batch))
    assert (update.mean, update.used) == (0.5, 1.0)
    assert update.kl == pytest.approx(0.25)
    assert update.norm > 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: Reinforce(p, lr=0.1, gamma=0.0), "gamma is 0.0"),
        (lambda p: Reinforce(p, lr=0.1, baseline="leave one out"), "did you mean 'leave-one-out'"),
        (lambda p: Reinforce(p, lr=0.1, schedule="inverses"), "did you mean 'inverse'"),
        (lambda p: Reinforce(p, lr=0.1, clip=0.0), "clip is 0.0"),
        (lambda p: Reinforce(p, lr=0.1, optimizer="adamx"), "adamx"),
        (lambda p: Reinforce(p, lr=0.1, kl=-1.0), "kl is -1.0"),
        (lambda p: PPO(p, lr=0.1, epochs=0), "epochs=0"),
        (lambda p: PPO(p, lr=0.1, epsilon=1.5), "epsilon is 1.5"),
        (lambda p: AdaptiveKL(target=0.0), "target"),
        (lambda p: GRPO(p, lr=0.1, iterations=0), "iterations is 0"),
        (lambda p: NPGIGT(p, lr=0.1, reach=-1.0), "reach is -1.0"),
        (lambda p: NPGIGT(p, lr=0.1, power=0.0), "power is 0.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(Arms(START))


def test_a_policy_without_weights_to_train_is_refused() -> None:
    tree = Tree()
    tree.logits.requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match="without weights that require grad"):
        Reinforce(tree, lr=0.1)


def test_what_a_batch_lacks_is_named() -> None:
    arms = Arms(START)
    bare = replace(arms.batch([0, 1], [0.0, 1.0]), log_probs=None)
    for estimator, said in (
        (Reinforce(arms, lr=0.1, kl=0.1), r"kl is set.*reference"),
        (Reinforce(arms, lr=0.1, entropy=0.1), "entropy is set"),
        (GRPO(arms, lr=0.1, kl=0.1), "no reference"),
    ):
        with pytest.raises(ValueError, match=said):
            estimator.update(estimator.sample(lambda: bare))
    single = with_log_probs(arms, arms.batch([0, 1, 2], [0.0, 1.0, 1.0], [0, 0, 7]))
    for estimator in (GRPO(arms, lr=0.1), Reinforce(arms, lr=0.1, baseline="leave-one-out")):
        with pytest.raises(ValueError, match="group 7 holds one trajectory"):
            estimator.update(estimator.sample(lambda: single))
