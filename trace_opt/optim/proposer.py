"""What optimizers that ask a language model for values have in common: the model, the question, the answer's values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from trace_opt.errors import LLMError, ReplyError
from trace_opt.optim.base import Optimizer, Proposal, Trial
from trace_opt.optim.functions import RULES, codes
from trace_opt.optim.memory import Attempt, attempts_text, key_of
from trace_opt.optim.reply import ask
from trace_opt.optim.schema import answerable
from trace_opt.optim.text import name_text

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.core.rollout import Cost, Rollouts
    from trace_opt.llm.base import LLM


_CHARACTERS = 4  # of a token of English text
_IDLE = 2
_SUGGESTED = "# Suggested already\nThese will be tried; give values that differ from them in what they say, not in a word or two."


class Proposer(Optimizer):
    """Asks a language model once a step for new values of all its parameters, and once more about invalid ones.

    Args:
        model: An `LLM`, its name for `connect`, or None for the run's model.
        tokens: The most that the problem text may take.
        max_tokens: The most that an answer may take.
        temperature: How much the model's answers vary; None leaves it to the model's defaults.
        alternatives: How many sets of values `family` asks for.

    Attributes:
        reflects: It reads what went wrong, so a search may ask it about one of its parameters alone.
    """

    reflects = True

    def __init__(
        self,
        model: str | LLM | None,
        *,
        tokens: int,
        max_tokens: int,
        temperature: float | None,
        alternatives: int,
    ) -> None:
        super().__init__()
        if alternatives < 1:
            raise ValueError(f"{type(self).__name__} got alternatives={alternatives!r}; give at least 1")
        self.alternatives = alternatives
        self._llm = _connected(model)
        self.needs_model = self._llm is None
        self.tokens = tokens
        self._fields: dict[str, Any] = {"max_tokens": max_tokens}
        if temperature is not None:
            self._fields["temperature"] = temperature

    @abstractmethod
    def question(self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]) -> str:
        """The problem text, about `tokens` long."""

    @property
    @abstractmethod
    def system(self) -> str:
        """What the model is told before any problem."""

    @final
    def handles(self, parameter: Parameter[Any]) -> bool:
        """Text, code, numbers, booleans, choices and structured values; never tensors or demonstrations."""
        return answerable(parameter)

    @final
    def use(self, llm: LLM) -> None:
        """Take the run's model, unless this optimizer was made with one."""
        if self.needs_model:
            self._llm = llm
            self.needs_model = False

    @final
    def call_at_most(self) -> Cost | None:
        """The most that one request costs; None without a model."""
        if self._llm is None:
            return None
        longest = "x" * (len(self.system) + _CHARACTERS * self.tokens)
        return self._llm.price(self._llm.request(longest, **self._fields))

    @final
    async def propose(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
    ) -> Proposal:
        """Ask for values (see `Optimizer.propose`).

        Raises:
            LLMError: no model was given, or the call failed.
            ReplyError: neither reply held a valid value.
            ValueError: the variables alone do not fit in `tokens`.
        """
        return await self._asked(parameters, rollouts, history, ())

    @final
    async def family(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
    ) -> dict[str, list[Any]]:
        """Several sets of values, as a source of `Categorical`: each is asked for with the earlier ones shown.

        Asking ends before `alternatives` where two replies in a row bring nothing new.

        Raises:
            LLMError, ValueError: as `propose`.
            ReplyError: no reply held a valid value.
        """
        found: list[Mapping[str, Any]] = []
        problem: ReplyError | None = None
        idle = 0
        for number in range(self.alternatives):
            values: Mapping[str, Any] = {}
            try:
                values = (await self._asked(parameters, rollouts, history, found, number)).values
            except ReplyError as error:
                problem = error
            if values and values not in found:
                found.append(values)
                idle = 0
            else:
                idle += 1
            if idle == _IDLE:
                break
        if problem is not None and not found:
            raise problem
        return {p.name: [values[p.name] for values in found if p.name in values] for p in parameters}

    async def _asked(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial],
        suggested: Sequence[Mapping[str, Any]], number: int = 0,
    ) -> Proposal:  # fmt: skip
        if self._llm is None:
            raise LLMError(
                f"{type(self).__name__} has no model; pass one, as in {type(self).__name__}('openai/gpt-4.1-mini')",
                kind="model",
            )
        if not len(rollouts):
            return Proposal(reason="there is no rollout to learn from")
        others = attempts_text(parameters, [Attempt(values, None) for values in suggested], _SUGGESTED)
        parts = [self.question(parameters, rollouts, history), others, closing(parameters)]
        messages = [
            {"role": "system", "content": self.system},
            {"role": "user", "content": "\n\n".join(part for part in parts if part)},
        ]
        answer, notes = await ask(self._llm, messages, parameters, seed=rollouts.seed + number, **self._fields)
        if not answer.values and answer.problems:
            name, why = next(iter(answer.problems.items()))
            raise ReplyError(
                f"{self._llm.name!r} gave no usable value in two replies; of {name!r} it was told: {why}",
                problems=tuple(f"{name}: {why}" for name, why in answer.problems.items()),
            )
        return Proposal(_changed(parameters, answer.values), answer.reason, notes)


def closing(parameters: Sequence[Parameter[Any]]) -> str:
    """The last lines of a question: what the answer looks like here."""
    names = ", ".join(name_text(parameter.name) for parameter in parameters[:50])
    more = f" and {len(parameters) - 50} more" if len(parameters) > 50 else ""
    return (
        "# Answer\n"
        f'One JSON object with "reasoning" and "values"; the values\' names: {names}{more}. '
        "Give null for a variable that is to stay as it is." + (f"\n{RULES}" if codes(parameters) else "")
    )


def _connected(model: str | LLM | None) -> LLM | None:
    if not isinstance(model, str):
        return model
    from trace_opt.llm.connect import connect

    return connect(model)


def _changed(parameters: Sequence[Parameter[Any]], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that differ from those in force, in the parameters' order."""
    owned = {parameter.name: parameter for parameter in parameters}
    return {
        name: values[name]
        for name, parameter in owned.items()
        if name in values and key_of(owned, {name: values[name]}) != key_of(owned, {name: parameter.value})
    }
