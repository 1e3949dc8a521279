"""What optimizers that ask a language model for values have in common: the model, the question, the answer's values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from trace_opt.errors import LLMError, ReplyError
from trace_opt.optim.base import Optimizer, Proposal, Trial
from trace_opt.optim.functions import RULES, codes
from trace_opt.optim.memory import key_of
from trace_opt.optim.reply import ask
from trace_opt.optim.schema import answerable
from trace_opt.optim.text import name_text

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.core.rollout import Rollouts
    from trace_opt.llm.base import LLM


class Proposer(Optimizer):
    """Asks a language model once a step for new values of all its parameters, and once more about invalid ones.

    Args:
        model: An `LLM`, its name for `connect`, or None for the run's model.
        tokens: The most that the problem text may take.
        max_tokens: The most that an answer may take.
        temperature: How much the model's answers vary; None leaves it to the model's defaults.

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
    ) -> None:
        super().__init__()
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
    async def propose(
        self, parameters: Sequence[Parameter[Any]], rollouts: Rollouts, history: Sequence[Trial]
    ) -> Proposal:
        """Ask for values (see `Optimizer.propose`).

        Raises:
            LLMError: no model was given, or the call failed.
            ReplyError: neither reply held a valid value.
            ValueError: the variables alone do not fit in `tokens`.
        """
        if self._llm is None:
            raise LLMError(
                f"{type(self).__name__} has no model; pass one, as in {type(self).__name__}('openai/gpt-4.1-mini')",
                kind="model",
            )
        if not len(rollouts):
            return Proposal(reason="there is no rollout to learn from")
        messages = [
            {"role": "system", "content": self.system},
            {"role": "user", "content": f"{self.question(parameters, rollouts, history)}\n\n{closing(parameters)}"},
        ]
        answer, notes = await ask(self._llm, messages, parameters, seed=rollouts.seed, **self._fields)
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
