"""Each marked line is a mistake that type checkers must find. Checked, not run."""

from trace_opt import Parameter, trace

style = Parameter("short", name="style")


@trace
def ask(question: str) -> str:
    return question


ask(3)  # error
ask()  # error
ask("q", "r")  # error
number: int = ask("q")  # error
ask(style)  # error
