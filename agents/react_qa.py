"""A ReAct agent that answers questions from paragraphs, and tries again with what it learned from its failures.

In each of a few turns the model thinks and calls one tool: `Search[title]` shows the beginning of a paragraph, `Lookup[word]`
the next sentence of it with the word, `Finish[answer]` ends the attempt. A wrong attempt is told to a reflector, whose
reflection goes into the next attempt's prompt (Reflexion). With `rewrite` the instructions are tuned; with `refine` the
reflector, then a local model, is trained on what its reflections were worth (Retroformer).

    trace-opt run agents/react_qa.py
    trace-opt run agents/react_qa.py --set path=hotpot.jsonl --set model=openai/gpt-4.1-nano
    trace-opt run agents/react_qa.py --set path=hotpot.jsonl --set model=openai/gpt-4.1-nano --set refine=true

The first line needs no data, key or network: the questions are made here, and the embedded model, too small for them, shows
that everything runs. A file holds one question a line, as JSON with `question`, `answer` and `paragraphs`, each with `title`
and `sentences`: HotPotQA's distractor setting (arXiv 1809.09600) so arranged. Such files are no part of this project.

Sources: ReAct, arXiv 2210.03629; Reflexion, arXiv 2303.11366. Answers are compared as HotPotQA's official evaluation does.
"""

from __future__ import annotations

import difflib
import functools
import random
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

from trace_opt import Categorical, Feedback, Module, OptoPrime, Parameter, TrainablePolicy, connect, rollout, trace
from trace_opt.core.graph import Graph
from trace_opt.errors import ProblemError
from trace_opt.llm.base import LLM, Message
from trace_opt.optim.base import Optimizer
from trace_opt.problem import Problem
from trace_opt.refine.episodes import Episodes
from trace_opt.refine.refiner import Refiner

SEARCH, LOOKUP, FINISH, NONE = "search", "lookup", "finish", "none"  # the last is that of a reply without a call
INSTRUCTIONS = (
    """\
Answer the question. In each turn write two lines:
Thought: what to do next
Action: Search[title], Lookup[word] or Finish[answer]""",
    """\
Answer the question from paragraphs, which you find by their titles. In each turn write two lines:
Thought: what you know and what is missing
Action: Search[name of a person, place or work], Lookup[word in the paragraph found last], or Finish[answer]
Most questions need two paragraphs. Give the answer as a name, a number, yes or no, without a sentence around it.""",
)
SHOWN = 5  # sentences of a paragraph that a search shows; the others are found by looking words up
LONGEST_REPLY, LONGEST_INPUT = 4000, 200


class Paragraph(TypedDict):
    """What can be searched for; sentences keep their blanks."""

    title: str
    sentences: list[str]


class Question(TypedDict):
    """One task."""

    question: str
    answer: str
    paragraphs: list[Paragraph]


class Step(TypedDict):
    """One turn: what was thought and called, and what came of it."""

    thought: str
    tool: str
    input: str
    observation: str


class Work(TypedDict):
    """One attempt: the answer, None where there is none, and the turns that led there."""

    answer: str | None
    steps: list[Step]


def search(paragraphs: Sequence[Paragraph], title: str) -> tuple[str, Paragraph | None]:
    """The beginning of the paragraph with a title, whatever its case; else which titles are like it."""
    by_title = {paragraph["title"].casefold(): paragraph for paragraph in paragraphs}
    found = by_title.get(title.strip().casefold())
    if found is None:
        near = difflib.get_close_matches(title.strip().casefold(), by_title, n=5, cutoff=0.3)
        similar = ", ".join(by_title[name]["title"] for name in near)
        return f"There is no paragraph {title!r}." + (f" Similar titles: {similar}." if near else ""), None
    return "".join(found["sentences"][:SHOWN]).strip(), found


def lookup(paragraph: Paragraph, word: str, seen: int) -> str:
    """The next sentence with a word, in any case, after those seen before."""
    with_it = [sentence for sentence in paragraph["sentences"] if word.strip().casefold() in sentence.casefold()]
    if seen >= len(with_it):
        return f"There is no {'other ' if seen else ''}sentence with {word!r} in {paragraph['title']!r}."
    return f"({seen + 1} of {len(with_it)}) {with_it[seen].strip()}"


def looked_up(steps: Sequence[Step], word: str, paragraphs: Sequence[Paragraph]) -> str:
    """What a lookup shows: of the paragraph found last, the next sentence."""
    page: Paragraph | None = None
    seen = 0
    for step in steps:
        if step["tool"] == SEARCH and (found := search(paragraphs, step["input"])[1]) is not None:
            page, seen = found, 0
        elif step["tool"] == LOOKUP and step["input"].casefold() == word.casefold():
            seen += 1
    return lookup(page, word, seen) if page else "No paragraph has been found yet; search for a title first."


ACTION = re.compile(r"(?i)(?:\**action(?: \d+)?\**:\**\s*)?\b(search|lookup|finish)[ \t]*\[(.*)\]")


def action_in(reply: str) -> tuple[str, str, str]:
    """The thought, the tool and its input in a reply: its first call; NONE and the reply's beginning where there is none.

    What a model makes up after its call, an observation for instance, does not count.
    """
    said = re.split(r"(?im)^\W*observation", reply[:LONGEST_REPLY])[0]
    found = ACTION.search(said)
    if not found or not found[2].strip():
        return "", NONE, reply.strip()[:LONGEST_INPUT]
    thought = re.sub(r"(?i)^\W*thought(?: \d+)?\**:\**\s*", "", said[: found.start()].strip())
    return thought, found[1].casefold(), found[2].strip()[:LONGEST_INPUT]


class Agent(Module):
    """Thinks, calls a tool, and reads what came of it, until it finishes or its steps are used up.

    Args:
        llm: The model.
        steps: How many turns an attempt has.
        rewrite: Whether the instructions may be any; one of those given otherwise.
        tokens: The longest reply.
    """

    def __init__(self, llm: LLM, *, steps: int = 6, rewrite: bool = False, tokens: int = 160) -> None:
        super().__init__()
        self.llm = llm
        self.steps = steps
        self.tokens = tokens
        self.instructions = Parameter(
            INSTRUCTIONS[0], description="What the model is told about its task, its actions and how to write them.",
            suggestions=None if rewrite else INSTRUCTIONS[1:],
        )  # fmt: skip

    @trace
    def ask(self, question: str, steps: Sequence[Step], reflection: str) -> str:
        """The model's next turn, given those before with what came of them, and what earlier attempts taught."""
        asked = f"Question: {question}"
        if reflection:
            asked = f"Earlier attempts at this question failed. What they taught:\n{reflection}\n\n{asked}"
        messages: list[Message] = [
            {"role": "system", "content": self.instructions.value}, {"role": "user", "content": asked},
        ]  # fmt: skip
        for step in steps:
            messages += [
                {"role": "assistant", "content": written(step)},
                {"role": "user", "content": f"Observation: {step['observation']}"},
            ]
        return self.llm.reply(messages, max_tokens=self.tokens, stop=("\nObservation",)).text

    @trace
    def act(self, steps: list[Step], reply: str, paragraphs: list[Paragraph]) -> Step:
        """The call of a reply, made."""
        thought, tool, given = action_in(reply)
        said = ""
        if tool == NONE:
            said = "That is no action. Write 'Action: ' and then Search[title], Lookup[word] or Finish[answer]."
        elif tool != FINISH:
            said = search(paragraphs, given)[0] if tool == SEARCH else looked_up(steps, given, paragraphs)
        return {"thought": thought, "tool": tool, "input": given, "observation": said}

    @trace
    def finish(self, steps: list[Step]) -> Work:
        """The answer, where the last turn gave one."""
        last = steps[-1]
        return {"answer": last["input"] if last["tool"] == FINISH else None, "steps": steps}

    def __call__(self, question: str, paragraphs: list[Paragraph], reflection: str = "") -> Work:
        """One attempt."""
        steps: list[Step] = []
        for _ in range(self.steps):
            reply = self.ask(question, steps, reflection)
            steps.append(self.act(steps, reply, paragraphs))
            if steps[-1]["tool"] == FINISH:
                break
        return self.finish(steps)


def guess(question: str, paragraphs: list[Paragraph], reflection: str = "") -> Work:  # noqa: ARG001 # an attempt
    """An attempt by chance: the answer is a title."""
    title = rollout().rng.choice(paragraphs)["title"]
    return {"answer": title, "steps": [{"thought": "", "tool": FINISH, "input": title, "observation": ""}]}


def written(step: Step) -> str:
    """A turn as the model is to write it."""
    if step["tool"] == NONE:
        return step["input"] or "(nothing)"
    return f"Thought: {step['thought']}\nAction: {step['tool'].capitalize()}[{step['input']}]"


_CLOSED = ("yes", "no", "noanswer")  # right as a whole or not at all


def plain_answer(text: str) -> str:
    """An answer in lower case, without ASCII punctuation, then without articles, its words one blank apart."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(answer: str, wanted: str) -> float:
    """1 where both are the same but for case, punctuation, articles and blanks."""
    return float(plain_answer(answer) == plain_answer(wanted))


def f1(answer: str, wanted: str) -> float:
    """The harmonic mean of the shares of words that each has in common with the other."""
    said, right = plain_answer(answer), plain_answer(wanted)
    if said != right and (said in _CLOSED or right in _CLOSED):
        return 0.0
    mine, theirs = said.split(), right.split()
    common = (Counter(mine) & Counter(theirs)).total()
    return 2 * common / (len(mine) + len(theirs)) if common else 0.0


Measure = Literal["f1", "em"]


def guide(work: Work, example: Question, measure: Measure = "f1") -> Feedback:
    """What an attempt is worth, and in words what came of it; the right answer is not told."""
    answer, steps = work["answer"], work["steps"]
    if answer is None:
        return Feedback(0.0, f"no answer in {len(steps)} turns; {fault(steps) or 'it never finished'}")
    score = (f1 if measure == "f1" else exact_match)(answer, example["answer"])
    if score == 1.0:
        return Feedback(1.0, f"{answer!r} is right, in {len(steps)} turns")
    partly = "partly right" if score else "wrong"
    return Feedback(score, "; ".join(filter(None, (f"the answer {answer!r} is {partly}", fault(steps)))))


def fault(steps: Sequence[Step]) -> str:
    """The first thing that went wrong in the turns, or nothing."""
    for step in steps:
        if step["tool"] == NONE:
            return f"{step['input'][:80]!r} calls no tool"
        if step["observation"].startswith(("There is no ", "No paragraph")):
            return f"{step['tool'].capitalize()}[{step['input'][:80]}] found nothing"
    return "" if any(step["tool"] == SEARCH for step in steps) else "it searched for nothing"


def load(path: Path) -> list[Question]:
    """The questions in a file, one JSON object a line.

    Raises:
        ProblemError: it cannot be read, or a line is no question; the message names the line.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"{str(path)!r} cannot be read as UTF-8 text ({error}); give a file of questions") from None
    row = TypeAdapter(Question)
    found: list[Question] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            read = row.validate_json(line, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the line"
            raise ProblemError(
                f"line {number} of {str(path)!r} is no question ({where}: {first['msg']}); expected "
                '{"question": "...", "answer": "...", "paragraphs": [{"title": "...", "sentences": ["..."]}, ...]}'
            ) from None
        if not (read["question"].strip() and read["answer"].strip() and read["paragraphs"]):
            raise ProblemError(f"line {number} of {str(path)!r} has no question, answer or paragraph; leave it out")
        found.append(read)
    if not found:
        raise ProblemError(f"{str(path)!r} holds no question; give a file with one a line")
    return found


PAINTERS = ("Ilse Varga", "Pim Oldroyd", "Sara Tveit", "Hugo Brandt", "Nell Ashby", "Otto Kivi", "Rosa Lund")
PAINTINGS = ("The Green Stair", "Low Water", "Seven Lamps", "A Quiet Yard", "The Weighing", "Salt Field", "North Gate")
TOWNS = ("Arvik", "Dunsel", "Port Hale", "Merrow", "Stenna", "Calder Bay")
MOST = 200


def made(count: int, seed: int) -> list[Question]:
    """Made-up questions whose answer takes two or four of ten paragraphs, as HotPotQA's.

    Raises:
        ProblemError: more than MOST are asked for.
    """
    if count > MOST:
        raise ProblemError(f"{count} questions are asked for; at most {MOST} are made")
    rng = random.Random(seed)  # noqa: S311 # can be repeated
    found: dict[str, Question] = {}
    while len(found) < count:
        painters, paintings, towns = rng.sample(PAINTERS, 5), rng.sample(PAINTINGS, 5), rng.choices(TOWNS, k=5)
        years = rng.sample(range(1830, 1930), 5)
        texts: dict[str, list[str]] = {}
        for painter, painting, year, town in zip(painters, paintings, years, towns, strict=True):
            texts[painting] = [f"{painting} is a painting by {painter}.", f" It was finished in {year}."]
            texts[painter] = [f"{painter} was a painter.", f" {painter} was born in {town}."]
        titles = rng.sample(list(texts), 10)
        paragraphs: list[Paragraph] = [{"title": title, "sentences": texts[title]} for title in titles]
        one, other = (f"{painting} ({year})" for painting, year in zip(paintings[:2], years, strict=False))
        question, answer = rng.choice([
            (f"In which town was the painter of {one} born?", towns[0]),
            (f"Were the painters of {one} and {other} born in one town?", "yes" if towns[0] == towns[1] else "no"),
        ])  # fmt: skip
        found.setdefault(question, {"question": question, "answer": answer, "paragraphs": paragraphs})
    return list(found.values())


LOOK_BACK = """\
An agent answers questions from paragraphs: Search[title] shows the beginning of one, Lookup[word] its next sentence with a \
word, Finish[answer] ends the attempt. Its attempt below was wrong, and it will try again from the start. Say in two or \
three sentences why it failed, and what to search for and to answer instead."""
ROOM = 3000  # characters of all observations that a reflector is shown


def render(
    task: Question, graph: Graph, output: Work | None, feedback: Feedback, memory: tuple[str, ...]
) -> list[Message]:
    """The reflector's prompt: the question without its answer, the turns, and what earlier reflections said."""
    del graph  # the turns are all there is to it
    shown = f"{turns(output['steps'])}\n\n" if output else ""
    text = f"Question: {task['question']}\n\n{shown}Result: {feedback.text[:400]}"
    if memory:
        text += "\n\nSaid after earlier attempts:\n" + "\n".join(f"- {said[:600]}" for said in memory[-3:])
    return [{"role": "system", "content": LOOK_BACK}, {"role": "user", "content": text}]


def turns(steps: Sequence[Step]) -> str:
    """An attempt as text; observations are cut where it is long."""
    room = ROOM // len(steps)
    told = ((written(step)[:600], step["observation"]) for step in steps)
    return "\n".join(f"{text}\nObservation: {seen[:room]}" if seen else text for text, seen in told)


def problem(
    *, path: Path | None = None, examples: int | None = None, model: str = "embedded/smollm2", reflector: str | None = None,
    attempts: int = 4, steps: int = 6, measure: Measure = "f1", rewrite: bool = False, refine: bool = False, seed: int = 0,
) -> Problem:  # fmt: skip
    """Answer questions from paragraphs, with several attempts at each.

    Args:
        path: A file of questions; without it questions are made.
        examples: How many are used, drawn by the seed; all of a file's by default, or 60 made ones.
        model: The model that answers.
        reflector: The model that looks back on failed attempts: by default the one that answers; with `refine` what
            `TrainablePolicy` takes, by default "smollm2".
        attempts: How many each question gets at most; 1 is an agent without retries.
        steps: How many turns an attempt has.
        measure: What an attempt is worth: "f1", the words shared with the right answer, or "em", 1 for the right answer.
        rewrite: Whether a language model rewrites the instructions (it needs --model or a key); else they are chosen among
            those given.
        refine: Whether the reflector is trained on what its reflections were worth, in place of choosing instructions.
        seed: Which questions are drawn, how they are split, and all chance of the search.
    """
    if min(attempts, steps, 1 if examples is None else examples) < 1:
        raise ProblemError(f"attempts={attempts}, steps={steps}, examples={examples}: give at least 1 of each")
    found = made(examples or 60, seed) if path is None else load(path)
    if examples is not None:
        found = random.Random(seed).sample(found, min(len(found), examples))  # noqa: S311 # can be repeated
    actor = Agent(connect(model), steps=steps, rewrite=rewrite, tokens=48 if model.startswith("embedded/") else 160)
    rewriters: list[Optimizer] = [OptoPrime()] if rewrite else [] if refine else [Categorical()]
    trained = TrainablePolicy(reflector or "smollm2", name="reflector") if refine else None
    workflow = Episodes(
        actor, trained or (actor.llm if reflector is None else connect(reflector)),
        guide=functools.partial(guide, measure=measure), attempts=attempts, memory=None, render=render, max_tokens=96,
    )  # fmt: skip
    return Problem(
        workflow=workflow,
        train=found,
        guide=workflow.scored,
        parameters=[*([actor.instructions] if rewriters else []), *([trained.adapter] if trained else [])],
        optimizers=[*rewriters, *([Refiner(trained)] if trained else [])],
        seed=seed,
        score_range=(0.0, 1.0),
        margins=workflow.margins,
        controls=workflow.controls(guess, tasks=found),
        description="questions answered from paragraphs, with retries",
    )
