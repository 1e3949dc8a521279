"""Equality-constrained problems by Newton's method, made global by an exact augmented Lagrangian.

The merit function adds the squares of the constraints and of the Lagrangian's gradient to the Lagrangian. Its least points
are the solution itself for penalties that stay finite, and the Newton direction of the optimality conditions goes downhill
on it, so that a line search on one number makes Newton's method safe without giving up its last, quadratic steps.

Source: I. Hong, S. Na, M. W. Mahoney and M. Kolar, "Constrained optimization via exact augmented Lagrangian and randomized
iterative sketching", ICML 2023, arXiv 2305.18379, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from trace_opt.core.parameter import Parameter, is_tensor
from trace_opt.core.rollout import Rollouts
from trace_opt.errors import ProblemError
from trace_opt.optim.base import Proposal, Trial
from trace_opt.optim.numeric.live import Point, answers
from trace_opt.optim.numeric.phases import Phases, Work
from trace_opt.optim.numeric.solvers import linalg, listed, norm, sketch

if TYPE_CHECKING:
    import torch

Solver = Literal["dense", "sketch", "kaczmarz"]

_HALVINGS = 50
_TIGHTENINGS = 100
_LEAST_CURVATURE = 1e-6
_SINGULAR = 1e-8
_SHIFT = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the augmented Lagrangian is minimised; the defaults are those of the paper's experiments.

    Attributes:
        solver: How the Newton system is solved: "dense", or inexactly by projections on random sketches of it: "sketch"
            (Gaussian) or "kaczmarz" (single rows). For systems that fit into memory "dense" is faster by far.
        tol: The norm of the optimality conditions at which it ends.
        eta1, eta2: The weights of the constraints and of the gradient in the merit function at the start.
        growth: What eta1 is multiplied by twice, and eta2 divided by, where a direction does not go downhill enough.
        slope: The share of the predicted decrease that a step has to give (Armijo).
        inexact: The relative residual that a sketched solution may have at first.
    """

    solver: Solver = "dense"
    tol: float = 1e-8
    eta1: float = 1.0
    eta2: float = 0.1
    growth: float = 2.0
    slope: float = 1e-4
    inexact: float = 0.1

    def __post_init__(self) -> None:
        if self.solver not in get_args(Solver):
            raise ValueError(f"Settings got solver={self.solver!r}; choose one of {list(get_args(Solver))!r}")
        for name in ("tol", "eta1", "eta2", "slope", "inexact"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Settings got {name}={getattr(self, name)!r}; give a number above 0")
        if not self.growth > 1:
            raise ValueError(f"Settings got growth={self.growth!r}; give a number above 1")


@dataclass(frozen=True, slots=True)
class Iterate:
    """Where the method stands.

    Attributes:
        x: Of shape (n,).
        multipliers: One for each entry of the constraints, of shape (m,).
        eta1, eta2: The weights of the merit function.
        inexact: The relative residual that a sketched solution may have.
        kkt: The norm of the optimality conditions.
        step, sketched: Newton steps and sketch steps done.
        stuck: Whether the line search found no step, as at the limit of the dtype.
        point: What the losses are at x; not kept, for they can be asked for again.
    """

    x: torch.Tensor
    multipliers: torch.Tensor
    eta1: float
    eta2: float
    inexact: float
    kkt: float = float("inf")
    step: int = 0
    sketched: int = 0
    stuck: bool = False
    point: Point | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class _Local:
    """Derivatives at a point: of the Lagrangian, of shapes (n,) and (n, n), and of the constraints, (m,) and (m, n)."""

    slope: torch.Tensor
    hessian: torch.Tensor
    values: torch.Tensor
    rows: torch.Tensor

    @property
    def conditions(self) -> torch.Tensor:
        """The optimality conditions, of shape (n + m,): zero at a solution."""
        import torch

        return torch.cat([self.slope, self.values])


Asks = Generator["torch.Tensor", Point, Iterate]
"""Yields x, is sent the losses there, and returns where it ends."""


def begin(objective: str, equalities: Sequence[str], settings: Settings, x: torch.Tensor) -> Asks:
    """A start, with multipliers of zero."""
    point = yield x
    values = point.value(equalities).detach()
    now = Iterate(x, values * 0, settings.eta1, settings.eta2, settings.inexact, point=point)
    return replace(now, kkt=norm(_local(point, objective, equalities, now.multipliers).conditions))


def step(
    objective: str, equalities: Sequence[str], settings: Settings, now: Iterate, generator: torch.Generator
) -> Asks:
    """One Newton step, shortened until the merit function falls.

    Args:
        objective, equalities: Names of the losses.
        settings: How.
        now: Where it stands.
        generator: Draws sketches.

    Raises:
        ProblemError: the derivatives of the constraints are nearly dependent there.
    """
    import torch

    point = now.point
    if point is None:
        point = yield now.x
    local = _local(point, objective, equalities, now.multipliers)
    _check_independent(local.rows, equalities)
    now, along = _direction(settings, now, local, generator)
    n = now.x.numel()
    fall = float(torch.dot(_merit_slope(now, local), along))
    before = _merit(now, point, objective, equalities, now.multipliers)
    length = 1.0
    for _ in range(_HALVINGS):
        x, multipliers = now.x + length * along[:n], now.multipliers + length * along[n:]
        point = yield x
        after = _merit(now, point, objective, equalities, multipliers)
        if after <= before + settings.slope * length * fall + 1e-15 * abs(before):
            kkt = norm(_local(point, objective, equalities, multipliers, hessian=False).conditions)
            return replace(now, x=x, multipliers=multipliers, kkt=kkt, step=now.step + 1, point=point)
        length /= 2
    return replace(now, stuck=True, point=None)


def _local(
    point: Point, objective: str, equalities: Sequence[str], multipliers: torch.Tensor, *, hessian: bool = True
) -> _Local:
    import torch

    values = point.value(equalities)
    lagrangian = point.value([objective]).sum() + torch.sum(multipliers * values)
    slope = point.gradient(lagrangian, again=hessian)
    n = slope.numel()
    curved = hessian and slope.requires_grad
    second = torch.stack([point.gradient(entry) for entry in slope]) if curved else slope.new_zeros(n, n)
    return _Local(slope.detach(), (second + second.T) / 2, values.detach(), point.rows(equalities))


def _check_independent(rows: torch.Tensor, equalities: Sequence[str]) -> None:
    if not len(rows):
        return
    spread = linalg().eigvalsh(rows @ rows.T)
    least, most = float(spread[0]), float(spread[-1])
    if not least > _SINGULAR * max(1.0, most):
        raise ProblemError(
            f"the derivatives of the constraints {list(equalities)!r} are nearly dependent: the least eigenvalue of G G' is "
            f"{least:.3g} where the greatest is {most:.3g}; leave out what follows from the others, or start elsewhere"
        )


def _direction(
    settings: Settings, now: Iterate, local: _Local, generator: torch.Generator
) -> tuple[Iterate, torch.Tensor]:
    """A direction that goes downhill on the merit function, and the weights with which it does."""
    import torch

    matrix = _system(local)
    right = -local.conditions
    size = norm(right)
    now, along = _newton(settings, now, matrix, right, generator)
    for _ in range(_TIGHTENINGS):
        if float(torch.dot(_merit_slope(now, local), along)) <= -now.eta2 / 2 * size * size:
            return now, along
        now = replace(
            now,
            eta1=now.eta1 * settings.growth**2,
            eta2=now.eta2 / settings.growth,
            inexact=now.inexact / settings.growth,
        )
        if settings.solver != "dense":  # to the tighter bound
            now, along = _newton(settings, now, matrix, right, generator)
    raise ProblemError(
        f"no direction goes downhill at {listed(now.x)!r}, where the optimality conditions are {size:.3g}; start elsewhere, "
        "or scale the objective and the constraints to the order of 1"
    )


def _newton(
    settings: Settings, now: Iterate, matrix: torch.Tensor, right: torch.Tensor, generator: torch.Generator
) -> tuple[Iterate, torch.Tensor]:
    """The Newton system's solution, and where the method stands after the sketch steps it took."""
    if settings.solver == "dense":
        return now, linalg().solve(matrix, right)
    size = norm(right)
    kind = "gaussian" if settings.solver == "sketch" else "kaczmarz"
    found = sketch(matrix, right, generator, limit=now.inexact * min(1.0, size) * size, kind=kind)
    return replace(now, sketched=now.sketched + found.iterations), found.solution


def _system(local: _Local) -> torch.Tensor:
    """The Newton system, its Hessian shifted where it is not positive along the constraints."""
    import torch

    hessian, rows = local.hessian, local.rows
    m, n = rows.shape
    basis = linalg().svd(rows).Vh[m:] if m else torch.eye(n, dtype=hessian.dtype, device=hessian.device)
    if m < n and float(linalg().eigvalsh(basis @ hessian @ basis.T)[0]) < _LEAST_CURVATURE:
        size = float(linalg().matrix_norm(hessian, 2))
        hessian = hessian + (_SHIFT + size) * torch.eye(n, dtype=hessian.dtype, device=hessian.device)
    corner = hessian.new_zeros(m, m)
    return torch.cat([torch.cat([hessian, rows.T], 1), torch.cat([rows, corner], 1)])


def _merit(now: Iterate, point: Point, objective: str, equalities: Sequence[str], multipliers: torch.Tensor) -> float:
    """L + eta1/2 |c|^2 + eta2/2 |dL/dx|^2; infinite where it is no number."""
    import torch

    values = point.value(equalities)
    lagrangian = point.value([objective]).sum() + torch.dot(multipliers, values)
    slope = point.gradient(lagrangian)
    total = float((lagrangian + now.eta1 / 2 * values.square().sum()).detach() + now.eta2 / 2 * slope.square().sum())
    return total if total == total else float("inf")  # noqa: PLR0124 # not a number is unequal to itself


def _merit_slope(now: Iterate, local: _Local) -> torch.Tensor:
    """Its derivative in (x, multipliers). The second term has the Hessian of the Lagrangian, not of the objective."""
    import torch

    x = local.slope + now.eta2 * local.hessian @ local.slope + now.eta1 * local.rows.T @ local.values
    return torch.cat([x, local.values + now.eta2 * local.rows @ local.slope])


def _generator(seed: int, step: int) -> torch.Generator:
    """The chance of one step, so that a resumed run draws the same."""
    import torch

    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def ended(now: Iterate, settings: Settings) -> str:
    """Why no step is left to take, or ""."""
    if now.kkt <= settings.tol:
        return f"the optimality conditions are met to {now.kkt:.3g}"
    return f"no step lowers the merit function; the optimality conditions are at {now.kkt:.3g}" if now.stuck else ""


# -- without a workflow ----------------------------------------------------------------------------------------------


def augmented_lagrangian(
    objective: Callable[[torch.Tensor], torch.Tensor],
    equality: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    *,
    settings: Settings | None = None,
    steps: int = 100,
    seed: int = 0,
) -> Iterate:
    """Minimise `objective(x)` subject to `equality(x) = 0`.

    Args:
        objective: Of a live tensor of shape (n,), twice differentiable.
        equality: As the objective, of any shape.
        x: Where to start.
        settings: How.
        steps: The most Newton steps.
        seed: Of the sketches.

    Returns:
        Where it ended; `kkt` tells how well the optimality conditions hold.

    Raises:
        ProblemError: the derivatives of the constraints are nearly dependent on the way, or no direction goes downhill.
    """
    how = settings or Settings()
    answered = answers({"objective": objective, "equality": equality}, lambda vector: (vector,))
    now = answered(begin("objective", ["equality"], how, x.detach()))
    while now.step < steps and not ended(now, how):
        now = answered(step("objective", ["equality"], how, now, _generator(seed, now.step)))
    return now


# -- in a workflow ---------------------------------------------------------------------------------------------------


class AugmentedLagrangian(Phases):
    """Equality-constrained problems whose losses come out of a workflow.

    The guide returns `Feedback(score=..., loss={"objective": f, "c": ...})`, twice differentiable in the parameters; means
    over the training examples count. A proposal is a phase of Newton steps, one training rollout of every example for each
    point that the line search tries. It ends at a point that meets the optimality conditions, which need not be the lowest:
    started in the middle of a symmetry, it stays there. The Hessian is built from as many backward passes as there are numbers to move, so it
    is for tens to hundreds of them. A guide's score should count the constraints, or the search be without a gate.

    Args:
        objective: What the guide calls the loss to minimise.
        equalities: What it calls those that have to be zero; tensors of any shape.
        parameters: Full names of the tensors that move; all floating ones by default.
        settings: How it is minimised.
        steps: Newton steps of a phase at most; it ends earlier where the optimality conditions hold.
        checkpoint_every: Steps after which a phase under way is committed.

    Raises:
        ValueError: a number makes no sense.
    """

    def __init__(
        self,
        objective: str = "objective",
        equalities: Sequence[str] = (),
        *,
        parameters: Sequence[str] | None = None,
        settings: Settings | None = None,
        steps: int = 50,
        checkpoint_every: int = 10,
    ) -> None:
        super().__init__(steps, checkpoint_every)
        self.objective, self.equalities = objective, list(equalities)
        self.settings = settings or Settings()
        self._only = None if parameters is None else list(parameters)

    def handles(self, parameter: Parameter[Any]) -> bool:
        """Floating tensors, those named where any are."""
        value: Any = parameter.initial
        named = self._only is None or parameter.name in self._only
        return named and is_tensor(value) and bool(value.is_floating_point())

    async def propose(
        self,
        parameters: Sequence[Parameter[Any]],
        rollouts: Rollouts,
        history: Sequence[Trial],  # noqa: ARG002
    ) -> Proposal:
        """A phase of Newton steps.

        Raises:
            TraceError: it is used by hand, where it cannot run the workflow with values of its own.
            ProblemError: a parameter has a constraint that is no equality, or the constraints are nearly dependent.
            GradientError: all rollouts of a point failed, or they ran in another process.
            FeedbackError, BudgetError: a loss is missing, or the budget does not cover a single step.
        """
        bounded = {p.name: p.constraint for p in parameters if p.constraint is not None}
        if bounded:
            raise ProblemError(
                f"AugmentedLagrangian keeps equalities only, not {bounded!r}; leave them out, or use LVHBA"
            )
        return await self._phase(parameters, rollouts, _Newton(self, [self.objective, *self.equalities]))


@dataclass(slots=True)
class _Newton(Work):
    """The augmented Lagrangian as the work of phases."""

    of: AugmentedLagrangian
    names: Sequence[str]
    scale: float | None = None  # a line search needs none
    iterate: ClassVar[Any] = Iterate

    def begin(self, start: torch.Tensor) -> Asks:
        return begin(self.of.objective, self.of.equalities, self.of.settings, start)

    def step(self, now: Iterate, seed: int) -> Asks:
        chance = _generator(seed, now.step)
        return step(self.of.objective, self.of.equalities, self.of.settings, now, chance)

    def ended(self, now: Iterate) -> str:
        return ended(now, self.of.settings)

    def vector(self, now: Iterate) -> torch.Tensor:
        return now.x

    def notes(self, now: Iterate) -> dict[str, Any]:
        return {"total": now.step, "kkt": now.kkt, "multipliers": listed(now.multipliers), "sketched": now.sketched}
