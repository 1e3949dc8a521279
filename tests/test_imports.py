"""Importing is cheap and loads nothing heavy; what the package exports is what it says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import trace_opt

HEAVY = ("torch", "litellm", "openai", "sqlalchemy", "networkx", "pydantic", "optuna")
ROOT = Path(__file__).parents[1]


def loaded(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(' '.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stderr.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded("import trace_opt") & set(HEAVY)


def test_recording_text_loads_nothing_heavy() -> None:
    code = (
        "from trace_opt import Parameter, record, trace\n"
        "p = Parameter('a', name='p')\n"
        "f = trace(lambda x: x + p.value)\n"
        "with record(): f('b')"
    )
    assert not loaded(code) & set(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    code = "from trace_opt.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not loaded(code) & set(HEAVY)


def test_every_exported_name_exists_and_is_known_to_type_checkers() -> None:
    tree = ast.parse((ROOT / "trace_opt" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(trace_opt.__all__) == set(trace_opt._MODULES)
    assert all(getattr(trace_opt, name) is not None for name in trace_opt.__all__)


def test_an_unknown_name_says_so() -> None:
    try:
        trace_opt.nothing
    except AttributeError as error:
        assert "'nothing'" in str(error)
    else:
        raise AssertionError("no AttributeError")


def test_every_direct_dependency_is_pinned() -> None:
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    asked = [*project["dependencies"], *(entry for entries in extras.values() for entry in entries)]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    names = {re.split(r"[\[<>=;! ]", entry)[0].lower().replace("_", "-") for entry in asked}
    assert names - {project["name"]} <= pinned
