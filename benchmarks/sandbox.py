"""What a call of generated code costs in each sandbox, and what a thousand calls leave behind.

python benchmarks/sandbox.py            full, about a minute
python benchmarks/sandbox.py --quick    a few seconds

Wall time, for the work is done in other processes: the least, the median and the 95th percentile of single calls.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import save

from trace_opt.core.sandbox import Sandbox
from trace_opt.core.sandbox.monty import Monty
from trace_opt.core.sandbox.process import Process
from trace_opt.core.sandbox.trusted import Trusted
from trace_opt.errors import CodeError

SOURCE = "def parse(reply: str, scale: float) -> float:\n    return float(reply.strip()) * scale\n"
WITH_HOST = "def parse(reply: str, scale: float) -> float:\n    return look(reply) * look(scale)\n"
LIST = "def parse(reply: list, scale: float) -> list:\n    return [x for x in reply]\n"


def parse(reply: str, scale: float) -> float:
    return float(reply.strip()) * scale


def look(x: Any) -> float:
    return float(x)


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "least_us": round(ordered[0] * 1e6, 2),
        "median_us": round(ordered[len(ordered) // 2] * 1e6, 2),
        "p95_us": round(ordered[int(len(ordered) * 0.95)] * 1e6, 2),
    }


def times(run: Any, calls: int) -> list[float]:
    found: list[float] = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def children() -> int:
    return sum(len((task / "children").read_text().split()) for task in Path("/proc/self/task").iterdir())


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def leaks(sandbox: Sandbox, calls: int) -> dict[str, int]:
    """What so many calls add, every tenth of them failing."""

    def run(n: int) -> None:
        for i in range(n):
            sandbox.call(SOURCE, "parse", ("3", 2.0), returns=float)
            if i % 10 == 0:
                with suppress(CodeError):
                    sandbox.call(SOURCE, "parse", ("three", 2.0), returns=float)

    run(calls // 10)
    gc.collect()
    before = files(), children(), resident()
    run(calls)
    gc.collect()
    return {
        "calls": calls, "files": files() - before[0], "processes": children() - before[1], "bytes": resident() - before[2],
    }  # fmt: skip


def measure(sandbox: Sandbox, calls: int, leaked: int) -> dict[str, Any]:
    start = time.perf_counter()
    sandbox.call(SOURCE, "parse", ("3", 2.0), returns=float)
    first = time.perf_counter() - start
    numbers = list(range(10_000))
    return {
        "first_call_ms": round(first * 1e3, 2),
        "call": spread(times(lambda: sandbox.call(SOURCE, "parse", ("3", 2.0), returns=float), calls)),
        "two_host_calls": spread(
            times(lambda: sandbox.call(WITH_HOST, "parse", ("3", 2.0), uses={"look": look}, returns=float), calls // 4)
        ),
        "list_of_10000": spread(times(lambda: sandbox.call(LIST, "parse", (numbers, 2.0), returns=list), calls // 20)),
        "leaks": leaks(sandbox, leaked),
    }


def trusted_over_plain(calls: int) -> dict[str, float]:
    """Microseconds that the trusted sandbox adds to a plain call: the least of rounds in which they take turns."""
    sandbox = Trusted()
    args = ("3", 2.0)
    best = [1e9, 1e9]
    for _ in range(20):
        for i, run in enumerate((lambda: parse(*args), lambda: sandbox.call(SOURCE, "parse", args, returns=float))):
            start = time.perf_counter()
            for _ in range(calls):
                run()
            best[i] = min(best[i], (time.perf_counter() - start) / calls)
    return {"plain_us": round(best[0] * 1e6, 3), "over_plain_us": round((best[1] - best[0]) * 1e6, 3)}


def main() -> None:
    quick = "--quick" in sys.argv
    warnings.simplefilter("ignore", RuntimeWarning)
    with Monty() as monty:
        figures: dict[str, Any] = {"monty": measure(monty, 500 if quick else 5000, 200 if quick else 1000)}
    refusal = Process.refusal()
    if refusal is None:
        with Process() as process:
            figures["process"] = measure(process, 100 if quick else 2000, 100 if quick else 1000)
    else:
        figures["process"] = {"refusal": refusal}
    figures["trusted"] = trusted_over_plain(1000 if quick else 10_000)
    save("sandbox", figures)


if __name__ == "__main__":
    main()
