"""How many rollouts a second: a trivial workflow beside dspy.Evaluate, a slow server beside the bare client, a long queue.

    python benchmarks/throughput.py                          # two minutes
    python benchmarks/throughput.py --quick                  # half a minute
    python benchmarks/throughput.py --dspy PEER/bin/python   # beside dspy, in an environment that has it

"evaluate" scores 1,000 examples with a workflow that returns its input, "evaluate_with_model" with one that asks a model
that answers at once (`dspy.Predict` and its DummyLM there, an op and a ScriptedLLM here): examples a second, by the clock
and by CPU time, the best of several rounds in which both take turns, each in a process of its own. "server" sends 64
requests at once to a server of its own process that answers after a fixed time: `aevaluate` with `connect("openai/...")`
beside the bare AsyncOpenAI client, and beside what the server's delay allows. "queue_kib" is the peak of memory while so
many jobs wait for 64 places, beyond a place for the result of each. Clocks are the subject here, so run it on a quiet
machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any

from harness import save

import trace_opt
from trace_opt.search.evaluate import aevaluate
from trace_opt.search.executors import LocalExecutor

EXAMPLES = 1000
AT_ONCE = 64

DSPY = """
import json, sys, time, dspy
class Echo(dspy.Module):
    def forward(self, question):
        return dspy.Prediction(answer=question)
data = [dspy.Example(question=str(n), answer=str(n)).with_inputs("question") for n in range(int(sys.argv[1]))]
if sys.argv[3] == "model":
    from dspy.utils import DummyLM
    dspy.configure(lm=DummyLM([{"answer": "1"}] * 1_000_000))
evaluate = dspy.Evaluate(devset=data, metric=lambda e, p, trace=None: e.answer == p.answer, num_threads=8, display_progress=False)
program = dspy.Predict("question -> answer") if sys.argv[3] == "model" else Echo()
evaluate(program)
best = [0.0, 0.0]
for _ in range(int(sys.argv[2])):
    wall, cpu = time.perf_counter(), time.process_time()
    evaluate(program)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    best = [max(best[0], len(data) / wall), max(best[1], len(data) / cpu)]
print(json.dumps({"version": dspy.__version__, "wall": best[0], "cpu": best[1]}))
"""

OURS = """
import json, sys, time, trace_opt
from trace_opt.testing import ScriptedLLM
model = ScriptedLLM(lambda messages: "1", name="scripted/model")
@trace_opt.trace
def echo(question):
    return question
@trace_opt.trace
def ask(question):
    return model(question)
def workflow(question, answer):
    return echo(question) if sys.argv[3] == "plain" else ask(question)
data = [{"question": str(n), "answer": str(n)} for n in range(int(sys.argv[1]))]
def guide(output, example):
    return float(output == example["answer"])
trace_opt.evaluate(workflow, data, guide, concurrency=8)
best = [0.0, 0.0]
for _ in range(int(sys.argv[2])):
    wall, cpu = time.perf_counter(), time.process_time()
    trace_opt.evaluate(workflow, data, guide, concurrency=8)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    best = [max(best[0], len(data) / wall), max(best[1], len(data) / cpu)]
print(json.dumps({"wall": best[0], "cpu": best[1]}))
"""

SERVER = """
import asyncio, json, sys
seconds = float(sys.argv[1])
body = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0,
    "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}}).encode()
answer = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: " + str(len(body)).encode() + b"\\r\\n\\r\\n" + body
async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            length = next(int(line[15:]) for line in head.split(b"\\r\\n") if line.lower().startswith(b"content-length:"))
            await reader.readexactly(length)
            await asyncio.sleep(seconds)
            writer.write(answer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def told(python: str, code: str, rounds: int, kind: str) -> dict[str, Any]:
    """What a process of its own found."""
    command = [python, "-c", code, str(EXAMPLES), str(rounds), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def evaluation(dspy: str | None, rounds: int, kind: str) -> dict[str, Any]:
    """Examples a second, the best of three processes each."""
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for _ in range(3):
        ours.append(told(sys.executable, OURS, rounds, kind))
        if dspy:
            theirs.append(told(dspy, DSPY, rounds, kind))
    best = {clock: max(run[clock] for run in ours) for clock in ("wall", "cpu")}
    found: dict[str, Any] = {"examples_per_second": {clock: round(value) for clock, value in best.items()}}
    if theirs:
        peer = {clock: max(run[clock] for run in theirs) for clock in ("wall", "cpu")}
        found["dspy"] = {"version": theirs[0]["version"], **{clock: round(value) for clock, value in peer.items()}}
        found["times_dspy"] = {clock: round(best[clock] / peer[clock], 2) for clock in best}
    return found


@contextlib.contextmanager
def serving(seconds: float) -> Generator[str]:
    """A server that answers after so many seconds."""
    with subprocess.Popen([sys.executable, "-c", SERVER, str(seconds)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.terminate()


def transport() -> str:
    """What the SDK sends by: aiohttp where its extra is installed."""
    return "aiohttp" if importlib.util.find_spec("httpx_aiohttp") else "httpx"


@contextlib.asynccontextmanager
async def bare(url: str, count: int) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
    """The bare client, so many requests by 64 tasks."""
    import openai

    http: Any = openai.DefaultAioHttpClient() if transport() == "aiohttp" else openai.DefaultAsyncHttpxClient()
    client = openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0, http_client=http)

    async def run() -> None:
        left = iter(range(count))

        async def pull() -> None:
            for n in left:
                messages: Any = [{"role": "user", "content": f"question {n}"}]
                await client.chat.completions.create(model="m", messages=messages, max_tokens=5)

        await asyncio.gather(*(pull() for _ in range(AT_ONCE)))

    async with client:
        yield run


@contextlib.asynccontextmanager
async def connected(url: str, count: int) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
    """A workflow that asks a connected model, by `aevaluate`."""
    model = trace_opt.connect("openai/m", base_url=url, cache=None, concurrency=AT_ONCE, price=(0.0, 0.0))

    @trace_opt.trace
    async def ask(n: int) -> str:
        reply = await model.asend(model.request(f"question {n}", max_tokens=5))
        return reply.text

    async def workflow(n: int) -> Any:
        return await ask(n)

    async def run() -> None:
        report = await aevaluate(
            workflow, list(range(count)), lambda output, n: float(output == "yes"), concurrency=AT_ONCE
        )
        assert report.best.mean == 1.0, report

    yield run


async def fastest(url: str, count: int, rounds: int) -> tuple[float, float]:
    """Seconds of the fastest round of ours and of the bare client, taking turns after one that opens the connections."""
    best = [float("inf"), float("inf")]
    async with connected(url, count) as ours, bare(url, count) as theirs:
        for number in range(rounds + 1):
            for place, run in enumerate((ours, theirs)):
                began = time.perf_counter()
                await run()
                if number:
                    best[place] = min(best[place], time.perf_counter() - began)
    return best[0], best[1]


def server(seconds: float, waves: int, rounds: int) -> dict[str, Any]:
    """Requests a second at 64 at once."""
    count = waves * AT_ONCE
    with serving(seconds) as url:
        ours, theirs = asyncio.run(fastest(url, count, rounds))
    return {
        "requests": count, "per_second": round(count / ours, 1), "bare_client_per_second": round(count / theirs, 1),
        "ideal_per_second": round(AT_ONCE / seconds, 1), "of_bare_client": round(theirs / ours, 3),
        "of_ideal": round(waves * seconds / ours, 3),
    }  # fmt: skip


async def queued(count: int) -> float:
    """KiB that scoring takes at its peak while the last example waits, beside the examples and what is known of each."""
    executor = LocalExecutor(AT_ONCE)
    most = 0
    running = 0

    async def work(job: int) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    jobs = range(count)
    tracemalloc.start()
    try:
        await executor.run(jobs, work)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        executor.close()
    assert most == AT_ONCE, most
    return (peak - 8 * count) / 1024  # a place for each result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dspy", metavar="PYTHON", help="the interpreter of an environment that has dspy")
    args = parser.parse_args()
    rounds = 3 if args.quick else 10
    figures: dict[str, Any] = {
        "evaluate": evaluation(args.dspy, rounds, "plain"),
        "evaluate_with_model": evaluation(args.dspy, max(1, rounds // 3), "model"),
        "server": {
            "transport": transport(),
            "64 x 100 ms": server(0.1, 5 if args.quick else 20, 2 if args.quick else 5),
            "64 x 1 s": server(1.0, 2 if args.quick else 5, 1 if args.quick else 2),
        },
        "queue_kib": {
            str(count): round(asyncio.run(queued(count))) for count in (1000, 10_000 if args.quick else 100_000)
        },
    }
    save("throughput", figures)


if __name__ == "__main__":
    main()
