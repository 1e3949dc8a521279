"""What reflections have to beat: the same attempts with less.

Retrying alone gains much where chance decides, and any text may break a loop that an actor is stuck in; so a claim about
reflections is read beside these. They are workflows of the same guide and run on the same examples and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trace_opt.core.codec import content_hash

if TYPE_CHECKING:
    from trace_opt.refine.episodes import Episodes

NO_RETRY = "no retry"
NO_MEMORY = "retry without memory"
UNTRAINED = "untrained reflector"
OTHER_TASK = "another task's reflection"
RANDOM_ACTOR = "random actor"


def controls_of(
    episodes: Episodes, random: Callable[..., Any] | None, tasks: Sequence[Any], key: Callable[[Any], Any] | None
) -> dict[str, Episodes]:  # fmt: skip
    """The controls of episodes, by name; see `Episodes.controls`."""
    found = {NO_RETRY: replace(episodes, attempts=1), NO_MEMORY: replace(episodes, reflector=None)}
    if episodes.adapter is not None:
        found[UNTRAINED] = replace(episodes, untrained=True)
    if len(tasks) > 1:
        found[OTHER_TASK] = replace(episodes, others=Others(tuple(tasks), key))
    if random is not None:
        found[RANDOM_ACTOR] = replace(episodes, attempt=random, reflector=None)
    return found


@dataclass(frozen=True, slots=True)
class Others:
    """For each task another one, whose reflections it is given.

    Attributes:
        tasks: Those to choose from.
        key: What makes two tasks the same; their content by default.
    """

    tasks: tuple[Any, ...]
    key: Callable[[Any], Any] | None = None

    def of_task(self, task: Any, seed: int) -> Any:
        """Another task than this one, drawn by a seed; itself where there is no other."""
        own = self._key(task)
        others = [other for other in self.tasks if self._key(other) != own]
        return others[seed % len(others)] if others else task

    def _key(self, task: Any) -> str:
        return content_hash(task if self.key is None else self.key(task))
