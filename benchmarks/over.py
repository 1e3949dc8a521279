"""Whether a local model of 135M parameters learns to be OptoPrime's model: `Refiner.over(OptoPrime(policy))` on numbers.

    python benchmarks/over.py                                 # about 25 CPU-minutes on one thread, resumable
    python benchmarks/over.py --kinds words --problems 40     # one kind, 9 CPU-minutes; the others' figures stay
    python benchmarks/over.py --quick                         # one family, few problems: under a minute, nothing written

Each problem is a workflow of graphs/ with one of its numbers moved away from where its score is best and the others
frozen; the model is shown what OptoPrime shows any model, but for shorter directions on how to read and answer, and its
reply begins with what every reply begins with. A reply moves the variable the right way where its value lies on the side of
the present value on which the best one lies. Held-out problems come from other seeds, as many for either direction, so that
a constant direction is right on half of them. Each gets one greedy reply: before training, after a warm start on scripted
replies (one unit the right way; one warm start for all kinds), and after policy gradient on the change of
score, of which only the search's own rollouts tell.

The families differ in what the direction follows from. `side` and `offset` want more where the output is too small; for
`gain` and `weight` the sign of an input turns that round. Three kinds of problem: feedback is as the graphs give it
("numbers": got 63, expected 120); it says besides that the output is too small or too large ("words"); and with that
feedback replies begin with a reason, whose scripted form repeats it before any value ("reasoned", with 48 more of them).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import harness
import torch

from trace_opt import Budget, OptoPrime, Parameter, optimize, record
from trace_opt.core.feedback import Feedback
from trace_opt.errors import ReplyError
from trace_opt.llm.base import LLM, Message, Reply, Request
from trace_opt.optim.reply import read
from trace_opt.problem import load_problem
from trace_opt.refine import checkpoint
from trace_opt.refine.policy import TrainablePolicy
from trace_opt.refine.refiner import Refiner
from trace_opt.refine.warm_start import Pair, fine_tune

GRAPHS = Path(__file__).parents[1] / "graphs"
FAMILIES = ("side", "offset", "gain", "weight")
PREFILLS = {"numbers": '{"values": {"', "words": '{"values": {"', "reasoned": '{"reasoning": "'}
"""What every reply begins with, by kind of problem."""
TOKENS = 260  # of a problem text
LONGEST = {"numbers": 12, "words": 12, "reasoned": 32}  # tokens of a reply after what it begins with
ADAPTED = range(-16, 0)  # blocks that learn: half of them, which halves the backward pass
RATES = {"warm start": 1e-3, "policy gradient": 5e-4}
PAIRS = 160  # scripted replies of the warm start
REASONED = 48  # more of them, which say first what they follow from
KINDS = ("words", "numbers", "reasoned")
MOST = 64  # training problems of the policy gradient
TASKS = 4  # of an update


class Brief(OptoPrime):
    """OptoPrime with directions of two lines in the place of two pages."""

    @property
    def system(self) -> str:
        """How to answer."""
        return "You set a variable of a program to make its score greater. Answer with one JSON object."


@dataclass(frozen=True, slots=True)
class Small:
    """One problem: one variable, one example.

    Attributes:
        best: The variable's value at which the score is best.
    """

    family: str
    kind: str
    workflow: Callable[..., Any]
    guide: Callable[[Any, Any], Feedback]
    parameter: Parameter[int]
    example: dict[str, Any]
    best: int

    @property
    def up(self) -> bool:
        """Whether more is better."""
        return self.best > self.parameter.value


def graph(name: str) -> Any:
    """The file of a problem, as its loaded `problem` knows it."""
    key = f"trace_opt_problem_{name}"
    if key not in sys.modules:
        load_problem(GRAPHS / f"{name}.py", {})
    return sys.modules[key]


def small(family: str, seed: int, kind: str) -> Small:
    """A problem by seed; even seeds want more, odd ones less."""

    def worded(output: Any, example: dict[str, Any]) -> Feedback:
        said = made.guide(output, example)
        if kind == "numbers" or output == example["wanted"]:
            return said
        return replace(said, text=f"{said.text}: too {'small' if output < example['wanted'] else 'large'}")

    rng = random.Random(f"{family}/{seed}")
    made: Any = {
        "side": lambda: graph("diamond").problem(),
        "offset": lambda: graph("chain").problem(steps=rng.randint(1, 2)),
        "gain": lambda: graph("chain").problem(steps=rng.randint(1, 2)),
        "weight": lambda: graph("fan_in").problem(width=4),
    }[family]()
    for parameter in made.parameters:
        parameter.value = rng.randint(2, 14)
    chosen = rng.choice(made.parameters) if family == "weight" else next(p for p in made.parameters if p.name == family)
    for parameter in made.parameters:
        parameter.frozen = parameter is not chosen
    now = chosen.value = rng.randint(6, 14)
    best = now + rng.randint(2, 6) * (1 if seed % 2 == 0 else -1)
    while True:
        inputs = {name: value for name, value in rng.choice(made.train).items() if name != "wanted"}
        if family in ("offset", "gain"):
            inputs = {"x": float(rng.choice([-1, 1]) * rng.randint(1, 12))}
        chosen.value = best
        wanted = made.workflow(**inputs)
        chosen.value = now
        if wanted != made.workflow(**inputs):
            return Small(family, kind, made.workflow, worded, chosen, {**inputs, "wanted": wanted}, best)


def score(problem: Small, value: int | None = None) -> float:
    """The score at a value, or at the present one."""
    inputs = {name: given for name, given in problem.example.items() if name != "wanted"}
    now = problem.parameter.value
    problem.parameter.value = now if value is None else value
    try:
        said = problem.guide(problem.workflow(**inputs), problem.example)
    finally:
        problem.parameter.value = now
    assert said.score is not None
    return said.score


# -- what the model is asked, and what it says -----------------------------------------------------------------------


class Listener(LLM):
    """Hears what an optimizer asks, and leaves everything as it is."""

    name = "listener"
    local = True
    heard: Sequence[Message] = ()

    async def asend(self, request: Request) -> Reply:
        """Keep the question."""
        self.heard = request.messages
        return Reply(text='{"values": {}}')


def question(problem: Small) -> tuple[Message, ...]:
    """The conversation that OptoPrime begins about a problem, with how the reply begins."""
    listener = Listener()
    optimizer = Brief(listener, tokens=TOKENS, objective="Make the score greater.")
    with record():
        output = problem.workflow(**{name: given for name, given in problem.example.items() if name != "wanted"})
    optimizer.backward(output, problem.guide(output, problem.example))
    optimizer.step()
    return (*listener.heard, {"role": "assistant", "content": PREFILLS[problem.kind]})


def scripted(problem: Small) -> str:
    """A right reply, from where it begins to differ: one unit the right way."""
    name, now = problem.parameter.name, problem.parameter.value
    value = now + (1 if problem.up else -1)
    if problem.kind != "reasoned":
        return f'{name}": {value}}}}}'
    inputs = {key: given for key, given in problem.example.items() if key != "wanted"}
    is_small = problem.workflow(**inputs) < problem.example["wanted"]
    link = "so" if is_small == problem.up else "but"
    said = f"too {'small' if is_small else 'large'}, {link} {name} goes {'up' if problem.up else 'down'} from {now}"
    return f'{said}", "values": {{"{name}": {value}}}}}'


def judged(problem: Small, reply: Mapping[str, Any]) -> dict[str, Any]:
    """What a reply does; of one that was cut the complete values count, as they do in a search."""
    try:
        values = read(
            PREFILLS[problem.kind] + reply["said"], [problem.parameter], finish="stop" if reply["ended"] else "length"
        ).values
    except ReplyError:
        values = {}
    value = values.get(problem.parameter.name)
    moved = value is not None and value != problem.parameter.value
    return {
        "family": problem.family, "usable": value is not None, "moved": moved,
        "said": PREFILLS[problem.kind] + reply["said"],
        "right": moved and (value > problem.parameter.value) == problem.up,
        "better": moved and score(problem, value) > score(problem),
    }  # fmt: skip


def answered(policy: TrainablePolicy, problems: Sequence[Small]) -> list[dict[str, Any]]:
    """The policy's greedy replies, problem by problem, and whether they ended by themselves."""
    found: list[dict[str, Any]] = []
    for start in range(0, len(problems), 8):
        some = problems[start : start + 8]
        drawn = policy.sample([question(p) for p in some], max_tokens=LONGEST[some[0].kind], temperature=0.0)
        found += [
            {"said": text, "ended": tokens[-1] in policy.ends}
            for text, tokens in zip(drawn.texts, drawn.tokens, strict=True)
        ]
    return found


def wilson(k: int, n: int) -> list[float]:
    """The 95 % interval of a share."""
    z = NormalDist().inv_cdf(0.975)
    centre, half = (k + z * z / 2) / (n + z * z), z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return [round(centre - half, 3), round(centre + half, 3)]


def counted(k: int, n: int) -> dict[str, Any]:
    """A share with its interval."""
    return {"k": k, "n": n, "share": round(k / n, 3), "wilson95": wilson(k, n)}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares over all problems, and of right directions by family."""

    def share(some: Sequence[Mapping[str, Any]], what: str) -> dict[str, Any]:
        return counted(sum(bool(row[what]) for row in some), len(some))

    families = list(dict.fromkeys(row["family"] for row in rows))
    return {
        "usable": share(rows, "usable"), "moved": share(rows, "moved"), "right way": share(rows, "right"),
        "better score": share(rows, "better"),
        "right way by family": {f: share([r for r in rows if r["family"] == f], "right") for f in families},
        "replies": [row["said"] for row in rows[:4]],
    }  # fmt: skip


# -- the stages ------------------------------------------------------------------------------------------------------


class Kept:
    """What was done, in files of a folder, with the CPU seconds it took."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON-able result of a stage, made unless it is there."""
        file = self.folder / f"{name.replace(' ', '-')}.json"
        if file.exists():
            return json.loads(file.read_text())
        start = time.process_time()
        made = {"result": make(), "cpu_s": time.process_time() - start}
        file.write_text(json.dumps(made))
        print(f"{name}: {made['cpu_s']:.0f} CPU-s", flush=True)
        return made


def refined(policy: TrainablePolicy, problems: Sequence[Small], folder: Path, tasks: int) -> dict[str, Any]:
    """Policy gradient on what replies did to the score, one search for each problem."""
    file = folder / "policy-gradient-state.json"
    over = Refiner.over(
        Brief(policy, tokens=TOKENS, objective="Make the score greater."), estimator="grpo", completions=8, tasks=tasks,
        lr=RATES["policy gradient"], max_tokens=LONGEST[problems[0].kind], prefill=PREFILLS[problems[0].kind],
    )  # fmt: skip
    over.adapter = policy.adapter.value
    state = checkpoint.load(file) or {"done": 0, "cpu_s": 0.0}
    if state["done"]:
        over.load_state_dict(state["over"])
    for number in range(state["done"], len(problems)):
        start = time.process_time()
        problem = problems[number]
        optimize(
            problem.workflow, [problem.example], problem.guide, parameters=[problem.parameter], optimizers=[over],
            budget=Budget(trials=1), store=None, seed=number,
        )  # fmt: skip
        state = {
            "done": number + 1, "cpu_s": state["cpu_s"] + time.process_time() - start, "over": over.state_dict(),
        }  # fmt: skip
        if (number + 1) % 4 == 0:
            checkpoint.save(file, state)
            last = over.curve[-4:]
            shares = {k: round(sum(row[k] for row in last) / len(last), 2) for k in ("usable", "better", "reward")}
            print(f"problem {number + 1}: {state['cpu_s']:.0f} CPU-s, {over.updates} updates, {shares}", flush=True)
    policy.load(over.adapter)
    policy.adapter.value = over.adapter
    return {"curve": over.curve, "updates": over.updates, "cpu_s": state["cpu_s"]}


def measured(kind: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All stages of one kind of problem."""
    pairs, training, held = (4, 1, 4) if args.quick else (PAIRS, args.problems, args.held_out)
    families = FAMILIES[:1] if args.quick else FAMILIES

    def problems(first: int, count: int, of: str = kind) -> list[Small]:
        return [small(families[i % len(families)], first + i // len(families), of) for i in range(count)]

    kept = Kept(folder)
    policy = TrainablePolicy(layers=ADAPTED)
    held_out = problems(0, held)
    stages: dict[str, Any] = {}
    if not args.skip_before:
        stages["before"] = kept.once("before", lambda: answered(policy, held_out))
    shown = [Pair(question(p), scripted(p)) for p in problems(10_000, pairs, "numbers")]
    start = time.process_time()
    file = folder.parent / "warm-start-state.json"  # one for both
    losses = fine_tune(policy, shown, epochs=1, lr=RATES["warm start"], checkpoint=file, every=4)
    warm_s = Kept(folder.parent).once("warm start", lambda: time.process_time() - start)["result"]
    if kind == "reasoned":
        more = [Pair(question(p), scripted(p)) for p in problems(30_000, REASONED)]
        losses = fine_tune(policy, more, epochs=1, lr=RATES["warm start"], checkpoint=folder / "more.json", every=4)
        pairs += REASONED
    print(f"{kind}: warm start from {losses[0]:.2f} to {losses[-1]:.3f} nats a token", flush=True)
    warm = kept.once("after warm start", lambda: answered(policy, held_out))
    stages["after warm start"] = warm
    figures: dict[str, Any] = {
        "prompt_tokens": [f(len(policy.tokens_of(question(p))) for p in held_out) for f in (min, max)],
        "always up": counted(sum(p.up for p in held_out), held),
        "warm start": {"pairs": pairs, "losses": [round(loss, 4) for loss in losses], "cpu_s": round(warm_s)},
        "cpu_s a greedy reply": round(warm["cpu_s"] / held, 2),
    }
    if training:
        practice = problems(20_000, MOST)
        random.Random(0).shuffle(practice)  # neighbours in an update are to want different directions
        trained = refined(policy, practice[:training], folder, tasks=1 if args.quick else TASKS)
        stages["after policy gradient"] = kept.once(f"after {training} problems", lambda: answered(policy, held_out))
        figures["policy gradient"] = {
            "problems": training, "updates": trained["updates"], "cpu_s": round(trained["cpu_s"]),
            "quarters": quarters(trained["curve"]),
        }  # fmt: skip
    figures["stages"] = {
        name: summary([judged(p, reply) for p, reply in zip(held_out, stage["result"], strict=True)])
        for name, stage in stages.items()
    }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few problems of one family, nothing written")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--problems", type=int, default=MOST, help="training problems of the policy gradient; 0 leaves it out"
    )
    parser.add_argument("--skip-before", action="store_true", help="do not ask the untrained model")
    parser.add_argument("--held-out", type=int, default=48, help="held-out problems")
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "trace_opt-over",
                        help="folder of what has been run so far")  # fmt: skip
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(measured("words", Path(scratch) / "words", args), indent=2))
        return
    for name in args.kinds:
        made = measured(name, args.state / name, args)
        (args.state / f"figures-{name}.json").write_text(json.dumps(made))
    kept = {name: args.state / f"figures-{name}.json" for name in KINDS}
    figures = {name: json.loads(file.read_text()) for name, file in kept.items() if file.exists()}
    settings = {"model": "smollm2", "layers": list(ADAPTED), "rates": RATES, "completions": 8, "tasks": TASKS}
    harness.save("over", {"settings": settings, **figures}, seeds=[0])


def quarters(curve: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Means over each quarter of the training problems."""
    size = max(1, len(curve) // 4)
    parts = [curve[at : at + size] for at in range(0, len(curve), size)]
    return [
        {name: round(sum(row[name] for row in part) / len(part), 3) for name in ("usable", "better", "reward")}
        for part in parts
    ]


if __name__ == "__main__":
    main()
