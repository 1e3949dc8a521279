"""Single options of `optimize` checked: what makes no sense is refused in one sentence, before anything is run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.numbers import is_number, is_whole
from trace_opt.errors import ProblemError
from trace_opt.search.greedy import Greedy

if TYPE_CHECKING:
    from trace_opt.optim.base import Optimizer
    from trace_opt.search.greedy import Search
    from trace_opt.store.store import Store


def searching(given: Any) -> Search:
    """How candidates are tried.

    Raises:
        ProblemError: it is a name, a class, or no search.
    """
    if given is None:
        return Greedy()
    name = given if isinstance(given, str) else getattr(given, "__name__", "")
    names = {known.casefold(): known for known in ("Greedy", "Pareto", "Beam")}
    if isinstance(given, (str, type)) or not hasattr(given, "boundaries"):
        hint = f"{names.get(str(name).casefold(), 'Greedy')}()"
        raise ProblemError(f"search is {given!r:.60}, which is no search; pass search={hint}, an object of trace_opt")
    return given


def optimizing(given: Any) -> list[Optimizer] | None:
    """Who proposes, or None for those of the parameters' kinds.

    Raises:
        ProblemError: it is no list of optimizers.
    """
    if given is None:
        return None
    from trace_opt.optim.base import Optimizer

    if isinstance(given, (str, Optimizer, type)) or not isinstance(given, Iterable):
        raise ProblemError(f"optimizers is {given!r:.60}; give a list of optimizers, as in optimizers=[Categorical()]")
    found = list(cast("Iterable[Any]", given))
    for item in found:
        if not isinstance(item, Optimizer):
            hint = f"{item.__name__}()" if isinstance(item, type) else "OptoPrime()"
            raise ProblemError(f"optimizers holds {item!r:.60}, which is no optimizer; give one, as in [{hint}]")
    return found


def score_range(given: Any) -> tuple[float, float] | None:
    """The lowest and the highest score possible, or None.

    Raises:
        ProblemError: it is no pair of finite numbers that rise.
    """
    if given is None:
        return None
    items: list[Any] = list(cast("Any", given)) if isinstance(given, (tuple, list)) else []
    if len(items) != 2 or not all(is_number(item) for item in items) or not items[0] < items[1]:
        raise ProblemError(
            f"score_range is {given!r:.60}; give the lowest and the highest score possible, as in (0, 1)"
        )
    return float(items[0]), float(items[1])


def by_score(name: str, given: Any) -> dict[str, float] | None:
    """Numbers by name of a score, or None.

    Args:
        name: The option's: "weights" or "margins".
        given: What it was set to.

    Raises:
        ProblemError: it is no mapping to numbers, or an empty one.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ProblemError(f"{name} is {given!r:.60}; give numbers by the name of a score")
    if not given:
        raise ProblemError(f"{name} is empty; leave it out, or name scores")
    found = dict(cast("Mapping[str, Any]", given))
    for key, value in found.items():
        if not is_number(value) or (name == "margins" and value < 0) or (name == "weights" and math.isinf(value)):
            kind = "of 0 or more" if name == "margins" else "that is finite"
            raise ProblemError(f"{name} gives {key!r} {value!r}; give a number {kind}")
    return {key: float(value) for key, value in found.items()}


def controlling(given: Any) -> dict[str, Callable[..., Any]]:
    """Workflows by name to compare with.

    Raises:
        ProblemError: it is no mapping to functions.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ProblemError(f"controls is {given!r:.60}; give workflows by name, as in controls={{'plain': workflow}}")
    found = dict(cast("Mapping[str, Any]", given or {}))
    for name, workflow in found.items():
        if not callable(workflow):
            raise ProblemError(f"the control {name!r} is {workflow!r:.60}, which cannot be called; pass a workflow")
    return found


def target(given: Any) -> float | None:
    """The validation mean to stop at, or None.

    Raises:
        ProblemError: it is no number.
    """
    if given is not None and not is_number(given):
        raise ProblemError(f"target is {given!r:.60}; give the validation mean to stop at, or leave it out")
    return given


def origin(given: Any) -> dict[str, Any]:
    """What a command line needs to load the problem again.

    Raises:
        ProblemError: it is no mapping that JSON can hold.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ProblemError(f"origin is {given!r:.60}; give a mapping that JSON can hold")
    found = dict(cast("Mapping[str, Any]", given or {}))
    try:
        json.dumps(found)
    except (TypeError, ValueError) as error:
        raise ProblemError(f"origin is {found!r:.60}, which JSON cannot hold ({error}); give plain data") from None
    return found


def opened(where: Any) -> Store:
    """The store that `store=` means.

    Raises:
        ProblemError: it is neither a path, a URL nor a Store.
        StoreError: the URL makes no sense.
    """
    from trace_opt.store.store import Store, open_store

    if where is not None and not isinstance(where, (str, Path, Store)):
        raise ProblemError(f"store is {where!r:.60}; give a path, a URL or a Store, or None to keep nothing")
    return open_store(where)


def whole(name: str, given: Any) -> int:
    """A whole number of at least 1.

    Args:
        name: The option's.
        given: What it was set to.

    Raises:
        ProblemError: it is none.
    """
    if not is_whole(given):
        raise ProblemError(f"{name} is {given!r}; give a whole number of at least 1")
    return given


def timeout(given: Any) -> float | None:
    """Seconds that a rollout may take, or None.

    Raises:
        ProblemError: they are none, or not above 0.
    """
    if given is None:
        return None
    if not is_number(given) or not 0 < given < math.inf:
        raise ProblemError(f"timeout is {given!r}; give seconds above 0, or leave it out for no limit")
    return float(given)


def approving(given: Any) -> Any:
    """Who approves of what the search would build on, or None.

    Raises:
        ProblemError: it cannot be called.
    """
    if given is not None and not callable(given):
        raise ProblemError(f"approve is {given!r:.60}, which cannot be called; pass a function of an Approval")
    return given


def reusing(given: Any, store: Store | None) -> bool:
    """Whether rollouts of other runs are taken.

    Raises:
        ProblemError: it is no truth value, or there is no store to take them from.
    """
    if not isinstance(given, bool):
        raise ProblemError(f"reuse is {given!r:.60}; give True or False")
    if given and store is None:
        raise ProblemError("reuse=True needs a store to find rollouts in; leave store=None out")
    return given
