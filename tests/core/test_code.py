"""A function's source as a value: captured from anywhere, held to its contract, shown as a diff, exported as a module."""

from __future__ import annotations

import functools
import inspect
import linecache
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.loading import module_at
from trace_opt.core.code import (
    Contract,
    capture,
    checked,
    contract_of,
    diff,
    generated_line,
    is_literal,
    marked,
    normal,
)
from trace_opt.core.codecheck import free_names
from trace_opt.core.codefile import export
from trace_opt.core.tracer import trace
from trace_opt.errors import CodeError, TraceError

LIMIT = 3


def noisy(fn: Any) -> Any:
    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapped


def parse(reply: str, base: int = 10, *, strict: bool = False) -> float:
    """Turn the reply into a number.

    Words around it do not matter.
    """
    found = re.match(r"\d+", reply)
    return float(found[0]) * LIMIT if found else 0.0


@noisy
@noisy
def decorated(x: int) -> int:
    # a comment that says "def"
    return x + 1


HEAD = "def parse(reply, base=10, *, strict=False):\n"


@pytest.fixture
def contract() -> Contract:
    return capture(parse)


def refused(source: str, contract: Contract) -> CodeError:
    with pytest.raises(CodeError) as caught:
        checked(source, contract)
    return caught.value


# capturing


def test_the_source_is_the_def_as_it_stands_in_the_file(contract: Contract) -> None:
    assert contract.source == inspect.getsource(parse)
    assert contract.header == "def parse(reply: str, base: int = 10, *, strict: bool = False) -> float:"
    assert contract.doc is not None
    assert inspect.cleandoc(contract.doc) == inspect.getdoc(parse)  # 3.13 strips the indentation itself
    assert contract.hints == {"reply": str, "base": int, "strict": bool, "return": float}
    assert contract.returns is float


def test_the_original_keeps_its_own_contract_unchanged(contract: Contract) -> None:
    assert checked(contract.source, contract) == contract.source


def test_two_decorators_are_kept_apart_from_the_source() -> None:
    found = capture(decorated)
    assert found.decorators == ("noisy", "noisy")
    assert found.source == 'def decorated(x: int) -> int:\n    # a comment that says "def"\n    return x + 1\n'
    assert (
        checked("@noisy\n@noisy\ndef decorated(x):\n    return 2\n", found)
        == "def decorated(x: int) -> int:\n    return 2\n"
    )


def test_what_the_function_reads_of_its_module_runs_before_it(contract: Contract) -> None:
    assert contract.preamble(contract.source) == "import re\nLIMIT = 3\n"
    assert contract.preamble(HEAD + "    return 1.0\n") == ""
    assert contract.missing(contract.source, {}) == []
    assert contract.missing(HEAD + "    return ask(reply) + noisy\n", {"ask": print}) == ["noisy"]


def test_a_nested_function_is_captured_without_its_indentation() -> None:
    factor = 4

    @noisy
    def inner(x: int) -> int:
        def deeper(y: int) -> int:
            return y * factor

        return deeper(x)

    found = capture(inner)
    assert found.source.startswith(
        "def inner(x: int) -> int:\n    def deeper(y: int) -> int:\n        return y * factor\n"
    )
    assert found.constants == {"factor": 4}


def test_a_notebook_cell_is_found_through_linecache() -> None:
    cell = "import math\n\ndef area(r: float) -> float:\n    return math.pi * r * r\n"
    name = "<ipython-input-1-abc>"
    linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(cell, name, "exec"), space)
    found = capture(space["area"])
    assert found.source == "def area(r: float) -> float:\n    return math.pi * r * r\n"
    assert found.preamble(found.source) == "import math\n"


def test_a_function_without_a_file_needs_its_text() -> None:
    text = "def made(x: int) -> int:\n    return x + 1\n"
    space: dict[str, Any] = {}
    exec(compile(text, "<nowhere>", "exec"), space)
    with pytest.raises(TraceError, match="source=") as caught:
        capture(space["made"])
    assert "'made'" in str(caught.value)
    assert capture(space["made"], text).source == text
    with pytest.raises(TraceError, match="no def of that name"):
        capture(space["made"], "def other(x):\n    return 1\n")


def test_text_alone_makes_a_contract() -> None:
    found = contract_of("def a(x):\n    return 1\n\ndef b(x: int, /) -> str:\n    'Doc.'\n    return ''\n", name="b")
    assert (found.name, found.header, found.doc) == ("b", "def b(x: int, /) -> str:", "Doc.")
    with pytest.raises(CodeError, match="holds 2 functions"):
        contract_of("def a(): pass\ndef b(): pass\n")


def items() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda x: x, "a lambda has no def"),
        (len, "'len' has no Python source"),
        (int, "'int' has no Python source"),
        (items, "'items' is a generator"),
    ],
)
def test_what_has_no_def_to_rewrite_is_refused_with_the_remedy(fn: Any, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        capture(fn)


def test_methods_partials_and_async_functions_are_captured() -> None:
    class Agent:
        def act(self, x: int) -> int:
            return x

    async def ask(x: str) -> str:
        return x

    assert capture(Agent().act).source == "def act(self, x: int) -> int:\n    return x\n"
    assert capture(functools.partial(parse, base=2)).name == "parse"
    found = capture(ask)
    assert found.is_async
    assert "must stay an async def" in str(refused("def ask(x):\n    return x\n", found))


# the contract


def test_header_and_docstring_of_the_original_are_put_back(contract: Contract) -> None:
    kept = checked(HEAD + '    """Mine."""\n    # why\n    return 1.0\n', contract)
    assert kept == f'{contract.header}\n    """{contract.doc}"""\n    # why\n    return 1.0\n'
    assert checked(HEAD + "    # why\n    return 1.0\n", contract) == kept
    assert (
        checked(HEAD[:-1] + " return 1.0", contract) == f'{contract.header}\n    """{contract.doc}"""\n    return 1.0\n'
    )
    assert checked(HEAD + "    'Doc only.'\n", contract) == f'{contract.header}\n    """{contract.doc}"""\n'


def test_kept_text_is_a_fixed_point(contract: Contract) -> None:
    for body in ("    return 1.0\n", "    'x'\n    return 2\n", "\n\n    # c\n\n    x = {1: 2}\n    return x[1]\n"):
        kept = checked(HEAD + body, contract)
        assert checked(kept, contract) == kept


@pytest.mark.parametrize("newline", ["\r\n", "\r", "\n"])
def test_newlines_of_every_system_are_the_same_text(contract: Contract, newline: str) -> None:
    text = (HEAD + "    x = 1\n    return x * 1.0\n").replace("\n", newline)
    assert checked(text, contract).endswith("    x = 1\n    return x * 1.0\n")


def test_tabs_a_byte_mark_and_common_indentation_do_not_matter(contract: Contract) -> None:
    wanted = checked(HEAD + "    if base:\n        return 1.0\n    return 2.0\n", contract)
    assert checked("\ufeff" + HEAD + "\tif base:\n\t\treturn 1.0\n\treturn 2.0\n", contract) == wanted
    indented = "".join(
        f"        {line}\n" for line in (HEAD + "    if base:\n        return 1.0\n    return 2.0").splitlines()
    )
    assert checked(indented, contract) == wanted


def test_imports_helpers_classes_and_constants_may_stand_beside_it(contract: Contract) -> None:
    beside = (
        "import json\nfrom math import sqrt as root\nSCALE = -2.5\nNAMES = ('a', {'b': [1]})\n"
        "def helper(x, y=1):\n    return x\n"
        "@dataclass(frozen=True)\nclass Point:\n    '''Doc.'''\n    x: int\n    y: int = 3\n    def size(self):\n        return self.x\n"
    )
    assert checked(beside + HEAD + "    return 1.0\n", contract).startswith(beside + "def parse(reply: str")


@pytest.mark.parametrize(
    ("source", "words", "line"),
    [
        ("def parser(reply, base=10, *, strict=False):\n    return 1\n", "keep the name", 1),
        ("Here we define the function, as def parse.", "does not compile", 1),
        ("x = 'prose about a def'\n", "it holds no def", None),
        ("", "it holds no def", None),
        ("def parse(text, base=10, *, strict=False):\n    return 1\n", "must keep its parameters", 1),
        ("def parse(reply):\n    return 1\n", "must keep its parameters", 1),
        ("def parse(reply, base=11, *, strict=False):\n    return 1\n", "must keep its parameters", 1),
        ("def parse(reply, base=10, strict=False):\n    return 1\n", "must keep its parameters", 1),
        ("def parse(reply: bytes, base=10, *, strict=False):\n    return 1\n", "must keep the type of 'reply'", 1),
        ("def parse(reply, base=10, *, strict=False) -> int:\n    return 1\n", "must keep the type of 'return'", 1),
        ("async " + HEAD + "    return 1\n", "must stay a plain def", 1),
        (HEAD + "    yield 1\n", "must not be a generator", 2),
        (HEAD + "    return (1\n", "does not compile", 2),
        (HEAD + "    break\n", "does not compile", None),
        (HEAD + "    return 1\nprint('hello')\n", "does something when it is defined", 3),
        (HEAD + "    return 1\nparse = 2\n", "binds the name 2 times", 3),
        (HEAD + "    return 1\n" + HEAD + "    return 2\n", "binds the name 2 times", 3),
        ("@evil\n" + HEAD + "    return 1\n", "decorator of its own", 2),
        ("@noisy\ndef helper(x):\n    return x\n" + HEAD + "    return 1\n", "decorator on 'helper'", 2),
        ("def helper(x=print(1)):\n    return x\n" + HEAD + "    return 1\n", "default value in 'helper'", 1),
        ("def helper(x: print(1)):\n    return x\n" + HEAD + "    return 1\n", "annotation in 'helper'", 1),
        ("class A(metaclass=print):\n    pass\n" + HEAD + "    return 1\n", "metaclass", 1),
        ("class A:\n    x = print(1)\n" + HEAD + "    return 1\n", "does something", 1),
        ("class A:\n    @print\n    def f(self): pass\n" + HEAD + "    return 1\n", "decorator in a class", 1),
        ("X = print(1)\n" + HEAD + "    return 1\n", "does something", 1),
        ("X[0] = 1\n" + HEAD + "    return 1\n", "does something", 1),
        ("for i in range(3): pass\n" + HEAD + "    return 1\n", "does something", 1),
        ("from os import *\n" + HEAD + "    return 1\n", "imports everything", 1),
        ("if True:\n    " + HEAD.replace("\n", "") + " return 1\n", "it holds no def", None),
        (HEAD + "    return _t_frame\n", "reserved", 2),
        ("(" * 5000, "does not compile", 1),
        ("-" * 19000 + "1", "does not compile", None),
        (HEAD + "    return '\x00'\n", "does not compile", None),
    ],
)
def test_what_breaks_the_contract_is_refused_with_its_line(
    contract: Contract, source: str, words: str, line: int | None
) -> None:
    error = refused(source, contract)
    assert words in str(error)
    assert "'parse'" in str(error)
    if words != "does not compile":
        assert error.line == line
    assert not str(error).endswith(".")


NUMBERS = "MOD = 10**9 + 7\nFAR = float('inf')\nBITS = -(1 << 31)\nHALF = 1 / 2\n"


def test_arithmetic_on_numbers_is_a_constant_as_long_as_it_stays_short(contract: Contract) -> None:
    """Common ones pass; one that would take time or memory to work out when the module is loaded does not."""
    assert checked(NUMBERS + HEAD + "    return float(MOD % 7 + HALF)\n", contract).startswith(NUMBERS)
    for costly in (
        "10**10**10",
        "2**200",
        "1 << 10**6",
        "9**9**9**9",
        "1 / 0",
        "len('x')",
        "[0] * 10**9",
        "'x' * 10**9",
    ):
        with pytest.raises(CodeError, match="does something when it is defined"):
            checked(f"BIG = {costly}\n" + HEAD + "    return 1.0\n", contract)


def test_a_source_beyond_the_size_limit_is_refused_unread(contract: Contract) -> None:
    error = refused("(" * 10_000_000, contract)
    assert (error.limit, len(error.source)) == ("size", contract.max_size)


def test_a_proposal_that_is_no_text_is_refused(contract: Contract) -> None:
    assert "'NoneType'" in str(refused(None, contract))  # type: ignore


def test_questionable_source_warns_nobody(contract: Contract) -> None:
    assert checked(HEAD + "    return 1 is 1 or '\\d'\n", contract)


@given(st.text(alphabet=st.sampled_from("def parse():x=1\n\t #\"'\\[]{}@:,*/"), max_size=80))
def test_any_text_is_kept_or_refused_and_nothing_else(text: str) -> None:
    contract = contract_of("def p(x):\n    return x\n")
    for source in (text, "def p(x):\n    " + text):
        try:
            kept = checked(source, contract)
        except CodeError as error:
            assert str(error)
        else:
            assert checked(kept, contract) == kept


@given(
    st.text(
        alphabet=st.characters(
            exclude_categories=["Cs"], exclude_characters="\x00\r\x0c\x0b\x1c\x1d\x1e\x85\u2028\u2029"
        ),
        max_size=40,
    )
)
def test_any_docstring_is_put_back_as_it_was(doc: str) -> None:
    contract = contract_of(f"def p(x):\n    {doc!r}\n    return x\n")
    kept = checked("def p(x):\n    return 2\n", contract)
    space: dict[str, Any] = {}
    exec(kept, space)
    assert contract_of(kept).doc == contract.doc
    assert space["p"](1) == 2


# showing


def test_the_diff_applies_to_the_old_text_and_gives_the_new(tmp_path: Path, contract: Contract) -> None:
    new = checked(HEAD + "    return float(reply)\n", contract)
    text = diff(contract.source, new, "parse")
    assert "-    found = re.match" in text
    assert "+    return float(reply)" in text
    assert diff(new, new, "parse") == ""
    file = tmp_path / "f.py"
    file.write_text(contract.source, encoding="utf-8")
    applied = subprocess.run(["patch", str(file)], input=text, text=True, capture_output=True)
    assert applied.returncode == 0, applied.stdout
    assert file.read_text(encoding="utf-8") == new


def test_the_failing_line_is_marked() -> None:
    source = "def f(x):\n    a = 1\n    b = 2\n    raise ValueError()\n"
    assert marked(source, 4, around=1) == "     3     b = 2\n->   4     raise ValueError()"
    assert marked(source, None) == source


def test_the_innermost_line_of_the_generated_source_is_found() -> None:
    source = "def f(x):\n    return g(x)\ndef g(x):\n    raise ValueError()\n"
    space: dict[str, Any] = {}
    exec(compile(source, "<generated f>", "exec"), space)
    with pytest.raises(ValueError) as caught:
        space["f"](1)
    assert generated_line(caught.value, "<generated f>") == 4


# exporting


MODULE = '''
import functools
import re
from dataclasses import dataclass
from math import sqrt

from trace_opt import trace

SCALE = 3
PATTERN = re.compile("a+")


@dataclass
class Point:
    x: float


def root(x):
    return sqrt(x) * SCALE


def logged(fn):
    @functools.wraps(fn)
    def wrapped(*args):
        return fn(*args)

    return wrapped


@trace(name="calc")
@logged
def calculate(text: str) -> float:
    """A number from text."""
    return 0.0 if PATTERN.match(text) else root(Point(float(text)).x)
'''


def loaded(path: Path) -> Any:
    return module_at(path, path.stem, listed=True)


def test_an_exported_module_imports_and_behaves_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "workflow_made.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = loaded(tmp_path / "workflow_made.py")
    contract = capture(module.calculate)
    new = checked(
        "import json\ndef calculate(text):\n    if PATTERN.match(text):\n        return 0.0\n    return root(Point(json.loads(text)).x)\n",
        contract,
    )
    text = export({"calculate": new}, {"calculate": contract}, title="Learned.")
    (tmp_path / "learned.py").write_text(text, encoding="utf-8")
    learned = loaded(tmp_path / "learned.py")
    assert learned.calculate("16") == module.calculate("16") == 12.0
    assert learned.calculate("aa") == 0.0
    assert learned.calculate.__trace_op__.name == "calc"
    assert '@trace(name="calc")\n@logged\ndef calculate(text: str) -> float:\n    """A number from text."""\n' in text
    assert text.startswith('"""Learned."""\n\nimport functools\nimport json\n')
    formatted = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "E9,F", "-"], input=text, text=True, capture_output=True
    )
    assert formatted.returncode == 0, formatted.stdout


def test_a_decorator_that_stands_twice_is_exported_twice() -> None:
    contract = capture(decorated)
    assert contract.decorators == ("noisy", "noisy")
    assert "@noisy\n@noisy\ndef decorated" in export({"decorated": contract.source}, {"decorated": contract})


def test_an_option_that_is_local_to_where_a_function_was_made_is_left_out_of_its_export(tmp_path: Path) -> None:
    def made(chosen: str, wrap: Any) -> tuple[Any, Any]:
        @trace(trainable=True, sandbox=chosen)
        def shift(x: int) -> int:
            """Add one."""
            return x + 1

        @wrap
        def lost(x: int) -> int:
            return x

        return shift, lost

    shift, lost = made("monty", lambda fn: fn)
    contract = capture(shift)
    text = export({"shift": contract.source}, {"shift": contract})
    assert "@trace(trainable=True)\ndef shift" in text
    (tmp_path / "shifted.py").write_text(text, encoding="utf-8")
    assert module_at(tmp_path / "shifted.py", "shifted").shift(2) == 3
    unknown = capture(lost)
    with pytest.raises(TraceError, match="'lost' is decorated by 'wrap', where 'wrap' is known only inside"):
        export({"lost": unknown.source}, {"lost": unknown})


def test_what_only_the_session_has_cannot_be_exported() -> None:
    space: dict[str, Any] = {"__name__": "__main__", "client": object()}
    text = "def ask(x):\n    return client\n"
    exec(text, space)
    contract = capture(space["ask"], text)
    with pytest.raises(TraceError, match="'client'"):
        export({"ask": contract.source}, {"ask": contract})


def test_free_names_are_those_read_from_outside() -> None:
    source = "import re\nA = 1\ndef f(x, y=A):\n    z = [i for i in x]\n    def g(): return z, q\n    return re, len, h, A, lambda w: w + v\n"
    assert free_names(source) == {"q", "h", "v"}
    assert free_names("def f(:") == set()


@dataclass
class Plain:
    x: int


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, True),
        ((1, "a", None), True),
        ({"a": [1.5]}, True),
        (float("nan"), False),
        (Plain(1), False),
        ({1: print}, False),
    ],
)
def test_only_values_whose_repr_is_their_source_are_constants(value: Any, expected: bool) -> None:
    assert is_literal(value) is expected


def test_normal_text_is_a_fixed_point() -> None:
    text = normal("\r\n    def f(x):\r\n        return 1   \r\n\r\n")
    assert text == "def f(x):\n    return 1\n"
    assert normal(text) == text
