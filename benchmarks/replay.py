"""Real model replies, recorded by others, through our parsers, guides and judge: do we score them as they did?

python benchmarks/replay.py FOLDER            some seconds, no network, no key

FOLDER holds any of these files; those that it lacks are named in the result:

- textgrad_mmlu_ml_gpt4o.json (zou-group/textgrad, MIT): 112 questions, five sampled GPT-4o answers each
- gepa_aime_llm_cache.json, gepa_pupa_llm_cache.json (gepa-ai/gepa, MIT): answers, judge scores and reflections

Replies are first written as a capture file (what `trace-opt run --capture` writes), then whole evaluations run under
`replay`, which answers from that file or fails; so recording, rollouts, guides, judge and reply parser are the real ones.
Recorded programs and their tests are benchmarks/leetcode.py's.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import save

from trace_opt import Feedback, Parameter, connect, evaluate, trace
from trace_opt.errors import LLMError, ReplyError
from trace_opt.guides import contains, exact
from trace_opt.llm.base import Message, Reply
from trace_opt.llm.cache import key_of
from trace_opt.llm.replay import Capture, replay
from trace_opt.llm.stack import seeded
from trace_opt.optim.reply import read

MODEL = connect("openai/recorded", base_url="http://127.0.0.1:9", api_key="none", cache=None)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

Recorded = tuple[Sequence[Message], str, int | None]
"""Messages, the reply, and the seed that tells several answers to the same messages apart."""


def tape_of(calls: Sequence[Recorded], folder: Path) -> Path:
    """Recorded calls as a capture file."""
    path = folder / "calls.jsonl"
    path.unlink(missing_ok=True)
    capture = Capture(path)
    for messages, text, seed in calls:
        request = seeded(MODEL.request(messages, **sampled(seed)), MODEL.identity)
        capture.keep(key_of(MODEL.identity, request), request, Reply(text=text))
    return path


def sampled(seed: int | None) -> dict[str, Any]:
    return {} if seed is None else {"seed": seed, "temperature": 1.0}


def agreement(ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, Any]:
    """How many scores are the same, and how the others differ."""
    pairs = list(zip(ours, theirs, strict=True))
    others = Counter(f"theirs {b}, ours {a}" for a, b in pairs if a != b)
    return {"n": len(pairs), "equal": sum(a == b for a, b in pairs), "other": dict(others.most_common(5))}


# -- MMLU: an answer's letter, and the vote of five --------------------------------------------------------------------


@trace
def letter(reply: str) -> str:
    """The last line that names one of four letters, as the prompt asks for; "" where there is none."""
    found = re.findall(r"(?im)^\W*answer\W*([A-D])\b", reply)
    return found[-1].upper() if found else ""


@trace
def vote(letters: list[str]) -> str:
    """The most frequent letter, the earliest of those that are equal."""
    counts = Counter(letters)
    return max(counts, key=lambda each: counts[each])


def mmlu(path: Path, folder: Path) -> dict[str, Any]:
    data: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8"))
    user = {question: [{"role": "user", "content": question}] for question in data}
    calls = [(user[q], text, i) for q, held in data.items() for i, text in enumerate(held["predictions"])]
    examples = [{"question": q, "answer": held["answer"]} for q, held in data.items()]
    scores: dict[str, dict[str, float]] = {}

    def workflow(question: str) -> tuple[str, str, str]:
        letters = [letter(MODEL.reply(user[question], **sampled(i)).text) for i in range(5)]
        return letters[0], letters[-1], vote(letters)

    right = exact("answer")

    def guide(output: tuple[str, str, str], example: dict[str, str]) -> Feedback:
        named = dict(zip(("first", "last", "vote"), output, strict=True))
        scores[example["question"]] = {name: float(right(said, example).value or 0) for name, said in named.items()}
        return Feedback(scores[example["question"]])

    with replay(tape_of(calls, folder)):
        report = evaluate(workflow, examples, guide)
    # TextGrad's own rule: the first match of its pattern anywhere in the reply
    theirs = {
        name: [_first(held["predictions"][place]) == held["answer"] for held in data.values()]
        for name, place in (("first", 0), ("last", -1))
    }
    return {
        "questions": len(data), "answers": len(calls), "failed": report.best.failed,
        "means": {name: round(value, 3) for name, value in report.best.means.items()},
        "textgrads_means": {name: round(sum(right) / len(right), 3) for name, right in theirs.items()},
        **{f"{name}_answers": agreement([scores[q][name] == 1 for q in data], right) for name, right in theirs.items()},
    }  # fmt: skip


def _first(text: str) -> str | None:
    match = re.search(r"(?i)Answer\s*:\s*([A-D])", text)
    return None if match is None else match.group(1)


# -- GEPA: prompts as candidates, a judge, reflections -----------------------------------------------------------------


def gepa(path: Path) -> tuple[list[tuple[list[Message], str]], list[tuple[str, str]]]:
    """Task answers by messages, and what the second model was asked and said."""
    tasks: list[tuple[list[Message], str]] = []
    others: list[tuple[str, str]] = []
    for key, text in json.loads(path.read_text("utf-8")).items():
        kind, asked = ast.literal_eval(key)
        if kind == "task_lm":
            tasks.append((json.loads(asked), text))
        else:
            others.append((asked, text))
    return tasks, others


def by_prompt(tasks: Sequence[tuple[list[Message], str]]) -> dict[str, list[tuple[str, str]]]:
    """Questions with their answers, by system prompt."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for messages, text in tasks:
        system, user = messages
        found[str(system["content"])].append((str(user["content"]), text))
    return found


def answering(prompt: Parameter[str]) -> Any:
    """The workflow of both: a system prompt that is the parameter, and the question."""

    @trace
    def messages(question: str) -> list[Message]:
        # keys in GEPA's order, for the content is hashed as it stands
        return [{"content": prompt.value, "role": "system"}, {"content": question, "role": "user"}]

    return lambda question: MODEL.reply(messages(question)).text


def recorded(tasks: Sequence[tuple[list[Message], str]]) -> list[Recorded]:
    return [(messages, text, None) for messages, text in tasks]


def aime(path: Path, folder: Path) -> dict[str, Any]:
    tasks, reflections = gepa(path)
    right: dict[str, str] = {}
    verdicts: dict[tuple[str, str], float] = {}
    for asked, _ in reflections:
        shown = r"## Inputs\n(.*?)\n\n## Generated Outputs\n(.*?)\n\n## Feedback\nThe generated response is (\w+)\..*?'(### .*?)'"
        for question, answer, verdict, gold in re.findall(shown, asked, re.DOTALL):
            right[question.strip()] = gold
            verdicts[question.strip(), answer.strip()] = float(verdict == "correct")
    prompt = Parameter("", name="prompt")
    workflow = answering(prompt)
    ours: list[float] = []
    theirs: list[float] = []
    with replay(tape_of(recorded(tasks), folder)):
        for system, answers in by_prompt(tasks).items():
            for question, answer in answers:
                gold = right.get(question.strip())
                verdict = verdicts.get((question.strip(), answer.strip()))
                if gold is not None and verdict is not None:
                    example = {"question": question, "answer": gold}
                    report = evaluate(workflow, [example], contains("answer"), values={"prompt": system})
                    ours.append(report.best.mean)
                    theirs.append(verdict)
    named = sum(bool(re.search(r"###\D{0,10}\d", text)) for _, text in tasks)
    return {
        "answers": len(tasks), "prompts": len(by_prompt(tasks)), "name_a_number_as_asked": named,
        "without_a_recorded_verdict_or_right_answer": len(tasks) - len(ours),
        "with_a_recorded_verdict": agreement(ours, theirs),
        "reflections": reflected(reflections, tasks),
    }  # fmt: skip


def pupa(path: Path, folder: Path) -> dict[str, Any]:
    tasks, others = gepa(path)
    judged = {asked: text for asked, text in others if asked.startswith("You are a strict grader.")}
    gold_of = {response: asked for asked in judged if (response := _between(asked, "RESPONSE:\n", "\n\nReturn only"))}
    prompt = Parameter("", name="prompt")
    workflow = answering(prompt)

    def guide(output: str, example: dict[str, str]) -> Feedback:
        asked = f"You are a strict grader. Compare the assistant response to the gold redaction.\nGOLD:\n{example['gold']}\n\nRESPONSE:\n{output}\n\nReturn only a number between 0 and 1."
        said = NUMBER.search(MODEL(asked))
        return Feedback(None if said is None else float(said.group()))

    means: list[dict[str, Any]] = []
    calls = [*recorded(tasks), *[([{"role": "user", "content": asked}], text, None) for asked, text in judged.items()]]
    missing = 0
    with replay(tape_of(calls, folder)):
        for system, answers in by_prompt(tasks).items():
            examples, theirs = [], []
            for question, answer in answers:
                asked = gold_of.get(answer)
                if asked is None:
                    missing += 1  # no judge was asked about this answer
                    continue
                examples.append({"question": question, "gold": _between(asked, "GOLD:\n", "\n\nRESPONSE:\n")})
                theirs.append(float(judged[asked]))
            report = evaluate(workflow, examples, guide, values={"prompt": system})
            mean = sum(theirs) / len(theirs)
            same = abs(report.best.mean - mean) < 1e-12
            means.append({"n": len(theirs), "ours": round(report.best.mean, 4), "theirs": round(mean, 4), "same": same})
    reflections = [pair for pair in others if pair[0] not in judged]
    return {
        "answers": len(tasks), "judge_scores": len(judged), "without_a_judge_score": missing, "prompts": means,
        "a_miss_names_the_prompt": _miss(folder), "reflections": reflected(reflections, tasks),
    }  # fmt: skip


def _between(text: str, left: str, right: str) -> str:
    return text.partition(left)[2].rpartition(right)[0]


def _miss(folder: Path) -> bool:
    """Whether a call that was not captured ends with an error that names its prompt."""
    with replay(folder / "calls.jsonl"):
        try:
            MODEL("nobody asked this")
        except LLMError as error:
            return "nobody asked this" in str(error)
    return False


def reflected(reflections: Sequence[tuple[str, str]], tasks: Sequence[tuple[list[Message], str]]) -> dict[str, Any]:
    """What our reply parser makes of replies that another optimizer asked for: a prompt in a fence, and no JSON.

    GEPA takes what stands between the outermost fences; which of them it went on with shows in the prompts it ran.
    """
    used = {system.strip() for system in by_prompt(tasks)}
    outcomes: Counter[str] = Counter()
    for _, text in reflections:
        wanted = text.partition("```")[2].rpartition("```")[0].strip()
        prompt = Parameter("start", name="instruction")
        shapes = {"as it came": text, "as our optimizers ask for it": json.dumps({"instruction": wanted})}
        for shape, reply in shapes.items():
            try:
                answer = read(reply, [prompt])
            except ReplyError:
                outcomes[f"{shape}: refused, nothing taken"] += 1
                continue
            if not answer.values:
                outcomes[f"{shape}: refused, nothing taken"] += 1
                continue
            value = str(answer.values["instruction"])
            outcomes[f"{shape}: {'the prompt, whole' if value.strip() == wanted else 'another text'}"] += 1
        outcomes["ran as a candidate"] += wanted in used
    return {"replies": len(reflections), **outcomes}


def main() -> None:
    given = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if len(given) != 1:
        raise SystemExit(__doc__)
    data, figures = Path(given[0]), dict[str, Any]()
    files = {
        "mmlu": "textgrad_mmlu_ml_gpt4o.json", "aime": "gepa_aime_llm_cache.json", "pupa": "gepa_pupa_llm_cache.json",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for name, run in (("mmlu", mmlu), ("aime", aime), ("pupa", pupa)):
            path = data / files[name]
            figures[name] = run(path, Path(folder)) if path.exists() else f"{files[name]} is not there"
    # where the data lies is this machine's business
    sys.argv = [Path(sys.argv[0]).name, "FOLDER", *[a for a in sys.argv[1:] if a.startswith("--")]]
    save("replay", figures)


if __name__ == "__main__":
    main()
