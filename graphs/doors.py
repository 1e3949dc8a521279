"""Doors: one room after the other, the first wrong door ends an attempt, and what hindsight is worth is known exactly.

A task is a hidden sequence of doors, one of several colours in each room; the return of an attempt is the share of rooms
passed. The actor believes what it is told ("room 2: red", "room 2: not blue") and picks among the doors left by chance, so
how soon it gets through depends on the reflections alone. The best reflection says of every door tried whether it was the
right one; what a policy has to learn is to say `right` of a door that opened and `not` of one that was locked.

    trace-opt run graphs/doors.py
    trace-opt run graphs/doors.py --set policy=tiny --set rooms=3

With the best reflections an attempt fails U_i times in room i, U_i uniform on 0 .. colours - 1, so all is passed within n
attempts with the probability that these sum to less than n; without memory with 1 - (1 - colours^-rooms)^n.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal

import torch  # noqa: TID253 # its policies are torch modules
from torch import Tensor, nn  # noqa: TID253

from trace_opt import Budget, Feedback, Parameter, rollout, trace
from trace_opt.core.adapter import Adapter
from trace_opt.problem import Problem
from trace_opt.refine.batch import Batch
from trace_opt.refine.episodes import Episodes
from trace_opt.refine.local import Completions, Prompt
from trace_opt.refine.reflecting import seed_of

if TYPE_CHECKING:
    from trace_opt.core.graph import Graph
    from trace_opt.llm.base import Message

COLOURS = ("red", "blue", "green", "white", "black")
INSTRUCTION = "An agent looks for the right door of each room. Say of every door that it tried what is known of it now."

_ADVICE = re.compile(r"room (\d+): (not )?(\w+)")
_TRIED = re.compile(r"room (\d+): (\w+) (opens|is locked)")


# -- exact values ------------------------------------------------------------------------------------------------------


def success(rooms: int, colours: int, attempts: int) -> float:
    """The probability that all rooms are passed within some attempts, with the best reflections."""
    failures = [1.0]
    for _ in range(rooms):
        spread = [0.0] * (len(failures) + colours - 1)
        for (before, p), more in itertools.product(enumerate(failures), range(colours)):
            spread[before + more] += p / colours
        failures = spread
    return sum(failures[:attempts])


def success_without(rooms: int, colours: int, attempts: int) -> float:
    """The same of an actor that is told nothing."""
    return 1 - (1 - colours**-rooms) ** attempts


def success_of(
    doors: Sequence[str], colours: int, reflect: Callable[[str], str | Mapping[str, float]], attempts: int
) -> float:
    """The same of any reflector, on one task, by going through all that can happen.

    Args:
        doors: The right doors.
        colours: How many there are to choose from.
        reflect: Gives the reflection on an attempt from what it did, or how likely each is.
        attempts: How many there are at most; all reflections are remembered.
    """
    total = 0.0
    states = {"": 1.0}
    reflect = functools.cache(reflect)
    for _ in range(attempts):
        later: dict[str, float] = {}
        for advice, p in states.items():
            for lines, chance in _courses(doors, colours, advice):
                if len(lines) == len(doors) and lines[-1].endswith("opens"):
                    total += p * chance
                    continue
                said = reflect("\n".join(lines))
                for text, likely in ({said: 1.0} if isinstance(said, str) else said).items():
                    known = _known(f"{advice}\n{text}", len(doors))
                    later[known] = later.get(known, 0.0) + p * chance * likely
        states = later
    return total


def _known(advice: str, rooms: int) -> str:
    """The same advice in one form, so that what comes to the same is one state."""
    lines: list[str] = []
    for room in range(1, rooms + 1):
        right, wrong = _told(room, advice)
        lines += [_line(room, f"not {door}") for door in sorted(wrong)]
        lines += [] if right is None else [_line(room, right)]
    return "\n".join(lines)


def _courses(doors: Sequence[str], colours: int, advice: str) -> Iterator[tuple[list[str], float]]:
    """Every course that an attempt can take, with its probability."""
    lines: list[str] = []
    p = 1.0
    for room, right in enumerate(doors, 1):
        left = options(room, advice, colours)
        for door in left:
            if door != right:
                yield [*lines, _line(room, f"{door} is locked")], p / len(left)
        if right not in left:
            return
        p /= len(left)
        lines.append(_line(room, f"{right} opens"))
    yield lines, p


# -- the actor -----------------------------------------------------------------------------------------------------------


def options(room: int, advice: str, colours: int) -> list[str]:
    """The doors that the actor chooses among: the one it was last told to take, else those it was not told to leave."""
    right, wrong = _told(room, advice)
    doors = COLOURS[:colours]
    if right in doors:
        return [right]
    return [door for door in doors if door not in wrong] or list(doors)


def _told(room: int, advice: str) -> tuple[str | None, set[str]]:
    """The door to take, if any, and those to leave."""
    right: str | None = None
    wrong: set[str] = set()
    for number, negated, door in _ADVICE.findall(advice):
        if int(number) == room and negated:
            wrong.add(door)
            right = None if right == door else right
        elif int(number) == room:
            right = door
    return right, wrong


@trace
def choose(room: int, reflection: str, colours: int) -> str:
    """The door that the actor takes in a room."""
    return rollout().rng.choice(options(room, reflection, colours))


class House:
    """The rooms, by the right door of each."""

    def __init__(self, doors: Sequence[str]) -> None:
        self.doors = doors

    @trace
    def enter(self, room: int, door: str) -> str:
        """Try a door: "opens" or "is locked"."""
        return "opens" if self.doors[room - 1] == door else "is locked"


@trace
def told(doors: list[str], outcomes: list[str]) -> list[str]:
    """An attempt in words, a line for each room."""
    return [_line(i, f"{door} {said}") for i, (door, said) in enumerate(zip(doors, outcomes, strict=True), 1)]


def _line(room: int | str, said: str) -> str:
    return f"room {room}: {said}"


def attempt(task: dict[str, Any], reflection: str) -> list[str]:
    """Go from room to room until a door is locked."""
    house = House(task["doors"])
    doors: list[str] = []
    outcomes: list[str] = []
    for room in range(1, len(task["doors"]) + 1):
        doors.append(choose(room, reflection, task["colours"]))
        outcomes.append(house.enter(room, doors[-1]))
        if outcomes[-1] != "opens":
            break
    return told(doors, outcomes)


def returned(output: list[str], task: dict[str, Any]) -> Feedback:
    """The share of rooms passed."""
    passed = sum(line.endswith("opens") for line in output)
    return Feedback(score=passed / len(task["doors"]), text=f"passed {passed} of {len(task['doors'])} rooms")


def tasks(rooms: int, colours: int, *, copies: int = 1, first: int = 0) -> list[dict[str, Any]]:
    """Every sequence of doors.

    Args:
        rooms, colours: The size of a task.
        copies: How often each, told apart by their numbers.
        first: The number of the first copy.
    """
    every = itertools.product(itertools.product(COLOURS[:colours], repeat=rooms), range(first, first + copies))
    return [{"doors": list(doors), "colours": colours, "number": number} for doors, number in every]


# -- reflectors ----------------------------------------------------------------------------------------------------------


def prompt(
    task: Any, graph: Graph, output: list[str] | None, feedback: Feedback, memory: tuple[str, ...]
) -> list[Message]:
    """What a reflector is shown: the attempt in words."""
    del task, graph, feedback, memory
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": "\n".join(output or ())}]


def best(shown: str | Sequence[Message]) -> str:
    """The best reflection: of every door tried whether it was the right one."""
    tried = _TRIED.findall(_text(shown))
    return "\n".join(_line(room, door if said == "opens" else f"not {door}") for room, door, said in tried)


def _text(shown: Prompt) -> str:
    return shown if isinstance(shown, str) else str(shown[-1]["content"])


SAYINGS = ("right", "not", "silent")


class Reflector(nn.Module):
    """A policy that says one of `SAYINGS` of every door tried; it knows the door's colour and whether it opened.

    Args:
        colours: How many doors there are to choose from.
        kind: "table" has logits for each colour and outcome, "tiny" makes them by a network of one hidden layer.
        seed: Of the network's initial weights.

    Attributes:
        adapter: The parameter that its weights are the value of.
        lock: Held while weights are used.
    """

    def __init__(self, colours: int, kind: Literal["table", "tiny"] = "table", seed: int = 0) -> None:
        super().__init__()
        self.colours = colours
        size = 2 * colours
        if kind == "table":
            self.net: nn.Module = nn.Linear(size, len(SAYINGS), bias=False)
            nn.init.zeros_(self.net.weight)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self.net = nn.Sequential(nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, len(SAYINGS)))
        self.initial = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.adapter: Parameter[Adapter] = Parameter(Adapter(), name="advice", description="weights of the reflector")
        self.lock = RLock()

    def sample(
        self, prompts: Sequence[Prompt], n: int = 1, *, max_tokens: int = 48, temperature: float = 1.0, seed: int = 0
    ) -> Completions:
        """See `LocalPolicy.sample`; a token is a saying."""
        rows: list[int] = []
        texts: list[str] = []
        tokens: list[tuple[int, ...]] = []
        log_probs: list[tuple[float, ...]] = []
        for index, shown in enumerate(prompts):
            tried = _TRIED.findall(_text(shown))[:max_tokens]
            with torch.no_grad():
                logits = self._logits(torch.tensor([self._state(door, said) for _, door, said in tried]).long())
            told = logits.log_softmax(-1)
            for row in range(n):
                if temperature == 0 or not tried:
                    drawn = logits.argmax(-1)
                else:
                    generator = torch.Generator().manual_seed(seed_of(seed, row, _text(shown)))
                    drawn = (logits / temperature).softmax(-1).multinomial(1, generator=generator)[:, 0]
                rows.append(index)
                tokens.append(tuple(drawn.tolist()))
                log_probs.append(tuple(told.gather(1, drawn[:, None])[:, 0].tolist()))
                texts.append(_advice(tried, tokens[-1]))
        return Completions(tuple(prompts), tuple(rows), tuple(texts), tuple(tokens), tuple(log_probs), temperature)

    def written(self, pairs: Sequence[tuple[Prompt, str]]) -> Completions:
        """See `LocalPolicy.written`; of a door that a text does not name it is silent."""
        tokens: list[tuple[int, ...]] = []
        for shown, text in pairs:
            lines = text.splitlines()
            said = [
                0 if _line(room, door) in lines else 1 if _line(room, f"not {door}") in lines else 2
                for room, door, _ in _TRIED.findall(_text(shown))
            ]
            tokens.append(tuple(said))
        rows = tuple(range(len(pairs)))
        texts = tuple(text for _, text in pairs)
        return Completions(tuple(shown for shown, _ in pairs), rows, texts, tuple(tokens), tuple(() for _ in pairs))

    def batch(self, completions: Completions, returns: Sequence[float]) -> Batch:
        """See `LocalPolicy.batch`."""
        longest = max(map(len, completions.tokens))
        states = torch.zeros(len(completions), longest, dtype=torch.long)
        tokens, mask = states.clone(), states.bool()
        for i, said in enumerate(completions.tokens):
            tried = _TRIED.findall(_text(completions.prompts[completions.prompt[i]]))
            states[i, : len(said)] = torch.tensor([self._state(door, how) for _, door, how in tried[: len(said)]])
            tokens[i, : len(said)] = torch.tensor(said)
            mask[i, : len(said)] = True
        made = Batch(
            actions={"tokens": tokens, "states": states}, rewards=torch.zeros(tokens.shape), mask=mask,
            groups=torch.tensor(completions.prompt), prompts=completions.prompts,
        ).earning(torch.tensor(returns, dtype=torch.float32))  # fmt: skip
        if not all(completions.log_probs):
            return made
        with torch.no_grad():
            return replace(made, log_probs=self.log_prob(made), reference=self.reference(made))

    def log_prob(self, batch: Batch) -> Tensor:
        """Log probability of each saying."""
        told = self._logits(batch.actions["states"]).log_softmax(-1)
        return told.gather(2, batch.actions["tokens"][..., None])[..., 0]

    def reference(self, batch: Batch) -> Tensor:
        """The same under the initial weights."""
        with torch.no_grad():
            inputs = self._inputs(batch.actions["states"])
            told = torch.func.functional_call(self.net, self.initial, (inputs,)).log_softmax(-1)
        return told.gather(2, batch.actions["tokens"][..., None])[..., 0]

    def load(self, adapter: Adapter) -> None:
        """Take an adapter's weights; those of the empty one are the initial ones."""
        with self.lock:
            self.net.load_state_dict(adapter.tensors() if adapter else self.initial)

    def dump(self) -> Adapter:
        """The weights as they stand."""
        with self.lock:
            return Adapter.of(self.net.state_dict())

    def reflections(self, shown: str) -> dict[str, float]:
        """How likely each reflection on an attempt is, exactly."""
        tried = _TRIED.findall(shown)
        with torch.no_grad():
            said = self._logits(torch.tensor([self._state(door, how) for _, door, how in tried])).softmax(-1).tolist()
        found: dict[str, float] = {}
        for tokens in itertools.product(range(len(SAYINGS)), repeat=len(tried)):
            text = _advice(tried, tokens)
            found[text] = found.get(text, 0.0) + math.prod(row[token] for row, token in zip(said, tokens, strict=True))
        return found

    def _state(self, door: str, said: str) -> int:
        return 2 * COLOURS.index(door) + (said != "opens")

    def _inputs(self, states: Tensor) -> Tensor:
        return nn.functional.one_hot(states, 2 * self.colours).float()

    def _logits(self, states: Tensor) -> Tensor:
        return self.net(self._inputs(states))


def _advice(tried: Sequence[tuple[str, str, str]], tokens: Sequence[int]) -> str:
    lines = [
        _line(room, f"{'not ' if SAYINGS[token] == 'not' else ''}{door}")
        for (room, door, _), token in zip(tried, tokens, strict=True)
        if SAYINGS[token] != "silent"
    ]
    return "\n".join(lines)


def episodes(reflector: Any, *, attempts: int = 4, **options: Any) -> Episodes:
    """Attempts at doors with a reflector; all reflections are remembered."""
    given: dict[str, Any] = {"memory": None, "render": prompt, **options}
    return Episodes(attempt, reflector, guide=returned, attempts=attempts, **given)


def problem(
    *, policy: Literal["table", "tiny"] = "table", rooms: int = 2, colours: int = 3, attempts: int = 4,
    estimator: str = "grpo", updates: int = 60, lr: float = 0.3,
) -> Problem:  # fmt: skip
    """The problem.

    Args:
        policy: "table" or "tiny".
        rooms: How many rooms a task has.
        colours: Doors to choose from in each.
        attempts: Attempts at a task.
        estimator: How the policy learns.
        updates: Updates of the one phase.
        lr: Learning rate.
    """
    from trace_opt.refine.refiner import Refiner

    reflector = Reflector(colours, policy)
    agent = episodes(reflector, attempts=attempts)
    return Problem(
        workflow=agent, train=tasks(rooms, colours), val=tasks(rooms, colours, copies=2, first=1),
        test=tasks(rooms, colours, copies=4, first=10), guide=agent.scored, margins=agent.margins,
        parameters=[reflector.adapter], score_range=(0.0, 1.0), budget=Budget(trials=1),
        optimizers=[Refiner(reflector, estimator, updates=updates, tasks=4, lr=lr, kl=0.0, patience=10)],
        controls=agent.controls(attempt, tasks=tasks(rooms, colours), key=lambda task: task["doors"]),
        description="reflections on doors tried",
    )  # fmt: skip
