"""What `@trace(memo=True)` costs a call and saves a search.

python benchmarks/memo.py            half a minute
python benchmarks/memo.py --quick    a few seconds

Costs are CPU microseconds of an op call in a recording: without memo, found in the memory (by a short and a long
argument), and run because it was not found. The search tunes one of two prompts of a two-step workflow over a model that
answers at once: what it asks with and without memo on the first step, for proposals that change the second prompt only,
the first only, and one each.
"""

from __future__ import annotations

import sys
from itertools import count
from typing import Any

from harness import minima, save

from trace_opt.core.feedback import Feedback
from trace_opt.core.memory import Memory, remembering
from trace_opt.core.parameter import Parameter
from trace_opt.core.tracer import record, trace
from trace_opt.optim.base import Optimizer, Proposal
from trace_opt.search.budget import Budget
from trace_opt.search.engine import optimize
from trace_opt.testing import ScriptedLLM

CALLS = 2_000


def body(x: Any) -> int:
    return 1 if prompt.value else 0


prompt = Parameter("be brief " * 20, name="prompt")
bare, pure = trace(body), trace(memo=True)(body)
numbers = count()


def calls(op: Any, argument: Any) -> Any:
    def run() -> None:
        with record():
            for _ in range(CALLS):
                op(argument)

    return run


def missing() -> None:
    with record():
        for _ in range(CALLS):
            pure(next(numbers))


def cost_of_a_call(rounds: int) -> dict[str, float]:
    runs = {
        "without memo": calls(bare, "short"), "found, 5 characters": calls(pure, "short"),
        "found, 10,000 characters": calls(pure, "long " * 2000), "found, list of 100": calls(pure, list(range(100))),
        "run and kept": missing,
    }  # fmt: skip
    with remembering(Memory()):
        for run in runs.values():
            run()
        best = minima(runs, rounds)
    return {name: round(seconds / CALLS * 1e6, 2) for name, seconds in best.items()}


class Listed(Optimizer):
    """Proposes values from a list."""

    def __init__(self, values: list[dict[str, str]]) -> None:
        super().__init__()
        self._values = iter(values)

    def handles(self, parameter: Parameter[Any]) -> bool:
        return True

    async def propose(self, parameters: Any, rollouts: Any, history: Any) -> Proposal:
        return Proposal(next(self._values, {}))


def searched(*, memo: bool, names: tuple[str, ...], proposals: int) -> dict[str, Any]:
    draft, answer = Parameter("draft 0", name="draft"), Parameter("answer 0", name="answer")
    llm = ScriptedLLM(lambda messages: str(len(str(messages[-1]["content"])) % 7), price=(1e-6, 1e-6))

    @trace(memo=memo)
    def first(question: str) -> str:
        return llm(f"{draft.value}: {question}", max_tokens=5)

    @trace(memo=memo)
    def second(question: str, hint: str) -> str:
        return llm(f"{answer.value}: {question} ({hint})", max_tokens=5)

    def workflow(question: str) -> str:
        return second(question, first(question))

    values = [{names[i % len(names)]: f"{names[i % len(names)]} {i}" + "x" * i} for i in range(1, proposals + 1)]
    train = [{"question": f"question {i} {'y' * (i % 11)}", "right": str(i % 7)} for i in range(100)]
    run = optimize(
        workflow, train, lambda output, example: Feedback(float(output == example["right"])), store=None,
        optimizers=[Listed(values)], budget=Budget(trials=proposals),
    )  # fmt: skip
    report = run.report()
    trials = [(t.before, t.after, t.verdict) for t in run.history]
    return {"calls": llm.calls, "saved": dict(report.saved), "trials": trials}


def search(proposals: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for what, names in {
        "second prompt": ("answer",),
        "first prompt": ("draft",),
        "both in turn": ("draft", "answer"),
    }.items():
        runs = {memo: searched(memo=memo, names=names, proposals=proposals) for memo in (False, True)}
        found[what] = {
            "calls_without": runs[False]["calls"], "calls_with": runs[True]["calls"],
            "saved_by_report": runs[True]["saved"].get("calls", 0),
            "same_trials": runs[False]["trials"] == runs[True]["trials"],
        }  # fmt: skip
    return found


def main() -> None:
    quick = "--quick" in sys.argv
    figures = {"microseconds_a_call": cost_of_a_call(3 if quick else 15), "search": search(4 if quick else 20)}
    save("memo", figures, seeds=[0])


if __name__ == "__main__":
    main()
