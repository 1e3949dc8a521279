"""Small searches, one for each pair of a search and an optimizer, that are the same each time unless a kill changed them.

Every model is scripted and answers by its question alone, so a run takes about a second. `CASES` gives, by name, what
`optimize` is called with. What happens tells `moment`, which may end the process.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch

from trace_opt import LVHBA, AugmentedLagrangian, Budget, Categorical, Demos, Gradient, OptoPrime, ZerothOrder, trace
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Demonstrations, Parameter
from trace_opt.optim.opro import OPRO
from trace_opt.search.beam import Beam
from trace_opt.search.greedy import Greedy
from trace_opt.search.pareto import Pareto
from trace_opt.testing import ScriptedLLM

MOMENT: ContextVar[Callable[[str], None]] = ContextVar("moment")
"""Told what is about to happen, with what is sent where it is a call; out of sight of the workflow, whose part it is not."""


def moment(sent: str) -> None:
    """Something is about to happen."""
    MOMENT.get()(sent)


D = torch.float64
SEARCHES: dict[str, Callable[[], Any]] = {
    "Greedy": lambda: Greedy(width=2, minibatch=3, rungs=(2, 4, None)), "Beam": lambda: Beam(beam=2, minibatch=2),
    "Pareto": lambda: Pareto(parents=2, minibatch=2), "gate=None": lambda: Greedy(gate=None, minibatch=3),
}  # fmt: skip


def digest(*parts: object) -> int:
    """A number that looks like chance and is a function of its parts."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16)


def scripted(*, role: str, text: Callable[[str], str]) -> ScriptedLLM:
    """A model that takes a moment for its answer."""

    async def answers(messages: Sequence[Any]) -> str:
        asked = str(messages[-1]["content"])
        moment(f"{role} {digest(*(str(m['content']) for m in messages))}")
        await asyncio.sleep(0.0005 * (digest(asked) % 4))
        moment("")
        return text(asked)

    return ScriptedLLM(answers)


def _values(asked: str) -> str:
    number = digest(asked)
    values = {"style": f"style {number % 1000}", "tone": ("dry", "warm", "odd")[number % 3]}
    return json.dumps({"reasoning": "try it", "values": values})


def text(optimizers: str, *, sync: bool = False) -> dict[str, Any]:
    """A workflow of two model calls whose text, choice and demonstrations are searched."""
    llm = scripted(role="W", text=lambda asked: "abc"[digest(asked) % 3])
    style = Parameter("plain", name="style", suggestions=["plain", "short", "long", "kind"])
    tone = Parameter("dry", name="tone", choices=("dry", "warm", "odd"))
    shots = Parameter(Demonstrations(k=2), name="shots")

    @trace
    async def ask(question: str) -> str:
        first = await llm.areply(f"{style.value}|{tone.value}|{shots.value}|{question}|1")
        second = await llm.areply(f"{style.value}|{tone.value}|{question}|2{first.text}")
        return tone.value[0] + first.text + second.text

    @trace
    def asked(question: str) -> str:
        first = llm(f"{style.value}|{tone.value}|{shots.value}|{question}|1")
        return tone.value[0] + first + llm(f"{style.value}|{tone.value}|{question}|2{first}")

    async def aworkflow(question: str) -> str:
        return await ask(question)

    def workflow(question: str) -> str:
        return asked(question)

    def guide(output: str, example: dict[str, str]) -> Feedback:
        moment("")
        better = {"d": 0.0, "o": 0.2, "w": 0.4}[output[0]]
        return Feedback(better + digest(output, example["question"]) % 100 / 100, f"{output} was said")

    proposes = scripted(role="O", text=_values)
    made: dict[str, tuple[list[Any], list[Any]]] = {
        "OptoPrime": ([OptoPrime(proposes)], [style, tone]), "OPRO": ([OPRO(proposes)], [style, tone]),
        "Demos": ([Demos()], [shots]), "Categorical": ([Categorical(startup=2)], [style, tone]),
        "Categorical(sources)": ([Categorical(startup=2, sources=[OptoPrime(proposes), Demos()])], [style, shots]),
        "Categorical, OptoPrime": ([Categorical(startup=2), OptoPrime(proposes)], [style, tone]),
    }  # fmt: skip
    found, parameters = made[optimizers]
    examples = [{"question": f"{topic} {i}", "answer": "a"} for topic in ("tea", "rain", "moss") for i in range(7)]
    return {
        "workflow": workflow if sync else aworkflow, "train": examples, "guide": guide, "parameters": parameters,
        "optimizers": found, "budget": Budget(trials=5),
    }  # fmt: skip


def raced() -> dict[str, Any]:
    """The same with a race of the choices first."""
    return {**text("OptoPrime"), "race": ["tone"]}


def code() -> dict[str, Any]:
    """A function whose source is proposed."""

    @trace(trainable=True)
    def rule(x: int) -> int:
        return x + 1

    def proposed(asked: str) -> str:
        source = f"def rule(x: int) -> int:\n    return x * {digest(asked) % 4} + {digest(asked, 1) % 9}\n"
        return json.dumps({"reasoning": "try it", "values": {"rule": source}})

    def workflow(x: int) -> int:
        return rule(x)

    def guide(output: int, example: dict[str, int]) -> Feedback:
        moment("")
        return Feedback(-abs(float(output) - example["y"]), f"off by {output - example['y']}")

    return {
        "workflow": workflow, "train": [{"x": x, "y": 3 * x + 7} for x in range(20)], "guide": guide,
        "optimizers": [OptoPrime(scripted(role="O", text=proposed))], "budget": Budget(trials=4),
    }  # fmt: skip


def numbers(optimizer: str) -> dict[str, Any]:
    """A line that is fitted, by gradients or without."""
    weight = Parameter(torch.zeros(2, dtype=D), name="w")
    tone = Parameter("dry", name="tone", choices=("dry", "warm", "odd"))

    @trace
    def line(x: float, w: torch.Tensor) -> torch.Tensor:
        return w[0] + w[1] * x

    def workflow(x: float) -> torch.Tensor:
        return line(x, weight.value)

    def guide(output: torch.Tensor, example: dict[str, float]) -> Feedback:
        moment("")
        loss = (output - example["y"]) ** 2
        return Feedback(score=-float(loss.detach()), loss=loss)

    @trace
    def pick(x: float) -> float:
        return {"dry": 0.0, "warm": 2.0, "odd": -1.0}[tone.value] * x

    def choosing(x: float) -> float:
        return pick(x)

    def chosen(output: float, example: dict[str, float]) -> Feedback:
        moment("")
        return Feedback(score=-abs(output - example["y"]))

    examples = [{"x": i / 5, "y": 1 + 2 * i / 5} for i in range(-9, 9)]
    if optimizer == "score function":
        mine = Gradient("adam", 0.3, estimator="loo", steps=20, total_steps=40, checkpoint_every=5)
        return {"workflow": choosing, "train": examples, "guide": chosen, "parameters": [tone], "optimizers": [mine],
                "budget": Budget(trials=3)}  # fmt: skip
    made = {
        "Gradient": lambda: Gradient("adamw", 0.05, steps=20, batch=3, checkpoint_every=4),
        "ZerothOrder": ZerothOrder,
    }[optimizer]()
    return {"workflow": workflow, "train": examples, "guide": guide, "parameters": [weight], "optimizers": [made],
            "budget": Budget(trials=3, rollouts=900)}  # fmt: skip


def bilevel() -> dict[str, Any]:
    """min over x of (x - 1)^2 + (y - 2)^2, where y minimises (y - x)^2."""
    x, y = (Parameter(torch.zeros(1, dtype=D), name=name) for name in ("x", "y"))

    @trace
    def losses(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"upper": ((x - 1) ** 2 + (y - 2) ** 2).sum(), "lower": ((y - x) ** 2).sum()}

    def workflow(n: int) -> dict[str, torch.Tensor]:
        return losses(x.value, y.value)

    def guide(output: dict[str, torch.Tensor], example: Any) -> Feedback:
        moment("")
        return Feedback(score=-float(output["upper"].detach()), loss=output)

    return {"workflow": workflow, "train": [{"n": n} for n in range(3)], "guide": guide, "parameters": [x, y],
            "optimizers": [LVHBA(["x"], ["y"], steps=20, checkpoint_every=4)], "budget": Budget(trials=3)}  # fmt: skip


def constrained() -> dict[str, Any]:
    """The nearest point of a circle."""
    point = Parameter(torch.tensor([2.0, 0.5], dtype=D), name="point")

    @trace
    def losses(p: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"objective": ((p - 3) ** 2).sum(), "c": (p**2).sum() - 4}

    def workflow(n: int) -> dict[str, torch.Tensor]:
        return losses(point.value)

    def guide(output: dict[str, torch.Tensor], example: Any) -> Feedback:
        moment("")
        worst = 10 * abs(float(output["c"].detach()))
        return Feedback(score=-float(output["objective"].detach()) - worst, loss=output)

    return {"workflow": workflow, "train": [{"n": n} for n in range(3)], "guide": guide, "parameters": [point],
            "optimizers": [AugmentedLagrangian(equalities=["c"], checkpoint_every=3)], "budget": Budget(trials=2)}  # fmt: skip


def _cases() -> dict[str, tuple[Callable[[], dict[str, Any]], str]]:
    found: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {}
    texts = ("OptoPrime", "OPRO", "Demos", "Categorical", "Categorical(sources)", "Categorical, OptoPrime")
    for search in SEARCHES:
        for name in texts:
            found[f"{search}, {name}"] = (lambda name=name: text(name)), search
        found[f"{search}, OptoPrime, sync"] = (lambda: text("OptoPrime", sync=True)), search
        found[f"{search}, code by OptoPrime"] = code, search
        for name in ("Gradient", "ZerothOrder", "score function"):
            found[f"{search}, {name}"] = (lambda name=name: numbers(name)), search
    for search in ("Greedy", "gate=None"):
        found[f"{search}, LVHBA"] = bilevel, search
        found[f"{search}, AugmentedLagrangian"] = constrained, search
    for search in ("Greedy", "Beam", "Pareto"):
        found[f"{search}, race, OptoPrime"] = raced, search
    return found


CASES = _cases()
