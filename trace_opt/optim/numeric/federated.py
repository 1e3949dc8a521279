"""Several clients, each with a function of its own that only it can query, look for the minimum of the mean.

Source: FZooS (arXiv 2308.04077). A client steps along the gradient of its own surrogate. Left at that, it runs towards its
own minimum, and the average of where the clients end is not the minimum of the mean. So each client also sends its
surrogate as the weights of random Fourier features, which can be averaged, and a step uses

    own gradient + (gradient of the averaged surrogate - gradient of the own surrogate as it was sent)

that is the mean's gradient, brought up to date by what the client has learned since. No query leaves a client.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from trace_opt.optim.numeric.gaussian import LENGTHSCALES, VARIANCE, fit, nearest
from trace_opt.optim.numeric.moments import Moments

if TYPE_CHECKING:
    from torch import Tensor

Client = Callable[["Tensor"], "Tensor"]
"""Values [m] of points [m, d]; smaller is better."""


class Map(Protocol):
    """Runs a function on every item and gives what came of them in their order: `map`, an executor's `map`."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterable[Any]:
        """What the function gives for each item."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """Settings of `federate`.

    Args:
        rounds: How often the clients meet.
        steps: Steps and queries of each client between two meetings.
        lr: Adam's learning rate at the start; it falls linearly to 0 over all rounds.
        correction: Whether steps are corrected towards the mean's gradient.
        features: Random Fourier features in which surrogates are sent.
        start: Queries of each client before the first step, within `within` of the start.
        within: See `start`.
        nearest: Surrogates are fitted to this many queries nearest to the iterate.
        lengthscales: Among which each client's likelihood chooses for itself, and all clients' together for what is sent.
        variance: The noise's share of the variance of values.

    Raises:
        ValueError: a number is too small to mean anything.
    """

    rounds: int = 15
    steps: int = 15
    lr: float = 0.1
    correction: bool = True
    features: int = 2000
    start: int = 10
    within: float = 0.1
    nearest: int = 100
    lengthscales: Sequence[float] = LENGTHSCALES
    variance: float = VARIANCE

    def __post_init__(self) -> None:
        least = {"rounds": 1, "steps": 1, "features": 1, "start": 2, "nearest": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"Federation got {name}={getattr(self, name)!r}; give at least {bound}")


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Random Fourier features of the kernel exp(-|x - z|^2 / (2 l^2)): sqrt(2/M) cos(frequencies x + phases).

    Source: Rahimi and Recht, "Random features for large-scale kernel machines" (2007).

    Attributes:
        frequencies: N(0, 1 / l^2), [M, d].
        phases: Uniform in [0, 2 pi), [M].
    """

    frequencies: Tensor
    phases: Tensor

    @classmethod
    def drawn(cls, count: int, size: int, lengthscale: float, seed: int) -> Features:
        """The same for everyone who knows the seed, so that only weights have to be sent."""
        import torch

        chance = torch.Generator().manual_seed(seed)
        frequencies = torch.randn(count, size, dtype=torch.float64, generator=chance) / lengthscale
        return cls(frequencies, 2 * math.pi * torch.rand(count, dtype=torch.float64, generator=chance))

    def of(self, points: Tensor) -> Tensor:
        """Features of points [n, d], [n, M]."""
        return math.sqrt(2 / len(self.phases)) * (points @ self.frequencies.T + self.phases).cos()

    def weights(self, points: Tensor, values: Tensor, variance: float) -> Tensor:
        """Ridge regression of standardised values, in the values' units, [M]; constants are left out."""
        import torch

        scale = float(values.std(correction=0)) or 1.0
        features = self.of(points)
        gram = features @ features.T + variance * torch.eye(len(points), dtype=points.dtype)
        linalg: Any = torch.linalg
        solved = linalg.solve(gram, (values - values.mean()) / scale)
        return scale * (features.T @ solved)

    def gradient(self, at: Tensor, weights: Tensor) -> Tensor:
        """Gradient at one point [d] of the function with these weights, [d]."""
        slopes = (self.frequencies @ at + self.phases).sin() * weights
        return -math.sqrt(2 / len(self.phases)) * (slopes @ self.frequencies)


@dataclass(frozen=True, slots=True, eq=False)
class Federated:
    """What came of `federate`.

    Attributes:
        point: The best point the clients agreed on, [d].
        value: The weighted mean of their functions there.
        values: The same after every round, that of the start first.
        queries: Queries of each client.
    """

    point: Tensor
    value: float
    values: tuple[float, ...]
    queries: int


@dataclass(frozen=True, slots=True, eq=False)
class _Shared:
    """What the server tells everyone after a round."""

    features: Features
    weights: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """One client, as it travels to where it runs."""

    client: Client
    seed: int
    points: Tensor
    values: Tensor
    sent: Tensor | None = None
    likelihoods: Tensor | None = None
    at: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Round:
    """One round of one client."""

    state: _State
    settings: Federation
    start: Tensor
    number: int
    shared: _Shared | None
    project: Callable[[Tensor], Tensor]


def federate(
    clients: Sequence[Client], start: Tensor, *, settings: Federation | None = None,
    weights: Sequence[float] | None = None, project: Callable[[Tensor], Tensor] | None = None, seed: int = 0,
    map: Map = map,
) -> Federated:  # fmt: skip
    """Look for the minimum of the clients' weighted mean.

    Args:
        clients: Each gives the values of its own function; picklable where `map` runs them in other processes.
        start: Where all begin, [d].
        settings: See `Federation`.
        weights: The clients' weights in the mean; equal by default.
        project: Nearest allowed points of points [m, d]; all are allowed by default.
        seed: Decides all chance.
        map: Runs the clients of a round, at once where it can.

    Raises:
        ValueError: there is no client, or another number of weights.
    """
    import torch

    settings = settings or Federation()
    shares = [1.0] * len(clients) if weights is None else list(weights)
    if not clients or len(shares) != len(clients) or not sum(shares) > 0:
        raise ValueError(
            f"federate got {len(clients)} clients and weights {weights!r}; give one above 0 to each client"
        )
    mean = torch.tensor(shares, dtype=torch.float64) / sum(shares)
    project = project or _anywhere
    at = project(start.to(torch.float64)[None])[0]
    empty = at.new_empty(0, len(at)), at.new_empty(0)
    states = [_State(client, seed * 7919 + i, *empty) for i, client in enumerate(clients)]
    shared: _Shared | None = None
    best, value, values = at, math.nan, list[float]()
    for number in range(-1, settings.rounds):
        tasks = [_Round(state, settings, best, number, shared, project) for state in states]
        states = list(map(_begin if number < 0 else _advance, tasks))
        at = best if number < 0 else project((mean @ torch.stack([cast("Tensor", s.at) for s in states]))[None])[0]
        answers = list(map(_asked, [(state, at) for state in states]))
        states = [state for state, _ in answers]
        here = float(mean @ torch.stack([given for _, given in answers]))
        if number < 0 or here < value:
            best, value = at, here
        values.append(value)
        if settings.correction:
            shared, states = _exchange(states, mean, best, settings, seed + number + 1, map)
    return Federated(best, value, tuple(values), len(states[0].points))


def _exchange(
    states: Sequence[_State], mean: Tensor, at: Tensor, settings: Federation, seed: int, over: Map
) -> tuple[_Shared, list[_State]]:  # fmt: skip
    """One lengthscale for all, and every client's surrogate in the features it belongs to."""
    import torch

    likelihoods = torch.stack(list(over(_likelihoods, [(state, at, settings) for state in states])))
    lengthscale = settings.lengthscales[int(likelihoods.sum(0).argmax())]
    features = Features.drawn(settings.features, len(at), lengthscale, seed)
    sent: list[Tensor] = list(over(_weights, [(state, at, settings, features) for state in states]))
    shared = _Shared(features, mean @ torch.stack(sent))
    return shared, [replace(state, sent=weights) for state, weights in zip(states, sent, strict=True)]


def _begin(task: _Round) -> _State:
    """The first queries, around the start."""
    import torch

    settings, state = task.settings, task.state
    chance = torch.Generator().manual_seed(state.seed)
    noise = torch.rand(settings.start, len(task.start), dtype=torch.float64, generator=chance) * 2 - 1
    return _queried(state, task.project(task.start + settings.within * noise))


def _advance(task: _Round) -> _State:
    """A round of steps, each with one query at a distance from the iterate that the step's length decides."""
    import torch

    settings, state, at = task.settings, task.state, task.start
    chance = torch.Generator().manual_seed(state.seed + 104729 * (task.number + 1))
    moments = Moments.none(at)
    for step in range(settings.steps):
        done = (task.number * settings.steps + step) / (settings.rounds * settings.steps)
        lr = settings.lr * (1 - done)
        moments = moments.after(_gradient(state, at, settings, task.shared))
        at = task.project((at + lr * moments.direction)[None])[0]
        noise = torch.randn(1, len(at), dtype=torch.float64, generator=chance)
        state = _queried(state, task.project(at + lr * noise))
    return replace(state, at=at)


def _gradient(state: _State, at: Tensor, settings: Federation, shared: _Shared | None) -> Tensor:
    near = nearest(state.points, at, settings.nearest)
    surrogate = fit(
        state.points[near], state.values[near], lengthscales=settings.lengthscales, variances=(settings.variance,)
    )
    own = surrogate.gradient(at)
    if shared is None or state.sent is None:
        return own
    return own + shared.features.gradient(at, shared.weights - state.sent)


def _queried(state: _State, points: Tensor) -> _State:
    import torch

    values = state.client(points).to(torch.float64)
    return replace(state, points=torch.cat([state.points, points]), values=torch.cat([state.values, values]))


def _asked(given: tuple[_State, Tensor]) -> tuple[_State, Tensor]:
    """A client's value at one point."""
    state = _queried(given[0], given[1][None])
    return state, state.values[-1]


def _likelihoods(given: tuple[_State, Tensor, Federation]) -> Tensor:
    """How likely each lengthscale is by a client's queries, [number of lengthscales]."""
    import torch

    state, at, settings = given
    near = nearest(state.points, at, settings.nearest)
    points, values = state.points[near], state.values[near]
    fits = [fit(points, values, lengthscales=[one], variances=[settings.variance]) for one in settings.lengthscales]
    return torch.tensor([one.likelihood for one in fits], dtype=torch.float64).nan_to_num(nan=-torch.inf)


def _weights(given: tuple[_State, Tensor, Federation, Features]) -> Tensor:
    """What a client sends."""
    state, at, settings, features = given
    near = nearest(state.points, at, settings.nearest)
    return features.weights(state.points[near], state.values[near], settings.variance)


def _anywhere(points: Tensor) -> Tensor:
    return points
