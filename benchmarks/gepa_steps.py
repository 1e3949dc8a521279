"""CPU seconds of GEPA's iterations, one JSON line; run by benchmarks/engine.py with the interpreter of an environment that
has gepa.

    PEER/bin/python benchmarks/gepa_steps.py ITERATIONS VAL SECONDS [FOLDER]

The evaluator and the proposer are as instant as those of engine.py. Stops after so many iterations or seconds of CPU.
"""

import json
import sys
import time
from importlib.metadata import version

import gepa
from gepa.core.adapter import EvaluationBatch
from instant import score, text


class Adapter:
    """Scores by content, proposes by number."""

    def __init__(self):
        self.proposed = 0
        self.evaluations = 0
        self.propose_new_texts = self._propose

    def evaluate(self, batch, candidate, capture_traces=False):
        self.evaluations += len(batch)
        outputs = [f"{candidate['prompt']}/{example}" for example in batch]
        traces = [{"output": output} for output in outputs] if capture_traces else None
        return EvaluationBatch(outputs=outputs, scores=[score(output) for output in outputs], trajectories=traces)

    def make_reflective_dataset(self, candidate, batch, components):
        return {name: [{"Inputs": "q", "Generated Outputs": "a", "Feedback": "f"}] for name in components}

    def _propose(self, candidate, dataset, components):
        self.proposed += 1
        return {name: text(self.proposed) for name in components}


class Clock:
    """CPU time and evaluations at the end of each iteration."""

    def __init__(self, adapter):
        self.adapter = adapter
        self.marks = []

    def on_iteration_end(self, event):
        self.marks.append((time.process_time(), self.adapter.evaluations))


class Quiet:
    def log(self, message):
        pass


def main():
    iterations, val, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    adapter = Adapter()
    clock = Clock(adapter)
    gepa.optimize(
        seed_candidate={"prompt": text(0)},
        trainset=list(range(1000, 1020)),
        valset=list(range(val)),
        adapter=adapter,
        reflection_lm=None,
        max_metric_calls=10**9,
        run_dir=sys.argv[4] if len(sys.argv) > 4 else None,
        seed=0,
        callbacks=[clock],
        logger=Quiet(),
        skip_perfect_score=False,
        stop_callbacks=lambda _: len(clock.marks) >= iterations or time.process_time() > seconds,
    )
    print(json.dumps({"version": version("gepa"), "marks": clock.marks}))


if __name__ == "__main__":
    main()
