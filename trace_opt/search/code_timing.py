"""How long summed gradients take under each scheme of `search/codes.py`: workers that straggle in bursts, simulated.

A round ends once the scheme can do without those that are missing, but not before patience does, as in arXiv 2211.13802; all
schemes meet the same stragglers. What comes out depends on how round time grows with the load, so that is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trace_opt.search.codes import Code, Sequential, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """When workers answer: a round takes `fixed + per_load * load` seconds, jittered, and longer while a worker straggles.

    Attributes:
        n: Workers.
        enter, stay: Chances that a worker begins to straggle in a round, and that it goes on in the next.
        slow: What a straggler's time is multiplied by.
        jitter: Uniform, to both sides, as a share.
        fixed: Seconds that do not depend on the load.
        per_load: Seconds for the whole data on one worker.
        patience: A round is over (1 + patience) times the fastest worker's time after its start, if the scheme allows it.
    """

    n: int = 32
    enter: float = 0.03
    stay: float = 0.5
    slow: float = 8.0
    jitter: float = 0.1
    fixed: float = 0.5
    per_load: float = 60.0
    patience: float = 1.0

    def times(self, rounds: int, seed: int) -> tuple[NDArray[np.bool_], Vector]:
        """Who straggles, and the jitter of each worker, both rounds by workers; the same for every scheme."""
        import numpy as np

        rng = np.random.default_rng(seed)
        late = np.zeros((rounds, self.n), dtype=bool)
        now = np.zeros(self.n, dtype=bool)
        for number in range(rounds):
            now = rng.random(self.n) < np.where(now, self.stay, self.enter)
            late[number] = now
        return late, rng.uniform(1 - self.jitter, 1 + self.jitter, (rounds, self.n))


def round_times(cluster: Cluster, load: float | Vector, late: NDArray[np.bool_], jitter: Vector) -> Vector:
    """How long each worker takes for one round, in seconds."""
    import numpy as np

    return (cluster.fixed + cluster.per_load * load) * jitter * np.where(late, cluster.slow, 1.0)


def time_code(code: Code, cluster: Cluster, rounds: int, seed: int, *, eager: bool = False) -> float:
    """Seconds for one job a round under a code.

    Args:
        code: The code.
        cluster: When workers answer.
        rounds: How many.
        seed: Decides who straggles.
        eager: Whether a round ends as soon as the sum is known; else, as in the paper, not before patience ends.
    """
    late, jitter = cluster.times(rounds, seed)
    total = 0.0
    for number in range(rounds):
        times = round_times(cluster, code.load, late[number], jitter[number])
        total += _ended(times, code.enough, -1.0 if eager else cluster.patience)
    return total


def _ended(times: Vector, enough: Callable[[frozenset[int]], bool], patience: float) -> float:
    """When a round ends; with a patience below 0 as soon as what arrived is enough."""
    order = [int(worker) for worker in times.argsort(kind="stable")]
    limit = (1 + patience) * float(times[order[0]])
    arrived: set[int] = set()
    for place, worker in enumerate(order):
        arrived.add(worker)
        following = float(times[order[place + 1]]) if place + 1 < len(order) else math.inf
        if following > limit and enough(frozenset(arrived)):
            # the master looks when patience ends, or at the answer that makes up what was missing then
            everybody = len(arrived) == len(order)
            return float(times[worker]) if everybody else max(limit, float(times[worker]))
    return float(times[order[-1]])


class Window:
    """The (B, W, l)-bursty straggler model over rounds: whether one more round of stragglers would keep to it.

    In any W rounds at most l workers straggle, and a worker's straggling rounds within a window span at most B.

    Args:
        scheme: Has B, W and l.
    """

    def __init__(self, scheme: Sequential) -> None:
        self._scheme = scheme
        self._past: list[frozenset[int]] = []

    def holds(self, stragglers: frozenset[int]) -> bool:
        """Whether the model still holds if these straggle in the next round."""
        scheme = self._scheme
        window = [*self._past[-(scheme.w - 1) :], stragglers]
        if len({worker for late in window for worker in late}) > scheme.l:
            return False
        for worker in stragglers:
            places = [place for place, late in enumerate(window) if worker in late]
            if places[-1] - places[0] + 1 > scheme.b:
                return False
        return True

    def add(self, stragglers: frozenset[int]) -> None:
        """These straggled."""
        self._past.append(stragglers)


def time_sequential(scheme: Sequential, cluster: Cluster, jobs: int, seed: int) -> float:
    """Seconds for a number of jobs under M-SGC; every job is checked to be known when its delay is over.

    Raises:
        RuntimeError: one is not, which would be a mistake of the scheme.
    """
    rounds = jobs + scheme.delay
    late, jitter = cluster.times(rounds, seed)
    window = Window(scheme)
    everybody = frozenset(range(scheme.n))
    total = 0.0
    for number in range(rounds):
        if number < jobs:
            scheme.begin(number)
        tasks = [scheme.tasks(number, worker) for worker in range(scheme.n)]
        load = _loads(scheme, tasks)
        times = round_times(cluster, load, late[number], jitter[number])
        end = _ended(times, lambda arrived: window.holds(everybody - arrived), cluster.patience)
        arrived = [worker for worker in range(scheme.n) if times[worker] <= end]
        window.add(everybody - frozenset(arrived))
        for worker in arrived:
            scheme.arrived(worker, tasks[worker])
        total += end
        finished = number - scheme.delay
        if finished >= 0:
            if not scheme.known(finished):
                raise RuntimeError(f"job {finished} is not known after {scheme.delay} more rounds")
            scheme.forget(finished)
    return total


def _loads(scheme: Sequential, tasks: Sequence[Sequence[Task]]) -> Vector:
    import numpy as np

    return np.array([sum(scheme.task_load(task) for task in mine) for mine in tasks])
