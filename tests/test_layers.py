"""The order of layers: a module imports only from layers above its own, wherever the import stands."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trace_opt"
LAYERS = [
    "errors",
    "core",
    "llm",
    "guides",
    "store",
    "optim",
    "refine",
    "search",
    "problem",
    "cli",
    "viewer",
    "testing",
]
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imported(tree: ast.Module) -> Iterator[str]:
    """The layers that a module imports from; what only type checkers see is no dependency."""
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("trace_opt."))


@pytest.mark.parametrize(
    "path", [m for m in MODULES if m.name not in ("__init__.py", "__main__.py") or len(m.parts) > 1], ids=str
)
def test_a_module_imports_only_from_its_own_layer_and_those_above(path: Path) -> None:
    own = LAYERS.index(layer(path))
    tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    below = sorted({name for name in imported(tree) if LAYERS.index(name) > own})
    assert not below, f"{path} imports from {below}, which are below {layer(path)!r}"


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer(path) for path in MODULES} - {"__init__", "__main__"} <= set(LAYERS)
