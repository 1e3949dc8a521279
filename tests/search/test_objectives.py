"""What candidates are worth besides their score, and which of them no other beats in everything."""

import pytest

from trace_opt.core.parameter import Demonstrations, Parameter
from trace_opt.core.rollout import Cost
from trace_opt.search.candidate import Candidate, Score
from trace_opt.search.objectives import floors, front_rows, length, means, measured

PARAMETERS = {
    "prompt": Parameter("", name="prompt"),
    "shown": Parameter(Demonstrations(2), name="shown"),
    "number": Parameter(1, name="number"),
}


def candidate(number: int, *scores: Score, prompt: str = "", shown: Demonstrations | None = None) -> Candidate:
    values = {"prompt": prompt, "shown": shown or Demonstrations(2), "number": 1}
    return Candidate(number, values, str(number), scores=dict(enumerate(scores)))


def several(right: float, brief: float) -> Score:
    return Score(right, {"right": right, "brief": brief})


def test_every_score_that_a_guide_gives_has_a_mean_and_a_failure_counts_as_the_lowest() -> None:
    one = candidate(1, several(1, 0.25), several(0, 0.75))
    other = candidate(2, several(0.5, 0.5), Score(None))
    lowest = floors([one, other], [0, 1])
    assert lowest == {"right": 0, "brief": 0.25}
    assert means(one, [0, 1], lowest) == {"right": 0.5, "brief": 0.5}
    assert means(other, [0, 1], lowest) == {"right": 0.25, "brief": 0.375}


def test_where_there_is_one_score_there_are_no_others() -> None:
    one = candidate(1, Score(1.0))
    assert means(one, [0], floors([one], [0])) == {}


def test_costs_are_means_over_rollouts_and_a_price_that_is_unknown_stays_so() -> None:
    one = candidate(1, Score(1, None, Cost(2, 10, 5, 0.5), 1.0), Score(1, None, Cost(1, 20, 5, None), 3.0))
    found = measured(["calls", "tokens", "seconds", "usd"], one, [0, 1], PARAMETERS)
    assert found == {"calls": 1.5, "tokens": 20, "seconds": 2.0, "usd": None}


def test_the_length_is_that_of_texts_and_demonstrations() -> None:
    bare = candidate(1, prompt="x" * 7)
    assert length(bare, PARAMETERS) - length(candidate(2), PARAMETERS) == 7
    shown = candidate(3, shown=Demonstrations(2, ({"q": "a" * 50},)))
    assert length(shown, PARAMETERS) > length(bare, PARAMETERS) + 40


def test_only_what_nobody_beats_in_everything_is_on_the_front() -> None:
    better = candidate(1, several(1, 0), prompt="long" * 9)
    shorter = candidate(2, several(0, 0), prompt="x")
    beaten = candidate(3, several(0, 0), prompt="xx")
    partly = Candidate(4, better.values, "4")
    rows = front_rows([better, shorter, beaten, partly], [0], PARAMETERS, ["length"])
    assert [row["candidate"] for row in rows] == [1, 2]
    assert rows[0]["scores"] == {"right": 1, "brief": 0}
    assert rows[0]["n"] == 1
    assert rows[1]["length"] == length(shorter, PARAMETERS)


def test_without_examples_there_is_no_front() -> None:
    assert front_rows([candidate(1)], [], PARAMETERS, []) == []


@pytest.mark.parametrize("score", [0.25, -3.0])
def test_a_failed_rollout_counts_as_the_lowest_score_seen(score: float) -> None:
    rows = front_rows([candidate(1, Score(score), Score(None))], [0, 1], PARAMETERS, [])
    assert rows[0]["score"] == score
