"""Every example runs as it stands, and the README shows the quickstart word for word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_the_readme_shows_the_quickstart_word_for_word() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quickstart = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    assert f"```python\n{quickstart}```" in readme


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path, tmp_path: Path) -> None:
    if "embedded/" in example.read_text(encoding="utf-8"):
        from trace_opt.llm.models import path_of

        if path_of("smollm2") is None:
            pytest.skip("the embedded model is not here; run `trace-opt models pull`")
    done = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, cwd=tmp_path, env={**os.environ}, timeout=110
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
