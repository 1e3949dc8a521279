"""Which part of a recording carried each parameter to an output.

Nodes stand in an order in which every parent comes before its children, so one backward pass marks what reaches the
output and one forward pass marks what some parameters reached: linear time whatever the number of parameters, and no
limit on the depth. What a single slice holds is written out only when it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_opt.core.node import Node, ParameterNode
from trace_opt.errors import TraceError

if TYPE_CHECKING:
    from trace_opt.core.feedback import Feedback
    from trace_opt.core.graph import Graph
    from trace_opt.core.layout import Layout
    from trace_opt.core.parameter import Parameter


@dataclass(frozen=True, slots=True)
class Union:
    """The part of a graph through which any of several parameters reached an output.

    Attributes:
        path: Nodes on a way from one of the parameters to the output, in the graph's order; the output is last.
        context: Direct inputs of `path` that are not in it, in the graph's order.
    """

    path: tuple[Node[Any], ...]
    context: tuple[Node[Any], ...]


class Slice:
    """The part of a graph through which one parameter reached an output; `path` and `context` are made when first read.

    Attributes:
        node: The parameter's node in the graph.
        output: The node that the feedback is about.
        feedback: What was said about it.
    """

    __slots__ = ("_reach", "_union", "feedback", "node", "output")

    def __init__(self, node: ParameterNode[Any], output: Node[Any], feedback: Feedback, reach: _Reach) -> None:
        self.node = node
        self.output = output
        self.feedback = feedback
        self._reach = reach
        self._union: Union | None = None

    @property
    def name(self) -> str:
        """The parameter's full name."""
        return self.node.name

    @property
    def parameter(self) -> Parameter[Any]:
        """The Parameter.

        Raises:
            TraceError: the graph was loaded from data, which holds no Parameters.
        """
        if self.node.parameter is None:
            raise TraceError(f"{self.name!r} comes from a graph that was loaded; use .name and .node")
        return self.node.parameter

    @property
    def graph(self) -> Graph:
        """The recording."""
        return self._reach.graph

    @property
    def path(self) -> tuple[Node[Any], ...]:
        """Nodes on a way from the parameter to the output, the output last."""
        return self._written().path

    @property
    def context(self) -> tuple[Node[Any], ...]:
        """Direct inputs of `path` that are not in it."""
        return self._written().context

    def _written(self) -> Union:
        if self._union is None:
            self._union = self._reach.walk(self.node)
        return self._union

    def __repr__(self) -> str:
        return f"<slice of {self.name!r}>"


class _Reach:
    """What reaches one output: a mark for each node, shared by all slices of that output."""

    __slots__ = ("_children", "graph", "last", "layout", "mark")

    def __init__(self, graph: Graph, output: Node[Any]) -> None:
        self.graph = graph
        self.layout: Layout = graph.layout()
        self.last = output.index
        self.mark = _marked(self.layout, output.index)
        self._children: list[list[int]] | None = None

    def union(self, nodes: Iterable[Node[Any]]) -> Union:
        """What any of some parameters reached, in O(V + E)."""
        parents, offsets = self.layout.parents, self.layout.offsets
        inside = bytearray(len(self.mark))
        first = len(self.mark)
        for node in nodes:
            inside[node.index] = 1
            first = min(first, node.index)
        for i in range(first, self.last + 1):
            if self.mark[i] and not inside[i]:
                for j in range(offsets[i], offsets[i + 1]):
                    if inside[parents[j]]:
                        inside[i] = 1
                        break
        return self._written([i for i in range(first, self.last + 1) if inside[i]], inside)

    def walk(self, node: Node[Any]) -> Union:
        """What one parameter reached; costs the size of that slice once the children are known."""
        children = self._children_lists()
        inside = {node.index}
        todo = [node.index]
        while todo:
            for child in children[todo.pop()]:
                if child not in inside:
                    inside.add(child)
                    todo.append(child)
        return self._written(sorted(inside), inside)

    def _children_lists(self) -> list[list[int]]:
        """Children of each marked node, among marked nodes."""
        if self._children is None:
            parents, offsets, mark = self.layout.parents, self.layout.offsets, self.mark
            self._children = [[] for _ in range(len(mark))]
            for i in range(len(mark)):
                if mark[i]:
                    for j in range(offsets[i], offsets[i + 1]):
                        self._children[parents[j]].append(i)
        return self._children

    def _written(self, path: list[int], inside: bytearray | set[int]) -> Union:
        order, parents, offsets = self.layout.order, self.layout.parents, self.layout.offsets
        is_inside = inside.__contains__ if isinstance(inside, set) else inside.__getitem__
        context = {parents[j] for i in path for j in range(offsets[i], offsets[i + 1]) if not is_inside(parents[j])}
        return Union(tuple(order[i] for i in path), tuple(order[i] for i in sorted(context)))


def propagate(graph: Graph, output: Node[Any], feedback: Feedback) -> dict[str, Slice]:
    """Give every parameter the slice through which it reached `output`.

    Args:
        graph: The recording that holds `output`; it is not changed.
        output: The node that the feedback is about (`graph.output(...)`); the error node of a failed op will do.
        feedback: Handed on as it is. With a `loss`, in a recording by hand, one torch backward adds to `grad` of every tensor parameter that
            it reaches, once for each Feedback however often it is propagated.

    Returns:
        One slice by full parameter name, in the graph's order; parameters with no way to `output` are left out.

    Raises:
        TraceError: `output` belongs to another recording.
        FeedbackError: the loss is no single number.

    Cost: O(V + E) whatever the number of parameters. Source: minimal subgraph propagation, arXiv 2406.16218.
    """
    if not graph.holds(output):
        raise TraceError(f"{output!r} belongs to another recording; pass the graph that recorded it")
    reach = _Reach(graph, output)
    slices = {
        name: Slice(node, output, feedback, reach) for name, node in graph.parameters.items() if reach.mark[node.index]
    }
    if feedback.loss is not None and not feedback.spent and graph.by_hand:
        from trace_opt.core.tensors import backward_loss

        feedback.spent.append(True)
        backward_loss(graph, feedback.loss)
    return slices


def union(slices: Sequence[Slice]) -> Union:
    """The part of a graph through which any of several parameters reached one output.

    Args:
        slices: Slices of one graph and output, from one call of `propagate`.

    Raises:
        ValueError: there are none, or they are of different outputs.

    Cost: O(V + E) whatever their number.
    """
    if not slices or any(piece._reach is not slices[0]._reach for piece in slices):
        raise ValueError("union needs slices of one output; pass what one call of propagate returned")
    return slices[0]._reach.union(piece.node for piece in slices)


def _marked(layout: Layout, output: int) -> bytearray:
    """Which nodes reach the output."""
    parents, offsets = layout.parents, layout.offsets
    mark = bytearray(len(layout.order))
    mark[output] = 1
    for i in range(output, -1, -1):
        if mark[i]:
            for j in range(offsets[i], offsets[i + 1]):
                mark[parents[j]] = 1
    return mark
