"""Intervals and tests against closed forms, and what must hold for any scores."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.search import statistics as stats

scores = st.lists(st.one_of(st.none(), st.floats(-10, 10)), min_size=1, max_size=30)
pairs = scores.flatmap(
    lambda before: st.tuples(
        st.just(before), st.lists(st.one_of(st.none(), st.floats(-10, 10)), min_size=len(before), max_size=len(before))
    )
)


def test_wilson_matches_the_textbook() -> None:
    low, high = stats.wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


@given(st.integers(1, 400), st.data())
def test_wilson_holds_the_share_and_stays_within_bounds(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = stats.wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1


def test_the_sign_test_counts_every_outcome_of_fair_coins() -> None:
    for wins, losses in itertools.product(range(6), range(6)):
        n = wins + losses
        outcomes = [sum(coins) for coins in itertools.product((0, 1), repeat=n)]
        seen = abs(wins - n / 2)
        exact = sum(abs(heads - n / 2) >= seen for heads in outcomes) / len(outcomes)
        assert math.isclose(stats.sign_test(wins, losses), exact)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20))
def test_the_interval_of_a_binary_difference_excludes_zero_exactly_when_the_sign_test_does(
    wins: int, losses: int, ties: int
) -> None:
    differences = [1.0] * wins + [-1.0] * losses + [0.0] * ties
    if not differences:
        return
    low, high = stats.difference_interval(stats.Paired(tuple(differences)))
    p = stats.sign_test(wins, losses)
    if abs(p - 0.05) > 1e-6:
        assert (low > 0 or high < 0) == (p < 0.05)


@pytest.mark.parametrize(("wins", "losses", "ties"), [(13, 0, 3), (0, 2, 6), (83, 15, 102), (0, 0, 50)])
def test_tangos_bounds_are_where_his_score_test_is_of_its_size(wins: int, losses: int, ties: int) -> None:
    """The score statistic with the likeliest shares of losses, found by search, is 1.96 there, and nowhere before 1 or -1."""
    n = wins + losses + ties
    low, high = stats.difference_interval(stats.Paired((1.0,) * wins + (-1.0,) * losses + (0.0,) * ties))
    assert low < (wins - losses) / n < high

    def statistic(delta: float) -> float:
        shares = [i / 20000 for i in range(1, 20000) if i / 20000 + delta > 0 and 2 * i / 20000 + delta < 1]

        def likelihood(lost: float) -> float:
            return wins * math.log(lost + delta) + losses * math.log(lost) + ties * math.log(1 - 2 * lost - delta)

        lost = max(shares, key=likelihood)
        return abs(wins - losses - n * delta) / math.sqrt(n * (2 * lost + delta - delta * delta))

    for bound in (low, high):
        if bound:  # it is 0 where the exact test is milder
            assert statistic(bound) == pytest.approx(1.96, abs=0.02)


@pytest.mark.parametrize(("win", "loss"), [(0.4, 0.0), (0.42, 0.07), (0.1, 0.1), (0.05, 0.3)])
@pytest.mark.parametrize("n", [40, 200])
def test_each_bound_of_a_binary_difference_covers_as_often_as_it_says(n: int, win: float, loss: float) -> None:
    """Summed over all outcomes, not drawn. Bounds that take the number of examples that differ as given cover .54 here."""
    covers = [0.0, 0.0]
    for wins in range(n + 1):
        for losses in range(n - wins + 1):
            chance = math.exp(
                math.lgamma(n + 1) - math.lgamma(wins + 1) - math.lgamma(losses + 1) - math.lgamma(n - wins - losses + 1)
                + wins * math.log(win) + (losses * math.log(loss) if loss else -math.inf * losses if losses else 0.0)
                + (n - wins - losses) * math.log(1 - win - loss)
            )  # fmt: skip
            if chance < 1e-7:
                continue
            pairs = stats.Paired((1.0,) * wins + (-1.0,) * losses + (0.0,) * (n - wins - losses))
            low, high = stats.difference_interval(pairs, 0.1)
            covers[0] += chance * (low <= win - loss)
            covers[1] += chance * (win - loss <= high)
    assert min(covers) > 0.935


@given(pairs)
def test_swapping_the_sides_of_a_comparison_turns_its_sign(
    given_pair: tuple[list[float | None], list[float | None]],
) -> None:
    before, after = given_pair
    forward, backward = stats.paired(before, after), stats.paired(after, before)
    assert forward.differences == tuple(-d for d in backward.differences)
    assert (forward.wins, forward.losses) == (backward.losses, backward.wins)


def test_a_failure_loses_by_the_largest_difference_seen() -> None:
    assert stats.paired([0.0, 1.0, 0.5], [0.25, None, 0.5]).differences == (0.25, -0.25, 0.0)
    assert stats.paired([None, 1.0], [None, None]).differences == (0.0, -1.0)
    assert stats.paired([None], [0.3]).differences == (1.0,)


@given(scores, st.floats(-20, -10))
def test_a_mean_lies_between_the_floor_and_the_highest_score(given_scores: list[float | None], floor: float) -> None:
    mean = stats.mean(given_scores, floor)
    assert floor - 1e-9 <= mean <= max([s for s in given_scores if s is not None], default=floor) + 1e-9


def test_the_bootstrap_covers_the_true_mean_and_repeats() -> None:
    import random

    rng = random.Random(1)
    hits = 0
    for _ in range(50):
        values = [rng.gauss(2.0, 1.0) for _ in range(40)]
        low, high = stats.bootstrap(values)
        hits += low <= 2.0 <= high
    assert 43 <= hits <= 50
    assert stats.bootstrap(values) == (low, high)


def test_sign_flips_are_rarely_small_where_nothing_differs_and_small_where_much_does() -> None:
    import random

    rng = random.Random(9)
    small = sum(stats.sign_flips([rng.gauss(0, 1) for _ in range(20)]) <= 0.05 for _ in range(100))
    assert 1 <= small <= 11
    assert stats.sign_flips([abs(rng.gauss(1, 0.3)) for _ in range(40)]) < 0.001
    assert stats.sign_flips([0.0, 0.0]) == 1.0


def test_shrunken_means_prefer_the_well_known_candidate_to_a_lucky_one() -> None:
    means, counts = [0.50, 0.55, 0.60, 0.58], [100, 100, 10, 100]
    shrunk = stats.shrunken(means, counts)
    assert max(range(4), key=shrunk.__getitem__) == 3
    assert shrunk[2] < means[2]


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 200)), min_size=1, max_size=8))
def test_shrunken_means_stay_between_the_extremes_and_keep_the_order_of_equal_counts(
    given_means: list[tuple[float, int]],
) -> None:
    means = [mean for mean, _ in given_means]
    shrunk = stats.shrunken(means, [count for _, count in given_means])
    assert all(min(means) - 1e-9 <= s <= max(means) + 1e-9 for s in shrunk)
    even = stats.shrunken(means, [10] * len(means))
    order = sorted(range(len(means)), key=lambda i: means[i])
    assert all(even[a] <= even[b] + 1e-9 for a, b in itertools.pairwise(order))


def test_many_values_get_the_normal_interval() -> None:
    values = [0.25, 0.75] * 600
    low, high = stats.bootstrap(values)
    assert high - low == pytest.approx(2 * stats.Z95 * 0.25 / math.sqrt(1200), rel=0.01)
