"""A workflow that fails, and an optimizer that reads the traceback.

The error node gets the feedback, so the pattern that caused the failure is in its slice. A scripted model stands for a
real one, so this runs without a key; with one, pass "openai/gpt-4.1-mini" instead.
"""

import json
import re

from trace_opt import OptoPrime, Parameter, record, trace
from trace_opt.errors import OpError
from trace_opt.testing import ScriptedLLM

pattern = Parameter(r"(\d+", name="pattern", description="regular expression whose first group is the price")


@trace
def price(text: str) -> int:
    """Find a price in a text."""
    return int(re.search(pattern.value, text).group(1))


def reads_the_traceback(messages: list) -> str:
    """Stands for a model: it closes the group when the problem text says that one is open."""
    text = str(messages)
    fixed = r"(\d+)" if "unterminated subpattern" in text else r"(\d+"
    return json.dumps({"reasoning": "a parenthesis is missing", "values": {"pattern": fixed}})


optimizer = OptoPrime(ScriptedLLM(reads_the_traceback))
for attempt in range(3):
    try:
        with record():
            output = price("It costs 42 euros.")
    except OpError as error:
        print(f"attempt {attempt}: {error}")
        optimizer.backward(error, str(error))
        optimizer.step()
        optimizer.zero_feedback()
    else:
        print(f"attempt {attempt}: {output}")
        break
