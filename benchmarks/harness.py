"""What every benchmark here shares: CPU time of interleaved functions, and a result file that says how it came about.

Machines are noisy, so figures are minima of CPU time over rounds in which the things compared take turns.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU time of one call; what it returns is dropped outside the clock."""
    start = time.process_time()
    kept = run()
    seconds = time.process_time() - start
    del kept
    return seconds


def minima(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The least CPU seconds of each, taking turns."""
    best = dict.fromkeys(runs, math.inf)
    for _ in range(rounds):
        for name, run in runs.items():
            best[name] = min(best[name], cpu_seconds(run))
    return best


def exponent(sizes: tuple[int, int], seconds: tuple[float, float]) -> float:
    """The power of size that time grows with between two sizes."""
    return math.log(seconds[1] / seconds[0]) / math.log(sizes[1] / sizes[0])


def module_at(path: Path) -> Any:
    """The module of a file in agents/ or graphs/, for what its problem does not show."""
    spec = spec_from_file_location(f"{path.stem}_problem", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def save(name: str, figures: Mapping[str, Any], *, seeds: list[int] | None = None) -> None:
    """Print figures and write them to results/NAME.json with command, machine and date."""
    import trace_opt

    record = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "trace_opt": trace_opt.__version__,
        "seeds": seeds or [],
        "figures": figures,
    }
    text = json.dumps(record, indent=2)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
