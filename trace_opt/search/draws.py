"""Several rollouts of one example where the workflow itself draws: their mean is the score, and a round of them is drawn anew.

A candidate that was accepted looks better than it is, for it was accepted by how its draws fell. After every acceptance
candidates are therefore compared on a further round of draws, the same for both sides, so that the new incumbent meets the
next candidate with scores that nobody has chosen it by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trace_opt.search.candidate import Candidate, Score, merged
from trace_opt.search.measures import weighted
from trace_opt.search.splits import Data

if TYPE_CHECKING:
    from trace_opt.core.rollout import Rollout


class Draws:
    """How often validation and test examples are run, and what their score is.

    Args:
        data: The examples.
        repeats: How often; with 1 there is one round for ever.
        weights: Of several scores whose sum decides; None for the first.
    """

    def __init__(self, data: Data, repeats: int = 1, weights: Mapping[str, float] | None = None) -> None:
        self.repeats = repeats
        self._weights = weights
        self._data = data
        self._repeated = frozenset((*data.val, *data.test)) if repeats > 1 else frozenset[int]()

    def value(self, rollout: Rollout) -> float | None:
        """The score of a rollout that decides; None where the workflow failed."""
        if self._weights is None or rollout.error is not None:
            return rollout.score
        return weighted(rollout.feedback.score, self._weights)

    def of(self, candidate: Candidate, number: int) -> range:
        """Which repeats of an example make up a candidate's score on it."""
        if number not in self._repeated:
            return range(1)
        # the test is one round, whatever the search has come to
        first = candidate.round * self.repeats if number in self._data.val else 0
        return range(first, first + self.repeats)

    def put(self, candidate: Candidate, number: int, repeat: int, score: Score) -> None:
        """Take what a rollout came to; the example is scored once all its draws are there."""
        if number not in self._repeated:
            candidate.scores.setdefault(number, score)
            return
        candidate.draws.setdefault((number, repeat), score)
        self._merge(candidate, number)

    def turn(self, candidate: Candidate, round_: int) -> None:
        """Let a candidate's scores on the validation examples be those of another round."""
        if candidate.round != round_:
            candidate.round = round_
            for number in self._data.val:
                candidate.scores.pop(number, None)
                self._merge(candidate, number)

    def load(self, candidate: Candidate, draws: Mapping[tuple[int, int], Score]) -> None:
        """Give a candidate made anew what was run of it before, by example number and repeat."""
        for (number, repeat), score in draws.items():
            self.put(candidate, number, repeat, score)

    def known(self, candidate: Candidate) -> list[Score]:
        """A candidate's scores on the validation examples, those of every round."""
        if self.repeats == 1:
            return [candidate.scores[number] for number in self._data.val if number in candidate.scores]
        rounds: dict[tuple[int, int], list[Score]] = {}
        for number, repeat in sorted(candidate.draws):
            if number in self._data.val:
                rounds.setdefault((number, repeat // self.repeats), []).append(candidate.draws[number, repeat])
        return [merged(draws) for draws in rounds.values() if len(draws) == self.repeats]

    def _merge(self, candidate: Candidate, number: int) -> None:
        found = [candidate.draws.get((number, repeat)) for repeat in self.of(candidate, number)]
        known = [score for score in found if score is not None]
        if len(known) == len(found):
            candidate.scores.setdefault(number, merged(known))
