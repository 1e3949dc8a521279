"""What training a reflector is worth in houses it has never seen: agents/textworld_agent.py, three seeds, all controls.

    python benchmarks/textworld_agent.py --folder runs/textworld --save       # everything, about an hour of CPU, resumable
    python benchmarks/textworld_agent.py --folder runs/textworld --parts report --save
    python benchmarks/textworld_agent.py --quick                              # a slice of every part, a minute
    python benchmarks/textworld_agent.py --plain --folder runs/plain --parts accuracy controls warm base report \
        --name textworld_agent_plain --save                                   # plans that say rooms and commands alone
    python benchmarks/textworld_agent.py --fresh --lr 1e-3 --seeds 0 1 --folder runs/fresh \
        --name textworld_agent_fresh --save                                   # policy gradient that moves farther

Parts, in this order:

accuracy    how often the command that the actor finds likeliest is right, without a plan, with the true route, and with that
            of another game
controls    success after 1 to 4 attempts in held-out games where no model reflects: a random actor, retry without memory, the
            true route (oracle), the rule `hindsight` on the last walk and on all of them, and another game's reflection
warm        one warm start for all: 128 plans that the rule wrote in 60 training games, two epochs (`refine.warm_start`)
base        held-out games with the untrained policy and with the warm start
train       policy gradient from the warm start, three seeds of 24 updates (2 games x 8 reflections each): GRPO in its unbiased
            form on the change of return, the mean of 64 attempts with a reflection against 64 without; the actor's log
            probabilities are memoised, so that attempts after the first are free. KL is to the warm start. The loop is this
            file's, on the project's policy, estimator and warm start.
trained     held-out games with each trained policy, and with its reflections on another game
report      paired comparisons by game, and the result file

Reflections have 56 tokens at most, for the rule's have up to 53. An attempt is handed the last reflection, a reflector is
told the last walk.

Everything is kept in the folder as it comes: a killed run goes on where it was. Several processes may share a folder if they
are given different parts or seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import save

from trace_opt import connect
from trace_opt.core.adapter import Adapter
from trace_opt.refine import checkpoint
from trace_opt.refine.estimators.grpo import GRPO
from trace_opt.refine.local import Completions
from trace_opt.refine.policy import TrainablePolicy
from trace_opt.refine.warm_start import Pair, fine_tune, mean_loss

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.loading import module_at  # noqa: E402

tw = module_at(ROOT / "agents" / "textworld_agent.py", "houses", listed=True)

PARTS = ("accuracy", "controls", "warm", "base", "train", "trained", "report")
ATTEMPTS, MAX_TOKENS = 4, 56
SHOWN = ("hindsight", "untrained", "warm start", "trained")  # arms whose plans are looked into


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything there is."""

    probes: tuple[int, ...] = tuple(range(100, 114))
    train: tuple[int, ...] = tuple(range(1000, 1060))
    gradient: tuple[int, ...] = tuple(range(1000, 1060))
    held_out: tuple[int, ...] = tuple(range(2000, 2040))
    repeats: int = 2
    pairs: int = 128
    epochs: int = 2
    warm_batch: int = 4
    warm_lr: float = 1e-3
    seeds: int = 3
    updates: int = 24
    games: int = 2
    reflections: int = 8
    attempts: int = 64
    lr: float = 4e-4
    kl: float = 0.02
    temperature: float = 1.0
    chunk: int = 10


QUICK = Sizes(
    probes=(100, 101), train=(1000, 1001, 1002), gradient=(1000, 1001, 1002), held_out=(2000,), repeats=1, pairs=4, epochs=1, seeds=1, updates=1,
    games=1, reflections=3, attempts=16,
)  # fmt: skip


def seeded(*place: object) -> random.Random:
    return random.Random("/".join(map(str, place)))


class Bench:
    """The actor, the policy, and where results are kept."""

    def __init__(self, folder: Path, sizes: Sizes, *, plain: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.sizes = folder, sizes
        self.rule: Callable[[list[Any]], str] = functools.partial(tw.hindsight, plain=plain)
        self.actor = tw.Actor(connect("embedded/smollm2", cache=folder / "actor.db"))
        self.policy = TrainablePolicy("smollm2", raw=True, attention="sdpa")
        self.cpu = time.process_time()

    def keep(self, name: str, result: Any) -> None:
        """A result, and the CPU seconds of this process since the last one."""
        now = time.process_time()
        record = {"cpu_s": round(now - self.cpu, 1), **result}
        self.cpu = now
        file = self.folder / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(record), encoding="utf-8")
        part.replace(file)
        print(time.strftime("%H:%M:%S"), name, f"{record['cpu_s']} CPU-s", {k: v for k, v in record.items() if isinstance(v, float)}, flush=True)  # fmt: skip

    def kept(self, name: str) -> Any:
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    # -- playing -------------------------------------------------------------------------------------------------------

    def play(self, name: str, reflect: Callable[[list[Task]], list[str]], actor: Any = None) -> None:
        """All held-out games with one reflector, a few games at a time."""
        for start in range(0, len(self.sizes.held_out), self.sizes.chunk):
            part = f"arms/{name}-{start:02d}"
            if self.kept(part) is None:
                games = self.sizes.held_out[start : start + self.sizes.chunk]
                tasks = [Task(game, repeat) for game in games for repeat in range(self.sizes.repeats)]
                episodes(tasks, reflect, actor or self.actor)
                self.keep(part, {"episodes": [task.to_json() for task in tasks]})

    def arm(self, name: str) -> list[dict[str, Any]]:
        """The episodes of a reflector, as far as they were played."""
        parts = [self.kept(f"arms/{name}-{s:02d}") for s in range(0, len(self.sizes.held_out), self.sizes.chunk)]
        return [episode for part in parts if part is not None for episode in part["episodes"]]

    def reflecting(self, adapter: Adapter, seed: int) -> Callable[[list[Task]], list[str]]:
        """The policy with an adapter as reflector."""

        def reflect(tasks: list[Task]) -> list[str]:
            self.policy.load(adapter)
            texts: list[str] = []
            for at in range(0, len(tasks), 10):  # of like lengths, for all are padded to the longest
                prompts = [tw.told([task.walks[-1]]) for task in tasks[at : at + 10]]
                texts += self.say(prompts, 1, seed * 1000 + len(tasks[0].walks)).texts
            return [text.strip() for text in texts]

        return reflect

    def say(self, prompts: list[str], n: int, seed: int) -> Completions:
        return self.policy.sample(prompts, n, max_tokens=MAX_TOKENS, temperature=self.sizes.temperature, seed=seed)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def accuracy(self) -> None:
        """The actor's use of a plan along the winning routes of the fact sheet's games."""
        if self.kept("accuracy") is not None:
            return
        games = self.sizes.probes
        plans = {game: tw.written(tw.house(game, 104).route) for game in games}
        others = dict(zip(games, [*games[1:], games[0]], strict=True))
        found: dict[str, float] = {}
        for times in (1, 3):
            actor = tw.Actor(self.actor.llm, times=times)
            for told in ("no plan", "route", "another game's route"):
                right = [
                    commands[int(np.argmax(actor.log_probs(plan, room, tuple(commands))))] == command
                    for game in games
                    for plan in [{"no plan": "", "route": plans[game]}.get(told, plans[others[game]])]
                    for room, command in tw.house(game, 104).route
                    for commands in [list(tw.house(game, 104).exits[room])]
                ]
                found[f"{told}, said {times}x"] = statistics.mean(right)
        self.keep("accuracy", {"decisions": 4 * len(games), **found})

    def controls(self) -> None:
        """Reflectors that are no models."""
        uniform = tw.Actor(None)
        self.play("random actor", lambda tasks: [""] * len(tasks), uniform)
        self.play("no memory", lambda tasks: [""] * len(tasks))
        self.play("oracle", lambda tasks: [tw.written(tw.house(task.game, 104).route) for task in tasks])
        self.play("hindsight", lambda tasks: [self.rule(task.walks[-1:]) for task in tasks])
        self.play("hindsight over all attempts", lambda tasks: [self.rule(task.walks) for task in tasks])
        self.others("hindsight")

    def others(self, name: str) -> None:
        """Each game with the reflections that another game got at the same attempt."""
        said: dict[tuple[int, int], str] = {}
        for episode in self.arm(name):
            for attempt, plan in enumerate(episode["plans"], 1):
                said.setdefault((episode["game"], attempt), plan)
                said.setdefault((episode["game"], 0), plan)
        games = list(self.sizes.held_out)

        def reflect(tasks: list[Task]) -> list[str]:
            found: list[str] = []
            for task in tasks:
                start = games.index(task.game)
                ring = [*games[start + 1 :], *games[:start]]
                keys = [(game, k) for game in ring for k in (len(task.walks), 0) if (game, k) in said]
                found.append(said[keys[0]] if keys else "")
            return found

        self.play(f"another game's {name}", reflect)

    def warm(self) -> Adapter:
        """The shared warm start."""
        file, sizes = self.folder / "warm.safetensors", self.sizes
        if not file.is_file():
            pairs = tw.pairs(self.actor, sizes.train, sizes.pairs, rule=self.rule)
            self.policy.adapter.value = Adapter()
            losses = fine_tune(
                self.policy, pairs, epochs=sizes.epochs, batch=sizes.warm_batch, lr=sizes.warm_lr,
                checkpoint=self.folder / "warm.checkpoint",
            )  # fmt: skip
            file.write_bytes(self.policy.dump().data)
            self.keep("warm", {"losses": losses, "last": statistics.mean(losses[-8:]), "first": losses[0]})
        return Adapter(file.read_bytes())

    def base(self) -> None:
        """The policy before policy gradient."""
        warm = self.warm()
        self.play("warm start", self.reflecting(warm, 0))
        self.others("warm start")
        self.play("untrained", self.reflecting(Adapter(), 0))

    def train(self, seed: int) -> Adapter:
        """Policy gradient from the warm start."""
        file, sizes, policy = self.folder / f"trained-{seed}.safetensors", self.sizes, self.policy
        if file.is_file():
            return Adapter(file.read_bytes())
        warm = self.warm()
        policy.load(warm)
        estimator = GRPO(policy, lr=sizes.lr, unbiased=True, kl=sizes.kl)
        state = checkpoint.load(self.folder / f"train-{seed}.checkpoint")
        curve: list[dict[str, Any]] = []
        if state is not None:
            policy.load(state["adapter"])
            estimator.load_state_dict(state["estimator"])
            curve = state["curve"]
        while len(curve) < sizes.updates:
            curve.append(self.update(estimator, warm, seed, len(curve)))
            state = {"adapter": policy.dump(), "estimator": estimator.state_dict(), "curve": curve}
            checkpoint.save(self.folder / f"train-{seed}.checkpoint", state)
            self.keep(f"train-{seed}", {"curve": curve, "gain": curve[-1]["gain"], "update": len(curve)})
        file.write_bytes(policy.dump().data)
        return policy.dump()

    def update(self, estimator: GRPO, warm: Adapter, seed: int, number: int) -> dict[str, Any]:
        """One update: reflections on a failed walk in each of a few games, and what each was worth."""
        sizes, policy, began = self.sizes, self.policy, time.process_time()
        order = list(sizes.gradient) * (1 + sizes.updates * sizes.games // len(sizes.gradient))
        seeded("order", seed).shuffle(order)
        games = order[number * sizes.games : (number + 1) * sizes.games]
        tasks = [self.failed(game, seed, number) for game in games]
        prompts = [tw.told([task.walks[-1]]) for task in tasks]
        said = self.say(prompts, sizes.reflections, 1_000_000 + seed * 1000 + number)
        gains, without = list[float](), list[float]()
        for at, task in enumerate(tasks):
            chances = [f"gain/{seed}/{number}/{i}" for i in range(sizes.attempts)]
            before = self.success(task.game, task.plans[-1] if task.plans else "", chances)
            without.append(before)
            texts = [said.texts[row].strip() for row, prompt in enumerate(said.prompt) if prompt == at]
            known = {text: self.success(task.game, text, chances) for text in dict.fromkeys(texts)}
            gains += [known[text] - before for text in texts]
        batch = policy.batch(dataclasses.replace(said, log_probs=((),) * len(said)), gains)
        drawn = torch.zeros(batch.mask.shape)
        for row, values in enumerate(said.log_probs):
            drawn[row, : len(values)] = torch.tensor(values)
        with torch.no_grad(), policy.lora.instead(warm):
            reference = policy.log_prob(batch)
        step = estimator.update(
            estimator.sample(lambda: dataclasses.replace(batch, log_probs=drawn, reference=reference))
        )
        return {
            "gain": statistics.mean(gains), "gains": gains, "without": without, "used": step.used, "norm": step.norm,
            "kl": step.kl, "distinct": len(set(said.texts)) / len(said), "tokens": statistics.mean(map(len, said.tokens)),
            "rule": statistics.mean(t.strip() == self.rule([tasks[p].walks[-1]]) for t, p in zip(said.texts, said.prompt, strict=True)),
            "games": games, "before": [len(task.plans) for task in tasks], "said": list(said.texts[:: sizes.reflections]),
            "cpu_s": round(time.process_time() - began, 1),
        }  # fmt: skip

    def failed(self, game: int, seed: int, number: int) -> Task:
        """A game after one to three failed attempts, with the policy's own reflections between them."""
        wanted = seeded("depth", seed, number, game).randrange(ATTEMPTS - 1)
        for again in range(100):
            task = Task(game, 0)
            while True:
                plan = task.plans[-1] if task.plans else ""
                walk = self.actor.walk(game, plan, seeded("train", seed, number, game, again, len(task.walks)))
                if walk["found"]:
                    task.plans = task.plans[:-1]  # the attempt that it led to is not looked back on
                    break
                task.walks.append(walk)
                if len(task.walks) > wanted:
                    break
                said = self.say([tw.told([walk])], 1, 2_000_000 + seed * 1000 + number)
                task.plans.append(said.texts[0].strip())
            if task.walks:
                return task
        raise SystemExit(f"game {game} is solved at the first attempt a hundred times in a row")

    def success(self, game: int, plan: str, chances: Sequence[str]) -> float:
        """Share of attempts with a plan that find the coin."""
        return statistics.mean(self.actor.walk(game, plan, random.Random(chance))["found"] for chance in chances)

    def trained(self, seed: int) -> None:
        """Held-out games with a trained policy."""
        self.play(f"trained {seed}", self.reflecting(self.train(seed), 0))
        if seed == 0:
            self.others("trained 0")

    def report(self, name: str | None) -> None:
        """What came of it."""
        figures: dict[str, Any] = {
            "sizes": {k: v for k, v in dataclasses.asdict(self.sizes).items() if not isinstance(v, tuple)}
        }
        figures["games"] = {"training": len(self.sizes.train), "held out": len(self.sizes.held_out)}
        figures["accuracy"] = {k: v for k, v in (self.kept("accuracy") or {}).items() if k != "cpu_s"}
        warm = self.kept("warm")
        if warm is not None:
            figures["warm start"] = {"losses": [round(x, 3) for x in warm["losses"]]}
            held = tw.pairs(self.actor, self.sizes.held_out, len(self.sizes.held_out), rule=self.rule)
            figures["warm start"]["agreement with the rule, held out"] = {
                who: self.agreement(adapter, held) for who, adapter in self.adapters()
            }
        rows = {}
        for file in sorted((self.folder / "arms").glob("*-00.json")):
            arm = file.name.removesuffix("-00.json")
            if len(found := self.arm(arm)) == len(self.sizes.held_out) * self.sizes.repeats:
                rows[arm] = [found]
        seeds = [rows[f"trained {s}"][0] for s in range(self.sizes.seeds) if f"trained {s}" in rows]
        if seeds:
            rows["trained, all seeds"] = seeds
        figures["success after attempts 1 to 4"] = {arm: table(found) for arm, found in rows.items()}
        figures["what plans hold"] = {arm: content(found) for arm, found in rows.items() if arm.startswith(SHOWN)}
        pairs = [
            (ours, other)
            for ours in ("trained, all seeds", "warm start")
            for other in rows
            if ours in rows and other != ours and not other.startswith("trained ")
        ]
        figures["paired by game, after attempt 4"] = {
            f"{ours} - {other}": paired(rows[ours], rows[other]) for ours, other in pairs
        }
        figures["training"] = {
            f"seed {s}": {
                "gain": [round(u["gain"], 3) for u in kept["curve"]],
                "follows the rule": [round(u["rule"], 2) for u in kept["curve"]],
                "kl to the warm start": [round(u["kl"], 3) for u in kept["curve"]],
                "distinct": [round(u["distinct"], 2) for u in kept["curve"]],
                "cpu_s": round(sum(u["cpu_s"] for u in kept["curve"])),
            }
            for s in range(self.sizes.seeds)
            if (kept := self.kept(f"train-{s}")) is not None
        }  # fmt: skip
        figures["cpu_s of held-out games"] = {
            arm: round(sum(self.kept(f"arms/{arm}-{s:02d}")["cpu_s"] for s in range(0, len(self.sizes.held_out), self.sizes.chunk)))
            for arm in rows
            if arm != "trained, all seeds"
        }  # fmt: skip
        if name is None:
            print(json.dumps(figures, indent=1))
        else:
            save(name, figures, seeds=list(range(self.sizes.seeds)))

    def adapters(self) -> list[tuple[str, Adapter]]:
        files = [("warm start", self.folder / "warm.safetensors")]
        files += [(f"trained {s}", self.folder / f"trained-{s}.safetensors") for s in range(self.sizes.seeds)]
        return [("untrained", Adapter()), *((who, Adapter(f.read_bytes())) for who, f in files if f.is_file())]

    def agreement(self, adapter: Adapter, pairs: Sequence[Pair]) -> dict[str, float]:
        """How unlikely a policy finds the rule's plans, in nats a token."""
        self.policy.load(adapter)
        parts = [mean_loss(self.policy, pairs[at : at + 10]) for at in range(0, len(pairs), 10)]
        return {"loss": round(statistics.mean(parts), 3)}


class Task:
    """A held-out game under way."""

    def __init__(self, game: int, repeat: int) -> None:
        self.game, self.repeat = game, repeat
        self.walks: list[Any] = []
        self.plans: list[str] = []

    def to_json(self) -> dict[str, Any]:
        solved = len(self.walks) if self.walks[-1]["found"] else 0
        return {"game": self.game, "repeat": self.repeat, "solved": solved, "plans": self.plans}


def episodes(tasks: Sequence[Task], reflect: Callable[[list[Task]], list[str]], actor: Any) -> None:
    """Attempts at all tasks until they are solved; the chance of an attempt depends on game, repeat and number alone."""
    open_ = list(tasks)
    for attempt in range(1, ATTEMPTS + 1):
        for task in open_:
            plan = task.plans[-1] if task.plans else ""
            task.walks.append(actor.walk(task.game, plan, seeded("held out", task.game, task.repeat, attempt)))
        open_ = [task for task in open_ if not task.walks[-1]["found"]]
        if open_ and attempt < ATTEMPTS:
            for task, plan in zip(open_, reflect(open_), strict=True):
                task.plans.append(plan)


def by_game(runs: Sequence[Sequence[dict[str, Any]]], attempt: int) -> dict[int, float]:
    """Share of a game's episodes solved within some attempts, over all runs."""
    found: dict[int, list[bool]] = {}
    for run in runs:
        for episode in run:
            found.setdefault(episode["game"], []).append(0 < episode["solved"] <= attempt)
    return {game: statistics.mean(solved) for game, solved in found.items()}


def content(runs: Sequence[Sequence[dict[str, Any]]]) -> dict[str, float]:
    """How many sentences name a command that their room has, and how many plans lead from the start to their own end."""
    real, whole = list[bool](), list[bool]()
    for episode in (episode for run in runs for episode in run):
        place = tw.house(episode["game"], 104)
        for plan in episode["plans"]:
            steps = re.findall(r"In the ([^,.]+), ([^.]+)\.", plan)
            real += [command in place.exits.get(room, {}) for room, command in steps]
            commands, room = dict(reversed(steps)), place.start
            for _ in range(len(steps) - 1):
                room = place.exits.get(room, {}).get(commands.get(room, "")) or ""
            whole.append(bool(steps) and room == steps[0][0] and steps[0][1] in place.exits.get(room, {}))
    return {
        "sentences that are true": round(statistics.mean(real or [False]), 3),
        "plans that lead to their end": round(statistics.mean(whole or [False]), 3),
        "plans": len(whole),
    }


def interval(values: Sequence[float]) -> list[float]:
    """95 % bootstrap interval of a mean of games."""
    rng = np.random.default_rng(0)
    data = np.array(values)
    means = data[rng.integers(0, len(data), (10_000, len(data)))].mean(1)
    return [round(float(x), 3) for x in np.quantile(means, (0.025, 0.975))]


def table(runs: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    rates = [round(statistics.mean(by_game(runs, attempt).values()), 3) for attempt in range(1, ATTEMPTS + 1)]
    return {"rates": rates, "interval after 4": interval(list(by_game(runs, ATTEMPTS).values()))}


def paired(ours: Sequence[Sequence[dict[str, Any]]], other: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Mean difference over games, its interval, and the p value of a sign-flip test."""
    left, right = by_game(ours, ATTEMPTS), by_game(other, ATTEMPTS)
    gaps = np.array([left[game] - right[game] for game in left])
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (20_000, len(gaps)))
    flipped = np.abs((signs * gaps).mean(1)) >= abs(gaps.mean()) - 1e-12
    return {
        "difference": round(float(gaps.mean()), 3), "interval": interval(list(gaps)),
        "p": round(float((1 + flipped.sum()) / (1 + len(flipped))), 5), "games": len(gaps),
    }  # fmt: skip


def check_apart(sizes: Sizes) -> None:
    """Training and held-out games share no house."""

    def shape(seed: int) -> str:
        place = tw.house(seed, 104)
        return json.dumps([place.start, {room: dict(exits) for room, exits in place.exits.items()}], sort_keys=True)

    both = {shape(seed) for seed in {*sizes.train, *sizes.gradient}} & {shape(seed) for seed in sizes.held_out}
    if both:
        raise SystemExit(f"{len(both)} houses are both in training and held out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where everything is kept; required unless --quick")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", nargs="+", type=int, help="of train and trained; all by default")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--plain", action="store_true", help="plans of rooms and commands alone; give it its own folder"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="policy gradient in 60 games that the warm start did not see"
    )
    parser.add_argument("--lr", type=float, help="of policy gradient; give --fresh and --lr their own folder too")
    parser.add_argument("--name", default="textworld_agent", help="of the result file")
    parser.add_argument("--save", action="store_true", help="write the report to results/, else it is printed")
    given = parser.parse_args()
    if given.folder is None and not given.quick:
        parser.error("give --folder, or --quick")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        sizes = QUICK if given.quick else Sizes()
        if given.fresh:
            sizes = dataclasses.replace(sizes, gradient=tuple(range(1100, 1160)))
        if given.lr is not None:
            sizes = dataclasses.replace(sizes, lr=given.lr)
        bench = Bench(given.folder or Path(scratch), sizes, plain=given.plain)
        if given.parts != ["report"]:
            check_apart(sizes)
        seeds = given.seeds or list(range(sizes.seeds))
        for part in ("accuracy", "controls", "warm", "base"):
            if part in given.parts:
                getattr(bench, part)()
        for seed in seeds:
            if "train" in given.parts:
                bench.train(seed)
            if "trained" in given.parts:
                bench.trained(seed)
        if "report" in given.parts:
            bench.report(given.name if given.save else None)


if __name__ == "__main__":
    main()
