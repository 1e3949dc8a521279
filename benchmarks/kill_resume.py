"""Kill a search with SIGKILL at chosen and random moments, resume it, and compare it with an uninterrupted one.

    python benchmarks/kill_resume.py            # 20 kills, result in results/kill_resume.json

The search is a real one (OptoPrime and Categorical, asyncio, concurrency 4, the store in SQLite); only its models are
scripted, so that every answer is a function of the question. Each call is noted in a file as it is sent. After a kill and
a resume: candidates, scores, verdicts and final values must be those of the uninterrupted run, no call of a committed
rollout may be sent again, and what was in flight must be listed as lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trace_opt.store.store import Store

CONCURRENCY = 4
TRIALS = 10
SECONDS = 0.003
"""How long a call takes."""
TOPICS = ("tea", "rain", "moss", "iron", "dust", "salt")


# -- the search that is killed -----------------------------------------------------------------------------------------


def digest(*parts: object) -> int:
    """A number that looks like chance and is a function of its parts."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16)


class Doom:
    """Kills this process at the n-th moment of a kind."""

    def __init__(self, kind: str, n: int) -> None:
        self.kind = kind
        self.left = n

    def now(self, kind: str) -> None:
        """Such a moment has come."""
        if kind == self.kind:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def search(store: str, sent: str, resume: str | None, doom: Doom, seconds: float) -> None:
    """Run or resume the search, noting every call in the file `sent` as it goes out."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    from trace_opt.core.feedback import Feedback
    from trace_opt.core.parameter import Parameter
    from trace_opt.core.tracer import trace
    from trace_opt.optim.categorical import Categorical
    from trace_opt.optim.optoprime import OptoPrime
    from trace_opt.search.budget import Budget
    from trace_opt.search.engine import optimize
    from trace_opt.search.greedy import Greedy
    from trace_opt.testing import ScriptedLLM

    file = os.open(sent, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(line: str) -> None:
        os.write(file, line.replace("\n", " ").encode() + b"\n")

    async def answers(messages: Sequence[Any]) -> str:
        doom.now("before a call")
        note("W " + messages[-1]["content"])
        await asyncio.sleep(seconds)
        doom.now("before a reply")
        return "abc"[digest(messages[-1]["content"]) % 3]

    async def proposes(messages: Sequence[Any]) -> str:
        doom.now("before a proposal")
        note(f"O {digest(messages[-1]['content'])}")
        await asyncio.sleep(seconds)
        doom.now("after a proposal")
        return json.dumps(
            {"reasoning": "try it", "values": {"style": f"style {digest(messages[-1]['content']) % 1000}"}}
        )

    event.listen(Engine, "commit", lambda _: doom.now("before a commit"))
    event.listen(Engine, "rollback", lambda _: doom.now("at a rollback"))

    def committed(connection: Any, *_: Any) -> None:
        doom.now("after a commit" if connection.get_execution_options().get("trace_opt_write") else "after a read")

    event.listen(Engine, "begin", committed)

    llm = ScriptedLLM(answers)
    style = Parameter("plain", name="style")
    tone = Parameter("dry", name="tone", choices=("dry", "warm", "odd"))

    @trace
    async def ask(question: str) -> str:
        first = await llm.areply(f"{style.value}|{tone.value}|{question}|1")
        second = await llm.areply(f"{style.value}|{tone.value}|{question}|2{first.text}")
        return tone.value[0] + first.text + second.text

    async def workflow(question: str) -> str:
        return await ask(question)

    def guide(output: str, example: dict[str, str]) -> Feedback:
        better = {"d": 0.0, "o": 0.2, "w": 0.4}[output[0]]
        return Feedback(better + digest(output, example["question"]) % 100 / 100, f"{output} was said")

    examples = [{"question": f"{topic} {i}"} for topic in TOPICS for i in range(5)]
    optimize(
        workflow, examples, guide, parameters=[style, tone], store=store, resume=resume, seed=3, concurrency=CONCURRENCY,
        optimizers=[Categorical(startup=2), OptoPrime(ScriptedLLM(proposes))], budget=Budget(trials=TRIALS),
        search=Greedy(width=2, minibatch=3, rungs=(2, 4, None)),
    )  # fmt: skip
    note("done")


# -- the harness -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """Where to kill: at the n-th moment of a kind, or after some seconds."""

    kind: str
    n: int = 0
    after_s: float = 0.0


def start(folder: Path, resume: str | None, kill: Kill | None, seconds: float) -> subprocess.Popen[bytes]:
    """The search in a process of its own."""
    doom = kill if kill is not None and kill.n else Kill("never")
    arguments = [str(folder / "runs.db"), str(folder / "sent"), resume or "", doom.kind, str(doom.n), str(seconds)]
    return subprocess.Popen([sys.executable, __file__, "--child", *arguments])


def lines(folder: Path) -> list[str]:
    """The calls sent so far."""
    file = folder / "sent"
    return file.read_text().splitlines() if file.exists() else []


def run_whole(folder: Path, kills: Sequence[Kill], seconds: float) -> dict[str, Any]:
    """Run the search with kills, resuming after each, until it is done; gives what came of it.

    Raises:
        RuntimeError: a process failed by itself, or sent the call of a committed rollout again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    resume, killed, again = None, 0, 0
    for kill in [*kills, None]:
        before = len(lines(folder))
        kept = committed_prompts(folder / "runs.db")
        process = start(folder, resume, kill, seconds)
        try:
            process.wait(timeout=kill.after_s if kill is not None and kill.after_s else 120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        again += sum(prompt in kept for line in lines(folder)[before:] for prompt in [line[2:]])
        if process.returncode == 0:
            break
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the search ended by itself with {process.returncode} after {kill}")
        killed += 1
        infos = Store(folder / "runs.db").runs() if (folder / "runs.db").exists() else []
        resume = infos[0].id if infos else None
    return {
        **dump(folder / "runs.db"),
        "killed": killed,
        "sent again": again,
        "sent": sum(line != "done" for line in lines(folder)),
    }


def committed_prompts(file: Path) -> set[str]:
    """The beginnings of all calls of the rollouts that the store holds."""
    if not file.exists():
        return set()
    store = Store(file)
    prompts: set[str] = set()
    examples = [f"{topic} {i}" for topic in TOPICS for i in range(5)]
    for info in store.runs():
        prompts |= prompts_of(store.load(info.id), store.rollouts(info.id), examples)
    store.close()
    return prompts


def prompts_of(record: Any, rows: Sequence[Any], examples: Sequence[str]) -> set[str]:
    """The first calls of these rollouts; the example's own question stands in what the guide was told."""
    from trace_opt.search.splits import split

    data = split([{"question": question} for question in examples], None, None, 3)
    values = {c.id: c.values for c in record.candidates}
    values.setdefault(0, {"style": "plain", "tone": "dry"})
    return {
        f"{values[r.candidate]['style']}|{values[r.candidate]['tone']}|{data.examples[r.example]['question']}|1"
        for r in rows
        if r.candidate in values
    }


def dump(file: Path) -> dict[str, Any]:
    """What must be the same however often the search was killed, and what it cost."""
    store = Store(file)
    record = store.load("last")
    rows = store.rollouts("last")
    store.close()
    report = {k: v for k, v in (record.report or {}).items() if k not in ("seconds", "spend")}
    result = {
        "candidates": [[c.id, list(c.parents), dict(c.values), c.mean, c.n, c.accepted] for c in record.candidates],
        "trials": [[t.number, t.step, t.optimizer, t.base, t.candidate, dict(t.changed), t.reason, t.before, t.after,
                    t.n, t.accepted, t.verdict] for t in record.trials],
        "rollouts": [[r.candidate, r.example, r.score, r.text] for r in rows],
        "best": dict(record.best), "report": report,
    }  # fmt: skip
    return {
        "result": json.loads(json.dumps(result)), "status": record.info.status, "lost": len(record.lost),
        "spent": {role: cost.calls for role, cost in record.spend.items()},
    }  # fmt: skip


CHOSEN = (
    Kill("before a call", 1), Kill("before a reply", 1), Kill("before a commit", 1), Kill("before a commit", 3),
    Kill("after a commit", 4), Kill("before a reply", 9), Kill("before a call", 30), Kill("before a proposal", 1),
    Kill("after a proposal", 1), Kill("after a proposal", 2), Kill("before a commit", 40), Kill("after a commit", 71),
)  # fmt: skip


def check(whole: dict[str, Any], clean: dict[str, Any], kills: Sequence[Kill]) -> list[str]:
    """What is wrong with a killed and resumed search; empty where nothing is."""
    if whole["killed"] != len(kills):
        return [f"only {whole['killed']} of {kills} came to pass"]
    parts = [part for part in whole["result"] if whole["result"][part] != clean["result"][part]]
    wrong = [f"{part} differ after {kills}" for part in parts]
    spent = sum(whole["spent"].values())
    if whole["status"] != "finished":
        wrong.append(f"the status is {whole['status']!r}")
    if whole["sent again"]:
        wrong.append(f"{whole['sent again']} calls of committed rollouts were sent again after {kills}")
    if whole["sent"] > spent:
        wrong.append(f"{whole['sent']} calls were sent, but only {spent} are booked after {kills}")
    if whole["sent"] - clean["sent"] > whole["lost"]:
        wrong.append(
            f"{whole['sent'] - clean['sent']} calls were sent again, but only {whole['lost']} are listed as lost"
        )
    # two calls a rollout, the first of which may be answered already
    if whole["lost"] > 2 * CONCURRENCY * len(kills):
        wrong.append(f"{whole['lost']} calls are listed as lost after {len(kills)} kills at concurrency {CONCURRENCY}")
    return wrong


def at_random(folder: Path, rng: random.Random, whole_s: float) -> tuple[list[Kill], dict[str, Any]]:
    """A search killed at some moment of its time; a moment after its end is drawn again."""
    for attempt in range(20):
        kills = [Kill("after", after_s=rng.uniform(0.3, 0.95) * whole_s * 0.9**attempt)]
        whole = run_whole(folder / str(attempt), kills, SECONDS)
        if whole["killed"]:
            return kills, whole
    raise RuntimeError(f"no moment of {whole_s:.1f} seconds was early enough to kill the search")


def main() -> int:
    """All kills, one by one and then several in one search."""
    from harness import save

    rng = random.Random(7)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        began = time.monotonic()
        clean = run_whole(root / "clean", [], SECONDS)
        whole_s = time.monotonic() - began
        plans: list[list[Kill]] = [[kill] for kill in CHOSEN]
        plans += [[Kill("before a reply", rng.randrange(5, 40)) for _ in range(3)]]
        results = [(kills, run_whole(root / str(i), kills, SECONDS)) for i, kills in enumerate(plans)]
        results += [at_random(root / f"random {i}", rng, whole_s) for i in range(6)]
    wrong = [problem for kills, whole in results for problem in check(whole, clean, kills)]
    figures = {
        "kills": sum(whole["killed"] for _, whole in results), "searches": len(results), "concurrency": CONCURRENCY,
        "trials": TRIALS, "calls of the uninterrupted search": clean["sent"],
        "calls sent beyond that, all searches": sum(whole["sent"] - clean["sent"] for _, whole in results),
        "calls listed as lost, all searches": sum(whole["lost"] for _, whole in results),
        "calls of committed rollouts sent again": sum(whole["sent again"] for _, whole in results),
        "searches that differ from the uninterrupted one": sum(w["result"] != clean["result"] for _, w in results),
        "problems": wrong,
    }  # fmt: skip
    save("kill_resume", figures, seeds=[3, 7])
    return bool(wrong)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, child_store, child_sent, child_resume, child_kind, child_n, child_seconds = sys.argv
        search(child_store, child_sent, child_resume or None, Doom(child_kind, int(child_n)), float(child_seconds))
    else:
        sys.exit(main())
