"""Gradient codes: summed gradients of independent jobs although some workers are late, for the price of repeated work.

A job is a sum of partial gradients, one for each chunk of the data. A code gives every worker more than its share, so that
the sum is known before all have answered. No executor uses one by default, and scores are never coded: a sum is all that
comes out. Four schemes with their exact decoders, and the timing of each in a simulation:

- `Uncoded`: wait for all.
- `Repetition`: groups of r workers have the same r chunks; the first of each group decides.
- `GradientCode`: cyclic code, any s of n may be missing. R. Tandon, Q. Lei, A. Dimakis, N. Karampatziakis, "Gradient
  coding", ICML 2017, arXiv 1612.03301, algorithm 2.
- `Sequential` (M-SGC): a job is spread over rounds; what a straggler owes is made up for later, and only a short coded part
  guards against those that stay late. M. N. Krishnan, E. Ebrahimi, A. Khisti, "Sequential gradient coding for straggler
  mitigation", ICLR 2023, arXiv 2211.13802, section 3.3.

Where round time hardly grows with the load a plain `GradientCode` is the best of the coded ones, and groups are hard to
beat anywhere: `benchmarks/gradient_codes.py` has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

_TOLERANCE = 1e-6


class Code(Protocol):
    """A code over one round: every worker answers with one combination of its chunks.

    Attributes:
        n: Workers.
        chunks: Into how many equal parts the data are divided.
        load: The share of the data that one worker computes in a round.
    """

    n: int
    chunks: int
    load: float

    def weights(self, worker: int) -> Mapping[int, float]:
        """What a worker answers: the factor of each chunk that it computes."""
        ...

    def enough(self, arrived: frozenset[int]) -> bool:
        """Whether the sum is known from these workers' answers."""
        ...

    def decode(self, answers: Mapping[int, Vector]) -> Vector:
        """The sum over all chunks.

        Args:
            answers: By worker.

        Raises:
            ValueError: they are not enough.
        """
        ...


class Uncoded:
    """Every worker has a chunk of its own, and all are waited for.

    Args:
        n: Workers.
    """

    def __init__(self, n: int) -> None:
        self.n = self.chunks = n
        self.load = 1 / n

    def weights(self, worker: int) -> Mapping[int, float]:
        """Its own chunk."""
        return {worker: 1.0}

    def enough(self, arrived: frozenset[int]) -> bool:
        """Only all are."""
        return len(arrived) == self.n

    def decode(self, answers: Mapping[int, Vector]) -> Vector:
        """Their sum."""
        _check(self, answers)
        return sum(answers[worker] for worker in range(1, self.n)) + answers[0]


class Repetition:
    """Groups whose members all compute the same; one answer of each group is enough. Fractional repetition.

    Args:
        n: Workers.
        group: Workers in a group; it divides `n`.

    Raises:
        ValueError: it does not.
    """

    def __init__(self, n: int, group: int) -> None:
        if group < 1 or n % group:
            raise ValueError(f"groups of {group!r} do not divide {n!r} workers; give a divisor")
        self.n = n
        self.group = group
        self.chunks = n // group
        self.load = group / n

    def weights(self, worker: int) -> Mapping[int, float]:
        """The group's chunk."""
        return {worker // self.group: 1.0}

    def enough(self, arrived: frozenset[int]) -> bool:
        """One of each group."""
        return len({worker // self.group for worker in arrived}) == self.chunks

    def decode(self, answers: Mapping[int, Vector]) -> Vector:
        """The sum of one answer of each group."""
        _check(self, answers)
        first = {worker // self.group: answer for worker, answer in sorted(answers.items(), reverse=True)}
        return sum(list(first.values())[1:]) + next(iter(first.values()))


class GradientCode:
    """Any s of n workers may be missing. Cyclic code of Tandon et al., arXiv 1612.03301, algorithm 2.

    Worker w computes chunks w, w+1, ..., w+s (modulo n). The code matrix lies in the null space of a random matrix whose
    columns sum to zero, so the all-ones row is in the span of any n-s of its rows.

    Args:
        n: Workers.
        s: Stragglers tolerated, 0 <= s < n.
        seed: Of the matrix.

    Raises:
        ValueError: s is out of range.
    """

    def __init__(self, n: int, s: int, seed: int = 0) -> None:
        if not 0 <= s < n:
            raise ValueError(f"s is {s!r} with {n!r} workers; give a number from 0 to {n - 1}")
        self.n = self.chunks = n
        self.s = s
        self.load = (s + 1) / n
        self._matrix = _cyclic(n, s, seed)
        self._decoders: dict[frozenset[int], dict[int, float]] = {}

    def weights(self, worker: int) -> Mapping[int, float]:
        """Its row of the code matrix."""
        return {(worker + j) % self.n: float(self._matrix[worker, (worker + j) % self.n]) for j in range(self.s + 1)}

    def enough(self, arrived: frozenset[int]) -> bool:
        """Any n-s are."""
        return len(arrived) >= self.n - self.s

    def decode(self, answers: Mapping[int, Vector]) -> Vector:
        """The combination of n-s answers in which every chunk has the factor one."""
        _check(self, answers)
        used = frozenset(sorted(answers)[: self.n - self.s])
        factors = self._decoders.get(used)
        if factors is None:
            factors = self._decoders[used] = self._decoder(used)
        parts = [factor * answers[worker] for worker, factor in factors.items()]
        return sum(parts[1:]) + parts[0]

    def _decoder(self, used: frozenset[int]) -> dict[int, float]:
        import numpy as np

        workers = sorted(used)
        found, *_ = np.linalg.lstsq(self._matrix[workers].T, np.ones(self.n), rcond=None)
        off = float(np.abs(self._matrix[workers].T @ found - 1).max())
        if off > _TOLERANCE:
            raise ValueError(f"the answers of {workers!r} decode to {off:.0e} only; make the code with another seed")
        return {worker: float(factor) for worker, factor in zip(workers, found, strict=True)}


def _cyclic(n: int, s: int, seed: int) -> Vector:
    import numpy as np

    matrix = np.zeros((n, n))
    if s == 0:
        np.fill_diagonal(matrix, 1.0)
        return matrix
    parity = np.random.default_rng(seed).standard_normal((s, n))
    parity[:, -1] = -parity[:, :-1].sum(axis=1)
    for row in range(n):
        rest = [(row + j) % n for j in range(1, s + 1)]
        matrix[row, row] = 1.0
        matrix[row, rest] = -np.linalg.solve(parity[:, rest], parity[:, row])
    return matrix


def _check(code: Code, answers: Mapping[int, Vector]) -> None:
    if not code.enough(frozenset(answers)):
        raise ValueError(f"{len(answers)} answers of {code.n} workers are not enough to decode; wait for more")


# -- sequential --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker does of one job in one round.

    Attributes:
        job: The job.
        chunk: Of the uncoded part: which of the worker's own chunks; None in the coded part.
        group: Of the coded part: which group; None in the uncoded part.
    """

    job: int
    chunk: int | None = None
    group: int | None = None


class Sequential:
    """M-SGC with parameters (B, W, l), arXiv 2211.13802, section 3.3: round t works on the jobs t-(W-2+B) ... t.

    A job's mini-task m is done in round job+m. The first W-1 are a worker's own chunks, uncoded. In the last B a worker
    that still owes a chunk delivers it, and any other computes its coded combination of group m-(W-1). A job is known once
    every worker has delivered W-1 chunks and each of the B groups has n-l coded answers (where l < n).

    Args:
        n: Workers.
        b: Rounds within which a worker that straggles in a window has all of its straggling.
        w: Rounds of a window.
        l: Distinct stragglers in a window.
        seed: Of the code of the second part.

    Attributes:
        delay: Rounds after its first one in which a job is known at the latest.
        chunks: Equal shares of the data's uncoded and coded parts differ; this many of size `chunk` and `coded_chunk`.

    Raises:
        ValueError: they make no sense.
    """

    def __init__(self, n: int, b: int, w: int, l: int, seed: int = 0) -> None:  # noqa: E741 # the paper's letter
        if not (0 < l <= n and 0 < b < w):
            raise ValueError(
                f"M-SGC got B={b!r}, W={w!r}, l={l!r} for {n!r} workers; 0 < B < W and 0 < l <= n are needed"
            )
        self.n, self.b, self.w, self.l = n, b, w, l
        self.delay = w - 2 + b
        whole = n * (b + (w - 1) * (l + 1)) if l < n else n * (w - 1)
        # the shares of the data in one chunk of a worker's own, and in one of the n chunks of a coded group
        self.chunk = (l + 1) / whole if l < n else 1 / whole
        self.coded_chunk = 1 / whole if l < n else 0.0
        self.load = (w - 1 + b) * self.chunk
        self.code = GradientCode(n, l, seed) if l < n else None
        self._owed: dict[int, list[list[int]]] = {}
        self._groups: dict[int, list[set[int]]] = {}

    def begin(self, job: int) -> None:
        """Begin a job."""
        self._owed[job] = [list(range(self.w - 1)) for _ in range(self.n)]
        self._groups[job] = [set() for _ in range(self.b)]

    def tasks(self, round_: int, worker: int) -> list[Task]:
        """What a worker does in a round: one mini-task of each job under way that needs one from it."""
        found: list[Task] = []
        for job in sorted(self._owed):
            place = round_ - job
            owed = self._owed[job][worker]
            if place < self.w - 1:
                found.append(Task(job, chunk=place))
            elif owed:
                found.append(Task(job, chunk=owed[0]))
            elif self.code is not None:
                found.append(Task(job, group=place - (self.w - 1)))
        return found

    def arrived(self, worker: int, tasks: Sequence[Task]) -> None:
        """A worker's answers of a round are here."""
        for task in tasks:
            if task.chunk is not None:
                self._owed[task.job][worker].remove(task.chunk)
            elif task.group is not None:
                self._groups[task.job][task.group].add(worker)

    def known(self, job: int) -> bool:
        """Whether the sum of a job is known."""
        if any(self._owed[job]):
            return False
        return self.code is None or all(self.code.enough(frozenset(group)) for group in self._groups[job])

    def forget(self, job: int) -> None:
        """End a job."""
        del self._owed[job], self._groups[job]

    def task_load(self, task: Task) -> float:
        """The share of the data that a task computes: a coded one has l+1 chunks of a group."""
        return self.chunk if task.chunk is not None else (self.l + 1) * self.coded_chunk

    def decode(
        self, chunks: Mapping[tuple[int, int], Vector], groups: Sequence[Mapping[int, Vector]]
    ) -> Vector:  # fmt: skip
        """The sum of a job.

        Args:
            chunks: Partial gradients by worker and chunk, all of them.
            groups: Coded answers by worker, for each group.

        Raises:
            ValueError: some are missing.
        """
        missing = self.n * (self.w - 1) - len(chunks)
        if missing:
            raise ValueError(f"{missing} uncoded chunks are missing; wait for them")
        parts = list(chunks.values())
        if self.code is not None:
            parts += [self.code.decode(answers) for answers in groups]
        return sum(parts[1:]) + parts[0]


@lru_cache(maxsize=64)
def code_of(n: int, s: int) -> GradientCode:
    """A gradient code; making one takes longer than a simulated round."""
    return GradientCode(n, s)
