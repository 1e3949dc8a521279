"""Who improves what: the optimizers given, or those made for the kinds of parameters there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from trace_opt.errors import LLMError, ProblemError, meant

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.llm.base import LLM
    from trace_opt.optim.base import Optimizer

_ANSWERABLE = ("text", "code", "number", "boolean", "structured")


def default_optimizers(parameters: Iterable[Parameter[Any]]) -> list[Optimizer]:
    """Optimizers for the kinds of these parameters.

    What can be enumerated (choices, texts with suggestions, demonstrations) is searched jointly and needs no model; code, other
    texts, numbers, booleans and structured values are left to a language model. Floating tensors are moved by torch. Nothing is
    made for an adapter: a refiner needs its policy.
    """
    from trace_opt.optim.categorical import Categorical
    from trace_opt.optim.demos import Demos
    from trace_opt.optim.optoprime import OptoPrime

    free = [p for p in parameters if not p.frozen]
    found: list[Optimizer] = []
    if any(p.kind in ("choice", "demonstrations") or (p.kind == "text" and p.suggestions) for p in free):
        found.append(Categorical(sources=[Demos()]))
    if any(p.kind == "tensor" and p.initial.is_floating_point() for p in free):
        from trace_opt.optim.numeric.gradient import Gradient

        found.append(Gradient())
    if any(p.kind in _ANSWERABLE and not any(o.handles(p) for o in found) for p in free):
        found.append(OptoPrime())
    return found


def owners(parameters: Iterable[Parameter[Any]], optimizers: Sequence[Optimizer]) -> dict[str, int]:
    """Which optimizer owns each parameter: the first in the list that handles it; frozen ones are nobody's.

    Raises:
        ProblemError: a parameter is handled by none of them.
    """
    owned: dict[str, int] = {}
    for parameter in parameters:
        if parameter.frozen:
            continue
        owner = next((i for i, optimizer in enumerate(optimizers) if optimizer.handles(parameter)), None)
        if owner is None:
            if parameter.kind == "adapter":
                raise ProblemError(
                    f"no optimizer trains parameter {parameter.name!r}, which holds the adapter of a local model; give "
                    "optimizers=[Refiner(policy)] with that policy, or make it with frozen=True"
                )
            given = ", ".join(type(optimizer).__name__ for optimizer in optimizers) or "none"
            raise ProblemError(
                f"no optimizer handles parameter {parameter.name!r}, which holds a {parameter.kind} (optimizers: "
                f"{given}); add one that does, or make it with frozen=True"
            )
        owned[parameter.name] = owner
    return owned


def needy(optimizers: Sequence[Optimizer], owned: dict[str, int]) -> list[Optimizer]:
    """The optimizers that own a parameter and still need a model."""
    return [optimizer for i, optimizer in enumerate(optimizers) if optimizer.needs_model and i in owned.values()]


def give_model(optimizers: Sequence[Optimizer], owned: dict[str, int], model: str | LLM | None) -> str:
    """Give the run's model to the optimizers that need one.

    Args:
        optimizers: All of them.
        owned: What `owners` gave.
        model: The model, its name, or None for the one that the environment decides.

    Returns:
        Which model it is and why, and which ones optimizers brought with them; "" where none is asked.

    Raises:
        LLMError: one is needed and there is none.
    """
    asking = needy(optimizers, owned)
    own = brought(optimizer for i, optimizer in enumerate(optimizers) if i in owned.values())
    if not asking:
        return own
    llm, why = _model(model)
    if llm is None:
        names = [name for name, i in owned.items() if optimizers[i] in asking]
        raise LLMError(
            f"{type(asking[0]).__name__} needs a model to improve {names[0]!r}, and there is {why}; a choice, or a text with "
            "suggestions=[...], can be searched without one",
            kind="model",
        )
    for optimizer in asking:
        optimizer.use(llm)
    return f"{why}; {own}" if own else why


def brought(optimizers: Iterable[Optimizer]) -> str:
    """The models that optimizers were made with, in words; "" where there is none."""
    named = [f"{m.name} (brought by {type(o).__name__})" for o in optimizers for m in models_of([o])]
    return ", ".join(dict.fromkeys(named))


def _model(model: str | LLM | None) -> tuple[LLM | None, str]:
    from trace_opt.llm.choose import choose_model
    from trace_opt.llm.connect import connect

    if model is None:
        return choose_model()
    if isinstance(model, str):
        return connect(model), f"{model} (named by model=)"
    return model, f"{model.name} (given as model=)"


def models_of(optimizers: Iterable[Any]) -> list[Any]:
    """The models that optimizers hold, those of their sources too."""
    from trace_opt.llm.base import LLM

    found: list[Any] = []
    for optimizer in optimizers:
        held = cast("dict[str, Any]", vars(optimizer))
        found += [value for value in held.values() if isinstance(value, LLM)]
        found += models_of(getattr(optimizer, "sources", ()))
    return found


def raced(names: Sequence[str], parameters: dict[str, Parameter[Any]]) -> dict[str, tuple[Any, ...]]:
    """The values to race, by name: the one in force first.

    Raises:
        ProblemError: a name is no parameter, or one whose values cannot be listed.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for name in names:
        parameter = parameters.get(name)
        if parameter is None:
            hint = meant(name, parameters, f"known: {', '.join(parameters)}")
            raise ProblemError(f"race names {name!r}, which is no parameter of the workflow; {hint}")
        options = parameter.choices or ((parameter.initial, *parameter.suggestions) if parameter.suggestions else None)
        if options is None:
            raise ProblemError(
                f"race names {name!r}, a {parameter.kind} whose values cannot be listed; give it choices= or "
                "suggestions=, or leave it out of race"
            )
        found[name] = tuple(options)
    return found
