"""What tests of agents whose parameters are functions do from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.loading import module_at
from trace_opt.cli import main
from trace_opt.optim.patch import patched


def exported(file: Path, names: Sequence[str], capfd: Any) -> Any:
    """The module that a problem's run is exported as; the diff shown of each function turns the old source into the new.

    Args:
        file: The problem's; one trial is made.
        names: The parameters.
        capfd: pytest's.
    """
    assert main(["run", str(file), "--budget", "trials=1"]) == 0
    capfd.readouterr()
    assert main(["diff", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    for name in names:
        part = f"--- {name} (start)" + shown["diff"].partition(f"--- {name} (start)")[2].partition("\n--- ")[0]
        assert patched(shown["a"][name], part) == shown["b"][name]
    found = file.with_name("found.py")
    assert main(["export", "--format", "code", "-o", str(found)]) == 0
    return module_at(found, f"exported_{file.stem}")
