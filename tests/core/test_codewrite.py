"""A new source written into the user's file: in its place, with what it brings, and nothing else touched."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loading import module_at
from trace_opt.core.code import capture, checked, contract_of
from trace_opt.core.codefile import export
from trace_opt.core.codewrite import rewritten
from trace_opt.core.context import in_force
from trace_opt.core.trainable import code_of
from trace_opt.errors import TraceError

FILE = '''\
"""A module."""

from __future__ import annotations

import re

from trace_opt import trace

LIMIT = 3


def other(x: int) -> int:
    return x  # not mine


# a comment above
@trace(trainable=True)
def parse(reply: str) -> float:
    """Turn a reply into a number."""
    return float(reply) * LIMIT  # the last line


class Agent:
    """An agent."""

    @trace(trainable=True)
    def read(self, reply: str) -> str:
        """Read."""
        return reply


AFTER = 1
'''
NEW = "from math import floor\nimport re\n\nSTEP = 2\n\ndef half(x):\n    return x / STEP\n\ndef parse(reply):\n    return floor(half(float(reply))) * 1.0\n"


@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[Any]:
    """What loads a module from a text."""
    made: list[str] = []

    def load(text: str) -> Any:
        name = f"written_{len(made)}_{tmp_path.name.replace('-', '_')}"
        path = tmp_path / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        made.append(name)
        return module_at(path, name, listed=True)

    yield load
    for name in made:
        del sys.modules[name]


def test_the_file_runs_as_the_candidate_did_and_keeps_all_else(loaded: Any) -> None:
    before = loaded(FILE)
    contract = code_of(before.parse).contract
    source = checked(NEW, contract)
    with in_force({"parse": source}):
        expected = [before.parse(text) for text in ("7", "8.5", "0")]
    text = rewritten(FILE, contract, source)
    after = loaded(text)
    assert [after.parse(text) for text in ("7", "8.5", "0")] == expected
    removed = [line[1:] for line in difflib.unified_diff(FILE.splitlines(), text.splitlines(), n=0) if line[:1] == "-"][
        1:
    ]
    assert removed == ["    return float(reply) * LIMIT  # the last line"]
    assert text.count("import re\n") == 1
    assert "import re\n\nfrom trace_opt import trace\nfrom math import floor\n" in text
    assert text.index("def half") < text.index("@trace(trainable=True)\ndef parse")


def test_a_method_keeps_its_place_and_its_indentation(loaded: Any) -> None:
    contract = code_of(loaded(FILE).Agent.read).contract
    source = checked("def read(self, reply):\n    if reply:\n        return reply * 2\n\n    return ''\n", contract)
    text = rewritten(FILE, contract, source)
    assert (
        '    def read(self, reply: str) -> str:\n        """Read."""\n        if reply:\n            return reply * 2\n\n'
        in text
    )
    assert loaded(text).Agent().read("a") == "aa"


def test_what_was_written_is_what_is_captured_next(loaded: Any) -> None:
    contract = code_of(loaded(FILE).parse).contract
    source = checked("def parse(reply):\n    return 2.0  # changed\n", contract)
    assert capture(loaded(rewritten(FILE, contract, source)).parse).source == source


def test_line_ends_stay_as_they_are() -> None:
    contract = contract_of("def f(x):\n    return x\n")
    text = "import re\r\n\r\ndef f(x):\r\n    return x\r\n"
    assert rewritten(text, contract, "def f(x):\n    return 2\n") == text.replace("return x", "return 2")


@pytest.mark.parametrize(
    ("text", "source", "says"),
    [
        (FILE.replace("* LIMIT", "* 2"), NEW, "has changed since"),
        (FILE.replace("def parse", "def parsed"), NEW, "is not there any more"),
        (FILE + "def broken(:\n", NEW, "does not compile any more"),
        (FILE.replace("def other", "def half"), NEW, "brings 'half' along, and its file has one already"),
    ],
    ids=["changed", "gone", "broken", "taken"],
)
def test_a_file_that_cannot_take_it_is_left_alone(text: str, source: str, says: str, loaded: Any) -> None:
    contract = code_of(loaded(FILE).parse).contract
    with pytest.raises(TraceError, match=says):
        rewritten(text, contract, checked(source, contract))


def test_a_text_of_several_lines_in_a_method_is_not_moved(loaded: Any) -> None:
    contract = code_of(loaded(FILE).Agent.read).contract
    source = checked("def read(self, reply):\n    return '''a\nb'''\n", contract)
    with pytest.raises(TraceError, match="a text of several lines"):
        rewritten(FILE, contract, source)


def test_an_exported_module_imports_and_gives_what_the_candidate_gave(loaded: Any) -> None:
    module = loaded(FILE)
    code = code_of(module.parse)
    for proposal in (
        NEW,
        "def parse(reply):\n    return float(reply) + LIMIT\n",
        "def parse(reply):\n    return float(re.sub('x', '', reply))\n",
    ):
        source = code.check(proposal)
        with in_force({"parse": source}):
            expected = [module.parse(text) for text in ("7", "8.5")]
        exported = loaded(export({"parse": source}, {"parse": code.contract}, title="What was found."))
        assert [exported.parse(text) for text in ("7", "8.5")] == expected
        assert exported.__doc__ == "What was found."
        assert code_of(exported.parse).name == "parse"
