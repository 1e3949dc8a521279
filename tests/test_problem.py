"""Problems loaded by path, and what a file that offers none is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from trace_opt.core.module import Module
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import trace
from trace_opt.core.trainable import parameter_of
from trace_opt.errors import ProblemError
from trace_opt.guides import exact
from trace_opt.optim.optoprime import OptoPrime
from trace_opt.problem import Problem, ProblemOption, load_problem, problem_options
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.search.greedy import Greedy
from trace_opt.search.pareto import Pareto
from trace_opt.testing import ScriptedLLM

PLAIN = "from trace_opt import Problem\nproblem = Problem(workflow=lambda x: x, train=[1, 2], guide=lambda o, e: 1.0)\n"

TYPED = '''
from pathlib import Path
from typing import Literal
from trace_opt import Problem

def problem(
    *, size: int = 3, rate: float = 0.5, loud: bool = False, name: str = "n", mode: Literal["a", "b"] = "a",
    where: Path | None = None, many: list[int] = [1], limit: int | None = None,
) -> Problem:
    """A problem.

    Args:
        size: How many examples there are,
            at least one.
        rate: How fast.
    """
    return Problem(
        workflow=lambda x: x, train=list(range(size)), guide=lambda o, e: 1.0,
        description=repr((rate, loud, name, mode, where, many, limit)),
    )
'''


def write(folder: Path, text: str, name: str = "made.py") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_problem_takes_its_files_name(tmp_path: Path) -> None:
    problem = load_problem(write(tmp_path, PLAIN))
    assert (problem.name, problem.train) == ("made", [1, 2])
    assert problem_options(tmp_path / "made.py") == []


def test_set_fills_typed_keyword_arguments(tmp_path: Path) -> None:
    texts = {
        "size": "5",
        "rate": "2",
        "loud": "yes",
        "name": "7",
        "mode": "b",
        "where": "x/y",
        "many": "[1, 2]",
        "limit": "none",
    }
    problem = load_problem(write(tmp_path, TYPED), texts)
    assert len(problem.train) == 5
    assert problem.description == repr((2.0, True, "7", "b", Path("x/y"), [1, 2], None))
    assert load_problem(tmp_path / "made.py", {"limit": "4"}).description.endswith("4)")


def test_options_are_listed_with_types_defaults_and_help(tmp_path: Path) -> None:
    options = problem_options(write(tmp_path, TYPED))
    assert options[0] == ProblemOption("size", int, 3, "How many examples there are, at least one.")
    assert [option.name for option in options][:3] == ["size", "rate", "loud"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"szie": "1"}, "has no option 'szie'; did you mean 'size'"),
        ({"zzz": "1"}, "has no option 'zzz'; known: size, rate"),
        ({"size": "many"}, "option 'size' got 'many'; give a whole number, as in --set size=3"),
        ({"size": "1.5"}, "give a whole number"),
        ({"rate": "fast"}, "give a number"),
        ({"loud": "maybe"}, "give true or false"),
        ({"mode": "c"}, "give one of 'a', 'b'"),
        ({"many": "1, 2"}, "option 'many' got"),
        ({"limit": "x"}, "give a whole number or none"),
    ],
)
def test_an_unknown_option_or_a_wrong_type_is_one_clear_sentence(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        load_problem(write(tmp_path, TYPED), options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "defines no `problem`; add"),
        ("problm = 1\n", "did you mean to call 'problm' so"),
        ("problem = 3\n", "`problem` in .* is 3; make it a Problem"),
        ("def problem(): return 3\n", "gives 3, which is no Problem"),
        ("def problem(size): return 3\n", "argument 'size' without a default"),
        ("import not_there\n", "cannot be loaded .ModuleNotFoundError: No module named 'not_there'"),
        ("def problem(): 1 / 0\n", "cannot be loaded .ZeroDivisionError"),
        ("def problem(:\n", "cannot be loaded .SyntaxError"),
    ],
)
def test_a_file_that_offers_no_problem_is_told_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        load_problem(write(tmp_path, text))


def test_a_missing_file_is_named_with_a_near_one(tmp_path: Path) -> None:
    write(tmp_path, PLAIN, "headlines.py")
    with pytest.raises(ProblemError, match=r"there is no file .*headline\.py'; did you mean .*headlines\.py"):
        load_problem(tmp_path / "headline.py")
    with pytest.raises(ProblemError, match="give the path of a Python file"):
        load_problem(tmp_path / "nowhere" / "x.py")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ProblemError, match=r"folder\.py' is a directory; give the path of a Python file"):
        load_problem(tmp_path / "folder.py")
    with pytest.raises(ProblemError, match="is a directory"):
        load_problem(tmp_path)
    with pytest.raises(ProblemError, match="is no Python file"):
        load_problem(write(tmp_path, PLAIN, "notes.txt"))


def test_a_plain_problem_takes_no_options(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="takes no option 'size'"):
        load_problem(write(tmp_path, PLAIN), {"size": "1"})


def test_dataclasses_in_a_file_know_their_module(tmp_path: Path) -> None:
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass E:\n    x: int\n"
        + PLAIN
    )
    assert load_problem(write(tmp_path, text)).train == [1, 2]


def test_a_problem_optimizes_with_its_own_options_and_what_is_given_wins() -> None:
    p = Parameter("a", name="p", choices=("a", "b"))
    problem = Problem(
        workflow=lambda x: p.value, train=[1, 2, 3], guide=lambda out, _: float(out == "b"), budget=Budget(trials=1), seed=4,
        parameters=[p], name="mine",
    )  # fmt: skip
    run = problem.optimize(store=None)
    assert (len(run.history), run.best) == (1, {"p": "b"})
    assert problem.plan(store=None, budget=Budget(trials=7)).budget == {"trials": 7}
    assert problem.options(seed=5)["seed"] == 5
    assert "seed" not in problem.options(resume="x")


@trace(trainable=True)
def doubled(x: float) -> float:
    """Twice x."""
    return x


class Halves(Module):
    """A part with a trainable method."""

    @trace(trainable=True)
    def halved(self, x: float) -> float:
        """Half of x."""
        return x


def mends(messages: Any) -> str:
    """Stands for a model that knows the answer."""
    return json.dumps({"reasoning": "", "values": {"doubled": "def doubled(x: float) -> float:\n    return 2 * x\n"}})


def test_a_trainable_op_among_the_parameters_counts_as_its_source() -> None:
    """An op, a method of a Module and a Module stand for the Parameters that hold their sources."""
    halves, other = Halves(), Parameter("a", name="other")
    given = [doubled, halves.halved, other]

    listed = Problem(workflow=doubled, train=[1], guide=lambda o, e: 1.0, parameters=given).parameters

    assert [p.name for p in listed] == ["doubled", "halved", "other"]
    assert listed[0] is parameter_of(doubled)
    assert listed[1] is parameter_of(halves.halved) is halves.named_parameters()["halved"]
    whole = Problem(workflow=doubled, train=[1], guide=lambda o, e: 1.0, parameters=halves).parameters
    assert whole == [parameter_of(halves.halved)]


def test_optimize_improves_a_trainable_op_given_among_the_parameters() -> None:
    """`optimize(parameters=[op])` rewrites the op."""
    run = optimize(
        doubled, [{"x": float(i), "answer": 2.0 * i} for i in range(1, 25)], exact(), parameters=[doubled],
        optimizers=[OptoPrime(ScriptedLLM(mends))], budget=Budget(trials=2), store=None,
    )  # fmt: skip

    assert run.best["doubled"].endswith("return 2 * x\n")


def test_what_is_no_parameter_is_named() -> None:
    """A plain function among the parameters is one clear sentence."""
    with pytest.raises(
        ProblemError, match=r"parameters holds <function mends.*pass Parameters, trainable ops or a Mod"
    ):
        optimize(doubled, [1.0, 2.0], lambda o, e: 1.0, parameters=[mends], budget=Budget(trials=2), store=None)


def test_a_problem_brings_its_search_and_margins_and_what_is_given_wins() -> None:
    """`search`, `weights` and `margins` reach `optimize` as its other options do."""
    problem = Problem(workflow=lambda x: x, train=[1], guide=lambda o, e: 1.0, search=Pareto(), margins={"cost": 2.0})

    assert isinstance(problem.options()["search"], Pareto)
    assert problem.options()["margins"] == {"cost": 2.0}
    assert isinstance(problem.options(search=Greedy())["search"], Greedy)
    assert "search" not in Problem(workflow=lambda x: x, train=[1], guide=lambda o, e: 1.0).options()
