"""Green times of a signalised intersection, judged by the traffic simulator UXsim.

Two green times share one cycle, and every change costs four seconds in which all wait. Greens that are too short waste
the cycle on changes until queues never empty; greens that are too long make the other road wait for nothing. The
simulator moves whole vehicles in whole seconds, so the mean delay is a staircase without a gradient: what improves it
are queries, or a reader of the text, which says which approach waits.

An example is a day: a seeded list of arrivals, the same whatever the signal does. Needs the extra `examples`:

    pip install 'trace-opt-framework[examples]'
    trace-opt run graphs/traffic.py
    trace-opt run graphs/traffic.py --set optimizer=categorical

Sources: the experiment is that of C.-A. Cheng, A. Nie and A. Swaminathan, "Trace is the next AutoDiff", arXiv
2406.16218, section 5.2, with arrivals drawn by us; the simulator is T. Seo, "UXsim: lightweight mesoscopic traffic flow
simulator in pure Python", Journal of Open Source Software 10(106), 2025.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache
from threading import Lock
from typing import Annotated, Any, Literal

from trace_opt import Budget, Categorical, Feedback, OptoPrime, Parameter, ZerothOrder, trace
from trace_opt.errors import ProblemError
from trace_opt.optim.base import Optimizer
from trace_opt.problem import Problem

OPTIMUM: dict[str, Any] = {"east_west": 33.0, "north_south": 14.0}
"""Found by trying all pairs of whole seconds on the four training days; between whole seconds nothing changes."""

BEST_SCORE = -14.97244168210401
"""Mean score at the optimum."""

SHORTEST, LONGEST = 5.0, 60.0
"""Bounds of a green time, seconds."""

CHANGE = 4
"""Seconds at each change in which all signals are red."""

ARRIVALS, END = 900, 1800
"""Vehicles arrive until the first, and the simulation ends at the second, seconds."""

LENGTH, SPEED = 400, 14
"""Metres before and behind the intersection, and metres a second on a free road."""

APPROACHES = {"west": (-1, 0, "east"), "east": (1, 0, "west"), "south": (0, -1, "north"), "north": (0, 1, "south")}
"""Where an approach lies, and where its vehicles go."""

FLOWS = {"west": 0.34, "east": 0.28, "south": 0.15, "north": 0.11}
"""Mean arrivals a second; a free lane passes 0.74."""

_ALONE = Lock()


@lru_cache(maxsize=256)
def arrivals(day: int) -> dict[str, tuple[float, ...]]:
    """When vehicles arrive on each approach, seconds: gaps without memory, flows that differ from day to day."""
    rng = random.Random(day)  # noqa: S311 # the same day every time
    found: dict[str, tuple[float, ...]] = {}
    for approach, flow in FLOWS.items():
        rate, times, t = flow * rng.uniform(0.85, 1.15), list[float](), 0.0
        while (t := t + rng.expovariate(rate)) < ARRIVALS:
            times.append(t)
        found[approach] = tuple(times)
    return found


def world() -> Any:
    """The simulator's class.

    Raises:
        ProblemError: the simulator is not installed.
    """
    try:
        from uxsim import World
    except ImportError as error:
        raise ProblemError(
            "graphs/traffic.py needs the simulator 'uxsim', which is not installed; run: pip install "
            "'trace-opt-framework[examples]'"
        ) from error
    return World


def simulated(east_west: float, north_south: float, day: int, *, compiled: bool = True) -> dict[str, float]:
    """Mean delay of each approach's vehicles against a free road, seconds; those still under way at the end count.

    Args:
        east_west, north_south: Green times, seconds.
        day: Which arrivals.
        compiled: Whether UXsim's C++ engine runs, some 20 times faster than its Python engine with the same results.
    """
    made = world()
    with _ALONE:  # making a world sets matplotlib's font for the whole process
        from matplotlib import rcParams

        font = rcParams["font.family"]
        try:
            return _run(made, east_west, north_south, day, compiled)
        finally:
            rcParams["font.family"] = font


def _run(world: Any, east_west: float, north_south: float, day: int, compiled: bool) -> dict[str, float]:
    w = world(
        deltan=1, tmax=END, random_seed=0, print_mode=0, save_mode=0, show_mode=0, cpp=compiled,
        vehicle_logging_timestep_interval=-1,
    )  # fmt: skip
    w.addNode("crossing", 0, 0, signal=[east_west, CHANGE, north_south, CHANGE])
    for name, (x, y, _) in APPROACHES.items():
        w.addNode(name, x, y)
        phase = 0 if x else 2
        w.addLink(f"from {name}", name, "crossing", length=LENGTH, free_flow_speed=SPEED, signal_group=phase)
        w.addLink(f"to {name}", "crossing", name, length=LENGTH, free_flow_speed=SPEED)
    vehicles = {
        name: [w.addVehicle(name, APPROACHES[name][2], t) for t in times] for name, times in arrivals(day).items()
    }
    w.exec_simulation()
    free = 2 * LENGTH / SPEED
    delays = {
        name: sum((v.arrival_time if v.arrival_time >= 0 else END) - v.departure_time - free for v in those)
        / len(those)
        for name, those in vehicles.items()
    }
    # all parts know their world and it knows them: its 6 MB would wait for the collector, which counts objects, not bytes
    vars(w).clear()
    return delays


@trace
def simulate(east_west: float, north_south: float, day: int) -> dict[str, float]:
    """Mean delay on each approach, seconds: a longer green for one road makes the other wait, short ones waste time."""
    return simulated(east_west, north_south, day)


def guide(output: Mapping[str, float], example: Mapping[str, int]) -> Feedback:
    """The mean delay of all vehicles, and who waits."""
    counts = {name: len(times) for name, times in arrivals(example["day"]).items()}
    mean = sum(output[name] * count for name, count in counts.items()) / sum(counts.values())
    worst = max(output, key=lambda name: output[name])
    told = ", ".join(f"{name} {delay:.1f} s" for name, delay in output.items())
    text = f"vehicles wait {mean:.1f} s on average ({told}); those from the {worst} wait longest"
    return Feedback(score=-mean, text=text)


def problem(
    *, optimizer: Literal["surrogate", "central", "two-point", "spsa", "categorical", "optoprime"] = "surrogate",
    queries: int = 60, days: int = 4, start: float = 30.0,
) -> Problem:  # fmt: skip
    """The intersection, with the same green for both roads at the start.

    Args:
        optimizer: A gradient-free method of `ZerothOrder`, a search over steps of five seconds, or a language model that
            reads the text.
        queries: Pairs of green times tried, each on all training days.
        days: Days to learn from; as many others decide, and twelve others judge.
        start: Both green times at the start, seconds.
    """
    from pydantic import Field

    world()
    searched = optimizer in ("categorical", "optoprime")
    allowed: dict[str, Any] = {"type": Annotated[float, Field(ge=SHORTEST, le=LONGEST)]}
    if optimizer == "categorical":
        allowed = {"choices": tuple(float(s) for s in range(int(SHORTEST), int(LONGEST) + 1, 5))}
    east_west = Parameter(start, name="east_west", description="seconds of green for the road east-west", **allowed)
    north_south = Parameter(
        start, name="north_south", description="seconds of green for the road north-south", **allowed
    )

    def workflow(day: int) -> dict[str, float]:
        return simulate(east_west.value, north_south.value, day)

    chosen: Optimizer
    if optimizer == "categorical":
        chosen = Categorical()
    elif optimizer == "optoprime":
        chosen = OptoPrime()
    else:
        # the staircase's steps are a second wide, so differences are taken further apart than that
        chosen = ZerothOrder(optimizer, queries=queries, difference=0.1)
    each = [{"day": day} for day in range(2 * days + 12)]
    return Problem(
        workflow=workflow,
        train=each[:days],
        val=each[days : 2 * days],
        test=each[2 * days :],
        guide=guide,
        parameters=[east_west, north_south],
        optimizers=[chosen],
        budget=Budget(trials=queries if searched else 1),
        description="green times of an intersection",
    )
