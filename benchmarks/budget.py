"""Random runs against a server that fails in every way and keeps its own count: is a budget ever exceeded?

    python benchmarks/budget.py             # 1,000 runs, 4.5 minutes of CPU; goes on where it was stopped
    python benchmarks/budget.py --quick     # 40 runs

Every run draws its limits (calls, tokens, USD, seconds, trials, rollouts, and combinations), its concurrency, its search,
its optimizers, a sync or async workflow, and a guide that asks a model or not. All models are reached by `connect(...)` at
a loopback server that respects max_tokens; it answers late, never, with errors, with half an answer or with none, and asks
to wait. A share of the runs is stopped by Ctrl-C at a random request and resumed. What the server received and what it
bills is compared with the limits, over all sessions of a run; rollouts are counted where their guide has given a score.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import save

from trace_opt import Budget, Categorical, OptoPrime, connect, optimize, trace
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.errors import BudgetError, LLMError, ReplyError, StoreError
from trace_opt.guides import judge
from trace_opt.llm import limits as waits
from trace_opt.optim.opro import OPRO
from trace_opt.search.beam import Beam
from trace_opt.search.greedy import Greedy
from trace_opt.search.pareto import Pareto

FAULTS = ("500", "503", "429", "cut", "reset", "reset unbilled", "silent", "malformed", "slow", "no choices")
LIMITED = ("calls", "tokens", "usd", "rollouts", "trials")


def digest(*parts: object) -> int:
    """A number that looks like chance and is a function of its parts."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16)


# -- the server --------------------------------------------------------------------------------------------------------


@dataclass
class Bill:
    """What the server knows of one run.

    Attributes:
        prices: US dollars for an input and an output token.
        faults: The share of requests that go wrong.
        kinds: How they go wrong.
        silent_s: How long it says nothing where it never answers.
        stop_at: The request at which the run gets a Ctrl-C; 0 is none.
        schemas: Whether it takes JSON schemas.
    """

    prices: tuple[float, float]
    faults: float = 0.0
    kinds: Sequence[str] = FAULTS
    silent_s: float = 0.3
    stop_at: int = 0
    schemas: bool = True
    seed: int = 0
    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    open: int = 0
    went_wrong: Counter[str] = field(default_factory=Counter[str])

    def bill(self, tokens_in: int, tokens_out: int) -> None:
        """Charge an answer."""
        self.tokens += tokens_in + tokens_out
        self.usd += tokens_in * self.prices[0] + tokens_out * self.prices[1]


class Server:
    """Speaks OpenAI's chat protocol on a loop of its own; the path says which run asks."""

    def __init__(self) -> None:
        self.bills: dict[str, Bill] = {}
        self.url = ""
        ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True).start()
        ready.wait()

    async def _serve(self, ready: threading.Event) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._request(reader, writer):
                pass
        writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length")
        )
        body = json.loads(await reader.readexactly(length))
        bill = self.bills[head.split(" ")[1].split("/")[1]]
        bill.calls += 1
        bill.open += 1
        if bill.calls == bill.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        try:
            return await self._answer(bill, body, writer)
        finally:
            bill.open -= 1

    async def _answer(self, bill: Bill, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        """Answer, or fail to; gives whether the connection is still good."""
        chance = random.Random(f"{bill.seed}/{bill.calls}")
        fault = chance.choice(bill.kinds) if chance.random() < bill.faults else ""
        if fault:
            bill.went_wrong[fault] += 1
        if not bill.schemas and body.get("response_format", {}).get("type") == "json_schema":
            return await _send(writer, 400, _error("response_format json_schema is not supported", "response_format"))
        if fault in ("500", "503"):
            return await _send(writer, int(fault), _error("it is broken"))
        if fault == "429":
            return await _send(writer, 429, _error("slow down"), f"retry-after-ms: {chance.randrange(20)}\r\n")
        if fault == "reset unbilled":
            writer.transport.abort()
            return False
        if fault == "slow":
            await asyncio.sleep(chance.uniform(0.005, 0.04))
        text, finish = answer(body["messages"]), "stop"
        # a token for every other byte, and some for the frame of each message
        asked = sum(len(str(m["content"]).encode()) // 2 + 4 for m in body["messages"])
        most = body.get("max_tokens") or body["max_completion_tokens"]
        told = -(-len(text) // 2)
        if told > most:
            text, told, finish = text[: 2 * most], most, "length"
        bill.bill(asked, told)
        whole = {
            "id": "1", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None}, "finish_reason": finish}
            ],
            "usage": {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told},
        }  # fmt: skip
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault == "silent":
            await asyncio.sleep(bill.silent_s)
            return False
        if fault == "no choices":
            whole["choices"] = []
        data = json.dumps(whole)
        if fault == "malformed":
            data = data[: len(data) // 2]
        return await _send(writer, 200, data, cut=fault == "cut")


async def _send(writer: asyncio.StreamWriter, status: int, data: str, more: str = "", *, cut: bool = False) -> bool:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{more}\r\n"
    writer.write((head + (data[:40] if cut else data)).encode())
    await writer.drain()
    return not cut


def _error(message: str, param: str | None = None) -> str:
    return json.dumps({"error": {"message": message, "type": "some_error", "param": param, "code": None}})


def answer(messages: Sequence[dict[str, Any]]) -> str:
    """What the model says: always the same to the same question."""
    asked, told = str(messages[-1]["content"]), str(messages[0]["content"])
    number = digest(asked)
    if "You judge an output" in told:
        return json.dumps({"why": "so it is", "score": number % 11})
    if messages[0]["role"] == "system":
        values = {
            "style": f"style {number % 997} " + "very " * (number % 30),
            "tone": ("dry", "warm", "odd")[number % 3],
        }
        return json.dumps({"reasoning": "try it", "values": values})
    return "abcdefgh"[number % 8] * (1 + number % 40)


# -- a run -------------------------------------------------------------------------------------------------------------


class Counted:
    """What a run did, counted outside of the engine: rollouts that came to their end while it was open."""

    def __init__(self) -> None:
        self.rollouts = 0
        self.open = False
        self._lock = threading.Lock()

    def ended(self) -> None:
        """A rollout is over."""
        with self._lock:
            self.rollouts += self.open


COUNTED: ContextVar[Counted] = ContextVar("counted")
"""Out of sight of the workflow: what a guide holds is part of the problem, and must not change between sessions."""


@dataclass(frozen=True)
class Drawn:
    """How a run goes about it; all of it follows from its number."""

    number: int
    budget: Budget
    concurrency: int
    is_async: bool
    judged: bool
    calls: int
    gathered: bool
    kept: bool
    cached: bool
    optimizers: tuple[str, ...]
    search: Any
    model: dict[str, Any]
    bill: Bill

    @classmethod
    def of(cls, number: int) -> Drawn:
        """The run of a number."""
        rng = random.Random(f"budget/{number}")
        names = rng.choice([["calls"], ["tokens"], ["usd"], ["rollouts"], ["trials"], ["calls", "tokens"],
                            ["calls", "usd"], ["tokens", "rollouts"], ["usd", "trials"], list(LIMITED)])  # fmt: skip
        most = {
            "calls": rng.randrange(40, 260), "tokens": rng.randrange(8_000, 60_000),
            "usd": rng.uniform(0.008, 0.08), "rollouts": rng.randrange(40, 120), "trials": rng.randrange(1, 5),
        }  # fmt: skip
        limits: dict[str, Any] = {name: most[name] for name in names}
        if not set(names) - {"trials"} and rng.random() < 0.5:
            limits["rollouts"] = most["rollouts"]
        if rng.random() < 0.06:
            limits["seconds"] = rng.uniform(0.05, 0.6)
        optimizers = rng.choice([("opto",), ("opro",), ("opto", "opro"), ("categorical", "opto"), ("opto",)])
        width = rng.choice((1, 1, 2, 3))
        search = rng.choice([
            Greedy(width=width, minibatch=3), Greedy(width=width, minibatch=2), Greedy(gate=None, minibatch=3),
            Beam(beam=2, minibatch=2), Pareto(parents=width, minibatch=3), Pareto(parents=2, minibatch=2, merge=True),
        ])  # fmt: skip
        faults = rng.choice((0.0, 0.05, 0.15, 0.3))
        model = {
            "attempts": rng.randrange(1, 5), "timeout_s": rng.choice((0.1, 5.0)), "concurrency": rng.choice((1, 3, 16)),
            "max_tokens": rng.choice((10, 60, 200)),
        }  # fmt: skip
        kinds = rng.choice((FAULTS, FAULTS, ("429",), ("reset", "cut"), ("silent", "slow")))
        bill = Bill(
            prices=(2e-6, 8e-6), faults=faults, kinds=kinds, stop_at=rng.randrange(2, 60) if rng.random() < 0.3 else 0,
            schemas=rng.random() < 0.9, seed=number,
        )  # fmt: skip
        return cls(
            number, Budget(**limits), rng.choice((1, 2, 4, 8, 16)), rng.random() < 0.6, rng.random() < 0.3,
            rng.choice((1, 1, 2, 3)), rng.random() < 0.3, rng.random() < 0.5 or bill.stop_at > 0, rng.random() < 0.4, optimizers, search,
            model, bill,
        )  # fmt: skip


def session(drawn: Drawn, url: str, folder: Path, counted: Counted, resume: str | None) -> str:
    """Begin a run or go on with it, to its end or to whatever ends it; gives how it ended."""
    cache = folder / "cache.db" if drawn.cached else None
    fields: dict[str, Any] = {"base_url": url, "price": drawn.bill.prices, "cache": cache, **drawn.model}
    worker = connect("worker", **fields)
    thinker = connect("thinker", **{**fields, "max_tokens": 300, "timeout_s": 5.0})
    style = Parameter("plain", name="style")
    tone = Parameter("dry", name="tone", choices=("dry", "warm", "odd"))

    calls, gathered, judged = drawn.calls, drawn.gathered, drawn.judged

    @trace
    async def asked(question: str) -> str:
        prompts = [f"{style.value}|{tone.value}|{question}|{n}" for n in range(calls)]
        if gathered:
            return "".join(await asyncio.gather(*(one(prompt) for prompt in prompts)))
        return "".join([await one(prompt) for prompt in prompts])

    async def one(prompt: str) -> str:
        return (await worker.areply(prompt)).text

    @trace
    def told(question: str) -> str:
        return "".join(worker(f"{style.value}|{tone.value}|{question}|{n}") for n in range(calls))

    async def aworkflow(question: str) -> str:
        return await asked(question)

    def workflow(question: str) -> str:
        return told(question)

    rubric = judge(connect("judge", **fields), "It is good.", max_tokens=60)

    def guide(output: str, example: dict[str, str]) -> Feedback:
        said = f"{output:.20} was said"
        found = rubric(output, example) if judged else Feedback(digest(output, example["question"]) % 100 / 100, said)
        COUNTED.get().ended()
        return found

    makes = {
        "opto": lambda: OptoPrime(thinker, max_tokens=300), "opro": lambda: OPRO(thinker, max_tokens=300),
        "categorical": lambda: Categorical(startup=2),
    }  # fmt: skip
    examples = [{"question": f"{topic} {i}"} for topic in ("tea", "rain", "moss", "iron") for i in range(5)]
    COUNTED.set(counted)
    counted.open = True
    try:
        optimize(
            aworkflow if drawn.is_async else workflow, examples, guide, parameters=[style, tone], budget=drawn.budget,
            optimizers=[makes[name]() for name in drawn.optimizers], search=drawn.search, seed=drawn.number,
            store=folder / "runs.db" if drawn.kept else None, resume=resume,
            concurrency=drawn.concurrency,
        )  # fmt: skip
    except (BudgetError, LLMError, ReplyError, KeyboardInterrupt) as error:
        return type(error).__name__
    except StoreError as error:
        return f"StoreError: {error}"
    finally:
        counted.open = False
    return "finished"


def checked(server: Server, number: int) -> dict[str, Any]:
    """One run with all its sessions: how it ended, and by how much it exceeded any of its limits."""
    drawn, counted = Drawn.of(number), Counted()
    bill, name = drawn.bill, f"r{number}"
    server.bills[name] = bill
    endings: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="trace_opt-budget-"))
    trials = 0
    try:
        resume = None
        for _ in range(4):
            ended = "KeyboardInterrupt"
            with contextlib.suppress(KeyboardInterrupt):  # it may come when the run is over
                ended = session(drawn, f"{server.url}/{name}/v1", folder, counted, resume)
            endings.append(ended)
            bill.stop_at = bill.calls + 7 if ended == "KeyboardInterrupt" and len(endings) == 1 else 0
            saved = (folder / "runs.db").exists()
            resume = "last" if saved else None
            if ended in ("finished", "BudgetError") or not saved:
                break
        wait_until_idle(bill)
        if (folder / "runs.db").exists():
            from trace_opt.store.store import Store

            store = Store(folder / "runs.db")
            if store.runs():
                trials = len(store.load("last").trials)
            store.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    spent = {
        "calls": bill.calls,
        "tokens": bill.tokens,
        "usd": bill.usd,
        "rollouts": counted.rollouts,
        "trials": trials,
    }
    limits = drawn.budget.limits
    over = {k: spent[k] - limits[k] for k in LIMITED if k in limits and spent[k] > limits[k] * (1 + 1e-9)}
    used = {k: round(spent[k] / limits[k], 3) for k in LIMITED if k in limits}
    return {
        "number": number, "endings": endings, "over": over, "used": used, "calls": bill.calls, "tokens": bill.tokens,
        "usd": bill.usd, "rollouts": counted.rollouts, "faults": dict(bill.went_wrong), "concurrency": drawn.concurrency,
    }  # fmt: skip


def wait_until_idle(bill: Bill) -> None:
    """Threads that cannot be stopped may still send something; what they send counts."""
    before, quiet = -1, 0
    while quiet < 3:
        quiet = 0 if bill.open or bill.calls != before else quiet + 1
        before = bill.calls
        time.sleep(0.005)


# -- all runs ----------------------------------------------------------------------------------------------------------


def summary(rows: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """The figures of all runs."""
    endings = Counter(row["endings"][-1] for row in rows)
    faults: Counter[str] = Counter()
    for row in rows:
        faults.update(row["faults"])
    spent_out = [max(row["used"].values()) for row in rows if row["endings"][-1] == "finished" and row["used"]]
    return {
        "runs": len(rows), "sessions": sum(len(row["endings"]) for row in rows),
        "runs stopped by Ctrl-C or an error, and resumed": sum(len(row["endings"]) > 1 for row in rows),
        "requests": sum(row["calls"] for row in rows), "tokens billed": sum(row["tokens"] for row in rows),
        "USD billed": round(sum(row["usd"] for row in rows), 4), "rollouts": sum(row["rollouts"] for row in rows),
        "requests that went wrong": dict(sorted(faults.items())),
        "how the last sessions ended": dict(endings.most_common()),
        "share of the tightest limit used by finished runs, mean": round(sum(spent_out) / max(1, len(spent_out)), 3),
        "runs that exceeded a limit": {name: sum(name in row["over"] for row in rows) for name in LIMITED},
        "overshoot": {name: sum(row["over"].get(name, 0) for row in rows) for name in LIMITED},
        "worst": [row for row in rows if row["over"]][:5], "CPU seconds": round(seconds, 1),
    }  # fmt: skip


def main() -> int:
    """Run what has not been run, then add up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 runs, and no result file")
    parser.add_argument("--only", type=int, help="one run, by its number")
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "trace_opt-budget.jsonl",
                        help="where finished runs are kept, to go on from")  # fmt: skip
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    waits.FIRST_WAIT_SECONDS = 0.004  # a thousand runs with many faults would mostly wait
    warnings.simplefilter("ignore")
    import logging

    logging.getLogger("trace_opt.llm").setLevel(logging.ERROR)
    server = Server()
    if given.only is not None:
        print(json.dumps(checked(server, given.only), indent=1))
        return 0
    rows: list[dict[str, Any]] = []
    if not given.quick and given.state.exists():
        rows = [json.loads(line) for line in given.state.read_text().splitlines()]
    done = {row["number"] for row in rows}
    before = sum(row.get("cpu", 0.0) for row in rows)
    for number in range(40 if given.quick else 1000):
        if number in done:
            continue
        began = time.process_time()
        row = checked(server, number)
        row["cpu"] = round(time.process_time() - began, 3)
        rows.append(row)
        if row["over"]:
            print(f"EXCEEDED: {row}", flush=True)
        if not given.quick:
            with given.state.open("a") as file:
                file.write(json.dumps(row) + "\n")
    figures = summary(rows, sum(row["cpu"] for row in rows) or before)
    if given.quick:
        print(json.dumps(figures, indent=1))
    else:
        save("budget", figures, seeds=[0, 999])
    return sum(figures["runs that exceeded a limit"].values()) > 0


if __name__ == "__main__":
    raise SystemExit(main())
