"""What a policy step costs on a CPU: 8 completions of 32 tokens after a prompt of 256, SmolLM2 with LoRA, one thread.

A step samples, scores under the present and the frozen weights, and makes one GRPO update (forward, backward, AdamW).
The variants differ in one thing each from the one before or beside them: prompts read once for each row or once for all,
eager or fused attention, float32 or bfloat16, adapters in all 30 blocks or in the last 8. Least CPU seconds of the rounds,
in which the variants take turns.

    python benchmarks/policy_step.py [--quick] [--rounds N]
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness import save
from trace_opt.refine import sampling
from trace_opt.refine.batch import Batch
from trace_opt.refine.estimators.base import Sample
from trace_opt.refine.estimators.grpo import GRPO
from trace_opt.refine.policy import TrainablePolicy


@dataclass(frozen=True)
class Variant:
    shared: bool = True
    dtype: Any = "float32"
    attention: Any = "eager"
    layers: tuple[int, ...] | None = None


VARIANTS = {
    "before: each row reads its prompt, float32, eager": Variant(shared=False),
    "prompt read once, float32, eager": Variant(),
    "prompt read once, float32, fused attention": Variant(attention="sdpa"),
    "each row reads its prompt, bfloat16, eager": Variant(shared=False, dtype="bfloat16"),
    "prompt read once, bfloat16, eager": Variant(dtype="bfloat16"),
    "prompt read once, bfloat16, fused attention": Variant(dtype="bfloat16", attention="sdpa"),
    "prompt read once, float32, eager, last 8 blocks": Variant(layers=tuple(range(-8, 0))),
}
QUICK = list(VARIANTS)[:2]


class Unshared(TrainablePolicy):
    """Reads a prompt again for each of its rows."""

    def log_prob(self, batch: Batch) -> Any:
        tokens, temperature = batch.actions["tokens"], batch.actions["temperature"]
        return sampling.score(self.model, batch.prompts, batch.groups, tokens, batch.mask, temperature, shared=False)


def step(policy: TrainablePolicy, *, shared: bool, rows: int, prompt: int, new: int) -> dict[str, float]:
    """CPU seconds of each part of one step."""
    seconds: dict[str, float] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = time.process_time()
        found = run()
        seconds[name] = time.process_time() - start
        return found

    chance = random.Random(0)
    ids = [chance.randrange(1000, 40_000) for _ in range(prompt)]
    asked, index = ([ids], [0] * rows) if shared else ([ids] * rows, list(range(rows)))
    drawn = timed("sample", lambda: sampling.draw(
        policy.model, asked, index, list(range(rows)), max_tokens=new, temperature=1.0, ends=(),
    ))  # fmt: skip
    batch = Batch(
        actions={"tokens": torch.tensor(drawn.tokens), "temperature": torch.ones(rows)},
        rewards=torch.zeros(rows, new), mask=torch.ones(rows, new, dtype=torch.bool), groups=torch.zeros(rows).long(),
        prompts=(tuple(ids),),
    ).earning(torch.arange(float(rows)))  # fmt: skip
    with torch.no_grad():
        said = timed("old log probabilities", lambda: policy.log_prob(batch))
    reference = timed("reference", lambda: policy.reference(batch))
    batch = Batch(
        actions=batch.actions, rewards=batch.rewards, mask=batch.mask, groups=batch.groups, prompts=batch.prompts,
        log_probs=said, reference=reference,
    )  # fmt: skip
    estimator = GRPO(policy, lr=1e-4, kl=0.02)
    timed("update", lambda: estimator.update(Sample(batch)))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two variants, 4 x (64 + 8) tokens, one round")
    parser.add_argument("--rounds", type=int, default=2, help="times that every variant is run")
    options = parser.parse_args()
    quick = options.quick
    rows, prompt, new, rounds = (4, 64, 8, 1) if quick else (8, 256, 32, options.rounds)
    torch.set_num_threads(1)
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name in QUICK if quick else VARIANTS:
            variant = VARIANTS[name]
            policy = (TrainablePolicy if variant.shared else Unshared)(
                dtype=variant.dtype, attention=variant.attention, layers=variant.layers, device="cpu"
            )
            step(policy, shared=variant.shared, rows=2, prompt=8, new=2)  # what is made at the first call
            found = step(policy, shared=variant.shared, rows=rows, prompt=prompt, new=new)
            old = best.get(name, {})
            best[name] = {part: min(seconds, old.get(part, math.inf)) for part, seconds in found.items()}
            print(name, {part: round(seconds, 2) for part, seconds in best[name].items()}, flush=True)
    before = sum(best[QUICK[0]].values())
    figures = {
        name: {
            **{part: round(seconds, 2) for part, seconds in parts.items()},
            "step": round(sum(parts.values()), 2),
            "share of generation": round(parts["sample"] / sum(parts.values()), 2),
            "times less than before": round(before / sum(parts.values()), 2),
        }
        for name, parts in best.items()
    }
    save(
        "policy_step_quick" if quick else "policy_step",
        {"tokens": f"{rows} x ({prompt} + {new})", "threads": 1, "rounds": rounds, "CPU seconds": figures}, seeds=[0],
    )  # fmt: skip


if __name__ == "__main__":
    main()
