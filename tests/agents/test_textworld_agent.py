"""agents/textworld_agent.py: houses as TextWorld makes them, an actor that uses plans, the rule, and a reflector that learns."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("textworld", reason="the games need textworld; run 'pip install textworld'")
pytest.importorskip("peft", reason="the reflector needs the extra 'refine'")

from tests.loading import module_at
from tests.refine.tiny_llama import folder
from trace_opt import Budget, connect
from trace_opt.core.adapter import Adapter
from trace_opt.errors import LLMError, ProblemError
from trace_opt.llm.models import path_of
from trace_opt.problem import Problem, load_problem
from trace_opt.refine.outcomes import Episode

PATH = Path(__file__).parents[2] / "agents" / "textworld_agent.py"
LEVEL = 104

needs_model = pytest.mark.skipif(
    path_of("smollm2") is None, reason="the embedded model is not fetched; run 'trace-opt models pull'"
)

tw: Any = module_at(PATH, "textworld_agent_under_test", listed=True)


@pytest.fixture(scope="module")
def walks() -> list[tuple[Any, Any]]:
    """Houses and failed walks by chance in them."""
    actor = tw.Actor(None, steps=7, level=LEVEL)
    drawn = [
        (tw.house(seed, LEVEL), actor.walk(seed, "", random.Random(chance))) for seed in range(5) for chance in range(9)
    ]
    return [(place, walk) for place, walk in drawn if not walk["found"]]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama with room for a map in its context."""
    where = shutil.copytree(folder(), tmp_path_factory.mktemp("writer"), dirs_exist_ok=True)
    config = where / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 1024}))
    return str(where)


def steps_of(plan: str) -> list[tuple[str, str]]:
    return re.findall(r"In the ([^,.]+), ([^.]+)\.", plan)


# -- the games -----------------------------------------------------------------------------------------------------------


def test_a_house_is_what_textworld_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of a long walk by chance does in the game what the house says, the winning one included."""
    played: list[bool] = []

    def walked(env: Any) -> Any:
        place = explored(env)
        for number in range(6):
            rng, state, room = random.Random(number), env.reset(), place.start
            for _ in range(40):
                assert set(place.exits[room]) == {c for c in state.admissible_commands if c.split()[0] not in tw.IDLE}
                command = rng.choice(sorted(place.exits[room]))
                state, _, won = env.step(command)
                assert won == (place.exits[room][command] is None)
                played.append(won)
                if won:
                    break
                room = place.exits[room][command]
                assert tw._room(state) == room
        return place

    explored = tw._explored
    monkeypatch.setattr(tw, "_explored", walked)
    tw.house.__wrapped__(7, LEVEL)
    assert any(played)


def test_a_seed_decides_a_house_and_its_route_wins() -> None:
    """Level 104 has eight rooms, and the coin is taken with the fourth command."""
    assert tw.house.__wrapped__(100, LEVEL) == tw.house(100, LEVEL)
    assert (
        len({json.dumps([h.start, h.exits], sort_keys=True) for h in map(lambda s: tw.house(s, LEVEL), range(20))})
        == 20
    )
    for seed in range(20):
        place = tw.house(seed, LEVEL)
        room = place.start
        for at, command in place.route:
            assert at == room
            room = place.exits[room][command]
        assert (room, len(place.route), len(place.exits)) == (None, 4, 8)


# -- hindsight -----------------------------------------------------------------------------------------------------------


def test_the_rule_leads_to_something_new_that_was_seen(walks: list[tuple[Any, Any]]) -> None:
    """Followed in the real house, a plan ends with a command that no attempt tried: the coin's wherever it was seen."""
    assert len(walks) > 10
    coins = 0
    for place, walk in walks:
        plan = dict(steps_of(tw.hindsight([walk])))
        tried = {(room, command) for room, command, _ in walk["moves"]}
        room = place.start
        for _ in range(len(plan)):
            at, room = room, place.exits[room][plan[room]]
            assert at in walk["options"], "the rule knows a room that no attempt saw"
        assert (at, plan[at]) not in tried
        coin_seen = any(tw.TAKE in commands for commands in walk["options"].values())
        coins += coin_seen
        assert (plan[at] == tw.TAKE) == coin_seen
    assert coins > 0


def test_the_rule_does_not_go_back_the_way_it_came() -> None:
    """A passage is known from both ends once it was walked, also where the walk ended in the new room."""
    walk = {
        "found": False, "moves": [("hall", "go north", "attic")],
        "options": {"hall": ["go north", "go east"], "attic": ["go south"]},
    }  # fmt: skip
    assert tw.hindsight([walk]) == "Untried: In the hall, go east."
    dead = {**walk, "options": {"hall": ["go north"], "attic": ["go south"]}}
    assert tw.hindsight([dead]) == ""


def test_a_later_walk_adds_to_the_map() -> None:
    """Of two attempts the rule knows both: what the first tried is not proposed after the second."""
    options = {"hall": ["go east", "go west"], "shed": ["go west"], "yard": ["go east", "go north"]}
    first = {"found": False, "moves": [("hall", "go west", "yard")], "options": options}
    second = {"found": False, "moves": [("hall", "go east", "shed")], "options": options}
    assert tw.hindsight([first, second]) == "Untried: In the yard, go north. To the yard: In the hall, go west."


def test_plans_can_be_copied_from_the_prompt(walks: list[tuple[Any, Any]]) -> None:
    """Each line of the rule's plan stands in the reflector's prompt, and no way back does."""
    for place, walk in walks:
        shown = tw.told([walk])
        lines = re.findall(r"[^.]+\.", tw.hindsight([walk]))
        assert lines
        assert all(f"\n{line.strip()}\n" in f"\n{shown}\n" for line in lines)
        rooms = [re.search("In the (.*),", line)[1] for line in lines]  # each line leads to the room of the one before
        assert all(line.strip().startswith(f"To the {room}: ") for room, line in zip(rooms, lines[1:], strict=False))
        assert shown.endswith("Plan:")
        assert len(set(re.findall(r"To the (.*?):", shown))) == len(re.findall(r"To the", shown))
        assert not re.search(rf"To the {place.start}:", shown)


def test_pairs_are_taken_from_all_games_alike_and_again_the_same() -> None:
    """Each pair is a prompt with what the rule says to it; no two prompts are equal."""
    actor = tw.Actor(None, level=LEVEL)
    found = tw.pairs(actor, range(4), 12)
    assert found == tw.pairs(actor, range(4), 12)
    assert len({pair.prompt for pair in found}) == 12
    assert all(pair.completion.startswith(" Untried: In the ") for pair in found)
    with pytest.raises(ProblemError, match="give more games"):
        tw.pairs(actor, range(1), 200)


# -- the actor -----------------------------------------------------------------------------------------------------------


@needs_model
def test_the_actor_uses_a_plan_and_its_short_way_of_scoring_changes_nothing() -> None:
    """The embedded model takes the true route's commands where a plan holds it, and hardly by itself."""
    actor = tw.Actor(connect("embedded/smollm2", cache=None), level=LEVEL)
    right = {"": 0, "route": 0}
    for seed in (100, 101):
        place = tw.house(seed, LEVEL)
        for told in right:
            for room, command in place.route:
                commands = tuple(place.exits[room])
                scores = actor.log_probs(tw.written(place.route) if told else "", room, commands)
                right[told] += commands[scores.index(max(scores))] == command
    assert right[""] <= 3
    assert right["route"] >= 6
    place = tw.house(100, LEVEL)
    room, commands = "pantry", tuple(place.exits["pantry"])
    whole = actor.llm.reply([{"role": "user", "content": f"Now: In the {room},"}], answers=commands, raw=True).logprobs
    assert actor.log_probs("", room, commands) == pytest.approx(whole, abs=2e-3)


def test_attempts_with_one_chance_are_the_same_and_a_plan_that_is_followed_finds_the_coin() -> None:
    """The walk is drawn by the chance that it is given alone."""
    actor = tw.Actor(None, level=LEVEL)
    assert actor.walk(5, "", random.Random(1)) == actor.walk(5, "", random.Random(1))
    place = tw.house(5, LEVEL)
    obedient = tw.Actor(None, level=LEVEL)
    obedient.log_probs = lambda plan, room, commands: [
        0.0 if dict(steps_of(plan)).get(room) == command else -50.0 for command in commands
    ]
    walk = obedient.walk(5, tw.written(place.route), random.Random(0))
    assert walk["found"]
    assert [(room, command) for room, command, _ in walk["moves"]] == list(place.route)


# -- the problem ---------------------------------------------------------------------------------------------------------


def loaded(writer: str, **options: str) -> Problem:
    small = {"games": "[4,3,3]", "level": "103", "model": "null", "updates": "2", "policy": writer}
    return load_problem(PATH, {**small, **options})


def test_the_reflector_is_trained_and_controls_are_reported(writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase on the project's own parts: episodes rated in training games, an adapter judged on others, every control.

    The actor here walks by chance after a plan that says "go" more often than "left", and in circles after any other.
    """

    def helped(self: Any, plan: str, room: str, commands: tuple[str, ...]) -> tuple[float, ...]:
        free = plan.count("go") > plan.count("left")
        return tuple(0.0 if command == tw.TAKE or free or not at else -9.0 for at, command in enumerate(commands))

    monkeypatch.setattr(tw.Actor, "_log_probs", helped)
    problem = tw.problem(games=(6, 3, 3), steps=20, attempts=2, updates=2, policy=writer, model=None)
    found = problem.optimize(budget=Budget(trials=1), store=None)
    assert set(found.best) == {"reflector"}
    assert len(found.history) == 1
    assert found.history[0].notes["learned"] > 0
    controls = {control["name"] for control in found.report().to_json()["controls"]}
    assert controls == {
        "no retry", "retry without memory", "untrained reflector", "another task's reflection", "random actor",
        "the rule's reflections",
    }  # fmt: skip


def test_an_episode_hands_each_attempt_the_last_plan(writer: str) -> None:
    """With the rule for a reflector each reflection is what the rule says of the attempt before."""
    problem = loaded(writer, attempts="4", steps="3")
    assert problem.controls is not None
    by_rule = problem.controls["the rule's reflections"]
    seen = 0
    for example in problem.test:
        episode = Episode.of(by_rule(example))
        for walk, plan in zip(episode.outputs, episode.reflections, strict=False):
            assert plan == tw.hindsight([walk])
            seen += 1
    assert seen > 0


def test_the_three_parts_share_no_game(writer: str) -> None:
    problem = loaded(writer)
    parts = [{example["game"] for example in part or ()} for part in (problem.train, problem.val, problem.test)]
    assert [len(part) for part in parts] == [4, 3, 3]
    assert len(set.union(*parts)) == 10


def test_a_warm_start_is_made_once(writer: str, tmp_path: Path) -> None:
    """It is learned where its file is missing, read where it is there, and is what the search starts from."""
    file = tmp_path / "warm.safetensors"
    problem = loaded(writer, warm=str(file), warm_pairs="4")
    assert problem.parameters is not None
    learned = problem.parameters[0].value
    assert learned == Adapter(file.read_bytes()) != Adapter()
    stamp = file.stat().st_mtime_ns
    again = loaded(writer, warm=str(file), warm_pairs="4")
    assert again.parameters is not None
    assert again.parameters[0].value == learned
    assert file.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("level", "0", "give one from 1 to 300"), ("games", "[3,0,3]", "at least 1 of each"), ("steps", "0", "at least 1 of each"),
     ("policy", "/nowhere", "there is no model")],
)  # fmt: skip
def test_a_wrong_option_is_refused_in_one_sentence(writer: str, name: str, value: str, told: str) -> None:
    with pytest.raises((ProblemError, LLMError), match=told):
        loaded(writer, **{name: value})


def test_a_dry_run_spends_nothing(writer: str, capfd: Any) -> None:
    from trace_opt.cli import main

    options = {"games": "[4,3,3]", "model": "null", "policy": writer}
    assert main(["run", str(PATH), "--dry-run", *[p for k, v in options.items() for p in ("--set", f"{k}={v}")]]) == 0
    assert "TextWorld" in capfd.readouterr().out
