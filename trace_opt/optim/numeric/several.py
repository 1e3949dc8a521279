"""One direction from the gradients of several losses.

Whatever the method, the direction is a combination of the gradients, so a method is the weights it gives them: m
numbers from the m x m products of the gradients. What is stepped along is `weights @ gradients`, one d-vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, cast

from trace_opt.errors import ProblemError

if TYPE_CHECKING:
    from torch import Tensor

Method = Literal["mean", "mgda", "upgrad"]


@dataclass(frozen=True, slots=True)
class ParetoDA:
    """Weights that serve a preference: the gradient of a loss on examples set aside.

    As long as that loss is above `epsilon`, the direction is the one that lowers it fastest among those that hurt no
    loss more than the preference itself asks for; below it, one that lowers all losses. While balancing, a loss may
    get worse. A long gradient wins over a short one of the same direction: normalise them first where that is not wanted.

    Args:
        epsilon: The preference loss below which all losses are lowered instead.
        fixed: Weights used where the linear program has no solution; equal ones by default.
        set_aside: How many training examples serve the preference instead of the steps.
        loss: Name of the loss that is the preference; the mean of all by default.

    Source: "Pareto Domain Adaptation", Lv et al., NeurIPS 2021, with the rules of its published code, which
    multiplies the weights by m besides.
    """

    epsilon: float = 1e-3
    fixed: tuple[float, ...] | None = None
    set_aside: int = 8
    loss: str | None = None

    def weights(self, gradients: Tensor, preference: Tensor, preference_loss: float) -> Tensor:
        """The weights, on the simplex.

        Args:
            gradients: One row for each loss [m, d].
            preference: Gradient of the preference loss [d].
            preference_loss: Its value.
        """
        products = gradients @ gradients.T
        agreement = gradients @ preference.to(gradients)
        solved = self._solve(cast("Any", products).tolist(), cast("Any", agreement).tolist(), preference_loss)
        return gradients.new_tensor(solved)

    def _solve(self, products: list[list[float]], agreement: list[float], loss: float) -> list[float]:
        import numpy as np
        from scipy import optimize

        c, a = np.asarray(products), np.asarray(agreement)
        # the solver's tolerances are absolute
        scale = max(np.abs(c).max(), np.abs(a).max()) or 1.0
        c, a = c / scale, a / scale
        if loss > self.epsilon:
            gain, rows, least = a, c, _bounds(a.tolist())
        else:
            gain, rows = c.sum(0), np.vstack([c, a])
            least = [0.0] * len(a) + [min(0.0, float(a.max()))]
        asked = [i for i, bound in enumerate(least) if bound is not None]
        # linprog minimises, under upper bounds
        found = cast("Any", optimize).linprog(
            -gain, A_ub=-rows[asked], b_ub=[-cast("float", least[i]) for i in asked], A_eq=np.ones((1, len(a))),
            b_eq=[1.0], bounds=(0.0, 1.0),
        )  # fmt: skip
        if found.status == 0:
            return found.x.tolist()
        return list(self.fixed) if self.fixed is not None else [1.0 / len(a)] * len(a)


def _bounds(agreement: Sequence[float]) -> list[float | None]:
    """How much each loss must at least fall while balancing, None where nothing is asked."""
    if max(agreement) <= 0:
        return [0.0] * len(agreement)
    best = max(range(len(agreement)), key=agreement.__getitem__)
    asked: list[float | None] = [None if a > 0 else a for a in agreement]
    asked[best] = 0.0
    return asked


def weights(
    method: Method | ParetoDA | Callable[[Tensor], Tensor],
    gradients: Tensor,
    preference: Tensor | None = None,
    preference_loss: float | None = None,
) -> Tensor:
    """What each gradient counts in the direction to step along.

    Args:
        method: "mean": all the same. "mgda": the shortest vector in their convex hull, which lowers every loss and is
            zero where none can fall without another's rise; a short gradient dominates. "upgrad": each gradient projected so
            that it conflicts with none, then the mean; as "mean" where nothing conflicts (extra `multiobjective`). A
            `ParetoDA`, or any function from gradients [m, d] to weights [m].
        gradients: One row for each loss [m, d].
        preference: For `ParetoDA`, the gradient of the preference loss [d].
        preference_loss: For `ParetoDA`, its value.

    Returns:
        Weights [m], detached, of the gradients' dtype and device; equal ones where gradients are not finite.

    Raises:
        ValueError: the gradients have another shape, there is no such method, or `ParetoDA` lacks its preference.
        ProblemError: torchjd is not installed.

    Source: MGDA: Désidéri 2012; Sener and Koltun, arXiv 1810.04650. UPGrad: Quinton and Rey, arXiv 2406.16232.
    """
    if gradients.dim() != 2 or not len(gradients):
        raise ValueError(f"weights got gradients of shape {tuple(gradients.shape)!r}; give one row for each loss")
    gradients = gradients.detach()
    if isinstance(method, ParetoDA):
        if preference is None or preference_loss is None:
            raise ValueError(
                "ParetoDA got no preference; give the gradient and the value of a loss on examples set aside"
            )
        if not (_finite(gradients) and _finite(preference)):
            return _mean(gradients)
        return method.weights(gradients, preference.detach(), float(preference_loss))
    if callable(method):
        return method(gradients).detach()
    rule = _BUILT_IN.get(method)
    if rule is None:
        near = get_close_matches(str(method), _BUILT_IN, 1)
        raise ValueError(
            f"there is no method {method!r}; choose one of {near or list(_BUILT_IN)!r}, or give a ParetoDA(...)"
        )
    # gradients that are not finite are to show in the step, not in a solver
    return rule(gradients) if len(gradients) > 1 and (rule is _mean or _finite(gradients)) else _mean(gradients)


def _finite(values: Tensor) -> bool:
    import torch

    return bool(torch.isfinite(values).all())


def _mean(gradients: Tensor) -> Tensor:
    return gradients.new_full((len(gradients),), 1.0 / len(gradients))


def _mgda(gradients: Tensor) -> Tensor:
    if len(gradients) > 2:
        return _shortest(gradients)
    first, second = gradients
    apart = first - second
    length = apart @ apart
    share = float((second @ -apart / length).clamp(0.0, 1.0)) if length > 0 else 0.5
    return gradients.new_tensor([share, 1.0 - share])


def _shortest(gradients: Tensor) -> Tensor:
    """Weights of the shortest vector in the convex hull of the rows, exactly.

    Among w = t v, v on the simplex, |w G|^2 + (t - 1)^2 is least at t = 1 / (1 + |v G|^2), where it rises with |v G|: so
    non-negative least squares finds v up to its scale (Lawson and Hanson 1974, chapter 23).
    """
    import numpy as np
    import torch
    from scipy import optimize

    factor = cast("Any", torch).linalg.qr(gradients.T.double(), mode="r")[1]  # its columns have the rows' products
    columns = np.asarray(factor.cpu().tolist()).reshape(-1, len(gradients))
    scale = np.abs(columns).max()
    stacked = np.vstack([columns / scale if scale > 0 else columns, np.ones((1, len(gradients)))])
    found: Any = cast("Any", optimize).nnls(stacked, np.append(np.zeros(len(columns)), 1.0))[0]
    return gradients.new_tensor((found / found.sum()).tolist())


def _upgrad(gradients: Tensor) -> Tensor:
    """The weights that torchjd gives, from the products of the gradients."""
    try:
        aggregation = import_module("torchjd.aggregation")
        made = aggregation.UPGradWeighting()
    except ImportError as error:
        raise ProblemError(
            "combining losses by 'upgrad' needs torchjd, which is not installed; install the extra 'multiobjective'"
        ) from error
    return made(gradients @ gradients.T).detach()


_BUILT_IN: dict[str, Callable[[Tensor], Tensor]] = {"mean": _mean, "mgda": _mgda, "upgrad": _upgrad}


def unflatten(row: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """A flat gradient as one tensor for each leaf, of its shape."""
    parts = cast("tuple[Tensor, ...]", cast("Any", row).split([leaf.numel() for leaf in leaves]))
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
