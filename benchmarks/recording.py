"""What recording costs: an op call beside one torch operation that records for autograd, and bytes a node.

python benchmarks/recording.py            full, about a minute
python benchmarks/recording.py --quick    a few seconds
python benchmarks/recording.py --trace    beside Microsoft Trace as well, installed in a temporary environment
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import tracemalloc
import venv
from pathlib import Path
from typing import Any

import torch
from harness import minima, save

from trace_opt.core.tracer import record, trace

CALLS = 20_000

# The peer in an environment of its own: a call of a bundled function on nodes, and the plain call, in microseconds.
PEER = """
import time
from opto.trace import bundle, node

@bundle()
def f(y, x):
    return y + x

def least(run, rounds=30, calls=200):
    best = 1e9
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(calls):
            run()
        best = min(best, (time.process_time() - start) / calls)
    return best * 1e6

y, x = node(1.5), node(1.0)
print(least(lambda: f(y, x)) - least(lambda: 1.5 + 1.0))
"""


def raw(y: float, x: float) -> float:
    return y + x


op = trace(raw)


def plain_calls() -> None:
    y = 1.5
    for _ in range(CALLS):
        y = raw(y, 1.0)


def inactive_calls() -> None:
    y = 1.5
    for _ in range(CALLS):
        y = op(y, 1.0)


def recorded_calls() -> Any:
    with record() as graph:
        y = op(1.5, 1.0)
        for _ in range(CALLS - 1):
            y = op(y, 1.0)
    return graph


def torch_calls() -> Any:
    y = torch.tensor(1.5, requires_grad=True)
    one = torch.tensor(1.0)
    for _ in range(CALLS):
        y = y * one
    return y


def memory() -> dict[str, float]:
    """Bytes a node with its value, and bytes left after the graph is dropped, the collector off."""
    recorded_calls()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    recorded_calls()  # what the first recording leaves in free lists and caches is left once
    try:
        before = tracemalloc.get_traced_memory()[0]
        graph = recorded_calls()
        held = tracemalloc.get_traced_memory()[0] - before
        del graph
        left = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        gc.enable()
    return {"bytes_a_node": round(held / CALLS, 1), "bytes_a_node_after_drop": round(left / CALLS, 3)}


def peer_microseconds() -> float:
    """Microseconds a call of Microsoft Trace's bundle costs over the plain call."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "bin", "python"))
        subprocess.run([python, "-m", "pip", "install", "-q", "trace-opt==0.1.3.8"], check=True)
        script = Path(folder, "peer.py")  # it reads the source of what it bundles, so it wants a file
        script.write_text(PEER, encoding="utf-8")
        return float(
            subprocess.run([python, str(script)], check=True, capture_output=True, text=True).stdout.split()[-1]
        )


def main() -> None:
    rounds = 5 if "--quick" in sys.argv else 60
    runs = {"plain": plain_calls, "inactive": inactive_calls, "recorded": recorded_calls, "torch": torch_calls}
    best = {name: seconds / CALLS * 1e6 for name, seconds in minima(runs, rounds).items()}
    active = best["recorded"] - best["plain"]
    figures: dict[str, Any] = {
        "microseconds": {name: round(value, 3) for name, value in best.items()},
        "active_over_plain_us": round(active, 3),
        "inactive_over_plain_us": round(best["inactive"] - best["plain"], 3),
        "active_to_torch": round(active / best["torch"], 3),
        **memory(),
    }
    if "--trace" in sys.argv:
        peer = peer_microseconds()
        figures["microsoft_trace_us"] = round(peer, 1)
        figures["microsoft_trace_to_active"] = round(peer / active, 1)
    save("recording", figures)


if __name__ == "__main__":
    main()
