"""Tasks and threads that share a recording: nothing crosses, decisions steer who they should, order is canonical."""

# ruff: noqa: RET503 # the forms these rules object to are what is tested

import asyncio
import gc
import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from trace_opt.core.context import rollout
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import carry, node_of, plain, record, trace


@trace
def ident(x: Any) -> Any:
    return x


@trace
async def aident(x: Any, wait: float = 0.0) -> Any:
    await asyncio.sleep(wait)
    return x


def controls(graph: Any, result: Any) -> list[str]:
    return [graph.names[p] for p, kind, _ in graph.parents(node_of(result)) if kind == "control"]


def ancestors(graph: Any, node: Any) -> set[Any]:
    found: set[Any] = set()
    todo = [node]
    while todo:
        for parent, _, _ in graph.parents(todo.pop()):
            if parent not in found:
                found.add(parent)
                todo.append(parent)
    return found


def test_64_tasks_with_recordings_of_their_own_do_not_mix() -> None:
    p = Parameter(-1, name="p")
    read = trace(lambda x: (p.value, x))

    async def one(i: int) -> Any:
        with record(values={"p": i}, seed=i) as graph:
            for step in range(5):
                out = read(await aident(step))
                await asyncio.sleep(0)
                assert (plain(out), rollout().seed) == ((i, step), i)
        return graph

    async def main() -> list[Any]:
        return await asyncio.gather(*[one(i) for i in range(64)])

    for i, graph in enumerate(asyncio.run(main())):
        assert graph.parameters["p"].value == i
        assert len([node for node in graph.nodes if node.kind == "op"]) == 10
        assert {node.reads for node in graph.nodes if node.op.name == "function"} == {(graph["p"],)}


def test_16_threads_with_recordings_of_their_own_do_not_mix() -> None:
    p = Parameter(-1, name="p")
    read = trace(lambda x: (p.value, x))
    start = threading.Barrier(16)

    def one(i: int) -> Any:
        start.wait()
        with record(values={"p": i}) as graph:
            for step in range(50):
                assert plain(read(step)) == (i, step)
        return graph

    with ThreadPoolExecutor(16) as pool:
        graphs = list(pool.map(one, range(16)))
    for i, graph in enumerate(graphs):
        assert [node.value for node in graph.nodes if node.op.name == "function"] == [(i, step) for step in range(50)]
        assert all(node.reads == (graph.parameters["p"],) for node in graph.nodes if node.op.name == "function")


def test_64_tasks_of_one_recording_do_not_mix() -> None:
    ps = [Parameter(i, name=f"p{i}") for i in range(64)]

    @trace
    async def read(i: int) -> int:
        await asyncio.sleep(0)
        first = ps[i].value
        await asyncio.sleep(0)
        return first

    async def one(i: int) -> Any:
        return ident(await read(i)) + 1

    async def main() -> list[Any]:
        return await asyncio.gather(*[one(i) for i in range(64)])

    with record() as graph:
        outs = asyncio.run(main())
    assert plain(outs) == list(range(1, 65))
    for i, out in enumerate(outs):
        reached = ancestors(graph, node_of(out))
        assert {node.name for node in reached if node.kind == "parameter"} == {f"p{i}"}
    assert len(graph) == 64 * 4


def test_16_threads_of_one_recording_do_not_mix() -> None:
    ps = [Parameter(i, name=f"p{i}") for i in range(16)]
    read = trace(lambda i: ps[i].value)
    start = threading.Barrier(16)

    def one(i: int) -> Any:
        start.wait()
        out = read(i)
        for _ in range(30):
            out = ident(out) + 1
        return out

    with record() as graph, ThreadPoolExecutor(16) as pool:
        outs = list(pool.map(carry(one), range(16)))
    assert plain(outs) == [i + 30 for i in range(16)]
    for i, out in enumerate(outs):
        assert {n.name for n in ancestors(graph, node_of(out)) if n.kind == "parameter"} == {f"p{i}"}
    assert len(graph) == 16 * 62


def test_decisions_form_a_chain() -> None:
    with record() as graph:
        for i in range(4):
            bool(ident(i))
    chain = [node for node in graph.nodes if node.kind == "decision"]
    assert [node.control for node in chain] == [None, *chain[:-1]]


def test_a_decision_steers_later_calls_only() -> None:
    with record() as graph:
        before = ident("a")
        if before == "a":
            after = ident("b")
    assert controls(graph, before) == []
    assert controls(graph, after) == ["bool_1"]


def test_decisions_of_sibling_tasks_do_not_steer_each_other_but_the_one_that_started_them() -> None:
    async def one(name: str) -> Any:
        if (await aident(name)) == name:
            return await aident(name + "!")

    async def workflow() -> Any:
        outs = await asyncio.gather(one("a"), one("b"), one("c"))
        return outs, ident("end")

    with record() as graph:
        outs, end = asyncio.run(workflow())
    decided = {node for node in graph.nodes if node.op.name == "bool"}
    assert len(decided) == 3
    for out in outs:
        assert len(ancestors(graph, node_of(out)) & decided) == 1
    assert ancestors(graph, node_of(end)) >= decided


def test_decisions_of_carried_threads_steer_the_one_that_started_them_only() -> None:
    def one(name: str) -> Any:
        return ident(name + "!") if ident(name) == name else None

    with record() as graph:
        with ThreadPoolExecutor(3) as pool:
            outs = list(pool.map(carry(one), "abc"))
        end = ident("end")
    decided = {node for node in graph.nodes if node.op.name == "bool"}
    assert [len(ancestors(graph, node_of(out)) & decided) for out in outs] == [1, 1, 1]
    assert ancestors(graph, node_of(end)) >= decided


def test_an_earlier_decision_steers_the_tasks_started_after_it() -> None:
    async def workflow() -> Any:
        if ident(1):
            return await asyncio.gather(aident("a"), aident("b"))

    with record() as graph:
        outs = asyncio.run(workflow())
    assert [controls(graph, out) for out in outs] == [["bool_1"], ["bool_1"]]


def test_a_grandchild_tasks_decision_reaches_the_top() -> None:
    async def leaf() -> None:
        bool(ident("leaf"))

    async def middle() -> None:
        await asyncio.gather(leaf(), leaf())

    async def workflow() -> Any:
        await asyncio.gather(middle(), middle())
        return ident("end")

    with record() as graph:
        end = asyncio.run(workflow())
    decided = {node for node in graph.nodes if node.op.name == "bool"}
    assert len(decided) == 4
    assert ancestors(graph, node_of(end)) >= decided


def test_edges_stay_linear_in_the_number_of_tasks() -> None:
    async def one(i: int) -> None:
        for _ in range(3):
            bool(ident(i))

    async def workflow() -> None:
        for _ in range(20):
            await asyncio.gather(*[one(i) for i in range(10)])

    with record() as graph:
        asyncio.run(workflow())
    assert sum(len(graph.parents(node)) for node in graph.nodes) < 4 * len(graph)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(6)))
def test_names_and_text_follow_a_canonical_order_never_arrival(waits: list[int]) -> None:
    async def one(i: int, wait: int) -> Any:
        out = await aident(f"q{i}", wait * 0.002)
        return ident(out) + "!" if out.endswith(str(i)) else None

    async def workflow(waits: list[int]) -> Any:
        return await asyncio.gather(*[one(i, wait) for i, wait in enumerate(waits)])

    texts: list[str] = []
    for order in (list(range(6)), waits):
        with record() as graph:
            asyncio.run(workflow(order))
        text = graph.to_text()
        for wait in range(6):
            text = text.replace(f"wait={wait * 0.002}", "").replace("wait=0.0,", "")
        texts.append("\n".join(sorted(line.split("wait=")[0] for line in text.splitlines())))
        assert [node.value for node in graph.nodes if node.op.name == "add"] == [f"q{i}!" for i in range(6)]


def test_threads_that_record_while_the_workflow_goes_on_stand_where_they_were_carried() -> None:
    def one(i: int) -> Any:
        time.sleep(random.random() * 0.01)
        return ident(f"q{i}")

    def run() -> str:
        with record() as graph, ThreadPoolExecutor(4) as pool:
            for out in pool.map(carry(one), range(8)):
                ident(out)
        return graph.to_text()

    assert len({run() for _ in range(5)}) == 1


def test_async_bodies_that_interleave_keep_their_reads_apart() -> None:
    ps = [Parameter(i, name=f"p{i}") for i in range(8)]

    @trace
    async def read(i: int) -> int:
        await asyncio.sleep(random.random() * 0.005)
        value = ps[i].value
        await asyncio.sleep(random.random() * 0.005)
        return value + await inner(i)

    @trace
    async def inner(i: int) -> int:
        await asyncio.sleep(0)
        return ps[i].value

    async def main() -> list[Any]:
        return await asyncio.gather(*[read(i) for i in range(8)])

    with record() as graph:
        outs = asyncio.run(main())
    assert [node_of(out).reads for out in outs] == [(graph.parameters[f"p{i}"],) for i in range(8)]
    assert [[child.op.name for child in node_of(out).children] for out in outs] == [["inner"]] * 8


def test_tasks_started_in_an_async_body_are_its_children() -> None:
    p = Parameter(1, name="p")
    leaf = trace(lambda x: x + p.value)

    async def part(x: int) -> int:
        await asyncio.sleep(0)
        return leaf(x)

    @trace
    async def both() -> int:
        return sum(await asyncio.gather(part(1), part(2)))

    with record() as graph:
        out = asyncio.run(both())
    assert (plain(out), len(graph)) == (5, 2)
    assert sorted(child.value for child in node_of(out).children) == [2, 3]
    assert node_of(out).reads == (graph["p"],)


def test_a_dropped_recording_of_tasks_is_freed_without_the_collector() -> None:
    async def one(i: int) -> Any:
        return ident(i) if await aident(i) else None

    async def main() -> Any:
        return await asyncio.gather(*[one(i) for i in range(4)])

    gc.collect()
    gc.disable()
    try:
        with record() as graph:
            asyncio.run(main())
        gone = weakref.ref(graph)
        del graph
        assert gone() is None
    finally:
        gc.enable()


def test_decisions_made_while_others_are_joined_are_not_lost() -> None:
    def one(i: int) -> None:
        for _ in range(40):
            bool(ident(i))

    with record() as graph:
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(carry(one), i) for i in range(8)]
            while not all(future.done() for future in waiting):
                ident("meanwhile")
        end = ident("end")
    decided = {node for node in graph.nodes if node.op.name == "bool"}
    assert len(decided) == 320
    assert ancestors(graph, node_of(end)) >= decided
