"""The sequential sign-flip test, for scores of which neither values nor range are known.

If nothing changed, a difference is as likely as its opposite, so the observed signs are one draw among all others over the
same sizes. The sum is compared with those of drawn signs that go through the same looks, and alpha is spent by rank among
them. Sizes are cut at a quantile first, so that one wild example decides nothing; cutting sizes leaves signs alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trace_opt.search.betting import scaled
from trace_opt.search.sign_test import PLANNED, planned_alpha

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLIPS = 999
"""How many draws of signs the observed ones are ranked among."""

CUT = 0.9
"""The quantile of the sizes that differ from 0, above which they are cut."""

FEWEST = 10
"""The least number of new examples between two looks; each look costs power."""


def winsorised(differences: list[float]) -> list[float]:
    """Differences, each cut to the quantile `CUT` of the sizes that are not 0."""
    sizes = sorted(abs(d) for d in differences if d)
    if not sizes:
        return differences
    most = sizes[min(len(sizes) - 1, math.ceil(CUT * len(sizes)) - 1)]
    return [min(max(d, -most), most) for d in differences]


class _Side:
    """Which draws have not crossed yet; row 0 is what was observed."""

    def __init__(self) -> None:
        import numpy as np

        self.alive: NDArray[Any] = np.ones(FLIPS + 1, dtype=bool)

    def crossed(self, sums: NDArray[Any], spent: float) -> bool:
        """Let the highest sums cross, until that chance is spent; whether the observed one is among them.

        Every row is treated alike, so each is as likely as any other to be among those that ever cross.
        """
        room = int(spent * (FLIPS + 1) + 1e-9) - int((~self.alive).sum())
        rows = self.alive.nonzero()[0]
        if room > 0:
            values = sums[rows]
            order = (-values).argsort(kind="stable")
            ranked = values[order]
            # ties cross together or not at all; sums that differ by rounding alone are ties
            near = 1e-9 * max(1e-300, abs(float(ranked[0])))
            while 0 < room < len(ranked) and ranked[room - 1] - ranked[room] <= near:
                room -= 1
            self.alive[rows[order[:room]]] = False
        return not self.alive[0]


class SignFlipTest:
    """A sign-flip test in progress.

    Args:
        horizon: How many examples there are; the test holds for no more.
        alpha, worse_alpha: The chances of finding an equal candidate better, or worse.
        seed: Of the drawn signs.
        planned: As of `sign_test.bounds`, if half of the examples differ.
    """

    def __init__(
        self, horizon: int, alpha: float, worse_alpha: float, *, seed: int = 0, planned: float = PLANNED
    ) -> None:
        import numpy as np

        self._horizon = horizon
        signs = np.random.default_rng(seed).integers(0, 2, (horizon, FLIPS + 1), dtype=np.int8)
        self._signs: NDArray[Any] = (2 * signs - 1).T
        self._signs[0] = 1
        self._up, self._down = _Side(), _Side()
        self._alpha = (alpha, 2 * planned), (worse_alpha, 1.0)
        self._looked = 0
        self._order: list[int] = []
        self._differences: list[float] = []

    def look(self, differences: list[float], *, last: bool = False) -> int:
        """1 where better is found, -1 where worse is, else 0; it looks at every 10th example or more rarely.

        Args:
            differences: Of all examples so far, in their order.
            last: Whether no other look will follow, so that all of alpha is spent.
        """
        import numpy as np

        n = len(differences)
        # drawn signs belong to places, and places within a block follow size, so that order of arrival is no matter
        self._order += sorted(range(len(self._order), n), key=lambda i: (abs(differences[i]), differences[i]))
        cut = winsorised(differences)
        self._differences = [cut[i] for i in self._order]
        last = last or n == self._horizon
        if not last and n - self._looked < max(FEWEST, self._horizon // 20):
            return 0
        self._looked = n
        # flips are of the observed signs: row 0 keeps them, every other row turns some
        sums = self._signs[:, :n] @ np.array(self._differences)
        spent = [alpha if last else planned_alpha(alpha, n / (by * self._horizon)) for alpha, by in self._alpha]
        up, down = self._up.crossed(sums, spent[0]), self._down.crossed(-sums, spent[1])
        # with a large alpha most ranks cross, those of sums that speak against it too
        return int(up and sums[0] > 0) - int(down and sums[0] < 0)

    def moments(self) -> tuple[float, float]:
        """The sums of the cut differences and of their squares, in units in which the mean square is one half."""
        total, squares = math.fsum(self._differences), math.fsum(d * d for d in self._differences)
        return scaled(total, squares, len(self._differences))
