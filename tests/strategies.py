"""Hypothesis strategies that several parts of the suite share."""

from typing import Any

from hypothesis import strategies as st

from trace_opt.core.graph import Graph
from trace_opt.core.parameter import Demonstrations, Parameter
from trace_opt.core.tracer import record, trace

texts = st.text(alphabet=st.characters(exclude_categories=()), max_size=20)
"""Any text, lone surrogates and NULs included."""

numbers = st.one_of(st.integers(), st.integers(2**62, 2**80), st.floats(), st.booleans(), st.none())
"""Numbers that JSON can and cannot say: huge ones, NaN, infinities."""

hashables = st.recursive(
    st.one_of(texts, numbers, st.binary(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)),
    max_leaves=5,
)

values = st.recursive(
    st.one_of(texts, numbers, st.binary(max_size=9), st.complex_numbers()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(hashables, inner, max_size=3),
        st.dictionaries(st.just("$"), inner, max_size=1),
        st.sets(hashables, max_size=3),
        st.lists(inner, max_size=2).map(lambda items: Demonstrations(4, tuple(items))),
    ),
    max_leaves=8,
)
"""Everything that the codec restores exactly, tensors apart."""


@st.composite
def tensors(draw: st.DrawFn) -> Any:
    """Small tensors of many dtypes and shapes, empty ones and views included."""
    import torch

    kinds = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    made = torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * 9
    made = made.to(draw(st.sampled_from(kinds)))
    return made.transpose(0, -1) if shape and draw(st.booleans()) else made


@st.composite
def recordings(draw: st.DrawFn, constants: Any = values) -> tuple[Graph, Any]:
    """A recording with parameters, containers, decisions, failures and inner calls, and one result of it."""
    parameters = [Parameter(f"value {i}", name=f"p{i}") for i in range(draw(st.integers(1, 3)))]

    @trace
    def join(*parts: Any, **named: Any) -> str:
        return f"{len(parts)}{len(named)}"

    @trace
    def read(which: int, _: Any) -> str:
        return join(parameters[which].value)

    @trace
    def fail(x: Any) -> None:
        raise ValueError("lone \ud800 surrogate")

    with record(seed=draw(st.integers(0, 9))) as graph:
        made: list[Any] = [parameter.value for parameter in parameters]
        pick = st.integers(0, 10**6).map(lambda i: made[i % len(made)])
        for _ in range(draw(st.integers(1, 8))):
            step = draw(st.sampled_from(["join", "read", "nest", "decide", "fail", "item"]))
            if step == "join":
                made.append(join(draw(pick), draw(constants), named=draw(pick)))
            elif step == "read":
                made.append(read(draw(st.integers(0, len(parameters) - 1)), draw(constants)))
            elif step == "nest":
                made.append(join([draw(pick), {"k": (draw(pick), draw(constants))}]))
            elif step == "decide":
                made.append(made[-1] + "!" if len(draw(pick)) > draw(st.integers(0, 3)) else made[0] + "?")
            elif step == "item":
                made.append(draw(pick)[0])
            else:
                try:
                    fail(draw(pick))
                except ValueError:
                    made.append(join(draw(pick)))
    graph.output(made[-1])
    return graph, made[-1]
