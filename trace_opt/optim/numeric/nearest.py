"""The point of a polyhedron, and of one more convex set, that is nearest to a given one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trace_opt.optim.numeric.solvers import linalg

if TYPE_CHECKING:
    import torch

_SWEEPS = 2000


def nearest(
    wanted: torch.Tensor, rows: torch.Tensor, right: torch.Tensor, ups: torch.Tensor,
    into: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:  # fmt: skip
    """The point nearest to `wanted` with `rows @ p = right`, or `<=` where `ups`, that `into` leaves where it is.

    Equalities alone are solved directly. Else Dykstra's alternating projections, which remember what each set took away
    and so end at the nearest point, where plain alternation ends at any. They are slow where sets are nearly parallel, and
    end after 2,000 sweeps.

    Args:
        wanted: Of shape (n,).
        rows, right: Of shapes (m, n) and (m,).
        ups: Of shape (m,), boolean.
        into: The projection on one more convex set.

    Source: J. P. Boyle and R. L. Dykstra, "A method for finding projections onto the intersection of convex sets in
        Hilbert spaces", 1986; when to stop: E. G. Birgin and M. Raydan, "Robust stopping criteria for Dykstra's
        algorithm", 2005.
    """
    import torch

    equal, inverse = rows[~ups], linalg().pinv(rows[~ups])

    def onto(p: torch.Tensor) -> torch.Tensor:
        return p - inverse @ (equal @ p - right[~ups]) if equal.numel() else p

    sets: list[Callable[[torch.Tensor], torch.Tensor]] = [
        _half_space(r, b) for r, b in zip(rows[ups], right[ups], strict=True)
    ]
    sets += [] if into is None else [into]
    if not sets:
        return onto(wanted)
    taken = [torch.zeros_like(wanted) for _ in sets]
    p = onto(wanted)
    for _ in range(_SWEEPS):
        moved = 0.0
        for i, onto_set in enumerate(sets):
            inside = onto_set(p + taken[i])
            left = p + taken[i] - inside
            moved = max(moved, float((left - taken[i]).abs().max()))
            taken[i] = left
            p = onto(inside)  # an affine set needs no memory
        # p may stand still for many sweeps on its way, what is taken away does not
        if moved <= 1e-12 * (1 + float(p.abs().max())):
            break
    return p


def _half_space(row: torch.Tensor, right: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    square = row.square().sum().clamp_min(1e-300)
    return lambda p: p - (row @ p - right).clamp_min(0) / square * row
