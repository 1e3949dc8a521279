"""Which worked examples to show, and in what order.

Candidates are the labelled training examples themselves and training rollouts that scored well. A set is drawn
balanced over the classes where the examples have any: a set with one class in the majority teaches a small model to
answer with that class. No model is asked and nothing is generated here.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.codec import canonical
from trace_opt.core.parameter import Demonstrations
from trace_opt.optim.base import Optimizer, Proposal, Trial

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.core.rollout import Rollout, Rollouts

_LABEL_NAMES = ("label", "answer", "class", "category", "topic", "target", "output", "y")
_ATTEMPTS = 200  # few are needed unless nearly every set has been tried


class Demos(Optimizer):
    """Proposes demonstration sets, drawn from what the run already knows.

    Alone it changes one set at a time, by a fresh draw or by a small change to the incumbent's set. In
    `Categorical(sources=[Demos()])` it gives a whole family of sets once, which is then searched jointly with the
    other parameters.

    Args:
        sets: How many sets `family` gives for each parameter.
        labelled: Whether a training example is a worked example as it stands. If False, only rollouts that scored
            well are shown, each as its example with the workflow's output added under the key `"output"`.
        good: The score from which a rollout counts as good; by default any above the mean of those seen.
    """

    def __init__(self, *, sets: int = 8, labelled: bool = True, good: float | None = None) -> None:
        super().__init__()
        if sets < 1:
            raise ValueError(f"Demos got sets={sets!r}; ask for at least one set")
        self._sets = sets
        self._labelled = labelled
        self._good = good

    def handles(self, parameter: Parameter[Any]) -> bool:
        """Demonstrations."""
        return parameter.kind == "demonstrations"

    async def propose(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
    ) -> Proposal:
        """Suggest one set that has not been tried, for one of the parameters."""
        pool = self._pool(rollouts)
        rng = random.Random(f"demos/{rollouts.seed}")  # noqa: S311 # reproducible, not a secret
        for parameter in rng.sample(parameters, len(parameters)):
            current = parameter.value
            tried = {canonical(current), *_tried(parameter.name, history)}
            drawn = (
                pool.varied(rng, current) if rng.random() < 0.5 else pool.draw(rng, current.k) for _ in range(_ATTEMPTS)
            )
            fresh = _first_new(drawn, current.k, tried)
            if fresh is not None:
                reason = f"show {len(fresh)} examples instead of {len(current)}{pool.described(fresh)}"
                return Proposal({parameter.name: fresh}, reason)
        return Proposal(reason="there is no demonstration set left to try")

    async def family(
        self,
        parameters: Sequence[Parameter[Any]],
        rollouts: Rollouts,
        history: Sequence[Trial],  # noqa: ARG002 # other sources learn from it
    ) -> Mapping[str, Sequence[Demonstrations]]:
        """Sets worth searching for each parameter, all distinct and none the value in force.

        Args:
            parameters: Demonstrations parameters.
            rollouts: As for `propose`; `rollouts.seed` decides the draw.
            history: Not used; the family does not depend on what was tried.

        Returns:
            Up to `sets` sets by full parameter name; fewer where the examples allow no more.
        """
        pool = self._pool(rollouts)
        return {parameter.name: self._family(parameter, pool, rollouts.seed) for parameter in parameters}

    def _family(self, parameter: Parameter[Any], pool: Pool, seed: int) -> list[Demonstrations]:
        rng = random.Random(f"demos/{seed}/{parameter.name}")  # noqa: S311 # reproducible, not a secret
        current: Demonstrations = parameter.value
        sizes = pool.sizes(current.k)
        seen = {canonical(current)}
        found: list[Demonstrations] = []
        for i in range(self._sets if sizes else 0):
            # every size is drawn from all candidates first, then from those that the incumbent gets right
            good = (i // len(sizes)) % 2 == 1
            drawn = (pool.draw(rng, current.k, size=sizes[i % len(sizes)], good=good) for _ in range(_ATTEMPTS))
            fresh = _first_new(drawn, current.k, seen)
            if fresh is not None:
                seen.add(canonical(fresh))
                found.append(fresh)
        return found

    def _pool(self, rollouts: Rollouts) -> Pool:
        finished = [r for r in rollouts if r.example is not None and r.score is not None]
        good = [r for r in finished if cast("float", r.score) >= self._threshold(finished)]
        train = rollouts.train or [r.example for r in rollouts if r.example is not None]
        key = label_key(train, good)
        shown = [_worked(rollout, key) for rollout in good] if not self._labelled else [r.example for r in good]
        return Pool(_distinct(train if self._labelled else shown), _distinct(shown), class_key(train, key))

    def _threshold(self, rollouts: Sequence[Rollout]) -> float:
        scores = [cast("float", rollout.score) for rollout in rollouts]
        if self._good is not None or not scores:
            return self._good or 0.0
        mean = sum(scores) / len(scores)
        # scores that are all equal say nothing of which is better; a positive one still says "right"
        return min((s for s in scores if s > mean), default=max(mean, 5e-324))


@dataclass(frozen=True, slots=True)
class Pool:
    """The candidates for demonstrations.

    Attributes:
        examples: All of them.
        good: Those whose rollouts scored well.
        key: Where an example holds its class; None where there are no classes.
    """

    examples: tuple[Any, ...]
    good: tuple[Any, ...]
    key: Hashable | None

    def sizes(self, k: int) -> list[int]:
        """Set sizes worth trying with at most `k` examples: whole rounds over the classes, or k and its half."""
        most = min(k, len(self.examples))
        classes = len(self.classes(self.examples))
        if 1 < classes <= most:
            return list(range(classes, most + 1, classes))
        return sorted({most, most // 2} - {0})

    def classes(self, examples: Sequence[Any]) -> dict[Hashable, list[Any]]:
        """Examples by class, in the order of their first occurrence; one class where there are none."""
        found: dict[Hashable, list[Any]] = {}
        for example in examples:
            found.setdefault(None if self.key is None else _fields(example).get(self.key), []).append(example)
        return found

    def draw(self, rng: random.Random, k: int, *, size: int | None = None, good: bool = False) -> list[Any]:
        """A random set in random order, its classes as equal in number as the size allows.

        Args:
            rng: All chance comes from it.
            k: The most examples allowed.
            size: How many to draw; by default one of `sizes(k)`.
            good: Whether to prefer candidates that scored well; the others fill up classes that lack them.
        """
        sizes = self.sizes(k)
        if not sizes:
            return []
        size = rng.choice(sizes) if size is None else size
        preferred = {canonical(example) for example in self.good} if good else frozenset[str]()
        queues: list[list[Any]] = []
        for members in self.classes(self.examples).values():
            shuffled = rng.sample(members, len(members))
            queues.append(sorted(shuffled, key=lambda e: canonical(e) in preferred) if good else shuffled)
        drawn: list[Any] = []
        while len(drawn) < size and any(queues):
            for queue in rng.sample(queues, len(queues)):
                if queue and len(drawn) < size:
                    drawn.append(queue.pop())
        return rng.sample(drawn, len(drawn))

    def varied(self, rng: random.Random, current: Demonstrations) -> list[Any]:
        """A small change to a set: another order, or one example exchanged for another of its class."""
        shown = list(current)
        if not shown:
            return self.draw(rng, current.k)
        place = rng.randrange(len(shown))
        held = {canonical(example) for example in shown}
        label = next(iter(self.classes([shown[place]])))
        others = [e for e in self.classes(self.examples).get(label, []) if canonical(e) not in held]
        if others and rng.random() < 0.5:
            shown[place] = rng.choice(others)
            return shown
        return rng.sample(shown, len(shown))

    def described(self, shown: Demonstrations) -> str:
        """Which classes a set shows, in its order."""
        if self.key is None or not len(shown):
            return ""
        return ": " + ", ".join(str(_fields(example).get(self.key)) for example in shown)


def label_key(examples: Sequence[Any], good: Sequence[Rollout]) -> Hashable | None:
    """Where an example holds its right answer.

    The field that equals the output of most rollouts that scored well, else a field by its usual name.

    Args:
        examples: Training examples: mappings, sequences, or anything else (which has no fields).
        good: Rollouts that scored well.

    Returns:
        A key or position, or None.
    """
    keys = _common_keys(examples)
    agreeing = {key: sum(_equal(_fields(r.example).get(key), r.output) for r in good) for key in keys}
    best = max(agreeing, key=agreeing.__getitem__, default=None)
    if best is not None and agreeing[best] * 2 > len(good):
        return best
    return next((name for name in _LABEL_NAMES if name in keys), None)


def class_key(examples: Sequence[Any], label: Hashable | None) -> Hashable | None:
    """Where an example holds its class: its answer, or else its last field, where its values are few and recur.

    Args:
        examples: Training examples.
        label: What `label_key` found.

    Returns:
        A key or position; None where no field divides the examples into classes.
    """
    keys = _common_keys(examples)
    for key in [label] if label is not None else reversed(keys):
        values = [_fields(example)[key] for example in examples if key in _fields(example)]
        if all(isinstance(value, (str, int)) for value in values):
            distinct = len(set(values))
            if 1 < distinct <= min(50, len(values) // 2):
                return key
    return None


def _fields(example: Any) -> Mapping[Hashable, Any]:
    if isinstance(example, Mapping):
        return cast("Mapping[Hashable, Any]", example)
    return dict(enumerate(cast("Sequence[Any]", example))) if isinstance(example, (tuple, list)) else {}


def _common_keys(examples: Sequence[Any]) -> list[Hashable]:
    """The fields that every example has, in their order."""
    if not examples:
        return []
    return [key for key in _fields(examples[0]) if all(key in _fields(example) for example in examples)]


def _equal(left: Any, right: Any) -> bool:
    return type(left) is type(right) and canonical(left) == canonical(right)


def _worked(rollout: Rollout, label: Hashable | None) -> Any:
    """A rollout as a worked example: its example, completed by the output unless it holds that already."""
    example = rollout.example
    if label is not None and _equal(_fields(example).get(label), rollout.output):
        return example
    if isinstance(example, Mapping):
        return {**cast("Mapping[str, Any]", example), "output": rollout.output}
    return (example, rollout.output)


def _distinct(examples: Sequence[Any]) -> tuple[Any, ...]:
    return tuple({canonical(example): example for example in examples}.values())


def _tried(name: str, history: Sequence[Trial]) -> Iterator[str]:
    for trial in history:
        for values in (trial.base, trial.proposal.values):
            if name in values:
                yield canonical(values[name])


def _first_new(drawn: Iterator[list[Any]], k: int, seen: set[str]) -> Demonstrations | None:
    for examples in drawn:
        shown = Demonstrations(k, tuple(examples))
        if len(shown) and canonical(shown) not in seen:
            return shown
    return None
