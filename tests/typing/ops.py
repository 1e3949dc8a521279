"""What type checkers see: an op is its function, a parameter's value has its type. Checked, not run."""

from typing import assert_type

from trace_opt import Parameter, node_of, op_of, trace
from trace_opt.core.node import Node, Op

style = Parameter("short", name="style")
limit = Parameter(3, name="limit")


@trace
def ask(question: str, times: int = 1) -> str:
    return question * times


@trace(name="other")
def named(x: float) -> int:
    return int(x)


@trace
async def later(x: int) -> str:
    return str(x)


class Agent:
    @trace
    def act(self, observation: str) -> list[str]:
        return [observation]


assert_type(style.value, str)
assert_type(limit.value, int)
assert_type(ask("q"), str)
assert_type(ask("q", times=2), str)
assert_type(named(1.5), int)
assert_type(Agent().act("x"), list[str])
assert_type(node_of(ask("q")), Node[str])
assert_type(op_of(ask), Op)


async def awaited() -> None:
    assert_type(await later(1), str)
