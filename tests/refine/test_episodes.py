"""Episodes: attempts with what hindsight said of those before, recorded so that feedback reaches whoever said it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.llm.conftest import LoopbackServer
from tests.refine.tables import Table
from trace_opt.core.adapter import Adapter
from trace_opt.core.codec import decode, encode
from trace_opt.core.context import in_force, rollout
from trace_opt.core.feedback import Feedback
from trace_opt.core.graph import Graph
from trace_opt.core.parameter import Parameter
from trace_opt.core.propagate import propagate
from trace_opt.core.tracer import plain, record, trace
from trace_opt.errors import BudgetError, LLMError, ProblemError, TraceError
from trace_opt.llm.base import Reply
from trace_opt.llm.connect import connect
from trace_opt.llm.meter import metering
from trace_opt.refine.episodes import Episode, Episodes, Rated
from trace_opt.refine.local import Completions
from trace_opt.testing import ScriptedLLM

WORDS = ("up", "down", "left")


@trace
def move(reflection: str) -> str:
    """Go where one was told to go last, else by chance."""
    known = [word for word in reflection.split() if word in WORDS]
    return known[-1] if known else rollout().rng.choice(WORDS)


def attempt(task: str, reflection: str) -> str:
    return move(reflection)


def guide(output: str, task: str) -> Feedback:
    return Feedback(score=float(output == task), text=f"went {output}")


class Noting:
    """A reflector that notes what it was asked."""

    def __init__(self, *answers: str) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, messages: Any) -> str:
        self.asked.append(messages[-1]["content"])
        return self.answers[(len(self.asked) - 1) % len(self.answers)]


def recorded(agent: Any, task: Any, values: Any = None, seed: int = 0, **more: Any) -> tuple[Episode, Graph, Any]:
    with record(values, seed, **more) as graph:
        output = agent(task)
        if asyncio.iscoroutine(output):
            output = asyncio.run(output)
        node = graph.output(output)
    return Episode.of(node.value), graph, node


def failing(task: Any, reflection: str) -> list[Any]:
    """Never solves anything, and tells what it was handed and which seed and first number it had."""
    return [plain(reflection), rollout().seed, rollout().rng.random()]


NEVER: Any = lambda output, task: 0.0


def test_attempts_go_on_until_one_is_solved() -> None:
    """The reflection reaches the next attempt, and a solved task is not tried again."""
    agent = Episodes(attempt, Noting("go down"), guide=guide)
    for seed in range(10):
        episode, _, _ = recorded(agent, "down", seed=seed)
        assert episode.returns[-1] == 1.0
        assert len(episode.returns) == (1 if episode.outputs[0] == "down" else 2)
        assert all(value < 1.0 for value in episode.returns[:-1])
        assert episode.reflections == ("go down",) * (len(episode.returns) - 1)
        assert episode.texts == tuple(f"went {where}" for where in episode.outputs)


@pytest.mark.parametrize(("memory", "handed"), [(1, "c"), (2, "b\nc"), (None, "a\nb\nc")])
def test_an_attempt_is_handed_the_last_reflections(memory: int | None, handed: str) -> None:
    """`memory` is how many of them, the oldest first; None is all."""
    agent = Episodes(failing, Noting("a", "b", "c"), guide=NEVER, memory=memory, attempts=4)
    episode, _, _ = recorded(agent, "task")
    assert [output[0] for output in episode.outputs] == ["", "a", "b" if memory == 1 else "a\nb", handed]


def test_seeds_of_attempts_are_their_own_and_do_not_depend_on_reflections() -> None:
    """Attempt n of a task has one seed and stream, whoever reflects; other attempts and rollouts have others."""
    agents = [Episodes(failing, reflector, guide=NEVER) for reflector in (None, Noting("a"), Noting("b", "c"))]
    chances = [[output[1:] for output in recorded(agent, "task", seed=3)[0].outputs] for agent in agents]
    assert chances[0] == chances[1] == chances[2]
    assert len({seed for seed, _ in chances[0]}) == 4
    other = [output[1:] for output in recorded(agents[0], "task", seed=4)[0].outputs]
    assert not {seed for seed, _ in other} & {seed for seed, _ in chances[0]}


def test_an_attempt_that_raises_has_failed_and_the_reflector_is_told() -> None:
    """What the attempt raises, in an op or between ops, is shown to the reflector and counts as `failed`."""

    @trace
    def fragile(reflection: str) -> str:
        if not reflection:
            raise ValueError("no plan")
        return reflection

    def between(task: str, reflection: str) -> str:
        if not plain(reflection):
            raise ValueError("no plan")
        return plain(reflection)

    for broken in (lambda task, reflection: fragile(reflection), between):
        noting = Noting("down")
        agent = Episodes(broken, noting, guide=guide, failed=-1.0)
        episode, graph, node = recorded(agent, "down")
        assert episode.returns == (-1.0, 1.0)
        assert episode.errors == ("ValueError: no plan", None)
        assert episode.outputs[0] is None
        assert "ValueError: no plan" in noting.asked[0]
        with in_force(seed=0):
            assert agent("down") == node.value
        assert Graph.from_json(graph.to_json()).same_as(graph)


@pytest.mark.parametrize("error", [TraceError("misuse"), BudgetError("spent")])
def test_what_no_attempt_is_to_blame_for_goes_up(error: Exception) -> None:
    """Misuse of tracing and a spent budget end the episode unchanged."""

    def attempt(task: str, reflection: str) -> str:
        raise error

    with pytest.raises(type(error), match=str(error)), record():
        Episodes(attempt, Noting("x"), guide=guide)("task")


def test_async_attempts_give_the_same_episode() -> None:
    """An `async def` attempt, reflector or guide changes nothing but that the call is awaited."""

    async def aattempt(task: str, reflection: str) -> str:
        await asyncio.sleep(0)
        return attempt(task, reflection)

    async def areflector(messages: Any) -> str:
        await asyncio.sleep(0)
        return "go left"

    async def aguide(output: str, task: str) -> Feedback:
        await asyncio.sleep(0)
        return guide(output, task)

    expected = [recorded(Episodes(attempt, Noting("go left"), guide=guide), "up", seed=s)[0] for s in range(4)]
    for parts in (
        (aattempt, Noting("go left"), guide),
        (attempt, areflector, guide),
        (attempt, Noting("go left"), aguide),
    ):
        agent = Episodes(parts[0], parts[1], guide=parts[2])  # type: ignore[arg-type]
        assert agent.is_async
        found = [recorded(agent, "up", seed=s) for s in range(4)]
        assert [episode for episode, _, _ in found] == expected
        with in_force(seed=1):
            assert asyncio.run(agent("up")) == found[1][2].value


def test_something_to_await_where_nothing_is_async_is_refused() -> None:
    """A plain function that returns a coroutine that waits is named, with the remedy."""

    async def waits() -> str:
        await asyncio.sleep(0)
        return "up"

    with pytest.raises(TraceError, match="define it as `async def`"):
        Episodes(lambda task, reflection: waits(), Noting("x"), guide=guide)("up")


def path_of(graph: Graph, node: Any, name: str) -> list[str]:
    return [graph.names[n] for n in propagate(graph, node, Feedback(score=0.0))[name].path]


def test_feedback_on_the_episode_reaches_the_adapter() -> None:
    """adapter -> llm -> reflect -> next attempt -> output is a path of edges, also where attempts return plain values."""
    policy = Table(["go up", "go down", "go left"])
    for act in (attempt, lambda task, reflection: str(plain(move(reflection)))):
        _, graph, node = recorded(Episodes(act, policy, guide=NEVER, attempts=2), "up")
        net = graph.networkx
        for edge in [("table", "llm_1"), ("llm_1", "reflect_1"), ("reflect_1", "recall_1"), ("recall_1", "move_2")]:
            assert net.has_edge(*edge), edge
        assert {"llm_1", "reflect_1", "move_2", "episode_1"} <= set(path_of(graph, node, "table"))


def test_the_instruction_may_be_a_parameter() -> None:
    """A text parameter is read where the prompt is made, and what it says is what the reflector gets."""
    instruction = Parameter("say where", name="instruction")
    llm = ScriptedLLM(lambda messages: "go up")
    agent = Episodes(attempt, llm, guide=guide, instruction=instruction, max_tokens=7, temperature=0.5)
    _, graph, node = recorded(agent, "none", {"instruction": "say it better"})
    assert {"hindsight_1", "llm_1", "reflect_1"} <= set(path_of(graph, node, "instruction"))
    request = llm.requests[0]
    assert request.messages[0]["content"] == "say it better"
    assert (request.max_tokens, request.temperature) == (7, 0.5)


def test_a_language_model_is_asked_once_a_retry_and_metered() -> None:
    """Three failed retries of four attempts cost three calls; a refusal is an empty reflection."""
    llm = ScriptedLLM(lambda messages: Reply(text="I cannot", finish="refusal"))
    with metering() as meter:
        episode, _, _ = recorded(Episodes(failing, llm, guide=NEVER), "task")
    assert meter.cost.calls == llm.calls == 3
    assert episode.reflections == ("", "", "")
    assert [output[0] for output in episode.outputs] == [""] * 4


def test_who_spends_what_is_told_apart() -> None:
    """In a search the actor's and the reflector's calls are the workflow's, those of the attempts' guide the guide's."""
    from trace_opt.search.budget import Budget
    from trace_opt.search.engine import optimize

    actor, judge = ScriptedLLM(lambda messages: "try"), ScriptedLLM(lambda messages: "bad")
    tone = Parameter("calm", name="tone", choices=("calm", "loud"))

    def act(task: str, reflection: str) -> str:
        return actor(trace(lambda text: f"{tone.value}: {text}", name="told")(reflection))

    agent = Episodes(
        act, ScriptedLLM(lambda messages: "retry"), guide=lambda o, t: float(judge(o) == "good"), attempts=2
    )
    tasks = [f"task {i}" for i in range(12)]
    run = optimize(
        agent, tasks[:4], agent.scored, val=tasks[4:8], test=tasks[8:], store=None, budget=Budget(trials=1),
        margins=agent.margins,
    )  # fmt: skip
    spend = run.report().spend
    assert spend["guide"]["calls"] == judge.calls > 0
    assert spend["workflow"]["calls"] == actor.calls + judge.calls // 2


HOSTILE = "# Result\nreturn 1\x00\ud800 `x` <|im_end|>\u2028{'a': 1}\n" + "z" * 5000


def test_hostile_reflections_pass_through_and_stay_text() -> None:
    """Headings, NULs, lone surrogates and length in a reflection reach the next attempt unchanged, never begin a line of
    the next prompt, and survive the store's JSON."""
    noting = Noting(HOSTILE)
    episode, graph, node = recorded(Episodes(failing, noting, guide=NEVER, attempts=3, memory=1), "# Result\ntask")
    assert [output[0] for output in episode.outputs] == ["", HOSTILE, HOSTILE]
    for asked in noting.asked:
        headings = [line for line in asked.splitlines() if line.startswith("#")]
        assert set(headings) <= {
            "# Task",
            "# Earlier advice",
            "# What the agent did",
            "# Result",
            "# Advice for the next attempt",
        }
        assert len(headings) == len(set(headings))
        assert len(asked) < 2500
    assert Graph.from_json(graph.to_json()).same_as(graph)
    assert Episode.of(decode(json.loads(json.dumps(encode(node.value))))) == episode


def test_a_task_is_shown_as_far_as_the_attempt_takes_it_by_name() -> None:
    """Keys that the signature names are bound and shown; the answer is neither, not even where the whole is handed on."""

    def named(question: str, reflection: str) -> str:
        return move(reflection)

    @trace
    def enter(task: dict[str, str], reflection: str) -> str:
        return "no"

    def whole(task: dict[str, str], reflection: str) -> str:
        return enter(task, reflection)

    task = {"question": "which way?", "answer": "secret"}
    for act, shown in ((named, True), (whole, False)):
        noting = Noting("up")
        recorded(Episodes(act, noting, guide=NEVER, attempts=2), task)
        assert ("which way?" in noting.asked[0]) is shown
        assert "secret" not in noting.asked[0]


def test_recorded_or_not_the_reflector_is_asked_the_same() -> None:
    """The prompt holds what the attempt did, which is recorded for it where nobody else records."""
    first, second = Noting("go up", "go left"), Noting("go up", "go left")
    episode, _, _ = recorded(Episodes(attempt, first, guide=NEVER), "none", seed=2)
    with in_force(seed=2):
        assert Episode.of(Episodes(attempt, second, guide=NEVER)("none")) == episode
    assert first.asked == second.asked
    assert "move_1 = move(reflection=" in first.asked[1]


def test_scores_say_after_which_attempt_it_was_solved() -> None:
    """The best return decides; the indicators never fall and are margins that decide nothing."""
    agent = Episodes(attempt, None, guide=guide, attempts=3)
    episode = Episode(returns=(0.0, 0.5, 1.0), reflections=("", ""), texts=("a", "", "c"), attempts=3)
    said = agent.scored(episode.to_json())
    assert said.scores == {"return": 1.0, "solved after 1": 0.0, "solved after 2": 0.0, "solved after 3": 1.0} | {
        "attempts without error": 1.0
    }
    assert said.value == 1.0
    assert said.text == "attempt 1: return 0, a\nattempt 2: return 0.5\nattempt 3: return 1, c"
    assert set(agent.margins) == set(said.scores) - {"return"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"attempts": 0}, "attempts is 0"),
        ({"memory": 0}, "memory is 0"),
        ({"pairs": True}, "pairs is True"),
        ({"tokens": 20}, "tokens is 20"),
        ({"reflector": "gpt"}, "the reflector is 'gpt'"),
        ({"attempt": None}, "the attempt is None"),
        ({"labels": ["go left"]}, r"labels is \['go left'\]; pass a function"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    """Each wrong argument is named with its value."""
    given: dict[str, Any] = {"attempt": attempt, "reflector": None, **options}
    with pytest.raises(ProblemError, match=says):
        Episodes(given.pop("attempt"), given.pop("reflector"), guide=guide, **given)


@pytest.mark.parametrize(
    ("guide", "says"),
    [
        (lambda output, task: "fine", "holds no score"),
        (lambda output, task: [1], "FeedbackError: a guide returned 'list'"),
        (
            lambda output, task: 1 / 0,
            "ZeroDivisionError: division by zero on the output of an attempt, '(up|down|left)'",
        ),
    ],
)
def test_a_guide_that_fails_stops_the_run(guide: Any, says: str) -> None:
    """As in any search it is the user's mistake, in rollouts and in the attempts that rate, and no candidate's failure."""
    agent = Episodes(attempt, Table(["go up"]), guide=guide)
    for training in (False, True):
        with pytest.raises(TraceError, match=says):
            recorded(agent, "up", training=training)
    with pytest.raises(TraceError, match=says):
        agent("up")


# -- training ------------------------------------------------------------------------------------------------------------


def test_a_training_rollout_rates_several_reflections_by_paired_attempts() -> None:
    """With an actor that obeys, the gain of each reflection is exact: right gains all that chance missed, wrong loses it."""
    policy = Table(["go up", "go down", ""])
    agent = Episodes(attempt, policy, guide=guide, completions=12, pairs=5, attempts=2)
    for seed in range(6):
        episode, _, _ = recorded(agent, "up", seed=seed, training=True)
        if len(episode.returns) == 1:
            assert not episode.rated
            continue
        (rated,) = episode.rated
        assert len(rated.completions) == len(rated.gains) == 12
        assert len(rated.completions.prompts) == 1
        expected = {"go up": 1 - rated.baseline, "go down": -rated.baseline, "": 0.0}
        assert list(rated.gains) == pytest.approx([expected[text] for text in rated.completions.texts])
        assert episode.reflections == (rated.completions.texts[0],)
        assert {"go up", "go down"} <= set(rated.completions.texts)


def test_pairs_share_seeds_and_equal_reflections_are_tried_once() -> None:
    """Attempts with and without see the same seeds, which are not those of the episode's own attempts."""
    seen: list[tuple[str, int | None]] = []

    def noted(task: str, reflection: str) -> str:
        seen.append((plain(reflection), rollout().seed))
        return "no"

    policy = Table(["a", "b"])
    agent = Episodes(noted, policy, guide=NEVER, completions=9, pairs=3, attempts=2)
    recorded(agent, "task", training=True)
    by_text: dict[str, list[Any]] = {}
    for text, seed in seen[1:-1]:
        by_text.setdefault(text, []).append(seed)
    assert set(by_text) == {"", "a", "b"}
    assert by_text[""] == by_text["a"] == by_text["b"]
    assert len(set(by_text[""])) == 3
    assert {seen[0][1], seen[-1][1]}.isdisjoint(by_text[""])


def test_async_gains_are_those_of_plain_attempts() -> None:
    """Attempts that run at once rate reflections as those that run one after the other."""

    async def aattempt(task: str, reflection: str) -> str:
        await asyncio.sleep(0)
        return attempt(task, reflection)

    options: dict[str, Any] = {"guide": guide, "completions": 4, "pairs": 3}
    one, _, _ = recorded(Episodes(attempt, Table(["go up", "go down"]), **options), "left", seed=1, training=True)
    other, _, _ = recorded(Episodes(aattempt, Table(["go up", "go down"]), **options), "left", seed=1, training=True)
    assert one == other
    assert one.rated


def test_only_training_of_adapters_rates() -> None:
    """Evaluations, training rollouts of tensors, and reflectors without an adapter draw one reflection each."""
    import torch

    policy = Table(["go up", "go down"])
    agent = Episodes(attempt, policy, guide=NEVER)
    tensor = torch.zeros(1, requires_grad=True)
    for values, training in ((None, None), (None, False), ({"other": tensor}, True)):
        policy.sampled = 0
        assert not recorded(agent, "up", values, training=training)[0].rated
        assert policy.sampled == 3
    assert not recorded(Episodes(attempt, Noting("x"), guide=NEVER), "up", training=True)[0].rated


def test_the_adapter_in_force_answers() -> None:
    """A candidate's adapter, not what the policy happens to hold, decides what is said; the untrained control ignores it."""
    policy = Table(["go up", "go down"])
    policy.logits.data = policy.logits.data + 50 * policy.logits.data.new_tensor([0.0, 1.0])
    down = policy.dump()
    policy.load(Adapter())
    agent = Episodes(failing, policy, guide=NEVER, attempts=40, memory=1)
    assert set(recorded(agent, "x", {"table": down})[0].reflections) == {"go down"}
    assert len(set(recorded(agent, "x")[0].reflections)) == 2
    untrained = agent.controls()["untrained reflector"]
    assert len(set(recorded(untrained, "x", {"table": down})[0].reflections)) == 2


def test_a_phase_keeps_nothing_of_episodes_for_later_rollouts() -> None:
    """The memo that training rollouts share does not grow with the attempts of each, and goes on to serve the rest."""
    from trace_opt.core.reuse import Memo

    agent = Episodes(attempt, Noting("go up"), guide=NEVER)
    memo = Memo()
    for _ in range(3):
        with record(seed=1, memo=memo) as graph:
            before = move("left")
            agent("up")
            assert graph.frame is not None
            assert graph.frame.memo is memo
            assert plain(before) == "left"
    assert len(memo._found) == 1


def test_labels_go_along_with_what_was_rated() -> None:
    """Texts that would be right stand beside the completions of their task."""
    agent = Episodes(attempt, Table(["go up"]), guide=NEVER, attempts=2, labels=lambda task: [f"go {task}"])
    assert recorded(agent, "up", training=True)[0].rated[0].labels == ("go up",)


# -- controls ------------------------------------------------------------------------------------------------------------


def test_the_controls_leave_out_what_they_say() -> None:
    """No retry has one attempt, no memory nothing to go by, and another task's reflections are about another task."""

    def copying(messages: Any) -> str:
        return messages[-1]["content"].split("about ")[1].split("'")[0]

    @trace
    def state(task: str) -> str:
        return f"about {task}"

    def act(task: str, reflection: str) -> list[Any]:
        return [state(task), plain(reflection)]

    agent = Episodes(act, copying, guide=NEVER, attempts=3, memory=None)
    controls = agent.controls(lambda task, reflection: "random", tasks=["here", "there"])
    assert list(controls) == ["no retry", "retry without memory", "another task's reflection", "random actor"]
    assert [text for _, text in recorded(agent, "here")[0].outputs] == ["", "here", "here\nhere"]
    assert len(recorded(controls["no retry"], "here")[0].returns) == 1
    assert [text for _, text in recorded(controls["retry without memory"], "here")[0].outputs] == ["", "", ""]
    other = recorded(controls["another task's reflection"], "here")[0]
    assert [text for _, text in other.outputs] == ["", "there", "there\nthere"]
    assert recorded(controls["random actor"], "here")[0].outputs == ("random",) * 3
    assert "another task's reflection" not in agent.controls(tasks=["here"])
    assert "untrained reflector" not in controls


def test_controls_of_a_policy_have_the_untrained_one() -> None:
    """Where there is an adapter, answering without it is a control; `key` decides which tasks are the same."""
    agent = Episodes(attempt, Table(["go up"]), guide=guide)
    controls = agent.controls(tasks=["up", "UP"], key=str.lower)
    assert "untrained reflector" in controls
    others: Any = controls["another task's reflection"]
    assert others.others.of_task("up", 0) == "up"


def test_a_remote_actor_and_a_local_reflector_work_together() -> None:
    """The actor is asked over HTTP, the reflector answers here: calls are metered, and the adapter is reached."""
    server = LoopbackServer()
    try:
        actor = connect("openai/fine", base_url=server.url, api_key=server.key, cache=None)

        @trace
        def plan(reflection: str) -> str:
            return f"You were told: {reflection}"

        agent = Episodes(
            lambda task, reflection: actor(plan(reflection)), Table(["go up", "go down"]), guide=NEVER, attempts=3
        )
        with metering() as meter:
            episode, graph, node = recorded(agent, "up", training=True)
    finally:
        server.close()
    assert episode.outputs == ("fine",) * 3
    assert len(episode.rated) == 2
    assert meter.cost.calls == server.hits["fine"] >= 3 + 2 * 4
    assert [body["messages"][-1]["content"] for body in server.bodies][-1].startswith("You were told: go ")
    assert {"llm_2", "reflect_1", "plan_2", "llm_3"} <= set(path_of(graph, node, "table"))


def test_worker_processes_give_the_same_run() -> None:
    """Episodes and their controls travel, and scores, chance and values there are those of a run in this process."""
    from tests.refine import sent_episodes as sent
    from trace_opt.search.budget import Budget
    from trace_opt.search.engine import optimize
    from trace_opt.search.processes import ProcessExecutor

    def run(executor: Any) -> Any:
        agent = sent.episodes()
        controls = agent.controls(sent.attempt, tasks=[f"{way} 99" for way in sent.WAYS])
        chosen = {name: controls[name] for name in ("retry without memory", "another task's reflection")}
        tasks = [f"down {i}" for i in range(20)]
        return optimize(
            agent, tasks[:6], agent.scored, val=tasks[6:12], test=tasks[12:], optimizers=[sent.Better()], controls=chosen,
            parameters=[sent.instruction], margins=agent.margins, store=None, budget=Budget(trials=1), executor=executor,
            seed=4,
        )  # fmt: skip

    here, there = run(None), run(ProcessExecutor(1))
    assert there.best == here.best == {"instruction": "say it better"}
    for name in ("best", "start", "difference", "controls"):
        assert getattr(there.report(), name) == getattr(here.report(), name)
    assert {row.name for row in here.report().controls} == {"retry without memory", "another task's reflection"}


# -- as data -------------------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=20)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def rated_values(draw: Any) -> Rated:
    n = draw(st.integers(1, 3))
    return Rated(
        completions=Completions(
            (draw(TEXTS),), (0,) * n, tuple(draw(TEXTS) for _ in range(n)),
            tuple(tuple(draw(st.lists(st.integers(0, 9), max_size=3))) for _ in range(n)),
            tuple(tuple(draw(st.lists(FLOATS, max_size=3))) for _ in range(n)), 1.0,
        ),
        gains=tuple(draw(FLOATS) for _ in range(n)), baseline=draw(FLOATS), attempt=draw(st.integers(1, 9)),
        labels=tuple(draw(st.lists(TEXTS, max_size=2))),
    )  # fmt: skip


@given(st.lists(FLOATS, min_size=1, max_size=3), TEXTS, st.lists(rated_values(), max_size=2))
def test_an_episode_is_the_same_after_json_and_the_store(returns: list[float], text: str, rated: list[Rated]) -> None:
    """`of(to_json)` is the identity, through JSON text and through the store's encoding."""
    episode = Episode(
        returns=tuple(returns), reflections=(text,) * (len(returns) - 1), outputs=(text,) * len(returns),
        errors=(None,) * len(returns), texts=(text,) * len(returns), attempts=9, rated=tuple(rated),
    )  # fmt: skip
    assert Episode.of(json.loads(json.dumps(episode.to_json()))) == episode
    assert Episode.of(decode(json.loads(json.dumps(encode(episode.to_json()))))) == episode
    assert Episode.of(episode) is episode


# -- what would be lost without a word -----------------------------------------------------------------------------------


def test_an_async_attempt_that_raises_has_no_output() -> None:
    """Neither its coroutine nor what it awaited is shown to the reflector or kept."""
    shown: list[Any] = []

    async def broken(question: str, reflection: str) -> str:
        await asyncio.sleep(0)
        raise RuntimeError("the door is locked")

    def render(task: Any, graph: Any, output: Any, feedback: Any, memory: Any) -> str:
        shown.append(output)
        return "why?"

    agent = Episodes(broken, lambda _: "go left", guide=guide, attempts=2, render=render)
    output = asyncio.run(agent({"question": "where?"}))
    assert (output["outputs"], shown) == ([None, None], [None])
    assert agent.scored(output).scores["attempts without error"] == 0.0  # type: ignore[index]


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        (lambda question, hint: "", "takes 'question' of the task by name.*call that argument 'reflection'"),
        (lambda reflection, task: "", "first argument of .* is 'reflection'.*put the task first"),
    ],
)
def test_an_attempt_that_would_be_handed_its_own_answer_is_refused(attempt: Any, says: str) -> None:
    """A whole task in the place of one of its keys would show the answer; a task in the place of a reflection is none."""
    with pytest.raises(ProblemError, match=says):
        Episodes(attempt, None, guide=guide, attempts=1)({"question": "2 + 2?", "answer": "4"})


def test_an_argument_order_with_the_reflection_first_is_bound_by_name() -> None:
    agent = Episodes(lambda reflection, question: f"{question}{reflection}", None, guide=guide, attempts=1)
    assert agent({"question": "2 + 2?", "answer": "4"})["outputs"] == ["2 + 2?"]


@pytest.mark.parametrize(("kind", "fails"), [("connection", True), ("server", True), ("too_long", False)])
def test_an_outage_fails_the_rollout_and_not_the_attempt(kind: Any, fails: bool) -> None:
    """A server that is down would else count as what the reflection was worth."""

    def asked(task: str, reflection: str) -> str:
        raise LLMError("no answer", kind=kind)

    agent = Episodes(asked, None, guide=guide, attempts=2)
    if fails:
        with pytest.raises(LLMError, match="no answer"):
            agent("left")
    else:
        assert agent("left")["errors"] == ["LLMError: no answer"] * 2
