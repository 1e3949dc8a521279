"""One run of a peer's optimizer for benchmarks/headlines_peers.py, in an environment that has dspy and gepa.

Reads a job as JSON from standard input and writes what came of it, as JSON, to standard output. It asks the models of
benchmarks/headlines_server.py and counts every evaluation of the task itself: one example run with one prompt. Runs
of the test examples come last and are counted apart.

All get the prompt of agents/headlines.py as it stands at the start; what they may change is the instruction and, for
dspy, the headlines shown. dspy formats that prompt through an adapter of our own, which asks the same of the model as
the agent does, so that searches are compared and not formats; "stock" uses dspy's own ChatAdapter and takes an answer
that it cannot parse, or that is none of the topics, as wrong. gepa gets the prompt as a system of one component
through its adapter protocol, with the guide's sentences as feedback.
"""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

Messages = list[dict[str, str]]
Example = Mapping[str, str]


class Base(TypedDict):
    """What is fixed about a prompt: the topics as they are listed, and what precedes a headline and an answer."""

    topics: str
    prefix: str
    cue: str
    turns: bool


class Job(TypedDict):
    """See `main`.

    `settings` goes to the optimizer. `val` are examples to choose by, `budget` the evaluations before the test.
    """

    method: str
    seed: int
    url: str
    key: str
    base: Base
    instruction: str
    train: list[dict[str, str]]
    val: list[dict[str, str]]
    test: list[dict[str, str]]
    budget: int
    settings: dict[str, Any]


class Found(TypedDict):
    """Answers to the test examples before and after, evaluations before the test, and the prompt that was chosen."""

    start: list[str | None]
    best: list[str | None]
    evaluations: int
    instruction: str
    shown: list[dict[str, str]]


class SpentError(Exception):
    """The evaluations are used up."""


def prompt(base: Base, instruction: str, shown: Sequence[Example], headline: str) -> Messages:
    """The conversation of agents/headlines.py; the words at which the answer starts are a last assistant message."""
    told = instruction.replace("{topics}", base["topics"])
    pairs = [(base["prefix"] + e["headline"], f"{base['cue']} {e['topic']}".strip()) for e in shown]
    asked = base["prefix"] + headline
    if base["turns"]:
        turns = [
            {"role": role, "content": text} for p in pairs for role, text in zip(("user", "assistant"), p, strict=True)
        ]
        messages = [{"role": "system", "content": told}, *turns, {"role": "user", "content": asked}]
    else:
        lines = [told, *(line for pair in pairs for line in pair), asked]
        messages = [{"role": "user", "content": "\n".join(lines)}]
    return [*messages, {"role": "assistant", "content": base["cue"]}] if base["cue"] else messages


def post(job: Job, model: str, messages: Messages) -> str:
    """One request to the server."""
    request = urllib.request.Request(
        f"{job['url']}/chat/completions",
        json.dumps({"model": model, "messages": messages}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {job['key']}"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


class Count:
    """Evaluations so far, and where they must end.

    Attributes:
        used: How many were made.
    """

    def __init__(self, limit: int | None) -> None:
        self.used = 0
        self._limit = limit

    def take(self) -> None:
        """Count one.

        Raises:
            SpentError: there is none left.
        """
        if self._limit is not None and self.used >= self._limit:
            raise SpentError(f"the {self._limit} evaluations are used up")
        self.used += 1


def with_gepa(job: Job) -> Found:
    """`gepa.optimize`: reflective evolution of the instruction, under its own limit on metric calls."""
    import gepa

    count = Count(None)

    def answer(instruction: str, headline: str) -> str:
        return post(job, "topic", prompt(job["base"], instruction, (), headline))

    class Adapter:
        propose_new_texts = None

        def evaluate(self, batch: list[Example], candidate: dict[str, str], capture_traces: bool = False) -> Any:
            for _ in batch:
                count.take()
            outputs = [answer(candidate["instruction"], example["headline"]) for example in batch]
            scores = [float(output == example["topic"]) for output, example in zip(outputs, batch, strict=True)]
            traces = list(zip(batch, outputs, strict=True)) if capture_traces else None
            return gepa.EvaluationBatch(outputs=outputs, scores=scores, trajectories=traces)

        def make_reflective_dataset(self, candidate: dict[str, str], eval_batch: Any, components: list[str]) -> Any:
            records = [
                {"Inputs": {"headline": e["headline"]}, "Generated Outputs": output, "Feedback": feedback(e, output)}
                for e, output in eval_batch.trajectories
            ]
            return dict.fromkeys(components, records)

    found = gepa.optimize(
        seed_candidate={"instruction": job["instruction"]}, trainset=job["train"], valset=job["val"], adapter=Adapter(),
        reflection_lm=lambda text: post(job, "proposer", [{"role": "user", "content": str(text)}]), seed=job["seed"],
        max_metric_calls=job["budget"], display_progress_bar=False, **job["settings"],
    )  # fmt: skip
    best = found.best_candidate
    chosen = best["instruction"] if isinstance(best, dict) else best
    start, after = ([answer(text, e["headline"]) for e in job["test"]] for text in (job["instruction"], chosen))
    return Found(start=start, best=after, evaluations=count.used, instruction=chosen, shown=[])


def feedback(example: Example, output: str) -> str:
    """What the agent's guide says."""
    right = example["topic"]
    if output == right:
        return f"{right!r} is right"
    return f"{example['headline']!r} is about {right!r}, not {output!r}"


def with_dspy(job: Job) -> Found:
    """dspy's `MIPROv2` or `BootstrapFewShotWithRandomSearch`: demonstrations and, for the first, instructions."""
    import dspy

    stock = "stock" in job["method"]
    served: dict[str, Any] = {"api_base": job["url"], "api_key": job["key"], "cache": False, "num_retries": 0}
    task = dspy.LM(f"openai/{'text' if stock else 'topic'}", temperature=0.0, max_tokens=48, **served)
    proposer = dspy.LM("openai/proposer", temperature=1.0, max_tokens=1000, **served)

    class Plain(dspy.ChatAdapter):
        """The agent's prompt for the task; the signatures of dspy's own proposer as ChatAdapter has them."""

        def format(self, signature: Any, demos: list[Any], inputs: dict[str, Any]) -> Any:
            if "topic" not in signature.output_fields:
                return super().format(signature, demos, inputs)
            return prompt(job["base"], signature.instructions, demos, inputs["headline"])

        def parse(self, signature: Any, completion: str) -> dict[str, Any]:
            return (
                super().parse(signature, completion)
                if "topic" not in signature.output_fields
                else {"topic": completion}
            )

    count = Count(job["budget"])
    whole: dict[str, tuple[Any, dict[str, float]]] = {}
    chosen_by = {e["headline"] for e in job["val"]}

    class Task(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predict = dspy.Predict(dspy.Signature("headline -> topic", job["instruction"]))

        def forward(self, headline: str) -> Any:
            count.take()
            return self.predict(headline=headline)

    def shown(program: Any) -> list[dict[str, str]]:
        return [{"headline": d["headline"], "topic": d["topic"]} for d in program.predict.demos]

    def metric(example: Any, prediction: Any, trace: Any = None) -> bool:
        return example.topic == str(prediction.topic).strip().casefold()

    def examples(given: Sequence[Example]) -> list[Any]:
        return [dspy.Example(**e).with_inputs("headline") for e in given]

    def answers(program: Any) -> list[str | None]:
        found: list[str | None] = []
        for e in job["test"]:
            try:
                found.append(str(program.predict(headline=e["headline"]).topic).strip().casefold())
            except Exception as error:
                print(f"no answer: {error}"[:200], file=sys.stderr)
                found.append(None)
        return found

    evaluated(dspy, metric, whole, chosen_by)
    common: dict[str, Any] = {"metric": metric, "num_threads": 1, "max_errors": 10_000 if stock else 1}
    with dspy.context(lm=task, adapter=dspy.ChatAdapter() if stock else Plain()):
        student = Task()
        try:
            best = compiled(dspy, job, student, proposer, common, examples)
        except Exception as error:
            if not whole:
                raise
            print(f"cut off: {error}"[:300], file=sys.stderr)
            best = max(whole.values(), key=lambda kept: sum(kept[1].values()) / len(kept[1]))[0]
        used = count.used
        return Found(
            start=answers(student), best=answers(best), evaluations=used, shown=shown(best),
            instruction=best.predict.signature.instructions,
        )  # fmt: skip


def evaluated(dspy: Any, metric: Callable[..., bool], whole: dict[str, Any], chosen_by: set[str]) -> None:
    """Note every program that dspy evaluates on all validation examples, for a run that is cut off."""
    original = dspy.Evaluate.__call__

    def noting(self: Any, program: Any, *args: Any, **options: Any) -> Any:
        result = original(self, program, *args, **options)
        scores = {example.headline: float(score) for example, _, score in result.results}
        if scores.keys() >= chosen_by:
            whole[str(len(whole))] = (program.deepcopy(), scores)
        return result

    dspy.Evaluate.__call__ = noting


def compiled(
    dspy: Any, job: Job, student: Any, proposer: Any, common: dict[str, Any], examples: Callable[..., Any]
) -> Any:
    """The program that the optimizer makes."""
    made, compiling = job["settings"]["made"], job["settings"].get("compiled", {})
    given = {"trainset": examples(job["train"]), "valset": examples(job["val"]), **compiling}
    if job["method"].startswith("MIPROv2"):
        teleprompter = dspy.MIPROv2(prompt_model=proposer, seed=job["seed"], auto=None, **common, **made)
        return teleprompter.compile(student, **given)
    return dspy.BootstrapFewShotWithRandomSearch(**common, **made).compile(student, **given)


def main() -> None:
    """Do the job that standard input holds."""
    job: Job = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        found = with_gepa(job) if job["method"].startswith("gepa") else with_dspy(job)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
