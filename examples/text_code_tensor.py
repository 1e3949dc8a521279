"""A text, a function and a tensor of one workflow, improved together.

A model that was told to be brief answers in feet; heights are wanted in metres. What it is told, how its replies are read
and what they are multiplied by are three kinds of parameter: a language model rewrites the first two from what went wrong,
torch moves the third along the gradient of the same feedback. Scripted models stand for real ones, so this runs without a
key; with one, write `connect("openai/gpt-4.1-mini")` and `OptoPrime("openai/gpt-4.1")` in their place.
"""

import json

import torch  # noqa: TID253

from trace_opt import Budget, Feedback, Gradient, OptoPrime, Parameter, optimize, trace
from trace_opt.testing import ScriptedLLM

METRES = {
    "Everest": 8849, "K2": 8611, "Lhotse": 8516, "Makalu": 8485, "Cho Oyu": 8188, "Manaslu": 8163, "Nanga Parbat": 8126,
    "Annapurna": 8091, "Shishapangma": 8027, "Nanda Devi": 7816, "Kamet": 7756, "Tirich Mir": 7708, "Minya Konka": 7509,
    "Pik Ismoil Somoni": 7495, "Noshaq": 7492, "Jengish Chokusu": 7439, "Khan Tengri": 7010, "Aconcagua": 6961,
    "Huascarán": 6768, "Sajama": 6542, "Illimani": 6438, "Coropuna": 6425, "Chimborazo": 6263, "Denali": 6190,
    "Kilimanjaro": 5895, "Cotopaxi": 5897, "Damavand": 5609, "Elbrus": 5642, "Mount Kenya": 5199, "Ararat": 5137,
    "Mont Blanc": 4806, "Matterhorn": 4478, "Whitney": 4421, "Rainier": 4392, "Toubkal": 4167, "Kinabalu": 4095,
    "Teide": 3715, "Etna": 3357, "Triglav": 2864, "Galdhøpiggen": 2469,
}  # fmt: skip


def answers(messages: list) -> str:
    """Stands for the model that is asked: chatty unless it is told to give digits, and fond of feet."""
    told, question = messages[-1]["content"].split("\n")
    feet = round(METRES[question.removeprefix("How high is ").rstrip("?")] / 0.3048)
    return f"{feet:,} feet" if "digits" in told or feet < 18_000 else f"Some {feet / 1000:.0f} thousand feet!"


def proposes(messages: list) -> str:
    """Stands for the optimizer's model: it reads which replies the function could not take, and mends both ends."""
    seen = messages[-1]["content"]
    values = {"style": None, "parse": None}
    if "thousand feet" in seen:
        values["style"] = "Reply with the number in digits."
    if "could not convert string to float" in seen:
        values["parse"] = 'def parse(reply: str) -> float:\n    return float(reply.split()[0].replace(",", ""))\n'
    return json.dumps({"reasoning": "float() is given words, commas and units", "values": values})


llm = ScriptedLLM(answers)
style = Parameter("Reply briefly.", name="style", description="what the model is told about its replies")
scale = Parameter(torch.tensor(1.0), name="scale", description="metres in a unit of the replies")


@trace
def ask(question: str) -> str:
    return llm(f"{style.value}\n{question}")  # a parameter that an op reads is an input of the op


@trace(trainable=True)
def parse(reply: str) -> float:
    """Turn the reply into a number."""
    return float(reply)


@trace
def calibrate(x: float, scale: torch.Tensor) -> torch.Tensor:
    return x * scale


def workflow(question: str) -> torch.Tensor:  # a plain function composes ops
    return calibrate(parse(ask(question)), scale.value)


def guide(output: torch.Tensor, example: dict) -> Feedback:  # a greater score is better
    error = output / example["answer"] - 1
    return Feedback(score=-abs(error.item()), text=f"off by {error.item():+.0%}", loss=error**2)


train = [{"question": f"How high is {name}?", "answer": height} for name, height in METRES.items()]

run = optimize(
    workflow,
    train,
    guide,
    parameters=[style, parse, scale],
    optimizers=[OptoPrime(ScriptedLLM(proposes)), Gradient("adam", lr=0.05, schedule="linear", steps=60)],
    budget=Budget(trials=6),
    store=None,
)
print(run.report())  # first against best on mountains that were kept aside
print(f"\n{run.best['style']}\n{run.best['parse']}scale = {run.best['scale'].item():.4f}")
