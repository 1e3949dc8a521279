"""A start from other values than the Parameters' own: those of an earlier run, or given by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.codec import dump_value, restore_value
from trace_opt.errors import ProblemError, StoreError, meant
from trace_opt.search.run import checked

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.search.splits import Data
    from trace_opt.store.store import Store

_MOST_NAMED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """Where a run starts.

    Attributes:
        values: By full parameter name; other parameters start from their own.
        run: The run that they are of; "" where they were given.
    """

    values: Mapping[str, Any]
    run: str = ""

    def own(self, name: str, parameter: Parameter[Any]) -> Any:
        """The value that a parameter starts from."""
        return self.values.get(name, parameter.initial)

    def to_json(self, known: Mapping[str, Parameter[Any]]) -> dict[str, Any]:
        """What is kept of it; `warm_of` takes it back."""
        return {"run": self.run, "values": {name: dump_value(known[name], v) for name, v in self.values.items()}}

    @property
    def says(self) -> str:
        """What the report says of it; "" where nothing was given."""
        if not self.values:
            return ""
        source = f"the best of run {self.run}" if self.run else "those given"
        return f"the start's values are {source} for {_listed(self.values)}"

    def note(self, parameters: Mapping[str, Parameter[Any]]) -> str:
        """What was taken and what was not, in words; "" where nothing was given."""
        if not self.values:
            return ""
        own = [name for name in parameters if name not in self.values]
        unread = [name for name in self.values if name not in parameters]
        rest = f"; {_listed(own)} {'starts' if len(own) == 1 else 'start'} as in the problem" if own else ""
        return self.says + rest + (f"; the start did not read {_listed(unread)}" if unread else "")


def warm(given: Any, store: Store | None, known: Mapping[str, Parameter[Any]]) -> Warm:
    """Where a run starts, checked before anything is run.

    Args:
        given: A run's id, a prefix of it, or "last"; or values by full parameter name.
        store: Where runs are kept, or None.
        known: The parameters that may change.

    Raises:
        ProblemError: a name is no parameter's, a value is not allowed, or it is none of these.
        StoreError: there is no such run.
    """
    if isinstance(given, Mapping):
        values, run = dict(cast("Mapping[str, Any]", given)), ""
        frozen = [name for name in values if name in known and known[name].frozen]
        if frozen:
            raise ProblemError(
                f"start gives {frozen[0]!r} a value, which is frozen; leave it out, or make it without frozen=True"
            )
    elif isinstance(given, str):
        values, run = _best_of(given, store)
        # what is frozen stays what it is
        values = {name: value for name, value in values.items() if name not in known or not known[name].frozen}
    else:
        raise ProblemError(f"start is {given!r:.60}; give a run's id, 'last', or values by parameter name")
    unknown = [name for name in values if name not in known]
    if unknown:
        whose = f"run {run!r} has" if run else "start gives"
        hint = meant(unknown[0], known, f"known: {', '.join(known) or 'none'}")
        more = f", {_listed(unknown)} in all" if len(unknown) > 1 else ""
        raise ProblemError(
            f"{whose} a value for {unknown[0]!r}, which is no parameter of this problem{more}; {hint}; give the values that "
            "fit as start={name: value}, or name the parameters by parameters=[...]"
        )
    try:
        return Warm(values=checked(known, values), run=run)
    except ProblemError as error:
        raise ProblemError(f"{f'run {run!r}' if run else 'start'} does not fit: {error}") from None


def warm_of(kept: Any, known: Mapping[str, Parameter[Any]]) -> Warm:
    """What `Warm.to_json` gave.

    Raises:
        ProblemError: a parameter is gone, or does not allow its value any more.
    """
    gone = [name for name in kept["values"] if name not in known]
    if gone:
        raise ProblemError(
            f"the run to resume started from a value for {gone[0]!r}, which is no parameter any more; undo that"
        )
    try:
        return Warm(values={name: restore_value(known[name], v) for name, v in kept["values"].items()}, run=kept["run"])
    except ValueError as error:
        raise ProblemError(f"the run to resume started from a value that is not allowed any more: {error}") from None


def used_before(given: Warm, store: Store | None, data: Data, judged: Sequence[int]) -> str:
    """How many examples of the test the runs that the start comes from have trained on or chosen by, in words.

    Args:
        given: Where the run starts.
        store: Where runs are kept, or None.
        data: The examples of the run that begins.
        judged: Those that start and best are compared on.

    Returns:
        A sentence for the report; "" where there are none, or it is not known.
    """
    from trace_opt.search.reusing import KEY, example_keys

    known: set[str] = set()
    run: str = given.run
    while run and store is not None:
        try:
            row: Any = store.peek(run)
            keys = example_keys(store, run)
        except StoreError:
            break  # it was deleted since
        known |= set(keys[: row["splits"]["train"] + row["splits"]["val"]])
        run = row["config"].get("start", {}).get("run", "")
    count = sum(data.keys[number][:KEY] in known for number in judged)
    if not count:
        return ""
    return (
        f"{count} of the {len(judged)} test examples were used to train or to choose by in run {given.run!r} that this one "
        "starts from, or in one before it, so they are not held out; give the same seed or a test set of its own"
    )


def _best_of(name: str, store: Store | None) -> tuple[dict[str, Any], str]:
    if store is None:
        raise ProblemError(
            f"start={name!r} needs a store to find that run in; leave store=None out, or give values by name"
        )
    record = store.load(name)
    if not record.best:
        raise ProblemError(
            f"run {record.info.id!r} was ended before its start was scored, so it has no values; name another"
        )
    return dict(record.best), record.info.id


def _listed(names: Any) -> str:
    shown = [repr(name) for name in names]
    more = len(shown) - _MOST_NAMED
    return ", ".join(shown[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
