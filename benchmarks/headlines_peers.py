"""What three searches of ours and three of dspy's and GEPA's make of agents/headlines.py with the same 600 evaluations.

    python -m venv PEERS && PEERS/bin/pip install dspy==3.4.1 optuna==5.0.0 gepa==0.1.4
    python benchmarks/headlines_peers.py --peers PEERS/bin/python    3 seeds, about 40 minutes of CPU time
    python benchmarks/headlines_peers.py --peers PEERS/bin/python --quick    1 seed, 40 evaluations, nothing is kept

All answer through one embedded model behind one loopback server (benchmarks/headlines_server.py), with the same
start, the same training, validation and test headlines for a seed, and the same list of instructions, handed out in
the same order to whoever asks for a proposal, in that framework's own form. So what differs is the search. An
evaluation is one headline run with one prompt; start and best are run on the 200 test headlines after the search and
apart from it.

"instruction": only the instruction changes. `Greedy` and `Pareto` with OptoPrime against `gepa.optimize`, which stops
at its limit on metric calls only between two iterations and so uses up to 99 more. The guard by which Pareto keeps
the placeholders of a starting text is off, since {topics} may be left out here and nobody else holds proposals to it.
"and headlines": headlines with their topics may be shown as well, at most 10. Categorical over instructions of
OptoPrime and sets of Demos, as MIPRO does it, against `MIPROv2` and `BootstrapFewShotWithRandomSearch`, whose
settings are chosen to come to 600. "all": what the agent lets be tuned besides, for which the others have no words;
it starts where the agent starts.

The first two start from a prompt whose form is settled (BASE): with the agent's own, the model answers little better
than by chance whatever the instruction is. Their first instruction (START) is one that a person might write and that
does badly. Peers choose by the first `val` of the validation headlines where their settings say so, as their authors
advise for small budgets; where both are listed, both were run. With dspy's own chat format the model's answers to the
start cannot be read at all, which compares formats and not searches: `--methods "MIPROv2, stock adapter"` has that,
at ten times the CPU time.

Results are kept in results/headlines_peers.json after each run, and runs that are there are not made again. Model
calls are cached by content, so `computed` says how many a run was the first to ask for, and CPU seconds depend on
what ran before.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness import RESULTS, save
from headlines_rivals import Base, Found, Job
from headlines_server import Server

from trace_opt import Budget, Categorical, Demos, Greedy, OptoPrime, Pareto, connect
from trace_opt.core.codec import encode
from trace_opt.core.parameter import Parameter
from trace_opt.optim.base import Optimizer
from trace_opt.problem import Problem, load_problem
from trace_opt.search.guards import Guards
from trace_opt.search.report import Difference, Summary

AGENT = Path(__file__).parents[1] / "agents" / "headlines.py"
MODEL = "embedded/smollm2"
EVALUATIONS, VAL, TEST, SHOWN = 600, 100, 200, 10
QUICK = {"evaluations": 40, "val": 12, "test": 12}
START = "Read the headline carefully and think about what the article says. Then answer with one word out of {topics}."
BASE = Base(topics="business, entertainment, politics, sports, tech", prefix="News: ", cue="Topic:", turns=True)
OURS = {
    "Greedy": "instruction",
    "Pareto": "instruction",
    "Categorical[OptoPrime, Demos]": "and headlines",
    "Categorical[OptoPrime, Demos] of all": "all",
}
STOCK = "MIPROv2, stock adapter"
_DEMOS = {"max_bootstrapped_demos": 4, "max_labeled_demos": SHOWN}
_MIPRO: dict[str, Any] = {
    "made": {"num_candidates": 6, **_DEMOS},
    "compiled": {"num_trials": 10, "minibatch_size": 25, "minibatch_full_eval_steps": 5},
}
_MIPRO_50: dict[str, Any] = {
    "made": {"num_candidates": 9, **_DEMOS},
    "compiled": {"num_trials": 13, "minibatch_size": 25, "minibatch_full_eval_steps": 5},
}
# name, what is tuned, how many validation headlines, settings. Evaluations of MIPROv2: 100 + 10 x 25 + 2 x 100 and
# about 40 to bootstrap, or 50 + 13 x 25 + 3 x 50 and about 60; of BootstrapFewShotWithRandomSearch: 9 x 50 and about 60
PEERS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "gepa.optimize": ("instruction", VAL, {}),
    "gepa.optimize, val 50": ("instruction", 50, {}),
    "MIPROv2": ("and headlines", VAL, _MIPRO),
    "MIPROv2, val 50": ("and headlines", 50, _MIPRO_50),
    "BootstrapFewShotWithRandomSearch, val 50": (
        "and headlines",
        50,
        {"made": {"num_candidate_programs": 6, **_DEMOS}},
    ),
    STOCK: ("and headlines", VAL, _MIPRO),
}


def problem_of(seed: int, val: int, test: int) -> Problem:
    """The agent's problem for a seed."""
    given = {"seed": seed, "val": val, "test": test, "shown": SHOWN, "model": MODEL}
    return load_problem(AGENT, {name: str(value) for name, value in given.items()})


def ours(method: str, server: Server, seed: int, sizes: Mapping[str, int]) -> dict[str, Any]:
    """One run of a search of ours."""
    problem = problem_of(seed, sizes["val"], sizes["test"])
    agent: Any = problem.workflow
    # one request at once, so that proposals asked for together get their instructions in order
    proposer = connect(
        "openai/proposer", base_url=server.url, api_key=server.key, cache=None, price=(0.0, 0.0), concurrency=1
    )
    start = agent.instruction.value
    if OURS[method] != "all":
        start = START
        agent.order.value, agent.prefix.value, agent.cue.value = BASE["topics"], BASE["prefix"], BASE["cue"]
        agent.layout.value = "system and turns"
    instruction = Parameter(start, description=agent.instruction.description)
    agent.instruction = instruction  # without the agent's own suggestions
    optimizers: list[Optimizer] = [OptoPrime(proposer)]
    parameters: list[Parameter[Any]] | None = [instruction]
    if OURS[method] != "instruction":
        optimizers = [Categorical(sources=[OptoPrime(proposer), Demos()])]
        parameters = None if OURS[method] == "all" else [instruction, agent.demonstrations]
    used: list[int] = []
    judged = {e["headline"] for e in problem.test or ()}

    def guide(topic: str, example: Any) -> Any:
        used.append(example["headline"] not in judged)
        return problem.guide(topic, example)

    run = replace(problem, guide=guide).optimize(
        optimizers=optimizers, parameters=parameters, race=(), store=None, seed=seed,
        search=Pareto(guards=Guards(placeholders=False)) if method == "Pareto" else Greedy(),
        budget=Budget(rollouts=sizes["evaluations"] + 2 * sizes["test"]),
    )  # fmt: skip
    report = run.report().to_json()
    return {
        **{name: report[name] for name in ("start", "best", "difference", "claim", "trials", "accepted")},
        "evaluations": sum(used), "computed": report["spend"].get("workflow", {"calls": 0})["calls"],
        "values": {name: encode(value) for name, value in run.best.items()},
    }  # fmt: skip


def peers(method: str, python: str, server: Server, seed: int, sizes: Mapping[str, int]) -> dict[str, Any]:
    """One run of a peer's optimizer, in its own process."""
    problem = problem_of(seed, sizes["val"], sizes["test"])
    _, val, settings = PEERS[method]
    if sizes["evaluations"] < EVALUATIONS and "made" in settings:
        made = {name: 1 if name == "num_candidate_programs" else 4 if name == "num_candidates" else value
                for name, value in settings["made"].items()}  # fmt: skip
        compiled = (
            {"num_trials": 2, "minibatch_size": 5, "minibatch_full_eval_steps": 5} if "compiled" in settings else {}
        )
        settings = {"made": made, "compiled": compiled}
    test = list(problem.test or ())
    job = Job(
        method=method, seed=seed, url=server.url, key=server.key, base=BASE, instruction=START,
        train=list(problem.train), val=list(problem.val or ())[:val], test=test, budget=sizes["evaluations"],
        settings=settings,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [str(Path(python).absolute()), str(Path(__file__).with_name("headlines_rivals.py"))],
            input=json.dumps(job), capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, "DSPY_CACHEDIR": folder},
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{method!r} ended with {done.returncode}: {done.stderr[-3000:]}")
    found: Found = json.loads(done.stdout)
    start, best = (
        [float(a == e["topic"]) for a, e in zip(found[side], test, strict=True)] for side in ("start", "best")
    )
    difference = Difference.of(start, best, seed=seed)
    same = found["start"] == found["best"]
    return {
        "start": asdict(Summary.of(start, 0.0)), "best": asdict(Summary.of(best, 0.0)),
        "difference": asdict(difference),
        "claim": "no evidence" if same else difference.claim, "evaluations": found["evaluations"],
        "unparsed": {"start": found["start"].count(None), "best": found["best"].count(None)},
        "computed": server.counts["computed"], "values": {"instruction": found["instruction"], "shown": found["shown"]},
        "log": done.stderr[-400:] if "cut off" in done.stderr else "",
    }  # fmt: skip


def cpu() -> float:
    """CPU seconds of this process and of those that it waited for."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def table(results: Mapping[str, Any]) -> list[str]:
    """A line for each run, and the means of each method."""
    lines: list[str] = []
    for method in [*OURS, *PEERS]:
        rows = {key: row for key, row in results.items() if row["method"] == method}
        for row in rows.values():
            start, best = row["start"], row["best"]
            lines.append(
                f"{row['tuned']:14} {method:42} seed {row['seed']}  {start['mean']:.3f} [{start['low']:.3f}, "
                f"{start['high']:.3f}] -> {best['mean']:.3f} [{best['low']:.3f}, {best['high']:.3f}]  {row['claim']}, "
                f"{row['evaluations']} evaluations, {row['cpu_seconds']} s"
            )
        if rows:
            means = [sum(row[side]["mean"] for row in rows.values()) / len(rows) for side in ("start", "best")]
            lines.append(f"{'':14} {method:42} mean of {len(rows)}  {means[0]:.3f} -> {means[1]:.3f}")
    return lines


def summed(results: Mapping[str, Any]) -> dict[str, Any]:
    """Mean accuracy before and after, by method."""
    found: dict[str, Any] = {}
    for method in [*OURS, *PEERS]:
        rows = [row for row in results.values() if row["method"] == method]
        if rows:
            means = {side: round(sum(row[side]["mean"] for row in rows) / len(rows), 4) for side in ("start", "best")}
            found[method] = {"tuned": rows[0]["tuned"], "seeds": len(rows), **means}
    return found


def main() -> None:
    """Make the runs that have no result yet, and say what they came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has dspy and gepa; only ours without it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these rows")
    parser.add_argument("--quick", action="store_true", help="one seed, 40 evaluations; nothing is kept")
    options = parser.parse_args()
    path = RESULTS / "headlines_peers.json"
    results: dict[str, Any] = {}
    if path.exists() and not options.quick:
        results = json.loads(path.read_text(encoding="utf-8"))["figures"]["runs"]
    sizes = QUICK if options.quick else {"evaluations": EVALUATIONS, "val": VAL, "test": TEST}
    chosen = options.methods or [*OURS, *(name for name in PEERS if options.peers and name != STOCK)]
    with Server(connect(MODEL)).running() as server:
        for seed in options.seeds[:1] if options.quick else options.seeds:
            for method in chosen:
                key = f"{method}, seed {seed}"
                if key in results:
                    continue
                server.begin(seed)
                before = cpu()
                row = (
                    ours(method, server, seed, sizes)
                    if method in OURS
                    else peers(method, options.peers, server, seed, sizes)
                )
                tuned = OURS[method] if method in OURS else PEERS[method][0]
                row |= {"proposals": server.counts["proposer"], "cpu_seconds": round(cpu() - before, 1)}
                results[key] = {"method": method, "tuned": tuned, "seed": seed, **row}
                print(table({key: results[key]})[0], flush=True)
                if not options.quick:
                    keep(results, sizes)
    if not options.quick:
        keep(results, sizes)
    print("\n".join(table(results)))


def keep(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Write all results so far."""
    settings = {
        "base": BASE,
        "start": START,
        "peers": {name: {"val": val, **given} for name, (_, val, given) in PEERS.items()},
    }
    figures = {"sizes": sizes, "settings": settings, "means": summed(results), "runs": results}
    save("headlines_peers", figures, seeds=sorted({row["seed"] for row in results.values()}))


if __name__ == "__main__":
    main()
