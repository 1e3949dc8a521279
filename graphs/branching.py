"""A branching workflow: which calls are made depends on the message, and on variables that only decisions read.

No value of a variable flows into the output: the desk's name is a constant of the branch. Whoever keeps no trace of
decisions finds nothing to improve here. At the start no message reaches the inner branch, so the second variable comes
into play only once the first is right.
"""

from __future__ import annotations

from typing import Any

from trace_opt import Categorical, Feedback, Parameter, trace
from trace_opt.problem import Problem

OPTIMUM = {"keyword": "refund", "ignore_case": True, "limit": 200}
BEST_SCORE = 1.0
"""Mean score at the optimum."""

MESSAGES = (
    ("Please refund my order.", 40, "refunds"),
    ("Where is my parcel?", 40, "general"),
    ("I want a refund for the broken lamp.", 320, "manager"),
    ("Refund the second ticket, please.", 150, "refunds"),
    ("Your invoice lists the wrong street.", 320, "general"),
    ("Could you refund the shipping?", 260, "manager"),
    ("The lamp on my order is broken, what now?", 150, "general"),
    ("REFUND! Now!", 500, "manager"),
    ("Thank you, the parcel is here.", 500, "general"),
    ("Please send the invoice again.", 260, "general"),
    ("My refund is still missing.", 120, "refunds"),
    ("I would like a refund of the deposit.", 900, "manager"),
)
"""A message, the amount it is about, and the desk it belongs to."""


@trace
def mentions(message: str, word: str, ignore_case: bool) -> bool:  # a variable of the problem
    """Whether a message holds a word: `word.lower() in message.lower() if ignore_case else word in message`."""
    return word.lower() in message.lower() if ignore_case else word in message


@trace
def exceeds(amount: int, limit: int) -> bool:
    """Whether an amount needs approval: `amount > limit`."""
    return amount > limit


@trace
def send_to(desk: str) -> str:
    """Hand the message on: `desk`."""
    return desk


def guide(output: str, example: dict[str, Any]) -> Feedback:
    """Compare with the right desk."""
    if output == example["desk"]:
        return Feedback(score=1.0, text=f"right: the {output} desk takes it")
    return Feedback(score=0.0, text=f"went to '{output}', expected '{example['desk']}'")


def problem() -> Problem:
    """The problem, with a keyword at the start that no message holds."""
    keyword = Parameter(
        "urgent",
        name="keyword",
        description="word that marks a message about money back",
        suggestions=("urgent", "order", "refund", "invoice", "please"),
    )
    ignore_case = Parameter(
        False, name="ignore_case", description="whether capitals do not matter", choices=(False, True)
    )
    limit = Parameter(
        0, name="limit", description="amount above which a manager decides", choices=(0, 100, 200, 300, 1000)
    )

    def workflow(message: str, amount: int) -> str:
        if mentions(message, keyword.value, ignore_case.value):
            if exceeds(amount, limit.value):
                return send_to("manager")
            return send_to("refunds")
        return send_to("general")

    examples = [{"message": message, "amount": amount, "desk": desk} for message, amount, desk in MESSAGES]
    return Problem(
        workflow=workflow,
        train=examples,
        val=examples,
        guide=guide,
        parameters=[keyword, ignore_case, limit],
        optimizers=[Categorical()],
        description="a router whose variables act through decisions only",
        score_range=(0.0, 1.0),
    )
