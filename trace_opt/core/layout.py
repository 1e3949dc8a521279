"""The order of a recording's nodes, and their edges as flat arrays.

A recording of one line of execution is in order already. Where tasks or threads shared it, the nodes of each stand
where it was started, siblings sorted by what they did, so that the order never depends on who arrived first. Parameters
stand right before their first use. Every pass over a graph is a loop over these arrays: no stack, no recursion.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.node import ATOMIC, Child, Nested, Node, ParameterNode, class_of, is_a
from trace_opt.core.strand import JOIN

if TYPE_CHECKING:
    from trace_opt.core.strand import Strand


class Layout:
    """Nodes in canonical order with the indices of their parents.

    Attributes:
        order: The nodes; `order[i].index == i`, and every parent stands before its children.
        parents: Indices of parents, node after node; one entry an edge.
        offsets: `parents[offsets[i]:offsets[i + 1]]` are those of node i.
    """

    __slots__ = ("offsets", "order", "parents")

    def __init__(self) -> None:
        self.order: list[Node[Any]] = []
        self.parents: list[int] = []
        self.offsets: list[int] = [0]

    def extend(self, nodes: list[Node[Any]]) -> bool:  # noqa: C901 # a flat loop: a call for each input costs a third
        """Add nodes in this order; False where one has a parent that has not been added (nothing can be relied on)."""
        order, parents, offsets = self.order, self.parents, self.offsets
        start = len(parents)
        for node in nodes:
            for given in node.inputs:
                kind = class_of(given)
                if kind in ATOMIC:
                    continue
                if kind is Node:
                    parents.append(given.index)
                elif kind is ParameterNode:
                    parents.append(given.index if given.index >= 0 else self._place(given, start))
                elif kind is Nested:
                    for inner in given.nodes:
                        parents.append(self._index_of(inner, start))  # _place grows the arrays meanwhile
                    if node.op is JOIN:
                        parents[start:] = sorted(parents[start:])
            for read in node.trail:
                if type(read) is not Child:
                    parents.append(self._index_of(read, start))
            if node.control is not None:
                parents.append(node.control.index)
            node.index = len(order)
            order.append(node)
            end = len(parents)
            if end > start and min(parents[start:]) < 0:
                return False
            start = end
            offsets.append(start)
        return True

    def place(self, unused: Iterable[ParameterNode[Any]]) -> None:
        """Add parameters whose values went into no node; one of them may be the output itself."""
        for parameter in sorted(unused, key=lambda node: node.name):
            self._place(parameter, len(self.parents))

    def _index_of(self, node: Node[Any], start: int) -> int:
        if node.index < 0 and is_a(node, ParameterNode):
            return self._place(cast("ParameterNode[Any]", node), start)
        return node.index

    def _place(self, node: ParameterNode[Any], start: int) -> int:
        """Give a parameter its place, before the node whose edges begin at `start`."""
        node.index = len(self.order)
        self.order.append(node)
        self.offsets.append(start)
        return node.index


def lay_out(strands: list[Strand], parameters: list[ParameterNode[Any]], outputs: list[Node[Any]]) -> Layout:
    """The layout of a recording: O(V + E), times log V only where threads fed each other's values."""
    for parameter in parameters:
        parameter.index = -1
    nodes = strands[0].nodes if len(strands) == 1 else _merged(strands)
    for node in (*nodes, *outputs):
        node.index = -1
    layout = Layout()
    if not layout.extend(nodes):
        nodes = sorted_by_dependency(nodes)
        for node in (*nodes, *parameters):
            node.index = -1
        layout = Layout()
        layout.extend(nodes)
    layout.place(parameter for parameter in parameters if parameter.index < 0)
    layout.extend(outputs)
    return layout


def _merged(strands: list[Strand]) -> list[Node[Any]]:
    """All nodes, each strand's where it was started, siblings in an order that follows from what they recorded."""
    started: defaultdict[Strand, list[tuple[int, list[str], list[Node[Any]]]]] = defaultdict(list)
    merged: list[Node[Any]] = []
    for strand in reversed(strands):  # a strand is made after the one that started it
        merged = []
        done = 0
        for start, _, nodes in sorted(started.pop(strand, []), key=lambda entry: entry[:2]):
            merged += strand.nodes[done:start]
            merged += nodes
            done = start
        merged += strand.nodes[done:]
        if strand.parent is not None:
            started[strand.parent].append((strand.start, [_content(node) for node in merged], merged))
    return merged


def _content(node: Node[Any]) -> str:
    """What a node did, as text that is the same in every run: no addresses."""
    constants = [_stable(given) for given in node.inputs if not isinstance(given, Node)]
    return f"{node.op.name}({', '.join(constants)}) = {_stable(node.value)}"


def _stable(value: Any) -> str:
    if type(value) in ATOMIC:
        return repr(value)[:1000]
    if is_a(value, (list, tuple)) and ATOMIC.issuperset(map(type, value)):
        return repr(value)[:1000]
    return class_of(value).__name__


def sorted_by_dependency(nodes: list[Node[Any]]) -> list[Node[Any]]:
    """Nodes after their parents, otherwise in the order given (Kahn's algorithm with a heap)."""
    place = {node: i for i, node in enumerate(nodes)}
    waiting = [0] * len(nodes)
    children: defaultdict[int, list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        for parent, _, _ in node.parents():
            if parent in place:
                waiting[i] += 1
                children[place[parent]].append(i)
    ready = [i for i, count in enumerate(waiting) if count == 0]
    ordered: list[Node[Any]] = []
    while ready:
        i = heapq.heappop(ready)
        ordered.append(nodes[i])
        for child in children[i]:
            waiting[child] -= 1
            if waiting[child] == 0:
                heapq.heappush(ready, child)
    return ordered
