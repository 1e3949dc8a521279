"""What stands in the store of a finished run is what was known at its end, not when a row happened to be written."""

from pathlib import Path

from tests.search.conftest import Line, Listed
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.greedy import Greedy
from trace_opt.store.store import Store


def test_without_a_gate_the_starts_row_tells_of_the_examples_that_it_was_compared_on_at_the_end(
    line: Line, tmp_path: Path
) -> None:
    """A resumed run writes that row anew; it must not differ from one that was never killed."""
    optimize(
        line.workflow, Line.examples(10), Line.guide, val=Line.examples(6), parameters=[line.a, line.b], seed=1,
        optimizers=[Listed([{"a": 2}])], search=Greedy(gate=None, minibatch=2), budget=Budget(trials=1),
        store=tmp_path / "runs.db",
    )  # fmt: skip
    start = Store(tmp_path / "runs.db").load("last").candidates[0]
    assert (start.id, start.n) == (0, 6)
