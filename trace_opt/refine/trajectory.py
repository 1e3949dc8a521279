"""What one attempt of an episode did: its part of the recording as a graph of its own, and as text for who looks back on it.

The attempts of an episode share one recording. The part of one of them is cut out as a copy: what it was handed from
before, such as a reflection, stands in it as a constant, so that it ends where the attempt began.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from trace_opt.core.arguments import _rebuilt
from trace_opt.core.context import RolloutState
from trace_opt.core.graph import Graph
from trace_opt.core.layout import _merged
from trace_opt.core.node import ATOMIC, Child, Nested, Node, ParameterNode, class_of, is_a, is_kind
from trace_opt.core.operators import COMPARISONS
from trace_opt.core.strand import JOIN, Frame, Strand
from trace_opt.optim.lines import Gap, Hole, Line, Writer, safe_name
from trace_opt.optim.text import cut, literal, name_text, tokens_in

_MAX_NESTING = 50
_LIMITS = (600, 300, 150, 80, 48)
_GAP_TOKENS = 40


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a recording that is going on.

    Attributes:
        frame: The line of execution that records.
        nodes: How many nodes it has recorded.
        strands: How many lines of execution there are.
    """

    frame: Frame
    nodes: int
    strands: int

    @classmethod
    def of(cls, frame: Frame) -> Mark:
        """The place where a line of execution stands."""
        return cls(frame, len(_nodes(frame)), len(frame.graph.strands))

    def part(self) -> Graph:
        """What this line of execution, and those that it started, recorded since.

        Returns:
            A closed graph that shares values and ops with the recording and no nodes.

        Cost: linear in the part.
        """
        whole, strand = self.frame.graph, self.frame.strand
        if strand is None:
            raise ValueError("a body records nothing of its own; take the part of the workflow that calls it")
        known = {strand: Strand()}
        known[strand].nodes = strand.nodes[self.nodes :]
        for later in whole.strands[self.strands :]:
            if later.parent in known:
                start = later.start - (self.nodes if later.parent is strand else 0)
                known[later] = Strand(known[later.parent], start)
                known[later].nodes = list(later.nodes)
        return _copied(_merged(list(known.values())), whole)


def _nodes(frame: Frame) -> list[Node[Any]]:
    return [] if frame.strand is None else frame.strand.nodes


def _copied(nodes: Sequence[Node[Any]], whole: Graph) -> Graph:
    """A graph of copies of some nodes."""
    graph = Graph(RolloutState(whole.values, whole.seed, training=False))
    copies: dict[Node[Any], Node[Any]] = {}

    def copy_of(node: Node[Any]) -> Any:
        """What stands for a node: its copy, or its value where it is from before."""
        if is_a(node, ParameterNode) and node not in copies:
            leaf = cast("ParameterNode[Any]", node)
            made = ParameterNode(leaf.value, leaf.name, leaf.description, leaf.parameter)
            copies[node] = graph._parameters[leaf.parameter] = made
        return copies.get(node, node.value)

    strand = Strand()
    for node in nodes:
        inputs = tuple(_replaced(given, copy_of) for given in node.inputs)
        found = [_bare(item) if type(item) is Child else copy_of(item) for item in node.trail]
        trail = tuple(item for item in found if is_a(item, Node))
        control = None if node.control is None else copies.get(node.control)
        made: Node[Any] = Node(node.op, node.value, inputs, trail, control, node.seconds)
        copies[node] = made
        strand.nodes.append(made)
    graph.strands.append(strand)
    graph.close()
    return graph


def _bare(child: Any) -> Child[Any]:
    """An inner call without what its body read."""
    inner = tuple(_bare(item) for item in child.trail if type(item) is Child)
    return Child(child.op, child.value, child.inputs, inner, None, child.seconds)


def _replaced(given: Any, copy_of: Any) -> Any:
    """An input with the copies of nodes in place of the nodes."""
    if is_a(given, Node):
        return copy_of(given)
    if type(given) is not Nested:
        return given
    nodes: list[Node[Any]] = []
    items = _mapped(given.items, copy_of, nodes, _MAX_NESTING)
    return Nested(items, tuple(nodes)) if nodes else items


def _mapped(items: Any, copy_of: Any, nodes: list[Node[Any]], depth: int) -> Any:
    if is_a(items, Node):
        made = copy_of(items)
        if is_a(made, Node):
            nodes.append(made)
        return made
    kind = class_of(items)
    if kind in ATOMIC or depth <= 0:
        return items
    if kind is dict:
        held = list(items.values())
    elif kind in (list, tuple, set, frozenset) or (is_kind(kind, tuple) and hasattr(kind, "_fields")):
        held = list(items)
    elif hasattr(kind, "__dataclass_fields__"):
        held = [getattr(items, name, None) for name in kind.__dataclass_fields__]
    else:
        return items
    mapped = [_mapped(item, copy_of, nodes, depth - 1) for item in held]
    if all(new is old for new, old in zip(mapped, held, strict=True)):
        return items
    return _rebuilt(items, mapped)


# -- as text -----------------------------------------------------------------------------------------------------------


def trajectory(graph: Graph, tokens: int = 512, task: Any = None) -> str:
    """What was recorded, call by call with what each gave, as lines for a prompt.

    Values are shortened first; where that is not enough, calls in the first half are left out and counted. Nothing that
    a value holds can begin a line.

    Args:
        graph: An attempt's part of a recording.
        tokens: Length at most, as `optim.text.tokens_in` estimates it.
        task: An object that is written as `task` where a call was handed it; it may hold what is not to be told.

    Cost: linear in the graph.
    """
    entries = _entries(graph)
    for limit in _LIMITS:
        lines = [_written(line, limit, task) for line in entries]
        if sum(map(tokens_in, lines)) <= tokens:
            return "\n".join(lines)
    lines = [_written(line, _LIMITS[-1], task) for line in entries]
    return "\n".join(_ends(lines, entries, tokens))


def _entries(graph: Graph) -> list[Line]:
    order = [node for node in graph.layout().order if not is_a(node, ParameterNode) and node.op is not JOIN]
    uses = Counter(parent for node in order for parent, _, _ in node.parents())
    # a comparison that only a decision reads is written into the decision, as in optim/listing.py
    inlined = {
        node.inputs[0] for node in order
        if node.kind == "decision" and node.op.name == "bool" and is_a(node.inputs[0], Node)
        and node.inputs[0].op.name in COMPARISONS and uses[node.inputs[0]] == 1
    }  # fmt: skip
    names: Mapping[Node[Any], str] = graph.names

    def name(node: Node[Any]) -> str:
        return name_text(names[node]) if is_a(node, ParameterNode) else safe_name(names[node])

    writer = Writer(name, inlined)
    return [writer.line(node) for node in order if node not in inlined and node.kind != "output"]


def _written(line: Line, limit: int, task: Any) -> str:
    """A line with its constants and what came of it, each of about `limit` characters at most."""

    def constant(hole: Hole) -> str:
        return "task" if task is not None and _same(hole.value, task) else literal(hole.value, limit)

    text = "".join(constant(part) if isinstance(part, Hole) else cut(part, 4 * limit) for part in line.parts)
    if not line.name:
        return f"{text}: {line.outcome}" if line.outcome else text
    return f"{text} -> {'raised ' if line.node.kind == 'error' else ''}{literal(line.node.value, limit)}"


def _same(given: Any, task: Any) -> bool:
    """Whether a constant is the task; recordings keep shallow copies of what can change."""
    if given is task:
        return True
    kind = class_of(task)
    if class_of(given) is not kind or kind not in (list, dict, set) or len(given) != len(task):
        return False
    if kind is dict:
        return all(key in given and given[key] is value for key, value in task.items())
    return (kind is set and given == task) or (kind is list and all(a is b for a, b in zip(given, task, strict=True)))


def _ends(lines: list[str], entries: Sequence[Line], tokens: int) -> list[str]:
    """The first lines and, for twice their room, the last ones; what is between is counted."""
    left = tokens - _GAP_TOKENS
    costs = [tokens_in(line) for line in lines]
    head = tail = 0
    room = left // 3
    while head < len(lines) and costs[head] <= room:
        room -= costs[head]
        head += 1
    left -= sum(costs[:head])
    while head + tail < len(lines) and costs[-1 - tail] <= left:
        left -= costs[-1 - tail]
        tail += 1
    hidden = entries[head : len(entries) - tail]
    if not hidden:
        return lines
    ops = Counter(safe_name(line.node.op.name) for line in hidden)
    gap = Gap(len(hidden), 0, tuple(sorted(ops.items(), key=lambda entry: (-entry[1], entry[0]))[:2]))
    return [*lines[:head], gap.text, *lines[len(lines) - tail :]]
