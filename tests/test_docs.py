"""What the documents say is so."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_record_and_propagate_in_forty_lines_does_what_the_text_says() -> None:
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", (ROOT / "ARCHITECTURE.md").read_text(), re.DOTALL)
    )
    names: dict = {}
    exec(code, names)
    found = names["slices"](names["y"])
    assert list(found) == ["p"]
    assert [node.value for node in found["p"]] == [1, 2, 3]
    assert len(code.splitlines()) <= 45


def test_the_documents_name_files_that_exist() -> None:
    for page in ("README.md", "ARCHITECTURE.md", "AGENTS.md", "CONTRIBUTING.md"):
        for path in re.findall(
            r"\b(?:benchmarks|tests|scripts|agents|examples)/[\w/]+\.(?:py|sh)", (ROOT / page).read_text()
        ):
            assert (ROOT / path).exists(), f"{page} names {path}"
