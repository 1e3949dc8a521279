"""The sandbox that is none: in process, with one loud warning, and failures like those of the others."""

from __future__ import annotations

import asyncio
import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from trace_opt.core.sandbox.trusted import Trusted
from trace_opt.errors import BudgetError, CodeError


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


@pytest.fixture
def sandbox() -> Trusted:
    return Trusted()


def test_it_warns_loudly_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trusted, "_warned", False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            Trusted().call("def f():\n    return 1\n", "f")
    assert len(caught) == 1
    assert "with all your rights" in str(caught[0].message)


def test_objects_cross_as_they_are(sandbox: Trusted) -> None:
    thing = object()
    assert sandbox.call("def f(x):\n    return x\n", "f", (thing,)) is thing
    assert sandbox.call("def f(x):\n    return x\n", "f", (print,)) is print


def test_names_of_the_namespace_are_found() -> None:
    sandbox = Trusted(namespace={"helper": lambda x: x + 1})
    assert sandbox.call("def f(x):\n    return helper(x)\n", "f", (1,), returns=int) == 2


def test_a_result_of_another_type_is_refused(sandbox: Trusted) -> None:
    for text, annotation in (("'a'", int), ("True", int), ("7.9", int), ("[1, 'a']", list[int])):
        with pytest.raises(CodeError, match="its annotation asks for"):
            sandbox.call(f"def f():\n    return {text}\n", "f", returns=annotation)


def test_a_failure_names_the_generated_line_and_keeps_its_cause(sandbox: Trusted) -> None:
    for _ in range(2):  # compiled, then kept
        with pytest.raises(CodeError) as caught:
            sandbox.call("def f(x):\n    y = 1\n    raise ValueError()\n", "f", (1,))
        assert str(caught.value) == "generated 'f' raised ValueError at line 3 (`raise ValueError()`)"
        assert caught.value.line == 3
        assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("text", ["raise SystemExit(0)", "return f()", "return (", "raise E()"])
def test_whatever_it_raises_is_the_candidates_failure(sandbox: Trusted, text: str) -> None:
    source = f"class E(Exception):\n    def __str__(self):\n        raise self\ndef f():\n    {text}\n"
    with pytest.raises(CodeError) as caught:
        sandbox.call(source, "f")
    assert caught.value.line == 5
    assert (caught.value.limit == "recursion") is (text == "return f()")


def test_what_no_candidate_is_to_blame_for_leaves_unchanged(sandbox: Trusted) -> None:
    fault = BudgetError("spent")

    def spend() -> None:
        raise fault

    source = "def f():\n    try:\n        spend()\n    except Exception:\n        return 1\n"
    with pytest.raises(BudgetError) as caught:
        sandbox.call(source, "f", uses={"spend": spend})
    assert caught.value is fault
    with pytest.raises(KeyboardInterrupt):
        sandbox.call("def f():\n    raise KeyboardInterrupt\n", "f")


def test_a_seed_holds_for_the_call_and_leaves_the_users_numbers_alone(sandbox: Trusted) -> None:
    source = "import random\ndef f():\n    return random.random()\n"
    state = random.getstate()
    assert sandbox.call(source, "f", seed=3) == sandbox.call(source, "f", seed=3)
    assert random.getstate() == state


def test_async_functions_run_in_both_ways(sandbox: Trusted) -> None:
    async def look(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    source = "async def f(x):\n    return x * 2\n"
    assert sandbox.call(source, "f", (2,), returns=int) == 4
    assert asyncio.run(sandbox.acall(source, "f", (2,), returns=int)) == 4
    plain = "def f(x):\n    return look(x)\n"
    assert asyncio.run(sandbox.acall(plain, "f", (2,), uses={"look": look}, returns=int)) == 3


def test_the_definition_alone_can_be_checked(sandbox: Trusted) -> None:
    sandbox.check("def f():\n    return 1 / 0\n", "f")
    with pytest.raises(CodeError):
        sandbox.check("def f(:\n", "f")


def test_another_source_under_the_same_name_is_another_function(sandbox: Trusted) -> None:
    found: list[Any] = [sandbox.call(f"def f():\n    return {i}\n", "f") for i in range(600)]
    assert found == list(range(600))
