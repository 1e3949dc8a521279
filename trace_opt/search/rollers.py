"""Who runs the rollouts of a run, and the roller that has them run by workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trace_opt.core.feedback import Feedback, Guide
from trace_opt.core.memory import MEMORY
from trace_opt.core.parameter import Parameter, by_name
from trace_opt.core.rollout import Rollout
from trace_opt.errors import ProblemError, meant
from trace_opt.llm.elsewhere import is_loading
from trace_opt.search.distant import ATTEMPTS, DistantExecutor, WorkerStuck
from trace_opt.search.executors import Executor, LocalExecutor
from trace_opt.search.rolling import Job, Roller, late
from trace_opt.search.shipping import order_of, ship, taken_in
from trace_opt.search.timeouts import Watch

if TYPE_CHECKING:
    from trace_opt.search.account import Account
    from trace_opt.search.ledger import Ledger
    from trace_opt.search.settings import Settings


class DistantRoller(Roller):
    """Has rollouts run by workers; takes the place of a `Roller` in the driver.

    Args:
        workflow, guide: Functions.
        ledger: Who pays.
        executor: Has the workers.
        parameters: Those known here, by full name.
        timeout: As for `Roller`; workers hold rollouts to it.
    """

    def __init__(
        self, workflow: Callable[..., Any], guide: Guide, ledger: Ledger, executor: DistantExecutor,
        parameters: Mapping[str, Parameter[Any]], timeout: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(workflow, guide, ledger, executor, timeout)
        self.is_async = True  # a rollout is waited for, whatever the workflow is
        self._workers = executor
        self._parameters = parameters

    async def arun(self, job: Job) -> tuple[Rollout, Account]:
        """A rollout in a worker."""
        account = self.ledger.account("workflow", job, job.place)
        began = perf_counter()
        watch = None if self.timeout is None else Watch(account, self.timeout, self.late)
        order = order_of(job, keep=job.keep or self.seen is not None)
        try:
            found = await self._workers.rollout(order, account if watch is None else watch.purse)
        except WorkerStuck:
            if watch is None:
                raise
            account = watch.settled(self.ledger.account("workflow", job, job.place))
            return late(job, watch, account.cost), account
        if found is not None and watch is not None and watch.is_said(found.rollout.error):
            account = watch.settled(self.ledger.account("workflow", job, job.place))
        if found is None:
            said = f"WorkerLost: {ATTEMPTS} workers died of it, one after the other"
            rollout = Rollout(
                example=job.example, values=job.values, seed=job.seed, error=said, cost=account.cost,
                feedback=Feedback(text=f"the workflow failed with {said}"), seconds=perf_counter() - began,
            )  # fmt: skip
            return rollout, account
        memory = MEMORY.get()
        if memory is not None and found.saved.ops:
            memory.report(found.saved)
        rollout = taken_in(found, job, self._parameters, account.cost)
        if self.seen is not None and rollout.graph is not None:
            self._known(rollout)
            self.seen(job, rollout.graph)
        return (rollout if job.keep else replace(rollout, graph=None, node=None, output=None)), account

    def _known(self, rollout: Rollout) -> None:
        """Refuse parameters that only a worker knows.

        Raises:
            ProblemError: there is one.
        """
        for name, leaf in rollout.graph.parameters.items() if rollout.graph is not None else ():
            if leaf.parameter is None:
                raise ProblemError(
                    f"a worker read a parameter {name!r} that is not found here; make it where the workflow refers to it, "
                    "or pass parameters=[...]"
                )


def executor_of(given: Executor | str | None, address: str | None, concurrency: int) -> Executor:
    """Who runs a run's rollouts.

    Args:
        given: An `Executor`, "local" (the default), "processes" or "ray".
        address: Of a Ray cluster; None starts one on this machine.
        concurrency: Rollouts at once.

    Raises:
        ProblemError: it is none of them, or there is an address that it has no use for.
    """
    if is_loading():
        raise ProblemError(
            "a worker that loads this file finds a search begun in it; put what starts it under `if __name__ == "
            "'__main__':`"
        )
    if address is not None and given != "ray":
        raise ProblemError(f"address is {address!r}, which only executor='ray' has a use for; leave one of them out")
    if given is None or given == "local":
        return LocalExecutor(concurrency)
    if given == "processes":
        from trace_opt.search.processes import ProcessExecutor

        return ProcessExecutor()
    if given == "ray":
        from trace_opt.search.ray import RayExecutor

        return RayExecutor(address)
    if isinstance(given, str) or not hasattr(given, "run"):
        hint = meant(given, EXECUTORS, f"pass one of {', '.join(map(repr, EXECUTORS))} or an Executor")
        raise ProblemError(f"no executor is called {given!r:.60}; {hint}")
    return given


EXECUTORS = ("local", "processes", "ray")


def roller_of(settings: Settings, ledger: Ledger, executor: Executor) -> Roller:
    """Who runs one rollout of a run; where that is a worker, all that it needs is packed here, before anything runs.

    Raises:
        ProblemError: the problem cannot be sent.
    """
    if not isinstance(executor, DistantExecutor):
        return Roller(settings.workflow, settings.guide, ledger, executor, settings.timeout)
    known = {p.name: p for p in by_name(settings.reach.parameters_named()).values()} | (settings.parameters or {})
    shipment = replace(ship(settings.workflow, settings.guide, settings.reload, known), timeout=settings.timeout)
    executor.open(shipment, settings.reach.hashes, settings.concurrency)
    return DistantRoller(settings.workflow, settings.guide, ledger, executor, known, settings.timeout)
