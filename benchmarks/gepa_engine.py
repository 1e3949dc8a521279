"""GEPA's own engine, run by the interpreter of an environment that has `gepa`, for benchmarks whose truth is known.

    python -m venv PEER && PEER/bin/pip install gepa==0.1.4
    python benchmarks/search_simulation.py --gepa PEER/bin/python

This file is both sides. The benchmark makes an `Engine`, which starts the file under the other interpreter and answers
its questions, one JSON object a line: what a proposal changes, and on which examples a candidate is right. There, an
adapter passes these on to `gepa.optimize` at its default settings (three examples a minibatch, the front per example,
all validation examples for what wins a minibatch), silenced.

A metric call is one evaluation. GEPA asks whether the budget is spent only before an iteration, so its last one may
overshoot; "chosen" is the best of the candidates whose validation ended within the budget, "late" what GEPA returns.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Texts = dict[str, str]


class Engine:
    """GEPA in a process of its own; a context manager.

    Args:
        python: The interpreter of the environment that has `gepa`.
    """

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.version: str = self._heard()["version"]

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def run(
        self, start: Texts, *, answers: Callable[[Texts], str], propose: Callable[[Texts, list[str]], Texts],
        train: int, val: int, budget: int, charge: int = 0, seed: int = 0, merge: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """One run.

        Args:
            start: Texts by component.
            answers: A "1" or "0" for every validation example and then for every training example, of a candidate.
            propose: New texts of some components of a candidate.
            train, val: How many examples there are.
            budget: In evaluations.
            charge: What a proposal counts for, in evaluations.
            seed: Of GEPA's chance.
            merge: Whether it merges candidates.

        Returns:
            "chosen" and "late" (see the module), "spent" evaluations with the overshoot, "candidates" in its pool.
        """
        self._say({
            "start": start, "train": train, "val": val, "budget": budget, "charge": charge, "seed": seed, "merge": merge,
        })  # fmt: skip
        while True:
            heard = self._heard()
            if "propose" in heard:
                self._say(propose(heard["propose"], heard["components"]))
            elif "answers" in heard:
                self._say(answers(heard["answers"]))
            else:
                return heard

    def _say(self, what: object) -> None:
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)

    def _heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                f"GEPA's process ended with status {self._process.wait()}; has its environment gepa 0.1.4?"
            )
        return json.loads(line)


# -- under the other interpreter: nothing here may need more than gepa -------------------------------------------------


class _Silent:
    def log(self, message: str) -> None:
        del message


class _Adapter:
    """Answers GEPA by asking the benchmark, and counts evaluations."""

    def __init__(self, ask: Callable[[Mapping[str, Any]], Any], job: Mapping[str, Any], batch_of: Any) -> None:
        self.spent = 0
        self.within: list[tuple[float, Texts]] = []
        self._ask, self._job, self._batch_of = ask, job, batch_of
        self._known: dict[str, str] = {}

    def evaluate(self, batch: list[int], candidate: Texts, capture_traces: bool = False) -> Any:  # GEPA's signature
        del capture_traces
        key = json.dumps(candidate, sort_keys=True)
        if key not in self._known:
            self._known[key] = self._ask({"answers": candidate})
        scores = [float(self._known[key][example]) for example in batch]
        self.spent += len(batch)
        if len(batch) == self._job["val"] and self.spent <= self._job["budget"]:
            self.within.append((sum(scores), dict(candidate)))
        return self._batch_of(outputs=scores, scores=scores, trajectories=scores)

    def make_reflective_dataset(self, candidate: Texts, eval_batch: Any, components_to_update: list[str]) -> Any:
        del candidate
        return {name: [{"Feedback": str(score)} for score in eval_batch.scores] for name in components_to_update}

    def propose_new_texts(self, candidate: Texts, reflective_dataset: Any, components_to_update: list[str]) -> Texts:
        del reflective_dataset
        self.spent += self._job["charge"]
        return self._ask({"propose": candidate, "components": components_to_update})


def _serve(questions: TextIO, orders: TextIO) -> None:
    """Run what is ordered until nothing more is."""
    from importlib.metadata import version

    import gepa
    from gepa.core.adapter import EvaluationBatch

    def ask(question: Mapping[str, Any]) -> Any:
        print(json.dumps(question), file=questions, flush=True)
        return json.loads(orders.readline())

    print(json.dumps({"version": version("gepa")}), file=questions, flush=True)
    for line in iter(orders.readline, ""):
        job = json.loads(line)
        adapter = _Adapter(ask, job, EvaluationBatch)
        found = gepa.optimize(
            job["start"], trainset=list(range(job["val"], job["val"] + job["train"])), valset=list(range(job["val"])),
            adapter=adapter, stop_callbacks=lambda _, a=adapter, most=job["budget"]: a.spent >= most,
            use_merge=job["merge"], logger=_Silent(), track_best_outputs=False, seed=job["seed"],
        )  # fmt: skip
        chosen = max(adapter.within, key=lambda pair: pair[0])[1]  # of equal ones the first, as GEPA has it
        done = {
            "chosen": chosen, "late": found.best_candidate, "spent": adapter.spent,
            "candidates": len(found.candidates),
        }  # fmt: skip
        print(json.dumps(done), file=questions, flush=True)


if __name__ == "__main__":
    _protocol, sys.stdout = sys.stdout, sys.stderr  # what GEPA prints is no part of the protocol
    _serve(_protocol, sys.stdin)
