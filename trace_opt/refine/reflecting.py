"""Looking back on a failed attempt: what the reflector is asked, and how whatever it is gets asked.

A reflector is a language model, a policy with an adapter, or a function of messages. Each is asked in an op called `llm`,
which reads the adapter where there is one, so that feedback on an episode reaches it.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from trace_opt.core.adapter import Adapter
from trace_opt.core.context import STATE, RolloutState, rollout
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import trace
from trace_opt.errors import ProblemError, TraceError
from trace_opt.llm.base import LLM, Message, Reply
from trace_opt.optim.text import block, cut, literal, tokens_in
from trace_opt.refine.local import Completions, LocalPolicy, Prompt
from trace_opt.refine.trajectory import trajectory

if TYPE_CHECKING:
    from trace_opt.core.feedback import Feedback
    from trace_opt.core.graph import Graph

T = TypeVar("T")

INSTRUCTION = (
    "An agent failed at a task and will try again from the start. Say in one or two sentences what went wrong, and what "
    "to do in the next attempt: name the places and the actions."
)

_LEAST_TOKENS = 100


class Render(Protocol):
    """What writes a reflector's prompt."""

    def __call__(self, task: Any, graph: Graph, output: Any, feedback: Feedback, memory: tuple[str, ...]) -> Prompt:
        """The prompt about one failed attempt.

        Args:
            task: The example.
            graph: What the attempt did.
            output: What it gave; None where it raised.
            feedback: What the guide said of it.
            memory: The reflections that the attempt was given, the oldest first.
        """
        ...


@dataclass(frozen=True, slots=True)
class Hindsight:
    """The prompt that a reflector gets where no other is given.

    Args:
        instruction: What it is to do; a Parameter is tuned like any text.
        tokens: Length of the rest at most: the task, earlier reflections, what the attempt did, what came of it.
    """

    instruction: str | Parameter[str] = INSTRUCTION
    tokens: int = 512

    def __post_init__(self) -> None:
        if self.tokens < _LEAST_TOKENS:
            raise ProblemError(
                f"tokens is {self.tokens!r}, too few for a task and an attempt; give {_LEAST_TOKENS} or more"
            )

    def __call__(
        self, task: Any, graph: Graph, output: Any, feedback: Feedback, memory: tuple[str, ...], *, hidden: Any = None
    ) -> list[Message]:
        """See `Render`.

        Args:
            task: What the reflector may see of it, or None.
            hidden: The task itself, which is not written out where the attempt handed it on as it was.
        """
        given = self.instruction
        system = str(given.value) if isinstance(given, Parameter) else given
        about = self._about(task, graph, output, feedback, memory, hidden)
        return [{"role": "system", "content": system}, {"role": "user", "content": about}]

    def _about(
        self, task: Any, graph: Graph, output: Any, feedback: Feedback, memory: Sequence[str], hidden: Any
    ) -> str:
        room = 3.0 * self.tokens  # characters; what they come to is measured
        for _ in range(8):
            text = self._written(int(room), task, graph, output, feedback, memory, hidden)
            excess = tokens_in(text) - self.tokens
            if excess <= 0:
                return text
            room *= 0.9 * self.tokens / (self.tokens + excess)
        # even the ends of everything are too much together
        return self._written(int(room), None, graph, None, replace(feedback, text=""), (), hidden)

    def _written(
        self, room: int, task: Any, graph: Graph, output: Any, feedback: Feedback, memory: Sequence[str], hidden: Any
    ) -> str:
        """The text with parts of about a share of the room each; what the attempt did gets what is left."""
        parts = [] if task is None else [f"# Task\n{_quoted(task, room // 5)}"]
        if any(memory):
            parts.append("# Earlier advice\n" + _latest([text for text in memory if text], room // 5))
        score = "" if feedback.value is None else f"return {feedback.value:.6g}"
        said = block(cut(feedback.text, room // 6), "") if feedback.text else ""
        result = "# Result\n" + "\n".join(line for line in (score, said) if line)
        end = "# Advice for the next attempt"
        gave = "" if output is None else f"\ngave {literal(output, room // 12)}"
        left = self.tokens - tokens_in("\n\n".join([*parts, "# What the agent did", gave, result, end])) - 8
        parts.append(f"# What the agent did\n{trajectory(graph, max(40, left), hidden)}{gave}")
        return "\n\n".join([*parts, result, end])


def _quoted(task: Any, limit: int) -> str:
    """A task behind marks, a mapping key by key."""
    if isinstance(task, Mapping):
        held = cast("Mapping[Any, Any]", task)
        each = max(20, limit // max(1, len(held)))
        return "\n".join(f"| {literal(key, 60)}: {literal(value, each)}" for key, value in list(held.items())[:20])
    return block(cut(task if isinstance(task, str) else literal(task, limit), limit), "")


def _latest(memory: Sequence[str], limit: int) -> str:
    """The latest reflections that fit, each cut to the room of two."""
    kept: list[str] = []
    for text in reversed(memory):
        shown = block(cut(text, limit // 2), "")
        limit -= len(shown)
        if kept and limit < 0:
            break
        kept.append(shown)
    return "\n".join(reversed(kept))


# -- who is asked --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How a reflector is asked.

    Attributes:
        reflector: As `Episodes` was given it.
        max_tokens: Length of a reflection at most.
        temperature: At which it is drawn.
        untrained: Whether a policy answers as it did before it learned anything.
    """

    reflector: Any
    max_tokens: int
    temperature: float
    untrained: bool = False

    @property
    def policy(self) -> LocalPolicy | None:
        """The reflector, where it has an adapter."""
        found = self.reflector
        return cast("LocalPolicy", found) if hasattr(found, "adapter") and hasattr(found, "sample") else None

    @trace(name="llm")
    def sample(self, prompt: Prompt, n: int, seed: int) -> dict[str, Any]:
        """Draw reflections from the policy with the adapter in force.

        Args:
            prompt: Text or messages.
            n: How many.
            seed: Of the draws.

        Returns:
            `Completions` as plain data.
        """
        return self._sampled(self._adapter(), prompt, n, seed)

    @trace(name="llm")
    async def asample(self, prompt: Prompt, n: int, seed: int) -> dict[str, Any]:
        """`sample` without blocking."""
        return await asyncio.to_thread(self._sampled, self._adapter(), prompt, n, seed)

    def _adapter(self) -> Adapter:
        """The adapter to answer with; reading it is what ties the op to it."""
        policy = self.policy
        if policy is None:
            raise TraceError(f"reflector {self.reflector!r:.60} draws no samples; give a policy with an adapter")
        return Adapter() if self.untrained else policy.adapter.value

    def _sampled(self, adapter: Adapter, prompt: Prompt, n: int, seed: int) -> dict[str, Any]:
        policy = cast("LocalPolicy", self.reflector)
        with policy.lock:
            policy.load(adapter)
            drawn = policy.sample([prompt], n, max_tokens=self.max_tokens, temperature=self.temperature, seed=seed)
        return drawn.to_json()

    def ask(self, prompt: Any) -> Any:
        """One reflection, from whatever answers; a result where it is recorded."""
        if self.policy is not None:
            return self.sample(prompt, 1, rollout().seed or 0)
        if isinstance(self.reflector, LLM):
            return self.reflector.reply(prompt, max_tokens=self.max_tokens, temperature=self.temperature)
        return _spoken(self.reflector)(prompt)

    async def aask(self, prompt: Any) -> Any:
        """`ask` without blocking."""
        if self.policy is not None:
            return await self.asample(prompt, 1, rollout().seed or 0)
        if isinstance(self.reflector, LLM):
            return await self.reflector.areply(prompt, max_tokens=self.max_tokens, temperature=self.temperature)
        said = _spoken(self.reflector)(prompt)
        return await said if inspect.isawaitable(said) else said


def _spoken(reflector: Any) -> Callable[[Any], Any]:
    """A function of messages as an op."""
    known: bool = getattr(reflector, "__trace_op__", None) is not None
    return cast("Callable[[Any], Any]", reflector if known else trace(name="llm")(reflector))


def text_of(said: Any) -> str:
    """The reflection in what a reflector gave; "" where a model declined."""
    if isinstance(said, Reply):
        declined = said.finish == "refusal" or (said.finish == "content_filter" and not said.text)
        return "" if declined else said.text.strip()
    if isinstance(said, Mapping):
        return Completions.of_json(cast("Mapping[str, Any]", said)).texts[0].strip()
    if not isinstance(said, str):
        raise TraceError(f"the reflector gave {said!r:.60}; let it return the reflection as a text")
    return said.strip()


# -- chance and control ------------------------------------------------------------------------------------------------


def seed_of(seed: int, *place: object) -> int:
    """A seed for one part of a rollout, which depends on the rollout's and on nothing else that happens in it."""
    text = "/".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Let a part of a rollout have a seed and a stream of its own; what is recorded goes where it went."""
    state = rollout()
    token = STATE.set(RolloutState(state.values, seed, training=state.training, repeat=state.repeat))
    try:
        yield
    finally:
        STATE.reset(token)


def driven(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that never has to wait.

    Raises:
        TraceError: it does.
    """
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    work.close()
    raise TraceError("an attempt or reflector returned something to await; define it as `async def`")
