"""A policy trained by TRL's GRPOTrainer, for clusters of GPUs: the same prompts, the same rewards, the same adapter.

    prompts, reward = hindsight(episodes, tasks)
    trainer = grpo_trainer(policy, prompts, reward, output="refined")
    trainer.train()
    policy.adapter.value = adapter_of(trainer)

On one machine `Refiner` is shorter and exact. TRL shares prompts and rewards among processes and generates with vLLM; what
it has no place for here are `PolicyGuards`, and tasks that change while the policy learns: prompts are fixed before it starts.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.adapter import Adapter
from trace_opt.core.context import in_force
from trace_opt.core.wrapper import is_async
from trace_opt.errors import ProblemError
from trace_opt.refine.earning import numbers_in
from trace_opt.refine.episodes import Episodes
from trace_opt.refine.loading import PROJECTIONS, load_base
from trace_opt.refine.local import Completions, Prompt, kept, messages_of, with_system
from trace_opt.refine.rating import gains_of
from trace_opt.refine.reflecting import driven, seed_of
from trace_opt.refine.trying import Trying

if TYPE_CHECKING:
    from trace_opt.refine.policy import TrainablePolicy

Rewards = Sequence[float]
Reward = Callable[[Completions], Rewards | Awaitable[Rewards]]
"""What completions earn, one number each; sync or async. The same that `Refiner(reward=...)` takes, where it is sync."""


def grpo_trainer(
    policy: TrainablePolicy, prompts: Sequence[Prompt], reward: Reward, *, output: str | Path, group: int = 8,
    tasks: int = 2, updates: int = 24, lr: float = 1e-3, kl: float = 0.02, **options: Any,
) -> Any:  # fmt: skip
    """A `trl.GRPOTrainer` that starts from a policy's weights as they stand and is held to its model without an adapter.

    The policy is not changed. Settings whose defaults in TRL would train something else than `Refiner` does are given:
    the price of divergence, one loss a completion, floats as the policy's, no decay and no warm-up.

    Args:
        policy: Which model, and its adapter.
        prompts: What is answered, a text or messages each.
        reward: What completions earn.
        output: Folder for TRL's checkpoints.
        group: Completions of each prompt.
        tasks: Prompts of an update, in each process.
        updates: How many there are.
        lr: Learning rate of AdamW.
        kl: Price of a nat of divergence from the model without the adapter.
        **options: Fields of `trl.GRPOConfig`, which win over these: `use_vllm=True`, `max_completion_length=64`, ...

    Raises:
        ProblemError: TRL is not installed, or an option is none of `GRPOConfig`.
        ValueError: there is no prompt, or one ends with words of the assistant, which TRL does not continue.
    """
    trl = _library()
    import peft
    import torch

    given = settings(policy, output=output, group=group, tasks=tasks, updates=updates, lr=lr, kl=kl) | options
    known = {field.name for field in dataclasses.fields(trl.GRPOConfig)}
    for name in options:
        if name not in known:
            raise ProblemError(f"trl.GRPOConfig has no field {name!r}; look its fields up in TRL's documentation")
    with policy.lock:
        base = load_base(policy._source, dtype=policy.dtype, device=policy.device, attention=policy.attention)
        weights = {name: weight.detach().clone() for name, weight in policy.lora.weights.items()}
    lora = peft.LoraConfig(
        r=policy.rank, lora_alpha=policy.alpha, lora_dropout=0.0, target_modules=list(PROJECTIONS),  # pyright: ignore[reportArgumentType] # a float is as good
        layers_to_transform=_layers(weights), task_type="CAUSAL_LM",
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=base.model, reward_funcs=reward_function(prompts, reward), args=trl.GRPOConfig(**given),
        train_dataset=_library("datasets").Dataset.from_list(rows(prompts, raw=policy.raw, system=policy.system)),
        processing_class=base.tokenizer, peft_config=lora,
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in _weights(trainer).items():
            weight.copy_(weights[name])
    return trainer


def adapter_of(trainer: Any) -> Adapter:
    """What a trainer of `grpo_trainer` learned, as the value of the policy's parameter.

    Args:
        trainer: After `train()`, in a process that holds the whole adapter.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    return Adapter.of(_weights(trainer), {"alpha": float(model.peft_config["default"].lora_alpha)})


def settings(
    policy: TrainablePolicy, *, output: str | Path, group: int, tasks: int, updates: int, lr: float, kl: float
) -> dict[str, Any]:
    """The fields of `trl.GRPOConfig` that `grpo_trainer` sets.

    Raises:
        ValueError: a group holds fewer than two completions.
    """
    if group < 2 or tasks < 1 or updates < 1:
        raise ValueError(f"group={group!r}, tasks={tasks!r}, updates={updates!r}; give at least 2, 1 and 1")
    return {
        "output_dir": str(output), "max_steps": updates, "learning_rate": lr, "beta": kl, "num_generations": group,
        "per_device_train_batch_size": group * tasks, "max_completion_length": 48, "temperature": 1.0,
        # as estimators/grpo.py: a group's deviation from its mean over its standard deviation, the mean over a completion
        "loss_type": "grpo", "scale_rewards": "group", "num_iterations": 1, "epsilon": 0.2,
        "optim": "adamw_torch", "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "bf16": policy.dtype == "bfloat16", "fp16": policy.dtype == "float16", "use_cpu": policy.device == "cpu",
        "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True, "seed": policy.seed,
    }  # fmt: skip


def rows(prompts: Sequence[Prompt], *, raw: bool, system: str) -> list[dict[str, Any]]:
    """The prompts as a data set of TRL's: `prompt`, and `index`, which the reward function gets back.

    Args:
        prompts: Texts or messages.
        raw: Whether they are continued as plain text, without a chat template.
        system: The system message of conversations without one.

    Raises:
        ValueError: there is none, or one ends with words of the assistant.
    """
    if not prompts:
        raise ValueError("there is no prompt to train on; give at least one")
    found: list[dict[str, Any]] = []
    for index, prompt in enumerate(prompts):
        messages = messages_of(prompt)
        if raw:
            found.append({"prompt": "".join(message["content"] for message in messages), "index": index})
            continue
        if messages[-1]["role"] == "assistant":
            raise ValueError(
                f"prompt {index} ends with words of the assistant, which TRL does not continue; leave them out"
            )
        found.append({"prompt": with_system(messages, system), "index": index})
    return found


def reward_function(prompts: Sequence[Prompt], reward: Reward) -> Callable[..., Any]:
    """A reward as TRL calls it: with keywords, texts or messages as completions, and every column of the data set.

    Args:
        prompts: Those of `rows`.
        reward: What completions earn; where it is async, so is what is returned.
    """
    told = tuple(prompts)

    def completed(given: Mapping[str, Any]) -> Completions:
        said = [text if isinstance(text, str) else text[-1]["content"] for text in given["completions"]]
        tokens = tuple(tuple(map(int, row)) for row in given["completion_ids"])
        return Completions(told, tuple(map(int, given["index"])), tuple(said), tokens, ((),) * len(said))

    def checked(rewards: Rewards, count: int) -> list[float]:
        found = numbers_in(rewards, count)
        if found is None:
            raise ValueError(f"the reward gave {rewards!r:.80} for {count} completions; give a finite number for each")
        return found

    if is_async(reward):

        async def asked(**given: Any) -> list[float]:
            completions = completed(given)
            return checked(await cast("Awaitable[Rewards]", reward(completions)), len(completions))

        return asked

    def ask(**given: Any) -> list[float]:
        completions = completed(given)
        return checked(cast("Rewards", reward(completions)), len(completions))

    return ask


def hindsight(episodes: Episodes, tasks: Sequence[Any], *, seed: int = 0) -> tuple[list[Prompt], Reward]:
    """What the reflector of episodes is asked after the first attempt at each task, and what its reflections are worth.

    The prompts are those of `Episodes` with the parameters' present values. The reward of a reflection is the change of
    return: the mean over `episodes.pairs` attempts with it, less that without, on the same seeds.

    Args:
        episodes: Their reflector is not asked.
        tasks: Those that are solved at once have no prompt.
        seed: Of the attempts.

    Raises:
        ProblemError: every task is solved at once.
    """
    asked: list[tuple[Prompt, Any]] = []
    for place, task in enumerate(tasks):
        work = _asked(episodes, task, seed_of(seed, "task", place))
        prompt = asyncio.run(work) if episodes.is_async else driven(work)
        if prompt is not None:
            asked.append((prompt, task))
    if not asked:
        raise ProblemError(f"all of the {len(tasks)} tasks are solved at the first attempt; give harder ones")

    async def gains(completions: Completions) -> list[float]:
        found = [0.0] * len(completions)
        for index in sorted(set(completions.prompt)):
            chosen = [row for row, prompt in enumerate(completions.prompt) if prompt == index]
            with in_force(seed=seed):
                trying = Trying(episodes, asked[index][1])
                worth, _ = await gains_of(
                    trying._return, [completions.texts[row].strip() for row in chosen], "", pairs=episodes.pairs,
                    seed=seed_of(seed, "gain", index), together=episodes.is_async,
                )  # fmt: skip
            for row, gain in zip(chosen, worth, strict=True):
                found[row] = gain
        return found

    def sync(completions: Completions) -> list[float]:
        return driven(gains(completions))

    return [prompt for prompt, _ in asked], gains if episodes.is_async else sync


async def _asked(episodes: Episodes, task: Any, seed: int) -> Prompt | None:
    """What the reflector is asked after a first attempt; None where that solved the task."""
    with in_force(seed=seed):
        trying = Trying(episodes, task)
        output = await trying.made(1, [])
        value = trying.feedback.value
        if value is not None and value >= episodes.solved:
            return None
        prompt: Prompt = trying.hindsight(output, [])
    return kept(prompt)


def _weights(trainer: Any) -> dict[str, Any]:
    """The adapter's weights in a trainer's model, by the policy's names."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {
        name.replace(".default.", "."): weight
        for name, weight in model.named_parameters()
        if name.endswith((".lora_A.default.weight", ".lora_B.default.weight"))
    }


def _layers(weights: Mapping[str, Any]) -> list[int]:
    """The blocks that have an adapter."""
    return sorted({int(name.partition(".layers.")[2].partition(".")[0]) for name in weights})


def _library(name: str = "trl") -> Any:
    """TRL, or a library that comes with it.

    Raises:
        ProblemError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ProblemError(
            f"training by TRL needs {error.name!r}, which is not installed; pip install 'trace-opt-framework[trl]'"
        ) from None
