"""A search with several parents and models that are scripted, to be killed at a chosen moment; run as a script, or called."""

import asyncio
import hashlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import trace
from trace_opt.optim.optoprime import OptoPrime
from trace_opt.search.beam import Beam
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.gate import Gate
from trace_opt.search.pareto import Pareto
from trace_opt.testing import ScriptedLLM

HARNESS = Path(__file__).parents[1] / "benchmarks" / "kill_resume.py"
SEARCHES = {
    "pareto": Pareto(parents=2, proposals=2, minibatch=3, front=8, gate=Gate.search(block=2)),
    "beam": Beam(beam=2, proposals=2, minibatch=3, gate=Gate.search(block=2)),
}
KINDS = ("tea", "rain", "moss", "iron")
NAMES = ("style", "tone", "close")


@lru_cache(maxsize=1)
def harness() -> Any:
    """The benchmark's own way to read what came of a search."""
    spec = importlib.util.spec_from_file_location("evolving_harness", HARNESS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def digest(*parts: object) -> int:
    """A number that looks like chance and is a function of its parts."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16)


class Doom:
    """Kills this process at the n-th moment of a kind."""

    def __init__(self, kind: str, n: int) -> None:
        self.kind, self.left = kind, n

    def now(self, kind: str) -> None:
        """Such a moment has come."""
        if kind == self.kind:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def search(name: str, store: str, resume: str | None, doom: Doom, seed: int = 84) -> None:
    """Run or resume the search of that name."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    async def answers(messages: Sequence[Any]) -> str:
        doom.now("before a call")
        await asyncio.sleep(0.001)
        doom.now("before a reply")
        return "abc"[digest(messages[-1]["content"]) % 3]

    async def proposes(messages: Sequence[Any]) -> str:
        doom.now("before a proposal")
        await asyncio.sleep(0.001)
        value = digest(messages[-1]["content"]) % 40
        doom.now("after a proposal")
        return json.dumps({"reasoning": "try it", "values": {n: f"{n} {value}" for n in NAMES}})

    event.listen(Engine, "commit", lambda _: doom.now("before a commit"))
    llm = ScriptedLLM(answers)
    parameters = {n: Parameter("plain", name=n) for n in NAMES}

    @trace
    async def ask(kind: str, question: str) -> str:
        # each kind goes by two of the three parameters
        first, second = (parameters[NAMES[(KINDS.index(kind) + i) % 3]].value for i in range(2))
        return (await llm.areply(f"{first}|{second}|{question}")).text + f"{first}{second}"

    async def workflow(kind: str, question: str) -> str:
        return await ask(kind, question)

    def guide(output: str, example: dict[str, str]) -> Feedback:
        good = digest(output[1:], example["kind"]) % 100 / 100
        return Feedback({"right": round(good, 1), "brief": float(digest(output) % 2)}, f"{output} was said")

    examples = [{"kind": kind, "question": f"{kind} {i}"} for kind in KINDS for i in range(12)]
    optimize(
        workflow, examples, guide, parameters=list(parameters.values()), store=store, resume=resume, seed=seed, concurrency=3,
        optimizers=[OptoPrime(ScriptedLLM(proposes))], budget=Budget(trials=30), search=SEARCHES[name],
    )  # fmt: skip


if __name__ == "__main__":
    _, wanted, where, run, kind, n = sys.argv
    search(wanted, where, run or None, Doom(kind, int(n)))
