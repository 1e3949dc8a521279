"""A minibatch of rollouts as one problem text for a language model, never longer than its budget.

Variables are always whole. Feedback may take a quarter. Then come the code that ran, what its functions are for, and for
each example, worst first, what went in, what came of it and what was said about it. What is near a variable or the
output is kept longest. Nothing a user, model or data set wrote can pass for a heading (optim/text.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trace_opt
from trace_opt.core.graph import OUTPUT_OF_LEAVES
from trace_opt.core.node import Failure, Node, ParameterNode
from trace_opt.optim.constants import Constants, structure
from trace_opt.optim.functions import by_line, calls_text, codes, failing_lines, spread
from trace_opt.optim.lines import Gap, Line
from trace_opt.optim.listing import Listing
from trace_opt.optim.text import block, cut, literal, name_text, one_line, size, tokens_in
from trace_opt.optim.variables import variables_text

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter
    from trace_opt.core.rollout import Rollout

T = TypeVar("T")

OBJECTIVE = (
    "Find values for the variables under which the outputs get better feedback, on these examples and on others of "
    "their kind."
)

_LEAST_TOKENS = 150  # besides the variables, without which a problem says nothing
_BYTES_PER_TOKEN = 3.0  # to begin with; put right by what the text turns out to have
_EXAMPLE_BYTES = 300  # an example with less room is left out
_ENTRY_BYTES = 24  # a name with a short value
_MAX_CODES = 6  # different courses of the workflow that are written out
_MAX_EXAMPLES = 40


def render(
    parameters: Sequence[Parameter[Any]],
    rollouts: Sequence[Rollout],
    *,
    tokens: int = 8000,
    objective: str = OBJECTIVE,
    tried: str = "",
) -> str:
    """The problem text of a proposal.

    Args:
        parameters: The variables, with their values in force.
        rollouts: What the workflow did under these values, with graphs, and what was said about it.
        tokens: The most that the text may take, as `text.tokens_in` estimates it.
        objective: What to aim for, in words.
        tried: Lines on earlier attempts (optim/memory.py), shown where there is room.

    Returns:
        The text, in sections headed `# Instruction`, `# Code`, `# Documentation`, `# Variables`, `# Example 1 of n`.

    Raises:
        ValueError: the variables alone do not fit.

    Cost: linear in the slices of the variables.
    """
    return _Problem(parameters, rollouts, tokens, objective, tried).text()


@dataclass(slots=True)
class _Shown:
    """One example of the text."""

    rollout: Rollout
    listing: Listing | None
    lines: Sequence[Line | Gap] = ()
    code: int = -1


class _Problem:
    """One text in the making: what is always whole, and the room for the rest, in bytes."""

    def __init__(
        self, parameters: Sequence[Parameter[Any]], rollouts: Sequence[Rollout], tokens: int, objective: str, tried: str
    ) -> None:
        self.parameters = parameters
        self.tokens = tokens
        self.tried = tried
        self.head = f"# Instruction\n{as_prose(objective)}"
        fixed = tokens_in(f"{self.head}\n\n# Variables\n{variables_text(parameters, ())}")
        if fixed + _LEAST_TOKENS > tokens:
            raise ValueError(
                f"the {len(parameters)} variables alone need a problem text of {fixed + _LEAST_TOKENS} tokens and "
                f"tokens={tokens} was given; raise tokens, or give fewer or shorter variables to one optimizer"
            )
        self.free = tokens - fixed
        ordered = sorted(rollouts, key=_badness)
        self.total = len(ordered)
        most = max(1, min(_MAX_EXAMPLES, int(self.free * _BYTES_PER_TOKEN * 0.6) // _EXAMPLE_BYTES))
        names = {parameter.name for parameter in parameters}
        if codes(parameters):
            # what works is to stay so: code is mended by what it gets right as well
            ordered = spread(ordered, most)
        self.shown = [_Shown(rollout, _listing(rollout, names)) for rollout in ordered[:most]]
        reached = {node.name for example in self.shown for node in _variables_in(example)}
        self.variables = f"# Variables\n{variables_text(parameters, reached if ordered else None)}"
        self.fixed = tokens_in(f"{self.head}\n\n{self.variables}")

    def text(self) -> str:
        """The longest text that fits: written for an estimate of the room, and again where that was too much."""
        room = self.free * _BYTES_PER_TOKEN
        for _ in range(5):
            text = self._written(int(room))
            excess = tokens_in(text) - self.tokens
            if excess <= 0:
                return text
            room *= 0.97 * self.free / (self.free + excess)
        return f"{self.head}\n\n{self.variables}"

    def _written(self, room: int) -> str:
        feedback = self._feedback(int(min(self.tokens * _BYTES_PER_TOKEN / 4, room / 2)))
        tried = _cut_lines(self.tried, room // 6)
        left = room - sum(map(size, feedback)) - size(tried)
        sections = self._code_sections(self._codes(int(left * 0.4)), left // 8)
        calls = calls_text(self.parameters, [example.rollout for example in self.shown], left // 8)
        left -= size(calls)
        parts = [self.head, *sections, self.variables, *([calls] if calls else []), *([tried] if tried else [])]
        each = (left - sum(map(size, sections)) - 100) // max(1, len(self.shown)) - 60
        parts += [self._example(i, example, feedback[i], each) for i, example in enumerate(self.shown)]
        rest = self.total - len(self.shown)
        which = "" if codes(self.parameters) else ", with better feedback,"
        return "\n\n".join([*parts, f"({rest} more examples{which} are not shown.)"] if rest else parts)

    def _codes(self, limit: int) -> list[list[int]]:
        """Settle each example's lines; which examples ran the same code, the worst first."""
        groups = self._grouped(limit)
        if len(groups) > 1:
            # those that went another way than the first few are not worth their lines
            self.shown = [example for example in self.shown if example.code < _MAX_CODES]
            groups = self._grouped(limit // min(len(groups), _MAX_CODES))
        taken = {name for example in self.shown if example.listing for name in map(_defined, example.lines)}
        self.constants = Constants([example.lines for example in self.shown], taken | {p.name for p in self.parameters})
        return groups

    def _grouped(self, limit: int) -> list[list[int]]:
        known: dict[Any, int] = {}
        groups: list[list[int]] = []
        for i, example in enumerate(self.shown):
            if example.listing is None:
                continue
            example.lines = example.listing.lines(limit)
            example.code = known.setdefault(tuple(map(structure, example.lines)), len(known))
            if example.code == len(groups):
                groups.append([])
            groups[example.code].append(i)
        return groups

    def _code_sections(self, groups: list[list[int]], doc_limit: int) -> list[str]:
        if not groups:
            return []
        blocks: list[str] = []
        for members in groups:
            lines = "\n".join(self.constants.texts(members[0]))
            numbers = ", ".join(str(i + 1) for i in members)
            heading = f"[{'example' if len(members) == 1 else 'examples'} {numbers}]\n" if len(groups) > 1 else ""
            blocks.append(heading + lines)
        said = _documentation(self.shown, doc_limit)
        return ["# Code\n" + "\n".join(blocks), *(["# Documentation\n" + said] if said else [])]

    def _feedback(self, limit: int) -> list[str]:
        """What was said about each example, in about `limit` bytes together."""
        told: set[str] = set()
        texts = [_said(example.rollout, self.parameters, told) for example in self.shown]
        limits = shares([size(block(text)) for text in texts], limit)
        return [block_within(text, limit) for text, limit in zip(texts, limits, strict=True)]

    def _example(self, i: int, example: _Shown, feedback: str, room: int) -> str:
        rollout = example.rollout
        scores = ", ".join(f"{name_text(name)} {score:.6g}" for name, score in rollout.feedback.scores.items())
        parts = [f"# Example {i + 1} of {self.total}" + (f" ({scores})" if scores else "")]
        inputs = [*self.constants.inputs(i).items(), *_context(example)]
        name, value = _output(example)
        lines = [line for line in example.lines if isinstance(line, Line)]
        values = [(line.name, line.node.value) for line in lines if line.name and line.name != name]
        output = f"Output:\n  {name} = {_shown_value(value, max(60, room // 3))}"
        # values follow from the inputs and the code, so they are the first to give way
        parts.append(_listed("Inputs", inputs, int((room - size(output)) * 0.6)))
        room -= size(parts[1]) + size(output)
        decided, hidden, at = _ends(self._decided(i), room // 2)
        parts.append(_titled("Decisions", [f"  {line}" for line in decided], hidden, at))
        parts += [_listed("Values", values, room - size(parts[2])), output]
        parts.append(f"Feedback:\n{feedback}" if feedback.strip("| \n") else "")
        return "\n".join(part for part in parts if part)

    def _decided(self, i: int) -> list[str]:
        texts = zip(self.shown[i].lines, self.constants.texts(i), strict=True)
        decisions = [(line, text) for line, text in texts if isinstance(line, Line) and not line.name]
        return [text + (f": {line.outcome}" if line.outcome else "") for line, text in decisions]


def block_within(text: str, limit: int) -> str:
    """A quoted block of about `limit` bytes at most: marks, indents and other scripts take more than characters."""
    made = block(text)
    while size(made) > limit and len(text) > 40:
        text = cut(text, max(40, int(len(text) * min(0.9, limit / size(made)))))
        made = block(text)
    return made


def shares(needs: Sequence[int], total: int) -> list[int]:
    """Share `total` out so that small needs are met whole and large ones get equal parts."""
    given = [0] * len(needs)
    left = total
    for rank, i in enumerate(sorted(range(len(needs)), key=lambda i: needs[i])):
        given[i] = min(needs[i], left // (len(needs) - rank))
        left -= given[i]
    return given


def _badness(rollout: Rollout) -> tuple[int, float]:
    """Failed ones first, then what was only talked about, then by score."""
    score = rollout.feedback.value
    if rollout.error is not None:
        return (0, 0.0)
    return (1, 0.0) if score is None else (2, score)


def _listing(rollout: Rollout, names: set[str]) -> Listing | None:
    slices = [piece for name, piece in rollout.slices.items() if name in names]
    return Listing(slices) if slices else None


def _variables_in(example: _Shown) -> list[ParameterNode[Any]]:
    path = example.listing.path if example.listing else ()
    return [node for node in path if isinstance(node, ParameterNode)]


def _defined(line: Line | Gap) -> str:
    return line.name if isinstance(line, Line) else ""


def _context(example: _Shown) -> list[tuple[str, Any]]:
    """Values from outside the variables' reach that the lines shown use, by name."""
    listing = example.listing
    if listing is None:
        return []
    outside = set(listing.context)
    used: dict[Node[Any], None] = {}
    for line in example.lines:
        if not isinstance(line, Line):
            continue
        inlined: list[Node[Any]] = [x for x in line.node.inputs if isinstance(x, Node) and x in listing.inlined]
        for node in (line.node, *inlined):
            used.update((parent, None) for parent, kind, _ in node.parents() if kind != "control" and parent in outside)
    return [(listing.name(node), node.value) for node in list(used)[:200]]


def _output(example: _Shown) -> tuple[str, Any]:
    rollout, listing = example.rollout, example.listing
    if listing is None:
        return "output", rollout.output if rollout.error is None else Failure("error", rollout.error)
    node = listing.output
    if node.op is OUTPUT_OF_LEAVES and node.value is None:
        return listing.name(node), _Unknown()
    return listing.name(node), node.value


class _Unknown:
    """A plain output that was not passed on."""

    def __repr__(self) -> str:
        return "(a plain value, not recorded)"


def _shown_value(value: Any, limit: int) -> str:
    return f"raised {literal(value, limit)}" if isinstance(value, Failure) else literal(value, limit)


def _listed(title: str, entries: Sequence[tuple[str, Any]], limit: int) -> str:
    """Names with their values, in about `limit` bytes: long values are cut first, then entries in the middle go."""
    entries, hidden, at = _ends(entries, limit)
    needs = [size(_shown_value(value, max(40, limit))) for _, value in entries]
    names = sum(size(name) + 6 for name, _ in entries)
    limits = shares(needs, max(limit - names, 16 * len(entries)))
    lines = [
        f"  {name} = {_shown_value(value, max(16, most))}" for (name, value), most in zip(entries, limits, strict=True)
    ]
    return _titled(title, lines, hidden, at)


def _titled(title: str, lines: list[str], hidden: int, at: int) -> str:
    if not lines:
        return ""
    note = [f"  ... {hidden:,} more ..."] if hidden else []
    return "\n".join([f"{title}:", *lines[:at], *note, *lines[at:]])


def _ends(entries: Sequence[T], limit: int) -> tuple[Sequence[T], int, int]:
    """The first and last entries of more than fit, how many are left out, and where."""
    most = max(2, limit // _ENTRY_BYTES)
    if len(entries) <= most + 1:
        return entries, 0, len(entries)
    head, tail = (most + 1) // 2, most // 2
    return [*entries[:head], *entries[len(entries) - tail :]], len(entries) - most, head


def _said(rollout: Rollout, parameters: Sequence[Parameter[Any]], told: set[str]) -> str:
    """Feedback in words, with the user's own frames of the traceback where the workflow failed.

    Args:
        rollout: The rollout.
        parameters: All variables; lines of those that are functions are shown.
        told: The lines shown already.
    """
    text = rollout.feedback.text
    failed = getattr(cast("Any", rollout).node, "value", None)
    if isinstance(failed, Failure):
        trace = own_frames(failed.traceback)
        if trace and trace not in text:
            text = f"{text}\n{trace}" if text else trace
        text = by_line(text, parameters)
        ran = {} if rollout.graph is None else {name: node.value for name, node in rollout.graph.parameters.items()}
        lines = failing_lines(text, {**rollout.values, **ran}, parameters)
        if lines and lines not in told:
            told.add(lines)
            text = f"{text}\n{lines}"
    return text


def own_frames(traceback: str) -> str:
    """A formatted traceback without the frames of this package and of the wrappers it generates."""
    ours = str(Path(trace_opt.__file__).parent)
    kept: list[str] = []
    is_ours = False
    for line in traceback.splitlines():
        frame = re.match(r'  File "([^"]*)"', line)
        if frame:
            is_ours = frame[1].startswith((ours, "<trace "))
        elif not line.startswith("  "):
            is_ours = False
        if not is_ours:
            kept.append(line)
    return "\n".join(kept).strip()


def _documentation(shown: Sequence[_Shown], limit: int) -> str:
    """One line for each distinct op that takes part in a line shown."""
    lines: dict[str, None] = {}
    for example in shown:
        for line in example.lines:
            op = line.node.op if isinstance(line, Line) else None
            if op is not None and op.kind == "op" and not op.symbol and op.signature:
                doc = f": {cut(one_line(op.doc), 600)}" if op.doc else ""
                # annotations that are not evaluated come quoted
                signature = re.sub(r"(\w: |-> )'([^']*)'", r"\1\2", one_line(op.signature))
                lines[f"{one_line(op.name)}{cut(signature, 300)}{doc}"] = None
    return _cut_lines("\n".join(lines), limit)


def _cut_lines(text: str, limit: int) -> str:
    """The lines of a text that fit."""
    kept: list[str] = []
    for line in text.splitlines():
        limit -= size(line) + 1
        if limit < 0:
            kept.append("...")
            break
        kept.append(line)
    return "\n".join(kept)


def as_prose(objective: str) -> str:
    """An objective as it is, or as a block where it could pass for a heading."""
    return block(objective, "") if any(line.startswith("#") for line in objective.splitlines()) else objective.strip()
