"""Which examples are learned from, chosen by, and judged by; and the number, key and seed of each.

What is judged by is touched once, at the end. Equal examples always stand on one side.
"""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

from trace_opt.core.codec import canonical
from trace_opt.core.tensors import generator_of
from trace_opt.errors import ProblemError

_FIRST = 8  # batches of a DataLoader that stand for the training examples where some are needed

FEWEST = 20
"""With fewer examples nothing is split off: the parts would say nothing."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True, slots=True)
class Data:
    """The examples of a run, numbered: training, validation, test.

    Attributes:
        examples: All of them; validation examples that are the training ones stand there once.
        keys: A hash of each one's content, the same in every process.
        train, val, test: Numbers.
        notes: What a reader of the report must know about them.
        loader: The DataLoader that training batches are drawn from; `train` holds the first few of them. Or None.
    """

    examples: tuple[Any, ...]
    keys: tuple[str, ...]
    train: range
    val: range
    test: range
    notes: tuple[str, ...] = ()
    loader: Any = None

    def epoch(self, seed: int, number: int) -> Iterable[Any]:
        """All training examples once, in an order that seed and number decide; of a DataLoader its batches."""
        if self.loader is not None:
            return batches(self.loader, f"{seed}/{number}")
        return [self.examples[self.train[n]] for n in _epoch(len(self.train), seed, "phase", number)]

    @property
    def batches(self) -> int | None:
        """How many batches an epoch of the DataLoader has; None without one."""
        return None if self.loader is None else len(self.loader)

    @property
    def shared(self) -> bool:
        """Whether candidates are chosen by the training examples."""
        return self.val == self.train

    def name(self, number: int) -> str:
        """What a message calls an example: "train example 3", counted from 0."""
        if number in self.train:
            return f"train example {number}"
        if number in self.val:
            return f"val example {number - self.val.start}"
        return f"test example {number - self.test.start}"

    def order(self, seed: int) -> tuple[int, ...]:
        """The validation examples in the one order in which every candidate meets them."""
        numbers = list(self.val)
        random.Random(f"order/{seed}").shuffle(numbers)  # noqa: S311 # an order, not a secret
        return tuple(numbers)

    def minibatch(self, seed: int, step: int, slot: int, size: int) -> tuple[int, ...]:
        """Training examples for one proposal: passes through all of them, each in an order of its own.

        Args:
            seed: The run's seed.
            step: Which step, from 0; each takes the next `size` examples.
            slot: Which of the step's proposals; each has passes of its own.
            size: How many, or all where there are fewer.
        """
        count = len(self.train)
        size = min(size, count)
        numbers: list[int] = []
        position = step * size
        while len(numbers) < size:
            epoch, place = divmod(position, count)
            order = _epoch(count, seed, slot, epoch)
            numbers.extend(n for n in order[place : place + size - len(numbers)] if n not in numbers)
            position = (epoch + 1) * count
        return tuple(self.train[n] for n in numbers)


@lru_cache(maxsize=64)
def _epoch(count: int, seed: int, slot: int | str, epoch: int) -> tuple[int, ...]:
    numbers = list(range(count))
    random.Random(f"epoch/{seed}/{slot}/{epoch}").shuffle(numbers)  # noqa: S311 # an order, not a secret
    return tuple(numbers)


def split(train: Sequence[Any], val: Sequence[Any] | None, test: Sequence[Any] | None, seed: int) -> Data:
    """Lay out the examples of a run.

    Args:
        train: At least one example. Where val and test are left out they are split off it, 60/20/20.
        val, test: As given, or None.
        seed: Decides the split.

    Raises:
        ProblemError: a part is empty or is no sequence.
    """
    loader = train if is_loader(train) else None
    parts = {"train": _listed("train", train if loader is None else islice(batches(loader, f"{seed}/0"), _FIRST))}
    if loader is not None and val is None:
        val = parts["train"]
    given = {name: _listed(name, part) for name, part in (("val", val), ("test", test)) if part is not None}
    notes: list[str] = []
    if not given or (val is None and len(parts["train"]) >= FEWEST):
        if len(parts["train"]) >= FEWEST:
            wanted = {"val": 0.2, "test": 0.2} if not given else {"val": 0.25}
            parts = _divided(parts["train"], wanted, seed)
        else:
            notes.append(f"only {len(parts['train'])} examples: candidates are chosen by the training examples")
    elif val is None:
        notes.append(f"only {len(parts['train'])} training examples: candidates are chosen by them too")
    parts |= given
    shared = "val" not in parts or _same(parts["val"], parts["train"])
    rows = [*parts["train"], *([] if shared else parts["val"]), *parts.get("test", ())]
    t, v = len(parts["train"]), 0 if shared else len(parts["val"])
    val_numbers = range(t) if shared else range(t, t + v)
    data = Data(
        tuple(rows), tuple(_contents(rows)), range(t), val_numbers, range(t + v, len(rows)), loader=loader
    )  # fmt: skip
    if not data.test:
        notes.append("there is no test set, so nothing is claimed")
    known = {data.keys[n] for n in (*data.train, *data.val)}
    leaked = sum(data.keys[n] in known for n in data.test)
    if leaked:
        notes.append(
            f"{leaked} of {len(data.test)} test examples stand in train or val as well, which flatters the result"
        )
    return replace(data, notes=tuple(notes))


def is_loader(train: Any) -> bool:
    """Whether examples come from a torch DataLoader."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(train, torch.utils.data.DataLoader)


def batches(loader: Any, seed: str) -> Iterator[Any]:
    """The batches of one epoch of a DataLoader, in an order that the seed decides."""
    generator = generator_of(seed)
    holders = [h for h in (loader, loader.sampler, loader.batch_sampler) if hasattr(h, "generator")]
    before = [holder.generator for holder in holders]
    for holder in holders:
        holder.generator = generator
    try:
        drawn: Iterator[Any] = iter(loader)
        first: list[Any] = list(islice(drawn, 1))  # the order is drawn with the first batch
    finally:
        for holder, own in zip(holders, before, strict=True):
            holder.generator = own
    yield from first
    yield from drawn


def _listed(name: str, part: Any) -> list[Any]:
    if isinstance(part, (str, bytes, dict)) or not hasattr(part, "__iter__"):
        raise ProblemError(f"{name} is {part!r:.60}; give a list of examples")
    found = list(part)
    if not found:
        need = "optimize needs at least one example to propose from" if name == "train" else "leave it out, or fill it"
        raise ProblemError(f"{name} is empty; {need}")
    return found


def _same(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))


def _divided(examples: list[Any], wanted: dict[str, float], seed: int) -> dict[str, list[Any]]:
    """Parts of about these shares, equal examples in one part; the rest is train."""
    groups: dict[str, list[Any]] = {}
    for example, key in zip(examples, _contents(examples), strict=True):
        groups.setdefault(key, []).append(example)
    order = list(groups.values())
    random.Random(f"split/{seed}").shuffle(order)  # noqa: S311 # a split, not a secret
    parts: dict[str, list[Any]] = {}
    for name, share in wanted.items():
        part: list[Any] = []
        while order and len(part) + len(order[-1]) / 2 <= share * len(examples):
            part.extend(order.pop())
        parts[name] = part
    parts["train"] = [example for group in order for example in group]
    return {name: part for name, part in parts.items() if part}


def _contents(examples: Sequence[Any]) -> list[str]:
    """A hash of each example's content; what holds memory addresses has none, so such examples count as distinct."""
    found: list[str] = []
    for number, example in enumerate(examples):
        text = canonical(example)
        if _ADDRESS.search(text):
            text = f"{number}/{_ADDRESS.sub('', text)}"
        found.append(hashlib.sha256(text.encode()).hexdigest())
    return found


def rollout_seed(seed: int, key: str, repeat: int = 0) -> int:
    """A rollout's seed: the same for every candidate, so that candidates are paired in chance."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}/{repeat}".encode()).digest()[:4], "big") >> 1
