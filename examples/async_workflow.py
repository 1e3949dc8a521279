"""An async workflow: three drafts at once, the shortest wins, and the choice itself is part of the graph."""

import asyncio

from trace_opt import Categorical, Feedback, Parameter, optimize, trace

tone = Parameter("formal", name="tone", choices=["formal", "plain", "terse"])
limit = Parameter(200, name="limit", choices=[200, 60, 20])


@trace
async def draft(topic: str, number: int) -> str:
    """One draft; waiting stands for a model call."""
    await asyncio.sleep(0.001)
    opening = {"formal": "We hereby wish to inform you about", "plain": "This is about", "terse": "Re:"}[tone.value]
    return f"{opening} {topic}{'.' * number}"[: limit.value]


async def workflow(topic: str) -> str:
    """Draft three times at once and take the shortest."""
    drafts = await asyncio.gather(*[draft(topic, i) for i in range(3)])
    return min(drafts, key=len)


def guide(output: str, topic: str) -> Feedback:
    """Short is good, but the topic has to be in it."""
    if topic not in output:
        return Feedback(score=0.0, text=f"{topic!r} is missing")
    return Feedback(score=1 - len(output) / 100, text=f"{len(output)} characters")


topics = ["rent", "parking", "the garden", "noise", "heating", "keys", "the lift", "post", "bikes", "bins"]
run = optimize(workflow, topics, guide, optimizers=[Categorical()], seed=0, store=None)
print(run.report())
print(run.best)
