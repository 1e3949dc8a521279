"""One workflow, two kinds of parameters: a prompt that is searched, and a tensor that is trained through the graph.

A small language model says how likely a review is good; its odds are lopsided, so two numbers stretch and shift them.
Which words to ask with has no gradient: all combinations are raced. How to read the answer has one: torch takes it from
the same loss, and the model is asked once for each review, however many steps the training takes.
"""

import torch  # noqa: TID253

from trace_opt import Budget, Categorical, Feedback, Gradient, Parameter, connect, evaluate, optimize, trace

llm = connect("embedded/smollm2")  # runs on one CPU thread: no key, no network
instruction = Parameter("Classify.", name="instruction", choices=["Classify.", "Judge the review."])
cue = Parameter("", name="cue", choices=["", "Verdict:", "The review is"])
calibration = Parameter(torch.tensor([1.0, 0.0]), name="calibration", description="factor and shift of the log-odds")


@trace
def odds(text: str) -> float:
    """The model's log-odds that a review is good."""
    reply = llm.reply(f"{instruction.value}\n{text}", answers=("good", "bad"), prefill=cue.value)
    return reply.logprobs[0] - reply.logprobs[1]


@trace
def calibrate(log_odds: float, calibration: torch.Tensor) -> torch.Tensor:
    return calibration[0] * log_odds + calibration[1]


def workflow(text: str) -> torch.Tensor:
    return calibrate(odds(text), calibration.value)


def guide(log_odds: torch.Tensor, example: dict) -> Feedback:
    right = log_odds if example["answer"] == "good" else -log_odds
    loss = torch.nn.functional.softplus(-right)  # -log(chance given to the right answer)
    said = "right" if right > 0 else "wrong"
    return Feedback({"log-likelihood": -loss.item(), "right": said == "right"}, f"{said}: {example['text']}", loss)


words = {"good": ["lovely", "superb", "a delight", "well made"], "bad": ["awful", "broken", "a waste", "too slow"]}
things = ["phone", "hotel", "novel", "soup", "film"]
reviews = [{"text": f"The {t} was {w}.", "answer": a} for a in words for w in words[a] for t in things]

run = optimize(
    workflow,
    reviews,
    guide,
    optimizers=[Categorical(), Gradient("adam", lr=0.2, steps=60, total_steps=120)],
    race=["instruction", "cue"],
    budget=Budget(trials=8),
    store=None,
)
print(run.report())  # start and best on held-out reviews
text_alone = {name: run.best[name] for name in ("instruction", "cue")}
for what, values in {"start": {}, "best text alone": text_alone, "text and tensor": run.best}.items():
    found = evaluate(workflow, reviews, guide, values=values).best
    print(f"{what:16} log-likelihood {found.mean:.3f}, {found.means['right']:.0%} right")
