"""Files outside any package as modules: problems, benchmarks, and what a test has written."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def module_at(path: Path, name: str, *, listed: bool = False) -> Any:
    """The module of a file; `listed` among `sys.modules`, where dataclasses and pickles look for it."""
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    if listed:
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
