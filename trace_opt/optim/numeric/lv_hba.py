"""Bilevel problems with constraints below, in a single loop of first derivatives: LV-HBA.

The upper level minimises F(x, y), where y minimises f(x, y) subject to g(x, y) <= 0 (or = 0). The lower level enters by the
value that the Lagrangian's proximal smoothing takes, whose gradient is read off a second pair (theta, lambda) that follows
y and the multipliers z. So a step is three projected gradient steps, and no second derivative is ever taken.

Source: W. Yao, C. Yu, S. Zeng and J. Zhang, "Constrained bi-level optimization: proximal Lagrangian value function approach
and Hessian-free algorithm", ICLR 2024, arXiv 2401.16164, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from trace_opt.core.parameter import Parameter, is_tensor
from trace_opt.core.rollout import Rollouts
from trace_opt.errors import ProblemError
from trace_opt.optim.base import Proposal, Trial
from trace_opt.optim.numeric.live import Flat, Point, answers
from trace_opt.optim.numeric.nearest import nearest
from trace_opt.optim.numeric.phases import Phases, Work
from trace_opt.optim.numeric.solvers import listed

if TYPE_CHECKING:
    import torch

_MOST_CORRECTIONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Step sizes of LV-HBA; the defaults suit problems whose derivatives are of the order of 1.

    The published toy's own (alpha .008, beta .02, eta .01, gamma 10, penalty .025, power .3) diverge on it; these are within
    a hundredth of its optimum after some 160 steps. eta times the norm of the constraints' derivative has to stay below
    about 1: divide a constraint that sums over n coordinates by the root of n.

    Attributes:
        alpha: Of (x, y).
        beta: Of the multipliers z, at most gamma2.
        eta: Of the proximal pair (theta, lambda).
        gamma1, gamma2: How far that pair may go from (y, z): the smaller, the closer.
        penalty, power: The upper level is weighted by `1 / (penalty * (k + 1) ** power)` in step k; power below a half. The
            error falls as this weight does.
        bound: The greatest multiplier.
        fresh: Whether the gradient in x of the lower level's value is taken at the theta of this step, as published, or at
            the one before, which the step has the losses of: two points a step in place of three, with the same limits.
    """

    alpha: float = 0.1
    beta: float = 0.1
    eta: float = 0.3
    gamma1: float = 10.0
    gamma2: float = 10.0
    penalty: float = 1.0
    power: float = 0.49
    bound: float = 1e4
    fresh: bool = False

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "eta", "gamma1", "gamma2", "penalty", "bound"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Rates got {name}={getattr(self, name)!r}; give a number above 0")
        if not 0 <= self.power < 0.5:
            raise ValueError(
                f"Rates got power={self.power!r}; give a number in [0, 0.5), or the penalty outgrows the steps"
            )


@dataclass(frozen=True, slots=True)
class Iterate:
    """Where LV-HBA stands.

    Attributes:
        x, y: The point, of shapes (n,) and (p,).
        theta: The proximal copy of y.
        z: The multipliers, one for each entry of the constraints, of shape (m,).
        lam: Their proximal copy.
        step: Steps done.
    """

    x: torch.Tensor
    y: torch.Tensor
    theta: torch.Tensor
    z: torch.Tensor
    lam: torch.Tensor
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bilevel:
    """What the losses are called, and which sets x and y stay in.

    Attributes:
        upper, lower: Names of F and f.
        inequalities, equalities: Names of what has to be <= 0 or = 0.
        project_x, project_y: The nearest point of X and of Y; None where there is no set.
    """

    upper: str = "upper"
    lower: str = "lower"
    inequalities: Sequence[str] = ()
    equalities: Sequence[str] = ()
    project_x: Callable[[torch.Tensor], torch.Tensor] | None = None
    project_y: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def constraints(self) -> list[str]:
        """Names of all constraints, inequalities first."""
        return [*self.inequalities, *self.equalities]

    @property
    def names(self) -> list[str]:
        """Names of all losses."""
        return [self.upper, self.lower, *self.constraints]

    def into_x(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest point of X."""
        return x if self.project_x is None else self.project_x(x)

    def into_y(self, y: torch.Tensor) -> torch.Tensor:
        """The nearest point of Y."""
        return y if self.project_y is None else self.project_y(y)


Asks = Generator["torch.Tensor", Point, Iterate]
"""Yields (x, y) as one vector, is sent the losses there, and returns where it ends."""


def begin(problem: Bilevel, x: torch.Tensor, y: torch.Tensor, multiplier: float = 0.0) -> Asks:
    """A start in the joint set of the constraints: where x and y are not in it, the nearest point by Newton's method.

    Raises:
        ProblemError: no point of the set was found.
    """
    import torch

    x, y = problem.into_x(x), problem.into_y(y)
    for _ in range(_MOST_CORRECTIONS):
        both = torch.cat([x, y])
        point = yield both
        g = point.value(problem.constraints).detach()
        ups = _ups(problem, point)
        violation = torch.where(ups, g.clamp_min(0), g).abs().max() if g.numel() else g.sum()
        if float(violation) <= 1e-10 * (1 + float(both.abs().max())):
            z = torch.full_like(g, multiplier)
            return Iterate(x, y, y.clone(), z, z.clone())
        both = _onto(problem, both, both, g, point.rows(problem.constraints), ups, x.numel())
        x, y = both[: x.numel()], both[x.numel() :]
    raise ProblemError(
        f"no point that satisfies {problem.constraints!r} was found from the start, {float(violation):.3g} is left; start "  # pyright: ignore[reportPossiblyUnboundVariable] # the loop runs
        "from values that satisfy them, or check that any do"
    )


def step(problem: Bilevel, rates: Rates, now: Iterate) -> Asks:
    """One step: losses at (x, theta), with `fresh` again once theta has moved, and at (x, y)."""
    import torch

    n, k = now.x.numel(), now.step
    below = yield torch.cat([now.x, now.theta])
    weights = _weights(problem, below, now.lam)
    slope = below.weighted(weights)[n:] + (now.theta - now.y) / rates.gamma1
    theta = problem.into_y(now.theta - rates.eta * slope)
    g = below.value(problem.constraints).detach()
    ups = _ups(problem, below)
    lam = now.lam + rates.eta * (g - (now.lam - now.z) / rates.gamma2)
    lam = torch.where(ups, lam.clamp_min(0), lam)

    moved = (yield torch.cat([now.x, theta])) if rates.fresh else below
    pull = moved.weighted(_weights(problem, moved, lam))[:n]

    both = torch.cat([now.x, now.y])
    here = yield both
    along = here.weighted({problem.upper: 1.0 / (rates.penalty * (k + 1) ** rates.power), problem.lower: 1.0})
    along = along - torch.cat([pull, (now.y - theta) / rates.gamma1])
    wanted = both - rates.alpha * along
    ahead = here.value(problem.constraints).detach()
    both = _onto(problem, wanted, both, ahead, here.rows(problem.constraints), ups, n)

    z = (now.z + rates.beta * (lam - now.z) / rates.gamma2).clamp(-rates.bound, rates.bound)
    z = torch.where(ups, z.clamp_min(0), z)
    return Iterate(both[:n], both[n:], theta, z, lam, k + 1)


def _weights(problem: Bilevel, point: Point, lam: torch.Tensor) -> dict[str, Any]:
    """1 for the lower level's loss, and their multipliers for its constraints."""
    weights: dict[str, Any] = {problem.lower: 1.0}
    start = 0
    for name in problem.constraints:
        count = point.value([name]).numel()
        weights[name] = lam[start : start + count]
        start += count
    return weights


def _ups(problem: Bilevel, point: Point) -> torch.Tensor:
    """Which entries of the constraints are inequalities."""
    import torch

    count = point.value(problem.inequalities).numel()
    return torch.arange(point.value(problem.constraints).numel(), device=point.value([problem.lower]).device) < count


def _onto(
    problem: Bilevel, wanted: torch.Tensor, base: torch.Tensor, g: torch.Tensor, rows: torch.Tensor, ups: torch.Tensor,
    n: int,
) -> torch.Tensor:  # fmt: skip
    """The point nearest to `wanted` in X x Y and in the joint set, the constraints taken as linear around `base`.

    That is exact for affine constraints and needs no losses at `wanted`; for others the error is of second order in the
    step, and the next step's linearisation takes it back.
    """
    import torch

    free = problem.project_x is None and problem.project_y is None

    def into(both: torch.Tensor) -> torch.Tensor:
        return torch.cat([problem.into_x(both[:n]), problem.into_y(both[n:])])

    if not g.numel():
        return into(wanted)
    return nearest(wanted, rows, rows @ base - g, ups, None if free else into)


# -- without a workflow ----------------------------------------------------------------------------------------------

Function = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


def lv_hba(
    upper: Function,
    lower: Function,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    inequality: Function | None = None,
    equality: Function | None = None,
    problem: Bilevel | None = None,
    rates: Rates | None = None,
    steps: int = 1000,
    multiplier: float = 0.0,
) -> Iterate:
    """Minimise `upper(x, y)` over x and y, where y minimises `lower(x, y)` under the constraints.

    Args:
        upper, lower: `(x, y) -> number`, of live tensors.
        x, y: Where to start, of shapes (n,) and (p,).
        inequality, equality: `(x, y) -> tensor` that has to be <= 0 or = 0, convex in y.
        problem: Gives `project_x` and `project_y`.
        rates: The step sizes.
        steps: How many.
        multiplier: What the multipliers start at.

    Raises:
        ProblemError: no start satisfies the constraints.
    """
    import torch

    named = {"inequality": inequality, "equality": equality}
    functions = {"upper": upper, "lower": lower, **{name: f for name, f in named.items() if f is not None}}
    sets = Bilevel() if problem is None else problem
    problem = replace(
        sets, upper="upper", lower="lower", inequalities=["inequality"] if inequality else [],
        equalities=["equality"] if equality else [],
    )  # fmt: skip

    answered = answers(functions, lambda vector: torch.split(vector, [x.numel(), y.numel()]))
    now = answered(begin(problem, x.detach(), y.detach(), multiplier))
    for _ in range(steps):
        now = answered(step(problem, rates or Rates(), now))
    return now


# -- in a workflow ---------------------------------------------------------------------------------------------------


class LVHBA(Phases):
    """Bilevel problems whose losses come out of a workflow.

    The guide returns `Feedback(score=..., loss={"upper": F, "lower": f, ...})`, with each constraint under its name; means
    over the examples count. A proposal is a phase of steps, each of two training rollouts of every example. x and y stay
    in the sets that their parameters' `constraint` names. Since x and y alone do not tell how good x would be once the
    lower level has answered, a guide's score should be about that, or the search be without a gate.

    Args:
        upper: Full names of the tensor parameters that are x.
        lower: Those that are y.
        losses: What the guide calls F and f.
        inequalities, equalities: What it calls the constraints that have to be <= 0 or = 0; tensors of any shape, or
            single numbers where rollouts run in other processes.
        rates: The step sizes.
        steps: Steps of a phase.
        multiplier: What the multipliers start at.
        checkpoint_every: Steps after which a phase under way is committed.

    Raises:
        ValueError: a parameter is on both levels, one level has none, or a number makes no sense.
    """

    def __init__(
        self,
        upper: Sequence[str],
        lower: Sequence[str],
        *,
        losses: tuple[str, str] = ("upper", "lower"),
        inequalities: Sequence[str] = (),
        equalities: Sequence[str] = (),
        rates: Rates | None = None,
        steps: int = 500,
        multiplier: float = 0.0,
        checkpoint_every: int = 100,
    ) -> None:
        super().__init__(steps, checkpoint_every)
        both = sorted(set(upper) & set(lower))
        if both or not upper or not lower:
            said = f"{both!r} on both levels" if both else f"upper={list(upper)!r} and lower={list(lower)!r}"
            raise ValueError(f"LVHBA got {said}; give each level tensor parameters of its own by full name")
        self.upper, self.lower = list(upper), list(lower)
        self.rates = rates or Rates()
        self.multiplier = multiplier
        self._problem = Bilevel(
            upper=losses[0], lower=losses[1], inequalities=list(inequalities), equalities=list(equalities)
        )

    def handles(self, parameter: Parameter[Any]) -> bool:
        """The floating tensors that are x or y."""
        value: Any = parameter.initial
        return is_tensor(value) and bool(value.is_floating_point()) and parameter.name in (*self.upper, *self.lower)

    async def propose(
        self,
        parameters: Sequence[Parameter[Any]],
        rollouts: Rollouts,
        history: Sequence[Trial],  # noqa: ARG002
    ) -> Proposal:
        """A phase of steps.

        Raises:
            TraceError: it is used by hand, where it cannot run the workflow with values of its own.
            ProblemError: a name is no parameter here, or no start satisfies the constraints.
            GradientError: all rollouts of a point failed, or no loss depends on x or y.
            FeedbackError: the guide does not give a loss that is needed.
            BudgetError: the budget does not cover a single step.
        """
        found = {p.name: p for p in parameters}
        missing = [name for name in (*self.upper, *self.lower) if name not in found]
        if missing:
            raise ProblemError(
                f"LVHBA moves {missing!r}, which are not among {list(found)!r}; give full names as they are"
            )
        levels = [[found[name] for name in names] for names in (self.upper, self.lower)]
        return await self._phase([*levels[0], *levels[1]], rollouts, _Levels(self, levels[0], levels[1]))


@dataclass(slots=True)
class _Levels(Work):
    """LV-HBA as the work of phases."""

    of: LVHBA
    x: list[Parameter[Any]]
    y: list[Parameter[Any]]
    scale: float | None = field(default=1.0, init=False)
    iterate: ClassVar[Any] = Iterate
    names: Sequence[str] = field(init=False)
    problem: Bilevel = field(init=False)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        x, y = (Flat({p.name: p.value for p in ps}, {p.name: p.constraint for p in ps}) for ps in (self.x, self.y))
        self.size = x.start().numel()
        self.problem = replace(
            self.of._problem, project_x=None if x.free else x.project, project_y=None if y.free else y.project
        )
        self.names = self.problem.names

    def begin(self, start: torch.Tensor) -> Asks:
        return begin(self.problem, start[: self.size], start[self.size :], self.of.multiplier)

    def step(self, now: Iterate, seed: int) -> Asks:  # noqa: ARG002 # nothing is drawn
        rates, scale = self.of.rates, self.scale or 1.0
        return step(self.problem, replace(rates, alpha=rates.alpha * scale, eta=rates.eta * scale), now)

    def ended(self, now: Iterate) -> str:  # noqa: ARG002 # it never ends by itself
        return ""

    def vector(self, now: Iterate) -> torch.Tensor:
        import torch

        return torch.cat([now.x, now.y])

    def notes(self, now: Iterate) -> dict[str, Any]:
        return {"total": now.step, "multipliers": listed(now.z)}
