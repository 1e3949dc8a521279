"""`--from`, `--reuse`, `--timeout`, what a dry run forecasts, and options in groups."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from trace_opt.cli.groups import spread
from trace_opt.cli.options import Common
from trace_opt.store.store import Store


def run_of(done: Any) -> dict[str, Any]:
    assert done.code == 0, done.err
    return json.loads(done.out)


TWELVE = ("--budget", "trials=12", "--json", "--quiet")


def test_a_run_starts_from_another(cli: Any, choices: Path) -> None:
    """Its start is the other's best; `last` and the beginning of an id name it; the answer says which was taken."""
    first = run_of(cli("run", choices, *TWELVE, "--seed", 1))
    for name in ("last", first["run"][:9]):
        second = run_of(cli("run", choices, *TWELVE, "--from", name))
        assert second["start"] == first["best"] == {"word": "b", "number": 2}
    assert "the start's values are the best of run" in cli("run", choices, "--budget", "trials=1", "--from", "last").err


def test_a_start_that_does_not_fit_is_one_sentence(cli: Any, choices: Path, prompt: Path) -> None:
    """No such run, or one of other parameters."""
    run_of(cli("run", choices, *TWELVE))
    done = cli("run", prompt, "--from", "last")
    assert done.code == 1
    assert "has a value for 'word', which is no parameter of this problem" in done.err
    assert cli("run", choices, "--from", "nope").code == 1
    assert "needs a store" in cli("run", choices, "--from", "last", "--store", "none").err
    assert cli("run", choices, "--from", "nope", "--dry-run").code == 1
    assert cli("run", choices, "--from", "last", "--dry-run").code == 0


def test_rollouts_of_other_runs_are_taken_and_counted(cli: Any, choices: Path) -> None:
    """The same run again takes all of them; without the option, none."""
    first = run_of(cli("run", choices, *TWELVE))
    again = run_of(cli("run", choices, *TWELVE, "--reuse"))
    assert again["best"] == first["best"]
    assert again["report"]["reused"]["rollouts"] > 0
    assert run_of(cli("run", choices, *TWELVE))["report"]["reused"] == {}
    assert "needs a store" in cli("run", choices, "--reuse", "--store", "none").err


def test_a_timeout_holds_when_the_run_goes_on(cli: Any, choices: Path) -> None:
    """It is kept with the run, as are the other settings of the search."""
    slow = ("--set", "wait=0.3", "--set", "examples=4", "--timeout", "0.05")
    done = cli("run", choices, "--budget", "trials=1", *slow)
    assert "4 of 4 failed" in done.out or "2 of 2 failed" in done.out
    assert cli("resume", "last", "--budget", "trials=2").code == 0
    assert {rollout.error for rollout in Store().rollouts()} == {"Timeout: took longer than 0.05 s (timeout=0.05)"}
    assert cli("run", choices, "--timeout", "-1").code == 1
    assert cli("run", choices, "--timeout", "soon").code == 2


# -- the dry run -------------------------------------------------------------------------------------------------------


def test_a_dry_run_counts_what_a_refiner_trains_on(cli: Any) -> None:
    """60 updates of 4 tasks from epochs of 9 are 180 rollouts; a budget of fewer buys no whole phase."""
    file = Path(__file__).parents[2] / "graphs" / "doors.py"
    said = cli("run", file, "--dry-run", "--budget", "rollouts=600").out
    assert "a proposal takes about 190 rollouts (up to 180 of them to train), at most 216" in said
    assert "the budget buys about 1 proposal, more where training ends early" in said
    said = cli("run", file, "--dry-run", "--budget", "rollouts=300").out
    assert "the budget buys no whole proposal: training ends early, if it begins; raise rollouts" in said


def test_a_dry_run_says_how_many_proposals_the_budget_buys(cli: Any, prompt: Path) -> None:
    """By the limit that ends first: what start and test take first, the rest by what a proposal takes."""
    plan = run_of(cli("run", prompt, "--dry-run", "--budget", "rollouts=130", "--json"))
    per, fixed = plan["proposal"], plan["rollouts"]["to score the start"] + plan["rollouts"]["for the test"]
    assert fixed == 10 + 20
    assert per["most_rollouts"] == 8 + 2 * 10
    assert 8 < per["rollouts"] <= per["most_rollouts"]
    assert plan["proposals"] == {
        "about": (130 - fixed) // per["rollouts"], "least": (130 - fixed) // 28, "limit": "rollouts", "unknown": [],
    }  # fmt: skip
    said = cli("run", prompt, "--dry-run", "--budget", "rollouts=130").out
    assert f"a proposal takes about {per['rollouts']} rollouts, at most 28, and asks a model 1 times on average" in said
    assert "the budget buys about" in said


@pytest.mark.parametrize(
    ("budget", "limit"), [("calls=60", "calls"), ("tokens=60000", "tokens"), ("trials=2", "trials")]
)
def test_every_limit_counts(cli: Any, prompt: Path, budget: str, limit: str) -> None:
    """Model calls of the optimizers too, by the longest question they ask and the longest answer they take."""
    plan = run_of(cli("run", prompt, "--dry-run", "--budget", budget, "--json"))
    assert plan["proposals"]["limit"] == limit
    assert plan["proposals"]["about"] >= plan["proposals"]["least"] >= 0
    assert plan["proposal"]["asked"] == 1.0
    assert plan["proposal"]["call"]["tokens_out"] == 4096


def test_what_a_proposal_costs_in_dollars_is_bounded_before_a_dollar_is_spent(cli: Any, prompt: Path) -> None:
    """Of a paid model the first call of a rollout and the optimizer's question are priced; neither is sent."""
    text = prompt.read_text().replace('name="scripted/worker")', 'name="scripted/worker", price=(1e-6, 2e-6))')
    prompt.write_text(text.replace('name="scripted/teacher")', 'name="scripted/teacher", price=(1e-6, 2e-6))'))
    plan = run_of(cli("run", prompt, "--dry-run", "--budget", "usd=1", "--json"))
    assert plan["one_rollout"] is None
    assert plan["proposals"]["limit"] == "usd"
    assert plan["proposals"]["least"] > 0
    assert plan["proposal"]["call"]["usd"] > 4096 * 2e-6


def test_a_limit_that_cannot_be_told_beforehand_is_said_to_be_unknown(cli: Any, prompt: Path) -> None:
    """Seconds of a paid model's calls, for one."""
    text = prompt.read_text().replace('name="scripted/worker")', 'name="scripted/worker", price=(1e-6, 2e-6))')
    prompt.write_text(text)
    done = cli("run", prompt, "--dry-run", "--budget", "seconds=60")
    assert "how far the limits on seconds go is not known before something is paid for" in done.out


def test_a_race_is_part_of_the_forecast(cli: Any, choices: Path) -> None:
    """All combinations but the start at the first rung, a quarter of them at each later one."""
    text = choices.read_text().replace(
        "optimizers=[Categorical()]", "optimizers=[Categorical()], race=('word', 'number')"
    )
    choices.write_text(text)
    plan = run_of(cli("run", choices, "--dry-run", "--set", "examples=100", "--budget", "rollouts=1000", "--json"))
    assert plan["raced"] == 9
    # 24 examples for 8 of them besides the start, the other 26 for the 3 best
    assert plan["proposal"]["race"] == 8 * 24 + 3 * 26
    done = cli("run", choices, "--set", "examples=100", "--budget", "rollouts=1000", "--json", "--quiet")
    assert done.code == 0
    race = [rollout for rollout in Store().rollouts() if 1 <= rollout.candidate <= 8 and rollout.split == "val"]
    assert plan["proposal"]["race"] - 26 <= len(race) <= plan["proposal"]["race"]


# -- groups of options ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two options."""

    left: Annotated[int, typer.Option("--left")] = 1
    right: Annotated[str | None, typer.Option("--right")] = None


def test_a_group_of_options_reads_as_single_ones(capsys: Any) -> None:
    """For whoever looks at the signature, and for Typer; a group comes back whole."""

    @spread
    def command(name: str, pair: Pair, *, loud: bool = False) -> None:
        """A command."""
        print(name, pair, loud)

    assert list(inspect.signature(command).parameters) == ["name", "left", "right", "loud"]
    assert command.__doc__ == "A command."
    command(name="n", left=3, right="r", loud=True)
    assert capsys.readouterr().out == "n Pair(left=3, right='r') True\n"


def test_run_and_resume_share_their_options(cli: Any) -> None:
    """Every one of the group stands in the help of both."""
    for command in ("run", "resume"):
        said = cli(command, "--help").out
        for field in dataclasses.fields(Common):
            assert f"--{'set' if field.name == 'sets' else field.name}" in said
