"""`trace-opt graph`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trace_opt.cli.options import CaptureOption, OutputOption, ProblemFile, ReplayOption, Sets, parsed_sets

if TYPE_CHECKING:
    from trace_opt.core.graph import Graph
    from trace_opt.core.node import Node
    from trace_opt.problem import Problem

Format = Literal["text", "mermaid", "dot", "json"]


def graph(
    file: ProblemFile,
    example: Annotated[
        int, typer.Option("--example", "-e", metavar="N", min=0, help="The number of a training example, from 0.")
    ] = 0,
    format: Annotated[Format, typer.Option("--format", help="How to write it.")] = "text",  # the option's name
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="The rollout's seed.")] = 0,
    output: OutputOption = None,
    sets: Sets = None,
    capture: CaptureOption = None,
    replay: ReplayOption = None,
) -> int:
    """Run a problem's workflow on one example and write its graph.

    The workflow's model calls are made, and paid for. A workflow that fails has a graph too; the code is then 1.
    """
    options = parsed_sets(sets)
    from trace_opt.cli.conduct import replies
    from trace_opt.cli.export import write_whole
    from trace_opt.cli.failures import ERROR, OK
    from trace_opt.cli.terminal import answer_exactly, tell
    from trace_opt.problem import load_problem

    with replies(capture, replay):
        problem = load_problem(file, options)
        found, error = recorded(problem, _example(problem, example), seed)
    text = _formatted(found, format)
    if output is None:
        answer_exactly(text)
    else:
        write_whole(output, text)
        tell(f"wrote {output}")
    for line in hidden(found):
        tell(f"note: {line}")
    if error:
        tell(f"trace-opt: the workflow failed on example {example}: {error}")
        return ERROR
    return OK


def _example(problem: Problem, number: int) -> Any:
    examples = list(problem.train)
    if number >= len(examples):
        raise typer.BadParameter(
            f"there is no training example {number}; give a number from 0 to {len(examples) - 1}"
            if examples
            else "train is empty; a graph needs an example",
            param_hint="--example",
        )
    return examples[number]


def recorded(problem: Problem, example: Any, seed: int) -> tuple[Graph, str]:
    """The recording of a workflow on an example, its output included, and why it failed ("" where it did not).

    Raises:
        TraceError, BudgetError, LLMError: no graph tells about these.
    """
    import asyncio
    import inspect

    from trace_opt.core.binding import bind
    from trace_opt.core.tracer import record
    from trace_opt.errors import OpError

    args, kwargs = bind(problem.workflow, example)

    async def awaited(output: Any) -> Any:
        return await output

    try:
        with record(seed=seed) as found:
            output = problem.workflow(*args, **kwargs)
            if inspect.isawaitable(output):
                output = asyncio.run(awaited(output))
    except OpError as error:
        return error.graph, str(error)
    found.output(output)
    return found, ""


def _formatted(graph: Graph, format: Format) -> str:
    makers = {"text": graph.to_text, "mermaid": graph.to_mermaid, "dot": graph.to_dot, "json": graph.to_json}
    return makers[format]().rstrip("\n") + "\n"


def hidden(graph: Graph) -> list[str]:
    """Sentences about ops whose bodies call other ops, which the graph shows as one node."""
    found: dict[str, dict[str, None]] = {}
    for node in graph.nodes:
        inner = _inside(node)
        if inner:
            found.setdefault(node.op.name, {}).update(dict.fromkeys(inner))
    return [
        f"op {name!r} hides calls of {', '.join(map(repr, inner))} in its body; @trace(inline=True) on it records them in "
        "place"
        for name, inner in found.items()
    ]


def _inside(node: Node[Any]) -> list[str]:
    names: list[str] = []
    todo = list(node.children)
    while todo:
        child = todo.pop(0)
        names.append(child.op.name)
        todo.extend(child.children)
    # a model call is a leaf and hides nothing that could be improved
    return [name for name in dict.fromkeys(names) if name != "llm"]
