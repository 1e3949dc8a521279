"""Find the coin in a house of a TextWorld game within four attempts; the reflections between them are what is learned.

An attempt walks through a house it was told nothing about: in each room the actor, a frozen language model of 135
million parameters, weighs the commands that the game admits, and one is drawn. After a failed attempt the reflector is
told what was seen and writes a plan, which the next attempt's prompts hold. A model this small follows a plan only if
using it is copying, so a plan consists of sentences whose beginning the actor's prompt repeats:

    Plan: Untried: In the study, take coin. To the study: In the pantry, go west.

    Now: In the pantry,

`hindsight` writes such plans by rule, from nothing but what attempts saw. It is where pairs for a warm start come from,
and what a trained reflector has to compare with.

    trace-opt run agents/textworld_agent.py --set warm=warm.safetensors

Games are coin collectors of TextWorld (M.-A. Côté et al. 2018, arXiv 1806.11532; `pip install textworld`), made offline
from their seeds. Their objective would spell out the whole route, so nobody is shown it.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypedDict
from unittest import mock

from trace_opt import Adapter, Feedback, Graph, Problem, TrainablePolicy, connect, rollout, trace
from trace_opt.errors import ProblemError
from trace_opt.llm.base import LLM
from trace_opt.refine.episodes import Episodes
from trace_opt.refine.guards import PolicyGuards
from trace_opt.refine.refiner import Refiner
from trace_opt.refine.warm_start import Pair, fine_tune

IDLE = ("look", "inventory", "examine")  # commands that lead nowhere, and only make the choice harder
TAKE = "take coin"
BACK = {"go north": "go south", "go south": "go north", "go east": "go west", "go west": "go east"}

_making = Lock()

# -- the game ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class House:
    """A game, taken apart: in a coin collector the room one is in is all that matters.

    Attributes:
        start: The room where attempts start.
        exits: Of each room the commands that the game admits, and the room each leads to; None where it wins.
        route: The shortest way to win, rooms and commands; for oracles and tests only.
    """

    start: str
    exits: Mapping[str, Mapping[str, str | None]]
    route: tuple[tuple[str, str], ...]


@functools.lru_cache(maxsize=4096)
def house(seed: int, level: int) -> House:
    """The house of the coin collector that a seed decides.

    Args:
        seed: Of the game.
        level: 1 to 300: the route has (level - 1) % 100 + 1 commands; above 100 each of its rooms leads to another where
            nothing is, above 200 to two.
    """
    import textworld
    from textworld.challenges import CHALLENGES

    with tempfile.TemporaryDirectory() as folder, _making:
        options = textworld.GameOptions()
        options.seeds = seed
        options.path = str(Path(folder) / "game.json")  # this back end has no text, and needs no compiler
        # the maker would compile the game, for seconds, only to write the walkthrough down
        with mock.patch.object(textworld.GameMaker, "set_walkthrough"):
            game = CHALLENGES["tw-coin_collector"][1]({"level": level}, options)
        game.save(options.path)
        return _explored(textworld.start(options.path, textworld.EnvInfos(admissible_commands=True, facts=True)))


def _explored(env: Any) -> House:
    """Everything that can be done in a game, found by doing it, the nearest rooms first."""
    state = env.reset()
    start = _room(state)
    exits: dict[str, dict[str, str | None]] = {}
    ways: dict[str, tuple[tuple[str, str], ...]] = {start: ()}
    commands = {start: _commands(state)}
    route: tuple[tuple[str, str], ...] = ()
    for room in (rooms := [start]):
        exits[room] = {}
        for command in commands[room]:
            env.reset()
            for _, step in ways[room]:
                env.step(step)
            state, _, won = env.step(command)
            to = exits[room][command] = None if won else _room(state)
            if to is None:
                route = (*ways[room], (room, command))
            elif to not in ways:
                ways[to], commands[to] = (*ways[room], (room, command)), _commands(state)
                rooms.append(to)
    return House(start, exits, route)


def _room(state: Any) -> str:
    return next(fact.arguments[1].name for fact in state.facts if fact.name == "at" and fact.arguments[0].name == "P")


def _commands(state: Any) -> list[str]:
    return [command for command in state.admissible_commands if command.split()[0] not in IDLE]


# -- the actor ---------------------------------------------------------------------------------------------------------


class Walk(TypedDict):
    """One attempt.

    Attributes:
        found: Whether it found the coin.
        moves: Room, command, and the room it led to ("" where the coin was taken), in order.
        options: Of each room that was seen, the commands that the game admits.
    """

    found: bool
    moves: list[tuple[str, str, str]]
    options: dict[str, list[str]]


class Actor:
    """Draws commands by what a language model makes of a plan; frozen.

    Args:
        llm: An embedded model, for it must continue raw text and score given answers; None draws uniformly.
        steps: Commands of an attempt at most.
        level: Of the games.
        times: How often a prompt says the plan. A model this small copies what it has read three times over what it is
            used to: the true route is followed to the coin in .92 of the games after four attempts, said once in .73.
    """

    def __init__(self, llm: LLM | None, *, steps: int = 8, level: int = 104, times: int = 3) -> None:
        self.llm, self.steps, self.level, self.times = llm, steps, level, times
        # attempts with one plan ask the same again and again
        self.log_probs = functools.lru_cache(maxsize=65_536)(self._log_probs)

    def _log_probs(self, plan: str, room: str, commands: tuple[str, ...]) -> tuple[float, ...]:
        """The log probability of each command, all of them together having 1."""
        if self.llm is None or len(commands) == 1:
            return (-math.log(len(commands)),) * len(commands)
        told = f"Plan: {' '.join([plan] * self.times)}\n\nNow: In the {room}," if plan else f"Now: In the {room},"
        heads = {command.partition(" ")[0] for command in commands}
        if len(heads) == 1:  # what all begin with decides nothing, and reading it once costs a third
            head = heads.pop()
            told, commands = f"{told} {head}", tuple(command.removeprefix(f"{head} ") for command in commands)
        return self.llm.reply([{"role": "user", "content": told}], answers=commands, raw=True).logprobs

    def walk(self, seed: int, plan: str, rng: random.Random) -> Walk:
        """One walk through the house of a seed with a plan in mind, which may be empty."""
        place = house(seed, self.level)
        options, moves = dict[str, list[str]](), list[tuple[str, str, str]]()
        room = place.start
        for _ in range(self.steps):
            commands = options.setdefault(room, list(place.exits[room]))
            weights = [math.exp(score) for score in self.log_probs(plan, room, tuple(commands))]
            command = rng.choices(commands, weights)[0]
            to = place.exits[room][command]
            moves.append((room, command, to or ""))
            if to is None:
                return {"found": True, "moves": moves, "options": options}
            room = to
        options.setdefault(room, list(place.exits[room]))
        return {"found": False, "moves": moves, "options": options}

    @trace(name="attempt")
    def attempt(self, game: int, reflection: str) -> Walk:
        """One walk, by the chance of the rollout."""
        return self.walk(game, reflection, rollout().rng)


# -- hindsight ---------------------------------------------------------------------------------------------------------

Map = Mapping[str, Mapping[str, str | None]]


def seen(walks: Sequence[Walk]) -> Map:
    """What walks have shown: of each room, its commands and where they lead; None where nobody has tried.

    A passage leads back, so that nobody needs to try it both ways.
    """
    found: dict[str, dict[str, str | None]] = {}
    for walk in walks:
        for room, commands in walk["options"].items():
            found.setdefault(room, dict.fromkeys(commands))
        for room, command, to in walk["moves"]:
            found[room][command] = to
            if to and (back := BACK[command]) in found[to]:
                found[to][back] = room
    return found


def paths(found: Map, start: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """The shortest ways from a room to all others that were seen, rooms and commands, the nearest first."""
    ways: dict[str, tuple[tuple[str, str], ...]] = {start: ()}
    rooms = [start]
    for room in rooms:
        for command, to in found[room].items():
            if to and to not in ways:
                ways[to] = (*ways[room], (room, command))
                rooms.append(to)
    return ways


def hindsight(walks: Sequence[Walk], *, plain: bool = False) -> str:
    """The plan that follows from what walks have shown.

    It leads to the coin if it was seen, else to the farthest command that nobody has tried, for rooms where nothing is are
    dead ends. It is written from its end, in whole lines of the prompt: then each line begins with the room that the one
    before is about, and is found by that in the prompt, which a small model can learn; the first step of a way can only be
    told by searching it. `plain` leaves all but rooms and commands out.
    """
    found = seen(walks)
    ways = paths(found, walks[0]["moves"][0][0])
    goals = [(room, command) for room in ways for command, to in found[room].items() if to is None]
    if not goals:
        return ""
    goal = next((goal for goal in goals if goal[1] == TAKE), goals[-1])
    steps = (goal, *reversed(ways[goal[0]]))
    return written(steps) if plain else " ".join(_line(found, *step) for step in steps)


def told(walks: Sequence[Walk]) -> str:
    """The reflector's prompt: a map, line by line, nearest rooms first, without ways back."""
    found = seen(walks)
    ways = paths(found, walks[0]["moves"][0][0])
    lines = [
        _line(found, room, command)
        for room in ways
        for command, to in found[room].items()
        if to is None or ways[to][-1:] == ((room, command),)
    ]
    return "\n".join([*lines, "Plan:"])


def _line(found: Map, room: str, command: str) -> str:
    to = found[room][command]
    return f"{'Untried' if to is None else f'To the {to}'}: In the {room}, {command}."


def written(steps: Sequence[tuple[str, str]]) -> str:
    """Steps as the plainest plan."""
    return " ".join(f"In the {room}, {command}." for room, command in steps)


# -- the problem -------------------------------------------------------------------------------------------------------


class Game(TypedDict):
    """One example."""

    game: int


def guide(walk: Walk, example: Game) -> Feedback:  # noqa: ARG001 # the walk says it all
    """1 for the coin."""
    said = f"the coin was {'' if walk['found'] else 'not '}found in {len(walk['moves'])} commands"
    return Feedback(float(walk["found"]), said)


def prompt(task: Game, graph: Graph, output: Walk, feedback: Feedback, memory: tuple[str, ...]) -> str:  # noqa: ARG001
    """What the reflector continues; it is not told which game it is."""
    return told([output])


def by_rule(task: Game, graph: Graph, output: Walk, feedback: Feedback, memory: tuple[str, ...]) -> str:  # noqa: ARG001
    """What the rule says in its place."""
    return hindsight([output])


def agent(actor: Actor, reflector: Any, *, attempts: int = 4, **options: Any) -> Episodes:
    """Attempts at a game with a reflector; an attempt is handed the last reflection only."""
    given: dict[str, Any] = {"render": prompt, "memory": 1, "max_tokens": 56, "pairs": 16, **options}
    return Episodes(actor.attempt, reflector, guide=guide, attempts=attempts, **given)


def pairs(
    actor: Actor, games: Sequence[int], count: int, *, attempts: int = 4, rule: Callable[[list[Walk]], str] = hindsight
) -> list[Pair]:
    """What the rule says of failed walks, as many of each game as of the others, for a warm start.

    Args:
        actor: Walks, with the rule's plans from the second attempt on.
        games: Seeds of games; one after another gives a pair, and again.
        count: How many pairs are wanted.
        attempts: After how many the next game is taken.
        rule: Writes the plans.

    Raises:
        ProblemError: the games have too little to show.
    """
    found: dict[str, Pair] = {}
    for again in range(64):
        for game in games:
            plan = ""
            for attempt in range(attempts):
                walk = actor.walk(game, plan, random.Random(f"pairs/{game}/{again}/{attempt}"))  # noqa: S311 # repeatable
                if walk["found"]:
                    break
                asked, plan = told([walk]), rule([walk])
                if asked not in found:
                    found[asked] = Pair(asked, f" {plan}")
                    break
            if len(found) == count:
                return list(found.values())
    raise ProblemError(
        f"{len(games)} games give {len(found)} different pairs, not {count}; give more games, or ask for less"
    )


def warmed(policy: TrainablePolicy, learned: Path, actor: Actor, games: Sequence[int], count: int) -> Adapter:
    """The warm start of a file, or, where there is none yet, a new one, which is kept there."""
    if not learned.is_file():
        fine_tune(
            policy, pairs(actor, games, count), epochs=2, batch=4, lr=1e-3,
            checkpoint=learned.with_name(f"{learned.name}.checkpoint"),
        )  # fmt: skip
        learned.write_bytes(policy.dump().data)
    return Adapter(learned.read_bytes())


def problem(
    *, games: tuple[int, int, int] = (60, 30, 30), level: int = 104, attempts: int = 4, steps: int = 8,
    policy: str = "smollm2", warm: Path | None = None, warm_pairs: int = 128, updates: int = 24, seed: int = 0,
    model: str | None = "embedded/smollm2",
) -> Problem:  # fmt: skip
    """Find the coin.

    Args:
        games: How many reflections are learned in, adapters are compared on, and are kept for the test at the end.
        level: Of the games, 1 to 300.
        attempts: How many there are at each game.
        steps: How many commands an attempt has.
        policy: The reflector that is trained: "smollm2", a GGUF file, or a Hugging Face folder.
        warm: A file with the adapter to start from. Where there is none yet it is made of what the rule says, which takes
            minutes. None starts from the model as it is, whose reflections are worth nothing.
        warm_pairs: How many pairs a new warm start is made of, each taken twice.
        updates: Updates of the reflector before it is judged.
        seed: All chance of the search.
        model: The actor, an embedded model; none draws commands at random.

    Raises:
        ProblemError: textworld is not installed, or an option asks for what cannot be.
    """
    if importlib.util.find_spec("textworld") is None:
        raise ProblemError("the games of agents/textworld_agent.py need textworld; install it: pip install textworld")
    if not 1 <= level <= 300:
        raise ProblemError(f"option 'level' got {level}; give one from 1 to 300")
    if min(*games, attempts, steps) < 1:
        raise ProblemError(f"options games={list(games)}, attempts={attempts}, steps={steps}: give at least 1 of each")
    actor = Actor(None if model is None else connect(model), steps=steps, level=level)
    uniform = Actor(None, steps=steps, level=level)
    train, val, test = (
        [Game(game=first + i) for i in range(count)]
        for first, count in zip((1000, 2_000_000, 3_000_000), games, strict=True)
    )
    reflector = TrainablePolicy(policy, raw=True, attention="sdpa", name="reflector")
    if warm is not None:
        reflector.adapter.value = warmed(reflector, warm, actor, [example["game"] for example in train], warm_pairs)
    workflow = agent(actor, reflector, attempts=attempts)
    by_chance = agent(uniform, None, attempts=attempts)
    return Problem(
        workflow=workflow,
        train=train,
        val=val,
        test=test,
        guide=workflow.scored,
        parameters=[reflector.adapter],
        # a warm start is far from the base, which says nothing of use; all sentences of a plan begin alike
        optimizers=[
            Refiner(
                reflector, "unbiased-grpo", updates=updates, lr=4e-4, kl=0.0, guards=PolicyGuards(distinct_words=0.2)
            )
        ],
        seed=seed,
        score_range=(0.0, 1.0),
        margins=workflow.margins,
        controls={
            **workflow.controls(by_chance.attempt, tasks=train),
            "the rule's reflections": agent(actor, str, attempts=attempts, render=by_rule),
        },
        description=f"the coin in a house of TextWorld, {attempts} attempts of {steps} commands",
    )
