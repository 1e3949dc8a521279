"""An example becomes a workflow's arguments."""

from collections import OrderedDict
from typing import Any

import pytest

from trace_opt.core.binding import bind
from trace_opt.errors import TraceError

BOTH = {"q": 1, "answer": 2}


def call(workflow: Any, example: Any) -> Any:
    args, kwargs = bind(workflow, example)
    return workflow(*args, **kwargs)


@pytest.mark.parametrize(
    ("workflow", "example", "expected"),
    [
        (lambda q: q, BOTH, 1),
        (lambda q, answer: (q, answer), BOTH, (1, 2)),
        (lambda answer, *, q: (q, answer), BOTH, (1, 2)),
        (lambda q, more=5: (q, more), BOTH, (1, 5)),
        (lambda example: example, BOTH, BOTH),
        (lambda q, example: (q, example), BOTH, (1, BOTH)),
        (lambda example: example, {"example": 3}, 3),
        (lambda **all: all, BOTH, BOTH),
        (lambda q, **rest: (q, rest), BOTH, (1, {"answer": 2})),
        (lambda q, /: q, BOTH, 1),
        (lambda q, /, answer: (q, answer), BOTH, (1, 2)),
        (lambda q=3, more=4, /, answer=5: (q, more, answer), {"answer": 2}, (3, 4, 2)),
        (lambda text: text, "a", "a"),
        (lambda text: text, ("a", "b"), ("a", "b")),
        (lambda text: text, None, None),
        (lambda item: item, BOTH, BOTH),
        (lambda q: q, OrderedDict(q=1), 1),
        (len, [1, 2], 2),
    ],
    ids=range(18),
)
def test_a_mapping_is_bound_by_name_and_anything_else_is_the_only_argument(
    workflow: Any, example: Any, expected: Any
) -> None:
    assert call(workflow, example) == expected


def test_a_missing_key_is_named() -> None:
    with pytest.raises(TraceError, match="'question'"):
        bind(lambda q, question: q, BOTH)


def test_a_workflow_that_cannot_be_hashed_binds() -> None:
    class Workflow:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, q: int) -> int:
            return q

    assert call(Workflow(), BOTH) == 1
