"""Gradients through the solution of a problem, whatever solved it, by the implicit function theorem.

A solution w of F(w, theta) = 0 moves with theta by `dw = -(dF/dw)^-1 (dF/dtheta) dtheta`. So the gradient needs F at the
solution and one linear solve there: nothing of the solver's iterations is kept, and they need not be differentiable.
Where a second derivative is asked for, that linear solve is a solution of the same kind, and is differentiated likewise.

Source: M. Blondel et al., "Efficient and modular implicit differentiation", arXiv 2105.15183, section 2.1 (equation 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, wraps
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

from trace_opt.errors import GradientError, meant
from trace_opt.optim.numeric import solvers
from trace_opt.optim.numeric.solvers import Method

if TYPE_CHECKING:
    import torch

S = TypeVar("S", bound=Callable[..., Any])
Form = Literal["stationarity", "fixed-point", "kkt", "root"]
Tensors = Sequence["torch.Tensor"]
Residual = Callable[[Tensors, Tensors], list["torch.Tensor"]]
"""`(w, theta) -> F`: as many tensors as w, of the same shapes."""

_METHOD: dict[Form, Method] = {"stationarity": "cg", "fixed-point": "gmres", "kkt": "dense", "root": "gmres"}


def implicit(
    optimality: Callable[..., Any],
    form: Form = "stationarity",
    *,
    solve: Method | None = None,
    tol: float | None = None,
    accuracy: float | None = 1e-3,
) -> Callable[[S], S]:
    """Decorate a solver, so that gradients pass through what it returns.

    The solver is called as `solver(*theta, **options)` with plain, detached tensors and returns a tensor, or a tuple of
    them. It may be anything: a closed form, a loop of torch, scipy. What gradients are to reach must be an argument;
    floating tensors among the positional arguments are theta, the rest is passed on. It works inside ops::

        def inner(w, rows, wanted, decay):
            return 0.5 * ((rows @ w - wanted) ** 2).sum() + 0.5 * decay.exp() * (w**2).sum()

        @trace
        @implicit(inner)
        def fit(rows, wanted, decay):
            return torch.linalg.solve(rows.T @ rows + decay.exp() * torch.eye(8), rows.T @ wanted)

    Args:
        optimality: What makes a solution one, called as `optimality(w, *theta, **options)` with the solution first (one
            argument for each tensor of a tuple). By form:
            "stationarity": a scalar objective whose gradient in w is zero there, as at a minimum.
            "fixed-point": what gives w again, `T(w, *theta)`, such as a projected gradient step; like w.
            "kkt": `(objective, equalities, inequalities)` in the first tensor of w alone, called without the others; the
            inequalities hold where they are <= 0, and either may be None. The solver returns the point and a tensor of
            multipliers for each that is not None, in this order, where objective + sum(multipliers * constraints) is
            stationary. With a constraint that is active while its multiplier is zero there is no derivative.
            "root": F itself, zero at the solution; like w.
        form: See above.
        solve: How the linear system is solved: "cg", "gmres" or "dense". By default CG for stationarity (the matrix is
            symmetric), dense for KKT (it is indefinite, and small), GMRES for the others (CG would be wrong).
        tol: The relative residual asked of CG and GMRES; 1e-12 in float64, about 6e-6 in float32.
        accuracy: How far from a solution, relative to 1 + |w|, the solver's result may be before its gradient is
            refused; None refuses none. The distance is a lower bound, |F|^2 / |A'F|, so that no scale of F matters. The
            gradient's error is of the order of the distance.

    Returns:
        A decorator. The decorated solver raises GradientError in the backward pass, naming the residual, where the linear
        system is not solved (the relative residual is above the root of `tol`) or the solution is none.

    Raises:
        ValueError: there is no such form or solver.
    """
    if form not in _METHOD:
        hint = meant(form, get_args(Form), f"choose one of {list(get_args(Form))!r}")
        raise ValueError(f"implicit() got form={form!r}; {hint}")
    solvers.checked(solve or _METHOD[form])

    def decorate(function: S) -> S:
        how = How(getattr(function, "__name__", str(function)), form, solve or _METHOD[form], tol, accuracy)

        @wraps(function)
        def solved(*theta: Any, **options: Any) -> Any:
            return _solved(how, partial(optimality, **options), partial(function, **options), theta)

        return cast("S", solved)

    return decorate


@dataclass(frozen=True, slots=True)
class How:
    """How a solution is differentiated; the arguments of `implicit`, and the solver's name."""

    name: str
    form: Form
    method: Method
    tol: float | None
    accuracy: float | None


def _solved(how: How, optimality: Callable[..., Any], solver: Callable[..., Any], theta: Sequence[Any]) -> Any:
    import torch

    places = [i for i, t in enumerate(theta) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    found = solver(*(t.detach() if isinstance(t, torch.Tensor) else t for t in theta))
    parts: tuple[Any, ...] = cast("Any", found) if isinstance(found, tuple) else (found,)
    for part in parts:
        if not isinstance(part, torch.Tensor) or not part.is_floating_point():
            raise TypeError(
                f"{how.name}() returned {type(part).__name__!r}; return a floating tensor or a tuple of them"
            )

    def called(w: Sequence[Any], moved: Sequence[Any]) -> Any:
        full = list(theta)
        for place, tensor in zip(places, moved, strict=True):
            full[place] = tensor
        return optimality(*w, *full)

    residual = partial(_FORMS[how.form], called)
    ends = _function().apply(how, residual, len(parts), *(p.detach() for p in parts), *(theta[i] for i in places))
    return ends if isinstance(found, tuple) else ends[0]


# -- forms -----------------------------------------------------------------------------------------------------------


def _stationarity(optimality: Callable[..., Any], w: Tensors, theta: Tensors) -> list[torch.Tensor]:
    objective = optimality(w, theta)
    if objective.numel() != 1:
        raise TypeError(
            f"an objective has shape {tuple(objective.shape)!r}; return one number, or use form='root' for its gradient"
        )
    return _gradients(objective.reshape(()), w)


def _fixed_point(optimality: Callable[..., Any], w: Tensors, theta: Tensors) -> list[torch.Tensor]:
    return [part - old for part, old in zip(_root(optimality, w, theta), w, strict=True)]


def _root(optimality: Callable[..., Any], w: Tensors, theta: Tensors) -> list[torch.Tensor]:
    found = optimality(w, theta)
    parts: list[torch.Tensor] = list(cast("Any", found)) if isinstance(found, tuple) else [found]
    if [p.shape for p in parts] != [p.shape for p in w]:
        shapes, wanted = [tuple(p.shape) for p in parts], [tuple(p.shape) for p in w]
        raise TypeError(
            f"an optimality condition has shapes {shapes!r} where the solution has {wanted!r}; make them equal"
        )
    return parts


def _kkt(optimality: Callable[..., Any], w: Tensors, theta: Tensors) -> list[torch.Tensor]:
    import torch

    point, multipliers = w[0], list(w[1:])
    objective, equalities, inequalities = optimality([point], theta)
    groups = [group for group in (equalities, inequalities) if group is not None]
    if [g.shape for g in groups] != [m.shape for m in multipliers]:
        shapes, wanted = [tuple(m.shape) for m in multipliers], [tuple(g.shape) for g in groups]
        raise TypeError(
            f"a solver returned multipliers of shapes {shapes!r} for constraints of {wanted!r}; one for each"
        )
    pairs = zip(groups, multipliers, strict=True)
    lagrangian = objective + sum((torch.sum(group * m) for group, m in pairs), torch.zeros_like(objective))
    slack = [] if inequalities is None else [multipliers[-1] * inequalities]
    return [*_gradients(lagrangian, [point]), *([] if equalities is None else [equalities]), *slack]


_FORMS: dict[str, Callable[..., list[Any]]] = {
    "stationarity": _stationarity, "fixed-point": _fixed_point, "kkt": _kkt, "root": _root,
}  # fmt: skip


def _gradients(value: torch.Tensor, leaves: Tensors) -> list[torch.Tensor]:
    import torch

    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(value, list(leaves), create_graph=True, materialize_grads=True))


# -- autograd --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _function() -> Any:
    import torch

    class Implicit(torch.autograd.Function):
        """Hands solutions on in the forward pass, and solves for the gradient in the backward pass."""

        @staticmethod
        def forward(ctx: Any, how: How, residual: Residual, count: int, *tensors: torch.Tensor) -> Any:
            solution = tuple(tensor.clone() for tensor in tensors[:count])
            ctx.how, ctx.residual, ctx.count = how, residual, count
            ctx.save_for_backward(*solution, *tensors[count:])
            return solution

        @staticmethod
        def backward(ctx: Any, *incoming: torch.Tensor) -> Any:
            again = torch.is_grad_enabled()  # only under create_graph=True
            saved = ctx.saved_tensors
            w, theta = saved[: ctx.count], saved[ctx.count :]
            with torch.enable_grad():
                found = _pulled_back(ctx.how, ctx.residual, w, theta, incoming, again=again)
            return (None, None, None, *(None for _ in w), *found)

    return Implicit


def _pulled_back(
    how: How, residual: Residual, w: Tensors, theta: Tensors, incoming: Tensors, *, again: bool
) -> Sequence[Any]:
    """The gradient in theta of a loss whose gradient in w is `incoming`; itself differentiable where `again`."""
    import torch

    flat, fixed = [t.detach().requires_grad_() for t in w], [t.detach() for t in theta]
    at = residual(flat, fixed)
    u = _adjoint(how, at, flat, incoming)
    if again:  # the adjoint is a root too: of (dF/dw)'u + incoming, with w, theta and incoming for its theta

        def transposed(u: Tensors, moved: Tensors) -> list[torch.Tensor]:
            n = len(w)
            point = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in moved[:n]]
            image = _products(residual(point, moved[n : n + len(theta)]), point, u)
            return [part + v for part, v in zip(image, moved[n + len(theta) :], strict=True)]

        unchecked = How(how.name, how.form, how.method, how.tol, None)
        u = _function().apply(unchecked, transposed, len(u), *u, *w, *theta, *incoming)
        moved = [t.view_as(t) for t in theta]  # fresh ends, so that w's own dependence on theta is not counted here
        point = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in w]
    else:
        moved, point = [t.detach().requires_grad_(t.requires_grad) for t in theta], flat
    ends = [t for t in moved if t.requires_grad]
    if not ends:
        return [None] * len(theta)
    value = _paired(residual(point, moved), u)
    if not value.requires_grad:
        return [None] * len(theta)
    grads = iter(torch.autograd.grad(value, ends, create_graph=again, allow_unused=True))
    return [next(grads) if t.requires_grad else None for t in moved]


def _paired(parts: Tensors, weights: Tensors) -> torch.Tensor:
    import torch

    return torch.stack([(part * weight).sum() for part, weight in zip(parts, weights, strict=True)]).sum()


def _products(parts: Tensors, ends: Tensors, weights: Tensors) -> Tensors:
    """(d parts / d ends)' weights, differentiable."""
    return _gradients(_paired(parts, weights), ends)


def _adjoint(how: How, at: Tensors, w: Tensors, incoming: Tensors) -> list[torch.Tensor]:
    """-(dF/dw)'^-1 incoming.

    Raises:
        GradientError: the system is not solved, or w is no solution.
    """
    import torch

    live = [(part, end) for part, end in enumerate(at) if end.requires_grad]

    def product(x: torch.Tensor) -> torch.Tensor:
        parts = _split(x, at)
        found = torch.autograd.grad(
            [end for _, end in live], list(w), [parts[i] for i, _ in live], retain_graph=True, materialize_grads=True,
        )  # fmt: skip
        return _joined(found)

    if not live:
        raise GradientError(f"the optimality condition of {how.name}() does not depend on its solution; it has to")
    if how.accuracy is not None:
        _check_solution(how, _joined(at).detach(), product, _joined(w).detach())
    right = -_joined(incoming).detach()
    answer = solvers.solve(product, right, how.method, tol=how.tol)
    if not answer.residual <= solvers.accepted(right.dtype, how.tol):
        raise GradientError(
            f"the gradient through {how.name}() was not found: {how.method} left a relative residual of "
            f"{answer.residual:.3g} after {answer.iterations} products; check that form={how.form!r} fits, that the "
            "solution is isolated, or pass another solve="
        )
    return [part.detach() for part in _split(answer.solution, at)]


def _check_solution(how: How, rest: torch.Tensor, product: Callable[..., torch.Tensor], w: torch.Tensor) -> None:
    size = solvers.norm(rest)
    if size == 0.0:
        return
    reach = solvers.norm(product(rest))
    away = size * size / reach if reach else float("inf")
    if not away <= cast("float", how.accuracy) * (1.0 + solvers.norm(w)):
        raise GradientError(
            f"{how.name}() returned no solution: its optimality condition has a residual of {size:.3g}, so that it is at "
            f"least {away:.3g} away; solve it further, or allow more by accuracy="
        )


def _joined(parts: Tensors) -> torch.Tensor:
    import torch

    return torch.cat([part.reshape(-1) for part in parts])


def _split(x: torch.Tensor, like: Tensors) -> list[torch.Tensor]:
    import torch

    pieces = torch.split(x, [part.numel() for part in like])
    return [piece.reshape(part.shape).to(part.dtype) for piece, part in zip(pieces, like, strict=True)]
