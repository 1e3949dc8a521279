"""A model double that reads nothing but a rendered problem text, and solves it.

It takes the variables, call lines, documentation, decisions and feedback from the text, rebuilds the program from the
lines (a function does what the formula in its documentation says), and looks for values under which every example gives
what its feedback expects. It knows no problem and no constant of one: what it finds, the text held.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trace_opt.testing import ScriptedLLM

_MOST_COMBINATIONS = 20_000


class Unknown(Exception):
    """The text does not say what would happen under these values."""


@dataclass
class Variable:
    name: str
    allowed: str
    value: Any
    suggestions: list[Any] = field(default_factory=list)

    @property
    def is_number(self) -> bool:
        return self.allowed.startswith(("number", "whole number"))

    @property
    def choices(self) -> list[Any] | None:
        if self.allowed == "true or false":
            return [False, True]
        if self.allowed.startswith("one of "):
            return json.loads(f"[{self.allowed.removeprefix('one of ')}]")
        return None


@dataclass
class Example:
    number: int
    inputs: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)
    output: str = ""
    feedback: str = ""

    @property
    def goal(self) -> Any:
        """What the feedback expects, or the output itself where it was right."""
        wanted = re.search(r"expected ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[-+.\w]+)", self.feedback)
        return ast.literal_eval(wanted[1] if wanted else self.output)


@dataclass
class Text:
    """A problem text, taken apart."""

    variables: dict[str, Variable]
    codes: list[tuple[set[int], list[str]]]  # which examples ran these lines; an empty set: all
    formulas: dict[str, tuple[list[str], str]]  # by function: its arguments and what it gives
    examples: list[Example]


# -- reading ---------------------------------------------------------------------------------------------------------


def read_text(text: str) -> Text:
    sections = re.split(r"(?m)^# ", text)[1:]
    by_title = {section.partition("\n")[0].strip(): section.partition("\n")[2] for section in sections}
    examples = [
        _example(int(title.split()[1]), body) for title, body in by_title.items() if title.startswith("Example ")
    ]
    return Text(
        {variable.name: variable for variable in _variables(by_title["Variables"])},
        list(_codes(by_title.get("Code", ""))),
        dict(_formulas(by_title.get("Documentation", ""))),
        examples,
    )


def _variables(section: str) -> Iterator[Variable]:
    for entry in re.split(r"(?m)^(?=\S)", section):
        head = re.match(r"(.+?) \((.*)\)\n", entry)
        if head is None:
            continue
        suggestions = re.search(r"(?m)^  suggestions: (.*)$", entry)
        yield Variable(head[1], head[2], _now(entry), json.loads(suggestions[1]) if suggestions else [])


def _now(entry: str) -> Any:
    one_line = re.search(r"(?m)^  now: (.*)$", entry)
    if one_line:
        return json.loads(one_line[1])
    return "\n".join(re.findall(r"(?m)^    \| ?(.*)$", entry))


def _codes(section: str) -> Iterator[tuple[set[int], list[str]]]:
    numbers: set[int] = set()
    lines: list[str] = []
    for line in section.strip().splitlines():
        heading = re.fullmatch(r"\[examples? ([\d, ]+)\]", line)
        if heading:
            if lines:
                yield numbers, _unfolded(lines)
            numbers, lines = {int(number) for number in heading[1].split(",")}, []
        elif line.strip():
            lines.append(line)
    if lines:
        yield numbers, _unfolded(lines)


def _unfolded(lines: list[str]) -> list[str]:
    """Lines with "goes on in the same way" written out."""
    made: list[str] = []
    for line in lines:
        fold = re.match(r"\.\.\. the (?:(\d+) )?lines? above goe?s? on in the same way ([\d,]+) times more", line)
        if fold is None:
            made.append(line)
            continue
        period, times = int(fold[1] or 1), int(fold[2].replace(",", ""))
        before, latest = made[-2 * period : -period], made[-period:]
        for _ in range(times):
            after = [_next_line(a, b) for a, b in zip(before, latest, strict=True)]
            made += after
            before, latest = latest, after
    return made


def _next_line(before: str, latest: str) -> str:
    """The line that follows on two of a pattern: numbers in names go on as they went."""
    steps = iter(zip(re.findall(r"_(\d+)\b", before), re.findall(r"_(\d+)\b", latest), strict=True))

    def go_on(_: re.Match[str]) -> str:
        a, b = next(steps)
        return f"_{2 * int(b) - int(a)}"

    return re.sub(r"_(\d+)\b", go_on, latest)


def _formulas(section: str) -> Iterator[tuple[str, tuple[list[str], str]]]:
    for line in section.splitlines():
        formula = re.match(r"([\w/]+)\((.*?)\)(?: -> .*?)?: .*?`(.+?)`", line)
        if formula:
            arguments = ast.parse(f"def f({formula[2]}): 0").body[0]
            assert isinstance(arguments, ast.FunctionDef)
            yield formula[1], ([argument.arg for argument in arguments.args.args], formula[3])


def _example(number: int, body: str) -> Example:
    example = Example(number)
    title = ""
    for line in filter(str.strip, body.splitlines()):
        if not line.startswith(" "):
            title = line.strip(":")
            continue
        name, _, value = line.strip().partition(" = ")
        if title == "Inputs":
            example.inputs[name] = value
        elif title == "Values":
            example.values[name] = value
        elif title == "Decisions":
            example.decisions.append(line.strip())
        elif title == "Output":
            example.output = value
        elif title == "Feedback":
            example.feedback += line.strip().removeprefix("|").strip() + "\n"
    return example


# -- the program -----------------------------------------------------------------------------------------------------

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sum": sum, "min": min, "max": max, "len": len, "abs": abs, "round": round, "sorted": sorted, "str": str,
    "int": int, "float": float,
}  # fmt: skip
_METHODS = {"lower", "upper", "title", "strip", "split", "startswith", "endswith", "replace", "count", "join"}


class Evaluator:
    """Works out an expression of the text; anything it has no rule for is unknown."""

    def __init__(self, formulas: Mapping[str, tuple[list[str], str]]) -> None:
        self.formulas = formulas
        self.trees: dict[str, ast.expr] = {}

    def value(self, expression: str, names: Mapping[str, Any]) -> Any:
        tree = self.trees.get(expression)
        if tree is None:
            try:
                tree = self.trees[expression] = ast.parse(expression, mode="eval").body
            except SyntaxError:
                raise Unknown(expression) from None
        try:
            return self.work_out(tree, names)
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError):
            raise Unknown(expression) from None

    def work_out(self, node: ast.expr, names: Mapping[str, Any]) -> Any:  # one rule a kind of expression
        def inner(part: ast.expr) -> Any:
            return self.work_out(part, names)

        match node:
            case ast.Constant():
                return node.value
            case ast.Name() | ast.Attribute() if ast.unparse(node) in names:
                return names[ast.unparse(node)]
            case ast.List() | ast.Tuple():
                return [inner(part) for part in node.elts]
            case ast.Dict():
                return {inner(k): inner(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
            case ast.BinOp():
                return _BINARY[type(node.op)](inner(node.left), inner(node.right))
            case ast.UnaryOp(op=ast.USub()):
                return -inner(node.operand)
            case ast.UnaryOp(op=ast.Not()):
                return not inner(node.operand)
            case ast.Compare(ops=[test]):
                return _COMPARE[type(test)](inner(node.left), inner(node.comparators[0]))
            case ast.IfExp():
                return inner(node.body) if inner(node.test) else inner(node.orelse)
            case ast.Subscript():
                return inner(node.value)[inner(node.slice)]
            case ast.Call(func=ast.Attribute(attr=method)) if method in _METHODS:
                return getattr(inner(node.func.value), method)(*map(inner, node.args))  # pyright: ignore[reportAttributeAccessIssue]
            case ast.Call(func=ast.Name(id=name)) if name in self.formulas:
                arguments, formula = self.formulas[name]
                given = dict(zip(arguments, map(inner, node.args), strict=False))
                given |= {str(keyword.arg): inner(keyword.value) for keyword in node.keywords}
                return self.value(formula, {**names, **given})
            case ast.Call(func=ast.Name(id=name)) if name in _FUNCTIONS:
                return _FUNCTIONS[name](*map(inner, node.args))
        raise Unknown(ast.dump(node))


class Program:
    """The courses that were seen, put together: where they part, a decision says which one goes on."""

    def __init__(self, text: Text) -> None:
        self.evaluator = Evaluator(text.formulas)
        self.courses = [lines for _, lines in text.codes]
        self.fixed = {
            example.number: {name: self._literal(value) for name, value in example.inputs.items()}
            for example in text.examples
        }

    def run(self, example: Example, variables: Mapping[str, Any]) -> Any:
        """The output of an example under other values of the variables."""
        names = {**self.fixed[example.number], **variables}
        courses, last = self.courses, None
        for i in itertools.count():
            courses = [course for course in courses if len(course) > i]
            if not courses:
                return last
            decision = re.fullmatch(r"if (.*): (True|False)", courses[0][i])
            if decision:
                came_to = bool(self.evaluator.value(decision[1], names))
                courses = [course for course in courses if course[i] == f"if {decision[1]}: {came_to}"]
                if not courses:
                    raise Unknown("a course that no example took")
                continue
            name, _, expression = courses[0][i].partition("  # reads")[0].partition(" = ")
            if not expression:
                raise Unknown(courses[0][i])
            last = names[name] = self.evaluator.value(expression, names)
        raise AssertionError

    @staticmethod
    def _literal(value: str) -> Any:
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value


# -- solving ---------------------------------------------------------------------------------------------------------


class Solver:
    def __init__(self, text: Text) -> None:
        self.text = text
        self.program = Program(text)
        self.goals = {example.number: example.goal for example in text.examples}
        self.start = {name: variable.value for name, variable in text.variables.items()}

    def solve(self) -> dict[str, Any]:
        """Values under which the examples come nearest to what is expected."""
        options = {name: self._options(variable) for name, variable in self.text.variables.items()}
        numbers = [name for name, found in options.items() if found is None]
        listed = {name: found for name, found in options.items() if found is not None}
        best = min(self._combinations(listed), key=self.loss)
        return self._fitted(best, numbers) if numbers else best

    def loss(self, values: Mapping[str, Any]) -> float:
        """How far the examples are from what is expected; a course that no one took is half a miss, so worth a try."""
        total = sum(min(1.0, self._miss(example, values)) for example in self.text.examples)
        return total + 1e-6 * sum(value != self.start[name] for name, value in values.items())

    def _miss(self, example: Example, values: Mapping[str, Any]) -> float:
        goal = self.goals[example.number]
        try:
            output = self.program.run(example, values)
        except Unknown:
            return 0.5
        if isinstance(output, (int, float)) and isinstance(goal, (int, float)):
            return abs(output - goal) / (1 + abs(goal))
        return float(output != goal)

    def _options(self, variable: Variable) -> list[Any] | None:
        """Values worth trying; None for a number, which is worked out."""
        if variable.choices is not None:
            return variable.choices
        if variable.is_number and not any(variable.name in line for line in self._decision_lines()):
            return None
        if variable.is_number:
            seen = sorted(
                {float(n) for e in self.text.examples for v in e.inputs.values() for n in re.findall(r"-?\d+", v)}
            )
            return [variable.value, *(math.floor((a + b) / 2) for a, b in itertools.pairwise(seen))]
        words = {word for e in self.text.examples for v in e.inputs.values() for word in re.findall(r"\w+", v)}
        return list(dict.fromkeys([variable.value, *variable.suggestions, *sorted(words)]))

    def _decision_lines(self) -> list[str]:
        return [line for _, lines in self.text.codes for line in lines if line.startswith("if ")]

    def _combinations(self, options: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
        count = math.prod(map(len, options.values()))
        yield dict(self.start)
        if count <= _MOST_COMBINATIONS:
            for combination in itertools.product(*options.values()):
                yield {**self.start, **dict(zip(options, combination, strict=True))}

    def _fitted(self, values: dict[str, Any], numbers: Sequence[str]) -> dict[str, Any]:
        """Newton's method on the differences, by least squares where they are more than the numbers."""
        import numpy as np

        point = np.array([float(values[name]) for name in numbers])
        for _ in range(30):
            misses = self._differences(values, numbers, point)
            if max(map(abs, misses)) < 1e-9:
                break
            columns = [
                (np.array(self._differences(values, numbers, point + step)) - self._differences(values, numbers, point - step))
                / (2 * step.max())
                for step in np.eye(len(numbers)) * 1e-3
            ]  # fmt: skip
            point = point - np.linalg.lstsq(np.array(columns).T, np.array(misses), rcond=None)[0]
        return {**values, **{name: self._number(name, float(x)) for name, x in zip(numbers, point, strict=True)}}

    def _differences(self, values: Mapping[str, Any], numbers: Sequence[str], point: Sequence[float]) -> list[float]:
        at = {**values, **dict(zip(numbers, map(float, point), strict=True))}
        return [
            float(self.program.run(example, at)) - float(self.goals[example.number]) for example in self.text.examples
        ]

    def _number(self, name: str, x: float) -> float:
        return round(x) if self.text.variables[name].allowed.startswith("whole number") else round(x, 9)


class ReadingLLM(ScriptedLLM):
    """Answers every question with the values that solve the problem text in it."""

    def __init__(self) -> None:
        super().__init__(self._answer, "scripted/reading")

    @staticmethod
    def _answer(messages: Sequence[Mapping[str, Any]]) -> str:
        text = read_text(str(messages[-1]["content"]))
        values = Solver(text).solve()
        changed = {name: value if value != text.variables[name].value else None for name, value in values.items()}
        return json.dumps({"reasoning": "worked out from the code and the feedback", "values": changed})
