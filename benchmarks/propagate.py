"""How propagation grows with the graph, and what copying and writing a deep graph costs.

python benchmarks/propagate.py            1,000 / 10,000 / 100,000 op calls
python benchmarks/propagate.py --quick    up to 10,000
"""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

from harness import cpu_seconds, exponent, save

from trace_opt.core.feedback import Feedback
from trace_opt.core.graph import Graph
from trace_opt.core.parameter import Parameter
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import record, trace

FEEDBACK = Feedback(1.0)


@trace
def step(y: float, x: float) -> float:
    return y + x


@trace
def both(y: float, p: float) -> float:
    return y + p


@trace
def total(items: list[float]) -> float:
    return sum(items)


def recorded(workflow: Callable[[Parameter[float], int], Any], calls: int) -> tuple[Graph, Any]:
    parameter = Parameter(1.0, name="p")
    with record() as graph:
        output = workflow(parameter, calls)
    return graph, output


def chain(p: Parameter[float], calls: int) -> Any:
    y = p.value
    for _ in range(calls):
        y = step(y, 1.0)
    return y


def reused(p: Parameter[float], calls: int) -> Any:
    y = p.value
    for _ in range(calls):
        y = both(y, p.value)
    return y


def fan_in(p: Parameter[float], calls: int) -> Any:
    return total([step(p.value, float(i)) for i in range(calls)])


def diamond(p: Parameter[float], calls: int) -> Any:
    y = p.value
    for _ in range(calls // 3):
        y = both(step(y, 1.0), step(y, 2.0))
    return y


def decisions(p: Parameter[float], calls: int) -> Any:
    y = p.value
    for _ in range(calls // 2):
        y = step(y, 1.0) if y > 0 else step(y, -1.0)
    return y


SHAPES = {"chain": chain, "reused": reused, "fan_in": fan_in, "diamond": diamond, "decisions": decisions}


def propagate_seconds(shape: Callable[[Parameter[float], int], Any], calls: int, rounds: int) -> float:
    """Least CPU seconds from a fresh recording to its slices, laying out the graph included."""
    best = float("inf")
    for _ in range(rounds):
        best = min(best, _once(*recorded(shape, calls)))
    return best


def _once(graph: Graph, output: Any) -> float:
    return cpu_seconds(lambda: propagate(graph, graph.output(output), FEEDBACK))


def copies(calls: int) -> dict[str, float]:
    """CPU seconds to write and read back a chain."""
    graph, _ = recorded(chain, calls)
    pickled, text = pickle.dumps(graph), graph.to_json()
    runs: dict[str, Callable[[], Any]] = {
        "pickle": lambda: pickle.dumps(graph),
        "unpickle": lambda: pickle.loads(pickled),
        "deepcopy": lambda: copy.deepcopy(graph),
        "to_json": graph.to_json,
        "from_json": lambda: Graph.from_json(text),
        "networkx": lambda: graph.networkx,
    }
    return {name: round(cpu_seconds(run), 3) for name, run in runs.items()}


def main() -> None:
    sizes = (1_000, 10_000) if "--quick" in sys.argv else (1_000, 10_000, 100_000)
    figures: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        seconds = [propagate_seconds(shape, size, rounds=7) for size in sizes]
        figures[name] = {
            "seconds": {str(size): round(value, 5) for size, value in zip(sizes, seconds, strict=True)},
            "exponent": round(exponent(sizes[-2:], (seconds[-2], seconds[-1])), 3),  # type: ignore[arg-type]
        }
    figures[f"chain of {sizes[-1]} op calls, seconds"] = copies(sizes[-1])
    save("propagate", figures)


if __name__ == "__main__":
    main()
