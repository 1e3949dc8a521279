"""The attempts on one task, one after the other: made, rated, looked back on, and handed on to the next.

Everything is written once, as coroutines. Where no part of an episode is async they never wait, and are run through without
an event loop (`reflecting.driven`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.context import rollout
from trace_opt.core.feedback import Feedback
from trace_opt.core.strand import blames_candidate, here
from trace_opt.core.tracer import no_trace, plain, record, trace
from trace_opt.errors import RETRIED_KINDS, FeedbackError, LLMError, OpError, ProblemError, TraceError, TraceOptError
from trace_opt.llm.meter import LEDGER
from trace_opt.refine.local import Completions
from trace_opt.refine.outcomes import Rated
from trace_opt.refine.rating import gains_of, joined, recalled
from trace_opt.refine.reflecting import Hindsight, driven, seed_of, seeded, text_of
from trace_opt.refine.trajectory import Mark

if TYPE_CHECKING:
    from trace_opt.core.graph import Graph
    from trace_opt.refine.episodes import Episodes


class Trying:
    """The attempts on one task.

    Args:
        of: The episodes that this is one of.
        task: The task.
        seed: Decides the seeds of the attempts; the rollout's by default.
    """

    __slots__ = ("asking", "base", "feedback", "named", "number", "of", "other", "part", "task", "training")

    def __init__(self, of: Episodes, task: Any, seed: int | None = None) -> None:
        state = rollout()
        self.of = of
        self.task = task
        self.named = _named(of.attempt, task)
        self.asking = of.asking
        self.base = (state.seed or 0) if seed is None else seed
        self.other: Trying | None = None
        if of.others is not None:
            elsewhere = seed_of(self.base, "other")
            self.other = Trying(replace(of, others=None), of.others.of_task(task, elsewhere), elsewhere)
        # training rollouts of tensors are not meant: they would pay for reflections that nobody learns from
        moved = any(getattr(value, "requires_grad", False) for value in state.values.values())
        self.training = bool(state.training) and not moved and self.asking.policy is not None
        self.number = 0
        self.feedback = Feedback()
        self.part: Graph | None = None

    async def episode(self) -> Any:
        """All attempts."""
        frame = here()
        if frame is None or frame.memo is None:
            return await self._episode()
        # every rollout of a phase makes its attempts anew, so what ops gave here would be kept for nobody
        memo, frame.memo = frame.memo, None
        try:
            return await self._episode()
        finally:
            frame.memo = memo

    async def _episode(self) -> Any:
        of = self.of
        returns: list[Any] = []
        outputs: list[Any] = []
        reflections: list[Any] = []
        told: list[tuple[str | None, str]] = []
        rated: list[Any] = []
        memory: list[Any] = []
        for self.number in range(1, of.attempts + 1):
            output, error = await self.attempted(memory)
            value = of.failed if error is not None else await self.rated(output)
            returns.append(value)
            outputs.append(output)
            told.append((error, self.feedback.text))
            if value >= of.solved or self.number == of.attempts:
                break
            if of.reflector is None:
                reflections.append("")
                continue
            looking, seen = self, output
            if self.other is not None:
                looking = self.other
                seen = await looking.made(self.number, memory)
            reflection, worth = await looking.reflected(seen, memory)
            reflections.append(reflection)
            memory = recalled([*memory, reflection], of.memory)
            rated += worth
        return self.ended(returns, reflections, outputs, rated, told)

    async def made(self, number: int, memory: Sequence[Any]) -> Any:
        """The output of one attempt, solved or not, which is then to be looked back on."""
        self.number = number
        output, error = await self.attempted(memory)
        if error is None:
            await self.rated(output)
        return output

    # -- one attempt -----------------------------------------------------------------------------------------------------

    async def attempted(self, memory: Sequence[Any]) -> tuple[Any, str | None]:
        """Make an attempt: its output, or what it raised; what it recorded is kept in `part`."""
        seed = seed_of(self.base, "attempt", self.number)
        frame = here()
        if frame is not None and not frame.inside:
            with seeded(seed):
                return await self._attempted(memory)
        # nobody records: the reflector is to see the same as if somebody did
        state = rollout()
        try:
            with record(state.values, seed, training=bool(state.training), repeat=state.repeat):
                output, error = await self._attempted(memory)
                output = plain(output)
        except OpError as error:  # whoever called it knows of no recording
            raise error.__cause__ or error from None
        return output, error

    async def _attempted(self, memory: Sequence[Any]) -> tuple[Any, str | None]:
        frame = here()
        text = self.recall(list(memory)) if memory else ""
        mark = None if frame is None else Mark.of(frame)
        error: str | None = None
        output: Any = None
        try:
            output = self._tried(text)
            if inspect.isawaitable(output):
                output = await output
        except Exception as raised:
            if not _is_fault(raised):
                raise
            output = None  # where it was awaited, it is the coroutine
            error = f"{type(raised).__name__}: {raised}"
            self.feedback = Feedback(score=self.of.failed, text=f"the attempt failed with {error}")
        self.part = None if mark is None else mark.part()
        return output, error

    def _tried(self, text: Any) -> Any:
        if self.named is None:
            return self.of.attempt(self.task, text)
        return self.of.attempt(**self.named, reflection=text)

    @trace
    def recall(self, reflections: list[str]) -> str:
        """What the next attempt is handed: the latest reflections."""
        return joined(reflections)

    async def rated(self, output: Any) -> Any:
        """The return of an attempt; what else the guide said is kept in `feedback`."""
        return await self.arate(output) if self.of.is_async else self.rate(output)

    @trace
    def rate(self, output: Any) -> float:
        """The return of an attempt."""
        return driven(self._rated(output))

    @trace(name="rate")
    async def arate(self, output: Any) -> float:
        """The return of an attempt."""
        return await self._rated(output)

    async def _rated(self, output: Any) -> float:
        self.feedback = await self._said(output)
        return self.feedback.value or 0.0

    async def _said(self, output: Any) -> Feedback:
        """What the guide says of an attempt.

        Raises:
            TraceError: it raised, or gave no score, which is no fault of the candidate that is tried.
        """
        try:
            with no_trace(), _guiding(alone=not self.of.is_async):
                said: Any = self.of.guide(output, self.task)
                if inspect.isawaitable(said):
                    said = await said
            feedback = Feedback.of(said)
        except Exception as error:
            if isinstance(error, TraceOptError) and not isinstance(error, FeedbackError):
                raise
            raise TraceError(
                f"the guide raised {type(error).__name__}: {error} on the output of an attempt, {output!r:.60}; let it take "
                "whatever an attempt gives"
            ) from error
        if feedback.value is None:
            raise TraceError(
                f"the guide returned {said!r:.60} for an attempt, which holds no score; return a number, or a Feedback "
                "with a score"
            )
        return feedback

    # -- looking back ------------------------------------------------------------------------------------------------------

    async def reflected(self, output: Any, memory: Sequence[Any]) -> tuple[Any, list[Any]]:
        """A reflection on the attempt, and, in training, what it and others were worth."""
        seed = seed_of(self.base, "reflect", self.number)
        prompt = self.hindsight(output, list(memory))
        with seeded(seed):
            if not self.training:
                said = await self.asking.aask(prompt) if self.of.is_async else self.asking.ask(prompt)
                return self.reflect(said), []
            n = self.of.completions
            if self.of.is_async:
                said = await self.asking.asample(prompt, n, seed)
                worth = await self.again(said, list(memory))
            else:
                said = self.asking.sample(prompt, n, seed)
                worth = self.gain(said, list(memory))
        return self.reflect(said), [worth]

    @trace
    def hindsight(self, output: Any, reflections: list[str]) -> Any:
        """What the reflector is asked about a failed attempt: the task, earlier reflections, what it did and its return."""
        of, part = self.of, self.part
        if part is None:
            raise TraceError("an attempt is looked back on that was not recorded")
        task, memory = self.task, tuple(reflections)
        if of.render is not None:
            return of.render(task, part, output, self.feedback, memory)
        shown = self.named if self.named is not None else task if isinstance(task, str) else None
        return Hindsight(of.instruction, of.tokens)(shown, part, output, self.feedback, memory, hidden=task)

    @trace
    def reflect(self, said: Any) -> str:
        """The reflection in what the reflector said; of several the first."""
        return text_of(said)

    @trace
    def gain(self, said: dict[str, Any], reflections: list[str]) -> dict[str, Any]:
        """What each reflection is worth: mean return of attempts with it, less that of attempts without."""
        return driven(self._gains(said, reflections))

    @trace(name="gain")
    async def again(self, said: dict[str, Any], reflections: list[str]) -> dict[str, Any]:
        """What each reflection is worth: mean return of attempts with it, less that of attempts without."""
        return await self._gains(said, reflections)

    async def _gains(self, said: dict[str, Any], reflections: list[str]) -> dict[str, Any]:
        of = self.of
        drawn = Completions.of_json(said)
        texts = [joined(recalled([*reflections, text.strip()], of.memory)) for text in drawn.texts]
        gains: list[float] = []
        baseline = 0.0
        if of.pairs:
            gains, baseline = await gains_of(
                self._return, texts, joined(reflections), pairs=of.pairs, seed=seed_of(self.base, "gain", self.number),
                together=of.is_async,
            )  # fmt: skip
        labels = () if of.labels is None else _labelled(of.labels(self.task))
        return Rated(
            completions=drawn, gains=tuple(gains), baseline=baseline, attempt=self.number, labels=labels
        ).to_json()

    async def _return(self, text: str) -> float:
        """The return of one attempt that is not recorded."""
        try:
            output = self._tried(text)
            if inspect.isawaitable(output):
                output = await output
        except Exception as raised:
            if not _is_fault(raised):
                raise
            return self.of.failed
        return (await self._said(output)).value or 0.0

    def ended(
        self, returns: list[Any], reflections: list[Any], outputs: list[Any], rated: list[Any],
        told: Sequence[tuple[str | None, str]],
    ) -> Any:  # fmt: skip
        """The episode as the workflow's output."""
        errors, texts = [error for error, _ in told], [text for _, text in told]
        return self.put(returns, reflections, outputs, rated, errors, texts)

    @trace(name="episode")
    def put(
        self, returns: list[float], reflections: list[str], outputs: list[Any], rated: list[Any],
        errors: list[str | None], texts: list[str],
    ) -> dict[str, Any]:  # fmt: skip
        """All that the attempts came to."""
        return {
            "returns": list(returns), "reflections": list(reflections), "outputs": list(outputs), "errors": errors,
            "texts": texts, "attempts": self.of.attempts, "rated": list(rated),
        }  # fmt: skip


def _labelled(found: Any) -> tuple[str, ...]:
    if isinstance(found, str):
        raise TraceError(f"labels gave {found!r:.60}, a text, whose letters are no labels; return a list of texts")
    return tuple(found)


@contextmanager
def _guiding(*, alone: bool) -> Generator[None]:
    """Book what is spent meanwhile as the guide's, where nothing else of the rollout runs beside it."""
    ledger = LEDGER.get() if alone else None
    if ledger is None:
        yield
        return
    role, ledger.role = ledger.role, "guide"
    try:
        yield
    finally:
        ledger.role = role


def _is_fault(error: Exception) -> bool:
    """Whether an attempt that raised has failed; an outage of a model says nothing of it, nor of a reflection."""
    return blames_candidate(error) and not (isinstance(error, LLMError) and error.kind in RETRIED_KINDS)


def _named(attempt: Callable[..., Any], task: Any) -> dict[str, Any] | None:
    """What an attempt takes of a task by name; None where it takes the whole.

    Raises:
        ProblemError: none of its arguments, or the wrong one, would be handed the reflection.
    """
    try:
        parameters = list(inspect.signature(attempt).parameters.values())
    except (ValueError, TypeError):  # some builtins tell nothing about theirs
        return None
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    called = getattr(attempt, "__name__", type(attempt).__name__)
    others = [name for name in names if name != "reflection"]
    held = cast("Mapping[str, Any]", task if isinstance(task, Mapping) else {})
    if not names or (names[0] not in held and not (names[0] == "reflection" and held.keys() & set(others))):
        if names[:1] == ["reflection"]:
            raise ProblemError(
                f"the first argument of {called}() is 'reflection', which would be handed the task; put the task first"
            )
        return None
    if "reflection" not in names:
        raise ProblemError(
            f"{called}() takes {names[0]!r} of the task by name, so the reflection needs a name too; call that "
            f"argument 'reflection' (it has {', '.join(map(repr, names))})"
        )
    return {name: held[name] for name in others if name in held}
