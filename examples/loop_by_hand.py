"""The loop by hand, in PyTorch's words: record, backward, step, zero_feedback.

A scripted model stands for a real one, so this runs without a key; with one, pass "openai/gpt-4.1-mini" instead.
"""

import json

from trace_opt import OptoPrime, Parameter, record, trace
from trace_opt.testing import ScriptedLLM

style = Parameter("Answer at length.", name="style", description="tone of the answer")


@trace
def answer(question: str) -> str:
    """Answer a question in the style asked for."""
    facts = "The Moon is 384,400 km away."
    return facts if "short" in style.value else f"What a question! {question} Let me begin with the ancients. {facts}"


model = ScriptedLLM(lambda messages: json.dumps({"reasoning": "too long", "values": {"style": "Keep it short."}}))
optimizer = OptoPrime(model)
for _ in range(2):
    with record() as graph:
        output = answer("How far is the Moon?")
    print(output)
    if len(str(output)) < 40:
        break
    optimizer.backward(output, "too long; answer in one line")
    optimizer.step()
    optimizer.zero_feedback()

print("style is now:", style.value)
print(graph.to_text())
