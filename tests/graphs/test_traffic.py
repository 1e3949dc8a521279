"""The traffic problem: the simulator as it is called, what the guide tells, and that green times get better."""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import weakref
from dataclasses import replace
from typing import Any

import pytest

from tests.problem_files import load, mean_score, module_of
from trace_opt.errors import ProblemError
from trace_opt.testing import ScriptedLLM

with_uxsim = pytest.mark.skipif(
    importlib.util.find_spec("uxsim") is None, reason="the simulator is not installed; install the extra 'examples'"
)


@pytest.fixture(scope="module")
def traffic() -> Any:
    return module_of("traffic")


def test_a_day_is_the_same_whenever_it_is_asked_for(traffic: Any) -> None:
    first = traffic.arrivals(3)
    traffic.arrivals.cache_clear()
    assert traffic.arrivals(3) == first
    assert traffic.arrivals(4) != first


def test_arrivals_are_in_order_and_as_many_as_their_flow_says(traffic: Any) -> None:
    for approach, flow in traffic.FLOWS.items():
        days = [traffic.arrivals(day)[approach] for day in range(40)]
        assert all(list(times) == sorted(times) and 0 < times[0] < times[-1] < traffic.ARRIVALS for times in days)
        assert sum(map(len, days)) / 40 == pytest.approx(flow * traffic.ARRIVALS, rel=0.05)


def test_without_the_simulator_the_error_names_the_extra(traffic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uxsim", None)
    with pytest.raises(ProblemError, match=r"pip install 'trace-opt-framework\[examples\]'"):
        traffic.problem()


@with_uxsim
def test_both_engines_of_the_simulator_give_the_same_delays(traffic: Any) -> None:
    compiled = traffic.simulated(31.0, 12.5, 0)
    assert traffic.simulated(31.0, 12.5, 0, compiled=False) == pytest.approx(compiled, abs=1e-9)
    assert traffic.simulated(31.0, 12.5, 0) == compiled


@with_uxsim
@pytest.mark.parametrize("compiled", [True, False])
def test_a_simulation_that_is_over_holds_no_memory(
    traffic: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its world goes without the collector, which would let hundreds of them pile up beside a large graph."""
    made: list[weakref.ref[Any]] = []
    world = traffic.world()

    def watched(**options: Any) -> Any:
        found = world(**options)
        made.append(weakref.ref(found.VEHICLES))
        return found

    monkeypatch.setattr(traffic, "world", lambda: watched)
    gc.disable()
    try:
        traffic.simulated(30.0, 12.0, 1, compiled=compiled)
        assert [ref() for ref in made] == [None]
    finally:
        gc.enable()


@with_uxsim
def test_the_simulator_prints_nothing_and_leaves_matplotlib_as_it_was(
    traffic: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from matplotlib import rcParams

    traffic.world()
    capfd.readouterr()  # what matplotlib may say when it is imported for the first time
    before = list(rcParams["font.family"])
    traffic.simulated(20.0, 10.0, 1)
    assert rcParams["font.family"] == before
    assert capfd.readouterr() == ("", "")


@with_uxsim
def test_a_longer_green_for_one_road_makes_the_other_wait(traffic: Any) -> None:
    short, long = traffic.simulated(20.0, 14.0, 0), traffic.simulated(55.0, 14.0, 0)
    assert all(long[name] > short[name] + 5 for name in ("south", "north"))
    assert all(long[name] < short[name] for name in ("west", "east"))


@with_uxsim
def test_vehicles_still_under_way_at_the_end_count(traffic: Any) -> None:
    blocked = traffic.simulated(5.0, 60.0, 0)
    assert blocked["west"] > 400  # a queue that is never served would else look short
    assert blocked["south"] < 30


@with_uxsim
def test_the_guide_weighs_approaches_by_their_vehicles_and_says_who_waits(traffic: Any) -> None:
    counts = {name: len(times) for name, times in traffic.arrivals(2).items()}
    delays = {"west": 10.0, "east": 20.0, "south": 90.0, "north": 0.0}
    feedback = traffic.guide(delays, {"day": 2})
    mean = sum(delays[name] * count for name, count in counts.items()) / sum(counts.values())
    assert feedback.score == pytest.approx(-mean)
    assert "south 90.0 s" in feedback.text
    assert feedback.text.endswith("those from the south wait longest")


@with_uxsim
def test_the_stated_optimum_beats_its_neighbours_on_the_training_days(traffic: Any) -> None:
    problem = load("traffic")
    best = mean_score(problem, problem.train, traffic.OPTIMUM)
    assert best == pytest.approx(traffic.BEST_SCORE, abs=1e-6)
    for name in traffic.OPTIMUM:
        for by in (-3, -1, 1, 3):
            near = {**traffic.OPTIMUM, name: traffic.OPTIMUM[name] + by}
            assert mean_score(problem, problem.train, near) < best


@with_uxsim
@pytest.mark.parametrize("optimizer", ["surrogate", "categorical"])
def test_optimize_halves_the_delay_on_days_it_never_saw(traffic: Any, optimizer: str) -> None:
    problem = load("traffic", optimizer=optimizer, queries="30", days="3")
    found = problem.optimize(store=None).best
    assert all(traffic.SHORTEST <= value <= traffic.LONGEST for value in found.values())
    start, best = (mean_score(problem, problem.test or (), values) for values in ({}, found))
    assert best > start / 2
    assert best > traffic.BEST_SCORE - 5


@with_uxsim
def test_a_run_repeats_bit_for_bit() -> None:
    days = [{"day": 0}]
    found = [
        replace(load("traffic", queries="14"), train=days, val=days, test=[{"day": 1}])
        .optimize(store=None, seed=4)
        .best
        for _ in range(2)
    ]
    assert found[0] == found[1]


@with_uxsim
def test_a_model_reads_who_waits_and_its_green_times_are_tried(traffic: Any) -> None:
    def reply(messages: list[Any]) -> str:
        text = str(messages[-1]["content"])
        assert "wait longest" in text  # the guide's words
        assert "longer green for one road makes the other wait" in text  # the op's
        return json.dumps({"reasoning": "the west waits", "values": {"east_west": 33.0, "north_south": 14.0}})

    model = ScriptedLLM(reply)
    found = load("traffic", optimizer="optoprime", queries="1").optimize(store=None, model=model)
    assert model.calls == 1
    assert found.best == traffic.OPTIMUM
