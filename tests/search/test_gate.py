"""Two gates, one test: error rates by enumeration and dynamic programming, and what a verdict may depend on."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_opt.errors import ProblemError
from trace_opt.search.gate import Comparison, Gate, Kind, Measure, Outcome, trial_order
from trace_opt.search.measures import smallest_gain
from trace_opt.search.sign_flip import winsorised
from trace_opt.search.sign_test import bounds, pair_chances

RIGHT = Measure(two_valued=True)
UNIT = Measure(score_range=(0.0, 1.0))
FREE = Measure()
KINDS = [RIGHT, UNIT, FREE]
IDS = ["sign", "betting", "flips"]

Walk = tuple[float, ...]


def outcome(comparison: Comparison, differences: Walk) -> Outcome:
    """Feed differences to the end."""
    verdict = comparison.extend([0.0] * len(differences), list(differences))
    assert verdict is not None
    return verdict.outcome


def rates(gate: Gate, measure: Measure, steps: dict[float, float], horizon: int) -> dict[str, float]:
    """The exact chance of every outcome, by going through all sequences of independent differences."""
    found = dict.fromkeys(("better", "worse", "futile", "undecided", "examples"), 0.0)
    for walk in itertools.product(steps, repeat=horizon):
        comparison = gate.begin(horizon, [measure])
        chance = math.prod(steps[step] for step in walk)
        found[outcome(comparison, walk)] += chance
        found["examples"] += chance * comparison.n
    return found


def patterns(horizon: int) -> Iterator[tuple[bool, ...]]:
    return itertools.product((False, True), repeat=horizon)


# --- what the claim gate must show, exactly -----------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_the_claim_gate_keeps_its_rates_on_100_right_or_wrong_answers(shared: float) -> None:
    gate = Gate.claim()
    equal, worse, better = (
        gate.characteristics(*pair_chances(0.5, 0.5 + gain, shared), 100) for gain in (0.0, -0.1, 0.2)
    )
    assert equal.better <= 0.05
    assert equal.examples <= 50
    assert worse.better <= 0.01
    assert better.better >= 0.80


def test_the_claim_gate_finds_what_the_fact_sheets_rule_finds() -> None:
    gate = Gate.claim()
    found = [gate.characteristics(*pair_chances(0.5, 0.5 + gain), 100) for gain in (0.0, -0.1, 0.1, 0.2)]
    assert [round(c.better, 3) for c in found] == [0.039, 0.001, 0.325, 0.820]
    assert [round(c.examples) for c in found] == [41, 26, 59, 58]


def test_the_search_gate_drops_early_and_still_tells_better_from_worse() -> None:
    gate = Gate.search()
    equal, worse, better = (gate.characteristics(*pair_chances(0.5, 0.5 + gain), 100) for gain in (0.0, -0.1, 0.2))
    assert max(c.examples for c in (equal, worse, better)) <= 12
    assert worse.better < equal.better / 2 < 0.1
    assert better.better >= 0.55


@pytest.mark.parametrize("horizon", [20, 50, 200])
def test_the_search_gate_means_about_the_same_for_fewer_and_for_more_examples(horizon: int) -> None:
    found = Gate.search().characteristics(*pair_chances(0.5, 0.5), horizon)
    assert 0.1 <= found.better <= 0.3


@pytest.mark.parametrize("horizon", [1, 2, 5, 13, 40, 100])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.4])
@pytest.mark.parametrize("differ", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("planned", [0.2, 0.5])
def test_an_equal_candidate_is_never_found_better_more_often_than_alpha(
    horizon: int, alpha: float, differ: float, planned: float
) -> None:
    found = Gate(alpha=alpha, gamma=0, planned=planned).characteristics(differ / 2, differ / 2, horizon)
    assert found.better <= alpha + 1e-12
    assert found.worse <= 0.05 + 1e-12
    assert found.futile == 0


# --- dynamic programming against going through all sequences -----------------------------------------------------------


@pytest.mark.parametrize(
    "gate", [Gate(), Gate(gamma=0), Gate(alpha=0.3, block=3), Gate.search(), Gate.search(block=2)], ids=str
)
@pytest.mark.parametrize("chances", [(0.25, 0.25), (0.6, 0.1)])
def test_dynamic_programming_gives_the_rates_of_the_comparison_itself(gate: Gate, chances: tuple[float, float]) -> None:
    wins, losses = chances
    counted = rates(gate, RIGHT, {1.0: wins, 0.0: 1 - wins - losses, -1.0: losses}, 7)
    exact = gate.characteristics(wins, losses, 7)
    assert exact.better == pytest.approx(counted["better"], abs=1e-12)
    assert exact.worse == pytest.approx(counted["worse"], abs=1e-12)
    assert exact.futile == pytest.approx(counted["futile"], abs=1e-12)
    assert exact.examples == pytest.approx(counted["examples"], abs=1e-9)


@pytest.mark.parametrize("block", [1, 3])
def test_the_sign_test_is_valid_whichever_examples_differ(block: int) -> None:
    horizon, alpha = 8, 0.2
    gate = Gate(alpha=alpha, worse_alpha=alpha, gamma=0, block=block)
    for moved in patterns(horizon):
        signs = list(itertools.product((1.0, -1.0), repeat=sum(moved)))
        found = [outcome(gate.begin(horizon), _laid(moved, sign)) for sign in signs]
        assert found.count("better") <= alpha * len(signs)
        assert found.count("worse") <= alpha * len(signs)


def _laid(moved: tuple[bool, ...], signs: Walk) -> Walk:
    rest = iter(signs)
    return tuple(next(rest) if moves else 0.0 for moves in moved)


@pytest.mark.parametrize("steps", [{1.0: 0.5, -1.0: 0.5}, {0.2: 5 / 6, -1.0: 1 / 6}, {1.0: 1 / 6, -0.2: 5 / 6}])
def test_betting_is_valid_at_any_time_for_any_mean_of_zero(steps: dict[float, float]) -> None:
    found = rates(Gate(alpha=0.1, worse_alpha=0.1, gamma=0), UNIT, steps, 11)
    assert found["better"] + found["worse"] > 0
    assert found["better"] <= 0.1
    assert found["worse"] <= 0.1


def test_sign_flips_are_valid_where_signs_are_fair_coins() -> None:
    sizes = [0.1, 2.0, 0.3, 0.4, 7.0, 0.2, 0.9, 1.1, 0.6, 0.05]
    gate = Gate(gamma=0)
    found = [
        outcome(gate.begin(10, [FREE], seed=seed), tuple(s * d for s, d in zip(signs, sizes, strict=True)))
        for seed, signs in enumerate(itertools.product((1, -1), repeat=10))
    ]
    assert 0.03 <= found.count("better") / len(found) <= 0.055
    assert 0.03 <= found.count("worse") / len(found) <= 0.055


@pytest.mark.parametrize("measure", KINDS, ids=IDS)
def test_a_clear_gain_is_found_early_and_a_clear_loss_too(measure: Measure) -> None:
    gain, loss = Gate().begin(200, [measure]), Gate(gamma=0).begin(200, [measure])
    assert outcome(gain, (1.0, 1.0, 0.0, 1.0) * 50) == "better"
    assert outcome(loss, (-1.0, -1.0, 0.0, -1.0) * 50) == "worse"
    assert gain.n < 60
    assert loss.n < 60


def test_small_gains_are_found_where_the_spread_is_small() -> None:
    for measure in (UNIT, FREE):
        comparison = Gate().begin(100, [measure])
        assert outcome(comparison, (0.12, 0.05, -0.03, 0.11, 0.2) * 20) == "better"


# --- what a verdict may depend on --------------------------------------------------------------------------------------

scores = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.none()
pairs = st.lists(st.tuples(scores, scores), min_size=1, max_size=24)


@pytest.mark.parametrize("measure", KINDS, ids=IDS)
@given(pairs=pairs, alpha=st.sampled_from([0.05, 0.4]), block=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_candidate_that_never_wins_is_never_accepted(
    measure: Measure, pairs: list[tuple[float | None, float | None]], alpha: float, block: int
) -> None:
    comparison = Gate(alpha=alpha, gamma=0, block=block).begin(len(pairs), [measure])
    lost = [(b, a) if _wins(a, b) else (a, b) for a, b in pairs]
    verdict = comparison.extend([a for a, _ in lost], [b for _, b in lost])
    assert verdict is not None
    assert not verdict.accepted


def _wins(before: float | None, after: float | None) -> bool:
    return (-1.0 if after is None else after) > (-1.0 if before is None else before)


@pytest.mark.parametrize("measure", KINDS, ids=IDS)
@given(data=st.data(), pairs=pairs, block=st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_within_a_block_order_makes_no_difference(
    measure: Measure, data: st.DataObject, pairs: list[tuple[float | None, float | None]], block: int
) -> None:
    gate = Gate(alpha=0.3, block=block)
    parts = [pairs[i : i + block] for i in range(0, len(pairs), block)]
    mixed = [pair for part in parts for pair in data.draw(st.permutations(part))]
    first, second = (gate.begin(len(pairs), [measure]) for _ in range(2))
    one = first.extend([a for a, _ in pairs], [b for _, b in pairs])
    other = second.extend([a for a, _ in mixed], [b for _, b in mixed])
    assert one is not None
    assert other is not None
    assert (one.outcome, one.n) == (other.outcome, other.n)
    assert one.mean == pytest.approx(other.mean)


@pytest.mark.parametrize("measure", [RIGHT, UNIT], ids=IDS[:2])
@given(pairs=pairs)
@settings(max_examples=40, deadline=None)
def test_turned_around_better_is_worse(measure: Measure, pairs: list[tuple[float | None, float | None]]) -> None:
    gate = Gate(alpha=0.2, worse_alpha=0.2, gamma=0)
    one, other = (gate.begin(len(pairs), [measure]) for _ in range(2))
    first = one.extend([a for a, _ in pairs], [b for _, b in pairs])
    second = other.extend([b for _, b in pairs], [a for a, _ in pairs])
    turned = {"better": "worse", "worse": "better", "undecided": "undecided"}
    assert first is not None
    assert second is not None
    assert turned[first.outcome] == second.outcome
    assert first.n == second.n


@pytest.mark.parametrize("measure", KINDS, ids=IDS)
@given(pairs=pairs, cut=st.integers(0, 24))
@settings(max_examples=25, deadline=None)
def test_a_comparison_is_a_function_of_its_pairs_so_adding_them_again_resumes_it(
    measure: Measure, pairs: list[tuple[float | None, float | None]], cut: int
) -> None:
    gate = Gate(alpha=0.3, block=2)
    whole, resumed = (gate.begin(len(pairs), [measure], seed=3) for _ in range(2))
    before, after = [a for a, _ in pairs], [b for _, b in pairs]
    whole.extend(before, after)
    if resumed.extend(before[:cut], after[:cut]) is None:
        resumed.extend(before[cut:], after[cut:])
    assert whole.verdict == resumed.verdict


def test_results_count_at_the_end_of_their_block_only() -> None:
    comparison = Gate(alpha=0.4, gamma=0, block=8).begin(20)
    given = [comparison.add(0.0, 1.0) for _ in range(8)]
    assert given[:7] == [None] * 7
    assert given[7] is not None
    assert given[7].accepted


def test_the_last_example_always_decides_even_in_a_part_of_a_block() -> None:
    comparison = Gate(gamma=0, block=10).begin(13)
    verdict = comparison.extend([1.0] * 13, [1.0] * 13)
    assert verdict is not None
    assert (verdict.outcome, verdict.n, verdict.mean) == ("undecided", 13, 0.0)


def test_little_hope_ends_a_comparison_early() -> None:
    comparison = Gate.claim().begin(100)
    verdict = comparison.extend([1.0, 0.0, 1.0, 1.0] * 25, [0.0, 0.0, 1.0, 1.0] * 25)
    assert verdict is not None
    assert verdict.outcome == "futile"
    assert verdict.n < 30


def test_a_phase_is_given_up_only_when_it_is_found_worse() -> None:
    level, fallen = Gate.phase().begin(60), Gate.phase().begin(60)
    assert outcome(level, (1.0, -1.0, 0.0, -1.0, 1.0, 0.0) * 10) == "undecided"
    assert outcome(fallen, (-1.0, -1.0, 0.0, -1.0, 1.0, 0.0) * 10) == "worse"
    assert fallen.n < 60


# --- failed rollouts ---------------------------------------------------------------------------------------------------


def test_a_failed_rollout_loses_its_pair_by_the_largest_difference_seen() -> None:
    comparison = Gate(gamma=0).begin(4, [FREE])
    verdict = comparison.extend([1.0, 5.0, None, 2.0], [None, 8.0, 1.0, 2.0])
    assert verdict is not None
    assert verdict.mean == (-3 + 3 + 3 + 0) / 4


def test_a_failed_rollout_loses_by_one_where_no_difference_was_seen_and_two_failures_are_a_tie() -> None:
    verdict = Gate(gamma=0).begin(4).extend([1.0, None, 0.0, None], [1.0, None, None, 0.0])
    assert verdict is not None
    assert verdict.mean == 0.0
    assert outcome(Gate(gamma=0).begin(2), (0.0, 0.0)) == "undecided"


@pytest.mark.parametrize("measure", KINDS, ids=IDS)
def test_a_candidate_that_always_fails_is_found_worse(measure: Measure) -> None:
    verdict = Gate(gamma=0).begin(100, [measure]).extend([0.5] * 100, [None] * 100)
    assert verdict is not None
    assert verdict.outcome == "worse"


def test_no_single_bet_wins_a_test_however_lenient() -> None:
    assert Gate(alpha=0.9, gamma=0).begin(10, [UNIT]).add(0.0, 1.0) is None


# --- several scores ----------------------------------------------------------------------------------------------------

SEVERAL = [
    Measure(name="right", two_valued=True),
    Measure(name="cheap", score_range=(-1.0, 0.0), margin=0.05),
]


def several(right: float, cheap: float) -> dict[str, float]:
    return {"right": right, "cheap": cheap}


def test_a_candidate_that_wins_the_first_score_but_loses_another_is_found_worse_there() -> None:
    comparison = Gate.claim(block=25).begin(100, SEVERAL)
    verdict = comparison.extend([several(0, -0.1)] * 100, [several(1, -0.8)] * 100)
    assert verdict is not None
    assert (verdict.outcome, verdict.measure) == ("worse", "cheap")
    assert "'cheap'" in str(verdict)


def test_a_loss_within_the_margin_is_no_matter() -> None:
    comparison = Gate.claim(block=25).begin(100, SEVERAL)
    verdict = comparison.extend([several(0, -0.10)] * 100, [several(1, -0.14)] * 100)
    assert verdict is not None
    assert (verdict.outcome, verdict.measure) == ("better", "right")


def test_what_is_better_early_is_not_found_so_before_others_had_their_last_look() -> None:
    """A hundredfold cost shows within eight examples; it was let through after as many as the first score needed."""
    guarded = [Measure(name="right", two_valued=True), Measure(name="cheap")]

    def ended(cheap: float) -> Any:
        comparison = Gate.search().begin(30, guarded)
        return comparison.extend([several(0, -1.0)] * 30, [several(1, cheap)] * 30)

    free, dear = ended(-1.0), ended(-100.0)
    assert (free.outcome, free.n < 5) == ("better", True)
    assert (dear.outcome, dear.measure) == ("worse", "cheap")
    assert 5 <= dear.n <= 8


def test_scores_between_two_values_are_taken_at_their_size_though_the_start_had_none() -> None:
    """A start of zeros says nothing of them: many small losses do not hide behind few large gains, nor the reverse."""
    gate = Gate(gamma=0.0)
    rng = random.Random(3)
    after = [0.61 if rng.random() < 0.7 else 0.05 for _ in range(100)]
    verdict = gate.begin(100, [Measure(two_valued=True)]).extend([0.6] * 100, after)
    assert verdict is not None
    assert (verdict.outcome, verdict.mean < -0.1) == ("worse", True)


def test_a_comparison_that_takes_sizes_in_spends_no_more_of_alpha() -> None:
    """Equal candidates whose differences are of one size at first and of many later: the share found better."""
    found = 0
    for seed in range(400):
        rng = random.Random(seed)
        after = [rng.choice((-1.0, 1.0)) * (1.0 if i < 20 else rng.random()) for i in range(60)]
        verdict = Gate(alpha=0.05, gamma=0.0).begin(60, [Measure(two_valued=True)], seed=seed).extend([0.0] * 60, after)
        found += verdict is not None and verdict.outcome == "better"
    assert found / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_weights_test_a_sum_and_leave_the_rest_as_guards() -> None:
    third = Measure(name="short", two_valued=True)
    gate = Gate(gamma=0, block=25)
    comparison = gate.begin(100, [*SEVERAL, third], weights={"right": 0.5, "cheap": 0.5})
    before = {"right": 0.0, "cheap": -0.8, "short": 1.0}
    verdict = comparison.extend([before] * 100, [{"right": 0.0, "cheap": -0.1, "short": 1.0}] * 100)
    assert verdict is not None
    assert (verdict.outcome, verdict.measure) == ("better", "right + cheap")
    assert verdict.mean == pytest.approx(0.35)
    lost = gate.begin(100, [*SEVERAL, third], weights={"right": 0.5, "cheap": 0.5})
    verdict = lost.extend([before] * 100, [{"right": 0.0, "cheap": -0.1, "short": 0.0}] * 100)
    assert verdict is not None
    assert (verdict.outcome, verdict.measure) == ("worse", "short")


def test_a_rollout_without_one_of_the_scores_is_refused() -> None:
    with pytest.raises(ProblemError, match="no score 'cheap'"):
        Gate().begin(10, SEVERAL).add({"right": 1.0}, {"right": 1.0})


# --- what is declared --------------------------------------------------------------------------------------------------


def test_the_test_follows_from_what_is_declared() -> None:
    gate = Gate()
    assert [gate.kind_of(m) for m in KINDS] == IDS
    assert gate.kind_of(Measure(two_valued=True, score_range=(0, 1))) == "sign"
    assert gate.kind_of(Measure(two_valued=True, score_range=(0, 1), margin=0.1)) == "betting"
    assert Gate(kind="flips").kind_of(RIGHT) == "flips"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gate(alpha=0.0),
        lambda: Gate(gamma=1.0),
        lambda: Gate(block=0),
        lambda: Gate(planned=0.0),
        lambda: Measure(margin=-0.1),
        lambda: Measure(score_range=(1.0, 1.0)),
        lambda: Gate().begin(0),
        lambda: Gate().begin(10, []),
        lambda: Gate().begin(10, [RIGHT], weights={"sore": 1.0}),
    ],
    ids=["alpha", "gamma", "block", "planned", "margin", "range", "no examples", "no scores", "weights"],
)
def test_settings_without_a_meaning_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ProblemError):
        make()


def test_an_ended_comparison_takes_no_further_examples() -> None:
    comparison = Gate(gamma=0).begin(1)
    comparison.add(1.0, 1.0)
    with pytest.raises(ProblemError, match="the comparison ended: not found better after 1 examples"):
        comparison.add(1.0, 1.0)


# --- parts -------------------------------------------------------------------------------------------------------------


def test_bounds_spend_alpha_on_a_walk_of_coins_and_never_more() -> None:
    horizon, alpha = 14, 0.1
    limits = bounds(horizon, alpha)
    crossed = 0
    for signs in itertools.product((1, -1), repeat=horizon):
        walk = list(itertools.accumulate(signs))
        early = any(s >= limits.early[m + 1] for m, s in enumerate(walk))
        crossed += early or walk[-1] >= limits.last[horizon]
    assert alpha / 2 < crossed / 2**horizon <= alpha


def test_sizes_are_cut_at_a_quantile_of_those_that_are_not_zero() -> None:
    assert winsorised([0.0] * 50 + [1.0] * 9 + [-50.0]) == [0.0] * 50 + [1.0] * 9 + [-1.0]
    assert winsorised([0.0, 0.0]) == [0.0, 0.0]


def test_one_wild_example_decides_nothing() -> None:
    comparison = Gate(gamma=0).begin(40, [FREE])
    assert outcome(comparison, (1000.0, *(-0.1, 0.1) * 19, 0.1)) == "undecided"


def test_the_smallest_gain_shrinks_with_the_examples_and_is_what_the_gate_finds() -> None:
    gains = [smallest_gain(n) for n in (20, 50, 100, 400)]
    assert all(gain is not None for gain in gains)
    assert gains == sorted((g for g in gains if g is not None), reverse=True)
    found = Gate.claim().characteristics(*pair_chances(0.5, 0.5 + (gains[2] or 0.0)), 100).better
    assert found == pytest.approx(0.8, abs=0.01)
    assert smallest_gain(4) is None


def test_above_100_examples_the_smallest_gain_is_near_the_exact_one() -> None:
    gain = smallest_gain(225)
    assert gain is not None
    assert Gate.claim().characteristics(*pair_chances(0.5, 0.5 + gain), 225).better == pytest.approx(0.8, abs=0.03)


def test_every_trial_has_an_order_of_its_own_that_repeats() -> None:
    numbers = list(range(30))
    first, second = trial_order(numbers, 7, 1), trial_order(numbers, 7, 2)
    assert sorted(first) == sorted(second) == numbers
    assert first != second
    assert first == trial_order(numbers[::-1], 7, 1)


@pytest.mark.parametrize("kind", ["flips", "betting", "sign"])
def test_a_lenient_gate_finds_any_gain_in_the_end_and_nothing_better_in_a_loss(kind: Kind) -> None:
    gate = Gate(alpha=0.9, gamma=0.0, block=4, kind=kind)
    ups, downs = [0.02, -0.01, 0.01, 0.01], [-0.02, 0.01, -0.01, -0.01]
    measure = Measure(score_range=(0.0, 1.0))
    assert gate.begin(4, [measure]).extend([0.5] * 4, [0.5 + d for d in ups]).accepted  # type: ignore[union-attr]
    assert not gate.begin(4, [measure]).extend([0.5] * 4, [0.5 + d for d in downs]).accepted  # type: ignore[union-attr]
