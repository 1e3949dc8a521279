"""Rollouts that another run in the same store has made, taken instead of being run again.

A rollout is known by what decides it: the sources of workflow and guide with their tables and models, the values of all
parameters, the example, and the seed with the repeat. Every run keeps what these are, so any later one can look. What is
taken becomes a row of the run's own, so the other run may go; it costs nothing. What failed is run again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_opt.core.codec import content_hash, dump_value
from trace_opt.core.content import content
from trace_opt.core.feedback import Feedback
from trace_opt.core.graph import Graph
from trace_opt.core.rollout import Cost, Rollout
from trace_opt.search.candidate import Score
from trace_opt.search.restoring import Stored, restored
from trace_opt.store import reading

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.search.rolling import Job
    from trace_opt.search.settings import Settings
    from trace_opt.search.sources import Reach
    from trace_opt.store.store import Saved, Store
    from trace_opt.store.writer import Writer

CONTENT = "content"
"""The state that says what a run's rollouts depend on."""

_RUNS = "reuse"
KEY = 16
"""How much of an example's key is kept."""

_EXAMPLES = "examples"

Values = tuple[str, ...]
"""Hashes of the values of all parameters, in the order of their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A rollout of another run.

    Attributes:
        rollout: It, as if it had just been run.
        reached: The parameters that it read, as far as is known.
        graph: Its graph's text, where one was wanted.
    """

    rollout: Rollout
    reached: list[Parameter[Any]]
    graph: str | None


class Reuse:
    """Finds rollouts of other runs.

    Args:
        store: Where they are.
        runs: Their ids.
        known: The parameters, by full name.
        keys: Of the examples, by number.

    Attributes:
        rollouts: How many were taken.
        cost: What they had cost.
        seconds: What they had taken.
    """

    def __init__(
        self, store: Store, runs: Sequence[str], known: Mapping[str, Parameter[Any]], keys: Sequence[str]
    ) -> None:  # fmt: skip
        self.rollouts = 0
        self.cost = Cost()
        self.seconds = 0.0
        self._store = store
        self._known = dict(sorted(known.items()))
        self._own = {name: _hash(parameter, parameter.initial) for name, parameter in self._known.items()}
        self._keys = keys
        self._places: dict[Values, list[tuple[str, int]]] = {}
        self._reached: dict[str, list[str]] = {}
        self._examples: dict[str, dict[str, list[int]]] = {}
        self._rows: dict[str, dict[tuple[int, int, int], Mapping[str, Any]]] = {}
        self._hashes: dict[int, tuple[Mapping[str, Any], Values]] = {}
        for run in runs:
            self._index(run)

    def find(self, job: Job) -> Found | None:
        """A rollout that is the same as a job would be, or None."""
        for run, candidate in self._places.get(self._values(job), ()):
            for number in self._examples[run].get(self._keys[job.number][:KEY], ()):
                row = self._rows_of(run).get((candidate, number, job.repeat))
                found = None if row is None else self._made(job, run, row)
                if found is not None:
                    return found
        return None

    def count(self, cost: Cost, seconds: float) -> None:
        """Note that one was taken, and what it had cost."""
        self.rollouts += 1
        self.cost += cost
        self.seconds += seconds

    def to_json(self) -> dict[str, Any]:
        """What was taken, JSON-able; empty where nothing was."""
        cost = self.cost
        if not self.rollouts:
            return {}
        return {
            "rollouts": self.rollouts, "calls": cost.calls, "tokens_in": cost.tokens_in, "tokens_out": cost.tokens_out,
            "usd": cost.usd, "seconds": self.seconds,
        }  # fmt: skip

    def _values(self, job: Job) -> Values:
        """Hashes of the values that a job runs under."""
        kept = self._hashes.get(job.candidate)
        if kept is None or kept[0] is not job.values:
            given = {name: _hash(self._known[name], v) for name, v in job.values.items() if name in self._known}
            kept = self._hashes[job.candidate] = job.values, tuple({**self._own, **given}.values())
        return kept[1]

    def _index(self, run: str) -> None:
        with self._store.database.reading() as connection:
            rows = {row["part"]: row["data"] for row in reading.rows(connection, "states", run)}
            data = json.loads(reading.rows(connection, "runs", run, key="id")[0]["data"])
            candidates = reading.rows(connection, "candidates", run, "id")
        kept = json.loads(rows[CONTENT])
        keys: list[str] = kept["keys"]
        numbers = self._examples[run] = {}
        for number, key in enumerate(keys):  # an example may stand in several parts
            numbers.setdefault(key, []).append(number)
        self._reached[run] = [parameter["name"] for parameter in data.get("parameters", ())]
        base: dict[str, str] = kept["base"]
        for row in candidates:
            values = {name: content_hash(value) for name, value in json.loads(row["data"]).items()}
            complete = {**base, **values}
            if complete.keys() == self._known.keys():
                place = tuple(complete[name] for name in self._known)
                self._places.setdefault(place, []).append((run, row["id"]))

    def _rows_of(self, run: str) -> Mapping[tuple[int, int, int], Mapping[str, Any]]:
        """A run's rollouts that did not fail, by candidate, example and repeat."""
        if run not in self._rows:
            with self._store.database.reading() as connection:
                rows = reading.rows(connection, "rollouts", run)
            good = [row for row in rows if row["score"] is not None]
            self._rows[run] = {(row["candidate"], row["example"], row["repeat"]): row for row in good}
        return self._rows[run]

    def _made(self, job: Job, run: str, row: Mapping[str, Any]) -> Found | None:
        """A row as a rollout; None where its graph is wanted and was not kept."""
        data = json.loads(row["data"])
        names = data.get("reached", self._reached[run])
        reached = [self._known[name] for name in names if name in self._known]
        cost = reading.cost_of(row)
        if not job.keep:
            feedback = Feedback(score=data.get("scores") or row["score"], text=data.get("text", ""))
            made = Rollout(
                example=job.example, values=job.values, seed=job.seed, feedback=feedback, cost=cost, seconds=row["seconds"]
            )  # fmt: skip
            return Found(rollout=made, reached=reached, graph=None)
        text = self._store.graph(run, row["candidate"], row["example"]) if "node" in data else None
        if text is None:
            return None
        stored = Stored(Score(row["score"], data.get("scores"), cost, row["seconds"]), row["data"], lambda: text)
        return Found(rollout=restored(job, stored, Graph.from_json(text), self._known), reached=reached, graph=text)


def reuse_of(settings: Settings, writer: Writer | None, saved: Saved | None) -> Reuse | None:
    """Keep what a run's rollouts depend on; gives who finds those of other runs, where that is wanted.

    Args:
        settings: The run's.
        writer: Who keeps, or None.
        saved: What an earlier session left, or None.
    """
    store = settings.store
    if writer is None or store is None:
        return None
    known = {parameter.name: parameter for parameter in settings.reach.parameters_named()} | (settings.parameters or {})
    keys = [key[:KEY] for key in settings.data.keys]
    if any(parameter.kind == "tensor" for parameter in known.values()):
        if saved is None:
            writer.state(_EXAMPLES, {"keys": keys})
        return None  # phases make rollouts of their own, and a store holds tensors as blobs
    problem = _problem(settings.reach)
    if saved is None:
        base = {name: _hash(parameter, parameter.initial) for name, parameter in known.items()}
        writer.state(CONTENT, {"problem": problem, "keys": keys, "base": base})
    if not settings.reuse:
        return None
    runs: list[str] | None = None if saved is None else saved.states.get(_RUNS)
    there = _runs(store, settings.seed, problem, writer.run)
    if runs is None:
        runs = there
        writer.state(_RUNS, runs)
    found = Reuse(store, [run for run in runs if run in there], known, settings.data.keys)
    for row in saved.rollouts if saved is not None else ():
        if is_reused(row):
            found.count(reading.cost_of(row), row["seconds"])
    return found


def example_keys(store: Store, run: str) -> list[str]:
    """The beginnings of the keys of a run's examples: training, validation, test; empty where they were not kept."""
    with store.database.reading() as connection:
        kept = {row["part"]: row["data"] for row in reading.rows(connection, "states", run)}
    text = kept.get(CONTENT) or kept.get(_EXAMPLES)
    return [] if text is None else json.loads(text)["keys"]


def is_reused(row: Mapping[str, Any]) -> bool:
    """Whether a rollout's row was taken from another run."""
    # most are not, and need not be parsed for that
    return '"reused"' in row["data"] and bool(json.loads(row["data"]).get("reused"))


def _runs(store: Store, seed: int, problem: str, own: str) -> list[str]:
    """Other runs of one problem and seed, the newest first."""
    with store.database.reading() as connection:
        kept = reading.rows(connection, "states", CONTENT, key="part")
        seeds = {
            row["id"]: (row["created"], row["seed"]) for row in connection.execute(reading.select("runs")).mappings()
        }
    same = [row["run"] for row in kept if json.loads(row["data"])["problem"] == problem and row["run"] != own]
    return sorted(
        (run for run in same if run in seeds and seeds[run][1] == seed), key=lambda run: seeds[run], reverse=True
    )


def _problem(reach: Reach) -> str:
    """The hash of what workflow and guide are made of, parameters left out."""
    from trace_opt import __version__

    tables = [held.digest.hex() for value in reach.containers if (held := content(value)) is not None]
    models = [
        [model.name, str(getattr(model, "identity", "")), getattr(model, "defaults", {})] for model in reach.models
    ]
    return content_hash([__version__, sorted(reach.hashes.items()), tables, models])


def _hash(parameter: Parameter[Any], value: Any) -> str:
    return content_hash(json.loads(json.dumps(dump_value(parameter, value))))
