"""Pure ops: what is run again and what is not, and that nothing else in a recording can tell."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_opt.core.context import STATE, rollout
from trace_opt.core.feedback import Feedback
from trace_opt.core.memory import Memory, remembering
from trace_opt.core.module import Module
from trace_opt.core.parameter import Parameter
from trace_opt.core.propagate import propagate
from trace_opt.core.rollout import Cost
from trace_opt.core.tracer import carry, node_of, record, trace
from trace_opt.core.trainable import parameter_of
from trace_opt.errors import OpError, TraceError

SCORE = Feedback(score=1.0)


class Counted:
    """Workflows over two parameters whose bodies count how often they run."""

    def __init__(self) -> None:
        self.runs: list[Any] = []
        self.style = style = Parameter("plain", name="style")
        self.tone = tone = Parameter("calm", name="tone")
        runs = self.runs

        @trace(memo=True)
        def draft(text: str, extra: Any = None) -> list[Any]:
            runs.append(("draft", text))
            return [text, style.value]

        @trace(memo=True)
        def polish(lines: list[Any]) -> str:
            runs.append(("polish", tuple(lines)))
            return f"{lines} {tone.value}"

        self.draft, self.polish = draft, polish

    def run(self, text: str, **values: Any) -> Any:
        with record(dict(values), seed=1) as graph:
            out = self.polish(self.draft(text))
        return out.value, graph, out


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_a_proposal_that_changes_one_parameter_pays_for_what_depends_on_it(counted: Counted) -> None:
    with remembering(Memory()) as memory:
        counted.run("a")
        counted.run("a", tone="loud")
        assert counted.runs == [("draft", "a"), ("polish", ("a", "plain")), ("polish", ("a", "plain"))]
        counted.run("a", style="bold")
        assert counted.runs[3:] == [("draft", "a"), ("polish", ("a", "bold"))]
        counted.run("a", style="bold", tone="calm")
    assert len(counted.runs) == 5
    assert memory.saved.ops == 3


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.sampled_from("pq")), max_size=12))
@settings(max_examples=50, deadline=None)
def test_values_and_graphs_are_those_of_a_search_without_memory(steps: list[tuple[str, str, str]]) -> None:
    counted = Counted()
    with remembering(Memory()) as memory:
        with_memory = [counted.run(text, style=style, tone=tone) for text, style, tone in steps]
    runs = len(counted.runs)
    without = [counted.run(text, style=style, tone=tone) for text, style, tone in steps]
    for (value, graph, out), (other, other_graph, other_out) in zip(with_memory, without, strict=True):
        assert value == other
        assert graph.to_mermaid() == other_graph.to_mermaid()
        slices, others = propagate(graph, node_of(out), SCORE), propagate(other_graph, node_of(other_out), SCORE)
        assert {n: len(list(s.path)) for n, s in slices.items()} == {n: len(list(s.path)) for n, s in others.items()}
    assert runs == len({("d", t, s) for t, s, _ in steps}) + len(set(steps))
    assert memory.saved.ops == 2 * len(steps) - runs


def test_nothing_is_remembered_outside_a_search_or_a_recording(counted: Counted) -> None:
    counted.run("a")
    counted.run("a")
    with remembering(Memory()):
        counted.draft("a")
        counted.draft("a")
    assert len(counted.runs) == 6


def test_arguments_are_compared_by_content_and_defaults_count(counted: Counted) -> None:
    with remembering(Memory()), record() as _:
        for extra in ([1, {"a": 2}], [1, {"a": 2}], None):
            counted.draft("a", extra)
        counted.draft("a")
        counted.draft(text="a")
        counted.draft("a", 1)
        counted.draft("a", True)
    assert len(counted.runs) == 4


def test_an_argument_without_stable_content_is_run(counted: Counted) -> None:
    with remembering(Memory()), record():
        for _ in range(2):
            counted.draft("a", object())
            counted.draft("b", [lambda: 0])
    assert len(counted.runs) == 4


def test_a_value_that_is_changed_later_does_not_change_what_is_kept(counted: Counted) -> None:
    @trace
    def spoil(lines: list[Any]) -> int:
        lines.append("spoilt")
        return len(lines)

    with remembering(Memory()):
        found = []
        for _ in range(3):
            with record():
                lines = counted.draft("a")
                found.append(list(lines))
                spoil(lines)
    assert found == [["a", "plain"]] * 3
    assert len(counted.runs) == 1


def test_failures_are_not_kept() -> None:
    tries: list[int] = []

    @trace(memo=True)
    def shaky(x: int) -> int:
        tries.append(x)
        if len(tries) == 1:
            raise ValueError("not yet")
        return x

    with remembering(Memory()):
        with pytest.raises(OpError, match="not yet"), record():
            shaky(1)
        with record():
            assert shaky(1) == 1
            assert shaky(1) == 1
    assert tries == [1, 1]


def test_inner_pure_ops_hand_their_reads_to_the_op_around_them() -> None:
    style = Parameter("plain", name="style")
    runs: list[str] = []

    @trace(memo=True)
    def inner(x: int) -> str:
        runs.append("inner")
        return f"{x}{style.value}"

    @trace(memo=True)
    def outer(x: int, y: int) -> str:
        runs.append("outer")
        return inner(x) + str(y)

    with remembering(Memory()):
        values = []
        for given, y in (({}, 0), ({}, 1), ({}, 1), ({"style": "bold"}, 1)):
            with record(given) as graph:
                out = outer(1, y)
            values.append(out.value)
            assert [read.name for read in node_of(out).reads] == ["style"]
            assert list(graph.parameters) == ["style"]
    assert values == ["1plain0", "1plain1", "1plain1", "1bold1"]
    assert runs == ["outer", "inner", "outer", "outer", "inner"]


def test_inner_calls_are_seen_in_a_recording_whether_they_were_run_or_not() -> None:
    style = Parameter("plain", name="style")

    @trace
    def look(x: int) -> str:
        return f"{x}{style.value}"

    @trace
    def listed(x: int) -> list[str]:
        return [look(x), look(x + 1)]

    @trace(memo=True)
    def outer(x: int) -> str:
        return style.value + "".join(listed(x))

    def shown(node: Any) -> Any:
        return [(c.op.name, c.value, c.inputs, [r.name for r in c.reads], shown(c)) for c in node.children]

    with remembering(Memory()) as memory:
        found = []
        for _ in range(2):
            with record() as graph:
                out = outer(1)
            found.append((shown(node_of(out)), [r.name for r in node_of(out).reads]))
            inner = node_of(out).children[0].children[0]
            assert inner.reads == (next(iter(graph.parameters.values())),)
    assert memory.saved.ops == 1
    assert found[0] == found[1]
    assert [c[0] for c in found[0][0]] == ["listed"]
    assert memory.size > 20


def test_a_path_that_reads_another_parameter_is_told_apart() -> None:
    switch, left, right = Parameter(True, name="switch"), Parameter("l", name="left"), Parameter("r", name="right")
    runs: list[int] = []

    @trace(memo=True)
    def choose() -> str:
        runs.append(1)
        return left.value if switch.value else right.value

    with remembering(Memory()):
        seen = []
        for values in ({}, {"right": "R"}, {"switch": False}, {"switch": False, "left": "L"}, {"left": "L"}):
            with record(dict(values)):
                seen.append(choose() + "")
        assert [s.value for s in seen] == ["l", "l", "r", "r", "L"]
    assert len(runs) == 3


def test_a_body_that_reads_a_recorded_value_from_elsewhere_is_run() -> None:
    held: dict[str, Any] = {}
    runs: list[int] = []

    @trace
    def make(x: int) -> int:
        return x

    @trace(memo=True)
    def peek() -> int:
        runs.append(1)
        return held["x"] + 0

    with remembering(Memory()):
        for x in (1, 2):
            with record():
                held["x"] = make(x)
                assert peek() == x
    assert len(runs) == 2


def test_what_asks_for_the_seed_is_kept_by_seed_and_what_draws_is_run() -> None:
    runs: list[str] = []

    @trace(memo=True)
    def seeded() -> int | None:
        runs.append("seeded")
        return rollout().seed

    @trace(memo=True)
    def drawn() -> float:
        runs.append("drawn")
        return rollout().rng.random()

    with remembering(Memory()):
        found = []
        for seed in (1, 2, 1):
            with record(seed=seed):
                found.append((seeded() + 0, drawn() + 0))
    assert [int(seed) for seed, _ in found] == [1, 2, 1]
    assert float(found[0][1]) == float(found[2][1]) != float(found[1][1])
    assert runs.count("seeded") == 2
    assert runs.count("drawn") == 3


def test_sampled_model_calls_draw_the_same_answers_whether_they_are_run_or_not() -> None:
    def sample() -> str:  # as a connected model does
        state = STATE.get()
        assert state is not None
        nth = state.calls.get("call", 0)
        state.calls["call"] = nth + 1
        return f"{state.seed}.{nth}"

    runs: list[str] = []

    @trace(memo=True)
    def once(x: str) -> str:
        runs.append(x)
        return sample()

    @trace
    def twice() -> str:
        return sample() + sample()

    def workflow(seed: int) -> list[str]:
        with record(seed=seed):
            return [str(v.value if hasattr(v, "value") else v) for v in map(_bare, (once("a"), twice(), once("b")))]

    def _bare(result: Any) -> Any:
        return node_of(result)

    with remembering(Memory()):
        found = [workflow(seed) for seed in (5, 5, 6)]
    assert found == [["5.0", "5.15.2", "5.3"], ["5.0", "5.15.2", "5.3"], ["6.0", "6.16.2", "6.3"]]
    assert runs == ["a", "b", "a", "b"]


def test_methods_of_modules_are_known_by_their_attributes_and_reads() -> None:
    runs: list[int] = []
    agents = [_Agent(1, runs), _Agent(1, runs), _Agent(2, runs)]
    for agent in agents[1:]:
        agent.prompt = agents[0].prompt  # one parameter of that name
    with remembering(Memory()):
        for agent in agents:
            with record():
                agent.ask("q")
    assert runs == [1, 2]


class _Agent(Module):
    def __init__(self, shots: int, runs: list[int]) -> None:
        super().__init__()
        self.shots = shots
        self.prompt = Parameter("p", name="prompt")
        _Agent.runs = runs

    @trace(memo=True)
    def ask(self, text: str) -> str:
        _Agent.runs.append(self.shots)
        return f"{self.prompt.value} {text} {self.shots}"


def test_tensors_that_gradients_flow_through_are_run_and_others_are_not() -> None:
    runs: list[int] = []

    @trace(memo=True)
    def double(x: torch.Tensor) -> torch.Tensor:
        runs.append(1)
        return x * 2

    with remembering(Memory()):
        for _ in range(2):
            with record(training=False):
                assert double(torch.ones(2)).sum() == 4
        assert len(runs) == 1
        for _ in range(2):
            with record(training=True):
                assert double(torch.ones(2, requires_grad=True)).requires_grad
    assert len(runs) == 3


def test_memory_is_bounded_and_forgets_what_was_not_asked_for_the_longest() -> None:
    runs: list[int] = []

    @trace(memo=True)
    def large(x: int) -> str:
        runs.append(x)
        return str(x) * 1000

    memory = Memory(most_bytes=3500)
    with remembering(memory), record():
        for x in (1, 2, 3, 1, 4, 1, 2):
            assert large(x) == str(x) * 1000
    assert memory.size <= 3500
    assert len(memory) == 3
    assert runs == [1, 2, 3, 4, 2]
    assert len(memory._forms) == 3


def test_a_value_larger_than_the_memory_is_not_kept() -> None:
    memory = Memory(most_bytes=100)

    @trace(memo=True)
    def large() -> str:
        return "x" * 1000

    with remembering(memory), record():
        large()
    assert (len(memory), memory.size) == (0, 0)


def test_what_was_saved_is_counted_in_calls_money_and_time() -> None:
    class Meter:
        cost = Cost(2, 30, 4, 0.5)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    @trace(memo=True)
    def slow(x: int) -> int:
        time.sleep(0.01)
        return x

    memory = Memory(meter=Meter)
    with remembering(memory), record():
        for _ in range(4):
            slow(1)
    assert (memory.saved.ops, memory.saved.cost) == (3, Cost(6, 90, 12, 1.5))
    assert 0.03 <= memory.saved.seconds < 25


# -- at the same time ------------------------------------------------------------------------------------------------


def test_identical_calls_of_threads_are_run_once() -> None:
    runs: list[int] = []
    started, go = threading.Barrier(8), threading.Event()

    @trace(memo=True)
    def slow(x: int) -> int:
        runs.append(x)
        go.wait(10)
        return x + 1

    memory = Memory()

    def workflow(_: int) -> int:
        started.wait(10)
        with remembering(memory), record(seed=1):
            return int(slow(1))

    with ThreadPoolExecutor(8) as pool:
        found = pool.map(workflow, range(8))
        time.sleep(0.1)
        go.set()
        assert list(found) == [2] * 8
    assert runs == [1]
    assert memory.saved.ops == 7


def test_identical_calls_of_tasks_are_run_once_and_a_failure_frees_the_others() -> None:
    runs: list[int] = []

    @trace(memo=True)
    async def slow(x: int) -> int:
        runs.append(x)
        await asyncio.sleep(0.02)
        if x == 9 and runs.count(9) == 1:
            raise ValueError("once")
        return x + 1

    async def workflow(x: int) -> int:
        with record(seed=1):
            return int(await slow(x))

    async def all_of(x: int) -> list[Any]:
        return await asyncio.gather(*[workflow(x) for _ in range(20)], return_exceptions=True)

    with remembering(Memory()) as memory:
        assert asyncio.run(all_of(1)) == [2] * 20
        assert runs == [1]
        assert memory.saved.ops == 19
        failed = asyncio.run(all_of(9))
    assert sorted(str(type(f).__name__) for f in failed) == ["OpError"] + ["int"] * 19
    assert not memory._flights


def test_a_cancelled_leader_leaves_the_call_to_those_who_wait() -> None:
    runs: list[int] = []

    @trace(memo=True)
    async def slow(x: int) -> int:
        runs.append(x)
        await asyncio.sleep(0.02)
        return x + 1

    async def workflow() -> int:
        with record():
            return int(await slow(1))

    async def main() -> int:
        first = asyncio.create_task(workflow())
        second = asyncio.create_task(workflow())
        await asyncio.sleep(0.005)
        first.cancel()
        return await second

    with remembering(Memory()) as memory:
        assert asyncio.run(main()) == 2
    assert len(runs) == 2
    assert not memory._flights


def test_candidates_that_differ_in_what_an_op_reads_do_not_wait_for_each_other() -> None:
    style = Parameter("plain", name="style")
    together = threading.Barrier(2)

    @trace(memo=True)
    def meet(x: int) -> str:
        together.wait(10)  # breaks unless both are in at once
        return style.value

    memory = Memory()

    def workflow(value: str) -> str:
        with remembering(memory), record({"style": value}):
            return node_of(meet(1)).value

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(workflow, ("bold", "thin"))) == ["bold", "thin"]


def test_the_thread_of_an_event_loop_never_waits_for_a_flight() -> None:
    """Whoever runs the call may need that very loop."""
    loops: list[asyncio.AbstractEventLoop] = []
    inside = threading.Event()
    runs: list[str] = []

    @trace(memo=True)
    def ask(x: int) -> int:
        runs.append(threading.current_thread().name)
        if len(runs) == 1:
            inside.set()
            return asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01, x), loops[0]).result(10)
        return x

    memory = Memory()

    def in_thread() -> int:
        with remembering(memory), record():
            return int(ask(1))

    async def main() -> tuple[int, int]:
        loops.append(asyncio.get_running_loop())
        leader = asyncio.create_task(asyncio.to_thread(in_thread))
        while not inside.is_set():
            await asyncio.sleep(0.001)
        with remembering(memory), record():
            mine = int(ask(1))
        return mine, await leader

    assert asyncio.run(asyncio.wait_for(main(), 10)) == (1, 1)
    assert len(runs) == 2


def test_code_that_is_a_parameter_is_read_like_any_other() -> None:
    runs: list[int] = []

    def seen(x: int) -> int:
        runs.append(x)
        return x

    @trace(memo=True, trainable=True, uses=[seen])
    def double(x: int) -> int:
        return seen(x) * 2

    name = parameter_of(double).name
    with remembering(Memory()):
        found = []
        for source in (None, None, "def double(x: int) -> int:\n    return seen(x) * 3\n", None):
            with record({} if source is None else {name: source}):
                found.append(int(double(4)))
    assert found == [8, 8, 12, 8]
    assert len(runs) == 2


def test_threads_of_a_body_are_part_of_it() -> None:
    style = Parameter("plain", name="style")
    runs: list[int] = []

    @trace(memo=True)
    def spread(n: int) -> list[str]:
        runs.append(n)
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(carry(lambda i: f"{style.value}{i}"), range(n)))

    with remembering(Memory()):
        for values in ({}, {}, {"style": "bold"}):
            with record(dict(values)):
                out = spread(2)
        assert node_of(out).value == ["bold0", "bold1"]
    assert runs == [2, 2]


# -- what cannot be pure ---------------------------------------------------------------------------------------------


def test_generators_inline_ops_and_objects_are_refused() -> None:
    def numbers() -> Any:
        yield 1

    for fn, options in ((numbers, {}), (len, {"inline": True}), (Counted, {})):
        with pytest.raises(TraceError, match="got memo=True but"):
            trace(memo=True, **options)(fn)
    with pytest.raises(TraceError, match="already"):
        trace(memo=True)(trace(len))


def test_a_pure_op_is_the_plain_function_outside_and_keeps_its_name_and_signature() -> None:
    @trace(memo=True, name="other")
    def add(x: int, *, y: int = 2) -> int:
        """Adds."""
        return x + y

    assert add(1, y=3) == 4
    assert (add.__name__, add.__doc__) == ("add", "Adds.")
    with remembering(Memory()), record():
        assert node_of(add(1)).op.name == "other"
        assert trace(memo=True)(len)([1, 2]) == 2
