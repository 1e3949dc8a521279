"""The replay buffer: what reflectors said in the rollouts of a run and what it was worth, asked of the store.

Training rollouts hold several reflections on each failed attempt with their gain over attempts without; any other kept
rollout of episodes holds one, whose rating is the change of return from the attempt before it to the one after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from trace_opt.core.graph import Graph
from trace_opt.core.node import Node, is_a
from trace_opt.refine.local import Completions, Prompt
from trace_opt.refine.outcomes import Episode, is_episode

if TYPE_CHECKING:
    from trace_opt.store.records import RolloutRecord
    from trace_opt.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """One reflection and what it was worth.

    Attributes:
        prompt: What the reflector was asked.
        completion: What it said.
        gain: What that was worth.
        rated: How that was found: "paired" attempts with and without it, or "next" return less the one before.
        tokens: Token ids; empty where a model answered that gives none.
        log_probs: Of each, in nats, when it was said.
        candidate, example, repeat: The rollout it is from, as in `store.records.RolloutRecord`.
        split: "train", "val" or "test".
        attempt: The number of the attempt that it looks back on, from 1.
    """

    prompt: Prompt
    completion: str
    gain: float
    rated: Literal["paired", "next"]
    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    candidate: int
    example: int
    repeat: int
    split: str
    attempt: int


def replay(store: Store, run: str = "last") -> list[Experience]:
    """All reflections that a run's stored rollouts hold.

    Controls are left out, for their reflections are not about the task. Test examples are marked by `split`: leave them out
    where something is trained on the rest.

    Args:
        store: Where the run is kept.
        run: Its id, a prefix of it, or "last".

    Returns:
        In the order of candidates, examples and repeats.
    """
    identity = store.load(run).info.id
    found: list[Experience] = []
    for record in store.rollouts(identity):
        if record.candidate < -1 or not is_episode(record.output):
            continue
        episode = Episode.of(record.output)
        if any(rated.gains for rated in episode.rated):
            found += _paired(record, episode)
        elif record.repeat == 0:  # one graph is kept for all repeats, that of the first
            text = store.graph(identity, record.candidate, record.example)
            found += [] if text is None else _next(record, episode, Graph.from_json(text))
    return found


def _paired(record: RolloutRecord, episode: Episode) -> Iterator[Experience]:
    for rated in episode.rated:
        said = rated.completions
        for row, gain in enumerate(rated.gains):
            yield Experience(
                prompt=said.prompts[said.prompt[row]], completion=said.texts[row], gain=gain, rated="paired",
                tokens=said.tokens[row], log_probs=said.log_probs[row], candidate=record.candidate,
                example=record.example, repeat=record.repeat, split=record.split, attempt=rated.attempt,
            )  # fmt: skip


def _next(record: RolloutRecord, episode: Episode, graph: Graph) -> Iterator[Experience]:
    """The reflect nodes of a graph, each with the change of return that followed."""
    nodes = [node for node in graph.nodes if node.op.name.rpartition("/")[2] == "reflect" and node.kind == "op"]
    changes = [after - before for before, after in zip(episode.returns, episode.returns[1:], strict=False)]
    if len(nodes) != len(changes) or tuple(node.value for node in nodes) != episode.reflections:
        return  # of a workflow that holds episodes and more
    for attempt, (node, gain) in enumerate(zip(nodes, changes, strict=True), 1):
        said = node.inputs[0]
        asked: Any = said.inputs[0] if is_a(said, Node) else None
        tokens, log_probs = _drawn(said)
        yield Experience(
            prompt=_prompt(asked.value if is_a(asked, Node) else asked), completion=node.value, gain=gain, rated="next",
            tokens=tokens, log_probs=log_probs, candidate=record.candidate, example=record.example,
            repeat=record.repeat, split=record.split, attempt=attempt,
        )  # fmt: skip


def _drawn(said: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
    value = said.value if is_a(said, Node) else said
    if not is_a(value, Mapping):
        return (), ()
    drawn = Completions.of_json(cast("Mapping[str, Any]", value))
    return drawn.tokens[0], drawn.log_probs[0]


def _prompt(value: Any) -> Prompt:
    return value if isinstance(value, str) else tuple(cast("Sequence[Any]", value or ()))
