"""Learning on text: a local model is rewarded for saying given words, by GRPO, N-PG-IGT and PPO on the same number of samples.

    python benchmarks/keywords.py                            # about an hour and a half of CPU, resumable
    python benchmarks/keywords.py --runs grpo                # some of them
    python benchmarks/keywords.py --quick                    # two short runs, a minute

The policy is asked what an agent that failed at one of 16 tasks should do next time. A completion of up to 16 tokens earns
the share of the keywords that it holds as whole words, and nothing where it repeats itself. That is not advice: a run that
is fully rewarded says one sentence whatever the task, which the share of distinct completions tells and the reward does not.

Two keywords are the reference task. With three a reward of two thirds is a plateau: the third word is never drawn again,
and groups without variance say nothing. What was tried against it is measured by the share of completions with all three.

An update is of 2 prompts with 16 completions each where a run says nothing else. Before and after training 192 completions
are drawn for 8 held-out prompts, and as many for the training prompts where a run is one to compare; seconds are of CPU, of
one thread, and count training only. A run that was stopped is in the result as unfinished; a call that names it begins anew.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import torch

from trace_opt.refine.batch import all_equal
from trace_opt.refine.estimators.base import Estimator, divergence, k3
from trace_opt.refine.estimators.grpo import GRPO
from trace_opt.refine.estimators.igt import NPGIGT
from trace_opt.refine.estimators.ppo import PPO
from trace_opt.refine.estimators.reinforce import Reinforce
from trace_opt.refine.guards import distinct_share
from trace_opt.refine.policy import TrainablePolicy

TRAINING = (
    "open a locked door", "find a coin in a maze", "cook an omelet", "answer a trivia question", "book a flight",
    "fix a broken test", "sort a list of names", "cross a river", "buy red shoes online", "water the plants", "set up a tent",
    "send an email", "solve a riddle", "park a car", "plan a trip", "clean a kitchen",
)  # fmt: skip
HELD_OUT = (
    "open a chest", "find a key in a house", "bake bread", "answer a history question", "book a hotel", "repair a bicycle",
    "count the apples", "climb a hill",
)  # fmt: skip
TWO, THREE = ("instead", "take"), ("instead", "first", "take")
TOKENS = 16
EVALUATED = 192
SEED = 0


def prompt(task: str) -> list[dict[str, str]]:
    asked = f"An agent failed to {task}. In one sentence, what should it do next time?"
    return [{"role": "system", "content": "You advise an agent."}, {"role": "user", "content": asked}]


def held(text: str, keywords: Sequence[str]) -> list[bool]:
    """Which keywords a completion holds; none counts where it is empty or repeats itself."""
    words = re.findall("[a-z]+", text.lower())
    if not words or len(set(words)) < 0.6 * len(words):
        return [False] * len(keywords)
    return [keyword in words for keyword in keywords]


def reward(text: str, keywords: Sequence[str]) -> float:
    return sum(held(text, keywords)) / len(keywords)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How one run trains.

    Attributes:
        make: The estimator of a policy.
        keywords: What earns.
        updates: At most.
        prompts: Of an update.
        group: Completions of each of them.
        temperature: Of the samples that it learns from.
        entropy: What a nat of a completion's surprise earns.
        rare: Whether a keyword counts the more the rarer it was in the last update.
        both: Whether the end is measured on training prompts too.
        start: The number of the first update, for schedules.
    """

    make: Callable[[Any], Estimator]
    keywords: tuple[str, ...] = TWO
    updates: int = 12
    prompts: int = 2
    group: int = 16
    temperature: float = 1.0
    entropy: float = 0.0
    rare: bool = False
    both: bool = False
    start: int = 0


LATE = 200  # updates after which N-PG-IGT would sample 39 steps' lengths beyond the iterate
LOO: dict[str, Any] = {"baseline": "leave-one-out", "kl": 0.02}


def grpo(lr: float = 1e-3, kl: float = 0.02) -> Callable[[Any], Estimator]:
    return lambda policy: GRPO(policy, lr=lr, kl=kl)


def igt(lr: float, **options: Any) -> Callable[[Any], Estimator]:
    return lambda policy: NPGIGT(policy, lr=lr, **{**LOO, "schedule": "inverse-sqrt", **options})


RUNS: dict[str, Run] = {
    "grpo": Run(make=grpo(), both=True),
    "ppo": Run(make=lambda policy: PPO(policy, lr=1e-3, epochs=2, **LOO), both=True),
    "normalised reinforce": Run(make=lambda policy: Reinforce(policy, lr=0.5, normalised=True, schedule="inverse-sqrt", **LOO)),
    "n-pg-igt": Run(make=igt(0.5, reach=4.0), both=True),
    "n-pg-igt, falling steps": Run(make=igt(1.0, schedule="inverse", reach=1.0), both=True),
    "n-pg-igt, at the iterate": Run(make=igt(0.5, reach=0.0)),
    "n-pg-igt late, reach 4": Run(make=igt(0.5, reach=4.0), start=LATE, updates=4),
    "n-pg-igt late, unbounded": Run(make=igt(0.5), start=LATE, updates=4),
    "three": Run(make=grpo(), keywords=THREE, updates=16),
    "three, slower": Run(make=grpo(4e-4, 0.05), keywords=THREE, updates=16),
    "three, 8 prompts": Run(make=grpo(), keywords=THREE, updates=16, prompts=8, group=4),
    "three, temperature 1.3": Run(make=grpo(), keywords=THREE, updates=16, temperature=1.3),
    "three, entropy": Run(make=grpo(), keywords=THREE, updates=16, entropy=0.005),
    "three, rare words": Run(make=grpo(), keywords=THREE, updates=16, rare=True),
}  # fmt: skip


@dataclass(slots=True)
class Training:
    """One run under way."""

    run: Run
    policy: TrainablePolicy
    seconds: float = 0.0
    drawing: float = 0.0
    draws: int = 0
    weights: list[float] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)

    def draw(self, groups_of_equals: bool) -> Any:
        """A batch for the estimator; the prompts go round in an order of the seed."""
        run = self.run
        generator = torch.Generator().manual_seed(SEED * 1000 + self.draws * run.prompts // len(TRAINING))
        order = torch.randperm(len(TRAINING), generator=generator).tolist()
        first = self.draws * run.prompts % len(TRAINING)
        chosen = [prompt(TRAINING[i]) for i in order[first : first + run.prompts]]
        self.draws += 1
        start = time.process_time()
        said = self.policy.sample(
            chosen, run.group, max_tokens=TOKENS, temperature=run.temperature, seed=SEED + self.draws
        )
        self.drawing += time.process_time() - start
        found = [held(text, run.keywords) for text in said.texts]
        plain = [sum(row) / len(row) for row in found]
        weights = self.weights or [1 / len(run.keywords)] * len(run.keywords)
        rewards = [sum(w for w, has in zip(weights, row, strict=True) if has) for row in found]
        if run.rare:
            missing = [1.05 - sum(row[i] for row in found) / len(found) for i in range(len(run.keywords))]
            self.weights = [each / sum(missing) for each in missing]
        if run.entropy:
            rewards = [r - run.entropy * sum(row) for r, row in zip(rewards, said.log_probs, strict=True)]
        equal = all_equal(torch.tensor(rewards), torch.tensor(said.prompt)).tolist()
        self.seen = {
            "reward": sum(plain) / len(plain), "all": sum(map(all, found)) / len(found),
            "distinct": distinct_share(said.texts), "silent": sum(equal) / len(equal),
        }  # fmt: skip
        kept = [i for i, same in enumerate(equal) if not same or groups_of_equals]
        if not kept:
            return None
        return self.policy.batch(said.rows(kept), [rewards[i] for i in kept])

    def update(self, estimator: Estimator) -> dict[str, Any]:
        """One update, and what it was made of."""
        start = time.process_time()

        class Silent(Exception):  # noqa: N818
            """Nothing was said that is better than the rest."""

        def draw() -> Any:
            batch = self.draw(groups_of_equals=False)
            if batch is None:
                raise Silent
            return batch

        row: dict[str, Any] = {}
        try:
            sample = estimator.sample(draw)
            batch = sample.batch
            row["k1"] = divergence(batch)
            row["k3"] = float((k3(batch.log_probs, batch.reference) * batch.mask).sum() / batch.mask.sum())
            row["norm"] = estimator.update(sample).norm
        except Silent:
            pass
        self.seconds += time.process_time() - start
        return {**self.seen, **row, "seconds": self.seconds, "drawing": self.drawing}


def evaluated(policy: TrainablePolicy, tasks: Sequence[str], *choices: Sequence[str]) -> dict[str, Any]:
    """What the policy says to some tasks at temperature 1, and greedily: by each choice of keywords."""
    prompts = [prompt(task) for task in tasks]
    texts = policy.sample(prompts, EVALUATED // len(tasks), max_tokens=TOKENS, seed=12345).texts
    greedy = policy.sample(prompts, max_tokens=TOKENS, temperature=0.0).texts
    told: dict[str, Any] = {
        "distinct": distinct_share(texts), "greedy distinct": distinct_share(greedy), "greedy text": greedy[0],
    }  # fmt: skip
    for keywords in choices:
        found = [held(text, keywords) for text in texts]
        told[" ".join(keywords)] = {
            "reward": sum(sum(row) for row in found) / len(found) / len(keywords), "all": sum(map(all, found)) / len(found),
            "each": {k: sum(row[i] for row in found) / len(found) for i, k in enumerate(keywords)},
            "greedy": sum(sum(held(t, keywords)) for t in greedy) / len(greedy) / len(keywords),
        }  # fmt: skip
    return told


def trained(name: str, updates: int | None, report: Callable[[str, list[dict[str, Any]]], None]) -> dict[str, Any]:
    """A run from its start to its end; its curve so far is reported after each update."""
    run = RUNS[name]
    policy = TrainablePolicy("smollm2", seed=SEED, device="cpu")
    training = Training(run, policy)
    estimator = run.make(policy)
    estimator.updates = run.start
    curve: list[dict[str, Any]] = []
    high = 0
    for _ in range(updates or run.updates):
        curve.append({k: round(v, 4) for k, v in training.update(estimator).items()})
        report(name, curve)
        high = high + 1 if curve[-1]["reward"] >= 0.95 else 0
        if high == 2 or (len(curve) > 2 and all(row["silent"] == 1 for row in curve[-3:])):
            break
    reached = next((row for row in curve if row["reward"] >= 0.9), None)
    told: dict[str, Any] = {
        "updates": len(curve), "samples": len(curve) * run.prompts * run.group, "seconds": curve[-1]["seconds"],
        "seconds until 0.9": None if reached is None else reached["seconds"],
        "updates until 0.9": None if reached is None else curve.index(reached) + 1,
        "share drawing": round(training.drawing / training.seconds, 3),
    }  # fmt: skip
    if not updates:
        if run.both:
            told["training"] = evaluated(policy, TRAINING, run.keywords)
        told["held out"] = evaluated(policy, HELD_OUT, run.keywords)
    return {**told, "curve": curve}


def base() -> dict[str, Any]:
    """The same before any training."""
    policy = TrainablePolicy("smollm2", seed=SEED, device="cpu")
    return {"training": evaluated(policy, TRAINING, TWO, THREE), "held out": evaluated(policy, HELD_OUT, TWO, THREE)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--quick", action="store_true", help="two updates of two runs, nothing written")
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "trace_opt-keywords.json",
                        help="what has been run so far")  # fmt: skip
    args = parser.parse_args()
    torch.set_num_threads(1)

    def told(name: str, curve: list[dict[str, Any]]) -> None:
        print(name, len(curve), curve[-1], flush=True)

    if args.quick:
        for name in ("grpo", "n-pg-igt"):
            trained(name, 2, told)
        return
    known: dict[str, Any] = json.loads(args.state.read_text()) if args.state.exists() else {}

    def kept(name: str, make: Callable[[], dict[str, Any]]) -> None:
        if name not in known or "unfinished" in known[name]:
            known[name] = make()
            args.state.write_text(json.dumps(known))
        harness.save("keywords", {name: known[name] for name in ("base", *RUNS) if name in known}, seeds=[SEED])

    def going(name: str, curve: list[dict[str, Any]]) -> None:
        told(name, curve)
        known[name] = {"unfinished": f"after {len(curve)} updates", "seconds": curve[-1]["seconds"], "curve": curve}
        args.state.write_text(json.dumps(known))

    kept("base", base)
    for name in args.runs:
        kept(name, lambda name=name: trained(name, None, going))


if __name__ == "__main__":
    main()
