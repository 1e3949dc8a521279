"""An attempt's part of a recording: what is in it, what is not, and that it fits a prompt."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trace_opt.core.parameter import Parameter
from trace_opt.core.strand import here
from trace_opt.core.tracer import record, trace
from trace_opt.optim.text import tokens_in
from trace_opt.refine.trajectory import Mark, trajectory


@trace
def step(state: Any, action: str = "go") -> str:
    return f"{action} from {state}"


@trace
def broken(state: str) -> str:
    raise ValueError("no way\n# Heading")


def mark() -> Mark:
    frame = here()
    assert frame is not None
    return Mark.of(frame)


def test_a_part_ends_where_it_began() -> None:
    """What came from before is a constant of the part, and the recording itself is as if no part had been taken."""
    tone = Parameter("calm", name="tone")

    def run(*, cut: bool) -> tuple[Any, Any]:
        with record() as graph:
            first = step("start")
            place = mark()
            second = step({"last": [first]}, tone.value)
            step(second)
            part = place.part() if cut else None
            output = step(second, "end")
            graph.output(output)
        return graph, part

    graph, part = run(cut=True)
    assert part.to_text().splitlines() == [
        "tone: 'calm'",
        "step_1 = step(state={'last': ['go from start']}, action=tone): \"calm from {'last': ['go from start']}\"",
        "step_2 = step(state=step_1, action='go'): \"go from calm from {'last': ['go from start']}\"",
    ]  # fmt: skip
    assert [node.op.name for node in part.nodes] == ["parameter", "step", "step"]
    assert part.same_as(type(part).from_json(part.to_json()))
    assert graph.to_text() == run(cut=False)[0].to_text()
    assert part.parameters["tone"].parameter is tone
    assert not {id(node) for node in part.nodes} & {id(node) for node in graph.nodes}


def test_lines_of_execution_that_an_attempt_starts_belong_to_it() -> None:
    """Tasks started within are in the part, those of a sibling that runs meanwhile are not."""

    async def attempt(name: str) -> tuple[str, list[str]]:
        place = mark()
        await asyncio.gather(*[one(f"{name}{i}") for i in range(2)])
        part = place.part()
        return name, [node.value for node in part.nodes if node.op.name == "step"]

    async def one(name: str) -> None:
        await asyncio.sleep(0)
        step(name)
        await asyncio.sleep(0)
        step(name, "again")

    async def both() -> dict[str, list[str]]:
        step("before")
        return dict(await asyncio.gather(attempt("a"), attempt("b")))

    with record():
        found = asyncio.run(both())
    for name, values in found.items():
        assert sorted(values) == sorted(f"{act} from {name}{i}" for i in range(2) for act in ("go", "again"))


def test_what_raised_is_shown_on_one_line() -> None:
    """An error and a decision are lines of their own, and nothing that a value holds can begin a line."""
    with record():
        place = mark()
        with suppress(ValueError):
            broken("x\n# Heading")
        if step("y\n# Heading") == "z":
            pass
        text = trajectory(place.part())
    assert text.splitlines() == [
        "broken_1 = broken(state='x\\n# Heading') -> raised ValueError: no way # Heading",
        "except what broken_1 raised: 'ValueError: no way\\n# Heading'",
        "step_1 = step(state='y\\n# Heading', action='go') -> 'go from y\\n# Heading'",
        "if step_1 == 'z': False",
    ]  # fmt: skip


def test_the_task_is_named_and_not_written_out() -> None:
    """A task that is handed to an op, as the object or as the copy that recordings keep, is written `task`."""
    for task in ({"answer": "secret"}, ["secret"], ("secret", 1)):
        with record():
            place = mark()
            step(len(task), "count")
            trace(lambda task: 1, name="look")(task)
            text = trajectory(place.part(), 200, task)
        assert "look(task)" in text or "look(task=task)" in text
        assert "secret" not in text


@given(st.lists(st.text(max_size=40), min_size=1, max_size=60), st.integers(60, 2000))
def test_a_trajectory_fits_and_shows_its_end(actions: list[str], tokens: int) -> None:
    """Whatever was recorded, the text is within its budget and, where there is room for a line, shows the last call."""
    with record():
        place = mark()
        state: Any = "start"
        for action in actions:
            step(len(action), action)
        state = step(state, "LAST")
        text = trajectory(place.part(), tokens)
    assert sum(map(tokens_in, text.splitlines())) <= tokens + 1
    if tokens > 150:
        assert "LAST" in text.splitlines()[-1]
    assert all(line.startswith(("step_", "... ")) for line in text.splitlines())
