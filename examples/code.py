"""A parser that mends itself from its traceback.

The source of `parse` is a parameter. What the user wrote runs in process; what the model writes runs in a sandbox that can
touch nothing. A scripted model stands for a real one, so this runs without a key; with one, pass "openai/gpt-4.1-mini".
"""

import json
import re

from trace_opt import OptoPrime, parameter_of, record, trace
from trace_opt.core.code import diff
from trace_opt.core.codefile import export
from trace_opt.errors import OpError
from trace_opt.testing import ScriptedLLM

REPLIES = {"How far is the Moon?": "About 384,400 km.", "How many planets are there?": "8", "How high is K2?": "8611 m"}


@trace
def ask(question: str) -> str:
    """Ask somebody who likes to talk."""
    return REPLIES[question]


@trace(trainable=True)
def parse(reply: str) -> float:
    """Turn a reply into a number."""
    return float(reply)


def mends_the_line(messages: list) -> str:
    """Stands for a model: it puts a search for digits around what the line that failed calls with text."""
    text = messages[-1]["content"]
    failed = re.search(r"File \"<parse>\", line (\d+)", text)
    if failed is None or "could not convert string to float" not in text:
        return json.dumps({"reasoning": "nothing failed", "values": {"parse": None}})
    number = int(failed[1])
    hunk = f"@@ -{number} +{number},2 @@\n-    return float(reply)\n"
    hunk += '+    digits = re.search(r"[0-9][0-9,.]*", reply)[0]\n+    return float(digits.replace(",", ""))\n'
    source = f"--- parse\n+++ parse\n@@ -1 +1,2 @@\n+import re\n def parse(reply: str) -> float:\n{hunk}"
    return json.dumps({"reasoning": f"line {number} is given words", "values": {"parse": source}})


optimizer = OptoPrime(ScriptedLLM(mends_the_line))
before = parameter_of(parse).value
for attempt in range(3):
    failures = 0
    for question in REPLIES:
        try:
            with record():
                answer = parse(ask(question))
        except OpError as error:
            failures += 1
            optimizer.backward(error, str(error))
        else:
            optimizer.backward(answer, 1.0)
    print(f"attempt {attempt}: {failures} of {len(REPLIES)} replies could not be read")
    if not failures:
        break
    optimizer.step()
    optimizer.zero_feedback()

parameter = parameter_of(parse)
print(diff(before, parameter.value, "parse"))
print(export({"parse": parameter.value}, {"parse": parameter.code.contract}, title="The parser, as it mended itself."))
