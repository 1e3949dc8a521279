from __future__ import annotations

import functools
from typing import Any

import pytest

from trace_opt import trace
from trace_opt.cli.identity import findings, hiding


@trace
def op(x: Any) -> Any:
    return x is True  # an op's body sees plain values


def helper(x: Any) -> bool:
    return x is False


class Agent:
    def __init__(self) -> None:
        self.check = helper

    def steps(self, x: Any) -> bool:
        return type(x) is int

    def __call__(self, x: Any) -> Any:
        return self.steps(op(x)) or self.check(x)


def sources(workflow: Any) -> list[str]:
    return [finding.source for finding in findings(workflow)]


def test_a_test_for_true_by_identity_is_found_with_its_line() -> None:
    def workflow(x: Any) -> Any:
        return op(x) is True

    (found,) = findings(workflow)
    assert found.line == workflow.__code__.co_firstlineno + 1
    assert str(found).startswith(f"test_identity.py:{found.line}: 'op(x) is True' is never true")


def test_the_exact_type_is_found_however_it_is_compared() -> None:
    def workflow(x: Any) -> Any:
        return type(op(x)) is int, type(x) == str, type(x) in (int, str), int is not type(x)  # noqa: E721

    assert len(sources(workflow)) == 4


def test_a_case_of_true_is_found() -> None:
    def workflow(x: Any) -> Any:
        match op(x):
            case True:
                return 1
            case None:
                return 2

    (found,) = findings(workflow)
    assert "guard" in found.remedy


def test_none_isinstance_and_equality_are_fine() -> None:
    def workflow(x: Any) -> Any:
        return op(x) is None, isinstance(x, int), x == True, type(x), x is x  # noqa: E712

    assert findings(workflow) == []


def test_an_op_s_body_is_left_alone() -> None:
    def workflow(x: Any) -> Any:
        @trace
        def inner(y: Any) -> Any:
            return y is True

        return inner(op(x))

    assert findings(workflow) == []


def test_plain_functions_that_a_workflow_calls_are_read_too() -> None:
    def workflow(x: Any) -> Any:
        return helper(op(x))

    assert sources(workflow) == ["x is False"]


def test_methods_and_what_an_object_holds_are_read_too() -> None:
    assert sources(Agent()) == ["x is False", "type(x) is int"]
    assert "type(x) is int" in sources(Agent().__call__)


def test_a_partial_is_read_through() -> None:
    assert sources(functools.partial(helper, 1)) == ["x is False"]


@pytest.mark.parametrize("workflow", [len, print, str, lambda x: x, op])
def test_what_has_no_source_of_the_user_s_has_no_findings(workflow: Any) -> None:
    assert findings(workflow) == []


def test_functions_that_call_each_other_end() -> None:
    def even(x: int) -> Any:
        return x is True or odd(x - 1)

    def odd(x: int) -> Any:
        return even(x - 1)

    assert sources(odd) == ["x is True"]


def test_methods_that_call_each_other_end() -> None:
    class Looping:
        def a(self, x: Any) -> Any:
            return self.b(x)

        def b(self, x: Any) -> Any:
            return self.a(x) is True

        def __call__(self, x: Any) -> Any:
            return self.a(x)

    assert sources(Looping()) == ["self.a(x) is True"]


def test_an_op_that_calls_an_op_is_named_unless_it_is_inline() -> None:
    @trace
    def outer(x: Any) -> Any:
        return op(x)

    @trace(inline=True)
    def shown(x: Any) -> Any:
        return op(x)

    def workflow(x: Any) -> Any:
        return outer(x), shown(x)

    (line,) = hiding(workflow)
    assert line.startswith("op 'outer' calls 'op' in its body")
