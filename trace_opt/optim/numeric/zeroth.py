"""Numbers behind a step that has no gradient: search by values alone, few of them.

A gradient is estimated and Adam follows it. The estimate comes from a Gaussian process over all queries so far
(trajectory-informed surrogate gradients, FZooS, arXiv 2308.04077, with one client), or from differences: central,
two-point random directions, SPSA. The surrogate pays one query a step, and its queries lie around the iterate, as far as
the step is long: on the iterates alone they lie on a curve, which determines no gradient. A batch asks around several
iterates, which the surrogate as it stands leads through.

Nothing here asks for a path of gradients, so that a number parsed out of a text may stand between parameter and score.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from trace_opt.core.codec import canonical, content_hash
from trace_opt.errors import BudgetError, TraceError
from trace_opt.optim.base import Optimizer, Outcome, Proposal, Trial
from trace_opt.optim.numeric.around import Around, refuse_not_positive, refuse_small, refuse_unknown
from trace_opt.optim.numeric.differences import Difference, Stencil, queries_of, stencil
from trace_opt.optim.numeric.gaussian import NOISY_VARIANCES, Gaussian, fit, nearest
from trace_opt.optim.numeric.moments import Moments
from trace_opt.optim.numeric.queries import Kept, Queries, carried, context_of
from trace_opt.optim.numeric.vector import Vector, handled

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from trace_opt.core.parameter import Parameter
    from trace_opt.core.rollout import Rollouts

Method = Literal["surrogate", "central", "two-point", "spsa"]
Objective = Literal["score", "loss"]

_A_COORDINATE = 30  # queries of a phase without a number: what the settings were measured with in ten dimensions
_MOST = 1000
_SETTLING = 100  # steps on the surrogate as it stands at a phase's end, which cost no query
_SETTLING_LR = 0.02
_SHARE = 0.5  # of what is left of the budget, so that the test of the proposal is paid too


class ZerothOrder(Optimizer):
    """Moves floats and floating tensors by the scores of rollouts, all of them together as one vector.

    A proposal is a phase of queries, each of them one point on the minibatch. Bounded entries (`Box`, `Ball`, `Simplex`,
    `type=Annotated[float, Field(ge=..., le=...)]`) count in half widths, others in units of max(1, |start|); every query
    is an allowed value. The phase ends with a query of its last iterate and proposes the best point asked, as it was
    asked: rollouts of one example share their seed, so that values are exact unless the workflow draws chance of its own.
    Then `noisy=True` fits the noise too and proposes the best by the surrogate, which no lucky draw decides.

    Queries stay useful to later phases as long as all that it does not move stays as it is.

    Args:
        method: "surrogate", or "central", "two-point", "spsa" for differences.
        lr: Adam's learning rate at the start of a phase, in half widths; it falls linearly to 0.
        queries: Points of a phase. None is 30 a coordinate, 1000 at most, and no more than half of what is left of the
            budget pays for.
        batch: Points asked at once: as many as rollouts run at once, divided by the size of the minibatch. "surrogate"
            takes one step for each of them, all on the surrogate as it stands before, which costs little; "two-point"
            and "spsa" average so many pairs, and take fewer steps.
        difference: h of the differences, in half widths; 0.01 suits numbers passed as text of six digits, 1e-5 exact ones.
        objective: "score" of the feedback, or its "loss" (its mean where there are several).
        parameters: Names of those it may move; by default all floats and floating tensors. Beside a `Gradient` it takes
            those that no gradient reaches: put it first in the list of optimizers, with their names.
        noisy: Whether one point gives different values when asked twice.
        around: Settings of the surrogate.
        checkpoint_every: Queries after which the phase's state is kept.

    Raises:
        ValueError: an argument makes no sense.
    """

    def __init__(
        self, method: Method = "surrogate", *, lr: float = 0.2, queries: int | None = None, batch: int = 1,
        difference: float = 0.01, objective: Objective = "score", parameters: Sequence[str] | None = None,
        noisy: bool = False, around: Around | None = None, checkpoint_every: int = 50,
    ) -> None:  # fmt: skip
        super().__init__()
        refuse_unknown("ZerothOrder", "method", method, get_args(Method))
        refuse_unknown("ZerothOrder", "objective", objective, get_args(Objective))
        least = 2 if queries is None else queries
        refuse_small("ZerothOrder", queries=(least, 2), batch=(batch, 1), checkpoint_every=(checkpoint_every, 1))
        refuse_not_positive("ZerothOrder", lr=lr, difference=difference)
        self.method: Method = method
        self.lr = lr
        self.queries = queries
        self.batch = batch
        self.difference = difference
        self.only = None if parameters is None else frozenset(parameters)
        self.objective: Objective = objective
        self.noisy = noisy
        self.around = around or Around()
        self.checkpoint_every = checkpoint_every
        self._kept: list[Kept] = []
        self._open: list[tuple[str, Kept]] = []

    def handles(self, parameter: Parameter[Any]) -> bool:
        """Floats, bounded ones too, and floating tensors; neither choices nor whole numbers."""
        return (self.only is None or parameter.name in self.only) and handled(parameter)

    async def propose(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
    ) -> Proposal:
        """Run a phase of queries and propose the best point found; nothing where none is better than the incumbent.

        Raises:
            TraceError: it is used by hand, where it cannot run the workflow with values of its own.
            BudgetError: the budget does not pay for the first queries; where it ends later, so does the phase.
        """
        if rollouts.by_hand:
            raise TraceError(
                "ZerothOrder.step() was called, but it has to run the workflow at points of its own; pass it to optimize("
                "optimizers=[...]) instead"
            )
        vector = Vector(parameters)
        examples = [rollout.example for rollout in rollouts] or list(rollouts.train)
        names = {parameter.name for parameter in parameters}
        incumbent: Mapping[str, Any] = rollouts[0].values if len(rollouts) else {}
        others = {name: value for name, value in incumbent.items() if name not in names}
        context = context_of(others, [self.objective, sorted(names), vector.centre, vector.unit])
        hashed = content_hash(examples)
        start = vector.read()
        phase = Phase(self, vector, rollouts, examples, start)
        if rollouts.saved is not None:
            phase.load(rollouts.saved)
        elif len(rollouts):
            value = phase.known.means([list(rollouts)], self.objective)[0]
            phase.known = carried(self._kept, context, hashed, start, value, phase.known.worst)
        await phase.run()
        proposal = phase.proposal(start)
        self._keep(proposal, Kept(phase.known, context, hashed, len(history)))
        return proposal

    def rollouts_at_most(self, examples: int, minibatch: int, *, batches: int | None = None) -> int | None:  # noqa: ARG002
        """All queries on the minibatch; None where their number depends on the coordinates and the budget."""
        return None if self.queries is None else self.queries * (minibatch or examples)

    def observe(self, proposal: Proposal, outcome: Outcome) -> None:  # noqa: ARG002 # accepted or not, the queries stand
        """Let the queries of a phase count from now on."""
        key = canonical(dict(proposal.values))
        place = next((i for i, (known, _) in enumerate(self._open) if known == key), None)
        if place is not None:
            self._take(self._open.pop(place)[1])

    def state_dict(self) -> dict[str, Any]:
        """The queries that may still count."""
        return {
            "kept": [kept.to_state() for kept in self._kept],
            "open": [[key, kept.to_state()] for key, kept in self._open],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; an empty one forgets everything."""
        self._kept = [Kept.of_state(kept) for kept in state.get("kept", ())]
        self._open = [(key, Kept.of_state(kept)) for key, kept in state.get("open", ())]

    def _keep(self, proposal: Proposal, kept: Kept) -> None:
        # phases that run at once must not see each other's queries, or their order of arrival would count
        if proposal.values:
            self._open.append((canonical(dict(proposal.values)), kept))
        else:
            self._take(kept)

    def _take(self, kept: Kept) -> None:
        """Queries of a phase hold those that it began with, so the ones of earlier phases can go."""
        self._kept = [other for other in self._kept if other.age == kept.age]
        self._kept.append(kept)


class Phase:
    """One proposal under way.

    Args:
        settings: Whose it is.
        vector: The coordinates.
        rollouts: Runs points.
        examples: On which each point is run.
        start: The incumbent, [d].

    Attributes:
        known: Queries so far, older phases' included.
        at: The iterate, [d].
        spent: Queries made.
        planned: Queries to make.
    """

    def __init__(
        self, settings: ZerothOrder, vector: Vector, rollouts: Rollouts, examples: Sequence[Any], start: Tensor
    ) -> None:
        self.settings = settings
        self.known = Queries.none(vector.size)
        self.at = start.clone()
        self.spent = 0
        self.planned = settings.queries or max(2, min(_MOST, _A_COORDINATE * vector.size))
        self._vector = vector
        self._rollouts = rollouts
        self._examples = examples
        self._moments = Moments.none(start)
        self._began = 0  # queries before the first step

    async def run(self) -> None:
        """Ask until all is spent, and keep the state on the way."""
        unkept = 0
        while self.spent < self.planned:
            shape = None
            if self.spent == self.planned - 1:
                points = self._last()
            elif self.settings.method == "surrogate":
                points = self._around()
            elif (shape := self._stencil()) is not None:
                points = shape.points
            else:
                points = self._last()
                self.planned = self.spent + 1
            try:
                values = await self._ask(points)
            except BudgetError:
                if not self.spent:
                    raise
                return
            if shape is not None:
                self._step(shape.gradient(self.known.filled(values)), self._lr())
            unkept += len(points)
            if unkept >= self.settings.checkpoint_every and self.spent < self.planned:
                unkept = 0
                await self._rollouts.checkpoint(self.state())

    def proposal(self, start: Tensor) -> Proposal:
        """What the phase found.

        Args:
            start: The incumbent, [d].
        """
        place, value, before = self._best(start)
        notes = {"queries": self.spent, "failed": self.known.failed, "method": self.settings.method}
        if place is None:
            return Proposal(reason=f"none of {self.spent} points is better than the one in force", notes=notes)
        what, sign = ("score", -1) if self.settings.objective == "score" else ("loss", 1)
        change = f"{what} {sign * before + 0.0:.6g} -> {sign * value + 0.0:.6g}"  # + 0.0: no -0
        reason = f"the best of {self.spent} points by {self.settings.method}: {change}"
        return Proposal(self._vector.values(self.known.points[place]), reason, notes, phase=True)

    def state(self) -> dict[str, Any]:
        """Where it stands, JSON-able but for tensors."""
        return {
            "known": self.known.to_state(), "at": self.at, "moments": self._moments.to_state(), "spent": self.spent,
            "planned": self.planned, "began": self._began,
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.known = Queries.of_state(state["known"])
        self.at = state["at"].clone()
        self._moments = Moments.of_state(state["moments"])
        self.spent, self.planned, self._began = state["spent"], state["planned"], state["began"]

    # -- asking ------------------------------------------------------------------------------------------------------

    async def _ask(self, points: Tensor) -> Tensor:
        """What points [m, d] give, [m]."""
        before = self._rollouts.share()
        found = await self._rollouts.run_all([self._vector.values(point) for point in points], self._examples)
        values = self.known.means(found, self.settings.objective)
        if not self.spent:
            self._plan(before, len(points))
        self.known.add(points, values)
        self.spent += len(points)
        return values

    def _plan(self, before: float | None, asked: int) -> None:
        """Take no more than a share of what is left of the budget, by what the first queries took of it."""
        after = self._rollouts.share()
        if self.settings.queries is not None or before is None or after is None or after <= before:
            return
        left = int(_SHARE * (1 - after) * asked / (after - before))
        self.planned = min(self.planned, asked + max(1, left))

    def _chance(self) -> Generator:
        """Chance of its own for every batch, so that none has to be kept."""
        import torch

        draw = random.Random(f"zeroth/{self._rollouts.seed}/{self.spent}")  # noqa: S311 # reproducible, not a secret
        return torch.Generator().manual_seed(draw.getrandbits(63))

    def _around(self) -> Tensor:
        """The surrogate's next points: around the start until there are enough, then one around each next iterate."""
        import torch

        around, left = self.settings.around, self.planned - self.spent - 1
        chance = self._chance()
        missing = around.start + 1 - len(self.known)
        if missing > 0:
            count = min(missing, left)
            noise = torch.rand(count, len(self.at), dtype=torch.float64, generator=chance) * 2 - 1
            self._began = self.spent + count
            return self._vector.project(self.at + around.within * noise)
        surrogate = self._surrogate()
        points: list[Tensor] = []
        for ahead in range(min(self.settings.batch, left)):
            lr = self._lr(ahead)
            self._step(surrogate.gradient(self.at), lr)
            noise = torch.randn(len(self.at), dtype=torch.float64, generator=chance)
            points.append(self.at + around.spread * lr * noise)
        return self._vector.project(torch.stack(points))

    def _last(self) -> Tensor:
        """Where the last step led to; of the surrogate, its minimum near there, which a short phase does not step to."""
        if self.settings.method == "surrogate" and len(self.known):
            surrogate, self._moments = self._surrogate(), Moments.none(self.at)
            for i in range(_SETTLING):
                self._step(surrogate.gradient(self.at), _SETTLING_LR * (1 - i / _SETTLING))
        return self._vector.project(self.at[None])

    def _stencil(self) -> Stencil | None:
        """The next points of differences, or None where too few queries are left."""
        settings = self.settings
        if settings.method == "surrogate":
            return None
        kind: Difference = settings.method
        left = self.planned - self.spent - 1
        pairs = min(settings.batch, left // 2)
        if not pairs or queries_of(kind, len(self.at), pairs) > left:
            return None
        return stencil(kind, self.at, settings.difference, self._vector.project, self._chance(), pairs)

    # -- moving ------------------------------------------------------------------------------------------------------

    def _lr(self, ahead: int = 0) -> float:
        done = (self.spent + ahead - self._began) / max(1, self.planned - self._began)
        return self.settings.lr * (1 - done)

    def _surrogate(self) -> Gaussian:
        around = self.settings.around
        near = nearest(self.known.points, self.at, around.nearest)
        variances = NOISY_VARIANCES if self.settings.noisy else (around.variance,)
        values = self.known.filled()[near]
        return fit(self.known.points[near], values, lengthscales=around.lengthscales, variances=variances)

    def _step(self, gradient: Tensor, lr: float) -> None:
        """One step of Adam in the coordinates, back into what is allowed."""
        self._moments = self._moments.after(gradient, self._vector.coupled(gradient**2))
        self.at = self._vector.project(self.at + lr * self._moments.direction)

    def _best(self, start: Tensor) -> tuple[int | None, float, float]:
        """The best point's place (None where it is no better than the incumbent), its value and the incumbent's.

        Only points of this phase: the best of an earlier one was proposed then.
        """
        import torch

        values = self.known.filled()
        here = self.known.place_of(start)
        before = float("inf") if here is None else float(values[here])
        if self.settings.noisy:
            near = nearest(self.known.points, self.at, self.settings.around.nearest)
            smooth = self._surrogate().value(self.known.points[near])
            values = torch.full_like(values, torch.inf).index_copy(0, near, smooth)
            before = before if here is None or here not in near else float(values[here])
        old = len(values) - self.spent
        place = old + int(values[old:].argmin())
        value = float(values[place])
        return (place if value < before else None), value, before
