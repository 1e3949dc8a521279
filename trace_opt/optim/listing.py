"""What a rollout did between its variables and its output, as lines of code; as many as there is room for.

The lines nearest to a variable or to the output come first when room is short. A pattern of calls that goes on in the
same way is written twice and once more at its end. Constants are left open until all rollouts are known: one that is
the same in all is written into the line, one that differs becomes an input. Every pass is linear in the slice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.node import ATOMIC, Nested, Node, ParameterNode
from trace_opt.core.operators import COMPARISONS
from trace_opt.core.propagate import union
from trace_opt.optim.lines import Gap, Line, Writer, line_size, safe_name
from trace_opt.optim.text import name_text

if TYPE_CHECKING:
    from trace_opt.core.graph import Graph
    from trace_opt.core.propagate import Slice

_MAX_PERIOD = 8  # calls in one round of a pattern
_HUB_USES = 4  # a value used more often is known by itself, not by how far back it is
_CONTROL_STEPS = 3  # a decision is this many steps away from what it steers
_FAR = 1 << 40


@dataclass(slots=True)
class _Unit:
    """A visible node, or a stretch of folded ones."""

    node: Node[Any] | None
    start: int
    count: int
    period: int
    rank: int


class Listing:
    """The lines of one rollout's slice.

    Args:
        slices: Slices of the variables, all of one output.

    Attributes:
        path: Nodes between the variables and the output.
        context: Direct inputs of these that are not among them.
    """

    def __init__(self, slices: Sequence[Slice]) -> None:
        together = union(slices)
        self.graph: Graph = slices[0].graph
        self.output: Node[Any] = slices[0].output
        self.path = together.path
        self.context = together.context
        self.names = self.graph.names
        where, uses, steps = self._measured()
        # a comparison that only a decision reads is written into the decision
        self.inlined = {
            node.inputs[0] for node in self.path
            if node.kind == "decision" and node.op.name == "bool" and _is_test(node.inputs[0])
            and uses[node.inputs[0].index] == 1
        }  # fmt: skip
        self._writer = Writer(self.name, self.inlined)
        self.visible = [
            (i, node) for i, node in enumerate(self.path)
            if not isinstance(node, ParameterNode) and not _is_join(node) and node not in self.inlined
        ]  # fmt: skip
        self._units = self._folded(where, uses, steps)
        self._nearest = sorted(range(len(self._units)), key=lambda i: (self._units[i].rank, i))

    def name(self, node: Node[Any]) -> str:
        """A node's name as lines write it."""
        found = self.names.get(node, node.op.name)
        return name_text(found) if isinstance(node, ParameterNode) else safe_name(found)

    def lines(self, limit: int) -> list[Line | Gap]:
        """As many lines as fit in about `limit` bytes, the nearest to a variable or the output first, in order."""
        nearest = self._nearest
        chosen: dict[int, Line | Gap] = {}
        used = 0
        for i in nearest:
            unit = self._units[i]
            line = self._writer.line(unit.node) if unit.node is not None else Gap(unit.count, unit.period)
            used += line_size(line) + 1
            if used > limit and chosen:
                break
            chosen[i] = line
        while len(chosen) > 1 and sum(line_size(line) + 1 for line in self._with_gaps(chosen)) > limit:
            for i in nearest[len(chosen) - max(1, len(chosen) // 8) : len(chosen)]:
                del chosen[i]
        return list(self._with_gaps(chosen))

    def _with_gaps(self, chosen: dict[int, Line | Gap]) -> Iterator[Line | Gap]:
        skipped: Counter[str] = Counter()
        for i, unit in enumerate(self._units):
            if i in chosen:
                if skipped:
                    yield _left_out(skipped)
                    skipped = Counter()
                yield chosen[i]
            elif unit.node is not None:
                skipped[safe_name(unit.node.op.name)] += 1
            else:
                skipped.update(
                    safe_name(node.op.name) for _, node in self.visible[unit.start : unit.start + unit.count]
                )
        if skipped:
            yield _left_out(skipped)

    def _measured(self) -> tuple[list[int], list[int], list[int]]:
        """By index: place in the path (-1 outside); by index: how often used; by place: steps to the nearest end."""
        layout = self.graph.layout()
        parents, offsets = layout.parents, layout.offsets
        where = [-1] * len(layout.order)
        uses = [0] * len(layout.order)
        for place, node in enumerate(self.path):
            where[node.index] = place
        near = [0 if isinstance(node, ParameterNode) else _FAR for node in self.path]
        for place, node in enumerate(self.path):
            first, last = offsets[node.index], offsets[node.index + 1]
            best = near[place]
            for j in range(first, last):
                parent = parents[j]
                uses[parent] += 1
                if where[parent] >= 0:
                    step = _CONTROL_STEPS if j == last - 1 and node.control is not None else 1
                    best = min(best, near[where[parent]] + step)
            near[place] = best
        to_output = [_FAR] * len(self.path)
        to_output[-1] = 0
        for place in range(len(self.path) - 1, -1, -1):
            node = self.path[place]
            first, last = offsets[node.index], offsets[node.index + 1]
            for j in range(first, last):
                at = where[parents[j]]
                if at >= 0:
                    step = _CONTROL_STEPS if j == last - 1 and node.control is not None else 1
                    to_output[at] = min(to_output[at], to_output[place] + step)
        return where, uses, [min(a, b) for a, b in zip(near, to_output, strict=True)]

    def _folded(self, where: list[int], uses: list[int], steps: list[int]) -> list[_Unit]:
        marks = self._marks(where, uses)
        units: list[_Unit] = []
        i = 0
        while i < len(marks):
            period, length = _longest_run(marks, i)
            if not period:
                units.append(self._unit(i, steps))
                i += 1
                continue
            shown, end = i + 2 * period, i + length
            units += [self._unit(j, steps) for j in range(i, shown)]
            units.append(_Unit(None, shown, length - 3 * period, period, steps[self.visible[shown - 1][0]]))
            units += [self._unit(j, steps) for j in range(end - period, end)]
            i = end
        return units

    def _unit(self, i: int, steps: list[int]) -> _Unit:
        place, node = self.visible[i]
        return _Unit(node, i, 1, 0, steps[place])

    def _marks(self, where: list[int], uses: list[int]) -> list[int]:
        """One number for each visible node, the same where a line would read the same but for the numbers in names."""
        known: dict[Any, int] = {}
        marks: list[int] = []
        for _, node in self.visible:
            given = (*node.inputs, *node.reads) if node.trail else node.inputs
            inputs = tuple([_mark(item, node, where, uses) for item in given])
            value = node.value if node.kind == "decision" and type(node.value) in ATOMIC else None
            marks.append(known.setdefault((id(node.op), node.kind, inputs, value, type(value)), len(known)))
        return marks


def _mark(given: Any, node: Node[Any], where: list[int], uses: list[int]) -> Any:
    kind = cast("Any", type(given))
    if kind in ATOMIC:
        return (kind, given)
    if kind is Node:
        if where[given.index] < 0 or uses[given.index] > _HUB_USES:
            return given.index
        return (id(given.op), node.index - given.index)
    if kind is ParameterNode:
        return given.index
    if kind is Nested:
        return (id(cast("Any", type(given.items))), tuple(_mark(inner, node, where, uses) for inner in given.nodes))
    return ("constant", id(given))


def _longest_run(marks: list[int], start: int) -> tuple[int, int]:
    """The shortest pattern that repeats from here on for at least four rounds: its length, and that of the whole run."""
    if marks[start] not in marks[start + 1 : start + 1 + _MAX_PERIOD]:
        return 0, 0
    for period in range(1, _MAX_PERIOD + 1):
        i, last = start + period, len(marks)
        while i < last and marks[i] == marks[i - period]:
            i += 1
        rounds = (i - start) // period
        if rounds * period >= 3 * period + 3 and rounds >= 4:
            return period, rounds * period
    return 0, 0


def _is_join(node: Node[Any]) -> bool:
    """Whether a node only brings the decisions of several tasks together, which no line of code does."""
    return node.kind == "decision" and node.op.name == "join"


def _is_test(node: Any) -> bool:
    return isinstance(node, Node) and bool(node.op.symbol) and node.op.name in COMPARISONS


def _left_out(skipped: Counter[str]) -> Gap:
    return Gap(skipped.total(), 0, tuple(sorted(skipped.items(), key=lambda entry: (-entry[1], entry[0]))))
