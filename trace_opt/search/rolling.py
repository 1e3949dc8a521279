"""One rollout: the workflow recorded on one example under one candidate's values, then the guide's word on its output.

What the workflow raises is data: it becomes feedback. What the guide raises is the user's mistake and goes up, as do
misuse of tracing, a spent budget and a key that does not work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.context import in_force
from trace_opt.core.feedback import Feedback, Guide
from trace_opt.core.neural import CHANCE
from trace_opt.core.node import Failure
from trace_opt.core.rollout import Cost, Rollout
from trace_opt.core.tracer import plain, record
from trace_opt.core.wrapper import is_async
from trace_opt.errors import FeedbackError, OpError
from trace_opt.llm.meter import charging
from trace_opt.search.executors import GRACE_S
from trace_opt.search.timeouts import TIMEOUT, Watch

if TYPE_CHECKING:
    import torch

    from trace_opt.core.binding import Bound
    from trace_opt.core.graph import Graph
    from trace_opt.core.node import Node
    from trace_opt.core.reuse import Memo
    from trace_opt.search.account import Account
    from trace_opt.search.admission import Place
    from trace_opt.search.executors import Executor
    from trace_opt.search.ledger import Ledger


_PACKAGE = str(Path(__file__).parents[1])
_LONGEST_TRACEBACK = 2000


class Job:
    """One rollout to run. Plainly slotted, for one is made for every rollout.

    Attributes:
        candidate: The number of the candidate; -1 for values that are no candidate.
        values: Its values by full parameter name.
        number, example: The example.
        bound: Positional and keyword arguments that it becomes.
        seed: The rollout's seed.
        keep: Whether the graph is wanted.
        training: Whether tensors among the values that require grad are handed out as they are.
        apart: Whether it runs in another process than the search, so that gradients have to travel by name.
        memo: What op calls on the example gave before, or None.
        repeat: Which time the example is run.
        draws: Whether it drew from torch's own stream; None where nobody asks.
        ended: What came of it and who paid, although it was cancelled; else None.
        watch: Holds it to a timeout, or None.
        place: Its place among those that run at once, None where it is alone.
    """

    __slots__ = (
        "_name", "apart", "bound", "candidate", "draws", "ended", "example", "keep", "memo", "number", "place", "repeat",
        "seed", "training", "values", "watch",
    )  # fmt: skip

    def __init__(
        self, candidate: int, values: dict[str, Any], number: int, example: Any, *, bound: Bound, seed: int,
        name: Callable[[int], str] = str, keep: bool = False,
    ) -> None:  # fmt: skip
        self.candidate = candidate
        self.values = values
        self.number = number
        self.example = example
        self.bound = bound
        self.seed = seed
        self.keep = keep
        self.training = False
        self.apart = False
        self.repeat = 0
        self.draws: bool | None = None
        self.ended: tuple[Rollout, Account] | None = None
        self.memo: Memo | None = None
        self.place: Place | None = None
        self.watch: Watch | None = None
        self._name = name

    @property
    def name(self) -> str:
        """What messages call the example."""
        return self._name(self.number)

    def __str__(self) -> str:
        return f"candidate {self.candidate}, {self.name}"


class Roller:
    """Runs rollouts of one workflow under one guide, each paid for by an account of its own.

    Args:
        workflow: Sync or async function of an example.
        guide: `(output, example) -> Feedback`, sync or async.
        ledger: Who pays.
        executor: Lends threads to the guide of an async workflow.
        timeout: Seconds that a rollout may take, its guide included; None is no limit.

    Attributes:
        seen: Shown every recording that has ended.
        late: Told of what a rollout that was given up reports to have spent afterwards, by role.
        stuck: How many threads were left to end by themselves.
    """

    def __init__(
        self, workflow: Callable[..., Any], guide: Guide, ledger: Ledger, executor: Executor, timeout: float | None = None
    ) -> None:  # fmt: skip
        self.workflow = workflow
        self.guide = guide
        self.ledger = ledger
        self.timeout = timeout
        self.seen: Callable[[Job, Graph], None] | None = None
        self.late: Callable[[Mapping[str, Cost]], None] | None = None
        self.stuck = 0
        self._executor = executor
        self.is_async = is_async(workflow)

    def run(self, job: Job) -> tuple[Rollout, Account]:
        """A rollout of a sync workflow."""
        account = self.ledger.account("workflow", job, job.place)
        if self.timeout is None:
            return self._rolled(job, account), account
        watch = job.watch = Watch(account, self.timeout, self.late)
        found = watch.wait(lambda: self._rolled(job, watch.purse))
        if found is not None:
            return found, account
        self.stuck += 1
        return self._given_up(job, watch)

    async def arun(self, job: Job) -> tuple[Rollout, Account]:
        """A rollout of an async workflow."""
        account = self.ledger.account("workflow", job, job.place)
        if self.timeout is None:
            return await self._arolled(job, account), account
        watch = job.watch = Watch(account, self.timeout, self.late)
        found = await watch.await_(self._arolled(job, watch.purse))
        if found is not None:
            return found, account
        return self._given_up(job, watch)

    def _given_up(self, job: Job, watch: Watch) -> tuple[Rollout, Account]:
        """The rollout of a workflow that took too long: what it did until then, and that it did not end."""
        account = watch.settled(self.ledger.account("workflow", job, job.place))
        graph = None if watch.graph is None else watch.graph.given_up()
        if graph is not None and self.seen is not None:
            self.seen(job, graph)
        return late(job, watch, account.cost, graph), account

    def _rolled(self, job: Job, account: Account) -> Rollout:
        began = perf_counter()
        args, keywords = job.bound
        before: torch.Tensor | None = None
        if job.training:
            _seed_torch(job)
            before = torch_stream().get_state() if job.draws is not None else None
        with charging(account):
            try:
                with record(job.values, job.seed, training=job.training, memo=job.memo, repeat=job.repeat) as graph:
                    if job.watch is not None:
                        job.watch.graph = graph
                    output = self.workflow(*args, **keywords)
                    if _awaits(output):
                        output = asyncio.run(_awaited(output))
                    node = graph.output(output) if job.keep else None
            except OpError as error:
                self._show(job, error.graph)
                return failed(job, error, account, perf_counter() - began)
            self._show(job, graph)
            output = plain(output)
            feedback = self._said(job, output, account)
        if job.draws is not None and before is not None:
            job.draws = bool((torch_stream().get_state() != before).any())
        rollout = done(job, graph, node, output, feedback, account, perf_counter() - began)
        return travelling(rollout) if job.apart else rollout

    async def _arolled(self, job: Job, account: Account) -> Rollout:
        began = perf_counter()
        args, keywords = job.bound
        with charging(account):
            try:
                with record(job.values, job.seed, training=job.training, memo=job.memo, repeat=job.repeat) as graph:
                    if job.watch is not None:
                        job.watch.graph = graph
                    output = await self.workflow(*args, **keywords)
                    node = graph.output(output) if job.keep else None
            except OpError as error:
                self._show(job, error.graph)
                return failed(job, error, account, perf_counter() - began)
            self._show(job, graph)
            output = plain(output)

            def whole() -> Rollout:
                feedback = self._said(job, output, account)
                rollout = done(job, graph, node, output, feedback, account, perf_counter() - began)
                return travelling(rollout) if job.apart else rollout

            return await self._judged(job, account, whole)

    async def _judged(self, job: Job, account: Account, judge: Callable[[], Rollout]) -> Rollout:
        """What the guide makes of a rollout, in a thread, since one that asks a model would hold up the loop."""
        judging = asyncio.ensure_future(self._executor.in_thread(judge))
        try:
            return await asyncio.shield(judging)
        except asyncio.CancelledError:
            if job.watch is None or not job.watch.too_long:
                # what was paid for is worth a moment's wait: else it would be run again after a resume
                await asyncio.wait([judging], timeout=GRACE_S)
                if judging.done() and not judging.cancelled() and judging.exception() is None:
                    job.ended = judging.result(), account if job.watch is None else job.watch.account
            raise

    def _show(self, job: Job, graph: Graph) -> None:
        if self.seen is not None and (job.watch is None or not job.watch.over):
            self.seen(job, graph)

    def _said(self, job: Job, output: Any, account: Account) -> Feedback:
        """The guide's feedback.

        Raises:
            FeedbackError: it holds no finite score.
            Exception: what the guide raised, with the example named.
        """
        account.role = "guide"
        try:
            with in_force(job.values, job.seed, training=job.training, repeat=job.repeat):
                said: Any = self.guide(output, job.example)
                if _awaits(said):
                    said = asyncio.run(_awaited(said))
            feedback = Feedback.of(said) if job.training else scored(Feedback.of(said))
        except FeedbackError as error:
            raise FeedbackError(f"{error} (from the guide, on {job.name})") from error
        except Exception as error:
            error.add_note(f"raised by the guide on {job.name}")
            raise
        if not (job.training and feedback.loss is not None) and feedback.value is None:
            raise FeedbackError(
                f"the guide returned {said!r:.60} on {job.name}, which holds no score; return a number (greater is "
                "better), or a Feedback with a score"
            )
        return feedback


def aliased(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with an alias of each tensor that trains, for one of several rollouts.

    The gradient of an alias is its rollout's part of the tensor's, so that parts can be added up in the rollouts' order,
    whichever of them ran first.
    """
    from trace_opt.core.parameter import is_tensor

    return {
        name: value.view_as(value) if is_tensor(value) and value.requires_grad else value
        for name, value in values.items()
    }


def _seed_torch(job: Job) -> None:
    """Let a training rollout's seed decide what it draws from torch's own stream (dropout).

    The stream is the process's: it decides as long as training rollouts run one after another, as those do that return
    at once. Whoever trains puts it back to where it was. A `TorchModule` that draws in another thread meanwhile has its own
    seed in it, which must not be written over.
    """
    with CHANCE:
        torch_stream().manual_seed(job.seed * 1_000_003 + job.repeat)


@cache
def torch_stream() -> torch.Generator:
    """What torch's functions draw from on the CPU."""
    import torch

    return torch.default_generator


def scored(feedback: Feedback) -> Feedback:
    """Feedback with a score: where it holds only a loss, that is what is bad, so its negative is the score."""
    loss = feedback.loss
    if feedback.score is not None or loss is None:
        return feedback
    score = {name: -float(part) for name, part in loss.items()} if isinstance(loss, dict) else -float(loss)
    return replace(feedback, score=score)


def _awaits(value: Any) -> bool:
    return _are_awaited(cast("Any", type(value)))


@lru_cache(maxsize=256)
def _are_awaited(kind: type) -> bool:
    # not inspect.isawaitable, which also looks for generators made coroutines and takes twenty times as long
    return hasattr(kind, "__await__")


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


def done(
    job: Job, graph: Graph, node: Node[Any] | None, output: Any, feedback: Feedback, account: Account, seconds: float
) -> Rollout:
    """The rollout of a workflow that came through."""
    return Rollout(
        example=job.example, values=job.values, seed=job.seed, graph=graph if job.keep else None, node=node,
        output=output if job.keep else None, feedback=feedback, cost=account.cost, seconds=seconds,
    )  # fmt: skip


def travelling(rollout: Rollout) -> Rollout:
    """A training rollout as it can go to another process: gradients by name in place of what leads to them."""
    from trace_opt.core.tensors import gradients_by_name

    loss = rollout.feedback.loss
    if loss is None:  # who trains by what was drawn and earned reads it in the output
        return replace(rollout, graph=None, node=None, values={})
    named = loss if isinstance(loss, dict) else {"loss": loss}
    gradients = {name: gradients_by_name(part, rollout.values) for name, part in named.items()}
    values = {name: float(part.detach()) for name, part in named.items()}
    said = replace(
        rollout.feedback, score=rollout.feedback.score or {name: -value for name, value in values.items()},
        loss={name: part.detach() for name, part in named.items()},
    )  # fmt: skip
    return replace(rollout, graph=None, node=None, output=None, values={}, feedback=said, gradients=gradients)


def failed(job: Job, error: OpError, account: Account, seconds: float) -> Rollout:
    """The rollout of a workflow that raised: the failure is its feedback, the failed op call what it is about."""
    failure: Failure = error.node.value
    said = f"{failure.type}: {failure.message}" if failure.message else failure.type
    text = f"the workflow failed with {said}"
    where = own_lines(failure.traceback)
    return Rollout(
        example=job.example, values=job.values, seed=job.seed, graph=error.graph if job.keep else None,
        node=error.node if job.keep else None, feedback=Feedback(text=f"{text}\n{where}" if where else text),
        error=said, cost=account.cost, seconds=seconds,
    )  # fmt: skip


def late(job: Job, watch: Watch, cost: Cost, graph: Graph | None = None) -> Rollout:
    """The rollout of a workflow that took longer than it may.

    Args:
        job: What was to be run.
        watch: Held it to its time.
        cost: What it cost until then.
        graph: What was recorded until then, where it is known.
    """
    node = graph.output_of_leaves(Failure(TIMEOUT, watch.said, "")) if graph is not None and job.keep else None
    return Rollout(
        example=job.example, values=job.values, seed=job.seed, graph=graph if job.keep else None, node=node,
        feedback=Feedback(text=f"the workflow {watch.said}"), error=f"{TIMEOUT}: {watch.said}", cost=cost,
        seconds=watch.seconds,
    )  # fmt: skip


def own_lines(traceback: str) -> str:
    """A traceback's frames in the user's own code, innermost last."""
    frames: list[str] = []
    for line in traceback.splitlines():
        if line.startswith('  File "'):
            frames.append(line)
        elif line.startswith("    ") and frames:
            frames[-1] += "\n" + line
    own = [f for f in frames if _PACKAGE not in f and '"<trace ' not in f]
    return "\n".join(own)[-_LONGEST_TRACEBACK:]
