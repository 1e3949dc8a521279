"""Reflective evolution: the front, its parents, merges, credit, and that a killed run goes on as if it had not been."""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import trace_opt
from tests import evolving
from trace_opt.core.feedback import Feedback
from trace_opt.core.parameter import Demonstrations, Parameter
from trace_opt.core.rollout import Rollouts
from trace_opt.core.tracer import trace
from trace_opt.errors import ProblemError
from trace_opt.optim.base import Optimizer, Outcome, Proposal, Trial
from trace_opt.optim.categorical import Categorical
from trace_opt.optim.demos import Demos
from trace_opt.optim.optoprime import OptoPrime
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.gate import Gate
from trace_opt.search.greedy import Greedy
from trace_opt.search.guards import Guards
from trace_opt.search.pareto import MERGE, Pareto
from trace_opt.search.run import Run
from trace_opt.testing import ScriptedLLM


class Specialists:
    """Two kinds of examples: what makes one of them right makes the other wrong, until both are known.

    The score is .5 for both at the start; with one rule alone its kind scores .8 and the other 0; with both rules 1.
    """

    def __init__(self) -> None:
        self.rules = {kind: Parameter("", name=kind) for kind in ("sums", "words")}
        rules = self.rules

        @trace
        def solve(kind: str) -> float:
            if any(rule.value.startswith("bad") for rule in rules.values()):
                return 0.0
            known = {kind for kind, rule in rules.items() if rule.value.startswith("rule")}
            return {0: 0.5, 1: 0.8 if kind in known else 0.0, 2: 1.0}[len(known)]

        def workflow(kind: str, number: int) -> float:
            del number
            return solve(kind)

        self.workflow = workflow
        self.examples = [{"kind": kind, "number": i} for i in range(40) for kind in self.rules]

    @staticmethod
    def guide(output: float, example: Mapping[str, Any]) -> float:
        del example
        return float(output)

    def optimize(self, optimizer: Optimizer, search: Any, **options: Any) -> Run:
        return optimize(
            self.workflow, self.examples, self.guide, parameters=list(self.rules.values()), optimizers=[optimizer],
            search=search, **{"store": None, "budget": Budget(trials=40), **options},
        )  # fmt: skip


class OneRule(Optimizer):
    """Writes the rule of the kind that its seed picks, where no rule is known yet; there is nothing else it can do."""

    def handles(self, parameter: Parameter[Any]) -> bool:
        return True

    async def propose(self, parameters: Any, rollouts: Rollouts, history: Sequence[Trial]) -> Proposal:
        if any(parameter.value for parameter in parameters):
            return Proposal({parameters[0].name: f"useless {rollouts.seed}"}, "a guess")
        chosen = random.Random(rollouts.seed).choice(list(parameters))
        return Proposal({chosen.name: f"rule {rollouts.seed % 3}"}, "one kind at a time")


STRICT = Gate(alpha=0.05, gamma=0.15, block=4)


@pytest.mark.parametrize("seed", range(4))
def test_two_kinds_that_no_mean_tells_apart_are_solved_by_the_front_and_not_by_greedy_search(seed: int) -> None:
    stuck = Specialists().optimize(OneRule(), Greedy(gate=STRICT), seed=seed)
    solved = Specialists().optimize(OneRule(), Pareto(gate=STRICT), seed=seed)
    assert not any(stuck.best.values())
    assert stuck.report().best.mean == 0.5
    assert all(rule.startswith("rule") for rule in solved.best.values())
    assert solved.report().best.mean == 1.0
    assert solved.report().claim == "better"


def test_the_front_is_paid_for_at_the_default_gate_too() -> None:
    """What the front's runs are held to leaves enough of them to find both specialists in most runs."""
    solved = [Specialists().optimize(OneRule(), Pareto(), seed=seed).report().best.mean == 1.0 for seed in range(8)]
    assert sum(solved) >= 5


def test_what_solves_both_kinds_is_a_merge_of_two_through_the_start() -> None:
    run = Specialists().optimize(OneRule(), Pareto(gate=STRICT), seed=1)
    merge = next(trial for trial in run.history if trial.optimizer == MERGE and trial.accepted)
    parents = {merge.base, *merge.notes["merged"]}
    assert len(parents) == 2
    assert merge.before is not None
    assert merge.before < 0.6
    assert merge.after == 1.0
    assert merge.reason.endswith("since candidate 0")
    made = {t.candidate: t for t in run.history}
    assert {name for parent in parents for name in made[parent].changed} == {"sums", "words"}


def test_no_merge_is_made_where_none_is_wanted() -> None:
    run = Specialists().optimize(OneRule(), Pareto(gate=STRICT, merge=False), seed=1)
    assert all(trial.optimizer != MERGE for trial in run.history)
    assert run.report().best.mean < 1.0


class Mended(Optimizer):
    """Asked about one parameter, writes what it needs to be; notes what it was asked about, and from where."""

    reflects = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[str]] = []
        self.bases: list[tuple[str, ...]] = []
        self.seen: list[tuple[tuple[str, ...], ...]] = []
        self.histories: list[tuple[Trial, ...]] = []

    def handles(self, parameter: Parameter[Any]) -> bool:
        return True

    async def propose(self, parameters: Any, rollouts: Rollouts, history: Sequence[Trial]) -> Proposal:
        self.asked.append([parameter.name for parameter in parameters])
        self.bases.append(tuple(parameter.value for parameter in parameters))
        self.seen.append(tuple(tuple(sorted(rollout.values.items())) for rollout in rollouts))
        self.histories.append(tuple(history))
        chosen = parameters[0]
        return Proposal({chosen.name: f"{chosen.name} {rollouts.seed % 5}"}, "mended")


def routed() -> tuple[Callable[..., Any], dict[str, Parameter[Any]], list[dict[str, Any]]]:
    """Every example reads `all` and the parameter of its own kind; only those of kind "bad" go wrong."""
    parameters = {name: Parameter("x", name=name) for name in ("all", "good", "bad")}

    @trace
    def first(number: int) -> str:
        return f"{parameters['all'].value}{number}"

    @trace
    def good(text: str) -> str:
        return f"{text}{parameters['good'].value}"

    @trace
    def bad(text: str) -> str:
        return f"{text}{parameters['bad'].value}"

    def workflow(kind: str, number: int) -> str:
        text = first(number)
        return good(text) if kind == "good" else bad(text)

    examples = [{"kind": "good" if i % 2 else "bad", "number": i} for i in range(40)]
    return workflow, parameters, examples


def routed_guide(output: str, example: Mapping[str, Any]) -> Feedback:
    right = example["kind"] == "good" or "bad 3" in output
    return Feedback(float(right), "right" if right else "the bad one is wrong")


def test_an_optimizer_that_reflects_is_asked_about_the_parameter_that_failures_went_through() -> None:
    workflow, parameters, examples = routed()
    optimizer = Mended()
    run = optimize(
        workflow, examples, routed_guide, parameters=list(parameters.values()), optimizers=[optimizer],
        search=Pareto(minibatch=8), store=None, budget=Budget(trials=24), seed=2,
    )  # fmt: skip
    assert all(len(names) == 1 for names in optimizer.asked)
    counts = {name: sum(names == [name] for names in optimizer.asked) for name in parameters}
    assert counts["bad"] > counts["good"]
    assert counts["bad"] >= 8
    assert run.best["bad"] == "bad 3"


def test_without_credit_an_optimizer_is_asked_about_all_that_it_owns() -> None:
    workflow, parameters, examples = routed()
    optimizer = Mended()
    optimize(
        workflow, examples, routed_guide, parameters=list(parameters.values()), optimizers=[optimizer],
        search=Pareto(credit=False), store=None, budget=Budget(trials=6),
    )  # fmt: skip
    assert optimizer.asked == [["all", "good", "bad"]] * 6


def test_a_proposal_is_made_from_its_parents_rollouts_under_its_parents_values() -> None:
    problem = Specialists()
    optimizer = Mended()
    run = problem.optimize(optimizer, Pareto(credit=False, merge=False), budget=Budget(trials=20))
    values = {0: {name: "" for name in problem.rules}}
    for trial in run.history:
        if trial.candidate is not None:
            values.setdefault(trial.candidate, {**values[trial.base], **trial.changed})
    for trial, base, seen in zip(run.history, optimizer.bases, optimizer.seen, strict=True):
        assert base == tuple(values[trial.base].values())
        assert seen == (tuple(sorted(values[trial.base].items())),) * 4


def test_parents_times_proposals_are_asked_for_at_once() -> None:
    run = Specialists().optimize(OneRule(), Pareto(parents=2, proposals=3, merge=False), budget=Budget(trials=12))
    assert [trial.step for trial in run.history] == [1] * 6 + [2] * 6


def test_rejected_edits_are_shown_to_the_proposer() -> None:
    optimizer = Mended()
    Specialists().optimize(optimizer, Pareto(merge=False), budget=Budget(trials=8))
    assert len(optimizer.histories[-1]) == 6
    assert any(not trial.outcome.accepted for trial in optimizer.histories[-1])


def test_what_guards_refuse_costs_no_rollout_and_the_proposer_is_told_why() -> None:
    asked: list[str] = []
    style = Parameter("Answer {question}.", name="style")

    def propose(messages: Sequence[Any]) -> str:
        asked.append(messages[-1]["content"])
        return json.dumps({"reasoning": "short is better", "values": {"style": f"Answer well, try {len(asked)}."}})

    @trace
    def answer(question: str) -> int:
        return len(style.value) + len(question)

    run = optimize(
        answer, [{"question": f"question {i}"} for i in range(30)], lambda out, _: float(out), store=None,
        optimizers=[OptoPrime(ScriptedLLM(propose))], search=Pareto(parents=1), budget=Budget(trials=3),
    )  # fmt: skip
    assert [trial.verdict for trial in run.history] == [
        "not allowed: 'style' lost '{question}'; keep that letter for letter"
    ] * 3
    assert all(trial.n == 0 and trial.after is None for trial in run.history)
    assert "refused: 'style' lost '{question}'" in asked[-1]


def test_without_guards_all_texts_are_tried() -> None:
    run = Specialists().optimize(OneRule(), Pareto(guards=Guards(longest=3)), budget=Budget(trials=4))
    assert all("at most 3 are allowed" in trial.verdict for trial in run.history)
    run = Specialists().optimize(OneRule(), Pareto(guards=None), budget=Budget(trials=4))
    assert not any("allowed" in trial.verdict for trial in run.history)


def test_the_front_is_over_a_fixed_part_of_the_validation_examples() -> None:
    assert [Pareto().size(total) for total in (10, 64, 200)] == [10, 64, 64]
    assert Pareto(front=12).size(200) == 12
    run = Specialists().optimize(OneRule(), Pareto(front=6, gate=STRICT), seed=1)
    assert any(trial.verdict.endswith(" of 6") for trial in run.history if trial.accepted)


def test_a_training_phase_is_kept_unless_it_is_found_worse() -> None:
    class Phases(OneRule):
        async def propose(self, parameters: Any, rollouts: Rollouts, history: Sequence[Trial]) -> Proposal:
            rule = "bad rule" if len(history) == 1 else "no rule"
            return Proposal({"sums": f"{rule} {rollouts.seed}"}, "trained", phase=True)

    run = Specialists().optimize(Phases(), Pareto(parents=1), budget=Budget(trials=3), seed=2)
    assert [trial.accepted for trial in run.history] == [True, False, True]
    assert run.history[2].base == 1
    assert run.best["sums"] == run.history[2].changed["sums"]


class Traded(Optimizer):
    """Doubles a number, or halves it."""

    def handles(self, parameter: Parameter[Any]) -> bool:
        return True

    async def propose(self, parameters: Any, rollouts: Rollouts, history: Sequence[Trial]) -> Proposal:
        factor = random.Random(rollouts.seed).choice([2, 0.5])
        return Proposal({parameters[0].name: parameters[0].value * factor}, "another size")


def sized(start: float, right: Callable[[float], float], trials: int, **options: Any) -> Run:
    """A number of which more is better up to a point, and less is always cheaper."""
    size = Parameter(start, name="size")

    @trace
    def work(number: int) -> float:
        return size.value + 0 * number

    def guide(output: float, example: Mapping[str, int]) -> dict[str, float]:
        return {"right": right(float(output)) + example["number"] / 100, "cheap": -float(output)}

    return optimize(
        work, [{"number": i} for i in range(30)], guide, optimizers=[Traded()], parameters=[size], search=Pareto(),
        store=None, budget=Budget(trials=trials), **options,
    )  # fmt: skip


def test_what_is_as_good_and_cheaper_joins_and_what_is_worse_does_not() -> None:
    run = sized(32.0, lambda size: min(size, 8.0), 60)
    accepted = [trial.changed["size"] for trial in run.history if trial.accepted]
    assert accepted == [16.0, 8.0]
    assert any(trial.changed["size"] == 4.0 for trial in run.history)


def test_objectives_that_pull_apart_both_stand_on_the_front_and_in_the_report() -> None:
    run = sized(8.0, lambda size: size, 24, margins={"cheap": float("inf")})
    accepted = [trial.changed["size"] for trial in run.history if trial.accepted]
    assert len(accepted) > 2
    assert min(accepted) > 8
    report = run.report()
    rows = {row["candidate"]: row["scores"] for row in report.front}
    assert len(rows) == 1 + len(accepted)
    assert -rows[0]["cheap"] == 8.0
    for row in report.front:
        assert row["n"] == 6
        assert row["score"] == pytest.approx(row["scores"]["right"])
    assert f"front: {len(rows)} candidates" in str(report)
    assert type(report).from_json(json.loads(json.dumps(report.to_json()))).front == report.front


def test_a_length_that_counts_lets_a_shorter_text_join() -> None:
    text = Parameter("x" * 64, name="text")

    class Shorter(OneRule):
        async def propose(self, parameters: Any, rollouts: Rollouts, history: Sequence[Trial]) -> Proposal:
            return Proposal({"text": parameters[0].value[: -1 - rollouts.seed % 5]}, "shorter")

    @trace
    def work(number: int) -> float:
        return number / 30 if text.value else 0.0

    def optimized(objectives: Any) -> Run:
        return optimize(
            work, [{"number": i} for i in range(30)], lambda out, _: float(out), optimizers=[Shorter()],
            parameters=[text], search=Pareto(objectives=objectives), store=None, budget=Budget(trials=6),
        )  # fmt: skip

    assert not any(trial.accepted for trial in optimized(()).history)
    lengths = [len(trial.changed["text"]) for trial in optimized(("length",)).history if trial.accepted]
    assert lengths
    assert lengths == sorted(set(lengths), reverse=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"parents": 0}, "below 1"), ({"front": 0}, "below 1"), ({"objectives": ("speed",)}, "'speed'.*known: usd")],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ProblemError, match=said):
        Pareto(**options)


def test_it_is_at_hand_by_its_name() -> None:
    assert trace_opt.Pareto is Pareto
    assert isinstance(trace_opt.Beam(), evolving.Beam)


@pytest.mark.parametrize("search", [Pareto(), trace_opt.Beam()], ids=["pareto", "beam"])
def test_a_race_and_repeated_draws_go_before_and_with_it(search: Any) -> None:
    kind = Parameter("low", name="kind", choices=("low", "high"))
    noise = Parameter(0.0, name="noise")

    @trace
    def work(number: int) -> float:
        drawn = random.Random(f"{trace_opt.rollout().seed}/{number}").random()
        return {"low": 0.0, "high": 1.0}[kind.value] + drawn / 10 - abs(noise.value - 3)

    class Stepping(Traded):
        async def propose(self, parameters: Any, rollouts: Rollouts, history: Sequence[Trial]) -> Proposal:
            return Proposal({"noise": parameters[0].value + 1.0}, "one more")

        def handles(self, parameter: Parameter[Any]) -> bool:
            return parameter.name == "noise"

    run = optimize(
        work, [{"number": i} for i in range(40)], lambda out, _: float(out), parameters=[kind, noise], race=["kind"],
        optimizers=[Stepping(), Categorical()], search=search, store=None, budget=Budget(trials=30), repeats=2,
    )  # fmt: skip
    assert run.history[0].optimizer == "race"
    assert run.best == {"kind": "high", "noise": 3.0}


@pytest.mark.parametrize("made", [Pareto, trace_opt.Beam], ids=["pareto", "beam"])
@pytest.mark.parametrize(("gate", "built_on"), [(Gate.search(block=4), True), (Gate(alpha=1e-9, block=4), False)])
def test_the_winner_of_a_race_meets_the_gate_given_to_the_search(made: Any, gate: Gate, built_on: bool) -> None:
    """A small lead passes the default gate and not a strict one, whichever search runs the race."""
    kind = Parameter("low", name="kind", choices=("low", "high"))

    @trace
    def work(number: int) -> bool:
        return kind.value == "high" or number % 4 > 0

    run = optimize(
        work, [{"number": i} for i in range(40)], lambda out, _: bool(out), parameters=[kind], race=["kind"],
        optimizers=[Categorical()], search=made(gate=gate), store=None, budget=Budget(trials=1),
    )  # fmt: skip
    assert run.history[0].optimizer == "race"
    assert run.history[0].accepted is built_on


# -- instructions, demonstrations and choices together -----------------------------------------------------------------


def composed(search: Any, seed: int = 0) -> Run:
    """A labelling step by its instruction, its examples and its format; each helps, and together they are right."""
    instruction = Parameter("Label it.", name="instruction")
    shown = Parameter(Demonstrations(2), name="shown")
    form = Parameter("prose", name="form", choices=("prose", "json", "table"))

    @trace
    def label(text: str) -> str:
        helps = ("carefully" in instruction.value) + (len(shown.value) > 0) + (form.value == "json")
        return "even odd"[: 4 if int(text) % 2 == 0 else None][-4:].strip() if int(text) % 4 <= helps else "none"

    def proposes(messages: Sequence[Any]) -> str:
        del messages
        return json.dumps({"reasoning": "be careful", "values": {"instruction": "Label it carefully."}})

    def workflow(text: str) -> str:
        return label(text)

    def guide(output: str, example: Mapping[str, str]) -> Feedback:
        wanted = "even" if int(example["text"]) % 2 == 0 else "odd"
        return Feedback(float(wanted in output), f"should be {wanted}")

    examples = [{"text": str(i), "label": "even" if i % 2 == 0 else "odd"} for i in range(80)]
    optimizer = Categorical(sources=[OptoPrime(ScriptedLLM(proposes)), Demos()])
    return optimize(
        workflow, examples, guide, parameters=[instruction, shown, form], optimizers=[optimizer], search=search,
        store=None, budget=Budget(trials=30), seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("search", [Pareto(), Pareto(parents=3, merge=False), trace_opt.Beam(beam=2)], ids=repr)
def test_instructions_demonstrations_and_choices_are_searched_together(search: Any) -> None:
    run = composed(search)
    assert run.best["instruction"] == "Label it carefully."
    assert len(run.best["shown"]) > 0
    assert run.best["form"] == "json"
    assert run.report().best.mean == 1.0


# -- going on ----------------------------------------------------------------------------------------------------------


def child(name: str, store: Path, resume: str, kind: str, n: int) -> int:
    """The search in a process of its own, killed at the n-th moment of a kind; gives its exit status."""
    arguments = [sys.executable, evolving.__file__, name, str(store), resume, kind, str(n)]
    return subprocess.run(arguments, check=False, timeout=60, cwd=Path(evolving.__file__).parents[1]).returncode


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = tmp_path_factory.mktemp("clean") / "runs.db"
    evolving.search("pareto", str(store), None, evolving.Doom("never", 0))
    return evolving.harness().dump(store)


def test_the_uninterrupted_search_has_something_to_lose(clean: Any) -> None:
    trials = clean["result"]["trials"]
    assert len({trial[3] for trial in trials}) > 3
    assert {trial[2] for trial in trials} == {"OptoPrime", MERGE}
    assert {trial[10] for trial in trials if trial[2] == MERGE} == {True, False}


@pytest.mark.parametrize(
    "kills",
    [
        [("before a call", 30)],
        [("before a commit", 45)],
        [("after a proposal", 7)],
        [("before a reply", 60), ("before a proposal", 3), ("before a commit", 9)],
    ],
    ids=lambda kills: ", ".join(f"{kind} {n}" for kind, n in kills),
)
def test_a_killed_and_resumed_evolution_ends_as_an_uninterrupted_one(kills: Any, clean: Any, tmp_path: Path) -> None:
    store = tmp_path / "runs.db"
    for kind, n in kills:
        resume = evolving.harness().Store(store).runs()[0].id if store.exists() else ""
        assert child("pareto", store, resume, kind, n) == -9
    resume = evolving.harness().Store(store).runs()[0].id
    evolving.search("pareto", str(store), resume, evolving.Doom("never", 0))
    whole = evolving.harness().dump(store)
    assert whole["result"] == clean["result"]
    assert whole["status"] == "finished"
    lost = sum(whole["spent"].values()) - sum(clean["spent"].values())
    assert lost <= whole["lost"] <= 2 * 3 * len(kills)


def test_concurrency_changes_nothing_of_what_comes_out(
    clean: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(*args: Any, **options: Any) -> Run:
        return optimize(*args, **{**options, "concurrency": 1})

    monkeypatch.setattr(evolving, "optimize", alone)
    evolving.search("pareto", str(tmp_path / "runs.db"), None, evolving.Doom("never", 0))
    assert evolving.harness().dump(tmp_path / "runs.db")["result"] == clean["result"]


def test_outcomes_are_observed_once_each_in_the_order_of_the_trials() -> None:
    class Watching(OneRule):
        def __init__(self) -> None:
            super().__init__()
            self.observed: list[tuple[Proposal, Outcome]] = []

        def observe(self, proposal: Proposal, outcome: Outcome) -> None:
            self.observed.append((proposal, outcome))

    optimizer = Watching()
    run = Specialists().optimize(optimizer, Pareto(gate=STRICT), seed=1)
    own = [trial for trial in run.history if trial.optimizer != MERGE]
    assert [dict(proposal.values) for proposal, _ in optimizer.observed] == [dict(trial.changed) for trial in own]
    assert [outcome.accepted for _, outcome in optimizer.observed] == [trial.accepted for trial in own]
