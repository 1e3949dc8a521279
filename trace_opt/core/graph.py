"""A recording: what a workflow did, as data.

While it is open it grows by appending; afterwards it is read in one canonical order (core/layout.py). It is shown as a
frozen `networkx.MultiDiGraph`, so any NetworkX algorithm applies; our own passes read flat arrays instead.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.context import RolloutState
from trace_opt.core.layout import Layout, lay_out
from trace_opt.core.node import Failure, Nested, Node, Op, ParameterNode, identity, is_a
from trace_opt.core.operators import OUTPUT
from trace_opt.core.parameter import is_tensor
from trace_opt.errors import TraceError

if TYPE_CHECKING:
    import networkx as nx

    from trace_opt.core.parameter import Parameter
    from trace_opt.core.strand import Frame, Strand

OUTPUT_OF_LEAVES = Op("output", identity, ("leaves",), kind="output")
ERROR = Op("error", identity, ("leaves",))


class Graph:
    """What a workflow did.

    Attributes:
        values: The candidate's values that were in force, by full parameter name.
        seed: The rollout's seed, or None.
        open: Whether the recording is still going on.
    """

    def __init__(self, state: RolloutState | None = None) -> None:
        state = RolloutState() if state is None else state
        self.values = state.values
        self.seed = state.seed
        self.open = True
        self.strands: list[Strand] = []
        self.frame: Frame | None = None
        self.memo = state.memo
        self._training = state.training
        self._parameters: dict[Any, ParameterNode[Any]] = {}
        self._owners: dict[str, Any] = {}
        self._outputs: list[Node[Any]] = []
        self._output_of: dict[Node[Any], Node[Any]] = {}
        self._tip: Node[Any] | None = None
        self._fault: BaseException | None = None
        self._layout: Layout | None = None
        self._size = 0, 0, 0  # strands' nodes, parameters and outputs in that layout
        self._names: dict[Node[Any], str] | None = None
        self._networkx: nx.MultiDiGraph[str] | None = None

    # -- recording ---------------------------------------------------------------------------------------------------

    def parameter_node(self, parameter: Parameter[Any]) -> ParameterNode[Any]:
        """The node of a parameter, made at its first read.

        Raises:
            TraceError: another parameter of that name was read in this recording.
        """
        node = self._parameters.get(parameter)
        if node is not None:
            return node
        name = parameter.name
        if self._owners.setdefault(name, parameter) is not parameter:
            error = TraceError(f"two parameters named {name!r} were read in one recording; give each a name of its own")
            self.note_fault(error)
            raise error
        value = self.values.get(name, parameter.initial)
        trains = self._training and getattr(value, "requires_grad", False)
        if not trains and is_tensor(value) and value.is_floating_point():
            # a leaf of this recording's own that shares memory: concurrent recordings have gradients of their own
            value = value.detach().requires_grad_(self._training is None and not parameter.frozen)
        made = ParameterNode(value, name, parameter.description, parameter)
        return self._parameters.setdefault(parameter, made)

    @property
    def by_hand(self) -> bool:
        """Whether it is no rollout of a search, whose gradients are the optimizer's business."""
        return self._training is None

    def note_fault(self, error: BaseException) -> None:
        """Keep an exception no candidate is to blame for, to be raised on leaving even if the workflow swallows it."""
        if self.open and isinstance(error, Exception) and self._fault is None:
            self._fault = error

    def close(self, frame: Frame | None = None) -> BaseException | None:
        """End the recording made in `frame`; gives the fault noted, if any."""
        self.open = False
        self.frame = None
        self._tip = None if frame is None else frame.control()
        fault, self._fault = self._fault, None
        return fault

    def given_up(self) -> Graph:
        """What was recorded so far, where the thread that goes on cannot be stopped: what it does is recorded nowhere."""
        frame = self.frame
        self.open = False
        for strand in self.strands:
            # lines that still run append to the lists that they know
            strand.nodes = list(strand.nodes)
        made = copy(self)
        tip = self._tip if frame is None else frame.last
        known = tip is not None and any(tip is node for strand in self.strands for node in reversed(strand.nodes))
        made.frame, made._tip = None, tip if known else None
        made.strands, made._outputs = list(self.strands), list(self._outputs)
        made._parameters, made._output_of = dict(self._parameters), dict(self._output_of)
        made._layout = None
        return made

    def holds(self, node: Node[Any]) -> bool:
        """Whether a node belongs to this recording."""
        if isinstance(node, ParameterNode):
            return any(node is mine for mine in self._parameters.values())
        layout = self.layout()
        return 0 <= node.index < len(layout.order) and layout.order[node.index] is node

    # -- the output --------------------------------------------------------------------------------------------------

    def output(self, value: Any) -> Node[Any]:
        """The node that feedback on an output is about.

        Args:
            value: A result of this recording, a container of results, or a plain value, which is tied to every leaf
                (see `loose_ends`).

        Returns:
            The result's own node where the latest decision leads to it, else an `output` node that the latest decision
            leads to as well.

        Raises:
            TraceError: a result belongs to another recording.
        """
        from trace_opt.core.arguments import output_parts

        tip = self._tip if self.frame is None else self.frame.control()
        plain, recorded = output_parts(self, value)
        if is_a(recorded, Node):
            if tip is None or recorded.control is tip:
                return recorded
            known = self._output_of.get(recorded)
            if known is None:
                known = self._output_of[recorded] = self._add_output(Node(OUTPUT, plain, (recorded,), (), tip))
            return known
        if isinstance(recorded, Nested):
            return self._add_output(Node(OUTPUT, plain, (recorded,), (), tip))
        return self.output_of_leaves(plain)

    def output_of_leaves(self, value: Any) -> Node[Any]:
        """A node for a plain output, or for an error raised between ops, tied to every leaf."""
        layout = self.layout()
        used = bytearray(len(layout.order))
        for parent in layout.parents:
            used[parent] = 1
        leaves = tuple(node for node in layout.order if not used[node.index] and node.kind in ("op", "error", "output"))
        op = ERROR if type(value) is Failure else OUTPUT_OF_LEAVES
        tip = self._tip if self.frame is None else self.frame.control()
        return self._add_output(Node(op, value, (Nested(leaves, leaves),), (), tip))

    def loose_ends(self, node: Node[Any]) -> tuple[str, ...]:
        """Names of the leaves that a plain output was tied to; empty for an output that is a result."""
        if node.op is not OUTPUT_OF_LEAVES:
            return ()
        return tuple(self.names[leaf] for leaf in node.inputs[0].nodes)

    def _add_output(self, node: Node[Any]) -> Node[Any]:
        self._outputs.append(node)
        return node

    # -- reading -----------------------------------------------------------------------------------------------------

    def layout(self) -> Layout:
        """Nodes in canonical order and their edges as flat arrays; kept until the recording grows."""
        size = sum(len(strand.nodes) for strand in self.strands), len(self._parameters), len(self._outputs)
        laid = self._layout
        if laid is None or size != self._size:
            # outputs stand last, so those that were added since can follow; anything else moves what is there
            if laid is None or size[:2] != self._size[:2] or not laid.extend(self._outputs[self._size[2] :]):
                laid = lay_out(self.strands, list(self._parameters.values()), self._outputs)
            self._layout, self._size, self._names, self._networkx = laid, size, None, None
        return laid

    @property
    def nodes(self) -> tuple[Node[Any], ...]:
        """All nodes in canonical order: parents before children."""
        return tuple(self.layout().order)

    @property
    def parameters(self) -> dict[str, ParameterNode[Any]]:
        """The parameters that were read, by full name, in canonical order."""
        return {node.name: node for node in self.layout().order if isinstance(node, ParameterNode)}

    @property
    def names(self) -> Mapping[Node[Any], str]:
        """The name of every node (`ask_1`; a parameter's own), in canonical order."""
        order = self.layout().order
        if self._names is None:
            taken = {node.name for node in order if isinstance(node, ParameterNode)}
            counts: dict[str, int] = {}
            self._names = {node: _name_of(node, counts, taken) for node in order}
        return self._names

    def __getitem__(self, name: str) -> Node[Any]:
        """The node of a name.

        Raises:
            KeyError: there is none.
        """
        for node, known in self.names.items():
            if known == name:
                return node
        raise KeyError(name)

    def __len__(self) -> int:
        return len(self.layout().order)

    def __bool__(self) -> bool:
        return True

    def parents(self, node: Node[Any]) -> list[tuple[Node[Any], str, str]]:
        """What a node was made from: `(node, "argument" | "read" | "control", where the value went in)`."""
        self.layout()  # the order of what a join joins is settled there
        return list(node.parents())

    @property
    def networkx(self) -> nx.MultiDiGraph[str]:
        """The graph for NetworkX: frozen, node keys are names, made on demand.

        Nodes carry `kind`, `op` and `value`; edges carry `kind` and are keyed by where the value went in.
        """
        names = self.names
        if self._networkx is None:
            import networkx as nx

            made: nx.MultiDiGraph[str] = nx.MultiDiGraph()
            collecting = gc.isenabled()
            gc.disable()  # a bulk build makes no garbage, and the collector would walk it again and again
            try:
                made.add_nodes_from(
                    (name, {"kind": node.kind, "op": node.op.name, "value": node.value}) for node, name in names.items()
                )
                # four-tuples: a three-tuple's key is tried as edge data first
                cast("Any", made).add_edges_from(
                    (names[parent], name, key, {"kind": kind})
                    for node, name in names.items()
                    for parent, kind, key in node.parents()
                )
            finally:
                if collecting:
                    gc.enable()
            self._networkx = cast("Any", nx).freeze(made)
            return made
        return self._networkx

    # -- as data -----------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The graph as JSON text; values that are not JSON are kept as their repr and type."""
        from trace_opt.core.columns import to_json

        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """The graph that `to_json` gave.

        Raises:
            TraceError: the text is no graph.
        """
        from trace_opt.core.columns import from_json

        return from_json(text)

    def same_as(self, other: Graph) -> bool:
        """Whether two graphs have the same nodes, values and edges."""
        return self.to_json() == other.to_json()

    def to_text(self) -> str:
        """One line a node, in order."""
        from trace_opt.core.views import to_text

        return to_text(self)

    def to_mermaid(self) -> str:
        """A Mermaid flowchart."""
        from trace_opt.core.views import to_mermaid

        return to_mermaid(self)

    def to_dot(self) -> str:
        """A Graphviz digraph."""
        from trace_opt.core.views import to_dot

        return to_dot(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from trace_opt.core.views import mimebundle

        del include, exclude  # a notebook may name types; both are cheap, so it always gets both
        return mimebundle(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        from trace_opt.core.columns import deep_copy

        return deep_copy(self, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        from trace_opt.core.columns import columns_of, graph_from_columns

        return graph_from_columns, (columns_of(self),)

    def __repr__(self) -> str:
        return f"<graph of {len(self.layout().order)} nodes>"


def _name_of(node: Node[Any], counts: dict[str, int], taken: set[str]) -> str:
    if isinstance(node, ParameterNode):
        return node.name
    base = node.op.name
    while True:
        counts[base] = counts.get(base, 0) + 1
        name = f"{base}_{counts[base]}"
        if name not in taken:
            return name
